"""The command `keys`: which keys seal encrypted columns, and changing to another."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.ask import say_nothing_yet, warehouse_to_read
from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm
from metalayer.console import Column, print_table, say, say_next, working
from metalayer.wording import counted

if TYPE_CHECKING:
    from metalayer.settings import Settings


class Action(StrEnum):
    """What to do with the keys."""

    list = "list"
    new = "new"
    rotate = "rotate"


def keys(
    action: Annotated[
        Action,
        typer.Argument(help="List them, print a new one, or seal everything with a new one."),
    ] = Action.list,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Show the keys of encrypted columns, print a new one, or change to a new one.

    `rotate` makes a key in the key file, or takes the first of METALAYER_ENCRYPTION_KEY, and seals
    every month and its earlier versions with it, one by one. Readers go on; builds wait. Killed, it
    is finished by the next command that builds.
    """
    if action is Action.new:
        from metalayer.governance.sealing import make_key

        sys.stdout.write(make_key().text + "\n")
        return
    if action is Action.list:
        _list()
        return
    from metalayer.settings import Settings

    settings = Settings.load()
    confirm(settings, "seals everything with another key", yes=yes_prod)
    with working("Loading the tables"):
        from metalayer.assets.resources import open_warehouse
        from metalayer.catalog import catalog
        from metalayer.governance.rotation import rotate
        from metalayer.warehouse.acts import seal

    with working("Starting PostgreSQL") as tell, open_warehouse(settings, tell) as warehouse:
        with working("Sealing") as tell:
            done = rotate(warehouse, catalog(), tell)
        seal(warehouse.pool, settings)
    for table, versions in done.months.items():
        say(f"{table}: {counted(versions, 'version')} of months sealed anew.")
    if done.quarantined:
        say(f"In the quarantine: {counted(done.quarantined, 'row')}.")
    say(f"Key {done.key_id} seals from now on. Keep the earlier ones as long as backups need them.")


def _list() -> None:
    from metalayer.governance.sealing import known_keys

    with warehouse_to_read() as (settings, connection):
        if connection is None:
            say_nothing_yet(settings)
            return
        with connection.cursor() as cursor:
            cursor.execute(
                "select key_id, state, to_char(since, 'YYYY-MM-DD HH24:MI') from meta.keys "
                "order by since"
            )
            rows = cursor.fetchall()
    at_hand = {key.id for key in known_keys(settings)}
    if not rows:
        say("Nothing has been encrypted yet.")
        return
    print_table(
        [Column("key"), Column("state"), Column("since"), Column("at hand")],
        [(*row, "yes" if row[0] in at_hand else "no") for row in rows],
    )
    say(f"Keys are read from {_place(settings)}.")
    say_next(("keys rotate", "changes to a new one"))


def _place(settings: Settings) -> str:
    from metalayer.governance.sealing import key_file

    if settings.encryption_key is not None:
        return "METALAYER_ENCRYPTION_KEY"
    return str(key_file(settings))
