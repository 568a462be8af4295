"""The oracle itself, on CSV files made by hand with answers worked out by hand."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from metalayer_tests.integration.oracle import KEYS, Landed, Oracle, compare, compute, grammar
from metalayer_tests.integration.oracle.silver import initcap, phone, region

CUSTOMERS = "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at"
CRM = "customer_id,customer_name,email,region"
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount"
HEADERS = {
    "crm/customers": CUSTOMERS,
    "crm/crm_customers": CRM,
    "erp/orders": ORDERS,
    "erp/erp_sales": SALES,
}
JANUARY, FEBRUARY, MARCH, APRIL = (date(2025, month, 1) for month in (1, 2, 3, 4))

Land = Callable[..., Landed]


@pytest.fixture
def land(tmp_path: Path) -> Land:
    """Writes a file of a source: lines under the usual header, or bytes as they are."""

    def write(source: str, name: str, content: Iterable[str] | bytes) -> Landed:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text("\n".join([HEADERS[source], *content, ""]), encoding="utf-8")
        return Landed(path, source)

    return write


def naive(text: str) -> datetime:
    """The instant in UTC without a zone, as the tables hold it."""
    return datetime.fromisoformat(text)


def ask(*landed: Landed, last_month: date = APRIL) -> Oracle:
    return compute(landed, first_month=JANUARY, last_month=last_month)


def cells(oracle: Oracle, table: str, *columns: str) -> list[tuple[Any, ...]]:
    return oracle.table(table).select(columns).rows()


def order(number: object, **fields: object) -> str:
    """One line of orders: two of P00001 at 5.00 by customer 1, unless told otherwise."""
    line: dict[str, object] = {
        "customer_id": 1,
        "product_code": "P00001",
        "order_date": "2025-01-10",
        "quantity": 2,
        "unit_price": "5.00",
        "total_amount": "10.00",
        "status": "COMPLETED",
    }
    assert not fields.keys() - line.keys()
    return ",".join(str(value) for value in (number, *(line | fields).values()))


def key_of(*parts: str) -> int:
    digest = hashlib.md5("\u001f".join(parts).encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


# What texts mean


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        (" 12\u00a0", 12),
        ("+12.0", 12),
        ("1e3", 1000),
        ("1,234", 1234),
        ("1,234.00", 1234),
        ("-0", 0),
        (".0", 0),
        ("120e-1", 12),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("0.5", None),
        ("12,34", None),
        ("1,2345", None),
        ("1_000", None),
        ("0x1F", None),
        ("nan", None),
        ("1 2", None),
        ("\u0661", None),
        (".", None),
        ("1e100", None),
        ("0" * 31, None),
    ],
)
def test_an_integer_is_read_or_is_none(text: str, value: int | None) -> None:
    assert grammar.bigint(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", "1234.5"),
        ("4590e-2", "45.90"),
        ("1.2300", "1.23"),
        ("-.5", "-0.5"),
        ("9999999999999999.99", "9999999999999999.99"),
        ("10000000000000000", None),
        ("1.234", None),
        ("12,5", None),
    ],
)
def test_money_is_never_rounded(text: str, value: str | None) -> None:
    assert grammar.numeric(18, 2)(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2025-01-31", naive("2025-01-31")),
        ("20250131", naive("2025-01-31")),
        ("1/2/2025", naive("2025-02-01")),
        ("2025-01-31T23:30", naive("2025-01-31 23:30")),
        ("2025-01-31 23:30:00-05:00", naive("2025-02-01 04:30")),
        ("2025-01-31T00:30:00 +0200", naive("2025-01-30 22:30")),
        ("2025-01-31 12:00:00.1234567Z", naive("2025-01-31 12:00:00.123456")),
        ("2025-02-30", None),
        ("2025-01-31 24:00:00", None),
        ("2025-01-31 23:60", None),
        ("2025-1-31", None),
        ("31-01-2025", None),
        ("12/31/2025", None),
        ("0000-01-01", None),
        ("0001-01-01T00:00:00+01:00", None),
    ],
)
def test_an_instant_is_utc(text: str, instant: datetime | None) -> None:
    assert grammar.instant(text) == instant


def test_a_date_is_as_written_whatever_the_zone() -> None:
    assert grammar.day("2025-01-31 23:30:00-05:00") == date(2025, 1, 31)
    assert grammar.day("2025-01-31 25:30:00") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("(713) 555-0184", "+17135550184"),
        ("1-713-555-0184", "+17135550184"),
        ("+45 12 34 56 78", "+4512345678"),
        ("0045 1234567890", "+451234567890"),
        ("+1", None),
        ("call me", None),
        ("555-0184", None),
    ],
)
def test_a_phone_becomes_e164(text: str, number: str | None) -> None:
    assert phone(text) == number


def test_regions_have_one_spelling() -> None:
    assert [region(text) for text in ("n", "Centre", "east", "far OUT-west")] == [
        *("North", "Central", "East", "Far Out-West"),
    ]
    assert initcap("o'neil 3RD") == "O'Neil 3rd"


# Files


def test_a_lone_quote_costs_its_own_line_only(land: Land) -> None:
    oracle = ask(
        land(
            "erp/orders",
            "orders.csv",
            [
                order(1, status='"PAID'),
                order(2, total_amount='"10.00"'),
                order(3, status='"PAID'),
                order(4),
                order(5, status='PAID"'),
            ],
        )
    )
    assert cells(oracle, "silver.orders", "order_id", "_line") == [(2, 3), (4, 5)]
    assert oracle.rejected("erp/orders").rows() == [
        ("orders.csv", 2, "lone open quote"),
        ("orders.csv", 4, "lone open quote"),
    ]
    assert oracle.quarantined["silver.orders"].rows() == [
        ("orders.csv", 6, JANUARY, "status: isin"),
    ]
    assert oracle.rows_read["erp/orders"] == 5


def test_a_quoted_field_may_run_over_lines(land: Land) -> None:
    oracle = ask(
        land(
            "crm/crm_customers",
            "crm_customers_2025-01.csv",
            ['1,"Ann', "", 'the ""Great"", Lee",a@x.org,N', "2,Bo,b@x.org,S"],
        )
    )
    assert cells(oracle, "silver.crm_customers", "customer_id", "customer_name", "_line") == [
        (1, 'Ann\n\nthe "Great", Lee', 2),
        (2, "Bo", 5),
    ]


def test_lines_that_are_no_records_are_told_apart(land: Land) -> None:
    landed = land(
        "erp/orders",
        "orders.csv",
        [
            order(1) + ",,",
            "",
            "  \t",
            order(2) + ",x",
            "3,1,P00001",
            order(4, product_code="P\0"),
            order(5, order_date="2025-02-30"),
            order(6, order_date="2024-12-31"),
            order(7, order_date="2025-05-01"),
            order(8, status='"PAID"x'),
        ],
    )
    oracle = ask(landed)
    assert cells(oracle, "silver.orders", "order_id") == [(1,)]
    assert [row[1:] for row in oracle.rejected("erp/orders").sort("line").rows()] == [
        (5, "wrong number of fields"),
        (6, "wrong number of fields"),
        (7, "NUL character"),
        (8, "month can't be told"),
        (9, "before the first month"),
        (10, "after the last month"),
        (11, "text follows a closing quote"),
    ]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode("cp1252"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
    ],
)
def test_the_same_text_in_any_dress(land: Land, encode: Callable[[str], bytes]) -> None:
    text = " Region ,EMAIL,Customer Name,note,customer_id\nN,z@x.org,Zoë,hm,1\n"
    plain = land("crm/crm_customers", "crm_customers_2025-01.csv", encode(text))
    assert ask(plain).table("silver.crm_customers").rows() == [
        (1, "Zoë", "z@x.org", "North", JANUARY, 2),
    ]


def test_a_file_that_is_no_delivery_loads_nothing(land: Land) -> None:
    packed = gzip.compress("\n".join([ORDERS, order(1), ""]).encode())
    oracle = ask(
        land("erp/orders", "whole.csv.gz", packed),
        land("erp/orders", "cut.csv.gz", packed[:-12]),
        land("erp/orders", "empty.csv", b""),
        land("erp/orders", "no_status.csv", (ORDERS.rpartition(",")[0] + "\n").encode()),
        land("erp/orders", "twice.csv", (ORDERS + ",status\n").encode()),
        land("erp/orders", "header_only.csv", []),
    )
    assert [delivery.status for delivery in oracle.deliveries] == [
        *("loaded", "refused", "refused", "refused", "refused", "loaded"),
    ]
    assert cells(oracle, "silver.orders", "order_id") == [(1,)]


# Which row counts


def test_the_last_delivered_row_of_a_key_counts_across_months(land: Land) -> None:
    oracle = ask(
        land("erp/orders", "a.csv", [order("1"), order("1.0", quantity=1, total_amount=5)]),
        land("erp/orders", "b.csv", [order(" 1", order_date="2025-03-01"), order(2)]),
        land("erp/orders", "c.csv", [order(2, quantity=0), order(2, order_date="never")]),
    )
    assert cells(oracle, "silver.orders", "order_id", "order_date") == [(1, MARCH)]
    assert oracle.quarantined["silver.orders"].rows() == [
        ("c.csv", 2, JANUARY, "quantity: 1 to 10**9; total_amount: not quantity * unit_price"),
    ]
    account = oracle.accounts["erp/orders"]
    assert (account.read, account.rejected, account.superseded) == (6, 1, 3)
    assert (account.published, account.quarantined) == (1, 1)


def test_a_redelivered_file_takes_its_rows_away_and_a_copy_adds_none(land: Land) -> None:
    oracle = ask(
        land("erp/orders", "a.csv", [order(1), order(2)]),
        land("erp/orders", "copy.csv", [order(1), order(2)]),
        land("erp/orders", "a.csv", [order(1, status="pending")]),
    )
    assert [delivery.status for delivery in oracle.deliveries] == [
        *("superseded", "duplicate", "loaded"),
    ]
    assert cells(oracle, "silver.orders", "order_id", "status") == [(1, "PENDING")]


def test_the_newest_snapshot_of_a_month_is_the_whole_truth_of_that_month(land: Land) -> None:
    oracle = ask(
        land("crm/crm_customers", "crm_customers_2025-01.csv", ["1,Ann,,N", "2,Bo,,S"]),
        land("crm/crm_customers", "crm_customers_2025-02.csv", ["1,Ann,,N", "2,Bo,,W"]),
        land("crm/crm_customers", "crm_customers_2025-01_again.csv", ["2,Bo,,E", "2,Bob,,E"]),
    )
    assert cells(oracle, "silver.crm_customers", "customer_id", "month", "customer_name") == [
        (1, FEBRUARY, "Ann"),
        (2, JANUARY, "Bob"),
        (2, FEBRUARY, "Bo"),
    ]


def test_rows_without_a_readable_key_supersede_nobody(land: Land) -> None:
    oracle = ask(land("erp/orders", "a.csv", [order("x"), order("x"), order("N/A"), order("")]))
    assert oracle.quarantined["silver.orders"]["fault"].to_list() == [
        *["order_id: not a bigint"] * 3,
        "order_id: not null",
    ]


# Silver


def test_null_tokens_are_null_only_where_the_table_says_so(land: Land) -> None:
    oracle = ask(
        land(
            "crm/customers",
            "customers.csv",
            [
                "1,NA,n/a,-,null,NULL,na,-,N/A,null,2025-01-01",
                "2, Ann ,Lee,A@X.ORG,12,Rome,tx,00123,1/2/1990,20250101,2025-01-01T01:00+01:00",
                "3,,,,,,,,soon,,2025-01-01",
            ],
        ),
        land("erp/orders", "orders.csv", [order(1, customer_id="NULL"), order(2, status="NULL")]),
    )
    assert oracle.table("silver.customers").drop("_line").rows() == [
        (1, None, None, None, None, None, None, None, None, None, None, naive("2025-01-01")),
        (
            *(2, "Ann", "Lee", "a@x.org", None, False, "Rome", "TX", "00123"),
            *(date(1990, 2, 1), naive("2025-01-01"), naive("2025-01-01")),
        ),
    ]
    assert oracle.quarantined["silver.customers"]["fault"].to_list() == ["dob: not a date"]
    assert oracle.quarantined["silver.orders"]["fault"].to_list() == [
        "customer_id: not a bigint",
        "status: isin",
    ]


def test_an_order_adds_up_to_a_cent(land: Land) -> None:
    lines = [
        order(1, quantity=3, unit_price="3.3333", total_amount="9.99"),
        order(2, quantity=3, unit_price="3.3334", total_amount="9.99"),
        order(3, quantity=1, unit_price="1.00", total_amount="1.01"),
        order(4, quantity=1, unit_price="1.00", total_amount="1.02"),
        order(5, quantity=1, unit_price="1.00001", total_amount="1.00"),
        order(6, quantity="1e1", unit_price=".5", total_amount='"5.0"', status="closed"),
    ]
    oracle = ask(land("erp/orders", "orders.csv", lines))
    assert cells(oracle, "silver.orders", "order_id", "total_amount", "status") == [
        (1, Decimal("9.99"), "COMPLETED"),
        (3, Decimal("1.01"), "COMPLETED"),
        (6, Decimal("5.00"), "COMPLETED"),
    ]


def test_a_sale_names_its_product(land: Land) -> None:
    lines = [f"{n},{product},1,1,2025-01-05,3.50" for n, product in enumerate((226, 0, "", 100000))]
    oracle = ask(land("erp/erp_sales", "erp_sales.csv", lines))
    assert cells(oracle, "silver.erp_sales", "product_id", "product_code") == [
        (226, "P00226"),
        (0, None),
        (None, None),
        (100000, None),
    ]


# Gold: one small shop, all answers by hand


@pytest.fixture
def shop(land: Land) -> Oracle:
    """Customer 1 in both systems, 2 in the CRM only, 9 in neither; January to April."""
    return ask(
        land(
            "crm/customers",
            "customers.csv",
            [
                "1,Ann,Lee,ann@x.org,,Rome,,,,,2025-01-10 12:00:00",
                "1,Ann,Lee,ann@x.org,,Oslo,,,,,2025-02-20 12:00:00",
                "1,Ann,Lee,ann@x.org,,Oslo,,,,,2025-02-25 12:00:00",
            ],
        ),
        land(
            "crm/crm_customers",
            "crm_customers_2025-01.csv",
            ["1,ANN LEE,ann@x.org,N", "2,Bo,,south"],
        ),
        land(
            "crm/crm_customers",
            "crm_customers_2025-02.csv",
            ["1,Anna Lee,anna@x.org,N", "2,Bo,,south"],
        ),
        land(
            "erp/orders",
            "orders.csv",
            [
                order(1, order_date="2025-01-10"),
                order(2, order_date="2025-01-10", customer_id=2, status="CANCELLED"),
                order(3, order_date="2025-01-09", product_code="P-226", status="PENDING"),
                order(4, order_date="2025-02-20", quantity=30, total_amount="150.00"),
                order(5, order_date="2025-02-21", customer_id=9, status="SHIPPED"),
                order(6, order_date="2025-03-15", customer_id=9, product_code="P00003"),
            ],
        ),
        land(
            "erp/erp_sales",
            "erp_sales.csv",
            [
                "1,1,1,2,2025-01-31,9.95",
                "2,1,1,30,2025-02-22,120.00",
                "3,2,2,1,2025-04-30,7.00",
                "4,,9,1,2025-02-28,1.00",
            ],
        ),
    )


NEW_YEAR = naive("2025-01-01")
ANN_COMES = naive("2025-01-10 12:00")
CRM_CHANGES = naive("2025-02-01")
ANN_MOVES = naive("2025-02-20 12:00")


def version(customer: int, valid_from: datetime) -> int:
    return key_of(str(customer), valid_from.strftime("%Y-%m-%d %H:%M:%S.%f"))


def test_a_customer_has_a_version_per_change(shop: Oracle) -> None:
    columns = ("valid_from", "customer_name", "email", "city", "region", "name_source")
    rows = shop.table("gold.dim_customer").sort("customer_id", "valid_from")
    assert rows.select("customer_id", *columns).rows() == [
        (1, NEW_YEAR, "ANN LEE", "ann@x.org", None, "North", "crm_customers"),
        (1, ANN_COMES, "Ann Lee", "ann@x.org", "Rome", "North", "customers"),
        (1, CRM_CHANGES, "Ann Lee", "ann@x.org", "Rome", "North", "customers"),
        (1, ANN_MOVES, "Ann Lee", "ann@x.org", "Oslo", "North", "customers"),
        (2, NEW_YEAR, "Bo", None, None, "South", "crm_customers"),
    ]
    assert rows.select("email_source", "disagreements", "valid_to", "is_current").rows() == [
        ("crm_customers", None, ANN_COMES, False),
        ("customers", None, CRM_CHANGES, False),
        ("customers", "email,name", ANN_MOVES, False),
        ("customers", "email,name", None, True),
        (None, None, None, True),
    ]
    assert rows["customer_key"].to_list() == [
        *(version(1, at) for at in (NEW_YEAR, ANN_COMES, CRM_CHANGES, ANN_MOVES)),
        version(2, NEW_YEAR),
    ]


DELETIONS = ("valid_from", "customer_name", "city", "region", "is_deleted", "is_current")


def versions_of(oracle: Oracle, customer: int, *columns: str) -> list[tuple[Any, ...]]:
    rows = oracle.table("gold.dim_customer").filter(customer_id=customer).sort("valid_from")
    return rows.select(columns).rows()


def test_who_is_missing_from_a_snapshot_is_deleted_until_listed_again(land: Land) -> None:
    # March has no snapshot, so it deletes nobody.
    oracle = ask(
        land("crm/crm_customers", "crm_customers_2025-01.csv", ["1,Ann,,N", "2,Bo,,S"]),
        land("crm/crm_customers", "crm_customers_2025-02.csv", ["1,Ann,,N"]),
        land("crm/crm_customers", "crm_customers_2025-04.csv", ["1,Ann,,N", "2,Bo,,W"]),
    )
    assert versions_of(oracle, 1, *DELETIONS) == [(NEW_YEAR, "Ann", None, "North", False, True)]
    assert versions_of(oracle, 2, *DELETIONS) == [
        (NEW_YEAR, "Bo", None, "South", False, False),
        (CRM_CHANGES, "Bo", None, "South", True, False),
        (naive("2025-04-01"), "Bo", None, "West", False, True),
    ]


def test_changes_do_not_bring_a_deleted_customer_back(land: Land) -> None:
    oracle = ask(
        land("crm/crm_customers", "crm_customers_2025-01.csv", ["1,Ann,,N", "2,Bo,,S"]),
        land("crm/crm_customers", "crm_customers_2025-02.csv", ["1,Ann,,N"]),
        land("crm/crm_customers", "crm_customers_2025-03.csv", ["1,Ann,,N"]),
        land(
            "crm/customers",
            "customers.csv",
            [
                "2,Bo,,,,Rome,,,,,2025-02-01",
                "2,Bo,,,,Oslo,,,,,2025-02-20",
                # Never listed, so never deleted.
                "3,Cy,,,,Oslo,,,,,2025-01-10 12:00",
            ],
        ),
    )
    assert versions_of(oracle, 2, *DELETIONS) == [
        (NEW_YEAR, "Bo", None, "South", False, False),
        (CRM_CHANGES, "Bo", "Rome", "South", True, False),
        (naive("2025-02-20"), "Bo", "Oslo", "South", True, True),
    ]
    assert versions_of(oracle, 3, *DELETIONS) == [(ANN_COMES, "Cy", "Oslo", None, False, True)]


def test_a_deletion_is_news_and_facts_keep_the_deleted_version(land: Land) -> None:
    days = {1: "2025-01-31", 2: "2025-02-01"}
    oracle = ask(
        land("crm/crm_customers", "crm_customers_2025-01.csv", ["1,Ann,,N", "2,Bo,,S"]),
        land("crm/crm_customers", "crm_customers_2025-02.csv", ["2,Bo,,S"]),
        land(
            "erp/orders",
            "orders.csv",
            [
                *(order(number, order_date=day) for number, day in days.items()),
                order(3, customer_id=9),
            ],
        ),
    )
    assert cells(oracle, "gold.fact_orders", "customer_key") == [
        (version(1, NEW_YEAR),),
        (version(1, CRM_CHANGES),),
        (0,),
    ]
    assert cells(oracle, "gold.customer_360", "customer_id", "month", "is_deleted") == [
        (1, JANUARY, False),
        (1, FEBRUARY, True),
        (2, JANUARY, False),
        (9, JANUARY, False),
    ]


def test_products_and_days(shop: Oracle) -> None:
    products = shop.table("gold.dim_product").sort("product_id")
    assert products.rows() == [
        (key_of("P00001"), "P00001", 1, date(2025, 1, 10)),
        (key_of("P00002"), "P00002", 2, date(2025, 4, 30)),
        (key_of("P00003"), "P00003", 3, date(2025, 3, 15)),
    ]
    days = shop.table("gold.dim_date")
    assert days.height == 31 + 28 + 31 + 30
    assert days.row(4) == (20250105, date(2025, 1, 5), 2025, 1, 1, 5, 1, 7, True, JANUARY)


def test_facts_point_at_the_version_of_the_day(shop: Oracle) -> None:
    first, odd = key_of("P00001"), 0
    assert cells(shop, "gold.fact_orders", "order_id", "customer_key", "product_key") == [
        (1, version(1, ANN_COMES), first),
        (2, version(2, NEW_YEAR), first),
        (3, version(1, NEW_YEAR), odd),
        (4, version(1, ANN_MOVES), first),
        (5, 0, first),
        (6, 0, key_of("P00003")),
    ]
    assert cells(shop, "gold.fact_sales", "sales_id", "date_key", "customer_key") == [
        (1, 20250131, version(1, ANN_COMES)),
        (2, 20250222, version(1, ANN_MOVES)),
        (3, 20250430, version(2, NEW_YEAR)),
        (4, 20250228, 0),
    ]


def test_sales_add_up_per_day_and_month(shop: Oracle) -> None:
    assert shop.table("gold.agg_daily_sales").head(2).rows() == [
        (date(2025, 1, 9), 1, 2, 1, Decimal(10), Decimal(0), Decimal(0)),
        (date(2025, 1, 10), 2, 4, 2, Decimal(20), Decimal(10), Decimal(10)),
    ]
    assert shop.table("gold.agg_monthly_sales").rows() == [
        (JANUARY, 3, 6, 2, Decimal(30), Decimal(10), Decimal(10), Decimal("9.95"), 1),
        (FEBRUARY, 2, 32, 2, Decimal(160), Decimal(150), Decimal(0), Decimal(121), 2),
        (MARCH, 1, 2, 1, Decimal(10), Decimal(10), Decimal(0), Decimal(0), 0),
        (APRIL, 0, 0, 0, Decimal(0), Decimal(0), Decimal(0), Decimal(7), 1),
    ]


def test_customer_360_has_a_row_per_month_with_news(shop: Oracle) -> None:
    rows = cells(
        shop,
        "gold.customer_360",
        *("customer_id", "month", "customer_key", "first_order_on", "last_order_on", "orders"),
        *("lifetime_value", "orders_in_month", "invoiced_in_month", "recency_days"),
        *("recency_score", "frequency_score", "monetary_score", "segment"),
    )
    ninth, tenth, twentieth = date(2025, 1, 9), date(2025, 1, 10), date(2025, 2, 20)
    bought, later = date(2025, 2, 21), date(2025, 3, 15)
    assert rows == [
        (
            *(1, JANUARY, version(1, ANN_COMES), ninth, tenth, 2, Decimal(10), 2, Decimal("9.95")),
            *(21, 5, 2, 1, "Active"),
        ),
        (
            *(1, FEBRUARY, version(1, ANN_MOVES), ninth, twentieth, 3, Decimal(160), 1),
            *(Decimal(120), 8, 5, 2, 2, "Active"),
        ),
        (
            *(2, JANUARY, version(2, NEW_YEAR), None, None, 0, Decimal(0), 1, Decimal(0)),
            *(None, 1, 1, 1, "Prospect"),
        ),
        (
            *(2, APRIL, version(2, NEW_YEAR), None, None, 0, Decimal(0), 0, Decimal(7)),
            *(None, 1, 1, 1, "Prospect"),
        ),
        (9, FEBRUARY, 0, bought, bought, 1, Decimal(0), 1, Decimal(1), 7, 5, 1, 1, "New"),
        (9, MARCH, 0, bought, later, 2, Decimal(10), 1, Decimal(0), 16, 5, 2, 1, "Active"),
    ]
    assert cells(shop, "gold.customer_360_current", "customer_id", "month", "city") == [
        (1, FEBRUARY, "Oslo"),
        (2, APRIL, None),
        (9, MARCH, None),
    ]


@pytest.mark.parametrize(
    ("times", "day", "amount", "scores", "segment"),
    [
        (1, "2025-08-01", "0.99", (5, 1, 1), "New"),
        (2, "2025-08-01", "50.00", (5, 2, 2), "Active"),
        (5, "2025-08-01", "199.99", (5, 3, 2), "Loyal"),
        (10, "2025-08-01", "500.00", (5, 4, 4), "Champion"),
        (20, "2025-07-02", "500.00", (4, 5, 5), "Champion"),
        (4, "2025-08-01", "250.00", (5, 2, 3), "Active"),
        (1, "2025-07-31", "1.00", (4, 1, 1), "New"),
        (1, "2025-08-01", "5000.00", (5, 1, 4), "New"),
        (1, "2025-07-01", "1.00", (3, 1, 1), "Active"),
        (5, "2025-06-02", "1.00", (3, 3, 1), "Loyal"),
        (5, "2025-06-01", "1.00", (2, 3, 1), "At risk"),
        (1, "2025-03-04", "5000.00", (2, 1, 4), "At risk"),
        (4, "2025-03-04", "1.00", (2, 2, 1), "Active"),
        (4, "2025-03-03", "1.00", (1, 2, 1), "Dormant"),
    ],
)
def test_customers_are_scored_at_the_end_of_the_month(
    land: Land, times: int, day: str, amount: str, scores: tuple[int, ...], segment: str
) -> None:
    each = {"order_date": day, "quantity": 1, "unit_price": amount, "total_amount": amount}
    orders = land("erp/orders", "orders.csv", [order(number, **each) for number in range(times)])
    sales = land("erp/erp_sales", "erp_sales.csv", ["1,1,1,1,2025-08-01,1.00"])
    oracle = ask(orders, sales, last_month=date(2025, 8, 1))
    columns = ("recency_score", "frequency_score", "monetary_score", "segment")
    assert cells(oracle, "gold.customer_360_current", *columns) == [(*scores, segment)]


def test_cohorts_start_with_the_first_order_that_was_kept(shop: Oracle) -> None:
    assert shop.table("gold.customer_cohorts").rows() == [
        (JANUARY, JANUARY, 0, 1, 2, Decimal(10)),
        (JANUARY, FEBRUARY, 1, 1, 1, Decimal(150)),
        (FEBRUARY, FEBRUARY, 0, 1, 1, Decimal(0)),
        (FEBRUARY, MARCH, 1, 1, 1, Decimal(10)),
    ]


def test_booked_is_reconciled_with_invoiced(shop: Oracle) -> None:
    columns = ("month", "product_code", "booked_amount", "booked_units", "invoiced_amount")
    assert cells(
        shop, "gold.sales_reconciliation", *columns, "difference", "explanation", "is_explained"
    ) == [
        (
            *(JANUARY, "P00001", Decimal(10), 2, Decimal("9.95"), Decimal("0.05")),
            *("within tolerance", True),
        ),
        (JANUARY, "UNKNOWN", Decimal(10), 2, Decimal(0), Decimal(10), "not invoiced", False),
        (
            *(FEBRUARY, "P00001", Decimal(160), 32, Decimal(120), Decimal(40)),
            *("unexplained", False),
        ),
        (FEBRUARY, "UNKNOWN", Decimal(0), 0, Decimal(1), Decimal(-1), "not booked", False),
        (MARCH, "P00003", Decimal(10), 2, Decimal(0), Decimal(10), "not invoiced", False),
        (APRIL, "P00002", Decimal(0), 0, Decimal(7), Decimal(-7), "not booked", False),
    ]


@pytest.mark.parametrize(
    ("invoiced", "units", "explanation"),
    [
        ("10.00", 3, "match"),
        ("9.90", 3, "within tolerance"),
        ("10.10", 3, "within tolerance"),
        ("9.89", 2, "units equal, price differs"),
        ("10.11", 3, "unexplained"),
    ],
)
def test_a_difference_is_explained_or_not(
    land: Land, invoiced: str, units: int, explanation: str
) -> None:
    orders = land("erp/orders", "orders.csv", [order(1), order(2, status="CANCELLED")])
    sales = land("erp/erp_sales", "erp_sales.csv", [f"1,1,1,{units},2025-01-20,{invoiced}"])
    oracle = ask(orders, sales)
    assert cells(oracle, "gold.sales_reconciliation", "explanation", "is_explained") == [
        (explanation, explanation != "unexplained"),
    ]


def test_kpis_have_all_eleven_rows_every_month(shop: Oracle) -> None:
    kpis = shop.table("gold.business_kpis")
    by_kpi = {
        name: dict(rows.select("month", "value").rows()) for (name,), rows in kpis.group_by("kpi")
    }
    expected: dict[str, tuple[int | str, ...]] = {
        "revenue": (10, 150, 10, 0),
        "booked_amount": (30, 160, 10, 0),
        "invoiced_amount": ("9.95", 121, 0, 7),
        "orders": (3, 2, 1, 0),
        "units": (6, 32, 2, 0),
        "buyers": (2, 2, 1, 0),
        "average_order_value": (10, 150, 10, 0),
        "cancellation_rate": ("0.3333", 0, 0, 0),
        "new_customers": (2, 0, 0, 0),
        "active_customers": (2, 2, 1, 0),
        "repeat_rate": (0, "0.5", 1, 0),
    }
    assert by_kpi == {
        name: dict(zip((JANUARY, FEBRUARY, MARCH, APRIL), map(Decimal, values), strict=True))
        for name, values in expected.items()
    }
    assert kpis["unit"].value_counts().sort("unit").rows() == [
        ("count", 20),
        ("currency", 16),
        ("ratio", 8),
    ]


def test_every_table_has_its_key(shop: Oracle) -> None:
    for name, key in KEYS.items():
        assert not shop.table(name).select(key).is_duplicated().any(), name


def test_nothing_landed_makes_empty_tables() -> None:
    oracle = ask()
    assert {oracle.table(name).height for name in KEYS if name != "gold.dim_date"} == {0}


# Comparing


def test_equal_tables_compare_equal_whatever_the_order_and_width() -> None:
    left = pl.DataFrame({"id": [1, 2], "sum": pl.Series(["1.50", None]).cast(pl.Decimal(18, 2))})
    right = left.select("sum", "id").reverse()
    right = right.with_columns(pl.col("sum").cast(pl.Decimal(38, 4)), pl.col("id").cast(pl.Int32))
    assert compare(left, right, ["id"]) is None


def test_differences_are_named() -> None:
    left = pl.DataFrame({"id": [1, 2, 3], "name": ["a", None, "c"], "_line": [1, 2, 3]})
    right = pl.DataFrame({"id": [2, 3, 4], "name": ["b", "c", "d"]})
    assert compare(left, right, ["id"]) == (
        "expected 3 rows, actual 3\n"
        "1 missing rows: id=1\n"
        "1 surplus rows: id=4\n"
        "1 differing cells:\n"
        "  id=2: name expected None, actual 'b'"
    )


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (pl.DataFrame({"id": [1]}), "missing ['sum'], surplus []"),
        (pl.DataFrame({"id": [1], "sum": [1.5]}), "sum is Float64, expected Int64"),
        (pl.DataFrame({"id": [1], "sum": ["1"]}), "sum is String, expected Int64"),
        (pl.DataFrame({"id": [1, 1], "sum": [1, 1]}), "the actual rows repeat keys: id=1"),
    ],
)
def test_tables_of_another_shape_are_no_match(actual: pl.DataFrame, message: str) -> None:
    found = compare(pl.DataFrame({"id": [1], "sum": [1]}), actual, ["id"])
    assert found is not None
    assert message in found
