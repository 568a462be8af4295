"""What is held of a person as a ZIP that can be handed to them: JSON for machines, CSV for people.

Does not belong here: finding it (`subjects.py`).
"""

from __future__ import annotations

import csv
import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from metalayer.errors import UsageError
from metalayer.governance.subjects import Subject
from metalayer.landing.export import refuse_to_overwrite
from metalayer.spreadsheets import defused

# Spreadsheets take a file without it for something else than UTF-8.
_BYTE_ORDER_MARK = "\ufeff"


def write_subject(subject: Subject, path: Path) -> None:
    """Write it all or nothing, readable by the owner of the file only.

    Raises:
        UsageError: when the file is there already, or cannot be written.
    """
    refuse_to_overwrite(path)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with (
            os.fdopen(descriptor, "wb") as out,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            _write(subject, archive)
        # Fails where somebody was faster, other than a rename.
        path.hardlink_to(aside)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", "Name a file in a folder of yours"
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _write(subject: Subject, archive: zipfile.ZipFile) -> None:
    document = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(subject)}
    for rejected in document["quarantined"]:
        del rejected["kept"]
    archive.writestr("everything.json", json.dumps(document, indent=2, ensure_ascii=False))
    overview = [
        (h.table, len(h.rows), h.purpose, h.owner, ", ".join(h.recipients)) for h in subject.tables
    ]
    _csv(archive, "overview.csv", ("table", "rows", "held for", "owner", "readers"), overview)
    for held in subject.tables:
        names = list(held.rows[0])
        rows = [[row[name] for name in names] for row in held.rows]
        _csv(archive, f"tables/{held.table}.csv", names, rows)
    meanings = [(h.table, *entry) for h in subject.tables for entry in h.columns.items()]
    _csv(archive, "meanings.csv", ("table", "column", "meaning"), meanings)
    if subject.quarantined:
        rejected = [(r.table, r.file, r.line, r.rule, r.delivered) for r in subject.quarantined]
        names = ["table", "file", "line", "broken rule", "as delivered"]
        _csv(archive, "quarantine.csv", names, rejected)
    lines = [(found.file, line) for found in subject.files for line in found.lines]
    others = [(file, "") for file in subject.other_files]
    _csv(archive, "files.csv", ("file", "line"), [*lines, *others])


def _csv(
    archive: zipfile.ZipFile, name: str, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    with archive.open(name, "w") as raw, io.TextIOWrapper(raw, "utf-8", newline="") as out:
        out.write(_BYTE_ORDER_MARK)
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows([["" if v is None else defused(str(v)) for v in row] for row in rows])
