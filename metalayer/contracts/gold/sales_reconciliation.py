"""Contract of `gold.sales_reconciliation`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, key, month_column

EXPLANATIONS = (
    "not booked",
    "not invoiced",
    "match",
    "within tolerance",
    "units equal, price differs",
    "unexplained",
)


class SalesReconciliation(Contract):
    """One product and month: what was booked (orders) against what was invoiced (sales).

    Cancelled orders count as not booked. What has no known product is compared as one, UNKNOWN.
    Known flaw: an order invoiced in a later month differs in both.
    """

    month: date = month_column("First day of the month", is_key=True)
    product_code: str = key("Product, or UNKNOWN")
    booked_amount: Decimal = column("Total of the orders that are not cancelled", ge=0)
    booked_units: int = column("Units of the orders that are not cancelled", ge=0)
    invoiced_amount: Decimal = column("Total of the invoiced sales", ge=0)
    invoiced_units: int = column("Units of the invoiced sales", ge=0)
    difference: Decimal = column("Booked less invoiced amount")
    is_explained: bool = column("Whether the difference is none, small, or one of price only")
    explanation: str = column("The first explanation that holds", isin=EXPLANATIONS)

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
