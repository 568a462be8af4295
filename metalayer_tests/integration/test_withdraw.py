"""Stories of files taken out again: afterwards all is as if they had never come."""

from __future__ import annotations

import shutil
from datetime import date
from typing import Any

import pytest

from metalayer.catalog import catalog
from metalayer.cli.withdraw import withdraw_files
from metalayer.errors import UsageError
from metalayer.warehouse.versions import rollback
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
SNAPSHOT = "customer_id,customer_name,email,region\n"


def order(number: int, day: str = "2025-01-05", status: str = "PAID") -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,{status}\n"


def members(count: int) -> str:
    return SNAPSHOT + "".join(f"{n},Ann Berg,ann@example.org,N\n" for n in range(1, count + 1))


def statuses(platform: Platform) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in platform.ledger():
        found.setdefault(entry["file"].partition("/")[2], []).append(entry["status"])
    return found


def orders(platform: Platform) -> list[tuple[Any, ...]]:
    """(order, day, status, file) as silver has them after a build."""
    assert platform.build("bronze.orders", "silver.orders").succeeded
    return platform.ask(
        "select order_id, to_char(order_date, 'MM-DD'), s.status, split_part(d.file, '/', 2) "
        "from silver.orders as s join meta.deliveries as d on d.delivery_id = s._delivery_id "
        "order by 1"
    )


def test_what_a_file_changed_is_undone_everywhere(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1) + order(2, "2025-02-03") + order(3))
    platform.land("crm/crm_customers_2025-01.csv", members(7))
    assert platform.build().succeeded
    tables = (
        "bronze.orders", "silver.orders", "gold.fact_orders", "gold.dim_customer",
        "gold.customer_360", "gold.agg_monthly_sales", "gold.business_kpis",
    )  # fmt: skip
    before = {table: platform.frame(table) for table in tables}
    # A correction, a move to another month, a new order in a month of its own, and a bad row.
    late = order(1, status="CANCELLED") + order(2, "2025-03-09") + order(4, "2025-04-01")
    platform.land("erp/orders_2.csv", ORDERS + late + order(5, status="LOST") + "no order\n")
    assert platform.build().succeeded
    assert platform.frame("gold.fact_orders").height == 4
    assert len(platform.rejects()) == 2

    done = platform.withdraw("erp/orders_2.csv")
    assert (done.rows, [d.status for d in done.deliveries]) == (4, ["withdrawn"])
    assert [f"{m:%Y-%m}" for m in done.deliveries[0].months] == ["2025-01", "2025-03", "2025-04"]
    assert platform.balances()
    entry = platform.ledger()[-1]
    assert (entry["status"], entry["rows_loaded"], entry["rows_rejected"]) == ("withdrawn", 0, 1)
    assert (entry["rows_read"], entry["rows_superseded"]) == (5, 4)
    assert platform.build().succeeded
    for table in tables:
        after = platform.frame(table)
        assert after.sort(after.columns).equals(before[table].sort(after.columns)), table
    assert platform.rejects() == []
    assert platform.balances()
    assert platform.build().months == []


def days(platform: Platform) -> list[tuple[Any, ...]]:
    """The months of the calendar, with how many days each has."""
    return platform.ask(
        "select to_char(month_start, 'YYYY-MM'), count(*) from gold.dim_date group by 1 order by 1"
    )


def test_the_calendar_has_the_days_of_the_months_in_which_there_are_rows(
    platform: Platform,
) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1))
    late = platform.land("erp/orders_2.csv", ORDERS + order(2, "2025-03-09"))
    content = late.read_bytes()
    assert platform.build().succeeded
    assert days(platform) == [("2025-01", 31), ("2025-02", 28), ("2025-03", 31)]
    platform.withdraw("erp/orders_2.csv")
    assert platform.build().succeeded
    assert days(platform) == [("2025-01", 31)]
    assert platform.plan().is_empty
    # Rows that are brought back have days to point at.
    rollback(platform.warehouse.pool, catalog().specs["silver.orders"], date(2025, 3, 1), 1)
    (reason,) = platform.plan().reasons["gold.dim_date", date(2025, 3, 1)]
    assert reason.text == "it is within the months with rows now"
    done = platform.build()
    assert done.succeeded, done.failed_checks
    assert days(platform)[1:] == [("2025-02", 28), ("2025-03", 31)]
    assert platform.ask("select order_id from gold.fact_orders order by 1") == [(1,), (2,)]
    platform.land("erp/orders_2.csv", content)
    assert platform.build().succeeded
    assert days(platform)[1:] == [("2025-02", 28), ("2025-03", 31)]
    assert platform.plan().is_empty


