"""Files written whole or not at all.

Does not belong here: what is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all; who was faster has it."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(aside)
        _keep_name(path)
    finally:
        aside.unlink(missing_ok=True)


def write_over(path: Path, content: bytes) -> None:
    """The same for a file that may be there; a link stays one, to the new content."""
    path = path.resolve()
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    write_new(aside, content)
    aside.replace(path)
    _keep_name(path)


@contextlib.contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Let no other process of this machine into such a block for the same file meanwhile."""
    path = path.resolve()
    with path.with_name(f".{path.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _keep_name(path: Path) -> None:
    """Have the folder's entry survive a power cut, too."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
