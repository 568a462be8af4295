"""Stories of what happens by itself: which months are asked for, tick by tick, and which not."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from metalayer.assets.headless import PROCESS_TAG
from metalayer.assets.resources import Warehouse, lent_to_runs
from metalayer.automation import landing
from metalayer.automation.arrivals import said_of
from metalayer.automation.following import joined
from metalayer.automation.landing import landing_sensor, take_in_files
from metalayer.catalog import catalog
from metalayer.contracts.contract import REJECTS_ALWAYS_TOLERATED
from metalayer.definitions import defs
from metalayer.inspection import table_status
from metalayer.landing.ledger import lock
from metalayer.services.runs import close_lost_runs
from metalayer.warehouse.build import MonthResult
from metalayer.warehouse.pool import transaction
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

MONTHS = [f"2025-{number:02}" for number in range(1, 7)]
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
#: A tick is cut off by Dagster after a minute.
TICK_SECONDS = 30
TABLES = [dg.AssetKey(table.split(".")) for table in catalog().specs]
#: A month with so many bad rows fails.
BROKEN = ORDERS + "".join(
    f"{n},1,P00001,2025-02-09,0,5.00,5.00,LOST\n" for n in range(7, 8 + REJECTS_ALWAYS_TOLERATED)
)


@dataclass
class Daemon:
    """The daemon's part: it evaluates the conditions, tick after tick, and starts runs."""

    platform: Platform
    cursor: Any = None
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def tick(self, *, later: float = 5.0) -> dict[str, list[str]]:
        """Table -> months that are asked for, `later` seconds after the tick before."""
        self.now += timedelta(seconds=later)
        with lent_to_runs(self.platform.warehouse):
            result = dg.evaluate_automation_conditions(
                defs,
                self.platform.instance,
                asset_selection=dg.AssetSelection.assets(*TABLES),
                cursor=self.cursor,
                evaluation_time=self.now,
            )
        self.cursor = result.cursor
        found = {}
        for key in TABLES:
            months = sorted(str(k) for k in result.get_requested_partitions(key))
            if months:
                found[".".join(key.path)] = months
        return found

    def run(self, asked: dict[str, list[str]], platform: Platform | None = None) -> bool:
        """Run what was asked for, as one run for each range of months."""
        succeeded = True
        for request in requests(asked):
            with lent_to_runs((platform or self.platform).warehouse):
                result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                    asset_selection=list(request.asset_selection or ()),
                    instance=self.platform.instance,
                    tags=dict(request.tags),
                    raise_on_error=False,
                    run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                )
            succeeded = succeeded and result.success
        return succeeded

    def settle(self) -> list[dict[str, list[str]]]:
        """Tick and run until a tick asks for nothing; what each tick asked for."""
        ticks = []
        while asked := self.tick():
            ticks.append(asked)
            self.run(asked)
            assert len(ticks) < 10, "it never comes to rest"
        return ticks


def requests(asked: dict[str, list[str]]) -> list[dg.RunRequest]:
    """The run requests of a tick, as the sensor joins them."""
    each = [
        dg.RunRequest(asset_selection=[dg.AssetKey(table.split("."))], partition_key=month)
        for table, months in asked.items()
        for month in months
    ]
    return list(joined(each, lambda _table, _month: True, []))


@pytest.fixture
def half_a_year(platform: Platform) -> Platform:
    """Orders and customers of six months, landed."""
    for number, month in enumerate(MONTHS, start=1):
        platform.land(f"erp/orders_{month}.csv", ORDERS + order(number, f"{month}-05"))
        platform.land(f"crm/customers_{month}.csv", CUSTOMERS + customer(number, f"{month}-03"))
    platform.register()
    return platform


@pytest.fixture
def built(half_a_year: Platform) -> Platform:
    """The same, built."""
    assert half_a_year.build().succeeded
    return half_a_year


def current(platform: Platform) -> bool:
    return platform.plan().is_empty and platform.balances()


