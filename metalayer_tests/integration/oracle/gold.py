"""Every gold table as DuckDB SQL over whole silver tables: no windows, nothing to rebuild.

Belongs here: running the SELECTs of `selects/`, one file a table, in the order they feed each
other. They are written from the table of meanings alone.
Does not belong here: the Unknown members of `dim_customer` and `dim_product`. Facts point at them
by key 0, but the tables made here hold only what was delivered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import duckdb
import polars as pl

SELECTS = Path(__file__).parent / "selects"
IN_ORDER = (
    "dim_customer",
    "dim_product",
    "dim_date",
    "fact_orders",
    "fact_sales",
    "agg_daily_sales",
    "agg_monthly_sales",
    "customer_360",
    "customer_360_current",
    "customer_cohorts",
    "sales_reconciliation",
    "business_kpis",
)


def build(
    silver: Mapping[str, pl.DataFrame], first_month: date, last_month: date
) -> dict[str, pl.DataFrame]:
    """Every gold table from the four silver ones; `dim_date` spans first_month to last_month."""
    end = date(last_month.year + last_month.month // 12, last_month.month % 12 + 1, 1)
    return _compute(silver, IN_ORDER, {"first": first_month, "end": end})


def dim_customer(changes: pl.DataFrame, snapshots: pl.DataFrame) -> pl.DataFrame:
    """The versions of customers from `silver.customers` and `silver.crm_customers` alone."""
    silver = {"silver.customers": changes, "silver.crm_customers": snapshots}
    return _compute(silver, ("dim_customer",), {})["gold.dim_customer"]


def _compute(
    silver: Mapping[str, pl.DataFrame], names: Sequence[str], bounds: Mapping[str, date]
) -> dict[str, pl.DataFrame]:
    gold: dict[str, pl.DataFrame] = {}
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        connection.execute("create schema silver; create schema gold;")
        connection.execute((SELECTS / "macros.sql").read_text("utf-8"))
        for name, frame in silver.items():
            path = Path(folder) / f"{name}.parquet"
            frame.write_parquet(path)
            connection.execute(f"create table {name} as from read_parquet('{path}')")
        for name in names:
            select = (SELECTS / f"{name}.sql").read_text("utf-8")
            values = dict(bounds) if "$first" in select else None
            connection.execute(f"create table gold.{name} as {select}", values)
            path = Path(folder) / f"gold.{name}.parquet"
            connection.execute(f"copy gold.{name} to '{path}'")
            gold[f"gold.{name}"] = pl.read_parquet(path)
    return gold
