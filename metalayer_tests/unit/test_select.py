"""What the text of a SELECT tells: how far back it reads, how it runs, where columns come from."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlglot
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.contracts.contract import PROVENANCE, ColumnSpec, SourceSpec, TableSpec
from metalayer.errors import ContractError
from metalayer.lineage.columns import column_lineage
from metalayer.lineage.select import (
    FAILED_CASTS,
    Reach,
    Select,
    parse_select,
    render,
    transpile_to_spark,
)
from metalayer.warehouse.migrate import ensure_tables
from metalayer.warehouse.pool import transaction

SAME, BEFORE, UP_TO, ALL = Reach.SAME, Reach.BEFORE, Reach.UP_TO, Reach.ALL
SELECTS = sorted(catalog().selects)
JANUARY, FEBRUARY = date(2025, 1, 1), date(2025, 2, 1)


def table(layer: str, name: str, *columns: ColumnSpec, **facts: Any) -> TableSpec:
    """A table whose month column is its first date."""
    month = next(c.name for c in columns if c.type == "date")
    return TableSpec(
        layer, name, "A table.", "team:x", columns, month, timedelta(days=1), 0.1, **facts
    )  # type: ignore[arg-type]


NUMBERS = table(
    "gold",
    "numbers",
    ColumnSpec("n", "bigint", pl.Int64, "Number", is_key=True),
    ColumnSpec("day", "date", pl.Date, "Day"),
)
TOKENS = ("NULL", "N/A")
PARCELS = table(
    "silver",
    "parcels",
    ColumnSpec("parcel_id", "bigint", pl.Int64, "Number", is_key=True, is_landed=True),
    ColumnSpec("sent_on", "date", pl.Date, "Day", is_landed=True),
    ColumnSpec(
        "note", "text", pl.String, "Note", nullable=True, is_landed=True, null_tokens=TOKENS
    ),
    ColumnSpec("weight", "numeric(6,2)", pl.Decimal(6, 2), "Weight", is_landed=True),
    *PROVENANCE,
    source=SourceSpec("wms/parcels", "wms/parcels*.csv", "delta", "sent_on"),
)
LANDED = table(
    "bronze",
    "parcels",
    *(ColumnSpec(c.name, "text", pl.String, c.meaning, nullable=True) for c in PARCELS.landed),
    *PROVENANCE,
    ColumnSpec("month", "date", pl.Date, "Month"),
    source=PARCELS.source,
)
SPECS = {s.full_name: s for s in (*catalog().specs.values(), NUMBERS, PARCELS, LANDED)}
PARCELS_SELECT = """
select
    try_cast(parcel_id as bigint) as parcel_id,
    try_cast(sent_on as date) as sent_on,
    trim(note) as note,
    try_cast(weight as numeric(6, 2)) * 1000 as weight,
    _delivery_id,
    _line
