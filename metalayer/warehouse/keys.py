"""Which key a warehouse's encrypted columns are sealed with, by the ids in `meta.keys`.

The keys themselves come from the environment or a file (`governance/sealing.py`). Whoever seals, or
builds a month, holds off a change of keys until it is done; a change of keys waits for them.

Does not belong here: the change itself (`governance/rotation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metalayer.errors import ConfigurationError, WarehouseError
from metalayer.governance.sealing import (
    Key,
    Opener,
    Sealer,
    key_file,
    known_keys,
    lacking_key,
    make_key,
)
from metalayer.settings import Settings
from metalayer.whole_files import alone_with, write_new, write_over

_KEYS_LOCK = 0x4D4C0020
CURRENT, NEXT = "current", "next"


def ensure_key(cursor: Any, settings: Settings) -> None:
    """Have the warehouse know its key, and this process have it; the first is made if need be.

    Raises:
        ConfigurationError: when this process has not the key that values are sealed with.
    """
    states = key_states(cursor)
    if CURRENT not in states:
        cursor.execute("lock table meta.keys in share row exclusive mode")
        states = key_states(cursor)
    if CURRENT not in states:
        keys = known_keys(settings) or _first_keys(settings)
        cursor.execute(
            "insert into meta.keys (key_id, state) values (%s, %s)", (keys[0].id, CURRENT)
        )
        return
    key_of(known_keys(settings), states[CURRENT])


def _first_keys(settings: Settings) -> tuple[Key, ...]:
    path = key_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_new(path, _as_file([make_key()]))
    keys = known_keys(settings)
    if not keys:
        raise ConfigurationError(
            f"{path} holds no key", "Remove it, and one is made; or put one in (`keys new`)."
        )
    return keys


def add_key(settings: Settings) -> Key:
    """Put a new key before those in the file."""
    made, path = make_key(), key_file(settings)
    with alone_with(path):
        write_over(path, _as_file([made, *known_keys(settings)]))
    return made


def _as_file(keys: Sequence[Key]) -> bytes:
    lines = [_KEY_FILE_SAYS, *(key.text for key in keys)]
    return "".join(f"{line}\n" for line in lines).encode()


_KEY_FILE_SAYS = "# Keys of MetaLayer's encrypted columns, the newest first. Keep a copy elsewhere."


def key_states(cursor: Any) -> dict[str, str]:
    """State -> id, for the states that one key is in at most."""
    cursor.execute("select state, key_id from meta.keys where state in (%s, %s)", (CURRENT, NEXT))
    return dict(cursor.fetchall())


def sealer(cursor: Any, settings: Settings) -> Sealer:
    """What seals values for the warehouse; its key does not change before the transaction ends.

    Raises:
        ConfigurationError: when this process has not the key.
        WarehouseError: when a change of keys was not finished.
    """
    cursor.execute("select pg_advisory_xact_lock_shared(%s)", (_KEYS_LOCK,))
    refuse_unfinished(key_states(cursor))
    ensure_key(cursor, settings)
    keys = known_keys(settings)
    return Sealer(key_of(keys, key_states(cursor)[CURRENT]), keys)


def opener(cursor: Any, settings: Settings) -> Opener:
    """What opens the warehouse's values.

    Raises:
        ConfigurationError: when this process has not the keys that values are sealed with now.
    """
    keys = known_keys(settings)
    cursor.execute("select to_regclass('meta.keys') is not null")
    if cursor.fetchone() == (True,):  # in a warehouse of an earlier release nothing is sealed
        for key_id in key_states(cursor).values():
            key_of(keys, key_id)
    return Opener(keys)


def hold_keys(cursor: Any) -> None:
    """Wait for a change of keys, and hold the next one off until the session lets go of its locks.

    Raises:
        WarehouseError: when one was begun and not finished.
    """
    cursor.execute("select pg_advisory_lock_shared(%s)", (_KEYS_LOCK,))
    refuse_unfinished(key_states(cursor))


def change_keys(cursor: Any, *, waits: bool = True) -> bool:
    """Keep everybody else from building or sealing, until the session lets go of its locks.

    Returns:
        Whether that is so: without waiting it may not be.
    """
    how = "pg_advisory_lock" if waits else "pg_try_advisory_lock"
    cursor.execute(f"select {how}(%s)", (_KEYS_LOCK,))
    (is_held,) = cursor.fetchone()
    return is_held is not False


def refuse_unfinished(states: Mapping[str, str]) -> None:
    """Raise `WarehouseError` while values are sealed with two keys."""
    if NEXT in states:
        raise WarehouseError(
            f"The change to key {states[NEXT]} was not finished",
            "`metalayer keys rotate` finishes it; so does the next `metalayer build`.",
        )


def key_of(keys: Sequence[Key], key_id: str) -> Key:
    """The key of that id; `ConfigurationError` when it is not at hand."""
    for key in keys:
        if key.id == key_id:
            return key
    raise lacking_key(key_id)
