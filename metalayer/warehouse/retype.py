"""A column's change of type: whether anything can be lost by it, and what would be.

A type is a wider one when it holds every value of the other exactly. To any other type a column
changes only when each stored value fits it: then it is the values that decide, asked in one
statement. Rounding, cutting off and misreading are never done on the way.

Belongs here: types and SQL expressions. Does not belong here: which columns change (`changes.py`).
"""

from __future__ import annotations

import re

from psycopg2 import sql

from metalayer.contracts.sealed import SEALED

_NUMERIC = re.compile(r"numeric\((\d+),(\d+)\)")
#: Digits of the longest bigint, and up to which it is exact as double precision.
_BIGINT_DIGITS = 19
_EXACT_IN_DOUBLE = 2**53
_SHORT_NAMES = {"timestamp": "timestamp without time zone"}
_WHOLE_OR_DECIMAL = "^-?(0|[1-9][0-9]*)([.][0-9]+)?$"


def canonical(sql_type: str) -> str:
    """A contract's type as PostgreSQL's catalog writes it."""
    return _SHORT_NAMES.get(sql_type, sql_type)


def is_lossless(old: str, new: str) -> bool:
    """Whether every value that `old` can hold is held by `new` as well, exactly."""
    if new == "text":
        return True
    before, after = _digits(old), _digits(new)
    if after is not None:
        if old == "bigint":
            return after[0] - after[1] >= _BIGINT_DIGITS
        return (
            before is not None
            and after[1] >= before[1]
            and after[0] - after[1] >= before[0] - before[1]
        )
    if new == "bigint":
        return before is not None and before[1] == 0 and before[0] < _BIGINT_DIGITS
    return (old, new) == ("date", canonical("timestamp"))


def rewrites(old: str, new: str) -> bool:
    """Whether PostgreSQL writes every row anew: all but a numeric that gets more digits in front.

    See `numeric_support` in PostgreSQL's source, which lets that conversion be skipped.
    """
    before, after = _digits(old), _digits(new)
    if before is None or after is None:
        return True
    return before[1] != after[1] or after[0] < before[0]


def conversion(column: sql.Identifier, old: str, new: str) -> sql.Composable:
    """The value of `column` as `new`, for a column whose values all fit."""
    kind = sql.SQL(new)
    if _is_exact_number(old) and (_is_exact_number(new) or new == "text"):
        return sql.SQL("{}::{}").format(column, kind)
    if old == "text":
        # What was encrypted is no value of any other type; its months are built again.
        return sql.SQL("case when {c} !~ {sealed} then {c}::{kind} end").format(
            c=column, kind=kind, sealed=sql.Literal(f"^{SEALED}$")
        )
    if old == "double precision" and new == "bigint":
        return sql.SQL("{}::bigint").format(column)
    # Through text, a double keeps all of its digits.
    return sql.SQL("{}::text::{}").format(column, kind)


def fits(column: sql.Identifier, old: str, new: str) -> sql.Composable:
    """A condition on a value that is not null: `new` holds it exactly."""
    word, kind = sql.Literal(new), sql.SQL(new)
    after = _digits(new)
    if _is_exact_number(old) and _is_exact_number(new):
        scale = sql.Literal(after[1] if after else 0)
        text = sql.SQL("trunc({c}::numeric)::text" if after is None else "{c}::text")
        return sql.SQL(
            "({c}::numeric = round({c}::numeric, {scale}) and pg_input_is_valid({text}, {word}))"
        ).format(c=column, scale=scale, text=text.format(c=column), word=word)
    if {old, new} == {"bigint", "double precision"}:
        most = sql.Literal(_EXACT_IN_DOUBLE)
        return sql.SQL("({c} between -{most} and {most} and {c} = trunc({c}))").format(
            c=column, most=most
        )
    if old == "text":
        return _text_fits(column, word, kind, new)
    return sql.SQL(
        "(case when pg_input_is_valid({c}::text, {word}) then "
        "case when pg_input_is_valid({c}::text::{kind}::text, {was}) "
        "then {c}::text::{kind}::text::{old} = {c} else false end else false end)"
    ).format(c=column, word=word, kind=kind, was=sql.Literal(old), old=sql.SQL(old))


def _text_fits(
    column: sql.Identifier, word: sql.Literal, kind: sql.SQL, new: str
) -> sql.Composable:
    """A text fits when it can be told from the new value: `007` is no number, `5.5` is 5.50."""
    if _digits(new) is not None:
        same = sql.SQL("{c} ~ {form} and {c}::numeric = {c}::{kind}")
    elif new == canonical("timestamp"):
        same = sql.SQL("replace({c}, 'T', ' ') = left({c}::{kind}::text, length({c}))")
    else:
        same = sql.SQL("{c}::{kind}::text = {c}")
    return sql.SQL(
        "(case when pg_input_is_valid({c}, {word}) then {same} else {c} ~ {sealed} end)"
    ).format(
        c=column,
        word=word,
        sealed=sql.Literal(f"^{SEALED}$"),
        same=same.format(c=column, kind=kind, form=sql.Literal(_WHOLE_OR_DECIMAL)),
    )


def _digits(sql_type: str) -> tuple[int, int] | None:
    """Precision and scale of a numeric."""
    found = _NUMERIC.fullmatch(sql_type)
    return (int(found[1]), int(found[2])) if found else None


def _is_exact_number(sql_type: str) -> bool:
    return sql_type == "bigint" or _digits(sql_type) is not None
