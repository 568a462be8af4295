"""Stories of building: what is rebuilt, what is refused, what readers see."""

from __future__ import annotations

import threading
from datetime import date
from typing import Any

import dagster as dg
import pytest
from psycopg2 import sql

from metalayer.catalog import catalog
from metalayer.warehouse.pool import transaction
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)


def order(
    number: int, day: str, quantity: int = 2, price: str = "5.00", status: str = "PAID"
) -> str:
    total = f"{quantity * float(price):.2f}"
    return f"{number},7,P00001,{day},{quantity},{price},{total},{status}\n"


def customer(number: int, updated: str, city: str = "Aarhus") -> str:
    return f"{number},Ada,Berg,ada@example.org,,{city},DK,8000,1990-01-01,2025-01-01,{updated}\n"


def test_a_row_that_breaks_a_rule_is_quarantined_with_its_line(platform: Platform) -> None:
    platform.land(
        "erp/orders.csv",
        ORDERS
        + order(1, "2025-01-05")
        + order(2, "2025-01-06", quantity=0)
        + order(3, "2025-01-07"),
    )
    assert platform.build().succeeded
    assert platform.ask("select order_id from silver.orders order by 1") == [(1,), (3,)]
    assert platform.rejects("silver.orders") == [
        ("silver.orders", "2025-01", 3, "quantity", "must be > 0", "0")
    ]
    raw = platform.one("select raw::jsonb ->> 'order_id' from meta.quarantine")
    assert raw == "2"
    assert platform.ledger()[0] | {"reason": None} == {
        "file": "erp/orders.csv",
        "status": "loaded",
        "rows_read": 3,
        "rows_loaded": 2,
        "rows_rejected": 1,
        "rows_superseded": 0,
        "reason": None,
    }


def test_a_value_that_cannot_be_cast_is_named_as_delivered(platform: Platform) -> None:
    platform.land(
        "crm/customers.csv",
        CUSTOMERS + customer(1, "2025-01-05").replace("1990-01-01", "1990-02-30"),
    )
    assert platform.build().succeeded
    assert platform.rejects("silver.customers") == [
        ("silver.customers", "2025-01", 2, "dob", "not a date", "1990-02-30")
    ]


def test_several_broken_rules_are_all_told(platform: Platform) -> None:
    bad = "x,7,P00001,2025-01-05,0,5.00,10.00,LOST\n"
    platform.land("erp/orders.csv", ORDERS + bad)
    assert platform.build().succeeded
    ((violations,),) = platform.ask("select violations from meta.quarantine")
    assert [(v["column"], v["rule"], v["value"]) for v in violations] == [
        ("order_id", "not a bigint", "x"),
        ("quantity", "must be > 0", "0"),
        ("status", "must be one of (PENDING, SHIPPED, COMPLETED, CANCELLED)", "LOST"),
        (None, "total_amount must be quantity times unit_price, to a cent", None),
    ]


def test_too_many_bad_rows_leave_the_published_month_untouched(platform: Platform) -> None:
    good = "".join(order(n, "2025-01-05") for n in range(1, 101))
    platform.land("erp/orders.csv", ORDERS + good)
    assert platform.build().succeeded
    bad = "".join(order(n, "2025-01-05", quantity=0) for n in range(1, 41))
    rest = "".join(order(n, "2025-01-05") for n in range(41, 101))
    platform.land("erp/orders.csv", ORDERS + bad + rest + order(200, "2025-02-01"))
    outcome = platform.build()
    assert not outcome.succeeded
    (failed,) = [r for r in outcome.months if r.outcome == "failed"]
    assert (failed.table, failed.month) == ("silver.orders", date(2025, 1, 1))
    assert failed.problem is not None
    assert "40 of 100 rows break the contract (limit 10%)" in failed.problem
    first, *examples = failed.problem.splitlines()
    assert first.endswith("quantity must be > 0: 40 rows")
    assert len(examples) == 10
    assert all(e.endswith(" quantity must be > 0 '0'") for e in examples)
    # January stays as it was, February goes on.
    assert platform.one("select count(*) from silver.orders where order_date < '2025-02-01'") == 100
    assert platform.one("select count(*) from gold.fact_orders") == 101


def test_a_personal_value_is_masked_in_messages(platform: Platform) -> None:
    rows = "".join(customer(n, "2025-01-05").replace("1990-01-01", "31.2.1990") for n in range(40))
    platform.land("crm/customers.csv", CUSTOMERS + rows)
    outcome = platform.build()
    (failed,) = [r for r in outcome.months if r.outcome == "failed"]
    assert "dob not a date: 40 rows\n" in str(failed.problem)
    assert " dob not a date ***\n" in str(failed.problem)
    assert "1990" not in str(failed.problem)


def test_a_corrected_file_replaces_the_earlier_one_without_ghosts(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build().succeeded
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=3))
    assert platform.build().succeeded
    assert platform.ask("select order_id, quantity from gold.fact_orders") == [(1, 3)]
    assert [entry["status"] for entry in platform.ledger()] == ["superseded", "loaded"]
    assert platform.balances()


