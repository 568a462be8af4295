"""Months of one table: staged, audited and published, side by side.

The orchestration of `stage.py`, `audit.py` and `publish.py` for a list of months, on a bounded
pool of connections. Months are taken in windows: one statement fills all months of a window, each
is then published and reported by itself. What fills a stage, and from which inputs, comes with the
job.

Does not belong here: which months to build (the callers decide), Dagster, or landed files.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.audit import MonthAudit, audit_stage, judge
from metalayer.warehouse.ddl import next_month
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.publish import Publication, confirm, publish
from metalayer.warehouse.stage import (
    SCHEMA,
    Stage,
    create_stage,
    data_versions,
    drop_leftovers,
    finish_stage,
)
from metalayer.warehouse.state import State, load_state

log = logging.getLogger(__name__)

Outcome = Literal["published", "confirmed", "current", "failed"]


@dataclass(frozen=True)
class TableJob:
    """How one table is built.

    Attributes:
        spec: The table.
        code_version: Fingerprint of contract and SELECT; another one makes every month stale.
        upstream: Tables whose state decides which months are stale.
        inputs: (state, month) -> fingerprint of each input of the month.
        fill: (cursor, stage, start, end) writes the rows of months `[start, end)` to the stage.
        rows_expected: (state, month) -> rows that must come in, or None where the grain changes.
        months_a_window: How many months one statement may fill.
    """

    spec: TableSpec
    code_version: str
    upstream: tuple[str, ...]
    inputs: Callable[[State, date], dict[str, str]]
    fill: Callable[[Any, Stage, date, date], None]
    rows_expected: Callable[[State, date], int | None]
    months_a_window: int = 12


@dataclass(frozen=True)
class MonthResult:
    """What a build did to one month of one table.

    Attributes:
        outcome: "published" (new rows), "confirmed" (rebuilt to the same rows), "current" (nothing
            had changed) or "failed" (the published month, if any, is untouched).
        problem: Why it failed, or None.
        seconds: The month's share of its window's time.
    """

    table: str
    month: date
    outcome: Outcome
    rows_read: int = 0
    rows: int = 0
    rows_quarantined: int = 0
    rows_superseded: int = 0
    data_version: str = ""
    problem: str | None = None
    seconds: float = 0.0
    audit: MonthAudit | None = field(default=None, compare=False)


def is_stale(job: TableJob, state: State, month: date) -> bool:
    """Whether `month` was built by other code or from other inputs than there are now, or never."""
    published = state.published.get(job.spec.full_name, {}).get(month)
    return (
        published is None
        or published.code_version != job.code_version
        or dict(published.inputs) != job.inputs(state, month)
    )


def build_months(
    pool: Engine,
    job: TableJob,
    months: Sequence[date],
    *,
    workers: int,
    run_id: str | None = None,
    force: bool = False,
) -> Iterator[MonthResult]:
    """Build `months` of a table, yielding each month's result as it lands.

    Args:
        workers: Windows built at once; the pool must have as many connections.
        force: Rebuild months that are current as well.

    Raises:
        Exception: when a window could not be built at all; after the others have ended.
    """
    windows = _windows(sorted(months), job.months_a_window, workers)
    if not windows:
        return
    results: queue.SimpleQueue[MonthResult | None] = queue.SimpleQueue()

    def work(window: Sequence[date]) -> None:
        try:
            _build_window(pool, job, window, results.put, at_work, run_id=run_id, force=force)
        finally:
            results.put(None)

    at_work: set[Any] = set()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix=job.spec.name) as executor:
        futures = [executor.submit(work, window) for window in windows]
        try:
            for _ in futures:
                yield from iter(results.get, None)
        except BaseException:
            # The user, or Dagster, wants an end: no statement is waited for.
            executor.shutdown(wait=False, cancel_futures=True)
            for connection in list(at_work):
                connection.cancel()
            raise
        errors = [error for f in futures if (error := f.exception()) is not None]
    for error in errors[1:]:
        log.error("%s: another window failed as well: %s", job.spec.full_name, error)
    if errors:
        raise errors[0]


def _windows(months: list[date], longest: int, workers: int) -> list[list[date]]:
    """Contiguous runs of months, cut so that every worker has some and none is too long."""
    runs: list[list[date]] = []
    size = max(1, min(longest, -(-len(months) // workers)))
    for month in months:
        if runs and next_month(runs[-1][-1]) == month and len(runs[-1]) < size:
            runs[-1].append(month)
        else:
            runs.append([month])
    return runs


def _build_window(
    pool: Engine,
    job: TableJob,
    window: Sequence[date],
    report: Callable[[MonthResult], None],
    at_work: set[Any],
    *,
    run_id: str | None,
    force: bool,
) -> None:
    table = job.spec.full_name
    with transaction(pool) as connection, connection.cursor() as cursor:
        at_work.add(connection)
        try:
            _lock(cursor, table, window)
            connection.commit()
            state = load_state(cursor, [table, *job.upstream])
            connection.commit()
            stale = [m for m in window if force or is_stale(job, state, m)]
            for month in window:
                if month not in stale:
                    report(_current_result(job, state, month))
            for run in _windows(stale, len(window), 1):
                _build_run(connection, job, run, report, run_id)
        finally:
            at_work.discard(connection)
            # A session that was ended has let go of its locks; why it ended is what counts.
            if not connection.closed:
                connection.rollback()
                cursor.execute("select pg_advisory_unlock_all()")
                connection.commit()


def _build_run(
    connection: Any,
    job: TableJob,
    months: Sequence[date],
    report: Callable[[MonthResult], None],
    run_id: str | None,
) -> None:
    """Stage and audit contiguous months in one transaction, then publish each in its own."""
    began = time.monotonic()
    with connection.cursor() as cursor:
        # Rows and the fingerprints of what they are made from come from one snapshot: what is
        # registered or published meanwhile makes the month stale again, and nothing worse.
        cursor.execute("set transaction isolation level repeatable read")
        state = load_state(cursor, [job.spec.full_name, *job.upstream])
        drop_leftovers(cursor, job.spec, months)
        stage = create_stage(cursor, job.spec, months)
        job.fill(cursor, stage, months[0], next_month(months[-1]))
        audits = audit_stage(cursor, stage)
        published = state.published.get(job.spec.full_name, {})
        judge(audits, job.spec, {month: version.rows for month, version in published.items()})
        versions = data_versions(cursor, stage)
        counted = _superseded(cursor, stage)
        finish_stage(cursor, stage)
    connection.commit()
    share = (time.monotonic() - began) / len(months)
    for month in months:
        started = time.monotonic()
        audit = audits[month]
        superseded = counted.get(month, 0)
        expected = job.rows_expected(state, month)
        came = audit.rows + audit.quarantined
        if audit.problem is None and expected is not None and expected != came:
            audit.problem = (
                f"{expected:,} rows went in, {audit.rows:,} were staged and "
                f"{audit.quarantined:,} quarantined: rows were lost or multiplied by the SELECT"
            )
        publication = Publication(
            month=month,
            leaf=stage.leaves[month],
            data_version=versions[month][0],
            code_version=job.code_version,
            inputs=job.inputs(state, month),
            rows_read=came,
            rows=audit.rows - superseded,
            rows_quarantined=audit.quarantined,
            rows_superseded=superseded,
            run_id=run_id,
            seconds=share,
        )
        outcome = _settle(connection, job.spec, publication, audit, state)
        report(
            MonthResult(
                table=job.spec.full_name,
                month=month,
                outcome=outcome,
                rows_read=came,
                rows=publication.rows,
                rows_quarantined=publication.rows_quarantined,
                rows_superseded=superseded,
                data_version=publication.data_version,
                problem=audit.problem,
                seconds=share + time.monotonic() - started,
                audit=audit,
            )
        )


def _settle(
    connection: Any, spec: TableSpec, publication: Publication, audit: MonthAudit, state: State
) -> Outcome:
    """Publish the month, confirm the one there is, or leave it untouched."""
    if audit.problem is not None:
        with connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("drop table {}").format(sql.Identifier(SCHEMA, publication.leaf))
            )
        connection.commit()
        return "failed"
    published = state.published.get(spec.full_name, {}).get(publication.month)
    unchanged = published is not None and published.data_version == publication.data_version
    # Equal rows that another delivery brought are published all the same: their origin is new.
    if unchanged and (spec.layer == "bronze" or not spec.has_provenance):
        confirm(connection, spec, publication)
        return "confirmed"
    publish(connection, spec, publication)
    return "confirmed" if unchanged else "published"


def _current_result(job: TableJob, state: State, month: date) -> MonthResult:
    published = state.published[job.spec.full_name][month]
    return MonthResult(
        table=job.spec.full_name,
        month=month,
        outcome="current",
        rows_read=published.rows_read,
        rows=published.rows,
        rows_quarantined=published.rows_quarantined,
        rows_superseded=published.rows_superseded,
        data_version=published.data_version,
    )


def _superseded(cursor: Any, stage: Stage) -> dict[date, int]:
    """Month -> staged rows that a later delivery replaces (bronze keeps them, marked)."""
    if stage.spec.layer != "bronze":
        return {}
    cursor.execute(
        sql.SQL("select month, count(*) from {} where not _is_latest group by month").format(
            stage.parent
        )
    )
    return dict(cursor.fetchall())


def _lock(cursor: Any, table: str, months: Sequence[date]) -> None:
    """Make a second build of the same months wait; taken in order, so two never wait crosswise."""
    name = int.from_bytes(hashlib.sha256(table.encode()).digest()[:4], signed=True)
    for month in sorted(months):
        cursor.execute("select pg_advisory_lock(%s, %s)", (name, month.year * 12 + month.month))
