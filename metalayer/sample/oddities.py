"""Extra files that a landing zone meets: empty, cut off, headless, sent twice.

They repeat rows that the good files have, unchanged, so whether such a file is refused or loaded
makes no row appear or vanish. There are none for snapshots: an empty snapshot says that everybody
is gone, which is a fact and not an accident.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from metalayer.sample.dirt import joined
from metalayer.sample.export import Export
from metalayer.sample.files import GZIPPED, PLAIN, writing

# From this many rows on there is a record with one field of a megabyte; smaller outputs, such as
# the committed sample, stay small.
ROWS_FOR_LONG_FIELD = 50_000


def oddities(
    out: Path, export: Export, clean: pl.DataFrame, labels: Sequence[str], in_first: int, rows: int
) -> Iterator[tuple[Path, int]]:
    """Write the odd files of one export; give each with its number of data records.

    Args:
        clean: some rows of the first month.
        labels: the months, `YYYY-MM`.
        in_first: how many rows the first month's file has.
        rows: how many rows the export has in all.
    """
    columns = list(export.columns)
    first, last = (out / f"{export.name}_{label}" for label in (labels[0], labels[-1]))
    match export.name:
        case "crm/customers":
            yield _write(_named(first, "no_id"), columns[1:], clean)
            yield _write(_named(first, "two_emails"), [*columns, "email"], clean)
            if rows >= ROWS_FOR_LONG_FIELD:
                long = clean.head(1).with_columns(city=pl.lit("long " * 200_000))
                yield _write(_named(first, "long_city"), columns, long)
        case "erp/orders":
            empty = _named(last, "empty")
            empty.write_bytes(b"")
            yield empty, 0
            cut, count = _write(first.with_name(f"{first.name}_cut.csv.gz"), columns, clean)
            cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
            yield cut, count
        case "erp/erp_sales":
            yield _write(_named(last, "header_only"), columns, clean.head(0))
            again = _named(first, "again")
            shutil.copyfile(first.with_name(f"{first.name}.csv"), again)
            yield again, in_first


def _named(month: Path, what: str) -> Path:
    return month.with_name(f"{month.name}_{what}.csv")


def _write(path: Path, columns: list[str], rows: pl.DataFrame) -> tuple[Path, int]:
    with writing(path, GZIPPED if path.suffix == ".gz" else PLAIN) as write:
        write(pl.Series([",".join(columns)]))
        write(rows.select(joined(columns, ",").alias("line")).to_series())
    return path, len(rows)
