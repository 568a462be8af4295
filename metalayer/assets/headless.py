"""Builds without a webserver: the same assets, checks and events, run by Dagster in this process.

A build goes in rounds. Each round finds the months that are out of date, runs them and those that
may have to follow through Dagster, and looks again: what was rebuilt to the same rows makes nothing
behind it stale, so the rounds end where contents stop differing.

Does not belong here: what makes a month stale (`metalayer.planning`) or how the user is told.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date

import dagster as dg
import psutil

from metalayer.assets.atomic import build_atomically
from metalayer.assets.checks import AUDIT_CHECK, ask_and_mark, asked_of_builds, failed_checks
from metalayer.assets.failed import VERDICTS, failure_in, name_of
from metalayer.assets.keys import TABLES_TAG, asset_key, range_tags, table_of, to_key
from metalayer.assets.resources import Warehouse, lent_to_runs
from metalayer.assets.storage import ensure_tables, note_complete
from metalayer.catalog import catalog
from metalayer.dagster_home import dagster_environment
from metalayer.errors import BuildError, MetaLayerError
from metalayer.jobs import months_between, table_job
from metalayer.planning import Plan, forget_mended, plan, runs_of, without
from metalayer.settings import Settings
from metalayer.warehouse.acts import seal
from metalayer.warehouse.build import MonthResult, build_months, is_stale
from metalayer.warehouse.keeping import Keeping, prune_expired
from metalayer.warehouse.phases import Phase, Profile, total
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.state import load_state
from metalayer.warehouse.sweep import sweep

#: Which process a run is executed in: "host:pid:started".
PROCESS_TAG = "metalayer/process"
#: A round only follows a round that changed something; more than this is a defect, not a history.
_MOST_ROUNDS = 200
_RECYCLE_SECONDS = 3600


@dataclass
class BuildOutcome:
    """What a build did.

    Attributes:
        months: Every month that was looked at, in the order it landed.
        failed_checks: "table: description" of each blocking check that failed.
        warnings: The same of checks that only warn.
        errors: Other failures of steps, as text.
        runs: Ids of the Dagster runs.
        phases: Seconds of these runs, by phase.
    """

    months: list[MonthResult] = field(default_factory=list)
    failed_checks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    phases: dict[Phase, float] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether every month, blocking check and step did."""
        return not (
            self.failed_checks or self.errors or any(r.outcome == "failed" for r in self.months)
        )

    @property
    def problems(self) -> str:
        """What failed, in words."""
        said = [*self.errors, *self.failed_checks]
        said += [f"{r.table} {r.month:%Y-%m}: {r.problem}" for r in self.months if r.problem]
        return "; ".join(dict.fromkeys(said))


def is_alive(owner: str) -> bool:
    """Whether the process that a run names may still work on it; one of another host may."""
    host, pid, started = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except psutil.Error:
        return False


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


