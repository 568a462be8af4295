"""The command line from outside: real processes, a home of their own, the embedded PostgreSQL."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
HEADER = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"


class Commands:
    """The `metalayer` command on one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "METALAYER_HOME": str(home),
            "COLUMNS": "80",
        }

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "metalayer", *arguments],
            env=self.env,
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """stdout and stderr of a command that must end with `code`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"{out}\n{err}"
        assert "Traceback" not in out + err
        return out, err

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, code=code)[0])

    def servers(self) -> list[int]:
        """Processes of the home's PostgreSQL."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd() == str(self.home / "postgres"):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


def complaints(err: str) -> list[str]:
    """Lines of stderr that are not about getting PostgreSQL to run here."""
    return [line for line in err.splitlines() if not line.startswith("PostgreSQL ")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Commands, str, str]:
    """A home in which the demo has run, and what it printed."""
    commands = Commands(tmp_path_factory.mktemp("demo") / "home")
    return commands, *commands.run("demo")


def test_the_demo_shows_layers_sales_and_customers(demo: tuple[Commands, str, str]) -> None:
    commands, out, err = demo
    for layer in ("bronze", "silver", "gold"):
        assert f"\n{layer} " in out
    assert "Sales by month (gold.agg_monthly_sales)" in out
    assert "2025-06" in out
    assert "Best customers" in out
    assert "@" not in out, "no e-mail address on the screen"
    assert "next: metalayer status" in err
    assert max(map(len, out.splitlines())) <= 80
    assert commands.servers() == [], "no process is left behind"


