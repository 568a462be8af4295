"""A real Prometheus fetches the metrics of a running platform: rules and panels find what they ask.

Prometheus and promtool are Debian's.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from metalayer.settings import PROJECT_ROOT
from metalayer_tests.e2e.up import Up, platform, wait
from metalayer_tests.integration.webhook import Webhook, listening

MONITORING = PROJECT_ROOT / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
DASHBOARDS = sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
#: A metric with what it is asked for: `metalayer_runs{status="queued"}`.
_SELECTOR = re.compile(r"\b(?:metalayer[\w:]*|up(?=\{))(?:\{[^}]*\})?")
_METRICS = "Metrics for Prometheus: "


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"There is no {name}. Install it: apt-get install -y prometheus")
    return found


def promtool(*words: str, given: str | None = None) -> str:
    done = subprocess.run(
        [program("promtool"), *words], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - loopback
        text: str = answer.read().decode()
        return text


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    url: str

    def series(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """What an expression gives now: labels and value of each series."""
        query = urllib.parse.urlencode({"query": expression})
        said: dict[str, Any] = json.loads(fetched(f"{self.url}/api/v1/query?{query}"))
        result = said["data"]["result"]
        if said["data"]["resultType"] == "scalar":
            return [({}, float(result[1]))]
        return [(each["metric"], float(each["value"][1])) for each in result]

    def alerts(self) -> set[str]:
        """Names of alerts that are pending or firing."""
        said = json.loads(fetched(f"{self.url}/api/v1/alerts"))
        return {alert["labels"]["alertname"] for alert in said["data"]["alerts"]}


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Prometheus with the project's own configuration, but for the target and a faster pace."""
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": "1s",
        "evaluation_interval": "1s",
        "scrape_timeout": "1s",
    }
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    folder.mkdir()
    shutil.copyfile(MONITORING / "rules.yml", folder / "rules.yml")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        *(program("prometheus"), "--config.file", str(folder / "prometheus.yml")),
        *("--storage.tsdb.path", str(folder / "data"), "--web.listen-address", address),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        found = Prometheus(f"http://{address}")
        wait(lambda: process.poll() is None and found.series("up == 1"), 60)
        yield found
    finally:
        process.terminate()
        process.wait(20)


@dataclass
class Watched:
    """A platform that Prometheus watches, and that tells a webhook what is wrong."""

    up: Up
    prometheus: Prometheus
    metrics: str
    hook: Webhook


@pytest.fixture(scope="module")
def watched(module_folder: Path) -> Iterator[Watched]:
    with (
        listening() as hook,
        platform(
            module_folder / "home",
            METALAYER_ALERT_URLS=hook.url,
            METALAYER_BACKUP_URL=str(module_folder / "backups"),
        ) as up,
    ):
        assert up.url
        (line,) = [line for line in up.lines if _METRICS in line]
        metrics = line.partition(_METRICS)[2]
        up.land_orders(
            "orders_2025-01.csv",
            "1,1,P00001,2025-01-05,1,5.00,5.00,PAID",
            "2,1,P00001,2025-01-05,-1,5.00,5.00,PAID",
        )
        up.land("erp/orders_broken.csv", "order_id\n9\n")
        wait(
            lambda: up.ask(
                "select 1 from meta.versions where table_name = 'gold.customer_360' and is_checked"
            ),
            120,
            up,
        )
        wait(lambda: not up.unfinished_runs(), 120, up)
        target = urllib.parse.urlsplit(metrics).netloc
        with prometheus(module_folder / "prometheus", target) as watching:
            # Shares of what happened within an hour need two looks, and rules one after these.
            wait(lambda: len(watching.series("metalayer_up offset 4s")) == 1, 60)
            yield Watched(up, watching, metrics, hook)


