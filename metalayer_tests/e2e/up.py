"""A running platform and a browser, for tests that look at both from outside.

What is tested does not belong here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import psycopg2
import pytest
from playwright.sync_api import Page, sync_playwright

from metalayer.settings import ENV_PREFIX, PROJECT_ROOT, Settings
from metalayer.warehouse.postgres import PORT, SUPERUSER, Cluster
from metalayer.warehouse.server import WAREHOUSE_DATABASE

#: Screenshots and logs of the last run, kept by CI.
ARTIFACTS = PROJECT_ROOT / "artifacts"
#: Head of an export of orders.
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
READY = "MetaLayer is up: "
#: For adding up a million numbers, on a processor of 2 GHz that has nothing else to do.
_USUAL_SECONDS = 0.08


class Stopwatch:
    """Seconds that a process and all below it took, with an equal share of each processor.

    Tests run side by side: what other processes took of the processors is not counted, as if all of
    these had wanted it. Work on one processor alone so passes for less than it took: look at the
    wall clock as well.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._began = time.monotonic()
        self._busy = _busy_seconds()
        self._own = self._own_seconds()

    def wall_seconds(self) -> float:
        """Those that a clock shows since it was made."""
        return time.monotonic() - self._began

    def seconds(self) -> float:
        """The same without the others'."""
        own = self._own_seconds() - self._own
        others = max(0.0, _busy_seconds() - self._busy - own)
        return self.wall_seconds() - others / (os.cpu_count() or 1)

    def _own_seconds(self) -> float:
        total = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def slowness() -> float:
    """How many times as long as usual this machine takes for Python's simplest work just now.

    Limits in seconds are meant for an undisturbed machine. Processors that share a core with
    somebody's, or are throttled, say nothing of it but by what they get done.
    """
    took = []
    for _ in range(5):
        began, total = time.process_time(), 0
        for number in range(1_000_000):
            total += number
        took.append(time.process_time() - began)
    return max(1.0, median(took) / _USUAL_SECONDS)


def _busy_seconds() -> float:
    """Seconds that the processors of this machine were not idle."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


class Up:
    """`metalayer up` as a process, and what it said."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        self.home = home
        self.landing = home / "landing"
        self.lines: list[str] = []
        self.ready_at = math.inf
        self.ready_seconds = math.inf
        self._url = ""
        # A folder that a .env of somebody's is not in.
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "metalayer", "up", "--port", "0", *arguments],
            cwd=home.parent,
            env=self._environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.stopwatch = Stopwatch(psutil.Process(self.process.pid))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        # Where it finds pytest's, the library of the quality page takes itself to be tested.
        ours = (ENV_PREFIX, "PYTEST_")
        plain = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        home = {"METALAYER_HOME": str(self.home), "PYTHONPATH": str(PROJECT_ROOT)}
        return {**plain, **home, **more}

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if READY in line:
                self.ready_at = time.monotonic()
                self.ready_seconds = self.stopwatch.seconds()
                self._url = line.partition(READY)[2].strip()

    @property
    def said(self) -> str:
        """Everything it said so far."""
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        """Where the UI is, once it is ready."""
        wait(lambda: self._url or self.process.poll() is not None, 90, self)
        assert self._url, self.said
        return self._url

    def family(self) -> list[psutil.Process]:
        """It and every process below it, PostgreSQL's own included."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same home."""
        return subprocess.run(
            [sys.executable, "-m", "metalayer", *words],
            cwd=self.home.parent,
            env=self._environment({}),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def land(self, name: str, text: str) -> None:
        """Export a file into the landing zone, the way that exports should: aside, then renamed."""
        path = self.landing / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.part")
        aside.write_text(text)
        aside.rename(path)

    def land_orders(self, name: str, *rows: str) -> None:
        """The same with the rows of an export of orders."""
        self.land(f"erp/{name}", ORDERS + "".join(f"{row}\n" for row in rows))

    def end(self, how: signal.Signals = signal.SIGTERM) -> float:
        """End it, and wait; returns the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(how)
        try:
            self.process.wait(30)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        self.close()
        return time.monotonic() - began

    def close(self) -> None:
        """Let go of its output, once it has ended."""
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def ask(self, query: str, *values: object) -> list[Any]:
        """Rows of a query to the warehouse."""
        socket_dir = Cluster(Settings(_env_file=None, home=self.home).pgdata, None).socket_dir
        connection = psycopg2.connect(
            host=str(socket_dir), port=PORT, user=SUPERUSER, dbname=WAREHOUSE_DATABASE
        )
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query, values or None)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def graphql(self, query: str, **variables: Any) -> Any:
        """What the UI's interface answers."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            said = json.load(answer)
        assert "errors" not in said, said["errors"]
        return said["data"]

    def materialized(self) -> dict[str, set[str]]:
        """Asset -> months that are materialized, as the UI counts them."""
        found: dict[str, set[str]] = {}
        for node in self.graphql(_PARTITIONS)["assetNodes"]:
            statuses = node["assetPartitionStatuses"]
            ranges = statuses.get("ranges") or []
            keys = sorted(node["partitionKeys"])
            found[".".join(node["assetKey"]["path"])] = {
                key
                for r in ranges
                if r["status"] == "MATERIALIZED"
                for key in keys
                if r["startKey"] <= key <= r["endKey"]
            }
        return found

    def unfinished_runs(self) -> list[str]:
        """Ids of runs that are queued or going on."""
        runs = self.graphql(_RUNS)["runsOrError"]["results"]
        return [r["runId"] for r in runs if r["status"] not in ("SUCCESS", "FAILURE", "CANCELED")]


_PARTITIONS = """
{ assetNodes { assetKey { path } partitionKeys assetPartitionStatuses { __typename
  ... on TimePartitionStatuses { ranges { startKey endKey status } } } } }
"""
_RUNS = "{ runsOrError(limit: 50) { ... on Runs { results { runId status } } } }"


def wait(is_so: Callable[[], Any], seconds: float, up: Up | None = None) -> Any:
    """Wait until something is so and return it; fails with what the platform said."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := is_so():
                return found
        except (urllib.error.URLError, OSError, psycopg2.Error):
            pass
        assert time.monotonic() < deadline, up.said if up is not None else "it took too long"
        time.sleep(0.2)


@contextmanager
def platform(home: Path, *arguments: str, **environment: str) -> Iterator[Up]:
    """A platform for as long as the block lasts. Its logs are kept if the block fails."""
    up = Up(home, *arguments, **environment)
    try:
        yield up
    except BaseException:
        keep_logs(up)
        raise
    finally:
        if up.process.poll() is None:
            up.end()
        up.close()


def keep_logs(up: Up) -> None:
    """Keep what a platform said among the artifacts."""
    keep = ARTIFACTS / "logs" / up.home.parent.name
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    (keep / "up.txt").write_text(up.said)
    for log in (up.home / "logs").iterdir():
        shutil.copyfile(log, keep / log.name)


@contextmanager
def browser(url: str) -> Iterator[Page]:
    """A page of Debian's Chromium. What it shows is kept as a picture if the block fails."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.fail("There is no Chromium. Install it: apt-get install -y chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = chromium.new_page(base_url=url, viewport={"width": 1500, "height": 950})
            page.set_default_timeout(30_000)
            try:
                yield page
            except BaseException:
                test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].split(" ")[0]
                picture(page, f"failed-{test}")
                raise
        finally:
            chromium.close()


def picture(page: Page, name: str) -> None:
    """Keep a screenshot among the artifacts."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
