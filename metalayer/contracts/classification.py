"""What a contract may say of how personal and how sensitive a column is.

Belongs here: the closed vocabulary and what follows from a word of it. Does not belong here: how
tags follow the SELECTs (`governance/flow.py`), or what is done about them (masks, samples).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from metalayer.errors import ContractError

#: Kinds of personal data. `free_text` is what may hold any of the others.
Pii = Literal["name", "email", "phone", "address", "birth_date", "national_id", "free_text"]
#: From what anybody may see to what few may.
Sensitivity = Literal["public", "internal", "confidential", "restricted"]

#: The number of everybody who was erased: the smallest there is, which no export gives to somebody.
ANONYMOUS = str(-(2**63))

_KINDS: tuple[str, ...] = get_args(Pii)
_PERSON = re.compile(r"[a-z][a-z0-9_]*")
_LEVELS: tuple[Sensitivity, ...] = get_args(Sensitivity)
_BY_KIND: Mapping[str, Sensitivity] = {"birth_date": "restricted", "national_id": "restricted"}


def checked_kind(kind: str | None, where: str) -> str | None:
    """The kind as declared; `ContractError` with the choices when it is none of them."""
    if kind is not None and kind not in _KINDS:
        raise ContractError(f"{where} has the unknown pii {kind!r}", f"Use one of {_list(_KINDS)}")
    return kind


def checked_sensitivity(level: str | None, kind: str | None, where: str) -> Sensitivity:
    """The level as declared, or what the kind of personal data stands for."""
    if level is None:
        return default_sensitivity(kind)
    for known in _LEVELS:
        if level == known:
            return known
    raise ContractError(
        f"{where} has the unknown sensitivity {level!r}", f"Use one of {_list(_LEVELS)}"
    )


def checked_reason(reason: str | None, where: str) -> str | None:
    """Why a column is no longer what it was made from; an empty reason is none."""
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise ContractError(
            f"{where} is declassified without a reason", 'Write declassified="count only" or so'
        )
    return reason


def checked_person(word: str | None, where: str) -> str | None:
    """Whom a column's values number; `ContractError` when it is no plain word."""
    if word is not None and not (isinstance(word, str) and _PERSON.fullmatch(word)):
        raise ContractError(
            f"{where} identifies {word!r}", 'Name whom in one word, like identifies="customer"'
        )
    return word


def default_sensitivity(kind: str | None) -> Sensitivity:
    """What a column is that says nothing: personal data is confidential, some kinds restricted."""
    return "internal" if kind is None else _BY_KIND.get(kind, "confidential")


def covers(kind: str | None, origin: str) -> bool:
    """Whether a column of this kind protects values of `origin`'s kind."""
    return kind in (origin, "free_text")


def is_lower(level: Sensitivity, origin: Sensitivity) -> bool:
    """Whether more people may see `level` than `origin`."""
    return _LEVELS.index(level) < _LEVELS.index(origin)


def _list(words: tuple[str, ...]) -> str:
    return ", ".join(words)
