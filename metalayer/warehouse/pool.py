"""One bounded pool of PostgreSQL connections per process.

SQLAlchemy's engine keeps them; work is done on the raw psycopg2 connection, because COPY and
`psycopg2.sql` live there. Which statements are run on them belongs to the callers.
"""

import contextlib
import os
import pwd
from collections.abc import Iterator
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from metalayer.errors import MetaLayerError, WarehouseError
from metalayer.outages import kind_of_connecting, outage
from metalayer.settings import Settings
from metalayer.warehouse.postgres import Progress
from metalayer.warehouse.server import SESSION, tls_advice, warehouse_server

#: Who acts in a session and why: the audit log takes it from there (`acts.sql`).
_INTRODUCTION = (
    "select set_config('metalayer.os_user', %s, false), set_config('metalayer.why', %s, false)"
)


def connect_pool(url: str, size: int, why: str = "") -> Engine:
    """A pool of at most `size` connections, opened when first needed.

    Args:
        url: SQLAlchemy URL with the psycopg2 driver named.
        size: connections in use at once; one more request waits for the next to come back.
        why: the reason for what is done on them, for the audit log.

    Returns:
        The engine. `dispose()` closes the connections.
    """
    engine = create_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=600,
        pool_pre_ping=True,
        # Parameters hold values of rows, some of them personal; they must not reach a log.
        hide_parameters=True,
        connect_args={"application_name": "metalayer", "connect_timeout": 10},
    )

    @event.listens_for(engine, "connect")
    def agree(raw: Any, _record: object) -> None:
        # Statements and not start-up options: a user's URL may have options of its own.
        with raw.cursor() as cursor:
            cursor.execute(f"{SESSION}; {_INTRODUCTION}", (_os_user(), why))
        raw.commit()

    return engine


@contextlib.contextmanager
def warehouse_pool(
    settings: Settings, progress: Progress | None = None, size: int = 1
) -> Iterator[Engine]:
    """A running server and a pool of connections to the warehouse, for as long as the `with` lasts.

    The audit log gets the settings' reason with what is done on them. See `warehouse_server`,
    `connect_pool`.
    """
    with warehouse_server(settings, progress, for_dagster=False) as server:
        pool = connect_pool(server.warehouse_url, size, settings.why)
        try:
            yield pool
        finally:
            pool.dispose()


def _os_user() -> str:
    """The account that this process runs as."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())  # a container without a list of users


@contextlib.contextmanager
def transaction(pool: Engine) -> Iterator[Connection]:
    """A raw psycopg2 connection from the pool: committed at the end, rolled back on an error.

    Raises:
        WarehouseError: when the server cannot be reached, naming host and database, or when the
            connection breaks.
        DiskFullError: when the server, or the work done meanwhile, has no room left.
    """
    try:
        borrowed = pool.raw_connection()
    except (psycopg2.Error, SQLAlchemyError) as error:
        raise _unreachable(pool, error) from None
    raw = borrowed.driver_connection
    if raw is None:
        raise WarehouseError("The pool gave a closed connection")
    try:
        yield raw
        raw.commit()
    except BaseException as error:
        _roll_back(raw)
        if raw.closed:
            borrowed.invalidate()
        # Whatever of the work it was: reading parsed rows may fill a disk as well.
        is_told = isinstance(error, MetaLayerError) or not isinstance(error, Exception)
        known = None if is_told else outage(error)
        if known is not None:
            raise known from error
        raise
    finally:
        borrowed.close()


def _roll_back(raw: Connection) -> None:
    """Undo, unless the server does so because it or the connection is gone."""
    with contextlib.suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
        raw.rollback()


def _unreachable(pool: Engine, error: Exception) -> WarehouseError:
    host = pool.url.host or pool.url.query.get("host", "localhost")
    lines = str(getattr(error, "orig", None) or error).strip().splitlines() or ["no reason given"]
    return WarehouseError(
        f"Database '{pool.url.database}' at {host} cannot be reached: {lines[0]}",
        tls_advice(error)
        or "`metalayer doctor` shows which server is used and whether it answers.",
        kind=kind_of_connecting(error),
    )
