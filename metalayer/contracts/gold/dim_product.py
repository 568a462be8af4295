"""Contract of `gold.dim_product`."""

from datetime import date

from metalayer.contracts.contract import Contract, column, key, month_column


class DimProduct(Contract):
    """One product, as seen in orders and invoiced sales; no system delivers a product list.

    A product enters with its first order or sale, of any state. Codes that are not `P` and five
    digits are no products; their rows point at member 0. Known flaw: nothing is known of a product
    but its code.
    """

    product_key: int = key("Surrogate key of the product; 0 is the Unknown member")
    product_code: str = column(
        "Code used on orders, e.g. P00226", str_matches=r"^(P[0-9]{5}|UNKNOWN)$"
    )
    product_id: int = column("Number used on invoiced sales, 226 for P00226", ge=0)
    first_seen_on: date = month_column("Day of the earliest order or sale")

    class Table:
        owner = "team:sales-data"
        readers = ("analyst", "bi", "engineer", "steward")
        unknown_member = {
            "product_key": 0,
            "product_code": "UNKNOWN",
            "product_id": 0,
            "first_seen_on": date(1900, 1, 1),
        }
