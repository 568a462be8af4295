"""What killed builds left behind in the schema `months`, and how it goes.

A build commits its stage before it publishes from it, so one that is killed in between leaves
leaves that no version names. Whoever is at work on a month holds its lock; what is unnamed and
unlocked is nobody's.

Does not belong here: versions that are kept no longer (`publish.py` prunes them), or what landing
leaves behind (`landing/parsed.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

import psycopg2.errors
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.locks import try_lock_month
from metalayer.warehouse.pool import transaction

#: A sweep is not worth waiting for whoever, a backup say, holds on to a leaf.
_LOCK_TIMEOUT_MS = 100
_LEAF = re.compile(r"([a-z]+)_(.+)_([1-9]\d{3})_(0[1-9]|1[0-2])_\d+")
_STAGE = re.compile(r"stage_[a-z]+_.+_\d+")

# The Unknown members and the published months are partitions of tables in other schemas.
_UNNAMED = (
    "select c.relname, p.relname from pg_class as c "
    "left join pg_inherits as i on i.inhrelid = c.oid "
    "left join pg_class as p on p.oid = i.inhparent "
    "where c.relnamespace = %(schema)s::regnamespace and c.relkind in ('r', 'p') "
    "and (p.oid is null or p.relnamespace = c.relnamespace) "
    "and not exists (select from meta.versions as v where v.leaf = c.relname) "
)


def sweep(pool: Engine) -> list[str]:
    """Drop every staged leaf, and every stage, that no live build is at work on.

    Those of tables that have left the catalog go as well. A leaf that a reader holds is left for
    the next time. Where there is nothing to drop this is one query of the system's tables.

    Returns:
        Names of what was dropped.
    """
    swept: list[str] = []
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(_UNNAMED, {"schema": LEAVES})
        found = _grouped(cursor.fetchall())
        connection.commit()
        for top, leaves in found.items():
            try:
                swept += _drop_unless_in_work(cursor, top, leaves)
                connection.commit()
            except psycopg2.errors.LockNotAvailable:
                connection.rollback()
    return swept


def drop_leftovers(cursor: Any, spec: TableSpec, months: Sequence[date]) -> None:
    """Drop the leaves of `months` that a build staged and was killed before publishing.

    The caller holds the lock on these months, so no live build owns them.
    """
    names = "|".join(f"{m:%Y_%m}" for m in months)
    cursor.execute(
        _UNNAMED + "and c.relname ~ %(pattern)s",
        {"schema": LEAVES, "pattern": f"^{spec.layer}_{spec.name}_({names})_[0-9]+$"},
    )
    _drop(cursor, [leaf for leaf, _ in cursor.fetchall()])


def _grouped(found: Iterable[tuple[str, str | None]]) -> dict[str, list[str]]:
    """Tables to drop -> the leaves that go with them: a stage takes its partitions along."""
    groups: dict[str, list[str]] = {}
    for name, parent in found:
        if _STAGE.fullmatch(parent or name):
            leaves = groups.setdefault(parent or name, [])
            if parent is not None and _LEAF.fullmatch(name):
                leaves.append(name)
        elif parent is None and _LEAF.fullmatch(name):
            groups[name] = [name]
    return groups


def _drop_unless_in_work(cursor: Any, top: str, leaves: Sequence[str]) -> list[str]:
    for leaf in leaves:
        if not try_lock_month(cursor, *_month_of(leaf)):
            return []
    # Before the lock was ours a build may have published it, or dropped it.
    cursor.execute(
        _UNNAMED + "and c.relname = any(%(names)s)", {"schema": LEAVES, "names": [top, *leaves]}
    )
    if {name for name, _ in cursor.fetchall()} != {top, *leaves}:
        return []
    cursor.execute("select set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",))
    _drop(cursor, [top])
    return [top]


def _drop(cursor: Any, names: Sequence[str]) -> None:
    if names:
        tables = sql.SQL(", ").join(sql.Identifier(LEAVES, name) for name in names)
        cursor.execute(sql.SQL("drop table {}").format(tables))


def _month_of(leaf: str) -> tuple[str, date]:
    """Table and month of a leaf, as its name tells."""
    found = _LEAF.fullmatch(leaf)
    assert found is not None, leaf
    layer, name, year, month = found.groups()
    return f"{layer}.{name}", date(int(year), int(month), 1)
