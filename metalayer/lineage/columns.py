"""Where each column of a table comes from, told by the SELECT itself.

Does not belong here: which tables are read over which months (`select.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlglot import exp
from sqlglot.lineage import Node, lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import build_scope

from metalayer.contracts.contract import TableSpec
from metalayer.lineage.select import Select


@dataclass(frozen=True)
class Origin:
    """A column of an upstream table."""

    table: str
    column: str


def column_lineage(select: Select, specs: Mapping[str, TableSpec]) -> dict[str, tuple[Origin, ...]]:
    """Column of the table -> the upstream columns its values are made from, sorted.

    A column made of constants and the window alone has no origin.
    """
    schema: dict[str, Any] = {}
    for name in select.inputs:
        spec = specs[name]
        schema.setdefault(spec.layer, {})[spec.name] = {c.name: c.type for c in spec.columns}
    tree = qualify(select.tree.copy(), schema=schema, dialect="postgres", identify=False)
    scope = build_scope(tree)
    # The tree is ours and stays as it is: copying it for each column is most of the time.
    options = {"scope": scope, "dialect": "postgres", "copy": False, "trim_selects": False}
    return {
        column: _origins(lineage(column, tree, schema=schema, **options))
        for column in select.outputs
    }


def _origins(node: Node) -> tuple[Origin, ...]:
    found = set()
    for step in node.walk():
        if not step.downstream and isinstance(step.source, exp.Table) and step.source.db:
            column = step.name.rpartition(".")[2].strip('"')
            if column != "*":
                found.add(Origin(f"{step.source.db}.{step.source.name}", column))
    return tuple(sorted(found, key=lambda origin: (origin.table, origin.column)))
