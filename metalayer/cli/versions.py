"""The commands `versions`, `diff` and `rollback`: earlier states of published months.

The first two only read, and start in a fraction of a second; `rollback` loads the contracts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from metalayer.cli.ask import say_nothing_yet, warehouse_to_read, write_json
from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm
from metalayer.console import (
    Column,
    ago,
    print_table,
    print_warning,
    say,
    say_next,
    shown,
    stdout,
    working,
)
from metalayer.wording import counted

if TYPE_CHECKING:
    from datetime import date

    from sqlalchemy import Engine

    from metalayer.contracts.contract import TableSpec
    from metalayer.differences import Difference, Sample
    from metalayer.history import MonthVersions, Version
    from metalayer.settings import Settings

_Table = Annotated[str, typer.Argument(metavar="TABLE", help="A table, like gold.fact_orders.")]
_Month = Annotated[str, typer.Argument(metavar="MONTH", help="A month, like 2025-01.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_SHOWN_OF_AN_ID = 8


def versions(
    table: _Table,
    month: Annotated[
        str | None,
        typer.Argument(metavar="[MONTH]", help="A month, like 2025-01; all months if left out."),
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Show the kept versions of a month, newest first; or each month, and how many are kept.

    Every publish of a month is a version. METALAYER_KEEP_VERSIONS says how many are kept.
    """
    from metalayer import history

    wanted = history.month_named(month) if month is not None else None
    with warehouse_to_read() as (settings, connection):
        found: list[Any] = []
        if connection is not None:
            found = (
                history.months_of(connection, table)
                if wanted is None
                else history.versions_of(connection, table, wanted)
            )
    if as_json:
        write_json(found)
    elif connection is None:
        say_nothing_yet(settings)
    elif not found:
        say(f"{table} has no published month.")
        say_next(("build", "builds what is out of date"))
    elif wanted is None:
        _print_months(found)
    else:
        _print_versions(found)


def diff(
    table: _Table,
    month: _Month,
    before: Annotated[int, typer.Argument(metavar="V1", min=1, help="The earlier version.")],
    after: Annotated[int, typer.Argument(metavar="V2", min=1, help="The later version.")],
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Rows of each kind to show, at most.")
    ] = 10,
    as_json: _AsJson = False,
) -> None:
    """Show how two versions of a month differ: columns, and rows added, removed and changed.

    Rows are told apart by the table's key. Personal values are shown as ***.
    """
    from metalayer.differences import difference
    from metalayer.errors import WarehouseError
    from metalayer.history import month_named

    wanted = month_named(month)
    with warehouse_to_read() as (_, connection):
        if connection is None:
            raise WarehouseError("Nothing has been built yet", "Start with `metalayer demo`.")
        found = difference(connection, table, wanted, before, after, limit)
    if as_json:
        from metalayer.cli.formats import json_text

        sys.stdout.write(json_text(found) + "\n")
    else:
        _print_difference(found)


