"""`gold.dim_customer` over any small history: changes, snapshots, who goes and who comes back.

Belongs here: what must hold of the versions of a customer whatever happened, and the stories of a
deletion. Does not belong here: the SELECT over real exports (`test_against_oracle.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from psycopg2.extras import execute_values

from metalayer.catalog import catalog
from metalayer.jobs import months_between, table_job
from metalayer.lineage.select import render
from metalayer.warehouse.build import build_months
from metalayer.warehouse.ddl import as_text, identifiers, next_month
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.integration.oracle import compare, gold
from metalayer_tests.integration.sharing import module_platform
from metalayer_tests.story import Platform

MONTHS = months_between(date(2025, 1, 1), date(2025, 5, 1))
END = next_month(MONTHS[-1])
#: Of these one has the number of the Unknown member.
CUSTOMERS = (0, 1, 2)
STRANGER = 9
DAYS = tuple(day for m in MONTHS for day in (m, *(m.replace(day=d) for d in (9, 10, 11, 28))))

Change = tuple[int, datetime, str | None, str | None, str | None]
Listing = tuple[int, date, str | None, str | None, str | None]


@dataclass(frozen=True)
class History:
    """Rows of the two inputs.

    Attributes:
        changes: Customer, moment, first name, e-mail address, city.
        listings: Customer, month of the snapshot, name, e-mail address, region.
    """

    changes: Sequence[Change] = ()
    listings: Sequence[Listing] = ()


def at(
    month: int, day: int = 1, hour: int = 0, minute: int = 0, second: int = 0, micros: int = 0
) -> datetime:
    """An instant of 2025, UTC."""
    return datetime(2025, month, day, hour, minute, second, micros)  # noqa: DTZ001 - as stored


def listed(customer: int, *months: int, name: str | None = "Ann") -> list[Listing]:
    """Entries of the snapshots of these months."""
    return [(customer, date(2025, month, 1), name, None, "North") for month in months]


_MOMENTS = [
    moment
    for month in range(1, len(MONTHS) + 1)
    for moment in (
        at(month),  # when a snapshot begins to count
        at(month, 10),
        at(month, 10, 12),
        at(month, 10, 12, 0, 0, 1),
        at(month, 28, 23, 59, 59, 999_999),
    )
]
_customers = st.sampled_from(CUSTOMERS)
_emails = st.sampled_from([None, "a@x.org", "b@x.org"])
_changes = st.tuples(
    _customers,
    st.sampled_from(_MOMENTS),
    st.sampled_from([None, "Ann", "Bo"]),
    _emails,
    st.sampled_from([None, "Rome"]),
)
_listings = st.tuples(
    _customers,
    st.sampled_from(MONTHS),
    st.sampled_from([None, "ANN", "Bo"]),
    _emails,
    st.sampled_from(["North", None]),
)


def _of_who_and_when(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return row[:2]


HISTORIES = st.builds(
    History,
    st.lists(_changes, max_size=8, unique_by=_of_who_and_when),
    st.lists(_listings, max_size=12, unique_by=_of_who_and_when),
)
#: The months cut into windows, in any order.
WINDOWS = st.permutations(MONTHS).flatmap(
    lambda months: st.lists(st.booleans(), min_size=len(months), max_size=len(months)).map(
        lambda cuts: _windows(months, cuts)
    )
)


def _windows(months: Sequence[date], cuts: Sequence[bool]) -> list[list[date]]:
    """Neighbours in the list that follow each other in time share a window, unless cut."""
    windows = [[months[0]]]
    for (before, month), cut in zip(pairwise(months), cuts, strict=False):
        if cut or next_month(before) != month:
            windows.append([month])
        else:
            windows[-1].append(month)
    return windows


any_history = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
GONE_AND_BACK = History(
    [(1, at(3, 10), "Ann", None, "Rome"), (1, at(3), "Bo", None, None)],
    [*listed(1, 1, 5), *listed(2, 1, 2, 3, 4)],
)
REVERTING = History([(1, at(1, day), name, None, None) for day, name in enumerate("AABBA", 5)])


@pytest.fixture(scope="module")
def empty(server: WarehouseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A warehouse whose silver tables take rows as they are, with orders of everyone."""
    folder = tmp_path_factory.mktemp("type_two")
    with module_platform(server, folder, MONTHS[0], MONTHS[-1]) as platform:
        orders = [(who, day) for who in (*CUSTOMERS, STRANGER) for day in DAYS]
        with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
            for name in ("customers", "crm_customers", "orders"):
                cursor.execute(
                    f"create table months.any_{name} partition of {at_rest(name)} default"
                )
            execute_values(
                cursor,
                "insert into silver.orders (order_id, customer_id, order_date) values %s",
                [(number, *order) for number, order in enumerate(orders)],
            )
        yield platform


