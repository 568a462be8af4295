"""What tables and months are called in Dagster: asset keys, partition keys, the tags of a run.

Does not belong here: which months there are, and how they depend on each other (`partitions.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

#: Partition keys are written like months everywhere else: "2025-01".
KEY_FORMAT = "%Y-%m"
#: The tables of a run that a command executes, with blanks between.
TABLES_TAG = "metalayer/tables"


def asset_key(table: str) -> dg.AssetKey:
    """`gold.fact_sales` as Dagster names it: `gold/fact_sales`."""
    return dg.AssetKey(table.split("."))


def table_of(key: dg.AssetKey) -> str:
    """`gold/fact_sales` as it is named everywhere else: `gold.fact_sales`."""
    return ".".join(key.path)


def tables_of(run: dg.DagsterRun | dg.RunRequest) -> set[str]:
    """The tables that a run was asked to build; none for a run over all there are."""
    told = run.tags.get(TABLES_TAG)
    if told is not None:
        return set(told.split())
    return {table_of(key) for key in run.asset_selection or ()}


def to_key(month: date) -> str:
    """The partition key of a month."""
    return month.strftime(KEY_FORMAT)


def to_month(key: str) -> date:
    """First day of the month that a partition key names."""
    return datetime.strptime(key, KEY_FORMAT).date()  # noqa: DTZ007 - a month has no zone


def to_months(keys: Iterable[str]) -> list[date]:
    """First days of the months that partition keys name."""
    return [to_month(key) for key in keys]


def range_tags(first: str, last: str) -> dict[str, str]:
    """The tags that have a run build the months of two partition keys and all between them."""
    return {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}


def range_of(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """The first and the last partition key of a run with these tags; None when it has no months."""
    one = tags.get(PARTITION_NAME_TAG)
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG, one)
    last = tags.get(ASSET_PARTITION_RANGE_END_TAG, first)
    return (first, last) if first is not None and last is not None else None
