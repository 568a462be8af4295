"""The header of a landed file: where it ends, its delimiter, and which column is which.

Here belongs everything that is decided from the header alone, once a file. Rows do not.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from metalayer.errors import LandingError
from metalayer.landing.normalise import CARRIAGE_RETURN, ESCAPE, ESCAPED_ESCAPE, NUL
from metalayer.landing.quotes import LINE_BREAK, Ending, fields_of

BLANKS = " \t\r\n\u00a0\ufeff"
_DELIMITERS = (",", ";", "\t", "|")
_MAX_HEADER_LINES = 20
_MAX_HEADER_CHARACTERS = 100_000
_MAX_COLUMNS = 2_000


class MissingColumns(LandingError):  # noqa: N818 - a refusal, and what is known of the file
    """Required columns are not in the header.

    Attributes:
        missing: The columns.
        extra: Name and position of each column the contract does not know.
        last_line: The physical line the header ends on.
        delimiter: One character.
        values: Extra column -> distinct values it has in the first records.
    """

    def __init__(
        self,
        message: str,
        next_step: str,
        *,
        missing: tuple[str, ...],
        extra: tuple[tuple[str, int], ...],
        last_line: int,
        delimiter: str,
    ) -> None:
        super().__init__(message, next_step)
        self.missing = missing
        self.extra = extra
        self.last_line = last_line
        self.delimiter = delimiter
        self.values: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Header:
    """What the header says of every record behind it.

    Attributes:
        last_line: the physical line it ends on.
        delimiter: one character.
        fewest, most: how many fields a record may have; they differ where the header ends with
            names left empty.
        position: of each landed column the file has, from 1.
        extra: name and position of each column the contract does not know.
        missing: landed columns, none of them required, that the file does not have.
    """

    last_line: int
    delimiter: str
    fewest: int
    most: int
    position: dict[str, int]
    extra: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]

    def fits(self, fields: Sequence[str]) -> bool:
        """Whether a record may have these fields; empty ones past the last column are let go."""
        return len(fields) >= self.fewest and not any(fields[self.most :])


def read_header(
    file_name: str, lines: Iterable[str], columns: Sequence[str], required: Sequence[str]
) -> Header:
    """Find the header in the first lines of a file, as clean lines without their line ends.

    Args:
        file_name: for the error.
        lines: the physical lines from the first; no more are taken than the header needs.
        columns: the landed columns.
        required: those of them that must be there.

    Raises:
        LandingError: there is no header, it names none of the columns, or one of them twice.
        MissingColumns: it does not name all that are required.
    """
    first_line, begun = _first_lines(lines)
    if not begun:
        raise LandingError(
            f"{file_name} has no header: every line is blank",
            f"Export it again with a header of {', '.join(columns)}.",
        )
    known = set(columns)
    # The first of the best: a header is one line, and split by a comma, unless more names say so.
    best = max(
        (
            candidate
            for count in range(1, len(begun) + 1)
            for delimiter in _DELIMITERS
            if (candidate := _candidate(begun[:count], delimiter))
        ),
        key=lambda c: (len(known.intersection(map(canonical, c.names))), c.is_closed),
    )
    names = best.names
    if len(names) > _MAX_COLUMNS:  # spreadsheets may add thousands of empty ones at the end
        names = names[: max((n for n, name in enumerate(names, start=1) if name), default=0)]
    position = {
        name: number for number, name in enumerate(map(canonical, names), start=1) if name in known
    }
    extra = _extra(names, set(position.values()))
    last_line = first_line + best.line_count - 1
    missing = [column for column in required if column not in position]
    if position and missing:
        shown = _shown(names, known)
        raise MissingColumns(
            f"{file_name} has no column {', '.join(missing)}; its header is: {shown}",
            "Export it again with every required column.",
            missing=tuple(missing),
            extra=extra,
            last_line=last_line,
            delimiter=best.delimiter,
        )
    _check(file_name, names, columns)
    named = [number for number, name in enumerate(names, start=1) if name]
    return Header(
        last_line=last_line,
        delimiter=best.delimiter,
        fewest=max(named),
        most=len(names),
        position=position,
        extra=extra,
        missing=tuple(column for column in columns if column not in position),
    )


def _first_lines(lines: Iterable[str]) -> tuple[int, list[str]]:
    """The number of the first line that is not blank, and that line with those behind it.

    There is more than one only where the header leaves a quote open.
    """
    begun: list[str] = []
    first = 0
    for number, line in enumerate(lines, start=1):
        if not begun and not line.replace(CARRIAGE_RETURN, "").strip(BLANKS):
            continue
        first = first or number
        begun.append(line)
        header_may_go_on = any(
            fields_of(LINE_BREAK.join(begun), delimiter)[0] is Ending.OPEN
            for delimiter in _DELIMITERS
        )
        is_long = sum(map(len, begun)) > _MAX_HEADER_CHARACTERS
        if not header_may_go_on or is_long or len(begun) == _MAX_HEADER_LINES:
            break
    return first, begun


@dataclass(frozen=True)
class _Candidate:
    """One way to read the header."""

    line_count: int
    delimiter: str
    names: list[str]
    is_closed: bool


def _candidate(lines: Sequence[str], delimiter: str) -> _Candidate | None:
    """The header that these lines make; None if a lone quote in it would swallow rows."""
    text = LINE_BREAK.join(lines)
    ending, fields = fields_of(text, delimiter)
    is_closed = ending is Ending.CLOSED
    if not is_closed:
        fields = text.split(delimiter)
    if any(line.count(delimiter) >= len(fields) - 1 > 0 for line in lines[1:]):
        return None
    return _Candidate(len(lines), delimiter, [plain(field) for field in fields], is_closed)


def plain(field: str) -> str:
    """A name, or a value, as the file writes it, without quotes and outer whitespace."""
    for escape, plain in (
        (LINE_BREAK, " "),
        (CARRIAGE_RETURN, " "),
        (NUL, "\u2400"),
        (ESCAPED_ESCAPE, ESCAPE),
    ):
        field = field.replace(escape, plain)
    if len(field) > 1 and field.startswith('"') and field.endswith('"'):
        field = field[1:-1].replace('""', '"')
    return field.strip(BLANKS + '"')


def canonical(name: str) -> str:
    """A header's name as names are compared: in lower case, blanks and hyphens as `_`."""
    return re.sub(r"[\s-]+", "_", name.lower())


