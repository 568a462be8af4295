"""What a run needs from outside: the settings, a running server, a pool of connections."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import dagster as dg
from sqlalchemy import Engine

from metalayer.assets.breaking import RETRIES
from metalayer.assets.keys import range_of, tables_of
from metalayer.assets.runlog import logged_run
from metalayer.catalog import catalog, is_outdated
from metalayer.failure import failure_of
from metalayer.logs.writing import log_to_file
from metalayer.settings import Settings
from metalayer.warehouse.acts import record, seal
from metalayer.warehouse.build import MonthResult
from metalayer.warehouse.keys import NEXT, ensure_key, key_states
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.phases import Profile, in_words
from metalayer.warehouse.pool import transaction, warehouse_pool

#: Where the time of a run went, see `metalayer.warehouse.phases`.
SECONDS_TAG = "metalayer/seconds"
_log = logging.getLogger(__name__)
#: Why a run was started; whoever launches it in the UI may say so.
WHY_TAG = "metalayer/why"


@dataclass(frozen=True)
class Warehouse:
    """An open warehouse whose tables are as the contracts declare them.

    Attributes:
        pool: Connections, as many as `settings.workers` and one more.
        settings: The settings it was opened with.
        landed: Told each month's result as it lands; a command shows its progress by it.
        profile: Where the time of the run goes that it was opened for, or lent to.
    """

    pool: Engine
    settings: Settings
    landed: Callable[[MonthResult], None] | None = None
    profile: Profile = field(default_factory=Profile, compare=False)


@contextlib.contextmanager
def open_warehouse(settings: Settings, progress: Any = None) -> Iterator[Warehouse]:
    """A running server, its tables in line with the catalog, and a pool for `settings.workers`."""
    # One connection more than workers: checks and the ledger ask beside the builds.
    with warehouse_pool(settings, progress, settings.workers + 1) as pool:
        log_to_file(settings)
        with transaction(pool) as connection:
            prepare(connection, list(catalog().specs.values()), catalog().selects, is_outdated)
            connection.commit()
            with connection.cursor() as cursor:
                if any(spec.sealed for spec in catalog().specs.values()):
                    # What is refused for want of a key is refused before anything is written.
                    ensure_key(cursor, settings)
                is_unfinished = NEXT in key_states(cursor)
        warehouse = Warehouse(pool, settings)
        if is_unfinished:
            from metalayer.governance.rotation import finish_interrupted

            finish_interrupted(warehouse, catalog())
        yield warehouse


@contextlib.contextmanager
def lent_to_runs(warehouse: Warehouse) -> Iterator[None]:
    """Let the runs that this process executes use `warehouse` instead of opening one each."""
    token = _lent.set(warehouse)
    try:
        yield
    finally:
        _lent.reset(token)


@dg.resource(description="The PostgreSQL that holds the tables, from METALAYER_* settings")
def warehouse_resource(context: dg.InitResourceContext) -> Iterator[Warehouse]:
    """Opens the warehouse for a run, unless the process that executes it has lent its own.

    At the end the run is told where its time went: in a tag, which the UI shows with the run.
    """
    with contextlib.ExitStack() as stack:
        warehouse = _lent.get() or _opened(stack, context.run)
        if context.run is not None and context.instance is not None:
            stack.enter_context(logged_run(context.run, context.instance))
            _record_build(warehouse, context.run)
        try:
            yield warehouse
        finally:
            seal(warehouse.pool, warehouse.settings)
            if context.instance is not None and context.run is not None:
                spent = {SECONDS_TAG: in_words(warehouse.profile.seconds())}
                context.instance.add_run_tags(context.run.run_id, spent)


def _opened(stack: contextlib.ExitStack, run: dg.DagsterRun | None) -> Warehouse:
    """The warehouse of a run; where it cannot be reached for a moment it is tried again."""
    settings = Settings.load()
    number = 0
    while True:
        number += 1
        try:
            return stack.enter_context(open_warehouse(settings))
        except Exception as error:
            log_to_file(settings)
            found = failure_of(error, settings.embedded_home)
            facts = {"run": run.run_id if run is not None else "", "tries": number, **found.fields}
            if found.kind != "transient" or number > RETRIES.max_retries:
                _log.error("run cannot begin: %s", found.line, extra=facts)
                raise
            _log.warning("run waits for the warehouse: %s", found.line, extra=facts)
            time.sleep(RETRIES.calculate_delay(number))


def _record_build(warehouse: Warehouse, run: dg.DagsterRun) -> None:
    """Note in the audit log that a run begins; its publishes name it."""
    details = {
        "job": run.job_name,
        "tables": sorted(tables_of(run)),
        "months": list(range_of(run.tags) or ()),
    }
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        record(cursor, "build", f"run {run.run_id}", details, why=run.tags.get(WHY_TAG, ""))


#: What runs write to their process's output: warnings. Everything is in their events.
console_logger = dg.LoggerDefinition(
    logger_fn=dg.colored_console_logger.logger_fn,
    description="Warnings and errors, to the output of the process",
    config_schema={
        "log_level": dg.Field(str, is_required=False, default_value="WARNING"),
        "name": dg.Field(str, is_required=False, default_value="dagster"),
    },
)


@contextlib.contextmanager
def standing_warehouse() -> Iterator[Warehouse]:
    """The warehouse as sensors use it: opened once, and kept for as long as the process lives."""
    lent = _lent.get()
    if lent is not None:
        yield lent
        return
    # Sensors are evaluated side by side.
    with _opening:
        warehouse = _standing()
    yield warehouse


@cache
def _standing() -> Warehouse:
    stack = contextlib.ExitStack()
    warehouse = stack.enter_context(open_warehouse(Settings.load()))
    atexit.register(stack.close)
    return warehouse


_opening = threading.Lock()
_lent: ContextVar[Warehouse | None] = ContextVar("lent_warehouse", default=None)
