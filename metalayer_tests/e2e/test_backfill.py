"""Backfills as the UI asks for them: one run for a range, and what a failed month leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metalayer_tests.e2e.asking import months_of
from metalayer_tests.e2e.up import Up, platform, wait

MONTHS = [f"2025-{number:02}" for number in range(1, 13)]
ASSETS = [
    *(["bronze", "orders"], ["silver", "orders"], ["gold", "dim_customer"]),
    *(["gold", "dim_date"], ["gold", "dim_product"], ["gold", "fact_orders"]),
]
_REPOSITORY = {"repositoryLocationName": "metalayer", "repositoryName": "__repository__"}
_STOP = "mutation($id: String!) { stopSensor(id: $id) { __typename } }"
_SENSORS = """query($s: RepositorySelector!) { sensorsOrError(repositorySelector: $s) {
  ... on Sensors { results { name id sensorState { status } } } } }"""
_SCHEDULES = """query($s: RepositorySelector!) { schedulesOrError(repositorySelector: $s) {
  ... on Schedules { results { name scheduleState { status } } } } }"""
_LAUNCH = """mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status runs { runId status tags { key value }
  assetSelection { path } } } } }"""
_REEXECUTE = """mutation($id: String!) { launchRunReexecution(reexecutionParams:
  {parentRunId: $id, strategy: FROM_FAILURE}) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_RUN = (
    """query($id: ID!) { runOrError(runId: $id) { ... on Run { status stepStats { stepKey } } } }"""
)
_EVENTS = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { __typename
  ... on ExecutionStepFailureEvent { stepKey error { message cause { message } } } } } } }"""


@pytest.fixture(scope="module")
def up(module_folder: Path) -> Iterator[Up]:
    """A platform whose tables do not follow by themselves."""
    with platform(module_folder / "home") as running:
        sensors = running.graphql(_SENSORS, s=_REPOSITORY)["sensorsOrError"]["results"]
        assert {s["name"]: s["sensorState"]["status"] for s in sensors} == {
            "landing": "RUNNING",
            "tables_follow": "RUNNING",
            "late_tables": "RUNNING",
        }
        (follow,) = (s["id"] for s in sensors if s["name"] == "tables_follow")
        running.graphql(_STOP, id=follow)
        yield running


def good(month: str) -> str:
    return f"{int(month[-2:])},1,P00001,{month}-05,1,5.00,5.00,PAID"


def backfill(up: Up, months: list[str]) -> list[dict[str, Any]]:
    """Ask for one as the UI does, and wait until it is over; its runs."""
    launched = up.graphql(
        _LAUNCH,
        params={"assetSelection": [{"path": p} for p in ASSETS], "partitionNames": months},
    )["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    found: dict[str, Any] = {}

    def is_over() -> bool:
        found.update(up.graphql(_BACKFILL, id=launched["backfillId"])["partitionBackfillOrError"])
        return found["status"] != "REQUESTED" and all(
            run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in found["runs"]
        )

    wait(is_over, 150, up)
    runs = []
    for run in found["runs"]:
        first, last = months_of({tag["key"]: tag["value"] for tag in run["tags"]})
        tables = [".".join(key["path"]) for key in run["assetSelection"]]
        runs.append({**run, "first": first, "last": last, "tables": tables})
    return runs


def test_the_schedule_is_off(up: Up) -> None:
    schedules = up.graphql(_SCHEDULES, s=_REPOSITORY)["schedulesOrError"]["results"]
    assert {s["name"]: s["scheduleState"]["status"] for s in schedules} == {
        "month_turn": "STOPPED",
        "retention": "STOPPED",
    }


def test_a_year_is_one_run_a_failed_month_keeps_the_others_and_a_retry_does_the_rest(
    up: Up,
) -> None:
    for month in MONTHS:
        rows = (
            [good(month)]
            if month != "2025-05"
            else [f"{n},1,P00001,{month}-05,0,5.00,5.00,LOST" for n in range(100, 130)]
        )
        up.land_orders(f"orders_{month}.csv", *rows)
    wait(lambda: up.ask("select count(*) from meta.ledger") == [(12,)], 60, up)
    runs = {tuple(sorted(r["tables"])): r for r in backfill(up, MONTHS)}
    run = next(r for tables, r in runs.items() if "silver.orders" in tables)
    assert (run["first"], run["last"], run["status"]) == (MONTHS[0], MONTHS[-1], "FAILURE")
    done = up.materialized()
    assert done["bronze.orders"] == set(MONTHS)
    assert done["silver.orders"] == {m for m in MONTHS if m != "2025-05"}
    # Facts look back over all products and customers so far: those before the gap are there.
    assert done["gold.fact_orders"] == set(MONTHS[:4])
    # A run for each stretch of a table's months, none a month.
    assert len(runs) <= 3
    said = str(up.graphql(_EVENTS, id=run["runId"]))
    assert "silver.orders 2025-05 was not published" in said
    assert "quantity" in said

    up.land_orders("orders_2025-05.csv", good("2025-05"))
    loaded = (
        "select count(*) from meta.ledger where status = 'loaded' and file like '%%2025-05.csv'"
    )
    wait(lambda: up.ask(loaded) == [(1,)] and up.ask("select count(*) from meta.ledger") == [(13,)],
         60, up)  # fmt: skip
    assert {r["status"] for r in backfill(up, ["2025-05"])} == {"SUCCESS"}
    # From failure on: what did not succeed then, and nothing else.
    retried = up.graphql(_REEXECUTE, id=run["runId"])["launchRunReexecution"]
    assert retried["__typename"] == "LaunchRunSuccess", retried
    number = retried["run"]["runId"]
    wait(lambda: up.graphql(_RUN, id=number)["runOrError"]["status"] == "SUCCESS", 90, up)
    steps = {s["stepKey"] for s in up.graphql(_RUN, id=number)["runOrError"]["stepStats"]}
    assert "silver__orders" in steps
    assert not {"bronze__orders", "gold__dim_customer", "gold__dim_date"} & steps
    assert {r["status"] for r in backfill(up, MONTHS)} == {"SUCCESS"}
    done = up.materialized()
    # Of tables that look back, Dagster takes the later months along.
    assert set(MONTHS) <= done["silver.orders"] & done["gold.fact_orders"]
    assert up.ask("select count(*) from gold.fact_orders") == [(12,)]