@pytest.fixture
def told(empty: Platform) -> Iterator[Any]:
    """A cursor whose doings are forgotten, with a `gold.dim_customer` open to rows of any month."""
    with transaction(empty.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("truncate gold.dim_customer_stored")
        cursor.execute(
            "create table months.any_version partition of gold.dim_customer_stored default"
        )
        yield cursor
        connection.rollback()


def at_rest(name: str) -> str:
    """The silver table that takes rows, behind the view that masks them."""
    return f"silver.{catalog().spec(f'silver.{name}').stored_name}"


def fill(cursor: Any, history: History) -> None:
    """Make the silver tables hold this history and nothing else."""
    for name in ("customers", "crm_customers"):
        cursor.execute(f"delete from {at_rest(name)}")
    for table, columns, rows in (
        ("customers", "customer_id, updated_at, first_name, email, city", history.changes),
        ("crm_customers", "customer_id, month, customer_name, email, region", history.listings),
    ):
        execute_values(cursor, f"insert into {at_rest(table)} ({columns}) values %s", rows)


@cache
def rendered(table: str, first: date = MONTHS[0], last: date = MONTHS[-1]) -> sql.SQL:
    """The SELECT of a table for the window of months from `first` to `last`."""
    tables = catalog()
    select, spec = tables.selects[table], tables.specs[table]
    return sql.SQL(f"({render(select, spec, tables.specs, first, next_month(last))})")


def tell(cursor: Any, history: History) -> None:
    """Make `gold.dim_customer` what its SELECT says of this history, in one window."""
    fill(cursor, history)
    cursor.execute("delete from gold.dim_customer_stored")
    cursor.execute(
        sql.SQL("insert into gold.dim_customer_stored {}").format(rendered("gold.dim_customer"))
    )


def versions(cursor: Any, columns: str, customer: int = 1) -> list[tuple[Any, ...]]:
    cursor.execute(
        f"select {columns} from gold.dim_customer where customer_id = %s order by valid_from",
        (customer,),
    )
    return list(cursor.fetchall())


def frame(cursor: Any, table: str) -> pl.DataFrame:
    """A table as its readers see it, with the contract's types."""
    columns = catalog().specs[table].columns
    cursor.execute(f"select {', '.join(c.name for c in columns)} from {table}")
    return pl.DataFrame(cursor.fetchall(), schema={c.name: c.dtype for c in columns}, orient="row")


def bad(cursor: Any, query: str) -> list[tuple[Any, ...]]:
    """Rows that should not be."""
    cursor.execute(query)
    return list(cursor.fetchall())


# ---- whatever happened


@any_history
@given(HISTORIES)
@example(GONE_AND_BACK)
@example(REVERTING)
def test_versions_follow_each_other_from_the_first_evidence_on(told: Any, history: History) -> None:
    tell(told, history)
    assert not bad(
        told,
        "select * from (select *, lead(valid_from) over of_customer as next_from "
        "from gold.dim_customer window of_customer as (partition by customer_id "
        "order by valid_from)) as v where valid_to is distinct from next_from "
        "or valid_to <= valid_from or is_current <> (next_from is null)",
    )
    assert not bad(
        told,
        "select * from (select customer_id, min(at) as at from ("
        "select customer_id, updated_at as at from silver.customers "
        "union all select customer_id, month from silver.crm_customers) as e group by 1) as first "
        "full join (select customer_id, min(valid_from) as valid_from, "
        "count(*) filter (where is_current) as current_rows from gold.dim_customer group by 1) "
        "as known using (customer_id) "
        "where at is distinct from valid_from or current_rows is distinct from 1",
    )


@any_history
@given(HISTORIES)
@example(GONE_AND_BACK)
@example(REVERTING)
def test_a_version_differs_from_the_one_before(told: Any, history: History) -> None:
    tell(told, history)
    attributes = [
        c.name
        for c in catalog().specs["gold.dim_customer"].stored
        if c.name not in ("customer_key", "customer_id", "valid_from")
    ]
    row = f"row({', '.join(attributes)})"
    assert not bad(
        told,
        f"select customer_id, valid_from from (select *, {row} as now, lag({row}) over of_customer "
        "as before, row_number() over of_customer as n from gold.dim_customer "
        "window of_customer as (partition by customer_id order by valid_from)) as v "
        "where n > 1 and now is not distinct from before",
    )


@any_history
@given(HISTORIES)
@example(GONE_AND_BACK)
def test_who_is_missing_from_the_newest_snapshot_is_deleted(told: Any, history: History) -> None:
    tell(told, history)
    # At every instant anything is known of: once listed, yet not in the newest snapshot of then.
    assert not bad(
        told,
        "with instants as (select updated_at as at from silver.customers "
        "union select month from silver.crm_customers), "
        "valid as (select v.customer_id, v.is_deleted, i.at from gold.dim_customer as v "
        "join instants as i on v.valid_from <= i.at and (i.at < v.valid_to or v.valid_to is null)) "
        "select * from valid where is_deleted <> ("
        "exists (select from silver.crm_customers as l "
        "where l.customer_id = valid.customer_id and l.month <= valid.at) "
        "and not exists (select from silver.crm_customers as l "
        "where l.customer_id = valid.customer_id and l.month = ("
        "select max(month) from silver.crm_customers as s where s.month <= valid.at)))",
    )


@settings(any_history, max_examples=120)
@given(HISTORIES)
@example(GONE_AND_BACK)
@example(REVERTING)
def test_the_oracle_says_the_same(told: Any, history: History) -> None:
    tell(told, history)
    changes, snapshots = (frame(told, f"silver.{n}") for n in ("customers", "crm_customers"))
    expected = gold.dim_customer(changes, snapshots)
    assert compare(expected, frame(told, "gold.dim_customer"), ["customer_key"]) is None


@any_history
@given(HISTORIES)
@example(GONE_AND_BACK)
def test_facts_point_at_the_version_valid_that_day(told: Any, history: History) -> None:
    tell(told, history)
    told.execute(
        sql.SQL(
            "select f.order_id, f.order_date, f.customer_key, v.customer_key from {} as f "
            "left join gold.dim_customer as v on v.customer_id = f.customer_id "
            "and v.valid_from < f.order_date + 1 "
            "and (v.valid_to is null or v.valid_to >= f.order_date + 1) "
        ).format(rendered("gold.fact_orders"))
    )
    found = told.fetchall()
    assert len(found) == (len(CUSTOMERS) + 1) * len(DAYS)
    assert [row for row in found if row[2] != (row[3] or 0)] == []


@any_history
@given(HISTORIES, WINDOWS)
@example(GONE_AND_BACK, [[month] for month in MONTHS])
def test_windows_add_up(told: Any, history: History, windows: list[list[date]]) -> None:
    fill(told, history)
    parts = sql.SQL(" union all ").join(rendered("gold.dim_customer", w[0], w[-1]) for w in windows)
    differing = sql.SQL(
        "with whole as {}, parts as ({}) "
        "(select 'lost', * from whole except all select 'lost', * from parts) union all "
        "(select 'gained', * from parts except all select 'gained', * from whole)"
    ).format(rendered("gold.dim_customer"), parts)
    told.execute(differing)
    assert told.fetchall() == []


@any_history
@given(HISTORIES, HISTORIES)
def test_what_comes_late_changes_no_earlier_month(
    told: Any, history: History, late: History
) -> None:
    # What a month is rebuilt for stands on this: on its own months of the inputs and earlier ones.
    month = MONTHS[len(MONTHS) // 2]
    after = History(
        _replaced_from(month, history.changes, late.changes),
        _replaced_from(month, history.listings, late.listings),
    )
    said = []
    for told_of in (history, after):
        tell(told, told_of)
        told.execute("select * from gold.dim_customer_stored where valid_from < %s", (month,))
        said.append(sorted(told.fetchall(), key=repr))
    assert said[0] == said[1]


def _replaced_from(
    month: date, rows: Sequence[Any], others: Sequence[Any]
) -> list[tuple[Any, ...]]:
    """Rows before `month`, and from it on the others."""
    first = month.isoformat()
    kept = [row for row in rows if row[1].isoformat() < first]
    return kept + [row for row in others if row[1].isoformat() >= first]


@settings(any_history, max_examples=25)
@given(HISTORIES, WINDOWS)
def test_months_built_in_any_order_are_what_one_window_says(
    empty: Platform, history: History, windows: list[list[date]]
) -> None:
    # Each example is built over the one before: every month is replaced.
    pool = empty.warehouse.pool
    job = table_job("gold.dim_customer", empty.warehouse.settings)
    with transaction(pool) as connection, connection.cursor() as cursor:
        fill(cursor, history)
    for window in windows:
        results = build_months(pool, job, window, workers=1, force=True)
        assert {r.outcome for r in results} <= {"published", "confirmed"}
    columns = as_text(identifiers(c.name for c in catalog().specs["gold.dim_customer"].stored))
    stored = f"(select {columns} from gold.dim_customer_stored where customer_key <> 0)"
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                f"with said as {{}} (select 1, * from said except all select 1, * from {stored} s) "
                f"union all (select 2, * from {stored} s except all select 2, * from said)"
            ).format(rendered("gold.dim_customer"))
        )
        assert cursor.fetchall() == []


