"""A platform for a whole module: built once, then looked at by many tests that change nothing.

Belongs here: making and dropping it. What lands in it belongs to the module that asks for it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import dagster as dg
import psycopg2
from psycopg2 import sql

from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.settings import Settings
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.story import Platform

WORKERS = 2


@contextlib.contextmanager
def module_platform(
    server: WarehouseServer, folder: Path, start_month: date, today: date
) -> Iterator[Platform]:
    """An empty warehouse with its tables in a database of its own.

    Args:
        folder: For its home and its landing zone.
        start_month, today: No earlier and no later month is taken. The fewer, the faster.
    """
    name = f"test_{uuid.uuid4().hex[:12]}"
    _run(server, "create database {}", name)
    settings = Settings(
        _env_file=None,
        home=folder / "home",
        landing=folder / "landing",
        database_url=server.url(name),
        start_month=start_month,
        workers=WORKERS,
    )
    pool = connect_pool(server.url(name), WORKERS + 2)
    try:
        with transaction(pool) as connection:
            prepare(connection, list(catalog().specs.values()), catalog().selects)
        with dg.DagsterInstance.ephemeral() as instance:
            yield Platform(Warehouse(pool, settings), instance, today)
    finally:
        pool.dispose()
        _run(server, "drop database {} with (force)", name)


def _run(server: WarehouseServer, statement: str, database: str) -> None:
    url = server.url("postgres").replace("+psycopg2", "", 1)
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(sql.Identifier(database)))
