"""What a published month looks like, in figures: noted once for each version, and kept for years.

    rows of a month --one scan--> rows, nulls, least, greatest, sum, by day and in all
                    --a sample--> distinct values, the most frequent ones

Of personal columns only how many values are missing and, estimated, how many differ: a profile
holds no value of theirs. Bronze, where everything is text as it came, has its counts alone.

Does not belong here: what is unusual (`operations/usual.py`), or seconds (`phases.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from psycopg2 import sql
from psycopg2.extras import execute_values

from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.governance.masks import is_open
from metalayer.warehouse.ddl import next_month, stored_name
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.locks import begin_snapshot

#: Rows of a month that are looked at for frequent and distinct values.
SAMPLE_ROWS = 1000
_TOP = 10
#: A value that so few rows of the sample have is no category.
_LEAST_OF_TOP = 10
_KEPT = timedelta(days=800)
_LONGEST_VALUE = 60
_NUMBERS = ("bigint", "integer", "double precision", "numeric")
_COUNTED = ("rows_read", "rows", "rows_quarantined", "rows_superseded")
_PROVENANCE = ("_delivery_id", "_line", "_extra")


@dataclass(frozen=True)
class _Shape:
    """Which columns of a table are looked at, and for what."""

    columns: tuple[ColumnSpec, ...]
    numbers: tuple[ColumnSpec, ...]
    ordered: tuple[ColumnSpec, ...]
    sampled: tuple[ColumnSpec, ...]
    shown: tuple[str, ...]
    referring: tuple[ColumnSpec, ...]

    @classmethod
    def of(cls, spec: TableSpec, specs: Mapping[str, TableSpec]) -> _Shape:
        if spec.layer == "bronze":
            return cls((), (), (), (), (), ())
        columns = tuple(c for c in spec.stored if c.name not in _PROVENANCE)
        # Numbers of persons are theirs wherever they stand.
        numbers_of = {c.name for each in specs.values() for c in each.columns if c.identifies}
        shown = tuple(
            c
            for c in columns
            if is_open(c) and not (c.is_key or c.references or c.name in numbers_of)
        )
        numbers = tuple(c for c in shown if c.type.startswith(_NUMBERS))
        dates = tuple(c for c in shown if c.type in ("date", "timestamp"))
        return cls(
            columns,
            numbers,
            (*numbers, *dates),
            tuple(c for c in columns if c.sealed_type is None),
            tuple(c.name for c in shown),
            tuple(c for c in columns if c.references is not None),
        )


def profile_table(
    connection: Any, spec: TableSpec, specs: Mapping[str, TableSpec]
) -> dict[date, set[date]]:
    """Note the profile of every published month that has none.

    Killed before, a build leaves some to the next. A month that is replaced meanwhile has its turn
    with its own version.

    Args:
        specs: All tables, for the columns that refer to others.

    Returns:
        Month -> those of its days that differ from the profile before; all of a new month.
    """
    with connection.cursor() as cursor:
        shape = _Shape.of(spec, specs)
        others = {c.references.table for c in shape.referring if c.references is not None}
        begin_snapshot(cursor, [spec, *(specs[name] for name in sorted(others) if name in specs)])
        lacking = _lacking(cursor, spec)
        if not lacking:
            connection.commit()
            return {}
        found = _profiles(cursor, spec, shape, specs, lacking)
        connection.commit()
        changed = _changed_days(cursor, spec, found)
        _note(cursor, spec, lacking, found)
        cursor.execute(
            "delete from meta.profiles as p where table_name = %s and published_at < now() - %s "
            "and exists (select from meta.profiles as newer where newer.table_name = p.table_name "
            "and newer.month = p.month and newer.version > p.version)",
            (spec.full_name, _KEPT),
        )
    connection.commit()
    return changed


def _lacking(cursor: Any, spec: TableSpec) -> dict[date, dict[str, Any]]:
    """Published months without a profile, and what is noted of them."""
    cursor.execute(
        "select v.month, v.version, v.leaf, v.published_at, v.rows_read, v.rows, "
        "v.rows_quarantined, v.rows_superseded from meta.versions as v "
        "left join meta.profiles as p using (table_name, month, version) "
        "where v.is_current and v.table_name = %s and p.version is null order by v.month",
        (spec.full_name,),
    )
    names = ("month", "version", "leaf", "published_at", *_COUNTED)
    return {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}


def _profiles(
    cursor: Any,
    spec: TableSpec,
    shape: _Shape,
    specs: Mapping[str, TableSpec],
    lacking: Mapping[date, Mapping[str, Any]],
) -> dict[date, tuple[dict[str, Any], dict[str, Any]]]:
    """Month -> its columns, and its days."""
    found: dict[date, tuple[dict[str, Any], dict[str, Any]]] = {m: ({}, {}) for m in lacking}
    if not shape.columns:
        return found
    for first, last in _runs(sorted(lacking)):
        by_day = _scanned(cursor, spec, shape, specs, first, next_month(last))
        days: dict[date, list[dict[str, Any]]] = {}
        for each in by_day:
            days.setdefault(each["day"].replace(day=1), []).append(each)
        for month, its in days.items():
            if month in found:
                found[month] = (_columns(shape, its), _days(shape, its))
    _add_samples(cursor, spec, shape, lacking, found)
    return found


def _runs(months: Sequence[date]) -> list[tuple[date, date]]:
    """Months as contiguous runs, first and last of each."""
    runs: list[tuple[date, date]] = []
    for month in months:
        if runs and next_month(runs[-1][1]) == month:
            runs[-1] = (runs[-1][0], month)
        else:
            runs.append((month, month))
    return runs


def _scanned(
    cursor: Any,
    spec: TableSpec,
    shape: _Shape,
    specs: Mapping[str, TableSpec],
    start: date,
    end: date,
) -> list[dict[str, Any]]:
    """What one scan tells of each day of `[start, end)`."""
    asked = [sql.SQL("{}::date").format(sql.Identifier(spec.month_column)), sql.SQL("count(*)")]
    names = ["day", "rows"]
    for what, columns, form in (
        ("filled", shape.columns, "count(t.{c})"),
        ("least", shape.ordered, "min(t.{c})::text"),
        ("greatest", shape.ordered, "max(t.{c})::text"),
        ("sum", shape.numbers, "sum(t.{c}::double precision)"),
    ):
        for column in columns:
            names.append(f"{what} {column.name}")
            asked.append(sql.SQL(form).format(c=sql.Identifier(column.name)))
    joins = []
    for number, column in enumerate(shape.referring):
        assert column.references is not None
        other = specs.get(column.references.table)
        if other is None:
            continue
        names.append(f"unresolved {column.name}")
        there = sql.Identifier(f"r{number}")
        asked.append(
            sql.SQL("count(t.{c}) filter (where {r}.k is null)").format(
                c=sql.Identifier(column.name), r=there
            )
        )
        joins.append(
            sql.SQL("left join (select distinct {k} as k from {t}) as {r} on {r}.k = t.{c}").format(
                k=sql.Identifier(column.references.column),
                t=stored_name(other),
                r=there,
                c=sql.Identifier(column.name),
            )
        )
    cursor.execute(
        sql.SQL(
            "select {asked} from {t} as t {joins} where t.{m} >= %s and t.{m} < %s group by 1"
        ).format(
            asked=sql.SQL(", ").join(asked),
            t=stored_name(spec),
            joins=sql.SQL(" ").join(joins),
            m=sql.Identifier(spec.month_column),
        ),
        (start, end),
    )
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _columns(shape: _Shape, days: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The days of a month put together, by column."""
    rows = sum(day["rows"] for day in days)
    ordered = {c.name: c for c in shape.ordered}
    found: dict[str, Any] = {}
    for column in shape.columns:
        filled = sum(day[f"filled {column.name}"] for day in days)
        told: dict[str, Any] = {"nulls": rows - filled, "distinct": None}
        told |= {"min": None, "max": None, "mean": None, "sum": None, "top": []}
        if column.name in ordered:
            order = float if column.type.startswith(_NUMBERS) else str
            for name, what, pick in (("min", "least", min), ("max", "greatest", max)):
                values = [v for day in days if (v := day[f"{what} {column.name}"]) is not None]
                told[name] = pick(values, key=order) if values else None
        if f"sum {column.name}" in days[0]:
            told["sum"] = sum(day[f"sum {column.name}"] or 0.0 for day in days)
            told["mean"] = told["sum"] / filled if filled else None
        if f"unresolved {column.name}" in days[0]:
            told["unresolved"] = sum(day[f"unresolved {column.name}"] for day in days)
        found[column.name] = told
    return found


