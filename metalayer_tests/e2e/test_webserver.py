"""The definitions as Dagster's own webserver loads them from `workspace.yaml`."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.landing.ledger import register
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.pool import transaction

_STARTS_WITHIN_SECONDS = 90
_ASSETS = """
{ assetNodes { assetKey { path } groupName isMaterializable hasAssetChecks
    repository { name location { name } } } }
"""
_LOCATION = "{ workspaceOrError { __typename ... on Workspace { locationEntries { name \
  loadStatus locationOrLoadError { __typename ... on PythonError { message } } } } } }"


class Webserver:
    """A running webserver: what it answers, and what it said on its way."""

    def __init__(self, port: int, said: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.said = said

    def ask(self, query: str) -> Any:
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.url}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return json.load(answer)["data"]

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/server_info", timeout=5) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def environment(tmp_path: Path, database: str, dagster_url: str) -> dict[str, str]:
    """Environment of a deployment: a home, a landing zone, two databases."""
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copyfile(PROJECT_ROOT / "dagster.yaml", home / "dagster.yaml")
    return {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "DAGSTER_PG_URL": dagster_url,
        "METALAYER_DATABASE_URL": database,
        "METALAYER_HOME": str(tmp_path / "home"),
        "METALAYER_LANDING": str(tmp_path / "landing"),
        "PYTHONWARNINGS": "default",
    }


@contextmanager
def _running(
    said: Path, environment: dict[str, str], program: str, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the same environment, ended with the `with`; what it says is in `said`."""
    with said.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *arguments, "-w", "workspace.yaml"],
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def webserver(tmp_path: Path, environment: dict[str, str]) -> Iterator[Webserver]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = tmp_path / "webserver.txt"
    address = ("-h", "127.0.0.1", "-p", str(port))
    with _running(said, environment, "dagster-webserver", *address) as process:
        server = Webserver(port, said)
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while not server.is_up():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.3)
        yield server


@pytest.fixture
def daemon(tmp_path: Path, environment: dict[str, str]) -> Iterator[Path]:
    """The daemon that takes runs off the queue; gives the file with what it says."""
    said = tmp_path / "daemon.txt"
    with _running(said, environment, "dagster-daemon", "run"):
        yield said


def test_the_workspace_loads_every_table_without_errors_or_warnings_of_ours(
    webserver: Webserver,
) -> None:
    (entry,) = webserver.ask(_LOCATION)["workspaceOrError"]["locationEntries"]
    assert entry["name"] == "metalayer"
    assert entry["locationOrLoadError"]["__typename"] == "RepositoryLocation", entry
    nodes = {".".join(n["assetKey"]["path"]): n for n in webserver.ask(_ASSETS)["assetNodes"]}
    for table, spec in catalog().specs.items():
        assert nodes[table]["groupName"] == spec.layer
        assert nodes[table]["isMaterializable"]
        assert nodes[table]["hasAssetChecks"]
    landed = {f"landing.{name.replace('/', '.')}" for name in catalog().sources}
    assert landed == {name for name in nodes if not nodes[name]["isMaterializable"]}
    warned = [
        line
        for line in webserver.said.read_text().splitlines()
        if re.search(r"Warning|Error|Traceback", line) and "metalayer" in line
    ]
    assert warned == []


_LAUNCH = """
mutation { launchRun(executionParams: {
  selector: { jobName: "__ASSET_JOB", repositoryName: "__repository__",
    repositoryLocationName: "metalayer",
    assetSelection: [{path: ["bronze", "orders"]}, {path: ["silver", "orders"]}] },
  runConfigData: "{}",
  executionMetadata: { tags: [{key: "dagster/partition", value: "2025-01"}] }
}) { __typename ... on LaunchRunSuccess { run { runId } }
     ... on PythonError { message } ... on RunConfigValidationInvalid { errors { message } } } }
"""
_RUN = '{ runOrError(runId: "%s") { __typename ... on Run { status } } }'


def test_a_partition_materialized_from_the_ui_is_published(
    webserver: Webserver, daemon: Path, settings: Settings, pool: Engine
) -> None:
    landed = settings.landing / "erp" / "orders.csv"
    landed.parent.mkdir(parents=True)
    landed.write_text(
        "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
        "1,7,P00001,2025-01-05,2,5.00,10.00,PAID\n"
    )
    register(pool, settings, catalog().sources, still_seconds=0.0)
    launched = webserver.ask(_LAUNCH)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    status, deadline = "", time.monotonic() + _STARTS_WITHIN_SECONDS
    while status not in ("SUCCESS", "FAILURE", "CANCELED") and time.monotonic() < deadline:
        time.sleep(0.5)
        status = webserver.ask(_RUN % launched["run"]["runId"])["runOrError"]["status"]
    assert status == "SUCCESS", daemon.read_text()[-3000:]
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute("select order_id, status from silver.orders")
        assert cursor.fetchall() == [(1, "COMPLETED")]
    # What a click shows beside it: where each column comes from, and the numbers that are plotted.
    (event,) = webserver.ask(_TOLD)["assetNodeOrError"]["assetMaterializations"]
    lineage = _lineage(event)
    assert lineage["total_amount"] == {"bronze.orders.total_amount"}
    assert lineage["status"] == {"bronze.orders.status"}
    numbers = {e["label"]: e.get("intValue") for e in event["metadataEntries"]}
    assert event["partition"] == "2025-01"
    assert (numbers["dagster/partition_row_count"], numbers["rows_quarantined"]) == (1, 0)


_TOLD = """
{ assetNodeOrError(assetKey: {path: ["silver", "orders"]}) { ... on AssetNode {
    assetMaterializations(limit: 1) { partition metadataEntries { label
      ... on TableColumnLineageMetadataEntry {
        lineage { columnName columnDeps { assetKey { path } columnName } } }
      ... on IntMetadataEntry { intValue } } } } } }
"""


def _lineage(event: Any) -> dict[str, set[str]]:
    (found,) = [e["lineage"] for e in event["metadataEntries"] if e.get("lineage")]
    return {
        column["columnName"]: {
            ".".join([*dep["assetKey"]["path"], dep["columnName"]]) for dep in column["columnDeps"]
        }
        for column in found
    }


_CHECK = """
{ assetNodeOrError(assetKey: {path: ["gold", "business_kpis"]}) { ... on AssetNode {
    freshnessStatusInfo { freshnessStatus }
    assetChecksOrError { ... on AssetChecks { checks { name canExecuteIndividually
        executionForLatestMaterialization { status evaluation { severity description } } } } } } }
  runsOrError { ... on Runs { results { runId } } } }
"""


def test_a_late_table_is_seen_without_a_run(webserver: Webserver, daemon: Path) -> None:
    execution, deadline = None, time.monotonic() + _STARTS_WITHIN_SECONDS
    while execution is None and time.monotonic() < deadline:
        time.sleep(0.5)
        answer = webserver.ask(_CHECK)
        node = answer["assetNodeOrError"]
        checks = {c["name"]: c for c in node["assetChecksOrError"]["checks"]}
        execution = checks["due_month_present"]["executionForLatestMaterialization"]
    assert execution is not None, daemon.read_text()[-3000:]
    assert execution["status"] == "FAILED"
    assert execution["evaluation"]["severity"] == "WARN"
    assert execution["evaluation"]["description"].startswith("gold.business_kpis is late: ")
    assert checks["due_month_present"]["canExecuteIndividually"] == "CAN_EXECUTE"
    # Dagster's own says nothing of a table that was never materialized.
    assert node["freshnessStatusInfo"]["freshnessStatus"] == "UNKNOWN"
    assert answer["runsOrError"]["results"] == []
