"""Scores move for the reason they should, and say it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest

from metalayer.inspection import libpq_url
from metalayer.operations.quality import (
    Quality,
    TableQuality,
    by_day,
    by_month,
    quality,
    rejected_rows,
)
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer
from metalayer_tests.story import Platform


def order(number: int, day: str, quantity: int = 2, of: int = 7) -> str:
    return f"{number},{of},P00001,{day},{quantity},5.00,{quantity * 5}.00,PAID\n"


@contextlib.contextmanager
def connected(platform: Platform) -> Iterator[Any]:
    url = platform.warehouse.settings.database_url
    assert url is not None
    with contextlib.closing(psycopg2.connect(libpq_url(url.get_secret_value()))) as connection:
        yield connection


def told(platform: Platform, now: datetime | None = None) -> Quality:
    with connected(platform) as connection:
        return quality(connection, None, platform.warehouse.settings.start_month, now)


def of(platform: Platform, table: str, now: datetime | None = None) -> TableQuality:
    (found,) = [t for t in told(platform, now).tables if t.name == table]
    return found


def test_clean_rows_score_whole_and_each_fault_lowers_its_own(platform: Platform) -> None:
    now = datetime(2025, 2, 20, tzinfo=UTC)
    platform.land("crm/customers.csv", CUSTOMERS + customer(1, "2025-01-05"))
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", of=1))
    assert platform.build().succeeded
    scores = of(platform, "silver.orders", now).scores
    assert {name: s.value for name, s in scores.items()} == dict.fromkeys(scores, 1.0)
    assert told(platform, now).files == {"loaded": 2}

    platform.land(
        "erp/orders_2.csv",
        ORDERS + order(2, "2025-01-06", quantity=-1, of=1) + order(3, "2025-01-07", of=99),
    )
    assert platform.build().succeeded
    found = of(platform, "silver.orders", now)
    assert found.scores["validity"].value == pytest.approx(2 / 3)
    assert found.scores["validity"].why == "1 of 3 rows break the contract"
    assert found.scores["validity"].next_step == "metalayer rejects silver.orders"
    assert found.scores["consistency"].value == 1 / 2
    assert found.scores["conservation"].value == 1.0
    assert found.worst == 1 / 2
    late = of(platform, "silver.orders", datetime(2025, 4, 20, tzinfo=UTC))
    freshness = late.scores["freshness"].value
    assert freshness is not None
    assert freshness < 1
    assert "2025-03" in late.scores["freshness"].why
    assert (late.score or 0) < (found.score or 0)

    platform.ask(
        "update meta.versions set rows_read = rows_read + 1 where table_name = 'silver.orders' "
        "returning 1"
    )
    assert of(platform, "silver.orders", now).scores["conservation"].value == 0.0
    customers = of(platform, "silver.customers", now).scores["completeness"]
    assert customers.value is not None


def test_trends_flow_and_rules_are_what_the_ledger_says(platform: Platform) -> None:
    platform.land(
        "erp/orders.csv",
        ORDERS
        + order(1, "2025-01-05")
        + order(2, "2025-01-06", quantity=-1)
        + order(3, "2025-02-01")
        + "broken\n",
    )
    platform.build()
    found = told(platform)
    links = {(link.source, link.target): link.rows for link in found.flow}
    assert links["erp/orders files", "bronze.orders"] == 3
    assert links["erp/orders files", "unreadable"] == 1
    assert links["bronze.orders", "silver.orders"] == 2
    assert links["bronze.orders", "quarantined"] == 1
    assert ("silver.orders", "quantity", "must be > 0", 1) in [
        (r.table, r.column, r.rule, r.rows) for r in found.rules
    ]
    with connected(platform) as connection:
        months = by_month(connection, "silver.orders")
        assert list(months.labels) == ["2025-01", "2025-02"]
        assert months.scores["validity"] == [0.5, 1.0]
        assert months.scores["completeness"] == [1.0, 1.0]
        days = by_day(connection, "silver.orders")
        assert list(days.labels) == [f"{datetime.now(UTC):%Y-%m-%d}"]
        assert days.scores["validity"] == [2 / 3]
        count, rows = rejected_rows(connection, "silver.orders", "quantity", "must be > 0")
        assert count == 1
        assert (rows[0].file, rows[0].line) == ("erp/orders.csv", 3)
        assert rejected_rows(connection, "silver.orders", "quantity", "nothing")[0] == 0
