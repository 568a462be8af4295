"""The audit log: every act is in it, and nobody can change it unnoticed."""

from __future__ import annotations

import json
import os
import pwd
import threading
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from metalayer.audit_log import Act, Head, Verdict, acts, noted_heads, parse_since, verify
from metalayer.catalog import catalog
from metalayer.cli import main
from metalayer.inspection import reading
from metalayer.warehouse.acts import heads_file, record, record_now, seal
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.versions import rollback
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

TYPED = ("bronze.orders", "silver.orders")
SOON = timedelta(seconds=5)
ME = pwd.getpwuid(os.geteuid()).pw_name


def listed(platform: Platform, **wanted: Any) -> list[Act]:
    with reading(platform.warehouse.settings) as connection:
        return list(acts(connection, **wanted))[::-1]


def told(platform: Platform, action: str) -> list[str]:
    return [act.subject for act in listed(platform, action=action)]


def verdict(platform: Platform, heads: list[Head] | None = None) -> Verdict:
    noted = noted_heads(heads_file(platform.warehouse.settings)) if heads is None else heads
    with reading(platform.warehouse.settings) as connection:
        return verify(connection, noted)


def problems(platform: Platform, heads: list[Head] | None = None) -> str:
    return "\n".join(verdict(platform, heads).problems)


def do(platform: Platform, statement: str, *values: Any) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(statement, values or None)


def tamper(platform: Platform, statement: str) -> None:
    """What whoever owns the tables can do: switch the guards off, change, switch them on again."""
    tables = {"acts": ("append_only",), "act_seals": ("append_only",)}
    tables["act_head"] = ("append_only", "only_longer")
    each = [f"alter table meta.{t} {{}} trigger {g}" for t, gs in tables.items() for g in gs]
    off = "; ".join(line.format("disable") for line in each)
    do(platform, f"{off}; {statement}; {'; '.join(s.format('enable always') for s in each)}")


def test_grants_tell_their_reason_and_are_chained_at_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = platform.warehouse.settings.database_url
    assert url is not None
    monkeypatch.setenv("METALAYER_DATABASE_URL", url.get_secret_value())
    monkeypatch.setenv("METALAYER_HOME", str(platform.warehouse.settings.home))
    assert main(["roles", "apply", "--why", "ticket 9"]) == 0
    (granted,) = listed(platform, action="grant")
    assert granted.why == "ticket 9"
    assert platform.one("select count(*) from meta.acts_unsealed") == 0


@pytest.fixture
def built(platform: Platform) -> Platform:
    """Orders of two months, built and chained."""
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build(*TYPED).succeeded
    assert verdict(platform).problems == []
    return platform


def test_a_build_and_its_publishes_are_recorded_with_who_and_when(built: Platform) -> None:
    published = listed(built, action="publish")
    # Months land side by side.
    assert sorted(act.subject for act in published) == [
        f"{table} {month}" for table in TYPED for month in ("2025-01", "2025-02")
    ]
    (run,) = listed(built, action="build")
    assert {f"run {act.details['run']}" for act in published} == {run.subject}
    assert run.details["tables"] == list(TYPED)
    assert {act.os_user for act in published} == {ME}
    assert {act.role for act in published} == {"postgres"}
    assert all(act.position is not None for act in published)
    (published_at,) = built.ask("select min(published_at), max(published_at) from meta.versions")
    for act in published:
        assert published_at[0] - SOON < act.at < published_at[1] + SOON


def test_a_rebuild_that_publishes_nothing_records_no_publish(built: Platform) -> None:
    before = len(told(built, "publish"))
    assert built.build(*TYPED).succeeded
    assert len(told(built, "publish")) == before


