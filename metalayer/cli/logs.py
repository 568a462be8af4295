"""The command `logs`: what was done, by which run, and why something failed.

Starts in a fraction of a second, like all that only read. What stands in the log, `metalayer.logs`
says.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from metalayer.console import say, say_next, shown, stdout
from metalayer.logs.reading import Wanted, lines, new_lines

_SHOWN = 50
_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red"}
#: Said at the beginning of a line, or below it.
_APART = {"timestamp", "level", "event", "run", "command", "error_class", "next_step"}
#: An id of a run is told by so many characters.
_ID = 8


class Level(StrEnum):
    """The least grave lines that are shown."""

    info = "info"
    warning = "warning"
    error = "error"


def logs(
    run: Annotated[
        str, typer.Option("--run", metavar="ID", help="Of this run; the first characters will do.")
    ] = "",
    table: Annotated[
        str, typer.Option("--table", help="About this table, like silver.orders.")
    ] = "",
    month: Annotated[
        str, typer.Option("--month", metavar="YYYY-MM", help="About this month.")
    ] = "",
    level: Annotated[Level, typer.Option("--level", help="No less grave than this.")] = Level.info,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From then on: 2025-07-01 (UTC).")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="At most so many, the last ones (50; of a run all)."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines, until Ctrl-C.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Show what builds and sensors did: files taken in, months published, and why what failed.

    Each failure has a class: transient (tried again by itself), data, configuration, capacity or
    bug; below it stands what to do next.
    """
    from metalayer.audit_log import parse_since
    from metalayer.history import month_named
    from metalayer.settings import Settings

    of_month = f"{month_named(month):%Y-%m}" if month else ""
    begin = parse_since(since) if since else None
    wanted = Wanted(run, table, of_month, level.value, begin)
    path = Settings.load().log_file
    most = limit or (None if run else _SHOWN)
    found = lines(path, wanted, most)
    if not found and not follow:
        _say_nothing(path, wanted)
    _print(found, as_json=as_json)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            for line in new_lines(path, wanted):
                _print([line], as_json=as_json)


def _say_nothing(path: Path, wanted: Wanted) -> None:
    from metalayer.errors import UsageError

    if not lines(path, Wanted(), 1):
        say(f"Nothing has been logged yet in {path}.")
        say_next(("build", "takes files in and builds tables, and logs what it does"))
    elif wanted.run and not lines(path, Wanted(run=wanted.run), 1):
        ids = [str(line["run"])[:_ID] for line in lines(path, Wanted()) if "run" in line]
        last = list(dict.fromkeys(reversed(ids)))[:3]
        known = f"The last runs in it are {', '.join(last)}." if last else "It has no run."
        raise UsageError(
            f"There is no run '{wanted.run}' in the log {path}",
            f"{known} Earlier ones are in the web interface: `metalayer up`.",
        )
    else:
        say("The log has no such lines.")


def _print(found: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    for line in found:
        if as_json:
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        else:
            _print_line(line)
    sys.stdout.flush()


def _print_line(line: dict[str, Any]) -> None:
    console = stdout()
    at = datetime.fromisoformat(str(line["timestamp"]))
    level = str(line.get("level", ""))
    style = _STYLES.get(level, "")
    said = Text(f"{at:%Y-%m-%d %H:%M:%S} ", style="dim")
    said.append(f"{level:<7} ", style=style or "not dim")
    said.append(f"{str(line.get('run', ''))[:_ID]:<{_ID}} ", style="not dim cyan")
    said.append(shown(line["event"]), style=f"not dim {style}".strip())
    rest = "".join(f"  {name}={shown(line[name])}" for name in line if name not in _APART)
    console.print(said.append(rest, style="dim"), soft_wrap=True)
    if "error_class" in line:
        why = f"{shown(line['error_class'])}. {shown(line.get('next_step', ''))}"
        console.print(Text(f"{'':<20}{why}", style="dim"), soft_wrap=True)
