"""A row is walked back to its lines: to all that are needed to make it, and to no others.

The first is shown by landing the traced lines alone in an empty warehouse, where they make the
same row again; the second by counting, in SQL written for it, the rows that one is made from.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.errors import UsageError, WarehouseError
from metalayer.inspection import reading
from metalayer.sample import generate
from metalayer.tracing import ColumnStep, Trace, trace
from metalayer.warehouse.sampling import MASK
from metalayer_tests.story import Platform

#: Tables whose rows are no more than a calendar's: no line makes them.
CALENDARS = ("gold.dim_date",)
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
PERSONAL = ("Zebulon", "Quaresma", "zq@example.org", "5550143", "Zwolle", "97531", "1984-02-29")


def generated(platform: Platform, folder: Path, dirt: float) -> Platform:
    made = generate(folder, rows=250, months=3, dirt=dirt, seed=5, split="month")
    platform.land_files([file.file for file in made], folder)
    platform.build()
    return platform


def traced(platform: Platform, table: str, where: str, column: str | None = None) -> Trace:
    with reading(platform.warehouse.settings) as connection:
        return trace(connection, catalog(), table, where, column)


def counts(found: Trace) -> dict[str, int]:
    return {step.table: step.rows for step in found.steps}


def condition(platform: Platform, table: str) -> str:
    """Names two rows of a table, of those that a hash of the key happens to pick."""
    spec = catalog().specs[table]
    key = ", ".join(spec.key)
    # The Unknown member is made by the contract.
    real = f"{spec.key[0]} <> 0" if spec.unknown_member is not None else "true"
    picked = platform.ask(
        f"select row({key})::text from {table} where {real} order by md5(row({key})::text) limit 2"
    )
    assert len(picked) == 2
    return f"row({key})::text in ('{picked[0][0]}', '{picked[1][0]}')"


def rows(platform: Platform, table: str, where: str) -> list[tuple[Any, ...]]:
    """Rows as they are stored, in plain, without where they came from."""
    spec = catalog().specs[table]
    names = ", ".join(c.name for c in spec.stored if not c.name.startswith("_"))
    found = platform.ask(f"select {names} from {table} where {where}")
    opened = [tuple(platform.plain(v) if isinstance(v, str) else v for v in row) for row in found]
    return sorted(opened, key=repr)


# --- what is found ------------------------------------------------------------------------------


def test_the_traced_lines_alone_make_the_same_rows(
    make_platform: Callable[[], Platform], tmp_path: Path
) -> None:
    whole = generated(make_platform(), tmp_path / "out", dirt=0)
    tables = [n for n, s in catalog().specs.items() if s.layer != "bronze" and n not in CALENDARS]
    for table in tables:
        where = condition(whole, table)
        expected = rows(whole, table, where)
        assert len(expected) == 2
        found = traced(whole, table, where)
        assert not any(step.lost for step in found.steps), table
        assert all(step.followed == step.rows for step in found.steps)
        landed = whole.one("select sum(rows_read) from meta.ledger")
        assert 0 < sum(len(file.lines) for file in found.files) < landed
        alone = make_platform()
        for file in sorted(found.files, key=lambda f: f.delivery_id):
            every = (whole.landing / file.file).read_text().splitlines(keepends=True)
            text = "".join([every[0], *(every[number - 1] for number in file.lines)])
            alone.land(file.file, text)
        alone.build()
        assert rows(alone, table, where) == expected, table


def test_no_row_is_found_that_had_no_part(
    make_platform: Callable[[], Platform], tmp_path: Path
) -> None:
    whole = generated(make_platform(), tmp_path / "out", dirt=0)
    day = whole.one("select max(order_date) from gold.agg_daily_sales")
    found = counts(traced(whole, "gold.agg_daily_sales", f"order_date = '{day}'"))
    orders = whole.one("select count(*) from gold.fact_orders where order_date = %s", day)
    assert found["gold.fact_orders"] == orders

    month, code = whole.ask(
        "select month, product_code from gold.sales_reconciliation "
        "order by booked_units + invoiced_units desc limit 1"
    )[0]
    found = counts(
        traced(
            whole,
            "gold.sales_reconciliation",
            f"month = '{month}' and product_code = '{code}'",
        )
    )
    of_product = (
        "select count(*) from gold.{0} join gold.dim_product using (product_key) "
        "where product_code = %s and date_trunc('month', {1}) = %s"
    )
    assert found["gold.fact_orders"] == whole.one(
        of_product.format("fact_orders", "order_date") + " and status <> 'CANCELLED'", code, month
    )
    assert found["gold.fact_sales"] == whole.one(
        of_product.format("fact_sales", "sale_date"), code, month
    )

    customer, month = whole.ask(
        "select customer_id, month from gold.customer_360 order by orders desc, month desc limit 1"
    )[0]
    found = counts(
        traced(whole, "gold.customer_360", f"customer_id = {customer} and month = '{month}'")
    )
    assert found["gold.fact_orders"] == whole.one(
        "select count(*) from gold.fact_orders where customer_id = %s and (order_date < %s and "
        "status <> 'CANCELLED' or date_trunc('month', order_date) = %s)", customer, month, month
    )  # fmt: skip
    assert found["silver.orders"] >= found["gold.fact_orders"] > 1


def test_lines_are_those_of_the_file_however_dirty_it_is(
    make_platform: Callable[[], Platform], tmp_path: Path
) -> None:
    platform = generated(make_platform(), tmp_path / "out", dirt=0.05)
    picked = platform.ask(
        "select sales_id from silver.erp_sales order by md5(sales_id::text) limit 9"
    )
    for (number,) in picked:
        found = traced(platform, "silver.erp_sales", f"sales_id = {number}")
        (file,) = found.files
        (line,) = file.lines
        text = (platform.landing / file.file).read_bytes()
        if text.startswith(b"\x1f\x8b"):
            text = gzip.decompress(text)
        assert re.search(rb"\b%d\b" % number, text.replace(b"\r\n", b"\n").split(b"\n")[line - 1])


def test_what_has_no_line_says_so(platform: Platform) -> None:
    platform.land("erp/orders_2025-01.csv", ORDERS + "1,7,P00001,2025-01-05,1,5.00,5.00,PAID\n")
    platform.build()
    found = traced(platform, "gold.dim_customer", "customer_key = 0")
    assert counts(found) == {"gold.dim_customer": 1}
    assert (found.files, found.steps[0].lost) == ([], 0)
    found = traced(platform, "gold.dim_date", "date_key = 20250105")
    assert (counts(found), found.files) == ({"gold.dim_date": 1}, [])


def test_a_row_that_would_not_be_made_today_is_told(platform: Platform) -> None:
    order = "1,7,P00001,{},1,5.00,5.00,PAID\n"
    platform.land("erp/orders_2025-01.csv", ORDERS + order.format("2025-01-05"))
    platform.build()
    assert not any(s.lost for s in traced(platform, "gold.fact_orders", "order_id = 1").steps)
    platform.land("erp/orders_2025-02.csv", ORDERS + order.format("2025-02-05"))
    platform.build("bronze.orders", "silver.orders")
    found = traced(platform, "gold.fact_orders", "order_id = 1")
    assert [(step.table, step.lost) for step in found.steps] == [("gold.fact_orders", 1)]
    platform.build()
    found = traced(platform, "gold.fact_orders", "order_id = 1")
    # The product was first ordered in February now.
    assert [(f.file, f.lines) for f in found.files] == [("erp/orders_2025-02.csv", [2])]


# --- columns ------------------------------------------------------------------------------------


def leaves(step: ColumnStep) -> list[ColumnStep]:
    return [leaf for s in step.made_from for leaf in leaves(s)] if step.made_from else [step]


def test_a_columns_value_is_followed_with_what_is_done_to_it(platform: Platform) -> None:
    platform.land(
        "erp/orders_2025-01.csv",
        ORDERS
        + "1,7,P00001,2025-01-05,1,5.00,5.00,PAID\n"
        + "2,7,P00001,2025-01-06,2,5.00,10.00,CLOSED\n"
        + "3,8,P00001,2025-01-06,3,5.00,15.00,PAID\n",
    )
    platform.build()
    found = traced(platform, "gold.customer_360", "customer_id = 7", "lifetime_value")
    step = found.column
    assert step is not None
    assert step.values == ["15.00"]
    assert any("SUM(" in made for made in step.made_by)
    by_table = {leaf.table + "." + leaf.column: leaf.values for leaf in leaves(step)}
    assert by_table == {
        "bronze.orders.total_amount": ["5.00", "10.00"],
        "bronze.orders.status": ["PAID", "CLOSED"],
    }
    (status,) = [s for s in step.made_from if s.column == "status"]
    assert status.values == ["COMPLETED"]
    (typed,) = status.made_from
    assert any("'CLOSED'" in made for made in typed.made_by)


def test_a_derived_column_shows_its_expression(platform: Platform) -> None:
    platform.land("crm/customers_2025-01.csv", CUSTOMERS + customer())
    platform.build()
    step = traced(platform, "gold.dim_customer", "customer_id = 7", "is_current").column
    assert step is not None
    assert step.values == ["true"]
    assert step.made_by == [catalog().specs["gold.dim_customer"].column("is_current").derived]
    assert {s.table for s in step.made_from} == {"gold.dim_customer"}


# --- what is not given away, and what is refused ------------------------------------------------


def customer() -> str:
    return (
        "7,Zebulon,Quaresma,zq@example.org,2025550143,Zwolle,Zwolle,97531,1984-02-29,"
        "2025-01-01,2025-01-02\n"
    )


def test_no_personal_value_is_shown(
    platform: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.land("crm/customers_2025-01.csv", CUSTOMERS + customer())
    platform.build()
    url = platform.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    monkeypatch.setenv("METALAYER_HOME", str(platform.warehouse.settings.home))
    for column in ("email", "phone", "dob", "customer_name", "customer_id"):
        for more in ([], ["--json"]):
            arguments = ["gold.dim_customer", "--where", "customer_id = 7", "--column", column]
            assert main(["trace", *arguments, *more]) == 0
            said = capsys.readouterr().out
            assert "crm/customers_2025-01.csv" in said
            assert MASK in said
            assert not [value for value in PERSONAL if value in said]


def test_the_command_names_file_and_line(
    platform: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.land(
        "erp/erp_sales_2025-01.csv", SALES + "6,1,7,1,2025-01-04,3\n7,1,7,2,2025-01-05,9\n"
    )
    platform.build()
    url = platform.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    monkeypatch.setenv("METALAYER_HOME", str(platform.warehouse.settings.home))
    arguments = ["trace", "gold.fact_sales", "--where", "sales_id = 7", "--column", "sale_amount"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +erp/erp_sales_2025-01\.csv  lines 2, 3$", said, re.MULTILINE)
    assert "silver.erp_sales.sale_amount = 9.00" in said
    assert "bronze.erp_sales.sale_amount = 9" in said
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == [
        {"file": "erp/erp_sales_2025-01.csv", "delivery_id": 1, "lines": [2, 3]}
    ]
    # The other line is there because it is the first that names the product.
    assert [s["rows"] for s in found["steps"] if s["table"] == "silver.erp_sales"] == [2]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("1 = 2", "No row of gold.fact_sales"),
        ("  ", "condition is empty"),
        ("nosuch = 1", "does not exist"),
        ("true); drop table meta.tables; select (true", "one statement"),
        ("sales_id = (select nextval('meta.leaf_number'))", "read-only"),
    ],
)
def test_wrong_conditions_are_refused(where: str, error: str, platform: Platform) -> None:
    platform.land("erp/erp_sales_2025-01.csv", SALES + "7,1,7,2,2025-01-05,9\n")
    platform.build()
    with pytest.raises((UsageError, WarehouseError), match=error):
        traced(platform, "gold.fact_sales", where)
    assert platform.one("select to_regclass('meta.tables') is not null")


def test_wrong_names_and_too_many_rows_are_refused(platform: Platform) -> None:
    lines = "".join(f"{n},1,7,2,2025-01-05,9\n" for n in range(1, 1_003))
    platform.land("erp/erp_sales_2025-01.csv", SALES + lines)
    platform.build("bronze.erp_sales", "silver.erp_sales")
    with pytest.raises(UsageError, match="no table"):
        traced(platform, "gold.nosuch", "true")
    with pytest.raises(UsageError, match="no column 'nosuch'"):
        traced(platform, "silver.erp_sales", "true", "nosuch")
    with pytest.raises(UsageError, match="More than 1,000 rows"):
        traced(platform, "silver.erp_sales", "true")
    assert counts(traced(platform, "silver.erp_sales", "sales_id = 7 -- one"))
