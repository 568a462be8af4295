"""No row that breaks a rule is passed by the condition that PostgreSQL finds suspects by."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from functools import partial
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
from metalayer.contracts.contract import TableSpec, pandera_schema
from metalayer.lineage.select import FAILED_CASTS
from metalayer.warehouse import violations
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.suspects import doubts, suspect
from metalayer_tests.story import Platform

HEAD = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"
_PATTERNS = (
    *(r"^P[0-9]{5}$", r"^\+[0-9]{8,15}$", r"^(P[0-9]{5}|UNKNOWN)$", "a|b", "^a|b$", r"[^a-z ]+$"),
    *(r"^[A-Za-z0-9_.]+$", r"^a{2,}b?$", r"^\(\)$"),
    # These match otherwise in PostgreSQL, or are none of its.
    *(r".$", r"^\d+$", r"(?i)p", r"^\w", r"a{0,300}", r"^[A-Za-z0-9-_]+$", r"^[+-]+$"),
)


@st.composite
def _texts(draw: st.DrawFn) -> str:
    """Texts that match a pattern, nearly match one, or are any."""
    anything = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    text = draw(st.one_of(anything, *(st.from_regex(pattern) for pattern in _PATTERNS)))
    place = draw(st.integers(0, len(text)))
    change = draw(st.sampled_from(["", "", "\n", "-", "A", "٣", " "]))
    return (text[:place] + change + text[place:]).replace("\0", "")[:20]


_VALUES: dict[str, Any] = {
    "bigint": (st.integers(-3, 3), pl.Int64),
    "numeric(18,2)": (st.decimals(-3, 3, places=2), pl.Decimal(18, 2)),
    "date": (st.dates(date(2024, 12, 30), date(2025, 1, 2)), pl.Date),
    "timestamp": (st.datetimes(), pl.Datetime("us")),
    "text": (_texts(), pl.String),
    "boolean": (st.booleans(), pl.Boolean),
    "double precision": (st.floats(-3, 3, width=16) | st.just(float("nan")), pl.Float64),
}


@st.composite
def _cases(draw: st.DrawFn) -> tuple[str, pa.Column, list[Any]]:
    kind = draw(st.sampled_from(sorted(_VALUES)))
    values, dtype = _VALUES[kind]
    one, other = draw(values), draw(values)
    judges_missing = {"ignore_na": draw(st.booleans())}
    rules = [
        lambda: pa.Check.isin([one, other], **judges_missing),
        lambda: pa.Check.isin([one, None]),
        lambda: pa.Check.notin([one]),
    ]
    if kind != "boolean":
        rules += [
            lambda: pa.Check.ge(one, **judges_missing),
            lambda: pa.Check.gt(one),
            lambda: pa.Check.le(one),
            lambda: pa.Check.lt(one),
        ]
    if kind == "numeric(18,2)":
        rules.append(lambda: pa.Check.le(float(one)))
    if kind == "text":
        rules += [partial(pa.Check.str_matches, pattern) for pattern in _PATTERNS]
        rules.append(lambda: pa.Check.str_length(1, 3))
    checks = [rule() for rule in draw(st.lists(st.sampled_from(rules), min_size=1, max_size=2))]
    rows = draw(st.lists(st.none() | values, min_size=1, max_size=8))
    return kind, pa.Column(dtype, checks, nullable=draw(st.booleans())), rows


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


def _stage(spec: TableSpec) -> Stage:
    return Stage(spec, sql.Identifier("none"), {}, "none")


def test_the_rules_of_our_contracts_are_said_in_full() -> None:
    """No condition of theirs suspects every row, or every row that has a value."""
    for spec in catalog().specs.values():
        types = {column.name: column.type for column in spec.stored}
        said = [*doubts(pandera_schema(spec), types), suspect(_stage(spec))]
        for doubt in said:
            text = repr(doubt).replace(f"Identifier('{FAILED_CASTS}'), SQL(' is not null')", "")
            assert "is not null" not in text, (spec.full_name, doubt)
            assert "true" not in text, (spec.full_name, doubt)


_CENTS = st.decimals(0, 20, places=2)


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 4), st.decimals(0, 5, places=4), _CENTS | st.none()),
        min_size=1,
        max_size=10,
    ),
    near=st.decimals("-0.02", "0.02", places=4),
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_order_that_does_not_add_up_is_suspect(
    pool: Engine, rows: list[tuple[int, Decimal, Decimal | None]], near: Decimal
) -> None:
    rows += [(n, p, (n * p + near).quantize(Decimal("0.01"))) for n, p, _ in rows]
    schema = pandera_schema(catalog().specs["silver.orders"])
    (check,) = schema.checks
    names = ["quantity", "unit_price", "total_amount"]
    frame = pl.DataFrame(
        rows, schema={name: schema.columns[name].dtype.type for name in names}, orient="row"
    )
    kept = pa.DataFrameSchema(
        {name: pa.Column(schema.columns[name].dtype.type, nullable=True) for name in names},
        checks=[check],
    )
    refused: set[int] = set()
    try:
        kept.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        refused = set(errors.failure_cases.get_column("index").cast(pl.Int64).to_list())
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select place - 1 from unnest(%s::bigint[], %s::numeric[], %s::numeric[]) "
            "with ordinality as t (quantity, unit_price, total_amount, place) where "
            + check.statistics["doubt"],
            tuple([row[n] for row in rows] for n in range(3)),
        )
        suspects = {place for (place,) in cursor.fetchall()}
    assert refused <= suspects


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each batch had that Pandera judged."""
    sizes: list[int] = []
    judge = violations._rule_violations

    def counting(batch: pl.DataFrame, *more: Any) -> Any:
        sizes.append(batch.height)
        return judge(batch, *more)

    monkeypatch.setattr(violations, "_rule_violations", counting)
    return sizes


