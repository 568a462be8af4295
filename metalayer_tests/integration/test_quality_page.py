"""The quality page in a browser: three sizes, light and dark, down to a landed line by clicks."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from metalayer.settings import PROJECT_ROOT
from metalayer_tests.e2e.up import slowness
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

SIZES = {"desktop": (1440, 1000), "tablet": (820, 1100), "phone": (390, 844)}
SCORES = "worst first"


def outside() -> dict[str, str]:
    """The environment as it is outside of tests, of which the library would take notice."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@dataclass
class Site:
    """A quality page that is served, of a platform of its own."""

    url: str
    platform: Platform


@pytest.fixture
def serve(platform: Platform, tmp_path: Path) -> Iterator[Callable[[], Site]]:
    """Serves the page of the platform, in a process of its own."""
    with contextlib.ExitStack() as stack:

        def start() -> Site:
            settings = platform.warehouse.settings
            assert settings.database_url is not None
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            log = stack.enter_context((tmp_path / "page.log").open("w"))
            process = subprocess.Popen(
                [sys.executable, "-m", "metalayer", "quality", "--port", str(port)],
                env={
                    **outside(),
                    "METALAYER_DATABASE_URL": settings.database_url.get_secret_value(),
                    "METALAYER_HOME": str(settings.home),
                    "PYTHONPATH": str(PROJECT_ROOT),
                },
                cwd=tmp_path,
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(url, timeout=10).read()
                    return Site(url, platform)
                except OSError:
                    assert process.poll() is None, (tmp_path / "page.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.1)

        yield start


@contextlib.contextmanager
def opened(url: str, size: str = "desktop", scheme: Any = "light") -> Iterator[Page]:
    """A page that complains of nothing, and needs no sideways scrolling.

    The browser lasts as long: its event loop would be in the way of a build in this thread.
    """
    width, height = SIZES[size]
    program = shutil.which("chromium")
    assert program, "Install Chromium: apt-get install -y chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(url)
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert complaints == []
        browser.close()


@pytest.fixture
def dirty(platform: Platform) -> Platform:
    """Orders of two months, three of them bad, a file refused, an order of nobody."""
    platform.land(
        "crm/customers.csv", CUSTOMERS + customer(1, "2025-01-05") + customer(2, "2025-01-05")
    )
    platform.land(
        "erp/orders.csv",
        ORDERS
        + order(1, "2025-01-05")
        + order(2, "2025-01-06", quantity=-1)
        + order(3, "2025-02-01")
        + order(3, "2025-02-01"),
    )
    platform.land("erp/orders_broken.csv", "order_id\n9\n")
    platform.build()
    return platform


def test_scores_flow_rules_and_due_dates_at_every_size_in_light_and_dark(
    dirty: Platform, serve: Callable[[], Site]
) -> None:
    site = serve()
    grounds = set()
    for size in SIZES:
        for scheme in ("light", "dark"):
            with opened(site.url, size, scheme) as page:
                expect(page.get_by_text(SCORES)).to_be_visible()
                expect(page.get_by_role("status")).to_contain_text("1 file refused")
                for title in ("From files to gold", "Rules that rows break", "Slowest tables",
                              "Freshness against what is due", "Where time goes"):  # fmt: skip
                    expect(page.get_by_text(title, exact=True)).to_be_visible()
                expect(page.locator("canvas, svg").first).to_be_visible()
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                grounds.add((scheme, ground))
    assert len(grounds) == 2
    with opened(site.url, scheme="light") as page:
        page.get_by_role("button", name="Light or dark").click()
        dark = dict(grounds)["dark"]
        page.wait_for_function(f"getComputedStyle(document.body).backgroundColor === '{dark}'")


def test_by_clicks_down_to_the_landed_line_and_nothing_personal_on_the_way(
    dirty: Platform, serve: Callable[[], Site]
) -> None:
    site = serve()
    with opened(site.url) as page:
        page.get_by_role("link", name="silver.orders").first.click()
        expect(page.get_by_text("By month of the data")).to_be_visible()
        expect(page.get_by_text("1 of 3 rows break the contract")).to_be_visible()
        page.get_by_role("link", name=re.compile("quantity must be > 0")).click()
        expect(page.get_by_text("erp/orders.csv:3")).to_be_visible()
        expect(page.get_by_text("1 rows.")).to_be_visible()
        page.get_by_role("link", name="Back to silver.orders").click()
        expect(page.get_by_text("silver.orders").first).to_be_visible()
    dirty.land(
        "crm/customers_2.csv",
        CUSTOMERS + customer(3, "2025-01-05").replace("2025-01-05", "nonsense-of-zebedaeus"),
    )
    dirty.build()
    with opened(f"{site.url}/quarantine/bronze.customers") as page:
        expect(page.get_by_text("crm/customers_2.csv")).to_be_visible()
        assert "zebedaeus" not in page.content()


def test_it_is_live(dirty: Platform, serve: Callable[[], Site]) -> None:
    site = serve()
    with opened(site.url) as page:
        expect(page.get_by_role("status")).to_contain_text("1 file refused")
        dirty.land("erp/orders_broken.csv", ORDERS + order(9, "2025-02-03"))
        building = threading.Thread(target=dirty.build)
        building.start()
        building.join()
        expect(page.get_by_role("status")).not_to_contain_text("refused", timeout=20_000)


def test_with_nothing_built_it_says_what_to_do(
    platform: Platform, serve: Callable[[], Site]
) -> None:
    site = serve()
    with opened(site.url, "phone") as page:
        expect(page.get_by_text("Nothing has been built yet")).to_be_visible()
        expect(page.get_by_text("metalayer demo")).to_be_visible()


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "metalayer", "quality", "--port", str(port)],
        env={**outside(), "METALAYER_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT_ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=10).read()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        with opened(f"http://127.0.0.1:{port}") as page:
            expect(page.get_by_text("The warehouse cannot be asked")).to_be_visible()
    finally:
        process.terminate()
        process.wait(20)


def test_two_hundred_tables_and_ten_thousand_deliveries_open_within_two_seconds(
    dirty: Platform, serve: Callable[[], Site]
) -> None:
    dirty.ask(
        "insert into meta.tables (table_name, layer, description, owner, fresh_within, position, "
        "made_from) select 'gold.made_up_' || n, 'gold', 'x', 'team:x', '35 days', 1000 + n, '' "
        "from generate_series(1, 181) as n returning 1"
    )
    dirty.ask(
        "insert into meta.versions (table_name, month, version, is_current, leaf, data_version, "
        "code_version, inputs, rows_read, rows, rows_quarantined, rows_superseded, seconds) "
        "select 'gold.made_up_' || n, date '2023-01-01' + m * interval '1 month', 1, true, 'x', "
        "'x', 'x', '{}', 1000, 990, 10, 0, 1 from generate_series(1, 181) as n, "
        "generate_series(0, 23) as m returning 1"
    )
    dirty.ask(
        "with landed as (insert into meta.deliveries (source, file, sha256, size, mtime_ns, "
        "status, fallback_month, shape, rows_read) select 'erp/orders', 'erp/orders_' || n, "
        "md5(n::text), 100, 1, 'loaded', '2025-01-01', 'x', 10 from generate_series(1, 10000) "
        "as n returning delivery_id) insert into meta.delivery_months (delivery_id, month, rows) "
        "select delivery_id, '2025-01-01', 10 from landed returning 1"
    )
    site = serve()
    seconds = []
    for _ in range(4):
        with opened("about:blank") as page:
            began = time.monotonic()
            page.goto(site.url)
            expect(page.get_by_text("200 tables, the worst first")).to_be_visible()
            expect(page.get_by_text("gold.made_up_1", exact=True).or_(
                page.get_by_text("silver.orders", exact=True)).first).to_be_visible()  # fmt: skip
            seconds.append(time.monotonic() - began)
            time.sleep(4.5)  # the next is asked anew
    # Two seconds of an undisturbed machine: other tests run on this one.
    assert min(seconds) < 2 * slowness(), seconds
    with opened(site.url) as page:
        page.get_by_label("Filter tables").fill("made_up_77")
        expect(page.get_by_role("link", name="gold.made_up_77")).to_be_visible()
        expect(page.get_by_role("link", name="gold.made_up_78")).to_have_count(0)
