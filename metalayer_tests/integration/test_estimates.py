"""What PostgreSQL expects of a window of months, by which it chooses how to join whole tables.

Autovacuum comes minutes after a build, whose checks and next SELECTs can't wait for it; here it is
off altogether.
"""

from __future__ import annotations

import pytest
from psycopg2 import sql

from metalayer.catalog import catalog
from metalayer_tests.integration.test_build import ORDERS, order
from metalayer_tests.story import Platform

ROWS = 400


@pytest.mark.parametrize("replaced", [False, True])
def test_the_rows_of_a_window_are_expected(platform: Platform, replaced: bool) -> None:
    for number, month in enumerate(("2025-01", "2025-02")):
        rows = [order(ROWS * number + n, f"{month}-{n % 28 + 1:02}") for n in range(ROWS)]
        platform.land(f"erp/orders_{month}.csv", ORDERS + "".join(rows))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    if replaced:
        platform.land("erp/orders_late.csv", ORDERS + order(9999, "2025-01-05"))
        assert platform.build("bronze.orders", "silver.orders").succeeded
    for table in ("bronze.orders", "silver.orders"):
        spec = catalog().spec(table)
        ((plan,),) = platform.ask(
            sql.SQL(
                "explain (format json) select from {} where {column} >= '2025-01-01' "
                "and {column} < '2025-03-01'"
            ).format(
                sql.Identifier(spec.layer, spec.name), column=sql.Identifier(spec.month_column)
            )
        )
        assert plan[0]["Plan"]["Plan Rows"] == pytest.approx(2 * ROWS, rel=0.1), table
