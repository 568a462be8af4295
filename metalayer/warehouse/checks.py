"""What must hold between tables, asked of the published rows themselves.

Each function asks one question about some months of one table and returns a `Finding`. The audit
has held every row against its contract before; these look across months and across tables.

Does not belong here: Dagster's view of a check (see `metalayer.assets.checks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from psycopg2 import sql

from metalayer.contracts.classification import ANONYMOUS
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.governance.masks import is_masked
from metalayer.warehouse.ddl import identifiers, next_month, stored_name
from metalayer.warehouse.leaves import LEAVES
from metalayer.wording import counted, named

_EXAMPLES = 5
_ROWS_READ_IN_A_LOOKUP = 10


@dataclass(frozen=True)
class Finding:
    """The answer to one check.

    Attributes:
        passed: Whether it holds.
        description: What was found, in a sentence; empty when it holds.
        facts: Counts and sums looked at, for the check's metadata.
        months: Month -> "passed", and the numbers that were looked at in it.
    """

    passed: bool
    description: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    months: Mapping[date, Mapping[str, Any]] = field(default_factory=dict)


def keys_unique(
    cursor: Any, spec: TableSpec, months: Sequence[date], among: Mapping[date, int]
) -> Finding:
    """No key of `months` stands in another month.

    Within a month PostgreSQL's unique index sees to it; a key that holds the month cannot repeat
    in another.

    Args:
        among: Months to compare with -> their rows. A month that is about to be rebuilt is left
            out: a row that moved may still stand in the month it leaves.
    """
    passed = {month: {"passed": True} for month in months}
    if spec.month_column in spec.key:
        return Finding(True, facts={"key": ", ".join(spec.key)}, months=passed)
    key = identifiers(spec.key)
    concerned = sql.SQL("true")
    if not among.keys() <= set(months):
        concerned = sql.SQL("({key}) in (select {key} from {table} where {window})").format(
            key=key, table=stored_name(spec), window=_window(spec, months)
        )
    with _many_keys(cursor, expected=not _are_few(months, among)):
        cursor.execute(
            sql.SQL(
                "with repeated as materialized (select {key}, count(*) from {table} "
                "where {among} and {concerned} group by {key} having count(*) > 1) "
                "select * from repeated order by {key} limit {limit}"
            ).format(
                key=key,
                table=stored_name(spec),
                among=_window(spec, list(among)),
                concerned=concerned,
                limit=sql.Literal(_EXAMPLES),
            )
        )
        repeated = cursor.fetchall()
        found = _months_of_repeated_keys(cursor, spec, list(among)) if repeated else {}
    examples = "; ".join(", ".join(str(v) for v in row[:-1]) for row in repeated)
    return Finding(
        not repeated,
        f"Keys stand in more than one month of {spec.full_name}: {examples}" if repeated else "",
        {"key": ", ".join(spec.key)},
        passed | {month: {"passed": False, "keys": keys} for month, keys in found.items()},
    )


def _are_few(months: Sequence[date], among: Mapping[date, int]) -> bool:
    """Whether to look the keys of `months` up in the index of every month beats reading all."""
    lookups = sum(among.get(month, 0) for month in months) * len(among)
    return lookups * _ROWS_READ_IN_A_LOOKUP < sum(among.values())


@contextmanager
def _many_keys(cursor: Any, *, expected: bool) -> Iterator[None]:
    """How many keys there are PostgreSQL does not know of a partitioned table.

    Taking them for a few, it would look each of a million up in the index of every month, or have
    several processes count them, and then sort and send all of them to one.
    """
    if not expected:
        yield
        return
    plan = {"enable_nestloop": "off", "max_parallel_workers_per_gather": "0"}
    cursor.execute("select name, setting from pg_settings where name = any(%s)", (list(plan),))
    before = dict(cursor.fetchall())
    for settings in (plan, before):
        for name, value in settings.items():
            cursor.execute("select set_config(%s, %s, true)", (name, value))
        if settings is plan:
            yield


def _months_of_repeated_keys(
    cursor: Any, spec: TableSpec, among: Sequence[date]
) -> dict[date, int]:
    """Month -> keys in it that stand in another month of `among` as well."""
    cursor.execute(
        sql.SQL(
            "select date_trunc('month', {month})::date, count(*) from {table} where {among} "
            "and ({key}) in (select {key} from {table} where {among} "
            "group by {key} having count(*) > 1) group by 1 order by 1"
        ).format(
            month=sql.Identifier(spec.month_column),
            key=identifiers(spec.key),
            table=stored_name(spec),
            among=_window(spec, among),
        )
    )
    return dict(cursor.fetchall())


def references_resolve(
    cursor: Any,
    spec: TableSpec,
    column: ColumnSpec,
    target: TableSpec,
    months: Sequence[date] | None = None,
) -> Finding:
    """Every value of `column` in `months` (None: all) stands in the column it references.

    Where they do not, the months are named, and some of the values unless they are masked. The
    number that stands for erased persons is in no table, and nothing is missing there.
    """
    assert column.references is not None
    numbers_people = target.column(column.references.column).identifies is not None
    cursor.execute(
        sql.SQL(
            # Grouped first, which several processes can do; materialized, since counting what is
            # missing wants all of it sorted, if it were any.
            "with missing as materialized ("
            "select date_trunc('month', t.{month})::date as month, {column} as value, "
            "count(*) as rows from {table} as t where {window} and {column} is not null {but_for} "
            "and not exists (select from {target} as r where r.{referenced} = t.{column}) "
            "group by 1, 2) "
            "select month, coalesce(sum(rows), 0)::bigint, count(distinct value), "
            "(select array_agg(value::text order by value) from "
            "(select distinct value from missing order by 1 limit {limit}) as first) "
            "from missing group by grouping sets ((), (1))"
        ).format(
            but_for=sql.SQL("and {} <> {}::{}").format(
                sql.Identifier(column.name), sql.Literal(ANONYMOUS), sql.SQL(column.type)
            )
            if numbers_people
            else sql.SQL(""),
            limit=sql.Literal(0 if is_masked(spec, column) else _EXAMPLES),
            month=sql.Identifier(spec.month_column),
            column=sql.Identifier(column.name),
            table=stored_name(spec),
            window=_window(spec, months) if months is not None else sql.SQL("true"),
            target=stored_name(target),
            referenced=sql.Identifier(column.references.column),
        )
    )
    found = {month: (rows, values, first) for month, rows, values, first in cursor.fetchall()}
    rows, values, first = found.pop(None)
    concerned = sorted(found)
    to = f"{column.references.table}.{column.references.column}"
    description = ""
    if rows:
        which = f": {named(first, _EXAMPLES, values)}" if first else ""
        description = (
            f"{counted(rows, 'row')} of {spec.full_name} in "
            f"{named([f'{month:%Y-%m}' for month in concerned], _EXAMPLES)} with "
            f"{counted(values, 'value')} of {column.name} that {to} does not have{which}"
        )
    return Finding(
        rows == 0,
        description,
        {"rows": rows, "values": values, "references": to},
        {
            month: {"passed": month not in found, "rows": found[month][0] if month in found else 0}
            for month in (months if months is not None else concerned)
        },
    )


def rows_conserved(
    cursor: Any, spec: TableSpec, months: Sequence[date], expected: Mapping[date, int | None]
) -> Finding:
    """For each month: rows that came in = published + quarantined + superseded, recounted.

    Args:
        expected: Month -> rows of the table each of whose rows must arrive, where there is one.
    """
    found = _by_month(cursor, spec, sql.SQL("count(*)"), months)
    cursor.execute(
        "select v.month, v.rows_read, v.rows, v.rows_quarantined, v.rows_superseded, "
        "(select count(*) from meta.quarantine as q where q.table_name = v.table_name "
        "and q.month = v.month) from meta.versions as v "
        "where v.table_name = %s and v.is_current and v.month = any(%s)",
        (spec.full_name, list(months)),
    )
    wrong = []
    by_month: dict[date, dict[str, Any]] = {}
    total = {"read": 0, "published": 0, "quarantined": 0, "superseded": 0}
    for month, read, rows, quarantined, superseded, filed in cursor.fetchall():
        stored = found.get(month, 0)
        came = expected.get(month)
        came = read if came is None else came
        # Landing's own rejects share the month in bronze; they never were rows of the month.
        filed = quarantined if spec.layer == "bronze" else filed
        is_balanced = (
            came == read == stored + quarantined
            and stored == rows + superseded
            and filed == quarantined
        )
        by_month[month] = {
            "passed": is_balanced,
            "came_in": came,
            "published": stored - superseded,
            "quarantined": filed,
            "superseded": superseded,
        }
        if not is_balanced:
            wrong.append(
                f"{month:%Y-%m}: {came:,} came in, {stored - superseded:,} published, "
                f"{filed:,} quarantined, {superseded:,} superseded"
            )
        for name, value in zip(total, (came, rows, quarantined, superseded), strict=True):
            total[name] += value
    return Finding(
        not wrong,
        f"Rows of {spec.full_name} are not accounted for in {'; '.join(wrong[:_EXAMPLES])}"
        if wrong
        else "",
        total,
        by_month,
    )


def deliveries_conserved(cursor: Any, spec: TableSpec, months: Sequence[date]) -> Finding:
    """For each file, counted in the table itself: no row of it is missing or there twice.

    Bronze holds every row that was read, and all that was read is in a month or rejected. A typed
    table has, published or quarantined, every row that counts.
    """
    assert spec.source is not None
    is_bronze = spec.layer == "bronze"
    quarantined = sql.SQL(
        "union all select delivery_id, month, 1 from meta.quarantine "
        "where table_name = {table} and month = any({months})"
    ).format(table=sql.Literal(spec.full_name), months=sql.Literal(list(months)))
    cursor.execute(
        sql.SQL(
            "with counted as materialized (select tableoid as leaf, _delivery_id as delivery_id, "
            "count(*) as rows from {table} where {window} group by 1, 2), "
            "stored as (select delivery_id, month, rows from counted join {leaves} using (leaf) "
            "{rejects}), "
            "found as (select delivery_id, month, sum(rows) as rows from stored group by 1, 2), "
            "due as (select m.delivery_id, m.month, m.rows - {gone} as rows "
            "from meta.delivery_months as m join meta.deliveries as d using (delivery_id) "
            "where d.source = %s and d.status = 'loaded' and m.month = any(%s)) "
            "select file, to_char(month, 'YYYY-MM'), coalesce(due.rows, 0), "
            "coalesce(found.rows, 0) "
            "from due full join found using (delivery_id, month) "
            "join meta.deliveries using (delivery_id) "
            "where coalesce(due.rows, 0) <> coalesce(found.rows, 0) "
            "union all select file, 'all months', rows_read - rows_rejected, "
            "(select coalesce(sum(rows), 0) from meta.delivery_months as m "
            "where m.delivery_id = d.delivery_id) from meta.deliveries as d "
            "where source = %s and status = 'loaded' and rows_read - rows_rejected <> "
            "(select coalesce(sum(rows), 0) from meta.delivery_months as m "
            "where m.delivery_id = d.delivery_id) order by 1, 2 limit %s"
        ).format(
            leaves=_leaves(spec),
            table=stored_name(spec),
            window=_window(spec, months),
            rejects=sql.SQL("") if is_bronze else quarantined,
            gone=sql.SQL("0") if is_bronze else sql.SQL("m.rows_superseded"),
        ),
        (spec.source.name, list(months), spec.source.name, _EXAMPLES),
    )
    differing = cursor.fetchall()
    wrong = [
        f"{file} {month}: {due:,} rows should be here, {found:,} are"
        for file, month, due, found in differing
    ]
    return Finding(
        not wrong,
        f"Rows are not accounted for in {'; '.join(wrong)}" if wrong else "",
        months={
            month: {"passed": False}
            for month in months
            if f"{month:%Y-%m}" in {month for _, month, _, _ in differing}
        },
    )


def money_conserved(
    cursor: Any,
    spec: TableSpec,
    column: str,
    upstream: TableSpec,
    source: str,
    months: Sequence[date],
) -> Finding:
    """The monthly sums of `column` equal those of the upstream column, to the last digit."""
    own = _sums(cursor, spec, column, months)
    theirs = _sums(cursor, upstream, source, months)
    wrong = [
        f"{month:%Y-%m}: {own.get(month, 0):,} against {theirs.get(month, 0):,}"
        for month in months
        if own.get(month, 0) != theirs.get(month, 0)
    ]
    return Finding(
        not wrong,
        f"{spec.full_name}.{column} differs from {upstream.full_name}.{source} in "
        f"{'; '.join(wrong[:_EXAMPLES])}"
        if wrong
        else "",
        {"total": float(sum(own.values())), "months": len(months)},
        {
            month: {
                "passed": own.get(month, 0) == theirs.get(month, 0),
                f"{spec.full_name}.{column}": f"{own.get(month, 0):,}",
                f"{upstream.full_name}.{source}": f"{theirs.get(month, 0):,}",
            }
            for month in months
        },
    )


def _sums(cursor: Any, spec: TableSpec, column: str, months: Sequence[date]) -> dict[date, Decimal]:
    what = sql.SQL("sum({})").format(sql.Identifier(column))
    return {m: total for m, total in _by_month(cursor, spec, what, months).items() if total}


def _by_month(
    cursor: Any, spec: TableSpec, what: sql.Composable, months: Sequence[date]
) -> dict[date, Any]:
    """Month -> an aggregate of its published rows.

    By partition: to compute the month of every row takes longer than to read it.
    """
    cursor.execute(
        sql.SQL(
            # Materialized: in a nested loop all rows would be counted once for each leaf.
            "with counted as materialized (select tableoid as leaf, {what} as found from {table} "
            "where {window} group by 1) select month, found from counted join {leaves} using (leaf)"
        ).format(
            what=what,
            table=stored_name(spec),
            window=_window(spec, months),
            leaves=_leaves(spec),
        )
    )
    return dict(cursor.fetchall())


def _leaves(spec: TableSpec) -> sql.Composable:
    """The partition of each published month."""
    return sql.SQL(
        "(select c.oid as leaf, v.month from meta.versions as v join pg_class as c "
        "on c.relname = v.leaf and c.relnamespace = {schema}::regnamespace "
        "where v.table_name = {table} and v.is_current) as leaves"
    ).format(schema=sql.Literal(LEAVES), table=sql.Literal(spec.full_name))


def _window(spec: TableSpec, months: Sequence[date]) -> sql.Composable:
    """Condition for the rows of `months`, as ranges that PostgreSQL can prune partitions by."""
    ranges: list[list[date]] = []
    for month in sorted(months):
        if ranges and ranges[-1][1] == month:
            ranges[-1][1] = next_month(month)
        else:
            ranges.append([month, next_month(month)])
    if not ranges:
        return sql.SQL("false")
    column = sql.Identifier(spec.month_column)
    return sql.SQL("({})").format(
        sql.SQL(" or ").join(
            sql.SQL("({c} >= {start} and {c} < {end})").format(
                c=column, start=sql.Literal(start), end=sql.Literal(end)
            )
            for start, end in ranges
        )
    )
