"""The steps of a migration: statements as text, with what they do and cost; and the simple ones.

Creating a view, describing a table, renaming: whatever needs no look at the stored rows. Steps that
change columns are in `changes.py`, their order in `migrate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import (
    View,
    as_text,
    create_table,
    create_unknown_leaf,
    describe,
    insert_unknown_member,
    stored_name,
)
from metalayer.warehouse.existing import Existing, Relation
from metalayer.warehouse.retype import canonical


@dataclass(frozen=True)
class Step:
    """Statements that belong together, and what they do.

    Attributes:
        about: The table or schema they change, "gold.fact_orders".
        sql: Their text, each ending with a semicolon.
        does: A sentence for each change.
        kind: "create", "alter" (a table that readers may be reading), "view" or "note".
        months, rows, bytes: What is written anew; zeros where no row is.
        loses_data: Whether anything stored in published months is gone afterwards.
        scripts: Files beside this one whose text `sql` is.
    """

    about: str
    sql: str
    does: tuple[str, ...]
    kind: str = "alter"
    months: int = 0
    rows: int = 0
    bytes: int = 0
    loses_data: bool = False
    scripts: tuple[str, ...] = ()


def statements(*parts: sql.Composable) -> str:
    """Statements as one text."""
    return "\n".join(f"{as_text(part)};" for part in parts)


def where_declared(spec: TableSpec) -> str:
    """The file of the contract, for messages; a bronze table's is that of its silver table."""
    if spec.path is None:
        return f"contracts/{spec.layer}/{spec.name}.py"
    return f"contracts/{spec.path.parent.name}/{spec.path.name}"


def standing_parent(existing: Existing, spec: TableSpec) -> tuple[str, Relation] | None:
    """The partitioned table that holds the rows of `spec` now, which may have its other name.

    A contract's first derived or personal column turns `layer.name` into a view, and its last one
    back.
    """
    for name in (spec.stored_name, spec.name, f"{spec.name}_stored"):
        relation = existing.relations.get(f"{spec.layer}.{name}")
        if relation is not None and relation.kind == "p":
            return name, relation
    return None


def creation_step(spec: TableSpec) -> Step:
    """The table, its Unknown member included."""
    parts = [create_table(spec)]
    if spec.unknown_member is not None:
        parts += [create_unknown_leaf(spec), insert_unknown_member(spec)]
    return Step(spec.full_name, statements(*parts), ("Creates the table.",), kind="create")


def renaming_step(spec: TableSpec, name: str) -> Step:
    """The partitioned table under its other name, see `standing_parent`."""
    why = (
        f"{spec.full_name} becomes a view that adds derived columns and masks personal ones"
        if spec.stored_name != spec.name
        else "it has neither derived nor personal columns any more"
    )
    return Step(
        spec.full_name,
        statements(
            sql.SQL("alter table {} rename to {}").format(
                sql.Identifier(spec.layer, name), sql.Identifier(spec.stored_name)
            )
        ),
        (f"Renames {spec.layer}.{name} to {spec.layer}.{spec.stored_name}: {why}.",),
    )


def comment_step(existing: Existing, spec: TableSpec) -> Step | None:
    """The table's and its columns' meanings, where the catalog has others."""
    standing = standing_parent(existing, spec)
    relation = standing[1] if standing else None
    parent = stored_name(spec)
    parts: list[sql.Composable] = []
    if relation is None or relation.comment != describe(spec):
        parts.append(_comment("table", parent, describe(spec)))
    for c in spec.stored:
        there = relation.columns.get(c.name) if relation else None
        if there is None or there.comment != c.meaning:
            parts.append(_comment("column", sql.Identifier(*parent.strings, c.name), c.meaning))
    if not parts:
        return None
    return Step(
        spec.full_name,
        statements(*parts),
        ("Says what the table and its columns mean.",),
        kind="note",
    )


def view_step(existing: Existing, name: str, view: View, *, is_dropped: bool) -> Step | None:
    """The view's creation, or the comments that changed; None if it is there as it should be."""
    identifier = sql.Identifier(*name.split("."))
    relation = existing.relations.get(name)
    stands = (
        not is_dropped
        and relation is not None
        and relation.kind == "v"
        and existing.views.get(name) == view.body
    )
    parts: list[sql.Composable] = []
    if not stands:
        is_there = relation is not None and relation.kind == "v" and not is_dropped
        create = sql.SQL("create view {} as {}")
        if is_there and is_replaceable(relation, view):
            # What stands on it, and who may read it, stays.
            create = sql.SQL("create or replace view {} as {}")
        elif is_there:
            parts.append(sql.SQL("drop view {}").format(identifier))
        parts.append(create.format(identifier, sql.SQL(view.body)))
        parts.append(
            sql.SQL(
                "insert into meta.views (name, body) values ({}, {}) "
                "on conflict (name) do update set body = excluded.body"
            ).format(sql.Literal(name), sql.Literal(view.body))
        )
    if not stands or relation is None or relation.comment != view.description:
        parts.append(_comment("view", identifier, view.description))
    for column, meaning in view.columns.items():
        there = relation.columns.get(column) if stands and relation else None
        if there is None or there.comment != meaning:
            parts.append(_comment("column", sql.Identifier(*identifier.strings, column), meaning))
    if not parts:
        return None
    if stands:
        return Step(name, statements(*parts), ("Says what the view means.",), kind="note")
    return Step(name, statements(*parts), ("Creates the view.",), kind="view")


def is_replaceable(relation: Relation | None, view: View) -> bool:
    """Whether a view that is there can take the new SELECT: its columns stay as they are."""
    there = {name: a.type for name, a in relation.columns.items()} if relation else {}
    wanted = {name: canonical(kind) for name, kind in view.types.items()}
    return bool(wanted) and list(there.items()) == list(wanted.items())


def _comment(kind: str, name: sql.Identifier, text: str) -> sql.Composed:
    return sql.SQL("comment on {} {} is {}").format(sql.SQL(kind), name, sql.Literal(text))
