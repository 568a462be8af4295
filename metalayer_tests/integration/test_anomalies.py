"""Profiles of what is published, and what is unusual in it: found at once, and silenced."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import dagster as dg
import numpy as np
import pytest

from metalayer.assets.keys import asset_key
from metalayer.cli import main
from metalayer.operations.anomalies import Anomaly, expect, judge, open_anomalies
from metalayer.operations.conditions import find
from metalayer.warehouse.pool import transaction
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
FIRST = date(2025, 3, 3)
WEEK = (300, 310, 290, 305, 330, 150, 125)
TABLES = ("bronze.orders", "silver.orders", "bronze.customers", "silver.customers")


def orders(day: date, rows: int, chance: np.random.Generator) -> str:
    """A day's file of orders."""
    first = (day - FIRST).days * 1000
    status = chance.choice(["PAID", "SHIPPED", "PENDING"], size=rows, p=[0.7, 0.2, 0.1])
    return ORDERS + "".join(
        f"{first + n},{n % 40 + 1},P{n % 9 + 1:05},{day},2,5.00,10.00,{status[n]}\n"
        for n in range(rows)
    )


def customers(day: date, rows: int, without_phone: float, chance: np.random.Generator) -> str:
    first = (day - FIRST).days * 1000
    lacking = chance.random(rows) < without_phone
    return CUSTOMERS + "".join(
        f"{first + n},Ada{n},Berg,a{first + n}@example.org,"
        f"{'' if lacking[n] else '+4520123456'},Aarhus,DK,8000,1990-01-01,{day},{day}\n"
        for n in range(rows)
    )


def land_day(platform: Platform, day: date, chance: np.random.Generator, *, share: float = 1.0,
             without_phone: float = 0.03) -> None:  # fmt: skip
    rows = round(WEEK[day.weekday()] * share * chance.uniform(0.94, 1.06))
    platform.land(f"erp/orders_{day}.csv", orders(day, rows, chance))
    rows = round(WEEK[day.weekday()] * chance.uniform(0.94, 1.06))
    platform.land(f"crm/customers_{day}.csv", customers(day, rows, without_phone, chance))


def unusual(platform: Platform) -> list[Anomaly]:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        return open_anomalies(cursor)


