"""The same content again: which deliveries say what a file says, and who stands in for whom.

Equal bytes are loaded once. Their copies are remembered, and one of them takes over when the file
that was loaded is replaced or withdrawn.

Does not belong here: files whose content is new (`ledger.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metalayer.errors import LandingError
from metalayer.landing.entries import Candidate, Entries
from metalayer.landing.parsed import parse_landed


def same_content(entries: Entries, candidate: Candidate) -> tuple[int, str] | None:
    """The live delivery that already says what the candidate says, and its file.

    Where the month is not in the rows it is part of what they say; and another file's snapshot
    says the same only while it is the newest of its month.
    """
    terms = entries.terms
    entries.cursor.execute(
        "select d.delivery_id, d.file from meta.deliveries as d where d.source = %s "
        "and d.sha256 = %s and d.status = 'loaded' "
        "and (not %s or d.fallback_month = %s) and (not %s or d.file = %s or not exists ("
        "select from meta.deliveries as n where n.source = d.source and n.status = 'loaded' "
        "and n.fallback_month = d.fallback_month and n.delivery_id > d.delivery_id "
        "and not n.is_repair)) "
        "order by d.file <> %s, d.delivery_id limit 1",
        (
            terms.source.name,
            candidate.sha256,
            terms.shape.month_column is None,
            candidate.month,
            terms.is_snapshot,
            candidate.landed.name,
            candidate.landed.name,
        ),
    )
    found = entries.cursor.fetchone()
    return (int(found[0]), str(found[1])) if found else None


def touched(entries: Entries, candidate: Candidate, live: int) -> bool:
    """Whether the file has its entry already: as the live delivery, or as its twin."""
    file = (entries.terms.source.name, candidate.landed.name)
    entries.cursor.execute(
        "update meta.deliveries set mtime_ns = %s where source = %s and file = %s "
        "and (delivery_id = %s or (status = 'duplicate' and related_delivery_id = %s "
        "and delivery_id = (select max(delivery_id) from meta.deliveries "
        "where source = %s and file = %s)))",
        (candidate.landed.mtime_ns, *file, live, live, *file),
    )
    return bool(entries.cursor.rowcount)


def promote_copies(entries: Entries, landed: Mapping[str, Path]) -> list[str]:
    """Load a duplicate whose original has left: its own file still says the same.

    It keeps its place among the deliveries: what replaced the original is newer than the copy.

    Args:
        landed: Files of the source in the landing zone, and where they are.

    Returns:
        The files that are loaded now.
    """
    cursor, terms = entries.cursor, entries.terms
    # Where the rows carry no month, equal bytes in two months are not the same.
    undated = terms.shape.month_column is None
    cursor.execute(
        "select distinct on (d.sha256, case when %s then d.fallback_month end) "
        "d.delivery_id, d.file, d.sha256, d.fallback_month "
        "from meta.deliveries as d where d.source = %s and d.status = 'duplicate' "
        "and not exists (select from meta.deliveries as o "
        "where o.delivery_id = d.related_delivery_id and o.status = 'loaded') "
        "and not exists (select from meta.deliveries as n where n.source = d.source "
        "and n.file = d.file and n.delivery_id > d.delivery_id) "
        "and d.file = any(%s) "
        "order by d.sha256, case when %s then d.fallback_month end, d.delivery_id",
        (undated, terms.source.name, list(landed), undated),
    )
    promoted = []
    for delivery, file, sha256, month in cursor.fetchall():
        try:
            parsed = parse_landed(
                landed[file], terms.shape, month, sha256, entries.settings.parsed_dir
            )
        except LandingError:
            continue  # it has changed meanwhile, and is read the next time
        cursor.execute(
            "update meta.deliveries set status = 'loaded', reason = null, "
            "related_delivery_id = null where delivery_id = %s",
            (delivery,),
        )
        cursor.execute(
            "update meta.deliveries set related_delivery_id = %s, reason = %s "
            "where source = %s and sha256 = %s and status = 'duplicate' "
            "and (not %s or fallback_month = %s)",
            (
                delivery,
                f"the same content as {file}",
                terms.source.name,
                sha256,
                undated,
                month,
            ),
        )
        entries.file_again(delivery, sha256, month, parsed)
        promoted.append(file)
    return promoted
