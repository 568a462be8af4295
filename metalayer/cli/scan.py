"""The command `scan`: which landed columns look personal, and no contract says so."""

from __future__ import annotations

from typing import Annotated

import typer

from metalayer.cli.ask import say_nothing_yet, warehouse_to_read, write_json
from metalayer.console import Column, print_table, say, working


def scan(
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="Rows of a table that are looked at, about.")
    ] = 20_000,
    region: Annotated[
        str,
        typer.Option(
            "--region", metavar="COUNTRY", help="Where phone numbers without a country are dialled."
        ),
    ] = "US",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Name the landed columns that look personal and are not tagged so in their contract.

    Values are held against the patterns of e-mail addresses, phone numbers, payment cards, bank
    accounts and some forty national ids, and against the values of tagged columns. None is shown.
    Ends with exit code 1 if a column is found.
    """
    from metalayer.catalog import catalog
    from metalayer.errors import UsageError
    from metalayer.governance.looks import is_region
    from metalayer.governance.scan import scan as scan_landed
    from metalayer.governance.sealing import Opener, known_keys

    if not is_region(region.upper()):
        raise UsageError(
            f"--region {region} is no country whose phone numbers are known",
            "Write its two letters, like US, GB or DE.",
        )
    with warehouse_to_read() as (settings, connection):
        if connection is None:
            say_nothing_yet(settings, as_json=as_json)
            return
        with working("Looking at landed values") as tell, connection.cursor() as cursor:
            # Without the key there is less to compare with.
            opened = Opener(known_keys(settings)).opened
            where = region.upper()
            found = list(
                scan_landed(cursor, catalog(), rows=rows, region=where, told=tell, opened=opened)
            )
    if as_json:
        write_json(found)
    elif not found:
        say("No column looks personal but those that are tagged.")
    else:
        print_table(
            [
                Column("table"),
                Column("column"),
                Column("looks like"),
                Column("values", is_number=True),
                Column("of", is_number=True),
            ],
            [(f.table, f.column, f.looks_like, f.values, f.judged) for f in found],
        )
        for step in dict.fromkeys(f.next_step for f in found):
            say(f"✗ {step}")
    if found:
        raise typer.Exit(1)
