"""Stories of what goes wrong in the middle: broken files, failed months, changed contracts."""

from __future__ import annotations

import sys
import threading
from datetime import date
from typing import Any

import pytest
from psycopg2 import sql

from metalayer.assets.headless import build
from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.contracts.contract import REJECTS_ALWAYS_TOLERATED, ColumnSpec, TableSpec
from metalayer.errors import ContractError
from metalayer.landing import load
from metalayer.warehouse.build import TableJob, build_months
from metalayer.warehouse.migrate import ensure_tables
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.stage import fill_from_select
from metalayer_tests.integration.test_build import ORDERS, order
from metalayer_tests.story import Platform

CRM = "customer_id,customer_name,email,region\n"


def crm(number: int, name: str) -> str:
    return f"{number},{name},{name.lower()}@example.org,N\n"


def test_a_broken_version_between_two_equal_ones_keeps_the_rows(platform: Platform) -> None:
    content = ORDERS + order(1, "2025-01-05")
    platform.land("erp/orders.csv", content)
    assert platform.build().succeeded
    platform.land("erp/orders.csv", "this,is,not,it\n")
    assert platform.build().months == []
    platform.land("erp/orders.csv", content)
    assert platform.build().months == []
    assert platform.ask("select order_id from silver.orders") == [(1,)]
    assert [e["status"] for e in platform.ledger()] == ["loaded", "rejected"]


def test_equal_snapshots_of_two_months_are_both_loaded(platform: Platform) -> None:
    for month in ("2025-01", "2025-02"):
        platform.land(f"crm/crm_customers_{month}.csv", CRM + crm(1, "Ada"))
    assert platform.build().succeeded
    assert platform.ask("select month from silver.crm_customers order by 1") == [
        (date(2025, 1, 1),),
        (date(2025, 2, 1),),
    ]


def test_a_snapshot_that_returns_to_an_earlier_content_counts(platform: Platform) -> None:
    for file, name in (("a", "Ada"), ("b", "Eve"), ("c", "Ada")):
        platform.land(f"crm/crm_customers_2025-01_{file}.csv", CRM + crm(1, name))
        assert platform.build().succeeded
    assert platform.ask("select customer_name from silver.crm_customers") == [("Ada",)]
    assert platform.balances()


def test_an_older_snapshot_that_is_only_touched_does_not_count_again(platform: Platform) -> None:
    for file, name in (("a", "Ada"), ("b", "Eve"), ("a", "Ada")):
        platform.land(f"crm/crm_customers_2025-01_{file}.csv", CRM + crm(1, name))
        assert platform.build().succeeded
    assert platform.ask("select customer_name from silver.crm_customers") == [("Eve",)]
    assert [e["status"] for e in platform.ledger()] == ["loaded", "loaded"]


def test_nothing_is_built_from_a_month_that_failed(platform: Platform) -> None:
    bad = "".join(order(n, "2025-02-05", quantity=0) for n in range(100, 140))
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + bad + order(2, "2025-03-05"))
    outcome = platform.build()
    assert [(r.table, r.month) for r in outcome.months if r.outcome == "failed"] == [
        ("silver.orders", date(2025, 2, 1))
    ]
    built = "select distinct month from meta.versions where table_name = %s order by 1"
    # March's lifetime values would lack February, and look right.
    for table in ("gold.fact_orders", "gold.agg_monthly_sales", "gold.customer_360"):
        assert platform.ask(built, table) == [(date(2025, 1, 1),)], table
    assert platform.ask(built, "silver.orders") == [(date(2025, 1, 1),), (date(2025, 3, 1),)]


def test_a_replacement_that_cannot_be_used_does_not_retire_the_good_version(
    platform: Platform,
) -> None:
    rows = "".join(order(n, "2025-01-05") for n in range(60))
    platform.land("erp/orders.csv", ORDERS + rows)
    assert platform.build().succeeded
    platform.land("erp/orders.csv", ORDERS + rows.replace("2025-01-05", "05-01-2025"))
    assert platform.build().months == []
    assert platform.one("select count(*) from silver.orders") == 60
    refused = platform.ledger()[-1]
    assert refused["status"] == "rejected"
    assert "60 of 60 rows cannot be used (limit 10%)" in refused["reason"]
    assert "month cannot be told: 60 rows" in refused["reason"]


