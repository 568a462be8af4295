"""When a month of a table is to be built: when it is out of date, and only then.

Dagster's own conditions look at events: something upstream was updated since. This one looks at
what is there. A month is out of date when the published version was made from other inputs or by
other code than there are now, which the warehouse knows exactly (`metalayer.planning`). Hence old
months count like new ones, nothing that changes during a run is lost, a month rebuilt to the same
rows makes nothing behind it follow, and a first start on a warehouse that is built does nothing.

What failed is tried again once its inputs or its code change. A run that ended without a verdict
(killed, no connection) is asked for again, later and later.

A month waits while an unfinished run is to build it, or an input of it.

Does not belong here: asking for runs (`following.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES

from metalayer.assets.keys import (
    asset_key,
    range_of,
    table_of,
    tables_of,
    to_key,
    to_month,
    to_months,
)
from metalayer.assets.resources import Warehouse, standing_warehouse
from metalayer.automation.retries import Asked
from metalayer.catalog import catalog
from metalayer.jobs import months_between, table_job
from metalayer.planning import Plan, forget_mended, months_behind, plan, without
from metalayer.warehouse.build import to_be_checked
from metalayer.warehouse.failures import Failures, made_from, versions_asked
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.state import State, load_state


@dataclass(frozen=True)
class Outlook:
    """What is out of date, less what was tried and failed as it is.

    Attributes:
        todo: Which months are to be built, and which may follow.
        expected: Table -> months that are to be built, or to follow such as are.
        at_rest: Table -> published months with nothing out of date in or before them.
        published: Table -> published months.
        made_from: (table, month) -> fingerprint of what it would be made from, of those to build.
        given_up: (table, month) of stale months that need not be tried again as they are.
        blocked: Tables whose checks failed, behind which nothing is built.
    """

    todo: Plan
    expected: Mapping[str, set[date]]
    at_rest: Mapping[str, set[date]]
    published: Mapping[str, set[date]]
    made_from: Mapping[tuple[str, date], str]
    given_up: frozenset[tuple[str, date]]
    blocked: frozenset[str]


def outlook(warehouse: Warehouse) -> Outlook:
    """Look at what is out of date now."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        state = load_state(cursor)
        failures = forget_mended(cursor, warehouse.settings, state)
    planned = plan(state, warehouse.settings)
    fingerprints = _fingerprints(warehouse, state, planned)
    given_up: set[tuple[str, date]] = set()
    expected: dict[str, set[date]] = {}
    for table in catalog().specs:
        follows = months_behind(catalog().inputs(table), expected, planned.affected[table])
        failed = {
            month
            # What failed may pass once its inputs are built anew.
            for month in planned.stale[table] - follows
            if failures.months.get((table, month)) == fingerprints[table, month]
        }
        given_up |= {(table, month) for month in failed}
        expected[table] = (planned.stale[table] - failed) | follows
    blocked = {
        table
        for table in planned.unchecked
        # What is to be rebuilt may mend what the checks found.
        if not expected[table] and _checks_failed(warehouse, state, failures, table)
    }
    todo = without(planned, given_up, blocked)
    published = {table: set(months) for table, months in state.published.items()}
    return Outlook(
        todo,
        {table: months & todo.affected.get(table, set()) for table, months in expected.items()},
        {
            table: months - planned.affected[table] - planned.unchecked[table]
            for table, months in published.items()
            if not blocked & set(catalog().made_from(table))
        },
        published,
        fingerprints,
        frozenset(given_up),
        frozenset(blocked),
    )


def _fingerprints(warehouse: Warehouse, state: State, planned: Plan) -> dict[tuple[str, date], str]:
    found = {}
    for table in planned.stale:
        job = table_job(table, warehouse.settings)
        for month in planned.stale[table]:
            found[table, month] = made_from(job.code_version, job.inputs(state, month))
        for month in planned.unchecked[table]:
            found[table, month] = str(state.published[table][month].version)
    return found


def _checks_failed(warehouse: Warehouse, state: State, failures: Failures, table: str) -> bool:
    """Whether the checks of a table failed on just the versions they would be asked about now."""
    if table not in failures.checks:
        return False
    job = table_job(table, warehouse.settings)
    asked = to_be_checked(job, state)
    return bool(asked) and failures.checks[table] == versions_asked(
        state, table, asked, catalog().upstream(table)
    )


