"""Encrypted columns sealed with another key, month by month, while readers go on.

    a new key --> every version of every month, each in one transaction --> the quarantine
              --> what months are known by --> the new key is the one that seals

Builds and landings wait meanwhile; readers see a month before or after, and open both. Killed, it
is finished by asking for it again, or by whoever opens the warehouse next. What is still in plain,
since a contract did not encrypt it before, is sealed as well.

Does not belong here: keys and ciphertext (`sealing.py`), who holds off whom (`warehouse/keys.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import duckdb
import psycopg2.errors
from psycopg2 import sql
from psycopg2.extras import execute_values

from metalayer.assets.resources import Warehouse
from metalayer.catalog import Catalog
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.contracts.sealed import SEALED
from metalayer.errors import UsageError
from metalayer.governance.masks import is_personal
from metalayer.governance.sealing import Sealer, known_keys
from metalayer.jobs import table_job
from metalayer.landing.copy import copy_from_duckdb, copy_to_duckdb
from metalayer.landing.records import open_with_grammar
from metalayer.landing.seal import anew_sql, let_seal
from metalayer.settings import Settings
from metalayer.warehouse.acts import record
from metalayer.warehouse.ddl import is_mask_of, stored_masks
from metalayer.warehouse.evolve import evolved_columns, with_evolved
from metalayer.warehouse.keys import (
    CURRENT,
    NEXT,
    add_key,
    change_keys,
    ensure_key,
    key_of,
    key_states,
)
from metalayer.warehouse.leaves import LEAVES, columns_of, is_mask_name, some_values
from metalayer.warehouse.locks import unlock_all
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.state import State, load_state
from metalayer.warehouse.survey import fingerprints

Tell = Callable[[str], None]


@dataclass
class Rotation:
    """What a change of keys did.

    Attributes:
        key_id: The key that seals from now on.
        months: Table -> versions of months whose values were sealed anew.
        quarantined: Quarantined rows that were.
    """

    key_id: str
    months: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0


def rotate(warehouse: Warehouse, tables: Catalog, told: Tell = lambda _: None) -> Rotation:
    """Seal everything with a new key: the newest of the environment, or one that is made.

    Raises:
        UsageError: when nothing is encrypted, or the environment has no newer key.
        ConfigurationError: when a key that values are sealed with is not at hand.
    """
    with _alone(warehouse) as (connection, cursor):
        states = key_states(cursor)
        if not states and not any(spec.sealed for spec in tables.specs.values()):
            raise UsageError(
                "No contract encrypts a column, and none did",
                "Give one encrypted=True, as docs/encryption.md shows.",
            )
        ensure_key(cursor, warehouse.settings)
        if NEXT not in states:
            _begin(cursor, warehouse.settings)
        connection.commit()
        return _finish(warehouse, connection, cursor, tables, told)


def finish_interrupted(warehouse: Warehouse, tables: Catalog) -> None:
    """Finish a change of keys that somebody was killed at; nothing where nobody was."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        if NEXT not in key_states(cursor):
            return
    with _alone(warehouse) as (connection, cursor):
        if NEXT in key_states(cursor):
            _finish(warehouse, connection, cursor, tables, lambda _: None)