def test_promtool_accepts_rules_configuration_and_metrics(watched: Watched) -> None:
    assert f"{len(ALL_RULES)} rules found" in promtool(
        "check", "rules", str(MONITORING / "rules.yml")
    )
    promtool("check", "config", str(MONITORING / "prometheus.yml"))
    # It knows no word of praise: what it says is a complaint.
    assert promtool("check", "metrics", given=fetched(watched.metrics)) == ""


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression that a recording rule or a panel asks."""
    for rule in ALL_RULES:
        if "record" in rule:
            yield rule["record"], rule["expr"]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]


@pytest.mark.parametrize(("asked_by", "expression"), list(expressions()))
def test_every_panel_and_recording_rule_finds_series(
    watched: Watched, asked_by: str, expression: str
) -> None:
    found = watched.prometheus.series(expression)
    assert found, asked_by
    assert all(value == value for _, value in found) or "quantile" in expression, "not a number"


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_every_alert_asks_for_series_that_there_are(watched: Watched, alert: str) -> None:
    selectors = set(_SELECTOR.findall(ALERTS[alert]["expr"]))
    assert selectors
    for selector in selectors:
        assert watched.prometheus.series(selector), selector


def test_every_metric_is_looked_at_by_somebody(watched: Watched) -> None:
    exposed = set(re.findall(r"^# TYPE (metalayer_\w+)", fetched(watched.metrics), re.MULTILINE))
    asked = {
        re.sub(r"_(bucket|count|sum)$", "", name.partition("{")[0])
        for _, expression in [*expressions(), *((a, r["expr"]) for a, r in ALERTS.items())]
        for name in _SELECTOR.findall(expression)
    }
    # When a file last came is for whoever asks.
    assert exposed - asked == {"metalayer_last_delivery_timestamp_seconds"}


def test_runs_rows_and_what_was_refused_are_counted(watched: Watched) -> None:
    def one(expression: str) -> float:
        ((_, value),) = watched.prometheus.series(expression)
        return value

    assert one('metalayer_table_rows{table="silver.orders"}') == 1
    assert one('metalayer_table_rows_quarantined{table="silver.orders"}') == 1
    assert one('metalayer_deliveries{source="erp/orders", status="rejected"}') == 1
    assert one('metalayer_runs{status="success"}') >= 1
    assert one('metalayer_run_duration_seconds_count{status="success"}') >= 1
    assert one('metalayer_runs{status="queued"}') == 0
    assert {labels["sensor"] for labels, _ in watched.prometheus.series(
        'metalayer_sensor_last_tick_timestamp_seconds{kind="sensor"}')} >= {"landing"}  # fmt: skip
    wait(
        lambda: {"MetaLayerSourceLate", "MetaLayerQuarantineHigh"} <= watched.prometheus.alerts(),
        30,
    )


def test_whoever_is_to_be_told_is_told_by_itself(watched: Watched) -> None:
    def told() -> str:
        return "".join(f"{each['title']}\n{each['message']}\n" for each in watched.hook.got)

    wait(lambda: "erp/orders_broken.csv was refused" in told(), 90, watched.up)
    assert told().count("orders_broken.csv was refused") == 1


def test_a_metrics_process_that_dies_is_started_again(watched: Watched) -> None:
    def serving() -> list[psutil.Process]:
        parent = psutil.Process(watched.up.process.pid)
        return [p for p in parent.children() if "metrics" in p.cmdline()]

    (before,) = serving()
    before.kill()
    wait(lambda: "metalayer_up 1.0" in fetched(watched.metrics), 60, watched.up)
    assert serving() != [before]
    assert watched.up.process.poll() is None


def test_a_daemon_that_is_held_up_is_noticed(watched: Watched) -> None:
    silent = "time() - max(metalayer_daemon_heartbeat_timestamp_seconds)"
    wait(lambda: watched.prometheus.series(f"{silent} < 60"), 60, watched.up)
    (daemon,) = [p for p in watched.up.family() if "metalayer.services.daemon" in p.cmdline()]
    daemon.suspend()
    try:
        # Its parts say every half a minute that they live.
        wait(lambda: watched.prometheus.series(f"{silent} > 60"), 120, watched.up)
    finally:
        daemon.resume()
    wait(lambda: watched.prometheus.series(f"{silent} < 60"), 120, watched.up)


_QUIET = "0x99"
#: Alert -> series at which it fires, and series at which it does not: a value each minute.
CASES: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "MetaLayerDown": ({"metalayer_up": "1 0x99"}, {"metalayer_up": "1x99"}),
    "MetaLayerNotMeasured": (
        {'metalayer_scrape_failed{part="runs"}': "1x99"},
        {'metalayer_scrape_failed{part="runs"}': _QUIET},
    ),
    "MetaLayerDaemonSilent": (
        {'metalayer_daemon_heartbeat_timestamp_seconds{daemon="sensor"}': "0x99"},
        {'metalayer_daemon_heartbeat_timestamp_seconds{daemon="sensor"}': "0+60x99"},
    ),
    "MetaLayerSensorSilent": (
        {'metalayer_sensor_last_tick_timestamp_seconds{kind="sensor",sensor="landing"}': "0x99"},
        {'metalayer_sensor_last_tick_timestamp_seconds{kind="schedule",sensor="month"}': "0x99"},
    ),
    "MetaLayerSensorFails": (
        {'metalayer_sensor_last_tick_failed{kind="sensor",sensor="landing"}': "1x99"},
        {'metalayer_sensor_last_tick_failed{kind="sensor",sensor="landing"}': _QUIET},
    ),
    "MetaLayerDiskLow": (
        {
            'metalayer_disk_free_bytes{folder="home"}': "5x99",
            'metalayer_disk_size_bytes{folder="home"}': "100x99",
        },
        {
            'metalayer_disk_free_bytes{folder="home"}': "50x99",
            'metalayer_disk_size_bytes{folder="home"}': "100x99",
        },
    ),
    "MetaLayerBackupOld": (
        {
            "metalayer_backup_last_timestamp_seconds": "-200000x99",
            "metalayer_backup_interval_seconds": "86400x99",
        },
        {
            "metalayer_backup_last_timestamp_seconds": "0+60x99",
            "metalayer_backup_interval_seconds": "86400x99",
        },
    ),
    "MetaLayerBackupFails": (
        {"metalayer_backup_failing": "1x99"},
        {
            "metalayer_backup_failing": "0x99",
            "metalayer_backup_shipped_timestamp_seconds": "0+60x99",
        },
    ),
    "MetaLayerDrillFailed": (
        {"metalayer_drill_failed": "1x99"},
        {"metalayer_drill_failed": "0x99", "metalayer_drill_last_timestamp_seconds": "0+60x99"},
    ),
    "MetaLayerConnectionsNearLimit": (
        {"metalayer_connections_used": "90x99", "metalayer_connections_limit": "100x99"},
        {"metalayer_connections_used": "9x99", "metalayer_connections_limit": "100x99"},
    ),
    "MetaLayerTransactionOpen": (
        {"metalayer_oldest_transaction_seconds": "3000+60x99"},
        {"metalayer_oldest_transaction_seconds": "10x99"},
    ),
    "MetaLayerRunFailed": (
        {
            'metalayer_run_last_end_timestamp_seconds{dagster_job="a",status="failure"}': "1000x99",
            'metalayer_run_last_end_timestamp_seconds{dagster_job="a",status="success"}': "500x99",
        },
        {
            'metalayer_run_last_end_timestamp_seconds{dagster_job="a",status="failure"}': "1000x99",
            'metalayer_run_last_end_timestamp_seconds{dagster_job="a",status="success"}': "1500x99",
        },
    ),
    "MetaLayerRunsWait": (
        {'metalayer_run_oldest_seconds{status="queued"}': "0+60x99"},
        {'metalayer_run_oldest_seconds{status="started"}': "0+60x99"},
    ),
    "MetaLayerRunStuck": (
        {'metalayer_run_oldest_seconds{status="started"}': "20000+60x99"},
        {'metalayer_run_oldest_seconds{status="started"}': "0+60x99"},
    ),
    "MetaLayerDeliveryRejected": (
        {'metalayer_files_refused{source="erp/orders"}': "1x99"},
        {'metalayer_files_refused{source="erp/orders"}': _QUIET},
    ),
    "MetaLayerMonthFailed": (
        {'metalayer_table_months_failed{table="silver.orders"}': "1x99"},
        {'metalayer_table_months_failed{table="silver.orders"}': _QUIET},
    ),
    "MetaLayerQuarantineHigh": (
        {
            'metalayer_table_rows_quarantined{table="silver.orders"}': "10x99",
            'metalayer_table_rows_read{table="silver.orders"}': "100x99",
        },
        {
            'metalayer_table_rows_quarantined{table="silver.orders"}': "0x99",
            'metalayer_table_rows_read{table="silver.orders"}': "0x99",
        },
    ),
    "MetaLayerAnomaly": (
        {'metalayer_table_anomalies_open{table="silver.orders"}': "2x99"},
        {'metalayer_table_anomalies_open{table="silver.orders"}': _QUIET},
    ),
    "MetaLayerSourceLate": (
        {'metalayer_table_late_itself_seconds{layer="bronze",table="bronze.orders"}': "60x99"},
        {'metalayer_table_late_itself_seconds{layer="gold",table="gold.fact_orders"}': "60x99"},
    ),
    "MetaLayerTableLate": (
        {'metalayer_table_late_itself_seconds{layer="gold",table="gold.fact_orders"}': "60x99"},
        {'metalayer_table_late_itself_seconds{layer="bronze",table="bronze.orders"}': "60x99"},
    ),
    "MetaLayerTableStale": (
        {
            'metalayer_table_freshness_lag_seconds{table="gold.fact_orders"}': "90x99",
            'metalayer_table_freshness_limit_seconds{table="gold.fact_orders"}': "60x99",
        },
        {
            'metalayer_table_freshness_lag_seconds{table="gold.fact_orders"}': "30x99",
            'metalayer_table_freshness_limit_seconds{table="gold.fact_orders"}': "60x99",
        },
    ),
}  # fmt: skip


def test_each_alert_fires_when_it_should_and_is_silent_when_it_should(tmp_path: Path) -> None:
    assert set(CASES) == set(ALERTS)
    cases = []
    for alert, both in CASES.items():
        for fires, series in zip((1, 0), both, strict=True):
            firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
            cases.append(
                {
                    "interval": "1m",
                    "input_series": [{"series": s, "values": v} for s, v in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": firing,
                            "eval_time": "75m",
                            "exp_samples": [{"labels": "{}", "value": fires}],
                        }
                    ],
                }
            )
    tests = tmp_path / "tests.yml"
    tests.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(MONITORING / "rules.yml")],
                "evaluation_interval": "1m",
                "tests": cases,
            }
        )
    )
    promtool("test", "rules", str(tests))


def test_each_alert_says_what_to_do_and_has_its_place_in_the_docs() -> None:
    page = (PROJECT_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (MetaLayer\w+)$", page, re.MULTILINE)
    assert headings == list(ALERTS)
    for name, rule in ALERTS.items():
        assert set(rule["annotations"]) == {"summary", "description", "next_step"}, name
        assert rule["labels"]["severity"] in ("warning", "critical"), name


def test_dashboards_stand_on_the_source_that_is_provisioned() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "metalayer.yml").read_text())[
        "datasources"
    ]
    pages = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({page["uid"] for page in pages}) == len(pages) == 3
    for path, page in zip(DASHBOARDS, pages, strict=True):
        assert page["uid"] == path.stem
        for panel in page["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for asked in (panel, *panel["targets"]):
                assert asked["datasource"] == {"type": source["type"], "uid": source["uid"]}
