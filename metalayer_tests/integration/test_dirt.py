"""Real-life dirt, landed for real: what each kind gets, and that no valid row goes with it.

Every kind is a file of its own; all of them are built together, once. How bytes become records is
told in detail by `unit/test_reader.py`; here it is the whole way from the file to the gold tables.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest

from metalayer.landing.files import Skipped
from metalayer.landing.ledger import Registration
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.integration.sharing import module_platform
from metalayer_tests.story import Platform

ORDER_COLUMNS = (
    "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"
)
ORDERS = ORDER_COLUMNS + "\n"
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"

KNOWN_CUSTOMER, UNKNOWN_CUSTOMER = 7, 999_999
STATES = "must be one of (PENDING, SHIPPED, COMPLETED, CANCELLED)"
ADDS_UP = "total_amount must be quantity times unit_price, to a cent"
MEGABYTE = "x" * (1 << 20)


def order(number: int, **changed: str) -> str:
    """A line of the orders export, clean but for what is changed."""
    fields = {
        "order_id": str(number),
        "customer_id": str(KNOWN_CUSTOMER),
        "product_code": "P00226",
        "order_date": "2025-01-15",
        "quantity": "2",
        "unit_price": "5.00",
        "total_amount": "10.00",
        "status": "PAID",
    }
    assert changed.keys() <= fields.keys()
    return ",".join((fields | changed).values()) + "\n"


def customer(number: int, **changed: str) -> str:
    """A line of the CRM's change feed, clean but for what is changed."""
    fields = {
        "customer_id": str(number),
        "first_name": "Ada",
        "last_name": "Berg",
        "email": f"ada{number}@example.org",
        "phone": "",
        "city": "Aarhus",
        "state": "DK",
        "zip": "8000",
        "dob": "1990-01-01",
        "created_at": "2024-01-01",
        "updated_at": "2025-01-02 08:00:00",
    }
    assert changed.keys() <= fields.keys()
    return ",".join((fields | changed).values()) + "\n"


Reject = tuple[int, str | None, str, str | None]


@dataclass(frozen=True)
class Dirt:
    """One kind of dirt in orders.

    Attributes:
        kind: What it is; also names the file.
        content: The file.
        arrives: Orders of the file that must be in silver and gold.
        rejects: (line, column, rule, value) of its rows that must be in quarantine.
        suffix: Of the file's name.
    """

    kind: str
    content: str | bytes
    arrives: tuple[int, ...]
    rejects: tuple[Reject, ...] = ()
    suffix: str = ".csv"

    @property
    def file(self) -> str:
        return f"erp/orders_{self.kind.replace(' ', '_')}{self.suffix}"


#: What rejects a file as a whole: kind -> content, suffix, words of the reason.
REFUSED: dict[str, tuple[str | bytes, str, str]] = {
    "0 bytes": (b"", ".csv", "orders_0_bytes.csv is empty (0 bytes)"),
    "missing column": (
        order(1).replace(",2,", ",", 1).join([ORDERS.replace("quantity,", ""), ""]),
        ".csv",
        "has no column quantity; its header is: order_id, customer_id, product_code",
    ),
    "duplicate header": (
        ORDERS.replace("status", "status,Quantity") + order(1).replace("\n", ",3\n"),
        ".csv",
        "has more than one column quantity",
    ),
    "truncated gzip": (
        gzip.compress((ORDERS + "".join(order(n) for n in range(500))).encode())[:-100],
        ".csv.gz",
        "is a gzip file that breaks off before its end",
    ),
    "no header": (order(1) + order(2), ".csv", "no header found"),
}