@contextlib.contextmanager
def _alone(warehouse: Warehouse) -> Iterator[tuple[Any, Any]]:
    """A session beside which nobody builds, lands or changes keys."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        try:
            change_keys(cursor)
            connection.commit()
            yield connection, cursor
        finally:
            if not connection.closed:
                connection.rollback()
                unlock_all(cursor)
                connection.commit()


def _begin(cursor: Any, settings: Settings) -> None:
    """Note the key that is to seal from now on."""
    keys = known_keys(settings)
    current = key_states(cursor)[CURRENT]
    if settings.encryption_key is None:
        new = keys[0] if keys[0].id != current else add_key(settings)
    elif keys[0].id == current:
        raise UsageError(
            "METALAYER_ENCRYPTION_KEY has no newer key than the one that seals now",
            "Put a new one before it, with a comma between; `metalayer keys new` prints one.",
        )
    else:
        new = keys[0]
    cursor.execute(
        "insert into meta.keys (key_id, state) values (%s, %s) "
        "on conflict (key_id) do update set state = excluded.state, since = now()",
        (new.id, NEXT),
    )


def _finish(
    warehouse: Warehouse, connection: Any, cursor: Any, tables: Catalog, told: Tell
) -> Rotation:
    states, keys = key_states(cursor), known_keys(warehouse.settings)
    key_of(keys, states[CURRENT])
    sealer = Sealer(key_of(keys, states[NEXT]), keys)
    done = Rotation(sealer.key_id)
    # Columns that were encrypted once are told by their values.
    sealed = [spec for spec in tables.specs.values() if spec.sealed or is_personal(spec)]
    with open_with_grammar({}) as memory:
        let_seal(memory, sealer)
        _let_seal_rejects(memory, sealer, sealed)
        for spec in sealed:
            leaves = _leaves(cursor, spec)
            for number, leaf in enumerate(leaves, start=1):
                told(f"{spec.full_name}, {number} of {len(leaves)}")
                changed = _seal_leaf(cursor, memory, spec, leaf)
                connection.commit()
                if changed:
                    done.months[spec.full_name] = done.months.get(spec.full_name, 0) + 1
        told("the quarantine")
        for table in ("quarantine", "past_quarantine"):
            done.quarantined += _seal_quarantine(cursor, memory, table, sealed)
    connection.commit()
    told("what months are known by")
    _know_anew(cursor, warehouse.settings, tables, sealed)
    cursor.execute("update meta.keys set state = 'earlier' where state = %s", (CURRENT,))
    cursor.execute("update meta.keys set state = %s where state = %s", (CURRENT, NEXT))
    record(cursor, "rotate_keys", f"key {sealer.key_id}", {"months": done.months})
    connection.commit()
    told("letting go of what was there before")
    _vacuum(connection, [leaf for spec in sealed for leaf in _leaves(cursor, spec)])
    return done


def _leaves(cursor: Any, spec: TableSpec) -> list[str]:
    """The rows of every version of the table's months, and of its Unknown member."""
    cursor.execute(
        "select distinct leaf from meta.versions where table_name = %s order by leaf",
        (spec.full_name,),
    )
    return [leaf for (leaf,) in cursor.fetchall()]


# --- months -------------------------------------------------------------------------------------


def _seal_leaf(cursor: Any, memory: duckdb.DuckDBPyConnection, spec: TableSpec, leaf: str) -> bool:
    """Seal the values of one version of a month anew; whether any were not."""
    there = columns_of(cursor, [leaf])[leaf]
    table = sql.Identifier(LEAVES, leaf)
    for column in spec.sealed:
        # A version from before the column was encrypted; nobody reads it under another name.
        if there.get(column.name, "text") != "text":
            name = sql.Identifier(column.name)
            cursor.execute(
                sql.SQL("alter table {} alter column {c} type text using {c}::text").format(
                    table, c=name
                )
            )
    columns = [c for c in spec.sealed if c.name in there]
    columns += [
        c
        for c in spec.stored
        if c.sealed_type is None
        and there.get(c.name) == "text"
        and c.pii is not None
        and _was_sealed(cursor, leaf, c.name)
    ]
    extra = [c.name for c in spec.sealed] if "_extra" in there else []
    is_changed = bool(extra) and _seal_extra(cursor, memory, table, extra)
    if not columns:
        return is_changed
    _make_anew(cursor, "name text, old text, new text")
    for column in columns:
        memory.execute("create or replace temp table old (v varchar)")
        copy_to_duckdb(
            cursor,
            memory,
            sql.SQL("select distinct {c} from {t} where {c} is not null").format(
                c=sql.Identifier(column.name), t=table
            ),
            "old",
        )
        anew = anew_sql(column, "v")
        if column.sealed_type is None:
            anew = "sealed_anew(v)"  # what is in plain there stays so
        copy_from_duckdb(
            memory,
            f"select '{column.name}', v, {anew} from old where {anew} <> v",  # noqa: S608
            cursor,
            "copy anew from stdin (format csv)",
        )
    cursor.execute("select exists (select from anew)")
    if cursor.fetchone() == (False,):
        return is_changed
    cursor.execute("analyze anew")
    lasting = {mask.name for mask in stored_masks(spec).values() if mask.of.sealed_type is not None}
    masks = [
        name
        for name in there
        if is_mask_name(name)
        and name not in lasting
        and any(is_mask_of(name, column) for column in columns)
    ]
    cursor.execute(_update(table, columns, masks))
    return True


