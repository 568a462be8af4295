"""The embedded server: it starts, is shared, survives what kills it, and leaves nothing behind."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest
from sqlalchemy.engine import make_url

from metalayer.errors import ConfigurationError, WarehouseError
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.server import WarehouseServer, open_lock, warehouse_server

# A command as the user's shell would start it: brings the server up, says so, and works on.
COMMAND = """
import sys, time
from metalayer.settings import Settings
from metalayer.warehouse.server import warehouse_server
with warehouse_server(Settings.load()) as server:
    print(server.warehouse_url, flush=True)
    time.sleep(60)
"""


def home_of(folder: Path, name: str = "home") -> Settings:
    return Settings(_env_file=None, home=folder / name)


def processes(settings: Settings) -> list[psutil.Process]:
    """Live PostgreSQL processes that work in the settings' data folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.cwd() == str(settings.pgdata):
                found.append(process)
        except psutil.Error:
            continue
    return found


def ask(url: str, question: str) -> object:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(question)
        answer = cursor.fetchone() if cursor.description else None
    return answer[0] if answer else None


def started(settings: Settings) -> "subprocess.Popen[str]":
    """A command in a process of its own, with its server up."""
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        env={**os.environ, "METALAYER_HOME": str(settings.home), "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    assert command.stdout.readline().startswith("postgresql+psycopg2://")
    return command


def ended(command: "subprocess.Popen[str]") -> int:
    with command:
        return command.wait(30)


@pytest.fixture
def fresh(server_folder: Path) -> Iterator[Settings]:
    """Settings with an untouched home; whatever a test leaves running there is ended."""
    settings = home_of(server_folder)
    yield settings
    for process in processes(settings):
        process.kill()


def test_a_new_home_gets_a_tuned_server_with_both_databases(fresh: Settings) -> None:
    with warehouse_server(fresh) as server:
        assert ask(server.warehouse_url, "select current_database()") == "metalayer"
        assert ask(server.dagster_url, "select current_database()") == "dagster"
        assert ask(server.url("postgres"), "select current_database()") == "postgres"
        assert ask(server.warehouse_url, "show jit") == "off"
        assert ask(server.warehouse_url, "show fsync") == "on"
        assert ask(server.warehouse_url, "show synchronous_commit") == "on"
        assert ask(server.warehouse_url, "show max_locks_per_transaction") == "1024"
        assert ask(server.warehouse_url, "select 'é' < 'z'") is False
        assert ask(server.warehouse_url, "select upper('é')") == "É"
    assert processes(fresh) == []


def test_rows_outlive_the_command(fresh: Settings) -> None:
    with warehouse_server(fresh) as server:
        ask(server.warehouse_url, "create table kept as select 7 as n")
    with warehouse_server(fresh) as server:
        assert ask(server.warehouse_url, "select n from kept") == 7


def test_the_server_stays_until_the_last_command_leaves(fresh: Settings) -> None:
    other = started(fresh)
    with warehouse_server(fresh), warehouse_server(fresh) as server:
        os.killpg(other.pid, signal.SIGTERM)
        assert ended(other) == 128 + signal.SIGTERM
        assert ask(server.warehouse_url, "select 1") == 1
    assert processes(fresh) == []


def test_a_server_that_died_is_revived(fresh: Settings) -> None:
    with warehouse_server(fresh) as server:
        os.kill(int((fresh.pgdata / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        assert server.revive is not None
        server.revive()
        assert ask(server.warehouse_url, "select 1") == 1
    assert processes(fresh) == []


def test_nothing_is_revived_while_or_after_it_is_left(fresh: Settings) -> None:
    with warehouse_server(fresh) as server:
        assert server.revive is not None
        # A thread that looks for the server as it stops, and goes on once it has.
        gate = open_lock(fresh, "postgres.gate")
        fcntl.flock(gate, fcntl.LOCK_EX)
        late = threading.Thread(target=server.revive)
        threading.Timer(0.5, os.close, [gate]).start()
        threading.Timer(0.2, late.start).start()
    late.join(30)
    server.revive()
    assert processes(fresh) == []


def test_a_second_command_joins_and_inherits(fresh: Settings) -> None:
    with warehouse_server(fresh):
        other = started(fresh)
    assert processes(fresh) != []
    os.killpg(other.pid, signal.SIGINT)
    ended(other)
    assert processes(fresh) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_leaves_nothing(fresh: Settings, how: signal.Signals) -> None:
    command = started(fresh)
    os.killpg(command.pid, how)
    assert ended(command) != 0
    assert processes(fresh) == []


def test_a_failing_command_leaves_nothing(fresh: Settings) -> None:
    with pytest.raises(ZeroDivisionError), warehouse_server(fresh):
        _ = 1 / 0
    assert processes(fresh) == []


def test_signals_are_handled_as_before_afterwards(
    fresh: Settings, request: pytest.FixtureRequest
) -> None:
    # A Dagster run of an earlier test may have left a handler of its own.
    found = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, found))
    before = signal.getsignal(signal.SIGTERM)
    with warehouse_server(fresh):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("victims", ["everything", "command", "postmaster"])
def test_what_was_committed_survives_kill_9(fresh: Settings, victims: str) -> None:
    command = started(fresh)
    postmaster = int((fresh.pgdata / "postmaster.pid").read_text().split()[0])
    with warehouse_server(fresh) as server:
        url = server.warehouse_url
        ask(url, "create table kept as select generate_series(1, 1000) as n")
    if victims == "postmaster":
        os.kill(postmaster, signal.SIGKILL)
    os.killpg(command.pid, signal.SIGKILL)
    ended(command)
    if victims == "everything":
        for process in processes(fresh):
            process.kill()
    with warehouse_server(fresh) as server:
        assert ask(server.warehouse_url, "select count(*) from kept") == 1000
    assert processes(fresh) == []


def test_a_busy_session_of_a_killed_server_does_not_stop_the_next(fresh: Settings) -> None:
    command = started(fresh)
    with warehouse_server(fresh) as server:
        busy = psycopg2.connect(server.warehouse_url.replace("+psycopg2", ""), async_=1)
        _wait(busy)
        loop = "do $$ declare n bigint := 0; begin loop n := n + 1; end loop; end $$"
        busy.cursor().execute(loop)
        time.sleep(0.2)
        os.kill(int((fresh.pgdata / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        with warehouse_server(fresh) as again:
            assert ask(again.warehouse_url, "select 1") == 1
        busy.close()
    os.killpg(command.pid, signal.SIGKILL)
    ended(command)


def _wait(connection: "psycopg2.extensions.connection") -> None:
    while connection.poll() != psycopg2.extensions.POLL_OK:
        time.sleep(0.01)


def test_a_broken_or_foreign_lock_file_is_replaced(fresh: Settings) -> None:
    with warehouse_server(fresh):
        pass
    for content in ("", "\n", "abc", str(os.getpid()), "1\n/elsewhere\n", "4194303"):
        (fresh.pgdata / "postmaster.pid").write_text(content)
        with warehouse_server(fresh) as server:
            assert ask(server.warehouse_url, "select 1") == 1
        assert processes(fresh) == []


@pytest.mark.parametrize("name", ["with space", "comma, quote ' and \" é %41", "long" * 40])
def test_any_path_will_do(server_folder: Path, name: str) -> None:
    settings = home_of(server_folder, name)
    with warehouse_server(settings) as server:
        pool = connect_pool(server.warehouse_url, 1)
        with transaction(pool) as connection, connection.cursor() as cursor:
            cursor.execute("show data_directory")
            assert cursor.fetchone() == (str(settings.pgdata),)
        pool.dispose()
        socket_folder = Path(make_url(server.warehouse_url).query["host"])
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert processes(settings) == []
    assert not (socket_folder / ".s.PGSQL.5432").exists()
    assert socket_folder == settings.pgdata or not socket_folder.exists()


def test_a_killed_set_up_is_begun_anew(fresh: Settings) -> None:
    half = fresh.pgdata.with_name("postgres.new")
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with warehouse_server(fresh) as server:
        assert ask(server.warehouse_url, "select 1") == 1
    assert not half.exists()


def test_files_that_are_not_postgres_are_left_alone(fresh: Settings) -> None:
    fresh.pgdata.mkdir(parents=True)
    (fresh.pgdata / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="not a PostgreSQL data folder"):
        warehouse_server(fresh).__enter__()
    assert (fresh.pgdata / "thesis.txt").read_text() == "years of work"


def test_another_major_version_is_refused(fresh: Settings) -> None:
    fresh.pgdata.mkdir(parents=True)
    (fresh.pgdata / "PG_VERSION").write_text("16\n")
    with pytest.raises(WarehouseError, match="made by PostgreSQL 16"):
        warehouse_server(fresh).__enter__()


def test_a_server_that_cannot_start_says_why(fresh: Settings) -> None:
    with warehouse_server(fresh):
        pass
    with (fresh.pgdata / "postgresql.auto.conf").open("a") as text:
        text.write("shared_buffers = 'many'\n")
    with pytest.raises(WarehouseError, match="shared_buffers"):
        warehouse_server(fresh).__enter__()
    assert processes(fresh) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_root_opens_folders_for_passing_only(server_folder: Path) -> None:
    closed = server_folder / "closed"
    closed.mkdir(mode=0o700)
    settings = home_of(closed)
    with warehouse_server(settings):
        postmaster = int((settings.pgdata / "postmaster.pid").read_text().split()[0])
        assert psutil.Process(postmaster).uids().real != 0
    assert stat.S_IMODE(closed.stat().st_mode) == 0o701


# --- a server of the user's own ----------------------------------------------------------------


def test_ones_own_server_gets_a_database_for_dagster(
    server: WarehouseServer, settings: Settings, database: str
) -> None:
    with warehouse_server(settings) as own:
        assert own.warehouse_url == database
        name = ask(database, "select current_database()")
        assert ask(own.dagster_url, "select current_database()") == f"{name}_dagster"
    assert not settings.home.exists()


def test_without_the_right_to_create_databases_dagster_gets_a_schema(
    server: WarehouseServer, empty_database: str
) -> None:
    name = ask(empty_database, "select current_database()")
    role = f"plain_{name}"
    ask(empty_database, f"create role {role} login")
    ask(empty_database, f"grant all on database {name} to {role}")
    try:
        url = empty_database.replace("postgres@", f"{role}@")
        with warehouse_server(Settings(_env_file=None, database_url=url)) as own:
            assert ask(own.warehouse_url, "select current_schema()") == "public"
            assert ask(own.dagster_url, "select current_schema()") == "dagster"
    finally:
        ask(empty_database, f"drop owned by {role}")
        ask(empty_database, f"drop role {role}")


def test_an_unreachable_server_is_named_without_its_password() -> None:
    url = "postgres://ana:s3cret@127.0.0.1:9/sales"
    with pytest.raises(WarehouseError) as failure:
        warehouse_server(Settings(_env_file=None, database_url=url)).__enter__()
    assert "ana:***@127.0.0.1:9/sales" in str(failure.value)
    assert "s3cret" not in str(failure.value)


# --- the pool ----------------------------------------------------------------------------------


def test_sessions_agree_on_time_and_text(database: str) -> None:
    name = ask(database, "select current_database()")
    ask(database, f"alter database {name} set timezone = 'Asia/Tokyo'")
    ask(database, f"alter database {name} set datestyle = 'German'")
    pool = connect_pool(database, 1)
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute("select '2025-01-31T00:00Z'::timestamptz::text, current_date::text")
        assert cursor.fetchone()[0] == "2025-01-31 00:00:00+00"
        cursor.execute("show application_name")
        assert cursor.fetchone() == ("metalayer",)
    pool.dispose()


def test_a_transaction_is_kept_whole_or_undone(database: str) -> None:
    pool = connect_pool(database, 1)
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute("create table t (n int)")
    with (
        pytest.raises(ZeroDivisionError),
        transaction(pool) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("insert into t values (1)")
        _ = 1 / 0
    assert ask(database, "select count(*) from t") == 0
    pool.dispose()


def test_a_lost_connection_is_replaced(database: str) -> None:
    pool = connect_pool(database, 1)
    with (
        pytest.raises(WarehouseError, match="connection to PostgreSQL was lost: "),
        transaction(pool) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("select pg_terminate_backend(pg_backend_pid())")
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)
    pool.dispose()


def test_the_pool_names_what_it_cannot_reach() -> None:
    pool = connect_pool("postgresql+psycopg2://ana:s3cret@127.0.0.1:9/sales", 1)
    with pytest.raises(WarehouseError) as failure, transaction(pool):
        pass
    assert "'sales' at 127.0.0.1" in str(failure.value)
    assert "s3cret" not in str(failure.value)