def _days(shape: _Shape, days: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows and missing values of each day; none where every row is of the first of its month."""
    if all(day["day"].day == 1 for day in days):
        return {}
    return {
        day["day"].isoformat(): {
            "rows": day["rows"],
            "nulls": {
                c.name: lacking
                for c in shape.columns
                if (lacking := day["rows"] - day[f"filled {c.name}"])
            },
        }
        for day in sorted(days, key=lambda day: day["day"])
    }


def _add_samples(
    cursor: Any,
    spec: TableSpec,
    shape: _Shape,
    lacking: Mapping[date, Mapping[str, Any]],
    found: Mapping[date, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    """Distinct and most frequent values, from some rows of each month."""
    columns = sql.SQL(", ").join(
        sql.SQL("{}::text").format(sql.Identifier(c.name)) for c in shape.sampled
    )
    for month, facts in lacking.items():
        if not facts["rows"] or not found[month][0]:
            continue
        # Whole pages by chance: the rows of one lie together, which frequent values do not mind.
        share = min(100.0, 100.0 * SAMPLE_ROWS / facts["rows"])
        cursor.execute(
            sql.SQL(
                "select c, v, n, sum(n) over (partition by c), count(*) over (partition by c), "
                "count(*) filter (where n = 1) over (partition by c) from ("
                "select c.place as c, c.value as v, count(*) as n from ("
                "select array[{columns}] as a from {leaf} tablesample system ({share}) "
                "repeatable (1) limit {most}) as s "
                "cross join lateral unnest(s.a) with ordinality as c (value, place) "
                "where c.value is not null group by 1, 2) as g order by c, n desc, v"
            ).format(
                columns=columns,
                leaf=sql.Identifier(LEAVES, facts["leaf"]),
                share=sql.Literal(share),
                most=sql.Literal(2 * SAMPLE_ROWS),
            )
        )
        for place, value, n, taken, different, once in cursor.fetchall():
            column = shape.sampled[place - 1].name
            told = found[month][0][column]
            filled = facts["rows"] - told["nulls"]
            taken = int(taken)
            if told["distinct"] is None:
                told["distinct"] = _distinct(different, once, taken, max(filled, taken))
            is_category = n >= _LEAST_OF_TOP and len(told["top"]) < _TOP
            if column in shape.shown and is_category and len(value) <= _LONGEST_VALUE:
                told["top"].append([value, round(n / taken * filled)])


def _distinct(different: int, once: int, taken: int, rows: int) -> int:
    """How many values differ in all rows, by a sample of them.

    Source: the estimator Duj1 of Haas and Stokes (1998), which PostgreSQL's ANALYZE uses as well.
    """
    if once == 0 or taken >= rows:
        return int(different)
    return min(rows, round(taken * different / (taken - once + once * taken / rows)))


def _changed_days(
    cursor: Any, spec: TableSpec, found: Mapping[date, tuple[dict[str, Any], dict[str, Any]]]
) -> dict[date, set[date]]:
    """Month -> its days that are not as in its last profile."""
    cursor.execute(
        "select distinct on (month) month, days from meta.profiles "
        "where table_name = %s and month = any(%s) order by month, version desc",
        (spec.full_name, list(found)),
    )
    before = dict(cursor.fetchall())
    return {
        month: {
            date.fromisoformat(day)
            for day, told in days.items()
            if before.get(month, {}).get(day) != told
        }
        for month, (_, days) in found.items()
    }


def _note(
    cursor: Any,
    spec: TableSpec,
    lacking: Mapping[date, Mapping[str, Any]],
    found: Mapping[date, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    execute_values(
        cursor,
        "insert into meta.profiles (table_name, month, version, published_at, rows_read, rows, "
        "rows_quarantined, rows_superseded, columns, days) values %s on conflict do nothing",
        [
            (
                spec.full_name,
                month,
                facts["version"],
                facts["published_at"],
                *(facts[name] for name in _COUNTED),
                json.dumps(found[month][0]),
                json.dumps(found[month][1]),
            )
            for month, facts in lacking.items()
        ],
    )
