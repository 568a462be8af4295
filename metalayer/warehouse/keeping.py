"""Which earlier versions of a month are kept, and letting go of the others.

A version is a table of its own in `months`, so letting go is dropping a table: no reader of the
published months notices. Whoever reads an earlier version holds it; it then goes the next time.

Does not belong here: making versions (`publish.py`), or bringing them back (`versions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg2.errors
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.locks import try_lock_month
from metalayer.warehouse.pool import transaction

#: Letting go of a version is not worth waiting for whoever reads it.
_LOCK_TIMEOUT_MS = 100

#: Versions that are kept no longer, of one month or (table: null) of all.
_OUTDATED = """
    select table_name, month, version
    from (
        select
            table_name, month, version, is_current,
            row_number() over newest_first as place,
            -- Versions of an earlier release do not say when they were replaced.
            coalesce(replaced_at, lag(published_at) over newest_first) as replaced_at
        from meta.versions
        where %(table)s::text is null or (table_name = %(table)s and month = %(month)s)
        window newest_first as (partition by table_name, month order by version desc)
    ) as ranked
    where not is_current and (
        place > %(versions)s
        or replaced_at < now() - make_interval(days => %(days)s)
    )
"""


@dataclass(frozen=True)
class Keeping:
    """Which earlier versions of a month are kept.

    Attributes:
        versions: How many published states, the current one included.
        days: For how many days once another took their place, at most; None: any number.
    """

    versions: int = 5
    days: int | None = None


def prune_month(cursor: Any, table: str, month: date, keeping: Keeping) -> int:
    """Drop the versions of a month that are kept no longer, in the caller's transaction.

    The caller holds the lock on the month.

    Returns:
        How many versions went.
    """
    cursor.execute(
        sql.SQL(
            "delete from meta.versions where (table_name, month, version) in ({}) "
            "returning version, leaf"
        ).format(sql.SQL(_OUTDATED)),
        {"table": table, "month": month, "versions": keeping.versions, "days": keeping.days},
    )
    return _let_go(cursor, table, month, cursor.fetchall())


def drop_versions(cursor: Any, table: str, month: date, versions: Sequence[int]) -> int:
    """Drop these earlier versions of a month whatever is to be kept; the caller holds its lock.

    Returns:
        How many versions went.
    """
    cursor.execute(
        "delete from meta.versions where table_name = %s and month = %s and version = any(%s) "
        "and not is_current returning version, leaf",
        (table, month, list(versions)),
    )
    return _let_go(cursor, table, month, cursor.fetchall())


def _let_go(cursor: Any, table: str, month: date, gone: Sequence[tuple[int, str]]) -> int:
    """Drop what belongs to versions that are named no longer."""
    if not gone:
        return 0
    cursor.execute(
        "delete from meta.past_quarantine where table_name = %s and month = %s "
        "and version = any(%s)",
        (table, month, [version for version, _ in gone]),
    )
    # A rollback lets several versions share a leaf: the last to go takes it along.
    cursor.execute(
        "select gone.leaf from unnest(%s) as gone (leaf) "
        "where not exists (select from meta.versions as v where v.leaf = gone.leaf)",
        (sorted({leaf for _, leaf in gone}),),
    )
    for (leaf,) in cursor.fetchall():
        cursor.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(LEAVES, leaf)))
    return len(gone)


def prune_expired(pool: Engine, keeping: Keeping) -> int:
    """Drop the versions, of all tables, that are kept no longer; publishing does so by the month.

    Days pass, and settings change, without anything being published. A month that is being built is
    left to its build, a leaf that somebody reads to the next time. Where there is nothing to drop
    this is one query.

    Returns:
        How many versions went.
    """
    dropped = 0
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("select distinct table_name, month from ({}) as outdated").format(
                sql.SQL(_OUTDATED)
            ),
            {"table": None, "month": None, "versions": keeping.versions, "days": keeping.days},
        )
        found = cursor.fetchall()
        connection.commit()
        for table, month in found:
            try:
                cursor.execute(
                    "select set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",)
                )
                gone = (
                    prune_month(cursor, table, month, keeping)
                    if try_lock_month(cursor, table, month)
                    else 0
                )
                connection.commit()
                dropped += gone
            except psycopg2.errors.LockNotAvailable:
                connection.rollback()
    return dropped
