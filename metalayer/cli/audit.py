"""The command `audit`, and the option by which other commands take a reason.

Starts in a fraction of a second, like all that only read. What the log is, `metalayer.audit_log`
says.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.text import Text

from metalayer.console import Column, print_table, say, say_next, shown, stdout
from metalayer.settings import ENV_PREFIX


def _because(reason: str | None) -> None:
    """Give the reason to all that reads the settings, processes that are started included."""
    if reason:
        os.environ[f"{ENV_PREFIX}WHY"] = reason


#: An option of commands that change something.
Why = Annotated[
    str | None,
    typer.Option("--why", help="The reason, for the audit log.", callback=_because),
]


class Task(StrEnum):
    """What `audit` can do besides listing."""

    verify = "verify"


def audit(
    task: Annotated[
        Task | None, typer.Argument(help="verify: find what was changed in the log.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From then on: 2025-07-01 (UTC).")
    ] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only these, like rollback or withdraw.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="At most so many (50, with --json all)."),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="POSITION:HASH", help="With verify: an end kept elsewhere."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show who did what, when and why, newest first; or verify that the log is whole.

    `verify` finds acts that were changed, deleted, put in another order or left out, and a log
    that was cut off. It ends with exit code 1 if it finds any.
    """
    from metalayer.cli.ask import say_nothing_yet, warehouse_to_read, write_json
    from metalayer.errors import UsageError

    if task is None and head:
        raise UsageError("--head is for `audit verify`", "Add verify, or leave it out.")
    if task is not None:
        if since or action or limit:
            raise UsageError("`audit verify` looks at all acts", "Leave the other options out.")
        _verify(head or [], as_json=as_json)
        return
    from metalayer import audit_log

    begin = audit_log.parse_since(since) if since else None
    with warehouse_to_read() as (settings, connection):
        if connection is None or not audit_log.has_log(connection):
            say_nothing_yet(settings, as_json=as_json)
            return
        most = limit if as_json else limit or 50
        found = audit_log.acts(connection, begin, action, most)
        if as_json:
            write_json(found)
        else:
            _print(list(found))


def _print(found: list[Any]) -> None:
    if not found:
        say("No such acts.")
        return
    print_table(
        [
            Column("at (UTC)"),
            Column("role"),
            Column("user"),
            Column("action"),
            Column("subject"),
            Column("why"),
            Column("chained", is_number=True, is_extra=True),
        ],
        [
            (
                f"{a.at:%Y-%m-%d %H:%M:%S}",
                shown(a.role),
                shown(a.os_user),
                shown(a.action),
                shown(a.subject),
                shown(a.why),
                a.position,
            )
            for a in found
        ],
    )
    say_next(("audit verify", "whether the log is whole"), ("audit --json", "all of it"))


def _verify(heads: list[str], *, as_json: bool) -> None:
    from metalayer.audit_log import has_log, noted_heads, parse_head, verify
    from metalayer.cli.ask import warehouse_to_read
    from metalayer.errors import WarehouseError
    from metalayer.settings import Settings
    from metalayer.warehouse.acts import heads_file

    given = [parse_head(text) for text in heads]
    # Before the warehouse, which may grow meanwhile.
    noted = noted_heads(heads_file(Settings.load()))
    with warehouse_to_read() as (_, connection):
        if connection is None or not has_log(connection):
            raise WarehouseError(
                "There is no audit log yet", "It begins with the next `metalayer build`."
            )
        verdict = verify(connection, [*noted, *given])
    end = f"{verdict.head[0]}:{verdict.head[1]}"
    if as_json:
        from metalayer.cli.formats import json_text

        sys.stdout.write(json_text({**vars(verdict), "head": end}) + "\n")
    else:
        for problem in verdict.problems:
            stdout().print(Text(f"✗ {shown(problem)}", style="red"), soft_wrap=True)
        waiting = f"; {verdict.waiting:,} wait to be chained" if verdict.waiting else ""
        word = f"{len(verdict.problems):,} problems" if verdict.problems else "The log is whole"
        say(f"{word}: {verdict.chained:,} acts in the chain{waiting}.")
        stdout().print(Text(f"head {end}"), soft_wrap=True)
    if verdict.problems:
        raise typer.Exit(1)
