"""Errors by class: what may pass is tried again, all else fails at once, and the event says why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest
from psycopg2 import sql
from sqlalchemy import make_url

from metalayer.assets.failed import failure_in
from metalayer.assets.headless import BuildOutcome, dagster_instance
from metalayer.assets.resources import warehouse_resource
from metalayer.automation.landing import take_in
from metalayer.errors import BuildError, ConfigurationError
from metalayer.failure import failure_of
from metalayer.governance.sealing import key_file
from metalayer.landing.entries import LedgerBusyError
from metalayer.logs import writing
from metalayer.operations.conditions import find
from metalayer.outages import kind_of_code, kind_of_connecting
from metalayer.services.activity import Activity
from metalayer.settings import PROJECT_ROOT
from metalayer.warehouse.locks import lock_months
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

MB = 1024 * 1024
MONTH = date(2025, 1, 1)
#: Sessions that wait for a lock of somebody else's.
WAITING = (
    "select pid from pg_stat_activity where datname = current_database() "
    "and wait_event_type = 'Lock' and wait_event = 'advisory'"
)


def events(platform: Platform, outcome: BuildOutcome, table: str) -> list[dg.DagsterEvent]:
    """All that happened to the step of a table, in order."""
    found = []
    for run in outcome.runs:
        for entry in platform.instance.all_logs(run):
            event = entry.dagster_event
            if event is not None and event.step_key == table.replace(".", "__"):
                found.append(event)
    return found


def tries(found: list[dg.DagsterEvent]) -> list[str]:
    """How often a step began, was put off, and how it ended."""
    words = ("STEP_START", "STEP_UP_FOR_RETRY", "STEP_RESTARTED", "STEP_SUCCESS", "STEP_FAILURE")
    return [e.event_type_value for e in found if e.event_type_value in words]


def metadata(event: dg.DagsterEvent) -> dict[str, str]:
    """What a failure event says beside its message."""
    said = event.step_failure_data.user_failure_data
    assert said is not None
    return {name: str(value.value) for name, value in said.metadata.items()}


def failed_once(platform: Platform, outcome: BuildOutcome, table: str) -> dg.DagsterEvent:
    """The failure event of a step that had exactly one try."""
    found = events(platform, outcome, table)
    assert tries(found) == ["STEP_START", "STEP_FAILURE"]
    return found[-1]


def connected(platform: Platform) -> Any:
    """Another session in the platform's database."""
    url = platform.warehouse.pool.url.set(drivername="postgresql")
    return psycopg2.connect(url.render_as_string(hide_password=False))


@contextlib.contextmanager
def ended(platform: Platform, times: int) -> Iterator[list[int]]:
    """End the session that builds the month of silver.orders, so often; they are in the list."""
    done: list[int] = []
    with contextlib.closing(connected(platform)) as other, other.cursor() as cursor:
        other.autocommit = True
        lock_months(cursor, "silver.orders", [MONTH])

        def end_them() -> None:
            while len(done) < times:
                cursor.execute(WAITING)
                for (pid,) in cursor.fetchall():
                    if pid not in done and len(done) < times:
                        cursor.execute("select pg_terminate_backend(%s)", (pid,))
                        done.append(pid)
                time.sleep(0.05)
            cursor.execute("select pg_advisory_unlock_all()")

        thread = threading.Thread(target=end_them)
        thread.start()
        try:
            yield done
        finally:
            thread.join(60)


@pytest.fixture
def landed(platform: Platform) -> Platform:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    return platform


def test_a_connection_that_is_ended_once_costs_a_retry_and_nothing_else(landed: Platform) -> None:
    with ended(landed, times=1) as sessions:
        outcome = landed.build("bronze.orders", "silver.orders")
    assert len(sessions) == 1
    assert outcome.succeeded, outcome.problems
    (run,) = outcome.runs
    stored = landed.instance.get_run_by_id(run)
    assert stored is not None
    assert stored.status is dg.DagsterRunStatus.SUCCESS
    found = events(landed, outcome, "silver.orders")
    assert tries(found) == ["STEP_START", "STEP_UP_FOR_RETRY", "STEP_RESTARTED", "STEP_SUCCESS"]
    (again,) = [e for e in found if e.is_step_up_for_retry]
    assert 0 <= (again.step_retry_data.seconds_to_wait or 0) <= 1
    # Each month is published once, whatever of it the first try had done, and all rows are there.
    assert landed.ask("select distinct version, is_checked from meta.versions") == [(1, True)]
    assert landed.one("select count(*) from silver.orders") == 2
    assert landed.balances()
    assert landed.plan("bronze.orders", "silver.orders").is_empty
    published = [r for r in outcome.months if r.outcome == "published"]
    assert len({(r.table, r.month) for r in published}) == len(published) == 4


