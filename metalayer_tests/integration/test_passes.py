"""How often the rows of a load are read, and which months an increment looks at.

Rows are counted by PostgreSQL, as seconds depend on the machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest

from metalayer.catalog import catalog
from metalayer.lineage.select import Reach, render
from metalayer.warehouse.ddl import next_month
from metalayer_tests.integration.test_late_row import MONTHS, land_two_years, work_so_far
from metalayer_tests.story import Platform

#: Reading of a row by whatever statement, once it stands in its month: the pass that counts,
#: fingerprints and looks for suspects, the index on its key, statistics, the tables made from it,
#: the checks, and its profile: one scan, and a sample, which of months as small as these is all.
MOST_PASSES = {"bronze": 7.5, "silver": 16}
READ = (
    "select v.table_name, sum(s.seq_tup_read + coalesce(s.idx_tup_fetch, 0)) / sum(v.rows)::float "
    "from meta.versions as v join pg_stat_all_tables as s "
    "on s.schemaname = 'months' and s.relname = v.leaf "
    "where v.is_current and v.rows > 0 group by 1"
)


def land_months(platform: Platform, months: list[date]) -> None:
    """Of the two years the files of these months."""
    land_two_years(platform)
    keys = {f"{month:%Y-%m}" for month in months}
    for file in platform.landing.rglob("*.csv"):
        if not any(key in file.name for key in keys):
            file.unlink()


def passes(platform: Platform) -> dict[str, float]:
    """Table -> how often each of its rows has been read."""
    work_so_far(platform)  # waits until every session has told what it did
    return dict(platform.ask(READ))


@pytest.fixture
def half_a_year(platform: Platform) -> Platform:
    land_months(platform, MONTHS[:6])
    assert platform.build().succeeded
    return platform


@pytest.mark.parametrize("count", [6, 24])
def test_a_row_is_read_a_few_times_however_many_months_there_are(
    platform: Platform, count: int
) -> None:
    land_months(platform, MONTHS[:count])
    assert platform.build().succeeded
    found = passes(platform)
    for table, most in MOST_PASSES.items():
        read = {name: count for name, count in found.items() if name.startswith(f"{table}.")}
        assert read
        assert max(read.values()) <= most, read


def scanned(plan: dict[str, Any]) -> Iterator[str]:
    """The tables that a plan reads, in any way."""
    if "Relation Name" in plan:
        yield plan["Relation Name"]
    for inner in plan.get("Plans", ()):
        yield from scanned(inner)


def test_a_month_is_made_from_no_month_but_those_it_needs(half_a_year: Platform) -> None:
    leaves = {
        leaf: (table, month)
        for table, month, leaf in half_a_year.ask(
            "select table_name, month, leaf from meta.versions where is_current"
        )
    }
    newest = MONTHS[5]
    looked_at: Counter[str] = Counter()
    for table, select in catalog().selects.items():
        text = render(select, catalog().specs[table], catalog().specs, newest, next_month(newest))
        ((plan,),) = half_a_year.ask(f"explain (format json) {text}")
        for leaf in scanned(plan[0]["Plan"]):
            if leaf not in leaves:
                continue  # the Unknown member
            upstream, month = leaves[leaf]
            looked_at[upstream] += 1
            assert select.inputs[upstream].covers(month, newest), (table, upstream, month)
    for name in looked_at:
        assert name in catalog().specs
    assert {t for s in catalog().selects.values() for t, r in s.inputs.items() if r is Reach.SAME}
    assert looked_at["bronze.orders"] == 1
