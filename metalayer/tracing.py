"""A row walked back to the lines of the landed files it was made from.

Of a gold row, the SELECT of its month is run again with each row carrying what it is made of
(`lineage/carry.py`), and asked for that row alone; so it goes from table to table, down to bronze,
whose rows know their delivery and line. What is personal is masked as in samples. Everything
happens on a connection that can only read. Printing belongs to the command.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from psycopg2 import sql

from metalayer.catalog import Catalog
from metalayer.contracts.contract import TableSpec
from metalayer.errors import UsageError
from metalayer.governance.dictionary import Dictionary, dictionary
from metalayer.inspection import ask
from metalayer.lineage.carry import CARRIED, carrying
from metalayer.lineage.columns import Origin, expressions
from metalayer.lineage.select import RECORD_SEPARATOR, render
from metalayer.warehouse.ddl import as_text, month_bounds, reading_name
from metalayer.warehouse.sampling import MASK, masked_columns

#: So many rows at most are traced at once, and of each table on the way followed further.
MOST_ROWS = 1_000
MOST_FOLLOWED = 10_000
#: So many rows of a table and values of a column are told.
SHOWN = 5
_SHOWN_OF_A_VALUE = 40

#: A row's key as a JSON list.
_Key = str


@dataclass(frozen=True)
class Made:
    """The rows of one table that what is traced was made from.

    Attributes:
        rows: How many there are.
        followed: Of how many it was asked what they are made from.
        lost: How many of these their SELECT does not make any more from what there is now.
        first: Some of them: column -> value as text, masked where personal.
    """

    table: str
    rows: int
    followed: int
    lost: int
    first: list[dict[str, str | None]]


@dataclass(frozen=True)
class Lines:
    """Lines of one landed file on which records begin."""

    file: str
    delivery_id: int
    lines: list[int]


@dataclass(frozen=True)
class ColumnStep:
    """How a column came by its values in the rows that matter.

    Attributes:
        made_by: What the SELECT does, from its output back; empty where it only passes on.
        values: Those of the rows that matter, each once, the first few.
        made_from: The same of the columns that it is made from.
    """

    table: str
    column: str
    made_by: list[str]
    values: list[str | None]
    made_from: list[ColumnStep]


@dataclass(frozen=True)
class Trace:
    """Rows, and all they were made from: tables from the traced one back to bronze, then files."""

    table: str
    rows: int
    steps: list[Made]
    files: list[Lines]
    column: ColumnStep | None = None


@dataclass
class _Found:
    """The rows of one table that matter, by key: their month, shown values, what made them."""

    months: dict[_Key, date]
    values: dict[_Key, dict[str, str | None]]
    made_of: dict[_Key, set[tuple[str, _Key]]] = field(default_factory=dict)
    followed: int = 0
    lost: int = 0


def trace(
    connection: Any, tables: Catalog, table: str, where: str, column: str | None = None
) -> Trace:
    """Walk the rows of `table` that meet `where` back to the landed lines.

    Args:
        connection: One that can only read, see `inspection.reading`.
        where: A condition in SQL, as the user typed it.
        column: Of which to tell how its values came to be.

    Raises:
        UsageError: when there is no such table, column or row, or there are too many rows.
        WarehouseError: with PostgreSQL's message, when the condition is wrong.
    """
    spec = tables.spec(table)
    if column is not None and column not in {c.name for c in spec.columns}:
        columns = ", ".join(c.name for c in spec.columns)
        raise UsageError(f"{table} has no column '{column}'", f"Its columns are {columns}.")
    wanted: dict[str, set[_Key]] = {table: _traced(connection, spec, where)}
    found: dict[str, _Found] = {}
    with connection.cursor() as cursor:
        # Downstream before upstream: when a table's turn comes, all that is made of it is known.
        for name in reversed(list(tables.specs)):
            if name in wanted:
                keys = sorted(wanted[name], key=_order)[:MOST_FOLLOWED]
                found[name] = _walk(cursor, tables, tables.specs[name], keys)
                for sources in found[name].made_of.values():
                    for source, key in sources:
                        wanted.setdefault(source, set()).add(key)
        files = list(_files(cursor, tables, found))
    steps = [
        Made(name, len(wanted[name]), f.followed, f.lost, list(f.values.values())[:SHOWN])
        for name, f in found.items()
    ]
    chain = None
    if column is not None:
        at_first = set(found[table].values)
        chain = _chain(tables, dictionary(tables), found, Origin(table, column), at_first)
    return Trace(table, len(wanted[table]), steps, files, chain)


def _traced(connection: Any, spec: TableSpec, where: str) -> set[_Key]:
    if not where.strip():
        raise UsageError("The condition is empty", 'Give one, as in --where "sales_id = 7".')
    name = as_text(reading_name(spec))
    # The condition stands on lines of its own: a comment in it ends there.
    query = f"select {as_text(_key(spec))} from {name} where (\n{where}\n) limit {MOST_ROWS + 1}"  # noqa: S608 - the user's own SQL, on a connection that only reads
    with ask(connection, query) as answer:
        keys = {_as_key(row[0]) for row in answer.rows}
    if not keys:
        raise UsageError(
            f"No row of {spec.full_name} meets {where}",
            f"`metalayer query` shows what rows of {spec.full_name} there are.",
        )
    if len(keys) > MOST_ROWS:
        raise UsageError(
            f"More than {MOST_ROWS:,} rows of {spec.full_name} meet {where}",
            "Trace fewer; a key names one row.",
        )
    return keys


# --- from a table to those it is made from ------------------------------------------------------


def _walk(cursor: Any, tables: Catalog, spec: TableSpec, keys: Sequence[_Key]) -> _Found:
    """Look at the rows of a table that matter, and find what these are made of."""
    found = _rows(cursor, spec, keys)
    if spec.layer == "bronze":
        found.followed = len(found.values)
    elif spec.has_provenance:
        found.followed = len(found.values)
        bronze = tables.specs[f"bronze.{spec.name}"]
        query = sql.SQL("select {}, {} from {} where {}").format(
            _key(spec), _key(bronze), reading_name(spec), _among(spec)
        )
        cursor.execute(query, (_listed(keys),))
        for key, source in cursor.fetchall():
            found.made_of[_as_key(key)] = {(bronze.full_name, _as_key(source))}
    else:
        _walk_select(cursor, tables, spec, found)
    return found


def _walk_select(cursor: Any, tables: Catalog, spec: TableSpec, found: _Found) -> None:
    select = carrying(tables.selects[spec.full_name], tables.specs)
    by_month: dict[date, list[_Key]] = {}
    for key, month in found.months.items():
        # The contract itself says the values of the Unknown member.
        if key != _unknown(spec):
            by_month.setdefault(month, []).append(key)
            found.followed += 1
    for month, keys in by_month.items():
        text = render(select, spec, tables.specs, *month_bounds(month)).replace("%", "%%")
        cursor.execute(
            sql.SQL("select {}, {} from (\n{}\n) as made where {}").format(
                _key(spec), sql.Identifier(CARRIED), sql.SQL(text), _among(spec)
            ),
            (_listed(keys),),
        )
        for key, carried in cursor.fetchall():
            sources = found.made_of.setdefault(_as_key(key), set())
            for identity in filter(None, set((carried or "").split(RECORD_SEPARATOR))):
                source, *values = json.loads(identity)
                sources.add((source, json.dumps(values)))
    found.lost = found.followed - len(found.made_of)


def _rows(cursor: Any, spec: TableSpec, keys: Sequence[_Key]) -> _Found:
    masked = masked_columns(spec)
    values = [
        sql.SQL("case when {} is not null then {} end").format(
            sql.Identifier(c.name), sql.Literal(MASK)
        )
        if c.name in masked
        else sql.SQL("left({}::text, {})").format(
            sql.Identifier(c.name), sql.Literal(_SHOWN_OF_A_VALUE)
        )
        for c in spec.columns
    ]
    cursor.execute(
        sql.SQL("select {}, date_trunc('month', {})::date::text, {} from {} where {}").format(
            _key(spec),
            sql.Identifier(spec.month_column),
            sql.SQL(", ").join(values),
            reading_name(spec),
            _among(spec),
        ),
        (_listed(keys),),
    )
    rows = [(_as_key(k), date.fromisoformat(m), v) for k, m, *v in cursor.fetchall()]
    rows.sort(key=lambda row: _order(row[0]))
    names = [c.name for c in spec.columns]
    return _Found(
        {key: month for key, month, _ in rows},
        {key: dict(zip(names, shown, strict=True)) for key, _, shown in rows},
    )


def _key(spec: TableSpec) -> sql.Composed:
    return sql.SQL("jsonb_build_array({})::text").format(
        sql.SQL(", ").join(map(sql.Identifier, spec.key))
    )


def _among(spec: TableSpec) -> sql.Composed:
    """A condition with one value: the keys, as a JSON list of lists."""
    types = [spec.column(name).type for name in spec.key]
    return sql.SQL("({}) in (select {} from jsonb_array_elements(%s::jsonb) as listed(k))").format(
        sql.SQL(", ").join(map(sql.Identifier, spec.key)),
        sql.SQL(", ").join(
            sql.SQL("(k ->> {})::{}").format(sql.Literal(n), sql.SQL(t))
            for n, t in enumerate(types)
        ),
    )


def _listed(keys: Iterable[_Key]) -> str:
    return f"[{','.join(keys)}]"


def _as_key(text: str) -> _Key:
    # As json writes it: PostgreSQL may space it another way.
    return json.dumps(json.loads(text))


def _order(key: _Key) -> list[tuple[int, Any]]:
    return [(isinstance(value, str), value) for value in json.loads(key)]


def _unknown(spec: TableSpec) -> _Key | None:
    member: Mapping[str, Any] = spec.unknown_member or {}
    if not member:
        return None
    return json.dumps([member[n] if not hasattr(member[n], "isoformat") else member[n].isoformat()
                       for n in spec.key])  # fmt: skip


# --- files, and columns -------------------------------------------------------------------------


def _files(cursor: Any, tables: Catalog, found: Mapping[str, _Found]) -> Iterator[Lines]:
    lines: dict[int, list[int]] = {}
    for name, rows in found.items():
        if tables.specs[name].layer == "bronze":
            for key in rows.values:
                delivery, line = json.loads(key)
                lines.setdefault(delivery, []).append(line)
    cursor.execute(
        "select delivery_id, file from meta.deliveries where delivery_id = any(%s) order by file",
        (list(lines),),
    )
    for delivery, file in cursor.fetchall():
        yield Lines(file, delivery, sorted(lines[delivery]))


def _chain(
    tables: Catalog,
    entries: Dictionary,
    found: Mapping[str, _Found],
    place: Origin,
    keys: set[_Key],
) -> ColumnStep:
    """How the rows with these keys came by their values in a column."""
    rows = found[place.table] if place.table in found else _Found({}, {})
    sources: dict[str, set[_Key]] = {place.table: keys}
    for key in keys:
        for table, source in rows.made_of.get(key, ()):
            sources.setdefault(table, set()).add(source)
    # The order is the table's, and a table with more rows than are followed lacks some.
    values = (shown[place.column] for key, shown in rows.values.items() if key in keys)
    return ColumnStep(
        place.table,
        place.column,
        _made_by(tables, place),
        list(dict.fromkeys(values))[:SHOWN],
        [
            _chain(tables, entries, found, origin, sources.get(origin.table, set()))
            for origin in entries.made_from.get(place, ())
            if origin.table in tables.specs
        ],
    )


def _made_by(tables: Catalog, place: Origin) -> list[str]:
    derived = tables.specs[place.table].column(place.column).derived
    if derived is not None:
        return [derived]
    if place.table not in tables.selects:
        return []
    return expressions(tables.selects[place.table], tables.specs, place.column)
