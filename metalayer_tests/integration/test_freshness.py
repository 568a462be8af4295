"""Stories of lateness: which month is due, who lacks it, and where that is seen without a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from metalayer.assets.checks import DUE_CHECK
from metalayer.assets.keys import asset_key
from metalayer.assets.resources import lent_to_runs
from metalayer.assets.tables import landing_key
from metalayer.automation.freshness import due_checks, lateness_sensor
from metalayer.catalog import catalog
from metalayer.inspection import reading, table_status
from metalayer.lateness import Punctuality, punctuality
from metalayer.settings import ENV_PREFIX
from metalayer.warehouse.pool import transaction
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
SNAPSHOT = "customer_id,customer_name,email,region\n"
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
START = date(2024, 1, 1)
#: Sources are due on the third, all other tables on the fifth.
IN_TIME = datetime(2025, 7, 3, 5, tzinfo=UTC)
SOURCES_DUE = datetime(2025, 7, 4, tzinfo=UTC)
ALL_DUE = datetime(2025, 7, 6, tzinfo=UTC)


def orders(*months: str) -> str:
    rows = [f"{n},7,P00001,{m}-05,2,5.00,10.00,PAID\n" for n, m in enumerate(months, 1)]
    return ORDERS + "".join(rows)


def land_all(platform: Platform, *months: str) -> None:
    """Every source's export of these months."""
    for number, m in enumerate(months, 1):
        platform.land(
            f"crm/customers_{m}.csv",
            CUSTOMERS + f"{number},Ada,Berg,a@example.org,,Aarhus,DK,8000,,2025-01-01,{m}-05\n",
        )
        platform.land(f"crm/crm_customers_{m}.csv", SNAPSHOT + "7,Ada Berg,a@example.org,North\n")
        platform.land(f"erp/erp_sales_{m}.csv", SALES + f"{number},1,7,2,{m}-06,10.00\n")
    platform.land("erp/orders.csv", orders(*months))


def due(platform: Platform, now: datetime, start: date = START) -> dict[str, Punctuality]:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        return punctuality(cursor, start, now)


def late(platform: Platform, now: datetime) -> set[str]:
    return {name for name, found in due(platform, now).items() if found.is_late}


def test_a_table_that_was_never_built_is_late(platform: Platform) -> None:
    found = due(platform, ALL_DUE)
    assert set(found) == set(catalog().specs)
    assert all(p.is_late for p in found.values())
    orders_of_june = found["bronze.orders"]
    assert orders_of_june.due_month == date(2025, 6, 1)
    assert orders_of_june.newest_month is None
    assert orders_of_june.late_since == datetime(2025, 7, 3, 6, tzinfo=UTC)
    assert orders_of_june.verdict == (
        "bronze.orders is late: 2025-06 was due on 2025-07-03 06:00 UTC, and no earlier month is "
        "there either."
    )
    assert "Land the export of 2025-06 that fills bronze.orders" in orders_of_june.next_step
    # A table that is made from no other spans the months that anything landed for.
    assert "Land the export of 2025-06" in found["gold.dim_date"].next_step


def test_a_month_becomes_late_when_its_hour_comes(platform: Platform) -> None:
    land_all(platform, "2025-04", "2025-05")
    assert platform.build().succeeded
    assert late(platform, IN_TIME) == set()
    sources = {n for n, s in catalog().specs.items() if s.source is not None}
    assert late(platform, SOURCES_DUE) == sources
    assert late(platform, ALL_DUE) == set(catalog().specs)
    # Months that fail to come one after another: late since the first of them was due.
    much_later = due(platform, datetime(2026, 1, 20, tzinfo=UTC))["gold.business_kpis"]
    assert much_later.due_month == date(2025, 12, 1)
    assert much_later.newest_month == date(2025, 5, 1)
    assert much_later.late_since == datetime(2025, 7, 5, 6, tzinfo=UTC)


