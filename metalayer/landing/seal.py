"""Encrypted columns sealed on their way into PostgreSQL, and opened on the way back, in DuckDB.

A value is first brought into the one form of its type, so that equal values get equal ciphertext
however they were written. What is no value of its type is sealed as it came, and marked.

Belongs here: SQL of DuckDB, and the functions of Python that it calls. Does not belong here: keys
(`warehouse/keys.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from metalayer.contracts.contract import ColumnSpec
from metalayer.contracts.sealed import HINTS, SEALED, SEPARATOR, UNFIT
from metalayer.governance.sealing import Opener, Sealer
from metalayer.landing.judge import identifier, literal

_OPEN, _OPEN_JSON, _CIPHERTEXT = "opened", "opened_in_json", "ciphertext"
_ANEW = "sealed_anew"
# By the first word of a type; texts are told apart by what they are of.
_FORMS = {
    "bigint": "cast(try_bigint({v}) as varchar)",
    "numeric": "try_numeric({v}, {precision}, {scale})",
    "double": "number_text({v})",
    "date": "cast(try_date({v}) as varchar)",
    "timestamp": "cast(try_timestamp({v}) as varchar)",
    "boolean": "cast(try_boolean({v}) as varchar)",
}
_TEXT_FORMS = {"phone": "try_phone({v})", "email": "lower(clean({v}))"}


def let_seal(memory: duckdb.DuckDBPyConnection, sealer: Sealer) -> None:
    """Give a database the key; `sealed_sql` needs the grammar besides."""
    memory.create_function(_CIPHERTEXT, sealer.ciphertext, ["VARCHAR"], "VARCHAR")
    memory.create_function(_ANEW, sealer.sealed_anew, ["VARCHAR"], "VARCHAR")
    memory.execute(f"create macro key_id() as {literal(sealer.key_id)}")


def let_open(memory: duckdb.DuckDBPyConnection, opener: Opener) -> None:
    """Give a database what `opened_sql` needs."""
    memory.create_function(_OPEN, opener.opened, ["VARCHAR"], "VARCHAR")
    memory.create_function(_OPEN_JSON, opener.opened_in_json, ["VARCHAR"], "VARCHAR")


def opened_sql(value: str, *, is_json: bool = False) -> str:
    """A text with what is sealed in it opened; only texts that may have some are looked at."""
    function = _OPEN_JSON if is_json else _OPEN
    return f"case when contains({value}, '{SEPARATOR}') then {function}({value}) else {value} end"


def sealed_sql(column: ColumnSpec, value: str) -> str:
    """A landed text of an encrypted column as the warehouse has it; NULL where it is no value."""
    form = _form(column, value)
    return (
        f"case when clean({value}) is null{_or_token(column, value)} then null "
        f"when {form} is not null then {_envelope(_hint(column, form), form)} "
        f"else {unfit_sql(value)} end"
    )


def _hint(column: ColumnSpec, form: str) -> str:
    part = HINTS.get((column.pii or "", column.sealed_type or ""))
    if part is None:
        return "''"
    return f"left({form}, {part.stop})" if part.stop else f"right({form}, {-part.start})"


def anew_sql(column: ColumnSpec, value: str) -> str:
    """A value of an encrypted column, sealed with another key or not yet, sealed with this one."""
    is_sealed = f"regexp_full_match({value}, {literal(SEALED)})"
    return f"case when {is_sealed} then {_ANEW}({value}) else {sealed_sql(column, value)} end"


def unfit_sql(value: str) -> str:
    """A text sealed as it is, of which it is not known what it holds."""
    return f"case when {value} <> '' then {_envelope(literal(UNFIT), value)} else {value} end"


def _envelope(hint: str, value: str) -> str:
    return f"concat({hint}, '{SEPARATOR}', key_id(), '{SEPARATOR}', {_CIPHERTEXT}({value}))"


def _form(column: ColumnSpec, value: str) -> str:
    kind = column.sealed_type or "text"
    word = kind.replace("(", " ").split()[0]
    if word not in _FORMS:
        return _TEXT_FORMS.get(column.pii or "", "clean({v})").format(v=value)
    digits = kind.partition("(")[2].rstrip(")").split(",")
    precision, scale = digits if len(digits) == 2 else ("", "")
    return _FORMS[word].format(v=value, precision=precision, scale=scale)


def _or_token(column: ColumnSpec, value: str) -> str:
    if not column.null_tokens:
        return ""
    tokens = ", ".join(literal(token.upper()) for token in column.null_tokens)
    return f" or upper(clean({value})) in ({tokens})"


def sealed_columns(columns: Iterable[ColumnSpec], of: str) -> dict[str, str]:
    """Encrypted column -> how it is read from the relation `of`."""
    return {c.name: sealed_sql(c, f"{of}.{identifier(c.name)}") for c in columns if c.sealed_type}
