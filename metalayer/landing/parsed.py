"""Parsed deliveries: kept in a folder, a pure function of a file's bytes and its contract.

A delivery is parsed when it is registered, and its rows are read from here whenever one of its
months is built. What is missing is parsed again from the landed file.

Does not belong here: how a file is parsed (`reader.py`), or which deliveries there are
(`ledger.py`).
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from metalayer.errors import LandingError
from metalayer.landing.reader import FileInFlux, Parsed, SourceShape, parse
from metalayer.landing.shape import parsed_paths
from metalayer.settings import Settings


def parsed_deliveries(
    cursor: Any,
    shape: SourceShape,
    settings: Settings,
    *,
    since: date | None,
    until: date | None,
) -> dict[int, Path]:
    """Live deliveries of a source with their parsed rows, oldest first.

    Args:
        since, until: Only those with rows in `[since, until)`; None: all.

    Raises:
        LandingError: when a parse is not kept any more and the landed file is gone or changed.
    """
    cursor.execute(
        "select delivery_id, file, sha256, fallback_month from meta.deliveries as d "
        "where source = %(source)s and status = 'loaded' and (%(since)s::date is null or exists ("
        "select from meta.delivery_months as m where m.delivery_id = d.delivery_id "
        "and m.month >= %(since)s::date and m.month < %(until)s::date)) order by delivery_id",
        {"source": shape.name, "since": since, "until": until},
    )
    parsed: dict[int, Path] = {}
    for delivery, file, sha256, month in cursor.fetchall():
        rows, rejects = parsed_paths(settings.parsed_dir, shape, sha256, month)
        if not rows.exists() or not rejects.exists():
            try:
                parse_landed(settings.landing / file, shape, month, sha256, settings.parsed_dir)
            except LandingError as error:
                raise LandingError(
                    f"The rows of {file} are needed, but neither their parse nor the landed file "
                    f"of that content is there any more ({error.message})",
                    f"Land {file} as it was once more, or take it out with "
                    f"`metalayer land --withdraw {file}`",
                ) from error
        parsed[delivery] = rows
    return parsed


def parse_landed(path: Path, shape: SourceShape, month: date, sha256: str, folder: Path) -> Parsed:
    """Parse a landed file whose content is known into the cache of parsed deliveries.

    Raises:
        LandingError: when the file is refused as a whole; `FileInFlux` when it is not the content
            expected (any more).
    """
    rows, rejects = parsed_paths(folder, shape, sha256, month)
    rows.parent.mkdir(parents=True, exist_ok=True)
    parsed = parse(path, shape, month, rows, rejects)
    if parsed.fingerprint.sha256 != sha256:
        rows.unlink(missing_ok=True)
        rejects.unlink(missing_ok=True)
        raise FileInFlux(
            f"{path.name} changed while it was being read", "The next build reads it again"
        )
    return parsed
