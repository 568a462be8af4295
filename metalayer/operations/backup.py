"""Backups: taking one, listing them, letting old ones go.

    pg_basebackup --> base/<id>.tar, <id>.manifest --> base/<id>.json, last: now it is one

The first of the embedded server is whole, those after it hold the blocks that changed since the one
before, until a week has passed. Each goes to the vault as it is read, so it takes no room here.
Dagster's database is in it: it is a backup of the server. Of a server of the user's own, which may
hold more than is ours, both databases are dumped.

Does not belong here: what lies between backups (`archive.py`), bringing one back (`restore.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Literal

import psycopg2

from metalayer.errors import UsageError, WarehouseError
from metalayer.inspection import libpq_url
from metalayer.operations.archive import Archive, landed, system
from metalayer.operations.backup_state import note_failure, note_well
from metalayer.operations.looking import is_there, looking
from metalayer.operations.programs import Target, output_of, program
from metalayer.operations.vault import Vault, Writer
from metalayer.settings import Settings
from metalayer.warehouse.archiving import is_archiving
from metalayer.warehouse.server import WarehouseServer, open_lock

Kind = Literal["full", "incremental", "dump"]
Tell = Callable[[str], None]

#: How long increments follow on a whole backup: each of them is needed to restore the last.
_CHAIN = timedelta(days=7)
_MOST_INCREMENTS = 14
_PATIENCE = 60.0


@dataclass(frozen=True)
class Backup:
    """One backup.

    Attributes:
        id: When it was begun; its name in the vault.
        system: The server it is of, see `archive.system`.
        parent: The backup whose blocks it needs, or None.
        started_at, ended_at: ISO, in UTC. What was done before it ended is in it or in the log.
        segment: First segment of the log that recovering it needs; empty for a dump.
        size: Bytes in the vault.
        landed: Contents of the files that lay in the landing zone.
    """

    id: str
    kind: Kind
    system: str
    parent: str | None
    started_at: str
    ended_at: str
    segment: str
    size: int
    landed: tuple[str, ...] = ()

    @property
    def ended(self) -> datetime:
        """When it ended."""
        return datetime.fromisoformat(self.ended_at)

    @property
    def objects(self) -> list[str]:
        """Its objects in the vault; the one that makes it a backup is first."""
        parts = {"dump": ["warehouse.dump", "dagster.dump"]}.get(self.kind, ["tar", "manifest"])
        return [f"base/{self.id}.json", *(f"base/{self.id}.{part}" for part in parts)]


def take(
    settings: Settings, server: WarehouseServer, vault: Vault, tell: Tell, *, full: bool = False
) -> Backup:
    """Take a backup of everything there is, and let go of what is older than wanted.

    Args:
        full: Whether all blocks are wanted, although an increment would do.

    Raises:
        UsageError: when another process of this home takes one.
        WarehouseError: when it fails; then there is none.
    """
    with _alone(settings):
        try:
            if settings.database_url is not None:
                taken = _dump(settings, server, vault, tell)
            else:
                taken = _base(settings, server, vault, tell, full=full)
        except BaseException as error:
            if isinstance(error, Exception):
                note_failure(settings, error)
            raise
        note_well(settings, backup_at=taken.started_at, backup_bytes=taken.size)
        prune(settings, vault)
    return taken


def backups(vault: Vault) -> list[Backup]:
    """All backups, the oldest first."""
    names = [name for name in vault.objects("base/") if name.endswith(".json")]
    return sorted((_read(vault, name) for name in names), key=lambda b: b.id)


def _read(vault: Vault, name: str) -> Backup:
    facts = json.loads(vault.read(name))
    return Backup(**{**facts, "landed": tuple(facts["landed"])})


def chain(backup: Backup, every: list[Backup]) -> list[Backup]:
    """What restoring a backup needs: the whole one first, itself last.

    Raises:
        WarehouseError: when one of them is gone.
    """
    by_id = {each.id: each for each in every}
    found = [backup]
    while found[0].parent is not None:
        before = by_id.get(found[0].parent)
        if before is None:
            raise WarehouseError(
                f"Backup {found[0].id} needs {found[0].parent}, which is gone",
                "`metalayer backups` lists the others.",
            )
        found.insert(0, before)
    return found


def _base(
    settings: Settings, server: WarehouseServer, vault: Vault, tell: Tell, *, full: bool
) -> Backup:
    url = server.warehouse_url
    connection = psycopg2.connect(libpq_url(url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        if not is_archiving(cursor):
            raise UsageError(
                "PostgreSQL was started before there were backups, and does not keep its log",
                "End `metalayer up` and other commands, and start it again.",
            )
    parent = None if full else _parent(vault, system(settings))
    began = datetime.now(UTC)
    try:
        return _taken(settings, vault, Target.of(url), began, parent, tell)
    except WarehouseError as error:
        if parent is None or ("incremental" not in str(error) and "WAL summar" not in str(error)):
            raise
    tell("the server does not know any more what changed: the whole of it is taken")
    return _taken(settings, vault, Target.of(url), datetime.now(UTC), None, tell)


def _parent(vault: Vault, of: str) -> Backup | None:
    """What an increment would follow on; None where a whole backup is due."""
    every = [b for b in backups(vault) if b.system == of and b.kind != "dump"]
    if not every:
        return None
    links = chain(every[-1], every)
    is_old = datetime.now(UTC) - links[0].ended > _CHAIN or len(links) > _MOST_INCREMENTS
    return None if is_old else every[-1]


def _taken(
    settings: Settings,
    vault: Vault,
    target: Target,
    began: datetime,
    parent: Backup | None,
    tell: Tell,
) -> Backup:
    # As sorted as the times are, and nobody else's.
    name = f"{began:%Y-%m-%dT%H-%M-%S.%f}"[:-3] + "Z"
    command = [
        str(program("pg_basebackup", settings)),
        *target.words,
        *("--pgdata", "-", "--format", "tar", "--wal-method", "none", "--checkpoint", "fast"),
        *("--manifest-checksums", "SHA256", "--label", f"metalayer {name}"),
    ]
    with tempfile.TemporaryDirectory(dir=settings.home, prefix=".backup-") as folder:
        if parent is not None:
            manifest = Path(folder) / "manifest"
            manifest.write_bytes(vault.read(f"base/{parent.id}.manifest"))
            command += ["--incremental", str(manifest)]
        archive = Archive(settings, vault)
        try:
            with (
                vault.writing(f"base/{name}.tar") as out,
                output_of(command, target.environment) as made,
            ):
                tell("reading the server's files")
                manifest_text = _copied(made, out)
            vault.write(f"base/{name}.manifest", manifest_text)
            first, last = _segments(json.loads(manifest_text))
            tell("waiting for the log behind it")
            archive.wait_for(last)
            taken = Backup(
                id=name,
                kind="full" if parent is None else "incremental",
                system=system(settings),
                parent=parent.id if parent else None,
                started_at=began.isoformat(timespec="milliseconds"),
                ended_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                segment=first,
                size=out.stored,
                landed=_contents(settings),
            )
            vault.write(f"base/{name}.json", json.dumps(asdict(taken), indent=1).encode())
        except BaseException:
            with contextlib.suppress(Exception):
                vault.remove([f"base/{name}.{part}" for part in ("json", "tar", "manifest")])
            raise
    return taken


class _Tee(io.RawIOBase):
    """What is read from a stream is written to an object as well."""

    def __init__(self, stream: IO[bytes], out: Writer) -> None:
        self._stream, self._out = stream, out

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._out.write(content)
        return content


def _copied(stream: IO[bytes], out: Writer) -> bytes:
    """Copy a tar whole; gives the manifest in it."""
    tee = _Tee(stream, out)
    manifest = b""
    with tarfile.open(fileobj=tee, mode="r|", bufsize=1024 * 1024) as tar:
        for member in tar:
            if member.name == "backup_manifest":
                content = tar.extractfile(member)
                manifest = content.read() if content else b""
    while tee.read(1024 * 1024):
        pass
    if not manifest:
        raise WarehouseError(
            "pg_basebackup gave no manifest", "Look into its server's log, and try again."
        )
    return manifest


def _segments(manifest: dict[str, Any]) -> tuple[str, str]:
    """The first and the last segment of the log that a backup needs."""
    ranges = manifest["WAL-Ranges"]
    return (
        _segment(ranges[0]["Timeline"], ranges[0]["Start-LSN"]),
        _segment(ranges[-1]["Timeline"], ranges[-1]["End-LSN"], ends=True),
    )


def _segment(timeline: int, lsn: str, *, ends: bool = False) -> str:
    """The name of the segment of 16 MB that a place in the log lies in, or ends."""
    high, low = (int(part, 16) for part in lsn.split("/"))
    place = (high << 32) + low - (1 if ends else 0)
    number = place >> 24
    return f"{timeline:08X}{number >> 8:08X}{number & 0xFF:08X}"


def _contents(settings: Settings) -> tuple[str, ...]:
    from metalayer.warehouse.server import standing_server

    return tuple(sorted({sha256 for _, sha256, *_ in landed(standing_server(settings))}))


def _dump(settings: Settings, server: WarehouseServer, vault: Vault, tell: Tell) -> Backup:
    began = datetime.now(UTC)
    name = f"{began:%Y-%m-%dT%H-%M-%S.%f}"[:-3] + "Z"
    size = 0
    _refuse_what_is_not_there(server)
    try:
        for part, url in (("warehouse", server.warehouse_url), ("dagster", server.dagster_url)):
            tell(f"dumping {part}")
            target = Target.of(url)
            command = [str(program("pg_dump", settings)), *target.words, "--format", "custom"]
            # Compressed in the vault.
            command += ["--compress", "0", *_schemas(part, server)]
            with (
                vault.writing(f"base/{name}.{part}.dump") as out,
                output_of(command, target.environment) as made,
            ):
                while piece := made.read(1024 * 1024):
                    out.write(piece)
            size += out.stored
        Archive(settings, vault).ship()
        taken = Backup(
            id=name,
            kind="dump",
            system=system(settings),
            parent=None,
            started_at=began.isoformat(timespec="milliseconds"),
            ended_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            segment="",
            size=size,
            landed=_contents(settings),
        )
        vault.write(f"base/{name}.json", json.dumps(asdict(taken), indent=1).encode())
    except BaseException:
        with contextlib.suppress(Exception):
            vault.remove([f"base/{name}.{part}.dump" for part in ("warehouse", "dagster")])
        raise
    return taken


def _schemas(part: str, server: WarehouseServer) -> list[str]:
    """Arguments that keep Dagster's schema apart, where it has no database of its own."""
    theirs, ours = Target.of(server.dagster_url).url, Target.of(server.warehouse_url).url
    if theirs.database != ours.database:
        return []
    return ["--schema" if part == "dagster" else "--exclude-schema", "dagster"]


