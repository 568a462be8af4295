"""Months whose time has come: they leave landed files, every layer, the quarantine and versions.

    contracts --> files and ledger --> tables --> what looks back, from what is kept --> versions

How long is `retention_months` of a contract; rows that are another table's rows (`rows_from`) are
kept as long as those. Aggregates that say nothing stay as they are, for good. A month with rows of
somebody on legal hold stays. Killed, it is finished by asking for it again.

Does not belong here: taking lines out of files (`landing/erase.py`), erasing one person
(`erasure.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import psycopg2.errors
from psycopg2 import sql

from metalayer.assets.headless import build, current_plan
from metalayer.assets.resources import Warehouse
from metalayer.catalog import Catalog
from metalayer.contracts.contract import TableSpec
from metalayer.errors import BuildError, ContractError, WarehouseError
from metalayer.governance.subjects import kinds, places
from metalayer.landing.copy import copy_to_duckdb
from metalayer.landing.engine import open_memory
from metalayer.landing.entries import lock
from metalayer.landing.erase import clear
from metalayer.landing.erased import load_expiries, numbered_columns, prefix_of
from metalayer.landing.expired import Expiry, load_expiry, note_expiry
from metalayer.landing.judge import identifier
from metalayer.landing.ledger import register
from metalayer.landing.parsed import parsed_deliveries
from metalayer.landing.records import is_numbered, open_with_grammar
from metalayer.landing.shape import terms_of, unpacking_of
from metalayer.lineage.select import Reach
from metalayer.settings import Settings
from metalayer.warehouse.acts import record
from metalayer.warehouse.ddl import stored_name
from metalayer.warehouse.keeping import drop_versions
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.locks import lock_months, unlock_all
from metalayer.warehouse.pool import transaction
from metalayer.wording import named

Tell = Callable[[str], None]

_DROP_TRIES = 40
_NAMED = 5
_LOCK_TIMEOUT_MS = 100


@dataclass(frozen=True)
class Expiring:
    """Months that have expired, or would.

    Attributes:
        months: Table -> month -> its rows.
        files: Landed file -> records of such months in it.
        held: Month -> where it has rows of somebody on legal hold, and so stays.
        before: Table -> first month that is kept.
        kept: Months before that which stay since the limit was raised while they were held.
        follow: Tables that look back over such months, and are built from what is kept.
        left: Files that were refused, so that nobody knows what is in them.
    """

    months: dict[str, dict[date, int]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    held: dict[date, list[str]] = field(default_factory=dict)
    before: dict[str, date] = field(default_factory=dict)
    kept: frozenset[date] = frozenset()
    follow: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has."""
        return not (self.months or self.files)


def kept_for(tables: Catalog) -> dict[str, int]:
    """Table -> how many months its rows are kept besides the present one; others are kept for good.

    Raises:
        ContractError: when a table with persons' numbers would stay, of months whose sources go.
    """
    found: dict[str, int] = {}
    for name, spec in tables.specs.items():
        months = spec.retention_months
        if months is None and spec.rows_from is not None:
            months = found.get(spec.rows_from)
        if months is not None:
            found[name] = months
    numbered = {name for kind in kinds(tables) for name in places(tables, kind)}
    for name in numbered - set(found):
        spec = tables.specs[name]
        going = [
            t for t, reach in tables.inputs(name).items() if reach is Reach.SAME and t in found
        ]
        if going:
            raise ContractError(
                f"contracts/{spec.layer}/{spec.name}.py says no retention_months, but its rows are "
                f"of persons, and made from {going[0]}, which keeps {found[going[0]]} months",
                "Give it retention_months as well: other rows than aggregates must not stay",
            )
    return found