DIRT = (
    Dirt("bom", b"\xef\xbb\xbf" + (ORDERS + order(101) + order(102)).encode(), (101, 102)),
    Dirt("crlf", (ORDERS + order(111) + order(112)).replace("\n", "\r\n"), (111, 112)),
    Dirt("windows 1252", (ORDERS + order(121, product_code="€Ü")).encode("cp1252"), (121,)),
    Dirt("utf 16", (ORDERS + order(131) + order(132)).encode("utf-16"), (131, 132)),
    Dirt("utf 16 be", (ORDERS + order(136)).encode("utf-16-be"), (136,)),
    Dirt("semicolon", (ORDERS + order(141) + order(142)).replace(",", ";"), (141, 142)),
    Dirt("tab", (ORDERS + order(151) + order(152)).replace(",", "\t"), (151, 152)),
    Dirt(
        "quoted newline",
        ORDERS + order(161, product_code='"P00\r\n226"') + order(162, status="LOST") + order(163),
        (161, 163),
        # The line is the physical one, past the line break within the quotes.
        ((4, "status", STATES, "LOST"),),
    ),
    Dirt(
        "lone quote",
        ORDERS + order(171, product_code='"P00226') + "".join(order(n) for n in range(172, 180)),
        tuple(range(172, 180)),
        ((2, None, "unclosed quote", None),),
    ),
    Dirt(
        "too few and too many fields",
        ORDERS + order(181) + "182,7\n" + order(183).replace("PAID", "PAID,x,y") + order(184),
        (181, 184),
        (
            (3, None, "expected 8 fields, found 2", None),
            (4, None, "expected 8 fields, found 10", None),
        ),
    ),
    Dirt(
        "blank lines",
        "\n" + ORDERS + "\n" + order(191) + "  \n\n" + order(192) + "\n\n",
        (191, 192),
    ),
    Dirt("header only", ORDERS, ()),
    Dirt(
        "header order case and spaces",
        " STATUS , Order ID,Customer-ID,PRODUCT_CODE,order_date,Quantity,unit_price,total_amount\n"
        "PAID,201,7,P00226,2025-01-15,2,5.00,10.00\n",
        (201,),
    ),
    Dirt(
        "extra column",
        ORDERS.replace("\n", ",Cost Centre\n") + order(211).replace("\n", ",K-12\n"),
        (211,),
    ),
    Dirt(
        "gzip",
        gzip.compress((ORDERS + order(221) + order(222)).encode()),
        (221, 222),
        suffix=".csv.gz",
    ),
    Dirt(
        "nul bytes",
        ORDERS + order(231) + order(232, product_code="P0\0") + order(233),
        (231, 233),
        ((3, None, "NUL byte", None),),
    ),
    Dirt(
        "numbers",
        ORDERS
        + order(241, quantity="100", unit_price="12.345", total_amount='"1,234.50"')
        + order(242, quantity="1e3", unit_price="0.01")
        + order(243, quantity=" 12 ", unit_price="1", total_amount="12")
        + order(244, quantity="-0")
        + order(245, quantity="1.5", unit_price="2", total_amount="3")
        + order(246, total_amount="10.001")
        + order(247, total_amount='"10,00"')
        + order(248, unit_price="NaN"),
        (241, 242, 243),
        (
            (5, "quantity", "must be > 0", "0"),
            (6, "quantity", "not a bigint", "1.5"),
            (7, "total_amount", "not a numeric(18,2)", "10.001"),
            (8, "total_amount", "not a numeric(18,2)", "10,00"),
            (9, "unit_price", "not a numeric(18,4)", "NaN"),
        ),
    ),
    Dirt(
        "dates",
        ORDERS
        + order(251, order_date="31/12/2024")
        + order(252, order_date="20250101")
        + order(253, order_date="2025-01-31T23:30:00-05:00")
        + order(254, order_date="2025-01-09 08:15:00")
        + order(255, order_date="2025-02-30")
        + order(256, order_date="yesterday")
        + order(257, order_date=""),
        (251, 252, 253, 254),
        (
            (6, "order_date", "month cannot be told", "2025-02-30"),
            (7, "order_date", "month cannot be told", "yesterday"),
            (8, "order_date", "month cannot be told", None),
        ),
    ),
    Dirt(
        "nothing there",
        ORDERS
        + order(261, product_code="")
        + order(262, product_code=" n/a ")
        + order(263, product_code="NULL")
        + order(264, status="NULL")
        + order(265, status="")
        + order(266, quantity="N/A")
        + order(267, quantity=" ")
        + order(0, order_id="NULL"),
        (261, 262, 263),
        (
            # Only the contract's columns take these words for no value; elsewhere they are text.
            (5, "status", STATES, "NULL"),
            (6, "status", "is required", None),
            (7, "quantity", "not a bigint", "N/A"),
            (8, "quantity", "is required", None),
            (9, "order_id", "not a bigint", "NULL"),
        ),
    ),
    Dirt(
        "quantity and amount",
        ORDERS
        + order(271, order_date="2025-02-01", quantity="0", total_amount="0")
        + order(272, order_date="2025-02-01", quantity="-2", total_amount="10")
        + order(273, order_date="2025-02-01", total_amount="10.01")
        + order(274, order_date="2025-02-01", total_amount="10.02")
        + order(275, order_date="2025-02-01", quantity="2", total_amount="-10"),
        (273,),
        (
            (2, "quantity", "must be > 0", "0"),
            (3, "quantity", "must be > 0", "-2"),
            (5, None, ADDS_UP, None),
            (6, "total_amount", "must be >= 0", "-10.00"),
        ),
    ),
    Dirt(
        "unknown status",
        ORDERS + order(281, status="REFUNDED") + order(282, status=" closed "),
        (282,),
        ((2, "status", STATES, "REFUNDED"),),
    ),
    Dirt(
        "unknown customer and product",
        ORDERS
        + order(291, customer_id=str(UNKNOWN_CUSTOMER))
        + order(292, product_code="X1")
        + order(293, customer_id="seven"),
        (291, 292),
        ((4, "customer_id", "not a bigint", "seven"),),
    ),
    Dirt(
        "months out of range",
        ORDERS
        + order(301, order_date="2024-10-31")
        + order(302, order_date="2024-11-01")
        + order(303, order_date="2025-03-31")
        + order(304, order_date="2025-04-01"),
        (302, 303),
        (
            (2, "order_date", "before the first month 2024-11", "2024-10-31"),
            (5, "order_date", "after the current month 2025-03", "2025-04-01"),
        ),
    ),
    Dirt("a megabyte", ORDERS + order(311, product_code=MEGABYTE) + order(312), (311, 312)),
    # The same key: twice in a file, in another file, and in another month.
    Dirt("key twice", ORDERS + order(321) + order(321, status="SHIPPED") + order(322), (321,)),
    Dirt("key again", ORDERS + order(322, status="SHIPPED") + order(323), (322,)),
    Dirt("key moved", ORDERS + order(323, order_date="2025-03-01"), (323,)),
)
SUPERSEDED = {"key twice": 2, "key again": 1}

