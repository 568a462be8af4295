"""The command `anomalies`: what is unusual, and saying that it was expected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.audit import Why
from metalayer.console import Column, print_table, say, say_next, shown
from metalayer.errors import UsageError

if TYPE_CHECKING:
    from metalayer.settings import Settings

_MOST = 50


def anomalies(
    every: Annotated[
        bool, typer.Option("--all", help="Those that are over or were expected as well.")
    ] = False,
    expected: Annotated[
        int | None,
        typer.Option("--expected", metavar="NUMBER", help="Say that this one was to be expected."),
    ] = None,
    why: Why = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is unusual: rows, missing values, values that shift, days that do not come.

    Each build holds what it published against what was usual before, once there is enough of that.
    An anomaly lasts until the day or month is published anew and is as usual, or until somebody
    says with `--expected` that it was to be, and why.
    """
    if expected is not None:
        from metalayer.settings import Settings

        settings = Settings.load()
        if not settings.why:
            raise UsageError(
                "What was to be expected needs a reason", 'Add --why "price campaign", say.'
            )
        _expect(settings, expected)
        return
    from metalayer.cli.ask import say_nothing_yet, warehouse_to_read, write_json
    from metalayer.operations.anomalies import anomalies as found_in
    from metalayer.operations.looking import is_there

    states = ("open", "expected", "over") if every else ("open",)
    with warehouse_to_read() as (settings, connection):
        if connection is None:
            say_nothing_yet(settings, as_json=as_json)
            return
        with connection.cursor() as cursor:
            most = None if as_json else _MOST
            is_known = is_there(cursor, "meta.anomalies")
            found = found_in(cursor, states=states, limit=most) if is_known else []
    if as_json:
        write_json(found)
        return
    if not found:
        say("Nothing unusual." if not every else "There was nothing unusual yet.")
        return
    print_table(
        [
            Column("number", is_number=True),
            Column("table"),
            Column("what"),
            *([Column("state"), Column("why", is_extra=True)] if every else []),
        ],
        [
            (a.id, a.table, shown(a.said), *((a.state, shown(a.why)) if every else ()))
            for a in found
        ],
    )
    say_next(('anomalies --expected NUMBER --why "..."', "silences one"), ("ledger", "what landed"))


def _expect(settings: Settings, number: int) -> None:
    from metalayer.operations.anomalies import expect
    from metalayer.warehouse.acts import seal
    from metalayer.warehouse.pool import transaction, warehouse_pool

    with warehouse_pool(settings) as pool:
        with transaction(pool) as connection, connection.cursor() as cursor:
            found = expect(cursor, number, settings.why)
        seal(pool, settings)
    say(f"Anomaly {number} was expected: {found.table}, {shown(found.said)}.")
