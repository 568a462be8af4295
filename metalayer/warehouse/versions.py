"""Bringing an earlier version of a month back.

A rollback makes the kept leaf of a version the partition again, which is as quick for a hundred
rows as for a hundred million, and records that as a version of its own. It takes over what the
replaced version was made from, so no build undoes it by itself: the month is out of date again when
its inputs change, while all that is made from it is out of date at once where contents differ. A
leaf from before a column became wider is widened first.

Does not belong here: putting a leaf in place (`publish.py`), which versions are kept
(`keeping.py`), or reading them (`metalayer.history`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg2.errors
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.contracts.contract import TableSpec
from metalayer.contracts.sealed import SEALED
from metalayer.errors import UsageError, WarehouseError
from metalayer.warehouse.altering import beside_readers
from metalayer.warehouse.checks import keys_unique
from metalayer.warehouse.ddl import identifiers, stored_name
from metalayer.warehouse.keeping import Keeping
from metalayer.warehouse.leaves import (
    LEAVES,
    columns_of,
    has_key,
    is_mask_name,
    required_columns_of,
    some_values,
)
from metalayer.warehouse.locks import lock_months, unlock_all
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.publish import Publication, publish
from metalayer.warehouse.retype import conversion, is_lossless
from metalayer.warehouse.state import load_state


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    Attributes:
        version: The version that readers see now.
        restores: The one whose rows these are.
        replaced: The version that readers saw before; `version` itself where nothing was to do.
        rows: Rows that readers see now.
    """

    version: int
    restores: int
    replaced: int
    rows: int

    @property
    def has_changed(self) -> bool:
        """Whether readers see another version than before."""
        return self.version != self.replaced


def rollback(
    pool: Engine, spec: TableSpec, month: date, to: int, keeping: Keeping | None = None
) -> Rollback:
    """Make version `to` of a month what readers see.

    Waits for a build of the month to end.

    Raises:
        UsageError: for a bronze table, a month that is not published, or a version that is not
            kept, listing those that are.
        WarehouseError: when the version's columns do not fit the table as it is now. One whose type
            has since become a wider one is converted, which takes longer for more rows.
    """
    if spec.layer == "bronze":
        raise UsageError(
            f"{spec.full_name} holds what was delivered, which a rollback does not undo",
            "Take a file out with `metalayer land --withdraw FILE`, or land the corrected file "
            "under the same name; then `metalayer build`.",
        )
    with transaction(pool) as connection, connection.cursor() as cursor:
        try:
            lock_months(cursor, spec.full_name, [month])
            kept = _kept(cursor, spec, month)
            _refuse_what_is_not_kept(cursor, spec, month, to, kept)
            current, wanted = next(v for v in kept.values() if v.is_current), kept[to]
            if wanted.leaf == current.leaf:
                return Rollback(current.version, to, current.version, current.rows)
            _refuse_plain(cursor, spec, wanted.leaf)
            _fit(cursor, spec, month, wanted)
            connection.commit()
            version = publish(connection, spec, _restoring(month, wanted, current), keeping)
        finally:
            if not connection.closed:
                connection.rollback()
                unlock_all(cursor)
                connection.commit()
    return Rollback(version, to, current.version, wanted.rows)


def _refuse_plain(cursor: Any, spec: TableSpec, leaf: str) -> None:
    """Let no version back that is from before a column was encrypted, and not sealed since."""
    there = columns_of(cursor, [leaf])[leaf]
    for column in spec.sealed:
        kind = there.get(column.name)
        if kind is None:
            continue
        values = some_values(cursor, leaf, column.name)
        if kind != "text" or not all(re.fullmatch(SEALED, value) for value in values):
            raise UsageError(
                f"That version of {spec.full_name} has {column.name} in plain: it is from before "
                "the column was encrypted",
                "`metalayer keys rotate` encrypts earlier versions, too; then roll back.",
            )


@dataclass(frozen=True)
class Aftermath:
    """What a rollback of one month means for rows that came or moved since.

    Attributes:
        repeated: Keys of the month that stand in another month as well.
        gone: Keys of the replaced version that the month has no longer, whether or not they stand
            in another; None where the replaced version is not kept.
    """

    repeated: int
    gone: int | None


def aftermath(pool: Engine, spec: TableSpec, month: date, done: Rollback) -> Aftermath:
    """Look for keys that stand in two months, or not in the month any more, after a rollback."""
    with transaction(pool) as connection, connection.cursor() as cursor:
        state = load_state(cursor, [spec.full_name])
        rows = {m: p.rows for m, p in state.published[spec.full_name].items()}
        repeated = keys_unique(cursor, spec, [month], rows).months[month].get("keys", 0)
        kept = _kept(cursor, spec, month)
        if done.replaced not in kept or done.version not in kept:
            return Aftermath(repeated, None)
        lost = sql.SQL(
            "select count(*) from (select {key} from {before} except select {key} from {now}) as k"
        ).format(
            key=identifiers(spec.key),
            before=sql.Identifier(LEAVES, kept[done.replaced].leaf),
            now=sql.Identifier(LEAVES, kept[done.version].leaf),
        )
        try:
            cursor.execute(lost)
        except psycopg2.errors.UndefinedTable:  # pruned by a build a moment ago
            connection.rollback()
            return Aftermath(repeated, None)
        return Aftermath(repeated, cursor.fetchone()[0])


