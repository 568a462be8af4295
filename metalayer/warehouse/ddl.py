"""What a contract is in SQL: names, the partitioned table, its views, the Unknown member.

A table is a partitioned parent `layer.name` whose partitions live in the schema `months`. A
contract with derived or personal columns is stored in `layer.name_stored`, and `layer.name` is a
view on it that adds the ones and masks the others. All DDL is generated from `TableSpec`; no column
list is typed anywhere.

Does not belong here: what a warehouse has and lacks of it (`changes.py`, `migrate.py`), or filling
and swapping partitions (`stage.py`, `publish.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.governance.masks import is_stored, mask, shown
from metalayer.warehouse.leaves import LEAVES, MASK_MARK


def stored_name(spec: TableSpec) -> sql.Identifier:
    """The partitioned parent that holds the rows of `spec`."""
    return sql.Identifier(spec.layer, spec.stored_name)


def reading_name(spec: TableSpec) -> sql.Identifier:
    """What readers of `spec` select from: the table, or the view that derives and masks columns."""
    return sql.Identifier(spec.layer, spec.name)


def identifiers(names: Iterable[str]) -> sql.Composed:
    """`a, b, c`, each quoted by the driver."""
    return sql.SQL(", ").join(sql.Identifier(n) for n in names)


def month_bounds(month: date) -> tuple[date, date]:
    """First day of `month` and of the month after it."""
    return month, next_month(month)


def next_month(month: date) -> date:
    """First day of the month after `month`."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


@dataclass(frozen=True)
class StoredMask:
    """A column beside a personal one that holds what most readers see of it.

    Whoever writes a month fills it, and where it is empty the mask is computed on reading: months
    of an earlier release need not be written anew.

    Attributes:
        name: "email~1f0c2b7a". No column of a contract can have it, and a mask of another making
            has another.
    """

    name: str
    of: ColumnSpec

    @property
    def type(self) -> str:
        """PostgreSQL type, that of the column."""
        return self.of.type

    @property
    def value(self) -> sql.Composable:
        """The mask of the column in the row at hand."""
        return mask(self.of, sql.Identifier(self.of.name))


_MOST_OF_A_NAME = 50


def is_mask_of(name: str, column: ColumnSpec) -> bool:
    """Whether a column of a stored table is a mask of another, of this making or an earlier one."""
    return name.rpartition(MASK_MARK)[0] == column.name[:_MOST_OF_A_NAME]


@cache
def stored_masks(spec: TableSpec) -> Mapping[str, StoredMask]:
    """Column -> its mask, of the columns whose masks are stored."""
    found = {}
    for c in spec.columns:
        if is_stored(spec, c):
            made = as_text(mask(c, sql.Identifier(c.name))) + c.type
            digest = hashlib.sha256(made.encode()).hexdigest()[:8]
            found[c.name] = StoredMask(f"{c.name[:_MOST_OF_A_NAME]}{MASK_MARK}{digest}", c)
    return found


def create_table(spec: TableSpec) -> sql.Composed:
    """The partitioned parent, with no partition yet."""
    stored: list[ColumnSpec | StoredMask] = [*spec.stored, *stored_masks(spec).values()]
    columns = sql.SQL(",\n    ").join(
        sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.type)) for c in stored
    )
    return sql.SQL("create table {} (\n    {}\n) partition by range ({})").format(
        stored_name(spec), columns, sql.Identifier(spec.month_column)
    )


def describe(spec: TableSpec) -> str:
    """What the table's comment says: its meaning, then grain, owner and when a month is due."""
    due = f"A month is due on {spec.due}." if spec.due else "No month needs to come."
    facts = f"Grain: {', '.join(spec.key)}. Owner: {spec.owner}. {due}"
    return f"{spec.description}\n\n{facts}"


@dataclass(frozen=True)
class View:
    """A view beside a table: its SELECT, its comment, and those of its columns.

    Attributes:
        types: Of a view in a table's place, the columns in order, each with its type.
    """

    body: str
    description: str
    columns: Mapping[str, str]
    types: Mapping[str, str] = field(default_factory=dict)


