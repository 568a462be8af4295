"""Months that have been kept long enough leave everything but aggregates, and do not come back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import polars as pl
import pytest

from metalayer.assets.resources import lent_to_runs
from metalayer.automation.retention import RETAIN
from metalayer.catalog import catalog
from metalayer.contracts.contract import _retention
from metalayer.definitions import defs
from metalayer.errors import BuildError, ContractError
from metalayer.governance import erasure, retention
from metalayer.inspection import table_status
from metalayer.warehouse import build
from metalayer.warehouse.pool import transaction
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS
from metalayer_tests.story import Platform

TODAY = date(2025, 7, 10)
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
SNAPSHOT = "customer_id,customer_name,email,region\n"
KEPT = 4  # months: before 2025-03 nothing stays
OLD, NEW = ("2025-01", "2025-02"), ("2025-03", "2025-04")
#: Whose rows are of a month alone, and stay.
AGGREGATES = ("gold.agg_monthly_sales", "gold.agg_daily_sales", "gold.sales_reconciliation")
GOING = (
    "bronze.orders", "bronze.erp_sales", "silver.orders", "silver.erp_sales",
    "gold.fact_orders", "gold.fact_sales", "gold.customer_360",
)  # fmt: skip


def order(number: int, by: int, day: str, product: int = 1) -> str:
    return f"{number},{by},P0000{product},{day},2,5.00,10.00,PAID\n"


def customers(*numbers: int) -> str:
    return CUSTOMERS + "".join(
        f"{n},Zeb{n},Quigley,z{n}@example.org,,,,,,2024-01-01,2025-0{n}-01\n" for n in numbers
    )


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracts that keep rows for some months only."""
    for spec in catalog().specs.values():
        if spec.retention_months is not None:
            monkeypatch.setitem(spec.__dict__, "retention_months", KEPT)


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.today = TODAY
    platform.land("crm/customers.csv", customers(1, 2))
    for month in (*OLD, *NEW):
        platform.land(
            f"crm/crm_customers_{month}.csv", SNAPSHOT + "1,Zeb1 Quigley,z1@example.org,north\n"
        )
    platform.land(
        "erp/orders.csv",
        ORDERS
        + order(1, 1, "2025-01-07")
        + order(2, 2, "2025-02-07", 2)
        + order(3, 1, "2025-03-07")
        + order(4, 2, "2025-04-07", 2)
        # Breaks its contract, in a month that will go.
        + "5,1,P00001,2025-01-08,0,5.00,10.00,PAID\n",
    )
    platform.land("erp/erp_sales.csv", SALES + "1,1,1,1,2025-01-03,7.00\n2,1,1,1,2025-03-03,9.00\n")
    assert platform.build().succeeded
    # Earlier versions are kept.
    platform.land("erp/orders_late.csv", ORDERS + order(6, 1, "2025-01-09"))
    assert platform.build().succeeded
    return platform


def run(platform: Platform) -> retention.Expiring:
    return retention.retain(platform.warehouse, platform.instance, catalog(), today=TODAY)


def kept_rows(platform: Platform, table: str) -> list[object]:
    """The rows of months that have not expired; of what looks back all that there are."""
    spec = catalog().spec(table)
    frame = platform.frame(table)
    if table in GOING:
        frame = frame.filter(pl.col(spec.month_column).dt.month() >= 3)
    return frame.sort(frame.columns).rows()


def months(platform: Platform, table: str) -> set[str]:
    """The months that have any version."""
    return {
        month
        for (month,) in platform.ask(
            "select to_char(month, 'YYYY-MM') from meta.versions where table_name = %s", table
        )
    }


def test_it_leaves_every_layer_and_aggregates_stay(filled: Platform) -> None:
    kept = {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES}
    assert all(kept.values())
    found = run(filled)
    assert set(found.months) == set(GOING)
    for table in GOING:
        assert months(filled, table) >= ({"2025-03"} if "sales" in table else set(NEW)), table
        assert not months(filled, table) & set(OLD), table
    for table, rows in kept.items():
        assert filled.ask(f"select * from {table} order by 1, 2") == rows, table
    assert filled.one("select count(*) from meta.quarantine where month < '2025-03-01'") == 0
    assert filled.one("select count(*) from meta.past_quarantine where month < '2025-03-01'") == 0
    assert filled.ask("select order_id from silver.orders order by 1") == [(3,), (4,)]
    with transaction(filled.warehouse.pool) as connection:
        told = {t.table: t.expired for t in table_status(connection)}
    assert {table for table, expired in told.items() if expired} == set(GOING)
    assert told["silver.orders"] == 2
    # Nothing is out of date for it, and nothing brings aggregates down.
    assert filled.plan().is_empty
    assert filled.balances()