PEOPLE = CUSTOMERS + "".join(
    (
        customer(KNOWN_CUSTOMER, updated_at="2024-11-01"),
        customer(21, first_name="'; drop table silver.orders; --", last_name="O'Brien"),
        customer(22, first_name="<script>alert(1)</script>", last_name="%s {} \\N $$"),
        customer(23, city='"Old\nTown"'),
        customer(24, last_name="NULL", email="N/A", dob="n/a", city=" - ", created_at=""),
        customer(
            25, updated_at="2025-01-31T23:30:00-05:00", dob="31/12/1999", created_at="20240229"
        ),
        customer(26, dob="1990-02-30"),
        customer(27, city=MEGABYTE),
        customer(28, phone="(555) 010-9999 "),
        customer(29, phone="call me"),
        customer(30, updated_at="2025-01-05 25:61:00"),
    )
)


@dataclass(frozen=True)
class Landed:
    """The platform after one build of all the dirt."""

    platform: Platform
    registration: Registration
    warnings: list[str]

    def entry(self, file: str) -> dict[str, Any]:
        (entry,) = [e for e in self.platform.ledger() if e["file"] == file]
        return entry

    def quarantined(self, file: str) -> list[Reject]:
        return [
            (line, column, rule, value and self.platform.plain(value))
            for line, column, rule, value in self.platform.ask(
                "select q.line, q.column_name, q.rule, q.value from meta.quarantine as q "
                "join meta.deliveries as d using (delivery_id) where d.file = %s order by q.line",
                file,
            )
        ]

    def orders(self, file: str) -> list[int]:
        """Orders that a file brought to gold."""
        rows = self.platform.ask(
            "select f.order_id from gold.fact_orders as f join silver.orders as s using (order_id) "
            "join meta.deliveries as d on d.delivery_id = s._delivery_id where d.file = %s "
            "order by f.order_id",
            file,
        )
        return [number for (number,) in rows]


@pytest.fixture(scope="module")
def landed(server: WarehouseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Landed]:
    """All the dirt, landed, registered and built once."""
    folder = tmp_path_factory.mktemp("dirt")
    with module_platform(server, folder, date(2024, 11, 1), date(2025, 3, 15)) as platform:
        platform.land("crm/customers.csv", PEOPLE)
        platform.land(
            "crm/customers_1252.csv", (CUSTOMERS + customer(41, city="Zürich €")).encode("cp1252")
        )
        platform.land(
            "crm/customers_utf16.csv", (CUSTOMERS + customer(42, city="Łódź")).encode("utf-16")
        )
        platform.land(
            "erp/erp_sales.csv", SALES + "1,226,7,2,2025-01-20,10.00\n2,,999999,1,2025-01-20,5\n"
        )
        for dirt in DIRT:
            platform.land(dirt.file, dirt.content)
        for kind, (content, suffix, _) in REFUSED.items():
            platform.land(refused_file(kind, suffix), content)
        target = platform.land("elsewhere.csv", ORDERS + order(901))
        (platform.landing / "erp/orders_link.csv").symlink_to(target)
        (platform.landing / "erp/orders_folder.csv").mkdir()
        platform.land("erp/orders_unreadable.csv", ORDERS + order(902)).chmod(0)
        with reading_only_what_the_mode_allows(platform):
            registration = platform.register()
        outcome = platform.build()
        assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
        yield Landed(platform, registration, outcome.warnings)


