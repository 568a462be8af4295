"""One late row in two years of four sources: what is rebuilt for it, and how much work that is.

Work is counted by PostgreSQL, in transactions and rows written, as seconds depend on the machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import date

from metalayer.assets.headless import BuildOutcome
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer
from metalayer_tests.story import Platform

SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
CRM = "customer_id,customer_name,email,region\n"
MONTHS = [date(2024 + n // 12, n % 12 + 1, 1) for n in range(24)]
LATE = MONTHS[12]
WHO = 3
#: A customer buys something in one month out of four.
CUSTOMERS_A_MONTH = 5
ROWS_A_MONTH = 40

#: What has rows of orders in it, but for the product, which was sold before.
TOUCHED = (
    "bronze.orders",
    "silver.orders",
    "gold.fact_orders",
    "gold.agg_daily_sales",
    "gold.agg_monthly_sales",
    "gold.customer_cohorts",
    "gold.sales_reconciliation",
    "gold.business_kpis",
)


def buyer(number: int, n: int) -> int:
    """The customer of a row of the `n`-th month."""
    return (n + number) % CUSTOMERS_A_MONTH + CUSTOMERS_A_MONTH * (n % 4)


def land_two_years(platform: Platform) -> None:
    """A file a month of each of the four sources."""
    for n, month in enumerate(MONTHS):
        bought = [(n * 100 + k, buyer(k, n), k % 9 + 1, k % 27 + 1) for k in range(ROWS_A_MONTH)]
        key = f"{month:%Y-%m}"
        platform.land(
            f"erp/orders_{key}.csv",
            ORDERS
            + "".join(
                f"{order},{who},P0000{what},{key}-{day:02},2,5.00,10.00,PAID\n"
                for order, who, what, day in bought
            ),
        )
        platform.land(
            f"erp/erp_sales_{key}.csv",
            SALES
            + "".join(
                f"{sale},{what},{who},2,{key}-{day:02},10.00\n" for sale, who, what, day in bought
            ),
        )
        seen = sorted({who for _, who, _, _ in bought})
        platform.land(
            f"crm/customers_{key}.csv",
            CUSTOMERS + "".join(customer(who, f"{key}-01") for who in seen),
        )
        platform.land(
            f"crm/crm_customers_{key}.csv",
            CRM + "".join(f"{who},Ada Berg,a{who}@example.org,N\n" for who in range(20)),
        )


@dataclass(frozen=True)
class Work:
    """Transactions that ended, and rows that were inserted, updated or deleted, anywhere."""

    transactions: int
    rows: int


def work_so_far(platform: Platform) -> Work:
    """What the warehouse's server has counted; sessions tell it when they end."""
    platform.warehouse.pool.dispose()
    others = (
        "select count(*) from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid()"
    )
    while platform.one(others):
        time.sleep(0.01)
    return Work(
        *platform.ask(
            "select xact_commit + xact_rollback, tup_inserted + tup_updated + tup_deleted "
            "from pg_stat_database where datname = current_database()"
        )[0]
    )


def work_of(platform: Platform) -> tuple[Work, BuildOutcome]:
    """Build, and what that took."""
    before = work_so_far(platform)
    outcome = platform.build()
    after = work_so_far(platform)
    return Work(after.transactions - before.transactions, after.rows - before.rows), outcome


def versions(platform: Platform) -> set[tuple[str, date, int]]:
    """What is published, in which version."""
    current = "select table_name, month, version from meta.versions where is_current"
    return {(table, month, version) for table, month, version in platform.ask(current)}


def test_a_late_row_is_a_seventh_of_the_work_at_most(platform: Platform) -> None:
    land_two_years(platform)
    full, outcome = work_of(platform)
    assert outcome.succeeded
    before = versions(platform)
    platform.land(
        "erp/orders_late.csv", f"{ORDERS}9999,{WHO},P00003,{LATE:%Y-%m}-09,2,5.00,10.00,PAID\n"
    )
    plan = platform.plan()
    assert {month for months in plan.affected.values() for month in months} == set(MONTHS[12:])
    late, outcome = work_of(platform)
    assert outcome.succeeded
    assert platform.plan().is_empty

    done = {(r.table, r.month) for r in outcome.months if r.outcome in ("published", "confirmed")}
    assert done <= set(plan.reasons)
    news = {(table, month) for table, month, _ in versions(platform) - before}
    customers_months = platform.ask(
        "select month from gold.customer_360 where customer_id = %s and month >= %s", WHO, LATE
    )
    assert news == {(table, LATE) for table in TOUCHED} | {
        ("gold.customer_360", month) for (month,) in customers_months
    }
    assert 1 < len(customers_months) < len(MONTHS[12:])
    assert late.rows < full.rows / 7
    assert late.transactions < full.transactions / 4
