"""A person taken out of everything that is held, and the proof of it.

    files and ledger --> tables --> earlier versions --> what PostgreSQL keeps --> search

The first step is one transaction; each of the others looks for what is left to do. So an erasure
that was killed is finished by asking for it again, or by the next build as far as tables go. Facts
stay: they point at the Unknown member, and no total changes.

Does not belong here: finding a person (`subjects.py`), the landed files (`landing/erase.py`), how a
certificate is signed (`certificates.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import psycopg2
import psycopg2.errors
from psycopg2 import sql

from metalayer.assets.headless import build
from metalayer.assets.resources import Warehouse
from metalayer.catalog import Catalog
from metalayer.errors import BuildError, UsageError
from metalayer.governance.subjects import (
    Subject,
    canonical,
    kinds,
    mentions_of,
    places,
    subject,
)
from metalayer.landing.entries import lock
from metalayer.landing.erase import clear, parses_of_no_delivery
from metalayer.landing.erased import load_register, make_token, note, remember, token_of
from metalayer.landing.ledger import register
from metalayer.warehouse.acts import record
from metalayer.warehouse.archiving import spool_of
from metalayer.warehouse.keeping import drop_versions
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.locks import lock_months, unlock_all
from metalayer.warehouse.pool import transaction
from metalayer.wording import counted

Tell = Callable[[str], None]

# What of MetaLayer's own may have held a value of a row, before or now.
_REWRITTEN = (
    *("meta.quarantine", "meta.past_quarantine", "meta.changed_keys", "meta.deliveries"),
    *("meta.failed_months", "meta.failed_checks", "meta.versions"),
    # Last: the most frequent values of columns are there, and new ones have just replaced the old.
    "pg_catalog.pg_statistic",
)


@dataclass(frozen=True)
class Erasure:
    """What an erasure did, or would do.

    Attributes:
        token: Salted hash that stands for the person.
        files: Landed file -> records taken out of it or made anonymous.
        rows: Table -> rows of the person before.
        quarantined: Quarantined rows of the person before.
        versions: Table -> earlier versions of months that were dropped for holding the person.
        left: What still names the person: place, and what to do there. Empty when it is done.
        searched: Places that were searched at the end.
        beyond: What is out of reach, and for the owner of a server to see to.
        completed_at: When that search ended.
    """

    kind: str
    token: str
    files: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    searched: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    completed_at: datetime | None = None


def hold(warehouse: Warehouse, tables: Catalog, kind: str, number: str, reason: str) -> None:
    """Keep a person from being erased, for a reason that `erase` tells."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        lock(cursor)  # nothing is being taken out meanwhile
        token = make_token(cursor, warehouse.settings, kind, _number(cursor, tables, kind, number))
        cursor.execute(
            "insert into meta.holds (kind, token, reason) values (%s, %s, %s) "
            "on conflict (kind, token) do update set reason = excluded.reason",
            (kind, token, reason),
        )
        record(cursor, "hold", f"a {kind}")


