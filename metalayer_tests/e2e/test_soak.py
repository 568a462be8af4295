"""A platform that files keep landing in: each is loaded once, nothing gets stuck, memory is flat.

`pytest metalayer_tests/e2e/test_soak.py --soak 200` lands 200 files in ten minutes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import psutil
import pytest

from metalayer_tests.e2e.up import Up, platform, wait

_SECONDS_A_LANDING = 3.0
#: Fewer landings than this are over before what a process keeps for good has been loaded.
_ENOUGH_TO_WARM_UP = 100
_MOST_GROWTH = 1.10
#: What stands besides: PostgreSQL's own processes, sessions and runs apart, and what forks runs.
_SESSIONS_OF_A_RUN = 12
_STANDING = ("checkpointer", "background writer", "walwriter", "autovacuum launcher", "forkserver")


def own_memory(process: psutil.Process) -> int:
    """Bytes of a process but for what it shares: PostgreSQL's buffers, files in memory."""
    info = process.memory_info()
    return int(info.rss - info.shared)


def memory(up: Up) -> dict[str, int]:
    """Bytes that each of the platform's standing processes has for itself."""
    found = {"up": own_memory(psutil.Process(up.process.pid))}
    for process in up.family()[1:]:
        # A run, or a session, may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join(process.cmdline())
            parent = process.parent()
            if parent is not None and words == " ".join(parent.cmdline()):
                continue  # a run, forked from what stands
            for name in ("code_server", "dagster_webserver", "services.daemon", *_STANDING):
                if name in words:
                    found[name] = found.get(name, 0) + own_memory(process)
    return found


def typical(seen: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """The median of each process that stood all the time."""
    names = set(seen[0]).intersection(*seen)
    return {name: median(found[name] for found in seen) for name in sorted(names)}


def sessions(up: Up) -> int:
    """Sessions in PostgreSQL, whoever holds them."""
    ((count,),) = up.ask(
        "select count(*) from pg_stat_activity where backend_type = 'client backend'"
    )
    return int(count)


def test_landings_are_loaded_once_and_memory_stays_flat(
    server_folder: Path,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    landings = max(4, int(pytestconfig.getoption("--soak")))
    with platform(server_folder / "home") as up:
        assert up.url
        seen: list[dict[str, int]] = []
        warm_sessions = 0
        began = time.monotonic()
        for number in range(landings):
            month = number % 6 + 1
            rows = [
                f"{number * 10 + n},1,P00001,2025-{month:02}-{n + 1:02},1,5.00,5.00,PAID"
                for n in range(10)
            ]
            up.land_orders(f"orders_{number}.csv", *rows)
            seen.append(memory(up))
            if number == landings // 4:
                warm_sessions = sessions(up)
            time.sleep(max(0.0, began + (number + 1) * _SECONDS_A_LANDING - time.monotonic()))
        wait(lambda: up.ask("select count(*) from gold.fact_orders") == [(landings * 10,)], 180, up)
        wait(lambda: not up.unfinished_runs(), 60, up)
        assert up.ask("select status, count(*) from meta.ledger group by 1") == [
            ("loaded", landings)
        ]
        assert up.ask("select count(*), count(distinct order_id) from silver.orders") == [
            (landings * 10, landings * 10)
        ]
        assert "failed" not in up.said
        # What a process holds goes up and down with what it does: the last quarter of the time
        # beside the second.
        quarter = landings // 4
        warm, ended = typical(seen[quarter : 2 * quarter]), typical(seen[-quarter:])
        assert {"up", "code_server", "dagster_webserver", "services.daemon"} <= warm.keys()
        assert {"forkserver", "checkpointer", "walwriter"} <= warm.keys()
        growth = {name: round(ended[name] / warm[name], 3) for name in warm}
        record_property("memory_growth", str(growth))
        record_property("memory_mb", str({n: round(size / 1e6) for n, size in ended.items()}))
        if landings >= _ENOUGH_TO_WARM_UP:
            assert max(growth.values()) < _MOST_GROWTH, growth
        assert sessions(up) <= warm_sessions + _SESSIONS_OF_A_RUN
