"""Stories of mending: rows leave the quarantine once, stand where they stood, and all balances.

The measure is a platform that got the file right in the first place.
"""

from __future__ import annotations

import csv
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from metalayer.catalog import catalog
from metalayer.errors import LandingError, UsageError
from metalayer.inspection import quarantine_filter, reading, rejects
from metalayer.landing.export import Exported, export_quarantined
from metalayer.landing.repair import Landed, land_repair
from metalayer.landing.withdraw import withdraw
from metalayer_tests.story import Platform

pytestmark = pytest.mark.usefixtures("keys_in_parts")

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
SNAPSHOT = "customer_id,customer_name,email,region\n"
PROVENANCE = {"_delivery_id", "_line"}


def order(number: object, day: str = "2025-01-05", status: str = "PAID") -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,{status}\n"


def member(number: object, name: str = "Ann Berg", region: str = "N") -> str:
    return f"{number},{name},ann@example.org,{region}\n"


@dataclass
class Desk:
    """Somebody who exports what is quarantined, mends it and lands it again."""

    platform: Platform
    folder: Path
    written: int = 0

    def export(self, of: str | None = None) -> tuple[Path, Exported]:
        self.written += 1
        path = self.folder / f"fix_{self.written}.csv"
        with reading(self.platform.warehouse.settings) as connection:
            wanted = quarantine_filter(connection, of)
            done = export_quarantined(connection, self.platform.warehouse.settings, wanted, path)
        return path, done

    def rows(self, of: str | None = None) -> list[dict[str, str]]:
        """The rows of an export."""
        return read(self.export(of)[0])

    def land(self, path: Path) -> Landed:
        with reading(self.platform.warehouse.settings) as connection:
            return land_repair(
                connection, self.platform.warehouse.settings, catalog().sources, path
            )

    def mend(self, edits: Mapping[int, Mapping[str, str]], of: str | None = None) -> Landed:
        """Export, change the rows of these lines, land."""
        path, _ = self.export(of)
        rows = read(path)
        assert set(edits) <= {int(row["_line"]) for row in rows}
        write(path, [{**row, **edits.get(int(row["_line"]), {})} for row in rows])
        return self.land(path)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def desk(platform: Platform, tmp_path: Path) -> Desk:
    return Desk(platform, tmp_path)


def build(platform: Platform) -> None:
    assert platform.build().succeeded
    assert platform.balances()


def ledger(platform: Platform) -> list[tuple[Any, ...]]:
    """(read, loaded, rejected, superseded) of each delivery."""
    names = ("rows_read", "rows_loaded", "rows_rejected", "rows_superseded")
    return [tuple(entry[name] for name in names) for entry in platform.ledger()]


def typed(platform: Platform) -> dict[str, pl.DataFrame]:
    """What silver and gold say, whichever delivery said it."""
    frames = {}
    for spec in catalog().specs.values():
        if spec.layer != "bronze":
            frame = platform.frame(spec.full_name)
            frame = frame.drop(PROVENANCE & set(frame.columns))
            frames[spec.full_name] = frame.sort(frame.columns)
    return frames


def assert_same(platform: Platform, other: Platform) -> None:
    mine, theirs = typed(platform), typed(other)
    for table, frame in theirs.items():
        try:
            assert_frame_equal(mine[table], frame, check_exact=True)
        except AssertionError as error:
            raise AssertionError(table) from error


def test_what_is_mended_leaves_the_quarantine_once(
    desk: Desk, make_platform: Callable[[], Platform]
) -> None:
    platform = desk.platform
    bad = [
        order(1),
        order(2, status="LOST"),  # silver refuses it
        order(3, "2025-13-01"),  # its month cannot be told
        "4,7,P00001\n",  # it breaks off
        order("x5"),  # it has no key
        order(6, status="LOST"),
    ]
    platform.land("erp/orders_a.csv", ORDERS + "".join(bad))
    build(platform)
    assert len(platform.rejects()) == 5
    path, done = desk.export()
    assert (done.rows, done.unsplit, done.outdated, done.made) == (5, 1, 0, 0)
    rows = read(path)
    edits = {
        3: {"status": "PAID"},
        4: {"order_date": "2025-02-03"},
        5: dict(zip(ORDERS.strip().split(","), order(4).strip().split(","), strict=True)),
        6: {"order_id": "5"},
    }
    write(path, [{**row, **edits.get(int(row["_line"]), {})} for row in rows])
    for _ in range(3):
        landed = desk.land(path)
        assert (landed.rows, landed.unchanged) in ((4, 1), (0, 5))
        build(platform)
        assert [reject[2:] for reject in platform.rejects()] == [
            (7, "status", "must be one of (PENDING, SHIPPED, COMPLETED, CANCELLED)", "LOST")
        ]
        assert ledger(platform) == [(6, 1, 1, 4), (4, 4, 0, 0)]
    fresh = make_platform()
    good = [order(1), order(2), order(3, "2025-02-03"), order(4), order(5), bad[5]]
    fresh.land("erp/orders_a.csv", ORDERS + "".join(good))
    build(fresh)
    assert_same(platform, fresh)


