"""Contract of `silver.erp_sales`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, Due, column, key, month_column
from metalayer.contracts.silver import MOST_MONEY, MOST_UNITS, NO_VALUE


class ErpSales(Contract):
    """One row per invoiced sale, as last delivered. Amounts are in the ERP's booking currency.

    Known flaws: a sale names its product by number where orders use a code, and does not say which
    order it belongs to; the two can only be compared by product and month.
    """

    sales_id: int = key("Sale number given by the ERP")
    product_id: int = column("Product number, 226 for P00226", nullable=True, null_tokens=NO_VALUE)
    product_code: str = column(
        "Product code made from the number; none where the number has no code",
        nullable=True,
        landed=False,
        str_matches=r"^P[0-9]{5}$",
    )
    customer_id: int = column("Customer who was invoiced", identifies="customer")
    quantity: int = column("Units invoiced", gt=0, le=MOST_UNITS)
    sale_date: date = month_column("Day of the invoice")
    sale_amount: Decimal = column("Amount invoiced", ge=0, le=MOST_MONEY)

    class Table:
        owner = "team:sales-data"
        readers = ("engineer", "steward")
        purpose = "To bill what was sold, and to account for it"
        retention_months = 120
        due = Due(day=3, hour=6)

    class Source:
        files = "erp/erp_sales*.csv"
        kind = "delta"
