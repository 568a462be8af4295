"""Something breaks on a running platform: the metric, the alert, the page and the recovery follow.

Each drill breaks one thing, and looks at all four from outside: Prometheus, a webhook, the quality
page in a browser, and what is published in the end.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from playwright.sync_api import Page, expect

from metalayer.governance.sealing import make_key
from metalayer.lateness import following_month
from metalayer.settings import PROJECT_ROOT
from metalayer_tests.e2e.test_monitoring import Prometheus, prometheus
from metalayer_tests.e2e.up import Up, browser, platform, wait
from metalayer_tests.integration.conftest import mounted as mounted  # the fixture
from metalayer_tests.integration.webhook import Webhook, listening

MB = 1024 * 1024
_METRICS, _PAGE = "Metrics for Prometheus: ", "The quality page: "


@dataclass
class Drilled:
    """A platform with everything that watches it."""

    up: Up
    prometheus: Prometheus
    hook: Webhook
    page: str

    def measured(self, expression: str) -> list[float]:
        """Values that an expression has now."""
        return [value for _, value in self.prometheus.series(expression)]

    def told(self) -> str:
        """Everything that the webhook was told."""
        return "\n".join(f"{each['title']}\n{each['message']}" for each in self.hook.got)

    @contextlib.contextmanager
    def looking(self) -> Iterator[Page]:
        """The quality page, opened."""
        with browser(self.page) as page:
            page.goto(self.page)
            yield page


@contextlib.contextmanager
def drilled(folder: Path, home: Path, **environment: str) -> Iterator[Drilled]:
    with (
        listening() as hook,
        # Free ports: the usual ones may be another platform's that has not begun to listen.
        platform(
            home,
            *("--quality-port", "0", "--metrics-port", "0"),
            METALAYER_ALERT_URLS=hook.url,
            **environment,
        ) as up,
    ):
        assert up.url
        metrics, page = (
            next(line.partition(said)[2] for line in up.lines if said in line)
            for said in (_METRICS, _PAGE)
        )
        with prometheus(folder / "prometheus", urlsplit(metrics).netloc) as watching:
            yield Drilled(up, watching, hook, page)


def published(up: Up) -> int:
    """Orders in gold."""
    ((count,),) = up.ask("select count(*) from gold.fact_orders")
    return int(count)


def land(up: Up, name: str, first: int, rows: int, month: str = "2025-01") -> None:
    up.land_orders(
        name, *(f"{first + n},1,P00001,{month}-05,1,5.00,5.00,PAID" for n in range(rows))
    )


@pytest.fixture(scope="module")
def drill(module_folder: Path) -> Iterator[Drilled]:
    with drilled(module_folder, module_folder / "home") as found:
        land(found.up, "orders_2025-01.csv", 1, 5)
        wait(lambda: published(found.up) == 5, 120, found.up)
        wait(lambda: not found.up.unfinished_runs(), 120, found.up)
        yield found


def test_a_month_that_is_held_back(drill: Drilled) -> None:
    late = 'metalayer_table_late_itself_seconds{table="bronze.orders"} > 0'
    wait(lambda: drill.measured(late), 60, drill.up)
    wait(lambda: "MetaLayerSourceLate" in drill.prometheus.alerts(), 60)
    wait(lambda: "bronze.orders lacks 2025-02" in drill.told(), 90, drill.up)
    with drill.looking() as page:
        expect(page.get_by_role("status")).to_contain_text("late", timeout=30_000)
    # All that is due comes.
    due = datetime.now(UTC).date().replace(day=1)
    month = following_month(datetime(2025, 1, 1, tzinfo=UTC).date())
    number = 100
    while month <= due:
        land(drill.up, f"orders_{month:%Y-%m}.csv", number, 1, f"{month:%Y-%m}")
        number, month = number + 1, following_month(month)
    wait(lambda: drill.measured(late.replace("> 0", "== 0")), 150, drill.up)
    wait(lambda: "No longer so: bronze.orders lacks" in drill.told(), 120, drill.up)
    with drill.looking() as page:
        row = page.get_by_role("row").filter(has_text="bronze.orders")
        expect(row.get_by_text("✓ 100%").first).to_be_visible(timeout=30_000)


def test_a_database_that_does_not_answer(drill: Drilled) -> None:
    before = published(drill.up)
    lines = (drill.up.home / "postgres" / "postmaster.pid").read_text().splitlines()
    postmaster = psutil.Process(int(lines[0]))
    postmaster.suspend()  # who is in stays in; nobody else gets in
    try:
        # Or Prometheus gives up before the metrics do.
        down = 'metalayer_up == 0 or up{job="metalayer"} == 0'
        wait(lambda: drill.measured(down), 60, drill.up)
        wait(lambda: "MetaLayerDown" in drill.prometheus.alerts(), 60)
        wait(lambda: "PostgreSQL does not answer" in drill.told(), 150, drill.up)
        with drill.looking() as page:
            expect(page.get_by_text("The warehouse cannot be asked")).to_be_visible(timeout=60_000)
    finally:
        postmaster.resume()
    wait(lambda: 1.0 in drill.measured("metalayer_up"), 60, drill.up)
    wait(lambda: "No longer so: PostgreSQL does not answer" in drill.told(), 180, drill.up)
    land(drill.up, "orders_after.csv", 900, 1)
    wait(lambda: published(drill.up) == before + 1, 120, drill.up)


def test_a_daemon_that_is_killed_in_the_middle_of_a_run(drill: Drilled) -> None:
    before = published(drill.up)
    land(drill.up, "orders_many.csv", 10_000, 60_000)
    wait(lambda: drill.up.unfinished_runs(), 60, drill.up)
    (daemon,) = [p for p in drill.up.family() if "metalayer.services.daemon" in p.cmdline()]
    daemon.kill()
    wait(lambda: "the daemon ended" in drill.up.said, 30, drill.up)
    silent = "time() - max(metalayer_daemon_heartbeat_timestamp_seconds)"
    wait(lambda: published(drill.up) == before + 60_000, 180, drill.up)
    wait(lambda: drill.measured(f"{silent} < 60"), 60, drill.up)
    wait(lambda: not drill.up.unfinished_runs(), 120, drill.up)
    ((unbalanced,),) = drill.up.ask(
        "select count(*) from meta.versions where is_current "
        "and rows_read <> rows + rows_quarantined + rows_superseded"
    )
    assert unbalanced == 0
    with drill.looking() as page:
        expect(page.get_by_role("status")).not_to_contain_text("failed", timeout=30_000)


def test_a_disk_that_fills_up(mounted: Callable[[int], Path], module_folder: Path) -> None:
    disk = mounted(1500 * MB)
    folder = module_folder / "full"
    folder.mkdir()
    with drilled(folder, disk / "home") as drill:
        land(drill.up, "orders_2025-01.csv", 1, 5)
        wait(lambda: published(drill.up) == 5, 120, drill.up)
        wait(lambda: not drill.up.unfinished_runs(), 120, drill.up)
        ballast = disk / "ballast"
        facts = os.statvfs(disk)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - 110 * MB)
        try:
            wait(lambda: drill.measured('metalayer_disk_free_bytes{folder="home"} < 2e8'), 60)
            wait(lambda: "MetaLayerDiskLow" in drill.prometheus.alerts(), 60)
            said = drill.up.run("alerts")
            assert "GB are free where the home folder is" in said.stdout
            with drill.looking() as page:
                expect(page.get_by_text("worst first")).to_be_visible(timeout=30_000)
        finally:
            ballast.unlink()
        wait(lambda: "MetaLayerDiskLow" not in drill.prometheus.alerts(), 60)
        assert "GB are free where" not in drill.up.run("alerts").stdout
        land(drill.up, "orders_after.csv", 100, 3)
        wait(lambda: published(drill.up) == 8, 120, drill.up)


def test_backups_of_a_running_platform_bring_it_back(module_folder: Path) -> None:
    """A lost home: what `up` backed up by itself is enough."""
    folder = module_folder / "lost"
    folder.mkdir(mode=0o711)
    # Encrypted, so that the keys of encrypted columns are in it.
    vault = {
        "METALAYER_BACKUP_URL": str(folder / "vault"),
        "METALAYER_BACKUP_KEY": make_key().text,
    }
    with drilled(folder, folder / "home", **vault) as drill:
        land(drill.up, "orders_2025-01.csv", 1, 5)
        wait(lambda: published(drill.up) == 5, 120, drill.up)
        wait(lambda: drill.measured("metalayer_backup_last_timestamp_seconds > 0"), 120, drill.up)
        wait(lambda: drill.measured("metalayer_drill_last_timestamp_seconds > 0"), 180, drill.up)
        assert drill.measured("metalayer_drill_failed") == [0.0]
        drill.up.ask("select pg_switch_wal()")
        wait(lambda: drill.measured("metalayer_backup_segments_waiting == 0"), 60, drill.up)
        # The place of backups is gone: told, and it works again once it is back.
        aside = folder / "aside"
        (folder / "vault").rename(aside)
        (folder / "vault").write_text("no folder")
        try:
            drill.up.ask("select pg_switch_wal()")
            wait(lambda: drill.measured("metalayer_backup_failing == 1"), 90, drill.up)
            wait(lambda: "MetaLayerBackupFails" in drill.prometheus.alerts(), 60)
            assert "Backups fail" in _run(drill.up.home, vault, "alerts")
        finally:
            (folder / "vault").unlink()
            aside.rename(folder / "vault")
        wait(lambda: drill.measured("metalayer_backup_failing == 0"), 60, drill.up)
        drill.up.ask("select pg_switch_wal()")
        wait(lambda: drill.measured("metalayer_backup_segments_waiting == 0"), 60, drill.up)
    subprocess.run(["rm", "-rf", str(folder / "home")], check=True)
    again = folder / "again"
    _run(folder / "empty", vault, "restore", "--into", str(again))
    with platform(again) as up:
        assert up.url
        assert published(up) == 5
        land(up, "orders_2025-02.csv", 50, 2, "2025-02")
        wait(lambda: published(up) == 7, 120, up)


def _run(home: Path, environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "metalayer", *words],
        env={**os.environ, **environment, "METALAYER_HOME": str(home),
             "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
