"""Months as Dagster partitions, and how a month of one table depends on months of another."""

from __future__ import annotations

from datetime import UTC, date, datetime

import dagster as dg

from metalayer.assets.keys import KEY_FORMAT
from metalayer.lineage.select import Reach

# Dagster clamps a window at the first partition, but walks it month by month at every step: it is
# as long as the history and what this process may live to see.
_MONTHS_TO_COME = 12


def monthly(start_month: date) -> dg.MonthlyPartitionsDefinition:
    """Every month from `start_month` to the current one."""
    return dg.MonthlyPartitionsDefinition(
        start_date=start_month.strftime(KEY_FORMAT), fmt=KEY_FORMAT, end_offset=1
    )


def mapping(reach: Reach, start_month: date) -> dg.PartitionMapping:
    """The upstream months that one month is made from, of those since `start_month`."""
    today = datetime.now(UTC).date()
    history = (today.year - start_month.year) * 12 + today.month - start_month.month
    every_month = -(history + _MONTHS_TO_COME)
    match reach:
        case Reach.SAME:
            return dg.TimeWindowPartitionMapping()
        case Reach.BEFORE:
            return dg.TimeWindowPartitionMapping(start_offset=every_month, end_offset=-1)
        case Reach.UP_TO:
            return dg.TimeWindowPartitionMapping(start_offset=every_month, end_offset=0)
        case Reach.ALL:
            return dg.AllPartitionMapping()