# ---- stories


def test_a_change_that_reverts_makes_a_version(told: Any) -> None:
    tell(told, REVERTING)
    assert versions(told, "customer_name, valid_from") == [
        ("A", at(1, 5)),
        ("B", at(1, 7)),
        ("A", at(1, 9)),
    ]


def test_several_changes_of_a_month_are_kept(told: Any) -> None:
    changes = [(1, at(2, 10, 12, 0, second), f"{second}", None, None) for second in range(5)]
    tell(told, History(changes))
    assert versions(told, "customer_name, valid_to") == [
        *((f"{second}", at(2, 10, 12, 0, second + 1)) for second in range(4)),
        ("4", None),
    ]


def test_who_goes_and_comes_back_has_three_versions(told: Any) -> None:
    tell(told, History((), [*listed(1, 1, 4), *listed(2, 1, 2, 3, 4)]))
    columns = "valid_from, valid_to, customer_name, region, is_deleted, is_current"
    assert versions(told, columns) == [
        (at(1), at(2), "Ann", "North", False, False),
        (at(2), at(4), "Ann", "North", True, False),
        (at(4), None, "Ann", "North", False, True),
    ]


def test_a_month_without_a_snapshot_deletes_nobody(told: Any) -> None:
    tell(told, History((), listed(1, 1, 4)))
    assert versions(told, "valid_from, is_deleted") == [(at(1), False)]


