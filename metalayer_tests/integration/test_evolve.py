"""Stories of columns that come with a file, of a source whose contract lets its table evolve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from metalayer.catalog import catalog
from metalayer.contracts.contract import OnNewColumn, TableSpec
from metalayer.errors import WarehouseError
from metalayer.jobs import table_job
from metalayer.landing.header import read_header
from metalayer.landing.ledger import register
from metalayer.reading import read_months
from metalayer.warehouse import altering
from metalayer.warehouse.build import MonthResult, build_months
from metalayer.warehouse.ddl import align_leaf
from metalayer.warehouse.evolve import (
    MOST_COLUMNS,
    column_name,
    columns_of,
    evolve,
    evolved_columns,
    with_evolved,
)
from metalayer.warehouse.migrate import plan_migration, prepare
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.stage import create_stage, finish_stage
from metalayer_tests.integration.test_build import CUSTOMERS, customer
from metalayer_tests.story import Platform

TABLE = "bronze.customers"
JANUARY, FEBRUARY = date(2025, 1, 1), date(2025, 2, 1)


def table(name: str, rule: OnNewColumn = "evolve") -> TableSpec:
    """A table of the customers' source, which says what a new column does."""
    spec = catalog().spec(name)
    assert spec.source is not None
    return replace(spec, source=replace(spec.source, on_new_column=rule))


def land(platform: Platform, name: str, *rows: str, **extra: str) -> None:
    """Land customers, each with the same further columns."""
    header = CUSTOMERS.rstrip() + "".join(f',"{column}"' for column in extra)
    lines = [row.rstrip() + "".join(f",{value}" for value in extra.values()) for row in rows]
    platform.land(f"crm/{name}.csv", "\n".join([header, *lines, ""]))


def build(
    platform: Platform, rule: OnNewColumn = "evolve", *, force: bool = False
) -> list[MonthResult]:
    """Register, and build the bronze table by a contract that says `rule`."""
    warehouse = platform.warehouse
    sources = {**catalog().sources, "crm/customers": table("silver.customers", rule)}
    register(warehouse.pool, warehouse.settings, sources, today=platform.today, still_seconds=0.0)
    job = replace(table_job(TABLE, warehouse.settings), spec=table(TABLE, rule))
    months = [m for (m,) in platform.ask("select distinct month from meta.delivery_months")]
    results = list(build_months(warehouse.pool, job, months, workers=2, force=force))
    assert all(result.outcome != "failed" for result in results)
    return results


def shown(platform: Platform, *columns: str) -> list[tuple[Any, ...]]:
    quoted = ", ".join(f'"{column}"' for column in columns)
    return platform.ask(f"select customer_id, {quoted} from bronze.customers order by 1::text")


@contextmanager
def cursor_of(platform: Platform) -> Iterator[Any]:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        yield cursor


def test_a_new_column_appears_with_history_empty_and_untouched(platform: Platform) -> None:
    land(platform, "customers_a", customer(1, "2025-01-05"))
    build(platform)
    leaf = platform.ask("select leaf from meta.versions where table_name = %s", TABLE)
    land(platform, "customers_b", customer(2, "2025-02-05"), **{"Loyalty Tier": "gold"})
    assert {r.month: r.outcome for r in build(platform)} == {
        JANUARY: "current",
        FEBRUARY: "published",
    }
    assert shown(platform, "loyalty_tier", "_extra") == [("1", None, None), ("2", "gold", None)]
    assert leaf[0] in platform.ask("select leaf from meta.versions where table_name = %s", TABLE)
    assert platform.ask("select table_name, column_name, file from meta.evolved_columns") == [
        (TABLE, "loyalty_tier", "crm/customers_b.csv")
    ]
    with cursor_of(platform) as cursor:
        assert evolved_columns(cursor, table(TABLE)) == ("loyalty_tier",)
        # No contract declares it, and still it is none to be dropped.
        specs = list(catalog().specs.values())
        assert plan_migration(cursor, specs, catalog().selects).steps == ()


