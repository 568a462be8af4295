"""Metrics as Prometheus fetches them: they say what the ledger and the tables say, and no more."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from metalayer.errors import UsageError
from metalayer.operations.exporter import exporter, exposition
from metalayer.operations.metrics import Metrics
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def measured(text: str) -> Found:
    """(name, labels) -> value of each series in an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Found, name: str, **labels: str) -> float:
    """The one value of a metric with these labels among others."""
    (only,) = [
        v for (n, ls), v in found.items() if n == f"metalayer_{name}" and ls >= labels.items()
    ]
    return only


@pytest.fixture(autouse=True)
def _no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Dagster's tables are is found, not told."""
    monkeypatch.delenv("DAGSTER_PG_URL", raising=False)


@pytest.fixture
def landed(platform: Platform) -> Platform:
    """Two months of orders, one of them bad, a file that is refused, and two customers."""
    platform.land(
        "crm/customers_2025-01.csv",
        CUSTOMERS + customer(1, "2025-01-05") + customer(2, "2025-01-05"),
    )
    platform.land(
        "erp/orders_2025-01.csv",
        ORDERS
        + order(1, "2025-01-05")
        + order(2, "2025-01-06", quantity=-1)
        + order(3, "2025-02-01"),
    )
    platform.land("erp/orders_broken.csv", "order_id\n9\n")
    platform.build()
    return platform


def test_they_say_what_is_in_the_tables(landed: Platform) -> None:
    found = measured(exposition(landed.warehouse.settings))
    orders = {"layer": "silver", "table": "silver.orders"}
    assert value(found, "up") == 1
    assert value(found, "table_rows", **orders) == 2
    assert value(found, "table_rows_quarantined", **orders) == 1
    assert value(found, "table_rows_read", **orders) == 3
    assert value(found, "table_rows_superseded", **orders) == 0
    assert value(found, "table_months", **orders) == 2
    assert value(found, "table_versions", **orders) == 2
    assert value(found, "table_months_failed", **orders) == 0
    assert value(found, "table_build_seconds", **orders) > 0
    assert 8192 <= value(found, "table_bytes", **orders) < 10_000_000
    assert value(found, "deliveries", source="erp/orders", status="loaded") == 1
    assert value(found, "deliveries", source="erp/orders", status="rejected") == 1
    assert value(found, "delivered_rows", source="erp/orders", status="loaded") == 3
    assert value(found, "delivered_bytes", source="crm/customers", status="loaded") == len(
        CUSTOMERS + customer(1, "2025-01-05") + customer(2, "2025-01-05")
    )
    assert value(found, "database_bytes") > 1_000_000
    assert value(found, "connections", state="active") >= 1
    assert value(found, "disk_free_bytes", folder="landing") > 0
    assert not any(v for (n, _), v in found.items() if n == "metalayer_scrape_failed")


def test_a_month_that_is_held_back_is_late_and_one_that_fails_is_failed(landed: Platform) -> None:
    found = measured(exposition(landed.warehouse.settings))
    late = value(found, "table_late_seconds", table="bronze.orders")
    # The month after the last that came, until now.
    assert late > 300 * 86_400
    assert value(found, "table_sla_met", table="bronze.orders") == 0
    assert value(found, "table_late_seconds", table="gold.dim_date") >= 0
    landed.land(
        "erp/orders_2025-01.csv",
        ORDERS + "".join(order(n, "2025-01-05", quantity=-1) for n in range(100)),
    )
    assert not landed.build().succeeded
    found = measured(exposition(landed.warehouse.settings))
    assert value(found, "table_months_failed", table="silver.orders") == 1


def test_the_number_of_series_does_not_grow_with_what_is_done(landed: Platform) -> None:
    before = set(measured(exposition(landed.warehouse.settings)))
    landed.land(
        "erp/orders_2025-03.csv",
        ORDERS + "".join(order(n, f"2025-{n:02}-01") for n in range(3, 10)),
    )
    assert landed.build().succeeded
    assert set(measured(exposition(landed.warehouse.settings))) == before


def test_nothing_personal_is_in_them(landed: Platform) -> None:
    text = exposition(landed.warehouse.settings)
    names = landed.ask("select first_name, last_name, email from silver.customers_stored")
    assert names
    for words in names:
        assert not [word for word in words if word and re.search(rf"\b{word}\b", text, re.I)]


def test_a_server_that_is_gone_is_said_and_the_rest_is_there(tmp_path: Path) -> None:
    url = SecretStr("postgresql+psycopg2://postgres@localhost:1/none")
    settings = Settings(_env_file=None, home=tmp_path, database_url=url)
    (tmp_path / "landing").mkdir()
    found = measured(exposition(settings))
    assert value(found, "up") == 0
    assert value(found, "scrape_failed", part="server") == 1
    assert value(found, "disk_free_bytes", folder="home") > 0


def test_an_embedded_server_is_not_started_for_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "metalayer", "metrics", "--once"],
        env={"PATH": "", "METALAYER_HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert value(measured(done.stdout), "up") == 0
    assert "warehouse cannot be measured: " in done.stderr
    assert list(home.iterdir()) == []


@pytest.fixture
def served(landed: Platform) -> Iterator[int]:
    with exporter(landed.warehouse.settings, "127.0.0.1", 0) as port:
        yield port


def test_they_are_measured_anew_each_time_they_are_fetched(landed: Platform, served: int) -> None:
    def fetched() -> Found:
        with urllib.request.urlopen(f"http://127.0.0.1:{served}/metrics", timeout=20) as answer:
            return measured(answer.read().decode())

    assert value(fetched(), "table_rows", table="silver.orders") == 2
    landed.land("erp/orders_2025-03.csv", ORDERS + order(4, "2025-03-01"))
    assert landed.build().succeeded
    assert value(fetched(), "table_rows", table="silver.orders") == 3


def test_a_port_that_is_taken_is_named(landed: Platform, served: int) -> None:
    with (
        pytest.raises(UsageError, match=f"Nothing can listen at 127.0.0.1, port {served}"),
        exporter(landed.warehouse.settings, "127.0.0.1", served),
    ):
        pass


def test_one_part_that_fails_leaves_the_others(
    landed: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    with landed.warehouse.pool.connect() as connection:
        connection.exec_driver_sql("alter table meta.deliveries rename to away")
        connection.exec_driver_sql("create view meta.deliveries as select 1 as nothing")
        connection.commit()
    found = measured(exposition(landed.warehouse.settings))
    assert value(found, "scrape_failed", part="deliveries") == 1
    assert value(found, "scrape_failed", part="tables") == 0
    assert value(found, "table_rows", table="silver.orders") == 2
    assert "deliveries cannot be measured" in caplog.text


def test_each_metric_says_what_it_is(landed: Platform) -> None:
    for family in Metrics(landed.warehouse.settings).collect():
        assert family.documentation.endswith("."), family.name
        assert re.fullmatch(r"metalayer_[a-z_]+", family.name)
