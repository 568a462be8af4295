"""Months of one environment copied to another: as many rows, and nobody who could be recognised."""

import csv
import io
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import phonenumbers
import polars as pl
import psycopg2
import pytest
from psycopg2 import sql

from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.contracts.contract import ColumnSpec
from metalayer.governance.environment_copy import region_codes
from metalayer.governance.pseudonyms import (
    KEY,
    Delivered,
    checked,
    number_pseudonym,
    pseudonym,
)
from metalayer.sample import generate
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.postgres import programs
from metalayer_tests.story import Platform

ROWS = (
    "select table_name, month, rows from meta.versions where is_current and month >= %s "
    "order by 1, 2"
)
#: What follows from the rows of the months alone, not from what went before.
OF_THE_MONTHS = [
    *(name for name in catalog().specs if not name.startswith("gold.")),
    *("gold.fact_orders", "gold.fact_sales", "gold.agg_daily_sales", "gold.agg_monthly_sales"),
    *("gold.sales_reconciliation", "gold.business_kpis"),
]
ORDERS = (
    "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
    "1,7,P00001,2025-01-02,1,2,2,PAID\n"
)
HEADER = "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at"


@pytest.fixture
def environments(
    make_platform: Callable[[], Platform],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[tuple[Platform, Platform]]:
    """Two platforms, as `.env.prod` and `.env.dev` of the current folder name them."""
    monkeypatch.chdir(tmp_path)
    prod, dev = make_platform(), make_platform()
    for name, platform in (("prod", prod), ("dev", dev)):
        settings = platform.warehouse.settings
        assert settings.database_url is not None
        Path(f".env.{name}").write_text(
            f"METALAYER_HOME={settings.home}\n"
            f"METALAYER_DATABASE_URL={settings.database_url.get_secret_value()}\n"
            f"METALAYER_ENCRYPTION_KEY_FILE={settings.encryption_key_file}\n"
        )
    yield prod, dev


@pytest.fixture
def filled(environments: tuple[Platform, Platform], tmp_path: Path) -> tuple[Platform, Platform]:
    """The first has built six months of a generated sample, dirt included."""
    prod, dev = environments
    files = generate(tmp_path / "made", rows=1500, months=6, dirt=0.05, seed=7, split="month")
    prod.land_files([f.file for f in files], tmp_path / "made")
    assert not prod.build().errors
    return prod, dev


def copy(*words: str) -> int:
    return main(["env", "copy", "prod", "dev", *words])


def rows_since(platform: Platform, first: date) -> dict[tuple[str, date], int]:
    return {(table, month): rows for table, month, rows in platform.ask(ROWS, first) if rows}


def quarantined(platform: Platform, first: date) -> dict[str, int]:
    return dict(
        platform.ask(
            "select table_name, count(*) from meta.quarantine where month >= %s group by 1", first
        )
    )


def dumped(platform: Platform) -> str:
    url = platform.warehouse.pool.url.render_as_string(hide_password=False)
    url = url.replace("+psycopg2", "", 1)
    done = subprocess.run([programs() / "pg_dump", url], check=True, capture_output=True)
    return done.stdout.decode()


def landed(platform: Platform, system: str = "") -> str:
    files = sorted((platform.landing / system).rglob("*.csv"))
    return "\n".join(path.read_text(errors="replace") for path in files)


def personal_values(platform: Platform) -> set[str]:
    """Everything personal that a warehouse was delivered, as delivered and as tidied, in plain."""
    found: set[str] = set()
    for spec in catalog().specs.values():
        names = [c.name for c in spec.columns if c.pii and c.pii != "birth_date"]
        if names and spec.layer in ("bronze", "silver"):
            frame = platform.frame(spec.full_name, stored=True)
            for name in names:
                found.update(v for v in frame[name].drop_nulls().to_list() if isinstance(v, str))
    opened = {platform.plain(value).strip().lower() for value in found}
    return {value for value in opened if len(value) > 1 and value not in ("null", "n/a", "na")}


def words_of(text: str) -> set[str]:
    """Its words, and its fields between commas and tabs, in lower case."""
    text = text.lower()
    fields = re.split(r"[\t\n,]", text)
    return {*re.findall(r"[^\s,;\"]+", text), *(field.strip().strip('"') for field in fields)}


def test_all_months_make_the_same_tables_and_nobody_is_in_them(
    filled: tuple[Platform, Platform],
) -> None:
    prod, dev = filled
    ledger, secret = prod.ledger(), personal_values(prod)
    assert len(secret) > 1000
    # Some surnames are words of the schema, like Price.
    known = words_of(dumped(dev))
    assert copy("--months", "12") == 0
    assert prod.ledger() == ledger, "where it comes from is only read"
    assert not dev.build().errors
    first = date(2020, 1, 1)
    wanted = {
        (table, month): rows
        for (table, month), rows in rows_since(prod, first).items()
        if not table.startswith("bronze.")
    }
    made = rows_since(dev, first)
    assert {key: made.get(key) for key in wanted} == wanted
    # Bronze has what counts; deliveries that were replaced stay behind.
    for spec in catalog().sources.values():
        query = f"select month, count(*) from bronze.{spec.name} where _is_latest group by 1"
        assert sorted(dev.ask(query)) == sorted(prod.ask(query))
    before, after = quarantined(prod, first), quarantined(dev, first)
    assert {t: n for t, n in after.items() if n > before.get(t, 0)} == {}
    assert after, "dirt that only typing finds is found again"

    text = f"{landed(dev)}\n{dumped(dev)}"
    # A postal code may well be the number of an order; where people are, there are none of those.
    codes = {value for value in secret if value.isdigit() and len(value) < 7}
    assert (secret & words_of(text)) - known - codes == set()
    assert codes & words_of(landed(dev, "crm")) == set()
    # What looks for it would find it.
    assert len(secret & words_of(f"{landed(prod)}\n{dumped(prod)}")) > 0.5 * len(secret)


def test_pseudonyms_are_values_of_their_kind(filled: tuple[Platform, Platform]) -> None:
    prod, dev = filled
    assert copy("--months", "6") == 0
    assert not dev.build().errors
    ours, theirs = (p.frame("silver.customers") for p in (prod, dev))
    both = _only_once(ours).join(_only_once(theirs), on=["updated_at", "created_at"], suffix="_dev")
    assert both.height > 500
    for name in ("first_name", "last_name", "email", "phone", "city", "zip"):
        assert both.filter(pl.col(name) == pl.col(f"{name}_dev")).is_empty(), name
        assert both[name].is_null().equals(both[f"{name}_dev"].is_null()), name
        # Equal values have equal pseudonyms, and different ones differ.
        assert both[name].n_unique() == both[f"{name}_dev"].n_unique(), name
    for name in ("is_phone_valid", "state"):
        same = both.filter(pl.col(name).eq_missing(pl.col(f"{name}_dev")))
        assert same.height >= (1 if name == "is_phone_valid" else 0.7) * both.height, name
    born = both.drop_nulls("dob")
    assert (born["dob"].dt.year() == born["dob_dev"].dt.year()).all()
    assert (born["dob"] == born["dob_dev"]).sum() < 0.02 * born.height
    assert (both["customer_id"] == both["customer_id_dev"]).sum() == 0
    assert both["customer_id"].n_unique() == both["customer_id_dev"].n_unique()
    assert theirs["email"].drop_nulls().str.contains(r"^[0-9a-f]{16}@example\.org$").all()
    assert theirs["zip"].drop_nulls().str.contains(r"^[0-9]{3}[a-p]{4}$").mean() > 0.95
    phones = theirs["phone"].drop_nulls().to_list()
    assert all(phonenumbers.is_valid_number(phonenumbers.parse(phone)) for phone in phones)
    assert {phone[5:8] for phone in phones} == {"555"}
    # Names join across tables: who agreed agrees, who did not does not.
    disagree = "select count(*), disagreements from gold.dim_customer group by 2 order by 2"
    assert prod.ask(disagree) == dev.ask(disagree)


def _only_once(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.drop_nulls("created_at").filter(pl.struct("updated_at", "created_at").is_unique())


def test_the_last_months_are_as_they_were_and_whom_they_speak_of_is_known(
    filled: tuple[Platform, Platform],
) -> None:
    prod, dev = filled
    assert copy("--months", "3") == 0
    first = date(2024, 4, 1)
    assert not dev.build().errors
    wanted, made = rows_since(prod, first), rows_since(dev, first)
    of_the_months = [key for key in wanted if key[0] in OF_THE_MONTHS and key[0][:6] != "bronze"]
    assert len({table for table, _ in of_the_months}) == len(OF_THE_MONTHS) - 4
    assert {key: made.get(key) for key in of_the_months} == {k: wanted[k] for k in of_the_months}
    unknown = (
        "select count(*) filter (where customer_key = 0), count(*) "
        "from gold.fact_orders where order_date >= %s"
    )
    assert prod.ask(unknown, first) == dev.ask(unknown, first)
    # Orders and sales of earlier months stay behind; of customers there is the newest row of each.
    assert dev.one("select min(month) from bronze.orders") == first
    earlier = "select count(*), count(distinct customer_id) from silver.customers where month < %s"
    earlier = earlier.replace("month", "updated_at")
    ((rows, customers),) = dev.ask(earlier, first)
    assert rows == customers == prod.ask(earlier, first)[0][1]


def test_copying_again_replaces_the_files_and_is_noted_on_both_sides(
    filled: tuple[Platform, Platform],
) -> None:
    prod, dev = filled
    assert copy("--months", "2", "--why", "a bug to look into") == 0
    files = {p: p.read_bytes() for p in dev.landing.rglob("*.csv")}
    assert len(files) == 2 * 4 + 1
    assert copy("--months", "2") == 0
    assert {p: p.read_bytes() for p in dev.landing.rglob("*") if p.is_file()} == files
    assert not dev.build().errors
    assert not [d for d in dev.register().deliveries if d.status == "loaded"]
    noted = "select subject, details ->> 'last_month', why from meta.acts where action = %s"
    assert prod.ask(noted, "copy_out")[0] == ("dev", "2024-06", "a bug to look into")
    assert dev.ask(noted, "copy_in")[0] == ("prod", "2024-06", "a bug to look into")
    assert len(prod.ask(noted, "copy_out")) == len(dev.ask(noted, "copy_in")) == 2


def test_a_name_in_the_wrong_column_stays_behind(environments: tuple[Platform, Platform]) -> None:
    prod, dev = environments
    prod.land(
        "crm/customers_2025-01.csv",
        f"{HEADER},note\n"
        "1,Ann,Lee,no address,letters,Springfield,Quigleyland,90210,1980-05-17,2024-01-01,"
        "2025-01-05,Zebulon rang\n"
        # Shifted by one field: the family name is where the number belongs, and so on.
        "Zebulon,Quigley,zebulon@example.com,2125550187,Shelbyville,NY,10001,1981-01-02,Smithers,"
        "Krusty,2025-01-06,\n"
        "-5,NULL,,N/A,,,NY,,never,soon,2025-01-07,\n",
    )
    assert not prod.build().errors
    assert copy("--months", "1") == 0
    text = landed(dev)
    for secret in (
        *("Ann", "Lee", "no address", "letters", "Springfield", "Quigley", "90210", "1980-05-17"),
        *("Zebulon", "zebulon@example.com", "2125550187", "Shelbyville", "10001", "1981-01-02"),
        *("Smithers", "Krusty", "rang"),
    ):
        assert secret.lower() not in text.lower(), secret
    _, taken, shifted, empty = csv.reader(io.StringIO((dev.landing / "crm").glob("*").__next__()
                                                      .read_text()))  # fmt: skip
    assert taken[4] == "unreadable", "no phone number before, none now"
    assert taken[8].startswith("1980-")
    assert shifted[0] == shifted[8] == shifted[9] == "unreadable"
    assert (empty[0], empty[1], empty[3], empty[8]) == ("-5", "", "", "unreadable")
    assert not dev.build().errors
    for query in (
        "select count(*) from silver.customers",
        "select count(*) from meta.quarantine",
        "select is_phone_valid from silver.customers order by 1",
    ):
        assert dev.ask(query) == prod.ask(query)


def test_numbers_are_permuted_and_nobody_stays_nobody(platform: Platform) -> None:
    column = catalog().spec("silver.customers").column("customer_id")
    made = number_pseudonym(column, _delivered())
    query = sql.SQL(
        "with k as ({}), b as (select n::text as raw from generate_series(1, 20000) as n "
        "union all select unnest(array['0', '-7', '-9223372036854775808', ' 7.0 ', '', 'x', "
        "'9223372036854775807', '4294967296', '4294967297'])) "
        "select b.raw, {} from b cross join k"
    ).format(sql.SQL(KEY), made)
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        found: dict[str, Any] = dict(cursor.fetchall())
    numbers = [found[str(n)] for n in range(1, 20001)]
    assert len(set(numbers)) == 20000
    assert all(1 <= int(n) <= 2**32 for n in numbers)
    assert sum(found[str(n)] == str(n) for n in range(1, 20001)) < 3
    assert [found[raw] for raw in ("0", "-7", str(-(2**63)), "", "x")] == [
        *("0", "-7", str(-(2**63)), None, "unreadable")
    ]  # fmt: skip
    assert found[" 7.0 "] == found["7"]
    assert 1 <= int(found[str(2**32)]) <= 2**32 < int(found[str(2**32 + 1)])
    assert 0 < int(found[str(2**63 - 1)]) < 2**63


@pytest.mark.parametrize(
    ("column", "raw", "looks"),
    [
        ({"type": "text", "pii": "national_id"}, "123-45-6789", r"[A-P][a-p]{11}"),
        ({"type": "text", "pii": "free_text"}, "call Ann", r"[A-P][a-p]{11}"),
        ({"type": "bigint", "pii": "national_id"}, "123456789", r"[0-9]+"),
        ({"type": "numeric(6,2)", "pii": "national_id"}, "1234.5", r"[0-9]{1,4}"),
        ({"type": "boolean", "pii": "free_text"}, "yes", r"true|false"),
        ({"type": "date", "pii": "birth_date"}, "1980-05-17", r"1980-\d\d-\d\d"),
        ({"type": "timestamp", "pii": "birth_date"}, "1980-05-17 01:02", r"1980-\d\d-\d\d"),
        ({"type": "date", "pii": "birth_date"}, "Ann", "unreadable"),
        ({"type": "text", "pii": "phone"}, "(212) 555-0187", r"\+1\d{3}555\d{4}"),
        ({"type": "text", "pii": "phone"}, "none of yours", "unreadable"),
        ({"type": "text", "pii": "name"}, "ANN lee McGee", r"[A-P]{12} [a-p]{12} [a-p]{6}[A-P]{6}"),
        ({"type": "text", "pii": "address"}, "90210-1234", r"902[a-p]{4}"),
        ({"type": "text", "pii": "address"}, "12", r"[a-p]{12}"),
        (
            {"type": "text", "pii": "birth_date", "sealed_type": "date"},
            "1984~3fa9c1~c3Rlc2VhbGVkdmFsdWVzdGV4dA",
            r"1984-\d\d-\d\d",
        ),
        (
            {"type": "text", "pii": "email", "sealed_type": "text"},
            "~3fa9c1~c3Rlc2VhbGVkdmFsdWVzdGV4dA",
            r"[0-9a-f]{16}@example\.org",
        ),
        (
            {"type": "text", "pii": "phone", "sealed_type": "text"},
            "!~3fa9c1~c3Rlc2VhbGVkdmFsdWVzdGV4dA",
            "unreadable",
        ),
    ],
)
def test_every_kind_of_every_type_has_a_pseudonym(
    platform: Platform, column: dict[str, str], raw: str, looks: str
) -> None:
    spec = ColumnSpec("c", dtype=pl.String, meaning="", **column)  # type: ignore[arg-type]
    made = pseudonym(spec, _delivered(), region_codes())
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("with k as ({}), b as (select unnest({}) as raw) select {} from b, k").format(
                sql.SQL(KEY), sql.Literal([raw, raw, "", None]), made
            )
        )
        first, again, *nothing = [value for (value,) in cursor.fetchall()]
    assert re.fullmatch(looks, first), first
    assert first == again != raw
    assert not any(nothing)


def test_a_text_of_a_row_that_broke_its_contract_does_not_pass(platform: Platform) -> None:
    spec = ColumnSpec("c", "text", pl.String, "")
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        for is_taken, passes in (("true", True), ("false", False)):
            made = checked(spec, replace(_delivered(), is_taken=sql.SQL(is_taken)))
            cursor.execute(
                sql.SQL("with k as ({}), b as (select 'Ann' as raw) select {} from b, k").format(
                    sql.SQL(KEY), made
                )
            )
            assert (cursor.fetchone() == ("Ann",)) is passes


def _delivered() -> Delivered:
    """What lies in `b.raw`, of a row that the typed table took."""
    raw = sql.SQL("b.raw")
    tidy = sql.SQL("nullif(btrim(b.raw), '')")
    return Delivered(raw, tidy, sql.SQL("true"), sql.SQL("false"))


def test_numbers_that_stand_for_phones_are_of_areas_of_subscribers() -> None:
    codes = region_codes()
    assert len(codes) > 200
    assert {"212", "416"} <= set(codes)
    assert not {"800", "900", "555"} & set(codes)


def test_what_must_not_be_copied_is_refused(
    environments: tuple[Platform, Platform], capsys: pytest.CaptureFixture[str]
) -> None:
    _, dev = environments

    def refused(*words: str) -> str:
        assert main(["env", *words]) == 2
        return capsys.readouterr().err

    assert "Nothing is copied into prod" in refused("copy", "dev", "prod", "--months", "1")
    assert "There is no environment 'test'" in refused("copy", "test", "dev", "--months", "1")
    assert "how many months" in refused("copy", "prod", "dev")
    assert "dev and dev are the same place" in refused("copy", "dev", "dev", "--months", "1")
    assert "no month to copy" in refused("copy", "prod", "dev", "--months", "1")
    files = {name: Path(f".env.{name}").read_text() for name in ("prod", "dev")}
    # One database under the homes of both.
    url = files["prod"].splitlines()[1]
    Path(".env.dev").write_text(files["dev"].splitlines()[0] + "\n" + url)
    said = refused("copy", "prod", "dev", "--months", "1")
    assert "prod and dev are the same place: they share the database" in said
    assert not list(dev.landing.rglob("*.csv"))


def test_one_database_by_two_names_is_found_out(
    environments: tuple[Platform, Platform], capsys: pytest.CaptureFixture[str]
) -> None:
    prod, dev = environments
    prod.land("erp/orders_2025-01.csv", ORDERS)
    assert not prod.build().errors
    home, _, keys = Path(".env.dev").read_text().splitlines()
    url = Path(".env.prod").read_text().splitlines()[1]
    # Its socket's folder, written in another way.
    folder = re.search(r"host=([^&]+)", url)
    assert folder is not None
    Path(".env.dev").write_text("\n".join((home, url.replace(folder[1], f"{folder[1]}/"), keys)))
    assert copy("--months", "1") == 2
    assert "prod and dev are one database by two names" in capsys.readouterr().err
    assert not dev.landing.exists()
    assert prod.one("select count(*) from meta.acts where action like 'copy%'") == 0


def test_changed_contracts_drop_nothing_in_production_by_themselves(
    environments: tuple[Platform, Platform],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prod, _ = environments
    prod.land("erp/orders_2025-01.csv", ORDERS)
    assert not prod.build().errors
    with transaction(prod.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("alter table silver.orders add column leftover text")
        cursor.execute("update silver.orders set leftover = 'kept'")
        # What other contracts had made.
        cursor.execute("update meta.installed set fingerprint = 'of others'")
    there = (
        "select count(*) from pg_attribute where attname = 'leftover' "
        "and attrelid = 'silver.orders'::regclass and not attisdropped"
    )
    monkeypatch.setenv("METALAYER_ENV", "prod")
    for words in (["migrate"], ["build"], ["up", "--port", "0"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "drop columns or rewrite rows of silver.orders, and METALAYER_ENV is prod" in said
        assert "`metalayer migrate --yes-prod`" in said
    assert main(["migrate", "--plan"]) == 0
    assert prod.one(there) == 1
    assert main(["migrate", "--yes-prod"]) == 0
    assert prod.one(there) == 0
    assert main(["migrate"]) == 0, "what loses nothing needs no word"


def test_only_the_owner_copies(
    environments: tuple[Platform, Platform], capsys: pytest.CaptureFixture[str]
) -> None:
    prod, dev = environments
    url = prod.warehouse.pool.url
    with transaction(prod.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("create role copier login")
        cursor.execute("grant pg_read_all_data to copier")
        cursor.execute("revoke pg_read_all_data from copier")
    try:
        text = Path(".env.prod").read_text()
        assert url.username is not None
        Path(".env.prod").write_text(text.replace(f"//{url.username}", "//copier"))
        assert copy("--months", "1") == 2
        assert "may not read the key" in capsys.readouterr().err
    finally:
        connection = psycopg2.connect(
            url.render_as_string(hide_password=False).replace("+psycopg2", "", 1)
        )
        with connection, connection.cursor() as cursor:
            cursor.execute("drop role copier")
        connection.close()
    assert not dev.landing.exists()
