"""The rules of a contract as one condition in SQL: which staged rows may break one.

PostgreSQL finds them as it reads the rows anyway; only these are read back and judged by Pandera
(`violations.py`), whose word counts. So the condition may suspect a row that keeps every rule, but
must not pass one that breaks any: where a rule cannot be said in SQL with just its meaning, every
row with a value is suspect.

Does not belong here: what a rule means, or what becomes of a row that breaks one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandera.polars as pa
from psycopg2 import sql

from metalayer.contracts.contract import pandera_schema
from metalayer.lineage.select import FAILED_CASTS
from metalayer.warehouse.stage import Stage

# Of these types PostgreSQL and Polars compare and match values alike.
_ALIKE = re.compile(r"bigint|numeric.*|date|timestamp|boolean|text")
# Of patterns: letters, digits and signs for themselves, classes of such, groups, counts, anchors.
# No `.`, no `\d`, no flags: what these match differs.
_PIECE = r"""[A-Za-z0-9_ ,:;/@\#%&=~<>!'"-]|\\[.+*?()\[\]{}|^$/\\-]|\[\^?[A-Za-z0-9_ .,;/@+-]+\]"""
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
        for check in column.checks:
            broken = None
            # Pandera leaves missing values out; so does a comparison in SQL.
            if check.ignore_na and _ALIKE.fullmatch(types[name]):
                broken = _broken(identifier, str(check.name), check.statistics or {})
            yield broken or sql.SQL("{} is not null").format(identifier)


def _broken(
    column: sql.Identifier, rule: str, operands: Mapping[str, Any]
) -> sql.Composable | None:
    """Where a value breaks a rule of Pandera; None for rules that are not said in SQL."""
    comparisons = {
        "greater_than_or_equal_to": ("<", "min_value"),
        "greater_than": ("<=", "min_value"),
        "less_than_or_equal_to": (">", "max_value"),
        "less_than": (">=", "max_value"),
    }
    if rule in comparisons:
        operator, operand = comparisons[rule]
        return sql.SQL("{} " + operator + " {}").format(column, sql.Literal(operands[operand]))
    if rule == "isin":
        allowed = list(operands["allowed_values"])
        return sql.SQL("{} <> all({})").format(column, sql.Literal(allowed)) if allowed else None
    if rule == "str_matches":
        pattern = operands["pattern"]
        text = pattern if isinstance(pattern, str) else pattern.pattern
        text = text if text.startswith("^") else f"^{text}"
        is_plain = isinstance(pattern, str) and _PLAIN_PATTERN.fullmatch(text)
        return sql.SQL("{} !~ {}").format(column, sql.Literal(text)) if is_plain else None
    return None
