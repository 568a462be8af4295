"""From rows that count to typed silver rows, and the quarantined with their rule.

Belongs here: type, normalisation and rules of each silver column, one function a table.
Does not belong here: which row of a key counts (`settling.py`), anything across tables (`gold.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import polars as pl

from metalayer_tests.integration.oracle import grammar
from metalayer_tests.integration.oracle.grammar import Remembered, clean, clean_or_token
from metalayer_tests.integration.oracle.settling import SOURCES, Row

MONEY = pl.Decimal(18, 2)
PRICE = pl.Decimal(18, 4)
ORDER_STATES = frozenset({"COMPLETED", "PENDING", "SHIPPED", "CANCELLED"})
COMPLETED_TOO = frozenset({"PAID", "CLOSED", "COMPLETE"})
REGIONS = {
    "N": "North",
    "S": "South",
    "E": "East",
    "W": "West",
    "NE": "Northeast",
    "NW": "Northwest",
    "SE": "Southeast",
    "SW": "Southwest",
    "MW": "Midwest",
    **dict.fromkeys(("C", "CENTER", "CENTRE"), "Central"),
}
CENT = Decimal("0.01")


@dataclass
class Draft:
    """A silver table in the making: typed columns beside the rows they come from.

    `faults` says what is wrong with the row at a position.
    """

    source: str
    rows: Sequence[Row]
    columns: dict[str, pl.Series] = field(default_factory=dict)
    faults: dict[int, list[str]] = field(default_factory=dict)

    def texts(self, column: str) -> list[str]:
        """A column as landed."""
        place = SOURCES[self.source].columns.index(column)
        return [row.texts[place] for row in self.rows]

    def blame(self, at: int, fault: str) -> None:
        """Note a fault of the row at a position: it goes to quarantine."""
        self.faults.setdefault(at, []).append(fault)

    def typed(
        self,
        column: str,
        read: Callable[[str], Any],
        dtype: pl.DataType | type[pl.DataType],
        *,
        nullable: bool = False,
        tokens: bool = False,
        rule: tuple[str, Callable[[Any], bool]] | None = None,
    ) -> list[Any]:
        """Add a column of values.

        A text that is there but can't be read, a NULL out of place or a broken rule is a fault.
        """
        cleaned = Remembered(clean_or_token if tokens else clean)
        values = Remembered(read)
        result: list[Any] = []
        for at, delivered in enumerate(self.texts(column)):
            text = cleaned[delivered]
            value = None if text is None else values[text]
            if text is not None and value is None:
                self.blame(at, f"{column}: not a {_said(dtype)}")
            elif value is None and not nullable:
                self.blame(at, f"{column}: not null")
            elif value is not None and rule is not None and not rule[1](value):
                self.blame(at, f"{column}: {rule[0]}")
            result.append(value)
        self.columns[column] = pl.Series(column, result, dtype=dtype)
        return result

    def text(self, column: str, normalise: Callable[[str], str] = str) -> None:
        """Add a nullable column of cleaned text."""
        self.typed(column, normalise, pl.String, nullable=True, tokens=True)

    def finished(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(published rows, quarantined rows as delivery, line, month, fault)."""
        self.columns["_line"] = pl.Series("_line", [row.line for row in self.rows], dtype=pl.Int64)
        whole = pl.DataFrame(list(self.columns.values()))
        good = pl.Series([at not in self.faults for at in range(len(self.rows))], dtype=pl.Boolean)
        quarantined = pl.DataFrame(
            [
                (self.rows[at].delivery, self.rows[at].line, self.rows[at].month, "; ".join(faults))
                for at, faults in sorted(self.faults.items())
            ],
            schema={
                "delivery": pl.Int64,
                "line": pl.Int64,
                "month": pl.Date,
                "fault": pl.String,
            },
            orient="row",
        )
        return whole.filter(good), quarantined


def _said(dtype: pl.DataType | type[pl.DataType]) -> str:
    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision},{dtype.scale})"
    return {pl.Int64: "bigint", pl.Date: "date"}.get(dtype.base_type(), "timestamp")


def upper(text: str) -> str:
    """Upper case, one character for one: a database does not turn one letter into two."""
    if text.isascii():
        return text.upper()
    return "".join(big if len(big := letter.upper()) == 1 else letter for letter in text)


def lower(text: str) -> str:
    """Lower case, one character for one."""
    if text.isascii():
        return text.lower()
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)


def initcap(text: str) -> str:
    """Each run of letters and digits: the first in upper case, the others in lower case."""
    return re.sub(
        r"[^\W_]+", lambda word: upper(word[0][0]) + lower(word[0][1:]), text, flags=re.UNICODE
    )


def region(text: str) -> str:
    """The name of a region from its letter or name."""
    return REGIONS.get(upper(text)) or initcap(text)


