"""A landed file without records that are to go: the same lines, some of them empty.

Those are of erased persons, or of months that are kept no longer. Line n stays line n, so whatever
names a line still names the same. A record that goes leaves its lines blank; one that stays (an
order, say, which counts in totals) has the person's number replaced by `ANONYMOUS` and what is
personal emptied. The text is written as the reader understood it: UTF-8, lines ended by line feeds,
packed if it was.

Does not belong here: who was erased (`erased.py`), or finding their records (`records.py`).
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, cast

import numpy as np

from metalayer.contracts.classification import ANONYMOUS
from metalayer.errors import LandingError
from metalayer.landing.header import Header, read_header
from metalayer.landing.judge import SourceShape
from metalayer.landing.normalise import (
    CARRIAGE_RETURN,
    END_LINE,
    ESCAPE,
    ESCAPED_ESCAPE,
    NUL,
    clean_lines,
    normalise,
)
from metalayer.landing.quotes import LINE_BREAK, Ending, fields_of
from metalayer.landing.raw import GZIP_MAGIC
from metalayer.landing.reader import ErasedFound, FileInFlux
from metalayer.outages import is_full_disk

_BLOCK_BYTES = 4 << 20
# ESCAPE itself last: the others must not find what it brings back.
_PLAIN = ((NUL, "\0"), (CARRIAGE_RETURN, "\r"), (ESCAPED_ESCAPE, ESCAPE))


def redacted(path: Path, shape: SourceShape, found: ErasedFound, work: Path) -> Path:
    """Write a file without these records beside it, and return where; the file stays as it is.

    Args:
        shape: Of its source, with `erasing`.
        found: What the reader found in it.
        work: An existing folder for what is written meanwhile.

    Raises:
        LandingError: when the file cannot be read any more, `FileInFlux` if it changed.
    """
    assert shape.erasing is not None
    aside = aside_of(path)
    folder = Path(tempfile.mkdtemp(prefix=".parse-", dir=work))
    try:
        lines_path = folder / "lines"
        facts = normalise(path, lines_path, shape.unpacking)
        if facts.fingerprint.sha256 != found.sha256:
            raise FileInFlux(f"{path.name} changed while it was read", "Build again")
        with closing(clean_lines(lines_path)) as lines:
            header = read_header(path.name, lines, [column.name for column in shape.columns], [])
        with lines_path.open("rb") as source, _opened(path, aside) as out:
            _copy(source, out, found, header, shape, has_escapes=facts.has_escapes)
        shutil.copystat(path, aside)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and not is_full_disk(error):
            raise LandingError(
                f"{path.name} has records of persons who were erased, and cannot be rewritten: "
                f"{error.strerror or error}",
                "Give this user the right to write there, or take the file away",
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return aside


def aside_of(path: Path) -> Path:
    """A new name beside a file, for what is to take its place; nobody takes it for an export."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.erased")


@contextlib.contextmanager
def _opened(path: Path, aside: Path) -> Iterator[IO[bytes]]:
    """The new file, open for writing: packed if the old one is."""
    with path.open("rb") as old:
        is_packed = old.read(2) == GZIP_MAGIC
    if is_packed:
        # Without name and time in it, the same content gives the same bytes.
        with (
            aside.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out,
        ):
            yield cast(IO[bytes], out)
    else:
        with aside.open("wb") as out:
            yield out


def _copy(
    source: IO[bytes],
    out: IO[bytes],
    found: ErasedFound,
    header: Header,
    shape: SourceShape,
    *,
    has_escapes: bool,
) -> None:
    here, spans = 0, found.spans
    for (first, last), start in zip(spans, _starts(source, [f for f, _ in spans]), strict=True):
        _copy_lines(source, out, here, start, has_escapes=has_escapes)
        source.seek(start)
        record = [source.readline().rstrip(b"\n").decode() for _ in range(first, last + 1)]
        is_expired = first in found.expired
        for line in [""] * len(record) if is_expired else _without_person(record, header, shape):
            out.write(_plain(f"{line}\n".encode()))
        here = source.tell()
    source.seek(0, 2)
    _copy_lines(
        source, out, here, source.tell() - len(END_LINE.encode()) - 1, has_escapes=has_escapes
    )


def _starts(source: IO[bytes], numbers: Sequence[int]) -> list[int]:
    """Where the lines with these numbers, which rise, begin."""
    starts: list[int] = []
    wanted = iter(numbers)
    number = next(wanted, None)
    before, offset = 0, 0  # line ends, and bytes, before the block
    source.seek(0)
    while number is not None and (block := source.read(_BLOCK_BYTES)):
        count = block.count(b"\n")
        ends: np.ndarray | None = None
        # Line n begins behind the line end n - 1.
        while number is not None and number - 1 <= before + count:
            if number == 1:
                starts.append(0)
            else:
                if ends is None:
                    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                starts.append(offset + int(ends[number - 2 - before]) + 1)
            number = next(wanted, None)
        before += count
        offset += len(block)
    return starts


def _copy_lines(
    source: IO[bytes], out: IO[bytes], start: int, stop: int, *, has_escapes: bool
) -> None:
    source.seek(start)
    while (left := stop - source.tell()) > 0:
        block = source.read(min(_BLOCK_BYTES, left))
        if source.tell() < stop:
            block += source.readline()  # no escape is cut in two
        out.write(_plain(block) if has_escapes else block)


def _plain(text: bytes) -> bytes:
    for escape, plain in _PLAIN:
        text = text.replace(escape.encode(), plain.encode())
    return text


def _without_person(record: list[str], header: Header, shape: SourceShape) -> list[str]:
    """As many lines as the record has."""
    erasing = shape.erasing
    assert erasing is not None
    numbers = [header.position[n] for n, _, _ in erasing.numbers if n in header.position]
    ending, fields = fields_of(LINE_BREAK.join(record), header.delimiter)
    if ending is not Ending.CLOSED:
        fields = LINE_BREAK.join(record).split(header.delimiter)
    if not erasing.keeps_rows or not numbers or max(numbers) > len(fields):
        return [""] * len(record)
    for name in erasing.personal:
        if header.position.get(name, len(fields) + 1) <= len(fields):
            fields[header.position[name] - 1] = ""
    for _, position in header.extra:
        if position <= len(fields):
            fields[position - 1] = ""
    for position in numbers:
        fields[position - 1] = ANONYMOUS
    lines = header.delimiter.join(fields).split(LINE_BREAK)
    return lines + [""] * (len(record) - len(lines))
