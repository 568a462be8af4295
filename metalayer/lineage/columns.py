"""Where each column of a table comes from, and who reads it, told by the SELECTs themselves.

Does not belong here: which tables are read over which months (`select.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.lineage import Node, lineage
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, build_scope, traverse_scope

from metalayer.contracts.contract import TableSpec
from metalayer.errors import ContractError
from metalayer.lineage.select import Reach, Select

_WRITTEN = "written"  # marks the columns that stand in the text, and were not made from a star

#: Table -> columns it has on disk besides those that its contract declares, with their types.
Undeclared = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, order=True)
class Origin:
    """A column of an upstream table."""

    table: str
    column: str


def column_lineage(
    select: Select, specs: Mapping[str, TableSpec], undeclared: Undeclared | None = None
) -> dict[str, tuple[Origin, ...]]:
    """Column of the table -> the upstream columns its values are made from, sorted.

    A column made of constants and the window alone has no origin.
    """
    return query_lineage(select.tree, specs, undeclared)


def query_lineage(
    query: exp.Query,
    specs: Mapping[str, TableSpec],
    undeclared: Undeclared | None = None,
    *,
    is_strict: bool = True,
) -> dict[str, tuple[Origin, ...]]:
    """Column that a query returns, `*` written out -> the columns its values are made from.

    Args:
        is_strict: Whether a column that no table has is an error; it has no origin otherwise.
    """
    tables = [f"{t.db}.{t.name}" for t in query.find_all(exp.Table) if t.db]
    schema = _schema(tables, specs, undeclared or {})
    tree = qualify(
        query.copy(),
        schema=schema,
        dialect="postgres",
        identify=False,
        validate_qualify_columns=is_strict,
    )
    scope = build_scope(tree)
    # The tree is ours and stays as it is: copying it for each column is most of the time.
    options: dict[str, Any] = {
        "scope": scope, "dialect": "postgres", "copy": False, "trim_selects": False,
    }  # fmt: skip
    assert isinstance(tree, exp.Query)
    return {
        column: _origins(lineage(column, tree, schema=schema, **options))
        for column in tree.named_selects
    }


def view_lineage(body: str, specs: Mapping[str, TableSpec]) -> dict[str, tuple[Origin, ...]]:
    """The same for the SELECT of a view beside a table, whose stars are told by the contracts."""
    tree = sqlglot.parse_one(body, read="postgres")
    tables = {f"{t.db}.{t.name}": Reach.ALL for t in tree.find_all(exp.Table) if t.db}
    whole = qualify(tree, schema=_schema(tables, specs, {}), dialect="postgres", identify=False)
    assert isinstance(whole, exp.Query)
    return column_lineage(Select("", Path(), body, tables, whole), specs)


def columns_read(
    query: exp.Expr, specs: Mapping[str, TableSpec], undeclared: Undeclared | None = None
) -> set[Origin]:
    """Every column of a table that a query needs, in conditions and joins as well as in its output.

    What only passes through a `*` and is asked for by nobody is not needed.

    Raises:
        SqlglotError: when a column belongs to none of the tables.
    """
    tables = [f"{t.db}.{t.name}" for t in query.find_all(exp.Table) if t.db]
    tree = query.copy()
    for column in tree.find_all(exp.Column):
        column.meta[_WRITTEN] = True
    tree = qualify(
        tree, schema=_schema(tables, specs, undeclared or {}), dialect="postgres", identify=False
    )
    found: set[Origin] = set()
    asked: set[tuple[int, str]] = set()
    for scope in traverse_scope(tree):
        for column in scope.columns:
            # A column that is a whole projection and was not written came out of a star.
            is_passed_on = (
                isinstance(column.parent, exp.Alias) and column.meta.get(_WRITTEN) is None
            )
            if not is_passed_on:
                _trace(scope, column, found, asked)
    return found


@dataclass(frozen=True)
class Reader:
    """A file that reads a column, and for what: "sql/gold/x.sql" and "gold.x.status"."""

    file: str
    purpose: str

    def __str__(self) -> str:
        return f"{self.file} ({self.purpose})"


def undeclared_reads(
    selects: Mapping[str, Select], specs: Mapping[str, TableSpec], undeclared: Undeclared
) -> dict[Origin, list[Reader]]:
    """Columns that no contract declares, and who reads them: SELECTs, views, derived columns.

    Args:
        undeclared: What the tables have besides; a column that is in neither is an error.

    Raises:
        ContractError: when a SELECT reads a column that is nowhere, naming both.
    """
    found: dict[Origin, list[Reader]] = {}
    for table, select in selects.items():
        file = f"sql/{table.replace('.', '/')}.sql"
        read = _undeclared_of(select.tree, file, specs, undeclared)
        if not read:
            continue
        origins = column_lineage(select, specs, undeclared)
        for column in read:
            outputs = [name for name, made_from in origins.items() if column in made_from]
            purpose = f"for {table}.{', '.join(outputs)}" if outputs else "in a condition"
            found.setdefault(column, []).append(Reader(file, purpose))
    for spec in specs.values():
        for column, reader in _reads_of_contract(spec, specs, undeclared):
            found.setdefault(column, []).append(reader)
    return found


def _reads_of_contract(
    spec: TableSpec, specs: Mapping[str, TableSpec], undeclared: Undeclared
) -> Iterator[tuple[Origin, Reader]]:
    """The undeclared columns that the SQL inside a contract reads."""
    file = f"contracts/{spec.layer}/{spec.name}.py"
    for name, body in spec.views.items():
        for column in _undeclared_of(
            sqlglot.parse_one(body, read="postgres"), file, specs, undeclared
        ):
            yield column, Reader(file, f"for the view {spec.layer}.{name}")
    stored = {c.name for c in spec.stored}
    for c in spec.columns:
        if c.derived is None:
            continue
        read = {e.name for e in sqlglot.parse_one(c.derived, read="postgres").find_all(exp.Column)}
        for name in sorted(read - stored):
            yield Origin(spec.full_name, name), Reader(file, f"for the derived column {c.name}")


def _undeclared_of(
    query: exp.Expr, file: str, specs: Mapping[str, TableSpec], undeclared: Undeclared
) -> list[Origin]:
    try:
        read = columns_read(query, specs, undeclared)
    except SqlglotError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ContractError(
            f"{file} reads a column that no table of its has: {reason}",
            "Read one that the contract of the table declares",
        ) from error
    return sorted(
        column
        for column in read
        if column.table in specs
        and column.column not in {c.name for c in specs[column.table].columns}
    )


def table_schema(tables: Iterable[str], specs: Mapping[str, TableSpec]) -> dict[str, Any]:
    """The tables' columns and types, as sqlglot takes them."""
    return _schema(tables, specs, {})