def rollback(
    table: _Table,
    month: _Month,
    to: Annotated[int, typer.Option("--to", min=1, help="The version to bring back.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Make an earlier version of a month what readers see, at once, whatever its size.

    That is a new version, with the rows of the earlier one. It stands until the month's inputs
    change again; the next build brings in line what is made from it.
    """
    from metalayer.history import month_named
    from metalayer.settings import Settings

    wanted = month_named(month)
    settings = Settings.load()
    confirm(settings, f"makes version {to} of {table} {month} what readers see", yes=yes_prod)
    with working("Loading the tables"):
        from metalayer.catalog import catalog
        from metalayer.warehouse.keeping import Keeping
        from metalayer.warehouse.versions import Aftermath, aftermath
        from metalayer.warehouse.versions import rollback as roll_back

        spec = catalog().spec(table)
    with _warehouse_to_write(settings) as pool:
        with working(f"Waiting for {table} {month}"):
            keeping = Keeping(settings.keep_versions, settings.keep_version_days)
            done = roll_back(pool, spec, wanted, to, keeping)
        is_stale = done.has_changed and _is_stale(pool, spec, wanted, settings)
        # Asked once readers see the version: looking for keys takes longer than bringing it back.
        moved = aftermath(pool, spec, wanted, done) if done.has_changed else Aftermath(0, 0)
    if as_json:
        from metalayer.cli.formats import json_text

        sys.stdout.write(json_text({**asdict(done), **asdict(moved)}) + "\n")
    elif not done.has_changed:
        say(f"Nothing to do: {table} {month} has the rows of version {to} already.")
    else:
        rows = counted(done.rows, "row")
        stdout().print(
            Text(f"{table} {month} is now version {done.version}: {rows}, as in {to}"),
            soft_wrap=True,
        )
        if is_stale:
            print_warning(
                f"{table} {month} was out of date already: the next build makes it anew from what "
                "has been delivered"
            )
        if moved.repeated:
            print_warning(
                f"rows of it that stand in another month as well, as they have moved: "
                f"{moved.repeated:,}. The next build names some and stops behind them: roll that "
                "month back too, or take this back"
            )
        if moved.gone:
            print_warning(f"rows of version {done.replaced} that {month} lacks now: {moved.gone:,}")
        steps = [("build --plan", "what is made from it, and has to follow")]
        if moved.gone is not None:
            steps.append((f"rollback {table} {month} --to {done.replaced}", "takes it back"))
        say_next(*steps)


@contextlib.contextmanager
def _warehouse_to_write(settings: Settings) -> Iterator[Engine]:
    """Connections to the warehouse, in line with the contracts, without Dagster."""
    from metalayer.catalog import catalog
    from metalayer.errors import WarehouseError
    from metalayer.warehouse.acts import seal
    from metalayer.warehouse.migrate import prepare
    from metalayer.warehouse.pool import transaction, warehouse_pool

    if settings.database_url is None and not settings.pgdata.exists():
        raise WarehouseError(
            f"Nothing has been built yet at {settings.home}", "Start with `metalayer demo`."
        )
    with contextlib.ExitStack() as stack:
        with working("Starting PostgreSQL") as tell:
            pool = stack.enter_context(warehouse_pool(settings, tell))
        with transaction(pool) as connection:
            prepare(connection, list(catalog().specs.values()), catalog().selects)
        yield pool
        seal(pool, settings)


def _is_stale(pool: Any, spec: TableSpec, month: date, settings: Settings) -> bool:
    """Whether the next build would make the month anew, and so undo a rollback of it."""
    from metalayer.jobs import table_job
    from metalayer.warehouse.build import is_stale
    from metalayer.warehouse.pool import transaction
    from metalayer.warehouse.state import load_state

    with transaction(pool) as connection, connection.cursor() as cursor:
        return is_stale(table_job(spec.full_name, settings), load_state(cursor), month)


def _print_months(months: list[MonthVersions]) -> None:
    print_table(
        [
            Column("month"),
            Column("version", is_number=True),
            Column("kept", is_number=True),
            Column("published"),
            Column("rows", is_number=True),
            Column("quaran-\ntined", is_number=True),
            Column("content", is_extra=True),
            Column("restores", is_number=True),
        ],
        [
            (
                m.month,
                m.version,
                m.kept,
                ago(m.published_at),
                m.rows,
                m.quarantined,
                _mark(m.data_version),
                m.restores,
            )
            for m in months
        ],
    )


def _print_versions(found: list[Version]) -> None:
    print_table(
        [
            Column("version", is_number=True),
            Column(""),
            Column("published (UTC)"),
            Column("replaced (UTC)", is_extra=True),
            Column("rows", is_number=True),
            Column("quaran-\ntined", is_number=True),
            Column("content"),
            Column("run", is_extra=True),
            Column("seconds", is_number=True, is_extra=True),
        ],
        [
            (
                v.version,
                Text("current", style="green", no_wrap=True) if v.is_current else None,
                f"{v.published_at:%Y-%m-%d %H:%M:%S}",
                f"{v.replaced_at:%Y-%m-%d %H:%M:%S}" if v.replaced_at else None,
                v.rows,
                v.quarantined,
                _content(v),
                (v.run_id or "")[:_SHOWN_OF_AN_ID],
                v.seconds,
            )
            for v in found
        ],
    )


def _mark(data_version: str) -> str:
    """The beginning of the hash in a fingerprint of rows: what tells one from another."""
    return data_version.partition("-")[2][:_SHOWN_OF_AN_ID]


def _content(version: Version) -> str:
    """What is to say about a version's rows beside its fingerprint."""
    mark = _mark(version.data_version)
    if version.restores is not None:
        return f"{mark}, restores {version.restores}"
    return f"{mark}, as before" if version.has_same_rows else mark


def _print_difference(found: Difference) -> None:
    console = stdout()
    console.print(
        Text(f"{found.table} {found.month}: version {found.before} -> {found.after}", style="bold")
    )
    columns = [
        *(f"+ {name} {kind}" for name, kind in found.columns_added.items()),
        *(f"- {name} {kind}" for name, kind in found.columns_removed.items()),
        *(f"~ {name} {old} -> {new}" for name, (old, new) in found.columns_retyped.items()),
    ]
    if columns:
        print_table([Column("columns")], [(line,) for line in columns])
    print_table(
        [Column("rows"), Column("", is_number=True)],
        [
            (f"version {found.before}", found.rows_before),
            (f"version {found.after}", found.rows_after),
            ("added", found.rows_added),
            ("removed", found.rows_removed),
            ("changed", found.rows_changed),
            ("delivered again, the same", found.rows_redelivered),
        ],
    )
    if found.values_changed:
        print_table(
            [Column("column"), Column("rows in which it changed", is_number=True)],
            list(found.values_changed.items()),
        )
    _print_samples("Added", "+", found.added, found.rows_added)
    _print_samples("Removed", "-", found.removed, found.rows_removed)
    _print_samples("Changed", "~", found.changed, found.rows_changed)


def _print_samples(title: str, mark: str, samples: list[Sample], count: int) -> None:
    if not samples:
        return
    console = stdout()
    console.print(Text(f"\n{title}", style="bold"))
    for sample in samples:
        line = Text(f"{mark} {_pairs(sample.key)}", style="cyan")
        for name in (sample.after if sample.after is not None else sample.before) or {}:
            if sample.before is None or sample.after is None:
                value = (sample.after or sample.before or {})[name]
                told = _value(value)
            else:
                told = f"{_value(sample.before[name])} -> {_value(sample.after[name])}"
            line.append(f"  {shown(name)} ", style="dim not cyan").append(told, style="not cyan")
        console.print(line, soft_wrap=not console.is_terminal)
    if len(samples) < count:
        say(f"… and {count - len(samples):,} more", "bold")


def _pairs(key: dict[str, Any]) -> str:
    return " ".join(f"{shown(name)} {_value(value)}" for name, value in key.items())


def _value(value: Any) -> str:
    from metalayer.cli.formats import plain

    return "NULL" if value is None else shown(plain(value))
