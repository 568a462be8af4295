"""What every test may ask for: a real PostgreSQL, a database of its own, settings that use it.

One embedded server serves the whole test run, all xdist workers together. A database made once is
the template; each test that asks for `database` gets a clone of it, dropped afterwards.
Stories (`land`, `build`, `rows`) do not belong here.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.settings import ENV_PREFIX, Settings
from metalayer.warehouse.pool import connect_pool
from metalayer.warehouse.server import WarehouseServer, warehouse_server

_HOME = "TESTED_METALAYER_HOME"  # hands the folder on to the xdist workers
_SHARED = "shared"
_WAREHOUSE_TEMPLATE = "template_warehouse"
_DAGSTER_TEMPLATE = "template_dagster"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long what is random or goes on for long is to go on."""
    parser.addoption("--soak", default="20", help="files to land, one every three seconds (20)")
    parser.addoption("--large", default="160", help="megabytes of a large file (160)")
    parser.addoption("--histories", default="200", help="random histories to play (200)")
    parser.addoption(
        "--report-seconds",
        default="0",
        help="seconds that a report is held open beside publishes (0: while 500 of them last)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """In the first process: make the folder of the run's server."""
    if not hasattr(config, "workerinput"):
        os.environ[_HOME] = tempfile.mkdtemp(prefix="metalayer-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """In the first process, after all workers have left: remove it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(_HOME), ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: one worker takes all that runs whole platforms; they would slow each other down.

    pytest-xdist's own way, `--dist=loadgroup`, has no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OnePlatformAtATime(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "e2e" if nodeid.startswith("metalayer_tests/e2e/") else nodeid

    return OnePlatformAtATime(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _signals_as_usual() -> None:
    """A shell starts what runs in the background with Ctrl-C ignored, and programs inherit that."""
    signals = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    for number, usual in zip(signals, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session")
def server() -> Iterator[WarehouseServer]:
    """The run's embedded server. It forgets on a power cut, which tests don't mind."""
    home = Path(os.environ[_HOME]) / _SHARED
    with warehouse_server(_settings(home=home)) as running:
        with _superuser(running) as cursor:
            cursor.execute("show fsync")
            if cursor.fetchone() == ("on",):
                with _one_at_a_time(home):
                    cursor.execute("alter system set fsync = off")
                    cursor.execute("alter system set autovacuum = off")
                    cursor.execute("select pg_reload_conf()")
        yield running


@pytest.fixture
def server_folder() -> Path:
    """An empty folder for a home with an embedded server of the test's own.

    Not `tmp_path`: each starting pytest closes the folder above it to others again, and so to the
    account that runs the server for root.
    """
    return Path(tempfile.mkdtemp(dir=os.environ[_HOME]))


@pytest.fixture(scope="module")
def module_folder() -> Path:
    """The same for a home that the tests of a module share."""
    return Path(tempfile.mkdtemp(dir=os.environ[_HOME]))


@pytest.fixture
def empty_database(server: WarehouseServer) -> Iterator[str]:
    """URL of a new database with nothing in it."""
    with _clone(server, "template0") as url:
        yield url


@pytest.fixture
def database(server: WarehouseServer) -> Iterator[str]:
    """URL of a new database with all of MetaLayer's tables, none of them filled."""
    _make_template(server, _WAREHOUSE_TEMPLATE, _install_warehouse)
    with _clone(server, _WAREHOUSE_TEMPLATE) as url:
        yield url


@pytest.fixture
def clone(server: WarehouseServer) -> Callable[[], contextlib.AbstractContextManager[str]]:
    """Makes further databases like `database`, each for as long as its block lasts."""
    _make_template(server, _WAREHOUSE_TEMPLATE, _install_warehouse)
    return lambda: _clone(server, _WAREHOUSE_TEMPLATE)


@pytest.fixture
def dagster_url(server: WarehouseServer, database: str) -> str:
    """URL of an empty Dagster storage, where `settings` has Dagster look for one.

    Only saves the second or two that Dagster takes to make its tables.
    """
    _make_template(server, _DAGSTER_TEMPLATE, _install_dagster)
    name = f"{_name_in(database)}_dagster"
    with _superuser(server) as cursor:
        _create(cursor, name, _DAGSTER_TEMPLATE)
    return server.url(name)


@pytest.fixture
def pool(database: str) -> Iterator[Engine]:
    """A small connection pool on `database`."""
    engine = connect_pool(database, 4)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, database: str) -> Settings:
    """Settings with a home and a landing zone of the test's own, on `database`."""
    return _settings(home=tmp_path / "home", landing=tmp_path / "landing", database_url=database)


def _settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


def _make_template(
    server: WarehouseServer, name: str, install: Callable[[WarehouseServer, str], None]
) -> None:
    """Make a template database unless it is there; whole or not at all."""
    with _one_at_a_time(Path(os.environ[_HOME]) / _SHARED), _superuser(server) as cursor:
        cursor.execute("select from pg_database where datname = %s", (name,))
        if cursor.rowcount:
            return
        making = f"{name}_making"
        _drop(cursor, making)
        _create(cursor, making, "template0")
        install(server, server.url(making))
        names = map(sql.Identifier, (making, name))
        cursor.execute(sql.SQL("alter database {} rename to {}").format(*names))


def _install_warehouse(server: WarehouseServer, url: str) -> None:
    from metalayer.catalog import catalog
    from metalayer.warehouse.migrate import prepare

    with _connection(url) as connection, connection:
        prepare(connection, list(catalog().specs.values()), catalog().selects)


def _install_dagster(server: WarehouseServer, url: str) -> None:
    import dagster as dg

    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_text(
            f"storage: {{postgres: {{postgres_url: '{url}'}}}}\ntelemetry: {{enabled: false}}\n"
        )
        with dg.DagsterInstance.from_config(home) as instance:
            instance.get_runs(limit=1)
            instance.all_asset_keys()
            instance.all_instigator_state()


@contextlib.contextmanager
def _clone(server: WarehouseServer, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    with _superuser(server) as cursor:
        _create(cursor, name, template)
    try:
        yield server.url(name)
    finally:
        with _superuser(server) as cursor:
            _drop(cursor, name)
            _drop(cursor, f"{name}_dagster")


def _create(cursor: Any, name: str, template: str) -> None:
    names = map(sql.Identifier, (name, template))
    cursor.execute(sql.SQL("create database {} template {}").format(*names))


def _drop(cursor: Any, name: str) -> None:
    cursor.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextlib.contextmanager
def _superuser(server: WarehouseServer) -> Iterator[Any]:
    with _connection(server.url("postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


@contextlib.contextmanager
def _connection(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg2.connect(url.replace("+psycopg2", "", 1))) as connection:
        yield connection


def _name_in(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    with (home / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