def test_a_row_that_leaves_a_month_which_fails_holds_up_gold(platform: Platform) -> None:
    many = range(1, REJECTS_ALWAYS_TOLERATED + 2)
    good = "".join(order(n, "2025-01-05") for n in many)
    platform.land("erp/orders.csv", ORDERS + good + order(99, "2025-01-05"))
    assert platform.build().succeeded
    lost = "".join(order(n, "2025-01-05", status="LOST") for n in many)
    platform.land("erp/orders.csv", ORDERS + lost + order(99, "2025-02-05"))
    outcome = platform.build()
    assert [(r.table, r.month.month) for r in outcome.months if r.outcome == "failed"] == [
        ("silver.orders", 1)
    ]
    # January keeps what it had, so the order is there twice: said, and kept out of gold.
    assert "silver.orders: Keys stand in more than one month of silver.orders: 99" in (
        outcome.failed_checks
    )
    assert platform.one("select count(*) from gold.fact_orders where order_id = 99") == 1
    assert platform.build().failed_checks
    platform.land("erp/orders.csv", ORDERS + good + order(99, "2025-02-05"))
    assert platform.build().succeeded
    moved = "select order_date from gold.fact_orders where order_id = 99"
    assert platform.one(moved) == date(2025, 2, 5)


def test_one_absurd_row_does_not_block_gold(platform: Platform) -> None:
    absurd = "".join(f"{n},7,P00001,2025-01-05,9223372036854775807,0,0,PAID\n" for n in (1, 2))
    platform.land("erp/orders.csv", ORDERS + absurd + order(3, "2025-01-06"))
    outcome = platform.build()
    assert outcome.succeeded, outcome.errors
    assert platform.ask("select orders from gold.agg_monthly_sales") == [(1,)]
    assert [r[4] for r in platform.rejects("silver.orders")] == ["must be <= 1000000000"] * 2


def test_gold_rows_outside_their_window_fail_it(platform: Platform) -> None:
    spec = catalog().specs["gold.dim_date"]
    columns = ", ".join(f"null::{c.type}" if c.name != "date" else "date" for c in spec.stored)

    def fill(cursor: Any, stage: Any, start: date, end: date) -> None:
        shifted = f"select {columns} from (select date '2031-01-01' as date) as x"
        fill_from_select(cursor, stage, shifted)

    job = TableJob(spec, "shifted", (), lambda *_: {}, fill, lambda *_: None)
    months = [date(2025, 1, 1)]
    (result,) = build_months(platform.warehouse.pool, job, months, workers=1)
    assert result.outcome == "failed"
    assert "1 rows whose date is not in the months" in str(result.problem)


def test_a_registration_during_a_build_fails_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1, "2025-01-05"))
    platform.register()
    reading = load.parsed_deliveries

    def while_it_reads(*values: Any, **options: Any) -> Any:
        # Another command registers a delivery of the same month just now.
        monkeypatch.setattr(load, "parsed_deliveries", reading)
        platform.land("erp/orders_2.csv", ORDERS + order(2, "2025-01-06"))
        platform.register()
        return reading(*values, **options)

    monkeypatch.setattr(load, "parsed_deliveries", while_it_reads)
    outcome = build(platform.warehouse, platform.instance)
    assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
    assert platform.ask("select order_id from gold.fact_orders order by 1") == [(1,), (2,)]


def test_a_backup_holds_no_publish_up(platform: Platform) -> None:
    settings = platform.warehouse.settings.model_copy(update={"keep_versions": 1})
    platform.warehouse = Warehouse(platform.warehouse.pool, settings)
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    ((leaf,),) = platform.ask("select leaf from meta.versions where table_name = 'silver.orders'")
    with transaction(platform.warehouse.pool) as backup, backup.cursor() as cursor:
        cursor.execute(
            sql.SQL("lock table {} in access share mode").format(sql.Identifier("months", leaf))
        )
        platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=8))
        assert platform.build("bronze.orders", "silver.orders").succeeded
        assert platform.one("select quantity from silver.orders") == 8
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=9))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    versions = "select version from meta.versions where table_name = 'silver.orders'"
    assert platform.ask(versions) == [(3,)]