def test_an_old_month_that_lands_again_makes_nothing_punctual(platform: Platform) -> None:
    land_all(platform, "2025-05")
    assert platform.build().succeeded
    before = late(platform, ALL_DUE)
    platform.land("erp/orders_again.csv", orders("2025-05").replace("\n1,", "\n99,"))
    assert platform.build().succeeded
    assert late(platform, ALL_DUE) == before == set(catalog().specs)
    land_all(platform, "2025-05", "2025-06")
    assert platform.build().succeeded
    assert late(platform, ALL_DUE) == set()


def test_a_month_built_without_all_it_is_made_from_is_not_there(platform: Platform) -> None:
    land_all(platform, "2025-05")
    platform.land("erp/orders_2025-06.csv", ORDERS + "9,7,P00001,2025-06-05,2,5.00,10.00,PAID\n")
    assert platform.build().succeeded
    months = platform.ask(
        "select month from meta.versions where table_name = 'gold.fact_orders' and is_current"
    )
    assert (date(2025, 6, 1),) in months
    found = due(platform, ALL_DUE)
    assert not found["silver.orders"].is_late
    facts = found["gold.fact_orders"]
    assert facts.is_late
    # Its products are known from orders and sales, its customers from the CRM.
    assert set(facts.waits_for) >= {"bronze.customers", "bronze.crm_customers", "bronze.erp_sales"}
    assert "bronze.orders" not in facts.waits_for
    assert facts.next_step.startswith("Land the export of 2025-06 that fills bronze.")


def test_a_month_that_was_withdrawn_is_not_there(platform: Platform) -> None:
    platform.land("erp/orders_5.csv", orders("2025-05"))
    platform.land("erp/orders_6.csv", ORDERS + "9,7,P00001,2025-06-05,2,5.00,10.00,PAID\n")
    assert platform.build().succeeded
    assert not due(platform, ALL_DUE)["silver.orders"].is_late
    platform.withdraw("orders_6.csv")
    assert platform.build().succeeded
    found = due(platform, ALL_DUE)
    assert found["silver.orders"].newest_month == date(2025, 5, 1)
    assert found["gold.dim_date"].newest_month == date(2025, 5, 1)


def test_no_month_before_the_first_is_due(platform: Platform) -> None:
    found = due(platform, ALL_DUE, start=date(2025, 7, 1))["gold.dim_date"]
    assert (found.is_late, found.due_month) == (False, None)
    assert found.verdict == "No month of gold.dim_date is due yet."


def test_a_source_that_need_not_come_holds_nobody_up(platform: Platform) -> None:
    land_all(platform, "2025-05", "2025-06")
    (platform.landing / "crm/crm_customers_2025-06.csv").unlink()
    assert platform.build().succeeded
    assert "gold.fact_orders" in late(platform, ALL_DUE)
    # As its contract would have noted it with due = None.
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "update meta.tables set due_day = null, due_hour = null "
            "where table_name like '%crm_customers'"
        )
    assert late(platform, ALL_DUE) == set()
    found = due(platform, ALL_DUE)["silver.crm_customers"]
    assert "due = None" in found.verdict


def test_status_says_what_is_late_and_since_when(platform: Platform) -> None:
    land_all(platform, "2025-05")
    assert platform.build().succeeded
    with reading(platform.warehouse.settings) as connection:
        tables = {t.table: t for t in table_status(connection, START, SOURCES_DUE)}
    assert tables["silver.orders"].late_since == datetime(2025, 7, 3, 6, tzinfo=UTC)
    assert tables["silver.orders"].due_month == "2025-06"
    assert tables["silver.orders"].waits_for == ["bronze.orders", "silver.orders"]
    assert tables["gold.dim_date"].due_month == "2025-05"
    assert tables["gold.dim_date"].late_since is None


