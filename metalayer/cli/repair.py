"""The way of a quarantined row out of it: `rejects --export`, and `land --repair`.

Belongs here: calling and printing. What a repair is, `metalayer.landing.repair` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from metalayer.cli.build import LOADING
from metalayer.console import say, say_next, shown, stdout, working
from metalayer.errors import UsageError
from metalayer.wording import counted

if TYPE_CHECKING:
    from psycopg2 import sql

    from metalayer.landing.repair import Landed
    from metalayer.settings import Settings


def export_rejects(connection: Any, settings: Settings, wanted: sql.Composable, path: Path) -> None:
    """Write quarantined rows as a CSV to mend, and say what is in it and what is not."""
    from metalayer.landing.export import export_quarantined

    with working("Reading the quarantine"):
        done = export_quarantined(connection, settings, wanted, path)
    if done.rows:
        stdout().print(
            Text(f"{counted(done.rows, 'row')} -> {shown(path)} (readable by you only)"),
            soft_wrap=True,
        )
    else:
        say("No quarantined row that could be mended by itself.")
    if done.unsplit:
        say(
            f"{done.unsplit:,} of them are whole lines in _raw, as their fields cannot be told "
            "apart: fill the columns in."
        )
    if done.outdated:
        say(f"No longer counted, and taken out by the next build: {counted(done.outdated, 'row')}.")
    if done.made:
        say(
            f"Made by a SELECT: {counted(done.made, 'row')}. Mend what they are made from, the "
            "SELECT or the contract."
        )
    if done.rows:
        say_next((f"land --repair {path}", "takes the rows that you have changed"))


def land_repairs(files: Sequence[Path], settings: Settings) -> None:
    """Land what was changed in files that `export_rejects` wrote."""
    with working(LOADING):
        from metalayer.catalog import catalog
        from metalayer.inspection import reading
        from metalayer.landing.repair import land_repair
        from metalayer.warehouse.acts import record_now

    with working("Starting PostgreSQL") as tell, reading(settings, tell) as connection:
        if connection is None:
            raise UsageError(
                "Nothing has been built yet, so there is nothing to mend", "Start with `build`"
            )
        for path in files:
            # Each is said as it lands: one that is refused takes nothing back.
            landed = land_repair(connection, settings, catalog().sources, path)
            for name in landed.names:
                record_now(settings, "repair", name, {"landed": True})
            _say(path, landed, settings)


def _say(path: Path, landed: Landed, settings: Settings) -> None:
    for name in landed.names:
        line = Text(f"{shown(path)} -> {shown(settings.landing / name)}")
        stdout().print(line, soft_wrap=True)
    rows = counted(landed.rows, "row")
    say(f"{rows} to mend; {landed.unchanged:,} left out, as they are unchanged.")
    if landed.names:
        say_next(("build", "puts them in their places"))
