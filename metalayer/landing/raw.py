"""The raw bytes of a landed file: their fingerprint, whether they stand still, and gzip.

Here belongs what is done before a byte means anything. Encodings and lines are normalise.py's.
All of it is streamed: memory is bounded by a chunk, whatever the file unpacks to.
"""

import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from metalayer.errors import Kind, LandingError
from metalayer.outages import is_full_disk

_MB = 1024 * 1024
_CHUNK_BYTES = _MB
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Unpacking:
    """How far a gzip may unfold: a few kilobytes can be made to fill any disk.

    Attributes:
        most_bytes: of the content.
        most_ratio: of content to file; only what is larger than `free_bytes` is held to it.
        free_bytes: content up to this size may unfold as it likes.
    """

    most_bytes: int = 16 * 1024**3
    most_ratio: int = 200
    free_bytes: int = 64 * 1024**2


UNPACKING = Unpacking()


class FileInFlux(LandingError):  # noqa: N818 - the tree of errors names it so
    """The file changed, was replaced or vanished while it was read: try again later."""

    usual_kind: ClassVar[Kind] = "transient"


@dataclass(frozen=True)
class Fingerprint:
    """What tells one delivery from another: the raw bytes as landed, before any unpacking.

    Attributes:
        sha256: in lower-case hexadecimal.
        size: in bytes.
    """

    sha256: str
    size: int


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a file, read as a stream.

    Raises:
        LandingError: it cannot be read.
        FileInFlux: it changed meanwhile.
    """
    with opened(path) as file:
        raw = RawBytes(file)
        for _ in raw.chunks():
            pass
        return raw.fingerprint()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading; at the end the same file must still be there, unchanged."""
    try:
        # Without O_NONBLOCK a named pipe would wait here for a writer, for ever. A link that took
        # the file's place since it was found would lead anywhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        raise _in_flux(path, "is not there (any more)") from None
    except PermissionError:
        raise LandingError(
            f"{path.name} may not be read by this user", "Give it read permission and build again."
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LandingError(
                f"{path.name} is a symbolic link", "Put the file itself there"
            ) from None
        raise _unreadable(path, error) from error
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        os.close(descriptor)
        raise LandingError(
            f"{path.name} is not a regular file", "Put the export itself there, or move this away."
        )
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        try:
            yield file
        except OSError as error:
            # Of another file: the disk of the clean lines, say. That is no word on this one.
            if error.filename is not None or is_full_disk(error):
                raise
            raise _unreadable(path, error) from error
        except LandingError:
            _check_unchanged(path, before, file.fileno())  # half a file arrives as a damaged one
            raise
        _check_unchanged(path, before, file.fileno())


def _unreadable(path: Path, error: OSError) -> LandingError:
    return LandingError(
        f"{path.name} cannot be read: {error.strerror or error}",
        "Check the disk it lies on, and land it again.",
    )


def _in_flux(path: Path, cause: str) -> FileInFlux:
    return FileInFlux(f"{path.name} {cause}", "Build again when it has arrived in full.")


def _check_unchanged(path: Path, before: os.stat_result, descriptor: int) -> None:
    try:
        now = [os.fstat(descriptor), path.stat()]
    except OSError:
        raise _in_flux(path, "vanished while it was read") from None
    for after in now:
        if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
            raise _in_flux(path, "was replaced while it was read")
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise _in_flux(path, "changed while it was read")


class RawBytes:
    """The file's bytes in chunks, fingerprinted as they pass."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._size = 0
        # No further than it reached at the start: a file that grows as it is read has no end.
        self._left = os.fstat(file.fileno()).st_size
        file.seek(0)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, once."""
        while chunk := self._file.read(min(_CHUNK_BYTES, self._left)):
            self._left -= len(chunk)
            self._hash.update(chunk)
            self._size += len(chunk)
            yield chunk

    def fingerprint(self) -> Fingerprint:
        """Of the bytes that have passed."""
        return Fingerprint(self._hash.hexdigest(), self._size)


def unpacked(
    path: Path, chunks: Iterator[bytes], limits: Unpacking | None = None
) -> Iterator[bytes]:
    """The content, unpacked if its first bytes say gzip; its name does not matter.

    Raises:
        LandingError: when a gzip is damaged, or unfolds beyond `limits`.
    """
    first = next(chunks, b"")
    if not first.startswith(GZIP_MAGIC):
        return chained(first, chunks)
    return _gunzipped(path, chained(first, chunks), limits or UNPACKING)


def _gunzipped(path: Path, chunks: Iterator[bytes], limits: Unpacking) -> Iterator[bytes]:
    """The content, for as long as it keeps to the limits: it is stopped where it passes them."""
    packed, size = [0], 0

    def counted() -> Iterator[bytes]:
        for chunk in chunks:
            packed[0] += len(chunk)
            yield chunk

    for piece in _members(path, counted()):
        size += len(piece)
        if size > limits.most_bytes:
            raise LandingError(
                f"{path.name} unfolds to more than {limits.most_bytes / _MB:,.0f} MB",
                "If it is an export, split it, or set METALAYER_MAX_UNPACKED_MB higher.",
            )
        if size > limits.free_bytes and size > limits.most_ratio * packed[0]:
            raise LandingError(
                f"{path.name} unfolds to more than {limits.most_ratio} times its size, as no "
                "export does",
                "If it is one all the same, land it unpacked, or set "
                "METALAYER_MAX_UNPACK_RATIO higher.",
            )
        yield piece


def _members(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Members follow each other; zeros after the last are padding. No piece exceeds a chunk."""
    member = zlib.decompressobj(wbits=31)
    padding = False
    for chunk in chunks:
        data = chunk
        while data:
            if member.eof:
                data = data.lstrip(b"\0")
                padding = True
                if not data:
                    break
                member = zlib.decompressobj(wbits=31)
            padding = False
            try:
                piece = member.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                raise _damaged_gzip(path, f"is a damaged gzip file ({error})") from None
            data = member.unused_data if member.eof else member.unconsumed_tail
            if piece:
                yield piece
        # What is still in the window comes out without further input.
        while not member.eof and (piece := member.decompress(b"", _CHUNK_BYTES)):
            yield piece
    if not member.eof and not padding:
        raise _damaged_gzip(path, "is a gzip file that breaks off before its end")


def _damaged_gzip(path: Path, cause: str) -> LandingError:
    return LandingError(f"{path.name} {cause}", "Land it again; nothing of it was loaded.")


def chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """All of it again, after a look at the first piece."""
    yield first
    yield from rest
