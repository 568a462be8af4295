"""The verbs that tests tell their stories with: land files, build, look at rows.

Everything behind them is real: files in a folder, Dagster runs, a PostgreSQL database.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from psycopg2 import sql

from metalayer.assets.headless import BuildOutcome, build
from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.governance.sealing import Opener
from metalayer.landing.ledger import Registration, register
from metalayer.landing.withdraw import Withdrawal, withdraw
from metalayer.planning import Plan, preview
from metalayer.reading import parse_months
from metalayer.warehouse.ddl import stored_name
from metalayer.warehouse.keys import opener
from metalayer.warehouse.pool import transaction

#: Landed files get times from here on, a second apart, so that none is too young to be read.
_FIRST_LANDING = time.mktime((2025, 7, 1, 0, 0, 0, 0, 0, 0))


@dataclass
class Platform:
    """A warehouse, a landing zone and a Dagster instance of a test's own."""

    warehouse: Warehouse
    instance: dg.DagsterInstance
    today: date = date(2026, 6, 15)
    _landed: int = field(default=0)

    @property
    def landing(self) -> Path:
        return self.warehouse.settings.landing

    def land(self, name: str, content: str | bytes) -> Path:
        """Write a file into the landing zone, later than every one before it."""
        path = self.landing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self._landed += 1
        os.utime(path, (_FIRST_LANDING + self._landed,) * 2)
        return path

    def land_files(self, files: Iterable[Path], root: Path) -> list[Path]:
        """Copy generated files, keeping their place below `root`."""
        return [self.land(str(f.relative_to(root)), f.read_bytes()) for f in files]

    def register(self) -> Registration:
        return register(
            self.warehouse.pool,
            self.warehouse.settings,
            catalog().sources,
            today=self.today,
            still_seconds=0.0,
        )

    def withdraw(self, name: str) -> Withdrawal:
        """Take a landed file out."""
        return withdraw(
            self.warehouse.pool,
            self.warehouse.settings,
            catalog().sources,
            name,
            today=self.today,
        )

    def plan(self, *tables: str, months: str | None = None, force: bool = False) -> Plan:
        """What `build` would do now."""
        found, _ = preview(
            self.warehouse.pool,
            self.warehouse.settings,
            set(tables) or None,
            set(parse_months(months)) if months else None,
            force=force,
            today=self.today,
        )
        return found

    def build(
        self,
        *tables: str,
        months: str | None = None,
        force: bool = False,
        atomic: bool = False,
    ) -> BuildOutcome:
        """Register what has landed, then build `tables` (none: all)."""
        self.register()
        return build(
            self.warehouse,
            self.instance,
            selected=set(tables) or None,
            months=set(parse_months(months)) if months else None,
            force=force,
            atomic=atomic,
        )

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        with transaction(self.warehouse.pool) as connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())

    def one(self, query: str, *values: Any) -> Any:
        """The single value of a query."""
        ((value,),) = self.ask(query, *values)
        return value

    def frame(self, table: str, *, stored: bool = False) -> pl.DataFrame:
        """A whole table, in plain, with the contract's exact types."""
        spec = catalog().spec(table)
        columns = spec.stored if stored else spec.columns
        name = stored_name(spec) if stored else sql.Identifier(spec.layer, spec.name)
        with transaction(self.warehouse.pool) as connection, connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("select {} from {}").format(
                    sql.SQL(", ").join(sql.Identifier(c.name) for c in columns), name
                )
            )
            rows = cursor.fetchall()
        frame = pl.DataFrame(
            rows, schema={c.name: c.dtype for c in columns}, orient="row", strict=False
        )
        opened = self._opener().opened
        return frame.with_columns(
            pl.col(c.name).map_elements(
                lambda text: date.fromisoformat(opened(text)), return_dtype=pl.Date
            )
            if c.sealed_type == "date"
            else pl.col(c.name).map_elements(opened, return_dtype=pl.String)
            for c in columns
            if c.sealed_type is not None and spec.layer != "bronze"
        )

    def plain(self, text: str) -> str:
        """A text with what is encrypted in it opened."""
        return self._opener().opened(text)

    def _opener(self) -> Opener:
        with transaction(self.warehouse.pool) as connection, connection.cursor() as cursor:
            return opener(cursor, self.warehouse.settings)

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's entries, in order."""
        columns = "file, status, rows_read, rows_loaded, rows_rejected, rows_superseded, reason"
        rows = self.ask(f"select {columns} from meta.ledger order by delivery_id")
        return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]

    def rejects(self, table: str | None = None) -> list[tuple[Any, ...]]:
        """(table, month, line, column, rule, value) of quarantined rows, in plain."""
        rows = self.ask(
            "select table_name, to_char(month, 'YYYY-MM'), line, column_name, rule, value "
            "from meta.quarantine where %s::text is null or table_name = %s "
            "order by table_name, month, delivery_id, line",
            table,
            table,
        )
        opened = self._opener().opened
        return [(*row, value and opened(value)) for *row, value in rows]

    def balances(self) -> bool:
        """Whether every file, and every month of every table, accounts for its rows."""
        return not self.ask(
            "select file from meta.ledger "
            "where rows_read <> rows_loaded + rows_rejected + rows_superseded union all "
            "select table_name from meta.versions where is_current "
            "and rows_read <> rows + rows_quarantined + rows_superseded"
        )
