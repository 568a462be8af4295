"""That a command works with production: said first, and destroying nothing without `--yes-prod`.

Commands ask `confirm` before they connect. Runs that the web interface starts are no commands; who
may start them, access to that interface decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.console import say
from metalayer.errors import UsageError
from metalayer.settings import ENVIRONMENTS, PRODUCTION

if TYPE_CHECKING:
    from metalayer.settings import Settings

#: An option of commands that destroy something.
YesProd = Annotated[bool, typer.Option("--yes-prod", help="Do it although METALAYER_ENV is prod.")]


def say_environment(settings: Settings) -> None:
    """Which environment a command works with, to stderr, where that is not the ordinary one."""
    if settings.env != ENVIRONMENTS[0]:
        say(f"Environment: {settings.env}", "bold")


def confirm(settings: Settings, what: str, *, yes: bool) -> None:
    """Let a command destroy something, unless that is in production and nobody said so.

    Args:
        what: What it would do, as a sentence goes on: "erases a customer".
        yes: Whether `--yes-prod` was given.

    Raises:
        UsageError: naming the environment, its database, and what would have been done.
    """
    if settings.env == PRODUCTION and not yes:
        raise UsageError(
            f"This {what}, and METALAYER_ENV is {PRODUCTION} ({settings.database_shown}); nothing "
            "was done",
            "Add --yes-prod if that is meant, or set METALAYER_ENV to another environment.",
        )


def confirm_migration(settings: Settings, *, yes: bool) -> None:
    """Let tables follow the contracts, unless that drops or rewrites something in production.

    Raises:
        UsageError: naming the tables.
    """
    if settings.env != PRODUCTION or yes:
        return
    from metalayer.catalog import catalog
    from metalayer.inspection import reading
    from metalayer.warehouse.migrate import is_prepared, plan_migration

    specs, selects = list(catalog().specs.values()), catalog().selects
    with reading(settings) as connection:
        if connection is None:
            return
        with connection.cursor() as cursor:
            if is_prepared(cursor, specs, selects):
                return
            plan = plan_migration(cursor, specs, selects)
    touched = sorted({step.about for step in plan.steps if step.loses_data or step.rows})
    if touched:
        raise UsageError(
            f"Changed contracts drop columns or rewrite rows of {', '.join(touched)}, and "
            f"METALAYER_ENV is {PRODUCTION} ({settings.database_shown}); nothing was done",
            "Look at `metalayer migrate --plan`, then run `metalayer migrate --yes-prod`.",
        )
