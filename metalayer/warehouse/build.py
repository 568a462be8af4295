"""Months of one table: staged, audited and published, side by side.

The orchestration of `staging.py` and `publish.py` for a list of months, on a bounded pool of
connections. Months are taken in windows: one statement fills all months of a window, each
is then published and reported by itself. What fills a stage, and from which inputs, comes with the
job.

Does not belong here: which months to build (the callers decide), Dagster, or landed files.
"""

from __future__ import annotations

import json
import logging
import queue
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any, Literal

from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.failure import broken_contract, failure_of
from metalayer.lineage.select import Reach
from metalayer.warehouse.audit import MonthAudit
from metalayer.warehouse.ddl import next_month
from metalayer.warehouse.evolve import evolve
from metalayer.warehouse.failures import made_from, note_failed_month
from metalayer.warehouse.following import (
    changed_keys,
    compute,
    fill_from_computed,
    keys_to_rebuild,
    note_changed_keys,
    note_inputs,
)
from metalayer.warehouse.keeping import Keeping
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.locks import begin_snapshot, lock_months, unlock_all
from metalayer.warehouse.phases import Phase
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.publish import confirm, publish
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.staging import Staged, stage_months
from metalayer.warehouse.state import Published, State, load_state

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
        keeping: Which earlier versions of a month are kept.
        reads: The tables that the rows are made from.
        reaches: The same -> which months of them.
        followed: The column by which other tables follow this one, or None.
        select_only: (start, end, values) -> the SELECT over the rows of the inputs that have these
            values in the column that this table follows; None if it follows none.
    """

    spec: TableSpec
    code_version: str
    upstream: tuple[str, ...]
    inputs: Callable[[State, date], dict[str, str]]
    fill: Callable[[Any, Stage, date, date], None]
    rows_expected: Callable[[State, date], int | None]
    months_a_window: int = 12
    keeping: Keeping = field(default_factory=Keeping)
    reads: tuple[TableSpec, ...] = ()
    reaches: Mapping[str, Reach] = field(default_factory=dict)
    followed: str | None = None
    select_only: Callable[[date, date, Sequence[str]], str] | None = None


@dataclass(frozen=True)
class MonthResult:
    """What a build did to one month of one table.

    Attributes:
        outcome: "published" (new rows), "confirmed" (rebuilt to the same rows), "current" (nothing
            had changed) or "failed" (the published month, if any, is untouched).
        problem: Why it failed, or None.
        phases: The month's share of the seconds its window took, by phase.
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
    phases: Mapping[Phase, float] = field(default_factory=dict, compare=False)
    audit: MonthAudit | None = field(default=None, compare=False)

    @property
    def seconds(self) -> float:
        """The same, of all phases together."""
        return sum(self.phases.values())


def is_stale(job: TableJob, state: State, month: date) -> bool:
    """Whether `month` was built by other code or from other inputs than there are now, or never.

    One whose rows have expired is not, nor what was made of it: see `is_settled`.
    """
    if is_settled(job, state, month):
        return False
    published = state.published.get(job.spec.full_name, {}).get(month)
    return (
        published is None
        or published.code_version != job.code_version
        or dict(published.inputs) != job.inputs(state, month)
    )


def is_settled(job: TableJob, state: State, month: date) -> bool:
    """Whether `month` is never built again: its rows have expired, or those it was made from have.

    The latter are aggregates, which stay. What looks back over several months is made from those
    that are kept.
    """
    if not state.expired:
        return False
    tables = [job.spec.full_name]
    tables += [name for name, reach in job.reaches.items() if reach is Reach.SAME]
    return any(month in state.expired.get(table, ()) for table in tables)


def to_be_checked(job: TableJob, state: State) -> dict[date, Published]:
    """The published months, up to date, whose blocking checks have not passed yet."""
    return {
        month: published
        for month, published in state.published.get(job.spec.full_name, {}).items()
        if not published.is_checked
        and not is_stale(job, state, month)
        and not is_settled(job, state, month)
    }


def build_months(
    pool: Engine,
    job: TableJob,
    months: Sequence[date],
    *,
    workers: int,
    run_id: str | None = None,
    force: bool | Collection[date] = False,
) -> Iterator[MonthResult]:
    """Build `months` of a table, yielding each month's result as it lands.

    Args:
        workers: Windows built at once; the pool must have as many connections.
        force: Rebuild months that are current as well: all, or these.

    Raises:
        Exception: when a window could not be built at all; after the others have ended.
    """
    forced = set(months) if force is True else set(force or ())
    windows = windows_of(sorted(months), job.months_a_window, workers)
    if not windows:
        return
    results: queue.SimpleQueue[MonthResult | None] = queue.SimpleQueue()

    def landed(result: MonthResult) -> None:
        log_month(result)
        results.put(result)

    def work(window: Sequence[date]) -> None:
        try:
            _build_window(pool, job, window, landed, at_work, run_id=run_id, forced=forced)
        finally:
            results.put(None)

    at_work: set[Any] = set()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix=job.spec.name) as executor:
        # What is logged in a thread says the same of its run as what is logged here.
        futures = [executor.submit(copy_context().run, work, window) for window in windows]
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
        found = failure_of(error)
        facts = {"table": job.spec.full_name, **found.fields}
        log.error("other months failed as well: %s", found.line, extra=facts)
    if errors:
        raise errors[0]


