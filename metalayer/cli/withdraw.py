"""`land --withdraw`: landed files taken out, and what that changes.

The work is `metalayer.landing.withdraw`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from metalayer.console import months_shown, say, say_next, shown, stdout, working
from metalayer.wording import counted

if TYPE_CHECKING:
    from metalayer.landing.withdraw import Withdrawal
    from metalayer.settings import Settings


def withdraw_files(names: Sequence[str], settings: Settings) -> None:
    """Take the files out, one after the other, and say what leaves."""
    from metalayer.cli.build import LOADING

    with working(LOADING):
        from metalayer.assets.resources import open_warehouse
        from metalayer.catalog import catalog
        from metalayer.landing.withdraw import withdraw
        from metalayer.warehouse.acts import seal
    with open_warehouse(settings) as warehouse:
        for name in names:
            _say(withdraw(warehouse.pool, settings, catalog().sources, name))
        seal(warehouse.pool, settings)
    say("Earlier versions of a file do not come back. Land it again to take it in again.")
    say_next(("build", "brings the tables in line"))


def _say(done: Withdrawal) -> None:
    months = sorted({f"{m:%Y-%m}" for d in done.deliveries for m in d.months})
    if done.rows:
        rows = counted(done.rows, "row")
        told = f"is withdrawn: the next build takes out its {rows} of {months_shown(months)}"
    elif done.deliveries:
        told = "is withdrawn; none of its rows counted"
    elif done.moved_to is not None:
        told = "is withdrawn before it was read"
    else:
        told = "was withdrawn already"
    stdout().print(Text(f"{shown(done.file)} {told}"), soft_wrap=True)
    for copy in done.copies:
        say(f"{copy} has the same content and is loaded in its place.")
    if done.moved_to is not None:
        say(f"The file is kept as {done.moved_to}")
