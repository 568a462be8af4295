"""The raw bytes of a landed file -> clean lines: UTF-8, each ended by a line feed, nothing lost.

Here belongs what a file is before it is a CSV: encoding, line ends, NUL bytes, length of a line.
What a line means (header, delimiter, quotes) does not; nor do raw bytes, which are raw.py's.

The file is read once, as a stream: what is parsed is what was fingerprinted. Memory is bounded
by the longest line allowed. What readers of the lines could stumble over is written as an escape:
ESCAPE and one letter. ESCAPE is a Unicode noncharacter, which Unicode reserves for uses like this.
"""

import codecs
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from metalayer.errors import LandingError
from metalayer.landing.raw import Fingerprint, RawBytes, Unpacking, chained, opened, unpacked

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The longest physical line that is read, in bytes of its text as UTF-8."""

ESCAPE = "\ufdd0"
CARRIAGE_RETURN = ESCAPE + "r"
"""A carriage return within a line."""
NUL = ESCAPE + "0"
ESCAPED_ESCAPE = ESCAPE + "e"
END_LINE = ESCAPE + "z"
"""The line after the last: who reads it knows that no line was lost, split or joined."""

# Only from the first of a run: else a million of them without a line feed would take hours.
_LINE_ENDS = re.compile(rb"(?<!\r)\r+\n")

# Windows-1252 leaves five bytes undefined; they stay what they are in Latin-1, so nothing is lost.
_WINDOWS_1252 = "".join(
    bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(256)
)


@dataclass(frozen=True)
class Normalised:
    """What was learned while a file was written out as clean lines.

    Attributes:
        fingerprint: of the raw bytes that the lines were made from.
        encoding: how the text was encoded, in words for the ledger.
        line_count: physical lines; line n of the file is line n of the clean lines.
        longest_line: no clean line has more bytes than this.
        has_quotes: some line has a quote character.
        has_escapes: some line has an escape.
    """

    fingerprint: Fingerprint
    encoding: str
    line_count: int
    longest_line: int
    has_quotes: bool
    has_escapes: bool


def normalise(path: Path, lines_path: Path, limits: Unpacking | None = None) -> Normalised:
    """Write the file's physical lines to `lines_path`, and END_LINE after them.

    Args:
        limits: How far a gzip may unfold; None: as far as by default.

    Raises:
        LandingError: the file as a whole is refused: not a regular file, unreadable, empty, a
            damaged gzip, one that unfolds beyond the limits, UTF-32, or a line longer than
            MAX_LINE_BYTES.
        FileInFlux: it changed meanwhile.
    """
    with opened(path) as file:
        try:
            return _write_lines(path, file, lines_path, limits, lone_cr_ends_lines=None)
        except _LineFeedAfterAll:
            return _write_lines(path, file, lines_path, limits, lone_cr_ends_lines=False)


def clean_lines(path: Path) -> Generator[str, None, None]:
    """The lines that `normalise` wrote, from the first, without their line ends."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.startswith(END_LINE):
                return
            yield line[:-1]


class _LineFeedAfterAll(Exception):  # noqa: N818 - nothing is wrong
    """The first part of the file had carriage returns only, a later one has a line feed."""


def _write_lines(
    path: Path,
    file: BinaryIO,
    lines_path: Path,
    limits: Unpacking | None,
    *,
    lone_cr_ends_lines: bool | None,
) -> Normalised:
    raw = RawBytes(file)
    content = unpacked(path, raw.chunks(), limits)
    head = next(content, b"")
    while len(head) < 4096 and (more := next(content, b"")):
        head += more
    if not head:
        raise LandingError(f"{path.name} is empty (0 bytes)", "Export it again.")
    encoding, mark = _encoding_of(path, head)
    with lines_path.open("wb") as out:
        lines = _CleanLines(path, out, lone_cr_ends_lines)
        text = _as_utf8(encoding, chained(head[mark:], content))
        for chunk in text:
            lines.add(chunk)
        lines.end()
    return Normalised(
        fingerprint=raw.fingerprint(),
        encoding=lines.encoding or ("utf-8-sig" if mark == 3 else encoding),
        line_count=lines.count,
        longest_line=lines.longest,
        has_quotes=lines.has_quotes,
        has_escapes=lines.has_escapes,
    )