def test_an_order_that_moves_leaves_its_old_month(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-01-06"))
    assert platform.build().succeeded
    platform.land("erp/orders_2.csv", ORDERS + order(1, "2025-03-05"))
    outcome = platform.build()
    assert outcome.succeeded, outcome.failed_checks
    assert platform.ask("select order_id, order_date from gold.fact_orders order by 1") == [
        (1, date(2025, 3, 5)),
        (2, date(2025, 1, 6)),
    ]
    assert platform.ledger()[0]["rows_superseded"] == 1
    assert platform.balances()


def test_only_the_months_that_changed_are_rebuilt(platform: Platform) -> None:
    for month in range(1, 7):
        platform.land(f"erp/orders_{month}.csv", ORDERS + order(month, f"2025-{month:02}-05"))
    assert platform.build().succeeded
    platform.land("erp/orders_late.csv", ORDERS + order(99, "2025-02-09"))
    outcome = platform.build()
    february = date(2025, 2, 1)
    for table in ("bronze.orders", "silver.orders", "gold.fact_orders", "gold.agg_daily_sales"):
        rebuilt = {r.month for r in outcome.months if r.table == table and r.outcome != "current"}
        assert rebuilt == {february}, table
    assert platform.one("select max(version) from meta.versions where month < %s", february) == 1


def test_the_same_bytes_again_are_a_duplicate_and_rebuild_nothing(platform: Platform) -> None:
    content = ORDERS + order(1, "2025-01-05")
    platform.land("erp/orders_a.csv", content)
    assert platform.build().succeeded
    platform.land("erp/orders_b.csv", content)
    platform.land("erp/orders_a.csv", content)
    assert platform.build().months == []
    platform.land("erp/orders_b.csv", content)
    assert platform.build().months == []
    assert [e["status"] for e in platform.ledger()] == ["loaded", "duplicate"]


def test_readers_see_the_old_month_or_the_new_one_while_it_is_replaced(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + "".join(order(n, "2025-01-05") for n in range(50)))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    stop, seen = threading.Event(), set()

    def poll() -> None:
        while not stop.is_set():
            with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
                cursor.execute("select count(*), count(distinct quantity) from silver.orders")
                seen.add(cursor.fetchone())

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for quantity in (3, 4, 5):
            rows = "".join(order(n, "2025-01-05", quantity=quantity) for n in range(50))
            platform.land("erp/orders.csv", ORDERS + rows)
            assert platform.build("bronze.orders", "silver.orders").succeeded
    finally:
        stop.set()
        reader.join()
    assert seen == {(50, 1)}


def test_a_long_report_on_the_table_holds_no_publish_up(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build().succeeded
    with transaction(platform.warehouse.pool) as report, report.cursor() as cursor:
        cursor.execute("select quantity from silver.orders")
        assert cursor.fetchall() == [(2,)]
        platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=9))
        assert platform.build().succeeded
    assert platform.one("select quantity from silver.orders") == 9
    # The rows it replaced are kept as the earlier version, wherever they lie now.
    (leaf,) = platform.ask(
        "select leaf from meta.versions where table_name = 'silver.orders' and version = 1"
    )
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("select quantity from {}").format(sql.Identifier("months", leaf[0])))
        assert cursor.fetchall() == [(2,)]


def test_two_builds_of_the_same_month_queue(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + "".join(order(n, "2025-01-05") for n in range(200)))
    platform.register()
    outcomes: list[Any] = []

    def run() -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            other = Platform(platform.warehouse, instance)
            outcomes.append(other.build("bronze.orders", "silver.orders"))

    builds = [threading.Thread(target=run) for _ in range(2)]
    for build in builds:
        build.start()
    for build in builds:
        build.join()
    assert all(outcome.succeeded for outcome in outcomes)
    assert platform.one("select max(version) from meta.versions") == 1
    assert platform.one("select count(*) from silver.orders") == 200


def test_a_failed_month_fails_the_step_through_its_type(platform: Platform) -> None:
    platform.land(
        "erp/orders.csv",
        ORDERS
        + "".join(order(n, "2025-01-05", quantity=0) for n in range(30))
        + order(99, "2025-02-01"),
    )
    outcome = platform.build()
    assert not outcome.succeeded
    (run,) = [platform.instance.get_run_by_id(outcome.runs[0])]
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    events = platform.instance.all_logs(run.run_id)
    failures = [
        e.dagster_event for e in events if e.dagster_event and e.dagster_event.is_step_failure
    ]
    assert [f.step_key for f in failures] == ["silver__orders"]
    # The month that passed is materialized, with its data version, although the step failed.
    records = platform.instance.fetch_materializations(dg.AssetKey(["silver", "orders"]), limit=10)
    assert [r.partition_key for r in records.records] == ["2025-02"]


@pytest.mark.parametrize("table", sorted(catalog().specs))
def test_every_table_is_an_asset_with_what_a_click_shows(table: str) -> None:
    from metalayer.definitions import defs

    spec = catalog().specs[table]
    (shown,) = [s for s in defs.resolve_all_asset_specs() if s.key == dg.AssetKey(table.split("."))]
    assert shown.group_name == spec.layer
    assert shown.owners == [spec.owner]
    assert shown.kinds
    assert spec.description in (shown.description or "")
    assert isinstance(shown.partitions_def, dg.MonthlyPartitionsDefinition)
    assert shown.metadata["dagster/table_name"] == table
    schema = shown.metadata["dagster/column_schema"]
    assert [c.name for c in schema.schema.columns] == [c.name for c in spec.columns]
    assert all(c.description for c in schema.schema.columns)


def test_a_row_from_the_future_is_loaded_once_its_month_has_come(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2026-06-05") + order(2, "2026-07-05"))
    assert platform.build().succeeded
    assert platform.ask("select order_id from gold.fact_orders") == [(1,)]
    assert platform.rejects("bronze.orders")[0][1:5] == (
        "2026-07",
        3,
        "order_date",
        "after the current month 2026-06",
    )
    platform.today = date(2026, 7, 1)
    assert platform.build().succeeded
    assert platform.ask("select order_id from gold.fact_orders order by 1") == [(1,), (2,)]
    assert platform.rejects() == []
    assert platform.balances()