def _make_anew(cursor: Any, columns: str) -> None:
    """A table for what is sealed anew, of whose values PostgreSQL keeps no statistics."""
    cursor.execute("drop table if exists anew")
    cursor.execute(f"create temporary table anew ({columns}) on commit drop")
    names = [column.split()[0] for column in columns.split(", ")]
    cursor.execute(
        f"alter table anew {', '.join(f'alter column {name} set statistics 0' for name in names)}"
    )


def _was_sealed(cursor: Any, leaf: str, column: str) -> bool:
    """Whether a column that is not encrypted any more was when these rows were made."""
    return any(re.fullmatch(SEALED, value) for value in some_values(cursor, leaf, column))


def _seal_extra(
    cursor: Any, memory: duckdb.DuckDBPyConnection, table: sql.Identifier, names: Sequence[str]
) -> bool:
    """Seal what came in a column before its contract knew it, and has it encrypted now."""
    wanted = sql.SQL("_extra ?| {}").format(sql.Literal(list(names)))
    memory.execute("create or replace temp table old (v varchar)")
    query = sql.SQL("select distinct _extra::text from {} where {}").format(table, wanted)
    copy_to_duckdb(cursor, memory, query, "old")
    _make_anew(cursor, "old text, new text")
    changed = copy_from_duckdb(
        memory,
        "select v, new from (select v, extra_anew(v) as new from old) where new <> v",
        cursor,
        "copy anew from stdin (format csv)",
    )
    if changed:
        cursor.execute(
            sql.SQL(
                "update {} as t set _extra = a.new::jsonb from anew as a "
                "where t._extra::text = a.old"
            ).format(table)
        )
    return bool(changed)


def _update(
    table: sql.Identifier, columns: Sequence[ColumnSpec], masks: Sequence[str]
) -> sql.Composable:
    """One pass over the rows, for all of their encrypted columns.

    Args:
        masks: Columns to empty, whose masks are then computed on reading: those of the columns, but
            for masks of a hint, which does not change.
    """
    numbered = [(sql.Identifier(f"a{n}"), c) for n, c in enumerate(columns)]
    return sql.SQL(
        "update {t} as t set {values} from {t} as s {joins} where s.ctid = t.ctid and ({any})"
    ).format(
        t=table,
        values=sql.SQL(", ").join(
            [
                *(
                    sql.SQL("{c} = coalesce({a}.new, s.{c})").format(c=sql.Identifier(c.name), a=a)
                    for a, c in numbered
                ),
                *(sql.SQL("{} = null").format(sql.Identifier(name)) for name in masks),
            ]
        ),
        joins=sql.SQL(" ").join(
            sql.SQL("left join anew as {a} on {a}.name = {n} and {a}.old = s.{c}").format(
                a=a, n=sql.Literal(c.name), c=sql.Identifier(c.name)
            )
            for a, c in numbered
        ),
        any=sql.SQL(" or ").join(sql.SQL("{}.old is not null").format(a) for a, _ in numbered),
    )


def _seal_quarantine(
    cursor: Any, memory: duckdb.DuckDBPyConnection, table: str, sealed: Sequence[TableSpec]
) -> int:
    """Seal what quarantined rows have of encrypted columns anew; how many rows that changed."""
    memory.execute(
        "create or replace temp table old (place varchar, table_name varchar, column_name varchar, "
        "value varchar, raw varchar, violations varchar)"
    )
    place = sql.Identifier("meta", table)
    copy_to_duckdb(
        cursor,
        memory,
        sql.SQL(
            "select ctid, table_name, coalesce(column_name, 'row'), value, raw, violations from {} "
            "where table_name = any({})"
        ).format(place, sql.Literal([spec.full_name for spec in sealed])),
        "old",
    )
    _make_anew(cursor, "place text, value text, raw text, violations text")
    changed = copy_from_duckdb(
        memory,
        "select place, v, r, x from (select *, value_anew(table_name, column_name, value) as v, "
        "raw_anew(table_name, raw) as r, violations_anew(table_name, violations) as x from old) "
        "where v is distinct from value or r is distinct from raw or x <> violations",
        cursor,
        "copy anew from stdin (format csv)",
    )
    if changed:
        cursor.execute(
            sql.SQL(
                "update {} as q set value = a.value, raw = a.raw, "
                "violations = a.violations::jsonb from anew as a where q.ctid = a.place::tid"
            ).format(place)
        )
    return changed