def test_a_repair_stands_where_the_row_stood(
    desk: Desk, make_platform: Callable[[], Platform]
) -> None:
    platform = desk.platform
    platform.land("erp/orders_a.csv", ORDERS + order(1) + order(2, "2025-03-01") + order(8))
    first = [order(1, "2025-02-xx"), order(2, "2025-01-07", "LOST"), order(3, status="LOST")]
    platform.land("erp/orders_b.csv", ORDERS + "".join(first))
    silver = ("bronze.orders", "silver.orders")
    assert platform.build(*silver).succeeded
    path, _ = desk.export()
    platform.land("erp/orders_c.csv", ORDERS + order(3, "2025-02-01") + order(1, "2025-02-02"))
    assert platform.build(*silver).succeeded
    rows = read(path)
    mended = {
        2: {"order_date": "2025-01-09"},  # order 1, which has come again since
        3: {"order_id": "9", "status": "PAID"},  # it was not order 2, which so gets its row back
        4: {"status": "PAID"},  # order 3, which has come again since
    }
    write(path, [{**row, **mended[int(row["_line"])]} for row in rows])
    assert desk.land(path).rows == 3
    assert platform.build(*silver).succeeded
    assert platform.balances()
    assert platform.rejects() == []
    assert ledger(platform) == [(3, 2, 0, 1), (3, 0, 0, 3), (2, 2, 0, 0), (3, 1, 0, 2)]
    fresh = make_platform()
    fresh.land("erp/orders_a.csv", ORDERS + order(1) + order(2, "2025-03-01") + order(8))
    second = [order(1, "2025-01-09"), order(9, "2025-01-07"), order(3)]
    fresh.land("erp/orders_b.csv", ORDERS + "".join(second))
    fresh.land("erp/orders_c.csv", ORDERS + order(3, "2025-02-01") + order(1, "2025-02-02"))
    assert fresh.build(*silver).succeeded
    assert_same(platform, fresh)
    # What comes after a repair wins all the same, and not by a hair: by the original's place.
    platform.land("erp/orders_d.csv", ORDERS + order(9, "2025-01-07", "SHIPPED"))
    assert platform.build(*silver).succeeded
    assert platform.one("select status from silver.orders where order_id = 9") == "SHIPPED"
    assert platform.balances()


def test_what_is_still_bad_is_mended_again_as_the_same_row(desk: Desk) -> None:
    platform = desk.platform
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2, status="LOST") + order(3, "soon"))
    silver = ("bronze.orders", "silver.orders")
    assert platform.build(*silver).succeeded
    (lost, soon) = sorted(desk.rows(), key=lambda row: row["_line"])
    # Neither is right yet: one cannot be read even, the other can.
    desk.mend({3: {"order_date": "later"}, 4: {"order_date": "2025-01-09", "status": "GONE"}})
    assert platform.build(*silver).succeeded
    assert platform.balances()
    assert [(r[0], r[3], r[5]) for r in platform.rejects()] == [
        ("bronze.orders", "order_date", "later"),
        ("silver.orders", "status", "LOST"),
        ("silver.orders", "status", "GONE"),
    ]
    assert ledger(platform) == [(3, 1, 1, 1), (2, 0, 2, 0)]
    again = {row["_repairs"]: row for row in desk.rows()}
    assert set(again) == {lost["_repairs"], soon["_repairs"]}
    assert again[lost["_repairs"]]["order_date"] == "later"
    assert again[soon["_repairs"]]["status"] == "GONE"
    path, _ = desk.export()
    right = {"order_date": "2025-01-09", "status": "PAID"}
    write(path, [{**row, **right} for row in read(path)])
    assert desk.land(path).rows == 2
    assert platform.build(*silver).succeeded
    assert platform.rejects() == []
    assert ledger(platform) == [(3, 1, 0, 2), (2, 0, 0, 2), (2, 2, 0, 0)]
    assert platform.balances()
    assert sorted(platform.ask("select order_id, status from silver.orders")) == [
        (number, "COMPLETED") for number in (1, 2, 3)
    ]


