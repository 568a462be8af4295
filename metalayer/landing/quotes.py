"""Quotes that one physical line does not settle: which lines are one record, which quote is lone.

Here belongs the reading of quotes line by line, in Python, for the few lines that reader.py cannot
take in bulk. Deciding what a record's values mean does not.

A quote opens a field only as its first character, a doubled quote within stands for one, and any
quote in a field that does not begin with one is literal (12" pipe). A quoted field may hold line
breaks, so a quote that nobody closed would swallow the valid rows behind it, up to the next quote
or the end of the file. Both are told apart in `Joiner`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from metalayer.landing.normalise import ESCAPE

LITERAL_QUOTE = ESCAPE + "q"
"""A quote that is text, in a field without quotes around it."""
LINE_BREAK = ESCAPE + "n"
"""A line break within a quoted field."""

UNCLOSED_QUOTE = "unclosed quote"
TEXT_AFTER_QUOTE = "text after a closing quote"

MAX_RECORD_LINES = 1_000
MAX_RECORD_CHARACTERS = 4 * 1024 * 1024
"""How far a quoted field may span lines. It bounds what a lone quote costs."""


class Ending(Enum):
    """How a line ends, read as CSV."""

    CLOSED = auto()
    OPEN = auto()  # within a quoted field
    BROKEN = auto()  # something other than a delimiter came after a closing quote


@dataclass(frozen=True)
class Repaired:
    """A record that had to be looked at by itself.

    Attributes:
        first: its first physical line.
        last: its last physical line.
        rule: why it is rejected, or None.
        text: the record as one line that reads the same in bulk; as delivered if rejected.
    """

    first: int
    last: int
    rule: str | None
    text: str


def fields_of(text: str, delimiter: str, *, inside: bool = False) -> tuple[Ending, list[str]]:
    """Split one line into fields, quotes still on.

    Args:
        text: the line, without its line end.
        delimiter: one character.
        inside: the line begins within a quoted field that an earlier line opened.

    Returns:
        How it ends, and the fields up to there; an open field is the last of them.
    """
    fields: list[str] = []
    start = 0
    while True:
        if inside or text.startswith('"', start):
            end = _closing_quote(text, start if inside else start + 1)
            inside = False
            if end < 0:
                fields.append(text[start:])
                return Ending.OPEN, fields
            end += 1
            if end < len(text) and text[end] != delimiter:
                return Ending.BROKEN, fields
        else:
            end = text.find(delimiter, start)
            end = len(text) if end < 0 else end
        fields.append(text[start:end])
        if end == len(text):
            return Ending.CLOSED, fields
        start = end + 1


def _closing_quote(text: str, start: int) -> int:
    while (end := text.find('"', start)) >= 0 and text.startswith('"', end + 1):
        start = end + 2
    return end


def settle_alone(
    numbered_lines: Iterable[tuple[int, str]], delimiter: str
) -> Iterator[Repaired | int]:
    """Settle what can be settled without looking at other lines.

    Yields:
        The record of each line, or the number of the line alone if it ends within a quoted field.
    """
    for number, line in numbered_lines:
        ending, fields = fields_of(line, delimiter)
        if ending is Ending.OPEN:
            yield number
        elif ending is Ending.BROKEN:
            rule = UNCLOSED_QUOTE if line.count('"') % 2 else TEXT_AFTER_QUOTE
            yield Repaired(number, number, rule, line)
        else:
            yield Repaired(number, number, None, _literal(fields, delimiter))


def _literal(fields: Sequence[str], delimiter: str) -> str:
    return delimiter.join(
        field if field.startswith('"') else field.replace('"', LITERAL_QUOTE) for field in fields
    )


class Joiner:
    """Settles the lines that end within a quoted field.

    Such a line goes on in the next lines if a closing quote makes them one well-formed record with
    as many fields as the header has. Otherwise its quote is lone, and this line alone is rejected.
    The quote is lone, too, if one of the lines that the record would swallow is by itself a
    complete record: then two stray quotes happen to frame valid rows.

    Args:
        lines: every physical line of the file, from the first.
        delimiter: one character.
        fits: whether a record may have these fields.
        most_fields: a record with more fields never fits, unless empty ones end it.
        is_complete: whether the line of this number is by itself a record with key and month.
    """

    def __init__(
        self,
        lines: Iterator[str],
        delimiter: str,
        fits: Callable[[Sequence[str]], bool],
        most_fields: int,
        is_complete: Callable[[int], bool],
    ) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self._fits = fits
        self._most_fields = most_fields
        self._is_complete = is_complete
        self._window: deque[str] = deque()
        self._window_start = 1

    def settle(self, open_lines: Iterable[int]) -> Iterator[Repaired]:
        """The record of each open line, in order, but of lines that an earlier record took."""
        taken_to = 0
        for number in open_lines:
            if number <= taken_to:
                continue
            self._forget_before(number)
            record = self._joined(number)
            taken_to = record.last
            yield record

    def _joined(self, first: int) -> Repaired:
        text = self._line(first) or ""
        lone = Repaired(first, first, UNCLOSED_QUOTE, text)
        _, fields = fields_of(text, self._delimiter)
        count, size, last = len(fields), len(text), first
        while last - first + 1 < MAX_RECORD_LINES and count <= self._most_fields:
            last += 1
            line = self._line(last)
            size += len(line or "")
            if line is None or size > MAX_RECORD_CHARACTERS:
                return lone
            ending, fields = fields_of(line, self._delimiter, inside=True)
            count += len(fields) - 1
            if ending is Ending.BROKEN:
                return lone
            if ending is Ending.CLOSED:
                return self._closed(first, last) or lone
        return lone

    def _closed(self, first: int, last: int) -> Repaired | None:
        if any(self._is_complete(number) for number in range(first + 1, last + 1)):
            return None
        lines = [self._line(number) or "" for number in range(first, last + 1)]
        _, fields = fields_of(LINE_BREAK.join(lines), self._delimiter)
        if not self._fits(fields):
            return None
        return Repaired(first, last, None, _literal(fields, self._delimiter))

    def _line(self, number: int) -> str | None:
        while self._window_start + len(self._window) <= number:
            line = next(self._lines, None)
            if line is None:
                return None
            self._window.append(line)
        return self._window[number - self._window_start]

    def _forget_before(self, number: int) -> None:
        while self._window_start < number:
            if self._window:
                self._window.popleft()
            elif next(self._lines, None) is None:
                return
            self._window_start += 1
