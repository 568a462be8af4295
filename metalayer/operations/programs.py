"""PostgreSQL's own programs: their output as a stream, their errors in words.

Does not belong here: what is done with what they write (`backup.py`, `restore.py`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy.engine import URL, make_url

from metalayer.errors import ConfigurationError, WarehouseError
from metalayer.settings import Settings
from metalayer.warehouse.postgres import clean_environment, programs

# The wheel's libpq speaks no TLS.
_TLS = ("require", "verify-ca", "verify-full")


@dataclass(frozen=True)
class Target:
    """A database as these programs are told of it: its password stands where nobody reads it."""

    url: URL

    @classmethod
    def of(cls, url: str) -> Target:
        """From a URL with or without a driver."""
        return cls(make_url(url))

    @property
    def words(self) -> list[str]:
        """Arguments that name it, but for its password."""
        # `set` leaves alone what is None, and a password that is left is written as ***.
        plain = self.url.set(drivername="postgresql")._replace(password=None)
        query = {name: value for name, value in plain.query.items() if "password" not in name}
        return ["--dbname", plain.set(query=query).render_as_string()]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that has it."""
        password = self.url.password or self.url.query.get("password")
        return {**clean_environment(), **({"PGPASSWORD": str(password)} if password else {})}


def program(name: str, settings: Settings) -> Path:
    """A program that fits the server: the embedded one's, or of a server of the user's own theirs.

    Raises:
        ConfigurationError: when only a program of this machine would do, and there is none.
    """
    ours = programs() / name
    if settings.database_url is None:
        return ours
    theirs = shutil.which(name)
    if theirs is not None and _major(Path(theirs)) >= _major(ours):
        return Path(theirs)
    mode = make_url(settings.database_url.get_secret_value()).query.get("sslmode")
    if mode in _TLS:
        raise ConfigurationError(
            f"The {name} that comes with MetaLayer speaks no TLS, which sslmode={mode} asks for",
            f"Install PostgreSQL's client programs of version {_major(ours)}, so that {name} is on "
            "PATH.",
        )
    return ours


def _major(path: Path) -> int:
    said = subprocess.run(  # noqa: S603 - PostgreSQL's own
        [str(path), "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"(\d+)", said)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def output_of(command: Sequence[str], environment: dict[str, str]) -> Iterator[IO[bytes]]:
    """What a program writes, as it writes it. The block reads it to its end.

    Raises:
        WarehouseError: when it fails, with its last words.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
        )
        try:
            assert process.stdout is not None
            yield process.stdout
            process.stdout.close()
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        if process.returncode:
            raise _failed(command[0], process.returncode, said.read())


def run(
    command: Sequence[str], environment: dict[str, str], reads: Iterator[bytes] | None = None
) -> None:
    """Run a program to its end; `reads` is what it is given to read.

    Raises:
        WarehouseError: when it fails, with its last words.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own
            list(command),
            stdin=subprocess.PIPE if reads is not None else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
        )
        try:
            if reads is not None:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # its own words say why
                    for piece in reads:
                        process.stdin.write(piece)
                    process.stdin.close()
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        if process.returncode:
            raise _failed(command[0], process.returncode, said.read())


def _failed(name: str, code: int, said: bytes) -> WarehouseError:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line or "FATAL" in line]
    words = (telling or lines or [f"exit code {code}"])[0 if telling else -1]
    return WarehouseError(
        f"{Path(name).name} failed: {words.strip()}",
        "`metalayer doctor` shows whether the server answers, and how full the disk is.",
    )