def test_what_looks_back_is_made_from_what_is_kept(
    filled: Platform, make_platform: Callable[[], Platform]
) -> None:
    run(filled)
    alone = make_platform()
    alone.today = TODAY
    for path in sorted(filled.landing.rglob("*.csv"), key=lambda p: p.stat().st_mtime):
        alone.land(str(path.relative_to(filled.landing)), path.read_bytes())
    assert alone.build().succeeded
    for table in ("gold.dim_product", "gold.dim_customer", "gold.fact_orders", "gold.customer_360"):
        assert kept_rows(filled, table) == kept_rows(alone, table) != [], table
    versions = "select count(*) from meta.versions where not is_current and month < '2025-03-01'"
    assert filled.one(f"{versions} and table_name = 'gold.dim_product'") == 0


def test_landed_files_keep_their_lines_without_the_records(filled: Platform) -> None:
    before = (filled.landing / "erp/orders.csv").read_text().splitlines()
    run(filled)
    after = (filled.landing / "erp/orders.csv").read_text().splitlines()
    assert after == [before[0], "", "", before[3], before[4], ""]
    assert "Zeb1" in (filled.landing / "crm/crm_customers_2025-01.csv").read_text()
    # Of customers rows are kept for good.
    assert "Zeb1" in (filled.landing / "crm/customers.csv").read_text()
    assert filled.one("select sum(rows_erased) from meta.deliveries") == 5


def test_nothing_that_lands_brings_them_back(filled: Platform) -> None:
    kept = {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES}
    run(filled)
    filled.land(
        "erp/orders_again.csv",
        ORDERS + order(1, 1, "2025-01-07") + order(9, 1, "2025-02-07") + order(3, 1, "2025-03-07"),
    )
    assert filled.build().succeeded
    assert filled.ask("select order_id from silver.orders order by 1") == [(3,), (4,)]
    assert filled.one("select count(*) from meta.quarantine where month < '2025-03-01'") == 0
    text = (filled.landing / "erp/orders_again.csv").read_text()
    assert "2025-01" not in text
    assert "2025-02" not in text
    assert {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES} == kept
    # Not by force either.
    assert filled.build(force=True).succeeded
    assert {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES} == kept
    assert not run(filled).months


def test_a_hold_wins_and_says_so(filled: Platform) -> None:
    erasure.hold(filled.warehouse, catalog(), "customer", "2", "lawsuit")
    found = run(filled)
    assert date(2025, 2, 1) in found.held
    assert "silver.orders" in found.held[date(2025, 2, 1)]
    assert "2025-02" in months(filled, "bronze.orders")
    assert "2025-01" not in months(filled, "bronze.orders")
    assert filled.ask("select order_id from silver.orders order by 1") == [(2,), (3,), (4,)]
    text = (filled.landing / "erp/orders.csv").read_text()
    assert "2025-02-07" in text
    assert filled.plan().is_empty
    assert erasure.release(filled.warehouse, catalog(), "customer", "2")
    run(filled)
    assert filled.ask("select order_id from silver.orders order by 1") == [(3,), (4,)]
    assert "2025-02-07" not in (filled.landing / "erp/orders.csv").read_text()


def test_a_plan_changes_nothing(filled: Platform) -> None:
    before = (filled.landing / "erp/orders.csv").read_bytes()
    found = retention.look(filled.warehouse, catalog(), TODAY)
    assert set(found.months) == set(GOING)
    assert found.files["erp/orders.csv"] == 3
    assert found.before["silver.orders"] == date(2025, 3, 1)
    assert "gold.dim_product" in found.follow
    assert (filled.landing / "erp/orders.csv").read_bytes() == before
    assert filled.one("select count(*) from meta.expired_months") == 0


def test_interrupted_it_is_finished_and_no_aggregate_suffers(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES}
    real = retention._drop_month
    calls = iter(range(100))

    def broken(*arguments: object) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "_drop_month", broken)
    with pytest.raises(KeyboardInterrupt):
        run(filled)
    # A build meanwhile makes nothing of what is half gone.
    filled.land("erp/orders_new.csv", ORDERS + order(8, 1, "2025-04-09"))
    assert filled.build().succeeded
    now = {t: filled.ask(f"select * from {t} where true order by 1, 2") for t in AGGREGATES}
    assert {t: rows[: len(kept[t]) - 1] for t, rows in now.items()} == {
        t: rows[:-1] for t, rows in kept.items()
    }
    monkeypatch.setattr(retention, "_drop_month", real)
    run(filled)
    assert not any(months(filled, table) & set(OLD) for table in GOING)
    assert filled.plan().is_empty