def test_without_its_repair_a_row_is_quarantined_again(desk: Desk) -> None:
    platform = desk.platform
    bad = order(1, status="LOST") + order(2, "soon") + "3,7\n" + order("x4")
    platform.land("erp/orders.csv", ORDERS + order(9) + bad)
    silver = ("bronze.orders", "silver.orders")
    assert platform.build(*silver).succeeded
    quarantined, books = platform.rejects(), ledger(platform)
    fields = dict(zip(ORDERS.strip().split(","), order(3).strip().split(","), strict=True))
    (name,) = desk.mend(
        {3: {"status": "PAID"}, 4: {"order_date": "2025-01-09"}, 5: fields, 6: {"order_id": "4"}}
    ).names
    assert platform.build(*silver).succeeded
    assert platform.rejects() == []
    assert ledger(platform) == [(5, 1, 0, 4), (4, 4, 0, 0)]
    # Another file takes its name: of what it mended only one row is still mended.
    kept = read(platform.landing / name)[:1]
    platform.land(name, "")
    write(platform.landing / name, kept)
    assert platform.build(*silver).succeeded
    assert platform.balances()
    assert len(platform.rejects()) == 3
    assert ledger(platform)[0] == (5, 1, 3, 1)
    # And one that mends nothing.
    platform.land(name, "_repairs," + ORDERS)
    assert platform.build(*silver).succeeded
    assert platform.rejects() == quarantined
    assert ledger(platform)[0] == books[0]
    assert platform.balances()


def test_originals_and_repairs_can_be_withdrawn(desk: Desk) -> None:
    platform = desk.platform
    pool, settings = platform.warehouse.pool, platform.warehouse.settings
    platform.land("erp/orders.csv", ORDERS + order(1) + order("x2") + order(3, "soon"))
    platform.land("erp/orders_b.csv", ORDERS + order(4))
    silver = ("bronze.orders", "silver.orders")
    assert platform.build(*silver).succeeded
    quarantined, books = platform.rejects(), ledger(platform)
    edits = {3: {"order_id": "2"}, 4: {"order_date": "2025-01-09"}}
    (name,) = desk.mend(edits).names
    assert platform.build(*silver).succeeded
    assert platform.rejects() == []
    withdraw(pool, settings, catalog().sources, name, today=platform.today)
    assert platform.build(*silver).succeeded
    assert platform.rejects() == quarantined
    assert ledger(platform) == [*books, (2, 0, 0, 2)]
    assert platform.balances()
    # Landed once more it counts again; without its original it does not.
    assert desk.mend(edits).names == (name,)
    assert platform.build(*silver).succeeded
    assert platform.rejects() == []
    withdraw(pool, settings, catalog().sources, "erp/orders.csv", today=platform.today)
    assert platform.build(*silver).succeeded
    assert platform.ask("select order_id from silver.orders") == [(4,)]
    assert platform.rejects() == []
    assert platform.balances()


