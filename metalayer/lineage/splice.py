"""A query's own text with some of its tables replaced by subqueries.

The text is parsed to find where the tables stand; all the rest of it stays as it was typed, to the
letter, so that nothing is lost in a parser's translation.

Does not belong here: which tables are replaced, and by what (the caller says).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from metalayer.errors import UsageError

_WRITING = (exp.DML, exp.Into, exp.Lock)
#: What may stand beside a table, and means nothing beside a subquery.
_UNREADABLE = {"sample": "TABLESAMPLE", "only": "ONLY", "pivots": "PIVOT"}

_TABLE = re.compile(r"(?i)\btable\s+\Z")

Name = tuple[str, ...]


def spliced(text: str, what: str, replacement: Callable[[Name], str | None]) -> str:
    """The text of a query with tables replaced.

    Args:
        text: One SELECT in PostgreSQL's dialect.
        what: What it is, for messages: "the query", "the view gold.x".
        replacement: The name of a table or view, part by part, as PostgreSQL folds it -> the SELECT
            to read instead, or None. Names that a WITH clause gives are not asked about.

    Raises:
        UsageError: when it is not one SELECT, or cannot be understood.
    """
    tree = _parsed(text, what)
    edits: list[tuple[int, int, str]] = []
    bare: set[Name] = set()
    for table in tree.find_all(exp.Table):
        name = _name(table)
        if not name or _names_a_with(table):
            continue
        select = replacement(name)
        if select is None:
            continue
        _refuse_what_is_unreadable(table, what)
        alias = "" if table.alias else f' as "{name[-1].replace(chr(34), 2 * chr(34))}"'
        start, end = _place(table.parts, what)
        word = _TABLE.search(text, 0, start)
        # `table x` is short for `select * from x`.
        before = "select * from " if word else ""
        edits.append((word.start() if word else start, end, f"{before}({select}){alias}"))
        if not table.alias:
            bare.add(name)
    for column in tree.find_all(exp.Column):
        # `gold.orders.status`: a subquery has no schema to be named by.
        parts = column.parts
        if len(parts) > 2 and _folded(parts[:-1]) in bare:
            start, _ = _place(parts[:1], what)
            end, _ = _place(parts[-2:-1], what)
            edits.append((start, end, ""))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _parsed(text: str, what: str) -> exp.Query:
    try:
        statements = [s for s in sqlglot.parse(text, read="postgres") if s is not None]
    except SqlglotError as error:
        reason = str(error).splitlines()[0].partition(" but got ")[0].partition(". Line")[0]
        raise UsageError(
            f"{what[:1].upper()}{what[1:]} cannot be read as of another time: {reason}",
            "Only SELECTs that can be parsed can; try it without the parts that are special to "
            "PostgreSQL.",
        ) from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise UsageError(
            "Only one SELECT can be read as of another time",
            "Leave out what is beside it; `show` and `explain` have no past.",
        )
    tree = statements[0]
    if tree.find(*_WRITING):
        raise UsageError(
            "Only a SELECT that reads can be read as of another time",
            "Leave out INTO, FOR UPDATE, and what inserts, updates or deletes.",
        )
    return tree


def _name(table: exp.Table) -> Name:
    """The table's name as PostgreSQL folds it; empty for a function that stands as a table."""
    parts = table.parts
    return _folded(parts) if all(isinstance(p, exp.Identifier) for p in parts) else ()


def _folded(parts: list[exp.Expr]) -> Name:
    return tuple(p.name if p.args.get("quoted") else p.name.lower() for p in parts)


def _names_a_with(table: exp.Table) -> bool:
    """Whether a WITH clause in sight gives the name that stands here."""
    (name, *more) = _folded(table.parts)
    if more:
        return False
    child: exp.Expr = table
    inner: exp.Expr = table
    node = table.parent
    while node is not None:
        clause = node.args.get("with_")
        if clause is not None:
            seen = list(clause.expressions)
            if child is clause and not clause.args.get("recursive"):
                # Inside the clause a query sees those before it.
                seen = seen[: next(i for i, cte in enumerate(seen) if cte is inner)]
            if any(_folded([cte.args["alias"].this]) == (name,) for cte in seen):
                return True
        child, inner, node = node, child, node.parent
    return False


def _refuse_what_is_unreadable(table: exp.Table, what: str) -> None:
    for argument, word in _UNREADABLE.items():
        if table.args.get(argument):
            raise UsageError(
                f"{what[:1].upper()}{what[1:]} cannot be read as of another time: "
                f"{word} stands beside {table.name}",
                f"Leave {word} out.",
            )


def _place(parts: list[exp.Expr], what: str) -> tuple[int, int]:
    """Where names stand in the text: of the first character, and behind the last."""
    start, end = parts[0].meta.get("start"), parts[-1].meta.get("end")
    if start is None or end is None:
        raise UsageError(
            f"{what[:1].upper()}{what[1:]} cannot be read as of another time: "
            f"{parts[-1].name} stands in a place that is not understood",
            "Write the query in another way.",
        )
    return start, end + 1
