"""Stories of reading what readers saw earlier: whole tables, and queries of the user's own."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

import metalayer
from metalayer.asof import parse_as_of, query_as_of
from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.errors import UsageError, WarehouseError
from metalayer.history import LEAVES
from metalayer.inspection import ask, reading
from metalayer.reading import read_months
from metalayer.settings import PROJECT_ROOT
from metalayer.warehouse.keeping import Keeping
from metalayer.warehouse.pool import connect_pool
from metalayer.warehouse.versions import rollback
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.integration.test_versions import (
    JANUARY,
    SILVER,
    TYPED,
    back,
    keeping,
    land_orders,
    leaf_of,
    three_versions,
)
from metalayer_tests.story import Platform

FEBRUARY = date(2025, 2, 1)


def now(platform: Platform) -> datetime:
    """The time by the clock that publishes are dated with."""
    found: datetime = platform.one("select clock_timestamp()")
    return found


def frame(platform: Platform, table: str, as_of: Any = None, months: Any = None) -> pd.DataFrame:
    moment = parse_as_of(as_of) if as_of is not None else None
    return read_months(platform.warehouse.pool, table, months, moment)


def asked(platform: Platform, query: str, as_of: Any) -> list[tuple[Any, ...]]:
    """The answer to a query as `metalayer query --as-of` gets it."""
    with reading(platform.warehouse.settings) as connection:
        with ask(connection, query, before="explain "):
            past = query_as_of(connection, query, parse_as_of(as_of))
        with ask(connection, past) as answer:
            return list(answer.rows)


def test_every_table_is_read_as_it_was_after_each_build(platform: Platform) -> None:
    tables = list(catalog().specs)
    views = ("gold.customer_360_current",)
    seen: list[tuple[datetime, dict[str, pd.DataFrame], dict[str, Any]]] = []

    def note() -> None:
        frames = {table: frame(platform, table) for table in tables}
        answers = {
            name: platform.ask(f"select md5(t::text) from {name} as t order by 1")
            for name in (*tables, *views)
        }
        seen.append((now(platform), frames, answers))

    before = now(platform)
    platform.land("crm/customers_1.csv", CUSTOMERS + customer(7, "2025-01-03"))
    platform.land("erp/orders_1.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-01-06"))
    assert platform.build().succeeded
    note()
    # Closes the version of January, and changes what the facts point at.
    platform.land("crm/customers_2.csv", CUSTOMERS + customer(7, "2025-02-03", city="Odense"))
    platform.land("erp/orders_2.csv", ORDERS + order(2, "2025-02-06") + order(3, "2025-02-07"))
    assert platform.build().succeeded
    note()
    platform.land("erp/orders_1.csv", ORDERS + order(1, "2025-01-05", quantity=9))
    assert platform.build().succeeded
    note()
    back(platform, 2, "silver.orders", JANUARY)
    assert platform.build().succeeded
    note()
    assert not seen[0][1]["gold.fact_orders"].equals(seen[2][1]["gold.fact_orders"])

    for moment, frames, answers in seen:
        for table in tables:
            pd.testing.assert_frame_equal(frame(platform, table, moment), frames[table])
        for name in answers:
            query = f"select md5(t::text) from {name} as t order by 1"
            assert asked(platform, query, moment) == answers[name], (moment, name)
    # Before the first publish there was nothing but the Unknown members.
    assert len(frame(platform, "gold.fact_orders", before)) == 0
    assert frame(platform, "gold.dim_customer", before)["customer_name"].tolist() == ["Unknown"]
    # A month by itself; a customer's version ends where the next month's began.
    (_, frames, _), moment = seen[1], seen[1][0]
    months = frame(platform, "gold.dim_customer", moment, [JANUARY])
    assert months["valid_to"].tolist() == [pd.Timestamp("2025-02-03")]
    open_still = frame(platform, "gold.dim_customer", seen[0][0], [JANUARY])["valid_to"]
    assert open_still.isna().tolist() == [True]
    assert len(frame(platform, "gold.fact_orders", moment, [FEBRUARY])) == 2


@pytest.fixture
def published(platform: Platform) -> Iterator[Platform]:
    """Three versions of January, one of February."""
    three_versions(platform)
    platform.land("erp/orders_2.csv", ORDERS + order(80, "2025-02-05"))
    assert platform.build(*TYPED).succeeded
    yield platform


def test_a_version_is_that_of_each_month(
    published: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = published.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    for version in (1, 2, 3):
        found = metalayer.read(SILVER, months="2025-01", as_of=version)
        assert found["quantity"].tolist() == [version] * 3
        assert str(found["quantity"].dtype) == "Int64"
    assert metalayer.read(SILVER, as_of="1")["order_id"].tolist() == [1, 2, 3, 80]
    # February has had one only.
    for months in ("2025-01..2025-02", None):
        found = metalayer.read(SILVER, months=months, as_of=2)
        assert found["quantity"].tolist()[:3] == [2, 2, 2]
        assert found["order_id"].tolist() == [1, 2, 3, 80]
    for months, version, latest in (("2025-02", 3, 1), ("2025-01..2025-02", 4, 3), (None, 4, 3)):
        with pytest.raises(UsageError, match=f"No month .* had a version {version}") as raised:
            metalayer.read(SILVER, months=months, as_of=version)
        assert f"The latest: {latest} of silver.orders." in raised.value.next_step
    with pytest.raises(UsageError, match=r"silver.orders 2031-01 has no version 1"):
        metalayer.read(SILVER, months="2031-01", as_of=1)
    with pytest.raises(UsageError, match="neither a version nor a time"):
        metalayer.read(SILVER, as_of="yesterday")


def test_what_is_not_kept_is_said_with_the_month(published: Platform) -> None:
    first = published.one(
        "select published_at from meta.versions where version = 1 and table_name = %s "
        "and month = %s",
        SILVER,
        JANUARY,
    )
    assert frame(published, SILVER, first)["quantity"].tolist() == [1, 1, 1]
    assert len(frame(published, SILVER, first - timedelta(microseconds=1))) == 0
    keeping(published, keep_versions=2)
    assert published.build(*TYPED).succeeded
    with pytest.raises(WarehouseError, match=r"What silver.orders 2025-01 was at") as raised:
        frame(published, SILVER, first)
    second = published.one(
        "select to_char(published_at, 'YYYY-MM-DD HH24:MI:SS') from meta.versions "
        "where version = 2 and table_name = %s and month = %s",
        SILVER,
        JANUARY,
    )
    assert f"goes back to {second} UTC" in raised.value.next_step
    with pytest.raises(WarehouseError, match=r"What silver.orders 2025-01 was at"):
        asked(published, "select 1 from silver.orders", first)
    # Nobody asks for January.
    assert len(frame(published, SILVER, first, [FEBRUARY])) == 0


def test_times_are_understood() -> None:
    noon = datetime(2025, 7, 1, 12, tzinfo=UTC)
    assert parse_as_of("2025-07-01T12:00") == noon
    assert parse_as_of("2025-07-01 14:00+02:00") == noon
    assert parse_as_of(datetime(2025, 7, 1, 12)) == noon  # noqa: DTZ001 - naive is UTC
    assert parse_as_of("2025-07-01") == parse_as_of(date(2025, 7, 1)) == noon - timedelta(hours=12)
    assert parse_as_of(" 3 ") == parse_as_of(3) == 3
    for wrong in (0, -1, True, "0", "2025-13-01", "", "v3"):
        with pytest.raises(UsageError, match="neither a version nor a time"):
            parse_as_of(wrong)


def test_a_query_reads_every_table_and_view_as_it_was(published: Platform) -> None:
    published.ask("create view public.mine as select quantity from silver.orders; select 1")
    published.ask("create table public.notes as select 1 as order_id, 'x' as note; select 1")
    for query, expected in {
        "select distinct quantity from silver.orders where order_id < 50": [(1,)],
        "select distinct silver.orders.quantity from silver.orders where order_id = 1": [(1,)],
        "select max(quantity) from public.mine": [(2,)],
        "select max(quantity) from mine": [(2,)],
        "with o as (select * from silver.orders) select quantity from o where order_id = 2": [(1,)],
        "select note, quantity from notes join silver.orders as o using (order_id)": [("x", 1)],
        "select b.quantity from bronze.orders as b where b.order_id = '3'": [("1",)],
        # Records of MetaLayer, and of PostgreSQL, are what they are now.
        "select max(version) from meta.versions": [(3,)],
        "select count(*) from pg_tables where schemaname = 'no'": [(0,)],
        "table notes": [(1, "x")],
    }.items():
        assert asked(published, query, 1) == expected, query
    with pytest.raises(WarehouseError, match="does not exist") as raised:
        asked(published, "select 1,\n nosuch from silver.orders", 1)
    assert raised.value.message.splitlines()[1:] == [
        "line 2:  nosuch from silver.orders",
        " " * 9 + "^",
    ]
    with pytest.raises(UsageError, match="that reads"):
        asked(published, "select * from silver.orders for share", 1)
    # A month that has had fewer versions is read in its last.
    months = (
        "select extract(month from order_date)::int, max(quantity) from silver.orders "
        "group by 1 order by 1"
    )
    (now_january, now_february) = asked(published, months, 3)
    assert asked(published, months, 2) == [(1, 2), now_february]
    assert now_january == (1, 3)
    with pytest.raises(UsageError, match="has had a version 4"):
        asked(published, "select 1 from silver.orders", 4)


def test_the_command_asks_about_the_past(
    published: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = published.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    query = "select sum(quantity) as units, max(order_date) as last from silver.orders"
    assert main(["query", query, "--as-of", "1", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "units,last\n5,2025-02-05\n"
    # The same connection has been told how to read dates by then.
    assert main(["query", query, "--as-of", now(published).isoformat(), "--format", "csv"]) == 0
    assert capsys.readouterr().out == "units,last\n11,2025-02-05\n"
    assert main(["query", query, "--as-of", "2020-01-01", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "units,last\n,\n"
    assert main(["query", query, "--as-of", "soon"]) == 2
    assert "Write a version as 3" in capsys.readouterr().err
    assert main(["query", "values (1)", "--as-of", "1"]) == 2


def test_asking_about_the_past_needs_no_contracts(published: Platform) -> None:
    program = (
        "import sys; from metalayer.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'dagster', 'pandera', 'polars', 'pandas', 'duckdb', 'sqlalchemy'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or code)"
    )
    url = published.warehouse.settings.database_url
    assert url is not None
    for arguments in (
        ["versions", SILVER],
        ["versions", SILVER, "2025-01", "--json"],
        ["diff", SILVER, "2025-01", "1", "2"],
        ["query", "select * from silver.orders", "--as-of", "1"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={
                "METALAYER_DATABASE_URL": url.get_secret_value(),
                "PYTHONPATH": str(PROJECT_ROOT),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (arguments, done.stderr)
        assert done.stdout


def test_columns_are_those_of_today(published: Platform) -> None:
    leaf = leaf_of(published, 1)
    published.ask(
        f"alter table {leaf} drop column status, add column gone text, "
        "alter column total_amount type numeric(20,4), alter column quantity type integer; "
        "select 1"
    )
    found = frame(published, SILVER, 1)
    assert list(found.columns) == [c.name for c in catalog().specs[SILVER].columns]
    assert found["status"].isna().tolist() == [True] * 3 + [False]
    assert [str(amount) for amount in found["total_amount"]] == ["5.00"] * 3 + ["10.00"]
    published.ask(f"update {leaf} set total_amount = 5.0001 where order_id = 2 returning 1")
    with pytest.raises(
        WarehouseError, match=r"Version 1 of silver.orders 2025-01 has 1 values of total_amount"
    ):
        frame(published, SILVER, 1)


def test_reading_the_past_goes_on_while_versions_come_and_go(platform: Platform) -> None:
    """Every read is of one version, whole, though each publish drops the one before."""
    platform.land("erp/orders_x.csv", ORDERS + order(80, "2025-02-05"))
    land_orders(platform, 1, rows=40)
    assert platform.build(*TYPED).succeeded
    land_orders(platform, 2, rows=40)
    assert platform.build(*TYPED).succeeded
    stop = threading.Event()
    seen: list[tuple[int, int, int]] = []
    errors: list[BaseException] = []

    def read() -> None:
        url = platform.warehouse.settings.database_url
        assert url is not None
        pool = connect_pool(url.get_secret_value(), 1)
        try:
            while not stop.is_set():
                moment = datetime.now(UTC) + timedelta(hours=1)
                found = read_months(pool, SILVER, [JANUARY], moment)["quantity"]
                seen.append((len(found), int(found.min()), int(found.max())))
        except BaseException as error:
            errors.append(error)
        finally:
            pool.dispose()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    spec = catalog().specs[SILVER]
    try:
        began = time.monotonic()
        for number in itertools.count(2):
            rollback(platform.warehouse.pool, spec, JANUARY, number - 1, Keeping(versions=2))
            if number > 30 or time.monotonic() - began > 30:
                break
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert errors == []
    assert {(40, 1, 1), (40, 2, 2)} >= set(seen)
    assert len(seen) > 10


def test_a_version_that_is_read_is_not_pulled_away(platform: Platform) -> None:
    three_versions(platform)
    query = "select quantity from silver.orders"
    with reading(platform.warehouse.settings) as connection:
        past = query_as_of(connection, query, 1)
        keeping(platform, keep_versions=1)
        platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=9))
        assert platform.build(*TYPED).succeeded
        assert platform.ask(query) == [(9,)]
        with ask(connection, past) as answer:
            assert list(answer.rows) == [(1,)] * 3
    assert platform.build(*TYPED).succeeded
    kept = "select version from meta.versions where table_name = %s"
    assert platform.ask(kept, SILVER) == [(4,)]
    assert platform.one("select to_regclass(%s)", f"{LEAVES}.silver_orders_2025_01_1") is None