def test_a_repair_of_what_counts_no_longer_counts_for_nothing(desk: Desk) -> None:
    platform = desk.platform
    first = ORDERS + order(1, status="LOST") + order(2, "soon")
    platform.land("erp/orders.csv", first)
    silver = ("bronze.orders", "silver.orders")
    assert platform.build(*silver).succeeded
    path, _ = desk.export()
    desk.mend({2: {"status": "PAID"}, 3: {"order_date": "2025-01-09"}})
    assert platform.build(*silver).succeeded
    platform.land("erp/orders.csv", ORDERS + order(3))
    assert platform.build(*silver).succeeded
    assert platform.ask("select order_id from silver.orders") == [(3,)]
    # What is withdrawn or replaced is rejected or superseded as it was.
    assert ledger(platform) == [(2, 0, 1, 1), (2, 0, 0, 2), (1, 1, 0, 0)]
    assert platform.ask("select * from meta.repaired_rows") == []
    assert platform.balances()
    with pytest.raises(UsageError, match="line 2: the file whose row it mends counts no longer"):
        desk.land(path)
    # The same content comes back, and with it what was mended of it.
    platform.land("erp/orders.csv", first)
    assert platform.build(*silver).succeeded
    assert sorted(platform.ask("select order_id from silver.orders")) == [(1,), (2,)]
    assert ledger(platform)[1:] == [(2, 2, 0, 0), (1, 0, 0, 1), (2, 0, 0, 2)]
    assert platform.rejects() == []
    assert platform.balances()


def test_a_repair_is_part_of_its_snapshot(
    desk: Desk, make_platform: Callable[[], Platform]
) -> None:
    platform = desk.platform
    old = SNAPSHOT + member(1) + member(2) + "3,Cid\n"
    january = SNAPSHOT + member(1) + member("x2") + "4,Di\n" + member(5)
    february = SNAPSHOT + member(1) + member(2, region="S") + member("six") + member(5)
    for land, snapshot in ((platform, january), (make_platform(), january.replace("x2", "2"))):
        land.land("crm/crm_customers_2025-01.csv", old)
        land.land("crm/crm_customers_2025-01_b.csv", snapshot)
        land.land("crm/crm_customers_2025-02.csv", february)
        build(land)
        fresh = land
    by_file = {(row["_file"], row["_line"]): row for row in desk.rows()}
    assert len(by_file) == 4
    path, _ = desk.export()
    four = {"customer_id": "4", "customer_name": "Di", "email": "di@example.org", "region": "W"}
    three = {"customer_id": "3", "customer_name": "Cid"}
    edits: dict[tuple[str, str], dict[str, str]] = {
        ("crm/crm_customers_2025-01.csv", "4"): three,  # of a snapshot that counts no longer
        ("crm/crm_customers_2025-01_b.csv", "3"): {"customer_id": "2"},
        ("crm/crm_customers_2025-01_b.csv", "4"): four,
        ("crm/crm_customers_2025-02.csv", "4"): {"customer_id": "6"},
    }
    write(path, [{**row, **edits[row["_file"], row["_line"]]} for row in read(path)])
    landed = desk.land(path)
    assert [name[-12:] for name in landed.names] == ["_2025-01.csv", "_2025-02.csv"]
    build(platform)
    assert platform.rejects() == []
    assert ledger(platform) == [
        (3, 0, 0, 3), (4, 2, 0, 2), (4, 3, 0, 1), (3, 2, 0, 1), (1, 1, 0, 0)
    ]  # fmt: skip
    fresh.land(
        "crm/crm_customers_2025-01_b.csv",
        SNAPSHOT + member(1) + member(2) + ",".join(four.values()) + "\n" + member(5),
    )
    fresh.land("crm/crm_customers_2025-02.csv", february.replace("six", "6"))
    build(fresh)
    assert_same(platform, fresh)
    # A newer snapshot of the month replaces what was mended too.
    newest = SNAPSHOT + member(1) + member(7)
    for each in (platform, fresh):
        each.land("crm/crm_customers_2025-01_c.csv", newest)
        build(each)
    assert_same(platform, fresh)
    assert ledger(platform)[3:5] == [(3, 0, 0, 3), (1, 1, 0, 0)]


def test_equal_snapshots_of_two_months_are_mended_in_both(desk: Desk) -> None:
    platform = desk.platform
    content = SNAPSHOT + member(1) + member("x2")
    for month in ("2025-01", "2025-02"):
        platform.land(f"crm/crm_customers_{month}.csv", content)
    silver = ("bronze.crm_customers", "silver.crm_customers")
    assert platform.build(*silver).succeeded
    _, done = desk.export()
    assert done.rows == 1
    assert len(desk.mend({3: {"customer_id": "2"}}).names) == 2
    assert platform.build(*silver).succeeded
    assert platform.rejects() == []
    assert platform.one("select count(*) from silver.crm_customers where customer_id = 2") == 2
    assert platform.balances()