def test_a_history_is_asked_for_in_one_tick_and_built_in_one_run(half_a_year: Platform) -> None:
    daemon = Daemon(half_a_year)
    asked = daemon.tick()
    assert asked["bronze.orders"] == asked["silver.orders"] == asked["gold.fact_orders"] == MONTHS
    (request,) = requests(asked)
    assert request.tags[ASSET_PARTITION_RANGE_START_TAG] == MONTHS[0]
    assert request.tags[ASSET_PARTITION_RANGE_END_TAG] == MONTHS[-1]
    assert daemon.run(asked)
    assert daemon.tick() == {}
    assert current(half_a_year)


def test_five_years_are_asked_for_in_one_run(platform: Platform) -> None:
    months = [f"{2021 + n // 12}-{n % 12 + 1:02}" for n in range(58)]
    rows = "".join(order(n, f"{month}-05") for n, month in enumerate(months, start=1))
    platform.land("erp/orders.csv", ORDERS + rows)
    platform.register()
    (request,) = requests(Daemon(platform).tick())
    assert request.tags[ASSET_PARTITION_RANGE_START_TAG] == months[0]
    assert request.tags[ASSET_PARTITION_RANGE_END_TAG] == months[-1]
    assert len(request.asset_selection or ()) > 10


def test_a_first_start_on_a_warehouse_that_is_built_asks_for_nothing(built: Platform) -> None:
    assert Daemon(built).tick() == {}


def test_an_old_month_is_built_with_what_lies_behind_it_only(built: Platform) -> None:
    daemon = Daemon(built)
    assert daemon.tick() == {}
    built.land("erp/orders_late.csv", ORDERS + order(99, "2025-02-09"))
    built.register()
    asked = daemon.tick()
    assert asked["bronze.orders"] == asked["silver.orders"] == ["2025-02"]
    assert asked["gold.customer_360"] == MONTHS[1:]
    assert not {"bronze.customers", "silver.customers", "gold.dim_customer"} & asked.keys()
    assert daemon.run(asked)
    assert daemon.tick() == {}
    assert current(built)


def test_the_same_bytes_again_ask_for_nothing(built: Platform) -> None:
    daemon = Daemon(built)
    built.land("erp/orders_copy.csv", (built.landing / "erp/orders_2025-02.csv").read_bytes())
    built.register()
    assert daemon.tick() == {}


def test_two_upstreams_of_one_tick_make_one_run(built: Platform) -> None:
    daemon = Daemon(built)
    built.land("erp/orders_late.csv", ORDERS + order(99, "2025-03-09"))
    built.land("erp/erp_sales_late.csv", SALES + "1,1,1,1,2025-03-09,5.00\n")
    built.land("crm/customers_late.csv", CUSTOMERS + customer(2, "2025-03-07"))
    built.register()
    assert len(daemon.settle()) == 1
    assert current(built)


def test_an_update_in_flight_is_asked_for_once_the_run_is_over(built: Platform) -> None:
    daemon = Daemon(built)
    built.land("erp/orders_late.csv", ORDERS + order(99, "2025-02-09"))
    built.register()
    first = daemon.tick()
    during: list[dict[str, list[str]]] = []

    def a_correction_lands(result: MonthResult) -> None:
        # The bronze month is published; the step, and all behind it, is still to come.
        if result.table == "bronze.orders" and not during:
            built.land("erp/orders_late.csv", ORDERS + order(98, "2025-02-10"))
            built.register()
            during.append(daemon.tick())

    listening = replace(built, warehouse=replace(built.warehouse, landed=a_correction_lands))
    assert daemon.run(first, listening)
    assert during == [{}]
    after = daemon.tick()
    assert after["bronze.orders"] == ["2025-02"]
    assert daemon.run(after)
    assert daemon.tick() == {}
    assert current(built)
    assert built.ask("select order_id from gold.fact_orders where order_id > 90") == [(98,)]


