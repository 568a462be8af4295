"""Bringing everything back: a new home as everything was at some second, checked.

    vault --> files of the server --> their sums --> the log, up to that second
          --> every month's sum --> landed files

It never writes where something is: what there was stays until somebody removes it. Whoever was
erased since is erased again by the next build, as the register of the erased is kept by itself and
always the newest.

Does not belong here: trying it regularly (`drill.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2

from metalayer.errors import UsageError, WarehouseError
from metalayer.governance.sealing import key_file, known_keys
from metalayer.inspection import libpq_url
from metalayer.operations.archive import landed
from metalayer.operations.backup import Backup, Tell, backups, chain
from metalayer.operations.looking import is_there
from metalayer.operations.programs import Target, output_of, program, run
from metalayer.operations.vault import Vault
from metalayer.settings import Settings
from metalayer.warehouse.acts import heads_file
from metalayer.warehouse.archiving import recovering
from metalayer.warehouse.postgres import Cluster, clean_environment
from metalayer.warehouse.server import WarehouseServer, standing_server, warehouse_server
from metalayer.wording import counted, named

_NAMED = 5
_BEYOND = "before configured recovery target was reached"


@dataclass
class Restored:
    """What was brought back.

    Attributes:
        settings: Of the home it is in.
        backup: What it was made from.
        reached: When the last act was done that is in it; None where nothing was ever done.
        months: Published months whose rows are what they were.
        wrong: Months whose rows are not.
        unknown: Months that other contracts or SELECTs made than are here, which cannot be told.
        files: Landed files that lie there again.
        lacking: Landed files that the vault does not have.
        is_end: Whether it is as far as the log goes, and not the second that was asked for.
        lacks_keys: Whether columns are encrypted with keys that are not there.
    """

    settings: Settings
    backup: Backup
    reached: datetime | None = None
    months: int = 0
    wrong: list[str] = field(default_factory=list)
    unknown: int = 0
    files: int = 0
    lacking: list[str] = field(default_factory=list)
    is_end: bool = False
    lacks_keys: bool = False


def choose(vault: Vault, to: datetime | None, wanted: str | None = None) -> Backup:
    """The backup to begin with: the newest that ended by then, or the one that is asked for.

    Raises:
        UsageError: when there is none.
    """
    every = backups(vault)
    if not every:
        raise UsageError(f"There is no backup in {vault.shown}", "`metalayer backup` takes one.")
    if wanted is not None:
        found = [b for b in every if b.id.startswith(wanted)]
        if len(found) != 1:
            raise UsageError(
                f"{'No' if not found else 'More than one'} backup is called {wanted}",
                "`metalayer backups` lists them.",
            )
        fitting = found
    else:
        fitting = every
    fitting = [b for b in fitting if to is None or b.ended <= to]
    if not fitting:
        first = every[0].ended if wanted is None else found[0].ended
        raise UsageError(
            f"That is before the first backup, which ended at {first:%Y-%m-%d %H:%M:%S} UTC",
            "Name a later time.",
        )
    return fitting[-1]


def restore(
    settings: Settings,
    vault: Vault,
    home: Path,
    tell: Tell,
    *,
    to: datetime | None = None,
    wanted: str | None = None,
    with_landing: bool = True,
) -> Restored:
    """Bring everything back into a new home.

    Args:
        home: A folder that is empty, or not there.
        to: The second to go to; None: as far as there is anything.
        wanted: The backup to begin with; None chooses.

    Raises:
        UsageError: when the folder is not empty, or no backup fits.
        WarehouseError: when a backup is damaged, or the server does not recover from it.
    """
    home = home.expanduser().absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise UsageError(f"{home} is not empty", "Name a new folder; nothing is written over.")
    backup = choose(vault, to, wanted)
    made = not home.exists()
    home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    there = settings.model_copy(
        update={"home": home, "landing": home / "landing", "database_url": None}
    )
    if not vault.is_encrypted and key_file(settings).exists():
        # Then they are not in it.
        there = there.model_copy(update={"encryption_key_file": key_file(settings)})
    done = Restored(there, backup)
    try:
        if backup.kind == "dump":
            _load_dump(settings, there, vault, backup, tell)
        else:
            _recover(there, vault, done, to, tell)
        _home_files(vault, done, is_earlier=to is not None)
        with warehouse_server(there, tell) as server:
            _verify(server, done, tell)
            if with_landing:
                _landed_files(vault, server, done, tell)
    except BaseException:
        for left in home.iterdir():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        if made:
            home.rmdir()
        raise
    return done


def _recover(
    there: Settings, vault: Vault, done: Restored, to: datetime | None, tell: Tell
) -> None:
    work = there.home / "restoring"
    work.mkdir()
    links = chain(done.backup, backups(vault))
    folders = []
    for number, link in enumerate(links):
        tell(f"reading backup {link.id} ({number + 1} of {len(links)})")
        folder = work / str(number)
        _unpack(vault, link, folder)
        tell(f"checking backup {link.id}")
        verify_files(folder)
        folders.append(folder)
    if len(folders) == 1:
        folders[0].rename(there.pgdata)
    else:
        tell("putting them together")
        command = [str(program("pg_combinebackup", there)), *map(str, folders)]
        # What did not change is no copy: the parts are removed in the end.
        command += ["--link", "--manifest-checksums", "SHA256", "--output", str(there.pgdata)]
        run(command, clean_environment())
        verify_files(there.pgdata)
    there.pgdata.chmod(0o700)
    # Where the socket lay in the data folder, its lock is in the backup: of a server that may run.
    for left in there.pgdata.glob(".s.PGSQL.*"):
        left.unlink()
    segments = work / "wal"
    segments.mkdir()
    tell("reading the log")
    _segments(vault, done.backup, segments, to)
    cluster = Cluster(there.pgdata, tell)
    _let_in(cluster, work, segments)
    tell("recovering")
    instant = to.astimezone(UTC).isoformat(sep=" ") if to is not None else None
    failed = cluster.recover(recovering(segments, instant))
    if failed is not None and _BEYOND in failed:
        # Nothing was committed after that second as far as the log goes: its end is the state.
        done.is_end = True
        failed = cluster.recover(recovering(segments, None))
    if failed is not None:
        raise WarehouseError(
            f"PostgreSQL did not recover: {failed}", "`metalayer restore --backup` takes another."
        )
    shutil.rmtree(work)


def _unpack(vault: Vault, backup: Backup, folder: Path) -> None:
    """Write a backup's files; nothing in it can lead out of the folder."""
    folder.mkdir(mode=0o700)
    stream = io.BufferedReader(_Pieces(vault.frames(f"base/{backup.id}.tar")))
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        tar.extractall(folder, filter="data")
    # What lies empty in a backup is not always in it.
    for name in ("pg_wal", "pg_wal/archive_status", "pg_wal/summaries", "pg_notify", "pg_tblspc"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def verify_files(folder: Path) -> int:
    """Hold a backup's files against its manifest, as pg_verifybackup does; how many there are.

    Source: PostgreSQL's documentation, "Backup Manifest Format". Files that the manifest does not
    know are not wrong: the server's own go on being written.

    Raises:
        WarehouseError: naming files that are missing or not as they were.
    """
    text = (folder / "backup_manifest").read_bytes()
    # The last line holds the sum of all before it.
    body, _, last = text.rpartition(b'"Manifest-Checksum"')
    told = json.loads(text)
    wrong = []
    if (
        hashlib.sha256(body).hexdigest()
        != json.loads(b'{"Manifest-Checksum"' + last)["Manifest-Checksum"]
    ):
        wrong.append("backup_manifest")
    for each in told["Files"]:
        path = folder / (
            each["Path"] if "Path" in each else os.fsdecode(bytes.fromhex(each["Encoded-Path"]))
        )
        if not path.is_file() or path.stat().st_size != each["Size"]:
            wrong.append(str(path.relative_to(folder)))
        elif each.get("Checksum-Algorithm") == "SHA256":
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != each["Checksum"]:
                    wrong.append(str(path.relative_to(folder)))
    if wrong:
        raise WarehouseError(
            f"The backup is damaged: {named(wrong, _NAMED)}",
            "`metalayer restore --backup` takes an earlier one; look at the disk, and take a new "
            "one.",
        )
    return len(told["Files"])


def _segments(vault: Vault, backup: Backup, folder: Path, to: datetime | None) -> None:
    """Fetch the log from the backup on, as far as it can be needed."""
    last = None
    if to is not None:
        later = [b for b in backups(vault) if b.system == backup.system and b.segment
                 and datetime.fromisoformat(b.started_at) > to]  # fmt: skip
        last = later[0].segment[8:] if later else None
    for name in sorted(vault.objects(f"wal/{backup.system}/")):
        segment = name.rpartition("/")[2]
        is_history = segment.endswith(".history")
        place = segment[8:24]
        if is_history or (place >= backup.segment[8:] and (last is None or place <= last)):
            with (folder / segment).open("wb") as out:
                for piece in vault.frames(name):
                    out.write(piece)


def _let_in(cluster: Cluster, work: Path, segments: Path) -> None:
    """Let the server's account read the log, where it is not ours."""
    if os.geteuid() == 0:
        work.chmod(0o711)
        segments.chmod(0o755)
        for path in segments.iterdir():
            path.chmod(0o644)


def _home_files(vault: Vault, done: Restored, *, is_earlier: bool) -> None:
    """The register of the erased and the like: always the newest there is.

    Args:
        is_earlier: Whether the audit log ends earlier than it did once: that is no forgery then.
    """
    name = f"home/{done.backup.system}"
    if not vault.has(name):
        return
    with tarfile.open(fileobj=io.BytesIO(vault.read(name))) as tar:
        tar.extractall(done.settings.home, filter="data")
    heads = heads_file(done.settings)
    if is_earlier and heads.exists():
        heads.rename(heads.with_name(f"{heads.stem}-before-restore{heads.suffix}"))
    for path in done.settings.home.glob("erased/*"):
        path.chmod(0o600)


def _verify(server: WarehouseServer, done: Restored, tell: Tell) -> None:
    """Hold the rows of every published month against what was noted when it was published."""
    tell("checking every published month")
    connection = psycopg2.connect(libpq_url(server.warehouse_url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        if not is_there(cursor, "meta.acts"):
            return
        for month, is_well in sums(cursor).items():
            if is_well is None:
                done.unknown += 1
            elif is_well:
                done.months += 1
            else:
                done.wrong.append(month)
        cursor.execute(
            "select greatest((select max(published_at) from meta.versions), "
            "(select max(registered_at) from meta.deliveries), (select max(at) from meta.acts))"
        )
        (done.reached,) = cursor.fetchone()
        cursor.execute("select exists (select from meta.keys)")
        (is_sealed,) = cursor.fetchone()
        done.lacks_keys = is_sealed and not known_keys(done.settings)


def sums(cursor: Any) -> dict[str, bool | None]:
    """Published month of each table -> whether its rows are those that were published.

    None where it was made by other contracts or SELECTs, whose columns it may have had.
    """
    from metalayer.catalog import catalog
    from metalayer.warehouse.evolve import evolved_columns, with_evolved
    from metalayer.warehouse.survey import fingerprints

    tables = catalog()
    found: dict[str, bool | None] = {}
    for name, spec in tables.specs.items():
        cursor.execute(
            "select month, leaf, data_version, code_version from meta.versions "
            "where is_current and table_name = %s order by month",
            (name,),
        )
        noted = cursor.fetchall()
        # A month has only those of the columns that files brought that had come by then.
        brought = evolved_columns(cursor, spec)
        for columns in range(len(brought), -1, -1):
            left = [row for row in noted if not found.get(f"{name} {row[0]:%Y-%m}")]
            shaped = with_evolved(spec, brought[:columns])
            held = fingerprints(cursor, shaped, [leaf for _, leaf, *_ in left])
            for month, leaf, version, code in left:
                is_well = held[leaf] == version
                known = is_well or code == tables.code_versions[name]
                found[f"{name} {month:%Y-%m}"] = is_well if known else None
    return found


def _landed_files(vault: Vault, server: WarehouseServer, done: Restored, tell: Tell) -> None:
    """The landing zone as the restored ledger has it."""
    kept = {name.rpartition("/")[2] for name in vault.objects("landed/")}
    wanted = landed(server)
    tell(f"bringing back {counted(len(wanted), 'landed file')}")
    for file, sha256, _, mtime_ns in wanted:
        path = done.settings.landing / file
        if sha256 not in kept:
            done.lacking.append(file)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for piece in vault.frames(f"landed/{sha256}"):
                out.write(piece)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        done.files += 1


def _load_dump(
    settings: Settings, there: Settings, vault: Vault, backup: Backup, tell: Tell
) -> None:
    """Load both dumps into an embedded server of the new home."""
    with warehouse_server(there, tell) as server:
        load_dump(there, vault, backup, server, tell)


def load_dump(
    settings: Settings, vault: Vault, backup: Backup, server: WarehouseServer, tell: Tell
) -> None:
    """Load both dumps of a backup into databases that are empty.

    Raises:
        UsageError: when the warehouse's is not.
        WarehouseError: when one cannot be loaded.
    """
    refuse_what_is_there(server)
    for part, url in (("warehouse", server.warehouse_url), ("dagster", server.dagster_url)):
        tell(f"loading {part}")
        target = Target.of(url)
        command = [str(program("pg_restore", settings)), *target.words]
        # Owners and grants are the contracts': `metalayer roles apply` makes them.
        command += ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
        run(command, target.environment, vault.frames(f"base/{backup.id}.{part}.dump"))


def hand_over(restored: Restored, url: str, tell: Tell) -> None:
    """Copy what was restored into databases of a server of the user's own, which are empty.

    Raises:
        UsageError: when they are not.
    """
    from pydantic import SecretStr

    theirs = restored.settings.model_copy(update={"database_url": SecretStr(url)})
    with (
        warehouse_server(theirs, tell) as target,
        warehouse_server(restored.settings, tell) as ours,
    ):
        refuse_what_is_there(target)
        for part, source, to in (
            ("warehouse", ours.warehouse_url, target.warehouse_url),
            ("dagster", ours.dagster_url, target.dagster_url),
        ):
            tell(f"copying {part}")
            _copy(theirs, restored.settings, Target.of(source), Target.of(to))
        check = Restored(theirs, restored.backup)
        _verify(standing_server(theirs), check, tell)
        restored.months, restored.wrong = check.months, check.wrong


def _copy(theirs: Settings, ours: Settings, source: Target, to: Target) -> None:
    dump = [str(program("pg_dump", ours)), *source.words, "--format", "custom", "--compress", "0"]
    load = [str(program("pg_restore", theirs)), *to.words, "--no-owner", "--no-privileges"]
    load += ["--exit-on-error", "--single-transaction"]
    with output_of(dump, source.environment) as made:
        run(load, to.environment, iter(lambda: made.read(1024 * 1024), b""))


def refuse_what_is_there(server: WarehouseServer) -> None:
    """Write nothing over.

    Raises:
        UsageError: when the database has a warehouse.
    """
    connection = psycopg2.connect(libpq_url(server.warehouse_url))
    with contextlib.closing(connection), connection.cursor() as cursor:
        if is_there(cursor, "meta.versions"):
            raise UsageError(
                "That database has a warehouse already",
                "Name an empty one; nothing is written over.",
            )