def test_records_are_split_as_their_file_was(desk: Desk) -> None:
    platform = desk.platform
    names = "Order ID;customer-id;Note;product_code;order_date;quantity;unit_price;total_amount"
    header = f'"Status";{names};\n'
    bad = 'LOST;1;7;"seen; by ""Ida""\nand Ole";P00001;soon;2;5.00;10.00\n'
    other = "PAID;2;7;né;P00001;2025-01-05;0;5.00;10.00\n"
    platform.land("erp/orders_a.csv", (header + bad + other).encode("cp1252"))
    platform.land("erp/orders_b.csv", ORDERS + order(3, "2019-01-01") + order(4, "2099-01-01"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    first, second, third, fourth = sorted(desk.rows(), key=lambda r: (r["_file"], r["_line"]))
    assert first["Note"] == 'seen; by "Ida"\nand Ole'
    assert (first["order_id"], first["order_date"], first["status"]) == ("1", "soon", "LOST")
    assert second["Note"] == "né"
    assert second["_problem"].startswith("quantity must be > 0")
    assert [third["order_date"], fourth["order_date"]] == ["2019-01-01", "2099-01-01"]
    assert {row["_raw"] for row in (first, second, third, fourth)} == {""}
    # Mended in a spreadsheet that has its own ideas of CSV.
    path, _ = desk.export()
    rows = [row for row in read(path) if row["_file"] == "erp/orders_a.csv"]
    right = {"order_date": "2025-01-05", "quantity": "2", "status": "PAID"}
    lines = [";".join(f'"{v.replace(chr(34), chr(34) * 2)}"' for v in row.values()) for row in (
        dict(zip(rows[0], rows[0], strict=True)), *({**row, **right} for row in rows)
    )]  # fmt: skip
    path.write_bytes("\r\n".join(lines).encode("cp1252"))
    assert desk.land(path).rows == 2
    assert platform.build("bronze.orders", "silver.orders").succeeded
    assert platform.ask(
        "select order_id, _extra ->> 'Note' from bronze.orders where _is_latest order by 1"
    ) == [("1", 'seen; by "Ida"\nand Ole'), ("2", "né")]
    assert sorted(row["_file"] for row in desk.rows()) == ["erp/orders_b.csv"] * 2


def test_without_the_landed_file_a_record_is_given_whole(desk: Desk) -> None:
    platform = desk.platform
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2, "soon"))
    platform.register()
    (platform.landing / "erp/orders.csv").write_text("something else\n")
    (row,) = desk.rows()
    assert row["_raw"] == order(2, "soon").strip()
    assert row["order_id"] == ""


def test_rejects_are_narrowed_down_by_file_and_month(desk: Desk) -> None:
    platform = desk.platform
    platform.land("erp/orders_a.csv", ORDERS + order(1, "soon") + order(2, "2019-01-01"))
    platform.land("erp/orders_b.csv", ORDERS + order(3, "2019-02-01"))
    platform.register()

    def lines(**wanted: str) -> list[tuple[str | None, int | None]]:
        with (
            reading(platform.warehouse.settings) as connection,
            rejects(connection, quarantine_filter(connection, **wanted)) as (count, found),
        ):
            rows = [(row.file, row.line) for row in found]
            assert len(rows) == count
            return rows

    a, b = "erp/orders_a.csv", "erp/orders_b.csv"
    assert lines(of="bronze") == [(a, 2), (a, 3), (b, 2)]
    assert lines(file="orders_a.csv") == lines(file=a) == [(a, 2), (a, 3)]
    assert lines(month="2019-02") == [(b, 2)]
    assert lines(month="2019-02", file=a) == lines(of="silver.orders") == []
    for wanted in ({"file": "orders_c.csv"}, {"month": "2019-13"}, {"of": "silver.order"}):
        with pytest.raises(UsageError):
            lines(**wanted)


def test_the_export_is_its_owners_alone_and_overwrites_nothing(desk: Desk) -> None:
    platform = desk.platform
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2, "soon"))
    platform.register()
    path, done = desk.export()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    desk.written -= 1
    with pytest.raises(UsageError, match="is there already"):
        desk.export()
    desk.written += 1
    path, done = desk.export("silver")
    assert done.rows == 0
    assert not path.exists()