def _encoding_of(path: Path, head: bytes) -> tuple[str, int]:
    """The encoding that the first bytes tell, and the length of the byte order mark."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise LandingError(f"{path.name} is UTF-32", "Export it as UTF-8.")
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if head.startswith(mark):
            return encoding, len(mark)
    # Without a mark: a header is mostly ASCII, so in UTF-16 most pairs of bytes have one NUL.
    first, second = head[0:1024:2], head[1:1024:2]
    pairs = len(second)
    if pairs and second.count(0) > 0.7 * pairs and first.count(0) < 0.1 * pairs:
        return "utf-16-le", 0
    if pairs and first.count(0) > 0.7 * pairs and second.count(0) < 0.1 * pairs:
        return "utf-16-be", 0
    return "utf-8", 0


def _as_utf8(encoding: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if encoding == "utf-8":
        yield from chunks
        return
    # Half a surrogate pair becomes U+FFFD: there is no text that it stands for.
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    for chunk in chunks:
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


class _CleanLines:
    """Takes text in pieces, writes it in whole lines, and counts what the reader must know."""

    def __init__(self, path: Path, out: BinaryIO, lone_cr_ends_lines: bool | None) -> None:
        self._path = path
        self._out = out
        self._lone_cr_ends_lines = lone_cr_ends_lines
        self._begun = b""  # of a line whose end has not come yet
        self._utf8_seen = False
        self._fallback_seen = False
        self.count = 0
        self.longest = 0
        self.has_quotes = False
        self.has_escapes = False

    @property
    def encoding(self) -> str | None:
        """Only where lines were not UTF-8."""
        if not self._fallback_seen:
            return None
        return "utf-8, some lines windows-1252" if self._utf8_seen else "windows-1252"

    def add(self, chunk: bytes) -> None:
        if self._lone_cr_ends_lines is None and (b"\n" in chunk or b"\r" in chunk):
            self._lone_cr_ends_lines = b"\n" not in chunk
        if self._lone_cr_ends_lines:
            if b"\n" in chunk:
                raise _LineFeedAfterAll
            chunk = chunk.replace(b"\r", b"\n")
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._begun += chunk
        else:
            block, self._begun = self._begun + chunk[:end], chunk[end:]
            self._check_length(block.find(b"\n"))
            self._write(block)
        self._check_length(len(self._begun))

    def end(self) -> None:
        if self._begun:
            self._write(self._begun.rstrip(b"\r") + b"\n")
        self._out.write(END_LINE.encode() + b"\n")

    def _check_length(self, length: int) -> None:
        if length > MAX_LINE_BYTES:
            raise LandingError(
                f"{self._path.name}: line {self.count + 1} is longer than "
                f"{MAX_LINE_BYTES // 1024**2} MiB",
                "Check that it is a CSV file, or split the field that is so long.",
            )

    def _write(self, block: bytes) -> None:
        """Write lines that are whole."""
        self.count += block.count(b"\n")
        if not block.isascii():
            block = self._valid(block)
        self.has_quotes = self.has_quotes or b'"' in block
        if b"\r" in block:
            block = _LINE_ENDS.sub(b"\n", block)
        for plain, escaped in _ESCAPED:
            if plain in block:
                block = block.replace(plain, escaped)
                self.has_escapes = True
        # All lines of the block together are a cheap bound for the longest of them.
        self.longest = max(self.longest, len(block))
        self._out.write(block)

    def _valid(self, block: bytes) -> bytes:
        """UTF-8 where it is; a line that is not is Windows-1252.

        Line by line, because exports are stitched together from both, and one stray byte must not
        garble the letters of a million good rows.
        """
        try:
            block.decode()
        except UnicodeDecodeError:
            return b"".join(map(self._valid_line, block.splitlines(keepends=True)))
        self._utf8_seen = True
        return block

    def _valid_line(self, line: bytes) -> bytes:
        if line.isascii():
            return line
        try:
            line.decode()
        except UnicodeDecodeError:
            self._fallback_seen = True
            return codecs.charmap_decode(line, "strict", _WINDOWS_1252)[0].encode()
        self._utf8_seen = True
        return line


# ESCAPE itself first: the others bring in new ones.
_ESCAPED: tuple[tuple[bytes, bytes], ...] = (
    (ESCAPE.encode(), ESCAPED_ESCAPE.encode()),
    (b"\0", NUL.encode()),
    (b"\r", CARRIAGE_RETURN.encode()),
)
