"""Who may build, roll back or sweep a month: an advisory lock per table and month.

PostgreSQL holds these locks for a session and lets go of them when it ends, however it ends; so
there is never a stale one. What is done under a lock belongs to those who take it.

And how several tables are read as of one moment, while others publish.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import stored_name
from metalayer.warehouse.keys import hold_keys


def lock_months(cursor: Any, table: str, months: Sequence[date]) -> None:
    """Wait for the months and hold them until the session ends or unlocks them.

    Taken in order, so that two never wait for each other crosswise. The keys of encrypted columns
    are held as well.
    """
    hold_keys(cursor)
    for month in sorted(months):
        cursor.execute("select pg_advisory_lock(%s, %s)", _numbers(table, month))


def unlock_all(cursor: Any) -> None:
    """Let go of every month that this session holds."""
    cursor.execute("select pg_advisory_unlock_all()")


def try_lock_month(cursor: Any, table: str, month: date) -> bool:
    """Hold a month for the rest of the transaction, unless somebody else is at work on it."""
    cursor.execute("select pg_try_advisory_xact_lock(%s, %s)", _numbers(table, month))
    return bool(cursor.fetchone()[0])


def begin_snapshot(cursor: Any, specs: Iterable[TableSpec]) -> None:
    """Begin a transaction that reads these tables as of one moment.

    A month that is swapped after the snapshot began would be seen empty: its new rows are too
    young, and the earlier ones are in no partition any more. While somebody holds the tables a
    publish exchanges the rows inside the partition instead, which a snapshot does not notice.
    """
    cursor.execute("set transaction isolation level repeatable read")
    names = [stored_name(spec) for spec in specs]
    if names:
        # Before the first query: only that takes the snapshot.
        cursor.execute(
            sql.SQL("lock table only {} in access share mode").format(
                sql.SQL(", only ").join(names)
            )
        )


def _numbers(table: str, month: date) -> tuple[int, int]:
    name = int.from_bytes(hashlib.sha256(table.encode()).digest()[:4], signed=True)
    return name, month.year * 12 + month.month
