"""The ledger: every version of every landed file, recorded once, with what became of it.

Registering reads new files, refuses those that cannot be read as a whole, recognises content it has
seen, lets a new version of a file replace the earlier one, and settles which rows count. It writes
nothing but `meta`: the bronze months it makes stale are built afterwards (`load.py` fills them).

Does not belong here: reading CSV (`reader.py`), finding files (`files.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
from psycopg2.extras import execute_values
from sqlalchemy import Engine

from metalayer.contracts.contract import REJECTS_ALWAYS_TOLERATED, TableSpec
from metalayer.errors import LandingError
from metalayer.landing.copy import copy_from_duckdb, quoted
from metalayer.landing.files import STILL_SECONDS, LandedFile, Skipped, discover
from metalayer.landing.judge import AFTER_THE_CURRENT_MONTH
from metalayer.landing.parsed import parse_landed, parsed_deliveries
from metalayer.landing.reader import FileInFlux, Parsed, SourceShape, fingerprint
from metalayer.landing.settle import Settlement, settle
from metalayer.landing.shape import delivery_month, parsed_paths, shape_of, shape_version
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction

_REGISTER_LOCK = 0x4D4C0002
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Delivery:
    """One file as it was registered just now."""

    delivery_id: int
    file: str
    source: str
    status: str
    rows_read: int = 0
    rows_rejected: int = 0
    reason: str | None = None
    extra_columns: tuple[str, ...] = ()
    missing_columns: tuple[str, ...] = ()
    months: tuple[date, ...] = ()


@dataclass
class Registration:
    """What registering found: new deliveries, and files left alone with the reason."""

    deliveries: list[Delivery] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


@dataclass
class _Candidate:
    """A file that is not in the ledger as it is now, and what reading it gave."""

    landed: LandedFile
    shape: SourceShape
    month: date
    sha256: str = ""
    parsed: Parsed | None = None
    refusal: LandingError | None = None


def register(
    pool: Engine,
    settings: Settings,
    sources: Mapping[str, TableSpec],
    *,
    today: date | None = None,
    still_seconds: float = STILL_SECONDS,
    progress: Progress | None = None,
) -> Registration:
    """Bring the ledger up to date with the landing zone.

    Args:
        sources: Source name -> the silver table it feeds.
        today: Tells the current month, past which no row is accepted; by default the UTC date.
        progress: Told in a line what is being read.

    Returns:
        The deliveries registered now, oldest first, and the files left alone.
    """
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_REGISTER_LOCK,))
        day = today or datetime.now(UTC).date()
        desk = _Desk(cursor, settings, sources, day, progress or (lambda _line: None))
        files, skipped = discover(
            settings.landing,
            [spec.source for spec in sources.values() if spec.source is not None],
            still_seconds=still_seconds,
        )
        desk.result.skipped += skipped
        desk.enter(files)
        desk.reparse_outdated()
        desk.settle()
        return desk.result


class _Desk:
    """One registration: the cursor of its transaction, and what has changed so far."""

    def __init__(
        self,
        cursor: Any,
        settings: Settings,
        sources: Mapping[str, TableSpec],
        today: date,
        progress: Progress,
    ) -> None:
        self.cursor = cursor
        self.settings = settings
        self.sources = sources
        self.shapes = {n: shape_of(s, settings.start_month, today) for n, s in sources.items()}
        self.versions = {name: shape_version(shape) for name, shape in self.shapes.items()}
        self.progress = progress
        self.result = Registration()
        self.changed: dict[str, dict[int, Path]] = {}

    def enter(self, files: Sequence[LandedFile]) -> None:
        """Read the files that are new or changed, and give each its entry."""
        self.cursor.execute(
            "select source, file, size, mtime_ns, status, shape from meta.deliveries "
            "where sha256 <> '' and status <> 'superseded'"
        )
        # What another contract refused gets another chance.
        known = {
            (source, file, size, mtime)
            for source, file, size, mtime, status, shape in self.cursor.fetchall()
            if status != "rejected" or shape == self.versions.get(source)
        }
        candidates = [
            _Candidate(file, self.shapes[file.source.name], delivery_month(file))
            for file in files
            if (file.source.name, file.name, file.size, file.mtime_ns) not in known
        ]
        self.cursor.execute("select source, sha256 from meta.deliveries where status = 'loaded'")
        live = set(self.cursor.fetchall())
        with ThreadPoolExecutor(max_workers=self.settings.workers) as executor:
            list(executor.map(lambda candidate: self._read(candidate, live), candidates))
        for candidate in candidates:
            self._enter_one(candidate)
        self._promote_copies({(file.source.name, file.name): file.path for file in files})

    def reparse_outdated(self) -> None:
        """Parse live deliveries anew that would now be read otherwise.

        Their contract or the first month has changed, or a month that was still to come has come.
        """
        self.cursor.execute(
            "select delivery_id, source, file, sha256, fallback_month, shape, (select min(month) "
            "from meta.quarantine as q where q.delivery_id = d.delivery_id and q.rule like %s) "
            "from meta.deliveries as d where status = 'loaded' order by delivery_id",
            (f"{AFTER_THE_CURRENT_MONTH}%",),
        )
        for delivery, source, file, sha256, month, version, to_come in self.cursor.fetchall():
            shape = self.shapes.get(source)
            if shape is None:
                continue
            has_come = to_come is not None and to_come <= shape.last_month
            if version == self.versions[source] and not has_come:
                continue
            path = self.settings.landing / file
            try:
                self.progress(f"reading {file} again")
                parsed = parse_landed(path, shape, month, sha256, self.settings.parsed_dir)
            except FileInFlux as absence:
                reason = f"it has to be read again, and it cannot be: {absence}"
                self.result.skipped.append(Skipped(file, reason))
                continue
            except LandingError as refusal:
                self._retire(source, delivery, sha256, month, "rejected", str(refusal))
                continue
            self._file_again(delivery, shape, sha256, month, parsed)

    def settle(self) -> None:
        """Settle which rows count in every source that a delivery came to or went from."""
        for source, changed in self.changed.items():
            live = parsed_deliveries(
                self.cursor, self.shapes[source], self.settings, since=None, until=None
            )
            settle(self.cursor, Settlement(source, self._is_snapshot(source), live, changed))

    def _read(self, candidate: _Candidate, live: set[tuple[str, str]]) -> None:
        try:
            candidate.sha256 = fingerprint(candidate.landed.path).sha256
            if (candidate.shape.name, candidate.sha256) not in live:
                self.progress(f"reading {candidate.landed.name}")
                self._parse(candidate)
        except LandingError as refusal:
            candidate.refusal = refusal

    def _parse(self, candidate: _Candidate) -> Parsed:
        candidate.parsed = parse_landed(
            candidate.landed.path,
            candidate.shape,
            candidate.month,
            candidate.sha256,
            self.settings.parsed_dir,
        )
        return candidate.parsed

    def _enter_one(self, candidate: _Candidate) -> None:
        landed, source = candidate.landed, candidate.shape.name
        if isinstance(candidate.refusal, FileInFlux):
            self.result.skipped.append(Skipped(landed.name, "it is still being written"))
            return
        if candidate.refusal is not None:
            self._insert(candidate, "rejected", reason=str(candidate.refusal))
            return
        same = self._same_content(candidate)
        if same is not None and self._touched(candidate, same[0]):
            return
        if same is not None:
            reason = f"the same content as {same[1]}"
            delivery = self._insert(candidate, "duplicate", reason=reason, related=same[0])
            self._supersede(source, landed.name, delivery)
            return
        try:
            # Content that was live when it was read may have been replaced a moment ago.
            parsed = candidate.parsed or self._parse(candidate)
        except LandingError as refusal:
            candidate.refusal = refusal
            self._enter_one(candidate)
            return
        problem = self._too_many_rejects(candidate, parsed)
        if problem is not None:
            self._insert(candidate, "rejected", reason=problem)
            return
        delivery = self._insert(candidate, "loaded", parsed=parsed)
        self._supersede(source, landed.name, delivery)
        self._file(delivery, candidate.shape, candidate.sha256, candidate.month, parsed)

    def _same_content(self, candidate: _Candidate) -> tuple[int, str] | None:
        """The live delivery that already says what the candidate says, and its file.

        Where the month is not in the rows it is part of what they say; and another file's snapshot
        says the same only while it is the newest of its month.
        """
        source = candidate.shape.name
        undated = candidate.shape.month_column is None
        self.cursor.execute(
            "select d.delivery_id, d.file from meta.deliveries as d where d.source = %s "
            "and d.sha256 = %s and d.status = 'loaded' "
            "and (not %s or d.fallback_month = %s) and (not %s or d.file = %s or not exists ("
            "select from meta.deliveries as n where n.source = d.source and n.status = 'loaded' "
            "and n.fallback_month = d.fallback_month and n.delivery_id > d.delivery_id)) "
            "order by d.file <> %s, d.delivery_id limit 1",
            (
                source,
                candidate.sha256,
                undated,
                candidate.month,
                self._is_snapshot(source),
                candidate.landed.name,
                candidate.landed.name,
            ),
        )
        found = self.cursor.fetchone()
        return (int(found[0]), str(found[1])) if found else None

    def _is_snapshot(self, source: str) -> bool:
        spec = self.sources[source].source
        return spec is not None and spec.kind == "snapshot"

    def _too_many_rejects(self, candidate: _Candidate, parsed: Parsed) -> str | None:
        """Why a file that could be read is refused all the same: too little of it can be used."""
        limit = self.sources[candidate.shape.name].max_reject_rate
        tolerated = max(REJECTS_ALWAYS_TOLERATED, limit * parsed.rows_read)
        self.cursor.execute(
            "select exists (select from meta.deliveries where source = %s and file = %s "
            "and status = 'loaded' and rows_read > rows_rejected)",
            (candidate.shape.name, candidate.landed.name),
        )
        (replaces,) = self.cursor.fetchone()
        nothing_left = replaces and 0 < parsed.rows_read == parsed.rows_rejected
        if parsed.rows_rejected <= tolerated and not nothing_left:
            return None
        rows, rejects = parsed_paths(
            self.settings.parsed_dir, candidate.shape, candidate.sha256, candidate.month
        )
        with duckdb.connect() as memory:
            rules = memory.execute(
                "select concat_ws(' ', \"column\", rule), count(*) from read_parquet(?) "
                "group by 1 order by 2 desc limit 3",
                [str(rejects)],
            ).fetchall()
        rows.unlink(missing_ok=True)
        rejects.unlink(missing_ok=True)
        told = "; ".join(f"{rule}: {count:,} rows" for rule, count in rules)
        return (
            f"{parsed.rows_rejected:,} of {parsed.rows_read:,} rows cannot be used (limit "
            f"{limit:.0%}): {told}. Land it corrected; an earlier version stays in place"
        )

    def _touched(self, candidate: _Candidate, live: int) -> bool:
        """Whether the file has its entry already: as the live delivery, or as its twin."""
        file = (candidate.shape.name, candidate.landed.name)
        self.cursor.execute(
            "update meta.deliveries set mtime_ns = %s where source = %s and file = %s "
            "and (delivery_id = %s or (status = 'duplicate' and related_delivery_id = %s "
            "and delivery_id = (select max(delivery_id) from meta.deliveries "
            "where source = %s and file = %s)))",
            (candidate.landed.mtime_ns, *file, live, live, *file),
        )
        return bool(self.cursor.rowcount)

    def _promote_copies(self, landed: Mapping[tuple[str, str], Path]) -> None:
        """Load a duplicate whose original was replaced: its own file still says the same.

        It keeps its place among the deliveries: what replaced the original is newer than the copy.
        """
        self.cursor.execute(
            "select distinct on (d.source, d.sha256) d.delivery_id, d.source, d.file, d.sha256, "
            "d.fallback_month from meta.deliveries as d where d.status = 'duplicate' "
            "and not exists (select from meta.deliveries as o "
            "where o.delivery_id = d.related_delivery_id and o.status = 'loaded') "
            "and not exists (select from meta.deliveries as n where n.source = d.source "
            "and n.file = d.file and n.delivery_id > d.delivery_id) "
            "and (d.source, d.file) in (select * from unnest(%s::text[], %s::text[])) "
            "order by d.source, d.sha256, d.delivery_id",
            ([source for source, _ in landed], [file for _, file in landed]),
        )
        for delivery, source, file, sha256, month in self.cursor.fetchall():
            shape = self.shapes[source]
            try:
                path = landed[source, file]
                parsed = parse_landed(path, shape, month, sha256, self.settings.parsed_dir)
            except LandingError:
                continue  # it has changed meanwhile, and is read the next time
            self.cursor.execute(
                "update meta.deliveries set status = 'loaded', reason = null, "
                "related_delivery_id = null where delivery_id = %s",
                (delivery,),
            )
            self.cursor.execute(
                "update meta.deliveries set related_delivery_id = %s, reason = %s "
                "where source = %s and sha256 = %s and status = 'duplicate'",
                (delivery, f"the same content as {file}", source, sha256),
            )
            self._file_again(delivery, shape, sha256, month, parsed)

    def _insert(
        self,
        candidate: _Candidate,
        status: str,
        *,
        reason: str | None = None,
        related: int | None = None,
        parsed: Parsed | None = None,
    ) -> int:
        landed = candidate.landed
        # The same content refused again is the same entry, with today's reason.
        self.cursor.execute(
            "delete from meta.deliveries where source = %s and file = %s and sha256 = %s "
            "and status = 'rejected'",
            (candidate.shape.name, landed.name, candidate.sha256),
        )
        self.cursor.execute(
            "insert into meta.deliveries (source, file, sha256, size, mtime_ns, status, reason, "
            "related_delivery_id, fallback_month, shape, rows_read, rows_rejected, extra_columns, "
            "missing_columns) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) "
            "returning delivery_id",
            (
                candidate.shape.name,
                landed.name,
                candidate.sha256,
                landed.size,
                landed.mtime_ns,
                status,
                reason,
                related,
                candidate.month,
                self.versions[candidate.shape.name],
                parsed.rows_read if parsed else 0,
                parsed.rows_rejected if parsed else 0,
                list(parsed.extra_columns) if parsed else [],
                list(parsed.missing_columns) if parsed else [],
            ),
        )
        (delivery,) = self.cursor.fetchone()
        self.result.deliveries.append(
            Delivery(
                delivery,
                landed.name,
                candidate.shape.name,
                status,
                parsed.rows_read if parsed else 0,
                parsed.rows_rejected if parsed else 0,
                reason,
                parsed.extra_columns if parsed else (),
                parsed.missing_columns if parsed else (),
                tuple(sorted(parsed.months)) if parsed else (),
            )
        )
        return int(delivery)

    def _supersede(self, source: str, file: str, by: int) -> None:
        """Let the earlier version of a file leave: its rows count no longer."""
        self.cursor.execute(
            "select delivery_id, sha256, fallback_month from meta.deliveries where source = %s "
            "and file = %s and status = 'loaded' and delivery_id <> %s",
            (source, file, by),
        )
        for delivery, sha256, month in self.cursor.fetchall():
            reason = "a newer version of the file landed"
            self._retire(source, delivery, sha256, month, "superseded", reason, by)

    def _retire(
        self,
        source: str,
        delivery: int,
        sha256: str,
        month: date,
        status: str,
        reason: str,
        by: int | None = None,
    ) -> None:
        """Take a live delivery out: its rows leave the tables with the next build."""
        self.cursor.execute(
            "update meta.deliveries set status = %s, reason = %s, related_delivery_id = %s, "
            "shape = %s where delivery_id = %s",
            (status, reason, by, self.versions[source], delivery),
        )
        if status == "rejected":
            self.cursor.execute(
                "update meta.deliveries set rows_read = 0, rows_rejected = 0 "
                "where delivery_id = %s",
                (delivery,),
            )
            self.cursor.execute(
                "delete from meta.delivery_months where delivery_id = %s", (delivery,)
            )
        self.cursor.execute(
            "delete from meta.quarantine where delivery_id = %s and table_name = %s",
            (delivery, f"bronze.{self.sources[source].name}"),
        )
        path = self._rows_path(source, sha256, month)
        self.changed.setdefault(source, {})[delivery] = path

    def _file_again(
        self, delivery: int, shape: SourceShape, sha256: str, month: date, parsed: Parsed
    ) -> None:
        """Record what another parse of a delivery gave."""
        self.cursor.execute(
            "update meta.deliveries set shape = %s, rows_read = %s, rows_rejected = %s, "
            "extra_columns = %s, missing_columns = %s where delivery_id = %s",
            (
                self.versions[shape.name],
                parsed.rows_read,
                parsed.rows_rejected,
                list(parsed.extra_columns),
                list(parsed.missing_columns),
                delivery,
            ),
        )
        self._file(delivery, shape, sha256, month, parsed)

    def _file(
        self, delivery: int, shape: SourceShape, sha256: str, month: date, parsed: Parsed
    ) -> None:
        """Record what a delivery brings: rows by month, and the rows that could not be read."""
        cursor = self.cursor
        cursor.execute("delete from meta.superseded_rows where delivery_id = %s", (delivery,))
        cursor.execute("delete from meta.delivery_months where delivery_id = %s", (delivery,))
        execute_values(
            cursor,
            "insert into meta.delivery_months (delivery_id, month, rows) values %s",
            [(delivery, m, rows) for m, rows in sorted(parsed.months.items())],
        )
        table = f"bronze.{self.sources[shape.name].name}"
        cursor.execute(
            "delete from meta.quarantine where delivery_id = %s and table_name = %s",
            (delivery, table),
        )
        rows, rejects = parsed_paths(self.settings.parsed_dir, shape, sha256, month)
        if parsed.rows_rejected:
            with duckdb.connect() as memory:
                copy_from_duckdb(
                    memory,
                    f"select '{table}', month, {delivery}, _line, \"column\", rule, value, raw, "
                    "json_array(json_object('column', \"column\", 'rule', rule, 'value', value)) "
                    f"from read_parquet('{quoted(rejects)}')",
                    cursor,
                    "copy meta.quarantine (table_name, month, delivery_id, line, column_name, "
                    "rule, value, raw, violations) from stdin (format csv)",
                )
        self.changed.setdefault(shape.name, {})[delivery] = rows

    def _rows_path(self, source: str, sha256: str, month: date) -> Path:
        return parsed_paths(self.settings.parsed_dir, self.shapes[source], sha256, month)[0]