def refused_file(kind: str, suffix: str) -> str:
    return f"erp/orders_{kind.replace(' ', '_')}{suffix}"


@contextlib.contextmanager
def reading_only_what_the_mode_allows(platform: Platform) -> Iterator[None]:
    """Take from root, for this thread and those it starts, the power to read what nobody may.

    A pool's connection is opened before: the way to the server's socket may need that power.
    """
    if os.geteuid() != 0 or sys.platform != "linux":
        yield
        return
    with transaction(platform.warehouse.pool):
        pass
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    dac_override, dac_read_search = 1 << 1, 1 << 2
    sets[0] = effective & ~(dac_override | dac_read_search)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.mark.parametrize("dirt", DIRT, ids=lambda d: d.kind)
def test_dirt_in_orders(landed: Landed, dirt: Dirt) -> None:
    assert landed.orders(dirt.file) == list(dirt.arrives)
    assert landed.quarantined(dirt.file) == list(dirt.rejects)
    superseded = SUPERSEDED.get(dirt.kind, 0)
    entry = landed.entry(dirt.file)
    assert entry == {
        "file": dirt.file,
        "status": "loaded",
        "rows_read": len(dirt.arrives) + len(dirt.rejects) + superseded,
        "rows_loaded": len(dirt.arrives),
        "rows_rejected": len(dirt.rejects),
        "rows_superseded": superseded,
        "reason": None,
    }


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_refused_as_a_whole(landed: Landed, kind: str) -> None:
    _, suffix, reason = REFUSED[kind]
    entry = landed.entry(refused_file(kind, suffix))
    assert reason in entry.pop("reason")
    assert entry == {
        "file": refused_file(kind, suffix),
        "status": "rejected",
        "rows_read": 0,
        "rows_loaded": 0,
        "rows_rejected": 0,
        "rows_superseded": 0,
    }


def test_what_is_no_export_is_left_alone(landed: Landed) -> None:
    assert landed.registration.skipped == [
        Skipped("erp/orders_folder.csv", "it is a folder"),
        Skipped("erp/orders_link.csv", "it is a symbolic link; copy the file itself"),
    ]
    assert landed.platform.ask("select 1 from silver.orders where order_id = 901") == []


def test_an_unreadable_file_is_refused_until_it_can_be_read(landed: Landed) -> None:
    (refused,) = [
        d for d in landed.registration.deliveries if d.file == "erp/orders_unreadable.csv"
    ]
    assert refused.status == "rejected"
    assert "orders_unreadable.csv may not be read by this user" in str(refused.reason)
    assert landed.entry("erp/orders_unreadable.csv")["status"] == "loaded"
    assert landed.orders("erp/orders_unreadable.csv") == [902]


def test_everything_balances(landed: Landed) -> None:
    assert landed.platform.balances()
    expected = {n for d in DIRT for n in d.arrives} | {902}
    assert {n for (n,) in landed.platform.ask("select order_id from gold.fact_orders")} == expected


def test_values_are_read_whatever_their_spelling(landed: Landed) -> None:
    values = landed.platform.ask(
        "select order_id, order_date, quantity, total_amount from silver.orders "
        "where order_id between 241 and 254 order by 1"
    )
    assert values == [
        (241, date(2025, 1, 15), 100, Decimal("1234.50")),
        (242, date(2025, 1, 15), 1000, Decimal("10.00")),
        (243, date(2025, 1, 15), 12, Decimal("12.00")),
        (251, date(2024, 12, 31), 2, Decimal("10.00")),
        (252, date(2025, 1, 1), 2, Decimal("10.00")),
        # The day as it is written; only a moment is shifted by its zone.
        (253, date(2025, 1, 31), 2, Decimal("10.00")),
        (254, date(2025, 1, 9), 2, Decimal("10.00")),
    ]


def test_texts_arrive_as_they_were(landed: Landed) -> None:
    names = "select product_code from silver.orders where order_id = %s"
    assert landed.platform.one(names, 121) == "€Ü"
    assert landed.platform.one(names, 161) in ("P00\r\n226", "P00\n226")
    assert landed.platform.one(names, 311) == MEGABYTE.upper()
    cities = dict(landed.platform.ask("select customer_id, city from silver.customers"))
    assert cities[41] == "Zürich €"
    assert cities[42] == "Łódź"
    assert cities[23] == "Old\nTown"
    assert cities[27] == MEGABYTE


