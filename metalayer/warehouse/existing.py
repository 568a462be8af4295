"""What a warehouse has of its tables, as PostgreSQL's catalog tells it.

Read in a handful of statements, whatever the number of months. Comparing it with the contracts
belongs to `changes.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Attribute:
    """A column as it is: its type in the catalog's words, and its comment."""

    type: str
    comment: str | None


@dataclass(frozen=True)
class Relation:
    """A table or view.

    Attributes:
        kind: PostgreSQL's letter: p partitioned table, v view, r plain table.
        partitioned_by: The column whose ranges the partitions hold.
    """

    oid: int
    kind: str
    comment: str | None
    partitioned_by: str | None
    columns: Mapping[str, Attribute]


@dataclass(frozen=True)
class Existing:
    """The tables of a warehouse, and what MetaLayer has noted about them.

    Attributes:
        schemas: Names of all schemas.
        relations: "layer.name" -> table or view.
        leaves: Names of all relations in the schema `months`.
        views: Those views of `relations` that MetaLayer made, with the SELECT they were made from.
        evolved: Bronze table -> column that no contract declared -> the file that brought it.
        facts: The rows of `meta.tables`.
        scripts: What MetaLayer's own schema and functions were last made from.
    """

    schemas: frozenset[str] = frozenset()
    relations: Mapping[str, Relation] = field(default_factory=dict)
    leaves: frozenset[str] = frozenset()
    views: Mapping[str, str] = field(default_factory=dict)
    evolved: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: Sequence[tuple[Any, ...]] = ()
    scripts: str = ""


def read_existing(cursor: Any, layers: Iterable[str]) -> Existing:
    """Look at the schemas `layers` of a warehouse, which may lack anything."""
    cursor.execute("select nspname from pg_namespace")
    schemas = frozenset(name for (name,) in cursor.fetchall())
    cursor.execute(
        "select relname from pg_class where relnamespace = to_regnamespace('months') "
        "and relkind in ('r', 'p')"
    )
    leaves = frozenset(name for (name,) in cursor.fetchall())
    relations = _relations(cursor, sorted(set(layers)))
    noted = {name for name in ("views", "evolved_columns", "tables", "installed")
             if _is_there(cursor, f"meta.{name}")}  # fmt: skip
    views: dict[str, str] = {}
    if "views" in noted:
        cursor.execute("select name, body from meta.views")
        views = {name: body for name, body in cursor.fetchall() if name in relations}
    evolved: dict[str, dict[str, str]] = {}
    if "evolved_columns" in noted:
        cursor.execute(
            "select table_name, column_name, file from meta.evolved_columns order by position"
        )
        for table, column, file in cursor.fetchall():
            evolved.setdefault(table, {})[column] = file
    facts: list[tuple[Any, ...]] = []
    if "tables" in noted:
        cursor.execute(
            "select table_name, layer, description, owner, fresh_within, position, "
            # An earlier release did not note these.
            "to_jsonb(t) ->> 'key_columns', to_jsonb(t) ->> 'open_columns', "
            "(to_jsonb(t) ->> 'due_day')::int, (to_jsonb(t) ->> 'due_hour')::int, "
            "to_jsonb(t) ->> 'made_from', (to_jsonb(t) ->> 'has_personal')::boolean, "
            "to_jsonb(t) ->> 'source' "
            "from meta.tables as t order by position"
        )
        facts = cursor.fetchall()
    scripts = ""
    if "installed" in noted:
        cursor.execute("select to_jsonb(i) ->> 'scripts' from meta.installed as i")
        scripts = ((cursor.fetchone() or ("",))[0]) or ""
    return Existing(schemas, relations, leaves, views, evolved, facts, scripts)


def dependent_views(cursor: Any, oids: Sequence[int]) -> dict[str, int]:
    """Views that stand on any of the relations `oids`, and on each other: full name -> oid."""
    cursor.execute(
        "with recursive standing as ("
        "select r.ev_class as oid from pg_depend as d join pg_rewrite as r on r.oid = d.objid "
        "where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass "
        "and d.refobjid = any(%(oids)s) and r.ev_class <> d.refobjid "
        "union select r.ev_class from standing as s join pg_depend as d on d.refobjid = s.oid "
        "join pg_rewrite as r on r.oid = d.objid where d.classid = 'pg_rewrite'::regclass "
        "and d.refclassid = 'pg_class'::regclass and r.ev_class <> d.refobjid) "
        "select n.nspname || '.' || c.relname, c.oid from standing as s "
        "join pg_class as c on c.oid = s.oid join pg_namespace as n on n.oid = c.relnamespace",
        {"oids": list(oids)},
    )
    return dict(cursor.fetchall())


