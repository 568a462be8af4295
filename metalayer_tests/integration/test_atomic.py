"""Stories of builds that are published all at once, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from psycopg2 import sql

from metalayer.assets import atomic
from metalayer.catalog import catalog
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.versions import rollback
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

CONTENTS = (
    "select table_name, month, data_version, rows, rows_quarantined from meta.versions "
    "where is_current order by 1, 2"
)
SUMS = (
    "select (select sum(quantity) from silver.orders), (select sum(quantity) from "
    "gold.fact_orders), (select sum(units) from gold.agg_daily_sales), "
    "(select sum(units) from gold.agg_monthly_sales)"
)


def land(platform: Platform, quantity: int) -> None:
    for number in range(1, 4):
        day = f"2025-0{number}-05"
        platform.land(f"erp/orders_{number}.csv", ORDERS + order(number, day, quantity))
    platform.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-02"))


def test_it_comes_to_the_same(platform: Platform, make_platform: Callable[[], Platform]) -> None:
    other = make_platform()
    for each, is_atomic in ((platform, True), (other, False)):
        for quantity in (2, 3):
            land(each, quantity)
            outcome = each.build(atomic=is_atomic)
            assert outcome.succeeded
            assert outcome.runs
        assert each.balances()
        assert each.plan().is_empty
        assert each.one("select count(*) from meta.versions where not is_checked") == 0 or (
            not is_atomic
        )
    for table in catalog().specs:
        if not table.startswith("bronze."):
            assert (
                platform.frame(table)
                .sort(pl_key(table))
                .equals(other.frame(table).sort(pl_key(table)))
            ), table
    assert platform.ask(CONTENTS) == other.ask(CONTENTS)


def pl_key(table: str) -> list[str]:
    return list(catalog().spec(table).key)


def test_readers_see_all_of_it_at_once(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    land(platform, 1)
    assert platform.build().succeeded
    land(platform, 10)
    seen: list[set[Any]] = []
    put_in_place = atomic.put_in_place

    def look(*args: Any, **kwargs: Any) -> bool:
        is_new = put_in_place(*args, **kwargs)
        with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
            cursor.execute("set local statement_timeout = '2s'")
            cursor.execute(SUMS)
            seen.append(set(cursor.fetchone()))
        return is_new

    monkeypatch.setattr(atomic, "put_in_place", look)
    assert platform.build(atomic=True).succeeded
    assert len(seen) > 10
    assert all(sums == {3} for sums in seen)
    assert platform.ask(SUMS) == [(30, 30, 30, 30)]
    # Asked as of any instant, it is the one state or the other.
    instants = platform.ask("select distinct published_at from meta.versions where version = 2")
    assert len(instants) == 1


def test_one_failed_month_leaves_everything_as_it_was(platform: Platform) -> None:
    land(platform, 1)
    assert platform.build().succeeded
    before = platform.ask(CONTENTS)
    land(platform, 2)
    bad = "".join(order(number, "2025-02-05", quantity=0) for number in range(100, 140))
    platform.land("erp/orders_bad.csv", ORDERS + bad)
    outcome = platform.build(atomic=True)
    assert not outcome.succeeded
    assert [(r.table, f"{r.month:%Y-%m}") for r in outcome.months] == [("silver.orders", "2025-02")]
    assert "Nothing of this build was published" in outcome.errors[0]
    assert platform.ask(CONTENTS) == before
    assert (
        platform.one(
            "select count(*) from pg_class as c where relnamespace = 'months'::regnamespace and "
            "relkind = 'r' and relname not like '%%unknown' and not exists "
            "(select from meta.versions as v where v.leaf = c.relname)"
        )
        == 0
    )
    # Month by month the rest is published.
    assert not platform.build().succeeded
    assert platform.one("select sum(quantity) from silver.orders") == 5


def test_a_failed_check_leaves_everything_as_it_was(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(platform, 1)
    assert platform.build().succeeded
    before = platform.ask(CONTENTS)
    put_in_place = atomic.put_in_place

    def falsify(cursor: Any, spec: Any, *args: Any, **kwargs: Any) -> bool:
        is_new = put_in_place(cursor, spec, *args, **kwargs)
        if spec.full_name == "gold.fact_orders":
            cursor.execute(
                sql.SQL("update {} set total_amount = total_amount + 1").format(
                    sql.Identifier("gold", "fact_orders")
                )
            )
        return is_new

    monkeypatch.setattr(atomic, "put_in_place", falsify)
    land(platform, 2)
    outcome = platform.build(atomic=True)
    assert not outcome.succeeded
    assert any("total_amount differs" in line for line in outcome.failed_checks)
    assert platform.ask(CONTENTS) == before
    monkeypatch.undo()
    assert platform.build(atomic=True).succeeded
    assert platform.ask(SUMS) == [(6, 6, 6, 6)]


def test_a_build_of_the_same_months_waits(platform: Platform) -> None:
    land(platform, 1)
    outcomes: list[bool] = []

    def run() -> None:
        outcomes.append(platform.build(atomic=True).succeeded)

    platform.register()
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [True, True]
    assert platform.balances()
    assert platform.one("select max(version) from meta.versions") == 1


def test_new_months_appear_together_with_the_others(platform: Platform) -> None:
    # A reader may plan its statement before the commit and begin to read after it: what it plans
    # with must have been there before. Whether one does is chance, so there are several goes.
    tables = ("bronze.orders", "silver.orders")
    look = "select count(*), sum(quantity)::int from silver.orders"
    land(platform, 1)
    assert platform.build(*tables, atomic=True).succeeded
    states = platform.ask(look)
    seen: set[Any] = set()
    done = threading.Event()

    def read() -> None:
        with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
            while not done.is_set():
                cursor.execute(look)
                seen.add(cursor.fetchone())
                connection.rollback()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for month in range(4, 10):
        land(platform, month)
        platform.land(f"erp/orders_{month}.csv", ORDERS + order(month, f"2025-0{month}-05"))
        assert platform.build(*tables, atomic=True).succeeded
        states += platform.ask(look)
    done.set()
    for reader in readers:
        reader.join()
    assert len(set(states)) == 7
    assert seen <= set(states)


def test_a_place_that_a_failed_build_has_made_is_used_by_the_next(platform: Platform) -> None:
    tables = ("bronze.orders", "silver.orders")
    bad = "".join(order(number, "2025-02-05", quantity=0) for number in range(100, 140))
    platform.land("erp/orders_bad.csv", ORDERS + bad)
    land(platform, 1)
    assert not platform.build(*tables, atomic=True).succeeded
    assert platform.one("select count(*) from silver.orders") == 0
    assert platform.one("select count(*) from meta.versions") == 0
    # Month by month, what can be is published into the places.
    assert not platform.build(*tables).succeeded
    assert platform.ask("select order_id from silver.orders order by 1") == [(1,), (3,)]
    for quantity, is_atomic in ((2, True), (3, False), (4, False)):
        platform.land("erp/orders_bad.csv", ORDERS)
        land(platform, quantity)
        assert platform.build(*tables, atomic=is_atomic).succeeded
        assert platform.one("select sum(quantity) from silver.orders") == 3 * quantity
    assert platform.balances()
    unnamed = (
        "select c.relname from pg_class as c where relnamespace = 'months'::regnamespace and "
        "relkind = 'r' and relname not like '%%unknown' and relname ~ '_orders_' and not exists "
        "(select from meta.versions as v where v.leaf = c.relname)"
    )
    assert platform.ask(unnamed) == []
    # Such a month is like any other: it can be brought back.
    spec = catalog().spec("silver.orders")
    kept = platform.ask("select version from meta.versions where table_name = 'silver.orders'")
    assert len(kept) > 3
    rollback(platform.warehouse.pool, spec, date(2025, 1, 1), 1)
    assert platform.one("select sum(quantity) from silver.orders") == 3 * 4 - 4 + 1