def views(spec: TableSpec, evolved: Sequence[str] = ()) -> dict[str, View]:
    """Full name -> view, in the order in which they can be created.

    Args:
        evolved: Columns that files brought and no contract declares; they are text.
    """
    found = {}
    if spec.stored_name != spec.name:
        declared = {c.name for c in spec.columns}
        # What no contract knows may be anything, so it is masked as such.
        columns = spec.columns + tuple(
            ColumnSpec(name, "text", None, "", nullable=True, pii="free_text")
            for name in evolved
            if name not in declared
        )
        read = sql.SQL(", ").join(map(partial(_read, spec), columns))
        body = as_text(sql.SQL("select {} from {}").format(read, stored_name(spec)))
        meanings = {c.name: c.meaning for c in spec.columns}
        found[spec.full_name] = View(
            body, describe(spec), meanings, {c.name: c.type for c in columns}
        )
    for name, body in spec.views.items():
        found[f"{spec.layer}.{name}"] = View(body, f"A view on {spec.full_name}", {})
    return found


def _read(spec: TableSpec, column: ColumnSpec) -> sql.Composable:
    """A column of the view: as stored or derived, masked for those who may not see it."""
    name = sql.Identifier(column.name)
    value = sql.SQL(f"({column.derived})") if column.derived else name
    masked = stored_masks(spec).get(column.name)
    read = shown(spec, column, value, sql.Identifier(masked.name) if masked else None)
    return name if read is name else sql.SQL("{} as {}").format(read, name)


def unknown_leaf(spec: TableSpec) -> str:
    """Name of the partition that holds the row which facts without a match point at."""
    return f"{spec.layer}_{spec.name}_unknown"


def create_unknown_leaf(spec: TableSpec) -> sql.Composed:
    """A partition for the Unknown member, below every month."""
    assert spec.unknown_member is not None
    day = spec.unknown_member[spec.month_column]
    return sql.SQL("create table {} partition of {} for values from (minvalue) to ({})").format(
        sql.Identifier(LEAVES, unknown_leaf(spec)),
        stored_name(spec),
        sql.Literal(date(day.year + 1, 1, 1)),
    )


def insert_unknown_member(spec: TableSpec) -> sql.Composed:
    """The Unknown member's row."""
    member = spec.unknown_member
    assert member is not None
    return sql.SQL("insert into {} ({}) values ({})").format(
        sql.Identifier(LEAVES, unknown_leaf(spec)),
        identifiers(member),
        sql.SQL(", ").join(map(sql.Literal, member.values())),
    )


def align_leaf(cursor: Any, spec: TableSpec, leaf: str) -> None:
    """Add to a stand-alone leaf the columns that its parent has and it lacks, so that it attaches.

    The parent may have got one since the leaf was staged, or since an earlier version was kept.
    """
    cursor.execute(
        "select p.attname, format_type(p.atttypid, p.atttypmod) from pg_attribute as p "
        "where p.attrelid = to_regclass(%s) and p.attnum > 0 and not p.attisdropped "
        "and not exists (select from pg_attribute as l where l.attrelid = to_regclass(%s) "
        "and l.attname = p.attname and l.attnum > 0 and not l.attisdropped) order by p.attnum",
        (as_text(stored_name(spec)), as_text(sql.Identifier(LEAVES, leaf))),
    )
    missing = [
        sql.SQL("add column {} {}").format(sql.Identifier(name), sql.SQL(kind))
        for name, kind in cursor.fetchall()
    ]
    if missing:
        cursor.execute(
            sql.SQL("alter table {} {}").format(
                sql.Identifier(LEAVES, leaf), sql.SQL(", ").join(missing)
            )
        )


def as_text(statement: sql.Composable) -> str:
    """A statement as the text that is shown and run; no connection is needed to read it.

    Strings are written as the SQL standard has them, which is what
    `standard_conforming_strings` stands for.
    """
    match statement:
        case sql.Composed():
            return "".join(map(as_text, statement.seq))
        case sql.Identifier():
            return ".".join('"' + part.replace('"', '""') + '"' for part in statement.strings)
        case sql.Literal():
            return _literal(statement.wrapped)
        case sql.SQL():
            return str(statement.string)
    raise TypeError(f"{statement!r} has no text")


def _literal(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | Decimal():
            return str(value)
        case timedelta():
            return f"interval '{value.total_seconds():.0f} seconds'"
        case date() | datetime():
            return f"'{value.isoformat()}'"
        case str():
            return "'" + value.replace("'", "''") + "'"
    raise TypeError(f"{value!r} has no text in SQL")