def test_words_for_nothing_count_where_the_contract_says(landed: Landed) -> None:
    platform = landed.platform
    codes = "select product_code from silver.orders where order_id between 261 and 263"
    assert platform.ask(codes) == [(None,)] * 3
    assert platform.ask(
        "select last_name, email, dob, city, created_at from silver.customers "
        "where customer_id = 24"
    ) == [(None, None, None, None, None)]
    # Bronze keeps what was said.
    assert platform.one("select last_name from bronze.customers where customer_id = '24'") == "NULL"


def test_sql_and_html_in_a_name_are_a_name(landed: Landed) -> None:
    names = "select customer_name from gold.dim_customer where customer_id = %s"
    assert landed.platform.one(names, 21) == "'; drop table silver.orders; -- O'Brien"
    assert landed.platform.one(names, 22) == "<script>alert(1)</script> %s {} \\N $$"


def test_moments_and_dates_of_customers(landed: Landed) -> None:
    ((updated_at, dob, created_at),) = landed.platform.ask(
        "select updated_at, dob, created_at from silver.customers where customer_id = 25"
    )
    assert landed.platform.plain(dob) == "1999-12-31"
    assert (updated_at, created_at) == (datetime(2025, 2, 1, 4, 30), datetime(2024, 2, 29))  # noqa: DTZ001
    assert landed.quarantined("crm/customers.csv") == [
        (9, "dob", "not a date", "1990-02-30"),
        (13, "updated_at", "month cannot be told", "2025-01-05 25:61:00"),
    ]


def test_a_phone_is_e164_or_flagged(landed: Landed) -> None:
    phones = "select phone, is_phone_valid from silver.customers where customer_id = %s"
    ((phone, is_valid),) = landed.platform.ask(phones, 28)
    assert (landed.platform.plain(phone), is_valid) == ("+15550109999", True)
    assert landed.platform.ask(phones, 29) == [(None, False)]


def test_an_unknown_customer_or_product_gets_the_unknown_member(landed: Landed) -> None:
    keys = "select customer_key, product_key from gold.fact_orders where order_id = %s"
    ((known_customer, known_product),) = landed.platform.ask(keys, 101)
    assert known_customer != 0
    assert known_product != 0
    assert landed.platform.ask(keys, 291) == [(0, known_product)]
    assert landed.platform.ask(keys, 292) == [(known_customer, 0)]
    assert landed.platform.ask(
        "select customer_key, product_key from gold.fact_sales where sales_id = 2"
    ) == [(0, 0)]
    assert any("silver.customers.customer_id does not have" in line for line in landed.warnings)


def test_an_extra_column_is_kept_and_reported(landed: Landed) -> None:
    (delivery,) = [
        d for d in landed.registration.deliveries if d.file == "erp/orders_extra_column.csv"
    ]
    assert delivery.extra_columns == ("Cost Centre",)
    assert landed.platform.one("select _extra from bronze.orders where order_id = '211'") == {
        "Cost Centre": "K-12"
    }
    assert landed.platform.one(
        "select extra_columns from meta.ledger where file = 'erp/orders_extra_column.csv'"
    ) == ["Cost Centre"]


def test_the_last_delivered_row_of_a_key_counts(landed: Landed) -> None:
    assert landed.platform.ask(
        "select order_id, status, order_date from gold.fact_orders "
        "where order_id between 321 and 323 order by 1"
    ) == [
        (321, "SHIPPED", date(2025, 1, 15)),
        (322, "SHIPPED", date(2025, 1, 15)),
        (323, "COMPLETED", date(2025, 3, 1)),
    ]


def test_a_quarantined_row_is_kept_as_it_came(landed: Landed) -> None:
    raw = dict(
        landed.platform.ask(
            "select q.line, q.raw from meta.quarantine as q join meta.deliveries as d "
            "using (delivery_id) where d.file like '%%fields.csv'"
        )
    )
    assert raw == {3: "182,7", 4: order(183).replace("PAID\n", "PAID,x,y")}


def test_a_file_that_cannot_be_read_is_told_once(platform: Platform) -> None:
    landed = platform.land("erp/orders.csv", ORDERS + order(1))
    landed.chmod(0)
    entries = "select delivery_id, status from meta.deliveries"
    with reading_only_what_the_mode_allows(platform):
        for _ in range(3):
            platform.register()
        ((number, status),) = platform.ask(entries)
        assert status == "rejected"
    landed.chmod(0o600)
    platform.register()
    assert platform.ask(entries) == [(number, "loaded")]
