"""Which landed files the ledger does not know as they are now. Nothing is read but the ledger.

Does not belong here: reading or judging the files (`ledger.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metalayer.landing.entries import Candidate
from metalayer.landing.files import LandedFile, Skipped
from metalayer.landing.shape import Terms, delivery_month


def awaiting(
    cursor: Any, terms: Mapping[str, Terms], files: Sequence[LandedFile]
) -> tuple[list[Candidate], list[Skipped]]:
    """The files that are to be taken in, in the order of `files`.

    Returns:
        Those whose state is not in the ledger, with their place among the deliveries where they
        have one already; and those that were withdrawn as they are.
    """
    cursor.execute(
        "select delivery_id, source, file, size, mtime_ns, sha256 <> '', status, shape, "
        "delivery_id = max(delivery_id) over (partition by source, file) "
        "from meta.deliveries order by delivery_id"
    )
    known: dict[tuple[str, str, int, int], str] = {}
    places: dict[tuple[str, str, int, int], int] = {}
    refused: set[tuple[str, str]] = set()
    for delivery, source, file, *state, was_read, status, shape, is_newest in cursor:
        now = (source, file, *state)
        of_source = terms.get(source)
        if status == "rejected":
            refused.add((source, file))
        # What other terms refused, or what could not even be read, gets another chance. It keeps
        # the place it was read at: what landed after it is newer.
        if status == "rejected" and (
            not was_read or of_source is None or shape != of_source.judged_by
        ):
            # One that could not be read so gets no new entry at each look.
            if is_newest:
                places[now] = delivery
        elif status != "superseded":
            known[now] = status
    found: list[Candidate] = []
    withdrawn: list[Skipped] = []
    for file in files:
        now = (file.source.name, file.name, file.size, file.mtime_ns)
        if known.get(now) == "withdrawn":
            reason = f"it was withdrawn; `metalayer land {file.path}` takes it in again"
            withdrawn.append(Skipped(file.name, reason))
        elif now not in known:
            was_refused = (file.source.name, file.name) in refused
            place = places.get(now, 0)
            found.append(
                Candidate(file, terms[file.source.name], delivery_month(file), place, was_refused)
            )
    return found, withdrawn
