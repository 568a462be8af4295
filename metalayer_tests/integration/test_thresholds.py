"""Stories of months with too many bad rows: left as they were, and the error says why."""

from __future__ import annotations

import dataclasses
from datetime import date

from metalayer.contracts.contract import REJECTS_ALWAYS_TOLERATED, TableSpec
from metalayer.jobs import table_job
from metalayer.warehouse.build import MonthResult, build_months
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
PEOPLE = "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
JANUARY = date(2025, 1, 1)


def orders(first: int, count: int, status: str = "PAID") -> str:
    return "".join(
        f"{number},7,P00001,2025-01-05,2,5.00,10.00,{status}\n"
        for number in range(first, first + count)
    )


def people(first: int, count: int, born: str = "1990-01-01") -> str:
    return "".join(
        f"{number},Ann,Berg,ann@example.org,,,,,{born},2025-01-01,2025-01-02\n"
        for number in range(first, first + count)
    )


def build(platform: Platform, table: str, **limits: object) -> MonthResult:
    """Build January of a typed table under other limits than its contract has."""
    platform.register()
    settings = platform.warehouse.settings
    result = None
    for name in (f"bronze.{table}", f"silver.{table}"):
        job = table_job(name, settings)
        spec: TableSpec = dataclasses.replace(job.spec, **limits)  # type: ignore[arg-type]
        job = dataclasses.replace(job, spec=spec)
        (result,) = build_months(platform.warehouse.pool, job, [JANUARY], workers=1, force=True)
    assert result is not None
    return result


def test_so_many_rows_and_no_more(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + orders(1, 100) + orders(101, 3, "LOST"))
    assert build(platform, "orders", max_rejects=3).outcome == "published"
    platform.land("erp/orders_b.csv", ORDERS + orders(200, 100) + orders(300, 1, "GONE"))
    failed = build(platform, "orders", max_rejects=3)
    assert failed.outcome == "failed"
    states = "status must be one of (PENDING, SHIPPED, COMPLETED, CANCELLED)"
    assert str(failed.problem).splitlines() == [
        f"4 of 204 rows break the contract (limit 3 rows): {states}: 4 rows",
        f"erp/orders.csv:102 {states} 'LOST'",
        f"erp/orders.csv:103 {states} 'LOST'",
        f"erp/orders.csv:104 {states} 'LOST'",
        f"erp/orders_b.csv:102 {states} 'GONE'",
    ]
    # Readers have what they had, and the quarantine is that of what they have.
    assert platform.one("select count(*) from silver.orders") == 100
    assert len(platform.rejects("silver.orders")) == 3
    # None at all.
    assert build(platform, "orders", max_rejects=0).outcome == "failed"
    assert build(platform, "orders", max_rejects=None).outcome == "published"


def test_a_share_of_few_rows_says_nothing(platform: Platform) -> None:
    bad = REJECTS_ALWAYS_TOLERATED
    platform.land("erp/orders.csv", ORDERS + orders(1, 1) + orders(100, bad, "LOST"))
    assert build(platform, "orders", max_reject_rate=0.001).outcome == "published"
    platform.land("erp/orders_b.csv", ORDERS + orders(200, 1, "LOST"))
    failed = build(platform, "orders", max_reject_rate=0.005)
    limit = "rows break the contract (limit 0.5%)"
    assert str(failed.problem).startswith(f"{bad + 1} of {bad + 2} {limit}")
    assert len(str(failed.problem).splitlines()) == 11


def test_personal_values_are_masked_in_the_examples(platform: Platform) -> None:
    platform.land("crm/customers.csv", PEOPLE + people(1, 2) + people(3, 1, "31.31.1990"))
    failed = build(platform, "customers", max_rejects=0)
    first, *examples = str(failed.problem).splitlines()
    assert first == "1 of 3 rows break the contract (limit 0 rows): dob not a date: 1 rows"
    assert examples == ["crm/customers.csv:4 dob not a date ***"]


def test_a_shifted_value_is_masked_when_a_file_of_people_is_refused(platform: Platform) -> None:
    # With a comma too many, what stands where the date should be may be anybody's address.
    shifted = "".join(f"{n},Ada,Berg,a,b,c,d,e,f,g,ada{n}@example.org\n" for n in range(30))
    platform.land("crm/customers.csv", PEOPLE + shifted)
    (refused,) = platform.register().deliveries
    assert refused.status == "rejected"
    assert "customers.csv:2 updated_at month cannot be told ***" in str(refused.reason)
    assert "example.org" not in str(refused.reason)


def test_the_same_rows_come_to_the_same_verdict_whatever_was_published(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + orders(1, 2))
    assert build(platform, "orders").outcome == "published"
    platform.land("erp/orders.csv", ORDERS + orders(1, 2, "LOST"))
    emptied = build(platform, "orders")
    assert (emptied.outcome, emptied.rows, emptied.rows_quarantined) == ("published", 0, 2)
    assert platform.one("select count(*) from silver.orders") == 0
    assert len(platform.rejects("silver.orders")) == 2
