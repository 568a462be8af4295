"""Builds that are killed, and servers killed under them: the next build finishes with no hand."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from metalayer.assets.breaking import RETRIES
from metalayer.assets.headless import BuildOutcome
from metalayer.catalog import catalog
from metalayer.governance.sealing import key_file
from metalayer.sample import generate
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.acts import record
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.postgres import PORT, SUPERUSER, Cluster
from metalayer.warehouse.publish import SWAP_TIMEOUT_MS, SWAP_TRIES
from metalayer.warehouse.server import warehouse_server
from metalayer_tests.story import Platform

#: Tables in `months` that no version of any month owns; the Unknown members have no version.
LEFTOVERS = (
    "select c.relname from pg_class as c where c.relnamespace = 'months'::regnamespace "
    "and c.relkind in ('r', 'p') and c.relname not like '%%\\_unknown' "
    "and not exists (select from meta.versions as v where v.leaf = c.relname)"
)
#: Bronze names its deliveries, and a killed registration leaves a gap in their numbers.
CONTENTS = (
    "select table_name, month, case when table_name not like 'bronze.%%' then data_version end, "
    "rows_read, rows, rows_quarantined, rows_superseded from meta.versions where is_current "
    "order by 1, 2"
)
LEDGER = (
    "select file, status, rows_read, rows_loaded, rows_rejected, rows_superseded from meta.ledger "
    "order by file"
)


@dataclass(frozen=True)
class Home:
    """A home with an embedded server, in which commands are run and killed."""

    settings: Settings

    def start(self) -> subprocess.Popen[str]:
        """`metalayer build`, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "metalayer", "build"],
            cwd=self.settings.home.parent,
            env={
                **os.environ,
                "METALAYER_HOME": str(self.settings.home),
                "PYTHONPATH": str(PROJECT_ROOT),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def postgres(self) -> list[psutil.Process]:
        """Live processes of this home's server, the postmaster first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if (
                    process.name() == "postgres"
                    and process.status() != psutil.STATUS_ZOMBIE
                    and process.cwd() == str(self.settings.pgdata)
                ):
                    found.append(process)
        return sorted(found, key=lambda p: p.create_time())

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(
            host=str(Cluster(self.settings.pgdata).socket_dir),
            port=PORT,
            user=SUPERUSER,
            dbname="metalayer",
            connect_timeout=5,
        )
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def published(self) -> int:
        """Months that are published by now; 0 while the server cannot say."""
        with contextlib.suppress(psycopg2.Error, OSError):
            return int(self.ask("select count(*) from meta.versions")[0][0])
        return 0


@pytest.fixture
def home(server_folder: Path) -> Iterator[Home]:
    home = Home(Settings(_env_file=None, home=server_folder / "home"))
    home.settings.home.mkdir(mode=0o711)
    yield home
    for process in home.postgres():
        process.kill()


def wait_until(reached: Callable[[], bool], command: subprocess.Popen[str]) -> bool:
    """Whether it came to that before the command ended."""
    while command.poll() is None:
        if reached():
            return True
        time.sleep(0.01)
    return False


def test_a_build_killed_at_any_instant_is_finished_by_the_next(
    home: Home, platform: Platform, tmp_path: Path
) -> None:
    made = generate(tmp_path / "out", rows=300, months=2, dirt=0.02, seed=13)
    platform.land_files([g.file for g in made], tmp_path / "out")
    shutil.copytree(platform.landing, home.settings.landing)
    assert platform.build().succeeded
    # The same key, so that what is encrypted can be compared.
    home.settings.home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(key_file(platform.warehouse.settings), key_file(home.settings))
    all_months = platform.one("select count(*) from meta.versions")

    def builder(command: subprocess.Popen[str]) -> None:
        os.killpg(command.pid, signal.SIGKILL)

    def postmaster(_command: subprocess.Popen[str]) -> None:
        home.postgres()[0].kill()

    def everything(command: subprocess.Popen[str]) -> None:
        builder(command)
        for process in home.postgres():
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with its postmaster
                process.kill()

    instants = random.Random(17)  # noqa: S311 - instants, not secrets
    reading = home.settings.parsed_dir
    kills: list[tuple[Callable[[subprocess.Popen[str]], None], Callable[[], bool]]] = [
        (builder, lambda: reading.is_dir() and any(reading.rglob("*"))),
        (everything, lambda: home.published() >= 3),
        (postmaster, lambda: home.published() >= all_months // 3),
        (builder, lambda: home.published() >= all_months * 2 // 3),
    ]
    for kill, reached in kills:
        with home.start() as command:
            assert wait_until(reached, command), command.communicate()
            time.sleep(instants.uniform(0, 0.1))
            kill(command)
            said, _ = command.communicate(timeout=120)
            assert command.returncode != 0
            assert "Traceback" not in said, said

    with home.start() as command:
        said, _ = command.communicate(timeout=300)
        assert command.returncode == 0, said
    assert home.postgres() == []

    # The server only runs while a command does: another one, to look.
    with warehouse_server(home.settings):
        assert home.ask(CONTENTS.replace("%%", "%")) == platform.ask(CONTENTS)
        assert home.ask(LEDGER) == platform.ask(LEDGER)
        assert home.ask(LEFTOVERS.replace("%%", "%")) == []
    assert home.postgres() == []


def test_a_server_that_crashes_after_its_first_start_gives_out_no_number_twice(
    home: Home,
) -> None:
    # Its log holds nothing of what is drawn from a sequence in the transaction that makes it.
    with warehouse_server(home.settings) as server:
        pool = connect_pool(server.warehouse_url, 1)
        with transaction(pool) as connection:
            prepare(connection, list(catalog().specs.values()), catalog().selects)
        with transaction(pool) as connection, connection.cursor() as cursor:
            record(cursor, "test", "before")
        pool.dispose()
        home.postgres()[0].kill()
    with warehouse_server(home.settings) as server:
        pool = connect_pool(server.warehouse_url, 1)
        with transaction(pool) as connection, connection.cursor() as cursor:
            record(cursor, "test", "after")
        pool.dispose()
        acts = [act for (act,) in home.ask("select subject from meta.acts order by act_id")]
        assert acts == ["schema", "before", "after"]


def order(number: int, day: str) -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,PAID\n"


def test_a_publish_that_dies_half_way_is_none(platform: Platform) -> None:
    columns = (
        "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
    )
    waiting = (
        "select array_agg(pid) from pg_locks where not granted "
        "and relation = 'meta.versions'::regclass"
    )
    rows: list[tuple[int]] = []
    # First a month that is attached, then one whose rows are replaced.
    for number in (1, 2):
        platform.land("erp/orders.csv", columns + order(number, "2025-01-05"))
        assert platform.build("bronze.orders").succeeded
        outcomes: list[BuildOutcome] = []
        build = threading.Thread(
            target=lambda found=outcomes: found.append(platform.build("silver.orders"))
        )
        with transaction(platform.warehouse.pool) as other, other.cursor() as cursor:
            # Who has put the rows in place cannot record that he has.
            cursor.execute("lock table meta.versions in share mode")
            build.start()
            deaths = 0
            # It is tried again, and dies the same way until it is given up.
            while build.is_alive():
                if platform.one(waiting):
                    # The swap of a published month gives up waiting a few times.
                    time.sleep(SWAP_TRIES * SWAP_TIMEOUT_MS / 1000 * 4)
                    backends = platform.one(waiting)
                    assert backends
                    cursor.execute("select pg_terminate_backend(unnest(%s))", (backends,))
                    deaths += 1
                time.sleep(0.05)
        assert deaths >= RETRIES.max_retries + 1
        assert not outcomes[0].succeeded
        # What ended the session, and not what failed for want of it.
        assert re.search("terminating|server closed", str(outcomes[0].errors)), outcomes[0].errors
        assert platform.ask("select order_id from silver.orders") == rows
        assert platform.build("silver.orders").succeeded
        rows = [(number,)]
        assert platform.ask("select order_id from silver.orders") == rows
        assert platform.ask(LEFTOVERS) == []
        assert platform.balances()


def test_a_new_month_waits_for_maintenance_of_its_table(platform: Platform) -> None:
    columns = (
        "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
    )
    platform.land("erp/orders.csv", columns + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build("bronze.orders").succeeded
    outcomes: list[BuildOutcome] = []
    build = threading.Thread(target=lambda: outcomes.append(platform.build("silver.orders")))
    with transaction(platform.warehouse.pool) as other, other.cursor() as cursor:
        # As ANALYZE, or CREATE INDEX, does for as long as it takes.
        cursor.execute("lock table silver.orders in share update exclusive mode")
        build.start()
        waiting = "select count(*) from pg_locks where not granted and mode like 'ShareUpdate%%'"
        while build.is_alive() and not platform.one(waiting):
            time.sleep(0.05)
        time.sleep(SWAP_TRIES * SWAP_TIMEOUT_MS / 1000 * 3)
        assert build.is_alive()
        assert platform.one("select count(*) from silver.orders") == 0
    build.join(60)
    assert outcomes[0].succeeded, outcomes[0].errors
    assert platform.one("select count(*) from silver.orders") == 2
