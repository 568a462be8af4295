"""Where backups are kept: a folder or bucket of objects, compressed, and encrypted with a key.

    bytes --> frames of 4 MB --> zstd --> AES-256-GCM --> one object

An object is there whole or not at all, and one that was changed, cut short or renamed is noticed
when it is read: frames are numbered, the last one is marked, and the object's name is part of what
is authenticated (the construction STREAM of Hoang, Reyhanitabar, Rogaway and Vizár, 2015). Without
a key a checksum stands in its place. Any store that fsspec knows serves; those of clouds need their
own package (s3fs, gcsfs, adlfs).

Does not belong here: what is kept (`backup.py`, `archive.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalayer.errors import ConfigurationError, WarehouseError
from metalayer.governance.sealing import Key, parse_keys
from metalayer.settings import Settings, without_password

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_BYTES = 4 * 1024 * 1024
_MAGIC = b"MLB1"
_SALT_BYTES = 16
_NO_KEY = b"------"
_LENGTH = struct.Struct(">I")
_LAST = 1 << 31
_LEVEL = 3
_PART = ".part"


@dataclass(frozen=True)
class Stored:
    """An object as it is listed: bytes that it takes, and when it was written."""

    name: str
    size: int
    written_at: datetime


class Vault:
    """A folder or bucket of backups.

    Args:
        url: A folder, or a URL as fsspec has it: `s3://bucket/prefix`.
        keys: The newest encrypts; all of them decrypt. None: in plain.

    Raises:
        ConfigurationError: when nothing can be kept there.
    """

    def __init__(self, url: str, keys: tuple[Key, ...] = ()) -> None:
        import fsspec

        self.shown = without_password(url) if "://" in url else url
        self._keys = {key.id: key for key in keys}
        self._key = keys[0] if keys else None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigurationError(
                f"METALAYER_BACKUP_URL={self.shown} cannot be used: {_line(error)}",
                "Write a folder, or a URL as fsspec has it, for example s3://bucket/metalayer.",
            ) from None
        self._root = self._root.rstrip("/")
        protocols = self._fs.protocol
        self._is_local = "file" in ([protocols] if isinstance(protocols, str) else protocols)

    @property
    def is_encrypted(self) -> bool:
        """Whether what is written here is encrypted."""
        return self._key is not None

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine; None where it does not."""
        return Path(self._root) if self._is_local else None

    def objects(self, prefix: str) -> dict[str, Stored]:
        """The objects below a prefix that ends in `/`, by name."""
        folder = self._path(prefix.rstrip("/"))
        with self._explained():
            self._fs.invalidate_cache()
            if not self._fs.isdir(folder):
                return {}
            found = self._fs.find(folder, detail=True)
        listed = {}
        for path, facts in found.items():
            name = path[len(self._root) + 1 :]
            if not name.endswith(_PART):
                listed[name] = Stored(name, int(facts["size"]), _written(facts))
        return listed

    def read(self, name: str) -> bytes:
        """A small object whole."""
        return b"".join(self.frames(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object whole, in place of what is there."""
        with self.writing(name) as out:
            out.write(content)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        """Write an object: it is there once the block has ended without an error."""
        with self._explained():
            path = self._path(name)
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            aside = f"{path}{_PART}" if self._is_local else path
            raw = self._fs.open(aside, "wb")
        try:
            writer = Writer(raw, name, self._key)
            yield writer
            with self._explained():
                writer.finish()
                if self._is_local:
                    raw.flush()
                    os.fsync(raw.fileno())
                raw.close()
                if self._is_local:
                    Path(aside).replace(path)
                    _sync(Path(path).parent)
        except BaseException:
            self._let_go(raw, aside)
            raise

    def _let_go(self, raw: Any, aside: str) -> None:
        """Leave nothing of an object that was not finished."""
        with contextlib.suppress(Exception):
            if self._is_local:
                raw.close()
                Path(aside).unlink()
            else:
                raw.discard()

    def frames(self, name: str) -> Iterator[bytes]:
        """The content of an object, piece by piece.

        Raises:
            WarehouseError: when it is missing, damaged or cut short.
            ConfigurationError: when it was encrypted with a key that is not at hand.
        """
        try:
            raw = self._fs.open(self._path(name), "rb")
        except FileNotFoundError:
            raise WarehouseError(
                f"{self.shown} has no {name}", "`metalayer backups` lists what there is."
            ) from None
        with contextlib.closing(raw), self._explained():
            yield from self._opened(raw, name)

    def _opened(self, raw: Any, name: str) -> Iterator[bytes]:
        head = raw.read(len(_MAGIC) + len(_NO_KEY) + _SALT_BYTES)
        if head[: len(_MAGIC)] != _MAGIC or len(head) < len(_MAGIC) + len(_NO_KEY) + _SALT_BYTES:
            raise _damaged(name)
        key_id, salt = head[len(_MAGIC) : -_SALT_BYTES], head[-_SALT_BYTES:]
        cipher = None
        if key_id != _NO_KEY:
            key = self._keys.get(key_id.decode(errors="replace"))
            if key is None:
                raise ConfigurationError(
                    f"{name} in {self.shown} was encrypted with key {key_id.decode()}",
                    "Give it in METALAYER_BACKUP_KEY; several stand there with commas between.",
                )
            cipher = _cipher(key, salt)
        number, is_last = 0, False
        while not is_last:
            size = raw.read(_LENGTH.size)
            if len(size) < _LENGTH.size:
                raise _damaged(name)
            (length,) = _LENGTH.unpack(size)
            is_last, length = bool(length & _LAST), length & ~_LAST
            payload = raw.read(length)
            if len(payload) < length:
                raise _damaged(name)
            yield _unframed(payload, name, cipher, _nonce(number, is_last=is_last))
            number += 1

    def remove(self, names: list[str]) -> None:
        """Remove objects; one that is gone already is none the worse for it."""
        for name in names:
            with self._explained(), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

    def has(self, name: str) -> bool:
        """Whether an object is there."""
        with self._explained():
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What a store refuses, as an error that names it."""
        try:
            yield
        except OSError as error:
            from metalayer.outages import disk_full, is_full_disk

            if is_full_disk(error):
                raise disk_full(f"{self.shown}, where backups are kept", self.folder) from None
            raise WarehouseError(
                f"The place of backups, {self.shown}, does not work: {_line(error)}",
                "Look whether it can be reached and written to.",
            ) from None


class Writer:
    """Takes the bytes of one object."""

    def __init__(self, raw: Any, name: str, key: Key | None) -> None:
        salt = secrets.token_bytes(_SALT_BYTES)
        self._raw, self._name = raw, name
        self._cipher = _cipher(key, salt) if key else None
        self._buffer = bytearray()
        self._number = 0
        #: Bytes that were taken, and that the object has.
        self.taken = self.stored = 0
        self._put(_MAGIC + (key.id.encode() if key else _NO_KEY) + salt)

    def write(self, content: bytes) -> int:
        """Take some bytes."""
        self._buffer += content
        self.taken += len(content)
        # The last frame is marked as such, so one is always kept back.
        while len(self._buffer) > FRAME_BYTES:
            self._frame(bytes(self._buffer[:FRAME_BYTES]), is_last=False)
            del self._buffer[:FRAME_BYTES]
        return len(content)

    def finish(self) -> None:
        """Write what is kept back."""
        self._frame(bytes(self._buffer), is_last=True)
        self._buffer.clear()

    def _frame(self, content: bytes, *, is_last: bool) -> None:
        payload = zstd.compress(content, options=_OPTIONS)
        if self._cipher is not None:
            nonce = _nonce(self._number, is_last=is_last)
            payload = self._cipher.encrypt(nonce, payload, self._name.encode())
        self._put(_LENGTH.pack(len(payload) | (_LAST if is_last else 0)))
        self._put(payload)
        self._number += 1

    def _put(self, content: bytes) -> None:
        self._raw.write(content)
        self.stored += len(content)


_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: _LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}


def open_vault(settings: Settings) -> Vault:
    """The place that the settings name.

    Raises:
        ConfigurationError: when they name none, or it or the key cannot be used.
    """
    if settings.backup_url is None:
        raise ConfigurationError(
            "METALAYER_BACKUP_URL is unset, so there is no place for backups",
            "Set it to a folder on another disk, or to a bucket, for example "
            "METALAYER_BACKUP_URL=/mnt/backups/metalayer",
        )
    keys = settings.backup_key
    parsed = parse_keys(keys.get_secret_value(), "METALAYER_BACKUP_KEY") if keys else ()
    return Vault(settings.backup_url.get_secret_value(), parsed)


def _unframed(payload: bytes, name: str, cipher: AESGCM | None, nonce: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        if cipher is not None:
            payload = cipher.decrypt(nonce, payload, name.encode())
        return zstd.decompress(payload)
    except (InvalidTag, zstd.ZstdError):
        raise _damaged(name) from None


def _cipher(key: Key, salt: bytes) -> AESGCM:
    """Of one object: nonces begin with 0 in each, so each has a key of its own."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), 32, salt, b"metalayer backup object").derive(key.secret)
    return AESGCM(derived)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _damaged(name: str) -> WarehouseError:
    return WarehouseError(
        f"The backup is damaged: {name} is not as it was written",
        "`metalayer restore --backup` takes an earlier one; look at the disk, and take a new one.",
    )


def _written(facts: dict[str, Any]) -> datetime:
    """When an object was written; stores name it differently."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        at = facts.get(name)
        if isinstance(at, datetime):
            return at if at.tzinfo else at.replace(tzinfo=UTC)
        if isinstance(at, int | float):
            return datetime.fromtimestamp(at, UTC)
        if isinstance(at, str):
            return datetime.fromisoformat(at)
    return datetime.now(UTC)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0]


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
