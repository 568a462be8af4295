"""The command `alerts`: what is wrong just now, and telling people about it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from metalayer.console import say, say_next, shown, stdout

if TYPE_CHECKING:
    from metalayer.operations.alerts import Round
    from metalayer.settings import Settings

_SECONDS = 30


def alerts(
    send: Annotated[
        bool, typer.Option("--send", help="Tell whoever does not know yet, and end.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="The same every 30 seconds, until Ctrl-C.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Send a message to every address, to try them.")
    ] = False,
) -> None:
    """Show what is wrong: files refused, months failed or missing, runs failed, disks full.

    Each cause is shown once, with the tables that lack something for it and what to do. `up` tells
    the addresses in METALAYER_ALERT_URLS, each cause once, and when it is well again.
    """
    from metalayer.settings import Settings

    settings = Settings.load()
    if test:
        _try(settings)
        return
    if not (send or watch):
        _show(settings)
        return
    from metalayer.operations.alerts import addresses, look

    if not addresses(settings):
        _nobody()
        return
    _tell_of(look(settings))
    with contextlib.suppress(KeyboardInterrupt):
        while watch:
            time.sleep(_SECONDS)
            _tell_of(look(settings))


def _show(settings: Settings) -> None:
    from metalayer.operations.conditions import find

    found = find(settings).conditions
    for condition in found:
        style = "red" if condition.severity == "critical" else "yellow"
        out = stdout()
        out.print(Text.assemble(("✗ ", style), shown(condition.title)), soft_wrap=True)
        out.print(Text(f"  {shown(condition.what)}"), soft_wrap=True)
        if condition.affects:
            out.print(Text(f"  affects: {', '.join(condition.affects)}"), soft_wrap=True)
        out.print(Text(f"  next: {shown(condition.next_step)}", style="dim"), soft_wrap=True)
    if not found:
        say("Nothing is wrong.")
    if settings.alert_urls is None:
        say_next(("alerts --help", "have people told by mail or chat"))


def _try(settings: Settings) -> None:
    from metalayer.errors import ConfigurationError
    from metalayer.operations.alerts import Message, addresses

    found = addresses(settings)
    if not found:
        _nobody()
    message = Message(
        "[MetaLayer] A test", "If you read this, alerts of MetaLayer reach you here.", "well"
    )
    failed = []
    for address in found:
        if address.send(message):
            say(f"{shown(address.shown)} took it.")
        else:
            failed.append(address.shown)
    if failed:
        raise ConfigurationError(
            f"No message was taken by {', '.join(failed)}",
            "Look whether address, password and network are right.",
        )


def _nobody() -> None:
    say("METALAYER_ALERT_URLS is unset: nobody is told.")


def _tell_of(done: Round) -> None:
    for to, message in done.sent:
        say(f"told {shown(to)}: {shown(message.title)}")
    for to in done.refused:
        say(f"{shown(to)} took no message; it is tried again", "yellow")