from bronze.parcels
where month >= :start and month < :end
"""

Parse = Callable[..., Select]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    """Write a SELECT and read it."""

    def parse(text: str, spec: TableSpec = NUMBERS) -> Select:
        path = tmp_path / f"{spec.name}.sql"
        path.write_text(text)
        return parse_select(path, spec, SPECS)

    return parse


# ---- which months are read


@pytest.mark.parametrize(
    ("where", "reach"),
    [
        ("order_date >= :start and order_date < :end", SAME),
        ("order_date < :end and status = 'PENDING' and order_date >= :start", SAME),
        ("o.order_date >= :start and o.order_date < :end", SAME),
        ("order_date < :start", BEFORE),
        ("order_date < :end", UP_TO),
        ("true", ALL),
        ("order_date >= :start", ALL),
        # What is not told for certain reads everything, which is never wrong.
        ("order_date < :end or quantity = 1", ALL),
        ("not (order_date < :end)", ALL),
        ("order_date <= :end", ALL),
        ("order_date between :start and :end", ALL),
        ("date_trunc('month', order_date) < :end", ALL),
        ("_line < :end", ALL),
        ("other.order_date < :end", ALL),
    ],
)
def test_the_window_of_a_block_tells_how_far_back_it_reads(
    parse: Parse, where: str, reach: Reach
) -> None:
    select = parse(f"select order_id as n, order_date as day from silver.orders as o where {where}")
    assert select.inputs == {"silver.orders": reach}


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (SAME, SAME, SAME),
        (BEFORE, BEFORE, BEFORE),
        (SAME, BEFORE, UP_TO),
        (SAME, UP_TO, UP_TO),
        (BEFORE, UP_TO, UP_TO),
        (SAME, ALL, ALL),
        (BEFORE, ALL, ALL),
        (UP_TO, ALL, ALL),
    ],
)
def test_a_table_read_twice_is_read_as_far_as_both(
    parse: Parse, first: Reach, second: Reach, both: Reach
) -> None:
    where = {
        SAME: "order_date >= :start and order_date < :end",
        BEFORE: "order_date < :start",
        UP_TO: "order_date < :end",
        ALL: "true",
    }
    for one, other in ((first, second), (second, first)):
        select = parse(
            f"with a as (select order_id, order_date from silver.orders where {where[one]}) "
            "select a.order_id as n, a.order_date as day from a "
            f"where a.order_id in (select order_id from silver.orders where {where[other]})"
        )
        assert select.inputs == {"silver.orders": both}


def test_each_table_is_read_by_its_own_window(parse: Parse) -> None:
    select = parse(
        "with s as (select * from silver.erp_sales where sale_date >= :start and sale_date < :end) "
        "select o.order_id as n, o.order_date as day from silver.orders as o "
        "inner join s on o.order_id = s.sales_id where o.order_date < :end"
    )
    assert select.inputs == {"silver.erp_sales": SAME, "silver.orders": UP_TO}


def test_the_tables_of_this_project_read_as_far_as_they_must() -> None:
    inputs = {name: dict(catalog().inputs(name)) for name in catalog().specs}
    assert inputs["bronze.orders"] == {}
    assert inputs["silver.orders"] == {"bronze.orders": SAME}
    assert inputs["gold.dim_date"] == {}
    assert inputs["gold.dim_customer"] == {"silver.customers": UP_TO, "silver.crm_customers": UP_TO}
    assert inputs["gold.fact_orders"] == {
        "silver.orders": SAME, "gold.dim_customer": UP_TO, "gold.dim_product": UP_TO
    }  # fmt: skip
    # No table waits for later months: months could not be built in order.
    assert not [(t, i) for t, reads in inputs.items() for i, r in reads.items() if r is ALL]


# ---- as PostgreSQL runs it


def test_the_window_is_written_out(parse: Parse) -> None:
    select = parse(
        "select order_id as n, order_date as day from silver.orders "
        "where order_date >= :start and order_date < :end"
    )
    text = render(select, NUMBERS, SPECS, JANUARY, FEBRUARY)
    assert "order_date >= CAST('2025-01-01' AS DATE)" in text
    assert "order_date < CAST('2025-02-01' AS DATE)" in text
    assert ":" not in text.replace("::", "")


def test_a_word_that_is_no_window_is_refused(parse: Parse) -> None:
    with pytest.raises(ContractError, match=r"sql/gold/numbers\.sql uses :stop") as refused:
        parse("select order_id as n, order_date as day from silver.orders where order_date < :stop")
    assert "Use :start and :end" in str(refused.value)


def test_literals_arrive_as_they_are(parse: Parse, pool: Engine) -> None:
    select = parse(
        "select cast(length('it''s 100% :start {} %s \\') as bigint) as n, :start as day -- 50%"
    )
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL(render(select, NUMBERS, SPECS, JANUARY, FEBRUARY)))
        assert cursor.fetchall() == [(len("it's 100% :start {} %s \\"), JANUARY)]


def test_landed_text_is_typed_and_its_failed_casts_told(parse: Parse, pool: Engine) -> None:
    columns = ["parcel_id", "sent_on", "note", "weight", "_delivery_id", "_line", "month"]
    landed = [
        ("1", "2025-01-05", " kept ", "1.5"),
        ("x", "2025-02-30", "n/a", "2"),
        ("3", None, " NULL", " "),
        ("NULL", "N/A", "nullable", "12345.678"),
    ]
    text = render(parse(PARCELS_SELECT, PARCELS), PARCELS, SPECS, JANUARY, FEBRUARY)
    with transaction(pool) as connection, connection.cursor() as cursor:
        ensure_tables(connection, [LANDED])
        cursor.execute("create table months.x partition of bronze.parcels default")
        cursor.executemany(
            f"insert into bronze.parcels ({', '.join(columns)}) values (%s, %s, %s, %s, 1, %s, %s)",
            [(*row, line, JANUARY) for line, row in enumerate(landed, start=2)],
        )
        cursor.execute(sql.SQL(text))
        assert [c.name for c in cursor.description] == [*columns[:-1], FAILED_CASTS]
        rows = {row[-2]: (*row[:4], row[-1]) for row in cursor.fetchall()}
    assert rows == {
        2: (1, date(2025, 1, 5), "kept", 1500, None),
        # The text as it was delivered; a blank one is no failed cast.
        3: (None, None, None, 2000, "parcel_id\x1fx\x1esent_on\x1f2025-02-30"),
        4: (3, None, None, None, None),
        # Only the contract's columns take these words for no value.
        5: (None, None, "nullable", None,
            "parcel_id\x1fNULL\x1esent_on\x1fN/A\x1eweight\x1f12345.678"),
    }  # fmt: skip


def test_facts_read_the_rows_of_a_dimension_and_not_its_view() -> None:
    # The view computes `valid_to` over all versions before any month is left out.
    tables = catalog()
    name = "gold.fact_orders"
    text = render(tables.selects[name], tables.specs[name], tables.specs, JANUARY, FEBRUARY)
    assert "gold.dim_customer_stored AS dim_customer" in text


# ---- what must hold of each SELECT there is


@pytest.mark.parametrize("name", SELECTS)
def test_columns_are_the_contracts(name: str) -> None:
    assert catalog().selects[name].outputs == tuple(c.name for c in catalog().specs[name].stored)


@pytest.mark.parametrize("name", SELECTS)
def test_spark_could_run_it(name: str) -> None:
    text = transpile_to_spark(catalog().selects[name])
    (parsed,) = sqlglot.parse(text, read="spark")
    assert parsed is not None
    assert tuple(parsed.named_selects) == catalog().selects[name].outputs  # type: ignore[attr-defined]


def test_what_spark_lacks_is_refused(parse: Parse) -> None:
    select = parse("select order_id as n, order_date as day from silver.orders for update")
    with pytest.raises(sqlglot.UnsupportedError):
        transpile_to_spark(select)


@pytest.mark.parametrize(
    ("column", "origins"),
    [
        ("silver.orders.status", {"bronze.orders.status"}),
        ("silver.erp_sales.product_code", {"bronze.erp_sales.product_id"}),
        ("silver.customers.is_phone_valid", {"bronze.customers.phone"}),
        (
            "gold.dim_customer.email",
            {"silver.customers.email", "silver.crm_customers.email"},
        ),
        (
            "gold.dim_product.first_seen_on",
            {"silver.orders.order_date", "silver.erp_sales.sale_date"},
        ),
        ("gold.fact_orders.customer_key", {"gold.dim_customer.customer_key"}),
        ("gold.fact_orders.total_amount", {"silver.orders.total_amount"}),
        (
            "gold.agg_daily_sales.revenue",
            {"gold.fact_orders.status", "gold.fact_orders.total_amount"},
        ),
        ("gold.dim_date.is_weekend", set()),
    ],
)
def test_where_a_column_comes_from(column: str, origins: set[str]) -> None:
    name, _, output = column.rpartition(".")
    found = column_lineage(catalog().selects[name], catalog().specs)[output]
    assert {f"{o.table}.{o.column}" for o in found} == origins


@pytest.mark.parametrize(
    "looked_into",
    [
        "left(phone, 3)",
        "phone || '1'",
        "upper(phone)",
        "length(phone)",
        "phone > '1'",
        "max(phone)",
    ],
)
def test_an_encrypted_value_is_not_looked_into(looked_into: str, tmp_path: Path) -> None:
    specs = catalog().specs
    path = tmp_path / "customers.sql"
    text = catalog().selects["silver.customers"].text
    path.write_text(
        text.replace("    zip,\n    try_cast(dob", f"    {looked_into} as zip,\n    try_cast(dob")
    )
    with pytest.raises(ContractError, match="looks into phone, which is encrypted"):
        parse_select(path, specs["silver.customers"], specs)


def test_an_encrypted_value_is_followed_under_another_name(tmp_path: Path) -> None:
    specs = catalog().specs
    path = tmp_path / "customers.sql"
    text = catalog().selects["silver.customers"].text
    renamed = (
        text.replace("from phone), '') as phone", "from phone), '') as p")
        .replace("try_phone(phone)", "try_phone(p)")
        .replace("case when phone is not null", "case when p is not null")
    )
    path.write_text(renamed)
    select = parse_select(path, specs["silver.customers"], specs)
    text = render(select, specs["silver.customers"], specs, date(2025, 1, 1), date(2025, 2, 1))
    assert text.lower().count("meta.well_sealed(p)") == 2
    assert "try_phone" not in text.lower()
