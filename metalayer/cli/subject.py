"""The command `subject`: everything that is held of one person, in a file to hand over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.ask import say_nothing_yet, warehouse_to_read
from metalayer.cli.audit import Why
from metalayer.console import Column, months_shown, print_table, print_warning, say, working
from metalayer.wording import counted, named

if TYPE_CHECKING:
    from metalayer.governance.subjects import Subject

_KIND = "customer"
_NAMED = 5


def subject(
    customer: Annotated[
        str, typer.Option("--customer", metavar="ID", help="Number of the customer.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The ZIP to write.")],
    why: Why = None,
) -> None:
    """Collect everything that is held of a customer: rows, files and lines, purpose and readers.

    Looked through are all tables, the quarantine, earlier versions and the landing zone. Values are
    plain, so it takes a database role that may see them; the file is readable by you only.
    """
    from metalayer.governance.plain import open_unmasked

    with warehouse_to_read() as (settings, connection):
        if connection is None:
            say_nothing_yet(settings)
            raise typer.Exit(1)
        open_unmasked(connection, f"what is held of a {_KIND}")
        with working("Looking through the tables") as tell:
            from metalayer.catalog import catalog
            from metalayer.errors import UsageError
            from metalayer.governance import handover, subjects
            from metalayer.landing.export import refuse_to_overwrite
            from metalayer.warehouse.acts import record_now

            refuse_to_overwrite(out)
            with connection.cursor() as cursor:
                found = subjects.subject(cursor, catalog(), settings, _KIND, customer, tell)
            if found.is_empty:
                raise UsageError(
                    f"Nothing is held of {_KIND} {customer}",
                    "Check the number; what has landed is looked through once it is built.",
                )
            # Before there is a file: what cannot be recorded is not done.
            record_now(settings, "export", f"a {_KIND}")
            handover.write_subject(found, out)
    _print(found)
    say(f"{out} holds it all, and is readable by you only.")


def _print(found: Subject) -> None:
    print_table(
        [Column("table"), Column("rows", is_number=True), Column("held for"), Column("readers")],
        [(h.table, len(h.rows), h.purpose, ", ".join(h.recipients)) for h in found.tables],
    )
    lines = sum(len(file.lines) for file in found.files)
    say(f"From {counted(lines, 'line')} of {counted(len(found.files), 'landed file')}.")
    if found.quarantined:
        say(f"In the quarantine: {counted(len(found.quarantined), 'row')}.")
    if found.earlier_versions:
        months = months_shown([earlier.month for earlier in found.earlier_versions])
        versions = counted(len(found.earlier_versions), "earlier version")
        say(f"Also in {versions} of {months}, for as long as those are kept.")
    for what, where in (
        ("in files that are in no table", found.other_files),
        ("not searched to the end", found.unsearched),
    ):
        if where:
            print_warning(f"{what}: {named(where, _NAMED)}")
