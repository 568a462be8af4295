"""Contract of `gold.business_kpis`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, key, month_column

KPIS = (
    "revenue",
    "booked_amount",
    "invoiced_amount",
    "orders",
    "units",
    "buyers",
    "average_order_value",
    "cancellation_rate",
    "new_customers",
    "active_customers",
    "repeat_rate",
)


class BusinessKpis(Contract):
    """One month and KPI. A month in which anything happened has all eleven, zeros included.

    average_order_value is revenue per COMPLETED order; cancellation_rate the share of orders that
    are CANCELLED; new_customers those first known in the month; active_customers those who ordered
    in it; repeat_rate the share of its buyers who had ordered in an earlier month, cancelled orders
    left out on both sides.
    """

    month: date = month_column("First day of the month", is_key=True)
    kpi: str = key("Name of the KPI", isin=KPIS)
    value: Decimal = column(
        "Value in its unit; 0 where there is nothing to divide by", precision=20, scale=4
    )
    unit: str = column("What the value counts", isin=("currency", "count", "ratio"))

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
