"""Every typed and gold table, cell by cell, against an oracle written apart from `sql/`."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from metalayer.catalog import catalog
from metalayer.contracts.contract import TableSpec
from metalayer.landing.files import match_source
from metalayer.sample import generate
from metalayer_tests.integration.oracle import KEYS, Landed, Oracle, compare, compute
from metalayer_tests.story import Platform

_TABLES = [n for n, s in catalog().specs.items() if s.layer != "bronze"]


def _landed(platform: Platform, paths: list[Path]) -> list[Landed]:
    sources = [s.source for s in catalog().sources.values() if s.source]
    names = [(path, str(path.relative_to(platform.landing))) for path in paths]
    return [
        Landed(path, source.name)
        for path, name in names
        if (source := match_source(name, sources)) is not None
    ]


def _oracle(platform: Platform, paths: list[Path]) -> Oracle:
    return compute(
        _landed(platform, paths),
        first_month=platform.warehouse.settings.start_month,
        last_month=platform.today.replace(day=1),
    )


def _built(platform: Platform, spec: TableSpec) -> pl.DataFrame:
    """The table as readers see it, less the Unknown member."""
    frame = platform.frame(spec.full_name)
    if spec.unknown_member is not None:
        frame = frame.filter(pl.col(spec.key[0]) != 0)
    return frame.drop("_delivery_id", strict=False)


def _differences(platform: Platform, oracle: Oracle) -> list[str]:
    found = []
    for table in _TABLES:
        expected = oracle.table(table)
        built = _built(platform, catalog().specs[table])
        if table == "gold.dim_date":
            # The oracle's calendar spans all months there may be, the platform's those with rows.
            months = pl.Series(
                [m for (m,) in platform.ask("select distinct month from meta.delivery_months")]
            )
            expected = expected.filter(pl.col("month_start").is_between(months.min(), months.max()))
        difference = compare(expected, built, KEYS[table])
        if difference:
            found.append(f"{table}:\n{difference}")
    return found


@pytest.mark.parametrize(
    ("split", "rows", "months"),
    [("file", 4_000, 12), ("month", 4_000, 6)],
    ids=["files", "monthly"],
)
def test_every_table_equals_the_oracle(
    platform: Platform, tmp_path: Path, split: str, rows: int, months: int
) -> None:
    made = generate(tmp_path / "out", rows=rows, months=months, dirt=0.02, seed=7, split=split)
    paths = platform.land_files([g.file for g in made], tmp_path / "out")
    outcome = platform.build()
    assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
    assert platform.balances()
    oracle = _oracle(platform, paths)
    assert _differences(platform, oracle) == []
    fates = "select bool_or(is_current), bool_or(not is_current) from gold.dim_customer"
    assert platform.ask(f"{fates} where is_deleted") == [(True, True)]
    for source, account in oracle.accounts.items():
        table = catalog().sources[source].name
        assert (
            platform.one(
                "select coalesce(sum(rows_read), 0) from meta.ledger where source = %s "
                "and status = 'loaded'",
                source,
            )
            == account.read
        ), source
        assert platform.one(
            "select count(*) from meta.quarantine where table_name = %s", f"silver.{table}"
        ) == len(oracle.quarantined[f"silver.{table}"]), source


def test_months_built_in_random_order_give_the_same_tables(
    platform: Platform, tmp_path: Path
) -> None:
    made = generate(tmp_path / "out", rows=1_500, months=6, dirt=0.02, seed=11, split="month")
    paths = platform.land_files([g.file for g in made], tmp_path / "out")
    platform.register()
    found = platform.ask("select distinct month from meta.delivery_months order by month")
    months = [month for (month,) in found]
    random.Random(5).shuffle(months)  # noqa: S311 - an order, not a secret
    for month in months:
        outcome = platform.build(months=f"{month:%Y-%m}")
        assert outcome.succeeded, (outcome.errors, outcome.failed_checks)
    assert _differences(platform, _oracle(platform, paths)) == []


def test_building_twice_changes_nothing(platform: Platform, tmp_path: Path) -> None:
    made = generate(tmp_path / "out", rows=500, months=3, dirt=0.02, seed=3)
    platform.land_files([g.file for g in made], tmp_path / "out")
    assert platform.build().succeeded
    versions = "select table_name, month, version, data_version from meta.versions order by 1, 2, 3"
    before = platform.ask(versions)
    again = platform.build()
    assert again.months == []
    assert again.runs == []
    assert platform.ask(versions) == before


def test_a_forced_rebuild_gives_the_same_contents(platform: Platform, tmp_path: Path) -> None:
    made = generate(tmp_path / "out", rows=500, months=3, dirt=0.02, seed=4)
    platform.land_files([g.file for g in made], tmp_path / "out")
    assert platform.build().succeeded
    contents = (
        "select table_name, month, data_version, rows_read, rows, rows_quarantined, "
        "rows_superseded from meta.versions where is_current order by 1, 2"
    )
    before = platform.ask(contents)
    platform.ask("update meta.versions set code_version = 'older' returning 1")
    again = platform.build()
    assert {r.outcome for r in again.months} == {"confirmed"}
    assert platform.ask(contents) == before
