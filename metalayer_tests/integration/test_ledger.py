"""Stories of the ledger: what each version of a file is, and which rows count because of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine

from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.landing.ledger import register
from metalayer.settings import Settings
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.pool import transaction
from metalayer_tests.story import Platform

pytestmark = pytest.mark.usefixtures("keys_in_parts")

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
SNAPSHOT = "customer_id,customer_name,email,region\n"


def order(number: int, day: str = "2025-01-05", status: str = "PAID") -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,{status}\n"


def member(number: int, region: str = "N") -> str:
    return f"{number},Ann Berg,ann@example.org,{region}\n"


@pytest.fixture
def platform(tmp_path: Path, database: str, pool: Engine) -> Iterator[Platform]:
    """As elsewhere, in a folder whose name would mean something to SQL and to a glob."""
    home = tmp_path / "it's [my] home, 100%*?"
    settings = Settings(_env_file=None, home=home, database_url=database)
    with transaction(pool) as connection:
        prepare(connection, list(catalog().specs.values()), catalog().selects)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(Warehouse(pool, settings), instance)


def statuses(platform: Platform) -> list[tuple[str, str]]:
    return [(entry["file"].partition("/")[2], entry["status"]) for entry in platform.ledger()]


def counting(platform: Platform, source: str = "orders") -> list[tuple[Any, ...]]:
    """(key, file, line) of the rows that count, as bronze would have them."""
    assert platform.build(f"bronze.{source}").succeeded
    key = "order_id" if source == "orders" else "customer_id"
    return platform.ask(
        f"select {key}::bigint, split_part(d.file, '/', 2), b._line from bronze.{source} as b "
        "join meta.deliveries as d on d.delivery_id = b._delivery_id where b._is_latest "
        "and d.status = 'loaded' order by 1, 2"
    )


def test_what_is_known_is_not_read_again(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1))
    platform.land("erp/orders_bad.csv", "nothing\n")
    assert [d.status for d in platform.register().deliveries] == ["loaded", "rejected"]
    assert platform.register().deliveries == []
    # Touched, and still the same bytes.
    path = platform.landing / "erp/orders.csv"
    os.utime(path, (path.stat().st_mtime + 100,) * 2)
    assert platform.register().deliveries == []
    assert statuses(platform) == [("orders.csv", "loaded"), ("orders_bad.csv", "rejected")]


def test_a_corrected_file_supersedes_and_can_be_taken_back(platform: Platform) -> None:
    first, second = ORDERS + order(1) + order(2), ORDERS + order(1, status="SHIPPED")
    platform.land("erp/orders.csv", first)
    assert counting(platform) == [(1, "orders.csv", 2), (2, "orders.csv", 3)]
    platform.land("erp/orders.csv", second)
    assert counting(platform) == [(1, "orders.csv", 2)]
    platform.land("erp/orders.csv", first)
    assert counting(platform) == [(1, "orders.csv", 2), (2, "orders.csv", 3)]
    assert statuses(platform) == [("orders.csv", "superseded")] * 2 + [("orders.csv", "loaded")]
    assert [e["rows_superseded"] for e in platform.ledger()] == [2, 1, 0]
    assert platform.balances()


def test_a_version_that_is_refused_leaves_the_one_before(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1))
    platform.register()
    platform.land("erp/orders.csv", b"")
    platform.register()
    assert statuses(platform) == [("orders.csv", "loaded"), ("orders.csv", "rejected")]
    assert counting(platform) == [(1, "orders.csv", 2)]
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2))
    platform.register()
    assert statuses(platform)[-1] == ("orders.csv", "loaded")
    assert [key for key, *_ in counting(platform)] == [1, 2]


def test_a_row_that_was_replaced_counts_again_when_its_successor_leaves(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1) + order(2))
    platform.land("erp/orders_2.csv", ORDERS + order(1, "2025-03-09"))
    assert counting(platform) == [(1, "orders_2.csv", 2), (2, "orders_1.csv", 3)]
    platform.land("erp/orders_2.csv", ORDERS + order(3))
    assert counting(platform) == [
        (1, "orders_1.csv", 2), (2, "orders_1.csv", 3), (3, "orders_2.csv", 2)
    ]  # fmt: skip
    assert platform.balances()


def test_a_copy_keeps_its_rows_when_the_original_is_overwritten(platform: Platform) -> None:
    # An export of fixed name, and a copy kept under the month's: what comes next takes the name.
    january = ORDERS + order(1)
    platform.land("erp/orders.csv", january)
    platform.land("erp/orders_2025-01.csv", january)
    platform.register()
    platform.land("erp/orders.csv", ORDERS + order(2, "2025-02-05"))
    platform.register()
    assert statuses(platform) == [
        ("orders.csv", "superseded"), ("orders_2025-01.csv", "loaded"), ("orders.csv", "loaded")
    ]  # fmt: skip
    assert counting(platform) == [(1, "orders_2025-01.csv", 2), (2, "orders.csv", 2)]
    assert platform.register().deliveries == []
    assert platform.balances()


def test_of_two_copies_one_takes_the_place_of_the_original(platform: Platform) -> None:
    for name in ("orders.csv", "orders_a.csv", "orders_b.csv"):
        platform.land(f"erp/{name}", ORDERS + order(1))
    platform.register()
    for name in ("orders.csv", "orders_a.csv"):
        platform.land(f"erp/{name}", ORDERS + order(2) + f"{name}\n")
        platform.register()
    assert statuses(platform) == [
        ("orders.csv", "superseded"),
        ("orders_a.csv", "superseded"),
        ("orders_b.csv", "loaded"),
        ("orders.csv", "loaded"),
        ("orders_a.csv", "loaded"),
    ]
    assert [key for key, *_ in counting(platform)] == [1, 2]
    assert platform.balances()


def test_a_copy_that_is_gone_keeps_no_rows(platform: Platform) -> None:
    january = ORDERS + order(1)
    platform.land("erp/orders.csv", january)
    copy = platform.land("erp/orders_2025-01.csv", january)
    platform.register()
    copy.unlink()
    platform.land("erp/orders.csv", ORDERS + order(2))
    assert [key for key, *_ in counting(platform)] == [2]


def test_equal_bytes_in_two_sources_are_two_deliveries(platform: Platform) -> None:
    both = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status,"
    content = (
        both
        + "sales_id,product_id,sale_date,sale_amount\n"
        + order(1).replace("\n", ",1,226,2025-01-05,10\n")
    )
    platform.land("erp/orders.csv", content)
    platform.land("erp/erp_sales.csv", content)
    platform.register()
    assert statuses(platform) == [("orders.csv", "loaded"), ("erp_sales.csv", "loaded")]


def test_a_key_is_one_however_it_is_written(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(7) + "x" + order(8))
    platform.land("erp/orders_2.csv", ORDERS + " 007.0" + order(7)[1:] + "x" + order(8))
    assert platform.build("bronze.orders").succeeded
    latest = (
        "select _line, order_id from bronze.orders where _is_latest order by _delivery_id, _line"
    )
    # What is no number has no key: silver will say so of each.
    assert platform.ask(latest) == [(3, "x8"), (2, " 007.0"), (3, "x8")]


def test_the_newest_snapshot_of_a_month_is_all_there_is(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", SNAPSHOT + member(1) + member(2))
    platform.land(
        "crm/crm_customers_2025-02.csv", SNAPSHOT + member(1) + member(3) + member(3, "S")
    )
    newest = "crm_customers_2025-01_corrected.csv"
    platform.land(f"crm/{newest}", SNAPSHOT + member(2, "W"))
    assert counting(platform, "crm_customers") == [
        (1, "crm_customers_2025-02.csv", 2),
        (2, newest, 2),
        (3, "crm_customers_2025-02.csv", 4),
    ]
    assert [e["rows_superseded"] for e in platform.ledger()] == [2, 1, 0]
    platform.withdraw(newest)
    assert [row[:2] for row in counting(platform, "crm_customers")][:2] == [
        (1, "crm_customers_2025-01.csv"), (1, "crm_customers_2025-02.csv")
    ]  # fmt: skip
    assert platform.balances()


def test_rows_can_be_read_again_when_their_parse_is_lost(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2, status="LOST"))
    platform.register()
    shutil.rmtree(platform.warehouse.settings.parsed_dir)
    assert platform.build("bronze.orders", "silver.orders").succeeded
    assert platform.ask("select order_id from silver.orders") == [(1,)]


def test_what_is_needed_and_gone_is_named(platform: Platform) -> None:
    path = platform.land("erp/orders_1.csv", ORDERS + order(1))
    platform.register()
    shutil.rmtree(platform.warehouse.settings.parsed_dir)
    path.unlink()
    platform.land("erp/orders_2.csv", ORDERS + order(1))
    platform.land("erp/orders_3.csv", ORDERS + order(2))
    platform.land("erp/erp_sales.csv", SALES + "1,226,7,2,2025-01-05,10.00\n")
    registration = platform.register()
    # What needs it waits; another source does not.
    assert [(d.file, d.status) for d in registration.deliveries] == [
        ("erp/erp_sales.csv", "loaded")
    ]
    assert [s.name for s in registration.skipped] == ["erp/orders_2.csv", "erp/orders_3.csv"]
    waiting = "nothing new of erp/orders can be taken in: The rows of erp/orders_1.csv are needed"
    for skipped in registration.skipped:
        assert skipped.reason.startswith(waiting)
        assert skipped.reason.endswith(
            "Land erp/orders_1.csv as it was once more, or take it out with "
            "`metalayer land --withdraw erp/orders_1.csv`"
        )
    assert statuses(platform) == [("orders_1.csv", "loaded"), ("erp_sales.csv", "loaded")]
    assert platform.balances()
    platform.land("erp/orders_1.csv", ORDERS + order(1))
    assert [key for key, *_ in counting(platform)] == [1, 2]
    assert platform.register().skipped == []


def test_another_first_month_reads_what_is_loaded_again(platform: Platform) -> None:
    platform.land(
        "erp/orders.csv", ORDERS + order(1, "2024-12-31") + order(2) + order(3, "2019-01-01")
    )
    assert [key for key, *_ in counting(platform)] == [1, 2]
    settings = platform.warehouse.settings.model_copy(update={"start_month": date(2025, 1, 1)})
    later = dataclasses.replace(platform, warehouse=Warehouse(platform.warehouse.pool, settings))
    assert [key for key, *_ in counting(later)] == [2]
    assert sorted(r[2:] for r in later.rejects("bronze.orders")) == [
        (2, "order_date", "before the first month 2025-01", "2024-12-31"),
        (4, "order_date", "before the first month 2025-01", "2019-01-01"),
    ]
    assert later.balances()


def test_another_contract_gives_a_refused_file_another_chance(platform: Platform) -> None:
    platform.land("erp/orders.csv", (ORDERS + order(1)).replace("total_amount", "amount"))
    platform.register()
    assert statuses(platform) == [("orders.csv", "rejected")]
    # The contract calls it `amount` from now on.
    spec = catalog().sources["erp/orders"]
    columns = tuple(
        dataclasses.replace(c, name="amount") if c.name == "total_amount" else c
        for c in spec.columns
    )
    changed = {**catalog().sources, "erp/orders": dataclasses.replace(spec, columns=columns)}
    for _ in range(2):
        register(
            platform.warehouse.pool,
            platform.warehouse.settings,
            changed,
            today=platform.today,
            still_seconds=0.0,
        )
        assert statuses(platform) == [("orders.csv", "loaded")]


def test_a_row_is_quarantined_or_superseded_and_not_both(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1, status="LOST"))
    assert platform.build().succeeded
    platform.land("erp/orders_2.csv", ORDERS + order(1))
    platform.register()
    # Not built yet: the quarantine still holds what a later delivery has replaced by now.
    first, second = platform.ledger()
    assert (first["rows_loaded"], first["rows_rejected"], first["rows_superseded"]) == (0, 0, 1)
    assert second["rows_loaded"] == 1
    assert platform.build().succeeded
    assert platform.rejects() == []
    assert platform.ledger() == [first, second]


def test_a_name_may_be_anything(platform: Platform) -> None:
    names = ["orders_'; drop table x; --.csv", "orders_%s {} \\N.csv", "orders_Łódź\n*.csv"]
    for number, name in enumerate(names):
        platform.land(f"erp/{name}", ORDERS + order(number))
    platform.land(os.fsdecode(b"erp/orders_\xff.csv"), ORDERS + order(9))
    skipped = platform.register().skipped
    assert [s.reason for s in skipped] == ["its name is not UTF-8; rename it"]
    assert statuses(platform) == [(name, "loaded") for name in names]
    assert counting(platform) == [(number, name, 2) for number, name in enumerate(names)]
