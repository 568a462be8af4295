"""What tests ask of a running platform: months, checks, runs and backfills, as its UI knows them.

Starting it, and its pages, do not belong here (`up.py`, `test_ui.py`).
"""

from __future__ import annotations

from typing import Any

from metalayer.catalog import catalog
from metalayer_tests.e2e.up import Up

TABLES = sorted(catalog().specs)

_CHECKS = """
{ assetNodes { assetKey { path } assetChecksOrError { ... on AssetChecks { checks {
  name blocking
  executionForLatestMaterialization { status evaluation { severity success } } } } } } }
"""
_STATUSES = """
{ assetNodes { assetKey { path } assetPartitionStatuses { ... on TimePartitionStatuses {
  ranges { startKey endKey status } } } } }
"""
_EVENTS = """
{ assetNodes { assetKey { path } assetMaterializations(limit: 200) { partition timestamp } } }
"""
_RUNS = """
{ runsOrError(limit: 100) { ... on Runs { results {
  runId status assetSelection { path } tags { key value } } } } }
"""
_BACKFILLS = """
{ partitionBackfillsOrError { ... on PartitionBackfills { results {
  id status runs(limit: 50) { status tags { key value } } } } } }
"""


def backfill_of(up: Up, backfill: str) -> tuple[str, list[tuple[str, str]]]:
    """Status of a backfill, and first and last month of each of its runs."""
    known = up.graphql(_BACKFILLS)["partitionBackfillsOrError"]["results"]
    (found,) = (b for b in known if b["id"] == backfill)
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in found["runs"]]
    return found["status"], [months_of(t) for t in tags]


def is_built(up: Up, months: set[str]) -> bool:
    """Whether every table is materialized in these months."""
    found = up.materialized()
    return all(months <= found[table] for table in TABLES)


def failed_months(up: Up) -> dict[str, list[str]]:
    """Asset -> ranges of months that failed, as the UI colours them."""
    return {
        ".".join(node["assetKey"]["path"]): failed
        for node in up.graphql(_STATUSES)["assetNodes"]
        if (
            failed := [
                f"{r['startKey']} to {r['endKey']}"
                for r in node["assetPartitionStatuses"].get("ranges") or []
                if r["status"] == "FAILED"
            ]
        )
    }


def checks(up: Up) -> dict[tuple[str, str], dict[str, Any]]:
    """(asset, check) -> what the UI knows of it."""
    return {
        (".".join(node["assetKey"]["path"]), check["name"]): check
        for node in up.graphql(_CHECKS)["assetNodes"]
        for check in node["assetChecksOrError"].get("checks") or []
    }


def verdict(check: dict[str, Any]) -> str:
    """SUCCEEDED, FAILED and so on; NEVER where it was not asked since the last materialization."""
    execution = check["executionForLatestMaterialization"]
    return execution["status"] if execution else "NEVER"


def materialized_since(up: Up, moment: float) -> set[tuple[str, str]]:
    """(table, month) of every materialization after a moment (Unix seconds)."""
    nodes = up.graphql(_EVENTS)["assetNodes"]
    return {
        (".".join(node["assetKey"]["path"]), event["partition"])
        for node in nodes
        for event in node["assetMaterializations"]
        if node["assetKey"]["path"][0] != "landing" and int(event["timestamp"]) > moment * 1000
    }


def runs(up: Up) -> dict[str, dict[str, Any]]:
    """Id -> status, assets and months of each run, newest first."""
    found = {}
    for run in up.graphql(_RUNS)["runsOrError"]["results"]:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        found[run["runId"]] = {
            "status": run["status"],
            "assets": {".".join(key["path"]) for key in run["assetSelection"] or ()},
            "months": months_of(tags),
        }
    return found


def months_of(tags: dict[str, str]) -> tuple[str, str]:
    """First and last month of a run."""
    one = tags.get("dagster/partition", "")
    return (
        tags.get("dagster/asset_partition_range_start", one),
        tags.get("dagster/asset_partition_range_end", one),
    )
