"""What holds of built tables whatever their rows: windows add up, versions follow each other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import pytest
from psycopg2 import sql

from metalayer.catalog import catalog
from metalayer.jobs import months_between
from metalayer.lineage.select import FAILED_CASTS, render
from metalayer.sample import generate
from metalayer.warehouse.ddl import identifiers, next_month
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.integration.sharing import module_platform
from metalayer_tests.story import Platform

FIRST, LAST = date(2025, 1, 1), date(2025, 5, 1)
MONTHS = months_between(FIRST, LAST)
#: A customer who is told of five times and changes twice: moves away and comes back.
REPEATED_ID = 99_000_001
REPEATED = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
    + "".join(
        f"{REPEATED_ID},Ada,Berg,,,{city},DK,8000,,,2025-{day}\n"
        for day, city in (
            ("01-05", "Aarhus"),
            ("01-06", "aarhus"),
            ("01-07", "aarhus"),
            ("03-01", "aarhus"),
            ("03-02", "Aarhus"),
        )
    )
)


@pytest.fixture(scope="module")
def built(server: WarehouseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Generated data of all months but the last, built once. Nothing here changes it."""
    folder = tmp_path_factory.mktemp("windows")
    with module_platform(server, folder, FIRST, LAST) as platform:
        made = generate(
            folder / "out", rows=500, months=len(MONTHS) - 1, dirt=0.02, seed=23, start_month=FIRST
        )
        platform.land_files([g.file for g in made], folder / "out")
        platform.land("crm/customers_repeated.csv", REPEATED)
        outcome = platform.build()
        assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
        yield platform


@pytest.mark.parametrize("name", sorted(catalog().selects))
def test_a_window_of_months_is_its_months_together(built: Platform, name: str) -> None:
    tables = catalog()
    spec, select = tables.specs[name], tables.selects[name]

    def rendered(start: date, end: date) -> str:
        return f"({render(select, spec, tables.specs, start, end)})"

    columns = [c.name for c in spec.stored]
    whole = rendered(FIRST, next_month(LAST))
    parts = [rendered(month, next_month(month)) for month in MONTHS]
    if spec.source is not None:
        columns.append(FAILED_CASTS)
    with transaction(built.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "with whole as {whole}, parts as ({parts}), "
                "lost as (select * from whole except all select * from parts), "
                "gained as (select * from parts except all select * from whole) "
                "select (select count(*) from whole), (select count(*) from lost), "
                "(select count(*) from gained)"
            ).format(whole=sql.SQL(whole), parts=sql.SQL(" union all ").join(map(sql.SQL, parts)))
        )
        ((rows, lost, gained),) = cursor.fetchall()
    assert rows > 0
    assert (lost, gained) == (0, 0)


def test_what_is_published_is_what_the_selects_say_now(built: Platform) -> None:
    for name, spec in catalog().specs.items():
        if spec.layer != "gold":
            continue
        select = render(catalog().selects[name], spec, catalog().specs, FIRST, next_month(LAST))
        stored = sql.Identifier(spec.layer, spec.stored_name)
        member = sql.SQL("true")
        if spec.unknown_member is not None:
            member = sql.SQL("{} <> 0").format(sql.Identifier(spec.key[0]))
        with transaction(built.warehouse.pool) as connection, connection.cursor() as cursor:
            cursor.execute(
                sql.SQL(
                    "select count(*) from (select {columns} from {stored} where {member} "
                    "except all ({select})) as x"
                ).format(
                    columns=identifiers(c.name for c in spec.stored),
                    stored=stored,
                    member=member,
                    select=sql.SQL(select),
                )
            )
            assert cursor.fetchone() == (0,), name


def test_versions_of_a_customer_follow_each_other_without_gap_or_overlap(built: Platform) -> None:
    counts = "select count(*) from gold.dim_customer group by customer_id order by 1 desc limit 1"
    assert built.one(counts) > 2
    broken = built.ask(
        "select customer_id, valid_from, valid_to, next_from from ("
        "select customer_id, valid_from, valid_to, is_current, lead(valid_from) over "
        "(partition by customer_id order by valid_from) as next_from "
        "from gold.dim_customer where customer_key <> 0) as versions "
        "where valid_to is distinct from next_from or valid_to <= valid_from "
        "or is_current <> (next_from is null)"
    )
    assert broken == []


def test_a_customer_has_one_current_version(built: Platform) -> None:
    others = built.ask(
        "select customer_id from gold.dim_customer where customer_key <> 0 "
        "group by customer_id having count(*) filter (where is_current) <> 1"
    )
    assert others == []
    assert built.ask("select is_current from gold.dim_customer where customer_key = 0") == [(True,)]


def test_a_version_begins_where_something_changed(built: Platform) -> None:
    versions = (
        "select valid_from::date, city from gold.dim_customer where customer_id = %s order by 1"
    )
    assert built.ask(versions, REPEATED_ID) == [
        (date(2025, 1, 5), "Aarhus"),
        (date(2025, 1, 6), "aarhus"),
        (date(2025, 3, 2), "Aarhus"),
    ]


def test_a_version_differs_from_the_one_before(built: Platform) -> None:
    attributes = [
        c.name
        for c in catalog().specs["gold.dim_customer"].stored
        if c.name not in ("customer_key", "customer_id", "valid_from")
    ]
    row = f"row({', '.join(attributes)})"
    repeated = built.ask(
        f"select customer_id, valid_from from (select *, {row} as now, "
        f"lag({row}) over versions as before, row_number() over versions as n "
        "from gold.dim_customer where customer_key <> 0 "
        "window versions as (partition by customer_id order by valid_from)) as x "
        "where n > 1 and now is not distinct from before"
    )
    assert repeated == []


def test_the_newest_row_of_a_customer_is_the_customer_today(built: Platform) -> None:
    current = built.ask("select customer_id, month from gold.customer_360_current order by 1")
    assert current == built.ask(
        "select customer_id, max(month) from gold.customer_360 group by 1 order by 1"
    )
