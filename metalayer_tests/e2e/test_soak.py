"""A platform that files keep landing in: each is loaded once, nothing gets stuck, memory is flat.

`pytest metalayer_tests/e2e/test_soak.py --soak 200` lands 200 files in ten minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from metalayer_tests.e2e.up import Up, platform, wait

_SECONDS_A_LANDING = 3.0
#: Fewer landings than this are over before what a process keeps for good has been loaded.
_ENOUGH_TO_WARM_UP = 100
_MOST_GROWTH = 1.10


def memory(up: Up) -> dict[str, int]:
    """Bytes that each of the platform's standing processes holds, PostgreSQL and runs apart."""
    found = {"up": psutil.Process(up.process.pid).memory_info().rss}
    for process in psutil.Process(up.process.pid).children():
        words = " ".join(process.cmdline())
        for name in ("code_server", "dagster_webserver", "services.daemon"):
            if name in words:
                found[name] = process.memory_info().rss
    return found


def test_landings_are_loaded_once_and_memory_stays_flat(
    server_folder: Path,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    landings = int(pytestconfig.getoption("--soak"))
    with platform(server_folder / "home") as up:
        assert up.url
        warm: dict[str, int] = {}
        began = time.monotonic()
        for number in range(landings):
            month = number % 6 + 1
            rows = [
                f"{number * 10 + n},1,P00001,2025-{month:02}-{n + 1:02},1,5.00,5.00,PAID"
                for n in range(10)
            ]
            up.land_orders(f"orders_{number}.csv", *rows)
            if number == landings // 4:
                warm = memory(up)
            time.sleep(max(0.0, began + (number + 1) * _SECONDS_A_LANDING - time.monotonic()))
        wait(lambda: up.ask("select count(*) from gold.fact_orders") == [(landings * 10,)], 180, up)
        wait(lambda: not up.unfinished_runs(), 60, up)
        ended = memory(up)
        assert up.ask("select status, count(*) from meta.ledger group by 1") == [
            ("loaded", landings)
        ]
        assert up.ask("select count(*), count(distinct order_id) from silver.orders") == [
            (landings * 10, landings * 10)
        ]
        assert "failed" not in up.said
        growth = {name: round(ended[name] / warm[name], 3) for name in warm}
        record_property("memory_growth", str(growth))
        record_property("memory_mb", str({n: round(size / 1e6) for n, size in ended.items()}))
        if landings >= _ENOUGH_TO_WARM_UP:
            assert max(growth.values()) < _MOST_GROWTH, growth
