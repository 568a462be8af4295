"""Commands that only read: status, ledger, rejects, query.

They start in a fraction of a second: neither contracts nor Dagster are imported here.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from metalayer.cli.production import say_environment
from metalayer.console import (
    Column,
    ago,
    as_typed,
    months_shown,
    print_table,
    say,
    say_next,
    shown,
    stdout,
    working,
)

if TYPE_CHECKING:
    from metalayer.inspection import Answer, LedgerEntry, Reject, TableStatus
    from metalayer.settings import Settings

_Unmasked = Annotated[
    bool,
    typer.Option("--unmasked", help="Show personal values plain, where your database role may."),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_SHOWN_ROWS = 100
_SHOWN_LATE = 6
_STATUS_STYLES = {
    "loaded": "green",
    "duplicate": "dim",
    "superseded": "dim",
    "withdrawn": "dim",
    "rejected": "red",
}


def status(as_json: _AsJson = False) -> None:
    """Show each table: its months and rows, when it was last published, and what is late.

    For each table, rows read = rows + quarantined + superseded. Late is a table that lacks the
    newest month that its contract says is due.
    """
    from metalayer import inspection

    with warehouse_to_read() as (settings, connection):
        tables = inspection.table_status(connection, settings.start_month) if connection else []
    if not as_json:
        say_environment(settings)
    if as_json:
        write_json(tables)
    elif not tables:
        say_nothing_yet(settings)
    else:
        _print_status(tables)


def ledger(as_json: _AsJson = False) -> None:
    """Show each landed file: what became of it, and of its rows.

    For each file, rows read = loaded + rejected + superseded.
    """
    from metalayer import inspection

    with warehouse_to_read() as (settings, connection):
        entries = inspection.ledger(connection) if connection else []
    if as_json:
        write_json(entries)
    elif not entries:
        say_nothing_yet(settings)
    else:
        _print_ledger(entries)


def rejects(
    table: Annotated[
        str | None, typer.Argument(help="A table or a layer; all tables if left out.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Show at most so many rows (50, with --json all)."),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Only rows of this file, like orders_2025-06.csv.")
    ] = None,
    month: Annotated[
        str | None, typer.Option("--month", metavar="YYYY-MM", help="Only rows of this month.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write the rows as a CSV that can be mended."
        ),
    ] = None,
    unmasked: _Unmasked = False,
    as_json: _AsJson = False,
) -> None:
    """Show the rows that break a contract: which rule, which value, which line of which file.

    Of a table with personal columns, values and rows are shown as *** unless `--unmasked`. An
    export is to be mended, so it has them plain; a database role that may not see them gets none.
    To mend rows: `--export fix.csv`, edit the file, `metalayer land --repair fix.csv`, build.
    """
    from metalayer import inspection
    from metalayer.errors import UsageError
    from metalayer.governance.plain import open_unmasked

    if export is not None and (as_json or limit is not None):
        raise UsageError(
            "--export writes all rows, as CSV", "Leave --json and --limit out, or --export."
        )
    with warehouse_to_read() as (settings, connection):
        if connection is None:
            say_nothing_yet(settings, as_json=as_json)
            return
        wanted = inspection.quarantine_filter(connection, table, file, month)
        if unmasked or export is not None:
            open_unmasked(connection, "rejects")
            _record(settings, "unmasked_read" if export is None else "export", "rejects")
        if export is not None:
            from metalayer.cli.repair import export_rejects

            export_rejects(connection, settings, wanted, export)
            return
        with inspection.rejects(connection, wanted, unmasked=unmasked) as (count, rows):
            if as_json:
                write_json(itertools.islice(rows, limit))
            elif not count:
                say(f"No quarantined rows{f' of {table}' if table else ''}.")
            else:
                _print_rejects(count, itertools.islice(rows, limit or 50))


class Format(StrEnum):
    """How `query` prints its rows."""

    table = "table"
    json = "json"
    csv = "csv"


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT; it can only read.")],
    output: Annotated[
        Format,
        typer.Option("--format", help=f"A table shows the first {_SHOWN_ROWS} rows."),
    ] = Format.table,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of",
            metavar="TIME|VERSION",
            help="Read the tables as they were then: 2025-07-01T10:30 (UTC), or version 3.",
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="CSV exactly as it is, also what a spreadsheet would run."),
    ] = False,
    unmasked: _Unmasked = False,
    decrypt: Annotated[
        bool,
        typer.Option("--decrypt", help="Open encrypted values as well; it takes the key."),
    ] = False,
) -> None:
    """Ask the warehouse in SQL. JSON and CSV are streamed, however many rows there are.

    In CSV a text that a spreadsheet would run as a formula gets an apostrophe before it; `--raw`
    leaves it as it is.

    With `--as-of` every table and view is read as it was, as far as versions of it are kept; what
    lies in `meta` is as it is now. Personal values are masked, unless `--unmasked`; those of
    encrypted columns are ciphertext then, unless `--decrypt`.
    """
    from metalayer import inspection
    from metalayer.cli.formats import csv_line, json_lines
    from metalayer.errors import UsageError, WarehouseError
    from metalayer.governance.plain import keep_masked, open_unmasked

    if not sql.strip():
        raise UsageError("The query is empty", 'Write one, as in: `metalayer query "select 1"`')
    with warehouse_to_read() as (settings, connection):
        if connection is None:
            raise WarehouseError(
                f"Nothing has been built yet at {_place(settings)}",
                "Start with `metalayer demo`, or `metalayer land` and `metalayer build`.",
            )
        opened: Callable[[tuple[Any, ...]], tuple[Any, ...]] = _same
        if unmasked or decrypt:
            open_unmasked(connection, "the query")
            opened = _opening(connection, settings) if decrypt else _same
            # Not the query itself, which may name somebody.
            _record(settings, "decrypted_read" if decrypt else "unmasked_read", "query")
        else:
            keep_masked(connection, sql)
        if as_of is not None:
            sql = _in_the_past(connection, sql, as_of)
        with inspection.ask(connection, sql) as asked:
            answer = replace(asked, rows=map(opened, asked.rows))
            match output:
                case Format.json:
                    objects = (dict(zip(answer.columns, row, strict=True)) for row in answer.rows)
                    sys.stdout.writelines(json_lines(objects))
                case Format.csv:
                    sys.stdout.write(csv_line(answer.columns, is_raw=raw))
                    sys.stdout.writelines(csv_line(row, is_raw=raw) for row in answer.rows)
                case Format.table:
                    _print_answer(answer)


def _same(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row


def _opening(connection: Any, settings: Settings) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """What opens the encrypted values of a row, within lists and JSON as well."""
    from metalayer.warehouse.keys import opener

    with connection.cursor() as cursor:
        keys = opener(cursor, settings)
    connection.rollback()

    def opened(value: Any) -> Any:
        match value:
            case str():
                # A change of keys may have ended since they were read.
                return keys.refuse_unopened(keys.opened(value))
            case list():
                return [opened(each) for each in value]
            case dict():
                return {name: opened(each) for name, each in value.items()}
        return value

    return lambda row: tuple(map(opened, row))


def _record(settings: Settings, action: str, subject: str) -> None:
    """Tell the audit log, before anything is shown: what it cannot be told is not done."""
    from metalayer.warehouse.acts import record_now

    record_now(settings, action, subject)


def _in_the_past(connection: Any, query: str, as_of: str) -> str:
    from metalayer import inspection
    from metalayer.asof import parse_as_of, query_as_of

    moment = parse_as_of(as_of)
    # What is wrong with the query itself is said in the words that were typed.
    with inspection.ask(connection, query, before="explain "):
        return query_as_of(connection, query, moment)


@contextlib.contextmanager
def warehouse_to_read() -> Iterator[tuple[Settings, Any]]:
    """The settings, and a connection for reading; None where there is no warehouse yet."""
    from metalayer.inspection import reading
    from metalayer.settings import Settings

    settings = Settings.load()
    with contextlib.ExitStack() as stack:
        with working("Starting PostgreSQL") as tell:
            connection = stack.enter_context(reading(settings, tell))
        yield settings, connection


def say_nothing_yet(settings: Settings, *, as_json: bool = False) -> None:
    """That there is no warehouse yet, and how to begin; as JSON, an empty list."""
    if as_json:
        write_json([])
        return
    say(f"Nothing has been built yet at {_place(settings)}.")
    say_next(
        ("demo", "builds the sample that comes with MetaLayer"),
        ("land FILE...", "takes in exports of your own"),
    )


def _place(settings: Settings) -> str:
    from metalayer.inspection import libpq_url

    if settings.database_url is None:
        return str(settings.home)
    return libpq_url(settings.database_shown)


def write_json(values: Iterable[Any]) -> None:
    """Print a JSON list, element by element."""
    from metalayer.cli.formats import json_lines

    sys.stdout.writelines(json_lines(values))


# --- tables ------------------------------------------------------------------------------------


def _print_status(tables: list[TableStatus]) -> None:
    rows: list[Any] = []
    for layer, members in itertools.groupby(tables, key=lambda t: t.layer):
        rows.append(layer)
        for t in members:
            months = [m for m in (t.first_month, t.last_month) if m]
            mark = {True: ("✓ ", "green"), False: ("✗ ", "red"), None: ("", "dim")}[t.fresh]
            rows.append(
                (
                    Text(t.table.removeprefix(f"{layer}.")),
                    t.months,
                    months_shown(months),
                    t.rows_read,
                    t.rows,
                    t.quarantined,
                    t.superseded,
                    Text(mark[0] + ago(t.last_published), style=mark[1], no_wrap=True),
                    Text(f"{t.late_since:%Y-%m-%d}" if t.late_since else "", style="red"),
                )
            )
    print_table(
        [
            Column("table"),
            Column("months", is_number=True),
            Column("from..to", is_extra=True),
            Column("rows\nread", is_number=True),
            Column("rows", is_number=True),
            Column("quaran-\ntined", is_number=True),
            Column("super-\nseded", is_number=True),
            Column("last\npublished"),
            Column("late\nsince", is_extra=True),
        ],
        rows,
    )
    stale = [t.table for t in tables if t.fresh is False]
    if stale:
        say(f"✗ {len(stale)} tables are older than their contract allows (fresh_within).", "dim")
    for line in (*_failed_lines(tables), *_past_lines(tables), *_late_lines(tables)):
        say(line, "dim")


def _failed_lines(tables: list[TableStatus]) -> Iterator[str]:
    """The months that failed, a line each; what stands behind them waits."""
    for table in tables:
        for month, problem in table.failed_months.items():
            yield f"✗ {table.table} {month} failed: {problem.partition(chr(10))[0]}."


def _past_lines(tables: list[TableStatus]) -> Iterator[str]:
    """What is as it was on purpose: months that were rolled back, and such that have expired."""
    for table in tables:
        for month, version in table.rolled_back.items():
            yield (
                f"{table.table} {month} was rolled back to version {version}, and stays so until "
                "what it is made from changes."
            )
    expired = [f"{t.table} ({t.expired})" for t in tables if t.expired]
    if expired:
        yield f"Months whose retention has ended are gone: {', '.join(expired)}."


def _late_lines(tables: list[TableStatus]) -> Iterator[str]:
    """What is late, a line for each month that is due, and what it waits for."""
    late = sorted((t for t in tables if t.late_since is not None), key=lambda t: t.due_month or "")
    for month, members in itertools.groupby(late, key=lambda t: t.due_month):
        lacking = list(members)
        since = min(t.late_since for t in lacking if t.late_since is not None)
        # A table that waits for itself only is where the trouble is.
        first = [t.table for t in lacking if t.waits_for == [t.table]]
        waiting = len(lacking) - len(first)
        named = ", ".join(first[:_SHOWN_LATE]) + (" …" if len(first) > _SHOWN_LATE else "")
        behind = f"; {waiting} more wait for these" if waiting else ""
        yield (
            f"✗ {month} is due and missing (the first that is was due on {since:%Y-%m-%d}): "
            f"{named}{behind}."
        )


def _print_ledger(entries: list[LedgerEntry]) -> None:
    print_table(
        [
            Column("file"),
            Column("source", is_extra=True),
            Column("sha256", is_extra=True),
            Column("status"),
            Column("read", is_number=True),
            Column("loaded", is_number=True),
            Column("re-\njected", is_number=True),
            Column("super-\nseded", is_number=True),
            Column("months", is_extra=True),
        ],
        [
            (
                e.file,
                e.source,
                e.sha256[:8],
                Text(e.status, style=_STATUS_STYLES.get(e.status, ""), no_wrap=True),
                e.rows_read,
                e.rows_loaded,
                e.rows_rejected,
                e.rows_superseded,
                months_shown(e.months),
            )
            for e in entries
        ],
    )
    refused = [e for e in entries if e.status == "rejected"]
    if refused:
        console = stdout()
        console.print(Text("\nRejected files", style="bold"))
        for e in refused:
            first, *more = (e.reason or "").splitlines() or [""]
            console.print(Text.assemble(shown(e.file), ": ", (shown(as_typed(first)), "dim")))
            for line in more:
                console.print(Text(f"  {shown(line)}", style="dim"))


def _print_rejects(count: int, rows: Iterator[Reject]) -> None:
    console = stdout()
    printed = 0
    for table, members in itertools.groupby(rows, key=lambda r: r.table):
        console.print(Text(table, style="bold cyan"))
        for r in members:
            printed += 1
            place = f"{shown(r.file or 'no file')}:{r.line if r.line is not None else '?'}"
            line = Text.assemble("  ", place, "  ", (r.month or "no month", "dim"), "  ")
            line.append(f"{r.column or 'row'} {r.rule}", style="yellow")
            if r.value is not None:
                line.append(f"  {shown(repr(r.value[:60]))}", style="bold")
            console.print(line, soft_wrap=not console.is_terminal)
            raw = Text("    " + shown((r.raw or "")[: console.width]), style="dim")
            raw.truncate(console.width, overflow="ellipsis")
            console.print(raw, soft_wrap=True)
    if printed < count:
        console.print(f"… and {count - printed:,} more", style="bold")


def _print_answer(answer: Answer) -> None:
    from metalayer.cli.formats import plain

    rows = [
        [None if value is None else plain(value) for value in row]
        for row in itertools.islice(answer.rows, _SHOWN_ROWS)
    ]
    is_cut = next(answer.rows, None) is not None
    widths = [
        min(40, max(len(name), *(len(shown(row[n] or "")) for row in rows), 1))
        for n, name in enumerate(answer.columns)
    ]
    if sum(widths) + 3 * len(widths) <= stdout().width:
        columns = [
            Column(shown(name), is_number)
            for name, is_number in zip(answer.columns, answer.numeric, strict=True)
        ]
        print_table(columns, rows)
    else:
        _print_records(answer.columns, rows)
    if is_cut:
        say(f"… the first {_SHOWN_ROWS} rows; --format csv or json gives all.")
    elif len(rows) != 1:
        say(f"{len(rows)} rows", "dim")


def _print_records(columns: list[str], rows: list[list[str | None]]) -> None:
    """Rows that are too wide for the terminal: a line for each value."""
    console = stdout()
    width = max(len(shown(name)) for name in columns)
    for number, row in enumerate(rows, 1):
        console.print(Text(f"— row {number}", style="bold cyan"))
        for name, value in zip(columns, row, strict=True):
            line = Text.assemble((shown(name).ljust(width + 2), "dim"), shown(value or ""))
            line.truncate(console.width, overflow="ellipsis")
            console.print(line)
