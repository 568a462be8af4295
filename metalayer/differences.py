"""How two kept versions of a month differ: columns, rows by key, and which columns' values.

One statement joins the two tables in full and counts; only the counts and a few samples come back,
however large the month is. Personal values are masked.

Does not belong here: which versions there are (`history.py`), or printing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from psycopg2 import sql

from metalayer.errors import UsageError, WarehouseError
from metalayer.history import holding, known_table, no_such_month
from metalayer.warehouse.leaves import LEAVES, columns_of, has_key, is_mask_name

MASK = "***"
# Where a row came from is not what it says; it may say the same in another delivery.
_ORIGIN = ("_delivery_id", "_line")
# Whatever a file brought that no contract knows.
_UNTOLD = "_extra"
_exact = functools.partial(json.loads, parse_float=Decimal)


@dataclass(frozen=True)
class Sample:
    """One row that differs: its key, and the values before and after.

    `before` is None for a row that was added, `after` for one that was removed. Of a row that was
    changed both hold the columns whose values differ, and only these.
    """

    key: dict[str, Any]
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True)
class Difference:
    """What a later version of a month has that an earlier one has not, and the other way round.

    Attributes:
        columns_added, columns_removed: name -> type.
        columns_retyped: name -> types before and after.
        rows_changed: rows of equal key in which the value of any common column differs.
        rows_redelivered: rows that say the same, from another delivery or line.
        values_changed: column -> rows in which its value differs, of those that changed.
        added, removed, changed: samples, by key.
    """

    table: str
    month: str
    before: int
    after: int
    rows_before: int
    rows_after: int
    columns_added: dict[str, str]
    columns_removed: dict[str, str]
    columns_retyped: dict[str, tuple[str, str]]
    rows_added: int
    rows_removed: int
    rows_changed: int
    rows_redelivered: int
    values_changed: dict[str, int]
    added: list[Sample]
    removed: list[Sample]
    changed: list[Sample]


@dataclass(frozen=True)
class _Pair:
    """The leaves of two versions, their columns, and the key of the table."""

    table: str
    month: date
    versions: tuple[int, int]
    leaves: tuple[str, str]
    columns: tuple[Mapping[str, str], Mapping[str, str]]
    key: tuple[str, ...]
    shown: frozenset[str]

    @property
    def common(self) -> list[str]:
        """Columns of both whose values are compared."""
        before, after = self.columns
        apart = {*self.key, *_ORIGIN}
        return [name for name in after if name in before and name not in apart]

    @property
    def origin(self) -> list[str]:
        """Columns of both that say where a row came from."""
        return [c for c in _ORIGIN if all(c in held for held in self.columns) and c not in self.key]

    def value(self, side: str, column: str) -> sql.Composable:
        """A column of side `a` or `b`, as a value that compares with that of the other side."""
        before, after = (held[column] for held in self.columns)
        named = sql.SQL("{}.{}").format(sql.Identifier(side), sql.Identifier(column))
        if before == after:
            return named
        return sql.SQL("{}::{}").format(named, sql.SQL(_comparable(before, after)))


def difference(
    connection: Any, table: str, month: date, before: int, after: int, samples: int = 10
) -> Difference:
    """Compare two kept versions of a month.

    Args:
        samples: Rows of each kind to show, at most.

    Raises:
        UsageError: for an unknown table or month, or a version that is not kept, listing them.
        WarehouseError: when the versions have no key in common.
    """
    pair = holding(
        connection,
        lambda cursor: _pair(connection, cursor, table, month, (before, after)),
        lambda found: found.leaves,
    )
    with connection.cursor() as cursor:
        cursor.execute(_statement(pair, samples))
        (rows_before, rows_after, added, removed, changed, moved, by_column, *seen) = (
            cursor.fetchone()
        )
    held_before, held_after = pair.columns
    kinds = [[_sample(pair, *row) for row in _exact(rows or "[]")] for rows in seen]
    return Difference(
        table=table,
        month=f"{month:%Y-%m}",
        before=before,
        after=after,
        rows_before=rows_before,
        rows_after=rows_after,
        columns_added={c: t for c, t in held_after.items() if c not in held_before},
        columns_removed={c: t for c, t in held_before.items() if c not in held_after},
        columns_retyped={
            c: (held_before[c], t)
            for c, t in held_after.items()
            if c in held_before and held_before[c] != t
        },
        rows_added=added,
        rows_removed=removed,
        rows_changed=changed,
        rows_redelivered=moved,
        values_changed={c: n for c, n in zip(pair.common, by_column, strict=True) if n},
        added=kinds[0],
        removed=kinds[1],
        changed=kinds[2],
    )


def _pair(
    connection: Any, cursor: Any, table: str, month: date, versions: tuple[int, int]
) -> _Pair:
    known_table(connection, table)
    cursor.execute(
        "select version, leaf from meta.versions where table_name = %s and month = %s "
        "order by version",
        (table, month),
    )
    kept: dict[int, str] = dict(cursor.fetchall())
    if not kept:
        raise no_such_month(connection, table, month)
    for version in versions:
        if version not in kept:
            raise UsageError(
                f"{table} {month:%Y-%m} has no version {version}",
                f"Kept are {', '.join(map(str, kept))}; `metalayer versions {table} "
                f"{month:%Y-%m}` shows them.",
            )
    cursor.execute(
        "select key_columns, open_columns from meta.tables where table_name = %s", (table,)
    )
    key, shown = (tuple(names.split(",")) for names in cursor.fetchone())
    before, after = (kept[version] for version in versions)
    for version, leaf in zip(versions, (before, after), strict=True):
        if not has_key(cursor, leaf, key):
            raise WarehouseError(
                f"Version {version} of {table} {month:%Y-%m} was built with another key than "
                f"{', '.join(key)}, so its rows cannot be told apart by it",
                "Compare the versions with a query of your own: `metalayer query --as-of`.",
            )
    columns = {
        # Masks follow from the values beside them.
        leaf: {name: kind for name, kind in held.items() if not is_mask_name(name)}
        for leaf, held in columns_of(cursor, [before, after]).items()
    }
    return _Pair(
        table,
        month,
        versions,
        (before, after),
        (columns[before], columns[after]),
        key,
        frozenset(shown) - {_UNTOLD},
    )


def _comparable(before: str, after: str) -> str:
    """A type in which values of two types can be told apart."""
    numbers = ("bigint", "integer", "numeric", "double precision")
    if before.startswith(numbers) and after.startswith(numbers):
        return "numeric"
    days = ("date", "timestamp without time zone")
    return "timestamp" if before in days and after in days else "text"


def _statement(pair: _Pair, samples: int) -> sql.Composed:
    places = [sql.Identifier(f"key_{n}") for n in range(len(pair.key))]
    flags = [sql.Identifier(f"differs_{n}") for n in range(len(pair.common))]
    differ = [_differ(pair, column) for column in pair.common]
    is_changed = _any(flags)
    return sql.SQL(
        """
        with differing as materialized (
            select {key}, a.__there is not null as was, b.__there is not null as "is" {flags}
            from (select *, true as __there from {before}) as a
            full join (select *, true as __there from {after}) as b on {match}
            where a.__there is null or b.__there is null or {differ}
        )
        select
            (select count(*) from {before}),
            (select count(*) from {after}),
            count(*) filter (where not was),
            count(*) filter (where not "is"),
            count(*) filter (where was and "is" and {is_changed}),
            count(*) filter (where was and "is" and not {is_changed}),
            array[{by_column}]::bigint[],
            {added},
            {removed},
            {changed}
        from differing
        """
    ).format(
        key=sql.SQL(", ").join(
            sql.SQL("coalesce({}, {}) as {}").format(pair.value("a", c), pair.value("b", c), place)
            for c, place in zip(pair.key, places, strict=True)
        ),
        flags=sql.SQL("").join(
            sql.SQL(", {} as {}").format(condition, flag)
            for condition, flag in zip(differ, flags, strict=True)
        ),
        before=sql.Identifier(LEAVES, pair.leaves[0]),
        after=sql.Identifier(LEAVES, pair.leaves[1]),
        match=sql.SQL(" and ").join(
            sql.SQL("{} = {}").format(pair.value("a", c), pair.value("b", c)) for c in pair.key
        ),
        differ=_any([*differ, *(_differ(pair, c) for c in pair.origin)]),
        is_changed=is_changed,
        by_column=sql.SQL(", ").join(
            sql.SQL('count(*) filter (where was and "is" and {})').format(flag) for flag in flags
        ),
        added=_picked(pair, places, sql.SQL("not was"), samples),
        removed=_picked(pair, places, sql.SQL('not "is"'), samples),
        changed=_picked(pair, places, sql.SQL('was and "is" and {}').format(is_changed), samples),
    )


def _differ(pair: _Pair, column: str) -> sql.Composable:
    return sql.SQL("({} is distinct from {})").format(
        pair.value("a", column), pair.value("b", column)
    )


def _any(conditions: Sequence[sql.Composable]) -> sql.Composable:
    if not conditions:
        return sql.SQL("false")
    return sql.SQL("({})").format(sql.SQL(" or ").join(conditions))


def _picked(
    pair: _Pair, places: Sequence[sql.Identifier], condition: sql.Composable, samples: int
) -> sql.Composed:
    """The first differing rows of one kind, whole, as JSON text."""
    ordered = sql.SQL(", ").join(places)

    def beside(side: str) -> sql.Composed:
        return sql.SQL(" and ").join(
            sql.SQL("{} = picked.{}").format(pair.value(side, c), place)
            for c, place in zip(pair.key, places, strict=True)
        )

    return sql.SQL(
        "(select jsonb_agg(jsonb_build_array(to_jsonb(a), to_jsonb(b)) order by {by})::text "
        "from (select {places} from differing where {condition} order by {places} limit {samples}) "
        "as picked left join {before} as a on {a} left join {after} as b on {b})"
    ).format(
        by=sql.SQL(", ").join(sql.SQL("picked.{}").format(place) for place in places),
        places=ordered,
        condition=condition,
        samples=sql.Literal(samples),
        before=sql.Identifier(LEAVES, pair.leaves[0]),
        after=sql.Identifier(LEAVES, pair.leaves[1]),
        a=beside("a"),
        b=beside("b"),
    )


def _sample(pair: _Pair, a: dict[str, Any] | None, b: dict[str, Any] | None) -> Sample:
    row = b if b is not None else a
    assert row is not None
    key = {c: _masked(pair, c, row[c]) for c in pair.key}
    if a is not None and b is not None:
        names = [c for c in pair.common if not _is_equal(a[c], b[c])]
    else:
        held = pair.columns[0 if b is None else 1]
        names = [c for c in held if c not in pair.key]
    before, after = (
        None if side is None else {c: _masked(pair, c, side[c]) for c in names} for side in (a, b)
    )
    return Sample(key, before, after)


def _is_equal(before: Any, after: Any) -> bool:
    """Whether two values of JSON are one: 5 and 5.00 are, and the text "5" of a retyped column."""
    return bool(before == after) or str(before) == str(after)


def _masked(pair: _Pair, column: str, value: Any) -> Any:
    """The value, unless the contract calls it personal or does not know the column."""
    return value if value is None or column in pair.shown else MASK
