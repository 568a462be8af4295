"""Persons who were erased: remembered as salted hashes, and kept out of whatever lands.

A person is known by the hash of their number behind a secret salt. The register is kept twice: in
the warehouse, and in the home with the salt. A dump of the warehouse so tells nobody's number; and
when an earlier state of it is restored, the home still knows whom that brought back.

    a file is parsed --> it has an erased person --> it is rewritten without --> parsed again

Does not belong here: rewriting a file (`redact.py`), or erasing somebody (`governance/erasure.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ConfigurationError
from metalayer.landing.expired import Expiry, load_expiry
from metalayer.landing.judge import Erasing
from metalayer.landing.shape import Terms
from metalayer.settings import Settings
from metalayer.whole_files import write_new

_SALT_BYTES = 32


@dataclass(frozen=True)
class Register:
    """Who was erased.

    Attributes:
        salt: Stands before every number that is hashed.
        tokens: Kind of person -> hashes of their numbers.
        news: Whether the home knew of somebody whom the warehouse did not: an earlier state of it
            was restored.
    """

    salt: str
    tokens: Mapping[str, frozenset[str]]
    news: bool = False

    def token(self, kind: str, number: str) -> str:
        """The hash of a person's number."""
        return hashlib.sha256((self.prefix(kind) + number).encode()).hexdigest()

    def prefix(self, kind: str) -> str:
        """What stands before a number of this kind when it is hashed."""
        return f"{self.salt}:{kind}:"


def folder_of(settings: Settings) -> Path:
    """The folder of the home where the register is; to be backed up with it."""
    return settings.home / "erased"


def load_register(cursor: Any, settings: Settings, *, joins: bool = False) -> Register | None:
    """The register of both places; None if nobody was erased.

    Args:
        joins: Whether each place is to know afterwards what the other does. The caller then holds
            the ledger, and commits.

    Raises:
        ConfigurationError: when the salt is missing that the warehouse's hashes were made with.
    """
    salt = _salt(cursor, settings)
    if salt is None:
        return None
    cursor.execute("select kind, token from meta.erased")
    known = set(cursor.fetchall())
    noted = _noted(settings)
    register = _register(salt, known | noted, news=bool(noted - known))
    if joins:
        cursor.executemany(
            "insert into meta.erased (kind, token) values (%s, %s) on conflict do nothing",
            sorted(noted - known),
        )
        note(settings, register)
    return register if register.tokens else None


def remember(cursor: Any, settings: Settings, kind: str, number: str) -> Register:
    """Enter a person into the warehouse's register; `note` enters them into the home's.

    The caller holds the ledger, and notes what is returned right before the commit.
    """
    token = make_token(cursor, settings, kind, number)
    cursor.execute(
        "insert into meta.erased (kind, token) values (%s, %s) on conflict do nothing",
        (kind, token),
    )
    found = load_register(cursor, settings)
    assert found is not None
    return found


def note(settings: Settings, register: Register) -> None:
    """Have the home know whom the register knows."""
    noted = _noted(settings)
    for kind, tokens in register.tokens.items():
        for token in sorted(tokens):
            if (kind, token) not in noted:
                _note(settings, kind, token)


def token_of(cursor: Any, settings: Settings, kind: str, number: str) -> str | None:
    """The hash that stands for a person; None where nobody has been given one yet.

    Raises:
        ConfigurationError: as `load_register`.
    """
    salt = _salt(cursor, settings)
    return None if salt is None else Register(salt, {}).token(kind, number)


def prefix_of(cursor: Any, settings: Settings, kind: str) -> str:
    """What stands before a number of a kind of person when it is hashed; somebody was before."""
    salt = _salt(cursor, settings)
    if salt is None:
        raise ConfigurationError(
            f"The salt of those who are on hold is missing: {folder_of(settings) / 'salt'}",
            "Bring the folder back from a backup of METALAYER_HOME.",
        )
    return Register(salt, {}).prefix(kind)


def load_expiries(cursor: Any, settings: Settings) -> dict[str, Expiry]:
    """Source -> which of its months are kept no longer, and who is on hold."""
    found = load_expiry(cursor)
    if not found:
        return {}
    cursor.execute("select kind, array_agg(token) from meta.holds group by kind")
    tokens = {kind: frozenset(held) for kind, held in cursor.fetchall()}
    prefixes = {kind: prefix_of(cursor, settings, kind) for kind in tokens}
    return {
        source: replace(expiry, tokens=tokens, prefixes=prefixes)
        for source, expiry in found.items()
    }