@contextmanager
def dagster_instance(settings: Settings, storage_url: str) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of this home, whose storage is in PostgreSQL.

    Args:
        storage_url: SQLAlchemy URL of Dagster's database.
    """
    os.environ.update(dagster_environment(settings, storage_url))
    ensure_tables(storage_url)
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        note_complete(instance, storage_url)
        # As the webserver does: keep a connection open. Otherwise every event opens one, which is
        # most of what a small build would cost.
        instance.optimize_for_webserver(
            statement_timeout=0, pool_recycle=_RECYCLE_SECONDS, max_overflow=20
        )
        yield instance


def clear_up(warehouse: Warehouse) -> None:
    """Do what others were killed before: drop staged months, and versions whose days have passed.

    And chain what waits for the audit log.
    """
    settings = warehouse.settings
    seal(warehouse.pool, settings)
    sweep(warehouse.pool)
    prune_expired(warehouse.pool, Keeping(settings.keep_versions, settings.keep_version_days))


def current_plan(
    warehouse: Warehouse,
    selected: set[str] | None = None,
    months: set[date] | None = None,
    *,
    force: bool = False,
) -> Plan:
    """What a build of `selected` (None: all tables) would do now."""
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        state = load_state(cursor)
        forget_mended(cursor, warehouse.settings, state)
        return plan(state, warehouse.settings, selected, months, force=force)


def build(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    *,
    selected: set[str] | None = None,
    months: set[date] | None = None,
    force: bool = False,
    atomic: bool = False,
    started: Callable[[Plan], None] | None = None,
    landed: Callable[[MonthResult], None] | None = None,
) -> BuildOutcome:
    """Build everything that has something to do.

    Args:
        selected: Tables to build; None: all.
        months: Months to build; published ones outside of them follow when they are stale.
        force: Build the selected months of the selected tables although they are up to date.
        atomic: Publish everything at once, or nothing if anything fails.
        started: Told each round's plan before it runs.
        landed: Told each month's result as it lands, from another thread or this one.

    Returns:
        What was done. Failures are in it; they do not raise.
    """
    outcome = BuildOutcome()
    given_up: set[tuple[str, date]] = set()
    blocked: set[str] = set()
    listening = replace(warehouse, landed=_both(outcome.months.append, landed))
    clear_up(warehouse)
    _empty_months_before_the_first(listening)
    _ask_upstream(warehouse, selected, outcome, blocked)
    if atomic:
        planned = current_plan(warehouse, selected, months, force=force)
        if started is not None:
            started(planned)
        _build_at_once(listening, instance, planned, outcome)
        return outcome
    for number in range(_MOST_ROUNDS):
        is_forced = force and number == 0
        planned = current_plan(warehouse, selected, months, force=is_forced)
        todo = without(planned, given_up, blocked)
        if todo.is_empty:
            return outcome
        if started is not None:
            started(todo)
        before = len(outcome.months)
        # Where some months are left out on purpose, no range may take them along.
        exactly = months is not None or bool(given_up) or bool(blocked)
        tried: set[tuple[str, date]] = set()
        for first, last, tables in runs_of(todo, exactly=exactly):
            tried |= {(t, m) for t in tables for m in months_between(first, last)}
            failures = len(blocked) + len(outcome.errors)
            _run(listening, instance, first, last, tables, outcome, blocked, todo.forced)
            has_failed = any(r.outcome == "failed" for r in outcome.months[before:])
            if has_failed or len(blocked) + len(outcome.errors) > failures:
                break  # what stands behind is left out of the next round's plan
        round_months = outcome.months[before:]
        given_up |= {(r.table, r.month) for r in round_months if r.outcome == "failed"}
        built = {(r.table, r.month) for r in round_months}
        # A step that broke off has built nothing: trying it again now would break off again.
        given_up |= {
            (table, month)
            for due in (todo.stale, todo.unchecked)
            for table, awaited in due.items()
            for month in awaited
            if (table, month) in tried - built and (outcome.errors or blocked)
        }
    raise BuildError(
        f"The build did not come to rest in {_MOST_ROUNDS} rounds",
        "Look with `metalayer build --help` for building some tables only, and report the case",
        kind="bug",
    )


def _ask_upstream(
    warehouse: Warehouse, selected: set[str] | None, outcome: BuildOutcome, blocked: set[str]
) -> None:
    """Ask again the checks that have not passed of tables that are read, but not built."""
    tables = catalog()
    read = {name for table in selected or () for name in tables.made_from(table)}
    for table in tables.specs:
        if table not in read - (selected or set()):
            continue
        spec = tables.specs[table]
        failed = failed_checks(spec, ask_and_mark(warehouse, spec, tables))
        if failed:
            outcome.failed_checks += failed
            blocked.add(table)


def _build_at_once(
    warehouse: Warehouse, instance: dg.DagsterInstance, todo: Plan, outcome: BuildOutcome
) -> None:
    """Build and publish the plan in one transaction; then let Dagster know."""
    assert warehouse.landed is not None
    done = build_atomically(warehouse, todo, warehouse.landed)
    if not done.succeeded:
        outcome.months[:] = [r for r in done.months if r.outcome == "failed"]
        outcome.failed_checks += done.failed_checks
        outcome.errors.append("Nothing of this build was published: it was to be all or nothing")
        return
    # Dagster finds these months up to date and records them, with their checks.
    built = {t: {r.month for r in done.months if r.table == t} for t in catalog().specs}
    reported = replace(todo, affected=built, unchecked={})
    blocked: set[str] = set()
    for first, last, tables in runs_of(reported, exactly=True):
        quiet = replace(warehouse, landed=None)
        _run(quiet, instance, first, last, tables, outcome, blocked, {})


def _empty_months_before_the_first(warehouse: Warehouse) -> None:
    """Rebuild months that lie before `METALAYER_START_MONTH` since it was moved.

    Their rows are rejected now, so they become empty. Dagster has no partitions for them any more,
    which is why this is done without it.
    """
    with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select exists (select from meta.versions where is_current and month < %s)",
            (warehouse.settings.start_month,),
        )
        if cursor.fetchone() == (False,):
            return
    for table in catalog().specs:
        job = table_job(table, warehouse.settings)
        with transaction(warehouse.pool) as connection, connection.cursor() as cursor:
            state = load_state(cursor, [table, *job.upstream])
        early = [
            month
            for month in state.published.get(table, {})
            if month < warehouse.settings.start_month and is_stale(job, state, month)
        ]
        for result in build_months(warehouse.pool, job, early, workers=warehouse.settings.workers):
            if warehouse.landed is not None:
                warehouse.landed(result)


def _both(
    first: Callable[[MonthResult], None], second: Callable[[MonthResult], None] | None
) -> Callable[[MonthResult], None]:
    def tell(result: MonthResult) -> None:
        first(result)
        if second is not None:
            second(result)

    return tell


def _run(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    first: date,
    last: date,
    tables: Sequence[str],
    outcome: BuildOutcome,
    blocked: set[str],
    forced: Mapping[str, set[date]],
) -> None:
    """One Dagster run over the months `first` to `last` of `tables`."""
    # Loading the definitions takes seconds; commands that build nothing do without them.
    from metalayer.definitions import defs

    profile = Profile()
    with lent_to_runs(replace(warehouse, profile=profile)):
        result = _job(defs, tables).execute_in_process(
            instance=instance,
            raise_on_error=False,
            tags={
                **range_tags(to_key(first), to_key(last)),
                PROCESS_TAG: _this_process(),
                # A run in this process does not say itself what it was selected from.
                TABLES_TAG: " ".join(tables),
            },
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": {
                    asset_key(table).to_python_identifier(): {
                        "config": {"force_months": [to_key(m) for m in sorted(forced[table])]}
                    }
                    for table in tables
                    if forced.get(table)
                },
            },
        )
    outcome.runs.append(result.run_id)
    outcome.phases = total([outcome.phases, profile.seconds()])
    for evaluation in result.get_asset_check_evaluations():
        if evaluation.passed:
            continue
        table = table_of(evaluation.asset_key)
        line = f"{table}: {evaluation.description or evaluation.check_name}"
        if evaluation.severity is dg.AssetCheckSeverity.WARN:
            outcome.warnings.append(line)
        elif evaluation.check_name != AUDIT_CHECK:
            outcome.failed_checks.append(line)
            blocked.add(table)
    for event in result.all_events:
        if event.is_step_failure:
            _note_failure(event, outcome, blocked)


def _job(defs: dg.Definitions, tables: Sequence[str]) -> dg.JobDefinition:
    """A job over `tables` and their checks."""
    keys = {asset_key(table) for table in tables}
    checks = asked_of_builds(defs.resolve_asset_graph().asset_check_keys)
    return defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=keys,
        asset_check_selection={key for key in checks if key.asset_key in keys},
    )


def _note_failure(event: dg.DagsterEvent, outcome: BuildOutcome, blocked: set[str]) -> None:
    """Keep a step's error, unless the months or checks that failed tell of it already."""
    error = event.step_failure_data.error
    if error is not None and error.cls_name in VERDICTS:
        return
    while error is not None:
        if error.cls_name == "DagsterExecutionInterruptedError":
            # Dagster takes Ctrl-C (and SIGTERM) for a failure of the step; the user meant the
            # build.
            raise KeyboardInterrupt
        error = error.cause
    failure = failure_in(event)
    if failure is None:
        return
    text = str(MetaLayerError(failure.message, failure.next_step))
    outcome.errors.append(f"{name_of(event)}: {text}")
    if event.step_key:
        blocked.add(name_of(event))
