"""The ERP's exports: `orders`, what was booked, and `erp_sales`, what was invoiced.

Money is counted in whole cents throughout, so every amount is exact.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from metalayer.sample.calendar import Calendar, pick
from metalayer.sample.crm import FIRST_CUSTOMER_ID, Customers
from metalayer.sample.draws import Draws, Ints
from metalayer.sample.export import Export
from metalayer.sample.words import ORDER_STATUSES

PRODUCTS = 300
FIRST_ORDER_ID = 1_000_001
FIRST_SALES_ID = 5_000_001

# How unevenly customers buy; smaller is more uneven.
STEEPNESS = 0.05
# States in which an order is not invoiced.
NOT_INVOICED = ("CANCELLED", "PENDING")
# One month in four is badly billed: that share of its invoices is not what was booked.
BADLY_BILLED, WELL_BILLED = 0.06, 0.002

_STATUSES = tuple(ORDER_STATUSES)


@dataclass(frozen=True)
class Orders:
    """Every order, as columns; row numbers ascend with the day."""

    day: Ints
    customer: Ints
    product: Ints
    quantity: Ints
    price: Ints
    status: Ints


@dataclass(frozen=True)
class Sales:
    """Every invoice: the order it bills, and what it says of it."""

    order: Ints
    day: Ints
    quantity: Ints
    amount: Ints


def book(rows: int, past: Customers, calendar: Calendar, draws: Draws) -> Orders:
    """`rows` orders over the calendar, each by a customer who existed before its day."""
    number = np.arange(rows, dtype=np.int64)
    edges = calendar.spread(rows)
    month = np.searchsorted(edges[1:], number, side="right")
    length = np.diff(calendar.first_days)
    # Nobody orders on the very first day, on which the first customers only arrive.
    opening = calendar.first_days[:-1] + (np.arange(calendar.months) == 0)
    length[0] -= 1
    into = (number - edges[month]) * length[month] // np.diff(edges)[month]
    day = opening[month] + into
    product = _products(number, draws)
    return Orders(
        day=day,
        customer=_buyers(number, day - calendar.first_days[0], past, draws),
        product=product,
        quantity=_quantities(number, draws),
        price=_prices(number, product, month, draws),
        status=draws.choose("status", tuple(ORDER_STATUSES.values()), number),
    )


def _buyers(number: Ints, day: Ints, past: Customers, draws: Draws) -> Ints:
    """A few customers buy most: of these draws, 84 % are among the first 20 % of the ranks."""
    existing = past.existing(day)
    unit = draws.unit("buyer", number)
    # The inverse of F(x) = x (1 + b) / (x + b): as uneven as Pareto's law, but nobody is the buyer
    # of more than (1 + b) / b times the average.
    heavy = (existing * (STEEPNESS * unit / (1 + STEEPNESS - unit))).astype(np.int64)
    # The ranks of migrated customers are scattered, or the lowest numbers would all buy the most.
    migrated = past.migrated
    scattered = (heavy * _coprime(migrated) + migrated // 3) % migrated
    heavy = np.where(heavy < migrated, scattered, heavy)
    # A quarter of the orders is by those who came last: what a cohort does in its first weeks.
    recent = existing - 1 - (np.maximum(1, existing // 12) * unit).astype(np.int64)
    return np.where(draws.below("recent", 4, number) == 0, recent, heavy)


def _coprime(count: int) -> int:
    """A stride that visits each of `count` ranks once."""
    stride = int(count * 0.618) | 1
    while np.gcd(stride, count) != 1:
        stride += 2
    return stride


def _products(number: Ints, draws: Draws) -> Ints:
    """Product numbers from 1; the weights fall with rank as in Zipf's law."""
    rank = draws.choose("product", [100_000 // (place + 6) for place in range(PRODUCTS)], number)
    numbers: Ints = (rank * 77 + 225) % PRODUCTS + 1
    return numbers


def _quantities(number: Ints, draws: Draws) -> Ints:
    unit = draws.unit("quantity", number)
    usual = 1 + (9 * unit * unit * unit).astype(np.int64)
    bulk = 12 * (1 + draws.below("cases", 8, number))
    return np.where(draws.below("bulk", 100, number) == 0, bulk, usual)


def _prices(number: Ints, product: Ints, month: Ints, draws: Draws) -> Ints:
    """Cents: the product's list price, 3 % more each year, one order in ten at a discount."""
    every = np.arange(PRODUCTS + 1, dtype=np.int64)
    unit = draws.unit("list price", every)
    list_price: Ints = 499 + (unit * unit * unit * 900).astype(np.int64) * 100
    dearer: Ints = list_price[product] * (100 + 3 * (month // 12)) // 100
    discount = draws.choose("discount", (90, 5, 3, 2), number) * 5
    paid: Ints = dearer * (100 - discount) // 100
    return paid


def invoice(orders: Orders, calendar: Calendar, draws: Draws) -> Sales:
    """As many invoices as orders: most bill an order, some orders are billed in two parts."""
    order, part = _billed(orders)
    number = np.arange(len(order), dtype=np.int64)
    quantity = orders.quantity[order]
    is_split = np.zeros(len(orders.day), dtype=np.bool_)
    is_split[order[part == 1]] = True
    half = quantity // 2
    quantity = np.where(is_split[order], np.where(part == 0, half, quantity - half), quantity)
    unit = draws.unit("lag", number)
    lag = (6 * unit * unit).astype(np.int64) + np.where(part > 0, 7, 0)
    day = np.minimum(orders.day[order] + lag, calendar.first_days[-1] - 1)
    amount = _billed_amount(quantity * orders.price[order], orders.day[order], calendar, draws)
    by_day = np.argsort(day, kind="stable")
    return Sales(order[by_day], day[by_day], quantity[by_day], amount[by_day])


def _billed(orders: Orders) -> tuple[Ints, Ints]:
    """The order of each invoice, and whether it is the first (0) or second (1) for that order.

    Orders that are not invoiced make room for the second invoices of others.
    """
    total = len(orders.day)
    skipped = [_STATUSES.index(status) for status in NOT_INVOICED]
    invoiced = np.flatnonzero(~np.isin(orders.status, skipped))
    if not len(invoiced):
        return np.arange(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    splittable = invoiced[orders.quantity[invoiced] > 1]
    missing = min(total - len(invoiced), len(splittable))
    second = splittable[np.arange(missing) * len(splittable) // max(1, missing)]
    # Too few orders to split happens in exports of a handful of rows: those bill an order again.
    again = np.resize(invoiced, total - len(invoiced) - missing)
    order = np.concatenate([invoiced, second, again]).astype(np.int64)
    part = np.repeat([0, 1, 2], [len(invoiced), len(second), len(again)])
    by_order = np.lexsort((part, order))
    return order[by_order], part[by_order]


def _billed_amount(booked: Ints, day: Ints, calendar: Calendar, draws: Draws) -> Ints:
    """Cents invoiced: what was booked, except for billing errors, most in badly billed months."""
    number = np.arange(len(booked), dtype=np.int64)
    is_bad_month = draws.below("billing", 4, np.arange(calendar.months, dtype=np.int64)) == 0
    share = np.where(is_bad_month, BADLY_BILLED, WELL_BILLED)[calendar.month_of(day)]
    wrong = np.maximum(1, booked * (80 + draws.below("billed", 45, number)) // 100)
    return np.where(draws.unit("billing error", number) < share, wrong, booked)


def orders_export(orders: Orders, calendar: Calendar, draws: Draws, late: Ints) -> Export:
    """The delta `erp/orders`. `late` months pass before a row is delivered."""

    def texts(rows: Ints) -> pl.DataFrame:
        quantity, price = orders.quantity[rows], orders.price[rows]
        return pl.DataFrame(
            {
                "order_id": pl.Series(rows + FIRST_ORDER_ID).cast(pl.String),
                "customer_id": pl.Series(orders.customer[rows] + FIRST_CUSTOMER_ID).cast(pl.String),
                "product_code": pick(_PRODUCT_CODES, orders.product[rows]),
                "order_date": calendar.text_of(orders.day[rows]),
                "quantity": pl.Series(quantity).cast(pl.String),
                "unit_price": _money(price),
                "total_amount": _money(quantity * price),
                "status": pick(_STATUSES, orders.status[rows]),
                "_quantity": quantity,
                "_cents": quantity * price,
                "_hash": draws.bits("orders row", rows),
            }
        )

    columns = (
        *("order_id", "customer_id", "product_code", "order_date"),
        *("quantity", "unit_price", "total_amount", "status"),
    )
    delivered = np.minimum(calendar.month_of(orders.day) + late, calendar.months - 1)
    return Export("erp/orders", columns, delivered, texts)


def sales_export(
    orders: Orders, sales: Sales, calendar: Calendar, draws: Draws, late: Ints
) -> Export:
    """The delta `erp/erp_sales`. `late` months pass before a row is delivered."""

    def texts(rows: Ints) -> pl.DataFrame:
        order, quantity, amount = sales.order[rows], sales.quantity[rows], sales.amount[rows]
        customer = orders.customer[order] + FIRST_CUSTOMER_ID
        return pl.DataFrame(
            {
                "sales_id": pl.Series(rows + FIRST_SALES_ID).cast(pl.String),
                "product_id": pl.Series(orders.product[order]).cast(pl.String),
                "customer_id": pl.Series(customer).cast(pl.String),
                "quantity": pl.Series(quantity).cast(pl.String),
                "sale_date": calendar.text_of(sales.day[rows]),
                "sale_amount": _money(amount),
                "_quantity": quantity,
                "_cents": amount,
                "_hash": draws.bits("erp_sales row", rows),
            }
        )

    columns = ("sales_id", "product_id", "customer_id", "quantity", "sale_date", "sale_amount")
    delivered = np.minimum(calendar.month_of(sales.day) + late, calendar.months - 1)
    return Export("erp/erp_sales", columns, delivered, texts)


def _money(cents: Ints) -> pl.Series:
    return pl.Series(cents // 100).cast(pl.String) + pick(_CENTS, cents % 100)


_CENTS = tuple(f".{cents:02d}" for cents in range(100))
_PRODUCT_CODES = tuple(f"P{number:05d}" for number in range(PRODUCTS + 1))
