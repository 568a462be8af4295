"""The PostgreSQL server a command works with: the embedded one, shared, or the user's own.

Here: which commands share the embedded server, when it starts and stops, and which databases there
are. How a data folder is run is `postgres.py`; connections for work come from `pool.py`.

Commands that run at the same time share one embedded server. Each holds a shared lock on a file;
the one that leaves last stops the server. The kernel drops the lock of a killed command, so there
is no list of process ids to go stale. A killed command leaves the server running; the next one
joins it and, when it leaves last, stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg2
from psycopg2 import errorcodes, sql

from metalayer.errors import ConfigurationError, WarehouseError
from metalayer.outages import kind_of_connecting
from metalayer.settings import Settings, without_password
from metalayer.warehouse.postgres import PORT, SUPERUSER, Cluster, Progress

WAREHOUSE_DATABASE = "metalayer"
DAGSTER_DATABASE = "dagster"

# pg_input_is_valid, on which every cast in sql/ rests, came with 16.
OLDEST_VERSION = 16

#: What every session agrees on, whatever the server's or the user's defaults are.
SESSION = "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set client_encoding = 'UTF8'"

_DRIVER = "postgresql+psycopg2"


@dataclass(frozen=True)
class WarehouseServer:
    """A server that accepts connections, as SQLAlchemy URLs with the psycopg2 driver named.

    Attributes:
        warehouse_url: the warehouse's database.
        dagster_url: where Dagster keeps its runs and events.
        revive: starts the embedded server again should it have died, and does nothing once it has
            been left; None where the server is the user's own.
    """

    warehouse_url: str
    dagster_url: str
    revive: Callable[[], None] | None = None

    def url(self, database: str) -> str:
        """The URL of another database on the same server."""
        parts = urlsplit(self.warehouse_url)
        return urlunsplit(parts._replace(path="/" + quote(database, safe="")))


@contextlib.contextmanager
def warehouse_server(
    settings: Settings, progress: Progress | None = None, *, for_dagster: bool = True
) -> Iterator[WarehouseServer]:
    """A running server with its databases, for as long as the `with` lasts.

    Args:
        settings: `database_url` names the user's own server; without it the embedded one is started
            in `settings.pgdata`, or joined where another command has started it.
        progress: told what is going on whenever something takes longer than two seconds.
        for_dagster: whether Dagster's tables are wanted, which takes a right to make them a place
            on a server of the user's own; `dagster_url` is empty there otherwise.

    Raises:
        WarehouseError: when the server cannot be started or reached, or is too old.
        ConfigurationError: when the home or the machine does not allow to run one.
    """
    if settings.database_url is not None:
        yield _own_server(settings.database_url.get_secret_value(), for_dagster=for_dagster)
        return
    with _termination_is_an_exit(), _Sharing(settings, progress) as sharing:
        yield WarehouseServer(
            _socket_url(sharing.cluster, WAREHOUSE_DATABASE),
            _socket_url(sharing.cluster, DAGSTER_DATABASE),
            sharing.revive,
        )


def standing_server(settings: Settings) -> WarehouseServer:
    """Where the server is, whether or not it runs: nothing is started, and nothing made.

    Raises:
        WarehouseError: when the user's own server must be asked where Dagster's tables are, and
            cannot be reached.
    """
    if settings.database_url is None:
        cluster = Cluster(settings.pgdata)
        return WarehouseServer(
            _socket_url(cluster, WAREHOUSE_DATABASE), _socket_url(cluster, DAGSTER_DATABASE)
        )
    url = settings.database_url.get_secret_value()
    given = os.environ.get("DAGSTER_PG_URL")
    if given:
        return WarehouseServer(url, given)
    with _connected(url) as connection, connection.cursor() as cursor:
        server, name = WarehouseServer(url, ""), _dagster_database(connection)
        cursor.execute("select from pg_database where datname = %s", (name,))
        return WarehouseServer(url, server.url(name) if cursor.rowcount else _dagster_schema(url))


class _Sharing:
    """One command's part in the embedded server."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        self._progress = progress or (lambda _message: None)
        self._settings = settings
        # Held while the server is used.
        self._users = open_lock(settings, "postgres.users")
        self._is_left = False
        self.cluster = Cluster(settings.pgdata, progress)

    def __enter__(self) -> _Sharing:
        try:
            with self._gated():
                # Never waits: the exclusive lock is only ever held inside the gate.
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self.cluster.ensure_running()
                _create_databases(self.cluster)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._leave()

    def revive(self) -> None:
        """Start the server again should it have died; nothing once this command has left it.

        Raises:
            WarehouseError: when it does not start, or its folder is gone.
        """
        with self._gated():
            if self._is_left:
                return
            if not (self._settings.pgdata / "PG_VERSION").exists():
                raise WarehouseError(
                    f"{self._settings.pgdata} is gone", "End `up`, and restore the folder."
                )
            self.cluster.ensure_running()

    def _leave(self) -> None:
        try:
            with self._gated():
                self._is_left = True
                try:
                    fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # another command still uses the server and will stop it
                else:
                    self.cluster.stop()
        finally:
            os.close(self._users)

    @contextlib.contextmanager
    def _gated(self) -> Iterator[None]:
        """Hold the gate, as whoever starts or stops the server does: one thread of one process."""
        # A file of its own each time, or the threads of a process would all hold it.
        gate = open_lock(self._settings, "postgres.gate")
        try:
            self._wait_for(gate)
            yield
        finally:
            os.close(gate)

    def _wait_for(self, gate: int) -> None:
        said = time.monotonic()
        while True:
            try:
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() - said > 2:
                    said = time.monotonic()
                    self._progress("Waiting for another command to start or stop PostgreSQL")
                time.sleep(0.02)


