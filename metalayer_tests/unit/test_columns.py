"""Which columns a SELECT needs: through stars, unions and subqueries, in conditions and output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlglot

from metalayer.catalog import catalog
from metalayer.errors import ContractError
from metalayer.lineage.columns import Origin, columns_read, undeclared_reads


def read(query: str) -> set[str]:
    tree = sqlglot.parse_one(query, read="postgres")
    return {f"{o.table}.{o.column}" for o in columns_read(tree, catalog().specs)}


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ("select status from silver.orders", {"silver.orders.status"}),
        (
            "select order_id from silver.orders where status = 'X' order by quantity",
            {"silver.orders.order_id", "silver.orders.status", "silver.orders.quantity"},
        ),
        (
            "with o as (select * from silver.orders where quantity > 1) select status from o",
            {"silver.orders.quantity", "silver.orders.status"},
        ),
        (
            "with a as (select * from silver.orders), b as (select * from a) "
            "select b.status as s from b as b",
            {"silver.orders.status"},
        ),
        ("with o as (select * from silver.orders) select count(*) as n from o", set()),
        (
            "with o as (select order_id, status from silver.orders) select order_id from o",
            {"silver.orders.order_id", "silver.orders.status"},
        ),
        (
            "with u as (select customer_id, status from silver.orders union all "
            "select customer_id, city from silver.customers) select status from u",
            {
                "silver.orders.customer_id",
                "silver.orders.status",
                "silver.customers.customer_id",
                "silver.customers.city",
            },
        ),
        (
            "with u as (select * from gold.agg_daily_sales union all "
            "select * from gold.agg_daily_sales) select revenue from u",
            {"gold.agg_daily_sales.revenue"},
        ),
        (
            "select o.order_id from silver.orders as o where exists ("
            "select 1 from silver.customers as c where c.customer_id = o.customer_id)",
            {
                "silver.orders.order_id",
                "silver.orders.customer_id",
                "silver.customers.customer_id",
            },
        ),
        (
            "select o.order_id from silver.orders as o "
            "inner join silver.customers as c using (customer_id)",
            {
                "silver.orders.order_id",
                "silver.orders.customer_id",
                "silver.customers.customer_id",
            },
        ),
        (
            "select row_number() over (partition by customer_id order by order_date) as n "
            "from silver.orders",
            {"silver.orders.customer_id", "silver.orders.order_date"},
        ),
    ],
)
def test_columns_that_are_needed(query: str, columns: set[str]) -> None:
    assert read(query) == columns


def test_readers_are_told_with_what_they_read_it_for() -> None:
    specs = dict(catalog().specs)
    orders = specs["gold.fact_orders"]
    specs["gold.fact_orders"] = replace(
        orders, columns=tuple(c for c in orders.columns if c.name != "status")
    )
    found = undeclared_reads(catalog().selects, specs, {"gold.fact_orders": {"status": "text"}})
    assert list(found) == [Origin("gold.fact_orders", "status")]
    told = {str(reader) for reader in found[Origin("gold.fact_orders", "status")]}
    assert "sql/gold/sales_reconciliation.sql (in a condition)" in told
    assert any(
        t.startswith("sql/gold/agg_daily_sales.sql (for gold.agg_daily_sales.") for t in told
    )


def test_a_column_that_is_nowhere_is_refused_with_the_file() -> None:
    select = catalog().selects["gold.agg_daily_sales"]
    tree = select.tree.copy()
    next(c for c in tree.find_all(sqlglot.exp.Column) if c.name == "status").set(
        "this", sqlglot.exp.to_identifier("colour")
    )
    with pytest.raises(ContractError, match=r"sql/gold/agg_daily_sales.sql .*colour"):
        undeclared_reads({select.table: replace(select, tree=tree)}, catalog().specs, {})
