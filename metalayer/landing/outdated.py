"""Live deliveries that would now be read otherwise, and reading them again.

Their contract or the first month has changed, or a month that was still to come has come.

Does not belong here: files that are new (`ledger.py`), or parses that were only lost (`parsed.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from metalayer.errors import LandingError
from metalayer.landing.entries import Entries
from metalayer.landing.files import Skipped
from metalayer.landing.judge import AFTER_THE_CURRENT_MONTH
from metalayer.landing.parsed import parse_landed
from metalayer.landing.reader import ErasedFound, FileInFlux, Parsed
from metalayer.landing.shape import Terms
from metalayer.settings import Settings


@dataclass
class Outdated:
    """A live delivery, and what reading it again gave."""

    delivery_id: int
    terms: Terms
    file: str
    sha256: str
    month: date
    parsed: Parsed | None = None
    refusal: LandingError | None = None

    def read(self, settings: Settings) -> None:
        """Parse its landed file by the terms of today."""
        path = settings.landing / self.file
        try:
            self.parsed = parse_landed(
                path, self.terms.shape, self.month, self.sha256, settings.parsed_dir
            )
        except LandingError as refusal:
            self.refusal = refusal


def outdated_deliveries(cursor: Any, terms: Mapping[str, Terms]) -> list[Outdated]:
    """Every live delivery of the sources that has to be read again, oldest first."""
    cursor.execute(
        "select delivery_id, source, file, sha256, fallback_month, shape, (select min(month) "
        "from meta.quarantine as q where q.delivery_id = d.delivery_id and q.rule like %s) "
        "from meta.deliveries as d where status = 'loaded' and source = any(%s) "
        "order by delivery_id",
        (f"{AFTER_THE_CURRENT_MONTH}%", list(terms)),
    )
    found = []
    for delivery, source, file, sha256, month, version, to_come in cursor.fetchall():
        now = terms[source]
        has_come = to_come is not None and to_come <= now.shape.last_month
        if version != now.version or has_come:
            found.append(Outdated(delivery, now, file, sha256, month))
    return found


def record_again(entries: Entries, outdated: Sequence[Outdated]) -> list[Skipped]:
    """Record what reading again gave, of those that are still live.

    Returns:
        Those that could not be read, with the reason.
    """
    entries.cursor.execute(
        "select delivery_id from meta.deliveries where delivery_id = any(%s) and status = 'loaded'",
        ([o.delivery_id for o in outdated],),
    )
    live = {delivery for (delivery,) in entries.cursor.fetchall()}
    skipped = []
    for o in outdated:
        if o.delivery_id not in live:
            continue  # a newer version of the file has come meanwhile
        if isinstance(o.refusal, FileInFlux | ErasedFound):
            reason = f"it has to be read again, and it cannot be: {o.refusal}"
            skipped.append(Skipped(o.file, reason))
        elif o.refusal is not None:
            entries.retire(o.delivery_id, o.sha256, o.month, "rejected", str(o.refusal))
        elif o.parsed is not None:
            entries.file_again(o.delivery_id, o.sha256, o.month, o.parsed)
    return skipped
