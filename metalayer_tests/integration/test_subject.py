"""Everything that is held of a person is found, of nobody else anything, and handed over safely."""

from __future__ import annotations

import csv
import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.governance.roles import apply_roles
from metalayer.governance.subjects import kinds, places
from metalayer.warehouse.pool import transaction
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS
from metalayer_tests.story import Platform

SALES = "sales_id,product_id,customer_id,quantity,sale_date,sale_amount\n"
SNAPSHOT = "customer_id,customer_name,email,region\n"
#: Of customer 7, and of whom nobody asked about.
OWN = ("Zebulon", "Quigley", "zeb@example.org", "2125550187", "Ravenscar", "90210", "1980-05-17")
OTHERS = ("Barnaby", "Thistle", "barnaby@example.org", "6502530000", "Ottery")

Run = Callable[..., tuple[int, str]]


def customers(*rows: str) -> str:
    return CUSTOMERS + "".join(f"{row}\n" for row in rows)


def orders(*rows: tuple[int, int, str]) -> str:
    lines = (f"{number},{by},P00001,{day},2,5.00,10.00,PAID\n" for number, by, day in rows)
    return ORDERS + "".join(lines)


@pytest.fixture
def held(platform: Platform) -> Platform:
    """Customer 7 in every kind of place, among others."""
    platform.land(
        "crm/customers_2025-01.csv",
        customers(
            "8,Barnaby,Thistle,barnaby@example.org,(650) 253-0000,Ottery,NY,10001,1970-01-01,"
            "2024-01-01,2025-01-04",
            " 7 ,Zebulon,Quigley,ZEB@example.org,(212) 555-0187,Ravenscar,NY,90210,1980-05-17,"
            "2024-01-01,2025-01-05",
        ),
    )
    platform.land(
        "crm/crm_customers_2025-01.csv",
        SNAPSHOT + "7,Zebulon Quigley,zeb@example.org,north\n8,Barnaby,barnaby@example.org,south\n",
    )
    platform.land("erp/orders_2025-01.csv", orders((1, 7, "2025-01-07"), (2, 8, "2025-01-07")))
    platform.land("erp/erp_sales_2025-02.csv", SALES + "3,1,7,1,2025-02-03,7.00\n")
    assert platform.build().succeeded
    # January gets another version; the first is kept.
    platform.land("erp/orders_late.csv", orders((4, 7, "2025-01-09"), (5, 8, "2025-01-10")))
    # A row that breaks its contract, and files that are in no table.
    platform.land(
        "crm/customers_2025-02.csv",
        customers("7,Zebulon,Quigley,zeb@example.org,,,,,someday,2024-01-01,2025-02-05"),
    )
    platform.land("crm/accounts.csv", "who,where\nZ,zeb@example.org\n")
    platform.land("crm/others.csv", "who,where\nB,barnaby@example.org\n")
    platform.land("crm/customers_wide.csv", "id;mail\n7;zeb@example.org\n".encode("utf-16"))
    assert platform.build().succeeded
    return platform


