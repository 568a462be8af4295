"""A build that readers see whole or not at all: `build --atomic`.

All months of all tables are staged, audited, put in place and checked in one transaction. In it a
month is exchanged inside its own partition, which makes no reader wait however long the transaction
lasts; at its end everything is there at once. What fails, fails the whole build, and it or a crash
leaves nothing behind but empty partitions of new months, for the next build. The price: one
connection does all the work, and rows are written twice.

Does not belong here: builds whose months are published as they land (`headless.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from metalayer.assets.checks import ask_checks, failed_checks, mark_checked
from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.jobs import table_job
from metalayer.planning import Plan
from metalayer.warehouse.acts import record
from metalayer.warehouse.build import (
    MonthResult,
    TableJob,
    is_settled,
    is_stale,
    log_month,
    result_of,
    windows_of,
)
from metalayer.warehouse.evolve import evolve
from metalayer.warehouse.locks import begin_snapshot, lock_months, unlock_all
from metalayer.warehouse.places import make_places
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.publish import date_together, prune, put_in_place
from metalayer.warehouse.staging import stage_months
from metalayer.warehouse.state import load_state


@dataclass
class AtomicOutcome:
    """What an atomic build did.

    Attributes:
        months: The months that were built; all of them are published, or none is.
        published: Table and month of each new version.
        failed_checks: "table: description" of the blocking checks that failed.
    """

    months: list[MonthResult] = field(default_factory=list)
    published: list[tuple[str, date]] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether everything was published."""
        return not self.failed_checks and all(r.outcome != "failed" for r in self.months)


def build_atomically(
    warehouse: Warehouse, todo: Plan, landed: Callable[[MonthResult], None]
) -> AtomicOutcome:
    """Build what is planned and publish all of it at once, or nothing.

    Args:
        todo: The plan; a month that may have to follow is built if it turns out to be stale.
        landed: Told each month as it is staged.
    """
    outcome = AtomicOutcome()
    jobs = [table_job(table, warehouse.settings) for table in catalog().specs]
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        try:
            for job in jobs:
                lock_months(cursor, job.spec.full_name, sorted(_months(todo, job)))
            connection.commit()
            # A new column of a bronze table stays, whatever becomes of the build: it is empty.
            jobs = [replace(job, spec=evolve(connection, job.spec)) for job in jobs]
            for job in jobs:
                make_places(connection, job.spec, sorted(_months(todo, job)))
            # The snapshot begins here: what others register or publish from now on is not seen.
            begin_snapshot(cursor, catalog().specs.values())
            for job in jobs:
                _build_table(cursor, job, todo, outcome, landed)
                if outcome.succeeded:
                    outcome.failed_checks += _check(cursor, warehouse, job)
                if not outcome.succeeded:
                    connection.rollback()
                    for result in outcome.months:
                        if result.outcome == "failed":
                            log_month(result)
                    return outcome
            date_together(cursor, outcome.published)
            tables = sorted({table for table, _ in outcome.published})
            record(cursor, "build", "all or nothing", {"tables": tables})
            connection.commit()
            for result in outcome.months:
                log_month(result)
            for table, month in outcome.published:
                prune(connection, table, month, table_job(table, warehouse.settings).keeping)
        finally:
            if not connection.closed:
                connection.rollback()
                unlock_all(cursor)
                connection.commit()
    return outcome


def _months(todo: Plan, job: TableJob) -> set[date]:
    return set(todo.affected.get(job.spec.full_name, ()))


def _build_table(
    cursor: Any,
    job: TableJob,
    todo: Plan,
    outcome: AtomicOutcome,
    landed: Callable[[MonthResult], None],
) -> None:
    table = job.spec.full_name
    forced = todo.forced.get(table, set())
    state = load_state(cursor, [table, *job.upstream])
    stale = [
        m
        for m in sorted(_months(todo, job))
        if not is_settled(job, state, m) and (m in forced or is_stale(job, state, m))
    ]
    for window in windows_of(stale, job.months_a_window, 1):
        staged = stage_months(cursor, job, window, state)
        for month in window:
            result = result_of(staged, month, staged.outcome(month))
            if result.outcome != "failed" and put_in_place(
                cursor,
                job.spec,
                staged.publications[month],
                stands_already=staged.stands_already(month) and month not in forced,
            ):
                outcome.published.append((table, month))
            outcome.months.append(result)
            landed(result)


def _check(cursor: Any, warehouse: Warehouse, job: TableJob) -> list[str]:
    """The blocking checks of a table that fail, asked of what this transaction has put in place."""
    asked = ask_checks(cursor, warehouse.settings, job.spec, catalog())
    mark_checked(cursor, job.spec, asked)
    return failed_checks(job.spec, asked)
