"""The commands `erase` and `hold`: a person taken out of everything, or kept from being so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm
from metalayer.console import Column, print_table, print_warning, say, say_next, working
from metalayer.errors import UsageError
from metalayer.wording import counted

if TYPE_CHECKING:
    from metalayer.governance.erasure import Erasure

_KIND = "customer"
_Customer = Annotated[str, typer.Option("--customer", metavar="ID", help="Number of the customer.")]


def erase(
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="ID", help="Number of the customer.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The certificate to write (JSON).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be erased; change nothing.")
    ] = False,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FILE", help="Check a certificate's signature instead."),
    ] = None,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Erase a customer: from landed files, every table, the quarantine and earlier versions.

    Orders and sales stay, for nobody; no total changes. No file that lands later brings the
    customer back. Afterwards everything is searched, and a signed certificate says what was found.
    Killed, or ended, it is finished by asking for it again.
    """
    if verify is not None:
        _verify(verify)
        return
    if customer is None or (out is None and not dry_run):
        raise UsageError(
            "Say whom to erase, and where the certificate is to go",
            "As in `metalayer erase --customer 7 --out certificate.json`, or with --dry-run.",
        )
    from metalayer.settings import Settings

    settings = Settings.load()
    if not dry_run:
        confirm(settings, "erases a customer for good", yes=yes_prod)
    with working("Loading the tables"):
        from metalayer.catalog import catalog
        from metalayer.cli import running
        from metalayer.governance import erasure
        from metalayer.governance.certificates import certificate
        from metalayer.whole_files import write_new
    if out is not None:
        _refuse_unwritable(out)
    with running.platform(settings) as (warehouse, instance):
        with working("Looking through the tables") as tell:
            found = erasure.look(warehouse, catalog(), _KIND, customer, tell)
        if dry_run or out is None:
            _print(erasure.planned(found), is_done=False)
            return
        with working("Erasing") as tell:
            done = erasure.erase(warehouse, instance, catalog(), found, tell)
        signed = certificate(done, settings)
    write_new(out, (json.dumps(signed, indent=2, ensure_ascii=False) + "\n").encode())
    _print(done, is_done=True)
    say(f"{out} certifies it.")
    if done.left:
        raise typer.Exit(1)


def _refuse_unwritable(path: Path) -> None:
    """Tell before there is anything to certify that the certificate cannot go there."""
    from metalayer.landing.export import refuse_to_overwrite

    refuse_to_overwrite(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written", "Name a file in a folder of yours")


def hold(
    customer: _Customer,
    release: Annotated[
        bool, typer.Option("--release", help="Let the customer be erased again.")
    ] = False,
    why: Why = None,
) -> None:
    """Keep a customer from being erased, for a reason that `erase` tells; or let go of that."""
    from metalayer.settings import Settings

    settings = Settings.load()
    if not release and not settings.why:
        raise UsageError(
            "A hold needs a reason, which `erase` tells", 'Give it, as in --why "lawsuit 12/2025".'
        )
    with working("Loading the tables"):
        from metalayer.assets.resources import open_warehouse
        from metalayer.catalog import catalog
        from metalayer.governance import erasure
        from metalayer.warehouse.acts import seal

    with open_warehouse(settings) as warehouse:
        if not release:
            erasure.hold(warehouse, catalog(), _KIND, customer, settings.why)
            say("They are kept until `hold --release`, also if nothing is held of them yet.")
        elif erasure.release(warehouse, catalog(), _KIND, customer):
            say("The customer can be erased again.")
        else:
            say("Nothing to do: this customer is not on hold.")
        seal(warehouse.pool, settings)


def _print(done: Erasure, *, is_done: bool) -> None:
    if done.rows:
        print_table([Column("table"), Column("rows", is_number=True)], list(done.rows.items()))
    records = sum(done.files.values())
    was = "Taken out of" if is_done else "Would be taken out of"
    say(f"{was} {counted(len(done.files), 'landed file')}: {counted(records, 'record')}.")
    if done.quarantined:
        say(f"In the quarantine: {counted(done.quarantined, 'row')}.")
    if done.versions:
        verb = "dropped" if is_done else "would be dropped"
        say(f"{counted(sum(done.versions.values()), 'earlier version')} of months {verb}.")
    for left in done.left:
        print_warning(f"left: {left}")
    for beyond in done.beyond:
        say(f"Out of reach: {beyond}.")
    if is_done and not done.left:
        say("Searched afterwards, and nothing found: " + ", ".join(done.searched) + ".")
    if not is_done:
        say_next(("erase --customer ID --out certificate.json", "does it"))


def _verify(path: Path) -> None:
    with working("Checking"):
        from metalayer.governance.certificates import verify

        said = verify(path)
    state = "complete" if said["is_complete"] else "not complete"
    say(f"Unchanged since it was signed by {said['public_key']}: the erasure was {state}.")