def _let_seal_rejects(
    memory: duckdb.DuckDBPyConnection, sealer: Sealer, sealed: Sequence[TableSpec]
) -> None:
    """Give the database functions that seal the parts of a quarantined row anew."""
    names = {spec.full_name: {c.name for c in spec.sealed} for spec in sealed}

    def holds_one(table: str, column: str | None) -> bool:
        # A record that could not be read may have any value anywhere.
        if table.startswith("bronze."):
            return bool(names[table])
        return column in names[table]

    def value(table: str, column: str | None, text: str) -> str:
        if text and holds_one(table, column):
            return sealer.sealed_whole(text)
        return sealer.sealed_anew(text)

    def raw(table: str, text: str) -> str:
        if table.startswith("bronze."):
            return value(table, None, text)
        row = json.loads(text)
        told = {n: value(table, n, v) if isinstance(v, str) else v for n, v in row.items()}
        if isinstance(row.get("_extra"), dict):
            told["_extra"] = {
                n: value(table, n, v) if isinstance(v, str) else v for n, v in row["_extra"].items()
            }
        return text if told == row else json.dumps(told, ensure_ascii=False)

    def violations(table: str, text: str) -> str:
        found = json.loads(text)
        told = [v | {"value": v["value"] and value(table, v["column"], v["value"])} for v in found]
        return text if told == found else json.dumps(told, ensure_ascii=False)

    def extra(text: str) -> str:
        row = json.loads(text)
        known = set().union(*names.values())
        told = {
            n: sealer.sealed_whole(v) if isinstance(v, str) and v and n in known else v
            for n, v in row.items()
        }
        return text if told == row else json.dumps(told, ensure_ascii=False)

    memory.create_function("extra_anew", extra, ["VARCHAR"], "VARCHAR")
    memory.create_function("value_anew", value, ["VARCHAR"] * 3, "VARCHAR")
    memory.create_function("raw_anew", raw, ["VARCHAR"] * 2, "VARCHAR")
    memory.create_function("violations_anew", violations, ["VARCHAR"] * 2, "VARCHAR")


# --- what months are known by -------------------------------------------------------------------


def _know_anew(
    cursor: Any, settings: Settings, tables: Catalog, sealed: Sequence[TableSpec]
) -> None:
    """Note the fingerprints that months have now, so that nothing is out of date for it."""
    before = load_state(cursor)
    known = {table: _made_of_what_is(before, table, settings) for table in tables.specs}
    for spec in sealed:
        _fingerprint(cursor, spec)
    after = load_state(cursor)
    rows = [
        (table, month, json.dumps(table_job(table, settings).inputs(after, month)))
        for table, months in known.items()
        for month in months
    ]
    execute_values(
        cursor,
        "update meta.versions as v set inputs = n.inputs::jsonb from (values %s) "
        "as n (table_name, month, inputs) where v.is_current and v.table_name = n.table_name "
        "and v.month = n.month and v.inputs <> n.inputs::jsonb",
        rows,
        template="(%s, %s::date, %s)",
    )


def _made_of_what_is(state: State, table: str, settings: Settings) -> list[date]:
    """The months of a table that were made from the inputs there are."""
    job = table_job(table, settings)
    return [
        month
        for month, published in state.published.get(table, {}).items()
        if dict(published.inputs) == job.inputs(state, month)
    ]


def _fingerprint(cursor: Any, spec: TableSpec) -> None:
    """Note what the current months of a table hold."""
    cursor.execute(
        "select month, leaf from meta.versions where is_current and table_name = %s",
        (spec.full_name,),
    )
    leaves = dict(cursor.fetchall())
    found = fingerprints(cursor, with_evolved(spec, evolved_columns(cursor, spec)), leaves.values())
    execute_values(
        cursor,
        "update meta.versions as v set data_version = n.data_version from (values %s) "
        "as n (table_name, month, data_version) where v.is_current and v.month = n.month "
        "and v.table_name = n.table_name",
        [(spec.full_name, month, found[leaf]) for month, leaf in leaves.items()],
        template="(%s, %s::date, %s)",
    )


def _vacuum(connection: Any, leaves: Iterable[str]) -> None:
    """Let the rows be written over that were there before."""
    connection.commit()
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for table in (
                *(sql.Identifier(LEAVES, leaf) for leaf in leaves),
                sql.Identifier("meta", "quarantine"),
                sql.Identifier("meta", "past_quarantine"),
            ):
                with contextlib.suppress(psycopg2.errors.UndefinedTable):
                    cursor.execute(sql.SQL("vacuum (analyze) {}").format(table))
    finally:
        connection.autocommit = False