def test_the_job_does_it_and_says_what(filled: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_months_back", lambda _day, _months: date(2025, 3, 1))
    with lent_to_runs(filled.warehouse):
        result = defs.resolve_job_def(RETAIN).execute_in_process(instance=filled.instance)
    assert result.success
    assert not any(months(filled, table) & set(OLD) for table in GOING)
    acts = filled.ask("select subject from meta.acts where action = 'retain'")
    assert acts == [("expired months",)]


def test_what_would_keep_persons_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog().spec("gold.customer_360").__dict__, "retention_months", None)
    with pytest.raises(ContractError, match=r"customer_360\.py says no retention_months"):
        retention.kept_for(catalog())


def test_a_limit_is_months_and_has_a_purpose() -> None:
    for limit in (0, 1.5, "12", True):
        facts = type("Table", (), {"retention_months": limit, "purpose": "To count"})
        with pytest.raises(ContractError, match="Use a whole number of months"):
            _retention(facts, "contracts/gold/x.py")
    with pytest.raises(ContractError, match="without a purpose"):
        _retention(type("Table", (), {"retention_months": 12}), "contracts/gold/x.py")


def test_raising_the_limit_keeps_what_is_held(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasure.hold(filled.warehouse, catalog(), "customer", "2", "lawsuit")
    run(filled)
    kept = {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES}
    orders = filled.ask("select * from silver.orders order by 1")
    text = (filled.landing / "erp/orders.csv").read_text()
    for spec in catalog().specs.values():
        if spec.retention_months is not None:
            monkeypatch.setitem(spec.__dict__, "retention_months", 24)
    run(filled)
    assert filled.ask("select * from silver.orders order by 1") == orders
    assert (filled.landing / "erp/orders.csv").read_text() == text
    assert {t: filled.ask(f"select * from {t} order by 1, 2") for t in AGGREGATES} == kept
    # Released, it stays all the same: the limit is another one now.
    assert erasure.release(filled.warehouse, catalog(), "customer", "2")
    run(filled)
    assert filled.ask("select * from silver.orders order by 1") == orders


def test_who_is_held_is_not_taken_out_of_what_lands_later(filled: Platform) -> None:
    erasure.hold(filled.warehouse, catalog(), "customer", "2", "lawsuit")
    filled.land("erp/orders_unbuilt.csv", ORDERS + order(20, 2, "2024-12-07"))
    filled.register()
    run(filled)
    assert "2024-12-07" in (filled.landing / "erp/orders_unbuilt.csv").read_text()
    assert filled.one("select count(*) from silver.orders where order_id = 20") == 1
    filled.land(
        "erp/orders_later.csv",
        ORDERS
        + order(21, 2, "2024-11-07")
        + order(22, 1, "2024-11-08")
        + order(23, 1, "2024-10-08"),
    )
    assert filled.build().succeeded
    text = (filled.landing / "erp/orders_later.csv").read_text()
    assert "2024-11-07" in text
    assert "2024-10-08" not in text


def test_what_has_landed_counts_before_it_goes(filled: Platform) -> None:
    orders = "select orders from gold.agg_monthly_sales where month = '2025-01-01'"
    before = filled.one(orders)
    filled.land("erp/orders_late2.csv", ORDERS + order(30, 1, "2025-01-20"))
    # What does not build refuses rather than freeze a sum that lacks it.
    with pytest.raises(BuildError, match=r"not up to date: bronze\.orders 2025-01"):
        retention.expire(filled.warehouse, catalog(), today=TODAY)
    assert "2025-01-20" in (filled.landing / "erp/orders_late2.csv").read_text()
    run(filled)
    assert filled.one(orders) == before + 1
    assert "2025-01-20" not in (filled.landing / "erp/orders_late2.csv").read_text()


def test_a_build_that_looked_before_makes_nothing_of_what_is_gone(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = filled.ask("select * from gold.agg_monthly_sales order by 1")
    real = build.evolve
    expired: list[retention.Expiring] = []

    def meanwhile(*arguments: object) -> object:
        if not expired:
            expired.append(retention.expire(filled.warehouse, catalog(), today=TODAY))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "evolve", meanwhile)
    filled.build("gold.agg_monthly_sales", force=True)
    assert expired
    assert filled.ask("select * from gold.agg_monthly_sales order by 1") == kept


def test_a_record_of_no_month_goes_with_all_others_of_its_file(filled: Platform) -> None:
    filled.land("erp/orders_2025-01.csv", ORDERS + order(40, 1, "2025-01-20") + "41,1,P1,someday\n")
    filled.land("erp/orders_2025-03.csv", ORDERS + order(42, 1, "2025-03-20") + "43,1,P1,someday\n")
    assert filled.build().succeeded
    run(filled)
    assert "someday" not in (filled.landing / "erp/orders_2025-01.csv").read_text()
    assert "someday" in (filled.landing / "erp/orders_2025-03.csv").read_text()
    assert len(filled.rejects("bronze.orders")) == 1
