"""What can be wrong with a row of an export.

A kind of dirt rewrites the fields of a clean row, or the line they make. Its weight says how often
it comes beside the others; about half of all dirt still loads, so that the rows that end in
quarantine stay near half the share asked for. What can be wrong with a whole file is in files.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from metalayer.sample.crm import UNKNOWN_CUSTOMER_ID
from metalayer.sample.words import REGION_ABBREVIATIONS

Shape = Literal["plain", "blank line before", "too few", "too many", "lone quote"]


@dataclass(frozen=True)
class Dirt:
    """One kind of dirt.

    Attributes:
        name: what it is, in a few words; unique within an export.
        weight: how often it comes, relative to the other kinds of the export.
        loads: whether such a row can still be loaded, by the rules the sources promise.
        fields: new text per column, computed from the clean row's columns. Quotes are the field's
            own: what must be quoted in a CSV file is quoted here.
        shape: what is wrong with the line as a whole.
        repeats: take the row from an earlier line of the same `file`, or from a line of `any`
            file so far, so that its key comes twice.
    """

    name: str
    weight: int
    loads: bool
    fields: Mapping[str, pl.Expr] = field(default_factory=dict)
    shape: Shape = "plain"
    repeats: Literal["no", "file", "any"] = "no"

    def lines(self, clean: pl.DataFrame, columns: Sequence[str], delimiter: str) -> pl.Series:
        """The rows as lines of a file, dirtied. `_hash` of `clean` picks among variants."""
        rows = clean.with_columns(**self.fields)
        match self.shape:
            case "plain":
                line = joined(columns, delimiter)
            case "blank line before":
                line = pl.lit("\n") + joined(columns, delimiter)
            case "too few":
                line = joined(columns[:-2], delimiter)
            case "too many":
                more = _one_of(f"{delimiter}x", f"{delimiter}{delimiter}", f"{delimiter}a" * 3)
                line = joined(columns, delimiter) + more
            case "lone quote":
                opened = pl.lit(f'{delimiter}"') + pl.col(columns[-1])
                line = joined(columns[:-1], delimiter) + opened
        return rows.select(line.alias("line")).to_series()


def joined(columns: Sequence[str], delimiter: str) -> pl.Expr:
    """The line that text columns make; none of them may be null."""
    return pl.concat_str([pl.col(column) for column in columns], separator=delimiter)


def _one_of(*variants: str) -> pl.Expr:
    return (pl.col("_hash") % len(variants)).replace_strict(
        list(range(len(variants))), list(variants), return_dtype=pl.String
    )


def _number(limit: int) -> pl.Expr:
    return pl.col("_hash") // 64 % limit


def _text(number: pl.Expr) -> pl.Expr:
    return number.cast(pl.String)


def _quoted(text: pl.Expr) -> pl.Expr:
    return pl.lit('"') + text + '"'


def _padded(column: str) -> pl.Expr:
    return pl.lit(" ") + pl.col(column) + _one_of(" ", "  ", "\u00a0")


def _money(cents: pl.Expr) -> pl.Expr:
    return _text(cents // 100) + "." + _text(cents % 100).str.zfill(2)


def _in_thousands(amount: str) -> dict[str, pl.Expr]:
    """`"1,234.50"`; where less was bought, a hundred times as much of it."""
    times = pl.when(pl.col("_cents") < 100_000).then(100).otherwise(1)
    text = _money(pl.col("_cents") * times).str.replace(r"^(\d+)(\d{3})\.", "${1},${2}.")
    return {"quantity": _text(pl.col("_quantity") * times), amount: _quoted(text)}


def _exponent(column: str) -> pl.Expr:
    """The same amount of money as whole cents: `45.90` -> `4590e-2`."""
    return pl.col(column).str.replace(".", "", literal=True) + _one_of("e-2", "E-2", "e-02")


def _year(column: str) -> pl.Expr:
    return pl.col(column).str.head(4)


def _day_first(column: str) -> pl.Expr:
    text = pl.col(column).str
    return text.slice(8, 2) + "/" + text.slice(5, 2) + "/" + text.head(4)


def _day_of(column: str) -> pl.Expr:
    return pl.col(column).str.head(10)


def _compact(column: str) -> pl.Expr:
    return _day_of(column).str.replace_all("-", "", literal=True)


def _impossible(column: str) -> pl.Expr:
    return _year(column) + _one_of("-02-30", "-13-01", "-04-31", "-00-00")


def _with_time(column: str) -> pl.Expr:
    times = ("T08:15:00Z", " 23:59:59", "T00:30:00+02:00", " 17:45:10.123456-05:00", "T12:00+0530")
    return pl.col(column) + _one_of(*times)


def _with_zone(column: str) -> pl.Expr:
    return pl.col(column).str.replace(" ", "T", literal=True) + _one_of("Z", ".250Z", "+02:00")


def _other_month(column: str) -> pl.Expr:
    """The same day in a month beside it, of the same year; the 28th at the latest."""
    day = pl.min_horizontal(pl.col(column).str.tail(2).cast(pl.Int64), 28)
    month = pl.col(column).str.slice(5, 2).cast(pl.Int64)
    other = pl.when(month == 1).then(2).otherwise(month - 1)
    return _year(column) + "-" + _text(other).str.zfill(2) + "-" + _text(day).str.zfill(2)


_NOTHING = ("", "NULL", "N/A", "null", "  ")
_SQL = ('"Robert\'); DROP TABLE customers;--"', '"\'; drop table silver.orders; --"', "' OR 1=1")
_HTML = ("<script>alert(1)</script>", '"<img src=""x"" onerror=""alert(1)"">"', "<b>Ann</b>")
_NUL = pl.lit("\0")
_UNKNOWN_CUSTOMER = _text(UNKNOWN_CUSTOMER_ID + _number(1000))
_PAST = _one_of("2019-12-31", "2015-06-01", "1970-01-01", "0001-01-01")
_FUTURE = _one_of("2099-01-01", "2099-12-31", "2150-07-15")


def _any_export(text: str, key: str) -> tuple[Dirt, ...]:
    """Kinds every export has. `text` is a column that a line break or a NUL can stand in."""
    broken = pl.col(text).str.head(2) + _NUL + pl.col(text).str.slice(2)
    return (
        Dirt("blank line", 3, True, shape="blank line before"),
        Dirt("quoted newline", 3, True, {text: _quoted(pl.col(text) + _one_of("\n", "\r\n"))}),
        Dirt("padded key", 3, True, {key: _padded(key)}),
        Dirt("no key", 4, False, {key: _one_of(*_NOTHING)}),
        Dirt("key is no number", 2, False, {key: _one_of("ABC", "1.5", "0x1F", "12a")}),
        Dirt("too few fields", 3, False, shape="too few"),
        Dirt("too many fields", 3, False, shape="too many"),
        Dirt("lone quote", 2, False, shape="lone quote"),
        Dirt("NUL byte", 2, False, {text: broken}),
    )


def _dated(column: str) -> tuple[Dirt, ...]:
    """Kinds of the exports whose month is the month of `column`, a date."""
    return (
        Dirt("day first", 4, True, {column: _day_first(column)}),
        Dirt("compact date", 3, True, {column: _compact(column)}),
        Dirt("date with time", 4, True, {column: _with_time(column)}),
        Dirt("impossible date", 4, False, {column: _impossible(column)}),
        Dirt("no date", 3, False, {column: _one_of(*_NOTHING)}),
        Dirt("too early", 2, False, {column: _PAST}),
        Dirt("in the future", 2, False, {column: _FUTURE}),
    )


def _traded(date_column: str, amount: str) -> tuple[Dirt, ...]:
    """Kinds of both exports of the ERP."""
    twice = {"quantity": _text(pl.col("_quantity") * 2), amount: _money(pl.col("_cents") * 2)}
    moved = {date_column: _other_month(date_column)}
    return (
        Dirt("thousands separator", 6, True, _in_thousands(amount)),
        Dirt("amount with exponent", 3, True, {amount: _exponent(amount)}),
        Dirt("quantity with exponent", 2, True, {"quantity": pl.col("quantity") + "e0"}),
        Dirt("padded quantity", 3, True, {"quantity": _padded("quantity")}),
        Dirt("padded amount", 2, True, {amount: _padded(amount)}),
        Dirt("unknown customer", 6, True, {"customer_id": _UNKNOWN_CUSTOMER}),
        Dirt("corrected in the file", 5, True, twice, repeats="file"),
        Dirt("corrected later", 3, True, twice, repeats="any"),
        Dirt("moved to another month", 3, True, moved, repeats="any"),
        Dirt("zero quantity", 4, False, {"quantity": pl.lit("0"), amount: pl.lit("0.00")}),
        Dirt("minus zero", 2, False, {"quantity": pl.lit("-0"), amount: pl.lit("-0.00")}),
        Dirt(
            "negative quantity",
            4,
            False,
            {"quantity": pl.lit("-") + pl.col("quantity"), amount: pl.lit("-") + pl.col(amount)},
        ),
        Dirt("no quantity", 3, False, {"quantity": _one_of(*_NOTHING)}),
        Dirt(
            "amount is no number", 2, False, {amount: _one_of("twelve", '"12,5"', "1_000", "nan")}
        ),
    )


def _a_thousand() -> dict[str, pl.Expr]:
    """A thousand units, written `1e3`, at the row's price."""
    thousandfold = pl.col("unit_price").str.replace(".", "", literal=True) + "0.00"
    return {"quantity": _one_of("1e3", "1E+3", "1.0e3"), "total_amount": thousandfold}


