"""A home of a test's own, with a server that may be killed, and its states to go back to.

Belongs here: landing files, looking at everything a reader or a keeper of the books can see, and
keeping and bringing back a whole warehouse. What is done to it belongs to the tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql

from metalayer.catalog import catalog
from metalayer.outages import outage
from metalayer.settings import Settings
from metalayer.warehouse.ddl import identifiers, stored_name
from metalayer.warehouse.server import WAREHOUSE_DATABASE, warehouse_server
from metalayer_tests.integration.killing import Commands

ALL = tuple(catalog().specs)
#: Landed files get times from here on, a second apart: none is too young to be read.
_FIRST_LANDING = 1_750_000_000
_PAUSE_SECONDS = 0.05

LEFTOVERS = (
    "select c.relname from pg_class as c where c.relnamespace = 'months'::regnamespace "
    "and c.relkind in ('r', 'p') and c.relname not like '%\\_unknown' "
    "and not exists (select from meta.versions as v where v.leaf = c.relname)"
)
#: Bronze names its deliveries, and a killed registration leaves a gap in their numbers.
CURRENT = (
    "select table_name, month, case when table_name not like 'bronze.%' then data_version end, "
    "rows_read, rows, rows_quarantined, rows_superseded, is_checked from meta.versions "
    "where is_current order by 1, 2"
)
LEDGER = (
    "select file, sha256, status, rows_read, rows_loaded, rows_rejected, rows_superseded "
    "from meta.ledger order by 1, 2"
)
REJECTS = (
    "select table_name, month, line, column_name, rule, value from meta.quarantine order by 1, 2, 3"
)
UNBALANCED = (
    "select file from meta.ledger where rows_read <> rows_loaded + rows_rejected + rows_superseded "
    "union all select table_name from meta.versions "
    "where is_current and rows_read <> rows + rows_quarantined + rows_superseded"
)

Months = dict[tuple[str, date], tuple[int, int]]
"""(table, month) -> how many rows, and their fingerprint."""


@dataclass(frozen=True)
class Kept:
    """What a build that nobody disturbed has come to: the months, and what is recorded of them."""

    months: Months
    recorded: list[Any]


@dataclass
class Ground:
    """A home with a server of its own, its warehouse as it was before and after each story."""

    settings: Settings
    commands: Commands
    url: str
    kept: dict[str, Kept] = field(default_factory=dict)
    _landed: int = 0

    @contextlib.contextmanager
    def connection(self, database: str = WAREHOUSE_DATABASE) -> Iterator[Any]:
        url = self.url.replace(f"/{WAREHOUSE_DATABASE}?", f"/{database}?")
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor

    def keep(self, name: str) -> None:
        """Keep warehouse, parses and landing zone as they are now."""
        with self.connection("postgres") as cursor:
            _copy_database(cursor, WAREHOUSE_DATABASE, f"{WAREHOUSE_DATABASE}_{name}")
        for folder in (self.settings.parsed_dir, self.settings.landing):
            kept = self.settings.home.parent / f"{folder.name}_{name}"
            if folder.is_dir():
                shutil.copytree(folder, kept, copy_function=shutil.copy2)

    def back_to(self, name: str) -> None:
        """Make them what they were; Dagster goes on with what it has come to."""
        with warehouse_server(self.settings), self.connection("postgres") as cursor:
            cursor.execute(f"drop database if exists {WAREHOUSE_DATABASE} with (force)")
            _copy_database(cursor, f"{WAREHOUSE_DATABASE}_{name}", WAREHOUSE_DATABASE)
        for folder in (self.settings.parsed_dir, self.settings.landing):
            shutil.rmtree(folder, ignore_errors=True)
            kept = self.settings.home.parent / f"{folder.name}_{name}"
            if kept.is_dir():
                shutil.copytree(kept, folder, copy_function=shutil.copy2)

    def land(self, files: Mapping[str, str]) -> None:
        """Write files into the landing zone, later than every one before them."""
        for name, content in files.items():
            path = self.settings.landing / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            self._landed += 1
            os.utime(path, (_FIRST_LANDING + self._landed,) * 2)

    def build_and_keep(self, name: str, files: Mapping[str, str], tables: Sequence[str]) -> None:
        """Land files, build with nobody disturbing it, and keep all there is then as `name`."""
        self.land(files)
        ended = self.commands.run("build", *tables)
        assert ended.code == 0, ended.said
        self.kept[name] = self.state(ALL)
        self.keep(name)

    def state(self, tables: Sequence[str]) -> Kept:
        """All there is now of the tables, to compare with."""
        return Kept(self.visible(tables), self.recorded())

    def visible(self, tables: Sequence[str]) -> Months:
        """What a reader sees of every month of the tables, in one statement."""
        with self.connection() as cursor:
            return look(cursor, tables)

    def recorded(self) -> list[Any]:
        """What the ledger, the versions and the quarantine say."""
        with self.connection() as cursor:
            found = []
            for query in (CURRENT, LEDGER, REJECTS):
                cursor.execute(query)
                found.append(cursor.fetchall())
            return found

    def ask(self, query: str) -> list[Any]:
        with self.connection() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())


def _copy_database(cursor: Any, old: str, new: str) -> None:
    names = map(sql.Identifier, (new, old))
    cursor.execute(sql.SQL("create database {} template {} strategy file_copy").format(*names))


def everything(tables: Sequence[str]) -> sql.Composed:
    """Rows and fingerprint of each month of the tables, but for the numbers of deliveries."""
    parts = [
        sql.SQL(
            "select {table}, date_trunc('month', {month})::date, count(*), "
            "bit_xor(hashtextextended(row({columns})::text, 0)) from {name} group by 2"
        ).format(
            table=sql.Literal(spec.full_name),
            month=sql.Identifier(spec.month_column),
            columns=identifiers(c.name for c in spec.stored if c.name != "_delivery_id"),
            name=stored_name(spec),
        )
        for spec in (catalog().spec(table) for table in tables)
    ]
    return sql.SQL(" union all ").join(parts)


def look(cursor: Any, tables: Sequence[str]) -> Months:
    """What a reader sees of every month of the tables, in one statement."""
    cursor.execute(everything(tables))
    return {(table, month): (rows, print_) for table, month, rows, print_ in cursor}


@contextlib.contextmanager
def open_ground(home: Path, landing: Path) -> Iterator[Ground]:
    """A ground whose server runs for as long as the `with` lasts, unless it is killed.

    As long as this process uses the server no command stops it, and whoever finds it killed starts
    it again. It forgets on a power cut, which tests don't mind.
    """
    settings = Settings(_env_file=None, home=home, landing=landing)
    home.mkdir(mode=0o711)
    with warehouse_server(settings) as server:
        url = server.warehouse_url.replace("+psycopg2", "", 1)
        ground = Ground(settings, Commands(settings.home, settings.landing), url)
        with ground.connection("postgres") as cursor:
            for setting in ("fsync = off", "autovacuum = off"):
                cursor.execute(f"alter system set {setting}")
            cursor.execute("select pg_reload_conf()")
        try:
            yield ground
        finally:
            ground.commands.close()


class Reader(threading.Thread):
    """Looks at some tables again and again, and keeps what no whole month ever was.

    Args:
        wholes: States of the tables; of each month it takes any of them for whole.
        as_one: Not just each month, but all of them together must be one of the states.
    """

    def __init__(
        self, ground: Ground, tables: Sequence[str], wholes: Sequence[Months], as_one: bool
    ) -> None:
        super().__init__()
        self._ground = ground
        self._tables = tables
        self._wholes = [{m for m in whole.items() if m[0][0] in tables} for whole in wholes]
        self._as_one = as_one
        self._ended = threading.Event()
        self.looks = 0
        self.wrong: list[Any] = []

    def run(self) -> None:
        while not self._ended.wait(_PAUSE_SECONDS):
            try:
                self._look_on()
            except (psycopg2.DatabaseError, psycopg2.InterfaceError) as error:
                # While PostgreSQL is dead or recovering there is nothing to see.
                if outage(error) is None:
                    raise

    def _look_on(self) -> None:
        with self._ground.connection() as cursor:
            while not self._ended.wait(_PAUSE_SECONDS):
                seen = set(look(cursor, self._tables).items())
                self.looks += 1
                if self._as_one and seen not in self._wholes:
                    self.wrong.append(seen)
                self.wrong += seen.difference(*self._wholes)

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextlib.contextmanager
def reading(
    ground: Ground, tables: Sequence[str], *wholes: Months, as_one: bool = False
) -> Iterator[Reader]:
    reader = Reader(ground, tables, wholes, as_one)
    reader.start()
    try:
        yield reader
    finally:
        reader.end()


@contextlib.contextmanager
def report(ground: Ground, tables: Sequence[str]) -> Iterator[None]:
    """A report that has read from the tables and is not done."""
    with contextlib.suppress(psycopg2.InterfaceError), ground.connection() as cursor:
        cursor.execute("begin")
        cursor.execute(everything(tables))
        yield