def test_what_does_not_pass_fails_after_a_few_tries_and_the_event_says_so(
    landed: Platform,
) -> None:
    with ended(landed, times=4):
        outcome = landed.build("bronze.orders", "silver.orders")
    found = events(landed, outcome, "silver.orders")
    assert tries(found) == [
        "STEP_START",
        *["STEP_UP_FOR_RETRY", "STEP_RESTARTED"] * 3,
        "STEP_FAILURE",
    ]
    waits = [e.step_retry_data.seconds_to_wait or 0 for e in found if e.is_step_up_for_retry]
    assert all(wait <= most for wait, most in zip(waits, (1, 3, 7), strict=True))
    said = metadata(found[-1])
    assert said["error_class"] == "transient"
    assert "build again" in said["next_step"]
    (told,) = outcome.errors
    assert told.startswith("silver.orders: The connection to PostgreSQL was lost")
    assert said["next_step"] in told
    assert landed.build("bronze.orders", "silver.orders").succeeded


def test_rows_that_break_the_contract_are_data_and_have_one_try(platform: Platform) -> None:
    bad = "".join(order(n, "2025-01-05", quantity=0) for n in range(30))
    platform.land("erp/orders.csv", ORDERS + bad + order(99, "2025-02-01"))
    outcome = platform.build("bronze.orders", "silver.orders")
    failed = failed_once(platform, outcome, "silver.orders")
    error = failed.step_failure_data.error
    assert error is not None
    assert error.cls_name == "DagsterTypeCheckDidNotPass"
    assert "Error class: data" in error.message
    assert "Land the export corrected" in error.message
    # Dagster lets no type check give its failure event metadata: they are with the verdict.
    (output,) = [
        e
        for e in events(platform, outcome, "silver.orders")
        if e.is_successful_output and e.step_output_data.output_name == "result"
    ]
    verdict = output.step_output_data.type_check_data
    assert verdict is not None
    assert not verdict.success
    assert verdict.metadata["error_class"].value == "data"
    assert "metalayer rejects silver.orders" in str(verdict.metadata["next_step"].value)


