"""Months of a table whose rows follow a column of its inputs: only the rows that changed.

Where a row depends only on the rows of its inputs that have the same value in one column, a
customer's say, and the change of an input touched a few customers, the others' rows of a month are
as they were. They are taken over, and only the few are computed anew. A month in which even these
come out as they were is not written at all.

It is known whose rows changed because a publish notes it (`meta.changed_keys`), and from which
version of each month of its inputs a month was made (`meta.built_from`). Where either is missing,
or a change touches too many, the month is built whole.

Does not belong here: which months are stale (`state.py`), or what a row is (the SELECT).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import identifiers, next_month, stored_masks, stored_name
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.state import State

if TYPE_CHECKING:
    from metalayer.warehouse.build import TableJob

#: Past so many values a month is built whole, and past so many rows nobody looks for them.
MOST_KEYS = 1000
MOST_ROWS = 500_000


def changed_keys(cursor: Any, job: TableJob, month: date, leaf: str) -> list[str] | None:
    """Values of the followed column in rows that a staged leaf adds, drops or changes.

    None where the month was never published, or where there is too much to tell.
    """
    if job.followed is None:
        return None
    cursor.execute(
        "select leaf, rows from meta.versions where table_name = %s and month = %s and is_current",
        (job.spec.full_name, month),
    )
    found = cursor.fetchone()
    if found is None or found[1] > MOST_ROWS:
        return None
    columns = identifiers(c.name for c in job.spec.stored)
    before, after = (
        sql.SQL("select {} from {}").format(columns, sql.Identifier(LEAVES, name))
        for name in (found[0], leaf)
    )
    cursor.execute(
        sql.SQL(
            "select distinct {key}::text from (({before} except all {after}) union all "
            "({after} except all {before})) as changed limit {most}"
        ).format(
            key=sql.Identifier(job.followed),
            before=before,
            after=after,
            most=sql.Literal(MOST_KEYS + 1),
        )
    )
    keys = [key for (key,) in cursor.fetchall()]
    return keys if len(keys) <= MOST_KEYS and None not in keys else None


def note_changed_keys(
    cursor: Any, job: TableJob, month: date, version: int, keys: Sequence[str] | None
) -> None:
    """Keep whose rows a new version changed, for the tables that follow this one."""
    if keys is not None:
        cursor.execute(
            "insert into meta.changed_keys (table_name, month, version, keys) "
            "values (%s, %s, %s, %s)",
            (job.spec.full_name, month, version, list(keys)),
        )


def note_inputs(cursor: Any, job: TableJob, state: State, months: Sequence[date]) -> None:
    """Keep from which versions of its inputs the published version of each month was made."""
    if job.spec.rows_follow is None:
        return
    for month in months:
        cursor.execute(
            "insert into meta.built_from (table_name, month, version, inputs) "
            "select table_name, month, version, %s from meta.versions "
            "where table_name = %s and month = %s and is_current "
            "on conflict (table_name, month, version) do update set inputs = excluded.inputs",
            (json.dumps(_input_versions(job, state, month)), job.spec.full_name, month),
        )


def keys_to_rebuild(
    cursor: Any, job: TableJob, state: State, months: Sequence[date]
) -> list[str] | None:
    """Whose rows of `months` may have changed; None where that cannot be told, or are too many."""
    table = job.spec.full_name
    published = state.published.get(table, {})
    if job.spec.rows_follow is None or not all(
        month in published
        and published[month].code_version == job.code_version
        and published[month].restores is None
        # What is published lacks the quarantined rows, which may be anybody's.
        and not published[month].rows_quarantined
        for month in months
    ):
        return None
    cursor.execute(
        "select b.month, b.inputs from meta.built_from as b join meta.versions as v "
        "using (table_name, month, version) where v.is_current and table_name = %s "
        "and month = any(%s)",
        (table, list(months)),
    )
    made_from = dict(cursor.fetchall())
    crossed: set[tuple[str, str, int]] = set()
    for month in months:
        now = _input_versions(job, state, month)
        then = made_from.get(month, {})
        for name, versions in now.items():
            if then.get(name, {}).keys() != versions.keys():
                return None
            for each, version in versions.items():
                crossed.update((name, each, n) for n in range(then[name][each] + 1, version + 1))
    cursor.execute(
        "select keys from meta.changed_keys join unnest(%s::text[], %s::date[], %s::int[]) "
        "as c (table_name, month, version) using (table_name, month, version)",
        tuple([crossing[n] for crossing in crossed] for n in range(3)),
    )
    noted = cursor.fetchall()
    keys = sorted({key for (each,) in noted for key in each})
    return keys if len(noted) == len(crossed) and len(keys) <= MOST_KEYS else None


def compute(cursor: Any, job: TableJob, months: Sequence[date], keys: Sequence[str]) -> list[date]:
    """Compute the rows of `keys` anew; the months in which any came out otherwise."""
    spec = job.spec
    if not keys:
        return []
    assert job.select_only is not None
    start, end = months[0], next_month(months[-1])
    cursor.execute("drop table if exists pg_temp.computed")
    cursor.execute(
        sql.SQL("create temporary table computed on commit drop as {}").format(
            sql.SQL(job.select_only(start, end, keys))
        )
    )
    columns = identifiers(c.name for c in spec.stored)
    stored = sql.SQL("select {} from {} where {} and {}").format(
        columns, stored_name(spec), _between(spec, start, end), _is_one_of(job, keys)
    )
    computed = sql.SQL("select {} from pg_temp.computed").format(columns)
    cursor.execute(
        sql.SQL(
            "select distinct date_trunc('month', {month})::date from (({stored} except all "
            "{computed}) union all ({computed} except all {stored})) as changed order by 1"
        ).format(month=sql.Identifier(spec.month_column), stored=stored, computed=computed)
    )
    return [month for (month,) in cursor.fetchall()]


def fill_from_computed(cursor: Any, stage: Stage, *, job: TableJob, keys: Sequence[str]) -> None:
    """Write the stage's months: the published rows, those of `keys` as they were computed."""
    spec = job.spec
    masks = stored_masks(spec).values()
    names = [c.name for c in spec.stored]
    rows = list(map(sql.Identifier, names))
    computed = sql.SQL(", ").join([*rows, *(m.value for m in masks)])
    # A month of an earlier release has none.
    kept = [sql.SQL("coalesce({}, {})").format(sql.Identifier(m.name), m.value) for m in masks]
    months = sql.SQL(" or ").join(
        _between(spec, month, next_month(month)) for month in stage.leaves
    )
    cursor.execute(
        sql.SQL(
            "insert into {stage} ({columns}) select {kept} from {stored} "
            "where ({months}) and ({changed}) is not true "
            "union all select {computed} from pg_temp.computed where {months}"
        ).format(
            stage=stage.parent,
            columns=identifiers([*names, *(m.name for m in masks)]),
            kept=sql.SQL(", ").join([*rows, *kept]),
            computed=computed,
            stored=stored_name(spec),
            months=months,
            changed=_is_one_of(job, keys),
        )
    )


def _input_versions(job: TableJob, state: State, month: date) -> dict[str, dict[str, int]]:
    """Input -> month, as text -> its published version, of the months that `month` is made from."""
    return {
        name: {
            f"{each}": published.version
            for each, published in state.published.get(name, {}).items()
            if reach.covers(each, month)
        }
        for name, reach in job.reaches.items()
    }


def _between(spec: TableSpec, start: date, end: date) -> sql.Composable:
    return sql.SQL("({c} >= {start} and {c} < {end})").format(
        c=sql.Identifier(spec.month_column), start=sql.Literal(start), end=sql.Literal(end)
    )


def _is_one_of(job: TableJob, keys: Sequence[str]) -> sql.Composable:
    assert job.spec.rows_follow is not None
    column = job.spec.column(job.spec.rows_follow)
    return sql.SQL("{} = any({}::{}[])").format(
        sql.Identifier(column.name), sql.Literal(list(keys)), sql.SQL(column.type)
    )
