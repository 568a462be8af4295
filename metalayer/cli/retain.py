"""The command `retain`: months leave that were kept as long as their contracts say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm
from metalayer.console import (
    Column,
    months_shown,
    print_table,
    print_warning,
    say,
    say_next,
    working,
)
from metalayer.wording import counted, named

if TYPE_CHECKING:
    from metalayer.governance.retention import Expiring

_NAMED = 5


def retain(
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would go; change nothing.")
    ] = False,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Take months out that were kept as long as their contracts' `retention_months` say.

    They leave landed files, every layer, the quarantine and earlier versions; aggregates stay, and
    what looks back over several months is built from those that are kept. A month with rows of
    somebody on legal hold stays whole. No file that lands later brings them back.
    """
    from metalayer.settings import Settings

    settings = Settings.load()
    if not plan:
        confirm(settings, "takes out months that have expired, for good", yes=yes_prod)
    with working("Loading the tables"):
        from metalayer.catalog import catalog
        from metalayer.cli import running
        from metalayer.governance import retention
    with running.platform(settings) as (warehouse, instance):
        if plan:
            with working("Looking through the tables"):
                found = retention.look(warehouse, catalog())
        else:
            with working("Taking out what has expired") as tell:
                found = retention.retain(warehouse, instance, catalog(), tell)
    _print(found, is_done=not plan)


def _print(found: Expiring, *, is_done: bool) -> None:
    for month, tables in sorted(found.held.items()):
        print_warning(
            f"{month:%Y-%m} stays: somebody on legal hold has rows in {named(tables, _NAMED)}"
        )
    for file in found.left:
        print_warning(f"{file} was refused: what is in it is not known, and it stays")
    if found.is_empty:
        say("Nothing has expired.")
        return
    if found.months:
        print_table(
            [
                Column("table"),
                Column("months"),
                Column("rows", is_number=True),
                Column("kept from"),
            ],
            [
                (
                    table,
                    months_shown([f"{m:%Y-%m}" for m in months]),
                    sum(months.values()),
                    f"{found.before[table]:%Y-%m}",
                )
                for table, months in found.months.items()
            ],
        )
    was = "Taken out of" if is_done else "Would be taken out of"
    records = sum(found.files.values())
    say(f"{was} {counted(len(found.files), 'landed file')}: {counted(records, 'record')}.")
    if found.follow:
        verb = "was" if is_done else "would be"
        say(
            f"What looks back {verb} built from what is kept; figures of kept months change: "
            f"{named(found.follow, _NAMED)}, and what is made from these."
        )
    if not is_done:
        say_next(("retain", "does it; it cannot be undone"))