def test_the_calendar_keeps_its_days_as_long_as_facts_point_at_them(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", ORDERS + order(1))
    platform.land("erp/orders_2.csv", ORDERS + order(2, "2025-02-09"))
    assert platform.build().succeeded
    platform.withdraw("erp/orders_2.csv")
    assert platform.build("bronze.orders", "gold.dim_date").succeeded
    assert days(platform) == [("2025-01", 31), ("2025-02", 28)]
    assert platform.build().succeeded
    assert days(platform) == [("2025-01", 31)]


def test_earlier_versions_of_a_withdrawn_file_do_not_come_back(platform: Platform) -> None:
    for status in ("PAID", "SHIPPED"):
        platform.land("erp/orders.csv", ORDERS + order(1, status=status))
        platform.register()
    platform.withdraw("erp/orders.csv")
    assert orders(platform) == []
    assert statuses(platform) == {"orders.csv": ["superseded", "withdrawn"]}


def test_a_withdrawn_file_is_kept_and_can_land_again(platform: Platform) -> None:
    content = ORDERS + order(1)
    kept = platform.landing / ".withdrawn" / "erp"
    for number in (1, 2, 3):
        platform.land("erp/orders_2025-01.csv", content + order(number))
        assert (1, "01-05", "COMPLETED", "orders_2025-01.csv") in orders(platform)
        done = platform.withdraw("erp/orders_2025-01.csv")
        assert done.moved_to is not None
        assert done.moved_to.read_text() == content + order(number)
        assert orders(platform) == []
    assert sorted(p.name for p in kept.iterdir()) == [
        "orders_2025-01.2.csv", "orders_2025-01.3.csv", "orders_2025-01.csv"
    ]  # fmt: skip
    assert statuses(platform) == {"orders_2025-01.csv": ["withdrawn"] * 3}
    # The very same bytes count again when they land again.
    platform.land("erp/orders_2025-01.csv", content + order(1))
    assert [row[0] for row in orders(platform)] == [1]


def test_a_move_that_was_interrupted_lets_nothing_back_in(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1))
    platform.register()
    done = platform.withdraw("erp/orders.csv")
    assert done.moved_to is not None
    # As if the command had been killed before the move.
    done.moved_to.replace(platform.landing / "erp/orders.csv")
    registration = platform.register()
    assert registration.deliveries == []
    assert [s.name for s in registration.skipped] == ["erp/orders.csv"]
    assert "it was withdrawn; `metalayer land" in registration.skipped[0].reason
    again = platform.withdraw("erp/orders.csv")
    assert (again.deliveries, again.rows) == ([], 0)
    assert again.moved_to == done.moved_to
    assert not (platform.landing / "erp/orders.csv").exists()
    third = platform.withdraw("erp/orders.csv")
    assert (third.deliveries, third.moved_to) == ([], None)
    assert orders(platform) == []


def test_a_copy_stands_in_for_the_withdrawn_original(platform: Platform) -> None:
    for name in ("orders_1.csv", "orders_copy.csv"):
        platform.land(f"erp/{name}", ORDERS + order(1))
    platform.land("erp/orders_2.csv", ORDERS + order(1, status="SHIPPED"))
    platform.register()
    done = platform.withdraw("erp/orders_1.csv")
    assert done.copies == ["erp/orders_copy.csv"]
    assert statuses(platform) == {
        "orders_1.csv": ["withdrawn"], "orders_copy.csv": ["loaded"], "orders_2.csv": ["loaded"]
    }  # fmt: skip
    # The copy has its own place: what landed after it is newer.
    assert orders(platform) == [(1, "01-05", "SHIPPED", "orders_2.csv")]
    platform.withdraw("erp/orders_2.csv")
    assert orders(platform) == [(1, "01-05", "COMPLETED", "orders_copy.csv")]


def test_a_withdrawn_copy_changes_no_rows(platform: Platform) -> None:
    for name in ("orders_1.csv", "orders_copy.csv"):
        platform.land(f"erp/{name}", ORDERS + order(1))
    platform.register()
    before = orders(platform)
    done = platform.withdraw("erp/orders_copy.csv")
    assert (done.rows, done.copies) == (0, [])
    assert platform.build("bronze.orders", "silver.orders").months == []
    # Its original cannot fall back on it any more.
    platform.withdraw("erp/orders_1.csv")
    assert [row[0] for row in before] == [1]
    assert orders(platform) == []


def test_a_refused_file_can_be_withdrawn(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1))
    platform.register()
    platform.land("erp/orders.csv", b"")
    platform.register()
    assert statuses(platform) == {"orders.csv": ["loaded", "rejected"]}
    assert len(platform.withdraw("erp/orders.csv").deliveries) == 2
    assert statuses(platform) == {"orders.csv": ["withdrawn"] * 2}
    assert platform.register().deliveries == []


def test_what_was_refused_because_of_it_gets_another_chance_in_its_own_place(
    platform: Platform,
) -> None:
    platform.land("crm/crm_customers_2025-01.csv", members(10))
    platform.land("crm/crm_customers_2025-02_a.csv", members(3))
    platform.land("crm/crm_customers_2025-02_b.csv", members(9))
    platform.register()
    assert [e["status"] for e in platform.ledger()] == ["loaded", "rejected", "loaded"]
    platform.withdraw("crm_customers_2025-01.csv")
    assert [d.status for d in platform.register().deliveries] == ["loaded"]
    assert [e["status"] for e in platform.ledger()] == ["withdrawn", "loaded", "loaded"]
    # Of February the later file still is the newest.
    assert platform.build("bronze.crm_customers", "silver.crm_customers").succeeded
    assert platform.one("select count(*) from silver.crm_customers") == 9
    assert platform.balances()


