"""The third step of a build: an audited month put in place beside its readers.

A month that was never published is attached, which blocks nobody. A replaced month is swapped,
which needs every reader of the table out of the way for an instant: that is tried a few times under
a short lock timeout, and while a reader holds on the rows are replaced inside the month's own
partition instead. Either way readers see the old month or the new one, and the old rows stay in
`months` as an earlier version, with the quarantine that belongs to them, while versions are kept.

Does not belong here: deciding what to publish (`build.py`, `versions.py`), or reading versions
(`state.py`, `metalayer.history`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg2.errors
from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.warehouse.ddl import align_leaf, identifiers, month_bounds, stored_name
from metalayer.warehouse.keeping import Keeping, prune_month
from metalayer.warehouse.leaves import LEAVES, columns_of
from metalayer.warehouse.places import fill_place

#: Longest that a publish may make a new reader wait behind it, and how often it tries.
SWAP_TIMEOUT_MS = 100
SWAP_TRIES = 3

# `like` copies no foreign keys: a version's quarantine outlives the deliveries it names.
_QUARANTINED = (
    "table_name", "month", "delivery_id", "line", "column_name", "rule", "value", "violations",
    "raw", "quarantined_at",
)  # fmt: skip


@dataclass(frozen=True)
class Publication:
    """What is recorded of a published month, see `meta.versions`.

    Attributes:
        leaf: The table in `months` that has its rows.
        restores: The earlier version that a rollback brings back, whose leaf this is; None for
            rows that a build has staged.
    """

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
    restores: int | None = None


def publish(
    connection: Any, spec: TableSpec, publication: Publication, keeping: Keeping | None = None
) -> int:
    """Make a leaf the published month, in transactions of its own.

    The caller holds the lock on the month (`locks.py`).

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
                version = _put(cursor, spec, publication, current)
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
            _date(cursor, spec, publication.month, version)
        connection.commit()
    prune(connection, spec.full_name, publication.month, keeping or Keeping())
    return version


def confirm(connection: Any, spec: TableSpec, publication: Publication) -> None:
    """Record that a rebuild found the published rows as they are; drop its leaf."""
    with connection.cursor() as cursor:
        _confirm(cursor, spec, publication)
    connection.commit()


def put_in_place(
    cursor: Any, spec: TableSpec, publication: Publication, *, stands_already: bool
) -> bool:
    """Publish or confirm a staged leaf in the caller's transaction, however long that lasts.

    No reader waits for it: a replaced month is exchanged inside its own partition. For a new month
    to appear at the commit together with the rest it needs a place made ahead (`places.py`).

    Returns:
        Whether there is a new version of the month.
    """
    if stands_already:
        _confirm(cursor, spec, publication)
        return False
    current = _current(cursor, spec, publication.month)
    if current is None:
        _put(cursor, spec, publication, None)
        return True
    _replace_inside(cursor, spec, publication, current)
    version = _record(cursor, spec, publication, current.leaf, current)
    _date(cursor, spec, publication.month, version)
    return True


def _put(cursor: Any, spec: TableSpec, publication: Publication, current: _Current | None) -> int:
    """Make the leaf the month's partition and record it; a place made ahead takes its rows."""
    month = publication.month
    place = fill_place(cursor, spec, month, publication.leaf) if current is None else None
    version = _record(cursor, spec, publication, place or publication.leaf, current)
    if place is None:
        # Last, since from here to the commit new readers wait.
        _swap(cursor, spec, publication, current)
    _date(cursor, spec, month, version)
    return version


def _confirm(cursor: Any, spec: TableSpec, publication: Publication) -> None:
    cursor.execute(sql.SQL("drop table {}").format(sql.Identifier(LEAVES, publication.leaf)))
    cursor.execute(
        "update meta.versions set code_version = %s, inputs = %s, rows_read = %s, "
        "rows_quarantined = %s, rows_superseded = %s, is_checked = false, restores = null "
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
    if spec.layer != "bronze":
        cursor.execute(
            "delete from meta.quarantine where table_name = %s and month = %s",
            (spec.full_name, publication.month),
        )
    _file_quarantine(cursor, spec, publication)


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
                parent, sql.Identifier(LEAVES, current.leaf)
            )
        )
    else:
        # What attaching locks by itself, before the columns are compared.
        cursor.execute(sql.SQL("lock table only {} in share update exclusive mode").format(parent))
    align_leaf(cursor, spec, publication.leaf)
    start, end = (sql.Literal(day.isoformat()) for day in month_bounds(publication.month))
    cursor.execute(
        sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
            parent, sql.Identifier(LEAVES, publication.leaf), start, end
        )
    )


