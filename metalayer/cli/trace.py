"""The command `trace`: a row, and the landed lines it was made from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from metalayer.cli.ask import say_nothing_yet, warehouse_to_read
from metalayer.console import say, shown, stdout, working

if TYPE_CHECKING:
    from metalayer.tracing import ColumnStep, Trace

_SHOWN_LINES = 8


def trace(
    table: Annotated[str, typer.Argument(help="A table, like gold.fact_sales.")],
    where: Annotated[
        str,
        typer.Option("--where", metavar="SQL", help="Which rows: a condition, as after `where`."),
    ],
    column: Annotated[
        str | None,
        typer.Option("--column", metavar="NAME", help="Tell how this column came by its value."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Walk a row back to the lines of the landed files that it was made from.

    Rows on the way are counted, and the first few shown; personal values are masked. Rows that only
    decided whether others count are not told.
    """
    from metalayer.cli.formats import json_text

    with warehouse_to_read() as (settings, connection):
        if connection is None:
            say_nothing_yet(settings)
            raise typer.Exit(1)
        with working("Tracing"):
            from metalayer.catalog import catalog
            from metalayer.tracing import trace as walk

            found = walk(connection, catalog(), table, where, column)
    if as_json:
        sys.stdout.write(json_text(found) + "\n")
    else:
        _print(found)


def _print(found: Trace) -> None:
    console = stdout()

    def line(*parts: str | tuple[str, str]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)

    for number, step in enumerate(found.steps):
        line(
            ("" if number == 0 else "← ", "dim"),
            (step.table, "bold cyan"),
            f"  {step.rows:,} row{'' if step.rows == 1 else 's'}",
        )
        for row in step.first:
            told = "  ".join(f"{name}={value}" for name, value in row.items() if value is not None)
            line("    ", (shown(told), "dim"))
        if step.rows > len(step.first):
            line("    ", (f"… and {step.rows - len(step.first):,} more", "dim"))
    if found.files:
        line(("landed", "bold cyan"))
    for file in found.files:
        some = ", ".join(map(str, file.lines[:_SHOWN_LINES]))
        more = len(file.lines) - _SHOWN_LINES
        line(
            "    ",
            shown(file.file),
            f"  line{'' if len(file.lines) == 1 else 's'} {some}",
            (f" and {more:,} more" if more > 0 else "", "dim"),
        )
    if found.column is not None:
        line((f"how {found.column.column} came to be", "bold cyan"))
        _print_column(found.column, 1)
    for step in found.steps:
        if step.lost:
            say(
                f"✗ {step.lost:,} of {step.table} would not be made today: what they were made "
                "from has changed, and `metalayer build` brings them up to date; or it has "
                "expired, and they stay."
            )
        if step.rows > step.followed and step.table != found.table and step.followed:
            say(f"… {step.followed:,} of the rows of {step.table} were followed.", "dim")


def _print_column(step: ColumnStep, depth: int) -> None:
    console = stdout()
    values = ", ".join("(empty)" if v is None else shown(v) for v in step.values)
    console.print(
        Text.assemble(
            "  " * depth, (f"{step.table}.{step.column}", "bold"), f" = {values or 'no row'}"
        ),
        soft_wrap=True,
    )
    for made_by in step.made_by:
        text = " ".join(made_by.split())
        console.print(Text("  " * depth + f"  by {shown(text)}", style="dim"), soft_wrap=True)
    for source in step.made_from:
        _print_column(source, depth + 1)
