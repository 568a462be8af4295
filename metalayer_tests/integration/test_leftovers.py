"""What killed commands left behind goes with the next build, and what others use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest
from psycopg2 import sql
from sqlalchemy import create_engine, inspect, text

from metalayer.assets.headless import dagster_instance
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.locks import lock_months, unlock_all
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.sweep import sweep
from metalayer_tests.story import Platform

DAY = 24 * 60 * 60
LEAVES = "select relname from pg_class where relnamespace = 'months'::regnamespace order by 1"
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"


def order(number: int, day: str) -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,PAID\n"


def leave_behind(platform: Platform, names: Sequence[str]) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(
                sql.SQL("create table {} (like silver.orders)").format(
                    sql.Identifier("months", name)
                )
            )


def test_a_build_begins_with_a_sweep(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    kept = platform.ask(LEAVES)
    of_the_user = "notes_on_2025"
    leave_behind(platform, [of_the_user])
    leave_behind(
        platform,
        [
            "silver_orders_2025_01_900001",  # of a month that is up to date
            "silver_orders_2031_12_900002",  # of one that nobody will build
            "gold_no_more_2025_01_900003",  # of a table that has left the catalog
            "stage_silver_orders_900004",
        ],
    )
    assert platform.build().succeeded
    assert set(platform.ask(LEAVES)) >= {*kept, (of_the_user,)}
    assert platform.ask("select count(*) from silver.orders") == [(2,)]
    assert not platform.ask(
        "select relname from pg_class where relnamespace = 'months'::regnamespace "
        "and relname ~ '_90000[0-9]$'"
    )


def test_a_stage_goes_with_all_that_belongs_to_it(platform: Platform) -> None:
    before = platform.ask(LEAVES)
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create table months.stage_silver_orders_3 (like silver.orders) "
            "partition by range (order_date); "
            "create table months.silver_orders_2025_01_1 partition of months.stage_silver_orders_3 "
            "for values from ('2025-01-01') to ('2025-02-01'); "
            "create table months.stage_silver_orders_3_outside "
            "partition of months.stage_silver_orders_3 default"
        )
    assert sweep(platform.warehouse.pool) == ["stage_silver_orders_3"]
    assert platform.ask(LEAVES) == before


@pytest.mark.parametrize(
    "left",
    [
        "create table months.silver_orders_2025_01_1 (like silver.orders)",
        "create table months.stage_silver_orders_3 (like silver.orders) "
        "partition by range (order_date); "
        "create table months.silver_orders_2025_01_1 partition of months.stage_silver_orders_3 "
        "for values from ('2025-01-01') to ('2025-02-01')",
    ],
    ids=["leaf", "stage"],
)
def test_what_a_live_build_has_staged_stays(platform: Platform, left: str) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(left)
    with transaction(platform.warehouse.pool) as build, build.cursor() as cursor:
        lock_months(cursor, "silver.orders", [date(2025, 1, 1)])
        build.commit()
        assert sweep(platform.warehouse.pool) == []
        unlock_all(cursor)
    assert len(sweep(platform.warehouse.pool)) == 1


def test_a_leaf_that_somebody_reads_waits_for_the_next_sweep(platform: Platform) -> None:
    leave_behind(platform, ["silver_orders_2025_01_1", "silver_orders_2025_02_2"])
    with transaction(platform.warehouse.pool) as backup, backup.cursor() as cursor:
        cursor.execute("select count(*) from months.silver_orders_2025_01_1")
        began = time.monotonic()
        assert sweep(platform.warehouse.pool) == ["silver_orders_2025_02_2"]
        assert time.monotonic() - began < 5
    assert sweep(platform.warehouse.pool) == ["silver_orders_2025_01_1"]


def test_half_copies_and_half_parses_of_yesterday_go(platform: Platform) -> None:
    landing, parsed = platform.landing, platform.warehouse.settings.parsed_dir
    ours = ".orders.csv.0123456789abcdef0123456789abcdef.part"
    young = ".orders.csv.fedcba9876543210fedcba9876543210.part"
    for folder in (landing / "erp", parsed / "erp_orders"):
        folder.mkdir(parents=True)
    made = [landing / "erp" / name for name in (ours, "orders.csv.part", ".orders.csv.part", young)]
    for path in made:
        path.write_text(ORDERS)
    folders = [parsed / "erp_orders" / name for name in (".parse-old", ".parse-young")]
    for path in folders:
        path.mkdir()
        (path / "lines").write_text("1")
    # A folder keeps its time while a file in it grows.
    grows = parsed / "erp_orders" / ".parse-grows"
    grows.mkdir()
    (grows / "lines").write_text("1")
    for path in (*made[:3], folders[0] / "lines", folders[0], grows):
        os.utime(path, (time.time() - DAY - 60,) * 2)
    platform.register()
    assert sorted(p.name for p in (landing / "erp").iterdir()) == sorted(p.name for p in made[1:])
    assert {p.name for p in (parsed / "erp_orders").iterdir()} == {".parse-young", grows.name}


# Dies as Dagster's tables are being made: so many of them are there, if each is by itself.
DIES_MAKING_TABLES = """
import os, signal, sys
from sqlalchemy.sql.ddl import SchemaGenerator
made, create = [], SchemaGenerator.visit_table
def visit_table(self, table, **options):
    create(self, table, **options)
    made.append(table)
    if len(made) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
SchemaGenerator.visit_table = visit_table
from metalayer.assets.headless import dagster_instance
from metalayer.settings import Settings
with dagster_instance(Settings(_env_file=None, home=sys.argv[1]), sys.argv[2]):
    pass
"""


def test_dagster_has_all_its_tables_or_none(
    empty_database: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    for number in ("6", "14"):
        died = subprocess.run(
            [sys.executable, "-c", DIES_MAKING_TABLES, str(home), empty_database, number],
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert died.returncode == -9, died.stderr
        assert _tables(empty_database) == []
    with dagster_instance(Settings(_env_file=None, home=home), empty_database) as instance:
        assert instance.get_runs(limit=1) == []
        assert not instance.all_asset_keys()
        assert not instance.all_instigator_state()
        # What Dagster notes when it makes its tables itself, so that it migrates nothing later.
        assert instance.event_log_storage.has_secondary_index("asset_key_table")  # type: ignore[attr-defined]
    assert {"runs", "event_logs", "instigators", "alembic_version"} < set(_tables(empty_database))
    assert capfd.readouterr() == ("", "")


def _tables(url: str) -> list[str]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            connection.execute(text("select 1"))
            return inspect(connection).get_table_names()
    finally:
        engine.dispose()
