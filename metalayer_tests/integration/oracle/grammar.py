"""What a landed text means: the one grammar of numbers, dates, instants and flags, in plain Python.

Belongs here: functions from one text to one value, `None` where the text is not of the type.
Does not belong here: which column has which type (`silver.py`), or anything the platform runs; this
is written from the meanings alone, so that it can disagree with the platform.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TypeVar

Value = TypeVar("Value")

BLANKS = " \t\r\n\u00a0"
NULL_TOKENS = frozenset({"NULL", "N/A", "NA", "-"})
MOST_DIGITS = 30

_PLAIN = re.compile(r"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(?:[eE]([+-]?[0-9]{1,2}))?")
_GROUPED = re.compile(r"([+-]?)([0-9]{1,3}(?:,[0-9]{3})+)(?:\.([0-9]*))?")
_ISO = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?"
    r" ?(Z|z|([+-])([0-9]{2})(?::?([0-9]{2}))?)?)?"
)
_COMPACT = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")
_DAY_FIRST = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})")
_FLAGS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}


def clean(text: str | None) -> str | None:
    """The text without surrounding blanks; `None` where nothing is left."""
    return None if text is None else (text.strip(BLANKS) or None)


def clean_or_token(text: str | None) -> str | None:
    """`clean`, and `None` for the tokens that exports write in place of a missing value."""
    cleaned = clean(text)
    return None if cleaned is not None and cleaned.upper() in NULL_TOKENS else cleaned


def _number(text: str) -> tuple[int, int] | None:
    """(m, e) with the number = m * 10**e and m free of trailing zeros; (0, 0) for zero."""
    if found := _PLAIN.fullmatch(text):
        sign, whole, fraction, bare_fraction, exponent = found.groups()
        fraction = fraction or bare_fraction or ""
    elif found := _GROUPED.fullmatch(text):
        sign, whole, fraction = found.groups()
        whole, fraction, exponent = whole.replace(",", ""), fraction or "", None
    else:
        return None
    digits = (whole or "") + fraction
    if len(digits) + len((exponent or "").lstrip("+-")) > MOST_DIGITS:
        return None
    mantissa, power = int(digits), int(exponent or 0) - len(fraction)
    if mantissa == 0:
        return 0, 0
    while mantissa % 10 == 0:
        mantissa, power = mantissa // 10, power + 1
    return (-mantissa if sign == "-" else mantissa), power


def bigint(text: str) -> int | None:
    """The integral number a text says, if it fits in 64 bits."""
    number = _number(text.strip(BLANKS))
    if number is None or number[1] < 0:
        return None
    value = int(number[0] * 10 ** number[1])
    return value if -(2**63) <= value < 2**63 else None


def numeric(precision: int, scale: int) -> Callable[[str], Decimal | None]:
    """A reader of numbers that fit numeric(precision, scale) without rounding."""

    def read(text: str) -> Decimal | None:
        number = _number(text.strip(BLANKS))
        if number is None or number[1] + scale < 0:
            return None
        unscaled = number[0] * 10 ** (number[1] + scale)
        return Decimal(unscaled).scaleb(-scale) if abs(unscaled) < 10**precision else None

    return read


def day(text: str) -> date | None:
    """The date as written; a time and zone beside it must be possible but shift nothing."""
    return None if (read := _written(text)) is None else read[0].date()


def instant(text: str) -> datetime | None:
    """The naive UTC instant: a zone is shifted away, no zone means UTC, no time means midnight."""
    if (read := _written(text)) is None:
        return None
    try:
        return read[0] - read[1]
    except OverflowError:
        return None


def _written(text: str) -> tuple[datetime, timedelta] | None:
    """The wall clock a text shows and how far its zone is ahead of UTC."""
    text = text.strip(BLANKS)
    zone = timedelta()
    clock = (0, 0, 0, 0)
    if found := _ISO.fullmatch(text):
        year, month, dom = (int(part) for part in found.group(1, 2, 3))
        hour, minute, second = (int(part or 0) for part in found.group(4, 5, 6))
        clock = (hour, minute, second, int((found[7] or "").ljust(6, "0")[:6]))
        if found[9]:
            hours, minutes = int(found[10]), int(found[11] or 0)
            if hours > 23 or minutes > 59:
                return None
            zone = timedelta(hours=hours, minutes=minutes) * (-1 if found[9] == "-" else 1)
    elif found := _COMPACT.fullmatch(text):
        year, month, dom = (int(part) for part in found.groups())
    elif found := _DAY_FIRST.fullmatch(text):
        dom, month, year = (int(part) for part in found.groups())
    else:
        return None
    try:
        return datetime.combine(date(year, month, dom), time(*clock)), zone
    except ValueError:
        return None


def flag(text: str) -> bool | None:
    """true/false/t/f/yes/no/y/n/1/0 in any case."""
    return _FLAGS.get(text.strip(BLANKS).lower())


def month_of(moment: date) -> date:
    """The first day of the month of a date or an instant."""
    return date(moment.year, moment.month, 1)


class Remembered(dict[str, Value | None]):
    """A reader that reads each distinct text once: exports repeat their values."""

    def __init__(self, read: Callable[[str], Value | None]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> Value | None:
        value = self[text] = self._read(text)
        return value
