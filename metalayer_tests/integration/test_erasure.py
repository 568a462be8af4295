"""A person is erased from everything, stays out, and no total changes by a cent."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metalayer.catalog import catalog
from metalayer.contracts.classification import ANONYMOUS
from metalayer.errors import ConfigurationError, LandingError, UsageError
from metalayer.governance import erasure
from metalayer.governance.certificates import certificate, verify
from metalayer.governance.subjects import subject
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.postgres import programs
from metalayer_tests.integration.ground import UNBALANCED, Ground, open_ground
from metalayer_tests.integration.killing import Kill
from metalayer_tests.integration.test_build import ORDERS
from metalayer_tests.integration.test_subject import SALES, SNAPSHOT, customers, orders
from metalayer_tests.story import Platform

#: Of the person who is erased, and of another, who is not.
SECRETS = ("Zebulon", "Quigley", "zeb@example.org", "2125550187", "Ravenscar")
OTHERS = ("Barnaby", "Thistle", "barnaby@example.org", "Ottery")
FILES = {
    "crm/customers_2025-01.csv": customers(
        "8,Barnaby,Thistle,barnaby@example.org,(650) 253-0000,Ottery,NY,10001,1970-01-01,"
        "2024-01-01,2025-01-04",
        "7,Zebulon,Quigley,ZEB@example.org,2125550187,Ravenscar,NY,90210,1980-05-17,"
        "2024-01-01,2025-01-05",
    ),
    "crm/crm_customers_2025-01.csv": SNAPSHOT
    + "7,Zebulon Quigley,zeb@example.org,north\n8,Barnaby Thistle,barnaby@example.org,south\n",
    "erp/orders_2025-01.csv": orders((1, 7, "2025-01-07"), (2, 8, "2025-01-07")),
    "erp/erp_sales_2025-02.csv": SALES + "3,1,7,1,2025-02-03,7.00\n4,1,8,1,2025-02-04,9.00\n",
}
LATER = {
    "erp/orders_late.csv": orders((4, 7, "2025-01-09"), (5, 8, "2025-01-10")),
    # A row that breaks its contract, and one that cannot be read.
    "crm/customers_2025-02.csv": customers(
        "7,Zebulon,Quigley,zeb@example.org,,,,,someday,2024-01-01,2025-02-05",
        "Zebulon,zeb@example.org",
        "8,Barnaby,Thistle,barnaby@example.org,,Ottery,,,,2024-01-01,2025-02-06",
    ),
}
#: What does not change by a cent.
TOTALS = (
    "select sum(total_amount), sum(quantity), count(*) from gold.fact_orders",
    "select sum(sale_amount), count(*) from gold.fact_sales",
    "select sum(revenue), sum(orders) from gold.agg_monthly_sales",
    "select sum(lifetime_value) from (select distinct on (customer_id) lifetime_value "
    "from gold.customer_360 order by customer_id, month desc) as newest",
)


@pytest.fixture
def held(platform: Platform) -> Platform:
    for files in (FILES, LATER):
        for name, content in files.items():
            platform.land(name, content)
        assert platform.build().succeeded
    return platform


def totals(platform: Platform) -> list[object]:
    return [platform.ask(query) for query in TOTALS]


def erase(platform: Platform, number: str = "7") -> erasure.Erasure:
    tables = catalog()
    found = erasure.look(platform.warehouse, tables, "customer", number, lambda _: None)
    return erasure.erase(platform.warehouse, platform.instance, tables, found, today=platform.today)


def is_held(platform: Platform, number: str = "7") -> bool:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        settings = platform.warehouse.settings
        return not subject(cursor, catalog(), settings, "customer", number).is_empty


def landed(platform: Platform) -> str:
    return "".join(p.read_text() for p in sorted(platform.landing.rglob("*")) if p.is_file())


def test_nothing_is_left_and_no_total_changes(held: Platform) -> None:
    before = totals(held)
    assert is_held(held)
    done = erase(held)
    assert done.left == []
    assert not is_held(held)
    assert totals(held) == before
    assert held.balances()
    assert done.files == {
        "crm/crm_customers_2025-01.csv": 1,
        "crm/customers_2025-01.csv": 1,
        "crm/customers_2025-02.csv": 2,
        "erp/erp_sales_2025-02.csv": 1,
        "erp/orders_2025-01.csv": 1,
        "erp/orders_late.csv": 1,
    }
    assert done.rows["gold.dim_customer"] == 2
    assert done.versions["gold.fact_orders"] >= 1
    text = landed(held)
    for secret in SECRETS:
        assert secret.lower() not in text.lower()
    for other in OTHERS:
        assert other in text
    # Facts stay, for nobody; and nobody is missed.
    assert held.ask(
        "select customer_id, customer_key, count(*) from gold.fact_orders group by 1, 2 order by 1"
    )[0] == (int(ANONYMOUS), 0, 2)
    assert held.build().warnings == []
    erased = "select file, rows_erased from meta.ledger where rows_erased > 0 order by 1"
    assert dict(held.ask(erased)) == done.files


def test_what_is_built_after_equals_a_build_of_the_rewritten_files(
    held: Platform, make_platform: Callable[[], Platform]
) -> None:
    erase(held)
    again = make_platform()
    for path in sorted(held.landing.rglob("*.csv"), key=lambda p: p.stat().st_mtime):
        again.land(str(path.relative_to(held.landing)), path.read_bytes())
    assert again.build().succeeded
    for name, spec in catalog().specs.items():
        if spec.layer != "bronze":
            columns = [c.name for c in spec.columns if c.name != "_delivery_id"]
            key = [c for c in spec.key if c != "_delivery_id"]
            ours, theirs = (p.frame(name).select(columns).sort(key) for p in (held, again))
            assert ours.equals(theirs), name


def test_files_that_land_again_bring_nobody_back(held: Platform) -> None:
    before = totals(held)
    erase(held)
    for name, content in (FILES | LATER).items():
        held.land(name, content)
    # And a newer export, by a system that still has the person.
    held.land(
        "crm/customers_2025-03.csv",
        customers(
            "7,Zebulon,Quigley,zeb@example.org,,,,,1980-05-17,2024-01-01,2025-03-05",
            "8,Barnaby,Thistle,barnaby@example.org,,Ottery,,,,2024-01-01,2025-03-06",
        ),
    )
    assert held.build().succeeded
    assert not is_held(held)
    assert totals(held) == before
    assert held.balances()
    assert held.ask(
        "select rows_read, rows_erased from meta.ledger where file like '%%2025-03%%'"
    ) == [(1, 1)]
    assert "Quigley" not in landed(held).replace("Zebulon,zeb@example.org", "")


def test_an_earlier_state_of_the_warehouse_brings_nobody_back(
    held: Platform, make_platform: Callable[[], Platform]
) -> None:
    """As after a restored backup: the home knows better."""
    other = make_platform()
    assert other.warehouse.settings.database_url is not None
    shutil.copytree(held.landing, other.landing, dirs_exist_ok=True)
    assert other.build().succeeded
    assert is_held(other)
    erase(held)
    shutil.copytree(
        held.warehouse.settings.home / "erased", other.warehouse.settings.home / "erased"
    )
    assert other.build().succeeded
    with transaction(other.warehouse.pool) as connection, connection.cursor() as cursor:
        found = subject(cursor, catalog(), other.warehouse.settings, "customer", "7")
    assert found.tables == []
    assert [lines for lines in found.files if lines.lines] == []


def test_a_plan_changes_no_file(held: Platform) -> None:
    erase(held)
    path = held.land("erp/orders_2025-01.csv", FILES["erp/orders_2025-01.csv"])
    held.plan()
    assert path.read_text() == FILES["erp/orders_2025-01.csv"]


def test_a_hold_wins_and_says_so(held: Platform) -> None:
    erasure.hold(held.warehouse, catalog(), "customer", " 007", "lawsuit 12/2025")
    with pytest.raises(UsageError, match=r"on legal hold since .*: lawsuit 12/2025"):
        erase(held)
    assert is_held(held)
    assert erasure.release(held.warehouse, catalog(), "customer", "7")
    assert not erasure.release(held.warehouse, catalog(), "customer", "7")
    assert erase(held).left == []


def test_a_file_that_is_not_there_as_it_was_stops_it_before_anything_changed(
    held: Platform,
) -> None:
    before = held.ask("select file, sha256 from meta.deliveries order by 1")
    (held.landing / "erp/orders_late.csv").unlink()
    with pytest.raises(LandingError, match=r"orders_late.csv is needed") as raised:
        erase(held)
    assert "--withdraw" in raised.value.next_step
    assert held.ask("select file, sha256 from meta.deliveries order by 1") == before
    assert list(held.landing.rglob("*.erased")) == []
    assert is_held(held)
    # Nobody was entered, so builds go on.
    held.land("erp/orders_2025-04.csv", orders((20, 8, "2025-04-07")))
    assert held.build().succeeded
    assert held.one("select count(*) from silver.orders where order_id = 20") == 1


def test_repairs_go_on_mending_what_they_mended(held: Platform) -> None:
    """A repair names a row by the content of its file, which erasing changes."""
    held.land(
        "erp/orders_2025-03.csv",
        orders((10, 7, "2025-03-07"), (11, 8, "2025-03-08")).replace("11,8", "eleven,8"),
    )
    assert held.build().succeeded
    sha = held.one("select sha256 from meta.deliveries where file = 'erp/orders_2025-03.csv'")
    head, row = ORDERS.strip(), "11,8,P00001,2025-03-08,2,5.00,10.00,PAID"
    held.land("erp/orders_repair_1.csv", f"_repairs,{head}\n{sha[:16]}:3,{row}\n")
    assert held.build().succeeded
    assert held.rejects("silver.orders") == []
    before = totals(held)
    assert erase(held).left == []
    assert held.build().succeeded
    assert totals(held) == before
    assert held.rejects("silver.orders") == []
    assert held.one("select count(*) from silver.orders where order_id = 11") == 1
    assert held.balances()


def test_files_in_no_table_that_name_the_person_are_left_and_told(held: Platform) -> None:
    held.land("crm/accounts.csv", "who,where\nZ,zeb@example.org\n")
    done = erase(held)
    assert done.left == [
        "crm/accounts.csv: it is in no table, and names the person; remove it, or mend it and build"
    ]
    assert not certificate(done, held.warehouse.settings)["is_complete"]


def test_a_withdrawn_file_is_rewritten_too(held: Platform) -> None:
    held.withdraw("erp/orders_late.csv")
    assert held.build().succeeded
    assert erase(held).left == []
    text = (held.landing / ".withdrawn/erp/orders_late.csv").read_text()
    assert f"4,{ANONYMOUS}," in text
    assert "5,8," in text


def test_who_shares_an_address_keeps_their_rows(held: Platform) -> None:
    """Another's row is theirs, though it is bad and has the same e-mail address."""
    row = "8,Barnaby,Thistle,zeb@example.org,,,,,someday,2024-01-01,2025-03-05"
    held.land("crm/customers_2025-03.csv", customers(row))
    assert held.build().succeeded
    assert len(held.rejects("silver.customers")) == 2
    done = erase(held, " 007 ")
    assert row in (held.landing / "crm/customers_2025-03.csv").read_text()
    assert len(held.rejects("silver.customers")) == 1
    assert not any("customers_2025-03" in left for left in done.left)


