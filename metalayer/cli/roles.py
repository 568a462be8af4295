"""The command `roles`: the grants that the contracts ask for, as text, and making them.

The plan is SQL on stdout; what is said about it goes to stderr. What is granted to whom is
`metalayer.governance.roles`'.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm
from metalayer.console import say, say_next, shown, stdout, working

if TYPE_CHECKING:
    from metalayer.governance.roles import RolesPlan
    from metalayer.settings import Settings


class Action(StrEnum):
    """What to do with the roles."""

    apply = "apply"


def roles(
    action: Annotated[Action, typer.Argument(help="Make the grants what the contracts say.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the statements, and change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of SQL.")] = False,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Make roles and grants exactly what the contracts say; surplus ones are taken back.

    The roles are metalayer_analyst, _bi, _engineer, _steward and _pipeline: groups without login,
    of which people's own roles are made members. A table is closed until its contract names
    readers.
    """
    from metalayer.settings import Settings

    assert action is Action.apply
    settings = Settings.load()
    if not plan:
        confirm(settings, "takes back every grant that no contract gives", yes=yes_prod)
    with working("Loading the tables"):
        from metalayer.catalog import catalog

        catalog()
    found = _planned(settings) if plan else _applied(settings)
    if as_json:
        _write_json(found, is_done=not plan)
    else:
        _print(found, is_done=not plan)


def _planned(settings: Settings) -> RolesPlan:
    from metalayer.catalog import catalog
    from metalayer.errors import WarehouseError
    from metalayer.governance.roles import plan_roles
    from metalayer.inspection import reading

    with reading(settings) as connection:
        if connection is None:
            raise WarehouseError(
                "There are no tables yet to grant anything on",
                "Make them with `metalayer migrate`, or build",
            )
        with connection.cursor() as cursor:
            return plan_roles(cursor, list(catalog().specs.values()))


def _applied(settings: Settings) -> RolesPlan:
    from metalayer.catalog import catalog
    from metalayer.governance.roles import apply_roles
    from metalayer.warehouse.acts import seal
    from metalayer.warehouse.migrate import prepare
    from metalayer.warehouse.pool import transaction, warehouse_pool

    specs = list(catalog().specs.values())
    with working("Starting PostgreSQL") as tell, warehouse_pool(settings, tell) as pool:
        with transaction(pool) as connection:
            # What is granted on must be there, and masked.
            prepare(connection, specs, catalog().selects)
            # Grants are recorded, which `prepare` allows in another transaction only.
            connection.commit()
            done = apply_roles(connection, specs)
        seal(pool, settings)
        return done


def _print(found: RolesPlan, *, is_done: bool) -> None:
    if not found.statements:
        say("Nothing to do: roles and grants are as the contracts say.")
        return
    console = stdout()
    for statement in found.statements:
        console.print(f"{shown(statement)};", markup=False, soft_wrap=True)
    say(
        f"{'Done' if is_done else 'Plan'}: {len(found.missing_roles)} roles made, "
        f"{len(found.revoked)} privileges taken back, {len(found.granted)} granted."
    )
    if not is_done:
        say_next(("roles apply", "runs these statements, in one transaction"))


def _write_json(found: RolesPlan, *, is_done: bool) -> None:
    from metalayer.cli.formats import json_text

    answer = {
        "done": is_done,
        "missing_roles": found.missing_roles,
        "revoked": found.revoked,
        "granted": found.granted,
        "statements": found.statements,
    }
    sys.stdout.write(json_text(answer) + "\n")
