"""Contract of `gold.dim_customer`."""

from datetime import date, datetime

from metalayer.contracts.contract import Contract, column, key, month_column

SOURCES = ("customers", "crm_customers")
# The Unknown member is apart, or a customer numbered 0 would end it.
NEXT_VERSION = (
    "lead(valid_from) over (partition by customer_id, customer_key = 0 order by valid_from)"
)


class DimCustomer(Contract):
    """One version of a customer (type 2): what CRM changes and snapshots said from `valid_from` on.

    A version begins when any attribute differs from what was known before. The change feed
    (`silver.customers`) wins over the snapshot (`silver.crm_customers`); the sources and
    disagreements are kept beside the values. Whoever is missing from the snapshot that follows one
    they were in is deleted: a version with `is_deleted` and the last known attributes begins, and
    is the current one until a snapshot lists the customer again. Member 0 stands for every customer
    that neither source delivered. Known flaws: what the snapshot says, or no longer says, counts
    from the first instant of its month; who never was in a snapshot is never deleted.
    """

    customer_key: int = key("Surrogate key of the version; 0 is the Unknown member")
    customer_id: int = column("Customer number given by the CRM")
    valid_from: datetime = month_column("Instant from which the version is true, UTC")
    customer_name: str = column("First and last name", nullable=True, pii="name")
    email: str = column("E-mail address in lower case", nullable=True, pii="email")
    phone: str = column("Phone number as E.164", nullable=True, pii="phone", encrypted=True)
    city: str = column("City of the postal address", nullable=True, pii="address")
    state: str = column("State of the postal address", nullable=True, free_text=True)
    zip: str = column("Postal code", nullable=True, pii="address")
    dob: date = column("Day of birth", nullable=True, pii="birth_date", encrypted=True)
    created_at: datetime = column("When the CRM first knew the customer, UTC", nullable=True)
    region: str = column("Sales region, from the snapshot", nullable=True, free_text=True)
    name_source: str = column(
        "Where the name was taken from",
        nullable=True,
        isin=SOURCES,
        declassified="names a source, not a person",
    )
    email_source: str = column(
        "Where the e-mail was taken from",
        nullable=True,
        isin=SOURCES,
        declassified="names a source, not an address",
    )
    disagreements: str = column(
        "Attributes on which the sources have different values, comma-separated",
        nullable=True,
        isin=("email", "name", "email,name"),
        declassified="names attributes, not their values",
    )
    is_deleted: bool = column(
        "Whether the newest snapshot at that time no longer listed the customer"
    )
    valid_to: datetime = column(
        "Instant at which the next version begins, UTC; none for the open version",
        nullable=True,
        derived=NEXT_VERSION,
    )
    is_current: bool = column(
        "Whether no later version exists",
        derived=f"{NEXT_VERSION} is null",
    )

    class Table:
        owner = "team:customer-data"
        readers = ("analyst", "bi", "engineer", "steward")
        purpose = "To tell who a customer was on the day of an order"
        unknown_member = {
            "customer_key": 0,
            "customer_id": 0,
            "valid_from": datetime(1900, 1, 1),  # noqa: DTZ001 - naive UTC, as stored
            "customer_name": "Unknown",
            "is_deleted": False,
        }