def test_who_is_in_no_snapshot_is_never_deleted(told: Any) -> None:
    tell(told, History([(1, at(1, 5), "Ann", None, None)], listed(2, 1, 2, 3)))
    assert versions(told, "is_deleted, is_current") == [(False, True)]


def test_changes_of_the_deleted_are_kept_and_do_not_bring_them_back(told: Any) -> None:
    changes = [(1, at(2), "Bo", None, None), (1, at(3, 10), "Bo", None, "Rome")]
    tell(told, History(changes, [*listed(1, 1, 5), *listed(2, 1, 2, 5)]))
    columns = "valid_from, customer_name, city, is_deleted, disagreements"
    assert versions(told, columns) == [
        (at(1), "Ann", None, False, None),
        (at(2), "Bo", None, True, "name"),
        (at(3, 10), "Bo", "Rome", True, "name"),
        (at(5), "Bo", "Rome", False, "name"),
    ]


HEADER = "customer_id,customer_name,email,region\n"
BOTH, ANN_ONLY = HEADER + "1,Ann,,N\n2,Bo,,S\n", HEADER + "1,Ann,,N\n"


def test_a_deletion_reaches_customer_360_and_leaves_with_its_reason(platform: Platform) -> None:
    current = "select customer_id, month, is_deleted from gold.customer_360_current order by 1"
    january, february, march = MONTHS[:3]
    for month, snapshot in ((1, BOTH), (2, ANN_ONLY)):
        platform.land(f"crm/crm_customers_2025-0{month}.csv", snapshot)
    assert platform.build().succeeded
    assert platform.ask(current) == [(1, january, False), (2, february, True)]

    platform.land("crm/crm_customers_2025-03.csv", BOTH)
    assert platform.build().succeeded
    assert platform.ask(current) == [(1, january, False), (2, march, False)]

    platform.land("crm/crm_customers_2025-02.csv", BOTH)
    assert platform.build().succeeded
    assert platform.ask(current) == [(1, january, False), (2, january, False)]
    assert platform.one("select count(*) from gold.dim_customer where is_deleted") == 0
