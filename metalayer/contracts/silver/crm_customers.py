"""Contract of `silver.crm_customers`."""

from datetime import date

from metalayer.contracts.contract import Contract, Due, column, key, month_column
from metalayer.contracts.silver import NO_VALUE


class CrmCustomers(Contract):
    """One row per customer and month, from the newest snapshot delivered for that month.

    The snapshot is the CRM's account list and is delivered whole: who is missing from the next
    month that has one has been deleted there (see `gold.dim_customer`). Known flaws: it says
    nothing about when within the month an entry changed or went, and its regions are typed by hand;
    what is no known region is kept with its words capitalised.
    """

    customer_id: int = key("Customer number given by the CRM", identifies="customer")
    customer_name: str = column("Name, trimmed", nullable=True, pii="name", null_tokens=NO_VALUE)
    email: str = column(
        "E-mail address in lower case", nullable=True, pii="email", null_tokens=NO_VALUE
    )
    region: str = column(
        "Sales region written out: North, Midwest, Central, or what was typed instead",
        nullable=True,
        null_tokens=NO_VALUE,
        free_text=True,
    )
    month: date = month_column(
        "First day of the month the snapshot is of", is_key=True, landed=False
    )

    class Table:
        owner = "team:customer-data"
        readers = ("engineer", "steward")
        purpose = "To know whose account it is, and which region looks after it"
        due = Due(day=3, hour=6)

    class Source:
        files = "crm/crm_customers*.csv"
        kind = "snapshot"
