"""Contract of `gold.agg_monthly_sales`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, month_column


class AggMonthlySales(Contract):
    """One month with orders or invoiced sales: booked, revenue and invoiced.

    Revenue is what COMPLETED orders amount to; orders, units and buyers count every state. A buyer
    is counted once in the month, so the days' buyers do not add up to it. Known flaw: an order may
    be invoiced in another month than the one it was booked in.
    """

    month: date = month_column("First day of the month", is_key=True)
    orders: int = column("Orders of any state", ge=0)
    units: int = column("Units ordered, of any state", ge=0)
    buyers: int = column("Different customers who ordered, in any state", ge=0)
    booked_amount: Decimal = column("Total of all orders, cancelled ones included", ge=0)
    revenue: Decimal = column("Total of COMPLETED orders", ge=0)
    cancelled_amount: Decimal = column("Total of CANCELLED orders", ge=0)
    invoiced_amount: Decimal = column("Total of invoiced sales", ge=0)
    invoices: int = column("Invoiced sales", ge=0)

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
        sums_from = {
            "booked_amount": "silver.orders.total_amount",
            "invoiced_amount": "silver.erp_sales.sale_amount",
        }
