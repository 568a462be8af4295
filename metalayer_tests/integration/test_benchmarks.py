"""The benchmark's own command, on little data: contenders agree, and what they took is reported.

The figures themselves are nobody's business here. Contenders that need an environment of their own
do not take part.
"""

import json
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.contender import BenchmarkError
from benchmarks.selects import Months, built_tables, select
from benchmarks.totals import compare
from metalayer.settings import PROJECT_ROOT

PAGE = "# Performance\n\n<!-- benchmark -->\nthe last run\n<!-- /benchmark -->\n\nkept\n"


def test_metalayer_psql_and_duckdb_come_to_the_same_totals(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE)
    arguments = ["--rows", "2000", "--months", "6", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments, "--only", "metalayer,psql,duckdb"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr

    report = json.loads((tmp_path / "performance.json").read_text())
    assert [each["contender"] for each in report["rounds"]] == ["metalayer", "psql", "duckdb"]
    assert all(each["seconds"] > 0 and each["peak_mb"] > 0 for each in report["rounds"])
    assert report["standings"][0]["ratio"] == 1
    assert list(report["standings"][1]["phases"]) == ["bronze", "silver", "gold"]
    gold = {spec.full_name for spec in built_tables() if spec.layer == "gold"}
    assert gold <= set(report["totals"])
    assert report["totals"]["gold.fact_orders"] == "2000"
    assert Decimal(report["totals"]["gold.customer_360.lifetime_value"]) > 0

    text = page.read_text()
    assert "the last run" not in text
    assert text.endswith("kept\n")
    assert "| psql script" in text
    assert "DuckDB" in (tmp_path / "img" / "performance.svg").read_text()


def test_a_contender_that_is_a_cent_off_ends_the_benchmark() -> None:
    expected = {"gold.fact_orders": Decimal(2), "gold.fact_orders.total_amount": Decimal("10.00")}
    compare("a peer", dict(expected), "MetaLayer", expected)
    off = {**expected, "gold.fact_orders.total_amount": Decimal("10.01")}
    with pytest.raises(BenchmarkError, match=r"total_amount is 10\.01, not 10\.00"):
        compare("a peer", off, "MetaLayer", expected)
    with pytest.raises(BenchmarkError, match=r"gold\.fact_orders is None, not 2"):
        compare("a peer", {}, "MetaLayer", expected)


@pytest.mark.parametrize("dialect", ["postgres", "duckdb"])
def test_peers_get_selects_without_what_only_metalayer_needs(dialect: str) -> None:
    for table in built_tables():
        text = select(table, Months.counted(date(2025, 1, 1), 3), dialect).lower()
        for word in (":start", ":end", "try_cast", "_is_latest", "_delivery_id", "surrogate_key"):
            assert word not in text, (table.full_name, word)
        assert "'2025-04-01'" in text or table.name != "dim_date"