def test_a_publish_that_is_rolled_back_is_not_recorded(built: Platform) -> None:
    before = told(built, "publish")
    with (
        pytest.raises(ZeroDivisionError),
        transaction(built.warehouse.pool) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "insert into meta.versions (table_name, month, version, is_current, leaf, "
            "data_version, code_version, inputs, rows_read, rows, rows_quarantined, "
            "rows_superseded, seconds) values ('silver.orders', '2025-03-01', 1, true, 'x', 'x', "
            "'x', '{}', 0, 0, 0, 0, 0)"
        )
        cursor.execute("select count(*) from meta.acts where subject = 'silver.orders 2025-03'")
        assert cursor.fetchone() == (1,)
        _ = 1 / 0
    assert told(built, "publish") == before
    assert verdict(built).problems == []


def test_an_atomic_build_is_recorded_if_it_is_published(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build(*TYPED, atomic=True).succeeded
    assert "all or nothing" in told(platform, "build")
    assert told(platform, "publish") == [f"{table} 2025-01" for table in TYPED]
    assert verdict(platform).problems == []


def test_rollback_withdrawal_and_migration_are_recorded_with_the_reason(
    built: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=4))
    assert built.build(*TYPED).succeeded
    settings = built.warehouse.settings
    pool = connect_pool(settings.database_url.get_secret_value(), 1, "ticket 7")  # type: ignore[union-attr]
    rollback(pool, catalog().spec("silver.orders"), date(2025, 1, 1), 1)
    pool.dispose()
    (act,) = listed(built, action="rollback")
    assert (act.subject, act.why) == ("silver.orders 2025-01", "ticket 7")
    assert act.details["restores"] == 1
    built.withdraw("orders.csv")
    assert told(built, "withdraw") == ["erp/orders.csv"]
    assert "schema" in told(built, "migrate")
    seal(built.warehouse.pool, settings)
    assert verdict(built).problems == []


def test_the_reason_comes_from_the_command_line(
    built: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=4))
    assert built.build(*TYPED).succeeded
    settings = built.warehouse.settings
    monkeypatch.setenv("METALAYER_HOME", str(settings.home))
    monkeypatch.setenv("METALAYER_DATABASE_URL", settings.database_url.get_secret_value())  # type: ignore[union-attr]
    monkeypatch.setenv("METALAYER_WHY", "")
    words = ("rollback", "silver.orders", "2025-01", "--to", "1", "--why", "wrong prices")
    assert main(words) == 0
    capsys.readouterr()
    assert main(["audit", "--action", "rollback", "--json"]) == 0
    (act,) = json.loads(capsys.readouterr().out)
    assert act["why"] == "wrong prices"
    assert act["position"] is not None, "a command leaves its acts chained"
    assert main(["audit"]) == 0
    assert "wrong prices" in capsys.readouterr().out
    assert main(["audit", "verify"]) == 0
    head = capsys.readouterr().out.split()[-1]
    assert main(["audit", "verify", "--head", head]) == 0
    assert main(["audit", "verify", "--head", head.partition(":")[0] + ":abc"]) == 1
    assert main(["audit", "--since", "2999-01-01", "--json"]) == 0
    assert "verify" not in capsys.readouterr().err


def test_a_repair_is_recorded_when_it_is_taken_in(built: Platform) -> None:
    do(
        built,
        "insert into meta.deliveries (source, file, sha256, size, mtime_ns, status, "
        "fallback_month, shape, is_repair) values ('erp/orders', 'erp/orders_repair_1.csv', "
        "'x', 1, 1, 'loaded', '2025-01-01', 'x', true)",
    )
    assert told(built, "repair") == ["erp/orders_repair_1.csv"]


def test_others_record_through_one_function(built: Platform) -> None:
    settings = built.warehouse.settings.model_copy(update={"why": "asked by the customer"})
    record_now(settings, "export", "gold.fact_sales", {"format": "csv"})
    (act,) = listed(built, action="export")
    assert (act.why, act.details, act.os_user) == ("asked by the customer", {"format": "csv"}, ME)
    assert act.position is not None


