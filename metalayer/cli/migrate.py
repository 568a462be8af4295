"""The command `migrate`: what a changed contract does to the tables, as text, and doing it.

The plan is SQL on stdout, to be read in a review; what is said about it goes to stderr. Making the
plan is `metalayer.warehouse.migrate`'s.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metalayer.cli.audit import Why
from metalayer.cli.production import YesProd, confirm_migration
from metalayer.console import print_error, say, say_next, shown, stdout, working

if TYPE_CHECKING:
    from metalayer.errors import ContractError
    from metalayer.settings import Settings
    from metalayer.warehouse.migrate import Migration
    from metalayer.warehouse.steps import Step


def migrate(
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the statements, and change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of SQL.")] = False,
    yes_prod: YesProd = False,
    why: Why = None,
) -> None:
    """Bring the tables in line with the contracts; `build` does it too, before anything else.

    Columns are added, widened, and dropped where nobody reads them, in place and in one
    transaction. What would lose a value or break a SELECT is refused, and then nothing is changed.
    """
    from metalayer.settings import Settings

    settings = Settings.load()
    with working("Loading the tables"):
        from metalayer.catalog import catalog

        catalog()
    if not plan:
        confirm_migration(settings, yes=yes_prod)
    found = _planned(settings) if plan else _applied(settings)
    if as_json:
        _write_json(found, is_done=not plan)
    else:
        _print(found, is_done=not plan)
    if found.refusals:
        raise typer.Exit(1)


def _planned(settings: Settings) -> Migration:
    from metalayer.catalog import catalog
    from metalayer.inspection import reading
    from metalayer.warehouse.migrate import plan_migration

    with reading(settings) as connection:
        specs = list(catalog().specs.values())
        if connection is None:
            return plan_migration(None, specs, catalog().selects)
        with connection.cursor() as cursor:
            return plan_migration(cursor, specs, catalog().selects)


def _applied(settings: Settings) -> Migration:
    from metalayer.catalog import catalog
    from metalayer.warehouse.acts import seal
    from metalayer.warehouse.migrate import prepare
    from metalayer.warehouse.pool import transaction, warehouse_pool

    with working("Starting PostgreSQL") as tell, warehouse_pool(settings, tell) as pool:
        with transaction(pool) as connection:
            done = prepare(connection, list(catalog().specs.values()), catalog().selects)
        seal(pool, settings)
        return done


def _print(found: Migration, *, is_done: bool) -> None:
    for refusal in found.refusals:
        print_error(refusal.message, refusal.next_step)
    if not found.steps:
        if not found.refusals:
            say("Nothing to migrate: the tables are as the contracts declare them.")
        return
    console = stdout()
    for number, step in enumerate(found.steps):
        lines = [f"{step.about}: {s}" for s in step.does] if is_done else _text(step)
        if number and not is_done:
            console.print()
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)
    say(_summary(found.steps, "Done" if is_done else "Plan"))
    if not is_done and not found.refusals:
        say_next(("migrate", "runs these statements, in one transaction"))
    elif is_done:
        say_next(("build", "builds the months that the change has made out of date"))


def _text(step: Step) -> list[str]:
    """The step as a person reviews it: lines of a psql script with comments."""
    lines = [f"-- {step.about}", *(f"-- {shown(sentence)}" for sentence in step.does)]
    if step.loses_data:
        lines.append("-- Data is lost by this.")
    if step.scripts:
        # Hundreds of lines that come with MetaLayer: psql's word for reading them.
        return [*lines, *(f"\\i metalayer/warehouse/{name}" for name in step.scripts)]
    return [*lines, *map(shown, step.sql.splitlines())]


def _summary(steps: tuple[Step, ...], word: str) -> str:
    created = [s.about for s in steps if s.kind == "create" and "." in s.about]
    altered = {s.about for s in steps if s.kind == "alter"}
    parts = []
    if created:
        parts.append(f"{_tables(len(created))} created")
    if altered:
        parts.append(f"{_tables(len(altered))} altered")
    rows = sum(s.rows for s in steps)
    if rows:
        months = sum(s.months for s in steps)
        parts.append(f"{months:,} months with {rows:,} rows written anew")
    elif altered:
        parts.append("no row written")
    if any(s.loses_data for s in steps):
        parts.append("columns dropped with what they hold")
    return f"{word}: {', '.join(parts) or 'only descriptions and views change'}."


def _tables(count: int) -> str:
    return f"{count} table" if count == 1 else f"{count} tables"


def _write_json(found: Migration, *, is_done: bool) -> None:
    from metalayer.cli.formats import json_text

    answer: dict[str, Any] = {
        "done": is_done,
        "steps": [
            {
                "about": step.about,
                "kind": step.kind,
                "does": step.does,
                "sql": step.sql,
                "months_written": step.months,
                "rows_written": step.rows,
                "bytes_written": step.bytes,
                "loses_data": step.loses_data,
            }
            for step in found.steps
        ],
        "refused": [_refused(error) for error in found.refusals],
    }
    sys.stdout.write(json_text(answer) + "\n")


def _refused(error: ContractError) -> dict[str, str]:
    return {"message": error.message, "next_step": error.next_step}
