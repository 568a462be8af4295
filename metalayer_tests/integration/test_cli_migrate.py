"""`metalayer migrate` from outside: a copy of the project whose contracts are edited as files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metalayer.settings import ENV_PREFIX, PROJECT_ROOT
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order

_PROJECT = ("metalayer", "sql", "pyproject.toml", "dagster.yaml", "workspace.yaml")


@dataclass
class Clone:
    """A copy of the project, with a home and a database of its own."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "metalayer", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def rows(self, query: str, *options: str) -> list[dict[str, Any]]:
        shown, _ = self.run("query", query, "--format", "json", *options)
        answer: list[dict[str, Any]] = json.loads(shown)
        return answer

    def land(self, name: str, text: str) -> None:
        export = self.folder / name
        export.write_text(text)
        self.run("land", name)

    def edit(self, file: str, *changes: tuple[str, str]) -> None:
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, (file, old)
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path, database: str, dagster_url: str) -> Clone:
    folder = tmp_path / "clone"
    for name in _PROJECT:
        source, target = PROJECT_ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    outside = ("PYTEST", "PYTHON", "DAGSTER", ENV_PREFIX)
    environment = {n: v for n, v in os.environ.items() if not n.startswith(outside)}
    environment |= {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        f"{ENV_PREFIX}HOME": str(tmp_path / "home"),
        f"{ENV_PREFIX}DATABASE_URL": database,
        "COLUMNS": "100",
    }
    return Clone(folder, environment)


def test_edited_contracts_are_planned_done_or_refused(clone: Clone) -> None:
    clone.land("orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    clone.land("customers.csv", CUSTOMERS + customer(7, "2025-01-02"))
    clone.run("build")
    assert "Nothing to migrate" in clone.run("migrate", "--plan")[1]
    assert "Nothing to do: a build would rebuild no month." in clone.run("build", "--plan")[1]

    clone.edit(
        "metalayer/contracts/gold/agg_daily_sales.py",
        ('    units: int = column("Units ordered, of any state", gt=0)',
         '    units: Decimal = column("Units ordered", gt=0, precision=21, scale=0)'),
        ("\n    class Table:",
         '    dearest: Decimal = column("Dearest order", nullable=True)\n\n    class Table:'),
    )  # fmt: skip
    clone.edit(
        "sql/gold/agg_daily_sales.sql",
        ("        sum(quantity) as units,",
         "        sum(quantity) as units,\n        max(total_amount) as dearest,"),
        (" as cancelled_amount\nfrom customers",
         " as cancelled_amount,\n    max(dearest) as dearest\nfrom customers"),
        ("cast(sum(units) as bigint) as units", "sum(units) as units"),
    )  # fmt: skip
    clone.edit(
        "metalayer/contracts/silver/customers.py",
        ('        kind = "delta"', '        kind = "delta"\n        on_new_column = "evolve"'),
    )
    shown, said = clone.run("migrate", "--plan")
    assert "-- Widens column units from bigint to numeric(21,0): no value is lost." in shown
    assert "Writes 2 months anew (2 rows, " in shown
    assert '    alter column "units" type numeric(21,0),\n    add column "dearest" numeric' in shown
    assert "Plan: 1 table altered, 2 months with 2 rows written anew." in said
    columns = "select column_name from information_schema.columns where column_name = 'dearest'"
    assert clone.rows(columns) == []

    plan = json.loads(clone.run("build", "--plan", "--json")[0])
    named = {
        (m["table"], m["month"]): (m["rebuild"], [reason["text"] for reason in m["reasons"]])
        for m in plan["months"]
    }
    changed = ("yes", ["its contract changed", "its SELECT changed"])
    for month in ("2025-01", "2025-02"):
        assert named.pop(("gold.agg_daily_sales", month)) == changed
    certain = {table for (table, _), (rebuild, _) in named.items() if rebuild == "yes"}
    assert certain == {"bronze.customers"}
    shown, _ = clone.run("build", "--plan")
    assert "2025-01..2025-02" in shown
    assert "its contract changed" in shown

    done, _ = clone.run("migrate")
    assert "gold.agg_daily_sales: Adds column dearest (numeric(18,2))" in done
    assert "Nothing to migrate" in clone.run("migrate")[1]
    # Readers lose nothing between the migration and the build.
    assert clone.rows("select units, dearest from gold.agg_daily_sales order by order_date") == [
        {"units": 2, "dearest": None},
        {"units": 2, "dearest": None},
    ]
    header, row = CUSTOMERS.rstrip(), customer(8, "2025-02-03").rstrip()
    clone.land("customers_b.csv", f"{header},Loyalty Tier\n{row},gold\n")
    clone.run("build")
    assert clone.rows("select dearest from gold.agg_daily_sales")[0] == {"dearest": 10.00}
    # What no contract knows may be anybody's data.
    tiers = "select loyalty_tier as tier from bronze.customers order by customer_id"
    assert clone.rows(tiers) == [{"tier": None}, {"tier": "***"}]
    assert clone.rows(tiers, "--unmasked") == [{"tier": None}, {"tier": "gold"}]

    clone.edit(
        "metalayer/contracts/gold/fact_orders.py",
        ('    status: str = column("PENDING, SHIPPED, COMPLETED or CANCELLED")\n', ""),
    )
    clone.edit("sql/gold/fact_orders.sql", ("    orders.status,\n", ""))
    answer = json.loads(clone.run("migrate", "--plan", "--json", code=1)[0])
    assert answer["refused"][0]["message"].startswith(
        "contracts/gold/fact_orders.py does not declare gold.fact_orders.status any more, "
        "which is read by sql/gold/"
    )
    _, said = clone.run("build", code=1)
    assert "sql/gold/sales_reconciliation.sql (in a condition)" in said
    assert "next: Take it out of these first, or declare it again" in said
    assert clone.rows("select count(*) as n from gold.fact_orders where status is not null") == [
        {"n": 2}
    ]


def test_a_rule_that_is_mended_empties_the_quarantine(clone: Clone) -> None:
    bad = order(2, "2025-01-06").replace("PAID", "RETURNED")
    clone.land("orders.csv", ORDERS + order(1, "2025-01-05") + bad)
    clone.run("build", "bronze.orders", "silver.orders")
    kept = "select order_id from silver.orders order by 1"
    assert clone.rows(kept) == [{"order_id": 1}]
    (filed,) = json.loads(clone.run("rejects", "--json")[0])
    assert filed["column"] == "status"
    contract = clone.folder / "metalayer/contracts/silver/orders.py"
    clone.edit("metalayer/contracts/silver/orders.py", _one_more_state(contract.read_text()))
    for _ in range(2):
        clone.run("build", "bronze.orders", "silver.orders")
        assert clone.rows(kept) == [{"order_id": 1}, {"order_id": 2}]
        assert json.loads(clone.run("rejects", "--json")[0]) == []


def _one_more_state(contract: str) -> tuple[str, str]:
    states = next(line for line in contract.splitlines() if '"CANCELLED"' in line)
    return states, states.replace('"CANCELLED"', '"CANCELLED", "RETURNED"')
