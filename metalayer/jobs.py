"""How each table of the catalog is built: its contract and SELECT as a `TableJob`.

This is where the landing zone, the SELECTs and the warehouse meet, still without Dagster.

Does not belong here: which months to build (`planning.py`), or running anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from metalayer.catalog import Catalog, catalog
from metalayer.contracts.contract import TableSpec
from metalayer.landing.load import fill_bronze
from metalayer.landing.shape import shape_of, unpacking_of
from metalayer.lineage.select import Reach, Select, render
from metalayer.settings import Settings
from metalayer.warehouse.build import TableJob
from metalayer.warehouse.ddl import next_month
from metalayer.warehouse.keeping import Keeping
from metalayer.warehouse.stage import Stage, fill_from_select
from metalayer.warehouse.state import State, load_state

#: The one input of a calendar's month, see `calendar_span`: "within" or "outside".
CALENDAR = "months with rows"
#: A SELECT that looks back over all months reads them once for each window: fewer, longer windows.
_MONTHS_A_WINDOW = {True: 120, False: 24}


def table_job(table: str, settings: Settings) -> TableJob:
    """The job that builds `table`."""
    tables = catalog()
    spec = tables.specs[table]
    if spec.layer == "bronze":
        job = _bronze_job(spec, tables, settings)
    elif tables.inputs(table):
        job = _select_job(spec, tables.selects[table], tables)
    else:
        job = _calendar_job(spec, tables.selects[table], tables)
    keeping = Keeping(settings.keep_versions, settings.keep_version_days)
    return replace(job, keeping=keeping, followed=tables.followed_by(table))


def months_between(first: date, last: date) -> list[date]:
    """First days of the months from `first` to `last`, both included."""
    months = [first]
    while months[-1] < last:
        months.append(next_month(months[-1]))
    return months


def month_ranges(months: Iterable[date]) -> list[tuple[date, date]]:
    """The months as ranges (first, last) of months that follow each other, in order."""
    ranges: list[tuple[date, date]] = []
    for month in sorted(months):
        if ranges and next_month(ranges[-1][1]) == month:
            ranges[-1] = (ranges[-1][0], month)
        else:
            ranges.append((month, month))
    return ranges


def _bronze_job(spec: TableSpec, tables: Catalog, settings: Settings) -> TableJob:
    assert spec.source is not None
    source = spec.source.name
    today = datetime.now(UTC).date()
    shape = shape_of(tables.sources[source], settings.start_month, today, unpacking_of(settings))

    def fill(cursor: Any, stage: Stage, start: date, end: date) -> None:
        fill_bronze(cursor, stage, shape, settings, start, end)

    def inputs(state: State, month: date) -> dict[str, str]:
        return dict(state.delivered.get(source, {}).get(month, {}))

    def expected(state: State, month: date) -> int:
        return state.delivered_rows.get(source, {}).get(month, 0)

    return TableJob(spec, tables.code_versions[spec.full_name], (), inputs, fill, expected)


def calendar_span(state: State, tables: Catalog) -> tuple[date, date] | None:
    """First and last month of a calendar, which has no inputs: days for the rows of others.

    What is published counts besides what was delivered: until its rows have gone, and after a
    rollback, they point at days.
    """
    calendars = [name for name in tables.selects if not tables.inputs(name)]
    return state.span(but_for=calendars)


def _calendar_job(spec: TableSpec, select: Select, tables: Catalog) -> TableJob:
    def spanned(state: State, month: date) -> bool:
        span = calendar_span(state, tables)
        return span is not None and span[0] <= month <= span[1]

    def fill(cursor: Any, stage: Stage, start: date, end: date) -> None:
        state = load_state(cursor)
        months = [month for month in months_between(start, end)[:-1] if spanned(state, month)]
        if months:
            rows = render(select, spec, tables.specs, months[0], next_month(months[-1]))
            fill_from_select(cursor, stage, rows)

    def inputs(state: State, month: date) -> dict[str, str]:
        return {CALENDAR: "within" if spanned(state, month) else "outside"}

    return TableJob(
        spec,
        tables.code_versions[spec.full_name],
        tuple(tables.specs),
        inputs,
        fill,
        lambda _state, _month: None,
        _MONTHS_A_WINDOW[False],
    )


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

    def select_only(start: date, end: date, keys: Sequence[str]) -> str:
        return render(select, spec, tables.specs, start, end, keys)

    looks_back = any(reach is not Reach.SAME for reach in select.inputs.values())
    return TableJob(
        spec,
        tables.code_versions[spec.full_name],
        tuple(select.inputs),
        inputs,
        fill,
        expected,
        _MONTHS_A_WINDOW[looks_back],
        reads=tuple(tables.specs[name] for name in select.inputs),
        reaches=select.inputs,
        select_only=select_only if spec.rows_follow is not None else None,
    )