def look(warehouse: Warehouse, tables: Catalog, today: date | None = None) -> Expiring:
    """What has expired by now, and is still there."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        return _look(cursor, warehouse.settings, tables, today)


def _look(cursor: Any, settings: Settings, tables: Catalog, today: date | None) -> Expiring:
    kept = kept_for(tables)
    now = today or datetime.now(UTC).date()
    asked = {table: _months_back(now, months) for table, months in kept.items()}
    noted = load_expiry(cursor)
    before = dict(asked)
    for source, spec in tables.sources.items():
        if source in noted and spec.full_name in asked:
            # A limit never goes back: what was taken out before it is gone.
            limit = max(asked[spec.full_name], noted[source].before)
            before |= {spec.full_name: limit, f"bronze.{spec.name}": limit}
    for table in before:
        origin = tables.specs[table].rows_from
        if origin in before and tables.specs[table].retention_months is None:
            before[table] = before[origin]
    raised = {
        month
        for source, spec in tables.sources.items()
        if source in noted
        for month in noted[source].held
        if month >= asked.get(spec.full_name, date.min)
    }
    found = Expiring(before=before, kept=frozenset(raised), follow=_following(tables, kept))
    if not before:
        return found
    late = _published_before(cursor, before)
    for where, month in _held(cursor, settings, tables, late, before, now):
        found.held.setdefault(month, []).append(where)
    for table, months in late.items():
        going = {m: n for m, n in months.items() if m not in found.held and m not in found.kept}
        if going:
            found.months[table] = going
    found.files.update(_files(cursor, tables, _expiries(tables, found)))
    found.left.extend(_refused(cursor, settings, tables, before))
    return found


def _months_back(day: date, months: int) -> date:
    number = day.year * 12 + day.month - 1 - months
    return date(number // 12, number % 12 + 1, 1)


def _following(tables: Catalog, kept: Mapping[str, int]) -> list[str]:
    """The tables that look back over such that have a limit."""
    return [
        name
        for name in tables.specs
        if any(
            reach is not Reach.SAME and table in kept
            for table, reach in tables.inputs(name).items()
        )
    ]


def _published_before(cursor: Any, before: Mapping[str, date]) -> dict[str, dict[date, int]]:
    """Table -> month that some version is still there of -> rows of the current one."""
    cursor.execute(
        "select v.table_name, v.month, coalesce(sum(v.rows + v.rows_superseded) "
        "filter (where v.is_current), 0)::bigint from meta.versions as v "
        "join unnest(%s::text[], %s::date[]) as b (table_name, before) using (table_name) "
        "where v.month < b.before group by 1, 2 order by 1, 2",
        (list(before), list(before.values())),
    )
    found: dict[str, dict[date, int]] = {}
    for table, month, rows in cursor.fetchall():
        found.setdefault(table, {})[month] = rows
    return found


def _held(
    cursor: Any,
    settings: Settings,
    tables: Catalog,
    late: Mapping[str, Mapping[date, int]],
    before: Mapping[str, date],
    today: date,
) -> Iterator[tuple[str, date]]:
    """Where somebody on legal hold has rows, and in which months: tables, and landed files."""
    cursor.execute("select kind, array_agg(token) from meta.holds group by kind")
    for kind, tokens in cursor.fetchall():
        prefix, held_in = prefix_of(cursor, settings, kind), places(tables, kind)
        for table, months in late.items():
            for column in held_in.get(table, ()):
                spec = tables.specs[table]
                query = sql.SQL(
                    "select distinct date_trunc('month', {month})::date, {number}::text from {t} "
                    "where date_trunc('month', {month})::date = any({months}::date[]) "
                    "and {number} is not null"
                ).format(
                    month=sql.Identifier(spec.month_column),
                    number=_written(tables, spec, column),
                    t=stored_name(spec),
                    months=sql.Literal(list(months)),
                )
                with open_memory() as memory:
                    memory.execute("create temp table found (month date, number varchar)")
                    copy_to_duckdb(cursor, memory, query, "found")
                    rows = memory.execute(
                        "select distinct month from found where list_contains(?, "
                        "sha256(? || number)) order by month",
                        [list(tokens), prefix],
                    ).fetchall()
                yield from ((table, month) for (month,) in rows)
        for source, spec in tables.sources.items():
            columns = [c.name for c, k in numbered_columns(spec, tables.sources) if k == kind]
            if spec.full_name not in before or not columns:
                continue
            shape = terms_of(spec, settings.start_month, today, unpacking_of(settings)).shape
            parsed = parsed_deliveries(
                cursor, shape, settings, since=date.min, until=before[spec.full_name]
            )
            if not parsed:
                continue
            theirs = is_numbered(
                shape, [(name, prefix, frozenset(tokens)) for name in columns], identifier
            )
            with open_with_grammar({}) as memory:
                rows = memory.execute(
                    f"select distinct month from read_parquet(?) where month < ? and {theirs} "  # noqa: S608
                    "order by month",
                    [sorted({str(path) for path in parsed.values()}), before[spec.full_name]],
                ).fetchall()
            yield from ((source, month) for (month,) in rows)


def _refused(
    cursor: Any, settings: Settings, tables: Catalog, before: Mapping[str, date]
) -> list[str]:
    """Landed files that were refused, and are older than what is kept."""
    limits = {s: before[spec.full_name] for s, spec in tables.sources.items()
              if spec.full_name in before}  # fmt: skip
    cursor.execute(
        "select distinct d.file from meta.deliveries as d "
        "join unnest(%s::text[], %s::date[]) as b (source, before) using (source) "
        "where d.status = 'rejected' and d.fallback_month < b.before order by d.file",
        (list(limits), list(limits.values())),
    )
    return [file for (file,) in cursor.fetchall() if (settings.landing / file).exists()]


def _written(tables: Catalog, spec: TableSpec, column: str) -> sql.Composable:
    """A number in the one way in which it is hashed."""
    name = sql.Identifier(column)
    if spec.layer != "bronze":
        return name
    type_ = tables.specs[f"silver.{spec.name}"].column(column).type
    return sql.SQL("meta.try_bigint({})" if type_ == "bigint" else "meta.clean_text({})").format(
        name
    )


def _expiries(tables: Catalog, found: Expiring) -> dict[str, Expiry]:
    """Source -> which of its months go."""
    return {
        source: Expiry(found.before[spec.full_name], frozenset(found.held) | found.kept)
        for source, spec in tables.sources.items()
        if spec.full_name in found.before
    }


def _files(cursor: Any, tables: Catalog, expiries: Mapping[str, Expiry]) -> dict[str, int]:
    """Landed file -> records in it of months that go."""
    files: dict[str, int] = {}
    for source, expiry in expiries.items():
        cursor.execute(
            "select d.file, sum(m.rows)::bigint from meta.deliveries as d "
            "join meta.delivery_months as m using (delivery_id) where d.source = %s "
            "and d.status = 'loaded' and m.month < %s and m.month <> all(%s::date[]) "
            "group by d.file order by d.file",
            (source, expiry.before, sorted(expiry.held)),
        )
        files |= dict(cursor.fetchall())
    return files


def expire(
    warehouse: Warehouse,
    tables: Catalog,
    told: Tell = lambda _: None,
    today: date | None = None,
) -> Expiring:
    """Have what has expired leave files, tables, quarantine and versions.

    What looks back is out of date afterwards: a build makes it from what is kept.

    Raises:
        ContractError: see `kept_for`.
        BuildError: when older months are not built from all that has landed: what is made of them
            stays as it is then for good. Nothing has changed.
        LandingError: when a file is needed that is not as it was read; nothing has changed then.
        WarehouseError: when somebody reads a month too long; ask again.
    """
    told("taking in what has landed")
    register(warehouse.pool, warehouse.settings, tables.sources, today=today)
    told("looking for what has expired")
    _refuse_what_is_not_built(warehouse, tables, look(warehouse, tables, today))
    told("taking expired records out of landed files")
    found = _clear_files(warehouse, tables, today)
    for table, months in found.months.items():
        for month in months:
            told(f"{table} {month:%Y-%m}")
            _drop_month(warehouse, tables.specs[table], month)
    return found


def _refuse_what_is_not_built(warehouse: Warehouse, tables: Catalog, found: Expiring) -> None:
    if found.is_empty:
        return
    last = max(found.before.values())
    stale = [
        f"{table} {month:%Y-%m}"
        for table, months in current_plan(warehouse).stale.items()
        if found.before.keys() & set(tables.made_from(table))
        for month in sorted(months)
        if month < last
    ]
    if stale:
        raise BuildError(
            f"Months that expire are not up to date: {named(stale, _NAMED)}. What is made of them "
            "stays as it is once they are gone",
            "`metalayer build` first; `metalayer rejects` and `build` say what keeps one from it.",
        )


def _clear_files(warehouse: Warehouse, tables: Catalog, today: date | None) -> Expiring:
    """Take the records out of the files, and note that their months have expired, or neither."""
    settings = warehouse.settings
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        # Nobody is put on hold, and nothing lands, from here to the commit.
        lock(cursor)
        found = _look(cursor, settings, tables, today)
        if found.is_empty and not load_expiry(cursor):
            return found
        note_expiry(cursor, _expiries(tables, found))
        for table, months in found.months.items():
            cursor.executemany(
                "insert into meta.expired_months (table_name, month, rows) values (%s, %s, %s) "
                "on conflict do nothing",
                [(table, month, rows) for month, rows in months.items()],
            )
        cleared = clear(
            cursor,
            settings,
            tables.sources,
            None,
            today or datetime.now(UTC).date(),
            expiries=load_expiries(cursor, settings),
        )
        try:
            if found.months or cleared.files:
                details = {
                    "files": len(cleared.files),
                    "months": {
                        table: [f"{month:%Y-%m}" for month in months]
                        for table, months in found.months.items()
                    },
                }
                record(cursor, "retain", "expired months", details)
            connection.commit()
        except BaseException:
            cleared.abandon()
            raise
        cleared.finish()
        found.files.update(cleared.files)
        return found


def _drop_month(warehouse: Warehouse, spec: TableSpec, month: date) -> None:
    """Drop every version of a month, and what belongs to it."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        lock_months(cursor, spec.full_name, [month])
        connection.commit()
        try:
            for _ in range(_DROP_TRIES):
                with contextlib.suppress(psycopg2.errors.LockNotAvailable):
                    cursor.execute(
                        "select set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_MS}ms",)
                    )
                    _drop(cursor, spec.full_name, month)
                    connection.commit()
                    return
                connection.rollback()
                time.sleep(_LOCK_TIMEOUT_MS / 1000)
        finally:
            connection.rollback()
            unlock_all(cursor)
    raise WarehouseError(
        f"{spec.full_name} {month:%Y-%m} has expired, but somebody keeps reading the table",
        "Run `metalayer retain` again once that query has ended: what is done is not done twice.",
        kind="transient",
    )


