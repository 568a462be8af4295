"""The operating-system account the embedded server runs as, and what it must be let through.

PostgreSQL refuses to run as root. As root it gets an account of its own, which then needs a way to
the data folder and to the programs. Nothing here knows PostgreSQL beyond that.
"""

import os
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalayer.errors import ConfigurationError

_NAME = "pgserver"


@dataclass(frozen=True)
class Account:
    """An account that is not our own."""

    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """Arguments of `subprocess.Popen` that run a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path) -> None:
        """Give it a file or an (empty) folder."""
        os.chown(path, self.uid, self.gid)

    def may_pass(self, folder: Path) -> bool:
        """Whether it may pass through a folder, judged by the mode alone."""
        return self._may(folder, stat.S_IXUSR)

    def may_read(self, folder: Path) -> bool:
        """Whether it may list a folder and open what is in it, judged by the mode alone."""
        return self._may(folder, stat.S_IXUSR) and self._may(folder, stat.S_IRUSR)

    def _may(self, path: Path, right: int) -> bool:
        """Whether it has a right, given as the owner's bit; group and others follow 3 bits each."""
        facts = path.stat()
        if facts.st_uid == self.uid:
            return bool(facts.st_mode & right)
        if facts.st_gid == self.gid:
            return bool(facts.st_mode & right >> 3)
        return bool(facts.st_mode & right >> 6)

    def open_the_way(self, folders: Iterable[Path]) -> list[Path]:
        """Let it pass through these folders and return those that had to be opened.

        Only the right to pass is added (`o+x`), only where it is missing, never to list or read.
        """
        opened = []
        for folder in dict.fromkeys(folders):
            if not self.may_pass(folder):
                try:
                    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)
                except OSError as error:
                    raise ConfigurationError(
                        f"The account '{_NAME}', which runs PostgreSQL for root, cannot pass "
                        f"through {folder}: {error.strerror}",
                        "Set METALAYER_HOME to a folder outside it, or run as another user.",
                    ) from None
                opened.append(folder)
        return opened


def account_for(pgdata: Path) -> Account | None:
    """The account to run the server as; None means our own.

    As root: the owner of the data folder, or the account `pgserver`, which is created.

    Raises:
        ConfigurationError: when the folder is somebody else's, or no account can be created.
    """
    owner = pgdata.stat() if pgdata.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{pgdata} belongs to another user",
                "Run as that user (or as root), or set METALAYER_HOME to a folder of your own.",
            )
        return None
    if owner is not None and owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    import pwd

    try:
        entry = pwd.getpwnam(_NAME)
    except KeyError:
        _create_account()
        entry = pwd.getpwnam(_NAME)
    return Account(entry.pw_uid, entry.pw_gid)


def let_read(folder: Path) -> None:
    """Give everybody what the owner has of the programs' files: to read, and to run or pass."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _create_account() -> None:
    command = ["useradd", "--system", "--user-group", "--no-create-home", _NAME]
    try:
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        raise ConfigurationError(
            f"PostgreSQL refuses to run as root, and the account '{_NAME}' for it "
            "cannot be created with useradd",
            "Run as another user, create that account, or set METALAYER_DATABASE_URL.",
        ) from None
