"""The warehouse brought in line with the contracts: planned as text, then run in one transaction.

`prepare` is what every command that may write calls first. It does nothing while contracts,
SELECTs and scripts are those of last time; otherwise it compares them with PostgreSQL's catalog and
runs the statements that `metalayer migrate --plan` prints.

Does not belong here: what one table needs (`changes.py`), or building months.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2.errors
from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.errors import ContractError
from metalayer.governance.carrying import grants_on, keep_grants
from metalayer.governance.masks import is_personal
from metalayer.lineage.columns import undeclared_reads
from metalayer.lineage.select import Select
from metalayer.warehouse.acts import record
from metalayer.warehouse.altering import beside_readers
from metalayer.warehouse.changes import dropped_columns, is_reshaped, table_changes
from metalayer.warehouse.ddl import View, views
from metalayer.warehouse.existing import Existing, dependent_views, read_existing
from metalayer.warehouse.steps import (
    Step,
    comment_step,
    is_replaceable,
    standing_parent,
    statements,
    view_step,
    where_declared,
)

_SCRIPTS = ("meta.sql", "acts.sql", "functions.sql")
_CODE = ("ddl.py", "steps.py", "changes.py", "migrate.py", "../governance/masks.py")
_INSTALL_LOCK = 0x4D4C0001
#: With `wal_level = minimal` the log knows nothing of a number drawn in the transaction that made
#: its sequence, nor of the 32 after it: a crash gave them out again. Set to where they stand,
#: sequences made here, or in a savepoint of it, log their next number.
_LOG_NEW_SEQUENCES = (
    "select setval(s.seqrelid, pg_sequence_last_value(s.seqrelid)) from pg_sequence as s "
    "join pg_class as c on c.oid = s.seqrelid where c.relnamespace = 'meta'::regnamespace "
    "and age(c.xmin) <= age(pg_current_xact_id()::xid) "
    "and pg_sequence_last_value(s.seqrelid) is not null"
)


@dataclass(frozen=True)
class Migration:
    """What brings a warehouse in line, in order, and what forbids it."""

    steps: tuple[Step, ...]
    refusals: tuple[ContractError, ...] = ()

    def refuse(self) -> None:
        """Raise what forbids it, all in one.

        Raises:
            ContractError: with every refusal on a line of its own.
        """
        if len(self.refusals) == 1:
            raise self.refusals[0]
        if self.refusals:
            raise ContractError(
                "\n".join(["the tables cannot follow the contracts", *map(str, self.refusals)]),
                "Mend these, then look again with `metalayer migrate --plan`",
            )


def prepare(
    connection: Any,
    specs: Sequence[TableSpec],
    selects: Mapping[str, Select] | None = None,
    is_outdated: Callable[[], bool] = lambda: False,
) -> Migration:
    """Bring the warehouse in line, unless it is so already, in the caller's transaction.

    Nothing that draws a number of ours may follow in that transaction: see `_LOG_NEW_SEQUENCES`.

    Args:
        specs: All tables, upstream before downstream.
        selects: What fills them: no column that one of these reads is dropped.
        is_outdated: Whether the contracts have changed since this process read them. Then it does
            not undo what another made of the tables by the contracts there are now.

    Returns:
        What was done; no steps where there was nothing to do.

    Raises:
        ContractError: when the contracts ask for what would lose rows, values or readers.
        WarehouseError: when readers of a table that must change do not come to an end.
    """
    with connection.cursor() as cursor:
        if is_prepared(cursor, specs, selects or {}):
            return Migration(())
        if is_outdated():
            raise ContractError(
                "Contracts or SELECTs have changed since this process read them",
                "Start it again: the tables are left as they are",
            )
        done = _run(cursor, specs, selects or {}, is_complete=True)
        cursor.execute("delete from meta.installed")
        cursor.execute(
            "insert into meta.installed (fingerprint, scripts) values (%s, %s)",
            (_fingerprint(specs, selects or {}), _scripts_fingerprint()),
        )
        if done.steps:
            about = sorted({step.about for step in done.steps})
            altered = sorted({s.about for s in done.steps if s.kind == "alter"})
            record(cursor, "migrate", "schema", {"about": about, "altered": altered})
        cursor.execute(_LOG_NEW_SEQUENCES)
    return done


def is_prepared(cursor: Any, specs: Sequence[TableSpec], selects: Mapping[str, Select]) -> bool:
    """Whether the warehouse is in line with these contracts, so that `prepare` leaves it alone."""
    cursor.execute("select to_regclass('meta.installed') is not null")
    if not cursor.fetchone()[0]:
        return False
    cursor.execute("select fingerprint from meta.installed")
    return bool(cursor.fetchone() == (_fingerprint(specs, selects),))


def install(connection: Any) -> None:
    """Create or renew MetaLayer's own schema and functions, in the caller's transaction."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
        cursor.execute("set local client_min_messages = warning")
        cursor.execute(_scripts())