def test_status_is_printed_with_what_is_late(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from metalayer.cli import main

    use(monkeypatch, platform)
    monkeypatch.setenv("COLUMNS", "140")
    platform.land("erp/orders.csv", orders("2025-05"))
    assert platform.build().succeeded
    assert main(["status"]) == 0
    said = capsys.readouterr()
    due_now = catalog().specs["silver.orders"].due.newest_month(datetime.now(UTC))
    assert f"✗ {due_now:%Y-%m} is due and missing" in said.err
    assert "2025-07-03" in said.out
    assert main(["status", "--json"]) == 0
    shown = {t["table"]: t for t in json.loads(capsys.readouterr().out)}
    assert shown["silver.orders"]["late_since"] == "2025-07-03T06:00:00+00:00"
    assert shown["silver.orders"]["due_month"] == f"{due_now:%Y-%m}"


# --- in Dagster --------------------------------------------------------------------------------


def use(monkeypatch: pytest.MonkeyPatch, platform: Platform) -> None:
    """Let what loads its settings itself find the platform."""
    settings = platform.warehouse.settings
    assert settings.database_url is not None
    monkeypatch.setenv(f"{ENV_PREFIX}DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv(f"{ENV_PREFIX}HOME", str(settings.home))
    monkeypatch.setenv(f"{ENV_PREFIX}START_MONTH", "2024-01")


def tick(platform: Platform, now: datetime, cursor: str | None) -> tuple[dict[str, Any], str]:
    """A tick of the sensor as the daemon does it: its events are reported, its cursor kept."""
    sensor = lateness_sensor(catalog(), lambda: now)
    context = dg.build_sensor_context(instance=platform.instance, cursor=cursor)
    found = sensor.evaluate_tick(context)
    for event in found.asset_events:
        platform.instance.report_runless_asset_event(event)
    assert found.run_requests == []
    told = {".".join(e.asset_key.path): e for e in found.asset_events}
    return told, found.cursor or cursor or ""


def shown(platform: Platform, table: str) -> Any:
    """The check's latest execution as the storage, and so the UI, has it."""
    (record,) = platform.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(asset_key(table), DUE_CHECK), limit=1
    )
    return record


def test_the_sensor_tells_once_and_then_only_what_changes(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, platform)
    land_all(platform, "2025-05")
    assert platform.build().succeeded
    told, cursor = tick(platform, IN_TIME, None)
    assert set(told) == set(catalog().specs)
    assert all(event.passed for event in told.values())
    told, cursor = tick(platform, IN_TIME + timedelta(minutes=1), cursor)
    assert told == {}
    told, cursor = tick(platform, SOURCES_DUE, cursor)
    assert set(told) == {n for n, s in catalog().specs.items() if s.source is not None}
    assert not any(event.passed for event in told.values())
    # It comes, and is no longer late. The UI shows no result from before a materialization, so
    # whoever was materialized is told of again; who was not touched is not.
    platform.land("erp/orders_6.csv", ORDERS + "9,7,P00001,2025-06-05,2,5.00,10.00,PAID\n")
    assert platform.build("bronze.orders", "silver.orders").succeeded
    told, cursor = tick(platform, SOURCES_DUE, cursor)
    assert {name: event.passed for name, event in told.items()} == {
        "bronze.orders": True,
        "silver.orders": True,
    }
    platform.land("erp/orders_old.csv", ORDERS + "10,7,P00001,2025-05-05,2,5.00,10.00,PAID\n")
    assert platform.build("bronze.orders").succeeded
    told, cursor = tick(platform, SOURCES_DUE, cursor)
    assert set(told) == {"bronze.orders"}
    told, cursor = tick(platform, SOURCES_DUE, cursor)
    assert told == {}


def test_what_the_sensor_tells_is_stored_as_the_checks_result(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, platform)
    land_all(platform, "2025-05")
    assert platform.build().succeeded
    tick(platform, ALL_DUE, None)
    record = shown(platform, "gold.business_kpis")
    assert record.status is AssetCheckExecutionRecordStatus.FAILED
    evaluation = record.evaluation
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert evaluation.description.startswith(
        "gold.business_kpis is late: 2025-06 was due on 2025-07-05 06:00 UTC, the newest month "
        "there is 2025-05. Land the export of 2025-06"
    )
    facts = {name: value.value for name, value in evaluation.metadata.items()}
    assert facts["due_month"] == "2025-06"
    assert facts["newest_month"] == "2025-05"
    assert facts["late_since"] == datetime(2025, 7, 5, 6, tzinfo=UTC).timestamp()


def test_without_a_warehouse_the_sensor_waits(
    monkeypatch: pytest.MonkeyPatch, empty_database: str
) -> None:
    monkeypatch.setenv(f"{ENV_PREFIX}DATABASE_URL", empty_database)
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance)
        found = lateness_sensor(catalog()).evaluate_tick(context)
    assert found.asset_events == []
    assert found.skip_message == "There is no warehouse yet: nothing was ever built."