_ORDERS = (
    *_any_export("status", "order_id"),
    *_dated("order_date"),
    *_traded("order_date", "total_amount"),
    Dirt("a thousand as 1e3", 2, True, _a_thousand()),
    Dirt(
        "status in odd case",
        5,
        True,
        {"status": _one_of("paid", "Closed", "cOMPLETE", " Shipped ", "completed", "Pending")},
    ),
    Dirt(
        "amount is not quantity times price",
        6,
        False,
        {"total_amount": _money(pl.col("_cents") + 1 + _number(5000))},
    ),
    Dirt(
        "unknown status",
        5,
        False,
        {"status": _one_of("REFUNDED", "LOST", "?", "PAIDD", *_NOTHING[:3])},
    ),
    Dirt("unknown product", 4, False, {"product_code": _one_of("???", "", "X1", "P-226")}),
)

_ERP_SALES = (
    *_any_export("customer_id", "sales_id"),
    *_dated("sale_date"),
    *_traded("sale_date", "sale_amount"),
    Dirt("unknown product", 4, False, {"product_id": _one_of("0", "", " ", "???")}),
    Dirt("no amount", 3, False, {"sale_amount": _one_of(*_NOTHING)}),
)

_EMAIL = (
    Dirt("e-mail in upper case", 5, True, {"email": pl.col("email").str.to_uppercase()}),
    Dirt("padded e-mail", 4, True, {"email": _padded("email")}),
    Dirt("no e-mail", 4, True, {"email": _one_of(*_NOTHING)}),
)

