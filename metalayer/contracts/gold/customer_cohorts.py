"""Contract of `gold.customer_cohorts`."""

from datetime import date
from decimal import Decimal

from metalayer.contracts.contract import Contract, column, key, month_column


class CustomerCohorts(Contract):
    """One month of first orders and month of activity: how many came back, and what they brought.

    A customer's cohort is the month of their first order that was not cancelled; cancelled orders
    count nowhere. Known flaw: history begins with the first landed month, so the earliest
    cohorts hold customers who in truth began before.
    """

    cohort_month: date = key("First day of the month in which the customers first ordered")
    activity_month: date = month_column("First day of the month looked at", is_key=True)
    months_since_first: int = column("Months from cohort_month to activity_month", ge=0)
    buyers: int = column("Different customers of the cohort who ordered in the month", gt=0)
    orders: int = column("Their orders in the month", gt=0)
    revenue: Decimal = column("Total of those orders that are COMPLETED", ge=0)

    class Table:
        owner = "team:customer-data"
        readers = ("analyst", "bi", "engineer", "steward")
