"""Commands that tell what the tables are: docs, contracts. They need no database."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from metalayer.console import say, shown, stdout, working


class Action(StrEnum):
    """What `contracts` can do."""

    export = "export"


class Standard(StrEnum):
    """In which form they are written."""

    odcs = "odcs"


def docs(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write to; `docs` in the home."),
    ] = None,
) -> None:
    """Write the dictionary: a web site of each table and column, with lineage and search.

    It is made from the contracts and SELECTs, and needs neither a database nor a network, now or
    later: open `index.html`, or let any web server give out the folder.
    """
    from metalayer.settings import Settings

    out = out if out is not None else Settings.load().home / "docs"
    with working("Reading the contracts") as tell:
        from metalayer.catalog import catalog
        from metalayer.governance.dictionary import dictionary
        from metalayer.governance.dictionary_site import build_site

        entries = dictionary(catalog())
        tell("Writing the pages")
        first = build_site(entries, out)
    columns = sum(len(entry.columns) for entry in entries.tables.values())
    stdout().print(Text(shown(str(first))), soft_wrap=True)
    say(f"{len(entries.tables)} tables, {columns} columns.", "dim")


def contracts(
    action: Annotated[Action, typer.Argument(help="export: write them to files.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to write to; made if missing.")
    ] = Path("contracts"),
    standard: Annotated[
        Standard, typer.Option("--format", help="odcs: Open Data Contract Standard 3, YAML.")
    ] = Standard.odcs,
) -> None:
    """Write each table's contract into a file of its own, in a standard that other tools read.

    Files of the same names are replaced; others in the folder stay.
    """
    assert action is Action.export and standard is Standard.odcs
    with working("Reading the contracts"):
        from metalayer.catalog import catalog
        from metalayer.governance.dictionary import dictionary
        from metalayer.governance.odcs import write_contracts

        written = write_contracts(dictionary(catalog()), out)
    for path in written:
        stdout().print(Text(shown(str(path))), soft_wrap=True)
