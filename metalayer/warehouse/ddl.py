"""Tables as their contracts declare them: schemas, partitioned parents, views, the Unknown member.

A table is a partitioned parent `layer.name` whose partitions live in the schema `months`. A
contract with derived columns is stored in `layer.name_stored`, and `layer.name` is a view on it
that adds them. All DDL is generated from `TableSpec`; no column list is typed anywhere.

Does not belong here: filling or swapping partitions (see `stage.py`, `publish.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psycopg2.errors
from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.errors import ContractError

_SCRIPTS = ("meta.sql", "functions.sql")
_INSTALL_LOCK = 0x4D4C0001


def install(connection: Any) -> None:
    """Create or renew MetaLayer's own schema and functions, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
        cursor.execute("set local client_min_messages = warning")
        for script in _SCRIPTS:
            cursor.execute(Path(__file__).with_name(script).read_text(encoding="utf-8"))


def prepare(connection: Any, specs: Sequence[TableSpec]) -> None:
    """Install MetaLayer's schema and bring the tables in line, unless they are so already."""
    wanted = _fingerprint(specs)
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('meta.installed') is not null")
        if cursor.fetchone()[0]:
            cursor.execute("select fingerprint from meta.installed")
            if cursor.fetchone() == (wanted,):
                return
        install(connection)
        ensure_tables(connection, specs)
        _describe_tables(cursor, specs)
        cursor.execute("delete from meta.installed")
        cursor.execute("insert into meta.installed (fingerprint) values (%s)", (wanted,))


def ensure_tables(connection: Any, specs: Iterable[TableSpec]) -> None:
    """Create the tables of `specs`, or bring their columns in line, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
        cursor.execute("set local client_min_messages = warning")
        for spec in specs:
            _ensure_table(cursor, spec)
        for spec in specs:
            _ensure_views(cursor, spec)


def stored_name(spec: TableSpec) -> sql.Identifier:
    """The partitioned parent that holds the rows of `spec`."""
    return sql.Identifier(spec.layer, spec.stored_name)


def identifiers(names: Iterable[str]) -> sql.Composed:
    """`a, b, c`, each quoted by the driver."""
    return sql.SQL(", ").join(sql.Identifier(n) for n in names)


def month_bounds(month: date) -> tuple[date, date]:
    """First day of `month` and of the month after it."""
    return month, next_month(month)


def next_month(month: date) -> date:
    """First day of the month after `month`."""
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def _fingerprint(specs: Iterable[TableSpec]) -> str:
    """What the database's schema is made from: scripts and contracts."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for script in (*(folder / name for name in _SCRIPTS), Path(__file__)):
        digest.update(script.read_bytes())
    for spec in specs:
        facts = (spec.full_name, spec.description, spec.owner, spec.fresh_within)
        digest.update(repr((*facts, spec.columns, spec.views)).encode())
    return digest.hexdigest()


def _describe_tables(cursor: Any, specs: Sequence[TableSpec]) -> None:
    """Put the facts of all tables there are where a reader finds them without the contracts."""
    cursor.execute("delete from meta.tables")
    for position, spec in enumerate(specs):
        cursor.execute(
            "insert into meta.tables (table_name, layer, description, owner, fresh_within, "
            "position) values (%s, %s, %s, %s, %s, %s)",
            (
                spec.full_name,
                spec.layer,
                spec.description,
                spec.owner,
                spec.fresh_within,
                position,
            ),
        )


def _ensure_table(cursor: Any, spec: TableSpec) -> None:
    parent = stored_name(spec)
    cursor.execute(sql.SQL("create schema if not exists {}").format(sql.Identifier(spec.layer)))
    existing = _existing_columns(cursor, parent)
    if not existing:
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.type)) for c in spec.stored
        )
        cursor.execute(
            sql.SQL("create table {} ({}) partition by range ({})").format(
                parent, columns, sql.Identifier(spec.month_column)
            )
        )
        _add_unknown_member(cursor, spec, parent)
    else:
        _align_columns(cursor, spec, parent, existing)
    cursor.execute(sql.SQL("comment on table {} is %s").format(parent), (spec.description,))
    for c in spec.stored:
        cursor.execute(
            sql.SQL("comment on column {}.{} is %s").format(parent, sql.Identifier(c.name)),
            (c.meaning,),
        )


def _existing_columns(cursor: Any, parent: sql.Identifier) -> dict[str, str]:
    cursor.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
        (".".join(parent.strings),),
    )
    return dict(cursor.fetchall())