def standing_in_the_way(
    cursor: Any, table: int, columns: Sequence[str], dropped_views: Sequence[int]
) -> list[tuple[str, str]]:
    """The user's own views on columns that change, or on views to be dropped: (view, on what).

    Args:
        table: The table's oid.
        columns: Its columns that are dropped or get another type.
        dropped_views: Oids of MetaLayer's views that are dropped and made again.
    """
    cursor.execute(
        "select distinct v.relname, case when a.attname is null then 'view ' || t.relname "
        "else 'column ' || a.attname end from pg_depend as d "
        "join pg_rewrite as r on r.oid = d.objid join pg_class as v on v.oid = r.ev_class "
        "join pg_class as t on t.oid = d.refobjid "
        "left join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid "
        "and d.refobjid = %(table)s "
        "where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass "
        "and r.ev_class <> d.refobjid and not r.ev_class = any(%(dropped)s::oid[]) and ("
        "(d.refobjid = %(table)s and a.attname = any(%(columns)s)) "
        "or d.refobjid = any(%(dropped)s::oid[])) order by 1, 2",
        {"table": table, "columns": list(columns), "dropped": list(dropped_views)},
    )
    return list(cursor.fetchall())


def months_written_anew(cursor: Any, table: str, parent: int) -> tuple[int, int, int]:
    """What a rewrite of the attached months costs: months, rows, bytes."""
    cursor.execute(
        "select count(*), coalesce(sum(pg_table_size(inhrelid)), 0) from pg_inherits "
        "where inhparent = %s",
        (parent,),
    )
    leaves, size = cursor.fetchone()
    cursor.execute(
        "select count(*), coalesce(sum(rows + rows_superseded), 0) from meta.versions "
        "where table_name = %s and is_current",
        (table,),
    )
    months, rows = cursor.fetchone()
    return (int(months), int(rows), int(size)) if leaves else (0, 0, 0)


def _is_there(cursor: Any, name: str) -> bool:
    cursor.execute("select to_regclass(%s) is not null", (name,))
    return bool(cursor.fetchone()[0])


def _relations(cursor: Any, layers: Sequence[str]) -> dict[str, Relation]:
    cursor.execute(
        "select n.nspname || '.' || c.relname, c.oid, c.relkind, "
        "obj_description(c.oid, 'pg_class'), (select k.attname from pg_partitioned_table as t "
        "join pg_attribute as k on k.attrelid = t.partrelid and k.attnum = t.partattrs[0] "
        "where t.partrelid = c.oid), a.attname, format_type(a.atttypid, a.atttypmod), "
        "col_description(c.oid, a.attnum) from pg_class as c "
        "join pg_namespace as n on n.oid = c.relnamespace "
        "left join pg_attribute as a "
        "on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped "
        "where n.nspname = any(%s) and c.relkind in ('p', 'v', 'r') order by c.oid, a.attnum",
        (layers,),
    )
    found: dict[str, tuple[int, str, str | None, str | None, dict[str, Attribute]]] = {}
    for name, *facts, column, type_, meaning in cursor.fetchall():
        columns = found.setdefault(name, (*facts, {}))[-1]
        if column is not None:
            columns[column] = Attribute(type_, meaning)
    return {name: Relation(*values) for name, values in found.items()}


@dataclass(frozen=True)
class LeafRules:
    """What attached months enforce by themselves.

    Attributes:
        required: Column -> leaves in which it must not be null.
        unique: (index, its columns, in order) of each unique index.
    """

    required: Mapping[str, Sequence[str]]
    unique: Sequence[tuple[str, tuple[str, ...]]]


def leaf_rules(cursor: Any, parents: Sequence[int]) -> dict[int, LeafRules]:
    """Parent's oid -> what its leaves enforce."""
    cursor.execute(
        "select i.inhparent, a.attname, array_agg(c.relname order by c.relname) "
        "from pg_inherits as i join pg_class as c on c.oid = i.inhrelid "
        "join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and a.attnotnull "
        "and not a.attisdropped where i.inhparent = any(%s) group by 1, 2",
        (list(parents),),
    )
    required: dict[int, dict[str, list[str]]] = {}
    for parent, column, leaves in cursor.fetchall():
        required.setdefault(parent, {})[column] = leaves
    cursor.execute(
        "select i.inhparent, c.relname, array(select a.attname from pg_attribute as a "
        "where a.attrelid = x.indrelid and a.attnum = any(x.indkey::smallint[]) "
        "order by array_position(x.indkey::smallint[], a.attnum)) "
        "from pg_inherits as i join pg_index as x on x.indrelid = i.inhrelid "
        "join pg_class as c on c.oid = x.indexrelid where i.inhparent = any(%s) and x.indisunique "
        "order by 2",
        (list(parents),),
    )
    unique: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
    for parent, index, columns in cursor.fetchall():
        unique.setdefault(parent, []).append((index, tuple(columns)))
    return {p: LeafRules(required.get(p, {}), unique.get(p, ())) for p in parents}