def test_what_failed_is_asked_for_again_once_it_changes(built: Platform) -> None:
    daemon = Daemon(built)
    built.land("erp/orders_2025-02.csv", BROKEN)
    built.register()
    asked = daemon.tick()
    assert not daemon.run(asked)
    # However often it is looked at, and however late.
    assert [daemon.tick(), daemon.tick(later=7200), daemon.tick(later=7200)] == [{}, {}, {}]
    ((problem,),) = built.ask("select problem from meta.failed_months")
    assert "quantity" in problem
    with transaction(built.warehouse.pool) as connection:
        failed = {t.table: t.failed_months for t in table_status(connection) if t.failed_months}
    assert failed == {"silver.orders": {"2025-02": problem}}
    # Other months go on meanwhile.
    built.land("erp/orders_late.csv", ORDERS + order(99, "2025-04-09"))
    built.register()
    asked = daemon.tick()
    assert asked["bronze.orders"] == ["2025-04"]
    daemon.run(asked)
    built.land("erp/orders_2025-02.csv", ORDERS + order(2, "2025-02-06"))
    built.register()
    daemon.settle()
    assert current(built)


def test_a_corrected_month_is_built_with_all_that_waited_for_it(built: Platform) -> None:
    daemon = Daemon(built)
    bad = "".join(f"{n},1,P00001,2025-08-09,0,5.00,5.00,LOST\n" for n in range(100, 140))
    built.land("erp/orders_2025-08.csv", ORDERS + bad)
    built.register()
    asked = daemon.tick()
    assert not daemon.run(asked)
    daemon.settle()
    assert built.ask("select 1 from gold.fact_orders where order_date >= '2025-08-01'") == []
    built.land("erp/orders_2025-08.csv", ORDERS + order(100, "2025-08-09"))
    built.register()
    asked = daemon.tick()
    for table in ("bronze.orders", "silver.orders", "gold.fact_orders", "gold.business_kpis"):
        assert "2025-08" in asked[table]
    daemon.run({table: months for table, months in asked.items() if table == "bronze.orders"})
    # Whatever happens meanwhile: no fact before its order.
    again = daemon.tick(later=60)
    assert "2025-08" in again["silver.orders"]
    assert daemon.run(again)
    assert daemon.settle() == []
    assert current(built)


def test_a_month_that_only_seems_to_have_failed_is_found_well(built: Platform) -> None:
    daemon = Daemon(built)
    built.land("erp/orders_2025-02.csv", BROKEN)
    built.register()
    asked = {"bronze.orders": MONTHS, "silver.orders": MONTHS, "gold.dim_product": MONTHS}
    assert not daemon.run(asked)
    key = dg.AssetKey(["gold", "dim_product"])
    graph = defs.resolve_asset_graph()
    partitions = graph.get(key).partitions_def
    assert partitions is not None

    def failed() -> set[str]:
        status = get_and_update_asset_status_cache_value(built.instance, key, partitions)
        assert status is not None
        subset = status.deserialize_failed_partition_subsets(partitions)
        return set(subset.get_partition_keys())

    assert failed() == set(MONTHS)
    # Those behind the month that failed stay as they are; the one before it was only taken along.
    assert daemon.settle() == [{"gold.dim_product": ["2025-01"]}]
    assert failed() == set(MONTHS[1:])
    built.land("erp/orders_2025-02.csv", ORDERS + order(2, "2025-02-06"))
    built.register()
    daemon.settle()
    assert failed() == set()


def test_a_range_takes_no_month_along_that_is_not_there(built: Platform) -> None:
    built.land("erp/orders_2025-10.csv", ORDERS + order(77, "2025-10-05"))
    built.register()
    sensor = next(s for s in defs.get_repository_def().sensor_defs if s.name == "tables_follow")
    context = dg.build_sensor_context(built.instance, repository_def=defs.get_repository_def())
    with lent_to_runs(built.warehouse):
        done = sensor.evaluate_tick(context)
    ranges = {
        tuple(sorted(key.path[1] for key in r.asset_selection or ())): (
            r.tags[ASSET_PARTITION_RANGE_START_TAG],
            r.tags[ASSET_PARTITION_RANGE_END_TAG],
        )
        for r in done.run_requests or ()
    }
    for tables, (first, _) in ranges.items():
        assert first == "2025-10" or tables == ("dim_date",), ranges


