"""Columns that files brought and no contract declares, as columns of the bronze table.

Only of a source whose contract says `on_new_column = "evolve"`. Such a column is nullable text; a
month that was built before it came has NULL in it until it is built again. It stays when the file
that brought it goes, and when a contract declares it, it becomes the contract's as it is.

Does not belong here: what other sources do with such columns (they keep them in `_extra`), or
reading files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import polars as pl
from psycopg2 import sql

from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.warehouse.acts import record
from metalayer.warehouse.altering import beside_readers
from metalayer.warehouse.ddl import as_text, reading_name, stored_name, views

#: More of them are kept in `_extra`: it takes a broken export to bring so many.
MOST_COLUMNS = 200
_LONGEST_NAME_BYTES = 63
# PostgreSQL's own columns, which no table may name one of its own after.
_TAKEN = {"tableoid", "ctid", "xmin", "xmax", "cmin", "cmax"}


def column_name(header: str) -> str:
    """The column that a header names, by the rule that matches headers to a contract."""
    return re.sub(r"[\s-]+", "_", header.lower())


def columns_of(extra_columns: Iterable[str], declared: Iterable[str]) -> dict[str, str]:
    """Column -> header, of those headers of one file that can become columns of a bronze table.

    Of two headers that name the same column the first counts. What would be named like a column
    that the table is declared with stays in `_extra`, as does a name that begins with `_`, as
    MetaLayer's own do, and one that PostgreSQL cannot have.
    """
    taken = _TAKEN.union(declared)
    found: dict[str, str] = {}
    for header in extra_columns:
        name = column_name(header)
        if (
            name not in taken
            and not name.startswith("_")
            and name.isprintable()
            and len(name.encode()) <= _LONGEST_NAME_BYTES
        ):
            found.setdefault(name, header)
    return found


def evolved_columns(cursor: Any, spec: TableSpec) -> tuple[str, ...]:
    """The columns that a bronze table has beyond its contract, oldest first."""
    if spec.layer != "bronze":
        return ()
    cursor.execute(
        "select column_name from meta.evolved_columns where table_name = %s order by position",
        (spec.full_name,),
    )
    declared = {c.name for c in spec.columns}
    return tuple(name for (name,) in cursor.fetchall() if name not in declared)


@lru_cache(maxsize=256)
def with_evolved(spec: TableSpec, names: tuple[str, ...]) -> TableSpec:
    """A bronze table with these columns behind those of its contract; the same each time."""
    if not names:
        return spec
    columns = tuple(
        ColumnSpec(name, "text", pl.String, _meaning(name), nullable=True) for name in names
    )
    place = [c.name for c in spec.columns].index("_extra")
    return replace(spec, columns=spec.columns[:place] + columns + spec.columns[place:])


def evolve(connection: Any, spec: TableSpec) -> TableSpec:
    """Give a bronze table the columns that its loaded deliveries brought, and commit.

    Returns:
        The table as it is to be built: with them, or as it came where it is none of this.

    Raises:
        WarehouseError: when the table's readers do not let it have them.
    """
    if spec.layer != "bronze" or spec.source is None or spec.source.on_new_column != "evolve":
        return spec
    with connection.cursor() as cursor:
        present = evolved_columns(cursor, spec)
        brought = _brought(cursor, spec)
        wanted = [name for name in brought if name not in present]
        wanted = wanted[: max(0, MOST_COLUMNS - len(present))]

        def add() -> None:
            # Another window of the same build may have added them while this one waited.
            there = evolved_columns(cursor, spec)
            missing = {name: brought[name] for name in wanted if name not in there}
            if missing:
                _add(cursor, spec, missing)

        if wanted:
            beside_readers(
                cursor,
                add,
                f"{spec.full_name} cannot be given the new column{'s' if wanted[1:] else ''} "
                f"{', '.join(wanted)}",
            )
            present = evolved_columns(cursor, spec)
    connection.commit()
    return with_evolved(spec, present)


def _brought(cursor: Any, spec: TableSpec) -> dict[str, str]:
    """Column -> the first of the loaded files that has it."""
    assert spec.source is not None
    cursor.execute(
        "select file, extra_columns from meta.deliveries where source = %s and status = 'loaded' "
        "and extra_columns <> '{}' order by delivery_id",
        (spec.source.name,),
    )
    found: dict[str, str] = {}
    for file, extra in cursor.fetchall():
        for name in columns_of(extra, [c.name for c in spec.columns]):
            found.setdefault(name, file)
    return found


def _add(cursor: Any, spec: TableSpec, brought: Mapping[str, str]) -> None:
    parent = stored_name(spec)
    adding = sql.SQL(", ").join(
        sql.SQL("add column if not exists {} text").format(sql.Identifier(name)) for name in brought
    )
    parts = [as_text(sql.SQL("alter table {} {}").format(parent, adding))]
    for name, file in brought.items():
        column = sql.Identifier(*parent.strings, name)
        parts.append(
            as_text(
                sql.SQL("comment on column {} is {}").format(column, sql.Literal(_meaning(name)))
            )
        )
        parts.append(
            as_text(
                sql.SQL(
                    "insert into meta.evolved_columns (table_name, column_name, file) "
                    "values ({}, {}, {}) on conflict do nothing"
                ).format(*map(sql.Literal, (spec.full_name, name, file)))
            )
        )
    cursor.execute("; ".join(parts))
    record(cursor, "migrate", spec.full_name, {"added": sorted(brought)})
    view = views(spec, evolved_columns(cursor, spec)).get(spec.full_name)
    if view is not None:
        reading = sql.SQL(view.body)
        cursor.execute(
            sql.SQL("create or replace view {} as {}").format(reading_name(spec), reading)
        )
        cursor.execute(
            "update meta.views set body = %s where name = %s", (view.body, spec.full_name)
        )


def _meaning(name: str) -> str:
    return f"As delivered: column {name}, which no contract declares"


def headers_of(
    cursor: Any, declared: Sequence[str], names: Sequence[str], deliveries: Sequence[int]
) -> dict[int, dict[str, str]]:
    """Delivery -> column -> the header under which the `_extra` of its rows has the column.

    Args:
        declared: The table's columns without those that evolved.
        names: Those that evolved.
    """
    cursor.execute(
        "select delivery_id, extra_columns from meta.deliveries where delivery_id = any(%s)",
        (list(deliveries),),
    )
    return {
        delivery: {n: h for n, h in columns_of(extra, declared).items() if n in names}
        for delivery, extra in cursor.fetchall()
    }
