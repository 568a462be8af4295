"""The rules of a contract as one condition in SQL: which staged rows may break one.

PostgreSQL finds them as it reads the rows anyway; only these are read back and judged by Pandera
(`violations.py`), whose word counts. So the condition may suspect a row that keeps every rule, but
must not pass one that breaks any: where a rule cannot be said in SQL with just its meaning, every
row that it judges is suspect.

Does not belong here: what a rule means, or what becomes of a row that breaks one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from typing import Any

import pandera.polars as pa
from psycopg2 import sql

from metalayer.contracts.contract import pandera_schema
from metalayer.lineage.select import FAILED_CASTS
from metalayer.warehouse.stage import Stage

# Of these types PostgreSQL and Polars compare values alike.
_ALIKE = re.compile(r"bigint|numeric.*|date|timestamp|boolean|text")
# Patterns of letters, digits and signs for themselves, classes of such, groups, counts, anchors: no
# `.`, no `\d`, no flags, no `-` in a class but in a range, for what these match differs.
_PIECE = r"""[A-Za-z0-9_ ,:;/@\#%&=~<>!'"-]|\\[.+*?()\[\]{}|^$/\\-]
    |\[\^?(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9_ .,;/@+])+\]"""
_COUNT = r"(?:[?*+]|\{[0-9]{1,2}(?:,[0-9]{0,2})?\})?"
_PLAIN_PATTERN = re.compile(rf"(?:(?:{_PIECE}|\)){_COUNT}|\((?:\?:)?|\||\^|\$)*", re.VERBOSE)


def suspect(stage: Stage) -> sql.Composable:
    """The condition: true of each staged row that may break a rule of its contract."""
    schema = pandera_schema(stage.spec)
    row_doubts = [(check.statistics or {}).get("doubt") for check in schema.checks]
    if None in row_doubts:
        return sql.SQL("true")
    found = [sql.SQL("({})").format(sql.SQL(doubt)) for doubt in row_doubts]
    found += list(doubts(schema, {column.name: column.type for column in stage.spec.stored}))
    if stage.tracks_casts:
        found.append(sql.SQL("{} is not null").format(sql.Identifier(FAILED_CASTS)))
    return sql.SQL("({})").format(sql.SQL(" or ").join(found)) if found else sql.SQL("false")


def doubts(schema: pa.DataFrameSchema, types: Mapping[str, str]) -> Iterator[sql.Composable]:
    """A condition for each rule on a column, true of each value that may break it.

    Args:
        types: Column -> its type in PostgreSQL.
    """
    for name, column in schema.columns.items():
        identifier = sql.Identifier(name)
        if not column.nullable:
            yield sql.SQL("{} is null").format(identifier)
        if column.checks or not column.nullable:
            yield from _unheard_of(identifier, types[name])
        for check in column.checks:
            if not check.ignore_na:  # it judges missing values, too
                yield sql.SQL("true")
            # Otherwise Pandera leaves them out; so does a comparison in SQL.
            broken = _broken(identifier, types[name], str(check.name), check.statistics or {})
            yield broken or sql.SQL("{} is not null").format(identifier)


def _unheard_of(column: sql.Identifier, kind: str) -> Iterator[sql.Composable]:
    """Values that PostgreSQL has and Polars has not."""
    if kind.startswith("numeric"):
        yield sql.SQL("{} = 'NaN'").format(column)
    if kind in ("date", "timestamp"):
        yield sql.SQL("{} not between '0001-01-01' and '9999-12-31'").format(column)


def _broken(
    column: sql.Identifier, kind: str, rule: str, operands: Mapping[str, Any]
) -> sql.Composable | None:
    """Where a value breaks a rule of Pandera; None for rules that are not said in SQL."""
    if not _ALIKE.fullmatch(kind):
        return None
    value = sql.SQL('{} collate "C"' if kind == "text" else "{}").format(column)
    comparisons = {
        "greater_than_or_equal_to": ("<", "min_value"),
        "greater_than": ("<=", "min_value"),
        "less_than_or_equal_to": (">", "max_value"),
        "less_than": (">=", "max_value"),
    }
    if rule in comparisons:
        operator, operand = comparisons[rule]
        if not _is_exact(operands[operand]):
            return None
        return sql.SQL("{} " + operator + " {}").format(value, sql.Literal(operands[operand]))
    if rule == "isin":
        allowed = [each for each in operands["allowed_values"] if each is not None]
        if not allowed or not all(map(_is_exact, allowed)):
            return None
        return sql.SQL("{} <> all({})").format(value, sql.Literal(allowed))
    if rule == "str_matches":
        pattern = operands["pattern"]
        if not isinstance(pattern, str):
            return None
        text = pattern if pattern.startswith("^") else f"^{pattern}"
        if not _PLAIN_PATTERN.fullmatch(text):
            return None
        return sql.SQL("{} !~ {}").format(value, sql.Literal(text))
    return None


def _is_exact(operand: object) -> bool:
    """Whether PostgreSQL and Polars compare with it alike; with floats they may not."""
    return isinstance(operand, (int, Decimal, date, str))
