"""Contract of `silver.orders`."""

from datetime import date
from decimal import Decimal

import polars as pl

from metalayer.contracts.contract import Contract, Due, column, key, month_column, row_rule
from metalayer.contracts.silver import MOST_MONEY, MOST_UNITS, NO_VALUE

ORDER_STATES = ("PENDING", "SHIPPED", "COMPLETED", "CANCELLED")


class Orders(Contract):
    """One row per order, as last delivered. Amounts are in the ERP's booking currency.

    Known flaws: an order may name a customer the CRM never delivered, and a product code may be
    missing or malformed; such orders are kept, and count in every total.
    """

    order_id: int = key("Order number given by the ERP")
    customer_id: int = column(
        "Customer who placed the order", references="silver.customers.customer_id"
    )
    product_code: str = column("Product ordered, e.g. P00226", nullable=True, null_tokens=NO_VALUE)
    order_date: date = month_column("Day the order was placed")
    quantity: int = column("Units ordered", gt=0, le=MOST_UNITS)
    unit_price: Decimal = column("Price of one unit", scale=4, ge=0, le=MOST_MONEY)
    total_amount: Decimal = column("Order total, quantity times unit price", ge=0, le=MOST_MONEY)
    status: str = column(
        "State of the order; PAID, CLOSED and COMPLETE are read as COMPLETED", isin=ORDER_STATES
    )

    @row_rule(
        "total_amount must be quantity times unit_price, to a cent",
        doubt="abs(total_amount - quantity * unit_price) > 0.01",
    )
    def adds_up(cls) -> pl.Expr:  # noqa: N805 - called with the contract's class
        """Compare exactly: the widest quantity times price needs 37 of a decimal's 38 digits."""
        gap = pl.col("total_amount") - pl.col("quantity") * pl.col("unit_price")
        return gap.abs() <= pl.lit(Decimal("0.01"))

    class Table:
        owner = "team:sales-data"
        readers = ("engineer", "steward")
        purpose = "To deliver orders, and to account for them"
        retention_months = 120
        due = Due(day=3, hour=6)

    class Source:
        files = "erp/orders*.csv"
        kind = "delta"
