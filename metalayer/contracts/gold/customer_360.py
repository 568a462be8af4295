"""Contract of `gold.customer_360`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, key, month_column

SEGMENTS = ("Prospect", "Champion", "Loyal", "New", "At risk", "Dormant", "Active")


class Customer360(Contract):
    """One customer and month in which something of theirs happened, as of that month's end.

    Something is a new version of the customer (being deleted is one), an order or an invoiced sale;
    nobody is repeated for months without news, so the newest row is the customer today
    (`gold.customer_360_current`).
    Whoever ordered without being known to the CRM is here too, with no profile and key 0.
    Known flaw: as nobody is repeated, recency, scores and segment of the newest row are as of its
    month's end, not of today.
    """

    customer_id: int = key("Customer number, as the facts or the CRM give it")
    month: date = month_column("First day of the month", is_key=True)
    customer_key: int = column(
        "Version of the customer at the month's end, 0 if unknown",
        references="gold.dim_customer.customer_key",
    )
    customer_name: str = column("Name of that version", nullable=True, pii="name")
    email: str = column("E-mail address of that version", nullable=True, pii="email")
    region: str = column("Sales region of that version", nullable=True, free_text=True)
    city: str = column("City of that version", nullable=True, pii="address")
    state: str = column("State of that version", nullable=True, free_text=True)
    is_deleted: bool = column("Whether the CRM's snapshot no longer listed the customer by then")
    first_order_on: date = column("Day of the first order not cancelled", nullable=True)
    last_order_on: date = column("Day of the last order not cancelled", nullable=True)
    orders: int = column("Orders ever, cancelled ones left out", ge=0)
    lifetime_value: Decimal = column("Total of COMPLETED orders ever", ge=0)
    orders_in_month: int = column("Orders of the month, of any state", ge=0)
    invoiced_in_month: Decimal = column("Amount invoiced in the month", ge=0)
    recency_days: int = column(
        "Days from the last order to the month's last day", nullable=True, ge=0
    )
    recency_score: int = column("5: ordered within 30 days; 1: over 180 days or never", ge=1, le=5)
    frequency_score: int = column("5: twenty orders and more; 1: one or none", ge=1, le=5)
    monetary_score: int = column("5: lifetime value of 10,000 and more; 1: under 100", ge=1, le=5)
    segment: str = column("What the three scores make of the customer", isin=SEGMENTS)

    class Table:
        owner = "team:customer-data"
        readers = ("analyst", "bi", "engineer", "steward")
        purpose = "To see at one glance what a customer bought, and how they are doing"
        retention_months = 120
        rows_follow = "customer_id"
        views = {
            "customer_360_current": """
                select the_row.*
                from gold.customer_360 as the_row
                inner join (
                    select customer_id, max(month) as month
                    from gold.customer_360
                    group by customer_id
                ) as newest
                    on the_row.customer_id = newest.customer_id and the_row.month = newest.month
            """,
        }