def test_whose_address_is_part_of_anothers_takes_nothing_of_theirs(held: Platform) -> None:
    """joann@example.org has ann@example.org in it."""
    held.land(
        "crm/customers_2025-03.csv",
        customers(
            "31,Ann,Lee,ann@example.org,,,,,,2024-01-01,2025-03-05",
            "32,Jo,Ann,joann@example.org,,,,,,2024-01-01,2025-03-05",
            "joann@example.org,broken",
        ),
    )
    assert held.build().succeeded
    assert erase(held, "31").left == []
    text = (held.landing / "crm/customers_2025-03.csv").read_text()
    assert "joann@example.org,broken" in text
    assert "32,Jo,Ann,joann@example.org" in text
    assert "Lee" not in text


def test_a_copy_whose_file_was_replaced_is_no_obstacle(held: Platform) -> None:
    held.land("erp/orders_again.csv", FILES["erp/orders_2025-01.csv"])
    assert held.build().succeeded
    held.land("erp/orders_again.csv", orders((40, 8, "2025-02-07")))
    assert held.build().succeeded
    assert erase(held).left == []


def test_a_packed_file_lands_again_without_being_new(held: Platform) -> None:
    packed = gzip.compress(orders((50, 7, "2025-02-07"), (51, 8, "2025-02-07")).encode(), mtime=1)
    held.land("erp/orders_2025-02.csv.gz", packed)
    held.land("erp/orders_2025-03.csv", orders((51, 9, "2025-02-08")))
    assert held.build().succeeded
    assert erase(held).left == []
    held.land("erp/orders_2025-02.csv.gz", packed)
    assert held.build().succeeded
    # The later export's order stands.
    assert held.one("select customer_id from silver.orders where order_id = 51") == 9