def release(warehouse: Warehouse, tables: Catalog, kind: str, number: str) -> bool:
    """Let a person be erased again; False if nobody kept them from it."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        written = _number(cursor, tables, kind, number)
        token = token_of(cursor, warehouse.settings, kind, written)
        cursor.execute("delete from meta.holds where kind = %s and token = %s", (kind, token))
        was_held = bool(cursor.rowcount)
        if was_held:
            record(cursor, "release", f"a {kind}")
    return was_held


def _number(cursor: Any, tables: Catalog, kind: str, number: str) -> str:
    return canonical(cursor, tables, places(tables, kind), kind, number)


def look(warehouse: Warehouse, tables: Catalog, kind: str, number: str, told: Tell) -> Subject:
    """What is held of the person, for `erase`.

    Raises:
        UsageError: when the person is on hold, with the reason; when nothing is held of them, and
            they were not erased before.
    """
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        written = _number(cursor, tables, kind, number)
        token = token_of(cursor, warehouse.settings, kind, written)
        cursor.execute(
            "select reason, to_char(held_since, 'YYYY-MM-DD') from meta.holds "
            "where kind = %s and token = %s",
            (kind, token),
        )
        held = cursor.fetchone()
        if held is not None:
            raise UsageError(
                f"This {kind} is on legal hold since {held[1]}: {held[0]}",
                "`metalayer hold --release` lets go of it, once the reason is gone.",
            )
        found = subject(cursor, tables, warehouse.settings, kind, number, told)
        cursor.execute(
            "select exists (select from meta.erased where kind = %s and token = %s)", (kind, token)
        )
        if found.is_empty and cursor.fetchone() == (False,):
            raise UsageError(
                f"Nothing is held of {kind} {found.number}",
                "Check the number; what has landed is looked through once it is built.",
            )
        return found


def planned(found: Subject) -> Erasure:
    """What erasing the person would be about; the token is left open."""
    versions: dict[str, int] = {}
    for earlier in found.earlier_versions:
        versions[earlier.table] = versions.get(earlier.table, 0) + 1
    return Erasure(
        found.kind,
        "",
        {lines.file: len(lines.lines) for lines in found.files},
        {held.table: len(held.rows) for held in found.tables},
        len(found.quarantined),
        versions,
        [f"{file}: {_OTHER_FILE}" for file in found.other_files],
    )


_UNSEARCHED = "it is cut off, so it cannot be searched to its end: delete it, and erase again"
_OTHER_FILE = "it is in no table, and names the person; remove it, or mend it and build"


def erase(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    tables: Catalog,
    found: Subject,
    told: Tell = lambda _: None,
    today: date | None = None,
) -> Erasure:
    """Erase a person.

    Args:
        found: What `look` found.
        told: Is told what is being done.

    Returns:
        What was done, and what is left: nothing, unless files in no table name the person.

    Raises:
        LandingError: when a file is needed that is not as it was read; nothing has changed then.
        BuildError: when tables could not be built anew; ask again once what is wrong is mended.
    """
    plan = planned(found)
    settings = warehouse.settings
    told("taking in what has landed")
    # The ledger then has each file as it is, unless one lands in the next instant.
    register(warehouse.pool, settings, tables.sources, today=today)
    told("taking the person out of landed files")
    token, files = _clear_files(warehouse, tables, found, today)
    told("building the tables anew")
    outcome = build(warehouse, instance)
    if not outcome.succeeded:
        raise BuildError(
            "The person is out of the landed files, but not all tables could be built anew: "
            f"{outcome.problems}",
            "Mend it, and erase again: what is done is not done twice.",
        )
    told("dropping earlier versions")
    versions = _drop_versions(warehouse, tables, found)
    told("rewriting what PostgreSQL keeps")
    left = _scrub(warehouse, list(places(tables, found.kind)))
    told("searching")
    left += _search(warehouse, tables, found, told)
    searched = ["every table, quarantine and earlier version, for the number"]
    if any(found.contacts.values()):
        searched.append("landing zone and METALAYER_HOME, for e-mail addresses and phone numbers")
    beyond = [] if settings.database_url is None else [_OF_A_SERVER]
    if settings.backup_url is not None or spool_of(settings.pgdata).is_dir():
        beyond.append(_OF_BACKUPS)
    return replace(
        plan,
        token=token,
        files=files,
        versions=versions,
        left=left,
        searched=searched,
        beyond=beyond,
        completed_at=datetime.now(UTC),
    )


_OF_BACKUPS = (
    "backups: they let go of the person once they are older than METALAYER_BACKUP_KEEP_DAYS; "
    "whoever restores one has the person erased again"
)
_OF_A_SERVER = (
    "the server's log of changes, its archives, replicas and backups: they let go of the person as "
    "they are written over, which is the server's owner's to see to"
)


def replay(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    tables: Catalog,
    told: Tell = lambda _: None,
) -> bool:
    """Erase again whom an earlier state of the warehouse, restored, has brought back.

    They are known by their tokens only, so every earlier version of a table of persons goes.

    Returns:
        Whether there was anybody.

    Raises:
        BuildError: when tables could not be built anew; ask again once what is wrong is mended.
    """
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        register_of_both = load_register(cursor, warehouse.settings)
    if register_of_both is None or not register_of_both.news:
        return False
    told("taking erased persons out of landed files")
    register(warehouse.pool, warehouse.settings, tables.sources)
    told("building the tables anew")
    outcome = build(warehouse, instance)
    if not outcome.succeeded:
        raise BuildError(
            f"Not all tables could be built without those who were erased: {outcome.problems}",
            "Mend it, and build.",
        )
    held_in = sorted({table for kind in kinds(tables) for table in places(tables, kind)})
    told("dropping earlier versions")
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select table_name, month, array_agg(version) from meta.versions "
            "where not is_current and table_name = any(%s) group by 1, 2",
            (held_in,),
        )
        for table, month, versions in cursor.fetchall():
            lock_months(cursor, table, [month])
            drop_versions(cursor, table, month, versions)
            connection.commit()
            unlock_all(cursor)
        for name in ("past_quarantine", "changed_keys"):
            cursor.execute(
                sql.SQL("delete from {} where table_name = any(%s)").format(
                    sql.Identifier("meta", name)
                ),
                (held_in,),
            )
    told("rewriting what PostgreSQL keeps")
    _scrub(warehouse, held_in)
    return True


def _clear_files(
    warehouse: Warehouse, tables: Catalog, found: Subject, today: date | None
) -> tuple[str, dict[str, int]]:
    """Take the person out of landed files; returns their token, and the files."""
    settings = warehouse.settings
    lines: dict[int, list[int]] = {}
    for rejected in found.quarantined:
        if rejected.delivery_id is not None and rejected.line is not None:
            lines.setdefault(rejected.delivery_id, []).append(rejected.line)
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        lock(cursor)
        erased = remember(cursor, settings, found.kind, found.number)
        cleared = clear(
            cursor, settings, tables.sources, erased, today or datetime.now(UTC).date(), lines
        )
        cleared.forget_parse(*parses_of_no_delivery(cursor, settings))
        details = {"files": len(cleared.files), "records": sum(cleared.files.values())}
        record(cursor, "erase", f"a {found.kind}", details)
        try:
            # What is only in the home is noticed by the next registration, and made up for.
            note(settings, erased)
            connection.commit()
        except BaseException:
            cleared.abandon()
            raise
        cleared.finish()
    return erased.token(found.kind, found.number), cleared.files


def _drop_versions(warehouse: Warehouse, tables: Catalog, found: Subject) -> dict[str, int]:
    """Drop every earlier version that holds the person, those too that this erasure replaced."""
    held_in = places(tables, found.kind)
    dropped: dict[str, int] = {}
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        again = subject(
            cursor, tables, warehouse.settings, found.kind, found.number, known=found.contacts
        )
        months: dict[tuple[str, date], list[int]] = {}
        for earlier in again.earlier_versions:
            month = date.fromisoformat(f"{earlier.month}-01")
            months.setdefault((earlier.table, month), []).append(earlier.version)
        for (table, month), versions in months.items():
            lock_months(cursor, table, [month])
            dropped[table] = dropped.get(table, 0) + drop_versions(cursor, table, month, versions)
            connection.commit()
            unlock_all(cursor)
        cursor.execute(
            "delete from meta.changed_keys where table_name = any(%s) and %s = any(keys)",
            (list(held_in), found.number),
        )
        # What is in the quarantine now is of no file any more; that of kept versions was.
        gone = (*found.quarantined, *again.quarantined)
        cursor.execute(
            "delete from meta.past_quarantine as q "
            "using unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[]) "
            "as gone (table_name, delivery_id, line, raw) where q.table_name = gone.table_name "
            "and (q.delivery_id, q.line, q.raw) is not distinct from "
            "(gone.delivery_id, gone.line, gone.raw)",
            (
                [row.table for row in gone],
                [row.delivery_id for row in gone],
                [row.line for row in gone],
                [row.kept for row in gone],
            ),
        )
    return dropped


def _scrub(warehouse: Warehouse, held_in: list[str]) -> list[str]:
    """Have PostgreSQL let go of what it keeps of rows that are gone."""
    left: list[str] = []
    with transaction(warehouse.pool) as connection:
        connection.rollback()
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                # What went to the quarantine had been staged before, and lies there dead; so does
                # what was exchanged while somebody read the month.
                cursor.execute(
                    "select distinct v.leaf from meta.versions as v join meta.tables as t "
                    "using (table_name) where t.has_personal and v.table_name = any(%s)",
                    (held_in,),
                )
                for (leaf,) in cursor.fetchall():
                    with contextlib.suppress(psycopg2.errors.UndefinedTable):
                        cursor.execute(
                            sql.SQL("vacuum (full, analyze) {}").format(
                                sql.Identifier(LEAVES, leaf)
                            )
                        )
                cursor.execute(
                    "select n.nspname, c.relname from pg_class as c join pg_namespace as n "
                    "on n.oid = c.relnamespace where c.relkind = 'p' "
                    "and n.nspname = any(array['bronze', 'silver', 'gold'])"
                )
                for schema, name in cursor.fetchall():
                    cursor.execute(sql.SQL("analyze {}").format(sql.Identifier(schema, name)))
                for table in _REWRITTEN:
                    with contextlib.suppress(psycopg2.errors.InsufficientPrivilege):
                        cursor.execute(f"vacuum (full, analyze) {table}")
                if warehouse.settings.database_url is None:
                    left += _forget_changes(cursor)
        finally:
            connection.autocommit = False
    return left


def _forget_changes(cursor: Any) -> list[str]:
    """Have the embedded server's log of changes go, with the segments that it keeps for reuse."""
    try:
        try:
            for statement in (
                *("alter system set wal_recycle = off", "alter system set min_wal_size = '32MB'"),
                *("select pg_reload_conf()", "select pg_sleep(0.2)"),
                *("select pg_switch_wal()", "checkpoint", "select pg_switch_wal()", "checkpoint"),
            ):
                cursor.execute(statement)
        finally:
            for setting in ("wal_recycle", "min_wal_size"):
                cursor.execute(f"alter system reset {setting}")
            cursor.execute("select pg_reload_conf()")
    except psycopg2.Error as error:
        return [f"PostgreSQL's log of changes: {type(error).__name__}; erase again"]
    return []


def _search(warehouse: Warehouse, tables: Catalog, found: Subject, told: Tell) -> list[str]:
    settings = warehouse.settings
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        again = subject(
            cursor, tables, settings, found.kind, found.number, told, known=found.contacts
        )
    left = [f"{held.table}: {counted(len(held.rows), 'row')}" for held in again.tables]
    left += [f"quarantine of {row.table}: erase again" for row in again.quarantined]
    left += [
        f"{e.table} {e.month} version {e.version}: erase again" for e in again.earlier_versions
    ]
    left += [f"{file}: {_OTHER_FILE}" for file in again.other_files]
    left += [f"{file}: {_UNSEARCHED}" for file in again.unsearched]
    # What is in the landing zone has been told; the log that waits for backups goes with these.
    elsewhere = (settings.landing, spool_of(settings.pgdata))
    left += [
        f"METALAYER_HOME/{file}: " + ("it names the person" if names else _UNSEARCHED)
        for file, names in mentions_of(again, settings.home)
        if not any((settings.home / file).is_relative_to(folder) for folder in elsewhere)
    ]
    return left
