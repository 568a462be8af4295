"""How each table of the catalog is built: its contract and SELECT as a `TableJob`.

This is where the landing zone, the SELECTs and the warehouse meet, still without Dagster. Which
months are stale, for planning and for status, is answered here as well.

Does not belong here: running anything (`assets` does, through Dagster).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from metalayer.catalog import Catalog, catalog
from metalayer.contracts.contract import TableSpec
from metalayer.landing.load import fill_bronze
from metalayer.landing.shape import shape_of
from metalayer.lineage.select import Reach, Select, render
from metalayer.settings import Settings
from metalayer.warehouse.build import TableJob, is_stale
from metalayer.warehouse.ddl import next_month
from metalayer.warehouse.stage import Stage, fill_from_select
from metalayer.warehouse.state import DELIVERIES, State

#: A SELECT that looks back over all months reads them once for each window: fewer, longer windows.
_MONTHS_A_WINDOW = {True: 120, False: 24}


def table_job(table: str, settings: Settings) -> TableJob:
    """The job that builds `table`."""
    tables = catalog()
    spec = tables.specs[table]
    if spec.layer == "bronze":
        return _bronze_job(spec, tables, settings)
    return _select_job(spec, tables.selects[table], tables)


def months_with_data(table: str, state: State) -> set[date]:
    """Months `table` has rows for, or would have if it were built now.

    Those in which something was delivered (bronze) or any input has rows; a table without inputs
    spans all months there are. Months once published stay, so that they can become empty.
    """
    tables = catalog()
    spec = tables.specs[table]
    own = set(state.published.get(table, {}))
    if spec.layer == "bronze":
        assert spec.source is not None
        return own | set(state.delivered.get(spec.source.name, {}))
    inputs = tables.inputs(table)
    if not inputs:
        known = state.delivered_months
        return own | set(months_between(known[0], known[-1]) if known else ())
    return own.union(*(set(state.published.get(name, {})) for name in inputs))


def months_between(first: date, last: date) -> list[date]:
    """First days of the months from `first` to `last`, both included."""
    months = [first]
    while months[-1] < last:
        months.append(next_month(months[-1]))
    return months


@dataclass(frozen=True)
class Plan:
    """Which months of which tables would be rebuilt, upstream first.

    Attributes:
        stale: Table -> months that are out of date by themselves.
        affected: Table -> months that may have to follow, `stale` included.
        unpublished: Table -> stale months that no reader has seen any version of.
    """

    stale: Mapping[str, set[date]]
    affected: Mapping[str, set[date]]
    unpublished: Mapping[str, set[date]]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not any(self.affected.values())


def plan(
    state: State,
    settings: Settings,
    selected: set[str] | None = None,
    months: set[date] | None = None,
) -> Plan:
    """Find what is out of date, and what may follow from rebuilding it.

    Args:
        selected: Tables to consider; None: all.
        months: Months to build. Months outside of it are left out unless they are published
            already: what is published is kept in step with what it is made from.
    """
    tables = catalog()
    stale: dict[str, set[date]] = {}
    affected: dict[str, set[date]] = {}
    unpublished: dict[str, set[date]] = {}
    extent: dict[str, set[date]] = {}
    for table in tables.specs:
        extent[table] = months_with_data(table, state).union(
            *(extent[name] for name in tables.inputs(table))
        )
        if selected is not None and table not in selected:
            continue
        published = set(state.published.get(table, {}))
        wanted = extent[table] if months is None else extent[table] & (months | published)
        # Earlier ones, published before the first month was moved, are no partitions any more.
        wanted = {m for m in wanted if m >= settings.start_month}
        job = table_job(table, settings)
        stale[table] = {m for m in wanted if is_stale(job, state, m)}
        unpublished[table] = stale[table] - published
        follows = set(stale[table])
        for name, reach in tables.inputs(table).items():
            follows |= reached_months(affected.get(name, set()), reach, wanted)
        affected[table] = follows
    return Plan(stale, affected, unpublished)


def reached_months(changed: set[date], reach: Reach, months: set[date]) -> set[date]:
    """The `months` that a change of an input's months `changed` may touch."""
    if not changed:
        return set()
    if reach is Reach.SAME:
        return changed & months
    first = min(changed)
    if reach is Reach.BEFORE:
        return {m for m in months if m > first}
    return {m for m in months if m >= first} if reach is Reach.UP_TO else set(months)


def _bronze_job(spec: TableSpec, tables: Catalog, settings: Settings) -> TableJob:
    assert spec.source is not None
    source = spec.source.name
    shape = shape_of(tables.sources[source], settings.start_month, datetime.now(UTC).date())

    def fill(cursor: Any, stage: Stage, start: date, end: date) -> None:
        fill_bronze(cursor, stage, shape, settings, start, end)

    def inputs(state: State, month: date) -> dict[str, str]:
        return {DELIVERIES: state.delivered.get(source, {}).get(month, "")}

    def expected(state: State, month: date) -> int:
        return state.delivered_rows.get(source, {}).get(month, 0)

    return TableJob(spec, tables.code_versions[spec.full_name], (), inputs, fill, expected)


def _select_job(spec: TableSpec, select: Select, tables: Catalog) -> TableJob:
    def fill(cursor: Any, stage: Stage, start: date, end: date) -> None:
        fill_from_select(cursor, stage, render(select, spec, tables.specs, start, end))

    def inputs(state: State, month: date) -> dict[str, str]:
        return {
            name: state.input_fingerprint(name, reach, month)
            for name, reach in select.inputs.items()
        }

    rows_from = f"bronze.{spec.name}" if spec.source is not None else spec.rows_from

    def expected(state: State, month: date) -> int | None:
        if rows_from is None:
            return None
        published = state.published.get(rows_from, {}).get(month)
        return published.rows if published else 0

    looks_back = any(reach is not Reach.SAME for reach in select.inputs.values())
    return TableJob(
        spec,
        tables.code_versions[spec.full_name],
        tuple(select.inputs),
        inputs,
        fill,
        expected,
        _MONTHS_A_WINDOW[looks_back],
    )
