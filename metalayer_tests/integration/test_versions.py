"""Stories of earlier versions: kept, listed, brought back, let go of."""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from datetime import date
from typing import Any

import polars as pl
import pytest

from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.differences import difference
from metalayer.errors import UsageError, WarehouseError
from metalayer.history import LEAVES
from metalayer.inspection import reading, table_status
from metalayer.warehouse.build import TableJob, build_months
from metalayer.warehouse.keeping import Keeping, prune_expired
from metalayer.warehouse.locks import lock_months, unlock_all
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.stage import fill_from_select
from metalayer.warehouse.versions import Rollback, rollback
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.integration.test_crash import LEFTOVERS
from metalayer_tests.story import Platform

JANUARY = date(2025, 1, 1)
SILVER = "silver.orders"
TYPED = ("bronze.orders", "silver.orders")


def land_orders(platform: Platform, quantity: int, *, bad: int = 0, rows: int = 3) -> None:
    """The same file anew: `rows` orders of January, and `bad` ones that break the contract."""
    good = "".join(order(n, "2025-01-05", quantity=quantity) for n in range(1, rows + 1))
    broken = "".join(order(900 + n, "2025-01-06", quantity=0) for n in range(bad))
    platform.land("erp/orders.csv", ORDERS + good + broken)


def back(platform: Platform, to: int, table: str = SILVER, month: date = JANUARY) -> Rollback:
    settings = platform.warehouse.settings
    keeping = Keeping(settings.keep_versions, settings.keep_version_days)
    return rollback(platform.warehouse.pool, catalog().specs[table], month, to, keeping)


def keeping(platform: Platform, **changes: Any) -> None:
    """Go on with other settings."""
    settings = platform.warehouse.settings.model_copy(update=changes)
    platform.warehouse = Warehouse(platform.warehouse.pool, settings)


def quantities(platform: Platform, table: str = SILVER) -> list[int]:
    return [q for (q,) in platform.ask(f"select distinct quantity from {table} order by 1")]


def versions(platform: Platform, table: str = SILVER) -> list[tuple[Any, ...]]:
    """(version, whether it is current, which it restores), oldest first."""
    return platform.ask(
        "select version, is_current, restores from meta.versions "
        "where table_name = %s and month = %s order by version",
        table,
        JANUARY,
    )


def three_versions(platform: Platform) -> None:
    for quantity in (1, 2, 3):
        land_orders(platform, quantity)
        assert platform.build(*TYPED).succeeded


def test_a_rollback_brings_back_the_rows_and_what_follows_is_rebuilt(platform: Platform) -> None:
    platform.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-01"))
    land_orders(platform, 2, bad=2)
    assert platform.build().succeeded
    gold = [name for name in catalog().specs if name.startswith("gold.")]
    before = {name: platform.frame(name) for name in gold}
    rejected = platform.rejects(SILVER)
    assert len(rejected) == 2
    land_orders(platform, 5, rows=4)
    assert platform.build().succeeded
    assert platform.rejects(SILVER) == []

    assert back(platform, 1) == Rollback(version=3, restores=1, replaced=2, rows=3)
    with transaction(platform.warehouse.pool) as connection:
        told = {t.table: t.rolled_back for t in table_status(connection) if t.rolled_back}
    assert told == {SILVER: {"2025-01": 1}}
    assert quantities(platform) == [2]
    assert platform.rejects(SILVER) == rejected
    assert platform.balances()
    contents = "select data_version from meta.versions where table_name = %s and version = %s"
    assert platform.ask(contents, SILVER, 1) == platform.ask(contents, SILVER, 3)

    planned = platform.plan()
    assert not planned.affected[SILVER]
    assert (
        planned.stale["gold.fact_orders"] == planned.affected["gold.agg_daily_sales"] == {JANUARY}
    )
    outcome = platform.build()
    assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
    assert not [r for r in outcome.months if r.table == SILVER and r.outcome != "current"]
    assert versions(platform)[-1] == (3, True, 1)
    assert quantities(platform, "gold.fact_orders") == [2]
    for name in gold:
        assert same(platform.frame(name), before[name]), name
    assert platform.balances()
    assert platform.build().months == []


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return one.sort(pl.all()).equals(other.sort(pl.all()))


