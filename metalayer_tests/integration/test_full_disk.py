"""A disk that fills up: said plainly, readers keep whole months, and with room a build finishes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import psycopg2
import pytest

from metalayer.catalog import catalog
from metalayer.errors import DiskFullError
from metalayer.landing.reader import parse
from metalayer.landing.shape import shape_of
from metalayer.outages import outage
from metalayer_tests.integration.ground import (
    LEFTOVERS,
    UNBALANCED,
    Ground,
    open_ground,
    reading,
)

MB = 1024 * 1024
TABLES = ("bronze.orders", "silver.orders", "gold.dim_product")
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
#: Megabytes free while a build runs, and how many orders it takes in: each breaks off elsewhere.
ROOMS = [0, 2, 12]
ROWS = 40_000


def orders(first: int, rows: int) -> str:
    lines = (
        f"{number},{number % 97},P{number % 500:05},2025-{number % 3 + 1:02}-05,2,5.00,10.00,PAID\n"
        for number in range(first, first + rows)
    )
    return ORDERS + "".join(lines)


@contextlib.contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """Leave so many bytes of a disk."""
    ballast = disk / "ballast"
    facts = os.statvfs(disk)
    size = facts.f_bavail * facts.f_frsize - left
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    try:
        yield
    finally:
        ballast.unlink()


def test_a_full_disk_is_no_word_on_the_file_that_was_read(
    mounted: Callable[[int], Path], tmp_path: Path
) -> None:
    # Rejected, it would not get another chance. The lines of the file fill it, or its rows.
    landed = tmp_path / "orders.csv"
    landed.write_text(orders(1, 40_000))
    shape = shape_of(catalog().sources["erp/orders"], date(2020, 1, 1), datetime.now(UTC).date())
    for size in (MB // 4, MB, 2 * MB):
        disk = mounted(size)
        with pytest.raises((OSError, duckdb.Error)) as raised:
            parse(landed, shape, date(2025, 1, 1), disk / "rows", disk / "rejects")
        found = outage(raised.value)
        assert isinstance(found, DiskFullError), raised.value
        assert "No space left on device" in found.message
        assert "exception" not in found.message
        assert list(disk.iterdir()) == []


def test_what_does_not_fit_in_memory_and_on_the_disk_is_a_full_disk(
    mounted: Callable[[int], Path],
) -> None:
    spill = {"memory_limit": "30MB", "temp_directory": str(mounted(MB)), "threads": 1}
    with duckdb.connect(config=spill) as memory, pytest.raises(duckdb.Error) as raised:
        memory.execute("create table t as select range as n, uuid() as u from range(2_000_000)")
        memory.execute("select * from t order by u").fetchall()
    assert isinstance(outage(raised.value), DiskFullError), raised.value


def test_builds_on_a_disk_that_fills_up(
    mounted: Callable[[int], Path], server_folder: Path
) -> None:
    files = [{f"erp/orders_{n}.csv": orders(n * ROWS, ROWS)} for n in range(len(ROOMS) + 1)]
    with open_ground(server_folder / "home", server_folder / "landing") as calm:
        for number, landed in enumerate(files):
            calm.land(landed)
            assert calm.commands.run("build", *TABLES).code == 0
            calm.kept[str(number)] = calm.state(TABLES)

    disk = mounted(900 * MB)
    home, landing = disk / "home", server_folder / "landing_of_the_full"
    failed = []
    with open_ground(home, landing) as ground:
        for number, landed in enumerate(files):
            ground.land(landed)
            before, after = calm.kept.get(str(number - 1)), calm.kept[str(number)]
            if before is not None:
                states = (before.months, after.months)
                with filled(disk, ROOMS[number - 1] * MB), reading(ground, TABLES, *states) as r:
                    ended = ground.commands.run("build", *TABLES)
                    assert ended.code == 1, ended.said
                    failed.append(ended.said)
                assert r.wrong == []
            again = ground.commands.run("build", *TABLES)
            assert again.code == 0, again.said
            found = ground.state(TABLES)
            assert found.months == after.months
            assert found.recorded == after.recorded
            assert ground.ask(UNBALANCED) == []
            assert ground.ask(LEFTOVERS) == []
    for said in failed:
        assert "The disk is full" in said
        assert "Free space on the disk" in said
        assert "build again" in said
        assert "Traceback" not in said
        assert "defect" not in said
    assert not (home / "errors").exists()


def test_postgresql_starts_again_once_there_is_room(mounted: Callable[[int], Path]) -> None:
    disk = mounted(400 * MB)
    with open_ground(disk / "home", disk / "landing") as ground:
        assert ground.commands.run("build", *TABLES).code == 0
        with filled(disk, 0):
            _stop_for_want_of_room(ground)
            # Where it has come up again by itself, that ends here.
            lock_file = ground.settings.pgdata / "postmaster.pid"
            if lock_file.exists():
                os.kill(int(lock_file.read_text().splitlines()[0]), signal.SIGKILL)
            ended = ground.commands.run("status")
            assert ended.code == 1, ended.said
            assert "The disk is full" in ended.said
            assert "Traceback" not in ended.said
            assert "defect" not in ended.said
        ground.land({"erp/orders.csv": orders(1, 10)})
        ended = ground.commands.run("build", *TABLES)
        assert ended.code == 0, ended.said
        assert ground.ask("select count(*) from silver.orders") == [(10,)]


def _stop_for_want_of_room(ground: Ground) -> None:
    """Write until PostgreSQL cannot write its log any more, which ends it."""
    with pytest.raises(psycopg2.OperationalError):
        while True:
            with ground.connection() as cursor:
                cursor.execute("create temporary table t (x text)")
                with contextlib.suppress(psycopg2.errors.DiskFull):
                    # Logged, but hardly stored.
                    cursor.execute(
                        "select pg_logical_emit_message(true, 'x', repeat('x', 8000000))"
                    )
