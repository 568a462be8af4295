"""One landed CSV file -> its rows and its rejected records, as two Parquet files; nothing lost.

    bytes --raw, normalise--> clean lines --header, judge, quotes--> records --records--> Parquet

Here belongs the public face of reading, and the order of its steps:
- raw.py: do the bytes stand still, what is their fingerprint, are they packed;
- normalise.py: encoding, line ends, NUL bytes;
- header.py: which column is which;
- judge.py: what a record means, in SQL that records.py has DuckDB run over all lines at once;
- quotes.py: the few lines whose quotes need a closer look.
Which delivery of a key counts, and the ledger, do not belong here: a parse knows one file and its
source's shape. Of every file: rows read = rows in `rows_out` + rows in `rejects_out`.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from metalayer.errors import LandingError
from metalayer.landing.header import MissingColumns, read_header
from metalayer.landing.judge import LandedColumn, SourceShape
from metalayer.landing.normalise import clean_lines, normalise
from metalayer.landing.raw import FileInFlux, Fingerprint, fingerprint
from metalayer.landing.records import Records
from metalayer.landing.renames import first_values
from metalayer.outages import is_full_disk

__all__ = [
    "ErasedFound",
    "FileInFlux",
    "Fingerprint",
    "LandedColumn",
    "Parsed",
    "SourceShape",
    "fingerprint",
    "parse",
]


@dataclass(frozen=True)
class Parsed:
    """What was found in a file.

    Attributes:
        fingerprint: of the raw bytes that were parsed.
        rows_read: records in the file, good and rejected; the header and blank lines are none.
        rows_rejected: records that are in `rejects_out`.
        months: good rows per month (its first day).
        extra_columns: header names that the contract does not know.
        missing_columns: columns, none of them required, that the header does not have.
        encoding, delimiter: as found.
    """

    fingerprint: Fingerprint
    rows_read: int
    rows_rejected: int
    months: dict[date, int]
    extra_columns: tuple[str, ...]
    missing_columns: tuple[str, ...]
    encoding: str
    delimiter: str


def parse(
    path: Path, shape: SourceShape, fallback_month: date, rows_out: Path, rejects_out: Path
) -> Parsed:
    """Read one landed file.

    `rows_out` gets one row per good record, in no order that counts: each landed column as text
    (NULL where empty or missing), `_extra` (a JSON object of the unknown columns that are not
    empty, or NULL), `_line` (bigint, the physical line the record begins on), `month` (date, its
    first day) and `_key` (its parts in canonical text, joined by U+001F; NULL if one is none of its
    type).
    `rejects_out` gets one row per rejected record: `_line`, `month` (or NULL), `column` (or NULL),
    `rule`, `value` (up to 200 characters, or NULL) and `raw` (up to 10,000, NUL shown as U+2400).
    Both are written in full or not at all, and replace what is there.

    Args:
        path: the file, plain or gzip.
        shape: of its source.
        fallback_month: any day of the month that rows get whose source has no month column.
        rows_out, rejects_out: Parquet files in folders that exist.

    Raises:
        LandingError: the file is refused as a whole; the message names it and the cause.
        FileInFlux: it changed or vanished while it was read; worth another try.
        ErasedFound: it has records that are to go, by `shape.erasing`.
    """
    with _folder_beside(rows_out) as folder:
        lines_path = folder / "lines"
        facts = normalise(path, lines_path, shape.unpacking)
        try:
            with closing(clean_lines(lines_path)) as lines:
                header = read_header(
                    path.name,
                    lines,
                    [column.name for column in shape.columns],
                    [column.name for column in shape.columns if column.required],
                )
        except MissingColumns as refusal:
            with closing(clean_lines(lines_path)) as lines:
                refusal.values = first_values(lines, refusal)
            raise
        records = Records(folder, lines_path, facts, header, shape, fallback_month)
        # Beside their destinations: a rename is atomic only within one file system.
        with closing(records), _folder_beside(rejects_out) as rejects_folder:
            rows, rejects = folder / "rows", rejects_folder / "rejects"
            try:
                records.read()
                spans, expired = records.erased()
                if spans:
                    raise ErasedFound(path.name, spans, facts.fingerprint.sha256, expired)
                rows_read, rows_rejected, months = records.counts()
                records.write(rows, rejects)
            except duckdb.OutOfMemoryException as error:
                if is_full_disk(error):
                    raise
                raise LandingError(
                    f"{path.name} does not fit in memory: {facts.line_count:,} lines of up to "
                    f"{facts.longest_line // 1024} kB",
                    "Split it into smaller files, or shorten its longest fields.",
                ) from error
            rejects.replace(rejects_out)
            rows.replace(rows_out)
    return Parsed(
        fingerprint=facts.fingerprint,
        rows_read=rows_read,
        rows_rejected=rows_rejected,
        months=months,
        extra_columns=tuple(name for name, _ in header.extra),
        missing_columns=header.missing,
        encoding=facts.encoding,
        delimiter=header.delimiter,
    )


class ErasedFound(LandingError):  # noqa: N818 - no error of the file's
    """A file has records of persons who were erased, or of months that are kept no longer.

    Attributes:
        spans: First and last line of each of them.
        sha256: Of the content that has them.
        expired: The first lines of those of such months.
    """

    def __init__(
        self,
        name: str,
        spans: list[tuple[int, int]],
        sha256: str,
        expired: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__(
            f"{name} has records of persons who were erased, or of months that are kept no longer",
            "The next build takes them out of it.",
        )
        self.spans = spans
        self.sha256 = sha256
        self.expired = expired


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A folder of our own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=".parse-", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
