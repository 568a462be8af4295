"""Earlier versions of published months, for those who ask: which are kept, and how two differ.

Everything is answered by PostgreSQL alone, without the contracts, like the questions in
`inspection.py`. Reading whole tables as they were is `asof.py`; bringing a version back is
`warehouse/versions.py`; nothing here writes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeVar

import psycopg2.errors
from psycopg2 import sql

from metalayer.errors import UsageError, WarehouseError
from metalayer.warehouse.leaves import LEAVES

_Found = TypeVar("_Found")
_MONTH = re.compile(r"(\d{4})-(\d{2})")
_TRIES = 20


@dataclass(frozen=True)
class Version:
    """One kept version of one month.

    Attributes:
        month: as "2025-01".
        replaced_at: when a later version took its place; None: it is what readers see.
        has_same_rows: whether its content equals that of the version before; None where that one
            is not kept.
        restores: the version that a rollback brought back as this one.
        seconds: what building it took.
    """

    table: str
    month: str
    version: int
    is_current: bool
    published_at: datetime
    replaced_at: datetime | None
    rows: int
    quarantined: int
    superseded: int
    data_version: str
    has_same_rows: bool | None
    restores: int | None
    run_id: str | None
    seconds: float


@dataclass(frozen=True)
class MonthVersions:
    """The current version of a month, and how many versions of it are kept."""

    table: str
    month: str
    version: int
    kept: int
    published_at: datetime
    rows: int
    quarantined: int
    data_version: str
    restores: int | None


def month_named(text: str) -> date:
    """First day of the month in "2025-01".

    Raises:
        UsageError: when it names none.
    """
    match = _MONTH.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        return date(int(match[1]), int(match[2]), 1)
    except ValueError:
        raise UsageError(f"'{text}' is not a month", "Write it as 2025-01") from None


def known_table(connection: Any, name: str) -> str:
    """The name, if it is a table's.

    Raises:
        UsageError: listing the tables.
    """
    with connection.cursor() as cursor:
        cursor.execute("select table_name from meta.tables order by position")
        tables = [table for (table,) in cursor.fetchall()]
    if name in tables:
        return name
    bare = [table for table in tables if table.partition(".")[2] == name]
    likely = bare or difflib.get_close_matches(name, tables, n=2)
    hint = f"Did you mean {' or '.join(likely)}? " if likely else ""
    raise UsageError(f"There is no table '{name}'", f"{hint}Tables are {', '.join(tables)}.")


def months_of(connection: Any, table: str) -> list[MonthVersions]:
    """Every published month of a table, in order."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select table_name, to_char(month, 'YYYY-MM'), version,
                count(*) over (partition by month), published_at, rows, rows_quarantined,
                data_version, restores, is_current
            from meta.versions
            where table_name = %s
            order by month, version
            """,
            (known_table(connection, table),),
        )
        return [MonthVersions(*row[:-1]) for row in cursor.fetchall() if row[-1]]


def versions_of(connection: Any, table: str, month: date) -> list[Version]:
    """The kept versions of a month, newest first.

    Raises:
        UsageError: when the month is not published.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select table_name, to_char(month, 'YYYY-MM'), version, is_current, published_at,
                coalesce(replaced_at, lead(published_at) over (order by version)),
                rows, rows_quarantined, rows_superseded, data_version,
                data_version = lag(data_version) over (order by version),
                restores, run_id, seconds
            from meta.versions
            where table_name = %s and month = %s
            order by version desc
            """,
            (known_table(connection, table), month),
        )
        found = [Version(*row) for row in cursor.fetchall()]
    if not found:
        raise no_such_month(connection, table, month)
    return found


def no_such_month(connection: Any, table: str, month: date) -> UsageError:
    """The error for a month of which nothing is published."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select to_char(min(month), 'YYYY-MM'), to_char(max(month), 'YYYY-MM') "
            "from meta.versions where table_name = %s",
            (table,),
        )
        first, last = cursor.fetchone()
    return UsageError(
        f"{table} has no month {month:%Y-%m}",
        f"Its months are {first} to {last}." if first else "Build it: `metalayer build`.",
    )


def holding(
    connection: Any,
    find: Callable[[Any], _Found],
    leaves: Callable[[_Found], Iterable[str]],
) -> _Found:
    """Look for leaves and hold them, for the rest of a transaction that sees one state of all.

    A publish may let a version go just then, so what was found is locked and looked for again,
    until both agree. Nothing that is held goes away or is written over.

    Args:
        find: Looks, on the cursor it is given.
        leaves: What of it is to be held: names in the schema `months`.

    Returns:
        What was found, as it stays until the connection's transaction ends.
    """
    for _ in range(_TRIES):
        connection.rollback()
        with connection.cursor() as cursor:
            names = sorted(set(leaves(find(cursor))))
        connection.rollback()
        try:
            with connection.cursor() as cursor:
                cursor.execute("set transaction isolation level repeatable read, read only")
                if names:
                    # Before the first snapshot is taken, which is then newer than all that held it.
                    cursor.execute(
                        sql.SQL("lock table {} in access share mode").format(
                            sql.SQL(", ").join(sql.Identifier(LEAVES, name) for name in names)
                        )
                    )
                found = find(cursor)
        except psycopg2.errors.UndefinedTable:
            continue
        if set(leaves(found)) <= set(names):
            return found
    raise WarehouseError(
        "The versions that were asked for change faster than they can be read",
        "Ask again once the build has ended.",
    )
