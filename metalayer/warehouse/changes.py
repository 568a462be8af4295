"""The statements that bring one table in line with its contract, each with what it does.

Comparing only: nothing is changed here. A change that would lose rows or values of published months
without anybody having said so is refused instead.

Does not belong here: the order of all tables' statements, and running them (`migrate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ContractError
from metalayer.governance.masks import is_open
from metalayer.warehouse import retype
from metalayer.warehouse.ddl import (
    StoredMask,
    create_unknown_leaf,
    insert_unknown_member,
    stored_masks,
    stored_name,
    unknown_leaf,
)
from metalayer.warehouse.existing import (
    Existing,
    LeafRules,
    Relation,
    leaf_rules,
    months_written_anew,
    standing_in_the_way,
)
from metalayer.warehouse.leaves import LEAVES, is_mask_name
from metalayer.warehouse.steps import (
    Step,
    creation_step,
    renaming_step,
    standing_parent,
    statements,
    where_declared,
)

_SAMPLES = 10
_SHOWN_OF_A_VALUE = 40


@dataclass
class Changes:
    """What one table needs, or why it cannot have it."""

    steps: list[Step] = field(default_factory=list)
    refusals: list[ContractError] = field(default_factory=list)


def is_reshaped(existing: Existing, spec: TableSpec) -> bool:
    """Whether columns come, go or change: views on the table are then made again."""
    standing = standing_parent(existing, spec)
    if standing is None:
        return False
    name, relation = standing
    evolved = existing.evolved.get(spec.full_name, {})
    return name != spec.stored_name or _differing(spec, relation, evolved).is_something


def dropped_columns(existing: Existing, spec: TableSpec) -> dict[str, str]:
    """Columns that readers of the table have and the contract does not (any more), with types."""
    found: dict[str, str] = {}
    parent = standing_parent(existing, spec)
    shown = existing.relations.get(spec.full_name)
    for relation in (shown, parent[1] if parent else None):
        if relation is not None:
            found |= {name: a.type for name, a in relation.columns.items()}
    declared = {c.name for c in spec.columns}
    return {
        name: kind
        for name, kind in found.items()
        if name not in declared and not is_mask_name(name)
    }


def table_changes(
    cursor: Any, existing: Existing, spec: TableSpec, dropped_views: Sequence[int]
) -> Changes:
    """What the table of `spec` needs, besides its comments and views.

    Args:
        cursor: For looking at stored values; None where there is no warehouse yet.
        dropped_views: Oids of views on the table that are dropped first and made again.
    """
    standing = standing_parent(existing, spec)
    if standing is None:
        return _creation(existing, spec)
    name, relation = standing
    changes = Changes()
    if name != spec.stored_name:
        changes.steps.append(renaming_step(spec, name))
    differing = _differing(spec, relation, existing.evolved.get(spec.full_name, {}))
    month = spec.column(spec.month_column)
    if relation.partitioned_by != month.name or month.name in differing.retyped:
        changes.refusals.append(_month_column_changed(spec, month))
        return changes
    touched = [*differing.dropped, *differing.retyped]
    for view, what in standing_in_the_way(cursor, relation.oid, touched, dropped_views):
        changes.refusals.append(
            ContractError(
                f"{where_declared(spec)} changes columns of {spec.full_name} on which something "
                f"else in the database stands: view {view} depends on {what}",
                "Drop that first, and create it again afterwards",
            )
        )
    rules = leaf_rules(cursor, [relation.oid])[relation.oid]
    changes.steps += _loosened_leaves(spec, rules, differing)
    if differing.is_something:
        _alter(cursor, changes, spec, sql.Identifier(spec.layer, name), relation, differing)
    changes.steps += _unknown_member(cursor, existing, spec)
    return changes


def _creation(existing: Existing, spec: TableSpec) -> Changes:
    taken = existing.relations.get(f"{spec.layer}.{spec.stored_name}")
    if taken is not None:
        return Changes(
            refusals=[
                ContractError(
                    f"{where_declared(spec)} needs the name {spec.layer}.{spec.stored_name}, "
                    "which something else in the database has",
                    "Rename that, or the contract",
                )
            ]
        )
    return Changes([creation_step(spec)])


@dataclass(frozen=True)
class _Differing:
    added: tuple[ColumnSpec | StoredMask, ...]
    dropped: tuple[str, ...]
    retyped: Mapping[str, tuple[str, str]]

    @property
    def is_something(self) -> bool:
        return bool(self.added or self.dropped or self.retyped)


def _differing(spec: TableSpec, relation: Relation, evolved: Mapping[str, str]) -> _Differing:
    stored: list[ColumnSpec | StoredMask] = [*spec.stored, *stored_masks(spec).values()]
    declared = {c.name: retype.canonical(c.type) for c in stored}
    there = {name: a.type for name, a in relation.columns.items()}
    return _Differing(
        added=tuple(c for c in stored if c.name not in there),
        dropped=tuple(n for n in there if n not in declared and n not in evolved),
        retyped={
            name: (there[name], kind)
            for name, kind in declared.items()
            if name in there and there[name] != kind
        },
    )


def _month_column_changed(spec: TableSpec, month: ColumnSpec) -> ContractError:
    return ContractError(
        f"{where_declared(spec)} changes the month column of {spec.full_name} "
        f"({month.name}), by which its rows are partitioned",
        f"Drop the table ({'.'.join(stored_name(spec).strings)}) and build it anew",
    )


def _alter(
    cursor: Any,
    changes: Changes,
    spec: TableSpec,
    parent: sql.Identifier,
    relation: Relation,
    differing: _Differing,
) -> None:
    """One statement for all columns of a table, so that its rows are written once at most."""
    cost = (0, 0, 0)
    if any(retype.rewrites(*kinds) for kinds in differing.retyped.values()):
        cost = months_written_anew(cursor, spec.full_name, relation.oid)
    clauses: list[sql.Composable] = []
    does: list[str] = []
    for name in differing.dropped:
        clauses.append(sql.SQL("drop column {}").format(sql.Identifier(name)))
        if is_mask_name(name):
            does.append(f"Drops column {name}: what it holds is computed when it is read.")
            continue
        does.append(
            f"Drops column {name}: what the published months have in it is lost; kept earlier "
            "versions of them still have it."
        )
    for name, (old, new) in differing.retyped.items():
        refusal = _refused_narrowing(cursor, spec, parent, name, old, new)
        if refusal is not None:
            changes.refusals.append(refusal)
            continue
        clauses.append(_retyping(sql.Identifier(name), old, new))
        does.append(_said_of_retyping(name, old, new, cost))
    for c in differing.added:
        clauses.append(sql.SQL("add column {} {}").format(sql.Identifier(c.name), sql.SQL(c.type)))
        if isinstance(c, StoredMask):
            does.append(
                f"Adds column {c.name} for the mask of {c.of.name}, which is computed on reading "
                "until a month is built again. No row is written."
            )
            continue
        does.append(
            f"Adds column {c.name} ({c.type}); it is empty until a month is built again. "
            "No row is written."
        )
    if clauses:
        statement = sql.SQL("alter table {}\n    {}").format(
            stored_name(spec), sql.SQL(",\n    ").join(clauses)
        )
        lost = not all(map(is_mask_name, differing.dropped))
        changes.steps.append(
            Step(spec.full_name, statements(statement), tuple(does), "alter", *cost, lost)
        )


def _retyping(column: sql.Identifier, old: str, new: str) -> sql.Composed:
    change = sql.SQL("alter column {} type {}").format(column, sql.SQL(new))
    if retype.is_lossless(old, new):
        return change
    return sql.SQL("{} using {}").format(change, retype.conversion(column, old, new))


def _said_of_retyping(name: str, old: str, new: str, cost: tuple[int, int, int]) -> str:
    months, rows, size = cost
    if retype.is_lossless(old, new):
        said = f"Widens column {name} from {old} to {new}: no value is lost."
    else:
        said = f"Changes column {name} from {old} to {new}: every stored value fits."
    if not retype.rewrites(old, new):
        return f"{said} No row is written."
    if not months:
        return f"{said} No month is published yet."
    return (
        f"{said} Writes {months:,} months anew ({rows:,} rows, {size / 1e6:,.1f} MB), for as long "
        "as which readers of the table wait."
    )


def _refused_narrowing(
    cursor: Any, spec: TableSpec, parent: sql.Identifier, name: str, old: str, new: str
) -> ContractError | None:
    """Why the stored values rule the new type out, or None."""
    if retype.is_lossless(old, new):
        return None
    column = sql.Identifier(name)
    misfit = sql.SQL("{c} is not null and not {fits}").format(
        c=column, fits=retype.fits(column, old, new)
    )
    cursor.execute(
        sql.SQL(
            "select value, rows, sum(rows) over () from (select left({c}::text, %s) as value, "
            "count(*) as rows from {table} where {misfit} group by 1) as v "
            "order by rows desc, value limit %s"
        ).format(c=column, table=parent, misfit=misfit),
        (_SHOWN_OF_A_VALUE, _SAMPLES),
    )
    found = cursor.fetchall()
    if not found:
        return None
    is_hidden = any(c.name == name and not is_open(c) for c in spec.columns)
    values = "***" if is_hidden else ", ".join(repr(value) for value, _, _ in found)
    return ContractError(
        f"{where_declared(spec)} changes {spec.full_name}.{name} from {old} to {new}, which cannot "
        f"hold {found[0][2]:,} of the stored values exactly: {values}",
        f"Declare a type that holds them, or keep {old}, mend the rows where they come from and "
        "build before changing it",
    )


def _loosened_leaves(spec: TableSpec, rules: LeafRules, differing: _Differing) -> list[Step]:
    """Take off attached months what the contract asks no more: they may get such rows in place.

    What it asks anew, months get when they are built again.
    """
    optional = {c.name for c in spec.stored if c.nullable} - set(differing.dropped)
    steps = []
    for name in sorted(optional & set(rules.required)):
        leaves = rules.required[name]
        parts = [
            sql.SQL("alter table {} alter column {} drop not null").format(
                sql.Identifier(LEAVES, leaf), sql.Identifier(name)
            )
            for leaf in leaves
        ]
        said = (
            f"Lets column {name} be empty in {len(leaves):,} published months. No row is written."
        )
        steps.append(Step(spec.full_name, statements(*parts), (said,)))
    outdated = [index for index, columns in rules.unique if columns != spec.key]
    if outdated:
        names = sql.SQL(", ").join(sql.Identifier(LEAVES, index) for index in outdated)
        said = (
            f"Drops the unique index on the earlier key of {len(outdated):,} published months; "
            f"on ({', '.join(spec.key)}) they get one when they are built again."
        )
        dropping = statements(sql.SQL("drop index {}").format(names))
        steps.append(Step(spec.full_name, dropping, (said,)))
    return steps


def _unknown_member(cursor: Any, existing: Existing, spec: TableSpec) -> list[Step]:
    """The Unknown member as the contract has it."""
    leaf, member = unknown_leaf(spec), spec.unknown_member
    is_there = leaf in existing.leaves
    if member is None:
        if not is_there:
            return []
        drop = sql.SQL("drop table {}").format(sql.Identifier(LEAVES, leaf))
        return [Step(spec.full_name, statements(drop), ("Drops the Unknown member.",))]
    if not is_there:
        parts = (create_unknown_leaf(spec), insert_unknown_member(spec))
        return [Step(spec.full_name, statements(*parts), ("Adds the Unknown member.",))]
    identifier = sql.Identifier(LEAVES, leaf)
    cursor.execute(sql.SQL("select to_jsonb(l) from {} as l").format(identifier))
    rows = [row for (row,) in cursor.fetchall()]
    cursor.execute(
        sql.SQL("select to_jsonb(m) from (select {}) as m").format(
            sql.SQL(", ").join(
                sql.SQL("{}::{} as {}").format(
                    sql.Literal(value), sql.SQL(spec.column(name).type), sql.Identifier(name)
                )
                for name, value in member.items()
            )
        )
    )
    (wanted,) = cursor.fetchone()
    if [{k: v for k, v in row.items() if v is not None} for row in rows] == [wanted]:
        return []
    parts = (sql.SQL("delete from {}").format(identifier), insert_unknown_member(spec))
    return [Step(spec.full_name, statements(*parts), ("Renews the Unknown member.",))]