def test_behind_a_failed_check_nothing_is_asked_for(built: Platform) -> None:
    daemon = Daemon(built)
    # A row nobody delivered: what stands in silver no longer adds up with bronze.
    built.land("erp/orders_late.csv", ORDERS + order(99, "2025-02-09"))
    built.register()
    daemon.run({"bronze.orders": ["2025-02"], "silver.orders": ["2025-02"]})
    built.ask(
        "with gone as (delete from silver.orders where order_id = 99 returning 1), unchecked as "
        "(update meta.versions set is_checked = false where is_current and "
        "table_name = 'silver.orders' and month = '2025-02-01' returning 1) select 1"
    )
    asked = daemon.tick()
    assert asked["silver.orders"] == ["2025-02"]
    assert not daemon.run(asked)
    assert [daemon.tick(), daemon.tick(later=7200)] == [{}, {}]
    # Rebuilt by force it is well, and the rest follows.
    built.build("silver.orders", months="2025-02", force=True)
    daemon.settle()
    assert current(built)


def test_a_table_waits_for_what_its_keys_point_at(half_a_year: Platform) -> None:
    daemon = Daemon(half_a_year)
    asked = daemon.tick()
    # The run was killed behind its first table. The dates are not asked for again at once.
    daemon.run({"bronze.orders": asked["bronze.orders"]})
    again = daemon.tick()
    assert "silver.orders" in again
    assert "gold.dim_date" not in again
    assert "gold.fact_orders" not in again
    assert daemon.run(again)
    later = daemon.tick(later=20)
    assert {"gold.dim_date", "gold.fact_orders"} <= later.keys()
    assert daemon.run(later)
    daemon.settle()
    assert current(half_a_year)


def test_a_check_is_asked_again_once_there_is_what_the_keys_point_at(half_a_year: Platform) -> None:
    daemon = Daemon(half_a_year)
    asked = daemon.tick()
    # Somebody builds everything but the dates.
    assert not daemon.run({t: months for t, months in asked.items() if t != "gold.dim_date"})
    assert "gold.fact_orders" not in daemon.tick()
    daemon.run({"gold.dim_date": asked["gold.dim_date"]})
    daemon.settle()
    assert current(half_a_year)


def test_a_run_without_a_verdict_is_asked_for_later_and_later(half_a_year: Platform) -> None:
    daemon = Daemon(half_a_year)
    asked = daemon.tick()
    # It was killed: nothing of it is there.
    assert daemon.tick() == {}
    assert daemon.tick(later=20) == asked
    assert daemon.tick(later=20) == {}
    assert daemon.tick(later=20) == asked


def test_changed_code_rebuilds_its_months_and_stops_where_contents_do_not_differ(
    built: Platform,
) -> None:
    daemon = Daemon(built)
    assert daemon.tick() == {}
    built.ask(
        "with other as (update meta.versions set code_version = 'a.b.c' "
        "where table_name = 'silver.orders' and is_current returning 1) select count(*) from other"
    )
    ticks = daemon.settle()
    assert len(ticks) == 1
    assert ticks[0]["silver.orders"] == MONTHS
    assert "bronze.orders" not in ticks[0]
    assert (
        built.one("select max(version) from meta.versions where table_name = 'gold.fact_orders'")
        == 1
    )
    assert current(built)


