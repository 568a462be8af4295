"""Values as JSON and CSV, exactly: a decimal keeps its digits, a day is ISO text.

Does not belong here: tables for people (`metalayer.console`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from metalayer.spreadsheets import defused

_NEEDS_QUOTES = re.compile(r'[,"\r\n]|^\s|\s$')
_quote = json.JSONEncoder(ensure_ascii=False).encode
# As PostgreSQL spells them.
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def json_text(value: Any) -> str:
    """A value as JSON. Dataclasses are objects; NaN and infinities, which JSON lacks, are text."""
    match value:
        case str():
            return _quote(value)
        case None | bool() | int():
            return json.dumps(value)
        case Decimal():
            return format(value, "f") if value.is_finite() else f'"{value}"'
        case float():
            return repr(value) if math.isfinite(value) else f'"{_NOT_FINITE[str(value)]}"'
        case datetime() | date():
            return json.dumps(value.isoformat())
        case dict():
            pairs = (f"{_quote(str(k))}: {json_text(v)}" for k, v in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(json_text, value)) + "]"
        case _ if dataclasses.is_dataclass(value):
            return json_text({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
        case _:
            return _quote(str(value))


def json_lines(values: Iterable[Any]) -> Iterator[str]:
    """A JSON list, one element a line, made while the values come."""
    before = "["
    for value in values:
        yield f"{before}\n  {json_text(value)}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def csv_line(values: Sequence[Any], *, is_raw: bool = True) -> str:
    """A line of CSV as PostgreSQL's COPY reads it: NULL is nothing, an empty text is `""`.

    Args:
        is_raw: Whether texts are written as they are, also those that a spreadsheet takes for
            formulas.
    """
    if not is_raw:
        values = [defused(value) if isinstance(value, str) else value for value in values]
    return ",".join(map(_csv_field, values)) + "\n"


def plain(value: Any) -> str:
    """A value as text: text as it is, decimals with their digits, everything else as JSON."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    text = json_text(value)
    return text.strip('"') if isinstance(value, float | Decimal) else text


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    text = plain(value)
    if not text or text == "\\." or _NEEDS_QUOTES.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text
