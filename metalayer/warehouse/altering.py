"""Changing a table that may be read at the same moment.

Such a change needs every reader out of the way, and while it waits for one, new readers queue
behind it. So it waits for an instant only, gives way, and tries again.

What is changed belongs to the callers (`migrate.py`, `evolve.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2.errors

from metalayer.errors import WarehouseError

#: Longest that a try may make new readers wait, the pause after it, and when it gives up.
LOCK_TIMEOUT_MS = 100
PAUSE_SECONDS = 0.4
PATIENCE_SECONDS = 120.0

Result = TypeVar("Result")


def beside_readers(cursor: Any, work: Callable[[], Result], what: str) -> Result:
    """Do `work` in the caller's transaction: all of it, once the readers of its tables let it.

    Args:
        work: Statements on `cursor`; it is called anew after each try that found a lock held.
        what: For the error: "gold.fact_orders cannot be changed".

    Raises:
        WarehouseError: when readers hold on for `PATIENCE_SECONDS`, naming the longest of them.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        cursor.execute("savepoint beside_readers")
        cursor.execute(f"set local lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
        try:
            result = work()
        except psycopg2.errors.LockNotAvailable:
            # Gives back the locks that the try did get, and the timeout.
            cursor.execute("rollback to savepoint beside_readers")
            cursor.execute("release savepoint beside_readers")
            if time.monotonic() > deadline:
                raise WarehouseError(
                    f"{what}: its tables are in use{_by_whom(cursor)}",
                    "Try again when that has ended, or end it with pg_terminate_backend",
                    kind="transient",
                ) from None
            time.sleep(PAUSE_SECONDS)
            continue
        cursor.execute("set local lock_timeout to default")
        cursor.execute("release savepoint beside_readers")
        return result


def _by_whom(cursor: Any) -> str:
    """The session that has held a table of ours for longest."""
    cursor.execute(
        "select a.pid, coalesce(nullif(a.application_name, ''), a.usename), a.xact_start, "
        "min(n.nspname || '.' || c.relname) from pg_stat_activity as a "
        "join pg_locks as l on l.pid = a.pid and l.granted "
        "join pg_class as c on c.oid = l.relation "
        "and l.database = (select oid from pg_database where datname = current_database()) "
        "join pg_namespace as n on n.oid = c.relnamespace "
        "where n.nspname in ('bronze', 'silver', 'gold', 'meta') and a.pid <> pg_backend_pid() "
        "group by 1, 2, 3 order by 3 limit 1"
    )
    found = cursor.fetchone()
    if found is None:
        return ""
    pid, name, since, table = found
    return f" by '{name}' (process {pid}, in {table} since {since:%H:%M:%S} UTC)"