# --- what nobody can do -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "update meta.acts set why = 'x'",
        "delete from meta.acts where act_id = 1",
        "truncate meta.acts",
        "update meta.act_seals set hash = 'x'",
        "delete from meta.act_seals",
        "truncate meta.act_seals",
        "delete from meta.act_head",
        "update meta.act_head set position = 1",
        "set session_replication_role = replica; delete from meta.acts",
    ],
)
def test_even_the_owner_changes_nothing_by_normal_statements(
    built: Platform, statement: str
) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match=r"append-only|only grows"):
        do(built, statement)
    assert verdict(built).problems == []


def test_who_and_when_cannot_be_made_up(built: Platform) -> None:
    do(
        built,
        "insert into meta.acts (at, role, os_user, action, subject) "
        "values ('2001-01-01', 'somebody', 'else', 'publish', 'x')",
    )
    act = listed(built)[-1]
    assert (act.role, act.os_user) == ("postgres", ME)
    assert act.at.year > 2001


def test_a_role_without_rights_may_record_but_not_write(built: Platform) -> None:
    do(built, "drop role if exists audited; create role audited")
    try:
        do(built, "grant usage on schema meta to audited")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            do(built, "set local role audited; select meta.record_act('x', 'y', '{}', '')")
        do(built, "grant execute on function meta.record_act to audited")
        with transaction(built.warehouse.pool) as connection, connection.cursor() as cursor:
            cursor.execute("set local role audited")
            record(cursor, "unmasked_read", "gold.dim_customer")
        assert listed(built)[-1].role == "postgres as audited"
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            do(
                built,
                "set local role audited; insert into meta.acts (action, subject) values ('x', 'y')",
            )
    finally:
        do(built, "drop owned by audited; drop role audited")


# --- what verify finds --------------------------------------------------------------------------

_MIDDLE = "(select min(act_id) + 2 from meta.acts)"
_LAST = "(select max(act_id) from meta.acts)"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (f"update meta.acts set why = 'x' where act_id = {_MIDDLE}", "is not what was chained"),
        (
            f"update meta.acts set at = at - interval '1 day' where act_id = {_MIDDLE}",
            "is not what was chained",
        ),
        (f"delete from meta.acts where act_id = {_MIDDLE}", "was deleted"),
        ("delete from meta.act_seals where position = 2", "lacks position 2"),
        (
            f"delete from meta.act_seals where act_id = {_MIDDLE}; "
            f"delete from meta.acts where act_id = {_MIDDLE}",
            "lacks position 3",
        ),
        (
            # Two acts change places in the chain.
            "update meta.act_seals set act_id = -1 where position = 2; "
            "update meta.act_seals set act_id = (select act_id from meta.act_seals "
            "where position = 3) + 1000000 where position = 2; "
            "update meta.act_seals set act_id = act_id - 1 where position = 3; "
            "update meta.act_seals set act_id = act_id - 1000000 where position = 2",
            "was changed, or put in another place",
        ),
        (
            f"delete from meta.act_seals where act_id = {_LAST}; "
            f"delete from meta.acts where act_id = {_LAST}",
            "was cut off",
        ),
        (
            "delete from meta.act_seals where position > 2; "
            "update meta.act_head set position = 2, "
            "hash = (select hash from meta.act_seals where position = 2)",
            "was taken out of the chain",
        ),
        ("delete from meta.act_head", "head of the chain was deleted"),
        ("update meta.act_head set hash = 'x'", "head of the chain is not its end"),
        ("drop trigger recorded on meta.versions", "trigger recorded of meta.versions is off"),
    ],
)
def test_what_was_changed_behind_the_guards_is_found(
    built: Platform, statement: str, found: str
) -> None:
    tamper(built, statement)
    assert found in problems(built, [])


def test_guards_that_are_off_are_found(built: Platform) -> None:
    do(built, "alter table meta.acts disable trigger append_only")
    assert "append_only of meta.acts is off" in problems(built, [])


def test_an_act_deleted_before_it_was_chained_is_found(built: Platform) -> None:
    do(built, "insert into meta.acts (action, subject) values ('export', 'x')")
    assert verdict(built).waiting == 1
    tamper(built, f"delete from meta.acts where act_id = {_LAST}")
    assert "was deleted before it was chained" in problems(built, [])