def test_the_number_of_everybody_who_was_erased_is_nobodys(held: Platform) -> None:
    for number in (ANONYMOUS, "0"):
        with pytest.raises(UsageError, match="is nobody's number"):
            erase(held, number)


def test_a_hold_survives_a_lost_salt(held: Platform) -> None:
    erasure.hold(held.warehouse, catalog(), "customer", "7", "lawsuit")
    shutil.rmtree(held.warehouse.settings.home / "erased")
    with pytest.raises(ConfigurationError, match="is missing"):
        erase(held)
    assert is_held(held)


def test_a_certificate_tells_of_nobody_and_cannot_be_changed(
    held: Platform, tmp_path: Path
) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(certificate(erase(held), held.warehouse.settings)))
    said = verify(path)
    assert said["is_complete"]
    assert said["files"]["erp/orders_late.csv"] == 1
    for secret in SECRETS:
        assert secret not in path.read_text()
    changed = json.loads(path.read_text())
    changed["files"]["erp/orders_late.csv"] = 2
    path.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="was changed since it was signed"):
        verify(path)
    path.write_text("{}")
    with pytest.raises(UsageError, match="is no certificate"):
        verify(path)


def test_whom_nobody_knows_cannot_be_erased_and_twice_is_once(held: Platform) -> None:
    with pytest.raises(UsageError, match="Nothing is held of customer 4711"):
        erase(held, "4711")
    with pytest.raises(UsageError, match="is no number of a customer"):
        erase(held, "seven")
    assert erase(held).left == []
    again = erase(held)
    assert (again.left, again.files, again.rows) == ([], {}, {})