def open_lock(settings: Settings, name: str) -> int:
    """Open a file of the home that processes lock; the home is made if there is none yet.

    Raises:
        ConfigurationError: when the home cannot be written to.
    """
    try:
        # Personal data lies here. Root's server account must be able to pass through.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        settings.home.mkdir(mode=mode, parents=True, exist_ok=True)
        return os.open(settings.home / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"METALAYER_HOME={settings.home} cannot be written to: {error.strerror}",
            "Set METALAYER_HOME to a folder you can write to.",
        ) from None


@contextlib.contextmanager
def _termination_is_an_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `finally` blocks run.

    Left alone where somebody else handles them, and outside the main thread.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _socket_url(cluster: Cluster, database: str) -> str:
    # The port is written out because PGPORT in the environment would change it.
    folder = quote(str(cluster.socket_dir), safe="/")
    return f"{_DRIVER}://{SUPERUSER}@/{database}?host={folder}&port={PORT}"


def _create_databases(cluster: Cluster) -> None:
    connection = psycopg2.connect(
        host=str(cluster.socket_dir), port=PORT, user=SUPERUSER, dbname="postgres"
    )
    with contextlib.closing(connection):
        connection.autocommit = True
        _create_database(connection, WAREHOUSE_DATABASE)
        if _create_database(connection, DAGSTER_DATABASE):
            # Thousands of small commits. A crash may lose the last half second of events, which the
            # UI then lacks; what is published is in the warehouse, and that loses nothing.
            with connection.cursor() as cursor:
                cursor.execute(f"alter database {DAGSTER_DATABASE} set synchronous_commit = off")


def _create_database(connection: Any, name: str) -> bool:
    """Create a database unless it exists; returns whether it was created."""
    with connection.cursor() as cursor:
        cursor.execute("select from pg_database where datname = %s", (name,))
        if cursor.rowcount:
            return False
        try:
            cursor.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        except (psycopg2.errors.DuplicateDatabase, psycopg2.errors.UniqueViolation):
            return False  # another command on the same server was faster
        return True


def _own_server(url: str, *, for_dagster: bool) -> WarehouseServer:
    """The user's own server: its URL names the warehouse; Dagster gets `<database>_dagster`.

    Where the user may not create databases, Dagster's tables go to the schema `dagster` of the
    warehouse's database.
    """
    shown = without_password(url)
    with _connected(url) as connection:
        version = connection.server_version // 10000
        if version < OLDEST_VERSION:
            raise WarehouseError(
                f"The server at {shown} is PostgreSQL {version}",
                f"MetaLayer needs PostgreSQL {OLDEST_VERSION} or later.",
            )
        server = WarehouseServer(url, "")
        if not for_dagster:
            return server
        name = _dagster_database(connection)
        try:
            _create_database(connection, name)
            return WarehouseServer(url, server.url(name))
        except psycopg2.Error as error:
            if error.pgcode != errorcodes.INSUFFICIENT_PRIVILEGE:
                raise WarehouseError(
                    f"The database {name} for Dagster cannot be created at {shown}: "
                    f"{_first_line(error)}",
                    "Create it by hand.",
                ) from None
        with connection.cursor() as cursor:
            cursor.execute("create schema if not exists dagster")
        return WarehouseServer(url, _dagster_schema(url))


@contextlib.contextmanager
def _connected(url: str) -> Iterator[Any]:
    """A connection to the user's own server that commits each statement."""
    try:
        connection = psycopg2.connect(url.replace(_DRIVER, "postgresql", 1), connect_timeout=10)
    except psycopg2.Error as error:
        raise WarehouseError(
            f"PostgreSQL at {without_password(url)} cannot be reached: {_first_line(error)}",
            tls_advice(error)
            or "Check METALAYER_DATABASE_URL, that the server runs, and that the database exists.",
            kind=kind_of_connecting(error),
        ) from None
    with contextlib.closing(connection):
        connection.autocommit = True
        yield connection


def _dagster_database(connection: Any) -> str:
    return f"{connection.info.dbname}_dagster"


def _dagster_schema(url: str) -> str:
    separator = "&" if urlsplit(url).query else "?"
    return f"{url}{separator}options=-csearch_path%3Ddagster"


def tls_advice(error: BaseException) -> str:
    """What to do about a connection that failed for its encryption; empty if it did not."""
    said = str(error)
    if "certificate" not in said and "SSL" not in said:
        return ""
    return (
        "Check sslmode and sslrootcert in METALAYER_DATABASE_URL: with verify-full the server's "
        "certificate must name the host as it is written there, and be signed by sslrootcert."
    )


def _first_line(error: psycopg2.Error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
