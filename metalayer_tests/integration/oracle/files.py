"""From the bytes of one export to its records, and to the lines that are none.

Belongs here: decoding, the delimiter, the header, quotes that run over lines, wrong field counts.
Does not belong here: what a field means, which row of a key counts (`settling.py`).
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from metalayer_tests.integration.oracle.grammar import BLANKS

DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*')

Fields = tuple[str, ...]


class Torn(Enum):
    """Why a line can't be cut into fields."""

    OPEN = "a quote is opened and not closed"
    MALFORMED = "text follows a closing quote"


class RefusedError(Exception):
    """The whole file is no delivery: nothing of it loads."""


@dataclass
class Export:
    """One file cut into records: (physical line, one text per wanted column), and the rejects."""

    records: list[tuple[int, Fields]] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)


def read(path: Path, columns: Sequence[str], is_complete: Callable[[Fields], bool]) -> Export:
    """Cut a file into records of the wanted columns, in the order of `columns`.

    `is_complete` tells whether fields make a record that stands by itself (its month and key can be
    read); it decides whether lines swallowed by an open quote were records of their own.
    Raises RefusedError for a file that is refused whole.
    """
    lines = _physical_lines(_decode(_bytes_of(path)))
    top = next((at for at, line in enumerate(lines) if line.strip(BLANKS)), None)
    if top is None:
        raise RefusedError("the file is empty")
    delimiter = _delimiter_of(lines[top], columns)
    width, places = _places(lines[top], delimiter, columns)
    shape = _Shape(delimiter, width, places, is_complete)
    export = Export()
    for line, fields in _records(lines, top + 1, shape):
        if isinstance(fields, str):
            export.rejects.append((line, fields))
        else:
            export.records.append((line, shape.wanted(fields)))
    return export


@dataclass(frozen=True)
class _Shape:
    """How the lines of one file are cut, and where the wanted columns stand."""

    delimiter: str
    width: int
    places: tuple[int, ...]
    is_complete: Callable[[Fields], bool]

    def cut(self, line: str) -> list[str] | Torn | None:
        """The fields of a line; `None` for the wrong number of them.

        Empty fields past the last column are let go.
        """
        fields = split(line, self.delimiter)
        if isinstance(fields, Torn):
            return fields
        if len(fields) > self.width and not any(
            extra.strip(BLANKS) for extra in fields[self.width :]
        ):
            fields = fields[: self.width]
        return fields if len(fields) == self.width else None

    def wanted(self, fields: Sequence[str]) -> Fields:
        return tuple([fields[place] for place in self.places])

    def stands_alone(self, line: str) -> bool:
        fields = self.cut(line)
        return isinstance(fields, list) and self.is_complete(self.wanted(fields))


def split(line: str, delimiter: str) -> list[str] | Torn:
    """Cut one text into fields per RFC 4180.

    A quote inside an unquoted field is an ordinary character.
    """
    if '"' not in line:
        return line.split(delimiter)
    fields: list[str] = []
    at = 0
    while True:
        if line.startswith('"', at):
            found = _QUOTED.match(line, at)
            assert found is not None
            end = found.end()
            if end == len(line):
                return Torn.OPEN
            fields.append(line[at + 1 : end].replace('""', '"'))
            end += 1
            if end < len(line) and line[end] != delimiter:
                return Torn.MALFORMED
        else:
            end = line.find(delimiter, at)
            end = len(line) if end < 0 else end
            fields.append(line[at:end])
        if end >= len(line):
            return fields
        at = end + 1


def _records(lines: Sequence[str], at: int, shape: _Shape) -> Iterator[tuple[int, list[str] | str]]:
    """Each record as (physical line from 1, its fields or the reason it is rejected)."""
    while at < len(lines):
        first, line = at, lines[at]
        at += 1
        if not line.strip(BLANKS):
            continue
        fields = shape.cut(line)
        if fields is Torn.OPEN:
            closed = _closed_at(lines, first, shape)
            if closed is None:
                yield first + 1, "lone open quote"
                continue
            line = "\n".join(lines[first : closed + 1])
            fields, at = shape.cut(line), closed + 1
        if "\0" in line:
            yield first + 1, "NUL character"
        elif isinstance(fields, list):
            yield first + 1, fields
        else:
            yield first + 1, fields.value if fields else "wrong number of fields"


def _closed_at(lines: Sequence[str], first: int, shape: _Shape) -> int | None:
    """Where the record whose quote opens on `first` ends; `None` if that quote is a lone one."""
    for last in range(first + 1, len(lines)):
        if shape.stands_alone(lines[last]):
            return None
        if '"' not in lines[last]:
            continue
        fields = split("\n".join(lines[first : last + 1]), shape.delimiter)
        if fields is Torn.OPEN:
            continue
        return last if isinstance(fields, list) and len(fields) == shape.width else None
    return None


def _bytes_of(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            return gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as broken:
            raise RefusedError(f"the archive is broken: {broken}") from broken
    return raw


def _decode(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    elif raw[1:2] == b"\0" and raw[:1] != b"\0":
        return raw.decode("utf-16-le", errors="replace")
    elif raw[:1] == b"\0" and raw[1:2] not in (b"\0", b""):
        return raw.decode("utf-16-be", errors="replace")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _physical_lines(text: str) -> list[str]:
    if "\n" not in text:
        return text.split("\r")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _header(line: str, delimiter: str) -> list[str]:
    names = split(line, delimiter)
    if isinstance(names, Torn):
        raise RefusedError(f"the header can't be read: {names.value}")
    return [re.sub(r"[ _-]+", "_", name.strip(BLANKS).lower()) for name in names]


def _delimiter_of(header: str, columns: Sequence[str]) -> str:
    def known(delimiter: str) -> int:
        try:
            return len(set(columns) & set(_header(header, delimiter)))
        except RefusedError:
            return -1

    return max(DELIMITERS, key=known)


def _places(header: str, delimiter: str, columns: Sequence[str]) -> tuple[int, tuple[int, ...]]:
    names = _header(header, delimiter)
    while names and not names[-1]:
        names.pop()
    if missing := [column for column in columns if column not in names]:
        raise RefusedError(f"required columns are missing: {', '.join(missing)}")
    if twice := [column for column in columns if names.count(column) > 1]:
        raise RefusedError(f"columns are named twice: {', '.join(twice)}")
    return len(names), tuple(names.index(column) for column in columns)
