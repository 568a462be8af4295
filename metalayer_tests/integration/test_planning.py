"""Stories of planning: what a build would rebuild and why, and that it rebuilds nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from metalayer import jobs, planning
from metalayer.assets.headless import BuildOutcome
from metalayer.catalog import catalog
from metalayer.planning import Plan
from metalayer.warehouse.versions import rollback
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.integration.test_repair import Desk
from metalayer_tests.story import Platform

MONTHS = [f"2025-{number:02}" for number in range(1, 7)]


@pytest.fixture
def half_a_year(platform: Platform) -> Platform:
    """Orders and customers of six months, built."""
    for number, month in enumerate(MONTHS, start=1):
        platform.land(f"erp/orders_{month}.csv", ORDERS + order(number, f"{month}-05"))
        platform.land(f"crm/customers_{month}.csv", CUSTOMERS + customer(number, f"{month}-03"))
    assert platform.build().succeeded
    assert platform.plan().is_empty
    return platform


def months(plan: Plan, table: str, *, certain: bool = True) -> list[str]:
    found = plan.stale if certain else plan.affected
    return [f"{month:%Y-%m}" for month in sorted(found.get(table, ()))]


def why(plan: Plan, table: str, month: str) -> list[str]:
    year, number = map(int, month.split("-"))
    return [reason.text for reason in plan.reasons[table, date(year, number, 1)]]


def rebuilt(outcome: BuildOutcome) -> set[tuple[str, date]]:
    return {(r.table, r.month) for r in outcome.months if r.outcome in ("published", "confirmed")}


def build_as_planned(platform: Platform) -> tuple[Plan, BuildOutcome]:
    """Plan, then build: what was certain is rebuilt, and nothing that was not named."""
    plan = platform.plan()
    outcome = platform.build()
    assert outcome.succeeded
    certain = {(table, month) for table, stale in plan.stale.items() for month in stale}
    assert certain <= rebuilt(outcome) <= set(plan.reasons)
    assert platform.plan().is_empty
    return plan, outcome


def test_a_plan_changes_nothing(half_a_year: Platform) -> None:
    before = half_a_year.ledger()
    half_a_year.land("erp/orders_late.csv", ORDERS + order(99, "2025-02-09"))
    assert half_a_year.plan() == half_a_year.plan()
    assert half_a_year.ledger() == before


def test_a_plan_needs_no_warehouse_yet(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    platform.ask("drop schema meta cascade; create schema meta; select 1")
    plan = platform.plan()
    assert months(plan, "bronze.orders") == ["2025-01"]
    assert platform.one("select to_regclass('meta.deliveries')") is None


def test_the_same_bytes_again_rebuild_nothing(half_a_year: Platform) -> None:
    landed = half_a_year.landing / "erp" / "orders_2025-02.csv"
    half_a_year.land("erp/orders_copy.csv", landed.read_bytes())
    half_a_year.land("erp/orders_2025-02.csv", landed.read_bytes())
    assert half_a_year.plan().is_empty
    assert half_a_year.build().months == []


def test_a_late_row_rebuilds_its_month_and_those_behind_it(half_a_year: Platform) -> None:
    half_a_year.land("erp/orders_late.csv", ORDERS + order(99, "2025-03-09"))
    plan, outcome = build_as_planned(half_a_year)
    assert months(plan, "bronze.orders") == ["2025-03"]
    assert why(plan, "bronze.orders", "2025-03") == ["new delivery erp/orders_late.csv"]
    assert months(plan, "silver.orders") == []
    assert months(plan, "silver.orders", certain=False) == ["2025-03"]
    assert why(plan, "silver.orders", "2025-03") == ["bronze.orders may change"]
    assert months(plan, "gold.customer_360", certain=False) == MONTHS[2:]
    assert "silver.customers" not in {table for table, _ in rebuilt(outcome)}
    touched = {f"{month:%Y-%m}" for table, month in rebuilt(outcome) if table == "gold.fact_orders"}
    assert touched == {"2025-03"}


def test_a_corrected_file_names_both_versions(half_a_year: Platform) -> None:
    half_a_year.land("erp/orders_2025-04.csv", ORDERS + order(4, "2025-04-05", quantity=3))
    plan, _ = build_as_planned(half_a_year)
    assert why(plan, "bronze.orders", "2025-04") == [
        "erp/orders_2025-04.csv was superseded",
        "new delivery erp/orders_2025-04.csv",
    ]
    assert half_a_year.ask("select order_id, quantity from silver.orders where order_id = 4") == [
        (4, 3)
    ]


def test_a_correction_that_says_the_same_stops_where_contents_are_equal(
    half_a_year: Platform,
) -> None:
    text = (half_a_year.landing / "erp" / "orders_2025-04.csv").read_text()
    half_a_year.land("erp/orders_2025-04.csv", text.replace("PAID", "paid"))
    plan, outcome = build_as_planned(half_a_year)
    assert months(plan, "gold.fact_orders", certain=False) == MONTHS[3:]
    assert {table for table, _ in rebuilt(outcome)} == {"bronze.orders", "silver.orders"}


def test_a_moved_order_rebuilds_both_months(half_a_year: Platform) -> None:
    half_a_year.land("erp/orders_moved.csv", ORDERS + order(2, "2025-05-20"))
    plan, _ = build_as_planned(half_a_year)
    assert months(plan, "bronze.orders") == ["2025-02", "2025-05"]
    assert why(plan, "bronze.orders", "2025-02") == [
        "other rows of erp/orders_2025-02.csv count now"
    ]
    assert why(plan, "bronze.orders", "2025-05") == ["new delivery erp/orders_moved.csv"]
    assert half_a_year.ask(
        "select to_char(order_date, 'YYYY-MM') from gold.fact_orders where order_id = 2"
    ) == [("2025-05",)]


def test_a_late_change_of_a_customer_rekeys_only_facts_whose_version_changed(
    platform: Platform,
) -> None:
    for number, month in enumerate(MONTHS, start=1):
        platform.land(f"erp/orders_{month}.csv", ORDERS + order(number, f"{month}-05"))
    moves = customer(7, "2025-01-02") + customer(7, "2025-05-01", city="Odense")
    platform.land("crm/customers.csv", CUSTOMERS + moves)
    assert platform.build().succeeded
    keys = dict(platform.ask("select order_id, customer_key from gold.fact_orders"))
    platform.land("crm/customers_late.csv", CUSTOMERS + customer(7, "2025-03-01", city="Ribe"))
    _, outcome = build_as_planned(platform)
    now = dict(platform.ask("select order_id, customer_key from gold.fact_orders"))
    assert [number for number in keys if keys[number] != now[number]] == [3, 4]
    published = {
        f"{r.month:%Y-%m}"
        for r in outcome.months
        if (r.table, r.outcome) == ("gold.fact_orders", "published")
    }
    assert published == {"2025-03", "2025-04"}


def test_where_rows_follow_a_key_only_its_months_are_written(half_a_year: Platform) -> None:
    for number, month in enumerate(MONTHS, start=1):
        other = order(100 + number, f"{month}-06").replace(",7,", ",8,")
        half_a_year.land(f"erp/orders_other_{month}.csv", ORDERS + other)
    half_a_year.land("erp/orders_rare.csv", ORDERS + order(200, "2025-05-07").replace(",7,", ",9,"))
    assert half_a_year.build().succeeded
    half_a_year.land("erp/orders_late.csv", ORDERS + order(99, "2025-02-09").replace(",7,", ",9,"))
    _, outcome = build_as_planned(half_a_year)
    done = {f"{r.month:%Y-%m}": r.outcome for r in outcome.months if r.table == "gold.customer_360"}
    assert done == {
        **dict.fromkeys(MONTHS[1:], "confirmed"),
        **dict.fromkeys(("2025-02", "2025-05"), "published"),
    }
    assert half_a_year.ask(
        "select to_char(month, 'YYYY-MM'), orders from gold.customer_360 where customer_id = 9 "
        "order by 1"
    ) == [("2025-02", 1), ("2025-05", 2)]
    before = half_a_year.frame("gold.customer_360").sort("customer_id", "month")
    assert half_a_year.build("gold.customer_360", force=True).succeeded
    assert half_a_year.frame("gold.customer_360").sort("customer_id", "month").equals(before)


@pytest.fixture
def with_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    """Give a table another code version: `part` 0 is its contract's, 1 its SELECT's."""

    def change(table: str, part: int) -> None:
        tables = catalog()
        parts = tables.code_versions[table].split(".")
        parts[part] = "0" * len(parts[part])
        changed = replace(tables, code_versions={**tables.code_versions, table: ".".join(parts)})
        for module in (jobs, planning):
            monkeypatch.setattr(module, "catalog", lambda: changed)

    yield change


@pytest.mark.parametrize(
    ("part", "reason"), [(0, "its contract changed"), (1, "its SELECT changed")]
)
def test_changed_code_marks_its_months_and_those_behind_them(
    half_a_year: Platform, with_code: Callable[[str, int], None], part: int, reason: str
) -> None:
    with_code("gold.fact_orders", part)
    plan, outcome = build_as_planned(half_a_year)
    assert months(plan, "gold.fact_orders") == MONTHS
    assert why(plan, "gold.fact_orders", "2025-02") == [reason]
    assert months(plan, "gold.agg_daily_sales", certain=False) == MONTHS
    # The same rows came out, so nothing behind was touched.
    assert {table for table, _ in rebuilt(outcome)} == {"gold.fact_orders"}


def test_by_force_the_selected_months_alone(half_a_year: Platform) -> None:
    plan = half_a_year.plan("silver.orders", months="2025-02..2025-03", force=True)
    assert months(plan, "silver.orders") == ["2025-02", "2025-03"]
    assert why(plan, "silver.orders", "2025-02") == ["rebuilt by force"]
    outcome = half_a_year.build("silver.orders", months="2025-02..2025-03", force=True)
    assert outcome.succeeded
    assert {f"{month:%Y-%m}" for _, month in rebuilt(outcome)} == {"2025-02", "2025-03"}


def test_checks_that_failed_are_asked_again_and_hold_up_what_is_behind(
    half_a_year: Platform,
) -> None:
    # What no SELECT wrote: the sums of the table no longer are those of silver.
    half_a_year.ask(
        "update gold.fact_orders set total_amount = total_amount + 1 where order_id = 3 returning 1"
    )
    half_a_year.ask("update meta.versions set is_checked = false returning 1")
    plan = half_a_year.plan()
    assert not plan.is_empty
    assert not any(plan.affected.values())
    outcome = half_a_year.build()
    assert not outcome.succeeded
    assert any("total_amount differs" in line for line in outcome.failed_checks)
    assert not half_a_year.plan().is_empty
    assert half_a_year.build("gold.fact_orders", force=True).succeeded
    assert half_a_year.build().succeeded
    assert half_a_year.plan().is_empty


def test_by_force_no_month_but_those_asked_for(half_a_year: Platform) -> None:
    versions = "select table_name, month, version from meta.versions where is_current order by 1, 2"
    before = half_a_year.ask(versions)
    assert half_a_year.build(months="2025-01", force=True).succeeded
    changed = {month for _, month, _ in set(half_a_year.ask(versions)) - set(before)}
    assert changed == {date(2025, 1, 1)}


def test_nothing_is_built_from_what_failed_its_checks(half_a_year: Platform) -> None:
    half_a_year.land("erp/orders_moved.csv", ORDERS + order(1, "2025-02-06", quantity=3))
    assert half_a_year.build().succeeded
    warehouse = half_a_year.warehouse
    rollback(warehouse.pool, catalog().spec("silver.orders"), date(2025, 1, 1), 1)
    for selected, months in (((), "2025-01..2025-03"), (("gold.fact_orders",), None), ((), None)):
        outcome = half_a_year.build(*selected, months=months)
        assert any("stand in more than one month" in line for line in outcome.failed_checks)
        assert not [r for r in outcome.months if r.table.startswith("gold.")], selected
    half_a_year.build("silver.orders", months="2025-01", force=True)
    assert half_a_year.build().succeeded


def test_a_withdrawn_file_rebuilds_the_months_it_was_in(half_a_year: Platform) -> None:
    half_a_year.withdraw("erp/orders_2025-03.csv")
    plan, _ = build_as_planned(half_a_year)
    assert months(plan, "bronze.orders") == ["2025-03"]
    assert why(plan, "bronze.orders", "2025-03") == ["erp/orders_2025-03.csv was withdrawn"]
    assert half_a_year.ask("select order_id from gold.fact_orders order by 1") == [
        (1,), (2,), (4,), (5,), (6,)
    ]  # fmt: skip


def test_a_correction_that_shrinks_rebuilds_what_it_no_longer_has(half_a_year: Platform) -> None:
    both = order(40, "2025-04-05") + order(50, "2025-05-05")
    half_a_year.land("erp/orders_both.csv", ORDERS + both)
    build_as_planned(half_a_year)
    half_a_year.land("erp/orders_both.csv", ORDERS + order(40, "2025-04-05"))
    plan, _ = build_as_planned(half_a_year)
    assert months(plan, "bronze.orders") == ["2025-04", "2025-05"]
    assert why(plan, "bronze.orders", "2025-05") == ["erp/orders_both.csv was superseded"]
    assert half_a_year.ask("select order_id from silver.orders where order_id >= 40") == [(40,)]


def test_snapshots_close_and_reopen_as_planned_and_a_shrunken_one_plans_nothing(
    half_a_year: Platform,
) -> None:
    people = [f"{n},Ada Berg,a{n}@example.org,N\n" for n in range(1, 5)]
    header = "customer_id,customer_name,email,region\n"

    def land(month: str, count: int) -> Plan:
        text = header + "".join(people[:count])
        half_a_year.land(f"crm/crm_customers_{month}.csv", text)
        return build_as_planned(half_a_year)[0]

    def deleted() -> list[tuple[int]]:
        query = (
            "select customer_id from gold.dim_customer where is_current and is_deleted order by 1"
        )
        return half_a_year.ask(query)

    for month, count, gone in (("2025-01", 4, []), ("2025-02", 3, [(4,)]), ("2025-03", 4, [])):
        plan = land(month, count)
        assert months(plan, "bronze.crm_customers") == [month]
        assert deleted() == gone
    assert land("2025-04", 1).is_empty
    assert "has 1 rows, and the snapshot before it" in str(half_a_year.ledger()[-1]["reason"])
    assert deleted() == []


def test_a_repair_rebuilds_the_months_it_mends(half_a_year: Platform, tmp_path: Path) -> None:
    half_a_year.land("erp/orders_bad.csv", ORDERS + order(77, "2025-02-09", status="LOST"))
    assert half_a_year.build().succeeded
    desk = Desk(half_a_year, tmp_path)
    (repair,) = desk.mend({2: {"status": "PAID"}}).names
    plan, _ = build_as_planned(half_a_year)
    assert months(plan, "bronze.orders") == ["2025-02"]
    assert f"new delivery {repair}" in why(plan, "bronze.orders", "2025-02")
    assert half_a_year.rejects("silver.orders") == []
    assert half_a_year.one("select count(*) from gold.fact_orders where order_id = 77") == 1
