"""The commands `land` and `build`, and how a build's outcome is shown."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm, confirm_migration
from metalayer.console import (
    Column,
    print_error,
    print_table,
    print_warning,
    say,
    say_next,
    shown,
    stdout,
    working,
)
from metalayer.errors import UsageError
from metalayer.warehouse.phases import in_words
from metalayer.wording import counted

if TYPE_CHECKING:
    from metalayer.cli.running import Build
    from metalayer.landing.ledger import Registration
    from metalayer.settings import Settings

_MOST_LINES = 20
#: What `working` says while contracts or Dagster are imported, which takes seconds.
LOADING = "Loading the tables"


def land(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exports to take in.")],
    source: Annotated[
        str | None,
        typer.Option("--source", help="What they are, like erp/orders; else told by their names."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="They are from `rejects --export`: land what was changed."),
    ] = False,
    withdraw: Annotated[
        bool,
        typer.Option("--withdraw", help="They have landed: take them out, as if never come."),
    ] = False,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Copy exports into the landing zone; each appears there whole or not at all.

    A file that matches no source is refused, and then nothing is copied.
    """
    from metalayer.settings import Settings

    settings = Settings.load()
    if withdraw:
        from metalayer.cli.withdraw import withdraw_files

        if repair or source is not None:
            raise UsageError(
                "--withdraw takes files that have landed", "Leave --repair and --source out"
            )
        confirm(settings, "takes landed files out", yes=yes_prod)
        withdraw_files([str(file) for file in files], settings)
        return
    if repair:
        from metalayer.cli.repair import land_repairs

        if source is not None:
            raise UsageError("A repair names its sources itself", "Leave --source out")
        land_repairs(files, settings)
        return
    with working(LOADING):
        from metalayer.catalog import catalog
        from metalayer.landing.files import land as land_files

        sources = [s.source for s in catalog().sources.values() if s.source is not None]
        names = land_files(files, settings.landing, sources, source)
    console = stdout()
    for path, name in zip(files, names, strict=True):
        console.print(Text(f"{shown(path)} -> {shown(settings.landing / name)}"), soft_wrap=True)
    say_next(("build", "reads them and builds the tables"))