def _refuse_what_is_not_there(server: WarehouseServer) -> None:
    with (
        looking(server.warehouse_url, "backup", _PATIENCE) as connection,
        connection.cursor() as cursor,
    ):
        if not is_there(cursor, "meta.tables"):
            raise UsageError("There is nothing to back up yet", "Build something first.")


def prune(settings: Settings, vault: Vault) -> None:
    """Let go of what nobody would restore any more.

    Kept is what is needed to bring back any second of the last `backup_keep_days`: backups that
    ended then, the newest before, what these are made from, and the log since. Of another server
    that archived here the same.
    """
    horizon = datetime.now(UTC) - timedelta(days=settings.backup_keep_days)
    every = backups(vault)
    kept: dict[str, Backup] = {}
    for of in {b.system for b in every}:
        theirs = [b for b in every if b.system == of]
        recent = [b for b in theirs if b.ended >= horizon]
        before = [b for b in theirs if b.ended < horizon][-1:]
        for each in [*before, *recent]:
            with contextlib.suppress(WarehouseError):
                kept |= {link.id: link for link in chain(each, theirs)}
    for gone in every:
        if gone.id not in kept:
            vault.remove(gone.objects)
    _prune_unfinished(vault, every)
    if kept:
        _prune_segments(vault, list(kept.values()))
        _prune_landed(settings, vault, list(kept.values()))


