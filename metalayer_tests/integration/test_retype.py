"""Whether a value survives a change of type, asked of PostgreSQL value by value."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.warehouse import retype
from metalayer.warehouse.pool import transaction

TIMESTAMP = "timestamp without time zone"
COLUMN = sql.Identifier("value")


def judged(pool: Engine, old: str, new: str, value: Any) -> bool:
    """What `fits` says of a value; where it does, the conversion must take it."""
    # `offset 0`: a column's values are not known to the planner either.
    query = sql.SQL("select {what} from (select (%s)::{old} as value offset 0) as v")
    with transaction(pool) as connection, connection.cursor() as cursor:
        kind = sql.SQL(old)
        cursor.execute(query.format(what=retype.fits(COLUMN, old, new), old=kind), (value,))
        (fits,) = cursor.fetchone()
        if fits:
            what = retype.conversion(COLUMN, old, new)
            cursor.execute(query.format(what=what, old=kind), (value,))
        return bool(fits)


@pytest.mark.parametrize(
    ("old", "new", "fitting", "misfits"),
    [
        ("bigint", "numeric(5,2)", [0, 999, -999], [1000, -1000, 2**62]),
        ("bigint", "double precision", [2**53, -(2**53), 0], [2**53 + 1, -(2**63), 2**63 - 1]),
        ("bigint", "boolean", [], [0, 1]),
        ("bigint", "date", [], [20250105]),
        ("numeric(18,2)", "bigint", ["12.00", "-3"], ["12.10", "0.01"]),
        ("numeric(30,0)", "bigint", [2**63 - 1], [2**63]),
        ("numeric(18,4)", "numeric(18,2)", ["1.2300", "0"], ["1.2345", "99999999999999.9999"]),
        ("numeric(18,2)", "numeric(4,2)", ["99.99", "-99.99"], ["100", "-100.5"]),
        ("numeric(18,2)", "double precision", ["0.1", "1000000"], ["9999999999999999.99"]),
        ("double precision", "bigint", [1e15, -2.0], [1.5, 1e300, "NaN", "Infinity"]),
        ("double precision", "numeric(6,2)", [0.1, 12.25], [0.125, 1e5, "Infinity"]),
        ("text", "bigint", ["12", "-5", "0"], ["007", "12 ", "", "x", "1.0", "9" * 30]),
        ("text", "numeric(6,2)", ["5.5", "5.50", "-0.25"], ["5.555", "1e3", "05", "12345"]),
        ("text", "date", ["2025-01-31"], ["2025-02-30", "31/01/2025", "20250131", "today"]),
        ("text", TIMESTAMP, ["2025-01-31", "2025-01-31T10:30:00"], ["now", "2025-01-31Z", "x"]),
        ("text", "boolean", ["true", "false"], ["t", "yes", "1", ""]),
        ("text", "double precision", ["1.5", "-2"], ["1.50", "0.1000000000000000055511"]),
        (TIMESTAMP, "date", ["2025-01-31 00:00:00"], ["2025-01-31 00:00:01"]),
        ("date", "bigint", [], ["2025-01-31"]),
        ("boolean", "bigint", [], [True, False]),
    ],
)
def test_only_what_is_held_exactly_fits(
    pool: Engine, old: str, new: str, fitting: list[Any], misfits: list[Any]
) -> None:
    assert not retype.is_lossless(old, new)
    assert [v for v in fitting if not judged(pool, old, new, v)] == []
    assert [v for v in misfits if judged(pool, old, new, v)] == []


@pytest.mark.parametrize(
    ("old", "new", "is_lossless"),
    [
        ("bigint", "numeric(19,0)", True),
        ("bigint", "numeric(20,2)", False),
        ("numeric(18,2)", "numeric(18,4)", False),
        ("numeric(18,2)", "numeric(20,4)", True),
        ("numeric(18,0)", "bigint", True),
        ("numeric(19,0)", "bigint", False),
        ("date", TIMESTAMP, True),
        (TIMESTAMP, "date", False),
        ("boolean", "text", True),
        ("bigint", "double precision", False),
    ],
)
def test_what_can_never_lose_a_value(old: str, new: str, is_lossless: bool) -> None:
    assert retype.is_lossless(old, new) == is_lossless


@given(
    value=st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**7),
                      max_value=10**7),
    precision=st.integers(1, 9),
    scale=st.integers(0, 4),
)  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_numbers_fit_exactly_when_no_digit_is_lost(
    pool: Engine, value: Decimal, precision: int, scale: int
) -> None:
    scale = min(scale, precision)
    kept = value == round(value, scale) and abs(value) < Decimal(10) ** (precision - scale)
    assert judged(pool, "numeric(18,3)", f"numeric({precision},{scale})", value) == kept