def expressions(select: Select, specs: Mapping[str, TableSpec], column: str) -> list[str]:
    """What a SELECT does to make a column, from its output back, without what only passes on."""
    schema = _schema(select.inputs, specs, {})
    tree = qualify(select.tree.copy(), schema=schema, dialect="postgres", identify=False)
    found: dict[str, None] = {}
    for step in lineage(column, tree, schema=schema, dialect="postgres", trim_selects=False).walk():
        made = step.expression.unalias()
        if step.downstream and not isinstance(made, exp.Column | exp.Query | exp.Table):
            found[made.sql("postgres", comments=False)] = None
    return list(found)


def _schema(tables: Any, specs: Mapping[str, TableSpec], undeclared: Undeclared) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for name in tables:
        spec = specs.get(name)
        if spec is not None:
            columns = {c.name: c.type for c in spec.columns}
            schema.setdefault(spec.layer, {})[spec.name] = columns | dict(undeclared.get(name, {}))
    return schema


def _trace(
    scope: Scope, column: exp.Column, found: set[Origin], asked: set[tuple[int, str]]
) -> None:
    """Follow a column to the table it is of, through what passes it on without being asked."""
    source = scope.sources.get(column.table)
    if isinstance(source, exp.Table):
        if source.db:
            found.add(Origin(f"{source.db}.{source.name}", column.name))
    elif isinstance(source, Scope) and (id(source), column.name) not in asked:
        asked.add((id(source), column.name))
        for branch, projection in _projections(source, column.name):
            for passed in projection.find_all(exp.Column):
                _trace(branch, passed, found, asked)


def _projections(scope: Scope, name: str) -> Iterator[tuple[Scope, exp.Expr]]:
    """What a scope returns under a name: one projection for each branch of a union."""
    query = scope.expression
    names = list(query.named_selects) if isinstance(query, exp.Query) else []
    if name not in names:
        return
    place = names.index(name)
    branches = [scope]
    while branches:
        branch = branches.pop()
        if branch.set_operation_scopes:
            branches += branch.set_operation_scopes
        elif isinstance(branch.expression, exp.Query):
            yield branch, branch.expression.selects[place]


def _origins(node: Node) -> tuple[Origin, ...]:
    found = set()
    for step in node.walk():
        if not step.downstream and isinstance(step.source, exp.Table) and step.source.db:
            column = step.name.rpartition(".")[2].strip('"')
            if column != "*":
                found.add(Origin(f"{step.source.db}.{step.source.name}", column))
    return tuple(sorted(found))