def test_clean_days_are_left_alone_and_faults_are_found_at_the_next_build(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixty days landed, then one a build: half the orders, and a third of the phones."""
    chance = np.random.default_rng(7)
    day = FIRST
    for _ in range(60):
        land_day(platform, day, chance)
        day += timedelta(days=1)
    assert platform.build(*TABLES).succeeded
    for _ in range(3):
        land_day(platform, day, chance)
        outcome = platform.build(*TABLES)
        assert outcome.succeeded
        assert outcome.warnings == []
        day += timedelta(days=1)
    assert unusual(platform) == []

    land_day(platform, day, chance, share=0.5)
    outcome = platform.build(*TABLES)
    assert outcome.succeeded  # it warns, and holds up nothing
    (found,) = unusual(platform)
    assert (found.table, found.measure, found.period) == ("silver.orders", "volume", str(day))
    assert found.observed < found.low
    (warning,) = outcome.warnings
    assert warning.startswith(f"silver.orders: {day}: ")
    assert "usually" in warning
    metadata = _metadata(platform, "silver.orders")
    assert "data:image/svg+xml;base64," in metadata["plot"].value
    assert f"--expected {found.id}" in metadata["what_to_do_next"].value
    (condition,) = [c for c in find(platform.warehouse.settings).told if "anomaly" in c.key]
    assert condition.key == "anomaly silver.orders"
    assert str(day) in condition.what

    day += timedelta(days=1)
    land_day(platform, day, chance, without_phone=0.33)
    assert platform.build(*TABLES).succeeded
    nulls = [a for a in unusual(platform) if a.measure == "nulls"]
    # And what is derived from it.
    assert {(a.table, a.column, a.period) for a in nulls} == {
        ("silver.customers", "phone", str(day)),
        ("silver.customers", "is_phone_valid", str(day)),
    }

    # Landed corrected it is over; what was expected is silent, and the audit log has why.
    platform.land(f"crm/customers_{day}.csv", customers(day, 300, 0.03, chance))
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        expect(cursor, found.id, "holiday")
    outcome = platform.build(*TABLES)
    assert unusual(platform) == []
    assert outcome.warnings == []
    acts = platform.ask("select subject, why from meta.acts where action = 'expect'")
    assert acts == [(f"anomaly {found.id} of silver.orders", "holiday")]
    assert platform.ask("select state, count(*) from meta.anomalies group by 1 order by 1") == [
        ("expected", 1),
        ("over", 2),
    ]
    # The fault stays in the ledger of anomalies, and the next half day is found all the same.
    day += timedelta(days=1)
    land_day(platform, day, chance, share=0.5)
    platform.build(*TABLES)
    assert [a.period for a in unusual(platform)] == [str(day)]


def _metadata(platform: Platform, table: str) -> dict[str, Any]:
    records = platform.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(asset_key(table), "looks_usual"), limit=1
    )
    (record,) = records
    assert record.event is not None
    assert record.event.dagster_event is not None
    return dict(record.event.dagster_event.asset_check_evaluation_data.metadata)


def test_a_profile_says_what_is_in_a_month(platform: Platform) -> None:
    platform.land(
        "erp/orders.csv",
        ORDERS
        + "1,7,P00001,2025-01-05,2,5.00,10.00,PAID\n"
        + "2,8,P00001,2025-01-05,4,5.00,20.00,PAID\n"
        + "3,7,P00002,2025-01-06,6,5.00,30.00,SHIPPED\n"
        + "4,7,P00002,2025-01-06,-1,5.00,30.00,SHIPPED\n",
    )
    platform.land(
        "crm/customers.csv",
        CUSTOMERS + "7,Ada,Berg,ada@example.org,,Aarhus,DK,8000,1990-01-01,2025-01-01,2025-01-03\n",
    )
    assert platform.build().succeeded
    ((rows, read, quarantined, columns, days),) = platform.ask(
        "select rows, rows_read, rows_quarantined, columns, days from meta.profiles "
        "where table_name = 'silver.orders'"
    )
    assert (rows, read, quarantined) == (3, 4, 1)
    quantity = columns["quantity"]
    assert (quantity["min"], quantity["max"], quantity["sum"], quantity["mean"]) == (
        "2",
        "6",
        12,
        4,
    )
    assert quantity["distinct"] == 3
    assert columns["customer_id"]["unresolved"] == 1
    assert columns["order_date"]["max"] == "2025-01-06"
    assert days == {
        "2025-01-05": {"rows": 2, "nulls": {}},
        "2025-01-06": {"rows": 1, "nulls": {}},
    }
    ((customer,),) = platform.ask(
        "select columns from meta.profiles where table_name = 'silver.customers'"
    )
    assert customer["phone"]["nulls"] == 1
    for name in ("first_name", "last_name", "email", "dob", "customer_id", "city"):
        told = customer[name]
        assert (told["min"], told["max"], told["top"]) == (None, None, []), name
        assert told["nulls"] == 0
    # No value of a person, nor their number, is in any profile.
    text = json.dumps(platform.ask("select columns::text from meta.profiles"))
    for value in ("Ada", "Berg", "ada@", "1990", "Aarhus", '"7"', '"8"'):
        assert value not in text, value


def test_every_published_month_has_one_and_those_that_lack_it_get_it(platform: Platform) -> None:
    lacking = (
        "select v.table_name, v.month from meta.versions as v left join meta.profiles as p "
        "using (table_name, month, version) where v.is_current and p.version is null"
    )
    platform.land("erp/orders.csv", ORDERS + "1,7,P00001,2025-01-05,2,5.00,10.00,PAID\n")
    assert platform.build(atomic=True).succeeded
    assert platform.ask(lacking) == []
    platform.ask("delete from meta.profiles returning 1")
    platform.land("erp/orders_2.csv", ORDERS + "2,7,P00001,2025-01-06,2,5.00,10.00,PAID\n")
    assert platform.build().succeeded
    assert not [t for t, _ in platform.ask(lacking) if t == "silver.orders"]
    # Earlier versions keep theirs, those that are 800 days old only the newest of a month.
    platform.ask("update meta.profiles set published_at = now() - interval '900 days' returning 1")
    platform.land("erp/orders_3.csv", ORDERS + "3,7,P00001,2025-01-06,2,5.00,10.00,PAID\n")
    assert platform.build().succeeded
    assert platform.ask(
        "select count(*) from meta.profiles where table_name = 'silver.orders'"
    ) == [(1,)]


def test_frequent_values_and_distinct_ones_come_from_a_sample(platform: Platform) -> None:
    chance = np.random.default_rng(3)
    platform.land("erp/orders.csv", orders(FIRST, 900, chance))
    platform.land("erp/orders_2.csv", orders(FIRST + timedelta(days=1), 900, chance))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    ((columns,),) = platform.ask(
        "select columns from meta.profiles where table_name = 'silver.orders'"
    )
    top = dict(columns["status"]["top"])
    assert set(top) == {"COMPLETED", "SHIPPED", "PENDING"}
    assert top["COMPLETED"] / 1800 == pytest.approx(0.7, abs=0.06)
    assert columns["product_code"]["distinct"] == 9
    assert columns["order_id"]["distinct"] == pytest.approx(1800, rel=0.05)


def test_months_are_judged_where_rows_have_no_days(platform: Platform) -> None:
    today = date(2026, 1, 10)
    rows = [1000, 1010, 990, 1005, 1000, 995, 1003, 1001, 1000, 480]
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        for number, count in enumerate(rows):
            month = date(2025, number + 1, 1)
            _published(
                cursor, "gold.made_up", month, count, {"a": {"nulls": 0, "top": [["x", count]]}}
            )
        from datetime import UTC, datetime

        now = datetime(today.year, today.month, today.day, tzinfo=UTC)
        found = judge(cursor, "gold.made_up", {date(2025, 10, 1): set()}, now)
        assert [(a.measure, a.period) for a in found] == [("volume", "2025-10")]
        assert judge(cursor, "gold.made_up", {date(2025, 9, 1): set()}, now) == found
        _published(cursor, "gold.made_up", date(2025, 11, 1), 1000,
                   {"a": {"nulls": 400, "top": [["y", 600]]}})  # fmt: skip
        found = judge(cursor, "gold.made_up", {date(2025, 11, 1): set()}, now)
        assert {(a.measure, a.column, a.period) for a in found} == {
            ("volume", "", "2025-10"),
            ("nulls", "a", "2025-11"),
            ("distribution", "a", "2025-11"),
        }
        connection.rollback()


def _published(cursor: Any, table: str, month: date, rows: int, columns: dict[str, Any]) -> None:
    cursor.execute(
        "insert into meta.versions (table_name, month, version, is_current, leaf, data_version, "
        "code_version, inputs, rows_read, rows, rows_quarantined, rows_superseded, seconds) "
        "values (%s, %s, 1, true, 'x', 'x', 'x', '{}', %s, %s, 0, 0, 0)",
        (table, month, rows, rows),
    )
    cursor.execute(
        "insert into meta.profiles (table_name, month, version, published_at, rows_read, rows, "
        "rows_quarantined, rows_superseded, columns) values (%s, %s, 1, now(), %s, %s, 0, 0, %s)",
        (table, month, rows, rows, json.dumps(columns)),
    )


def test_the_command_wants_a_reason_and_knows_its_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, platform: Platform
) -> None:
    settings = platform.warehouse.settings
    assert settings.database_url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("METALAYER_HOME", str(settings.home))
    assert main(["anomalies"]) == 0
    assert "Nothing unusual" in capsys.readouterr().err
    assert main(["anomalies", "--expected", "3"]) == 2
    assert "needs a reason" in capsys.readouterr().err
    assert main(["anomalies", "--expected", "3", "--why", "x"]) == 2
    assert "There is no anomaly 3" in capsys.readouterr().err