def test_the_salt_is_asked_for_rather_than_forgetting_who_was_erased(held: Platform) -> None:
    erase(held)
    shutil.rmtree(held.warehouse.settings.home / "erased")
    with pytest.raises(ConfigurationError, match=r"is missing: .*erased/salt"):
        held.register()


# --- with a server of its own: as bytes, and killed ---------------------------------------------


@pytest.fixture
def ground(server_folder: Path) -> Iterator[Ground]:
    with open_ground(server_folder / "home", server_folder / "landing") as opened:
        for files in (FILES, LATER):
            opened.land(files)
            ended = opened.commands.run("build")
            assert ended.code == 0, ended.said
        yield opened


def found_as_bytes(ground: Ground, folder: Path) -> dict[str, list[str]]:
    """Secret -> files below a folder that have it, whatever its case."""
    found: dict[str, list[str]] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes().lower()
            for secret in SECRETS:
                if secret.lower().encode() in content:
                    found.setdefault(secret, []).append(str(path.relative_to(folder)))
    return found


def dump(ground: Ground, database: str) -> bytes:
    url = ground.url.replace("/metalayer?", f"/{database}?")
    return subprocess.run(
        [programs() / "pg_dump", url], check=True, capture_output=True
    ).stdout.lower()


def test_no_byte_of_the_person_is_left_anywhere(ground: Ground, tmp_path: Path) -> None:
    home, landing = ground.settings.home, ground.settings.landing
    with ground.connection() as cursor:
        cursor.execute("checkpoint")
    before = found_as_bytes(ground, home)
    assert set(before) == set(SECRETS)
    assert any("postgres" in path for path in before["Quigley"])
    assert set(found_as_bytes(ground, landing)) == set(SECRETS)
    assert b"quigley" in dump(ground, "metalayer")
    out = tmp_path / "certificate.json"
    ended = ground.commands.run("erase", "--customer", "7", "--out", str(out), "--why", "request")
    assert ended.code == 0, ended.said
    assert json.loads(out.read_text())["is_complete"]
    for secret in SECRETS:
        assert secret not in ended.said
        assert secret.lower().encode() not in dump(ground, "metalayer")
        assert secret.lower().encode() not in dump(ground, "dagster")
    assert found_as_bytes(ground, landing) == {}
    assert found_as_bytes(ground, home) == {}
    assert b"barnaby" in dump(ground, "metalayer")
    ended = ground.commands.run("erase", "--verify", str(out))
    assert "Unchanged since it was signed" in ended.said