def test_suspects_are_judged_in_batches_wherever_they_lie(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, judged: list[int]
) -> None:
    """A month with many bad rows in one place, beside a clean month."""
    monkeypatch.setattr("metalayer.warehouse.violations.BATCH_ROWS", 100)
    bad = [f"{n},7,P00001,2025-01-05,-2,5.00,10.00,PAID" for n in range(20000, 20400)]
    good = [f"{n},7,P00001,2025-01-05,2,5.00,10.00,PAID" for n in range(9000)]
    clean = [f"{n},7,P00001,2025-02-05,2,5.00,10.00,PAID" for n in range(9500, 9600)]
    platform.land("erp/orders.csv", "\n".join([HEAD, *bad, *good, *clean]) + "\n")
    assert platform.build("bronze.orders", "silver.orders").succeeded
    assert platform.ask(
        "select rows, rows_quarantined from meta.versions where table_name = 'silver.orders' "
        "order by month"
    ) == [(9000, 400), (100, 0)]
    # A block is the least that is read at once.
    assert sum(judged) == 400
    assert max(judged) <= 200


def orders(month: int, first: int, last: int, quantity: int = 2) -> list[str]:
    """Lines of an export with the orders of these numbers; a quantity below 1 is a bad one."""
    amount = abs(quantity) * 5
    return [
        f"{n},7,P00001,2025-{month:02}-05,{quantity},5.00,{amount}.00,PAID"
        for n in range(first, last)
    ]


def test_a_month_of_nothing_but_bad_rows_fails_as_soon_as_that_is_known(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, judged: list[int]
) -> None:
    monkeypatch.setattr("metalayer.warehouse.violations.BATCH_ROWS", 100)
    platform.land("erp/orders.csv", "\n".join([HEAD, *orders(1, 0, 10)]) + "\n")
    assert platform.build("bronze.orders", "silver.orders").succeeded
    judged.clear()
    # January is bad from the first line, February from its middle, and March is as March should be.
    lines = [HEAD, *orders(1, 0, 6000, -2), *orders(2, 10_000, 13_000)]
    lines += [*orders(2, 13_000, 16_000, -2), *orders(3, 20_000, 26_000)]
    lines += orders(3, 26_000, 26_050, -2)
    platform.land("erp/orders.csv", "\n".join(lines) + "\n")
    built = platform.build("bronze.orders", "silver.orders")
    january, february = (result for result in built.months if result.outcome == "failed")
    for result in (january, february):
        said = re.match(
            r"at least (\d+) of 6,000 rows break the contract \(limit 10%\): "
            r".*quantity must be > 0: at least (\d+) rows",
            str(result.problem),
        )
        assert said is not None, result.problem
        assert said[1] == said[2]
        # The limit of 600 is passed by two blocks at most.
        assert 600 < int(said[1]) < 900
        assert result.rows_read == 6000
        # Where to look is said all the same.
        assert str(result.problem).count("erp/orders.csv:") == 10
        assert result.audit is not None
        assert result.audit.rows == 6000
        assert result.audit.tally.rows + result.audit.quarantined < 6000
    assert sum(judged) <= 2 * 900 + 50
    assert platform.ask(
        "select month::text, rows, rows_quarantined from meta.versions "
        "where table_name = 'silver.orders' and is_current order by month"
    ) == [("2025-01-01", 10, 0), ("2025-03-01", 6000, 50)]
    # Nothing of them is left behind, and the corrected export is as welcome as ever.
    assert platform.ask("select distinct month::text from meta.quarantine") == [("2025-03-01",)]
    assert platform.ask(
        "select count(*) from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
        "where nspname = 'months' and relkind = 'r' and relname like '%silver_orders_2025_02%'"
    ) == [(0,)]
    good = [HEAD, *orders(1, 0, 6000), *orders(2, 10_000, 16_000), *orders(3, 20_000, 26_050)]
    platform.land("erp/orders.csv", "\n".join(good) + "\n")
    assert platform.build("bronze.orders", "silver.orders").succeeded
    assert platform.ask("select count(*) from silver.orders") == [(18_050,)]
    assert platform.ask("select count(*) from meta.quarantine") == [(0,)]


