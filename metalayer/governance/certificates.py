"""Certificates of what was erased: a document, and a signature by which anybody can check it.

Signed with Ed25519. The key is made once and kept in the home; who is to trust certificates is
given the public key, which each carries as well.

Does not belong here: erasing (`erasure.py`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from metalayer.errors import UsageError
from metalayer.governance.erasure import Erasure
from metalayer.landing.erased import folder_of
from metalayer.settings import Settings
from metalayer.whole_files import write_new

_KIND = "metalayer erasure certificate 1"


def certificate(erasure: Erasure, settings: Settings) -> dict[str, Any]:
    """The certificate of an erasure, signed; as JSON has it."""
    said = {
        "certificate": _KIND,
        "metalayer": version("metalayer"),
        "why": settings.why,
        "is_complete": not erasure.left,
        **{k: _plain(value) for k, value in asdict(erasure).items()},
    }
    key = _key(settings)
    public = key.public_key().public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )
    return {
        **said,
        "public_key": _text(public),
        "signature": _text(key.sign(_signed({**said, "public_key": _text(public)}))),
    }


def verify(path: Path) -> dict[str, Any]:
    """A certificate whose signature fits what it says, and its public key.

    Raises:
        UsageError: when it is no certificate, or was changed.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        signature = base64.b64decode(found.pop("signature"), validate=True)
        public = Ed25519PublicKey.from_public_bytes(
            base64.b64decode(found["public_key"], validate=True)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{path} is no certificate", "Name one that `metalayer erase --out FILE` wrote"
        ) from None
    try:
        public.verify(signature, _signed(found))
    except InvalidSignature:
        raise UsageError(
            f"{path} was changed since it was signed", "Trust none of what it says"
        ) from None
    return dict(found)


def _signed(said: dict[str, Any]) -> bytes:
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _key(settings: Settings) -> Ed25519PrivateKey:
    path = folder_of(settings) / "signing-key.pem"
    if not path.exists():
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(path, made)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key
