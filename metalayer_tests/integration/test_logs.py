"""The log: what builds take in and publish is in it, line by line, and no work fails for it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalayer.cli import main
from metalayer.logs import writing
from metalayer.logs.file import LogFile, set_aside
from metalayer.logs.reading import Wanted, lines
from metalayer.logs.writing import log_to_file
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.integration.test_errors import ended
from metalayer_tests.story import Platform

Line = dict[str, Any]
#: Appends numbered lines, as one of several processes.
APPENDS = """
import logging, sys
from pathlib import Path
from metalayer.logs.file import LogFile
path, who, most = sys.argv[1:]
file = LogFile(Path(path), int(most))
file.setFormatter(logging.Formatter('{"timestamp": "t", "event": "%(message)s"}'))
for number in range(300):
    file.emit(logging.makeLogRecord({"msg": f"{who}-{number:03} " + "x" * 60}))
"""


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    """What a test logs to ends with it."""
    yield
    for handler in list(writing.ROOT.handlers):
        writing.ROOT.removeHandler(handler)
        handler.close()
    writing.ROOT.setLevel(logging.NOTSET)


@pytest.fixture
def logged(platform: Platform) -> Platform:
    """A platform that logs, with two months of orders and a file that cannot be read."""
    log_to_file(platform.warehouse.settings)
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    platform.land("erp/orders_bad.csv", "order_id\n9\n")
    return platform


def log(platform: Platform, **wanted: Any) -> list[Line]:
    return lines(platform.warehouse.settings.log_file, Wanted(**wanted))


def events(found: list[Line]) -> list[str]:
    return [line["event"] for line in found]


def test_a_build_logs_files_runs_and_months(logged: Platform) -> None:
    outcome = logged.build("bronze.orders", "silver.orders")
    assert outcome.succeeded
    found = log(logged)
    taken, refused, began, *months, over = found
    assert taken["event"] == "delivery loaded"
    assert taken["file"] == "erp/orders.csv"
    assert taken["delivery"] == 1
    assert (taken["rows"], taken["months"]) == (2, "2025-01..2025-02")
    assert refused["event"].startswith("delivery rejected: ")
    assert (refused["file"], refused["level"]) == ("erp/orders_bad.csv", "warning")
    assert refused["error_class"] == "data"
    assert (began["event"], over["event"]) == ("run begins", "run succeeded")
    assert began["months"] == "2025-01..2025-02"
    # Months are built in threads, which know the run and the table all the same.
    assert {line["run"] for line in found[2:]} == set(outcome.runs)
    assert {(m["event"], m["table"], m["month"], m["rows"]) for m in months} == {
        ("month published", table, month, 1)
        for table in ("bronze.orders", "silver.orders")
        for month in ("2025-01", "2025-02")
    }
    assert all(line["timestamp"].endswith("Z") for line in found)
    assert "run" not in taken
    file = logged.warehouse.settings.log_file
    assert file.stat().st_mode & 0o777 == 0o600

    # What has not changed is nothing to tell of; what was built to the same rows is.
    before = len(log(logged))
    assert logged.build("silver.orders", force=True).succeeded
    later = log(logged)[before:]
    assert events(later).count("month confirmed") == 2
    before = len(log(logged))
    assert logged.build("bronze.orders", "silver.orders").succeeded
    assert events(log(logged)[before:]) == []


def test_a_failed_month_is_logged_with_class_and_next_step_and_no_value(logged: Platform) -> None:
    bad = "".join(order(n, "2025-03-05", status="SECRET") for n in range(30))
    logged.land("erp/orders_bad.csv", ORDERS + bad)
    logged.land("crm/customers.csv", CUSTOMERS + customer(1, "2025-01-05"))
    assert not logged.build().succeeded
    failed, over = [line for line in log(logged, level="error") if line["table"] != "gold"][:2]
    assert failed["event"].startswith("month failed: 30 of 30 rows break the contract")
    assert (failed["table"], failed["month"]) == ("silver.orders", "2025-03")
    assert failed["error_class"] == over["error_class"] == "data"
    assert "metalayer rejects silver.orders" in failed["next_step"]
    assert over["event"] == "run failed"
    assert over["step"] == "silver.orders"
    text = logged.warehouse.settings.log_file.read_text()
    for value in ("SECRET", "ada@example.org", "Ada", "Berg"):
        assert value not in text


def test_a_header_that_is_none_is_not_in_the_log(logged: Platform) -> None:
    logged.land("crm/customers.csv", customer(1, "2025-01-05") * 2)
    logged.build("bronze.customers")
    (refused,) = [x for x in log(logged, level="warning") if x["file"] == "crm/customers.csv"]
    assert refused["event"].startswith("delivery rejected: ")
    assert "ada@example.org" not in logged.warehouse.settings.log_file.read_text()


def test_a_retry_and_what_it_was_for_are_logged(logged: Platform) -> None:
    with ended(logged, times=1):
        outcome = logged.build("bronze.orders", "silver.orders")
    assert outcome.succeeded
    (again,) = [x for x in log(logged, level="warning") if x.get("error_class") == "transient"]
    assert again["event"].startswith("step is tried again: The connection to PostgreSQL was lost")
    assert (again["run"], again["table"]) == (outcome.runs[0], "silver.orders")
    assert again["tries"] == 1
    assert again["wait_seconds"] <= 1
    assert events(log(logged))[-1] == "run succeeded"


def test_a_home_that_cannot_be_written_to_fails_no_build(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = platform.warehouse.settings
    settings.home.mkdir(parents=True)
    (settings.home / "logs").write_text("a file where the folder should be")
    log_to_file(settings)
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build("bronze.orders").succeeded
    assert "Logging error" not in capsys.readouterr().err


def test_a_full_disk_costs_lines_but_tears_none(mounted: Callable[[int], Path]) -> None:
    disk = mounted(1024 * 1024)
    path = disk / "logs" / "log.jsonl"
    file = LogFile(path)
    file.setFormatter(logging.Formatter('{"timestamp": "t", "event": "%(message)s"}'))

    def tell(message: str) -> None:
        file.emit(logging.makeLogRecord({"msg": message}))

    tell("before")
    ballast = disk / "ballast"
    with ballast.open("wb") as full:
        facts = os.statvfs(disk)
        os.posix_fallocate(full.fileno(), 0, facts.f_bavail * facts.f_frsize)
    for _ in range(100):
        tell("x" * 200)
    ballast.unlink()
    tell("after")
    found = events(lines(path, Wanted()))
    assert found[0] == "before"
    assert found[-1] == "after"
    assert len(found) < 50
    file.close()


def test_processes_that_log_at_once_lose_and_mix_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    most = 80_000  # three times 300 lines of about 100 bytes: it is set aside once
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDS, str(path), who, str(most)],
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        )
        for who in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(path.parent.iterdir()) == sorted([path, set_aside(path)])
    said = sorted(event.split()[0] for event in events(lines(path, Wanted())))
    assert said == sorted(f"{who}-{number:03}" for who in "abc" for number in range(300))
    assert set_aside(path).stat().st_size > most


@pytest.fixture
def built(logged: Platform, monkeypatch: pytest.MonkeyPatch) -> tuple[Platform, str]:
    """The same, built twice; and the second run's id. Commands find its home."""
    assert logged.build("bronze.orders").succeeded
    outcome = logged.build("silver.orders")
    monkeypatch.setenv("METALAYER_HOME", str(logged.warehouse.settings.home))
    return logged, outcome.runs[0]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["logs", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_shows_a_run_by_the_beginning_of_its_id(
    built: tuple[Platform, str], capsys: pytest.CaptureFixture[str]
) -> None:
    platform, run_id = built
    code, out, _ = run(capsys, "--run", run_id[:8])
    assert code == 0
    said = out.splitlines()
    assert len(said) == 4
    assert all(run_id[:8] in line for line in said)
    assert "run begins" in said[0]
    assert "month published" in said[1]
    assert "table=silver.orders" in said[1]
    assert "run succeeded" in said[-1]

    code, out, _ = run(capsys, "--run", run_id, "--json")
    assert [json.loads(line) for line in out.splitlines()] == log(platform, run=run_id)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--table", "bronze.orders"], {"month published"}),
        (["--month", "2025-02"], {"delivery loaded", "run begins", "month published",
                                  "run succeeded"}),
        (["--month", "2025-07"], set()),
        (["--level", "error"], set()),
        (["--since", "2999-01-01"], set()),
        (["--since", "2020-01-01", "--limit", "1"], {"run succeeded"}),
    ],
)  # fmt: skip
def test_the_command_shows_what_is_asked_for(
    options: list[str],
    expected: set[str],
    built: tuple[Platform, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, *options, "--json")
    assert code == 0
    assert {json.loads(line)["event"] for line in out.splitlines()} == expected
    assert bool(out) != ("The log has no such lines." in err)


def test_below_what_failed_stands_its_class_and_the_next_step(
    built: tuple[Platform, str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "--level", "warning")
    refused, below = out.splitlines()
    assert "delivery rejected" in refused
    assert below.strip() == "data. Land it corrected under the same name."


def test_a_run_that_is_not_in_the_log_is_an_error_that_names_others(
    built: tuple[Platform, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "--run", "nosuch")
    assert (code, out) == (2, "")
    assert "There is no run 'nosuch'" in err
    assert built[1][:8] in err


def test_before_anything_is_logged_the_command_says_how_to_begin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METALAYER_HOME", str(tmp_path / "home"))
    code, out, err = run(capsys)
    assert (code, out) == (0, "")
    assert "Nothing has been logged yet" in err
    assert "metalayer build" in err
    assert not (tmp_path / "home").exists()


@contextlib.contextmanager
def started(home: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, for as long as the block lasts."""
    environment |= {"METALAYER_HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "metalayer", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_following_goes_on_behind_a_log_that_is_set_aside(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    file = LogFile(settings.log_file, most_bytes=300)
    file.setFormatter(
        logging.Formatter('{"timestamp": "2025-01-01T00:00:00Z", "event": "%(message)s"}')
    )
    said: list[str] = []
    with started(tmp_path, "logs", "--follow", "--json") as follower:
        assert follower.stdout is not None
        # It begins with the last lines there are, whenever it has begun.
        file.emit(logging.makeLogRecord({"msg": "first"}))
        said.append(follower.stdout.readline())
        time.sleep(1.0)
        for number in range(12):
            file.emit(logging.makeLogRecord({"msg": f"line {number}"}))
            said.append(follower.stdout.readline())
    file.close()
    assert [json.loads(line)["event"] for line in said] == ["first"] + [
        f"line {number}" for number in range(12)
    ]
    assert set_aside(settings.log_file).exists()


@pytest.mark.parametrize("how", ["console", "json"])
def test_services_log_to_stderr_as_the_setting_says(how: str, tmp_path: Path) -> None:
    with started(tmp_path, "metrics", "--port", "0", METALAYER_LOG_FORMAT=how) as service:
        assert service.stderr is not None
        line = service.stderr.readline()
    if how == "console":
        assert line.startswith("Metrics for Prometheus: http://")
    else:
        said = json.loads(line)
        assert said["event"].startswith("Metrics for Prometheus: http://")
        assert (said["level"], said["command"]) == ("info", "metrics")


def test_reading_the_log_takes_no_heavy_imports(tmp_path: Path) -> None:
    asked = (
        "import sys; from metalayer.cli import main; main(['logs']); "
        "print([m for m in ('structlog', 'dagster', 'polars', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, "METALAYER_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
