"""The third step of a build: an audited month put in place beside its readers.

A month that was never published is attached, which blocks nobody. A replaced month is swapped,
which needs every reader of the table out of the way for an instant: that is tried a few times under
a short lock timeout, and while a reader holds on the rows are replaced inside the month's own
partition instead. Either way readers see the old month or the new one, and the old rows stay in
`months` as an earlier version.

Does not belong here: deciding what to publish (`build.py`), or reading versions (`state.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg2.errors
from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import identifiers, month_bounds, stored_name
from metalayer.warehouse.stage import SCHEMA

#: Longest that a publish may make a new reader wait behind it, and how often it tries.
SWAP_TIMEOUT_MS = 100
SWAP_TRIES = 3
#: Published states of a month that are kept, the current one included.
KEPT_VERSIONS = 5


@dataclass(frozen=True)
class Publication:
    """What is recorded of a published month, see `meta.versions`."""

    month: date
    leaf: str
    data_version: str
    code_version: str
    inputs: Mapping[str, str]
    rows_read: int
    rows: int
    rows_quarantined: int
    rows_superseded: int
    run_id: str | None
    seconds: float


def publish(connection: Any, spec: TableSpec, publication: Publication) -> int:
    """Make a staged leaf the published month, in transactions of its own.

    Returns:
        The number of the new version.
    """
    for _ in range(SWAP_TRIES):
        try:
            with connection.cursor() as cursor:
                current = _current(cursor, spec, publication.month)
                # Attaching makes no reader wait, so it may itself wait: for an ANALYZE, say.
                if current is not None:
                    cursor.execute(
                        "select set_config('lock_timeout', %s, true)", (f"{SWAP_TIMEOUT_MS}ms",)
                    )
                version = _record(cursor, spec, publication, publication.leaf, current)
                # Last, since from here to the commit new readers wait.
                _swap(cursor, spec, publication, current)
            connection.commit()
            break
        except psycopg2.errors.LockNotAvailable:
            connection.rollback()
            time.sleep(SWAP_TIMEOUT_MS / 1000)
    else:
        with connection.cursor() as cursor:
            current = _current(cursor, spec, publication.month)
            assert current is not None, "only a swap gives up waiting"
            _replace_inside(cursor, spec, publication, current)
            version = _record(cursor, spec, publication, current.leaf, current)
        connection.commit()
    _prune(connection, spec, publication.month, version)
    return version


def confirm(connection: Any, spec: TableSpec, publication: Publication) -> None:
    """Record that a rebuild found the published rows as they are; drop its leaf."""
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("drop table {}").format(sql.Identifier(SCHEMA, publication.leaf)))
        cursor.execute(
            "update meta.versions set code_version = %s, inputs = %s, rows_read = %s, "
            "rows_quarantined = %s, rows_superseded = %s "
            "where table_name = %s and month = %s and is_current",
            (
                publication.code_version,
                json.dumps(dict(publication.inputs)),
                publication.rows_read,
                publication.rows_quarantined,
                publication.rows_superseded,
                spec.full_name,
                publication.month,
            ),
        )
        _file_quarantine(cursor, spec, publication)
    connection.commit()


@dataclass(frozen=True)
class _Current:
    version: int
    leaf: str


def _current(cursor: Any, spec: TableSpec, month: date) -> _Current | None:
    cursor.execute(
        "select version, leaf from meta.versions "
        "where table_name = %s and month = %s and is_current",
        (spec.full_name, month),
    )
    found = cursor.fetchone()
    return _Current(*found) if found else None


def _swap(cursor: Any, spec: TableSpec, publication: Publication, current: _Current | None) -> None:
    parent = stored_name(spec)
    if current is not None:
        cursor.execute(
            sql.SQL("alter table {} detach partition {}").format(
                parent, sql.Identifier(SCHEMA, current.leaf)
            )
        )
    start, end = (sql.Literal(day.isoformat()) for day in month_bounds(publication.month))
    cursor.execute(
        sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
            parent, sql.Identifier(SCHEMA, publication.leaf), start, end
        )
    )


def _replace_inside(
    cursor: Any, spec: TableSpec, publication: Publication, current: _Current
) -> None:
    """Exchange the rows of the attached leaf and the staged one, which becomes the old version."""
    columns = identifiers(c.name for c in spec.stored)
    attached = sql.Identifier(SCHEMA, current.leaf)
    staged = sql.Identifier(SCHEMA, publication.leaf)
    cursor.execute(
        sql.SQL(
            "create temporary table incoming on commit drop as select {columns} from {staged}; "
            "truncate {staged}; "
            "with gone as (delete from {attached} returning {columns}) "
            "insert into {staged} ({columns}) select {columns} from gone; "
            "insert into {attached} ({columns}) select {columns} from incoming"
        ).format(columns=columns, attached=attached, staged=staged)
    )
    # The rows changed places, so the earlier version now lives in what was the staged leaf.
    cursor.execute(
        "update meta.versions set leaf = %s where table_name = %s and leaf = %s",
        (publication.leaf, spec.full_name, current.leaf),
    )


def _record(
    cursor: Any,
    spec: TableSpec,
    publication: Publication,
    leaf: str,
    current: _Current | None,
) -> int:
    version = current.version + 1 if current else 1
    where = (spec.full_name, publication.month)
    cursor.execute(
        "update meta.versions set is_current = false "
        "where table_name = %s and month = %s and is_current",
        where,
    )
    cursor.execute(
        "insert into meta.versions (table_name, month, version, is_current, leaf, data_version, "
        "code_version, inputs, rows_read, rows, rows_quarantined, rows_superseded, run_id, "
        "seconds) values (%s, %s, %s, true, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            *where,
            version,
            leaf,
            publication.data_version,
            publication.code_version,
            json.dumps(dict(publication.inputs)),
            publication.rows_read,
            publication.rows,
            publication.rows_quarantined,
            publication.rows_superseded,
            publication.run_id,
            publication.seconds,
        ),
    )
    _file_quarantine(cursor, spec, publication)
    return version


def _file_quarantine(cursor: Any, spec: TableSpec, publication: Publication) -> None:
    """Replace the month's quarantine by what this build's audit found.

    In bronze the records that landing could not read are filed under the month as well, where it
    could be told; they stay, as only registering their delivery anew would bring them back.
    """
    if spec.layer != "bronze":
        cursor.execute(
            "delete from meta.quarantine where table_name = %s and month = %s",
            (spec.full_name, publication.month),
        )
    if not publication.rows_quarantined:
        return
    cursor.execute(
        "insert into meta.quarantine (table_name, month, delivery_id, line, column_name, rule, "
        "value, violations, raw) select %s, month, delivery_id, line, "
        "violations -> 0 ->> 'column', violations -> 0 ->> 'rule', violations -> 0 ->> 'value', "
        "violations, raw from staged_quarantine where month = %s",
        (spec.full_name, publication.month),
    )


def _prune(connection: Any, spec: TableSpec, month: date, version: int) -> None:
    """Drop the versions past those that are kept, unless a reader, a backup say, holds one."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("select set_config('lock_timeout', %s, true)", (f"{SWAP_TIMEOUT_MS}ms",))
            cursor.execute(
                "delete from meta.versions where table_name = %s and month = %s and version <= %s "
                "returning leaf",
                (spec.full_name, month, version - KEPT_VERSIONS),
            )
            for (leaf,) in cursor.fetchall():
                cursor.execute(
                    sql.SQL("drop table if exists {}").format(sql.Identifier(SCHEMA, leaf))
                )
        connection.commit()
    except psycopg2.errors.LockNotAvailable:
        connection.rollback()  # the next publish of the month tries again
