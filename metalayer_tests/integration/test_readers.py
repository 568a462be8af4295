"""What readers see, and how long they wait, while months are published under them.

`pytest metalayer_tests/integration/test_readers.py --report-seconds 600` holds a report open on the
table for ten minutes, and publishes beside it all that time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from itertools import count
from typing import Any

import pytest
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.warehouse.build import TableJob, build_months
from metalayer.warehouse.locks import begin_snapshot
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.stage import Stage
from metalayer_tests.integration.test_build import ORDERS, order
from metalayer_tests.story import Platform

log = logging.getLogger(__name__)

TABLE = "gold.agg_daily_sales"
MONTHS = [date(2025, month, 1) for month in range(1, 11)]
#: Rows and booked amount of a month, in one state and in the other.
STATES = ((5, 5), (9, 18))
PUBLISHES = 500
READERS = 5
PAUSE_SECONDS = 0.01
LONGEST_WAIT_SECONDS = 1.0
#: Months published at once. Beside a report each takes its time, most of it waiting.
WORKERS = len(MONTHS)


class Author:
    """Publishes all months again and again, each time in the other state."""

    def __init__(self, url: str) -> None:
        self._pool = connect_pool(url, WORKERS)
        self._times = count()
        self.published = 0

    def __enter__(self) -> Author:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._pool.dispose()

    def publish(self) -> None:
        time_ = next(self._times)
        days, amount = STATES[time_ % 2]

        def fill(cursor: Any, stage: Stage, start: date, end: date) -> None:
            cursor.execute(
                sql.SQL(
                    "insert into {} (order_date, orders, units, buyers, booked_amount, revenue, "
                    "cancelled_amount) select month::date + day, 1, 1, 1, %s, 0, 0 "
                    "from generate_series(%s::date, %s::date - 1, interval '1 month') as month, "
                    "generate_series(1, %s) as day"
                ).format(stage.parent),
                (amount // days, start, end, days),
            )

        spec = catalog().spec(TABLE)
        job = TableJob(spec, str(time_), (), lambda _s, _m: {}, fill, lambda _s, _m: None)
        results = list(build_months(self._pool, job, MONTHS, workers=WORKERS))
        assert {r.outcome for r in results} == {"published"}
        self.published += len(results)


class Reader(threading.Thread):
    """Polls the months, adding them up, on a connection of its own."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._pool = connect_pool(url, 1)
        self._ended = threading.Event()
        self.looks = 0
        self.longest = 0.0
        self.wrong: list[Any] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with transaction(self._pool) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                while not self._ended.wait(PAUSE_SECONDS):
                    began = time.monotonic()
                    cursor.execute(
                        "select date_trunc('month', order_date)::date, count(*), "
                        f"sum(booked_amount)::int from {TABLE} group by 1 order by 1"
                    )
                    months = cursor.fetchall()
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.looks += 1
                    states = {(rows, amount) for _, rows, amount in months}
                    if [m for m, _, _ in months] != MONTHS or not states <= set(STATES):
                        self.wrong.append(months)
        except BaseException as error:  # shown by the test, in its thread
            self.failure = error

    def end(self) -> None:
        self._ended.set()
        self.join()
        self._pool.dispose()


@contextmanager
def readers(url: str) -> Iterator[None]:
    """Readers at work; at the end none has seen anything but whole months, or waited long."""
    at_work = [Reader(url) for _ in range(READERS)]
    for reader in at_work:
        reader.start()
    try:
        yield
    finally:
        for reader in at_work:
            reader.end()
    looks, longest = sum(r.looks for r in at_work), max(r.longest for r in at_work)
    log.info("%s looks, the longest waited %.3f s", looks, longest)
    for reader in at_work:
        assert reader.failure is None
        assert reader.wrong == []
        assert reader.looks > PUBLISHES / READERS
    assert longest < LONGEST_WAIT_SECONDS


@contextmanager
def report(url: str) -> Iterator[None]:
    """A report that has read the table and isn't done; it ends with what it saw at its start."""
    pool = connect_pool(url, 1)
    try:
        with transaction(pool) as connection, connection.cursor() as cursor:
            cursor.execute(f"declare report cursor for select count(*) over () from {TABLE}")
            cursor.execute("fetch 1 from report")
            (seen,) = cursor.fetchone()
            yield
            cursor.execute("fetch all from report")
            assert cursor.fetchall() == [(seen,)] * (seen - 1)
    finally:
        pool.dispose()


def versions(pool: Engine) -> dict[date, int]:
    """Month -> how often it was published."""
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            "select month, max(version) from meta.versions where table_name = %s group by 1",
            (TABLE,),
        )
        return dict(cursor.fetchall())


def test_500_publishes_beside_readers(pool: Engine, database: str) -> None:
    with Author(database) as author:
        author.publish()
        with readers(database):
            while author.published < len(MONTHS) + PUBLISHES:
                author.publish()
        assert versions(pool) == dict.fromkeys(MONTHS, author.published // len(MONTHS))


def test_500_publishes_beside_readers_and_a_report_that_is_open_all_the_time(
    pool: Engine, database: str, request: pytest.FixtureRequest
) -> None:
    ends = time.monotonic() + float(request.config.getoption("--report-seconds"))
    with Author(database) as author:
        author.publish()
        longest = 0.0
        with report(database), readers(database):
            while author.published < len(MONTHS) + PUBLISHES or time.monotonic() < ends:
                began = time.monotonic()
                author.publish()
                longest = max(longest, time.monotonic() - began)
        log.info("%s publishes, the longest ten took %.3f s", author.published, longest)
        assert versions(pool) == dict.fromkeys(MONTHS, author.published // len(MONTHS))


def test_a_build_and_its_checks_see_a_month_that_is_published_meanwhile_as_it_was(
    platform: Platform,
) -> None:
    platform.land("erp/orders_a.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build().succeeded
    spec = catalog().spec("silver.orders")
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        begin_snapshot(cursor, [spec])
        cursor.execute("select count(*) from meta.versions")
        platform.land("erp/orders_b.csv", ORDERS + order(3, "2025-01-06"))
        assert platform.build("silver.orders", "bronze.orders").succeeded
        cursor.execute("select order_id from silver.orders where order_date < '2025-02-01'")
        assert cursor.fetchall() == [(1,)]
    assert platform.ask("select order_id from silver.orders order by 1") == [(1,), (2,), (3,)]