def test_what_is_delivered_after_a_rollback_is_built_from_the_newest_files(
    platform: Platform,
) -> None:
    three_versions(platform)
    back(platform, 1)
    platform.land("erp/orders_late.csv", ORDERS + order(50, "2025-01-09", quantity=7))
    assert platform.build(*TYPED).succeeded
    assert quantities(platform) == [3, 7]
    assert versions(platform)[-1] == (5, True, None)
    assert platform.balances()


def test_a_row_that_has_moved_since_stops_what_follows(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-01-06"))
    assert platform.build().succeeded
    platform.land("erp/orders_2.csv", ORDERS + order(2, "2025-02-05"))
    assert platform.build().succeeded
    back(platform, 1)
    outcome = platform.build()
    assert "Keys stand in more than one month of silver.orders: 2" in str(outcome.failed_checks)
    assert platform.ask("select order_id from gold.fact_orders order by 1") == [(1,), (2,)]
    back(platform, 2)
    assert platform.build().succeeded
    assert platform.ask("select order_id from silver.orders order by 1") == [(1,), (2,)]


def test_a_rebuild_to_the_rows_of_a_rollback_makes_them_its_own(platform: Platform) -> None:
    land_orders(platform, 1)
    assert platform.build(*TYPED).succeeded
    land_orders(platform, 2)
    assert platform.build(*TYPED).succeeded
    back(platform, 1)
    land_orders(platform, 1)
    assert platform.build(*TYPED).succeeded
    assert quantities(platform) == [1]
    # From now on it is what its inputs give, and is checked against them like any other.
    assert versions(platform)[-1][1:] == (True, None)


def test_a_version_from_before_a_column_became_wider_is_widened(platform: Platform) -> None:
    three_versions(platform)
    prices = platform.ask("select order_id, unit_price from silver.orders order by 1")
    platform.ask("alter table silver.orders alter unit_price type numeric(24,6); select 1")
    back(platform, 1)
    assert quantities(platform) == [1]
    assert platform.ask("select order_id, unit_price from silver.orders order by 1") == prices
    kind = (
        "select format_type(atttypid, atttypmod) from pg_attribute "
        "where attrelid = %s::regclass and attname = 'unit_price'"
    )
    assert platform.one(kind, leaf_of(platform, 1)) == platform.one(kind, "silver.orders")
    assert platform.one(kind, leaf_of(platform, 2)) == "numeric(18,4)"
    assert platform.build(*TYPED).succeeded


def test_a_rollback_can_be_rolled_back(platform: Platform) -> None:
    keeping(platform, keep_versions=20)
    three_versions(platform)
    for to, expected in ((1, 1), (3, 3), (2, 2), (4, 1), (1, 1), (6, 2)):
        done = back(platform, to)
        assert quantities(platform) == [expected], to
        assert done.has_changed is (to != 1 or done.version == 4)
    assert versions(platform)[3:] == [
        (4, False, 1),
        (5, False, 3),
        (6, False, 2),
        (7, False, 4),
        (8, True, 6),
    ]
    # Versions share their rows: no more tables than there are contents.
    leaves = "select count(distinct leaf) from meta.versions where table_name = %s"
    assert platform.one(leaves, SILVER) == 3
    assert platform.ask(LEFTOVERS) == []


def leaf_of(platform: Platform, version: int, table: str = SILVER) -> str:
    """The table that holds the rows of a version of January."""
    leaf = "select leaf from meta.versions where table_name = %s and month = %s and version = %s"
    return f"{LEAVES}.{platform.one(leaf, table, JANUARY, version)}"


def test_what_a_rollback_refuses(platform: Platform) -> None:
    three_versions(platform)
    with pytest.raises(UsageError, match="holds what was delivered") as raised:
        back(platform, 1, "bronze.orders")
    assert "--withdraw" in raised.value.next_step
    with pytest.raises(UsageError, match="has no version 9") as raised:
        back(platform, 9)
    assert "Kept are 1, 2, 3;" in raised.value.next_step
    with pytest.raises(UsageError, match="has no month 2024-05") as raised:
        back(platform, 1, month=date(2024, 5, 1))
    assert "2025-01 to 2025-01" in raised.value.next_step
    assert not back(platform, 3).has_changed
    assert [v for v, *_ in versions(platform)] == [1, 2, 3]


def test_a_version_must_fit_the_table_as_it_is_now(platform: Platform) -> None:
    three_versions(platform)
    # What came since is NULL in it.
    platform.ask("alter table silver.orders add column note text; select 1")
    back(platform, 1)
    assert platform.ask("select distinct note from silver.orders") == [(None,)]
    for change, reason in (
        ("drop column unit_price", "its column unit_price is no longer in the table"),
        ("add column unit_price date", "its column unit_price is numeric(18,4), in the table date"),
    ):
        platform.ask(f"alter table silver.orders {change}; select 1")
        with pytest.raises(WarehouseError, match=re.escape(reason)):
            back(platform, 2)
    platform.ask("alter table silver.orders drop column unit_price; select 1")
    leaf = leaf_of(platform, 2)
    ((index,),) = platform.ask(
        "select indexrelid::regclass::text from pg_index where indrelid = %s::regclass", leaf
    )
    for change, reason in (
        (f"alter table {leaf} drop column unit_price", None),
        (f"drop index {index}", "its rows have another key than order_id"),
        (
            f"alter table {leaf} alter column status drop not null",
            "its column status may lack a value",
        ),
        (
            f"alter table {leaf} drop column status",
            "it lacks the column status, which must have a value",
        ),
    ):
        platform.ask(f"{change}; select 1")
        if reason is not None:
            with pytest.raises(WarehouseError, match=re.escape(reason)):
                back(platform, 2)
    assert quantities(platform) == [1]


def test_a_long_report_on_the_table_holds_no_rollback_up(platform: Platform) -> None:
    for quantity, bad in ((1, 1), (2, 0), (3, 2)):
        land_orders(platform, quantity, bad=bad)
        assert platform.build(*TYPED).succeeded
    seen = "select quantity from silver.orders limit 1"
    attached = leaf_of(platform, 3)
    for to in (1, 2, 4, 3):
        with transaction(platform.warehouse.pool) as report, report.cursor() as cursor:
            cursor.execute(seen)
            assert cursor.fetchall() == [(quantities(platform)[0],)]
            done = back(platform, to)
            cursor.execute(seen)
            assert cursor.fetchall() == [(quantities(platform)[0],)]
        assert done.has_changed
    # Written in place, and every version still has the rows that it had.
    assert leaf_of(platform, 7) == attached
    held = {
        version: platform.ask(
            f"select distinct quantity, count(*) over () from {leaf_of(platform, version)}"
        )
        for version, *_ in versions(platform)
    }
    assert held == {3: [(3, 3)], 4: [(1, 3)], 5: [(2, 3)], 6: [(1, 3)], 7: [(3, 3)]}
    assert len(platform.rejects(SILVER)) == 2
    assert platform.ask(LEFTOVERS) == []
    assert platform.balances()


def test_readers_see_one_version_or_the_other_while_one_is_brought_back(
    platform: Platform,
) -> None:
    land_orders(platform, 1, rows=50)
    assert platform.build(*TYPED).succeeded
    land_orders(platform, 2, rows=40)
    assert platform.build(*TYPED).succeeded
    stop, seen = threading.Event(), set()

    def poll() -> None:
        while not stop.is_set():
            with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
                cursor.execute("select count(*), min(quantity), max(quantity) from silver.orders")
                seen.add(cursor.fetchone())

    readers = [threading.Thread(target=poll) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for n in range(20):
            assert back(platform, versions(platform)[-1][0] - 1).has_changed, n
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert seen == {(50, 1, 1), (40, 2, 2)}


def test_versions_past_those_that_are_kept_go_with_their_rows_and_quarantine(
    platform: Platform,
) -> None:
    keeping(platform, keep_versions=2)
    for quantity in (1, 2, 3):
        land_orders(platform, quantity, bad=quantity)
        assert platform.build(*TYPED).succeeded
    assert [v for v, *_ in versions(platform)] == [2, 3]
    past = "select version, count(*) from meta.past_quarantine group by version order by 1"
    assert platform.ask(past) == [(2, 2)]
    # The rows of 2 are those of 4 as well: when 2 goes they stay.
    back(platform, 2)
    assert [v for v, *_ in versions(platform)] == [3, 4]
    assert quantities(platform) == [2]
    assert platform.ask(past) == [(3, 3)]
    assert len(platform.rejects(SILVER)) == 2
    land_orders(platform, 8)
    assert platform.build(*TYPED).succeeded
    assert versions(platform) == [(4, False, 2), (5, True, None)]
    assert platform.ask(past) == [(4, 2)]
    keeping(platform, keep_versions=1)
    assert platform.build(*TYPED).succeeded
    assert versions(platform) == [(5, True, None)]
    assert platform.ask(past) == []
    leaves = "select count(*) from pg_class where relname ~ '^silver_orders_2025_01_[0-9]+$'"
    assert platform.one(leaves) == 1


def test_versions_replaced_long_ago_go_with_the_next_build(platform: Platform) -> None:
    three_versions(platform)
    platform.ask(
        "update meta.versions set replaced_at = replaced_at - interval '9 days' "
        "where table_name = %s and version = 1 returning 1",
        SILVER,
    )
    keeping(platform, keep_version_days=10)
    assert platform.build(*TYPED).succeeded
    assert [v for v, *_ in versions(platform)] == [1, 2, 3]
    keeping(platform, keep_version_days=8)
    assert platform.build(*TYPED).succeeded
    assert [v for v, *_ in versions(platform)] == [2, 3]
    keeping(platform, keep_version_days=0)
    assert platform.build(*TYPED).succeeded
    assert versions(platform) == [(3, True, None)]
    assert platform.ask(LEFTOVERS) == []


def test_a_month_in_work_is_left_to_its_build(platform: Platform) -> None:
    three_versions(platform)
    pool = platform.warehouse.pool
    with transaction(pool) as builder, builder.cursor() as cursor:
        lock_months(cursor, SILVER, [JANUARY])
        # Bronze has versions of its own that go.
        assert prune_expired(pool, Keeping(versions=1)) == 2
        unlock_all(cursor)
    assert [v for v, *_ in versions(platform)] == [1, 2, 3]
    assert prune_expired(pool, Keeping(versions=1)) == 2
    assert prune_expired(pool, Keeping(versions=1)) == 0


def test_each_version_says_when_readers_changed_over(platform: Platform) -> None:
    three_versions(platform)
    times = platform.ask(
        "select published_at, replaced_at from meta.versions where table_name = %s "
        "order by version",
        SILVER,
    )
    assert [replaced for _, replaced in times] == [published for published, _ in times[1:]] + [None]


def test_a_rollback_takes_no_longer_for_more_rows(platform: Platform) -> None:
    spec = catalog().specs["gold.dim_product"]
    sizes = {date(2025, 1, 1): 1_000, date(2025, 2, 1): 300_000}
    for number in (1, 2):
        select = " union all ".join(
            f"select {month:%m}000000 + n, 'P' || lpad((n % 100000)::text, 5, '0'), "
            f"n * {number}, date '{month}' from generate_series(1, {rows}) as n"
            for month, rows in sizes.items()
        )

        def fill(cursor: Any, stage: Any, _start: date, _end: date, text: str = select) -> None:
            fill_from_select(cursor, stage, text)

        job = TableJob(spec, f"code {number}", (), lambda *_: {}, fill, lambda *_: None)
        results = build_months(platform.warehouse.pool, job, list(sizes), workers=1)
        assert [r.outcome for r in results] == ["published"] * 2
    seconds: dict[date, list[float]] = {month: [] for month in sizes}
    for number in range(7):
        for month, taken in seconds.items():
            began = time.perf_counter()
            done = back(platform, 2 + number - 1, spec.full_name, month)
            taken.append(time.perf_counter() - began)
            assert done.has_changed
            assert done.rows == sizes[month]
    small, large = (statistics.median(taken) for taken in seconds.values())
    assert large < small * 3, seconds
    assert large < 1.0, seconds


@pytest.fixture
def commanded(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform that commands run on in this process work on as well."""
    url = platform.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    monkeypatch.setenv("METALAYER_HOME", str(platform.warehouse.settings.home))
    monkeypatch.setenv("COLUMNS", "120")
    return platform


def test_the_versions_are_listed(commanded: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    for quantity, bad in ((1, 2), (2, 0)):
        land_orders(commanded, quantity, bad=bad)
        assert commanded.build(*TYPED).succeeded
    back(commanded, 1)

    def told(*arguments: str) -> Any:
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    (month,) = told("versions", SILVER)
    assert (month["month"], month["version"], month["kept"]) == ("2025-01", 3, 3)
    assert (month["rows"], month["quarantined"], month["restores"]) == (3, 2, 1)
    third, second, first = told("versions", SILVER, "2025-01")
    assert [v["is_current"] for v in (first, second, third)] == [False, False, True]
    assert [v["restores"] for v in (first, second, third)] == [None, None, 1]
    assert [v["has_same_rows"] for v in (first, second, third)] == [None, False, False]
    assert first["data_version"] == third["data_version"]
    assert first["replaced_at"] == second["published_at"]
    assert first["run_id"] != second["run_id"]
    assert third["run_id"] is None
    assert [v["quarantined"] for v in (first, second, third)] == [2, 0, 2]
    capsys.readouterr()
    assert main(["versions", SILVER, "2025-01"]) == 0
    out = capsys.readouterr().out
    assert "current" in out
    assert "restores 1" in out
    assert main(["versions", "orders"]) == 2
    assert "Did you mean bronze.orders or silver.orders?" in capsys.readouterr().err
    assert main(["versions", SILVER, "2024-13"]) == 2
    assert "Write it as 2025-01" in capsys.readouterr().err
    assert main(["versions", SILVER, "2024-01"]) == 2
    assert "Its months are 2025-01 to 2025-01" in capsys.readouterr().err


def test_the_command_brings_a_version_back(
    commanded: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    three_versions(commanded)
    assert main(["rollback", SILVER, "2025-01", "--to", "2"]) == 0
    out, err = capsys.readouterr()
    assert "silver.orders 2025-01 is now version 4: 3 rows, as in 2" in out
    assert "out of date already" not in err
    assert quantities(commanded) == [2]
    assert main(["rollback", SILVER, "2025-01", "--to", "2"]) == 0
    assert "Nothing to do" in capsys.readouterr().err
    land_orders(commanded, 9)
    assert commanded.build("bronze.orders").succeeded
    assert main(["rollback", SILVER, "2025-01", "--to", "1"]) == 0
    assert "was out of date already" in capsys.readouterr().err
    assert main(["rollback", SILVER, "2025-01", "--to", "77"]) == 2
    assert "next: Kept are" in capsys.readouterr().err
    assert main(["rollback", "bronze.orders", "2025-01", "--to", "1"]) == 2


def test_the_command_tells_of_rows_that_have_moved_since(
    commanded: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    commanded.land("erp/orders_1.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-01-06"))
    commanded.land("erp/orders_2.csv", ORDERS + order(3, "2025-02-05"))
    assert commanded.build(*TYPED).succeeded
    commanded.land("erp/orders_3.csv", ORDERS + order(2, "2025-02-05"))
    assert commanded.build(*TYPED).succeeded
    assert main(["rollback", SILVER, "2025-01", "--to", "1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "stand in another month as well, as they have moved: 1." in said
    assert "lacks" not in said
    assert main(["rollback", SILVER, "2025-02", "--to", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["repeated"], told["gone"]) == (0, 1)
    assert main(["rollback", SILVER, "2025-02", "--to", "2"]) == 0
    assert main(["rollback", SILVER, "2025-02", "--to", "1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: rows of version 4 that 2025-02 lacks now: 1" in said


def test_the_command_brings_back_the_last_version_that_is_kept(
    commanded: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    three_versions(commanded)
    monkeypatch.setenv("METALAYER_KEEP_VERSIONS", "1")
    assert main(["rollback", SILVER, "2025-01", "--to", "1"]) == 0
    out, err = capsys.readouterr()
    assert "is now version 4" in out
    assert "takes it back" not in out + err
    assert quantities(commanded) == [1]


def test_two_versions_are_compared_by_key(
    commanded: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "".join(order(n, "2025-01-05") for n in range(1, 31))
    commanded.land("erp/orders.csv", ORDERS + first)
    commanded.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-02"))
    tables = ("silver.orders", "bronze.orders", "bronze.customers", "silver.customers")
    assert commanded.build(*tables).succeeded
    # 1 to 20 go, 21 and 22 change, 23 to 30 are delivered again, 31 to 33 are new.
    changed = order(21, "2025-01-05", quantity=4) + order(22, "2025-01-05", status="CANCELLED")
    again = "".join(order(n, "2025-01-05") for n in range(23, 34))
    commanded.land("erp/orders.csv", ORDERS + changed + again)
    commanded.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-02", city="Odense"))
    assert commanded.build(*tables).succeeded

    def told(*arguments: str) -> Any:
        capsys.readouterr()
        assert main(["diff", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = told(SILVER, "2025-01", "1", "2")
    assert (found["rows_before"], found["rows_after"]) == (30, 13)
    assert (found["rows_added"], found["rows_removed"], found["rows_changed"]) == (3, 20, 2)
    assert found["rows_redelivered"] == 8
    assert found["values_changed"] == {"quantity": 1, "total_amount": 1, "status": 1}
    assert [s["key"]["order_id"] for s in found["added"]] == [31, 32, 33]
    assert [s["key"]["order_id"] for s in found["removed"]] == list(range(1, 11))
    assert found["added"][0]["before"] is None
    assert found["added"][0]["after"]["quantity"] == 2
    assert found["changed"] == [
        {
            "key": {"order_id": 21},
            "before": {"quantity": 2, "total_amount": 10.00},
            "after": {"quantity": 4, "total_amount": 20.00},
        },
        {
            "key": {"order_id": 22},
            "before": {"status": "COMPLETED"},
            "after": {"status": "CANCELLED"},
        },
    ]
    turned = told(SILVER, "2025-01", "2", "1", "--limit", "1")
    assert (turned["rows_added"], turned["rows_removed"]) == (20, 3)
    assert len(turned["added"]) == len(turned["changed"]) == 1

    (person,) = told("silver.customers", "2025-01", "1", "2")["changed"]
    assert person["before"] == person["after"] == {"city": "***"}
    brought = told("bronze.orders", "2025-01", "1", "2")
    assert (brought["rows_added"], brought["rows_removed"]) == (13, 30)

    capsys.readouterr()
    assert main(["diff", SILVER, "2025-01", "1", "2"]) == 0
    out = capsys.readouterr().out
    assert "~ order_id 21  quantity 2 -> 4  total_amount 10.00 -> 20.00" in out
    assert main(["diff", SILVER, "2025-01", "1", "5"]) == 2
    assert "Kept are 1, 2;" in capsys.readouterr().err


def test_columns_that_came_went_and_changed_are_told(platform: Platform) -> None:
    land_orders(platform, 1)
    assert platform.build(*TYPED).succeeded
    leaf = leaf_of(platform, 1)
    land_orders(platform, 2)
    assert platform.build(*TYPED).succeeded
    platform.ask(
        f"alter table {leaf} add column gone text, drop column status, "
        "alter column quantity type numeric(20,2), alter column customer_id type text; select 1"
    )
    with reading(platform.warehouse.settings) as connection:
        found = difference(connection, SILVER, JANUARY, 1, 2)
    assert found.columns_added == {"status": "text"}
    assert found.columns_removed == {"gone": "text"}
    assert found.columns_retyped == {
        "quantity": ("numeric(20,2)", "bigint"),
        "customer_id": ("text", "bigint"),
    }
    # 7 and "7" are one customer; 1.00 and 2 are two quantities.
    assert found.values_changed == {"quantity": 3, "total_amount": 3}
    assert set(found.changed[0].after or ()) == {"quantity", "total_amount"}
    platform.ask(f"drop index {leaf}_order_id_idx; select 1")
    with (
        reading(platform.warehouse.settings) as connection,
        pytest.raises(WarehouseError, match="was built with another key than order_id"),
    ):
        difference(connection, SILVER, JANUARY, 1, 2)


def test_no_kept_rows_are_swept(platform: Platform) -> None:
    three_versions(platform)
    back(platform, 1)
    assert platform.build(*TYPED).succeeded
    for version in (1, 2, 3, 4):
        assert platform.one(f"select count(*) from {leaf_of(platform, version)}") == 3