def _align_columns(
    cursor: Any, spec: TableSpec, parent: sql.Identifier, existing: dict[str, str]
) -> None:
    """Add, drop and retype columns; the months are rebuilt since the contract's version changed."""
    declared = {c.name: _canonical(c.type) for c in spec.stored}
    if declared == existing:
        return
    if (
        spec.month_column not in existing
        or existing[spec.month_column] != declared[spec.month_column]
    ):
        raise ContractError(
            f"contracts/{spec.layer}/{spec.name}.py changes the month column of "
            f"{spec.full_name}, by which its rows are partitioned",
            f"Drop the table ({'.'.join(parent.strings)}) and build it anew",
        )
    views = [sql.Identifier(spec.layer, name) for name in spec.views]
    if any(c.derived for c in spec.columns):
        views.append(_reading_name(spec))
    # A column of another type is a new column: its months are about to be rebuilt anyway.
    old = [name for name, kind in existing.items() if declared.get(name) != kind]
    new = [c for c in spec.stored if existing.get(c.name) != declared[c.name]]
    changes = [
        *(sql.SQL("drop column {}").format(sql.Identifier(name)) for name in old),
        *(sql.SQL("add column {} {}").format(sql.Identifier(c.name), sql.SQL(c.type)) for c in new),
    ]
    try:
        for view in views:
            cursor.execute(sql.SQL("drop view if exists {}").format(view))
        cursor.execute(
            sql.SQL("delete from meta.views where name = any(%s)"),
            ([".".join(view.strings) for view in views],),
        )
        cursor.execute(sql.SQL("alter table {} {}").format(parent, sql.SQL(", ").join(changes)))
    except psycopg2.errors.DependentObjectsStillExist as error:
        raise ContractError(
            f"contracts/{spec.layer}/{spec.name}.py changes columns of {spec.full_name} on which "
            f"something else in the database stands: {error.diag.message_detail}",
            "Drop that first, and create it again afterwards",
        ) from error


def _canonical(sql_type: str) -> str:
    return {"timestamp": "timestamp without time zone"}.get(sql_type, sql_type)


def _add_unknown_member(cursor: Any, spec: TableSpec, parent: sql.Identifier) -> None:
    """Give a dimension the row that facts without a match point at, in a partition of its own."""
    member = spec.unknown_member
    if member is None:
        return
    leaf = sql.Identifier("months", f"{spec.layer}_{spec.name}_unknown")
    day = member[spec.month_column]
    cursor.execute(
        sql.SQL("create table {} partition of {} for values from (minvalue) to (%s)").format(
            leaf, parent
        ),
        (date(day.year + 1, 1, 1),),
    )
    cursor.execute(
        sql.SQL("insert into {} ({}) values ({})").format(
            leaf, identifiers(member), sql.SQL(", ").join([sql.Placeholder()] * len(member))
        ),
        list(member.values()),
    )


def _reading_name(spec: TableSpec) -> sql.Identifier:
    return sql.Identifier(spec.layer, spec.name)


def _ensure_views(cursor: Any, spec: TableSpec) -> None:
    if any(c.derived for c in spec.columns):
        columns = sql.SQL(", ").join(
            sql.SQL("{} as {}").format(sql.SQL(c.derived), sql.Identifier(c.name))
            if c.derived
            else sql.Identifier(c.name)
            for c in spec.columns
        )
        _replace_view(
            cursor,
            _reading_name(spec),
            sql.SQL("select {} from {}").format(columns, stored_name(spec)),
            spec.description,
        )
        for c in spec.columns:
            cursor.execute(
                sql.SQL("comment on column {}.{} is %s").format(
                    _reading_name(spec), sql.Identifier(c.name)
                ),
                (c.meaning,),
            )
    for name, body in spec.views.items():
        _replace_view(
            cursor, sql.Identifier(spec.layer, name), sql.SQL(body), f"A view on {spec.full_name}"
        )


def _replace_view(
    cursor: Any, name: sql.Identifier, body: sql.Composable, description: str
) -> None:
    """Create the view unless it is there as it should be: replacing one makes readers wait."""
    plain = ".".join(name.strings)
    wanted = body.as_string(cursor)
    cursor.execute(
        "select body from meta.views where name = %s and to_regclass(%s) is not null",
        (plain, plain),
    )
    if cursor.fetchone() != (wanted,):
        cursor.execute(sql.SQL("drop view if exists {}").format(name))
        cursor.execute(sql.SQL("create view {} as {}").format(name, body))
        cursor.execute(
            "insert into meta.views (name, body) values (%s, %s) "
            "on conflict (name) do update set body = excluded.body",
            (plain, wanted),
        )
    cursor.execute(sql.SQL("comment on view {} is %s").format(name), (description,))