def test_a_publish_without_an_act_is_found(built: Platform) -> None:
    do(built, "alter table meta.versions disable trigger recorded")
    built.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=4))
    assert built.build(*TYPED).succeeded
    do(built, "alter table meta.versions enable always trigger recorded")
    assert "Version 2 of silver.orders 2025-01 was published" in problems(built, [])


def test_a_tail_cut_with_its_head_is_found_by_what_the_home_noted(built: Platform) -> None:
    cut = (
        "delete from meta.acts where act_id in (select act_id from meta.act_seals "
        "where position > 2); delete from meta.act_seals where position > 2; "
        "delete from meta.versions; update meta.act_head set position = 2, "
        "hash = (select hash from meta.act_seals where position = 2)"
    )
    tamper(built, cut)
    assert problems(built, []) == "", "nothing in the warehouse itself tells of it"
    assert "had been noted" in problems(built)


def test_a_chain_written_anew_is_found_by_what_the_home_noted(built: Platform) -> None:
    tamper(
        built,
        f"update meta.acts set os_user = 'other' where act_id = {_MIDDLE}; "
        "insert into meta.acts_unsealed select act_id from meta.acts; "
        "delete from meta.act_seals; update meta.act_head set position = 0, hash = ''",
    )
    elsewhere = built.warehouse.settings.model_copy(
        update={"home": built.warehouse.settings.home / "forger"}
    )
    assert seal(built.warehouse.pool, elsewhere) > 3
    assert problems(built, []) == "", "a superuser can do that"
    assert "written anew" in problems(built)


def test_builds_that_end_together_make_one_chain(built: Platform) -> None:
    settings = built.warehouse.settings

    def act(number: int) -> None:
        for n in range(20):
            with transaction(built.warehouse.pool) as connection, connection.cursor() as cursor:
                record(cursor, "export", f"{number}-{n}")
            seal(built.warehouse.pool, settings)

    before = verdict(built).chained
    threads = [threading.Thread(target=act, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seal(built.warehouse.pool, settings)
    done = verdict(built)
    assert (done.problems, done.chained, done.waiting) == ([], before + 80, 0)


def test_an_open_act_makes_no_other_wait_and_is_chained_later(built: Platform) -> None:
    pool, settings = built.warehouse.pool, built.warehouse.settings
    with transaction(pool) as connection, connection.cursor() as cursor:
        record(cursor, "export", "slow")
        with transaction(pool) as other, other.cursor() as quick:
            quick.execute("set local lock_timeout = '100ms'")
            record(quick, "export", "quick")
        assert seal(pool, settings) == 1
    assert seal(pool, settings) == 1
    assert verdict(built).problems == []
    assert [act.subject for act in sorted(listed(built), key=lambda a: a.position or 0)][-2:] == [
        "quick",
        "slow",
    ]


def test_a_home_that_cannot_be_written_undoes_nothing(built: Platform, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = built.warehouse.settings.model_copy(update={"home": tmp_path / "file" / "home"})
    do(built, "insert into meta.acts (action, subject) values ('export', 'x')")
    seal(built.warehouse.pool, nowhere)
    assert verdict(built).problems == []


def test_no_personal_value_is_in_it(platform: Platform) -> None:
    platform.land("crm/customers.csv", CUSTOMERS + customer(1, "2025-01-05"))
    assert platform.build("bronze.customers", "silver.customers").succeeded
    values = platform.ask("select first_name, last_name, email, phone from bronze.customers")
    said = json.dumps([[a.subject, a.details, a.why] for a in listed(platform)])
    assert values
    assert not [v for row in values for v in row if v and len(v) > 3 and v in said]


@pytest.mark.parametrize("text", ["soon", "2025-13-01", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    from metalayer.errors import UsageError

    with pytest.raises(UsageError, match="is no time"):
        parse_since(text)