def test_a_file_that_is_gone_and_needed_can_be_withdrawn(platform: Platform) -> None:
    path = platform.land("erp/orders_1.csv", ORDERS + order(1))
    platform.register()
    shutil.rmtree(platform.warehouse.settings.parsed_dir)
    path.unlink()
    platform.land("erp/orders_2.csv", ORDERS + order(1, status="SHIPPED") + order(2))
    assert [s.name for s in platform.register().skipped] == ["erp/orders_2.csv"]
    done = platform.withdraw("erp/orders_1.csv")
    assert (done.rows, done.moved_to) == (1, None)
    assert [row[0] for row in orders(platform)] == [1, 2]
    assert platform.balances()


def test_a_file_is_found_by_each_of_its_names(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["orders_a.csv", "orders_b.csv", "orders_c.csv"]
    for number, name in enumerate(names):
        platform.land(f"erp/{name}", ORDERS + order(number))
    platform.register()
    monkeypatch.chdir(platform.landing / "erp")
    by = [str(platform.landing / "erp/orders_a.csv"), "orders_b.csv", "./orders_c.csv"]
    assert [platform.withdraw(name).file for name in by] == [f"erp/{name}" for name in names]
    with pytest.raises(UsageError, match=r"No file erp/order_a\.csv has landed") as unknown:
        platform.withdraw("erp/order_a.csv")
    assert unknown.value.next_step.startswith("Did you mean erp/orders_a.csv")
    with pytest.raises(UsageError) as strange:
        platform.withdraw("zzz")
    assert strange.value.next_step == "`metalayer ledger` lists them all"


def test_a_name_that_two_files_have_is_no_name(platform: Platform) -> None:
    # Packed and plain lie in one folder; the same name in two systems' folders takes a source each.
    platform.land("erp/orders.csv", ORDERS + order(1))
    platform.register()
    platform.ask(
        "insert into meta.deliveries (source, file, sha256, size, mtime_ns, status, "
        "fallback_month, shape) values ('crm/customers', 'crm/orders.csv', 'x', 1, 1, 'rejected', "
        "'2025-01-01', '') returning 1"
    )
    with pytest.raises(UsageError) as unclear:
        platform.withdraw("orders.csv")
    assert str(unclear.value) == (
        "There are several files called orders.csv. Say which: crm/orders.csv, erp/orders.csv"
    )


def test_a_file_can_be_withdrawn_before_it_is_read(platform: Platform) -> None:
    path = platform.land("erp/orders.csv", ORDERS + order(1))
    done = platform.withdraw("erp/orders.csv")
    assert (done.deliveries, path.exists()) == ([], False)
    assert done.moved_to is not None
    assert platform.register().deliveries == []


def test_a_file_that_cannot_be_moved_stays_out_all_the_same(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1))
    platform.register()
    (platform.landing / ".withdrawn").write_text("in the way")
    with pytest.raises(Exception, match="is withdrawn, but its file cannot be moved"):
        platform.withdraw("erp/orders.csv")
    assert orders(platform) == []
    assert statuses(platform) == {"orders.csv": ["withdrawn"]}


def test_the_command_says_what_leaves(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("orders_1.csv", "orders_copy.csv"):
        platform.land(f"erp/{name}", ORDERS + order(1) + order(2, "2025-03-01"))
    platform.register()
    withdraw_files(["erp/orders_1.csv", "orders_1.csv"], platform.warehouse.settings)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "erp/orders_1.csv is withdrawn: the next build takes out its 2 rows of 2025-01..2025-03",
        "erp/orders_1.csv was withdrawn already",
    ]
    assert "erp/orders_copy.csv has the same content and is loaded in its place." in err
    assert f"The file is kept as {platform.landing / '.withdrawn/erp/orders_1.csv'}" in err
    assert (platform.landing / "erp/orders_copy.csv").exists()


def test_a_copy_of_a_snapshot_stands_in_for_its_own_month_only(platform: Platform) -> None:
    header = "customer_id,customer_name,email,region\n"
    same = header + "1,Ann,a@x.org,N\n2,Bo,b@x.org,N\n"
    for name in ("2025-01", "copy_2025-01", "2025-02", "copy_2025-02"):
        platform.land(f"crm/crm_customers_{name}.csv", same)
    platform.register()
    platform.land("crm/crm_customers_2025-01.csv", same.replace("Bo", "Bob"))
    platform.register()
    platform.withdraw("crm/crm_customers_2025-02.csv")
    platform.register()
    loaded = {entry["file"] for entry in platform.ledger() if entry["status"] == "loaded"}
    assert "crm/crm_customers_copy_2025-02.csv" in loaded