def log_month(result: MonthResult) -> None:
    """Log what became of a month, unless nothing had changed."""
    facts = {
        "table": result.table,
        "month": f"{result.month:%Y-%m}",
        "rows": result.rows,
        "rows_quarantined": result.rows_quarantined,
    }
    if result.outcome == "failed":
        found = broken_contract(result.table, result.problem or "")
        log.error("month failed: %s", found.line, extra={**facts, **found.fields})
    elif result.outcome != "current":
        log.info("month %s", result.outcome, extra=facts)


def windows_of(months: list[date], longest: int, workers: int) -> list[list[date]]:
    """Contiguous runs of months, cut so that workers have equal shares, and none is too long."""
    runs: list[list[date]] = []
    rounds = max(1, -(-len(months) // (longest * workers)))
    size = max(1, -(-len(months) // (rounds * workers)))
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
    forced: Collection[date],
) -> None:
    table = job.spec.full_name
    with transaction(pool) as connection, connection.cursor() as cursor:
        at_work.add(connection)
        try:
            lock_months(cursor, table, window)
            connection.commit()
            state = load_state(cursor, [table, *job.upstream])
            connection.commit()
            stale = [
                m
                for m in window
                if is_stale(job, state, m) or (m in forced and not is_settled(job, state, m))
            ]
            # Of a month that has expired there is nothing to tell.
            known = state.published.get(table, {})
            for month in window:
                if month not in stale and month in known:
                    report(_current_result(job, state, month))
            if stale:
                job = replace(job, spec=evolve(connection, job.spec))
            for run in windows_of(stale, len(window), 1):
                _build_run(connection, job, run, report, run_id, forced)
        finally:
            at_work.discard(connection)
            # A session that was ended has let go of its locks; why it ended is what counts.
            if not connection.closed:
                connection.rollback()
                unlock_all(cursor)
                connection.commit()


def _build_run(
    connection: Any,
    job: TableJob,
    months: Sequence[date],
    report: Callable[[MonthResult], None],
    run_id: str | None,
    forced: Collection[date],
) -> None:
    """Stage and audit contiguous months in one transaction, then publish each in its own."""
    with connection.cursor() as cursor:
        begin_snapshot(cursor, job.reads)
        state = load_state(cursor, [job.spec.full_name, *job.upstream])
        # What expired since the caller looked must not be built from nothing.
        months = [month for month in months if not is_settled(job, state, month)]
        keys = keys_to_rebuild(cursor, job, state, months) if months and not forced else None
        changed, fill = list(months), None
        if keys is not None:
            changed = compute(cursor, job, months, keys)
            fill = partial(fill_from_computed, job=job, keys=keys)
        staged = stage_months(cursor, job, changed, state, run_id, fill) if changed else None
    connection.commit()
    for month in months:
        if month not in changed:
            _confirm_as_it_is(connection, job, state, month)
            report(replace(_current_result(job, state, month), outcome="confirmed"))
        elif staged is not None:
            started = time.monotonic()
            outcome = _settle(connection, staged, month, force=month in forced)
            report(result_of(staged, month, outcome, time.monotonic() - started))


def _confirm_as_it_is(connection: Any, job: TableJob, state: State, month: date) -> None:
    """Record that what changed in the inputs makes no difference to the month."""
    with connection.cursor() as cursor:
        cursor.execute(
            "update meta.versions set inputs = %s, is_checked = is_checked and %s "
            "where table_name = %s and month = %s and is_current",
            (
                json.dumps(job.inputs(state, month)),
                # A key without the month may stand in a month that was checked without this one.
                job.spec.month_column in job.spec.key,
                job.spec.full_name,
                month,
            ),
        )
        note_inputs(cursor, job, state, [month])
    connection.commit()


def _settle(connection: Any, staged: Staged, month: date, *, force: bool) -> Outcome:
    """Publish the month, confirm the one there is, or leave it untouched.

    By force it is published in any case: the published rows are not trusted to be what they were.
    """
    job, publication = staged.job, staged.publications[month]
    outcome = staged.outcome(month)
    if outcome == "failed":
        with connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("drop table {}").format(sql.Identifier(LEAVES, publication.leaf))
            )
            note_failed_month(
                cursor,
                job.spec.full_name,
                month,
                made_from(publication.code_version, publication.inputs),
                staged.audits[month].problem or "",
            )
    elif staged.stands_already(month) and not force:
        confirm(connection, job.spec, publication)
        with connection.cursor() as cursor:
            note_inputs(cursor, job, staged.state, [month])
    else:
        with connection.cursor() as cursor:
            keys = changed_keys(cursor, job, month, publication.leaf)
        connection.commit()
        version = publish(connection, job.spec, publication, job.keeping)
        with connection.cursor() as cursor:
            note_changed_keys(cursor, job, month, version, keys)
            note_inputs(cursor, job, staged.state, [month])
    connection.commit()
    return outcome


def result_of(
    staged: Staged, month: date, outcome: Outcome, publishing: float = 0.0
) -> MonthResult:
    """A month that was staged, as it is reported; `publishing` are the seconds that took."""
    publication, audit = staged.publications[month], staged.audits[month]
    return MonthResult(
        table=staged.job.spec.full_name,
        month=month,
        outcome=outcome,
        rows_read=publication.rows_read,
        rows=publication.rows,
        rows_quarantined=publication.rows_quarantined,
        rows_superseded=publication.rows_superseded,
        data_version=publication.data_version,
        problem=audit.problem,
        phases={**staged.phases, "publish": publishing},
        audit=audit,
    )


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
