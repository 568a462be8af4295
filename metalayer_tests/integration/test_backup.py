"""Backups, and everything brought back: any second, checked, with nobody who was erased."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from pydantic import SecretStr

from metalayer.errors import ConfigurationError, UsageError, WarehouseError
from metalayer.governance.sealing import make_key
from metalayer.operations.archive import Archive
from metalayer.operations.backup import Backup, backups, prune
from metalayer.operations.backup_state import load_state
from metalayer.operations.conditions import find
from metalayer.operations.restore import restore, verify_files
from metalayer.operations.vault import FRAME_BYTES, Vault, open_vault
from metalayer.settings import PROJECT_ROOT, Settings
from metalayer.warehouse.archiving import spool_of
from metalayer.warehouse.server import warehouse_server
from metalayer_tests.integration.ground import ALL, Months, look
from metalayer_tests.integration.killing import Commands

CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
KEY = make_key()


def customer(number: int, name: str) -> str:
    email = f"{name.lower()}@example.org"
    return f"{number},{name},Berg,{email},,Aarhus,DK,8000,1990-01-01,2025-01-01,2025-01-03\n"


def order(number: int, customer_id: int = 7, day: str = "2025-01-05") -> str:
    return f"{number},{customer_id},P00001,{day},2,5.00,10.00,PAID\n"


class Home:
    """A home with backups, on which commands run in processes of their own."""

    def __init__(self, folder: Path, commands: Commands, **environment: str) -> None:
        self.folder = folder
        self._commands = commands
        self.home = folder / "home"
        self.environment = {
            "METALAYER_HOME": str(self.home),
            "METALAYER_BACKUP_URL": str(folder / "vault"),
            "METALAYER_WORKERS": "2",
            **environment,
        }
        self._landed = 0

    def settings(self, home: Path | None = None) -> Settings:
        given = {
            name.removeprefix("METALAYER_").lower(): value
            for name, value in self.environment.items()
        }
        return Settings(_env_file=None, **{**given, "home": home or self.home})  # type: ignore[arg-type]

    @property
    def vault(self) -> Vault:
        return open_vault(self.settings())

    def land(self, name: str, content: str) -> None:
        path = self.home / "landing" / name
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.home.chmod(0o711)
        path.write_text(content)
        self._landed += 1
        os.utime(path, (1_750_000_000 + self._landed,) * 2)

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        there = {"METALAYER_LANDING": "", **self.environment, **environment}
        done = self._commands.run(*arguments, environment=there)
        assert done.code == code, done.said
        return done.said


@pytest.fixture(scope="module")
def commands(module_folder: Path) -> Iterator[Commands]:
    commands = Commands(module_folder / "home", module_folder / "landing")
    yield commands
    commands.close()


@pytest.fixture
def home(server_folder: Path, commands: Commands) -> Home:
    return Home(server_folder, commands, METALAYER_BACKUP_KEY=KEY.text)


@contextlib.contextmanager
def looking(settings: Settings) -> Iterator[Any]:
    with warehouse_server(settings) as server:
        url = server.warehouse_url.replace("+psycopg2", "", 1)
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                yield cursor


def contents(settings: Settings) -> Months:
    with looking(settings) as cursor:
        return look(cursor, ALL)


def orders_in(settings: Settings) -> list[int]:
    with looking(settings) as cursor:
        cursor.execute("select order_id from silver.orders order by 1")
        return [number for (number,) in cursor.fetchall()]


def second_between(settings: Settings) -> datetime:
    """A moment after everything that was done so far, and before what comes."""
    with looking(settings) as cursor:
        time.sleep(0.2)
        cursor.execute("select clock_timestamp()")
        (moment,) = cursor.fetchone()
        time.sleep(0.2)
    assert isinstance(moment, datetime)
    return moment


# --- the vault ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 9_000_000])
@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_what_is_put_in_comes_out(tmp_path: Path, size: int, keys: tuple[Any, ...]) -> None:
    vault = Vault(str(tmp_path / "v"), keys)
    content = os.urandom(size // 2) + bytes(size - size // 2)
    with vault.writing("a/b") as out:
        for start in range(0, len(content), 700_001):
            out.write(content[start : start + 700_001])
    assert vault.read("a/b") == content
    assert [s.name for s in vault.objects("a/").values()] == ["a/b"]
    assert max(map(len, vault.frames("a/b"))) <= FRAME_BYTES


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_what_was_changed_cut_or_renamed_is_noticed(tmp_path: Path, keys: tuple[Any, ...]) -> None:
    vault = Vault(str(tmp_path / "v"), keys)
    content = os.urandom(2 * FRAME_BYTES + 100)
    vault.write("x", content)
    whole = (tmp_path / "v" / "x").read_bytes()
    frame = len(whole) // 2
    changed = [
        whole[:-1],
        whole[:frame],
        whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        whole[:frame] + bytes([whole[frame] ^ 1]) + whole[frame + 1 :],
        b"",
        b"something else",
    ]
    for damaged in changed:
        (tmp_path / "v" / "x").write_bytes(damaged)
        with pytest.raises(WarehouseError, match="damaged"):
            vault.read("x")
    if keys:
        (tmp_path / "v" / "y").write_bytes(whole)
        with pytest.raises(WarehouseError, match="damaged"):
            vault.read("y")
        (tmp_path / "v" / "x").write_bytes(whole)
        assert content[:50] not in whole
        with pytest.raises(ConfigurationError, match=f"encrypted with key {KEY.id}"):
            Vault(str(tmp_path / "v"), (make_key(),)).read("x")
        # A newer key encrypts, the earlier one still opens.
        assert Vault(str(tmp_path / "v"), (make_key(), KEY)).read("x") == content


def test_an_object_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    vault = Vault(str(tmp_path / "v"))
    vault.write("x", b"before")
    with pytest.raises(RuntimeError), vault.writing("x") as out:
        out.write(os.urandom(5 * FRAME_BYTES))
        raise RuntimeError
    assert vault.read("x") == b"before"
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["x"]


def test_a_bucket_serves_as_well() -> None:
    # fsspec's own store in memory: no path of this machine is touched.
    vault = Vault("memory://bucket/metalayer", (KEY,))
    vault.write("base/1.json", b"{}")
    vault.write("base/2.json", b"{}")
    assert sorted(vault.objects("base/")) == ["base/1.json", "base/2.json"]
    assert vault.read("base/1.json") == b"{}"
    vault.remove(["base/1.json", "base/3.json"])
    assert sorted(vault.objects("base/")) == ["base/2.json"]
    assert vault.objects("wal/") == {}


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        Vault("nosuch://bucket")
    (tmp_path / "file").write_text("")
    with pytest.raises(WarehouseError, match="does not work"):
        Vault(str(tmp_path / "file")).write("x", b"")
    with pytest.raises(ConfigurationError, match="METALAYER_BACKUP_URL is unset"):
        open_vault(Settings(_env_file=None, home=tmp_path))
    wrong = Settings(
        _env_file=None, home=tmp_path, backup_url=SecretStr("/x"), backup_key=SecretStr("short")
    )
    with pytest.raises(ConfigurationError, match="METALAYER_BACKUP_KEY"):
        open_vault(wrong)


# --- backup and recovery -----------------------------------------------------------------------


def test_any_second_comes_back(home: Home) -> None:
    """Between two publishes there is the first and not the second; in increments, too."""
    home.land("crm/customers.csv", CUSTOMERS + customer(7, "Ada"))
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    said = home.run("backup")
    assert "(full)" in said
    home.land("erp/orders_2.csv", ORDERS + order(2))
    home.run("build")
    first = second_between(home.settings())
    before = contents(home.settings())
    home.land("erp/orders_3.csv", ORDERS + order(3, day="2025-02-05"))
    home.run("build")
    said = home.run("backup")
    assert "(incremental)" in said
    home.land("erp/orders_4.csv", ORDERS + order(4))
    (home.home / "landing" / "erp" / "orders_1.csv").unlink()
    home.run("build")
    with looking(home.settings()) as cursor:
        cursor.execute("select pg_switch_wal()")
    Archive(home.settings(), home.vault).ship()
    found = backups(home.vault)
    assert [b.kind for b in found] == ["full", "incremental"]
    assert found[1].size < found[0].size / 3

    there = home.folder / "between"
    said = home.run("restore", "--to", first.isoformat(), "--into", str(there))
    assert "months as they were" in said
    assert orders_in(home.settings(there)) == [1, 2]
    assert contents(home.settings(there)) == before
    assert sorted(p.name for p in (there / "landing" / "erp").iterdir()) == [
        "orders_1.csv",
        "orders_2.csv",
    ]
    # It goes on from there: nothing is out of date.
    assert "Nothing to do" in home.run("build", METALAYER_HOME=str(there))
    with looking(home.settings(there)) as cursor:
        cursor.execute("select count(*) from meta.acts")
        assert cursor.fetchone()[0] > 0
    newest = home.folder / "newest"
    home.run("restore", "--into", str(newest))
    assert orders_in(home.settings(newest)) == [1, 2, 3, 4]
    assert contents(home.settings(newest)) == contents(home.settings())
    for each in (there, newest):
        assert "The log is whole" in home.run("audit", "verify", METALAYER_HOME=str(each))
    assert "restore" in home.run("audit", METALAYER_HOME=str(there))

    said = home.run("restore", "--to", "2020-01-01", "--into", str(home.folder / "no"), code=2)
    assert "before the first backup" in said
    assert not (home.folder / "no").exists()
    said = home.run("restore", "--into", str(newest), code=2)
    assert "is not empty" in said
    late = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    said = home.run("restore", "--to", late, "--into", str(home.folder / "late"))
    assert "the log ends before the time that was asked for" in said
    assert orders_in(home.settings(home.folder / "late")) == [1, 2, 3, 4]


def test_nothing_of_a_row_is_readable_where_backups_are(home: Home) -> None:
    home.land("crm/customers.csv", CUSTOMERS + customer(7, "Zebedaeus"))
    home.run("build")
    home.run("backup")
    home.run("backup")
    plain = [p for p in (home.folder / "vault").rglob("*") if p.is_file()]
    assert len(plain) > 5
    assert not [p for p in plain if b"ebedaeus" in p.read_bytes()]
    names = {str(p.relative_to(home.folder / "vault")) for p in plain}
    assert not [name for name in names if "customers" in name]
    # Keys of encrypted columns travel with an encrypted backup only.
    (kept,) = home.vault.objects("home/")
    assert b"encryption.keys" in home.vault.read(kept)


def test_whoever_was_erased_since_is_not_brought_back(home: Home) -> None:
    home.land("crm/customers.csv", CUSTOMERS + customer(7, "Quigley") + customer(8, "Barnaby"))
    home.land("erp/orders_1.csv", ORDERS + order(1, 7) + order(2, 8))
    home.run("build")
    home.land("erp/orders_2.csv", ORDERS + order(3, 7))
    home.run("build")
    moment = second_between(home.settings())
    home.run("backup")
    moment = second_between(home.settings())
    home.land("erp/orders_3.csv", ORDERS + order(4, 8))
    home.run("build")
    said = home.run("erase", "--customer", "7", "--out", str(home.folder / "c.json"))
    assert "backups: they let go of the person" in said
    with looking(home.settings()) as cursor:
        cursor.execute("select pg_switch_wal()")
    Archive(home.settings(), home.vault).ship()

    there = home.folder / "there"
    home.run("restore", "--to", moment.isoformat(), "--into", str(there))
    settings = home.settings(there)
    with looking(settings) as cursor:
        cursor.execute("select first_name from silver.customers_stored")
        assert cursor.fetchall() == [("Barnaby",)]
        cursor.execute("select count(*) from silver.orders where customer_id = 7")
        assert cursor.fetchone() == (0,)
        cursor.execute("select count(*) from gold.fact_orders")
        assert cursor.fetchone() == (3,)
    landed = "".join(p.read_text() for p in (there / "landing").rglob("*.csv"))
    assert "Quigley" not in landed
    assert "Barnaby" in landed


def test_a_drill_compares_and_leaves_nothing(home: Home) -> None:
    home.land("crm/customers.csv", CUSTOMERS + customer(7, "Ada"))
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    told = json.loads("{" + home.run("drill", "--json").partition("{")[2])
    assert told["problem"] == ""
    assert told["months"] > 10
    assert told["files"] == 2
    assert told["seconds"] > 0
    assert not (home.home / "drill").exists()
    with warehouse_server(home.settings()):  # as beside `up`
        home.run("backup")
        assert "Recovered in" in home.run("drill")
    state = load_state(home.settings())
    assert state.drill_at is not None
    assert state.drill_seconds > 0
    assert state.backup_at is not None
    found = find(home.settings()).conditions
    assert not [c for c in found if "backup" in c.key or "drill" in c.key]

    # Rows that are not what was published are found, where they were changed before the backup.
    with looking(home.settings()) as cursor:
        cursor.execute(
            "select leaf from meta.versions where table_name = 'silver.orders' and is_current"
        )
        (leaf,) = cursor.fetchone()
        cursor.execute(f"update months.{leaf} set quantity = 77")
    home.run("backup")
    said = home.run("drill", code=1)
    assert "silver.orders 2025-01" in said
    (condition,) = [c for c in find(home.settings()).conditions if c.key == "drill_failed"]
    assert "silver.orders 2025-01" in condition.what
    assert "drill" in home.run("alerts")


def test_a_damaged_backup_is_refused_and_nothing_is_left(home: Home) -> None:
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    (tar,) = (home.folder / "vault" / "base").glob("*.tar")
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    said = home.run("restore", "--into", str(home.folder / "there"), code=1)
    assert "The backup is damaged" in said
    assert not (home.folder / "there").exists()
    home.run("drill", code=1)
    assert "damaged" in load_state(home.settings()).drill_failure


def test_files_are_held_against_the_manifest(home: Home) -> None:
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    from metalayer.operations.restore import _unpack

    (backup,) = backups(home.vault)
    folder = home.folder / "files"
    _unpack(home.vault, backup, folder)
    assert verify_files(folder) > 500
    (folder / "PG_VERSION").write_text("17\n")
    with pytest.raises(WarehouseError, match="PG_VERSION"):
        verify_files(folder)
    (folder / "PG_VERSION").unlink()
    with pytest.raises(WarehouseError, match="PG_VERSION"):
        verify_files(folder)
    manifest = folder / "backup_manifest"
    manifest.write_bytes(manifest.read_bytes().replace(b'"Size": 3,', b'"Size": 4,', 1))
    with pytest.raises(WarehouseError, match="backup_manifest"):
        verify_files(folder)


def test_what_is_older_than_wanted_goes_and_the_rest_still_comes_back(home: Home) -> None:
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    home.land("erp/orders_1.csv", ORDERS + order(1) + order(2))
    home.run("build")
    home.run("backup", "--full")
    home.run("backup")
    vault = home.vault
    first, second, third = backups(vault)
    assert (first.kind, second.kind, third.parent) == ("full", "full", second.id)
    with warehouse_server(home.settings()):
        prune(home.settings(), vault)
    assert len(backups(vault)) == 3  # all are young
    log = set(vault.objects("wal/"))
    landed = set(vault.objects("landed/"))
    assert len(landed) == 2
    for backup in (first, second, third):
        _aged(vault, backup, days=40 if backup is first else 35)
    for path in (home.folder / "vault" / "landed").iterdir():
        os.utime(path, (time.time() - 86_400 * 50,) * 2)
    with warehouse_server(home.settings()):
        prune(home.settings(), vault)
    # The last is old, too, but there is none after it; it needs the one before.
    assert [b.id for b in backups(vault)] == [second.id, third.id]
    assert not [n for n in vault.objects("base/") if first.id in n]
    assert set(vault.objects("wal/")) < log
    assert len(vault.objects("landed/")) == 1
    home.run("restore", "--into", str(home.folder / "there"))
    assert orders_in(home.settings(home.folder / "there")) == [1, 2]


def _aged(vault: Vault, backup: Backup, days: int) -> None:
    name = f"base/{backup.id}.json"
    facts = json.loads(vault.read(name))
    for at in ("started_at", "ended_at"):
        facts[at] = (datetime.fromisoformat(facts[at]) - timedelta(days=days)).isoformat()
    vault.write(name, json.dumps(facts).encode())


def test_a_server_that_ran_before_says_what_to_do(home: Home) -> None:
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    with warehouse_server(home.settings()):
        said = home.run("backup", code=2)
    assert "was started before there were backups" in said
    assert backups(home.vault) == []
    home.run("backup")
    assert len(backups(home.vault)) == 1
    # From then on the home archives whoever starts the server, with the setting or without.
    home.land("erp/orders_2.csv", ORDERS + order(2))
    home.run("build", METALAYER_BACKUP_URL="")
    with looking(home.settings()) as cursor:
        cursor.execute("show archive_mode")
        assert cursor.fetchone() == ("on",)
    home.run("backup", "--stop")
    with looking(home.settings()) as cursor:
        cursor.execute("show wal_level")
        assert cursor.fetchone() == ("minimal",)


def test_another_server_s_log_is_not_mixed_in(home: Home) -> None:
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    names = sorted(home.vault.objects("wal/"))
    segment = next(n for n in names if len(n.rpartition("/")[2]) == 24)
    spool = spool_of(home.settings().pgdata)
    (spool / segment.rpartition("/")[2]).write_bytes(home.vault.read(segment))
    assert Archive(home.settings(), home.vault).ship() >= 1  # handed over again after a crash
    (spool / segment.rpartition("/")[2]).write_bytes(b"another")
    with pytest.raises(WarehouseError, match="a second server archives there"):
        Archive(home.settings(), home.vault).ship()
    assert (spool / segment.rpartition("/")[2]).exists()
    (condition,) = [c for c in find(home.settings()).conditions if c.key == "backup_failed"]
    assert "second server" in condition.what


def test_two_at_once_and_a_killed_one_do_no_harm(home: Home) -> None:
    import fcntl

    from metalayer.warehouse.server import open_lock

    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    held = open_lock(home.settings(), "backup.lock")
    fcntl.flock(held, fcntl.LOCK_EX)
    said = home.run("backup", code=2)
    assert "takes a backup" in said
    os.close(held)
    process = subprocess.Popen(
        [sys.executable, "-m", "metalayer", "backup"],
        env={**os.environ, **home.environment, "PYTHONPATH": str(PROJECT_ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = home.folder / "vault" / "base"
    deadline = time.monotonic() + 60
    while not (base.is_dir() and list(base.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert backups(home.vault) == []
    home.run("backup")
    (taken,) = backups(home.vault)
    home.run("restore", "--into", str(home.folder / "there"))
    assert orders_in(home.settings(home.folder / "there")) == [1]
    assert taken.kind == "full"


def test_a_home_is_handed_over_to_a_server_of_ones_own(
    home: Home, server_folder: Path, commands: Commands
) -> None:
    home.land("crm/customers.csv", CUSTOMERS + customer(7, "Ada"))
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    before = contents(home.settings())
    other = Settings(_env_file=None, home=server_folder / "other")
    with warehouse_server(other) as server:
        own = server.url("own").replace("+psycopg2", "", 1)
        with contextlib.closing(psycopg2.connect(server.url("postgres").replace(
            "+psycopg2", "", 1))) as connection:  # fmt: skip
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("create database own")
        said = home.run("restore", "--into", own)
        assert "months as they were" in said
        there = home.settings().model_copy(update={"database_url": SecretStr(
            own.replace("postgresql:", "postgresql+psycopg2:", 1))})  # fmt: skip
        assert contents(there) == before
        assert "already" in home.run("restore", "--into", own, code=2)

        # Backups of that server are dumps, and come back into a home.
        mine = Home(
            server_folder / "mine",
            commands,
            METALAYER_DATABASE_URL=own,
            METALAYER_LANDING=str(home.home / "landing"),
        )
        mine.folder.mkdir()
        said = mine.run("backup")
        assert "(dump)" in said
        assert "(dump)" in mine.run("backup")
        assert [b.kind for b in backups(mine.vault)] == ["dump", "dump"]
        mine.run("restore", "--into", str(server_folder / "back"))
        back = Settings(_env_file=None, home=server_folder / "back",
                        encryption_key_file=home.home / "encryption.keys")  # fmt: skip
        assert contents(back) == before
        assert mine.run("drill").count("Recovered in") == 1


def test_a_lost_machine_needs_only_the_vault_and_the_key(home: Home) -> None:
    home.land("crm/customers.csv", CUSTOMERS + customer(7, "Ada"))
    home.land("erp/orders_1.csv", ORDERS + order(1))
    home.run("build")
    home.run("backup")
    before = contents(home.settings())
    shutil.rmtree(home.home)
    there = home.folder / "there"
    said = home.run("restore", "--into", str(there), METALAYER_HOME=str(home.folder / "empty"))
    assert "2 landed files lie there as they did" in said
    assert contents(home.settings(there)) == before
    assert "Nothing to do" in home.run("build", METALAYER_HOME=str(there))
    with pytest.raises(ConfigurationError, match="encrypted with key"):
        restore(
            home.settings(),
            Vault(str(home.folder / "vault")),
            home.folder / "keyless",
            lambda _: None,
        )
    with pytest.raises(UsageError, match="no backup in"):
        restore(home.settings(), Vault(str(home.folder / "x")), home.folder / "y", lambda _: None)