def test_the_sensor_asks_for_one_run_over_the_range(half_a_year: Platform) -> None:
    (sensor,) = (s for s in defs.get_repository_def().sensor_defs if s.name == "tables_follow")
    context = dg.build_sensor_context(
        half_a_year.instance, repository_def=defs.get_repository_def()
    )
    with lent_to_runs(half_a_year.warehouse):
        done = sensor.evaluate_tick(context)
        (request,) = done.run_requests or ()
        assert request.tags[ASSET_PARTITION_RANGE_START_TAG] == MONTHS[0]
        assert request.tags[ASSET_PARTITION_RANGE_END_TAG] == MONTHS[-1]
        assert dg.AssetKey(["gold", "business_kpis"]) in (request.asset_selection or ())
        # What was just asked for is withheld; a run for something else must not take it along.
        half_a_year.land("erp/erp_sales_a.csv", SALES + "1,1,1,1,2025-02-09,5.00\n")
        half_a_year.register()
        again = sensor.evaluate_tick(
            dg.build_sensor_context(
                half_a_year.instance,
                repository_def=defs.get_repository_def(),
                cursor=done.cursor,
            )
        )
    asked = {key.path[1] for r in again.run_requests or () for key in r.asset_selection or ()}
    assert "erp_sales" in asked
    assert "orders" not in asked


def test_a_run_whose_process_is_gone_holds_nothing_up(half_a_year: Platform) -> None:
    daemon = Daemon(half_a_year)
    job = defs.resolve_implicit_global_asset_job_def()
    months = {
        ASSET_PARTITION_RANGE_START_TAG: MONTHS[0],
        ASSET_PARTITION_RANGE_END_TAG: MONTHS[-1],
    }
    host = socket.gethostname()
    with subprocess.Popen(["true"]) as process:
        pass
    runs = [
        half_a_year.instance.create_run_for_job(
            job, status=dg.DagsterRunStatus.STARTED, tags={**months, PROCESS_TAG: owner}
        )
        for owner in (f"{host}:{process.pid}:0", "another-host:1:0")
    ]
    assert daemon.tick() == {}
    close_lost_runs(half_a_year.instance)
    states = [half_a_year.instance.get_run_by_id(r.run_id).status for r in runs]  # type: ignore[union-attr]
    assert states == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED]
    half_a_year.instance.report_run_canceled(runs[1])
    assert daemon.tick()["bronze.orders"] == MONTHS


# --- the landing sensor -------------------------------------------------------------------------


def landing_tick(platform: Platform, cursor: str | None = None) -> tuple[str, list[Any], str]:
    """One tick of the sensor: what it says, the events it reports, and its cursor."""
    sensor = landing_sensor(platform.warehouse.settings)
    context = dg.build_sensor_context(platform.instance, cursor=cursor)
    with lent_to_runs(platform.warehouse):
        done = sensor.evaluate_tick(context)
    return done.skip_message or "", list(done.asset_events), done.cursor or ""


@pytest.fixture
def two_files(platform: Platform) -> Iterator[Platform]:
    """A file that can be taken in, and one that cannot."""
    platform.land("erp/orders_2025-01.csv", ORDERS + order(1, "2025-01-05"))
    platform.land("erp/orders_cut.csv", "order_id,customer_id\n1,2\n")
    return platform


def test_a_tick_takes_files_in_and_reports_each(two_files: Platform) -> None:
    said, events, _ = landing_tick(two_files)
    assert said == "1 taken in; 1 rejected"
    assert [entry["status"] for entry in two_files.ledger()] == ["loaded", "rejected"]
    arrived = [e for e in events if isinstance(e, dg.AssetMaterialization)]
    assert [(e.asset_key.path, e.partition) for e in arrived] == [
        (["landing", "erp", "orders"], "2025-01")
    ]
    refused = [e for e in events if isinstance(e, dg.AssetCheckEvaluation) and not e.passed]
    assert [e.asset_key.path for e in refused] == [["landing", "erp", "orders"]]
    assert "orders_cut.csv" in str(refused[0].description)
    assert "order_date" in str(refused[0].description)


def test_a_tick_with_nothing_new_reports_nothing(two_files: Platform) -> None:
    _, _, cursor = landing_tick(two_files)
    said, events, _ = landing_tick(two_files, cursor)
    assert said == "Nothing new has landed"
    assert events == []