def test_what_cannot_be_taken_is_named_and_nothing_lands(desk: Desk) -> None:
    platform = desk.platform
    platform.land("erp/orders.csv", ORDERS + order(1, status="LOST") + order(2, "soon"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    path, _ = desk.export()
    first, second = read(path)
    content = first["_repairs"].partition(":")[0]
    wrong: list[tuple[list[dict[str, str]], str]] = [
        ([{**first, "_repairs": ""}], "line 2: _repairs is empty"),
        ([first, {**second, "_repairs": "12:30"}], "line 3: _repairs is '12:30', which names no"),
        ([{**first, "_repairs": f"{'0' * 16}:2"}], "line 2: the file whose row it mends counts"),
        ([{**first, "_repairs": f"{content}:77"}], "line 2: the file it names has no such row"),
        ([first, second, {**first, "status": "PAID"}], "line 4: it mends the same row as line 2"),
        ([{**first, "_source": "erp/order"}], "line 2: _source is 'erp/order', which is no source"),
        ([{**first, "colour": "red"}], "a column that nobody knows: colour"),
        ([{k: v for k, v in first.items() if k != "status"}], "no column status"),
        ([{k: v for k, v in first.items() if k != "_repairs"}], "no column _repairs"),
    ]
    for rows, message in wrong:
        write(path, rows)
        with pytest.raises(UsageError, match=message.replace("'", ".")):
            desk.land(path)
    path.write_text(path.read_text() + "half,a,row\n")
    with pytest.raises((UsageError, LandingError)):
        desk.land(path)
    with pytest.raises(UsageError, match="is no file"):
        desk.land(path.with_name("nowhere.csv"))
    assert [p.name for p in (platform.landing / "erp").iterdir()] == ["orders.csv"]
    # Only what was changed lands.
    write(path, [first, {**second, "order_date": "2025-01-05"}])
    landed = desk.land(path)
    assert (landed.rows, landed.unchanged) == (1, 1)
    write(path, [first])
    assert desk.land(path) == Landed((), 0, 1)


def test_of_two_repairs_of_a_row_the_newer_counts(desk: Desk) -> None:
    platform = desk.platform
    platform.land("erp/orders.csv", ORDERS + order(1, status="LOST") + order(2, "soon"))
    silver = ("bronze.orders", "silver.orders")
    assert platform.build(*silver).succeeded
    path, _ = desk.export()
    rows = read(path)
    states = "select status, order_date::text from silver.orders order by order_id"
    for status, day in (("SHIPPED", "2025-01-05"), ("PENDING", "2025-02-05")):
        write(path, [{**row, "status": status, "order_date": day} for row in rows])
        assert desk.land(path).rows == 2
        assert platform.build(*silver).succeeded
        assert platform.ask(states) == [(status, day)] * 2
        assert platform.rejects() == []
        assert platform.balances()
    assert ledger(platform) == [(2, 0, 0, 2), (2, 0, 0, 2), (2, 2, 0, 0)]
    # What is landed a second time as it is now is nothing new.
    assert desk.land(path) == Landed((), 0, 2)


def test_another_contract_reads_repairs_again_too(desk: Desk) -> None:
    import dataclasses
    from datetime import date

    from metalayer.assets.resources import Warehouse

    platform = desk.platform
    platform.land("erp/orders.csv", ORDERS + order(1) + order(2, "soon") + order(3, "late"))
    platform.register()
    desk.mend({3: {"order_date": "2024-12-05"}, 4: {"order_date": "2025-01-05"}})
    platform.register()
    assert platform.rejects() == []
    settings = platform.warehouse.settings.model_copy(update={"start_month": date(2025, 1, 1)})
    later = dataclasses.replace(platform, warehouse=Warehouse(platform.warehouse.pool, settings))
    later.register()
    # The repair of line 3 is no row of a month any more, and so is no repair.
    assert [reject[2:] for reject in later.rejects()] == [
        (2, "order_date", "before the first month 2025-01", "2024-12-05"),
        (3, "order_date", "month cannot be told", "soon"),
    ]
    assert later.balances()
    platform.register()
    assert platform.rejects() == []
    assert ledger(platform) == [(3, 1, 0, 2), (2, 2, 0, 0)]
