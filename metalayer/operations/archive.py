"""What goes to the vault all the time: the server's log, landed files, and secrets of the home.

    <home>/wal/<segment>            --> wal/<system>/<segment>
    <landing>/<file>                --> landed/<sha256>
    <home>/erased, encryption.keys  --> home/<system>

Between two backups it is the log that any second is recovered from. Landed files are kept by their
content: the ledger says which of them lay there at what time.

Does not belong here: backups (`backup.py`), bringing anything back (`restore.py`).
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from metalayer.errors import MetaLayerError, WarehouseError
from metalayer.governance.sealing import key_file
from metalayer.landing.erased import folder_of
from metalayer.operations.backup_state import note_failure, note_well, now
from metalayer.operations.looking import is_there, looking
from metalayer.operations.vault import Vault, digest
from metalayer.settings import Settings
from metalayer.warehouse.acts import heads_file
from metalayer.warehouse.archiving import SEGMENT, spool_of, system_of
from metalayer.warehouse.server import WarehouseServer, standing_server

_PATIENCE = 30.0
_PIECE = 1024 * 1024
#: A segment that others wait for is handed over within so long.
_WAIT_SECONDS = 120.0

#: The last version of each file, as far as it lies in the landing zone.
LANDED = (
    "select distinct on (source, file) file, sha256, size, mtime_ns, status "
    "from meta.deliveries order by source, file, delivery_id desc"
)


@dataclass
class Archive:
    """Takes to the vault what is not there yet, again and again.

    Args:
        settings: Which home.
        vault: Where to.
    """

    settings: Settings
    vault: Vault
    _landed: set[str] | None = None
    _home: bytes = b""
    _given_up: set[str] = field(default_factory=set)

    def ship(self) -> int:
        """Take everything that is new; how many objects that were.

        Raises:
            MetaLayerError: when the vault takes nothing. What was not taken stays where it is.
        """
        try:
            shipped = self._segments() + self._landed_files() + self._home_files()
        except MetaLayerError as error:
            note_failure(self.settings, error)
            raise
        note_well(self.settings, shipped_at=now())
        return shipped

    def _segments(self) -> int:
        if self.settings.database_url is not None:
            return 0
        spool = spool_of(self.settings.pgdata)
        waiting = sorted(p for p in spool.glob("*") if SEGMENT.fullmatch(p.name))
        for path in waiting:
            name = f"wal/{system_of(self.settings.pgdata)}/{path.name}"
            if self.vault.has(name):
                self._refuse_another(name, path)
            else:
                _put_file(self.vault, name, path)
            path.unlink()
        return len(waiting)

    def _refuse_another(self, name: str, path: Path) -> None:
        """A segment is handed over again after a crash; another one of its name is somebody's."""
        if self.vault.read(name) != path.read_bytes():
            raise WarehouseError(
                f"{self.vault.shown} has another {name}: a second server archives there that was "
                "restored from the same backup",
                "Give each its own METALAYER_BACKUP_URL.",
            )

    def _landed_files(self) -> int:
        """Files of the landing zone by their content, unless PostgreSQL does not answer."""
        if self._landed is None:
            self._landed = {name.rpartition("/")[2] for name in self.vault.objects("landed/")}
        shipped = 0
        with contextlib.suppress(psycopg2.Error, WarehouseError):
            for file, sha256, size, *_ in landed(standing_server(self.settings)):
                path = self.settings.landing / file
                if sha256 in self._landed or sha256 in self._given_up:
                    continue
                try:
                    if path.stat().st_size != size or digest(path) != sha256:
                        continue  # another version of it, which is not in the ledger yet
                    _put_file(self.vault, f"landed/{sha256}", path)
                except FileNotFoundError:
                    self._given_up.add(sha256)
                    continue
                self._landed.add(sha256)
                shipped += 1
        return shipped

    def _home_files(self) -> int:
        """What of the home is nowhere else. Keys only where the vault is encrypted itself."""
        content = packed_home(self.settings, with_keys=self.vault.is_encrypted)
        if content == self._home:
            return 0
        name = f"home/{system(self.settings)}"
        if content is not None and not (self.vault.has(name) and self.vault.read(name) == content):
            self.vault.write(name, content)
        self._home = content or b""
        return 1

    def wait_for(self, segment: str) -> None:
        """Take segments away until one, and all before it, are in the vault.

        Raises:
            WarehouseError: when the server does not hand it over.
        """
        deadline = time.monotonic() + _WAIT_SECONDS
        name = f"wal/{system_of(self.settings.pgdata)}/{segment}"
        while True:
            self.ship()
            if self.vault.has(name):
                return
            if time.monotonic() > deadline:
                raise WarehouseError(
                    f"PostgreSQL does not hand over {segment} of its log",
                    f"Its log, {self.settings.pgdata / 'log'}, says why.",
                )
            time.sleep(0.1)


def system(settings: Settings) -> str:
    """What a home's backups go by: each server that was ever set up has a number of its own."""
    if settings.database_url is None:
        return system_of(settings.pgdata)
    from sqlalchemy.engine import make_url

    return f"own-{make_url(settings.database_url.get_secret_value()).database}"


def landed(server: WarehouseServer) -> list[tuple[str, str, int, int]]:
    """(file, sha256, size, mtime_ns) of what lies in the landing zone, as the ledger has it."""
    with (
        looking(server.warehouse_url, "backup", _PATIENCE) as connection,
        connection.cursor() as cursor,
    ):
        if not is_there(cursor, "meta.deliveries"):
            return []
        cursor.execute(LANDED)
        return [row[:4] for row in cursor.fetchall() if row[4] != "withdrawn"]


def packed_home(settings: Settings, *, with_keys: bool) -> bytes | None:
    """The files of the home that cannot be made again, as a tar; None where there are none."""
    paths = [heads_file(settings), *sorted(folder_of(settings).glob("*"))]
    keys = key_file(settings)
    if with_keys and keys.is_relative_to(settings.home):
        paths.append(keys)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in paths:
            if path.is_file() and not path.name.startswith("."):
                tar.add(path, str(path.relative_to(settings.home)))
        if not tar.getmembers():
            return None
    return packed.getvalue()


def _put_file(vault: Vault, name: str, path: Path) -> None:
    with path.open("rb") as file, vault.writing(name) as out:
        for piece in _pieces(file):
            out.write(piece)


def _pieces(file: io.BufferedReader) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece
