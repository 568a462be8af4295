"""How MetaLayer speaks on a terminal: tables, progress, errors, next steps.

Results go to stdout, everything said about the work to stderr. On a terminal progress moves;
elsewhere (a file, a CI log) it is plain lines, and only where something takes a while. Whatever
comes from files or rows passes through `shown`, so that no control character reaches the terminal.

Does not belong here: what is asked of the warehouse, or what any command does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from metalayer.planning import Plan
    from metalayer.warehouse.build import MonthResult


def _typed() -> str:
    """How the user called MetaLayer; `./run` says so itself."""
    said = os.environ.get("METALAYER_PROG")
    if said or shutil.which("metalayer") or not sys.argv[0].endswith("metalayer"):
        return said or "metalayer"
    return sys.argv[0]


#: What to type again, in every hint.
PROG = _typed()
#: From this width on a table shows all its columns.
WIDE = 104
# Nothing folds lines in a file or a pipe, so there a table may be as wide as it likes.
_PIPED_WIDTH = 400
_QUIET_SECONDS = 2.0
_LINE_SECONDS = 5.0

Tell = Callable[[str], None]


def stdout() -> Console:
    """The console for results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console for progress, errors and hints."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    narrow = stream.isatty() or "COLUMNS" in os.environ
    return Console(
        file=stream, highlight=False, emoji=False, width=None if narrow else _PIPED_WIDTH
    )


def shown(value: object) -> str:
    """A value as one line of printable text: whatever else is in it appears escaped.

    >>> shown("two" + chr(10) + "lines" + chr(27) + "[2J")
    'two\\\\nlines\\\\x1b[2J'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def months_shown(months: Sequence[str]) -> str:
    """Months as a range: "2025-01..2025-03", one month as itself, none as "".

    Months that leave gaps are still shown from first to last.
    """
    if not months:
        return ""
    first, last = min(months), max(months)
    return first if first == last else f"{first}..{last}"


def ago(moment: datetime | None) -> str:
    """How long ago a moment was, in its largest unit: "5 min ago"; "never" for None."""
    if moment is None:
        return "never"
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


# --- tables ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a printed table.

    Attributes:
        header: its name; a line break in it keeps the column narrow.
        is_number: aligned to the right, with thousands separated.
        is_extra: left out where the terminal is narrower than `WIDE`.
    """

    header: str
    is_number: bool = False
    is_extra: bool = False


def print_table(
    columns: Sequence[Column], rows: Iterable[Sequence[Any] | str], *, title: str = ""
) -> None:
    """Print rows to stdout, right away.

    Args:
        rows: a sequence of cells as long as `columns`, or a text that heads the rows after it.
            A cell is anything; None is left empty, and a `Text` keeps its colours.
    """
    console = stdout()
    kept = [n for n, c in enumerate(columns) if not c.is_extra or console.width >= WIDE]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        border_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for n in kept:
        number = columns[n].is_number
        table.add_column(
            columns[n].header,
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold" if number else "ellipsis",
            vertical="bottom",
        )
    has_headings = False
    for row in rows:
        if isinstance(row, str):
            has_headings = True
            table.add_row(Text(row, style="bold cyan"))
        else:
            cells = [_cell(row[n], columns[n]) for n in kept]
            if has_headings and isinstance(cells[0], Text):
                cells[0] = Text("  ") + cells[0]
            table.add_row(*cells)
    console.print(table)


def _cell(value: Any, column: Column) -> Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return Text()
    if column.is_number and isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
        return Text(text, style="" if value else "dim", no_wrap=True)
    return Text(shown(value), no_wrap=True, overflow="ellipsis")


# --- sentences ---------------------------------------------------------------------------------


def say(line: str, style: str = "") -> None:
    """A line about the work, to stderr."""
    _print(stderr(), Text(shown(line), style=style))


def say_next(*steps: tuple[str, str], before: str = "") -> None:
    """What to type next, to stderr: (command without the program's name, what it does).

    Args:
        before: What goes before the program's name, like a variable that is set for it.
    """
    console = stderr()
    program = f"{before} {PROG}".lstrip()
    width = max(len(command) for command, _ in steps) + len(program) + 1
    for number, (command, purpose) in enumerate(steps):
        line = Text("next: " if number == 0 else "      ", style="bold")
        line.append(f"{program} {command}".ljust(width), style="not bold cyan")
        _print(console, line.append(f"  {purpose}", style="not bold dim"))