def test_a_warehouse_that_cannot_be_reached_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(
        f"{ENV_PREFIX}DATABASE_URL", "postgresql+psycopg2://me:geheim@127.0.0.1:1/none"
    )
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, cursor="{}")
        found = lateness_sensor(catalog()).evaluate_tick(context)
    assert found.asset_events == []
    assert "cannot be reached" in str(found.skip_message)
    assert "geheim" not in str(found.skip_message)


def test_the_check_can_be_executed_by_itself(platform: Platform) -> None:
    land_all(platform, "2025-05")
    assert platform.build().succeeded
    from metalayer.definitions import defs

    checks = due_checks(catalog(), lambda: SOURCES_DUE)
    key = dg.AssetCheckKey(asset_key("silver.orders"), DUE_CHECK)
    other = dg.AssetCheckKey(asset_key("gold.dim_date"), DUE_CHECK)
    job = dg.define_asset_job("ask", dg.AssetSelection.checks(key, other))
    asking = dg.Definitions(
        assets=[dg.AssetSpec(k) for k in {asset_key(n) for n in catalog().specs}],
        asset_checks=checks,
        jobs=[job],
        resources=defs.resources,
    )
    with lent_to_runs(platform.warehouse):
        result = asking.resolve_job_def("ask").execute_in_process(instance=platform.instance)
    assert result.success  # it only warns
    found = {e.asset_check_key: e.passed for e in result.get_asset_check_evaluations()}
    assert found == {key: False, other: True}


def test_a_build_does_not_ask_what_is_late(platform: Platform) -> None:
    platform.land("erp/orders.csv", orders("2025-05"))
    outcome = platform.build()
    assert outcome.succeeded
    assert not any(DUE_CHECK in warning or "late" in warning for warning in outcome.warnings)
    history: Callable[..., Any] = (
        platform.instance.event_log_storage.get_asset_check_execution_history
    )
    asked = {
        spec.full_name: len(history(dg.AssetCheckKey(asset_key(spec.full_name), DUE_CHECK), 1))
        for spec in catalog().specs.values()
    }
    assert set(asked.values()) == {0}


@pytest.mark.parametrize("table", sorted(catalog().specs))
def test_every_table_has_a_freshness_policy_and_the_check(table: str) -> None:
    from metalayer.definitions import defs

    spec, graph = catalog().specs[table], defs.resolve_asset_graph()
    policy = graph.get(asset_key(table)).freshness_policy
    assert policy is not None
    assert policy.fail_window.to_timedelta() == spec.fresh_within
    assert timedelta() < policy.warn_window.to_timedelta() < spec.fresh_within
    assert dg.AssetCheckKey(asset_key(table), DUE_CHECK) in graph.asset_check_keys


@pytest.mark.parametrize("source", sorted(catalog().sources))
def test_every_source_has_a_freshness_policy(source: str) -> None:
    from metalayer.definitions import defs

    policy = defs.resolve_asset_graph().get(landing_key(source)).freshness_policy
    assert policy is not None
    assert policy.fail_window.to_timedelta() == catalog().sources[source].fresh_within
