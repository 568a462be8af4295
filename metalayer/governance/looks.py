"""What values look like: whether texts read as e-mail addresses, phone numbers and the like.

Values are judged by themselves; a look is believed of a column when enough of its values have it,
as numbers of any meaning pass a check digit one time in ten. Does not belong here: which values are
looked at, and what is said of them (`scan.py`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import phonenumbers
import polars as pl
from stdnum import iban, luhn

_EMAIL = r"[A-Za-z0-9._%+'-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
# Digits with what people put between them, but no decimal number, and no day.
_DAY = r"\d{4}[./-]\d\d[./-]\d\d$|\d\d?[./-]\d\d?[./-]\d{4}$"
_DIALLED = re.compile(rf"(?!\d+\.\d+$|{_DAY})[+(]?[\d ()./-]{{6,24}}\d")
_CARD = re.compile(r"(?:4|5[1-5]|2[2-7]|3[47]|3[068]|6)\d{11,18}")
_BETWEEN_DIGITS = re.compile(r"[ -]")
#: Numbers that states give to people, as modules of python-stdnum.
_NATIONAL_IDS = (
    *("us.ssn", "us.itin", "ca.sin", "mx.curp", "br.cpf", "gb.nhs", "ie.pps", "de.idnr", "fr.nir"),
    *("es.dni", "es.nie", "pt.cc", "it.codicefiscale", "nl.bsn", "be.nn", "ch.ssn", "at.vnr"),
    *("dk.cpr", "fi.hetu", "se.personnummer", "no.fodselsnummer", "pl.pesel", "cz.rc", "ro.cnp"),
    *("hr.oib", "bg.egn", "ee.ik", "lt.asmens", "si.emso", "gr.amka", "tr.tckimlik", "za.idnr"),
    *("au.tfn", "cn.ric", "kr.rrn", "in_.aadhaar", "in_.pan"),
)
_LEAST_VALUES = 10
# They have no check digit: any nine digits would do.
_NEED_HYPHENS = frozenset({"us.ssn", "us.itin"})


def is_enough(count: int, of: int, least_share: float) -> bool:
    """Whether so many values of a column are no chance: that share of them, and not just a few."""
    return count >= max(_LEAST_VALUES, least_share * of)


@dataclass(frozen=True)
class Look:
    """One way to look personal.

    Attributes:
        what: What the values look like, in the plural.
        tag: What a contract says of a column with such values, as arguments of `column()`.
        least_share: Share of a column's distinct values that must look so; 0: one is enough.
        finds: Distinct texts -> for each whether it does.
    """

    what: str
    tag: str
    least_share: float
    finds: Callable[[pl.Series], pl.Series]

    def is_believed(self, count: int, of: int) -> bool:
        """Whether a column looks so of whose `of` distinct values `count` do."""
        return count > 0 and (not self.least_share or is_enough(count, of, self.least_share))


def looks(region: str) -> Iterator[Look]:
    """All of them.

    Args:
        region: Country (ISO 3166, two letters) in which phone numbers without one are dialled.
    """
    restricted = 'pii="free_text", sensitivity="restricted"'
    yield Look("e-mail addresses", 'pii="email"', 0, lambda texts: texts.str.contains(_EMAIL))
    yield Look("bank accounts (IBAN)", restricted, 0, _each(iban.is_valid))
    yield Look("payment card numbers", restricted, 0.2, _each(_is_card))
    yield Look(
        "phone numbers", 'pii="phone"', 0.5, _each(lambda text: _is_phone_number(text, region))
    )
    for name in _NATIONAL_IDS:
        country, _, kind = name.rstrip("_").partition(".")
        what = f"national ids ({country.rstrip('_').upper()} {kind})"
        yield Look(what, 'pii="national_id"', 0.5, _each(_checker(name)))


def is_region(region: str) -> bool:
    """Whether phone numbers of that country are known."""
    return region in phonenumbers.SUPPORTED_REGIONS


def _each(judge: Callable[[str], bool]) -> Callable[[pl.Series], pl.Series]:
    return lambda texts: texts.map_elements(judge, return_dtype=pl.Boolean)


def _is_phone_number(text: str, region: str) -> bool:
    if not _DIALLED.fullmatch(text):
        return False
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


def _is_card(text: str) -> bool:
    digits = _BETWEEN_DIGITS.sub("", text)
    return _CARD.fullmatch(digits) is not None and luhn.is_valid(digits)


def _checker(name: str) -> Callable[[str], bool]:
    module = importlib.import_module(f"stdnum.{name}")

    def is_valid(text: str) -> bool:
        if name in _NEED_HYPHENS and text.count("-") != 2:
            return False
        try:
            return bool(module.is_valid(text))
        except (ArithmeticError, LookupError, ValueError):
            return False  # a defect of that module: some trip over what is no number of theirs

    return is_valid
