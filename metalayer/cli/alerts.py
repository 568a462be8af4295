"""The command `alerts`: what is wrong just now, and telling people about it."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from metalayer.cli.ask import say_nothing_yet
from metalayer.console import say, say_next, shown, stdout, working
from metalayer.errors import MetaLayerError, UsageError
from metalayer.wording import named

if TYPE_CHECKING:
    from metalayer.operations.alerts import Round
    from metalayer.settings import Settings

_SECONDS = 30
_log = logging.getLogger(__name__)
_MOST_AFFECTED = 6


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is wrong: files refused, months failed or missing, runs failed, disks full.

    Each cause is shown once, with the tables that lack something for it and what to do. `up` tells
    the addresses in METALAYER_ALERT_URLS, each cause once, and when it is well again.
    """
    from metalayer.logs.writing import log_to_stderr
    from metalayer.settings import Settings

    settings = Settings.load()
    log_to_stderr(settings)
    if send + watch + test + as_json > 1:
        raise UsageError("--send, --watch, --test and --json each go alone", "Choose one of them.")
    if test:
        _try(settings)
        return
    if not (send or watch):
        with _standing(settings) as is_there:
            _show(settings, is_there=is_there, as_json=as_json)
        return
    from metalayer.failure import failure_of
    from metalayer.operations.alerts import Teller

    if settings.alert_urls is None:
        _nobody()
        return
    teller = Teller(settings)
    if not watch:
        with _standing(settings) as is_there:
            done = teller.look() if is_there else None
        if done is not None:
            _tell_of(done)
            if done.refused:
                raise typer.Exit(1)
        return
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                _log_of(teller.look())
            except Exception as error:  # whatever it is, the next look is wanted
                found = failure_of(error, settings.embedded_home)
                _log.warning("could not look: %s", found.line, extra=found.fields)
            time.sleep(_SECONDS)


@contextlib.contextmanager
def _standing(settings: Settings) -> Iterator[bool]:
    """The embedded server, started as for other commands; whether there is one to look at."""
    from metalayer.warehouse.server import warehouse_server

    if settings.database_url is not None:
        yield True
    elif not (settings.pgdata / "PG_VERSION").exists():
        yield False
    else:
        with contextlib.ExitStack() as stack:
            # Where it does not start, that is what is wrong.
            with contextlib.suppress(MetaLayerError):
                tell = stack.enter_context(working("Starting PostgreSQL"))
                stack.enter_context(warehouse_server(settings, tell))
            yield True


def _show(settings: Settings, *, is_there: bool, as_json: bool) -> None:
    from metalayer.operations.conditions import Findings, find

    findings = find(settings) if is_there else Findings(())
    found = findings.told
    if as_json:
        told = [{**asdict(c), "about": sorted(c.about)} for c in found]
        sys.stdout.write(json.dumps(told, indent=2, default=str) + "\n")
        return
    if not is_there:
        say_nothing_yet(settings)
        return
    for condition in found:
        style = "red" if condition.severity == "critical" else "yellow"
        out = stdout()
        out.print(Text.assemble(("✗ ", style), shown(condition.title)), soft_wrap=True)
        out.print(Text(f"  {shown(condition.what)}"), soft_wrap=True)
        if condition.affects:
            out.print(
                Text(f"  affects: {named(condition.affects, _MOST_AFFECTED)}"), soft_wrap=True
            )
        out.print(Text(f"  next: {shown(condition.next_step)}", style="dim"), soft_wrap=True)
    if findings.unknown:
        say("PostgreSQL did not answer everything that was asked, so there may be more.", "yellow")
    elif not found:
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
            f"{', '.join(failed)} took no message",
            "Look whether address, password and network are right.",
        )


def _nobody() -> None:
    say("METALAYER_ALERT_URLS is unset: nobody is told.")


def _log_of(done: Round) -> None:
    """What `_tell_of` says, by a service."""
    for to, message in done.sent:
        _log.info("told %s: %s", to, message.title)
    for to in done.refused:
        _log.warning("%s took no message; it is tried again", to)


def _tell_of(done: Round) -> None:
    for to, message in done.sent:
        say(f"told {shown(to)}: {shown(message.title)}")
    for to in done.refused:
        say(f"{shown(to)} took no message; it is tried again", "yellow")
