"""`metalayer up` as a process: it starts, says so, heals itself, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from metalayer.settings import PROJECT_ROOT
from metalayer_tests.e2e.up import READY, Stopwatch, Up, platform, slowness, wait
from metalayer_tests.integration.ground import LEFTOVERS, UNBALANCED


@pytest.fixture
def up(server_folder: Path) -> Iterator[Up]:
    """A platform of the test's own."""
    with platform(server_folder / "home") as running:
        assert running.url
        yield running


@pytest.fixture(scope="module")
def lasting(module_folder: Path) -> Iterator[Up]:
    """One for tests that leave it running."""
    with platform(module_folder / "home") as running:
        assert running.url
        yield running


def service(up: Up, word: str) -> psutil.Process:
    """The process of `up` whose command has the word."""
    (found,) = services(up, word)
    return found


def services(up: Up, word: str) -> list[psutil.Process]:
    """The same, as many as there are just then."""
    found = []
    for process in psutil.Process(up.process.pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if any(word in argument for argument in process.cmdline()):
                found.append(process)
    return found


def loaded(up: Up, month: str) -> bool:
    return bool(
        up.ask(
            "select 1 from meta.versions where is_current and is_checked and rows > 0 "
            "and table_name = 'gold.fact_orders' and to_char(month, 'YYYY-MM') = %s",
            month,
        )
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_within_ten_seconds_and_leaves_no_process(up: Up, how: signal.Signals) -> None:
    family = up.family()
    names = {" ".join(p.cmdline()) for p in family}
    for word in ("code_server", "dagster_webserver", "services.daemon"):
        assert any(word in name for name in names)
    # A run is going on, too.
    up.land_orders(
        "orders_2025-01.csv", *(f"{n},1,P00001,2025-01-05,1,5.00,5.00,PAID" for n in (1, 2))
    )
    wait(lambda: any("started" in line for line in up.lines), 60, up)
    family = [*family, *up.family()]
    seconds = up.end(how)
    assert seconds < 10
    assert up.process.returncode == 0
    left = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert up.lines[-1].endswith(" ended")
    assert not (up.home / "postgres" / "postmaster.pid").exists()


def test_nothing_is_left_when_nobody_listens_any_more(server_folder: Path) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "metalayer", "up", "--port", "0"],
        cwd=server_folder,
        env={
            **os.environ,
            "METALAYER_HOME": str(server_folder / "home"),
            "PYTHONPATH": str(PROJECT_ROOT),
        },
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    with os.fdopen(reading) as said:
        assert any(READY in line for line in said)
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(20)
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_an_address_that_is_none_is_refused_before_anything_starts(server_folder: Path) -> None:
    up = Up(server_folder / "home", METALAYER_ALERT_URLS="json://localhost/ nonsense")
    assert up.process.wait(60) == 1
    up.close()
    assert "address 2 " in up.said
    assert not (up.home / "postgres").exists()


def test_the_metrics_do_not_take_the_port_of_the_web_interface(server_folder: Path) -> None:
    up = Up(server_folder / "home", "--port", "19463", "--metrics-port", "19463")
    assert up.process.wait(60) == 2
    up.close()
    assert "Port 19463 is the web interface's" in up.said


def test_what_it_does_is_logged_and_its_services_log_json_where_asked(server_folder: Path) -> None:
    home = server_folder / "home"
    with platform(home, METALAYER_LOG_FORMAT="json") as up:
        good = (f"{n},1,P00001,2025-01-05,1,5.00,5.00,PAID" for n in (1, 2))
        bad = (f"{n},1,P00001,2025-02-05,0,5.00,0.00,PAID" for n in range(3, 60))
        up.land_orders("orders_2025-01.csv", *good, *bad)

        def failures() -> list[str]:
            return [line for line in up.lines if " failed: " in line]

        (failed,) = wait(failures, 90, up)
        assert ". silver.orders (data): silver.orders 2025-02 was not published" in failed
        run = failed.partition("run ")[2][:8]
        # The run says so itself a moment before.
        said = json.loads(up.run("logs", "--run", run, "--json").stdout.splitlines()[-1])
        assert said["event"] == "run failed"
        assert (said["step"], said["error_class"]) == ("silver.orders", "data")
        text = (home / "logs" / "metalayer.jsonl").read_text()
        log = [json.loads(line) for line in text.splitlines()]
    (taken,) = [line for line in log if line.get("file") == "erp/orders_2025-01.csv"]
    assert (taken["event"], taken["command"]) == ("delivery loaded", "code_server")
    months = [line for line in log if str(line.get("run", "")).startswith(run) and "month" in line]
    told = {(line["event"].partition(":")[0], line["table"], line["month"]) for line in months}
    assert ("month published", "silver.orders", "2025-01") in told
    assert ("month failed", "silver.orders", "2025-02") in told
    services = (home / "logs" / "code-server.log").read_text().splitlines()
    told_by_services = [json.loads(line) for line in services if line.startswith("{")]
    assert "delivery loaded" in [line["event"] for line in told_by_services]
    assert [line for line in services if not line.startswith("{")] == []


def test_a_second_one_says_that_one_runs(lasting: Up) -> None:
    said = lasting.run("up", "--port", lasting.url.rpartition(":")[2])
    assert said.returncode == 2
    assert lasting.url in said.stderr
    assert "up already" in said.stderr


def test_a_port_that_is_taken_is_named(server_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with platform(server_folder / "home", "--port", str(port)) as up:
            assert up.process.wait(30) == 2
            wait(lambda: "Nothing can listen" in up.said, 5, up)
    assert f"port {port}" in up.said


def is_within_twenty_seconds(own: float, wall: float, slower: float) -> bool:
    """Whether something took so long, as an undisturbed machine would show it."""
    return own / slower < 20 and wall / slower < 60


def test_it_is_ready_within_twenty_seconds(server_folder: Path) -> None:
    """Other tests are at work here: of three starts the fastest counts."""
    took = []
    for number in range(3):
        with platform(server_folder / f"home{number}") as up:
            assert up.url
            took.append((up.ready_seconds, up.ready_at - up.began, slowness()))
        if is_within_twenty_seconds(*took[-1]):
            return
    pytest.fail(f"seconds without and with those of others, slowness: {took}")


def test_what_lands_is_in_gold_within_twenty_seconds(lasting: Up) -> None:
    """The same: of three months the fastest counts."""
    took = []
    for month in ("2025-09", "2025-10", "2025-11"):
        row = f"{month[-2:]}1,7,P00001,{month}-05,2,5.00,10.00,PAID"
        lasting.land_orders(f"orders_{month}.csv", row)
        landed = Stopwatch(psutil.Process(lasting.process.pid))
        wait(lambda month=month: loaded(lasting, month), 90, lasting)
        took.append((landed.seconds(), landed.wall_seconds(), slowness()))
        if is_within_twenty_seconds(*took[-1]):
            return
    pytest.fail(f"seconds without and with those of others, slowness: {took}")


def test_only_this_machine_can_reach_it(lasting: Up) -> None:
    port = int(lasting.url.rpartition(":")[2])
    listening = set()
    for process in lasting.family():
        with contextlib.suppress(psutil.NoSuchProcess):  # a run that has just ended
            listening |= {
                c.laddr.ip
                for c in process.net_connections(kind="inet")
                if c.status == psutil.CONN_LISTEN and c.laddr.port == port
            }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("word", "month"),
    [
        ("services.daemon", "2025-01"),
        ("code_server", "2025-02"),
        ("dagster_webserver", "2025-03"),
    ],
)
def test_what_is_killed_is_started_again_and_nothing_is_lost(
    lasting: Up, word: str, month: str
) -> None:
    victim = service(lasting, word)
    lasting.land_orders(f"orders_{month}.csv", f"{month[-1]},1,P00001,{month}-05,1,5.00,5.00,PAID")
    # In the middle of a run, which goes with the code server and has to be started again.
    wait(lambda: any(f"started: {month}" in line for line in lasting.lines), 60, lasting)
    victim.send_signal(signal.SIGKILL)
    wait(lambda: loaded(lasting, month), 120, lasting)
    # A fast machine may have ended the work before anybody looked after the process.
    wait(lambda: "it is started again" in lasting.said, 30, lasting)
    wait(lambda: [p for p in services(lasting, word) if p.pid != victim.pid], 30, lasting)
    # One that was just being handed over is given two minutes to start, and looked at every two.
    wait(lambda: not lasting.unfinished_runs(), 300, lasting)


def test_a_killed_postgresql_comes_back(lasting: Up) -> None:
    postmaster = int((lasting.home / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    lasting.land_orders("orders_2025-05.csv", "5,1,P00001,2025-05-05,1,5.00,5.00,PAID")
    wait(lambda: loaded(lasting, "2025-05"), 150, lasting)


def test_a_silent_postgresql_does_not_keep_it_from_ending(up: Up) -> None:
    postmaster = int((up.home / "postgres" / "postmaster.pid").read_text().split()[0])
    stopped = [psutil.Process(postmaster), *psutil.Process(postmaster).children()]
    for process in stopped:
        process.suspend()
    up.process.send_signal(signal.SIGTERM)
    # Its other processes are gone; this one is waited for.
    wait(lambda: "last checkpoint" in up.lines[-1], 10, up)
    for process in reversed(stopped):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    assert up.process.wait(30) == 0


def test_a_select_that_changes_is_taken_up(server_folder: Path) -> None:
    project = server_folder / "project"
    for folder in ("metalayer", "sql"):
        shutil.copytree(PROJECT_ROOT / folder, project / folder)
    shutil.copyfile(PROJECT_ROOT / "dagster.yaml", project / "dagster.yaml")
    with platform(server_folder / "home", PYTHONPATH=str(project)) as up:
        assert up.url
        up.land_orders("orders_2025-01.csv", "1,1,P00001,2025-01-05,1,5.00,5.00,PAID")
        wait(lambda: loaded(up, "2025-01"), 60, up)
        select = project / "sql" / "silver" / "orders.sql"
        text = select.read_text()
        select.write_text("select 1 as nothing\n")
        wait(lambda: "cannot be loaded" in up.said, 60, up)
        select.write_text(text + "\n-- the same\n")
        wait(lambda: "started anew" in up.said, 60, up)
        up.land_orders("orders_2025-02.csv", "2,1,P00001,2025-02-05,1,5.00,5.00,PAID")
        wait(lambda: loaded(up, "2025-02"), 90, up)


def test_all_killed_at_once_the_next_start_finishes_the_work(server_folder: Path) -> None:
    home = server_folder / "home"
    with platform(home) as up:
        assert up.url
        rows = (f"{n},1,P00001,2025-{n % 12 + 1:02}-05,1,5.00,5.00,PAID" for n in range(1, 200))
        up.land_orders("orders_2025.csv", *rows)
        wait(lambda: any("started" in line for line in up.lines), 60, up)
        leftover = "create table months.silver_orders_2021_01_99999 (order_id bigint)"
        up.ask(f"{leftover}; select 1")
        assert up.ask(f"{LEFTOVERS} and c.relname like '%99999'")
        for process in up.family():
            # One may have ended with another before.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        up.process.wait(10)
    with platform(home) as up:
        assert up.url
        orders = "select count(*) from gold.fact_orders"
        wait(lambda: loaded(up, "2025-12") and up.ask(orders) == [(199,)], 120, up)
        wait(lambda: not up.unfinished_runs(), 60, up)
        assert up.ask(UNBALANCED) == []
        # Of a month that nobody builds again.
        wait(lambda: up.ask(LEFTOVERS) == [], 30, up)


def test_a_code_server_that_cannot_load_says_why(server_folder: Path) -> None:
    began = time.monotonic()
    broken = {"METALAYER_START_MONTH": "2999-01"}
    with platform(server_folder / "home", **broken) as up:
        assert up.process.wait(60) == 1
        wait(lambda: "METALAYER_START_MONTH" in up.said, 5, up)
    assert time.monotonic() - began < 60


def test_it_runs_on_a_server_of_ones_own(
    server_folder: Path, database: str, dagster_url: str
) -> None:
    assert dagster_url
    with platform(server_folder / "home", METALAYER_DATABASE_URL=database) as up:
        assert up.url
        assert "embedded" not in up.said
        assert not (up.home / "postgres").exists()
        assert up.end() < 10


def test_other_commands_work_beside_it(lasting: Up) -> None:
    lasting.land_orders("orders_2025-06.csv", "6,1,P00001,2025-06-05,1,5.00,5.00,PAID")
    wait(lambda: loaded(lasting, "2025-06"), 60, lasting)
    said = lasting.run("status", "--json")
    assert said.returncode == 0, said.stderr
    assert isinstance(said, subprocess.CompletedProcess)
    assert "gold.fact_orders" in said.stdout
