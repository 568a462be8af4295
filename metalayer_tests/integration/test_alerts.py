"""Alerts: what is wrong is found and told once for each cause, to a webhook and by mail."""

from __future__ import annotations

import email
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from metalayer.errors import ConfigurationError, UsageError
from metalayer.operations.alerts import Round, Teller, addresses
from metalayer.operations.conditions import Condition, Findings, find
from metalayer.settings import Settings
from metalayer.warehouse.failures import note_failed_checks
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.server import open_lock
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.integration.webhook import Webhook, listening
from metalayer_tests.story import Platform

#: A moment at which no month of 2025 is due yet.
NOW = datetime(2025, 1, 20, tzinfo=UTC)
LATER = datetime(2025, 2, 20, tzinfo=UTC)
BAD = "".join(order(n, "2025-01-05", quantity=-1) for n in range(100))


@pytest.fixture(autouse=True)
def _no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Dagster's tables are is found, not told."""
    monkeypatch.delenv("DAGSTER_PG_URL", raising=False)


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with listening() as found:
        yield found


@pytest.fixture
def other_hook() -> Iterator[Webhook]:
    with listening() as found:
        yield found


def told(platform: Platform, urls: str, now: datetime = NOW) -> Round:
    """Look once, with these addresses."""
    settings = platform.warehouse.settings.model_copy(update={"alert_urls": SecretStr(urls)})
    return Teller(settings).look(now)


def found(platform: Platform, now: datetime = NOW) -> dict[str, Condition]:
    """What is wrong, by key."""
    return {c.key: c for c in find(platform.warehouse.settings, now).told}