@pytest.mark.parametrize(
    ("point", "when"),
    [
        ("landing.erase:redacted", "after"),
        ("landing.erase:Cleared.finish", "before"),
        ("governance.erasure:drop_versions", "after"),
    ],
)
def test_killed_anywhere_it_is_finished_by_asking_again(
    ground: Ground, tmp_path: Path, point: str, when: str
) -> None:
    before = [ground.ask(query) for query in TOTALS]
    words = ("erase", "--customer", "7", "--out", str(tmp_path / "certificate.json"))
    killed = ground.commands.run(*words, kill=Kill(point, when, 1, ("run",)))
    assert killed.was_reached, killed.said
    ended = ground.commands.run(*words)
    assert ended.code == 0, ended.said
    assert json.loads((tmp_path / "certificate.json").read_text())["is_complete"]
    assert [ground.ask(query) for query in TOTALS] == before
    assert ground.ask(UNBALANCED) == []
    assert found_as_bytes(ground, ground.settings.landing) == {}
    assert list(ground.settings.landing.rglob("*.erased")) == []


def test_a_newer_export_is_never_overwritten(ground: Ground, tmp_path: Path) -> None:
    words = ("erase", "--customer", "7", "--out", str(tmp_path / "certificate.json"))
    kill = Kill("landing.erase:Cleared.finish", "before", 1, ("run",))
    assert ground.commands.run(*words, kill=kill).was_reached
    newer = orders((1, 7, "2025-01-07"), (2, 8, "2025-01-07"), (3, 8, "2025-01-08"))
    ground.land({"erp/orders_2025-01.csv": newer})
    assert ground.commands.run(*words).code == 0
    text = (ground.settings.landing / "erp/orders_2025-01.csv").read_text()
    assert text == newer.replace("1,7,", f"1,{ANONYMOUS},")
    assert ground.ask("select count(*) from silver.orders where order_id = 3") == [(1,)]
    assert list(ground.settings.landing.rglob("*.erased")) == []


def test_a_dry_run_changes_nothing(ground: Ground) -> None:
    before = ground.recorded()
    ended = ground.commands.run("erase", "--customer", "7", "--dry-run")
    assert ended.code == 0, ended.said
    assert "Would be taken out of 6 landed files" in ended.said
    assert ground.recorded() == before
    assert ground.ask("select count(*) from meta.erased") == [(0,)]
    ended = ground.commands.run("erase", "--customer", "7")
    assert ended.code == 2
    assert "where the certificate is to go" in ended.said