def test_only_suspects_are_read_back(platform: Platform, judged: list[int]) -> None:
    good = "".join(f"{n},7,P00001,2025-01-05,2,5.00,10.00,PAID\n" for n in range(400))
    platform.land("erp/orders.csv", f"{HEAD}\n{good}900,7,P00001,2025-01-05,-2,5.00,10.00,PAID\n")
    assert platform.build("bronze.orders", "silver.orders").succeeded
    assert judged == [1]
    assert platform.ask(
        "select rows, rows_quarantined from meta.versions where table_name = 'silver.orders'"
    ) == [(400, 1)]


@pytest.mark.parametrize("limits", [{"max_rejects": 0}, {"max_reject_rate": 1.0}])
def test_limits_decide_when_a_month_is_given_up(
    platform: Platform,
    monkeypatch: pytest.MonkeyPatch,
    judged: list[int],
    limits: dict[str, float],
) -> None:
    monkeypatch.setattr("metalayer.warehouse.violations.BATCH_ROWS", 100)
    spec = catalog().specs["silver.orders"]
    for name, value in limits.items():
        monkeypatch.setitem(spec.__dict__, name, value)
    repeated = orders(2, 10_000, 10_200)
    platform.land(
        "erp/orders.csv",
        "\n".join([HEAD, *orders(1, 0, 2000, -2), *repeated, *repeated[:3]]) + "\n",
    )
    built = platform.build("bronze.orders", "silver.orders")
    published = platform.ask(
        "select month::text, rows, rows_quarantined from meta.versions "
        "where table_name = 'silver.orders' order by month"
    )
    if "max_rejects" in limits:
        (failed,) = (result for result in built.months if result.outcome == "failed")
        assert str(failed.problem).startswith("at least ")
        assert " of 2,000 rows break the contract (limit 0 rows): " in str(failed.problem)
        # One batch, of the block that it takes at least.
        assert 1 <= sum(judged) <= 200
        assert published == [("2025-02-01", 200, 0)]
    else:
        # The rate allows it: every row is judged, and none is lost.
        assert sum(judged) == 2000
        assert published == [("2025-01-01", 0, 2000), ("2025-02-01", 200, 0)]


def test_a_month_is_given_up_in_an_atomic_build_too(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalayer.warehouse.violations.BATCH_ROWS", 100)
    lines = [HEAD, *orders(1, 0, 2000, -2), *orders(2, 10_000, 10_200)]
    platform.land("erp/orders.csv", "\n".join(lines) + "\n")
    assert not platform.build("bronze.orders", "silver.orders", atomic=True).succeeded
    assert platform.ask("select count(*) from silver.orders") == [(0,)]
    good = [HEAD, *orders(1, 0, 2000), *orders(2, 10_000, 10_200)]
    platform.land("erp/orders.csv", "\n".join(good) + "\n")
    assert platform.build("bronze.orders", "silver.orders", atomic=True).succeeded
    assert platform.ask("select count(*) from silver.orders") == [(2200,)]
