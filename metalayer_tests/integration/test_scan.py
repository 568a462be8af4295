"""Columns that look personal and are not tagged: found by their values, and nothing else is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import polars as pl
import pytest
from stdnum import iban, luhn

from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.governance.looks import looks
from metalayer.governance.scan import Finding, scan
from metalayer.sample import generate
from metalayer.warehouse.pool import transaction
from metalayer_tests.integration.test_build import CUSTOMERS, customer
from metalayer_tests.story import Platform

HEAD = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"
NAMES = (
    "Ada",
    "Grace",
    "Edsger",
    "Barbara",
    "Donald",
    "Radia",
    "Tony",
    "Frances",
    "Alan",
    "Niklaus",
)
#: What an export that nobody told about brings, and what is to be said of it.
NEWS: dict[str, tuple[Callable[[int], str], str, str]] = {
    "contact": (lambda n: f"c{n}@example.org", "e-mail addresses", 'pii="email"'),
    "caller": (lambda n: f"(650) 253-{n:04}", "phone numbers", 'pii="phone"'),
    "ssn": (lambda n: f"{101 + n}-45-{6000 + n}", "national ids (US ssn)", 'pii="national_id"'),
    "nhs": (lambda n: checked("nhs", n), "national ids (GB nhs)", 'pii="national_id"'),
    "card": (lambda n: checked("card", n), "payment card numbers", 'sensitivity="restricted"'),
    "account": (lambda n: checked("iban", n), "bank accounts (IBAN)", 'sensitivity="restricted"'),
    "buyer": (
        lambda n: NAMES[n % 10].upper(),
        "the values of bronze.customers.first_name",
        'pii="name"',
    ),
    "remark": (
        lambda n: "call back" if n else "write to ada@example.org instead",
        "e-mail addresses",
        'pii="email"',
    ),
}


def checked(kind: str, number: int) -> str:
    """A number with the check digits that its kind has."""
    if kind == "card":
        digits = f"411111111111{number:03}"
        return digits + luhn.calc_check_digit(digits)
    if kind == "iban":
        digits = f"37040044{number:010}"
        return f"DE{iban.calc_check_digits(f'DE00{digits}')}{digits}"
    for first in range(400_000_000 + number * 10, 499_999_999):
        rest = -sum((10 - place) * int(digit) for place, digit in enumerate(str(first))) % 11
        if rest < 10:
            return f"{first}{rest}"
    raise AssertionError(kind)


def found_in(platform: Platform, region: str = "US") -> list[Finding]:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        return list(scan(cursor, catalog(), rows=20_000, region=region))


def land_news(platform: Platform, count: int = 60) -> None:
    rows = "".join(
        customer(n, "2025-01-05").replace(",Ada,", f",{NAMES[n % 10]},") for n in range(count)
    )
    platform.land("crm/customers.csv", CUSTOMERS + rows)
    lines = [
        f"{n},7,P00001,2025-01-05,2,5.00,10.00,PAID,"
        + ",".join(value(n) for value, _, _ in NEWS.values())
        for n in range(count)
    ]
    platform.land("erp/orders.csv", "\n".join([f"{HEAD},{','.join(NEWS)}", *lines]) + "\n")
    assert platform.build("bronze.orders", "bronze.customers").succeeded


def test_what_no_contract_speaks_of_is_found_by_its_values(platform: Platform) -> None:
    land_news(platform)
    found = found_in(platform)
    assert {(f.table, f.column, f.looks_like) for f in found} == {
        ("bronze.orders", name, what) for name, (_, what, _) in NEWS.items()
    }
    for finding in found:
        assert "contracts/silver/orders.py" in finding.next_step
        assert NEWS[finding.column][2] in finding.next_step
        assert 0 < finding.values <= finding.judged


def test_the_command_names_columns_and_shows_no_value(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    land_news(platform)
    url = platform.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    assert main(["scan"]) == 1
    said = "".join(capfd.readouterr())
    assert "bronze.orders" in said
    assert "payment card numbers" in said
    assert 'pii="national_id"' in said
    assert main(["scan", "--json"]) == 1
    listed = capfd.readouterr()
    assert {f["column"] for f in json.loads(listed.out)} == set(NEWS)
    for shown in (said, *listed):
        for value, _, _ in NEWS.values():
            assert value(3) not in shown or value(3) == "call back"
    assert main(["scan", "--region", "ZZ"]) == 2
    assert "--region ZZ is no country" in capfd.readouterr().err


def test_the_exports_that_are_known_are_clean(platform: Platform) -> None:
    generate(platform.landing, rows=3000, months=6, dirt=0.05, seed=3)
    assert platform.build(*(f"bronze.{s.name}" for s in catalog().sources.values())).succeeded
    assert found_in(platform) == []


def test_a_column_that_its_contract_speaks_of_is_not_named(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{n},7,P00001,2025-01-05,2,5.00,10.00,c{n}@example.org" for n in range(60)]
    platform.land("erp/orders.csv", "\n".join([HEAD, *lines]) + "\n")
    assert platform.build("bronze.orders").succeeded
    (finding,) = found_in(platform)
    assert (finding.column, finding.values, finding.judged) == ("status", 60, 60)
    assert 'give status pii="email"' in finding.next_step
    status = catalog().specs["silver.orders"].column("status")
    monkeypatch.setitem(status.__dict__, "declassified", "mailboxes of shops")
    assert found_in(platform) == []


def test_nothing_landed_is_nothing_found(platform: Platform) -> None:
    assert found_in(platform) == []


@pytest.mark.parametrize("digits", range(5, 20))
def test_plain_numbers_look_like_nothing(digits: int) -> None:
    draws = random.Random(digits)  # noqa: S311 - repeatable, not secret
    scattered = [str(draws.randrange(10 ** (digits - 1), 10**digits)) for _ in range(500)]
    rising = [str(10**digits // 3 + n) for n in range(500)]
    amounts = [f"{number[:-2]}.{number[-2:]}" for number in scattered]
    for numbers in (scattered, rising, amounts):
        texts = pl.Series(numbers).unique()
        believed = [
            look.what
            for look in looks("US")
            if look.is_believed(look.finds(texts).sum(), len(texts))
        ]
        assert believed == []


def test_days_and_moments_look_like_nothing() -> None:
    days = [f"20{y:02}-{m:02}-{d:02}" for y in range(10, 26) for m in range(1, 13) for d in (3, 17)]
    german = [f"{day[8:]}.{day[5:7]}.{day[:4]}" for day in days]
    for texts in (days, german, [f"{day}T10:30:00Z" for day in days]):
        for look in looks("DE"):
            assert not look.is_believed(look.finds(pl.Series(texts)).sum(), len(texts)), look.what
