"""Contract of `gold.agg_daily_sales`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, month_column


class AggDailySales(Contract):
    """One day with orders: how many, how much was booked, and how much of it is revenue.

    Revenue is what COMPLETED orders amount to; orders, units and buyers count every state. Known
    flaw: a day's revenue grows afterwards, as its orders are completed and delivered again.
    """

    order_date: date = month_column("Day the orders were placed", is_key=True)
    orders: int = column("Orders of any state", gt=0)
    units: int = column("Units ordered, of any state", gt=0)
    buyers: int = column("Different customers who ordered, in any state", gt=0)
    booked_amount: Decimal = column("Total of all orders, cancelled ones included", ge=0)
    revenue: Decimal = column("Total of COMPLETED orders", ge=0)
    cancelled_amount: Decimal = column("Total of CANCELLED orders", ge=0)

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
        sums_from = {"booked_amount": "silver.orders.total_amount"}