def build(
    selection: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SELECTION]...",
            help="Tables (gold.fact_sales), layers (gold) or patterns ('gold.agg_*'); "
            "+TABLE with everything it is made from, TABLE+ with everything made from it.",
        ),
    ] = None,
    months: Annotated[
        str | None,
        typer.Option(
            "--months",
            metavar="FIRST..LAST",
            help="Only these, and what is published of the others and out of date.",
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be rebuilt and why; do nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild the selection although it is up to date.")
    ] = False,
    atomic: Annotated[
        bool, typer.Option("--atomic", help="Publish everything at once, or nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    why: Why = None,
) -> None:
    """Take in what has landed and build every month that is out of date, through Dagster.

    Without a selection that is every table. A month that breaks its contract is not published;
    readers keep its earlier state, and the others are published.
    """
    from metalayer.settings import Settings

    settings = Settings.load()
    with working(LOADING):
        from metalayer.catalog import catalog
        from metalayer.cli.selection import select_tables

        selected = select_tables(selection or [], catalog())
        wanted = _months(months, settings) if months is not None else None
        if not plan:
            from metalayer.cli import running
    if plan:
        _plan(settings, selected, wanted, force=force, as_json=as_json)
        return
    confirm_migration(settings, yes=False)
    with running.platform(settings) as (warehouse, instance):
        done = running.run(
            warehouse,
            instance,
            selected=selected,
            months=wanted,
            force=force,
            atomic=atomic,
            registered=None if as_json else _print_registration,
        )
    if as_json:
        from metalayer.cli.formats import json_text

        sys.stdout.write(json_text(done.as_json()) + "\n")
    else:
        _print_build(done, settings, is_partial=selected is not None or wanted is not None)
    if done.failures:
        print_failures(done)
        raise typer.Exit(1)


def _plan(
    settings: Settings,
    selected: set[str] | None,
    months: set[date] | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    from metalayer.cli.plan import make_plan, print_plan, write_plan_json

    found, registration = make_plan(settings, selected, months, force=force)
    if as_json:
        write_plan_json(found, registration)
    else:
        _print_registration(registration, is_plan=True)
        print_plan(found)


def say_registered(registration: Registration, *, is_plan: bool = False) -> None:
    """What was found in the landing zone, in a line."""
    statuses = Counter(d.status for d in registration.deliveries)
    if statuses:
        parts = ", ".join(f"{number:,} {status}" for status, number in statuses.most_common())
        files = counted(statuses.total(), "new file")
        say(f"{files}, which a build would take in: {parts}" if is_plan else f"{files}: {parts}")


def _print_registration(registration: Registration, *, is_plan: bool = False) -> None:
    say_registered(registration, is_plan=is_plan)
    was = "would be" if is_plan else "was"
    for d in registration.deliveries:
        if d.status == "rejected":
            print_warning(f"{d.file} {was} rejected: {d.reason}")
    for s in registration.skipped:
        print_warning(f"{s.name} {was} left alone: {s.reason}")


def print_failures(done: Build) -> None:
    """What failed, and what to do about it."""
    lines = [line for failure in done.failures for line in failure.splitlines()]
    if len(lines) > _MOST_LINES and len(done.failures) > 1:
        # What failed comes before the examples, but for those of the first.
        first, *others = done.failures
        lines = [*first.splitlines(), *(failure.partition("\n")[0] for failure in others)]
    more = len(lines) - _MOST_LINES
    if more > 0:
        lines = [*lines[:_MOST_LINES], f"and {more} lines more; --json gives all"]
    print_error(
        "\n".join(["the build failed; what is not named here is published", *lines]),
        "Mend the rows where they come from and land the file again, or change the contract or "
        "the SELECT; then `metalayer build`.",
    )


def _print_outcome(done: Build) -> None:
    has_failed = any(t.months_failed for t in done.tables)
    columns = [
        Column("table"),
        Column("months\npub-\nlished", is_number=True),
        Column("months\nun-\nchanged", is_number=True),
        *([Column("months\nfailed", is_number=True)] if has_failed else []),
        Column("rows\nread", is_number=True, is_extra=True),
        Column("rows\npublished", is_number=True),
        Column("quaran-\ntined", is_number=True),
        Column("super-\nseded", is_number=True),
        Column("seconds", is_number=True),
    ]
    rows: list[Any] = []
    for layer, members in itertools.groupby(done.tables, key=lambda t: t.table.partition(".")[0]):
        rows.append(layer)
        rows += [
            (
                Text(t.table.removeprefix(f"{layer}.")),
                t.months_published,
                t.months_unchanged,
                *([t.months_failed] if has_failed else []),
                t.rows_read,
                t.rows_published,
                t.rows_quarantined,
                t.rows_superseded,
                t.seconds,
            )
            for t in members
        ]
    print_table(columns, rows)
    for warning in done.warnings:
        print_warning(warning)


def _print_build(done: Build, settings: Settings, *, is_partial: bool) -> None:
    if done.outcome.months:
        _print_outcome(done)
        say(f"Done in {done.seconds:.1f} s: {in_words(done.phases)}.")
        if not done.failures:
            say_next(("status", "each table"), ("rejects", "the rows that were left out"))
    elif not done.failures:
        what = "what you selected is" if is_partial else "all tables are"
        say(f"Nothing to do: {what} up to date.")
        if not any(settings.landing.glob("*/*")):
            say(f"No file has landed yet in {settings.landing}.")
            say_next(("land FILE...", "takes in exports"), ("demo", "builds the sample"))


def _months(text: str, settings: Settings) -> set[date]:
    from metalayer.reading import parse_months

    months: Sequence[date] = parse_months(text)
    current = datetime.now(UTC).date().replace(day=1)
    if months[0] < settings.start_month:
        raise UsageError(
            f"{months[0]:%Y-%m} lies before the first month, {settings.start_month:%Y-%m}",
            "Set METALAYER_START_MONTH to an earlier month, or ask for later ones.",
        )
    if months[-1] > current:
        raise UsageError(
            f"{months[-1]:%Y-%m} lies in the future", f"Ask for months up to {current:%Y-%m}."
        )
    return set(months)
