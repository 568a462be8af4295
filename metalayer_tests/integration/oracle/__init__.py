"""An oracle: every silver and gold table recomputed from the raw files, apart from the platform.

Belongs here: a second, slow and plain implementation of what the tables mean, to be compared cell
by cell with what the platform built.
Does not belong here: anything imported from `metalayer`, or the tests that run the platform.

    oracle = compute([Landed(path, "erp/orders"), ...], first_month=..., last_month=...)
    assert compare(oracle.table("gold.fact_orders"), built, KEYS["gold.fact_orders"]) is None

The order of the landed files is the order of registration. `dim_customer` and `dim_product` leave
out the Unknown member (key 0). Silver rows carry `_line`, the physical line on which the record
begins in its file (the header of a plain file is line 1), and no `_delivery_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import polars as pl

from metalayer_tests.integration.oracle import gold, settling, silver
from metalayer_tests.integration.oracle.comparing import compare
from metalayer_tests.integration.oracle.settling import SOURCES, Account, Delivery, Landed

__all__ = ["KEYS", "Account", "Delivery", "Landed", "Oracle", "compare", "compute"]

KEYS: Mapping[str, tuple[str, ...]] = {
    **{name: table.key for name, table in silver.TABLES.items()},
    "gold.dim_customer": ("customer_key",),
    "gold.dim_product": ("product_key",),
    "gold.dim_date": ("date_key",),
    "gold.fact_orders": ("order_id",),
    "gold.fact_sales": ("sales_id",),
    "gold.agg_daily_sales": ("order_date",),
    "gold.agg_monthly_sales": ("month",),
    "gold.customer_360": ("customer_id", "month"),
    "gold.customer_360_current": ("customer_id",),
    "gold.customer_cohorts": ("cohort_month", "activity_month"),
    "gold.sales_reconciliation": ("month", "product_code"),
    "gold.business_kpis": ("month", "kpi"),
}


@dataclass(frozen=True)
class Oracle:
    """What the tables hold and where every row went.

    `accounts` is per source; `deliveries` are all landed files in order, with status, rows and
    rejects; `quarantined` is per silver table, one row a quarantined row: file, line, month, fault.
    """

    tables: Mapping[str, pl.DataFrame]
    accounts: Mapping[str, Account]
    deliveries: Sequence[Delivery]
    quarantined: Mapping[str, pl.DataFrame]

    def table(self, name: str) -> pl.DataFrame:
        """The rows of a table ("gold.fact_orders") by key, with stored and derived columns."""
        return self.tables[name].sort(list(KEYS[name]))

    @property
    def rows_read(self) -> dict[str, int]:
        """Per source, the records of all its files that load, rejected ones included."""
        return {source: account.read for source, account in self.accounts.items()}

    def rejected(self, source: str) -> pl.DataFrame:
        """The records of a source that landing rejected: file, line, rule."""
        return pl.DataFrame(
            [
                (delivery.path.name, line, rule)
                for delivery in self.deliveries
                if delivery.source == source
                for line, rule in delivery.rejects
            ],
            schema={"file": pl.String, "line": pl.Int64, "rule": pl.String},
            orient="row",
        )


def compute(landed: Sequence[Landed], *, first_month: date, last_month: date) -> Oracle:
    """Recompute everything from files.

    Rows of months outside first_month..last_month (both the first day of a month) are rejected.
    Raises ValueError for a source that does not exist.
    """
    if unknown := sorted({item.source for item in landed} - set(SOURCES)):
        raise ValueError(f"no such source: {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    accounts: dict[str, Account] = {}
    delivered: list[Delivery] = []
    tables: dict[str, pl.DataFrame] = {}
    quarantined: dict[str, pl.DataFrame] = {}
    for name, table in silver.TABLES.items():
        of_source = settling.deliveries(landed, table.source, first_month, last_month)
        rows = settling.latest(of_source, SOURCES[table.source])
        tables[name], faults = silver.build(table, rows)
        file_names = {delivery.number: delivery.path.name for delivery in of_source}
        quarantined[name] = faults.select(
            pl.col("delivery")
            .replace_strict(file_names, default=None, return_dtype=pl.String)
            .alias("file"),
            *("line", "month", "fault"),
        )
        accounts[table.source] = settling.account(of_source, len(rows), tables[name].height)
        delivered += of_source
    tables |= gold.build(tables, first_month, last_month)
    delivered.sort(key=lambda delivery: delivery.number)
    return Oracle(tables, accounts, delivered, quarantined)