def phone(text: str) -> str | None:
    """The E.164 number of a delivered phone; `None` where it can't be told.

    Ten digits without a country are a North American number.
    """
    kept = ("+" if text.startswith("+") else "") + re.sub(r"[^0-9]", "", text)
    if re.fullmatch(r"[0-9]{10}", kept):
        return "+1" + kept
    if re.fullmatch(r"1[0-9]{10}", kept):
        return "+" + kept
    if re.fullmatch(r"\+[0-9]{8,15}", kept):
        return kept
    if re.fullmatch(r"00[0-9]{8,15}", kept):
        return "+" + kept[2:]
    return None


def status(text: str) -> str:
    """The state of an order in upper case, every way to say done as COMPLETED."""
    state = upper(text)
    return "COMPLETED" if state in COMPLETED_TOO else state


def _customers(draft: Draft) -> None:
    draft.typed("customer_id", grammar.bigint, pl.Int64)
    draft.text("first_name")
    draft.text("last_name")
    draft.text("email", lower)
    delivered = [clean_or_token(text) for text in draft.texts("phone")]
    phones = [None if text is None else phone(text) for text in delivered]
    draft.columns["phone"] = pl.Series("phone", phones, dtype=pl.String)
    draft.columns["is_phone_valid"] = pl.Series(
        "is_phone_valid",
        [
            None if text is None else number is not None
            for text, number in zip(delivered, phones, strict=True)
        ],
        dtype=pl.Boolean,
    )
    draft.text("city")
    draft.text("state", upper)
    draft.text("zip")
    draft.typed("dob", grammar.day, pl.Date, nullable=True, tokens=True)
    draft.typed("created_at", grammar.instant, pl.Datetime("us"), nullable=True, tokens=True)
    draft.typed("updated_at", grammar.instant, pl.Datetime("us"))


def _crm_customers(draft: Draft) -> None:
    draft.typed("customer_id", grammar.bigint, pl.Int64)
    draft.text("customer_name")
    draft.text("email", lower)
    draft.text("region", region)
    draft.columns["month"] = pl.Series("month", [row.month for row in draft.rows], dtype=pl.Date)


def _orders(draft: Draft) -> None:
    not_negative = ("0 to 10**12", lambda value: 0 <= value <= 10**12)
    draft.typed("order_id", grammar.bigint, pl.Int64)
    draft.typed("customer_id", grammar.bigint, pl.Int64)
    draft.text("product_code", upper)
    draft.typed("order_date", grammar.day, pl.Date)
    quantities = draft.typed(
        "quantity", grammar.bigint, pl.Int64, rule=("1 to 10**9", lambda value: 0 < value <= 10**9)
    )
    prices = draft.typed("unit_price", grammar.numeric(18, 4), PRICE, rule=not_negative)
    totals = draft.typed("total_amount", grammar.numeric(18, 2), MONEY, rule=not_negative)
    draft.typed("status", status, pl.String, rule=("isin", lambda value: value in ORDER_STATES))
    for at, (quantity, price, total) in enumerate(zip(quantities, prices, totals, strict=True)):
        if None not in (quantity, price, total) and abs(total - quantity * price) > CENT:
            draft.blame(at, "total_amount: not quantity * unit_price")


def _erp_sales(draft: Draft) -> None:
    draft.typed("sales_id", grammar.bigint, pl.Int64)
    products = draft.typed("product_id", grammar.bigint, pl.Int64, nullable=True, tokens=True)
    codes = [
        f"P{product:05d}" if product is not None and 1 <= product <= 99999 else None
        for product in products
    ]
    draft.columns["product_code"] = pl.Series("product_code", codes, dtype=pl.String)
    draft.typed("customer_id", grammar.bigint, pl.Int64)
    draft.typed(
        "quantity", grammar.bigint, pl.Int64, rule=("1 to 10**9", lambda value: 0 < value <= 10**9)
    )
    draft.typed("sale_date", grammar.day, pl.Date)
    draft.typed(
        "sale_amount",
        grammar.numeric(18, 2),
        MONEY,
        rule=("0 to 10**12", lambda value: 0 <= value <= 10**12),
    )


@dataclass(frozen=True)
class Table:
    """A silver table: the source it is fed from and how its columns are drafted."""

    source: str
    key: tuple[str, ...]
    fill: Callable[[Draft], None]


TABLES: Mapping[str, Table] = {
    "silver.customers": Table("crm/customers", ("customer_id", "updated_at"), _customers),
    "silver.crm_customers": Table("crm/crm_customers", ("customer_id", "month"), _crm_customers),
    "silver.orders": Table("erp/orders", ("order_id",), _orders),
    "silver.erp_sales": Table("erp/erp_sales", ("sales_id",), _erp_sales),
}


def build(table: Table, rows: Sequence[Row]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(published, quarantined) of one silver table."""
    draft = Draft(table.source, rows)
    table.fill(draft)
    published, quarantined = draft.finished()
    assert not published.select(table.key).is_duplicated().any(), "settling left a key twice"
    return published, quarantined
