"""What a click on an asset shows after real builds, and that it never shows a person's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._serdes import serialize_value
from sqlalchemy import Engine

import metalayer.assets.tables
from metalayer.assets.headless import BuildOutcome
from metalayer.assets.keys import asset_key
from metalayer.assets.showing import MOST_MONTHS, by_month, column_schema
from metalayer.catalog import catalog
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.sampling import MASK, masked_columns
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status\n"
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
)
SNAPSHOT = "customer_id,customer_name,email,region\n"
#: Written into every place that a person can write into.
PERSONAL = ("Zebulon", "Quaresma", "zq@example.org", "2025550143", "Zwolle", "97531", "1984-02-29")
PASSWORD = "Tr0ub4dor-geheim"  # noqa: S105 - what a test looks for


def order(number: int, day: str, quantity: int = 2) -> str:
    return f"{number},7,P00001,{day},{quantity},5.00,{quantity * 5}.00,PAID\n"


def customer(number: int, updated: str, **other: str) -> str:
    values = {
        "first": "Zebulon", "last": "Quaresma", "mail": "zq@example.org", "phone": "2025550143",
        "city": "Zwolle", "state": "Zwolle", "zip": "97531", "dob": "1984-02-29",
        "created": "2025-01-01",
    } | other  # fmt: skip
    return f"{number},{','.join(values.values())},{updated}\n"


def materializations(platform: Platform, table: str) -> dict[str, dg.AssetMaterialization]:
    """Month -> the newest event that says it was materialized."""
    found = platform.instance.fetch_materializations(asset_key(table), limit=1000).records
    newest: dict[str, dg.AssetMaterialization] = {}
    for record in found:
        assert record.partition_key is not None
        assert record.asset_materialization is not None
        newest.setdefault(record.partition_key, record.asset_materialization)
    return newest


def facts(event: Any) -> dict[str, Any]:
    return {name: value.value for name, value in event.metadata.items()}


def table_of(event: Any, name: str) -> list[Mapping[str, Any]]:
    return [record.data for record in event.metadata[name].records]


def evaluations(platform: Platform, run_ids: Sequence[str]) -> dict[tuple[str, str], Any]:
    """(table, check) -> its last evaluation in these runs."""
    found = {}
    for run_id in run_ids:
        for entry in platform.instance.all_logs(run_id):
            event = entry.dagster_event
            if event is not None and event.event_type_value == "ASSET_CHECK_EVALUATION":
                said = event.asset_check_evaluation_data
                found[".".join(said.asset_key.path), said.check_name] = said
    return found


# --- months ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3600.0, -1.0], ids=["by the step", "as it lands"])
def test_each_month_carries_its_numbers(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(metalayer.assets.tables, "REPORT_AFTER_SECONDS", seconds)
    rows = order(1, "2025-01-05") + order(2, "2025-01-06", quantity=0) + order(3, "2025-02-07")
    platform.land("erp/orders.csv", ORDERS + rows)
    assert platform.build("bronze.orders", "silver.orders").succeeded
    events = [
        record.asset_materialization
        for record in platform.instance.fetch_materializations(
            asset_key("silver.orders"), limit=10
        ).records
    ]
    # With its numbers in each event, whether the step reports it or the month itself as it lands.
    assert len(events) == (2 if seconds > 0 else 4)
    for event in events:
        assert event is not None
        found = facts(event)
        expected = {"2025-01": (2, 1, 1), "2025-02": (1, 1, 0)}[event.partition or ""]
        numbers = ("rows_read", "rows_published", "rows_quarantined")
        assert tuple(found[name] for name in numbers) == expected
        assert found["dagster/partition_row_count"] == found["rows_published"]
        version = platform.one(
            "select data_version from meta.versions where table_name = 'silver.orders' "
            "and to_char(month, 'YYYY-MM') = %s and is_current",
            event.partition,
        )
        assert found["data_version"] == version


def test_one_month_has_its_own_data_version_in_dagster(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    assert platform.build("bronze.orders").succeeded
    event = materializations(platform, "bronze.orders")["2025-01"]
    assert event.tags is not None
    assert event.tags["dagster/data_version"] == facts(event)["data_version"]


def test_the_newest_month_shows_some_rows(platform: Platform) -> None:
    rows = "".join(order(n, f"2025-0{m}-05") for m in (1, 2) for n in range(m * 10, m * 10 + 8))
    platform.land("erp/orders.csv", ORDERS + rows)
    assert platform.build("bronze.orders", "silver.orders").succeeded
    months = materializations(platform, "silver.orders")
    sample = table_of(months["2025-02"], "sample")
    assert len(sample) == 5
    assert set(sample[0]) == {c.name for c in catalog().specs["silver.orders"].stored}
    assert sample[0]["order_date"] == "2025-02-05"
    assert sample[0]["total_amount"] == "10.00"
    assert "sample" not in months["2025-01"].metadata


def test_a_sample_masks_what_is_personal_or_typed_freely(platform: Platform) -> None:
    platform.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-05"))
    platform.land(
        "crm/crm_customers_2025-01.csv", SNAPSHOT + "7,Zebulon Quaresma,zq@example.org,Zwolle\n"
    )
    assert platform.build().succeeded
    (typed,) = table_of(materializations(platform, "silver.customers")["2025-01"], "sample")
    assert typed["first_name"] == typed["state"] == MASK
    assert typed["updated_at"] == "2025-01-05 00:00:00"
    versions = table_of(materializations(platform, "gold.dim_customer")["2025-01"], "sample")
    version = max(versions, key=lambda v: str(v["valid_from"]))
    assert {version[n] for n in ("customer_name", "email", "dob", "state")} == {MASK}
    # Derived columns take the whole table, and are left out.
    assert "valid_to" not in version
    (landed,) = table_of(materializations(platform, "bronze.customers")["2025-01"], "sample")
    # As delivered, any column may hold a shifted name.
    assert landed["customer_id"] == MASK
    assert landed["_line"] == "2"


def test_what_is_masked_follows_from_the_contracts() -> None:
    for spec in catalog().specs.values():
        masked = masked_columns(spec)
        assert {c.name for c in spec.columns if c.pii} <= masked
        assert ("_extra" in masked) == (spec.layer == "bronze")
    assert masked_columns(catalog().specs["bronze.orders"]) == {"_extra"}
    assert "region" in masked_columns(catalog().specs["gold.customer_360"])


# --- checks ------------------------------------------------------------------------------------


def test_checks_tell_of_each_month(platform: Platform) -> None:
    good = "".join(order(n, "2025-01-05") for n in range(60))
    bad = "".join(order(100 + n, "2025-02-05", quantity=0) for n in range(60))
    platform.land("erp/orders.csv", ORDERS + good + bad + order(200, "2025-02-06"))
    outcome = platform.build("bronze.orders", "silver.orders")
    found = evaluations(platform, outcome.runs)
    audit = found["silver.orders", "contract_satisfied"]
    assert not audit.passed
    # What failed comes first.
    assert [(m["month"], m["passed"]) for m in table_of(audit, "by_month")] == [
        ("2025-02", False),
        ("2025-01", True),
    ]
    failed, passed = table_of(audit, "by_month")
    assert failed["problem"].startswith("60 of 61 rows break the contract (limit 10%)")
    assert (passed["rows"], passed["problem"]) == (60, "")
    assert "metalayer rejects silver.orders" in facts(audit)["what_to_do_next"]
    conserved = found["bronze.orders", "rows_conserved"]
    assert conserved.passed
    assert "what_to_do_next" not in conserved.metadata
    assert [
        (m["month"], m["passed"], m["came_in"], m["published"])
        for m in table_of(conserved, "by_month")
    ] == [("2025-02", True, 61, 61), ("2025-01", True, 60, 60)]


def test_a_key_in_two_months_is_shown_with_both(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build("bronze.orders", "silver.orders").succeeded
    with_two = "update silver.orders set order_id = 1 where order_id = 2"
    platform.ask(f"{with_two} returning 1")
    platform.ask("update meta.versions set is_checked = false returning 1")
    outcome = platform.build("bronze.orders", "silver.orders")
    unique = evaluations(platform, outcome.runs)["silver.orders", "keys_unique"]
    assert not unique.passed
    assert [(m["month"], m["passed"], m["keys"]) for m in table_of(unique, "by_month")] == [
        ("2025-01", False, 1),
        ("2025-02", False, 1),
    ]
    assert "--force" in facts(unique)["what_to_do_next"]


def test_sums_that_differ_are_shown_with_their_month(platform: Platform) -> None:
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    assert platform.build().succeeded
    platform.ask("update gold.fact_orders set total_amount = 11 where order_id = 2 returning 1")
    platform.ask("update meta.versions set is_checked = false returning 1")
    outcome = platform.build()
    found = evaluations(platform, outcome.runs)
    money = found["gold.fact_orders", "money_conserved"]
    assert not money.passed
    shown = table_of(money, "by_month")
    assert [(m["month"], m["passed"]) for m in shown] == [("2025-02", False), ("2025-01", True)]
    assert shown[0]["gold.fact_orders.total_amount"] == "11.00"
    assert shown[0]["silver.orders.total_amount"] == "10.00"


def test_the_months_of_a_check_are_bounded() -> None:
    months = {
        date(2000 + n // 12, n % 12 + 1, 1): {"passed": n != 3, "rows": n} for n in range(300)
    }
    found = by_month(months)
    shown = [record.data for record in found["by_month"].records]
    assert len(shown) == MOST_MONTHS
    assert shown[0] == {"month": "2000-04", "passed": False, "rows": 3}
    assert shown[1]["month"] == "2024-12"
    assert found["months_looked_at"] == 300
    assert found["months_that_failed"] == 1
    assert found["months_not_listed"] == 300 - MOST_MONTHS


# --- definitions -------------------------------------------------------------------------------


@pytest.mark.parametrize("table", sorted(catalog().specs))
def test_a_definition_shows_the_select_as_it_runs_and_where_it_is(table: str) -> None:
    from metalayer.definitions import defs

    (shown,) = [s for s in defs.resolve_all_asset_specs() if s.key == asset_key(table)]
    links = shown.metadata["dagster/code_references"].code_references
    assert all(Path(link.file_path).is_file() for link in links)
    if table not in catalog().selects:
        assert [link.label for link in links] == ["contract"]
        return
    assert [link.label for link in links] == ["SELECT", "contract"]
    text = shown.metadata["select_as_run"].value
    assert ":start" not in text
    assert ":end" not in text
    assert "try_cast(" not in text.lower().replace("meta.try_", "")
    assert shown.metadata["due"] == str(catalog().specs[table].due)


def test_columns_are_shown_with_their_rules() -> None:
    schema = column_schema(catalog().specs["silver.orders"])
    columns = {c.name: c for c in schema.columns}
    assert columns["order_id"].constraints.unique
    assert not columns["order_id"].constraints.nullable
    assert columns["product_code"].constraints.nullable
    assert columns["quantity"].constraints.other == ["must be > 0", "must be <= 1000000000"]
    assert columns["status"].constraints.other == [
        "must be one of (PENDING, SHIPPED, COMPLETED, CANCELLED)"
    ]
    assert columns["customer_id"].constraints.other == ["references silver.customers.customer_id"]
    assert columns["order_date"].constraints.other == ["its month is the partition"]
    assert columns["unit_price"].type == "numeric(18,4)"
    assert schema.constraints.other == ["total_amount must be quantity times unit_price, to a cent"]
    changes = column_schema(catalog().specs["silver.customers"])
    assert changes.constraints.other == ["(customer_id, updated_at) is unique"]
    tagged = {c.name: dict(c.tags) for c in changes.columns if c.tags}
    assert tagged["email"] == {"pii": "email", "sensitivity": "confidential"}
    assert tagged["dob"] == {
        "pii": "birth_date",
        "sensitivity": "restricted",
        "encrypted": "date",
    }
    assert tagged["state"] == {"free_text": ""}


# --- what nobody may see -----------------------------------------------------------------------


def test_no_event_shows_a_person_or_a_secret(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server of the tests asks for no password, so any will do.
    settings = platform.warehouse.settings
    url = _with_password(platform.warehouse.pool)
    pool = connect_pool(url, 4)
    platform.warehouse = type(platform.warehouse)(pool, settings)
    good = "".join(customer(n, "2025-01-05") for n in range(60))
    # In February most rows break: a bad day, a phone in its place, a row shifted by one column.
    bad = "".join(
        customer(100 + n, "2025-02-05", dob="Zebulon")
        + customer(200 + n, "2025-02-05", created="zq@example.org")
        + f"Quaresma,{customer(300 + n, '2025-02-05').replace(',2025-01-01', '', 1)}"
        for n in range(20)
    )
    platform.land("crm/customers.csv", CUSTOMERS + good + bad)
    names = "".join(f"{n},Zebulon Quaresma,zq@example.org,Zwolle\n" for n in range(60))
    platform.land("crm/crm_customers_2025-01.csv", SNAPSHOT + names)
    # No number where one belongs, but a person; most rows, so that the month fails.
    wrong = "".join(f"zq@example.org,Zebulon Quaresma,2025550143,Zwolle{n}\n" for n in range(60))
    platform.land("crm/crm_customers_2025-02.csv", SNAPSHOT + wrong)
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05"))
    outcome = platform.build()
    assert not outcome.succeeded
    failed = {(r.table, f"{r.month:%Y-%m}") for r in outcome.months if r.outcome == "failed"}
    assert failed == {("silver.customers", "2025-02"), ("silver.crm_customers", "2025-02")}
    again = platform.build(force=True)
    texts = said(platform, outcome, again)
    assert any("rows break the contract" in text for text in texts)
    assert any('"sample"' in text for text in texts)
    assert sum(MASK in text for text in texts) > 10
    assert_nobody_is_in(texts)
    pool.dispose()


def test_what_postgresql_says_of_a_row_is_not_shown(platform: Platform) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        # Somebody's own index, which the rows break when they are published.
        cursor.execute("create unique index on silver.customers_stored (email, updated_at)")
    rows = customer(1, "2025-01-05") + customer(2, "2025-01-05")
    platform.land("crm/customers.csv", CUSTOMERS + rows)
    outcome = platform.build("bronze.customers", "silver.customers")
    assert not outcome.succeeded
    texts = said(platform, outcome)
    assert any("could not create unique index" in text for text in texts)
    assert_nobody_is_in(texts)


def said(platform: Platform, *outcomes: BuildOutcome) -> list[str]:
    """Everything that Dagster has stored of the builds, and that they have told."""
    runs = [run_id for outcome in outcomes for run_id in outcome.runs]
    texts = [serialize_value(e) for run_id in runs for e in platform.instance.all_logs(run_id)]
    texts += [serialize_value(run) for run in platform.instance.get_runs()]
    for outcome in outcomes:
        texts += [*outcome.errors, *outcome.warnings, *outcome.failed_checks]
        texts += [str(result.problem) for result in outcome.months]
    return texts


def assert_nobody_is_in(texts: list[str]) -> None:
    for value in (*PERSONAL, PASSWORD):
        hits = [text for text in texts if value.lower() in text.lower()]
        assert not hits, f"{value}: {hits[0][:2000]}"


def _with_password(pool: Engine) -> str:
    url = pool.url.set(password=PASSWORD)
    return url.render_as_string(hide_password=False)
