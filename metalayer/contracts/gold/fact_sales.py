"""Contract of `gold.fact_sales`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, key, month_column


class FactSales(Contract):
    """One invoiced sale, with the keys of the customer version and product it belongs to.

    The customer version is the one that was true at the end of the invoice's day. A sale whose
    customer or product is not known points at member 0; none is left out.
    """

    sales_id: int = key("Sale number given by the ERP")
    sale_date: date = month_column("Day of the invoice")
    date_key: int = column("The day as the number yyyymmdd", references="gold.dim_date.date_key")
    customer_key: int = column(
        "Version of the customer on that day, 0 if unknown",
        references="gold.dim_customer.customer_key",
    )
    product_key: int = column(
        "Product invoiced, 0 if unknown", references="gold.dim_product.product_key"
    )
    customer_id: int = column("Customer number as the sale names it, known or not")
    quantity: int = column("Units invoiced", gt=0)
    sale_amount: Decimal = column("Amount invoiced", ge=0)

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
        purpose = "To count what was invoiced, to whom and when"
        rows_from = "silver.erp_sales"
        sums_from = {"sale_amount": "silver.erp_sales.sale_amount"}