_CUSTOMERS = (
    *_any_export("city", "customer_id"),
    *_EMAIL,
    Dirt("no phone", 4, True, {"phone": _one_of(*_NOTHING)}),
    Dirt("no birthday", 3, True, {"dob": _one_of(*_NOTHING)}),
    Dirt("padded name", 3, True, {"first_name": _padded("first_name")}),
    Dirt("state in lower case", 2, True, {"state": pl.col("state").str.to_lowercase()}),
    Dirt("SQL in a name", 3, True, {"last_name": _one_of(*_SQL)}),
    Dirt("HTML in a name", 3, True, {"first_name": _one_of(*_HTML)}),
    Dirt("birthday day first", 3, True, {"dob": _day_first("dob")}),
    Dirt("compact birthday", 2, True, {"dob": _compact("dob")}),
    Dirt("time with zone", 4, True, {"updated_at": _with_zone("updated_at")}),
    Dirt("corrected in the file", 5, True, {"city": pl.lit("Springfield")}, repeats="file"),
    Dirt("corrected later", 3, True, {"city": pl.lit("Shelbyville")}, repeats="any"),
    Dirt("garbage for a phone", 6, False, {"phone": _one_of("call me", "12", "000", "n.a.", "+1")}),
    Dirt("impossible birthday", 3, False, {"dob": _impossible("dob")}),
    Dirt("impossible time", 4, False, {"updated_at": _impossible("updated_at") + " 10:00:00"}),
    Dirt(
        "impossible hour",
        3,
        False,
        {"updated_at": _day_of("updated_at") + " 25:61:00"},
    ),
    Dirt("no time", 4, False, {"updated_at": _one_of(*_NOTHING)}),
    Dirt("too early", 4, False, {"updated_at": _PAST + " 00:00:00"}),
    Dirt("in the future", 4, False, {"updated_at": _FUTURE + " 00:00:00"}),
)

_CRM_CUSTOMERS = (
    *_any_export("customer_name", "customer_id"),
    *_EMAIL,
    Dirt("region in upper case", 4, True, {"region": pl.col("region").str.to_uppercase()}),
    Dirt("region in lower case", 3, True, {"region": pl.col("region").str.to_lowercase() + " "}),
    Dirt("region abbreviated", 4, True, {"region": _one_of(*REGION_ABBREVIATIONS)}),
    Dirt("SQL in a name", 3, True, {"customer_name": _one_of(*_SQL)}),
    Dirt("HTML in a name", 3, True, {"customer_name": _one_of(*_HTML)}),
    Dirt("corrected in the file", 4, True, {"region": pl.lit("West")}, repeats="file"),
    Dirt("no name", 6, False, {"customer_name": _one_of(*_NOTHING)}),
    Dirt("unknown region", 6, False, {"region": _one_of("Atlantis", "N/E", "??", "12")}),
    Dirt("garbage for an e-mail", 6, False, {"email": _one_of("nobody", "a@@b", "@example.org")}),
    Dirt("key is zero", 4, False, {"customer_id": _one_of("0", "-1", "-0")}),
)

KINDS: Mapping[str, tuple[Dirt, ...]] = {
    "crm/customers": _CUSTOMERS,
    "crm/crm_customers": _CRM_CUSTOMERS,
    "erp/orders": _ORDERS,
    "erp/erp_sales": _ERP_SALES,
}
