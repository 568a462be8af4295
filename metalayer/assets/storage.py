"""Dagster's own tables: made whole, whatever kills the command that makes them.

Dagster creates its tables statement by statement and takes the first of them as the sign that all
are there, so a command killed meanwhile would leave a storage in which no run can start. Here they
are created in one transaction; what Dagster then notes about new tables is noted again until it
was done to the end.

Does not belong here: the instance that uses them (`headless.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import dagster_postgres.run_storage.run_storage
import sqlalchemy
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.sql import stamp_alembic_rev
from dagster_postgres.utils import pg_alembic_config

_LOCK = 0x4D4C0003
_COMPLETE = "Dagster's tables are complete"
_TABLES = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)


def ensure_tables(storage_url: str) -> None:
    """Create the tables that are missing, all of them or none.

    Args:
        storage_url: SQLAlchemy URL of Dagster's database.
    """
    with _transaction(storage_url) as connection:
        if _is_complete(connection):
            return
        connection.execute(sqlalchemy.text(f"select pg_advisory_xact_lock({_LOCK})"))
        for tables in _TABLES:
            tables.create_all(connection)
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            config = pg_alembic_config(dagster_postgres.run_storage.run_storage.__file__)
            stamp_alembic_rev(config, connection)


def note_complete(instance: dg.DagsterInstance, storage_url: str) -> None:
    """Have Dagster note that new tables need no migration, unless that was done before."""
    with _transaction(storage_url) as connection:
        if _is_complete(connection):
            return
    storages: Any = (instance.run_storage, instance.schedule_storage)
    for storage in storages:
        storage.migrate()
        storage.optimize()
    # What `instance.reindex()` does, which shows a progress bar for each table.
    instance.event_log_storage.reindex_events()
    instance.event_log_storage.reindex_assets()
    with _transaction(storage_url) as connection:
        comment = _COMPLETE.replace("'", "''")
        connection.execute(sqlalchemy.text(f"comment on table alembic_version is '{comment}'"))


def _is_complete(connection: sqlalchemy.Connection) -> bool:
    found = connection.execute(
        sqlalchemy.text("select obj_description(to_regclass('alembic_version'), 'pg_class')")
    )
    return bool(found.scalar() == _COMPLETE)


@contextmanager
def _transaction(url: str) -> Iterator[sqlalchemy.Connection]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, hide_parameters=True)
    with engine.begin() as connection:
        yield connection