def test_each_file_may_write_the_name_in_its_own_way(platform: Platform) -> None:
    land(platform, "customers_a", customer(1, "2025-01-05"), **{"loyalty-tier": "gold"})
    land(platform, "customers_b", customer(2, "2025-01-06"), **{"LOYALTY TIER": "blue"})
    build(platform)
    assert shown(platform, "loyalty_tier", "_extra") == [("1", "gold", None), ("2", "blue", None)]


def test_what_cannot_be_a_column_stays_in_extra(platform: Platform) -> None:
    extra = {
        "Tier": "a", "tier": "b", "_secret": "c", "month": "d", "ctid": "e",
        "x" * 64: "f", "$.path['x']": "g", 'it"s': "h", "50% off": "i",
    }  # fmt: skip
    header = CUSTOMERS.rstrip() + "".join(',"' + name.replace('"', '""') + '"' for name in extra)
    row = customer(1, "2025-01-05").rstrip() + "," + ",".join(extra.values())
    platform.land("crm/customers.csv", f"{header}\n{row}\n")
    build(platform)
    assert shown(platform, "tier", "$.path['x']", 'it""s', "50%_off") == [("1", "a", "g", "h", "i")]
    kept = platform.one("select _extra from bronze.customers")
    assert kept == {"tier": "b", "_secret": "c", "month": "d", "ctid": "e", "x" * 64: "f"}


def test_past_the_most_columns_the_rest_stays_in_extra(platform: Platform) -> None:
    extra = {f"c{number:03}": str(number) for number in range(MOST_COLUMNS + 2)}
    land(platform, "customers", customer(1, "2025-01-05"), **extra)
    build(platform)
    assert platform.one("select count(*) from meta.evolved_columns") == MOST_COLUMNS
    assert platform.one("select _extra from bronze.customers") == {"c200": "200", "c201": "201"}


def test_a_month_that_is_built_again_fills_the_column(platform: Platform) -> None:
    land(platform, "customers", customer(1, "2025-01-05"), tier="gold", points="7")
    build(platform, "rescue")
    assert platform.one("select _extra from bronze.customers") == {"tier": "gold", "points": "7"}
    assert platform.one("select count(*) from meta.evolved_columns") == 0
    build(platform, force=True)
    assert shown(platform, "tier", "points", "_extra") == [("1", "gold", "7", None)]
    # And back: the columns stay, the values are in `_extra` again.
    build(platform, "rescue", force=True)
    assert shown(platform, "tier", "_extra") == [("1", None, {"tier": "gold", "points": "7"})]


def test_the_columns_are_part_of_the_contents(platform: Platform) -> None:
    land(platform, "customers", customer(1, "2025-01-05"), tier="gold")
    build(platform)
    before = platform.one("select data_version from meta.versions where is_current")
    land(platform, "customers", customer(1, "2025-01-05"), tier="blue")
    (result,) = build(platform)
    assert (result.outcome, result.data_version == before) == ("published", False)
    assert shown(platform, "tier") == [("1", "blue")]


def test_a_file_that_is_taken_out_leaves_the_column_empty(platform: Platform) -> None:
    land(platform, "customers_a", customer(1, "2025-01-05"))
    land(platform, "customers_b", customer(2, "2025-01-06"), tier="gold")
    build(platform)
    platform.withdraw("crm/customers_b.csv")
    build(platform)
    assert shown(platform, "tier") == [("1", None)]


def test_a_contract_that_declares_the_column_takes_it_over(platform: Platform) -> None:
    land(platform, "customers", customer(1, "2025-01-05"), tier="gold")
    build(platform)
    evolved = with_evolved(table(TABLE), ("tier",))
    specs = [evolved if s.full_name == TABLE else s for s in catalog().specs.values()]
    with transaction(platform.warehouse.pool) as connection:
        done = prepare(connection, specs, catalog().selects)
    # What was masked as unknown is read as the contract says, in its place among the columns.
    assert {step.kind for step in done.steps} == {"note", "view"}
    assert platform.one("select count(*) from meta.evolved_columns") == 0
    assert shown(platform, "tier") == [("1", "gold")]
    with cursor_of(platform) as cursor:
        assert plan_migration(cursor, specs, catalog().selects).steps == ()