def test_the_demo_can_be_run_again(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    before = commands.json("ledger", "--json"), commands.json("status", "--json")
    _, err = commands.run("demo")
    assert "Nothing to do: all tables are up to date." in err
    assert (commands.json("ledger", "--json"), commands.json("status", "--json")) == before
    assert "Nothing to do" in commands.run("build")[1]


def test_status_accounts_for_every_row_of_every_table(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    tables = commands.json("status", "--json")
    by_name = {t["table"]: t for t in tables}
    assert [t["layer"] for t in tables] == ["bronze"] * 4 + ["silver"] * 4 + ["gold"] * 11
    for t in tables:
        assert t["rows_read"] == t["rows"] + t["quarantined"] + t["superseded"], t
        assert (t["months"], t["first_month"], t["last_month"]) == (6, "2025-01", "2025-06"), t
        assert t["fresh"] is True
    for name in ("orders", "customers", "crm_customers", "erp_sales"):
        assert by_name[f"silver.{name}"]["rows_read"] == by_name[f"bronze.{name}"]["rows"]
    out, _ = commands.run("status")
    assert "sales_reconciliation" in out
    assert max(map(len, out.splitlines())) <= 80


def test_ledger_status_and_rejects_agree(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    ledger = commands.json("ledger", "--json")
    status = {t["table"]: t for t in commands.json("status", "--json")}
    rejects = commands.json("rejects", "--json")
    for e in ledger:
        assert e["rows_read"] == e["rows_loaded"] + e["rows_rejected"] + e["rows_superseded"], e
    for source, name in {"erp/orders": "orders", "crm/customers": "customers"}.items():
        entries = [e for e in ledger if e["source"] == source]
        assert sum(e["rows_read"] for e in entries) == status[f"bronze.{name}"]["rows_read"]
        tables = (f"bronze.{name}", f"silver.{name}")
        rejected = [r for r in rejects if r["table"] in tables]
        assert sum(e["rows_rejected"] for e in entries) == len(rejected)
        assert sum(status[t]["quarantined"] for t in tables) == len(rejected)
        for r in rejected:
            assert r["file"].startswith(f"{source}_")
            assert r["line"] > 1
            assert r["rule"]
            assert r["violations"][0]["rule"] == r["rule"]
    assert {e["status"] for e in ledger} == {"loaded", "duplicate", "rejected"}
    assert all(e["reason"] for e in ledger if e["status"] == "rejected")
    out, _ = commands.run("ledger")
    assert "crm/customers_2025-01.csv" in out
    assert "has no column customer_id" in " ".join(out.split())


def test_rejects_of_one_table_are_limited_and_counted(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    every = commands.json("rejects", "silver.orders", "--json")
    assert {r["table"] for r in every} == {"silver.orders"}
    assert len(every) > 3
    assert commands.json("rejects", "silver.orders", "--json", "--limit", "2") == every[:2]
    out, _ = commands.run("rejects", "silver.orders", "--limit", "2")
    assert f"{every[0]['file']}:{every[0]['line']}" in out
    assert f"… and {len(every) - 2} more" in out
    assert {r["table"] for r in commands.json("rejects", "bronze", "--json")} <= {
        "bronze.orders", "bronze.customers", "bronze.crm_customers", "bronze.erp_sales",
    }  # fmt: skip
    _, err = commands.run("rejects", "orders", code=2)
    assert "There is no table or layer 'orders'" in err


def test_query_answers_as_table_json_and_csv(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    query = "select month, revenue, orders from gold.agg_monthly_sales order by month; -- all"
    rows = commands.json("query", query, "--format", "json")
    assert [r["month"] for r in rows][:2] == ["2025-01-01", "2025-02-01"]
    out, _ = commands.run("query", query, "--format", "csv")
    parsed = list(csv.DictReader(io.StringIO(out)))
    assert len(parsed) == len(rows) == 6
    assert parsed[0]["revenue"].count(".") == 1
    assert float(parsed[0]["revenue"]) == rows[0]["revenue"]
    table, _ = commands.run("query", query)
    assert parsed[0]["revenue"] in table


def test_query_only_reads_and_shows_where_it_is_wrong(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    _, err = commands.run("query", "select 1; drop table gold.fact_sales cascade", code=2)
    assert "one statement" in err
    _, err = commands.run("query", "select *\nfrom nosuch", code=1)
    assert 'relation "nosuch" does not exist' in err
    assert "line 2: from nosuch" in err
    assert commands.json("query", "select count(*) from gold.fact_sales", "--format", "json")


def test_a_reader_that_leaves_early_is_no_error(demo: tuple[Commands, str, str]) -> None:
    commands, *_ = demo
    query = "select n from generate_series(1, 500000) as n"
    process = commands.start("query", query, "--format", "csv")
    assert process.stdout is not None
    assert process.stderr is not None
    assert [process.stdout.readline() for _ in range(2)] == ["n\n", "1\n"]
    process.stdout.close()
    assert complaints(process.stderr.read()) == []
    process.stderr.close()
    process.wait(timeout=60)
    assert commands.servers() == []


def test_interrupting_ends_quietly_and_leaves_nothing_running(
    demo: tuple[Commands, str, str],
) -> None:
    commands, *_ = demo
    process = commands.start("query", "select pg_sleep(300)")
    while not commands.servers():
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, complaints(err)) == (130, "", [])
    assert commands.servers() == []


def test_a_newcomers_own_files(tmp_path: Path) -> None:
    commands = Commands(tmp_path / "home")
    export = tmp_path / "orders_2025-03.csv"
    lines = [f"{n},{n % 7},P00226,2025-03-{n % 28 + 1:02},2,10.00,20.00,PAID" for n in range(100)]
    export.write_text("\n".join([HEADER, *lines, "x,1,P1,2025-03-01,1,1,1,PAID"]) + "\n")
    commands.run("land", str(export))

    built = commands.json("build", "+silver.orders", "--json")
    assert built["succeeded"] is True
    assert [t["table"] for t in built["tables"]] == ["bronze.orders", "silver.orders"]
    assert [d["status"] for d in built["deliveries"]] == ["loaded"]
    silver = built["tables"][1]
    assert (silver["rows_published"], silver["rows_quarantined"]) == (100, 1)

    out, _ = commands.run("build", "gold", "--months", "2025-03")
    assert "fact_orders" in out
    # A month most of whose rows break the contract is not published; what was there stays.
    ruined = [line.replace(",2,10.00", ",0,10.00") for line in lines]
    export.write_text("\n".join([HEADER, *ruined]) + "\n")
    commands.run("land", str(export))
    _, err = commands.run("build", code=1)
    assert "silver.orders 2025-03 was not published" in err
    assert "quantity must be > 0: 100 rows" in err
    assert "next: " in err
    (rows,) = commands.json("query", "select count(*) from silver.orders", "--format", "json")
    assert rows == {"count": 100}


def test_doctor_looks_at_everything(tmp_path: Path) -> None:
    commands = Commands(tmp_path / "home")
    found = commands.json("doctor", "--json")
    assert found["ok"] is True
    checks = {c["name"]: c for c in found["checks"]}
    assert {"python", "disk", "postgresql", "landing zone", "METALAYER_WORKERS"} <= checks.keys()
    assert "PostgreSQL 18" in checks["postgresql"]["detail"]
    assert found["database_url"].startswith("postgresql://postgres@/metalayer?host=")
    out, _ = commands.run("doctor")
    assert "✓ postgresql" in out


def test_doctor_explains_every_wrong_setting(tmp_path: Path) -> None:
    commands = Commands(tmp_path / "home")
    commands.env |= {
        "METALAYER_WORKERS": "many",
        "METALAYER_START_MONTH": "2999-01",
        "METALAYER_DATABASE_URL": "postgresql://ana:secret@127.0.0.1:1/sales",
    }
    found = commands.json("doctor", "--json", code=1)
    wrong = {c["name"]: c for c in found["checks"] if not c["ok"]}
    assert {"METALAYER_WORKERS", "METALAYER_START_MONTH", "postgresql"} == wrong.keys()
    assert all(c["fix"] for c in wrong.values())
    assert "secret" not in json.dumps(found)