class OutOfDate(dg.AutomationCondition[dg.AssetKey]):
    """True for the months of a table that are to be built now."""

    @property
    def name(self) -> str:
        """What it is called in the UI."""
        return "out_of_date"

    @property
    def description(self) -> str:
        """What it says in the UI."""
        return "Made from other inputs or by other code than there are now, or never built"

    @property
    def requires_cursor(self) -> bool:
        """It remembers what was asked for, so as not to ask for the same again at once."""
        return True

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> Any:
        """The candidate months that are to be built, and what was asked for so far."""
        table = table_of(context.key)
        # In this order: a run that ends in between has brought up to date what is looked at then.
        under_way = _under_way_in_tick(context.asset_graph_view)
        seen = _outlook_of_tick(context.asset_graph_view)
        requested = _requested(context, table)
        candidates = _candidates(context)
        candidates -= _busy(under_way, table, candidates)
        candidates -= _awaited(requested, table, seen, candidates)
        own = seen.todo.stale.get(table, set()) | seen.todo.unchecked.get(table, set())
        # What may have to follow, of what is asked for upstream.
        behind = months_behind(
            catalog().inputs(table), requested, seen.todo.affected.get(table, set())
        )
        return _ask_for(
            context,
            candidates & own,
            {month: seen.made_from[table, month] for month in own},
            at_once=candidates & behind,
        )


class Forgiven(dg.AutomationCondition[dg.AssetKey]):
    """True for the months of a table with nothing out of date in or before them.

    Asked only of months that Dagster shows as failed: a run that failed elsewhere took them along,
    or an earlier state of theirs failed and was brought back. A run finds them well.
    """

    @property
    def name(self) -> str:
        """What it is called in the UI."""
        return "up_to_date"

    @property
    def description(self) -> str:
        """What it says in the UI."""
        return "Published, with nothing out of date in it or before it"

    @property
    def requires_cursor(self) -> bool:
        """It remembers what was asked for, so as not to ask for the same again at once."""
        return True

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> Any:
        """The candidate months that only seem to have failed."""
        table = table_of(context.key)
        seen = _outlook_of_tick(context.asset_graph_view)
        well = seen.at_rest.get(table, set()) & _candidates(context)
        return _ask_for(context, well, dict.fromkeys(well, ""))


def _candidates(context: dg.AutomationContext[dg.AssetKey]) -> set[date]:
    return set(to_months(context.candidate_subset.expensively_compute_partition_keys()))


def _ask_for(
    context: dg.AutomationContext[dg.AssetKey],
    wanted: set[date],
    fingerprints: Mapping[date, str],
    at_once: AbstractSet[date] = frozenset(),
) -> dg.AutomationResult[dg.AssetKey]:
    """Ask for months, those that were asked for before as they are now not too soon again.

    Args:
        fingerprints: Month -> what it would be made from, of all that is not done yet.
        at_once: Months to ask for whatever was asked for before.
    """
    now, asked = context.evaluation_time.timestamp(), Asked.read(context.cursor)
    due = {m for m in wanted if asked.is_due(to_key(m), fingerprints[m], now)} | at_once
    keys = {to_key(month) for month in due}
    assert context.partitions_def is not None
    subset = context.asset_graph_view.get_subset_from_partition_keys(
        context.key, context.partitions_def, keys
    )
    by_key = {to_key(month): fingerprint for month, fingerprint in fingerprints.items()}
    return dg.AutomationResult(context, subset, cursor=asked.after(keys, by_key, now).written())


def _requested(context: dg.AutomationContext[dg.AssetKey], table: str) -> dict[str, set[date]]:
    """What a table needs -> its months that are asked for in this very tick."""
    requested = context.request_subsets_by_key
    return {
        name: set(to_months(requested[key].expensively_compute_partition_keys()))
        for name in catalog().upstream(table)
        if (key := asset_key(name)) in requested
    }


def _awaited(
    requested: Mapping[str, set[date]], table: str, seen: Outlook, months: set[date]
) -> set[date]:
    """Months that are to be built from what is to be built itself, but is not asked for now.

    Or that point at such: built before what their keys point at, they would fail their checks.
    """
    outstanding = {
        name: expected - requested.get(name, set()) for name, expected in seen.expected.items()
    }
    return months_behind(catalog().upstream(table), outstanding, months)


def _busy(under_way: Mapping[str, set[date]], table: str, months: set[date]) -> set[date]:
    """The months of a table that an unfinished run builds, or builds what they need."""
    return under_way.get(table, set()) | months_behind(catalog().upstream(table), under_way, months)


@lru_cache(maxsize=1)
def _under_way_in_tick(view: Any) -> dict[str, set[date]]:
    """Table -> months that unfinished runs are to build."""
    found: dict[str, set[date]] = {}
    for run in view.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        ends = range_of(run.tags)
        if ends is None:
            continue
        months = months_between(*map(to_month, ends))
        for table in tables_of(run) or catalog().specs:
            found.setdefault(table, set()).update(months)
    return found


@lru_cache(maxsize=1)
def _outlook_of_tick(_view: object) -> Outlook:
    """One look for all tables of a tick: each tick has a view of the assets of its own."""
    with standing_warehouse() as warehouse:
        return outlook(warehouse)


def table_condition() -> dg.AutomationCondition[dg.AssetKey]:
    """When a month of a table is built by itself: out of date, and nothing of it under way.

    The order counts: what is looked at last only sees the months that passed the others, and
    remembers just those as asked for.
    """
    condition = dg.AutomationCondition
    seems_failed = condition.execution_failed() & Forgiven()
    return (~condition.in_progress() & (OutOfDate() | seems_failed)).with_label("follow")
