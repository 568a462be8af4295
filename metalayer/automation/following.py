"""The sensor that has tables follow: it asks for what the conditions say, a run for a range.

Dagster would ask for a run a month, or for a backfill, which starts half a minute later. Here the
months of a tick that follow each other go into one run, with every table that has something to do
in them: one run over a range costs little more than one over a month.

Does not belong here: when a month is to be built (`conditions.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import date

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster._record import copy

from metalayer.assets.checks import asked_of_builds
from metalayer.assets.keys import asset_key, range_of, range_tags, tables_of, to_key, to_month
from metalayer.assets.resources import standing_warehouse
from metalayer.automation.conditions import Outlook, outlook
from metalayer.automation.retries import EARLIER_SECONDS
from metalayer.catalog import Catalog
from metalayer.planning import ranges_of

_FOLLOW_SECONDS = 5


class FollowingSensor(dg.AutomationConditionSensorDefinition):
    """Evaluates the conditions of all tables, and asks for runs over ranges of months."""

    def evaluate_tick(self, context: dg.SensorEvaluationContext) -> SensorExecutionData:
        """One tick, as Dagster evaluates it, with its requests joined."""
        # Dagster notes each table at each tick, and keeps what is noted: gigabytes in a week.
        context.log.setLevel(logging.WARNING)
        done = super().evaluate_tick(context)
        context.log.setLevel(logging.INFO)
        if not done.run_requests:
            return done
        with standing_warehouse() as warehouse:
            seen = outlook(warehouse)
        assert context.repository_def is not None
        checks = asked_of_builds(context.repository_def.asset_graph.asset_check_keys)
        requests = list(joined(done.run_requests, _may_join(seen, done.run_requests), checks))
        for request in requests:
            first, last = range_of(request.tags) or ("", "")
            context.log.info(f"{first} to {last}: {', '.join(sorted(tables_of(request)))}")
        return copy(done, run_requests=requests)


def _may_join(seen: Outlook, requests: Sequence[dg.RunRequest]) -> Callable[[str, date], bool]:
    """Which months a range may take along: published ones that nothing is to be done in.

    None that is withheld (it failed as it is, waits for a run, or was just asked for), and none
    that is not there: should the run fail, Dagster would show it as failed.
    """
    asked = {(table, _month(request)) for request in requests for table in tables_of(request)}
    out_of_date = {
        (table, month)
        for months_of in (seen.todo.stale, seen.todo.unchecked)
        for table, months in months_of.items()
        for month in months
    }
    withheld = (out_of_date - asked) | seen.given_up

    def may_join(table: str, month: date) -> bool:
        is_there = month in seen.published.get(table, ())
        return is_there and table not in seen.blocked and (table, month) not in withheld

    return may_join


def following_sensor(tables: Catalog) -> dg.SensorDefinition:
    """The sensor, on unless somebody turned it off."""
    return FollowingSensor(
        "tables_follow",
        target=dg.AssetSelection.assets(*(asset_key(table) for table in tables.specs)),
        description="Builds the months of tables that are out of date, with what lies behind them.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=_FOLLOW_SECONDS - EARLIER_SECONDS,
        use_user_code_server=True,
        emit_backfills=False,
    )


def joined(
    requests: Sequence[dg.RunRequest],
    may_join: Callable[[str, date], bool],
    checks: Collection[dg.AssetCheckKey],
) -> Iterator[dg.RunRequest]:
    """Requests for a month each as requests for ranges of months."""
    months: dict[date, set[str]] = {}
    tags: dict[str, str] = {}
    for request in requests:
        months.setdefault(_month(request), set()).update(tables_of(request))
        tags |= {k: v for k, v in request.tags.items() if k != PARTITION_NAME_TAG}
    for first, last, tables_of_range in ranges_of(months, may_join):
        selection = [asset_key(table) for table in tables_of_range]
        yield dg.RunRequest(
            asset_selection=selection,
            asset_check_keys=[key for key in checks if key.asset_key in selection],
            tags={**tags, **range_tags(to_key(first), to_key(last))},
        )


def _month(request: dg.RunRequest) -> date:
    return to_month(request.partition_key or request.tags[PARTITION_NAME_TAG])