def test_a_column_that_a_select_reads_and_that_is_gone_is_configuration(landed: Platform) -> None:
    assert landed.build("bronze.orders", "silver.orders").succeeded
    with transaction(landed.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("alter table bronze.orders rename column status to state")
    outcome = landed.build("silver.orders", force=True)
    said = metadata(failed_once(landed, outcome, "silver.orders"))
    assert said["error_class"] == "configuration"
    assert "log" in said["next_step"]
    assert '"status" does not exist' in outcome.errors[0]


def test_a_key_that_is_gone_is_configuration_and_says_where_it_belongs(platform: Platform) -> None:
    platform.land("crm/customers.csv", CUSTOMERS + customer(1, "2025-01-05"))
    assert platform.build("bronze.customers", "silver.customers").succeeded
    key_file(platform.warehouse.settings).unlink()
    outcome = platform.build("bronze.customers", force=True)
    said = metadata(failed_once(platform, outcome, "bronze.customers"))
    assert said["error_class"] == "configuration"
    assert "METALAYER_ENCRYPTION_KEY" in said["next_step"]


def test_what_nobody_foresaw_is_a_bug_told_by_its_place(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(4711, "2025-01-05"))
    platform.register()
    parsed = platform.warehouse.settings.parsed_dir.rglob("*.parquet")
    (rows,) = [file for file in parsed if "reject" not in file.name]
    rows.write_bytes(b"no parquet at all")
    outcome = platform.build("bronze.orders")
    failed = failed_once(platform, outcome, "bronze.orders")
    said = metadata(failed)
    assert said["error_class"] == "bug"
    assert "report it" in said["next_step"]
    description = str(failed.step_failure_data.user_failure_data.description)  # type: ignore[union-attr]
    assert " at metalayer/landing/" in description
    # Who builds sees what was raised, and so does the run.
    assert "parquet" in outcome.errors[0].lower()
    error = failed.step_failure_data.error
    assert error is not None
    assert error.cause is not None
    assert "parquet" in error.cause.message.lower()


def test_a_full_disk_is_capacity_and_has_one_try(
    mounted: Callable[[int], Path],
    server: WarehouseServer,
    make_platform: Callable[[], Platform],
) -> None:
    platform = make_platform()
    rows = "".join(order(n, "2025-01-05") for n in range(20_000))
    platform.land("erp/orders.csv", ORDERS + rows)
    with small_disk(mounted(MB), server, platform):
        outcome = platform.build("bronze.orders")
    said = metadata(failed_once(platform, outcome, "bronze.orders"))
    assert said["error_class"] == "capacity"
    assert "Free space on the disk" in said["next_step"]
    assert "The disk is full" in outcome.errors[0]
    assert platform.build("bronze.orders").succeeded
    assert platform.one("select count(*) from bronze.orders") == 20_000


@contextlib.contextmanager
def small_disk(disk: Path, server: WarehouseServer, platform: Platform) -> Iterator[None]:
    """Have new tables of a platform lie on another disk."""
    folder = disk / "tables"
    folder.mkdir()
    database = platform.warehouse.pool.url.database
    url = server.url("postgres").replace("+psycopg2", "", 1)
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("show data_directory")
        owner = Path(str(cursor.fetchall()[0][0])).stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        name = sql.Identifier(f"small_{os.getpid()}")
        cursor.execute(
            sql.SQL("create tablespace {} location {}").format(name, sql.Literal(str(folder)))
        )
        of = sql.Identifier(str(database))
        cursor.execute(sql.SQL("alter database {} set default_tablespace = {}").format(of, name))
        # Sessions take it up when they begin.
        platform.warehouse.pool.dispose()
        try:
            yield
        finally:
            cursor.execute(sql.SQL("alter database {} reset default_tablespace").format(of))
            platform.warehouse.pool.dispose()
            cursor.execute(sql.SQL("drop tablespace {}").format(name))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("08006", "transient"),
        ("40001", "transient"),
        ("40P01", "transient"),
        ("55P03", "transient"),
        ("57P01", "transient"),
        ("57P03", "transient"),
        ("53100", "capacity"),
        ("53200", "capacity"),
        ("53300", "capacity"),
        ("22003", "data"),
        ("23505", "data"),
        ("28P01", "configuration"),
        ("3D000", "configuration"),
        ("3F000", "configuration"),
        ("42501", "configuration"),
        ("55006", "bug"),
        ("XX000", "bug"),
        (None, "bug"),
    ],
)
def test_what_postgresql_refuses_has_a_class(code: str | None, kind: str) -> None:
    assert kind_of_code(code) == kind


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"database": "nosuch"}, "configuration"),
        ({"username": "nosuch"}, "configuration"),
        ({"host": "127.0.0.1", "port": 1, "query": {}}, "transient"),
    ],
)
def test_a_server_that_does_not_let_in_is_told_from_one_that_does_not_answer(
    server: WarehouseServer, change: dict[str, Any], kind: str
) -> None:
    url = make_url(server.url("postgres")).set(drivername="postgresql").set(**change)
    with pytest.raises(psycopg2.OperationalError) as raised:
        psycopg2.connect(url.render_as_string(hide_password=False))
    assert kind_of_connecting(raised.value) == kind


