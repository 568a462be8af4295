"""The audit log as it is written: who acts, one act recorded, and the chain continued.

An act is a row of `meta.acts`, written in the transaction of what it tells of: a publish, a
rollback and a registered repair by triggers (`acts.sql`), so that none can be forgotten; everything
else by `record`. A chain needs an order, which concurrent transactions have not, and a lock would
make months queue. So acts wait in `meta.acts_unsealed` and are chained in bulk by `seal`: after a
run, after a command, or by the next one if this was killed.

How the chain ends is also noted in the home (`heads_file`), out of reach of who has the database
only. Does not belong here: reading and verifying (`metalayer.audit_log`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import Engine

from metalayer.errors import MetaLayerError
from metalayer.settings import Settings
from metalayer.warehouse.pool import transaction, warehouse_pool

_SEAL_LOCK = 0x4D4C0010
_AT_ONCE = 10_000
log = logging.getLogger(__name__)

#: An act as the text that is hashed: unambiguous, and in every session the same.
CONTENT = (
    "jsonb_build_array(a.act_id, to_char(a.at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US'), "
    "a.role, a.os_user, a.action, a.subject, a.details, a.why)::text"
)


def record(
    cursor: Any,
    action: str,
    subject: str,
    details: Mapping[str, Any] | None = None,
    *,
    why: str = "",
) -> None:
    """Record an act in the caller's transaction: it is recorded exactly if that commits.

    For acts of many at once (every grant of a plan, say) one row with a list in `details` will do.

    Args:
        action: A word, like "grant", "unmasked_read", "export", "erase".
        subject: What it is done to: a table, a file, a role. Never a person's name or number.
        details: What else is to be known, as JSON. No values of rows: nothing is ever removed.
        why: The reason; by default the session's.
    """
    cursor.execute(
        "select meta.record_act(%s, %s, %s, %s)",
        (action, subject, json.dumps(dict(details or {})), why),
    )


def record_now(
    settings: Settings, action: str, subject: str, details: Mapping[str, Any] | None = None
) -> None:
    """Record an act that is no transaction of the warehouse: a file written, a plain value read.

    Call it before what it tells of: what cannot be recorded is then not done.
    """
    with warehouse_pool(settings) as pool:
        with transaction(pool) as connection, connection.cursor() as cursor:
            record(cursor, action, subject, details)
        seal(pool, settings)


def heads_file(settings: Settings) -> Path:
    """Where this home notes the ends of the chain: a line for each `seal`."""
    return settings.home / "audit-heads.jsonl"


def seal(pool: Engine, settings: Settings) -> int:
    """Chain the acts that wait, in order, and note the new end in the home.

    What keeps it from that is logged and does not undo what was done: the acts wait for the next.

    Returns:
        How many were chained; 0 also where another process is at it.
    """
    sealed = 0
    try:
        while True:
            with transaction(pool) as connection, connection.cursor() as cursor:
                done, head = _seal_some(cursor)
            if head is not None:
                _note(settings, *head)
            sealed += done
            if done < _AT_ONCE:
                break
    except (psycopg2.Error, MetaLayerError, OSError) as error:
        said = getattr(error, "pgcode", None) or error
        log.warning("The audit log is not chained to its end yet: %s", said)
    return sealed


def _seal_some(cursor: Any) -> tuple[int, tuple[int, str] | None]:
    cursor.execute("select pg_try_advisory_xact_lock(%s)", (_SEAL_LOCK,))
    if cursor.fetchone() == (False,):
        return 0, None
    cursor.execute("select position, hash from meta.act_head")
    position, before = cursor.fetchone()
    cursor.execute(
        f"select a.act_id, {CONTENT} from meta.acts_unsealed as u "  # noqa: S608 - a constant
        "join meta.acts as a using (act_id) order by a.act_id limit %s",
        (_AT_ONCE,),
    )
    waiting = cursor.fetchall()
    if not waiting:
        return 0, None
    hashes = list(chained(before, (content for _, content in waiting)))
    acts = [act for act, _ in waiting]
    cursor.execute(
        "insert into meta.act_seals (position, act_id, hash) "
        "select %s + n, act, hash from unnest(%s::bigint[], %s::text[]) "
        "with ordinality as s (act, hash, n)",
        (position, acts, hashes),
    )
    cursor.execute("delete from meta.acts_unsealed where act_id = any(%s)", (acts,))
    head = (position + len(acts), hashes[-1])
    cursor.execute("update meta.act_head set position = %s, hash = %s", head)
    return len(acts), head


def chained(before: str, contents: Iterable[str]) -> Iterable[str]:
    """The hashes of acts that follow each other, the first of them after `before`."""
    for content in contents:
        before = hashlib.sha256(f"{before}\n{content}".encode()).hexdigest()
        yield before


def _note(settings: Settings, position: int, head: str) -> None:
    """Add a line; one write, so that processes which do it at once do not mix theirs."""
    path = heads_file(settings)
    # As `open_lock` makes it: root's server account must be able to pass through.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    path.parent.mkdir(mode=mode, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, (json.dumps({"position": position, "hash": head}) + "\n").encode())
    finally:
        os.close(descriptor)
