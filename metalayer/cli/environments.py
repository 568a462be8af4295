"""The command `env`: which environments there are, and months of one copied to another, masked."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.audit import Why
from metalayer.console import (
    Column,
    print_table,
    print_warning,
    say,
    say_next,
    working,
)
from metalayer.errors import ConfigurationError, UsageError
from metalayer.settings import (
    ENVIRONMENTS,
    Environment,
    Settings,
    chosen_environment,
    variables_in_files,
)
from metalayer.wording import counted

if TYPE_CHECKING:
    from metalayer.governance.environment_copy import Copied


class Action(StrEnum):
    """What to do with environments."""

    list = "list"
    copy = "copy"


@dataclass(frozen=True)
class _Found:
    """An environment as its settings have it; `problem` says why they cannot be read."""

    environment: str
    is_chosen: bool
    home: str = ""
    database: str = ""
    landing: str = ""
    set_by: dict[str, list[str]] | None = None
    problem: str = ""


def env(
    action: Annotated[
        Action, typer.Argument(help="List them, or copy months of one to another.")
    ] = Action.list,
    source: Annotated[
        str | None, typer.Argument(metavar="[FROM]", help="With copy: where the months are.")
    ] = None,
    target: Annotated[
        str | None, typer.Argument(metavar="[TO]", help="With copy: where they are brought.")
    ] = None,
    months: Annotated[
        int | None, typer.Option("--months", min=1, help="With copy: how many, up to the newest.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    why: Why = None,
) -> None:
    """List the environments (dev, staging, prod), or bring the newest months of one to another.

    METALAYER_ENV chooses one; without it that is dev. Copied rows have pseudonyms in place of
    personal values: they join and count as before, and only the key that stays behind leads back.
    Nothing is copied into prod.
    """
    if action is Action.list:
        if (source, target, months) != (None, None, None):
            raise UsageError("A list takes no environments", "Write `metalayer env copy FROM TO`.")
        _list(as_json=as_json)
        return
    if source is None or target is None or months is None:
        raise UsageError(
            "Say from where to where, and how many months",
            "As in `metalayer env copy prod dev --months 3`.",
        )
    copied = _copy(_environment(source), _environment(target), months)
    if as_json:
        from metalayer.cli.formats import json_text

        sys.stdout.write(json_text([asdict(file) for file in copied]) + "\n")
        return
    print_table(
        [Column("file"), Column("rows", is_number=True)], [(c.name, c.rows) for c in copied]
    )
    rows = sum(file.rows for file in copied)
    say(f"{counted(rows, 'row')} of {source} have landed in {target}, masked.")
    say_next(("build", "builds the tables from them"), before=f"METALAYER_ENV={target}")


def _copy(source: Environment, target: Environment, months: int) -> list[Copied]:
    here, there = Settings.load_for(source), Settings.load_for(target)
    with working("Loading the tables"):
        from metalayer.catalog import catalog
        from metalayer.governance.environment_copy import copy_months, refuse_copy
        from metalayer.inspection import reading

        tables = catalog()
    refuse_copy(here, there)
    with working("Starting PostgreSQL") as tell, reading(here, tell) as connection:
        if connection is None:
            raise UsageError(
                f"Nothing has been built in {source} yet ({here.database_shown})",
                "`metalayer env` shows where each environment is.",
            )
        with working("Copying") as told:
            return copy_months(connection, here, there, tables, months, told)


def _environment(name: str) -> Environment:
    for known in ENVIRONMENTS:
        if name == known:
            return known
    raise UsageError(
        f"There is no environment '{name}'", f"Environments are {', '.join(ENVIRONMENTS)}."
    )


def _list(*, as_json: bool) -> None:
    chosen = chosen_environment()
    found = [_look(each, is_chosen=each == chosen) for each in ENVIRONMENTS]
    if as_json:
        from metalayer.cli.formats import json_text

        sys.stdout.write(json_text([asdict(each) for each in found]) + "\n")
        return
    print_table(
        [Column("environment"), Column("home"), Column("database"), Column("landing zone")],
        [
            (
                f"{each.environment} *" if each.is_chosen else each.environment,
                each.home,
                each.database,
                each.landing,
            )
            for each in found
        ],
    )
    for each in found:
        if each.problem:
            print_warning(f"{each.environment}: {each.problem}")
        for file, variables in (each.set_by or {}).items():
            say(f"{each.environment}: {file} sets {', '.join(variables)}.")
    say(f"* is the one that commands work with: METALAYER_ENV is {chosen}.")


def _look(name: Environment, *, is_chosen: bool) -> _Found:
    try:
        settings, files = Settings.load_for(name), variables_in_files(name)
    except ConfigurationError as error:
        return _Found(name, is_chosen, problem=str(error))
    return _Found(
        name,
        is_chosen,
        str(settings.home),
        settings.database_shown,
        str(settings.landing),
        files,
    )
