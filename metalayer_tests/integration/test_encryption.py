"""Encrypted columns: nothing of them in plain, all that reads them as before, and keys changed."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from psycopg2 import sql

import metalayer
from metalayer.assets.resources import open_warehouse
from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.errors import ConfigurationError, UsageError
from metalayer.governance import rotation
from metalayer.governance.sealing import key_file, known_keys, make_key
from metalayer.landing.export import export_quarantined
from metalayer.landing.repair import land_repair
from metalayer.settings import Settings
from metalayer.warehouse.keys import add_key, change_keys, ensure_key
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.postgres import programs
from metalayer.warehouse.versions import rollback
from metalayer_tests.integration.ground import Ground, open_ground
from metalayer_tests.integration.killing import Kill
from metalayer_tests.integration.test_build import CUSTOMERS
from metalayer_tests.story import Platform

#: In three spellings, of which the dump and the data folder must have none.
PHONE, DAY = ("212) 555-0187", "2125550187"), ("1980-05-17", "05/17/1980", "17/05/1980")
SEALED = ("phone", "dob")
TABLES = [s.full_name for s in catalog().specs.values() if s.sealed]


def customers(*rows: str) -> str:
    return CUSTOMERS + "".join(f"{row}\n" for row in rows)


def customer(number: int, phone: str, day: str, changed: str = "2025-01-05") -> str:
    return f"{number},Zebulon,Quigley,zeb@example.org,{phone},Springfield,NY,90210,{day},,{changed}"


@pytest.fixture
def filled(platform: Platform) -> Platform:
    """Two customers, a day that is none, a record that cannot be read, and an earlier version."""
    first = customer(1, "(212) 555-0187", "1980-05-17")
    platform.land("crm/customers_2025-01.csv", customers(first))
    assert platform.build().succeeded
    platform.land(
        "crm/customers_2025-02.csv",
        customers(
            customer(2, "+12125550187", "17/05/1980", "2025-01-06"),
            customer(3, "call me", "someday", "2025-01-07"),
            customer(4, "(212) 555-0187", "1980-05-17", "2025-01-08") + ",too,many",
        ),
    )
    assert platform.build().succeeded
    return platform


def test_no_value_is_in_plain_anywhere_in_the_database(filled: Platform, database: str) -> None:
    url = database.replace("+psycopg2", "")
    dump = subprocess.run([programs() / "pg_dump", url], check=True, capture_output=True).stdout
    assert b"Zebulon" in dump  # what is not encrypted is there
    for text in (*PHONE, *DAY, "someday", "call me", "too,many"):
        assert text.encode() not in dump
    # Both customers, in each layer, and rows that broke a rule.
    assert filled.one("select count(*) from bronze.customers where phone is not null") == 3
    assert filled.one("select count(*) from gold.dim_customer where dob is not null") == 2
    assert len(filled.rejects()) == 2


def test_a_value_is_the_same_however_it_was_written(filled: Platform) -> None:
    phones = filled.ask("select distinct phone from silver.customers where customer_id in (1, 2)")
    ((phone,),) = phones
    assert filled.plain(phone) == "+12125550187"
    days = {d for (d,) in filled.ask("select dob from silver.customers where dob is not null")}
    assert {filled.plain(day) for day in days} == {"1980-05-17"}
    assert len(days) == 1
    # Another spelling is no news of a customer; another number is.
    filled.land(
        "crm/customers_2025-03.csv",
        customers(
            customer(1, "212 555 0187", "1980-05-17", "2025-02-05"),
            customer(2, "212 555 0188", "1980-05-17", "2025-02-06"),
        ),
    )
    assert filled.build().succeeded
    versions = "select count(*) from gold.dim_customer where customer_id = %s"
    assert [filled.one(versions, number) for number in (1, 2)] == [1, 2]


def test_what_is_no_value_is_told_as_before(filled: Platform) -> None:
    ((table, _, line, column, rule, value),) = filled.rejects("silver.customers")
    assert (table, line, column, rule) == ("silver.customers", 3, "dob", "not a date")
    assert value == "someday"
    assert "someday" not in filled.one(
        "select concat(value, raw, violations) from meta.quarantine where table_name = %s", table
    )
    filled.land("crm/customers_2025-03.csv", customers(customer(5, "call me", "N/A", "2025-02-05")))
    filled.land("crm/customers_2025-04.csv", customers(customer(6, " ", " ", "2025-02-06")))
    assert filled.build().succeeded
    found = "select customer_id, phone, is_phone_valid, dob from silver.customers "
    assert filled.ask(found + "where customer_id in (5, 6) order by 1") == [
        (5, None, False, None),
        (6, None, None, None),
    ]


def test_who_sees_masks_sees_those_of_the_plain_values(filled: Platform) -> None:
    with transaction(filled.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("select set_config('metalayer.masked', 'on', true)")
        cursor.execute("select phone, dob from gold.dim_customer where customer_id = 1")
        assert cursor.fetchall() == [("***87", "1980")]
        cursor.execute("select phone, dob from bronze.customers where customer_id = '3'")
        assert cursor.fetchall() == [("***", "***")]


# --- with the key, with another, without --------------------------------------------------------


@pytest.fixture
def read(
    filled: Platform, database: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pd.DataFrame]:
    monkeypatch.setenv("METALAYER_DATABASE_URL", database)
    monkeypatch.setenv("METALAYER_HOME", str(filled.warehouse.settings.home))
    monkeypatch.setenv("METALAYER_LANDING", str(filled.landing))
    return metalayer.read


def test_who_holds_the_key_reads_plain_values(
    read: Callable[..., pd.DataFrame], filled: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = read("silver.customers", decrypt=True)
    assert list(frame["phone"].dropna()) == ["+12125550187"] * 2
    assert list(frame["dob"].dropna()) == [pd.Timestamp("1980-05-17")] * 2
    assert "~" in read("silver.customers")["phone"].dropna().iloc[0]
    assert list(read("bronze.customers", decrypt=True)["phone"].dropna()) == [
        *["+12125550187"] * 2,
        "call me",
    ]
    query = "select phone, dob, jsonb_build_object('p', array[phone]) from silver.customers"
    words = ["query", f"{query} where customer_id = 1", "--format", "csv", "--decrypt"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        '+12125550187,1980-05-17,"{""p"": [""+12125550187""]}"'
    )
    acts = filled.ask("select action, subject from meta.acts where action = 'decrypted_read'")
    assert acts == [*[("decrypted_read", t) for t in ("silver.customers", "bronze.customers")],
                    ("decrypted_read", "query")]  # fmt: skip


@pytest.mark.parametrize("is_missing", [False, True])
def test_without_the_right_key_nothing_is_opened_and_nothing_written(
    read: Callable[..., pd.DataFrame],
    filled: Platform,
    capsys: pytest.CaptureFixture[str],
    *,
    is_missing: bool,
) -> None:
    path = key_file(filled.warehouse.settings)
    key = known_keys(filled.warehouse.settings)[0]
    if is_missing:
        path.unlink()
    else:
        path.write_text(make_key().text)
    filled.land("crm/customers_2025-03.csv", customers(customer(9, "", "", "2025-02-05")))
    before = filled.ledger()
    message = f"sealed with key {key.id}, which is not at hand"
    with pytest.raises(ConfigurationError, match=message):
        read("silver.customers", decrypt=True)
    for words in (["build"], ["query", "select 1", "--decrypt"], ["rejects", "--export", "x.csv"]):
        assert main(words) != 0
        assert message in capsys.readouterr().err
    assert not Path("x.csv").exists()
    assert filled.ledger() == before
    assert filled.one("select count(*) from meta.keys") == 1
    assert main(["doctor"]) == 1
    assert message in capsys.readouterr().out
    # What needs no key goes on.
    assert main(["status"]) == 0
    assert main(["query", "select phone from gold.dim_customer"]) == 0


def test_what_is_no_key_is_refused_without_showing_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = key_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("c2hvcnQ=")
    with pytest.raises(ConfigurationError, match="no key") as refused:
        known_keys(settings)
    assert "c2hvcnQ" not in str(refused.value)
    monkeypatch.setenv("METALAYER_ENCRYPTION_KEY", f"{make_key().text},{make_key().text}")
    assert len(known_keys(Settings.load())) == 2
    assert "encryption_key=SecretStr('**********')" in repr(Settings.load())


def test_the_key_file_is_its_owners(filled: Platform) -> None:
    assert key_file(filled.warehouse.settings).stat().st_mode & 0o777 == 0o600


def test_rejects_are_mended_in_plain(filled: Platform, tmp_path: Path) -> None:
    out = tmp_path / "fix.csv"
    settings = filled.warehouse.settings
    with transaction(filled.warehouse.pool) as connection:
        done = export_quarantined(connection, settings, sql.SQL("true"), out)
    assert (done.rows, done.unsplit) == (2, 1)
    text = out.read_text(encoding="utf-8-sig")
    assert "someday" in text
    assert "call me" in text
    assert "1980-05-17" in text  # of the record that could not be read
    out.write_text(text.replace("someday", "1999-12-31"))
    with transaction(filled.warehouse.pool) as connection:
        landed = land_repair(connection, settings, catalog().sources, out)
    assert landed.rows == 1
    assert filled.build().succeeded
    assert filled.frame("silver.customers").filter(customer_id=3)["dob"].to_list() == [
        date(1999, 12, 31)
    ]
    assert filled.balances()


# --- keys changed -------------------------------------------------------------------------------


def plain(platform: Platform) -> list[object]:
    """Everything that the tables say, in plain."""
    frames = [platform.frame(t) for t in TABLES if not t.startswith("bronze.")]
    return [frame.sort(frame.columns).rows() for frame in frames]


def keys_in_use(platform: Platform) -> set[str]:
    """Ids of the keys that any version of any month, or the quarantine, is sealed with."""
    found: set[str] = set()
    leaves = platform.ask(
        "select distinct leaf from meta.versions where table_name = any(%s)", TABLES
    )
    for (leaf,) in leaves:
        for column in SEALED:
            found |= {
                key
                for (key,) in platform.ask(
                    f"select distinct split_part({column}, '~', 2) from months.{leaf} "
                    f"where {column} is not null"
                )
            }
    for table in ("quarantine", "past_quarantine"):
        texts = platform.ask(f"select concat(value, raw, violations) from meta.{table}")
        found |= {part[:6] for (text,) in texts for part in text.split("~")[1::2]}
    return found


def rotate(platform: Platform) -> rotation.Rotation:
    return rotation.rotate(platform.warehouse, catalog())


def test_everything_is_sealed_anew_and_nothing_is_out_of_date(filled: Platform) -> None:
    old = keys_in_use(filled)
    filled.land("crm/customers_2025-02.csv", customers(customer(2, "", "17/05/1980")))
    assert filled.build().succeeded
    filled.land("crm/customers_2025-02.csv", customers(customer(2, "+12125550187", "17/05/1980")))
    assert filled.build().succeeded
    filled.land("erp/orders_2025-01.csv", ORDERS)
    assert filled.build().succeeded
    before = plain(filled)
    done = rotate(filled)
    assert len(old) == 1
    assert old != {done.key_id}
    assert keys_in_use(filled) == {done.key_id}
    assert set(done.months) == set(TABLES)
    assert plain(filled) == before
    assert filled.plan().is_empty
    # The next month compares with what was sealed anew.
    filled.land("crm/customers_2025-03.csv", customers(customer(1, "2125550187", "1980-05-17",
                "2025-03-01")))  # fmt: skip
    assert filled.build().succeeded
    assert filled.one("select count(*) from gold.dim_customer where customer_id = 1") == 1
    assert filled.build(force=True).succeeded
    assert plain(filled)[1] == before[1]


ORDERS = (
    "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
    "1,1,P00001,2025-01-07,2,5.00,10.00,PAID\n"
)


def test_readers_go_on_and_builds_wait(filled: Platform) -> None:
    seen: set[tuple[object, ...]] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            values = filled.ask("select phone from silver.customers where phone is not null")
            seen.add((len(values), *{filled.plain(value) for (value,) in values}))

    reader = threading.Thread(target=look)
    reader.start()
    with transaction(filled.warehouse.pool) as connection, connection.cursor() as cursor:
        change_keys(cursor)
        connection.commit()
        filled.land("erp/orders_2025-01.csv", ORDERS)
        built = threading.Thread(target=filled.build)
        built.start()
        time.sleep(1)
        assert built.is_alive()
        cursor.execute("select pg_advisory_unlock_all()")
    built.join(60)
    assert not built.is_alive()
    rotate(filled)
    stop.set()
    reader.join()
    assert seen == {(2, "+12125550187")}


def test_what_was_in_plain_before_is_sealed_as_well(filled: Platform) -> None:
    """As in a warehouse whose contract did not encrypt the column before."""
    leaves = filled.ask(
        "select distinct leaf from meta.versions where table_name = 'silver.customers'"
    )
    for (leaf,) in leaves:
        filled.ask(
            f"update months.{leaf} set phone = '+12125550187', dob = '1980-05-17' "
            "where phone is not null; select 1"
        )
    filled.ask(
        "update meta.quarantine set value = 'someday', "
        'raw = \'{"dob": "someday", "zip": "1"}\', violations = '
        '\'[{"column": "dob", "rule": "not a date", "value": "someday"}]\' '
        "where table_name = 'silver.customers'; select 1"
    )
    with transaction(filled.warehouse.pool) as connection, connection.cursor() as cursor:
        # Until then nobody sees more of it for that.
        cursor.execute("select set_config('metalayer.masked', 'on', true)")
        cursor.execute("select distinct phone, dob from silver.customers where phone is not null")
        assert cursor.fetchall() == [("***", "***")]
    done = rotate(filled)
    assert keys_in_use(filled) == {done.key_id}
    assert filled.frame("silver.customers")["phone"].drop_nulls().to_list() == ["+12125550187"] * 2
    ((value, raw),) = filled.ask(
        "select value, raw from meta.quarantine where table_name = 'silver.customers'"
    )
    assert filled.plain(value) == "someday"
    assert '"zip": "1"' in raw


def test_keys_of_the_environment_are_the_users_to_renew(
    filled: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = filled.warehouse.settings
    (old,) = known_keys(settings)
    monkeypatch.setenv("METALAYER_ENCRYPTION_KEY", old.text)
    same = Settings(
        _env_file=None,
        home=settings.home,
        landing=settings.landing,
        database_url=settings.database_url.get_secret_value() if settings.database_url else None,
    )
    warehouse = replace(filled.warehouse, settings=same)
    with pytest.raises(UsageError, match="no newer key"):
        rotation.rotate(warehouse, catalog())
    new = make_key()
    monkeypatch.setenv("METALAYER_ENCRYPTION_KEY", f"{new.text},{old.text}")
    both = same.model_copy(update={"encryption_key": Settings.load().encryption_key})
    done = rotation.rotate(replace(filled.warehouse, settings=both), catalog())
    assert done.key_id == new.id
    assert keys_in_use(filled) == {new.id}


# --- killed, with a server of its own -----------------------------------------------------------


@pytest.fixture
def ground(server_folder: Path) -> Iterator[Ground]:
    with open_ground(server_folder / "home", server_folder / "landing") as opened:
        opened.land(
            {
                "crm/customers_2025-01.csv": customers(
                    customer(1, "(212) 555-0187", "1980-05-17"),
                    customer(2, "2125550188", "1981-05-17", "2025-02-06"),
                )
            }
        )
        ended = opened.commands.run("build")
        assert ended.code == 0, ended.said
        yield opened


@pytest.mark.parametrize(
    ("point", "when", "call"),
    [
        ("governance.rotation:add_key", "after", 1),
        ("governance.rotation:_seal_leaf", "after", 2),
        ("governance.rotation:_know_anew", "before", 1),
        ("governance.rotation:_vacuum", "before", 1),
    ],
)
def test_killed_anywhere_the_next_build_finishes_it(
    ground: Ground, point: str, when: str, call: int
) -> None:
    killed = ground.commands.run("keys", "rotate", kill=Kill(point, when, call, ("run",)))
    assert killed.was_reached, killed.said
    ended = ground.commands.run("build")
    assert ended.code == 0, ended.said
    assert "Nothing to do" in ended.said
    keys = {
        key
        for table in TABLES
        for column in SEALED
        for (key,) in ground.ask(
            f"select distinct split_part({column}, '~', 2) from {table}_stored "
            f"where {column} is not null"
        )
    }
    assert len(keys) == 1
    assert ground.ask("select count(*) from meta.keys where state = 'next'") == [(0,)]
    shown = ground.commands.run(
        "query", "--decrypt", "select phone from gold.dim_customer order by 1", "--format", "csv"
    )
    assert "+12125550187" in shown.said


def test_the_data_folder_and_the_log_of_changes_have_nothing_in_plain(ground: Ground) -> None:
    with ground.connection() as cursor:
        cursor.execute("checkpoint")
    content = b"".join(
        path.read_bytes()
        for path in (ground.settings.home / "postgres").rglob("*")
        if path.is_file()
    )
    assert b"zeb@example.org" in content
    for text in (*PHONE, *DAY):
        assert text.encode() not in content
    assert any((ground.settings.home / "postgres" / "pg_wal").iterdir())


def test_an_unfinished_change_holds_builds_off(filled: Platform) -> None:
    filled.ask("insert into meta.keys (key_id, state) values ('abcdef', 'next') returning 1")
    filled.land("erp/orders_2025-01.csv", ORDERS)
    (error,) = filled.build("bronze.orders").errors
    assert "The change to key abcdef was not finished" in error
    with (
        pytest.raises(ConfigurationError, match="abcdef, which is not at hand"),
        open_warehouse(filled.warehouse.settings),
    ):
        pass


def test_versions_from_before_are_sealed_and_not_rolled_back_to_in_plain(filled: Platform) -> None:
    """The day of birth was of the type date then."""
    ((leaf,),) = filled.ask(
        "select leaf from meta.versions where table_name = 'silver.customers' "
        "and month = '2025-01-01' and not is_current"
    )
    filled.ask(f"alter table months.{leaf} alter column dob type date using '1980-05-17'; select 1")
    spec = catalog().spec("silver.customers")
    with pytest.raises(UsageError, match="has dob in plain"):
        rollback(filled.warehouse.pool, spec, date(2025, 1, 1), 1)
    done = rotate(filled)
    ((kept,),) = filled.ask(f"select distinct dob from months.{leaf}")
    assert done.key_id in kept
    assert filled.plain(kept) == "1980-05-17"
    rollback(filled.warehouse.pool, spec, date(2025, 1, 1), 1)
    assert filled.frame("silver.customers").filter(customer_id=1)["dob"].to_list() == [
        date(1980, 5, 17)
    ]


def test_what_came_before_its_contract_knew_it_is_sealed(filled: Platform) -> None:
    ((leaf,),) = filled.ask(
        "select leaf from meta.versions where table_name = 'bronze.customers' and not is_current"
    )
    filled.ask(
        f'update months.{leaf} set _extra = \'{{"phone": "2125550333", "x": "1"}}\'; select 1'
    )
    rotate(filled)
    ((extra,),) = filled.ask(f"select distinct _extra::text from months.{leaf}")
    assert "2125550333" not in extra
    assert '"x": "1"' in extra


def test_a_column_that_is_encrypted_no_more_is_built_again(filled: Platform) -> None:
    specs = list(catalog().specs.values())
    open_ones = [
        replace(
            s,
            columns=tuple(
                replace(c, type="date", dtype=pl.Date, sealed_type=None) if c.name == "dob" else c
                for c in s.columns
            ),
        )
        if s.full_name in ("silver.customers", "gold.dim_customer")
        else s
        for s in specs
    ]
    with transaction(filled.warehouse.pool) as connection:
        prepare(connection, open_ones, catalog().selects)
    assert filled.one("select count(*) from silver.customers_stored where dob is not null") == 0


def test_two_processes_that_add_keys_lose_none(filled: Platform) -> None:
    settings = filled.warehouse.settings
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: add_key(settings).id, range(8)))
    assert {key.id for key in known_keys(settings)} >= set(made)
    key_file(settings).write_text("# none\n")
    with pytest.raises(ConfigurationError, match="holds no key"):
        ensure_key_of_an_empty_warehouse(filled)


def ensure_key_of_an_empty_warehouse(platform: Platform) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("delete from meta.keys")
        ensure_key(cursor, platform.warehouse.settings)
