"""Who may build, roll back or sweep a month: an advisory lock per table and month.

PostgreSQL holds these locks for a session and lets go of them when it ends, however it ends; so
there is never a stale one. What is done under a lock belongs to those who take it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from typing import Any


def lock_months(cursor: Any, table: str, months: Sequence[date]) -> None:
    """Wait for the months and hold them until the session ends or unlocks them.

    Taken in order, so that two never wait for each other crosswise.
    """
    for month in sorted(months):
        cursor.execute("select pg_advisory_lock(%s, %s)", _numbers(table, month))


def unlock_all(cursor: Any) -> None:
    """Let go of every month that this session holds."""
    cursor.execute("select pg_advisory_unlock_all()")


def try_lock_month(cursor: Any, table: str, month: date) -> bool:
    """Hold a month for the rest of the transaction, unless somebody else is at work on it."""
    cursor.execute("select pg_try_advisory_xact_lock(%s, %s)", _numbers(table, month))
    return bool(cursor.fetchone()[0])


def _numbers(table: str, month: date) -> tuple[int, int]:
    name = int.from_bytes(hashlib.sha256(table.encode()).digest()[:4], signed=True)
    return name, month.year * 12 + month.month