def _prune_unfinished(vault: Vault, every: list[Backup]) -> None:
    """What was left of backups that were killed."""
    known = {name for each in every for name in each.objects}
    day_ago = datetime.now(UTC) - timedelta(days=1)
    found = vault.objects("base/").values()
    vault.remove([o.name for o in found if o.name not in known and o.written_at < day_ago])


def _prune_segments(vault: Vault, kept: list[Backup]) -> None:
    """Segments before the first that a kept backup of their server needs."""
    first: dict[str, str] = {}
    for each in kept:
        if each.segment:
            # Timelines aside: a segment's place in the log is what counts.
            place = each.segment[8:]
            first[each.system] = min(first.get(each.system, place), place)
    gone = []
    for name in vault.objects("wal/"):
        _, of, segment = name.split("/")
        if of in first and len(segment) >= 24 and segment[8:24] < first[of]:
            gone.append(name)
    vault.remove(gone)


def _prune_landed(settings: Settings, vault: Vault, kept: list[Backup]) -> None:
    """Files that no kept backup lists, and that came before the oldest of them."""
    listed = {sha256 for each in kept for sha256 in each.landed} | set(_contents(settings))
    oldest = min(datetime.fromisoformat(each.started_at) for each in kept)
    vault.remove(
        [
            stored.name
            for stored in vault.objects("landed/").values()
            if stored.name.rpartition("/")[2] not in listed and stored.written_at < oldest
        ]
    )


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    handle = open_lock(settings, "backup.lock")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process takes a backup of METALAYER_HOME={settings.home} just now",
                "`up` does so by itself; `metalayer backups` lists them.",
            ) from None
        yield
    finally:
        os.close(handle)
