"""Connections that break, landed files that are lost, builds that meet: said, and mended."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg2
import pytest

from metalayer.errors import WarehouseError
from metalayer.governance.sealing import key_file
from metalayer.outages import outage
from metalayer.settings import PROJECT_ROOT
from metalayer_tests.integration.ground import (
    LEFTOVERS,
    UNBALANCED,
    Ground,
    open_ground,
)
from metalayer_tests.integration.killing import Ended
from metalayer_tests.story import Platform

CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
CUSTOMER = "7,Ada,Berg,ada@example.org,,Aarhus,DK,8000,1990-01-01,2025-01-01,2025-01-03\n"
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
#: What is published; the data version of a bronze month names deliveries by number.
PUBLISHED = (
    "select table_name, month, case when starts_with(table_name, 'bronze.') then null "
    "else data_version end, rows, rows_read from meta.versions where is_current order by 1, 2"
)

#: Copies rows into connections that have just been ended.
COPIES = """
import sys
import duckdb
import psycopg2
from metalayer.landing.copy import copy_from_duckdb
for _ in range(40):
    connection = psycopg2.connect(sys.argv[1])
    cursor = connection.cursor()
    cursor.execute("create temp table numbers (n bigint)")
    connection.commit()
    with psycopg2.connect(sys.argv[1]) as other, other.cursor() as end:
        end.execute("select pg_terminate_backend(%s)", (connection.get_backend_pid(),))
    other.close()
    try:
        copy_from_duckdb(
            duckdb.connect(), "select range from range(300000)", cursor,
            "copy numbers from stdin (format csv)",
        )
    except psycopg2.OperationalError:
        print("lost", flush=True)
