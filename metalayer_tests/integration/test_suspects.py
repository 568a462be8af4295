"""No row that breaks a rule is passed by the condition that PostgreSQL finds suspects by."""

from __future__ import annotations

from datetime import date
from typing import Any

import pandera.errors
import pandera.polars as pa
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.contracts.contract import pandera_schema
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.suspects import doubts
from metalayer_tests.story import Platform

_TEXTS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("P0129+aA,.\n-_ "),
    max_size=8,
)
_VALUES: dict[str, Any] = {
    "bigint": (st.integers(-3, 3), pl.Int64),
    "numeric(18,2)": (st.decimals(-3, 3, places=2), pl.Decimal(18, 2)),
    "date": (st.dates(date(2024, 12, 30), date(2025, 1, 2)), pl.Date),
    "text": (_TEXTS, pl.String),
    "boolean": (st.booleans(), pl.Boolean),
}
_PATTERNS = (
    *(r"^P[0-9]{5}$", r"^\+[0-9]{8,15}$", r"^(P[0-9]{5}|UNKNOWN)$", "a|b", "^a|b$", r"[^a-z ]+$"),
    # These match otherwise in PostgreSQL, or are none of its.
    *(r".$", r"^\d+$", r"(?i)p", r"^\w", r"a{0,300}"),
)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[str, pa.Column, list[Any]]:
    kind = draw(st.sampled_from(sorted(_VALUES)))
    values, dtype = _VALUES[kind]
    one = draw(values)
    rules = [pa.Check.isin([one, draw(values)]), pa.Check.notin([one])]
    if kind != "boolean":
        rules += [pa.Check.ge(one), pa.Check.gt(one), pa.Check.le(one), pa.Check.lt(one)]
        rules.append(pa.Check.in_range(min(one, other := draw(values)), max(one, other)))
    if kind == "text":
        rules += [pa.Check.str_matches(pattern) for pattern in _PATTERNS]
        rules.append(pa.Check.str_length(1, 3))
    column = pa.Column(dtype, draw(st.sampled_from(rules)), nullable=draw(st.booleans()))
    rows = draw(st.lists(st.none() | values, min_size=1, max_size=8))
    return kind, column, rows


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(case=_cases())
def test_whatever_pandera_refuses_is_suspect(
    pool: Engine, case: tuple[str, pa.Column, list[Any]]
) -> None:
    kind, column, rows = case
    schema = pa.DataFrameSchema({"value": column})
    frame = pl.DataFrame({"value": rows}, schema={"value": column.dtype.type})
    refused: set[int] = set()
    try:
        schema.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        refused = set(errors.failure_cases.get_column("index").cast(pl.Int64).to_list())
    conditions = [sql.SQL("false"), *doubts(schema, {"value": kind})]
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "select place - 1 from unnest({rows}::{type}[]) "
                "with ordinality as t (value, place) "
                "where {suspect}"
            ).format(
                rows=sql.Literal(rows), type=sql.SQL(kind), suspect=sql.SQL(" or ").join(conditions)
            )
        )
        suspects = {place for (place,) in cursor.fetchall()}
    assert refused <= suspects


def test_the_rules_of_our_contracts_are_said_in_full() -> None:
    """No condition of theirs suspects every row that has a value."""
    for spec in catalog().specs.values():
        types = {column.name: column.type for column in spec.stored}
        for doubt in doubts(pandera_schema(spec), types):
            assert "is not null" not in repr(doubt), (spec.full_name, doubt)


def test_only_suspects_are_read_back(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    import metalayer.warehouse.audit as audit

    judged: dict[str, int] = {}
    judge = audit.bad_rows

    def counting(cursor: Any, stage: Any, suspects: Any) -> Any:
        judged[stage.spec.full_name] = judged.get(stage.spec.full_name, 0) + sum(suspects.values())
        return judge(cursor, stage, suspects)

    monkeypatch.setattr(audit, "bad_rows", counting)
    head = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
    good = "".join(f"{n},7,P00001,2025-01-05,2,5.00,10.00,PAID\n" for n in range(400))
    platform.land("erp/orders.csv", f"{head}{good}900,7,P00001,2025-01-05,-2,5.00,10.00,PAID\n")
    assert platform.build("bronze.orders", "silver.orders").succeeded
    assert judged["silver.orders"] == 1
    assert platform.ask(
        "select rows, rows_quarantined from meta.versions where table_name = 'silver.orders'"
    ) == [(400, 1)]
