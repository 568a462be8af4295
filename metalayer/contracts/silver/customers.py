"""Contract of `silver.customers`."""

from datetime import date, datetime

from metalayer.contracts.contract import Contract, Due, column, key, month_column
from metalayer.contracts.silver import NO_VALUE


class Customers(Contract):
    """One row per change of a customer, as the CRM delivered it.

    The row holds the whole customer as of `updated_at`, not only what changed. Known flaws: the CRM
    checks neither phone numbers nor e-mails; a phone that cannot be normalised is left out and
    flagged in `is_phone_valid`. Customers known only to the monthly snapshot (`crm_customers`) are
    missing here.
    """

    customer_id: int = key("Customer number given by the CRM", identifies="customer")
    first_name: str = column("Given name, trimmed", nullable=True, pii="name", null_tokens=NO_VALUE)
    last_name: str = column("Family name, trimmed", nullable=True, pii="name", null_tokens=NO_VALUE)
    email: str = column(
        "E-mail address in lower case", nullable=True, pii="email", null_tokens=NO_VALUE
    )
    phone: str = column(
        "Phone number as E.164; ten digits are taken for North American",
        nullable=True,
        pii="phone",
        null_tokens=NO_VALUE,
        encrypted=True,
    )
    is_phone_valid: bool = column(
        "Whether the delivered phone could be normalised; none where no phone was delivered",
        nullable=True,
        landed=False,
        declassified="tells only whether a phone number was well formed",
    )
    city: str = column(
        "City of the postal address", nullable=True, pii="address", null_tokens=NO_VALUE
    )
    state: str = column(
        "State of the postal address, in upper case",
        nullable=True,
        null_tokens=NO_VALUE,
        free_text=True,
    )
    zip: str = column("Postal code", nullable=True, pii="address", null_tokens=NO_VALUE)
    dob: date = column(
        "Day of birth", nullable=True, pii="birth_date", null_tokens=NO_VALUE, encrypted=True
    )
    created_at: datetime = column(
        "When the CRM first knew the customer, UTC", nullable=True, null_tokens=NO_VALUE
    )
    updated_at: datetime = month_column("When the change was made, UTC", is_key=True)

    class Table:
        owner = "team:customer-data"
        readers = ("engineer", "steward")
        purpose = "To deliver orders, and to answer who ordered them"
        due = Due(day=3, hour=6)

    class Source:
        files = "crm/customers*.csv"
        kind = "delta"
