"""Text that a spreadsheet would run as a formula, made harmless and back again.

A cell that begins with `=`, `+`, `-`, `@`, a tab or a line end is a formula to a spreadsheet, and a
formula can send a file's content anywhere. An apostrophe before it makes it text. A number with its
sign stays a number. Both ways are exact: `restored(defused(text)) == text` for any text, because an
apostrophe that stands before such a sign already gets another.

Does not belong here: writing CSV (`metalayer.cli.formats`, `metalayer.landing.export`).
"""

from __future__ import annotations

import re

# The wide forms too, which East Asian spreadsheets take for the same.
_SIGNS = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"
#: The same expressions for Python and for DuckDB (RE2).
FORMULA = f"^'*[{_SIGNS}]"
DEFUSED = f"^'+[{_SIGNS}]"
NUMBER = r"[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?"

_formula, _defused, _number = re.compile(FORMULA), re.compile(DEFUSED), re.compile(NUMBER)


def defused(text: str) -> str:
    """The text with an apostrophe before it, if a spreadsheet would take it for a formula."""
    if _formula.match(text) and not _number.fullmatch(text):
        return f"'{text}"
    return text


def restored(text: str) -> str:
    """The text that `defused` was given."""
    return text[1:] if _defused.match(text) else text


def defused_sql(value: str) -> str:
    """`defused` in DuckDB, of an expression that gives text."""
    return (
        f"case when regexp_matches({value}, {_literal(FORMULA)}) "
        f"and not regexp_full_match({value}, {_literal(NUMBER)}) "
        f"then '''' || {value} else {value} end"
    )


def restored_sql(value: str) -> str:
    """`restored` in DuckDB, of an expression that gives text."""
    matches = f"regexp_matches({value}, {_literal(DEFUSED)})"
    return f"case when {matches} then substr({value}, 2) else {value} end"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