def _drop(cursor: Any, table: str, month: date) -> None:
    where = (table, month)
    cursor.execute(
        "delete from meta.versions where table_name = %s and month = %s returning leaf", where
    )
    leaves = {leaf for (leaf,) in cursor.fetchall()}
    for name in ("quarantine", "past_quarantine", "failed_months"):
        cursor.execute(
            sql.SQL("delete from {} where table_name = %s and month = %s").format(
                sql.Identifier("meta", name)
            ),
            where,
        )
    # The attached one is last: from there to the commit readers wait.
    for leaf in sorted(leaves):
        cursor.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(LEAVES, leaf)))


def let_versions_go(warehouse: Warehouse, tables: Catalog, found: Expiring) -> int:
    """Drop earlier versions of what looks back over expired months; how many there were."""
    dropped = 0
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        noted = load_expiry(cursor)
        limits = {
            table: max(
                (
                    noted[spec.source.name].before
                    for name in tables.made_from(table)
                    if (spec := tables.specs[name]).source is not None and spec.source.name in noted
                ),
                default=date.min,
            )
            for table in found.follow
        }
        stay = sorted({month for expiry in noted.values() for month in expiry.held})
        cursor.execute(
            "select v.table_name, v.month, array_agg(v.version) from meta.versions as v "
            "join unnest(%s::text[], %s::date[]) as b (table_name, before) using (table_name) "
            "where not v.is_current and v.month < b.before and v.month <> all(%s::date[]) "
            "group by 1, 2",
            (list(limits), list(limits.values()), stay),
        )
        for table, month, versions in cursor.fetchall():
            try:
                lock_months(cursor, table, [month])
                dropped += drop_versions(cursor, table, month, versions)
                connection.commit()
            finally:
                connection.rollback()
                unlock_all(cursor)
    return dropped


def retain(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    tables: Catalog,
    told: Tell = lambda _: None,
    today: date | None = None,
) -> Expiring:
    """Have what has expired leave, and build what looks back from what is kept.

    Raises:
        BuildError: when a table could not be built; the others are as they should be.
        And what `expire` raises.
    """
    told("building what has landed")
    register(warehouse.pool, warehouse.settings, tables.sources, today=today)
    build(warehouse, instance)
    found = expire(warehouse, tables, told, today)
    told("building what looks back")
    outcome = build(warehouse, instance)
    if not outcome.succeeded:
        raise BuildError(
            "What has expired is gone, but not all tables could be built from what is kept: "
            f"{outcome.problems}",
            "Mend it, and build.",
        )
    told("dropping earlier versions")
    let_versions_go(warehouse, tables, found)
    return found
