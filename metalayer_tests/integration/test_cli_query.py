"""`query` on a real database: whatever is typed, it can only read."""

from decimal import Decimal
from typing import Any

import pytest

from metalayer.errors import UsageError, WarehouseError
from metalayer.inspection import ask, reading
from metalayer.settings import Settings
from metalayer_tests.integration.test_build import ORDERS
from metalayer_tests.story import Platform


def answer(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with reading(settings) as connection, ask(connection, query) as found:
        return list(found.rows)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings on a database whose tables are installed."""
    from metalayer.assets.resources import open_warehouse

    with open_warehouse(settings):
        return settings


@pytest.mark.parametrize(
    "query",
    [
        "select 1; drop table meta.tables",
        "commit; drop table meta.tables",
        "drop table meta.tables",
        "insert into meta.tables select * from meta.tables",
        "copy meta.tables to stdout",
        "set transaction read write",
        "do $$ begin execute 'drop table meta.tables'; end $$",
        "vacuum",
        "-- nothing",
        ";",
    ],
)
def test_it_takes_one_statement_that_returns_rows(query: str, settings: Settings) -> None:
    with pytest.raises(UsageError, match="one statement"):
        answer(settings, query)
    assert answer(settings, "select count(*) > 0 from meta.tables") == [(True,)]


@pytest.mark.parametrize(
    "query",
    [
        "with gone as (delete from meta.tables returning *) select * from gone",
        "delete from meta.tables returning *",
        "select set_config('transaction_read_only', 'off', false)",
        "select nextval('meta.leaf_number')",
    ],
)
def test_it_cannot_write(query: str, settings: Settings) -> None:
    with pytest.raises(WarehouseError):
        answer(settings, query)
    assert answer(settings, "select count(*) > 0 from meta.tables") == [(True,)]


@pytest.mark.parametrize(
    "query",
    ["select 'a%sb' -- %(x)s", "select 'a%sb';", "values ('a%sb')", "/* ; */ select 'a%sb' ;;"],
)
def test_semicolons_comments_and_percent_signs_are_the_users(
    query: str, settings: Settings
) -> None:
    assert answer(settings, query) == [("a%sb",)]


def test_explain_and_show_answer_too(settings: Settings) -> None:
    assert answer(settings, "show timezone") == [("UTC",)]
    assert answer(settings, "explain select 1")


def test_columns_of_one_name_are_told_apart(settings: Settings) -> None:
    with reading(settings) as connection, ask(connection, "select 1 as a, 2 as a") as found:
        assert found.columns == ["a", "a_2"]


def test_days_that_python_does_not_know_are_text(settings: Settings) -> None:
    query = (
        "select date '20000-01-01', 'infinity'::timestamp, date '0044-03-15 BC', "
        "timestamptz '2025-01-31 10:00+02', array[date '2025-01-31']"
    )
    assert answer(settings, query) == [
        ("20000-01-01", "infinity", "0044-03-15 BC", "2025-01-31T08:00:00+00:00", ["2025-01-31"])
    ]


def test_many_rows_are_streamed(settings: Settings) -> None:
    query = "select n, 1 / (12000 - n) from generate_series(1, 20000) as n"
    with reading(settings) as connection, ask(connection, query) as found:
        assert next(found.rows)[0] == 1
        with pytest.raises(WarehouseError, match="division by zero"):
            list(found.rows)


def test_an_error_points_at_its_place(settings: Settings) -> None:
    with pytest.raises(WarehouseError) as raised:
        answer(settings, "select 1,\n       nosuch\nfrom meta.tables")
    assert raised.value.message.splitlines() == [
        'column "nosuch" does not exist',
        "line 2:        nosuch",
        "               ^",
    ]


def test_a_month_that_is_swapped_meanwhile_is_seen_whole(platform: Platform) -> None:
    settings = platform.warehouse.settings
    for total in ("5.00", "7.00"):
        platform.land("erp/orders.csv", f"{ORDERS}1,7,P00001,2025-01-05,1,{total},{total},PAID\n")
        with reading(settings) as connection:
            assert platform.build("bronze.orders", "silver.orders").succeeded
            with ask(connection, "select total_amount from silver.orders") as found:
                assert [row for (row,) in found.rows] == [Decimal(total)]