def _check(file_name: str, names: Sequence[str], columns: Sequence[str]) -> None:
    seen = f"its header is: {_shown(names, set(columns))}"
    count = Counter(map(canonical, names))
    if not any(count[column] for column in columns):
        raise LandingError(
            f"{file_name}: no header found; the first line names none of the columns "
            f"{', '.join(columns)}; its {len(names):,} fields may be values and are not told",
            "Export it again with a header, or land it under the name of its own source.",
        )
    twice = [column for column in columns if count[column] > 1]
    if twice:
        raise LandingError(
            f"{file_name} has more than one column {', '.join(twice)}; {seen}",
            "Export it again with each column once: which of them is meant cannot be told.",
        )
    if len(names) > _MAX_COLUMNS:
        raise LandingError(
            f"{file_name} has {len(names):,} columns; {seen}",
            f"Export it again with the columns that are needed, {_MAX_COLUMNS:,} at most.",
        )


def _shown(names: Sequence[str], known: Set[str]) -> str:
    """A header for people; where most of it is unknown it may be a row, and somebody's data."""
    found = [name for name in names if canonical(name) in known]
    told = names if 2 * len(found) >= len(names) else found
    text = ", ".join(told)
    text = text if len(text) <= 500 else f"{text[:500]}..."
    others = len(names) - len(told)
    return f"{text} and {others:,} others, which may be values and are not told" if others else text


def _extra(names: Sequence[str], landed: set[int]) -> tuple[tuple[str, int], ...]:
    """The other columns, each under a name of its own."""
    taken: set[str] = set()
    extra: list[tuple[str, int]] = []
    for number, name in enumerate(names, start=1):
        if number in landed:
            continue
        stem = unique = name or f"column_{number}"
        copy = 1
        while unique in taken:
            copy += 1
            unique = f"{stem}_{copy}"
        taken.add(unique)
        extra.append((unique, number))
    return tuple(extra)