@pytest.fixture
def run(
    held: Platform,
    database: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """The command as a login would run it."""

    def started(*arguments: str, login: str | None = None) -> tuple[int, str]:
        url = database if login is None else database.replace("postgres@", f"{login}@", 1)
        monkeypatch.setenv("METALAYER_DATABASE_URL", url)
        monkeypatch.setenv("METALAYER_HOME", str(held.warehouse.settings.home))
        monkeypatch.setenv("METALAYER_LANDING", str(held.landing))
        code = main(["subject", *arguments])
        out, err = capsys.readouterr()
        return code, out + err

    return started


@pytest.fixture
def login(held: Platform) -> Iterator[Callable[[str], str]]:
    """Makes logins that are members of a role."""
    made: list[str] = []
    with transaction(held.warehouse.pool) as connection:
        apply_roles(connection, list(catalog().specs.values()))

    def make(reader: str) -> str:
        name = f"person_{uuid.uuid4().hex[:10]}"
        held.ask(f"create role {name} login in role metalayer_{reader}; select 1")
        made.append(name)
        return name

    yield make
    for name in made:
        held.ask(f"drop owned by {name}; drop role {name}; select 1")


def table(archive: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8-sig"))))


def test_everything_of_one_person_and_nothing_of_another(
    held: Platform, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "person.zip"
    code, said = run("--customer", "7", "--out", str(out), "--why", "request 12")
    assert code == 0, said
    assert out.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        found = json.loads(archive.read("everything.json"))
        everything = b"".join(archive.read(name) for name in archive.namelist()).decode()
        rows = {t["table"]: len(t["rows"]) for t in found["tables"]}
        bronze = table(archive, "tables/bronze.customers.csv")
        lines = table(archive, "files.csv")
        quarantine = table(archive, "quarantine.csv")
    assert rows == {
        "bronze.crm_customers": 1,
        "bronze.customers": 2,
        "bronze.erp_sales": 1,
        "bronze.orders": 2,
        "silver.crm_customers": 1,
        "silver.customers": 1,
        "silver.erp_sales": 1,
        "silver.orders": 2,
        "gold.dim_customer": 2,
        "gold.fact_orders": 2,
        "gold.fact_sales": 1,
        "gold.customer_360": 2,
    }
    for text in OWN:
        assert text in everything
    for text in OTHERS:
        assert text not in everything
    assert [(row["_file"], row["_line"]) for row in bronze] == [
        ("crm/customers_2025-01.csv", "3"),
        ("crm/customers_2025-02.csv", "2"),
    ]
    # Each line named has the person on it; of the files in no table the place is not known.
    for entry in lines:
        content = (held.landing / entry["file"]).read_bytes()
        if entry["line"]:
            (line,) = content.decode().splitlines()[int(entry["line"]) - 1 : int(entry["line"])]
            assert "7" in line.replace(" ", "").split(",")
    assert [e["file"] for e in lines if not e["line"]] == [
        "crm/accounts.csv",
        "crm/customers_wide.csv",
    ]
    assert [(r["table"], r["file"], r["line"]) for r in quarantine] == [
        ("silver.customers", "crm/customers_2025-02.csv", "2")
    ]
    assert {(e["table"], e["month"]) for e in found["earlier_versions"]} >= {
        ("bronze.orders", "2025-01"),
        ("silver.orders", "2025-01"),
        ("gold.fact_orders", "2025-01"),
    }
    orders = next(t for t in found["tables"] if t["table"] == "gold.fact_orders")
    assert orders["purpose"] == "To count what was ordered, by whom and when"
    assert "metalayer_analyst" in orders["recipients"] or orders["recipients"] == []


def test_the_log_says_that_it_was_done_and_not_of_whom(
    held: Platform, run: Run, tmp_path: Path
) -> None:
    code, said = run("--customer", "7", "--out", str(tmp_path / "a.zip"), "--why", "request 12")
    assert code == 0, said
    acts = held.ask("select action, subject, why, details::text from meta.acts order by act_id")
    assert acts[-1] == ("export", "a customer", "request 12", "{}")


def test_who_may_not_see_it_gets_nothing(
    run: Run, login: Callable[[str], str], tmp_path: Path
) -> None:
    out = tmp_path / "person.zip"
    code, said = run("--customer", "7", "--out", str(out), login=login("analyst"))
    assert code == 2
    assert "may not see what is held of a customer" in said
    assert not out.exists()
    for text in OWN:
        assert text not in said


def test_a_steward_gets_all_but_earlier_versions_and_is_told(
    run: Run, login: Callable[[str], str], tmp_path: Path
) -> None:
    out = tmp_path / "person.zip"
    name = login("steward")
    code, said = run("--customer", "7", "--out", str(out), login=name)
    assert code == 0, said
    assert "earlier versions of months, which this database role may not read" in said
    with zipfile.ZipFile(out) as archive:
        found = json.loads(archive.read("everything.json"))
    assert len(found["tables"]) == 12
    assert all(name in t["recipients"] for t in found["tables"])


def test_what_cannot_be_done_is_refused_and_leaves_no_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "person.zip"
    for arguments, expected in (
        (("--customer", "seven"), "'seven' is no number of a customer"),
        (("--customer", "4711"), "Nothing is held of customer 4711"),
    ):
        code, said = run(*arguments, "--out", str(out))
        assert code == 2
        assert expected in said
    code, said = run("--customer", "7", "--out", str(tmp_path / "missing" / "person.zip"))
    assert code == 2
    assert "cannot be written" in said
    out.write_text("mine")
    code, said = run("--customer", "7", "--out", str(out))
    assert code == 2
    assert "is there already" in said
    assert out.read_text() == "mine"
    assert list(tmp_path.glob("*.part")) == []


def test_formulas_stay_text(platform: Platform, database: str, tmp_path: Path) -> None:
    from metalayer.governance.handover import write_subject
    from metalayer.governance.subjects import Held, Subject

    evil: dict[str, Any] = {"name": "=HYPERLINK(1)", "amount": "-3", "none": None}
    row = Held("silver.customers", "", "team:x", [], ["customer_id"], {}, [evil])
    write_subject(Subject("customer", "7", tables=[row]), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        (read,) = table(archive, "tables/silver.customers.csv")
    assert read == {"name": "'=HYPERLINK(1)", "amount": "-3", "none": ""}


def test_every_table_with_a_persons_number_is_found_and_says_what_for() -> None:
    tables = catalog()
    assert kinds(tables) == ["customer"]
    found = places(tables, "customer")
    named = {name for name, s in tables.specs.items() if s.layer != "gold" or s.purpose}
    assert set(found) == named
    assert all(names == ("customer_id",) for names in found.values())
    for name, spec in tables.specs.items():
        if any(c.pii for c in spec.columns) or name in found:
            assert spec.purpose, name
