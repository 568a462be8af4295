"""Files of any size: a tick hands them on at once, and reading one takes bounded memory.

`pytest metalayer_tests/integration/test_large_files.py --large 5000` lands five gigabytes.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from benchmarks.contender import Step
from benchmarks.measure import measure
from metalayer.assets.resources import lent_to_runs
from metalayer.automation.landing import landing_sensor
from metalayer.settings import PROJECT_ROOT
from metalayer_tests.story import Platform

_MB = 1_000_000
_ROWS_AT_ONCE = 500_000
_BYTES_A_ROW = 62
_MOST_PEAK_MB = 800
_TICK_SECONDS = 10


def export(path: Path, megabytes: float) -> int:
    """Write orders of two years, in no order of time; how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = int(megabytes * _MB / _BYTES_A_ROW)
    with path.open("wb") as file:
        for first in range(0, rows, _ROWS_AT_ONCE):
            number = pl.int_range(first, min(first + _ROWS_AT_ONCE, rows), eager=True)
            frame = pl.DataFrame({"order_id": number + 1}).with_columns(
                customer_id=number * 7919 % 50_000 + 1,
                product_code=pl.format("P{}", (number * 31 % 300 + 10_000).cast(pl.String)),
                order_date=pl.lit(date(2024, 1, 1)) + pl.duration(days=number * 104_729 % 731),
                quantity=pl.lit(2),
                unit_price=pl.lit("1234.50"),
                total_amount=pl.lit("2469.00"),
                status=pl.lit("COMPLETED"),
            )
            frame.write_csv(file, include_header=first == 0)
    return rows


@pytest.fixture
def megabytes(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("--large"))


def test_a_tick_hands_a_large_file_on_whatever_its_size(
    platform: Platform, megabytes: float
) -> None:
    export(platform.landing / "erp/orders.csv", megabytes)
    sensor = landing_sensor(platform.warehouse.settings)
    began = time.monotonic()
    with lent_to_runs(platform.warehouse):
        done = sensor.evaluate_tick(dg.build_sensor_context(platform.instance))
    assert time.monotonic() - began < _TICK_SECONDS
    assert platform.ledger() == []
    assert [r.job_name for r in done.run_requests or ()] == ["take_in"]


def test_reading_one_takes_bounded_memory(
    platform: Platform, tmp_path: Path, megabytes: float
) -> None:
    settings = platform.warehouse.settings
    rows = export(settings.landing / "erp/orders.csv", megabytes)
    url = settings.database_url
    assert url is not None
    build = Step(
        (sys.executable, "-m", "metalayer", "build", "bronze.orders"),
        environment={
            "METALAYER_HOME": str(settings.home),
            "METALAYER_LANDING": str(settings.landing),
            "METALAYER_DATABASE_URL": url.get_secret_value(),
            "PYTHONPATH": str(PROJECT_ROOT),
        },
        folder=tmp_path,
    )
    assert measure([build], tmp_path / "log").peak_mb < _MOST_PEAK_MB
    assert platform.one("select count(*) from bronze.orders") == rows
    assert platform.balances()