"""


def order(number: int, day: str) -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,PAID\n"


def orders(first: int) -> str:
    """A file of a year of orders."""
    rows = (order(first + number, f"2025-{number % 12 + 1:02}-05") for number in range(240))
    return ORDERS + "".join(rows)


@pytest.mark.parametrize("seed", [1, 2])
def test_dropped_connections_are_named_and_the_next_build_finishes(
    server_folder: Path, platform: Platform, seed: int
) -> None:
    instants = random.Random(seed)  # noqa: S311 - instants, not secrets
    files = {f"erp/orders_{number}.csv": orders(number * 120) for number in range(4)}
    files |= {"crm/customers.csv": CUSTOMERS + CUSTOMER}
    tables = ("bronze.orders", "silver.orders", "silver.customers", "bronze.customers")
    with open_ground(server_folder / "home", server_folder / "landing") as ground:
        assert ground.commands.run("build", *tables).code == 0
        said: list[str] = []
        for name, content in files.items():
            ground.land({name: content})
            _let_disturbed(ground, tables, instants.uniform(0.1, 1.0), said)
        # A fast machine, or a slow one, may have missed them all.
        while not said:
            _let_disturbed(ground, (*tables, "--force"), instants.uniform(0.0, 3.0), said)
        ended = ground.commands.run("build", *tables)
        assert ended.code == 0, ended.said
        # The same key, so that what is encrypted can be compared.
        platform.warehouse.settings.home.mkdir(exist_ok=True)
        shutil.copyfile(key_file(ground.settings), key_file(platform.warehouse.settings))
        for name, content in files.items():
            platform.land(name, content)
        assert platform.build(*tables).succeeded
        assert ground.ask(PUBLISHED) == platform.ask(PUBLISHED)
        assert ground.ask(UNBALANCED) == []
        assert ground.ask(LEFTOVERS) == []


def test_rows_on_their_way_to_a_lost_connection_are_let_go(database: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", COPIES, database.replace("+psycopg2", "")],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=90,
    )
    assert said.stdout == "lost\n" * 40


def _let_disturbed(
    ground: Ground, arguments: tuple[str, ...], after: float, said: list[str]
) -> None:
    """Disturb a build; if that was noticed, what it said is added to `said`."""
    ended = _disturbed(ground, arguments, after)
    assert ended.code in (0, 1), ended.said
    assert "Traceback" not in ended.said
    assert "defect" not in ended.said
    if ended.code:
        assert "PostgreSQL was lost" in ended.said or "cannot be reached" in ended.said
        said.append(ended.said)


def _disturbed(ground: Ground, arguments: tuple[str, ...], after: float) -> Ended:
    """A build, all of whose sessions are ended at some instant."""
    found: list[Ended] = []
    build = threading.Thread(target=lambda: found.append(ground.commands.run("build", *arguments)))
    build.start()
    time.sleep(after)
    with ground.connection("postgres") as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
    build.join(120)
    return found[0]


def test_a_lost_landing_file_is_not_needed_while_its_parse_is_kept(platform: Platform) -> None:
    landed = platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    landed.unlink()
    platform.land("erp/orders_late.csv", ORDERS + order(2, "2025-01-06"))
    assert platform.build("bronze.orders", "silver.orders", force=True).succeeded
    assert platform.ask("select order_id from silver.orders order by 1") == [(1,), (2,)]
    assert platform.balances()


def test_rows_that_are_lost_altogether_stop_their_table_and_nothing_else(
    platform: Platform,
) -> None:
    first = ORDERS + order(1, "2025-01-05")
    platform.land("crm/customers.csv", CUSTOMERS + CUSTOMER)
    landed = platform.land("erp/orders.csv", first)
    assert platform.build().succeeded
    before = platform.frame("silver.orders")
    landed.unlink()
    shutil.rmtree(platform.warehouse.settings.parsed_dir / "erp_orders")
    lost = "neither their parse nor the landed file"

    # A rebuild needs the rows; who does not read them is built.
    forced = platform.build(force=True)
    assert [
        e for e in forced.errors if "bronze.orders" in e and "erp/orders.csv" in e and lost in e
    ]
    assert len(forced.errors) == 1, forced.errors
    assert "Land erp/orders.csv as it was once more" in forced.errors[0]
    assert "metalayer." not in forced.errors[0]
    built = {r.table for r in forced.months if r.outcome in ("published", "confirmed")}
    assert {"bronze.customers", "silver.customers", "gold.dim_customer"} <= built
    assert platform.frame("silver.orders").equals(before)

    # So does taking in another file, whose keys must be held against them.
    platform.land("erp/orders_late.csv", ORDERS + order(2, "2025-01-06"))
    platform.land("erp/erp_sales.csv", SALES + "1,1,7,2,2025-01-09,10.00\n")
    registered = platform.register()
    assert [d.file for d in registered.deliveries] == ["erp/erp_sales.csv"]
    (left,) = [s for s in registered.skipped if s.name == "erp/orders_late.csv"]
    assert "erp/orders.csv" in left.reason
    assert lost in left.reason
    assert platform.build().succeeded
    assert platform.one("select count(*) from silver.erp_sales") == 1
    assert platform.frame("silver.orders").equals(before)
    assert platform.balances()

    platform.land("erp/orders.csv", first)
    assert platform.build(force=True).succeeded
    assert platform.ask("select order_id from silver.orders order by 1") == [(1,), (2,)]
    assert platform.balances()


def test_two_builds_at_once_share_the_work(server_folder: Path, platform: Platform) -> None:
    tables = ("bronze.orders", "silver.orders", "bronze.erp_sales", "silver.erp_sales")
    files = {
        "crm/customers.csv": CUSTOMERS + CUSTOMER,
        "erp/orders.csv": orders(1),
        "erp/erp_sales.csv": SALES + "1,1,7,2,2025-01-09,10.00\n",
    }
    with open_ground(server_folder / "home", server_folder / "landing") as ground:
        assert ground.commands.run("build", *tables).code == 0
        ground.land(files)
        builds = [_command(ground, "build", *tables) for _ in range(2)]
        said = [build.communicate(timeout=300)[0] for build in builds]
        assert [build.returncode for build in builds] == [0, 0], said
        for name, content in files.items():
            platform.land(name, content)
        assert platform.build(*tables).succeeded
        assert ground.ask(PUBLISHED) == platform.ask(PUBLISHED)
        # Whoever came second to a month found it current.
        assert ground.ask("select distinct version from meta.versions") == [(1,)]
        assert ground.ask("select count(*) from meta.deliveries") == [(3,)]
        assert ground.ask(UNBALANCED) == []
        assert ground.ask(LEFTOVERS) == []


def _command(ground: Ground, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "metalayer", *arguments],
        cwd=ground.settings.home.parent,
        env={
            **os.environ,
            "METALAYER_HOME": str(ground.settings.home),
            "METALAYER_LANDING": str(ground.settings.landing),
            "PYTHONPATH": str(PROJECT_ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (psycopg2.DatabaseError("server closed the connection unexpectedly"), True),
        (psycopg2.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg2.InterfaceError("connection already closed"), True),
        (psycopg2.DatabaseError("error with status PGRES_TUPLES_OK and no message"), False),
        (psycopg2.ProgrammingError("no results to fetch"), False),
    ],
)
def test_a_connection_that_is_lost_is_told_from_other_errors(
    error: psycopg2.Error, is_lost: bool
) -> None:
    assert isinstance(outage(error), WarehouseError) == is_lost