@pytest.fixture
def landed(platform: Platform) -> Platform:
    platform.land("crm/customers_2025-01.csv", CUSTOMERS + customer(1, "2025-01-05"))
    platform.land("erp/orders_2025-01.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build().succeeded
    return platform


def test_nothing_is_wrong_where_nothing_is(landed: Platform, hook: Webhook) -> None:
    assert found(landed) == {}
    assert told(landed, hook.url).sent == ()
    assert hook.got == []


def test_a_warehouse_that_was_never_built_is_not_wrong(platform: Platform) -> None:
    assert found(platform) == {}


def test_a_refused_file_is_told_once_and_when_it_is_well_again(
    landed: Platform, hook: Webhook
) -> None:
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    for _ in range(3):
        told(landed, hook.url)
    assert hook.titles == ["erp/orders_2025-02.csv was refused"]
    (message,) = hook.got
    assert message["type"] == "warning"
    for words in (
        "customer_id",  # what it lacks
        "Owner: team:sales-data",
        "Affects: bronze.orders, silver.orders, ",
        "gold.fact_orders",
        "Next: Have it exported again",
        "Since: ",
    ):
        assert words in message["message"]
    landed.land("erp/orders_2025-02.csv", ORDERS + order(9, "2025-02-05"))
    landed.build()
    told(landed, hook.url, NOW + timedelta(minutes=42))
    told(landed, hook.url, NOW + timedelta(minutes=43))
    assert hook.titles[1:] == ["No longer so: erp/orders_2025-02.csv was refused"]
    assert hook.got[1]["message"].endswith("It was seen for 42 minutes.")
    assert hook.got[1]["type"] == "success"


def test_a_refused_file_that_is_taken_away_is_well(landed: Platform) -> None:
    path = landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    assert list(found(landed)) == ["delivery_rejected erp/orders_2025-02.csv"]
    path.unlink()
    assert found(landed) == {}


def test_a_month_that_fails_is_one_cause_however_many_tables_lack_it(landed: Platform) -> None:
    landed.land("erp/orders_2025-02.csv", ORDERS + BAD.replace("2025-01", "2025-02"))
    assert not landed.build().succeeded
    wrong = found(landed, LATER + timedelta(days=30))
    assert "month_failed silver.orders" in wrong
    failed = wrong["month_failed silver.orders"]
    assert failed.title == "1 month of silver.orders broke the contract"
    assert "2025-02" in failed.what
    assert {"gold.fact_orders", "gold.customer_360"} <= set(failed.affects)
    assert "silver.orders" not in failed.affects
    # The others wait for it, and for sources that are late: nothing else is wrong with them.
    assert not [key for key in wrong if key.startswith("month_missing gold.")]
    assert not [key for key in wrong if key.startswith("month_missing silver.")]


def test_a_source_that_is_late_explains_what_is_behind_it(landed: Platform) -> None:
    wrong = found(landed, LATER + timedelta(days=30))
    late = wrong["month_missing bronze.orders"]
    assert late.title == "bronze.orders lacks 2025-02"
    assert {"silver.orders", "gold.fact_orders"} <= set(late.affects)
    assert all(key.startswith("month_missing bronze.") for key in wrong)


def test_a_month_that_did_not_come_for_a_refused_file_is_told_with_the_file(
    landed: Platform,
) -> None:
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    wrong = found(landed, LATER + timedelta(days=30))
    assert "delivery_rejected erp/orders_2025-02.csv" in wrong
    assert "month_missing bronze.orders" not in wrong
    assert "month_missing bronze.customers" in wrong


def test_what_is_explained_later_is_not_over(landed: Platform, hook: Webhook) -> None:
    now = LATER + timedelta(days=30)
    urls = f"team:sales-data={hook.url}"
    told(landed, urls, now)
    path = landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    told(landed, urls, now)
    path.unlink()
    told(landed, urls, now)
    landed.land("erp/orders_2025-02b.csv", ORDERS + order(9, "2025-02-05"))
    assert landed.build().succeeded
    told(landed, urls, now)
    assert hook.titles == [
        "bronze.orders lacks 2025-02",
        "erp/orders_2025-02.csv was refused",
        "No longer so: erp/orders_2025-02.csv was refused",
        "No longer so: bronze.orders lacks 2025-02",
    ]


def test_a_file_that_is_refused_anew_is_told_anew(landed: Platform, hook: Webhook) -> None:
    for lines in ("order_id\n9\n", "order_id,status\n9,PAID\n"):
        landed.land("erp/orders_2025-02.csv", lines)
        landed.build()
        told(landed, hook.url)
        told(landed, hook.url)
    assert hook.titles == ["erp/orders_2025-02.csv was refused"] * 2


def wrong(key: str, now: datetime, **facts: Any) -> Condition:
    """A condition as `find` gives it."""
    return Condition(key, f"{key} is wrong", "It is.", now, "Mend it.", **facts)


def look_at(platform: Platform, hook: Webhook, now: datetime, *conditions: Condition) -> None:
    """Look while just these conditions are found."""
    urls = SecretStr(hook.url)
    teller = Teller(platform.warehouse.settings.model_copy(update={"alert_urls": urls}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metalayer.operations.alerts.find", lambda *_: Findings(conditions))
        teller.look(now)


def test_what_comes_and_goes_is_not_told(platform: Platform, hook: Webhook) -> None:
    low = wrong("disk_low home", NOW, settles_seconds=300.0)
    for seconds, found_now in ((0, [low]), (30, []), (270, []), (300, [low]), (330, [])):
        look_at(platform, hook, NOW + timedelta(seconds=seconds), *found_now)
    assert hook.titles == []
    for seconds in (600, 900, 930):
        look_at(platform, hook, NOW + timedelta(seconds=seconds), low)
    for seconds in (960, 1000, 1300):
        look_at(platform, hook, NOW + timedelta(seconds=seconds))
    assert hook.titles == ["disk_low home is wrong", "No longer so: disk_low home is wrong"]


def test_a_run_that_a_month_explained_is_not_told_when_the_month_is_well(
    platform: Platform, hook: Webhook
) -> None:
    facts = {"spreads": False, "stays_explained": True}
    first = wrong("run_failed job", NOW, about=frozenset(("a",)), is_explained=True, **facts)
    look_at(platform, hook, NOW, wrong("month_failed silver.orders", NOW), first)
    look_at(platform, hook, NOW, replace(first, is_explained=False))
    assert hook.titles[-1] == "No longer so: month_failed silver.orders is wrong"
    # Another run, for which there is no such reason, and a third, which is the second tried again.
    for run in "bcd":
        look_at(platform, hook, NOW, wrong("run_failed job", NOW, about=frozenset(run), **facts))
    look_at(platform, hook, NOW)
    assert hook.titles[2:] == ["run_failed job is wrong", "No longer so: run_failed job is wrong"]


def test_what_spread_while_mail_was_down_is_closed_all_the_same(
    platform: Platform, hook: Webhook
) -> None:
    look_at(platform, hook, NOW, wrong("month_failed t", NOW, about=frozenset(("1",))))
    hook.status = 503
    later = NOW + timedelta(hours=50)
    look_at(platform, hook, later, wrong("month_failed t", NOW, about=frozenset(("1", "2"))))
    hook.status = 200
    look_at(platform, hook, later)
    assert hook.titles == ["month_failed t is wrong", "No longer so: month_failed t is wrong"]
    assert hook.got[1]["message"].endswith("It was seen for 50 hours.")


def test_dagster_s_database_that_is_gone_is_told_and_the_files_as_well(
    landed: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_URL", "postgresql+psycopg2://postgres@127.0.0.1:1/none")
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    assert set(found(landed)) == {"dagster_down", "delivery_rejected erp/orders_2025-02.csv"}


def test_an_old_refused_file_does_not_explain_a_month_that_is_missing_now(
    landed: Platform,
) -> None:
    landed.land("erp/orders_2024-12.csv", "order_id\n9\n")
    landed.build()
    wrong = found(landed, LATER + timedelta(days=30))
    assert {"delivery_rejected erp/orders_2024-12.csv", "month_missing bronze.orders"} <= set(wrong)


def test_another_month_that_fails_is_told_as_well(landed: Platform, hook: Webhook) -> None:
    for month in (2, 3):
        numbers = range(1000 * month, 1000 * month + 100)
        bad = "".join(order(n, f"2025-{month:02}-05", quantity=-1) for n in numbers)
        landed.land(f"erp/orders_2025-{month:02}.csv", ORDERS + bad)
        assert not landed.build().succeeded
        told(landed, hook.url)
        told(landed, hook.url)
    assert hook.titles == [
        "1 month of silver.orders broke the contract",
        "2 months of silver.orders broke the contract",
    ]


def test_the_next_month_that_is_missing_is_told_as_well(landed: Platform, hook: Webhook) -> None:
    for days in (0, 30, 31):
        told(landed, f"team:sales-data={hook.url}", LATER + timedelta(days=30 + days))
    assert hook.titles == ["bronze.orders lacks 2025-02", "bronze.orders lacks 2025-02 to 2025-03"]


def test_a_check_that_failed_is_wrong_until_it_passes(landed: Platform) -> None:
    def note() -> None:
        with (
            transaction(landed.warehouse.pool) as connection,
            connection.cursor() as cursor,
        ):
            note_failed_checks(cursor, "silver.orders", "asked", "silver.orders: two rows a key")

    note()
    # Everything has passed since.
    assert found(landed) == {}
    with transaction(landed.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("update meta.versions set is_checked = false where table_name = %s",
                       ("silver.orders",))  # fmt: skip
    failed = found(landed)["check_failed silver.orders"]
    assert failed.severity == "critical"
    assert "gold.fact_orders" in failed.affects
    assert landed.build().succeeded
    assert found(landed) == {}
    assert landed.one("select count(*) from meta.failed_checks") == 0


def test_a_failed_month_is_well_when_what_it_is_made_from_is_what_it_was(landed: Platform) -> None:
    good = ORDERS + order(1, "2025-01-05")
    landed.land("erp/orders_2025-01.csv", ORDERS + BAD)
    assert not landed.build().succeeded
    assert "month_failed silver.orders" in found(landed)
    landed.land("erp/orders_2025-01.csv", good)
    assert landed.build().succeeded
    assert found(landed) == {}
    assert landed.one("select count(*) from meta.failed_months") == 0


def test_a_question_that_takes_too_long_is_no_server_that_is_gone(
    landed: Platform, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metalayer.operations.conditions._PATIENCE", 0.3)
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    told(landed, hook.url)
    with transaction(landed.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("lock table meta.tables in access exclusive mode")
        findings = find(landed.warehouse.settings, NOW)
        assert findings.conditions == ()
        assert "delivery_rejected" in findings.unknown
        told(landed, hook.url, NOW + timedelta(minutes=9))
        connection.rollback()
    told(landed, hook.url, NOW + timedelta(minutes=10))
    assert len(hook.got) == 1


def test_an_earlier_release_s_warehouse_is_looked_at(landed: Platform) -> None:
    with transaction(landed.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute("alter table meta.tables drop column source")
        cursor.execute("drop table meta.failed_checks, meta.failed_months")
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    assert found(landed, LATER + timedelta(days=30))


def test_what_was_told_is_remembered_on_a_full_disk(
    landed: Platform, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metalayer.operations.alerts.write_over", full)
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    settings = landed.warehouse.settings.model_copy(update={"alert_urls": SecretStr(hook.url)})
    teller = Teller(settings)
    for _ in range(3):
        teller.look(NOW)
    assert len(hook.got) == 1


def test_a_storm_fits_into_a_chat(landed: Platform, hook: Webhook) -> None:
    for number in range(60):
        landed.land(f"erp/orders_{number:03}.csv", f"order_id\n{number}\n")
    landed.build()
    told(landed, hook.url)
    (message,) = hook.got
    assert message["title"] == "[MetaLayer] 60 things wrong"
    assert len(message["message"]) < 1_800
    assert " more\nNext: " in message["message"]


def test_owners_are_told_about_their_tables_and_others_about_everything(
    landed: Platform, hook: Webhook, other_hook: Webhook
) -> None:
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.land("crm/customers_2025-02.csv", "customer_id\n9\n")
    landed.build()
    told(landed, f"{hook.url} team:sales-data={other_hook.url}")
    assert len(hook.got) == 2
    assert other_hook.titles == ["erp/orders_2025-02.csv was refused"]


def test_a_storm_is_one_message(landed: Platform, hook: Webhook) -> None:
    for month in range(2, 8):
        landed.land(f"erp/orders_2025-{month:02}.csv", "order_id\n9\n")
    landed.build()
    told(landed, hook.url)
    assert hook.titles == ["6 things wrong"]
    assert all(f"orders_2025-{m:02}.csv was refused" in hook.got[0]["message"] for m in range(2, 8))
    assert "`metalayer alerts` says of each" in hook.got[0]["message"]
    for month in range(2, 8):
        (landed.landing / f"erp/orders_2025-{month:02}.csv").unlink()
    told(landed, hook.url)
    told(landed, hook.url)
    assert hook.titles[1:] == ["6 things no longer so"]


def test_an_address_that_takes_nothing_is_tried_again_and_the_others_are_told_once(
    landed: Platform, hook: Webhook, other_hook: Webhook
) -> None:
    other_hook.status = 503
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    both = f"{hook.url} {other_hook.url}"
    assert len(told(landed, both).refused) == 1
    assert len(told(landed, both).refused) == 1
    other_hook.status = 200
    assert told(landed, both).refused == ()
    assert hook.titles == other_hook.titles == ["erp/orders_2025-02.csv was refused"]


def test_a_server_that_is_gone_is_told_after_a_minute_and_nothing_passes_for_well(
    landed: Platform, hook: Webhook
) -> None:
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    told(landed, hook.url)
    settings = landed.warehouse.settings.model_copy(
        update={
            "alert_urls": SecretStr(hook.url),
            "database_url": SecretStr("postgresql+psycopg2://postgres@127.0.0.1:1/none"),
        }
    )
    teller = Teller(settings)
    for seconds in (0, 30, 70, 100):
        teller.look(NOW + timedelta(seconds=seconds))
    assert hook.titles[1:] == ["PostgreSQL does not answer"]
    assert hook.got[1]["type"] == "failure"
    for minutes in (5, 7):
        told(landed, hook.url, NOW + timedelta(minutes=minutes))
    assert hook.titles[2:] == ["No longer so: PostgreSQL does not answer"]


def test_what_was_told_is_kept_without_addresses_and_begun_anew_if_unreadable(
    landed: Platform, hook: Webhook
) -> None:
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    told(landed, hook.url)
    kept = landed.warehouse.settings.home / "alerts.json"
    assert str(hook.port) not in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.write_text(kept.read_text().replace('"seen_at": "2', '"seen_at": "x'))
    told(landed, hook.url)
    assert len(hook.got) == 2


def test_two_at_once_do_not_tell_twice(landed: Platform, hook: Webhook) -> None:
    handle = open_lock(landed.warehouse.settings, "alerts.lock")
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="Another process tells"):
            told(landed, hook.url)
    finally:
        os.close(handle)


@pytest.mark.parametrize("url", ["nosuch://user:geheim@example.org", "geheim", "mailto://"])
def test_an_address_that_is_none_is_refused_without_its_secrets(tmp_path: Path, url: str) -> None:
    settings = Settings(_env_file=None, home=tmp_path, alert_urls=SecretStr(f"json://x {url}"))
    with pytest.raises(ConfigurationError, match="address 2 ") as refused:
        addresses(settings)
    assert "geheim" not in str(refused.value)


def test_addresses_are_shown_without_their_secrets(tmp_path: Path) -> None:
    urls = "json://user:geheim@localhost team:sales-data=json://other:geheim@localhost/a=b://c"
    settings = Settings(_env_file=None, home=tmp_path, alert_urls=SecretStr(urls))
    first, second = addresses(settings)
    assert first.owner is None
    assert second.owner == "team:sales-data"
    assert second.url == "json://other:geheim@localhost/a=b://c"
    assert "geheim" not in f"{first}{second}{settings!r}"
    assert second.shown == "address 2 (json://...)"


def test_addresses_may_stand_with_commas_between(tmp_path: Path) -> None:
    urls = "json://a/, mailto://u:p@example.org?to=x@y.org,z@y.org,team:crm=json://b/"
    settings = Settings(_env_file=None, home=tmp_path, alert_urls=SecretStr(urls))
    assert [(a.owner, a.url) for a in addresses(settings)] == [
        (None, "json://a/"),
        (None, "mailto://u:p@example.org?to=x@y.org,z@y.org"),
        ("team:crm", "json://b/"),
    ]


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[tuple[int, Callable[[], list[Any]]]]:
    """A real SMTP server, and the mails it took."""
    program = shutil.which("aiosmtpd")
    if program is None:
        pytest.fail("There is no aiosmtpd. Install it: apt-get install -y python3-aiosmtpd")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    box = tmp_path / "mail"
    process = subprocess.Popen(
        [program, "-n", "-l", f"127.0.0.1:{port}", "-c", "aiosmtpd.handlers.Mailbox", str(box)]
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield (
            port,
            lambda: [email.message_from_bytes(p.read_bytes()) for p in (box / "new").iterdir()],
        )
    finally:
        process.terminate()
        process.wait(10)


def test_mail_reaches_its_reader(
    landed: Platform, mail: tuple[int, Callable[[], list[Any]]]
) -> None:
    port, taken = mail
    landed.land("erp/orders_2025-02.csv", "order_id\n9\n")
    landed.build()
    url = f"mailto://127.0.0.1:{port}?from=metalayer@example.org&to=ana@example.org&mode=insecure"
    assert told(landed, url).refused == ()
    (message,) = taken()
    assert message["Subject"] == "[MetaLayer] erp/orders_2025-02.csv was refused"
    assert "ana@example.org" in message["To"]
    parts = [p for p in message.walk() if not p.is_multipart()]
    text = "".join(p.get_payload(decode=True).decode() for p in parts)
    assert "Next: Have it exported again" in text