def test_a_deadlock_is_transient_and_quotes_no_row(platform: Platform) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("create table public.people (name text primary key)")
        cursor.execute("insert into public.people values ('Ada'), ('Bea')")
    found: list[BaseException] = []

    def rename(first: str, second: str, at: threading.Barrier) -> None:
        try:
            with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
                for name in (first, second):
                    cursor.execute("update public.people set name = name where name = %s", (name,))
                    if name == first:
                        at.wait(10)
        except psycopg2.Error as error:
            found.append(error)

    at = threading.Barrier(2)
    pairs = (("Ada", "Bea"), ("Bea", "Ada"))
    threads = [threading.Thread(target=rename, args=(*pair, at)) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    (error,) = found
    failure = failure_of(error)
    assert failure.kind == "transient"
    assert "deadlock detected" in failure.message
    assert "Ada" not in failure.message


def test_up_says_why_a_run_failed_and_of_what_class(platform: Platform) -> None:
    activity = Activity(platform.warehouse.pool, platform.instance)
    platform.land("crm/customers.csv", CUSTOMERS + customer(1, "2025-01-05"))
    assert platform.build("bronze.customers").succeeded
    key_file(platform.warehouse.settings).unlink()
    platform.build("bronze.customers", force=True)
    (line,) = [line for line in activity.news() if "failed" in line]
    assert ". bronze.customers (configuration): " in line
    assert "METALAYER_ENCRYPTION_KEY" in line


def test_alerts_say_class_and_next_step_of_a_failed_run(landed: Platform, dagster_url: str) -> None:
    settings = landed.warehouse.settings
    with dagster_instance(settings, dagster_url) as instance:
        kept = Platform(landed.warehouse, instance)
        with ended(kept, times=4):
            outcome = kept.build("bronze.orders", "silver.orders")
        said = metadata(events(kept, outcome, "silver.orders")[-1])
        (told,) = [c for c in find(settings).told if c.key.startswith("run_failed")]
        assert "silver.orders: The connection to PostgreSQL was lost" in told.what
        assert "trying again was not enough" in told.what
        assert told.next_step.startswith(said["next_step"])
        assert f"metalayer logs --run {outcome.runs[0][:8]}" in told.next_step


def test_who_ends_a_build_is_obeyed_and_no_step_begins_again(
    landed: Platform, dagster_url: str
) -> None:
    # With a policy on the step, Dagster would take Ctrl-C for what may pass.
    settings = landed.warehouse.settings
    landed.register()
    with contextlib.closing(connected(landed)) as other, other.cursor() as cursor:
        other.autocommit = True
        lock_months(cursor, "silver.orders", [MONTH])
        environment = {
            "METALAYER_HOME": str(settings.home),
            "METALAYER_DATABASE_URL": settings.database_url.get_secret_value(),  # type: ignore[union-attr]
            "PYTHONPATH": str(PROJECT_ROOT),
        }
        with subprocess.Popen(
            [sys.executable, "-m", "metalayer", "build", "bronze.orders", "silver.orders"],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                while process.poll() is None and not waiting(cursor):
                    time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == 130, said
    with (
        contextlib.closing(psycopg2.connect(dagster_url.replace("+psycopg2", "", 1))) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("select distinct dagster_event_type from event_logs")
        kinds = {kind for (kind,) in cursor.fetchall()}
    assert "STEP_START" in kinds
    assert not kinds & {"STEP_UP_FOR_RETRY", "STEP_RESTARTED"}


def waiting(cursor: Any) -> list[Any]:
    cursor.execute(WAITING)
    return list(cursor.fetchall())


@pytest.fixture
def _log_of_the_test() -> Iterator[None]:
    """A log that a run opened by itself is let go of."""
    yield
    for handler in list(writing.ROOT.handlers):
        writing.ROOT.removeHandler(handler)
        handler.close()


@pytest.mark.usefixtures("_log_of_the_test")
def test_a_run_waits_for_a_warehouse_that_lets_nobody_in_for_a_moment(
    landed: Platform, server: WarehouseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = landed.warehouse.settings
    url = landed.warehouse.pool.url
    monkeypatch.setenv("METALAYER_HOME", str(settings.home))
    monkeypatch.setenv("METALAYER_LANDING", str(settings.landing))
    monkeypatch.setenv(
        "METALAYER_DATABASE_URL",
        settings.database_url.get_secret_value(),  # type: ignore[union-attr]
    )
    landed.warehouse.pool.dispose()
    opened = threading.Event()

    def let_in() -> None:
        file = settings.log_file
        while not (file.exists() and "run waits for the warehouse" in file.read_text()):
            time.sleep(0.05)
        allow(server, str(url.database), "true")
        opened.set()

    allow(server, str(url.database), "false")
    thread = threading.Thread(target=let_in)
    thread.start()
    try:
        result = take_in.execute_in_process(
            instance=landed.instance,
            raise_on_error=False,
            resources={"warehouse": warehouse_resource},
        )
    finally:
        allow(server, str(url.database), "true")
        thread.join(20)
    assert result.success
    assert opened.is_set()
    assert [entry["file"] for entry in landed.ledger()] == ["erp/orders.csv"]


def allow(server: WarehouseServer, database: str, is_so: str) -> None:
    """Whether a database takes connections."""
    url = server.url("postgres").replace("+psycopg2", "", 1)
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(
            sql.SQL("alter database {} with allow_connections {}").format(
                sql.Identifier(database), sql.SQL(is_so)
            )
        )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BuildError("The rows do not fit", "Mend them"), "data"),
        (ConfigurationError("No key", "Make one"), "configuration"),
        (LedgerBusyError("Somebody else reads", "Wait"), "transient"),
        (ValueError("nobody foresaw it"), "bug"),
    ],
)
def test_the_class_of_a_step_of_somebody_elses_is_told_by_its_error(
    error: Exception, kind: str
) -> None:
    @dg.op
    def breaks() -> None:
        raise error from ValueError("its cause")

    @dg.job
    def job() -> None:
        breaks()

    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    failure = failure_in(failed)
    assert failure is not None
    assert failure.kind == kind
    assert failure.message == (str(error) if kind != "bug" else "ValueError: its cause")
