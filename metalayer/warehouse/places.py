"""Empty partitions made ahead, so that new months appear together with everything else.

A statement takes the list of a table's partitions when it is planned, and the state of their rows
when it begins to read. A partition attached in the same commit as changes elsewhere can therefore
be missed by a reader who sees those changes; rows written into a partition that was there before
cannot. So a build that appears all at once gives each new month an empty partition first. It has
no version, hence is no published month, and to readers an empty month is none.

Does not belong here: which months get one (`assets/atomic.py`), or recording versions
(`publish.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import identifiers, month_bounds, stored_name
from metalayer.warehouse.leaves import LEAVES, columns_of


def make_places(connection: Any, spec: TableSpec, months: Iterable[date]) -> None:
    """Give every month that is not published an empty partition, each in a commit of its own.

    The caller holds the lock on the months. What attaching waits for is maintenance, no reader.
    """
    for month in months:
        with connection.cursor() as cursor:
            cursor.execute(
                "select exists (select from meta.versions "
                "where table_name = %s and month = %s and is_current)",
                (spec.full_name, month),
            )
            (is_published,) = cursor.fetchone()
            if not is_published and _place(cursor, spec, month) is None:
                _make(cursor, spec, month)
        connection.commit()


def fill_place(cursor: Any, spec: TableSpec, month: date, staged: str) -> str | None:
    """Move staged rows into the month's empty partition, if it has one.

    A build that ended before it published leaves one behind; the next one uses it.

    Returns:
        The partition's name, or None: then the staged leaf can be attached.
    """
    place = _place(cursor, spec, month)
    if place is None:
        return None
    # A column that came after the rows were staged is NULL in them.
    columns = columns_of(cursor, [place, staged])
    cursor.execute(
        sql.SQL(
            "insert into {place} ({columns}) select {columns} from {staged}; drop table {staged}; "
            "create unique index on {place} ({key})"
        ).format(
            place=sql.Identifier(LEAVES, place),
            key=identifiers(spec.key),
            columns=identifiers(name for name in columns[staged] if name in columns[place]),
            staged=sql.Identifier(LEAVES, staged),
        )
    )
    return place


def _place(cursor: Any, spec: TableSpec, month: date) -> str | None:
    """The partition of a month that no version names."""
    cursor.execute(
        "select c.relname from pg_inherits as i join pg_class as c on c.oid = i.inhrelid "
        "where i.inhparent = to_regclass(%s) and c.relname ~ %s "
        "and not exists (select from meta.versions as v where v.leaf = c.relname)",
        (
            stored_name(spec).as_string(cursor),
            f"^{spec.layer}_{spec.name}_{month:%Y_%m}_[0-9]+$",
        ),
    )
    found = cursor.fetchone()
    return str(found[0]) if found else None


def _make(cursor: Any, spec: TableSpec, month: date) -> None:
    cursor.execute("select nextval('meta.leaf_number')")
    (number,) = cursor.fetchone()
    leaf = sql.Identifier(LEAVES, f"{spec.layer}_{spec.name}_{month:%Y_%m}_{number}")
    parent = stored_name(spec)
    start, end = (sql.Literal(day.isoformat()) for day in month_bounds(month))
    required = sql.SQL(", ").join(
        sql.SQL("alter column {} set not null").format(sql.Identifier(c.name))
        for c in spec.stored
        if not c.nullable
    )
    # Attached and not created as a partition: that would wait for readers.
    cursor.execute(
        sql.SQL(
            "create table {leaf} (like {parent}); alter table {leaf} {required}; "
            "alter table {parent} attach partition {leaf} for values from ({start}) to ({end})"
        ).format(leaf=leaf, parent=parent, required=required, start=start, end=end)
    )
