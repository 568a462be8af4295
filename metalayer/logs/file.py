"""The file of a log: lines appended by many processes at once, set aside once it has grown large.

Each line is one write to a file that is open for appending, so lines of two processes never mix.
What cannot be written (no room, no right) is dropped: nobody's work fails for its log. Does not
belong here: what a line looks like.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from pathlib import Path

#: As large as the logs of services get (`metalayer.services.child`).
MOST_BYTES = 10 * 1024 * 1024


def set_aside(path: Path) -> Path:
    """Where the lines before those of a log are."""
    return path.with_suffix(f".old{path.suffix}")


class LogFile(logging.Handler):
    """Appends what its formatter makes of records to a file, which only its owner may read.

    Args:
        path: The file; made when there is something to write, its folder at once.
        most_bytes: How large it gets before it is set aside, in place of the one before it.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        super().__init__()
        self.path = path
        self._most_bytes = most_bytes
        self._file: int | None = None
        self._is_torn = False
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as one line."""
        line = self.format(record).encode(errors="replace") + b"\n"
        with contextlib.suppress(OSError):
            file = self._opened()
            if self._is_torn:
                line = b"\n" + line
            # Until it is known to be whole.
            self._is_torn = True
            self._is_torn = os.write(file, line) != len(line)

    def close(self) -> None:
        """Close the file."""
        self._let_go()
        super().close()

    def _opened(self) -> int:
        """The file, opened anew where another process has set it aside, or somebody removed it."""
        if self._file is not None:
            ours, there = os.fstat(self._file), self._there()
            if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                self._let_go()
            elif there.st_size > self._most_bytes:
                self._set_aside(self._file)
                self._let_go()
        if self._file is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o600)
        return self._file

    def _set_aside(self, file: int) -> None:
        """Move the file away, unless another process does so, or has just done so."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = self._there()
            if there is not None and there.st_ino == os.fstat(file).st_ino:
                self.path.replace(set_aside(self.path))

    def _there(self) -> os.stat_result | None:
        try:
            return self.path.stat()
        except FileNotFoundError:
            return None

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