def test_what_a_command_took_in_is_reported_as_well(two_files: Platform) -> None:
    two_files.register()
    said, events, _ = landing_tick(two_files)
    assert said == "1 taken in; 1 rejected"
    assert any(isinstance(e, dg.AssetMaterialization) for e in events)


@pytest.mark.parametrize("how", ["corrected", "withdrawn", "deleted"])
def test_a_refused_file_is_reported_until_it_is_seen_to(two_files: Platform, how: str) -> None:
    _, _, cursor = landing_tick(two_files)
    if how == "corrected":
        two_files.land("erp/orders_cut.csv", ORDERS + order(2, "2025-01-06"))
    elif how == "withdrawn":
        two_files.withdraw("erp/orders_cut.csv")
    else:
        (two_files.landing / "erp/orders_cut.csv").unlink()
    _, events, cursor = landing_tick(two_files, cursor)
    (accepted,) = (e for e in events if isinstance(e, dg.AssetCheckEvaluation))
    assert accepted.passed
    _, events, _ = landing_tick(two_files, cursor)
    assert events == []


def test_an_empty_export_is_taken_in(platform: Platform) -> None:
    platform.land("erp/orders_2025-01.csv", ORDERS)
    said, _, _ = landing_tick(platform)
    assert said == "1 taken in"


def test_a_file_that_matches_no_source_is_named(platform: Platform) -> None:
    platform.land("erp/invoices.csv", "a\n1\n")
    said, events, _ = landing_tick(platform)
    assert said == "Nothing new has landed; left alone: erp/invoices.csv (it matches no source)"
    assert not [e for e in events if not isinstance(e, dg.AssetCheckEvaluation)]


def test_a_thousand_files_are_left_to_one_run(platform: Platform) -> None:
    for number in range(1000):
        platform.land(f"erp/orders_{number}.csv", ORDERS + order(number + 1, "2025-01-05"))
    sensor = landing_sensor(platform.warehouse.settings)
    with lent_to_runs(platform.warehouse):
        began = time.monotonic()
        done = sensor.evaluate_tick(dg.build_sensor_context(platform.instance))
        assert time.monotonic() - began < TICK_SECONDS
        assert [r.job_name for r in done.run_requests or ()] == ["take_in"]
        # Asked for once; the next tick waits for it.
        again = sensor.evaluate_tick(dg.build_sensor_context(platform.instance, cursor=done.cursor))
        assert not again.run_requests
        result = defs.resolve_job_def("take_in").execute_in_process(instance=platform.instance)
    assert result.success
    assert [entry["status"] for entry in platform.ledger()] == ["loaded"] * 1000
    began = time.monotonic()
    said, events, _ = landing_tick(platform)
    assert time.monotonic() - began < TICK_SECONDS
    assert said == "1000 taken in"
    assert [e.partition for e in events if isinstance(e, dg.AssetMaterialization)] == ["2025-01"]


