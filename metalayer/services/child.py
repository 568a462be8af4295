"""One process that `up` starts: in a session of its own, logged to a file, ended with all it began.

The kernel ends it as well should its parent be killed. Does not belong here: which processes there
are (`platform.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_MB = 1024 * 1024
_LOG_BYTES = 10 * _MB
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A process and everything it starts.

    Args:
        name: What it is to people: "webserver".
        command: Program and arguments.
        environment: Its whole environment.
        log: File its output is appended to; the earlier one is kept once it has grown large.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def like(self, name: str, command: Sequence[str]) -> Child:
        """Another process in the same environment, with a log of its own."""
        return Child(name, command, self._environment, self.log.with_name(f"{name}.log"))

    def start(self) -> None:
        """Start it. From the main thread only: the kernel ends it with the thread that did."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Ctrl-C at the terminal is for `up`, which then ends its children in order.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        """Its process id, which is that of its process group as well."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def last_words(self) -> str:
        """The last line it wrote, for a message."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-4000:].decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""

    def rotate_log(self) -> None:
        """Set its log aside once it has grown large; it appends, so the file can be emptied."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > _LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_suffix(".old.log"))
                os.truncate(self.log, 0)

    def signal(self, number: int) -> None:
        """Send a signal to it and to all it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process is not None:
                os.killpg(self._process.pid, number)

    @property
    def is_gone(self) -> bool:
        """Whether neither it nor anything it started is left."""
        if self._process is None:
            return True
        if self._process.poll() is not None:
            # Where this is the first process of a container, what it started falls to us.
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-self._process.pid, os.WNOHANG) != (0, 0):
                    pass
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def end_all(children: Sequence[Child], patience: float) -> None:
    """End the children, all at once: asked first, and killed once `patience` seconds are over."""
    for child in children:
        child.signal(signal.SIGTERM)
    if not wait_until(lambda: all(child.is_gone for child in children), patience):
        for child in children:
            child.signal(signal.SIGKILL)
        wait_until(lambda: all(child.is_gone for child in children), 5.0)


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so; False when it is not after that many seconds."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