def make_token(cursor: Any, settings: Settings, kind: str, number: str) -> str:
    """The same, with a salt that is made if there is none."""
    salt = _salt(cursor, settings)
    if salt is None:
        folder = folder_of(settings)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(folder / "salt", secrets.token_hex(_SALT_BYTES).encode())
        salt = _salt(cursor, settings)
        assert salt is not None
    cursor.execute(
        "insert into meta.erased_salt (fingerprint) values (%s) on conflict do nothing",
        (_fingerprint(salt),),
    )
    return Register(salt, {}).token(kind, number)


def numbered_columns(
    spec: TableSpec, sources: Mapping[str, TableSpec]
) -> list[tuple[ColumnSpec, str]]:
    """The landed columns that hold persons' numbers, and of what kind of person."""
    typed = {other.full_name: other for other in sources.values()}
    found = []
    for column in spec.landed:
        kind = column.identifies
        if column.references is not None and column.references.table in typed:
            target = typed[column.references.table]
            kind = target.column(column.references.column).identifies or kind
        if kind is not None:
            found.append((column, kind))
    return found


def watching(
    terms: Terms,
    sources: Mapping[str, TableSpec],
    register: Register | None,
    expiry: Expiry | None,
    lines: Collection[int] = (),
) -> Terms:
    """The terms by which the reader finds what is to go: erased persons, and expired months.

    Args:
        expiry: Of the source; None: its months are kept.
        lines: Lines of the one file that is read with them, on which such records are known to be.
    """
    spec = terms.spec
    columns = [
        (column, kind)
        for column, kind in numbered_columns(spec, sources)
        if register is not None and kind in register.tokens
    ]
    if not columns and expiry is None:
        return terms
    held = expiry.tokens if expiry is not None else {}
    erasing = Erasing(
        numbers=tuple(
            (c.name, register.prefix(kind), register.tokens[kind])
            for c, kind in columns
            if register is not None
        ),
        lines=frozenset(lines),
        # Where the number is part of the key there would be several anonymous rows of one key.
        keeps_rows=not any(column.is_key for column, _ in columns),
        personal=tuple(column.name for column in spec.landed if column.pii),
        expired_before=expiry.before if expiry is not None else None,
        held_months=expiry.held if expiry is not None else frozenset(),
        held=tuple(
            (c.name, expiry.prefixes[kind], held[kind])
            for c, kind in numbered_columns(spec, sources)
            if expiry is not None and kind in held
        ),
    )
    return replace(terms, shape=replace(terms.shape, erasing=erasing))


def _register(salt: str, persons: Collection[tuple[str, str]], *, news: bool) -> Register:
    tokens: dict[str, set[str]] = {}
    for kind, token in persons:
        tokens.setdefault(kind, set()).add(token)
    return Register(salt, {kind: frozenset(found) for kind, found in tokens.items()}, news)


def _salt(cursor: Any, settings: Settings) -> str | None:
    """The salt of this home, which must be the one that the warehouse's hashes were made with."""
    path = folder_of(settings) / "salt"
    try:
        salt = path.read_text().strip()
    except FileNotFoundError:
        salt = None
    cursor.execute("select fingerprint from meta.erased_salt")
    used = cursor.fetchone()
    if used is not None and (salt is None or _fingerprint(salt) != used[0]):
        what = "missing" if salt is None else "another one"
        raise ConfigurationError(
            f"The salt of those who were erased, or are on hold, is {what}: {path}",
            "Bring the folder back from a backup of METALAYER_HOME. Without it nobody can tell "
            "whether a file brings them back.",
        )
    return salt


def _fingerprint(salt: str) -> str:
    return hashlib.sha256(f"salt:{salt}".encode()).hexdigest()


def _noted(settings: Settings) -> set[tuple[str, str]]:
    try:
        lines = (folder_of(settings) / "register.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return set()
    return {(entry["kind"], entry["token"]) for entry in map(json.loads, filter(None, lines))}


def _note(settings: Settings, kind: str, token: str) -> None:
    path = folder_of(settings) / "register.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, (json.dumps({"kind": kind, "token": token}) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
