"""Values sealed, and opened again: the keys, and what they do to a text.

The ciphertext is AES-SIV (RFC 5297) without a nonce: a value always gives the same text, so sealed
columns are compared, joined and counted like plain ones. How a sealed value is written is
`contracts/sealed.py`.

Belongs here: texts and keys. Does not belong here: which key a warehouse is sealed with
(`warehouse/keys.py`), or where in reading a file it happens (`landing/seal.py`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from metalayer.contracts.sealed import HINTS, SEALED, SEPARATOR, UNFIT
from metalayer.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    from metalayer.settings import Settings

_SEALED = re.compile(SEALED)
_KEY_BYTES = 64  # two of AES-256
_ID_CHARACTERS = 6


@dataclass(frozen=True)
class Key:
    """A key of AES-SIV.

    Attributes:
        id: Names it in sealed values, and tells nothing of it.
    """

    id: str
    secret: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """As it is written in the environment or a file."""
        return base64.b64encode(self.secret).decode()


def make_key() -> Key:
    """A new key, of the system's randomness."""
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    return _key(AESSIV.generate_key(_KEY_BYTES * 8))


def _key(secret: bytes) -> Key:
    digest = hashlib.sha256(b"metalayer encryption key " + secret).hexdigest()
    return Key(digest[:_ID_CHARACTERS], secret)


def parse_keys(text: str, where: str) -> tuple[Key, ...]:
    """Keys with commas or line ends between, the newest first; lines that begin with # are none.

    Raises:
        ConfigurationError: naming `where` they were read, when one is no key.
    """
    lines = [line.strip() for line in text.splitlines()]
    words = [w.strip() for line in lines if not line.startswith("#") for w in line.split(",")]
    found = []
    for word in filter(None, words):
        try:
            secret = base64.b64decode(word, validate=True)
        except binascii.Error:
            secret = b""
        if len(secret) != _KEY_BYTES:
            raise ConfigurationError(
                f"{where} holds something that is no key",
                f"A key is {_KEY_BYTES} random bytes in base64; `metalayer keys new` prints one.",
            )
        found.append(_key(secret))
    return tuple(dict.fromkeys(found))


def key_file(settings: Settings) -> Path:
    """The file of the keys, where they are not in the environment."""
    return settings.encryption_key_file or settings.home / "encryption.keys"


def known_keys(settings: Settings) -> tuple[Key, ...]:
    """The keys this process has, the newest first; none where none were ever made.

    Raises:
        ConfigurationError: when there is something that is no key, or a file cannot be read.
    """
    if settings.encryption_key is not None:
        return parse_keys(settings.encryption_key.get_secret_value(), "METALAYER_ENCRYPTION_KEY")
    path = key_file(settings)
    try:
        return parse_keys(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The keys in {path} cannot be read: {type(error).__name__}",
            "Let the user that MetaLayer runs as read it, or set METALAYER_ENCRYPTION_KEY_FILE.",
        ) from None


class Opener:
    """Opens sealed values with the keys there are; those of other keys stay sealed."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._ciphers = {key.id: _cipher(key) for key in keys}

    def opened(self, text: str) -> str:
        """The text with every sealed value in it opened; what is none is left alone."""
        return self._replaced(text, lambda plain, _: plain)

    def opened_in_json(self, text: str) -> str:
        """The same within the strings of a JSON text."""
        return self._replaced(text, lambda plain, _: json.dumps(plain)[1:-1])

    def refuse_unopened(self, text: str) -> str:
        """The text, unless it is a sealed value: then a key is not at hand any more.

        Raises:
            ConfigurationError: naming the key.
        """
        found = _SEALED.fullmatch(text)
        if found is not None and found[1] not in self._ciphers:
            raise lacking_key(found[1])
        return text

    def _replaced(self, text: str, written: Callable[[str, str], str]) -> str:
        """Every sealed value replaced by what `written` makes of its plain value and its hint."""
        if SEPARATOR not in text:
            return text
        from cryptography.exceptions import InvalidTag

        def one(found: re.Match[str]) -> str:
            cipher = self._ciphers.get(found[1])
            if cipher is None:
                return found[0]
            try:
                plain = cipher.decrypt(_unpadded(found[2]), None).decode()
            except (InvalidTag, UnicodeDecodeError, binascii.Error):
                return found[0]  # somebody's own text that looks so
            return written(plain, found[0].partition(SEPARATOR)[0])

        return _SEALED.sub(one, text)


class Sealer(Opener):
    """Seals values with one key, and opens those sealed with any of the others.

    Attributes:
        key_id: Of the key that seals.
    """

    def __init__(self, key: Key, keys: Iterable[Key]) -> None:
        super().__init__(keys)
        self.key_id = key.id
        self._seal = _cipher(key)

    def ciphertext(self, plain: str) -> str:
        """The last part of a sealed value; `plain` must not be empty."""
        sealed = self._seal.encrypt(plain.encode(), None)
        return binascii.b2a_base64(sealed, newline=False).rstrip(b"=").decode()

    def sealed_value(self, plain: str, kind: str, type_: str) -> str:
        """A value in the form of its type, sealed; `kind` is that of personal data."""
        part = HINTS.get((kind, type_))
        return self.sealed(plain, plain[part] if part is not None else "")

    def sealed(self, plain: str, hint: str = "") -> str:
        """A text sealed behind a hint."""
        return f"{hint}{SEPARATOR}{self.key_id}{SEPARATOR}{self.ciphertext(plain)}"

    def sealed_whole(self, text: str) -> str:
        """A text that is a sealed value, sealed anew; any other sealed as it is."""
        if _SEALED.fullmatch(text):
            return self.sealed_anew(text)
        return self.sealed(text, UNFIT)

    def sealed_anew(self, text: str) -> str:
        """A text whose sealed values were sealed with other keys, with this one."""
        return self._replaced(text, self.sealed)


def lacking_key(key_id: str) -> ConfigurationError:
    """What is raised where a key is needed that this process has not."""
    return ConfigurationError(
        f"The warehouse's encrypted columns are sealed with key {key_id}, which is not at hand",
        "Give it in METALAYER_ENCRYPTION_KEY, or the file that has it in "
        "METALAYER_ENCRYPTION_KEY_FILE; nothing was changed.",
    )


def _cipher(key: Key) -> AESSIV:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    return AESSIV(key.secret)


def _unpadded(text: str) -> bytes:
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))
