"""A SELECT that carries along, with each row, the rows it was made from.

To every query block one more column is added: the identities of the rows that the block's row is
made of. A join puts those of both sides together, a group those of its members, a window function
those of the rows it looked at. Rows that only decide whether others count (in `in (...)`, `exists`,
`distinct`, `union`) are not among them.

After the annotation of queries in Perm (Glavic and Alonso, 2009), kept to what made a value.

Does not belong here: running it (`metalayer/tracing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from sqlglot import exp
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, traverse_scope

from metalayer.contracts.contract import TableSpec
from metalayer.lineage.columns import table_schema
from metalayer.lineage.select import RECORD_SEPARATOR, Select

#: The added column: identities as JSON, ["gold.fact_sales", 7], between record separators.
CARRIED = "_made_of"


def carrying(select: Select, specs: Mapping[str, TableSpec]) -> Select:
    """The SELECT with `CARRIED` as one more column, the last; to be rendered like any other."""
    schema = table_schema(select.inputs, specs)
    tree = qualify(select.tree.copy(), schema=schema, dialect="postgres", identify=False)
    assert isinstance(tree, exp.Query)
    for scope in traverse_scope(tree):
        block = scope.expression
        if isinstance(block, exp.Select) and not scope.is_subquery:
            block.select(exp.alias_(_carried(scope, block, specs), CARRIED), copy=False)
    return replace(select, tree=tree)


def _carried(scope: Scope, block: exp.Select, specs: Mapping[str, TableSpec]) -> exp.Expr:
    """The identities that a block's row is made of, as an expression in it."""
    own = list(_identities(scope, specs))
    if not own or _is_a_set(block):
        return exp.cast(exp.null(), "text")
    row = _joined(own)
    if block.args.get("group") or any(_aggregates(block)):
        return _all_of(row)
    looked_at = [_looked_at(window, row) for window in _windows(block)]
    return _joined([row, *looked_at]) if looked_at else row


def _identities(scope: Scope, specs: Mapping[str, TableSpec]) -> Iterator[exp.Expr]:
    for alias, (_, source) in scope.selected_sources.items():
        if isinstance(source, Scope):
            # Values that are written out, and what a function returns, are made of no rows.
            if isinstance(source.expression, exp.Select | exp.SetOperation):
                yield exp.column(CARRIED, table=alias)
        elif isinstance(source, exp.Table) and f"{source.db}.{source.name}" in specs:
            spec = specs[f"{source.db}.{source.name}"]
            key = [exp.column(name, table=alias, quoted=True) for name in spec.key]
            named = _call("jsonb_build_array", exp.Literal.string(spec.full_name), *key)
            # Of an outer join, the side that has no row.
            is_there = key[0].copy().is_(exp.null()).not_()
            yield exp.case().when(is_there, exp.cast(named, "text"))


def _is_a_set(block: exp.Select) -> bool:
    """Whether rows that are the same become one, here or in what the block is a branch of."""
    if block.args.get("distinct"):
        return True
    node = block.parent
    while isinstance(node, exp.SetOperation | exp.Paren):
        if isinstance(node, exp.SetOperation) and node.args.get("distinct"):
            return True
        node = node.parent
    return False


def _aggregates(block: exp.Select) -> Iterator[exp.Expr]:
    for projection in block.selects:
        for found in projection.find_all(exp.AggFunc):
            if found.find_ancestor(exp.Select) is block and not found.find_ancestor(exp.Window):
                yield found


def _windows(block: exp.Select) -> Iterator[exp.Window]:
    seen = set()
    for projection in block.selects:
        for window in projection.find_all(exp.Window):
            kind = _kind(window)
            frame = (window.args.get(a) for a in ("partition_by", "order", "spec", "alias"))
            shape = (kind, *map(str, frame))
            if window.find_ancestor(exp.Select) is block and kind and shape not in seen:
                seen.add(shape)
                yield window


def _kind(window: exp.Window) -> str:
    """Whose rows a window function looks at: one before, one behind, all of the frame, or none."""
    function = window.this
    while isinstance(function, exp.Filter | exp.IgnoreNulls | exp.RespectNulls):
        function = function.this
    if isinstance(function, exp.Lag | exp.Lead):
        return "lag" if isinstance(function, exp.Lag) else "lead"
    is_numbering = isinstance(function, exp.RowNumber) or function.sql_name() in _NUMBERING
    return "" if is_numbering else "frame"


_NUMBERING = ("RANK", "DENSE_RANK", "PERCENT_RANK", "CUME_DIST", "NTILE")


def _looked_at(window: exp.Window, row: exp.Expr) -> exp.Expr:
    looked = window.copy()
    kind = _kind(window)
    looked.set("this", _all_of(row) if kind == "frame" else _call(kind, row.copy()))
    return looked


def _joined(parts: list[exp.Expr]) -> exp.Expr:
    joined = _call("concat_ws", exp.Literal.string(RECORD_SEPARATOR), *parts)
    return _call("nullif", joined, exp.Literal.string(""))


def _all_of(row: exp.Expr) -> exp.Expr:
    return _call("string_agg", row.copy(), exp.Literal.string(RECORD_SEPARATOR))


def _call(function: str, *arguments: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this=function, expressions=list(arguments))