def _replace_inside(
    cursor: Any, spec: TableSpec, publication: Publication, current: _Current
) -> None:
    """Move the rows of the attached leaf to a new one, and write the incoming rows in their place.

    A restored version keeps its own leaf, which somebody may be reading.
    """
    cursor.execute("select nextval('meta.leaf_number')")
    (number,) = cursor.fetchone()
    outgoing = f"{spec.layer}_{spec.name}_{publication.month:%Y_%m}_{number}"
    attached, moved, incoming = (
        sql.Identifier(LEAVES, leaf) for leaf in (current.leaf, outgoing, publication.leaf)
    )
    columns = columns_of(cursor, [current.leaf, publication.leaf])
    held = list(columns[current.leaf])
    # A column that came after the incoming rows were made is NULL in them.
    brought = [name for name in columns[publication.leaf] if name in held]
    cursor.execute(
        sql.SQL(
            "create table {moved} (like {attached} including all); "
            "with gone as (delete from {attached} returning {held}) "
            "insert into {moved} ({held}) select {held} from gone; "
            "insert into {attached} ({brought}) select {brought} from {incoming}"
        ).format(
            attached=attached,
            moved=moved,
            incoming=incoming,
            held=identifiers(held),
            brought=identifiers(brought),
        )
    )
    if publication.restores is None:
        cursor.execute(sql.SQL("drop table {}").format(incoming))
    # Several versions may share these rows: a rollback brings a leaf back as it is.
    cursor.execute(
        "update meta.versions set leaf = %s where table_name = %s and month = %s and leaf = %s",
        (outgoing, spec.full_name, publication.month, current.leaf),
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
        "seconds, restores) "
        "values (%s, %s, %s, true, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
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
            publication.restores,
        ),
    )
    if spec.layer != "bronze":
        _set_quarantine_aside(cursor, spec, publication.month, current)
    _file_quarantine(cursor, spec, publication)
    return version


def _date(cursor: Any, spec: TableSpec, month: date, version: int) -> None:
    """Note when readers change over: as late as can be, and the same instant on both sides."""
    cursor.execute(
        "with now as (select clock_timestamp() as instant) "
        "update meta.versions set published_at = case when is_current then instant "
        "else published_at end, replaced_at = case when is_current then null else instant end "
        "from now where table_name = %s and month = %s and version in (%s, %s)",
        (spec.full_name, month, version, version - 1),
    )


def date_together(cursor: Any, published: Sequence[tuple[str, date]]) -> None:
    """Give months that one transaction has put in place the same instant, as late as can be."""
    cursor.execute(
        "with now as (select clock_timestamp() as instant), changed as ("
        "select v.table_name, v.month, v.version from meta.versions as v "
        "join unnest(%s::text[], %s::date[]) as p (table_name, month) using (table_name, month) "
        "where v.is_current) "
        "update meta.versions as v set "
        "published_at = case when v.is_current then instant else v.published_at end, "
        "replaced_at = case when v.is_current then null else instant end "
        "from now, changed as c where v.table_name = c.table_name and v.month = c.month "
        "and v.version in (c.version, c.version - 1)",
        ([table for table, _ in published], [month for _, month in published]),
    )


def _set_quarantine_aside(
    cursor: Any, spec: TableSpec, month: date, current: _Current | None
) -> None:
    """Keep the outgoing version's quarantine with it.

    Not in bronze: there the records that landing could not read are filed under the month, where
    it could be told; they stay, as only registering their delivery anew would bring them back.
    """
    cursor.execute(
        sql.SQL(
            "with gone as (delete from meta.quarantine where table_name = %s and month = %s "
            "returning {columns}) "
            "insert into meta.past_quarantine ({columns}, version) "
            "select {columns}, %s from gone where %s is not null"
        ).format(columns=identifiers(_QUARANTINED)),
        (spec.full_name, month, *(2 * (current.version if current else None,))),
    )


def _file_quarantine(cursor: Any, spec: TableSpec, publication: Publication) -> None:
    """File what the audit of these rows has found, or, of a restored version, had found."""
    if not publication.rows_quarantined:
        return
    if publication.restores is not None:
        if spec.layer != "bronze":
            _restore_quarantine(cursor, spec, publication.month, publication.restores)
        return
    cursor.execute(
        "insert into meta.quarantine (table_name, month, delivery_id, line, column_name, rule, "
        "value, violations, raw) select %s, month, delivery_id, line, "
        "violations -> 0 ->> 'column', violations -> 0 ->> 'rule', violations -> 0 ->> 'value', "
        "violations, raw from staged_quarantine where month = %s",
        (spec.full_name, publication.month),
    )


def _restore_quarantine(cursor: Any, spec: TableSpec, month: date, version: int) -> None:
    # Copied: the version may be brought back again later.
    cursor.execute(
        sql.SQL(
            "insert into meta.quarantine ({columns}) select {columns} from "
            "(select {others}, (select d.delivery_id from meta.deliveries as d "
            "where d.delivery_id = q.delivery_id) from meta.past_quarantine as q "
            "where table_name = %s and month = %s and version = %s) as kept"
        ).format(
            columns=identifiers(_QUARANTINED),
            others=identifiers(c for c in _QUARANTINED if c != "delivery_id"),
        ),
        (spec.full_name, month, version),
    )


def prune(connection: Any, table: str, month: date, keeping: Keeping) -> None:
    """Drop the versions past those that are kept, unless a reader, a backup say, holds one."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("select set_config('lock_timeout', %s, true)", (f"{SWAP_TIMEOUT_MS}ms",))
            prune_month(cursor, table, month, keeping)
        connection.commit()
    except psycopg2.errors.LockNotAvailable:
        connection.rollback()  # the next publish of the month, or the next build, tries again
