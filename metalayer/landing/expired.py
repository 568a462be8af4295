"""Before which month the records of a source have expired, so that files are taken in without them.

Does not belong here: how long rows are kept (`governance/retention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any


@dataclass(frozen=True)
class Expiry:
    """Which months of a source are kept no longer.

    Attributes:
        before: First day of the first month that is kept.
        held: Earlier months that stay all the same.
        tokens: Kind of person -> hashes of the numbers of those who are on legal hold.
        prefixes: Kind of person -> what stands before a number when it is hashed.
    """

    before: date
    held: frozenset[date] = frozenset()
    tokens: Mapping[str, frozenset[str]] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict, repr=False)


def load_expiry(cursor: Any) -> dict[str, Expiry]:
    """Source -> which of its months are kept no longer, for sources that have any."""
    cursor.execute("select source, expired_before, held_months from meta.retention")
    return {source: Expiry(before, frozenset(held)) for source, before, held in cursor.fetchall()}


def note_expiry(cursor: Any, expiries: Mapping[str, Expiry]) -> None:
    """Remember it for whatever lands. The caller sees to it that no limit goes back."""
    for source, expiry in expiries.items():
        cursor.execute(
            "insert into meta.retention (source, expired_before, held_months) "
            "values (%s, %s, %s) on conflict (source) do update set "
            "expired_before = excluded.expired_before, "
            "held_months = excluded.held_months, since = now()",
            (source, expiry.before, sorted(expiry.held)),
        )
