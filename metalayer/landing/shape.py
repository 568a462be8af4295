"""What the reader must know about a source, derived from its contract; and where parses are kept.

Belongs here: the bridge between a contract and one delivery of its source. Does not belong here:
reading (`reader.py`) or recording (`ledger.py`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import cast, get_args

from metalayer.contracts.contract import SourceSpec, TableSpec
from metalayer.landing.files import LandedFile
from metalayer.landing.judge import ColumnType
from metalayer.landing.raw import UNPACKING, Unpacking
from metalayer.landing.reader import LandedColumn, SourceShape
from metalayer.settings import Settings

_MONTH_IN_NAME = re.compile(r"_(\d{4})-(0[1-9]|1[0-2])(?!\d)")
#: A column of files that mend rows of other deliveries: it names the row each of theirs stands for.
REPAIRS_COLUMN = "_repairs"
#: Raised when the reader gives other rows for the same bytes, so that kept parses are not used.
_PARSE_FORMAT = 1


@dataclass(frozen=True)
class Terms:
    """What the files of one source are read and judged by.

    Attributes:
        spec: The silver table they feed.
        shape: What the reader must know of it.
        version: Fingerprint of what a parse depends on.
        judged_by: The same, and the limits past which a file that can be read is refused.
    """

    spec: TableSpec
    shape: SourceShape
    version: str
    judged_by: str

    @property
    def source(self) -> SourceSpec:
        """The facts of the source."""
        assert self.spec.source is not None
        return self.spec.source

    @property
    def is_snapshot(self) -> bool:
        """Whether a delivery brings the whole state."""
        return self.source.kind == "snapshot"

    @property
    def bronze(self) -> str:
        """The table that holds what was delivered."""
        return f"bronze.{self.spec.name}"

    @property
    def contract(self) -> str:
        """Where the limits are written, for messages."""
        return f"contracts/{self.spec.layer}/{self.spec.name}.py"


def terms_of(
    spec: TableSpec, first_month: date, today: date, unpacking: Unpacking | None = None
) -> Terms:
    """The terms for files that feed `spec`; months run from `first_month` to today's."""
    assert spec.source is not None
    shape = shape_of(spec, first_month, today, unpacking)
    version = shape_version(shape)
    limits = (spec.max_reject_rate, spec.max_rejects, spec.source.max_shrink)
    parts = (version, limits, spec.source.kind, spec.source.on_new_column, shape.unpacking)
    return Terms(spec, shape, version, hashlib.sha256(repr(parts).encode()).hexdigest()[:16])


def shape_of(
    spec: TableSpec, first_month: date, today: date, unpacking: Unpacking | None = None
) -> SourceShape:
    """The shape of the files that feed `spec`; months run from `first_month` to today's."""
    assert spec.source is not None
    columns = tuple(
        LandedColumn(c.name, _kind(c.sealed_type or c.type), required=not c.nullable or c.is_key)
        for c in spec.landed
    )
    return SourceShape(
        name=spec.source.name,
        columns=columns,
        key=tuple(c.name for c in spec.landed if c.is_key),
        month_column=spec.source.month_from,
        first_month=first_month,
        last_month=today.replace(day=1),
        unpacking=unpacking or UNPACKING,
    )


def unpacking_of(settings: Settings) -> Unpacking:
    """How far the settings let a gzip unfold."""
    return Unpacking(settings.max_unpacked_mb * 1024**2, settings.max_unpack_ratio)


def _kind(sql_type: str) -> ColumnType:
    """How the reader looks at a column of this PostgreSQL type."""
    for kind in get_args(ColumnType):
        if sql_type.partition("(")[0] == kind:
            return cast(ColumnType, kind)
    return "numeric" if sql_type == "double precision" else "text"


def shape_version(shape: SourceShape) -> str:
    """Fingerprint of what a parse depends on besides the bytes, but for today's date."""
    parts = (
        _PARSE_FORMAT,
        [astuple(c) for c in shape.columns],
        shape.key,
        shape.month_column,
        shape.first_month,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def parse_name(sha256: str) -> str:
    """How the names of the parses of one content begin, before the first hyphen."""
    return sha256[:40]


def parsed_paths(
    folder: Path, shape: SourceShape, sha256: str, fallback_month: date
) -> tuple[Path, Path]:
    """Where the parsed rows and the rejects of one content are kept."""
    stem = f"{parse_name(sha256)}-{shape_version(shape)}-{fallback_month:%Y%m}"
    source = folder / shape.name.replace("/", "_")
    rows = source / f"{stem}.parquet"
    return rows, rejects_path(rows)


def rejects_path(rows: Path) -> Path:
    """Where the rejects of a parse are kept, told by where its rows are."""
    return rows.with_suffix(".rejects.parquet")


def delivery_month(file: LandedFile) -> date:
    """Month of rows that carry no date: from `_YYYY-MM` in the name, else when the file landed."""
    found = _MONTH_IN_NAME.findall(file.path.name)
    if found:
        year, month = found[-1]
        return date(int(year), int(month), 1)
    return datetime.fromtimestamp(file.mtime_ns / 1e9, UTC).date().replace(day=1)
