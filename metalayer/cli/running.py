"""One build as the commands run it: the platform opened, deliveries registered, tables built.

Here is what `build` and `demo` share: the work with its progress, and the outcome added up by
table. Importing this module takes seconds, as it brings Dagster; printing is `build.py`'s.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import dagster as dg

from metalayer.assets.headless import BuildOutcome, build, dagster_instance
from metalayer.assets.resources import Warehouse, open_warehouse
from metalayer.catalog import LAYERS, catalog
from metalayer.console import BuildProgress, sparing, working
from metalayer.landing.ledger import Registration, register
from metalayer.settings import Settings
from metalayer.warehouse.acts import seal
from metalayer.warehouse.build import MonthResult
from metalayer.warehouse.phases import Phase, total
from metalayer.warehouse.server import warehouse_server


@dataclass
class TableOutcome:
    """What a build did to one table.

    Rows are those of the months that were built and published, or found to be published already as
    they are; a month that was not touched adds none. Records that landing could not read count as
    read and quarantined in bronze.
    """

    table: str
    months_published: int = 0
    months_unchanged: int = 0
    months_failed: int = 0
    rows_read: int = 0
    rows_published: int = 0
    rows_quarantined: int = 0
    rows_superseded: int = 0
    seconds: float = 0.0


@dataclass
class Build:
    """What was registered, what was built, and how long it all took."""

    registration: Registration
    outcome: BuildOutcome
    seconds: float
    tables: list[TableOutcome] = field(default_factory=list)
    phases: dict[Phase, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """Everything that failed, a sentence each."""
        latest = {(r.table, r.month): r for r in self.outcome.months}
        months = [
            f"{r.table} {r.month:%Y-%m} was not published: {r.problem}"
            for r in latest.values()
            if r.outcome == "failed"
        ]
        return [*months, *_once(self.outcome.failed_checks), *_once(self.outcome.errors)]

    @property
    def warnings(self) -> list[str]:
        """What should be looked at, though nothing failed."""
        drift = [f"{d.file}: {said}" for d in self.registration.deliveries for said in d.drift]
        return [*drift, *_once(self.outcome.warnings)]

    def as_json(self) -> dict[str, Any]:
        """The outcome for programs."""
        return {
            "succeeded": not self.failures,
            "seconds": round(self.seconds, 1),
            "phases": {phase: round(seconds, 3) for phase, seconds in self.phases.items()},
            "tables": self.tables,
            "deliveries": [
                {
                    "file": d.file,
                    "source": d.source,
                    "status": d.status,
                    "rows_read": d.rows_read,
                    "rows_rejected": d.rows_rejected,
                    "months": [f"{m:%Y-%m}" for m in d.months],
                    "extra_columns": d.extra_columns,
                    "missing_columns": d.missing_columns,
                    "drift": d.drift,
                    "reason": d.reason,
                }
                for d in self.registration.deliveries
            ],
            "skipped": [{"file": s.name, "reason": s.reason} for s in self.registration.skipped],
            "warnings": self.warnings,
            "failures": self.failures,
            "runs": self.outcome.runs,
        }


@contextlib.contextmanager
def platform(settings: Settings) -> Iterator[tuple[Warehouse, dg.DagsterInstance]]:
    """The warehouse and the Dagster instance of this home, for as long as the block lasts."""
    with contextlib.ExitStack() as stack:
        with working("Starting PostgreSQL") as tell:
            server = stack.enter_context(warehouse_server(settings, tell))
        with working("Preparing the tables") as tell:
            warehouse = stack.enter_context(open_warehouse(settings, tell))
            instance = stack.enter_context(dagster_instance(settings, server.dagster_url))
        yield warehouse, instance
        seal(warehouse.pool, settings)


def run(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    *,
    selected: set[str] | None = None,
    months: set[date] | None = None,
    force: bool = False,
    atomic: bool = False,
    registered: Callable[[Registration], None] | None = None,
) -> Build:
    """Register what has landed and build what is out of date, showing progress.

    Args:
        registered: told what was found in the landing zone, before anything is built.
    """
    began = time.monotonic()
    with working("Looking for new files") as tell:
        registration = register(
            warehouse.pool, warehouse.settings, catalog().sources, progress=sparing(tell)
        )
    reading = time.monotonic() - began
    if registered is not None:
        registered(registration)
    with BuildProgress() as progress:
        outcome = build(
            warehouse,
            instance,
            selected=selected,
            months=months,
            force=force,
            atomic=atomic,
            started=progress.started,
            landed=progress.landed,
        )
    done = Build(registration, outcome, time.monotonic() - began)
    # What no run has spent went into planning, between them.
    rest = done.seconds - sum(outcome.phases.values()) - reading
    done.phases = total([{"read": reading, "plan": max(rest, 0.0)}, outcome.phases])
    done.tables = _by_table(registration, outcome)
    return done


def _by_table(registration: Registration, outcome: BuildOutcome) -> list[TableOutcome]:
    tables = {name: TableOutcome(name) for name in catalog().specs}
    seen: dict[tuple[str, date], list[MonthResult]] = {}
    for result in outcome.months:
        seen.setdefault((result.table, result.month), []).append(result)
        tables[result.table].seconds += result.seconds
    for (table, _), results in seen.items():
        _add_month(tables[table], results)
    for delivery in registration.deliveries:
        bronze = tables[f"bronze.{catalog().sources[delivery.source].name}"]
        bronze.rows_read += delivery.rows_rejected
        bronze.rows_quarantined += delivery.rows_rejected
    touched = {table for table, _ in seen}
    shown = [t for t in tables.values() if t.table in touched or t.rows_read]
    return sorted(shown, key=lambda t: LAYERS.index(t.table.partition(".")[0]))


def _add_month(total: TableOutcome, results: list[MonthResult]) -> None:
    """Count a month, which a build may have come to several times: its rows are the last ones."""
    if results[-1].outcome == "failed":
        total.months_failed += 1
        return
    built = [r for r in results if r.outcome in ("published", "confirmed")]
    if any(r.outcome == "published" for r in built):
        total.months_published += 1
    else:
        total.months_unchanged += 1
    if built:
        total.rows_read += built[-1].rows_read
        total.rows_published += built[-1].rows
        total.rows_quarantined += built[-1].rows_quarantined
        total.rows_superseded += built[-1].rows_superseded


def _once(lines: list[str]) -> list[str]:
    """Each line once: a build that goes in rounds says some things again."""
    return list(dict.fromkeys(lines))