def is_installed(cursor: Any) -> bool:
    """Whether MetaLayer's own schema and functions are there, as this release makes them."""
    cursor.execute("select to_regclass('meta.installed') is not null")
    if not cursor.fetchone()[0]:
        return False
    # Through JSON: a warehouse of an earlier release has no such column.
    cursor.execute("select to_jsonb(i) ->> 'scripts' from meta.installed as i")
    return bool(cursor.fetchone() == (_scripts_fingerprint(),))


def ensure_tables(connection: Any, specs: Sequence[TableSpec]) -> Migration:
    """Bring some tables in line, whatever else there is, in the caller's transaction."""
    with connection.cursor() as cursor:
        return _run(cursor, specs, {}, is_complete=False)


def plan_migration(
    cursor: Any,
    specs: Sequence[TableSpec],
    selects: Mapping[str, Select],
    *,
    is_complete: bool = True,
) -> Migration:
    """What would bring the warehouse in line with `specs`; nothing is changed.

    Args:
        cursor: For reading; None where there is no warehouse yet.
        is_complete: Whether `specs` are all tables: what belongs to none of them is let go.
    """
    layers = {spec.layer for spec in specs}
    existing = read_existing(cursor, layers) if cursor is not None else Existing()
    steps = _ground(existing, sorted(layers))
    refusals = _refused_drops(existing, specs, selects)
    wanted = {
        name: view
        for spec in specs
        for name, view in views(spec, tuple(existing.evolved.get(spec.full_name, ()))).items()
    }
    dropped = _views_in_the_way(cursor, existing, specs, wanted if is_complete else None)
    if dropped:
        steps.append(_drop_views(dropped))
    for spec in specs:
        changes = table_changes(cursor, existing, spec, list(dropped.values()))
        steps += changes.steps
        refusals += changes.refusals
        steps += [step for step in [comment_step(existing, spec)] if step is not None]
        steps += _adopted(existing, spec)
    kept = {} if is_complete else {n: View(existing.views[n], "", {}) for n in dropped}
    for name, view in {**kept, **wanted}.items():
        step = view_step(existing, name, view, is_dropped=name in dropped)
        steps += [step] if step is not None else []
    if is_complete:
        steps += _facts(existing, specs, selects)
    return Migration(tuple(steps), tuple(refusals))


