"""Lines become files: encodings, delimiters, line ends, headers, compression.

A flavour is one way an export program may write a file. What is wrong with single rows is in
dirt.py, and which file gets which rows is decided in generate.py.
"""

import gzip
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl


def _as_it_is(columns: Sequence[str]) -> list[str]:
    return list(columns)


@dataclass(frozen=True)
class Flavour:
    """How a file is written.

    Attributes:
        encoding: of the text; `mark` are the bytes before it (a byte order mark).
        order: the columns in the order in which the file has them.
        spell: the header as the file has it, from the columns in the file's order.
        extra_column: whether a column no contract knows is added.
        compressed: whether the file is gzipped, without a name or a time in it.
    """

    delimiter: str = ","
    newline: str = "\n"
    encoding: str = "utf-8"
    mark: bytes = b""
    order: Callable[[Sequence[str]], list[str]] = _as_it_is
    spell: Callable[[Sequence[str]], list[str]] = _as_it_is
    extra_column: bool = False
    compressed: bool = False

    @property
    def suffix(self) -> str:
        """What the file's name ends in."""
        return ".csv.gz" if self.compressed else ".csv"


PLAIN = Flavour()
GZIPPED = Flavour(compressed=True)
EXTRA_COLUMN = "channel"

_BOM = Flavour(mark=b"\xef\xbb\xbf")
_CRLF = Flavour(newline="\r\n")
_WINDOWS_1252 = Flavour(encoding="cp1252", newline="\r\n")
_UTF_16 = Flavour(encoding="utf-16-le", mark=b"\xff\xfe")
_SEMICOLONS = Flavour(delimiter=";")
_TABS = Flavour(delimiter="\t")
_REVERSED = Flavour(order=lambda columns: list(reversed(columns)))
_UPPER = Flavour(spell=lambda columns: [column.upper() for column in columns])
_SPACED = Flavour(spell=lambda columns: [f" {column.title()} " for column in columns])
_EXTRA = Flavour(extra_column=True)

# Months take the flavours of their export in turn; six months see them all.
FLAVOURS = {
    "crm/customers": (PLAIN, _WINDOWS_1252, _UTF_16, _UPPER, _SEMICOLONS, GZIPPED),
    "crm/crm_customers": (PLAIN, _CRLF, _WINDOWS_1252, _REVERSED, GZIPPED, _BOM),
    "erp/orders": (PLAIN, _BOM, _CRLF, _EXTRA, GZIPPED, _SEMICOLONS),
    "erp/erp_sales": (PLAIN, _TABS, _SPACED, _UTF_16, _REVERSED, _CRLF),
}


@contextmanager
def writing(path: Path, flavour: Flavour) -> Iterator[Callable[[pl.Series], None]]:
    """Give a function that writes lines to `path`, which appears under its name when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("wb") as file, _packed(file, flavour) as target:
            target.write(flavour.mark)
            yield lambda lines: _write(lines, flavour, target)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _packed(file: BinaryIO, flavour: Flavour) -> Iterator[BinaryIO]:
    if not flavour.compressed:
        yield file
        return
    with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        yield cast(BinaryIO, packed)


def _write(lines: pl.Series, flavour: Flavour, target: BinaryIO) -> None:
    buffer = BytesIO()
    # Lines hold their own quotes, so the writer must add none: it only joins them, quickly.
    pl.DataFrame({"line": lines}).write_csv(
        buffer, include_header=False, quote_style="never", line_terminator=flavour.newline
    )
    if flavour.encoding == "utf-8":
        target.write(buffer.getbuffer())
    else:
        target.write(buffer.getvalue().decode().encode(flavour.encoding))