@dataclass(frozen=True)
class _Kept:
    version: int
    is_current: bool
    leaf: str
    data_version: str
    code_version: str
    inputs: dict[str, str]
    rows_read: int
    rows: int
    rows_quarantined: int
    rows_superseded: int


def _kept(cursor: Any, spec: TableSpec, month: date) -> dict[int, _Kept]:
    cursor.execute(
        "select version, is_current, leaf, data_version, code_version, inputs, rows_read, rows, "
        "rows_quarantined, rows_superseded from meta.versions "
        "where table_name = %s and month = %s order by version",
        (spec.full_name, month),
    )
    return {version: _Kept(version, *values) for version, *values in cursor.fetchall()}


def _refuse_what_is_not_kept(
    cursor: Any, spec: TableSpec, month: date, to: int, kept: dict[int, _Kept]
) -> None:
    if to in kept:
        return
    if kept:
        raise UsageError(
            f"{spec.full_name} {month:%Y-%m} has no version {to}",
            f"Kept are {', '.join(map(str, kept))}; `metalayer versions {spec.full_name} "
            f"{month:%Y-%m}` shows them.",
        )
    cursor.execute(
        "select to_char(min(month), 'YYYY-MM'), to_char(max(month), 'YYYY-MM') "
        "from meta.versions where table_name = %s",
        (spec.full_name,),
    )
    first, last = cursor.fetchone()
    raise UsageError(
        f"{spec.full_name} has no month {month:%Y-%m}",
        f"Its months are {first} to {last}." if first else "Build it: `metalayer build`.",
    )


def _restoring(month: date, wanted: _Kept, current: _Kept) -> Publication:
    return Publication(
        month=month,
        leaf=wanted.leaf,
        data_version=wanted.data_version,
        # Those of the version it replaces: with its own, the next build would take it back.
        code_version=current.code_version,
        inputs=current.inputs,
        rows_read=wanted.rows_read,
        rows=wanted.rows,
        rows_quarantined=wanted.rows_quarantined,
        rows_superseded=wanted.rows_superseded,
        run_id=None,
        seconds=0.0,
        restores=wanted.version,
    )


def _fit(cursor: Any, spec: TableSpec, month: date, wanted: _Kept) -> None:
    """Make a leaf what can become a partition of the table as it is now, if nothing is lost."""
    held = columns_of(cursor, [wanted.leaf])[wanted.leaf]
    due = _columns(cursor, spec)
    table = sql.Identifier(LEAVES, wanted.leaf)
    # Masks of another making than the table's: what they hold is computed on reading.
    outdated = [name for name in held if is_mask_name(name) and name not in due]
    held = {name: kind for name, kind in held.items() if name not in outdated}
    widened = {
        name: kind
        for name, kind in held.items()
        if name in due and kind != due[name] and is_lossless(kind, due[name])
    }
    _refuse_misfits(cursor, spec, month, wanted, held, {**due, **{n: held[n] for n in widened}})
    changes = [
        sql.SQL("alter column {} type {} using {}").format(
            column, sql.SQL(due[name]), conversion(column, kind, due[name])
        )
        for name, kind in widened.items()
        if (column := sql.Identifier(name))
    ]
    changes += [sql.SQL("drop column {}").format(sql.Identifier(name)) for name in outdated]
    if not changes:
        return
    change = sql.SQL("alter table {} {}").format(table, sql.SQL(", ").join(changes))
    what = f"Version {wanted.version} of {spec.full_name} {month:%Y-%m} cannot be changed"
    beside_readers(cursor, lambda: cursor.execute(change), what)


def _refuse_misfits(
    cursor: Any,
    spec: TableSpec,
    month: date,
    wanted: _Kept,
    held: Mapping[str, str],
    due: Mapping[str, str],
) -> None:
    """Only a leaf that has what the table has now can become its partition.

    Args:
        held: The leaf's columns -> their types.
        due: The table's -> the types that the leaf must have.
    """
    required = {c.name for c in spec.stored if not c.nullable} & due.keys()
    given = required_columns_of(cursor, wanted.leaf)
    misfits = [
        *(f"its column {name} is no longer in the table" for name in held if name not in due),
        *(
            f"its column {name} is {held[name]}, in the table {due[name]}"
            for name in held
            if name in due and held[name] != due[name]
        ),
        *(
            f"it lacks the column {name}, which must have a value"
            for name in due
            if name in required and name not in held
        ),
        *(
            f"its column {name} may lack a value, which the contract no longer allows"
            for name in held
            if name in required and name not in given
        ),
    ]
    if not misfits and not has_key(cursor, wanted.leaf, spec.key):
        misfits = [f"its rows have another key than {', '.join(spec.key)}"]
    if misfits:
        raise WarehouseError(
            f"Version {wanted.version} of {spec.full_name} {month:%Y-%m} does not fit the table "
            f"as it is now: {'; '.join(misfits)}",
            "Read it as it was with `metalayer query --as-of`. To bring it back, bring back the "
            "contract it was built with first.",
        )


def _columns(cursor: Any, spec: TableSpec) -> dict[str, str]:
    cursor.execute(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attnum",
        (".".join(stored_name(spec).strings),),
    )
    return dict(cursor.fetchall())