def _run(
    cursor: Any,
    specs: Sequence[TableSpec],
    selects: Mapping[str, Select],
    *,
    is_complete: bool,
) -> Migration:
    cursor.execute("select pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
    cursor.execute("set local client_min_messages = warning")
    cursor.execute("set local standard_conforming_strings = on")

    def migrate() -> Migration:
        plan = plan_migration(cursor, specs, selects, is_complete=is_complete)
        plan.refuse()
        altered = sorted({s.about for s in plan.steps if s.kind == "alter"})
        if altered:
            # All at once and before anything is written; then nothing is stored any more that the
            # plan has not seen.
            _lock(cursor, specs, altered)
            plan = plan_migration(cursor, specs, selects, is_complete=is_complete)
            plan.refuse()
        held = grants_on(cursor, {spec.layer for spec in specs})
        for step in plan.steps:
            _execute(cursor, step)
        keep_grants(cursor, held, specs)
        return plan

    return beside_readers(cursor, migrate, "The tables cannot be brought in line")


def _lock(cursor: Any, specs: Sequence[TableSpec], altered: Sequence[str]) -> None:
    existing = read_existing(cursor, {spec.layer for spec in specs})
    parents = [
        sql.Identifier(spec.layer, standing[0])
        for spec in specs
        if spec.full_name in altered and (standing := standing_parent(existing, spec))
    ]
    if parents:
        cursor.execute(
            sql.SQL("lock table {} in access exclusive mode").format(sql.SQL(", ").join(parents))
        )


def _execute(cursor: Any, step: Step) -> None:
    try:
        cursor.execute(step.sql)
    except (
        psycopg2.errors.DependentObjectsStillExist,
        psycopg2.errors.FeatureNotSupported,
    ) as error:
        raise ContractError(
            f"{step.about} cannot be changed, since something else in the database stands on it: "
            f"{error.diag.message_detail or error.diag.message_primary}",
            "Drop that first, and create it again afterwards",
        ) from error


def _ground(existing: Existing, layers: Sequence[str]) -> list[Step]:
    """MetaLayer's own schema and functions, and the schemas of the layers."""
    steps = []
    if existing.scripts != _scripts_fingerprint():
        does = "Creates or renews MetaLayer's own tables and functions (schema meta)."
        steps.append(Step("meta", _scripts(), (does,), kind="create", scripts=_SCRIPTS))
    for layer in layers:
        if layer not in existing.schemas:
            create = sql.SQL("create schema if not exists {}").format(sql.Identifier(layer))
            steps.append(Step(layer, statements(create), ("Creates the schema.",), kind="create"))
    return steps


def _refused_drops(
    existing: Existing, specs: Sequence[TableSpec], selects: Mapping[str, Select]
) -> list[ContractError]:
    """Columns that no contract declares and somebody reads, each with its readers."""
    if not selects:
        return []
    by_name = {spec.full_name: spec for spec in specs}
    undeclared = {name: dropped_columns(existing, spec) for name, spec in by_name.items()}
    try:
        found = undeclared_reads(selects, by_name, undeclared)
    except ContractError as error:
        return [error]
    refusals = []
    for (table, column), readers in sorted(((o.table, o.column), r) for o, r in found.items()):
        told = ", ".join(map(str, readers))
        where = where_declared(by_name[table])
        if column in existing.evolved.get(table, {}):
            refusals.append(
                ContractError(
                    f"{told} reads {table}.{column}, which came with "
                    f"{existing.evolved[table][column]} and which no contract declares",
                    f"Declare it in {where}, so that it has a meaning and rules",
                )
            )
        else:
            refusals.append(
                ContractError(
                    f"{where} does not declare {table}.{column} any more, which is read by {told}",
                    "Take it out of these first, or declare it again",
                )
            )
    return refusals


def _views_in_the_way(
    cursor: Any,
    existing: Existing,
    specs: Sequence[TableSpec],
    wanted: Mapping[str, View] | None,
) -> dict[str, int]:
    """MetaLayer's views on tables that are about to change, and those that no contract has now."""
    reshaped = [
        standing[1].oid
        for spec in specs
        if (standing := standing_parent(existing, spec)) and is_reshaped(existing, spec)
    ]
    reshaped += [
        existing.relations[name].oid
        for name, view in (wanted or {}).items()
        if existing.views.get(name) not in (None, view.body)
        and not is_replaceable(existing.relations[name], view)
    ]
    found = dependent_views(cursor, reshaped) if reshaped else {}
    if wanted is not None:
        found |= {n: existing.relations[n].oid for n in existing.views if n not in wanted}
    return {name: oid for name, oid in sorted(found.items()) if name in existing.views}


def _drop_views(dropped: Mapping[str, int]) -> Step:
    names = [sql.Identifier(*name.split(".")) for name in dropped]
    listed = sql.SQL(", ").join(names)
    literals = sql.SQL(", ").join(map(sql.Literal, dropped))
    return Step(
        ", ".join(dropped),
        statements(
            sql.SQL("drop view {}").format(listed),
            sql.SQL("delete from meta.views where name in ({})").format(literals),
        ),
        ("Drops the views, which are made again below where a contract has them.",),
        kind="view",
    )


def _adopted(existing: Existing, spec: TableSpec) -> list[Step]:
    """Columns that came with a file and that the contract declares now."""
    declared = {c.name for c in spec.stored}
    names = sorted(declared & set(existing.evolved.get(spec.full_name, {})))
    if not names:
        return []
    forget = sql.SQL(
        "delete from meta.evolved_columns where table_name = {} and column_name in ({})"
    ).format(sql.Literal(spec.full_name), sql.SQL(", ").join(map(sql.Literal, names)))
    does = (
        f"Column {name}, which came with {existing.evolved[spec.full_name][name]}, now is the "
        "contract's. It stays as it is."
        for name in names
    )
    return [Step(spec.full_name, statements(forget), tuple(does), kind="note")]


def _facts(
    existing: Existing, specs: Sequence[TableSpec], selects: Mapping[str, Select]
) -> list[Step]:
    """The facts of all tables, where a reader finds them without the contracts."""
    rows = [
        (
            *(spec.full_name, spec.layer, spec.description, spec.owner, spec.fresh_within),
            *(position, ",".join(spec.key)),
            ",".join(c.name for c in spec.columns if c.pii is None),
            *((spec.due.day, spec.due.hour) if spec.due else (None, None)),
            *(",".join(_made_from(spec.full_name, specs, selects)), is_personal(spec)),
            spec.source.name if spec.source and spec.layer == "bronze" else None,
        )
        for position, spec in enumerate(specs)
    ]
    if list(existing.facts) == rows:
        return []
    values = sql.SQL(",\n    ").join(
        sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, row))) for row in rows
    )
    step = Step(
        "meta.tables",
        statements(
            sql.SQL("delete from meta.tables"),
            sql.SQL(
                "insert into meta.tables (table_name, layer, description, owner, fresh_within, "
                "position, key_columns, open_columns, due_day, due_hour, made_from, "
                "has_personal, source) values\n    {}"
            ).format(values),
        ),
        ("Notes owner, freshness and order of the tables, for `status` and `query`.",),
        kind="note",
    )
    return [step]


def _made_from(table: str, specs: Sequence[TableSpec], selects: Mapping[str, Select]) -> list[str]:
    """The tables whose rows a table is made from, near or far, in the order of `specs`."""
    found = {table}
    for spec in reversed(specs):
        if spec.full_name in found and spec.full_name in selects:
            found.update(selects[spec.full_name].inputs)
    return [spec.full_name for spec in specs if spec.full_name in found - {table}]


def _fingerprint(specs: Sequence[TableSpec], selects: Mapping[str, Select]) -> str:
    """What the database's schema is made from, and what reads it."""
    digest = hashlib.sha256(_scripts_fingerprint().encode())
    for name in _CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    for spec in specs:
        facts = (spec.full_name, spec.description, spec.owner, spec.fresh_within, spec.due)
        digest.update(repr((*facts, spec.columns, spec.views, spec.unknown_member)).encode())
        digest.update(selects[spec.full_name].text.encode() if spec.full_name in selects else b"")
    return digest.hexdigest()


def _scripts() -> str:
    folder = Path(__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)


def _scripts_fingerprint() -> str:
    return hashlib.sha256(_scripts().encode()).hexdigest()