def test_a_rejected_row_is_shown_with_its_evolved_columns(platform: Platform) -> None:
    bad = customer(1, "2025-01-05").replace("1990-01-01", "1990-02-30")
    land(platform, "customers", bad, customer(2, "2025-01-06"), tier="gold")
    build(platform)
    assert platform.build("silver.customers").succeeded
    ((raw,),) = platform.ask("select raw from meta.quarantine")
    assert json.loads(raw)["tier"] == "gold"
    assert platform.balances()


def test_frames_have_the_columns(platform: Platform) -> None:
    land(platform, "customers", customer(1, "2025-01-05"), tier="gold", **{"50% off": "yes"})
    build(platform)
    frame = read_months(platform.warehouse.pool, TABLE)
    assert (list(frame["tier"]), list(frame["50%_off"])) == (["gold"], ["yes"])
    assert list(frame["customer_id"]) == ["1"]


def test_a_leaf_staged_before_the_column_came_is_attached(platform: Platform) -> None:
    land(platform, "customers", customer(1, "2025-01-05"))
    build(platform)
    with cursor_of(platform) as cursor:
        stage = create_stage(cursor, table(TABLE), [FEBRUARY])
        finish_stage(cursor, stage)
    land(platform, "customers_b", customer(2, "2025-01-06"), tier="gold")
    build(platform)
    with cursor_of(platform) as cursor:
        align_leaf(cursor, table(TABLE), stage.leaves[FEBRUARY])
        cursor.execute(
            f"alter table bronze.customers_stored attach partition months.{stage.leaves[FEBRUARY]} "
            "for values from ('2025-02-01') to ('2025-03-01')"
        )
    assert shown(platform, "tier") == [("1", None), ("2", "gold")]


def test_readers_who_hold_on_are_named_and_the_month_is_left(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altering, "PATIENCE_SECONDS", 1.0)
    land(platform, "customers", customer(1, "2025-01-05"))
    build(platform)
    land(platform, "customers", customer(1, "2025-01-06"), tier="gold")
    with cursor_of(platform) as report:
        report.execute("select count(*) from bronze.customers")
        refused = r"bronze.customers cannot be given the new column tier: .* in use by 'metalayer'"
        with pytest.raises(WarehouseError, match=refused):
            build(platform)
        assert platform.one("select customer_id from bronze.customers") == "1"
    build(platform)
    assert shown(platform, "tier") == [("1", "gold")]


def test_only_a_source_that_may_evolve_does(platform: Platform) -> None:
    land(platform, "customers", customer(1, "2025-01-05"), tier="gold")
    build(platform, "rescue")
    with transaction(platform.warehouse.pool) as connection:
        for spec in (table(TABLE, "rescue"), table("silver.customers")):
            assert evolve(connection, spec) is spec
    assert platform.one("select count(*) from meta.evolved_columns") == 0


def test_the_same_columns_give_the_same_table() -> None:
    spec = table(TABLE)
    assert with_evolved(spec, ("a", "b")) is with_evolved(spec, ("a", "b"))
    assert with_evolved(spec, ()) is spec


@pytest.mark.parametrize("header", ["Order Date", "ORDER-DATE", "order  date", "Order\tDate"])
def test_names_follow_the_rule_that_matches_headers(header: str) -> None:
    assert column_name(header) == "order_date"
    assert columns_of([header], ["month"]) == {"order_date": header}
    matched = read_header("x.csv", [f'"{header}"'], ["order_date"], [])
    assert matched.position == {"order_date": 1}
