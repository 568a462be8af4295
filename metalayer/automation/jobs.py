"""What a person starts by name, and what happens when a month turns.

Does not belong here: what happens because something landed (`landing.py`, `following.py`).
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from metalayer.assets.keys import asset_key, range_tags
from metalayer.assets.partitions import monthly
from metalayer.assets.tables import FORCE_TAG
from metalayer.catalog import Catalog
from metalayer.settings import Settings

FULL_REFRESH, CURRENT_MONTH = "full_refresh", "current_month"


def full_refresh(tables: Catalog) -> UnresolvedAssetJobDefinition:
    """Every month of every table anew, up to date or not."""
    return dg.define_asset_job(
        FULL_REFRESH,
        selection=_all(tables),
        description="Builds the chosen months of all tables anew, although they are up to date.",
        tags={FORCE_TAG: "true"},
    )


def current_month(tables: Catalog) -> UnresolvedAssetJobDefinition:
    """One month of every table, where it is out of date."""
    return dg.define_asset_job(
        CURRENT_MONTH,
        selection=_all(tables),
        description="Builds one month of all tables, where it is out of date; see the newest.",
    )


def month_turn(job: UnresolvedAssetJobDefinition, settings: Settings) -> dg.ScheduleDefinition:
    """On the first day of a month: the month that has ended, once more. Off by default."""

    @dg.schedule(
        name="month_turn",
        job=job,
        cron_schedule="0 6 1 * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="On the first of a month at 06:00 UTC: the month that has ended and the new.",
    )
    def turn(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        newest = monthly(settings.start_month).get_partition_keys(
            current_time=context.scheduled_execution_time
        )[-2:]
        return dg.RunRequest(
            run_key=newest[-1],
            tags=range_tags(newest[0], newest[-1]),
        )

    return turn


def _all(tables: Catalog) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*(asset_key(table) for table in tables.specs))