def print_error(message: str, next_step: str = "") -> None:
    """An error and its next step, to stderr. A message of several lines stays on several."""
    console = stderr()
    first, *more = message.rstrip().splitlines() or [""]
    _print(
        console,
        Text("error: ", style="bold red").append(shown(as_typed(first)), style="not bold default"),
    )
    for line in more:
        _print(console, Text("       " + shown(as_typed(line))))
    if next_step:
        _print(
            console,
            Text("next: ", style="bold").append(shown(as_typed(next_step)), style="not bold"),
        )


def print_warning(message: str) -> None:
    """Something the user should look at, to stderr. Several lines stay several."""
    console = stderr()
    first, *more = message.rstrip().splitlines() or [""]
    _print(
        console,
        Text("warning: ", style="bold yellow").append(
            shown(as_typed(first)), style="not bold default"
        ),
    )
    for line in more:
        _print(console, Text("         " + shown(as_typed(line))))


def as_typed(text: str) -> str:
    """The text with commands in it written as this user calls them."""
    return text.replace("`metalayer ", f"`{PROG} ")


def _print(console: Console, line: Text) -> None:
    # What was printed to stdout came first, also where both go to the same file.
    sys.stdout.flush()
    # Not folded in a pipe, where a line is what grep finds.
    console.print(line, soft_wrap=not console.is_terminal)


# --- progress ----------------------------------------------------------------------------------


@contextlib.contextmanager
def working(what: str) -> Iterator[Tell]:
    """Show that something is going on while the block runs.

    Yields:
        Called with a line, it replaces what is shown; it may be called after the block as well,
        from any thread.
    """
    console = stderr()

    def line(message: str) -> None:
        timer.cancel()
        console.print(
            Text(shown(as_typed(message)), style="dim"), soft_wrap=not console.is_terminal
        )

    timer = threading.Timer(_QUIET_SECONDS, line, [what])
    timer.daemon = True
    if not console.is_terminal or console.is_dumb_terminal:
        timer.start()
        try:
            yield line
        finally:
            timer.cancel()
        return
    has_ended = False
    with console.status(escape(what)) as status:
        try:
            yield lambda m: line(m) if has_ended else status.update(escape(shown(m)))
        finally:
            has_ended = True


def sparing(tell: Tell) -> Tell:
    """`tell`, for what happens many times a second: a log gets a line every few seconds."""
    if stderr().is_terminal:
        return tell
    lock = threading.Lock()
    said = time.monotonic()

    def tell_at_times(message: str) -> None:
        nonlocal said
        with lock:
            now = time.monotonic()
            if now - said < _QUIET_SECONDS:
                return
            said = now
        tell(message)

    return tell_at_times


class BuildProgress:
    """Months of a build as they land: a bar on a terminal, a line for each table in a log."""

    def __init__(self) -> None:
        self._console = stderr()
        self._lock = threading.Lock()
        self._expected = self._done = self._rows = 0
        # Of the table that is being built now.
        self._table, self._months, self._table_rows = "", 0, 0
        self._since = self._said = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:.0f}/{task.total:.0f} months"),
                TextColumn("{task.fields[rows]:,} rows"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("Planning", total=1, rows=0)

    def __enter__(self) -> BuildProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._tell()

    def started(self, plan: Plan) -> None:
        """A round begins."""
        with self._lock:
            self._expected = self._done + sum(len(months) for months in plan.affected.values())
            if self._bar is not None:
                self._bar.update(self._task, total=self._expected, description="Starting")

    def landed(self, result: MonthResult) -> None:
        """A month has landed."""
        with self._lock:
            if result.table != self._table:
                if self._bar is None:
                    self._tell()
                self._table, self._months, self._table_rows = result.table, 0, 0
                self._since = self._said = time.monotonic()
            rows = result.rows if result.outcome in ("published", "confirmed") else 0
            self._done += 1
            self._months += 1
            self._table_rows += rows
            self._rows += rows
            if self._bar is not None:
                self._bar.update(
                    self._task,
                    description=result.table,
                    completed=self._done,
                    total=max(self._expected, self._done),
                    rows=self._rows,
                )
            elif time.monotonic() - self._said > _LINE_SECONDS:
                self._tell()

    def _tell(self) -> None:
        if not self._months:
            return
        self._said = time.monotonic()
        say(
            f"{self._table:<26} {self._months:>4} month{'s' if self._months > 1 else ' '} "
            f"{self._table_rows:>12,} rows",
            style="dim",
        )
