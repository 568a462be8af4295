"""Contract of `gold.fact_orders`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, key, month_column


class FactOrders(Contract):
    """One order, with the keys of the customer version and product it belongs to.

    The customer version is the one that was true at the end of the order's day. An order whose
    customer or product is not known points at member 0; none is left out, whatever its state.
    """

    order_id: int = key("Order number given by the ERP")
    order_date: date = month_column("Day the order was placed")
    date_key: int = column("The day as the number yyyymmdd", references="gold.dim_date.date_key")
    customer_key: int = column(
        "Version of the customer on that day, 0 if unknown",
        references="gold.dim_customer.customer_key",
    )
    product_key: int = column(
        "Product ordered, 0 if unknown", references="gold.dim_product.product_key"
    )
    customer_id: int = column("Customer number as the order names it, known or not")
    status: str = column("PENDING, SHIPPED, COMPLETED or CANCELLED")
    quantity: int = column("Units ordered", gt=0)
    unit_price: Decimal = column("Price of one unit", scale=4, ge=0)
    total_amount: Decimal = column("Order total", ge=0)

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
        purpose = "To count what was ordered, by whom and when"
        rows_from = "silver.orders"
        sums_from = {"total_amount": "silver.orders.total_amount"}