def test_a_tick_reads_no_file_that_it_has_not_judged(
    two_files: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = landing.look

    def look_and_then_more_lands(warehouse: Warehouse) -> landing.Waiting:
        waiting = looked(warehouse)
        two_files.land("erp/orders_2025-02.csv", ORDERS + order(2, "2025-02-05"))
        return waiting

    monkeypatch.setattr(landing, "look", look_and_then_more_lands)
    said, _, cursor = landing_tick(two_files)
    assert said == "1 taken in; 1 rejected"
    monkeypatch.setattr(landing, "look", looked)
    assert landing_tick(two_files, cursor)[0] == "1 taken in"


def test_a_tick_does_not_wait_for_whoever_takes_files_in(two_files: Platform) -> None:
    with transaction(two_files.warehouse.pool) as connection, connection.cursor() as cursor:
        lock(cursor)
        said, _, told = landing_tick(two_files)
        assert said.endswith("another process is taking files in")
        assert two_files.ledger() == []
    assert landing_tick(two_files, told)[0] == "1 taken in; 1 rejected"


def test_a_ticks_log_tells_of_each_file(two_files: Platform) -> None:
    two_files.land("erp/invoices.csv", "a\n1\n")
    sensor = landing_sensor(two_files.warehouse.settings)
    context = dg.build_sensor_context(two_files.instance)
    told: list[str] = []
    context.log.info = told.append  # type: ignore[method-assign]
    with lent_to_runs(two_files.warehouse):
        sensor.evaluate_tick(context)
    assert told == [
        "left alone: erp/invoices.csv: it matches no source",
        "taken in: erp/orders_2025-01.csv: 1 row, 2025-01 to 2025-01",
        told[2],
    ]
    assert told[2].startswith("rejected: erp/orders_cut.csv: orders_cut.csv has no column")


def test_a_compressed_file_counts_as_what_it_unpacks_to(platform: Platform) -> None:
    platform.land("erp/orders.csv.gz", b"\x1f\x8b" + bytes(900_000))
    sensor = landing_sensor(platform.warehouse.settings)
    with lent_to_runs(platform.warehouse):
        done = sensor.evaluate_tick(dg.build_sensor_context(platform.instance))
    assert [r.job_name for r in done.run_requests or ()] == ["take_in"]


def test_a_file_that_is_deleted_while_it_is_read_is_left_out(two_files: Platform) -> None:
    gone = two_files.land("erp/orders_2025-02.csv", ORDERS + order(2, "2025-02-05"))

    def delete(line: str) -> None:
        if "orders_2025-02" in line:
            gone.unlink()

    with lent_to_runs(two_files.warehouse):
        registration = take_in_files(two_files.warehouse, delete)
    assert {d.file: d.status for d in registration.deliveries} == {
        "erp/orders_2025-01.csv": "loaded",
        "erp/orders_cut.csv": "rejected",
    }
    assert any("orders_2025-02" in line for line in said_of(registration))
    said, _, _ = landing_tick(two_files)
    assert said == "1 taken in; 1 rejected"


# --- the month's turn ---------------------------------------------------------------------------


def test_when_a_month_turns_the_one_that_has_ended_and_the_new_one_are_built(
    platform: Platform,
) -> None:
    schedule = defs.resolve_schedule_def("month_turn")
    context = dg.build_schedule_context(
        platform.instance, scheduled_execution_time=datetime(2026, 3, 1, 6, tzinfo=UTC)
    )
    (request,) = schedule.evaluate_tick(context).run_requests or ()
    assert request.tags[ASSET_PARTITION_RANGE_START_TAG] == "2026-02"
    assert request.tags[ASSET_PARTITION_RANGE_END_TAG] == "2026-03"


def test_the_job_of_the_months_turn_builds_what_is_out_of_date_in_them(
    half_a_year: Platform,
) -> None:
    with lent_to_runs(half_a_year.warehouse):
        result = defs.resolve_job_def("current_month").execute_in_process(
            instance=half_a_year.instance,
            tags={
                ASSET_PARTITION_RANGE_START_TAG: MONTHS[-2],
                ASSET_PARTITION_RANGE_END_TAG: MONTHS[-1],
            },
        )
    assert result.success
    built = half_a_year.ask(
        "select distinct to_char(month, 'YYYY-MM') from meta.versions "
        "where table_name = 'gold.fact_orders' order by 1"
    )
    assert built == [(MONTHS[-2],), (MONTHS[-1],)]


def test_a_full_refresh_builds_what_is_up_to_date(built: Platform) -> None:
    before = built.one("select max(version) from meta.versions where table_name = 'bronze.orders'")
    with lent_to_runs(built.warehouse):
        result = defs.resolve_job_def("full_refresh").execute_in_process(
            instance=built.instance,
            tags={
                ASSET_PARTITION_RANGE_START_TAG: MONTHS[0],
                ASSET_PARTITION_RANGE_END_TAG: MONTHS[-1],
            },
        )
    assert result.success
    after = built.ask(
        "select distinct version from meta.versions where is_current "
        "and table_name in ('bronze.orders', 'gold.fact_orders')"
    )
    assert after == [(before + 1,)]
    assert current(built)