def test_months_before_a_later_start_month_become_empty_and_the_rest_goes_on(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2023-05-05") + order(2, "2025-01-05"))
    assert platform.build().succeeded
    later = platform.warehouse.settings.model_copy(update={"start_month": date(2024, 1, 1)})
    # The definitions are as a process that starts with the new setting has them.
    monkeypatch.setenv("METALAYER_START_MONTH", "2024-01")
    monkeypatch.delitem(sys.modules, "metalayer.definitions")
    moved = Platform(type(platform.warehouse)(platform.warehouse.pool, later), platform.instance)
    moved.land("erp/orders_2.csv", ORDERS + order(3, "2025-02-05"))
    outcome = moved.build()
    assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
    assert platform.ask("select order_id from gold.fact_orders order by 1") == [(2,), (3,)]
    assert [(r[1], r[4]) for r in platform.rejects("bronze.orders")] == [
        ("2023-05", "before the first month 2024-01")
    ]
    assert platform.balances()


def _retyped(spec: TableSpec, column: str, sql_type: str) -> TableSpec:
    columns = tuple(
        ColumnSpec(**{**vars(c), "type": sql_type}) if c.name == column else c for c in spec.columns
    )
    return TableSpec(**{**vars(spec), "columns": columns})


def test_a_retyped_column_under_a_view_is_made_anew(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build().succeeded
    retyped = _retyped(catalog().specs["gold.customer_360"], "orders", "numeric(18,2)")
    with transaction(platform.warehouse.pool) as connection:
        ensure_tables(connection, [retyped])
    kind = (
        "select data_type from information_schema.columns "
        "where table_name = %s and column_name = %s"
    )
    assert platform.one(kind, "customer_360", "orders") == "numeric"
    assert platform.one("select count(*) from gold.customer_360_current") == 1


def test_a_view_of_the_users_own_is_never_dropped(platform: Platform) -> None:
    platform.ask("create view public.mine as select orders from gold.agg_monthly_sales; select 1")
    retyped = _retyped(catalog().specs["gold.agg_monthly_sales"], "orders", "numeric(18,2)")
    with (
        pytest.raises(ContractError, match=r"view mine depends on column orders"),
        transaction(platform.warehouse.pool) as connection,
    ):
        ensure_tables(connection, [retyped])
    assert platform.ask("select * from public.mine") == []


def test_preparing_again_waits_for_no_reader(platform: Platform) -> None:
    with transaction(platform.warehouse.pool) as report, report.cursor() as reading:
        reading.execute("select count(*) from gold.dim_customer")
        done = threading.Event()

        def prepare_again() -> None:
            with transaction(platform.warehouse.pool) as connection:
                ensure_tables(connection, list(catalog().specs.values()))
            done.set()

        thread = threading.Thread(target=prepare_again)
        thread.start()
        waited_for_nobody = done.wait(20)
    thread.join()
    assert waited_for_nobody


def test_a_range_with_gaps_builds_only_months_with_data(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2021-01-05") + order(2, "2025-01-05"))
    assert platform.build().succeeded
    assert platform.ask(
        "select distinct month from meta.versions where table_name = 'gold.fact_orders' order by 1"
    ) == [(date(2021, 1, 1),), (date(2025, 1, 1),)]


def test_a_file_without_a_header_tells_nobodys_data(platform: Platform) -> None:
    row = "7,Zebulon,Quaresma,zq@example.org,+4512345678,Ribe,DK,6760,1971-02-03,2025-01-01,"
    platform.land("crm/customers.csv", f"{row}2025-01-02\n{row}2025-01-03\n")
    platform.land("crm/customers_b.csv", f"city,{row}2025-01-03\n")
    platform.register()
    reasons = [str(entry["reason"]) for entry in platform.ledger()]
    assert len(reasons) == 2
    for reason in reasons:
        assert "not told" in reason
        for value in row.split(","):
            assert len(value) < 3 or value not in reason


def test_references_that_lead_nowhere_are_named(platform: Platform) -> None:
    rows = (
        order(n, f"2025-{n % 7 + 1:02}-05").replace(",7,", f",{900 + n % 7},") for n in range(8)
    )
    platform.land("erp/orders.csv", ORDERS + "".join(rows))
    assert platform.build().warnings == [
        "silver.orders: 8 rows of silver.orders in 2025-01, 2025-02, 2025-03, 2025-04, 2025-05 "
        "and 2 more with 7 values of customer_id that silver.customers.customer_id does not have: "
        "900, 901, 902, 903, 904 and 2 more"
    ]
