"""Stories of files that change their columns, shrink, or bring too much that cannot be used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metalayer.assets.headless import BuildOutcome
from metalayer.catalog import catalog
from metalayer.cli.build import _print_registration
from metalayer.cli.running import Build
from metalayer.landing.ledger import Delivery, Registration, register
from metalayer_tests.story import Platform

ORDERS = "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"
SNAPSHOT = "customer_id,customer_name,email,region"
REGIONS = ("North", "South", "East", "West", "Central", "Midwest", "Coast", "Alps")


def order(number: int, day: str = "2025-01-05") -> str:
    return f"{number},7,P00001,{day},2,5.00,10.00,PAID"


def lines(header: str, *rows: str) -> str:
    return "\n".join((header, *rows)) + "\n"


def members(count: int, header: str = SNAPSHOT, more: str = "") -> str:
    rows = (f"{n},Ann,a@example.org,{REGIONS[n % len(REGIONS)]}{more}" for n in range(count))
    return lines(header, *rows)


def registered(
    platform: Platform, of: str, facts: dict[str, Any] | None = None, **source: Any
) -> Registration:
    """Register while the contract of a source says something else."""
    spec = catalog().sources[of]
    assert spec.source is not None
    changed = dataclasses.replace(
        spec, source=dataclasses.replace(spec.source, **source), **(facts or {})
    )
    return register(
        platform.warehouse.pool,
        platform.warehouse.settings,
        {**catalog().sources, of: changed},
        today=platform.today,
        still_seconds=0.0,
    )


def only(registration: Registration) -> Delivery:
    (delivery,) = registration.deliveries
    return delivery


# --- columns -----------------------------------------------------------------------------------


def test_a_new_column_is_said_once(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", lines(ORDERS, order(1)))
    assert only(platform.register()).drift == ()
    platform.land("erp/orders_2.csv", lines(f"{ORDERS},Loyalty Tier", order(2) + ",gold"))
    delivery = only(platform.register())
    assert delivery.extra_columns == ("Loyalty Tier",)
    assert delivery.drift == ("new column Loyalty Tier is kept in _extra",)
    # However it is written: the delivery before had it.
    platform.land("erp/orders_3.csv", lines(f"{ORDERS},loyalty_tier", order(3) + ",gold"))
    assert only(platform.register()).drift == ()
    platform.land("erp/orders_4.csv", lines(ORDERS, order(4)))
    assert only(platform.register()).drift == (
        "column loyalty_tier has vanished: the delivery before had it",
    )
    assert platform.ask(
        "select drift from meta.ledger where drift <> '{}' order by delivery_id"
    ) == [
        (["new column Loyalty Tier is kept in _extra"],),
        (["column loyalty_tier has vanished: the delivery before had it"],),
    ]


def test_drift_is_a_warning_of_the_build(platform: Platform) -> None:
    platform.land("erp/orders.csv", lines(f"{ORDERS},tier", order(1) + ",gold"))
    done = Build(platform.register(), BuildOutcome(), 0.0)
    assert done.warnings == ["erp/orders.csv: new column tier is kept in _extra"]
    (told,) = done.as_json()["deliveries"]
    assert told["drift"] == ("new column tier is kept in _extra",)


def test_a_vanished_column_and_its_likely_new_name_are_said(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", members(40))
    platform.land(
        "crm/crm_customers_2025-02.csv",
        members(40, "customer_id,customer_name,email,Sales_Region,note", ",x"),
    )
    first, second = platform.register().deliveries
    assert first.drift == ()
    assert second.missing_columns == ("region",)
    assert second.drift == (
        "new column Sales_Region is kept in _extra",
        "new column note is kept in _extra",
        "column region has vanished: the delivery before had it",
        "Sales_Region is likely the new name of region "
        "(names 67% alike, 100% of its values known from there)",
    )
    assert not any(region in sentence for sentence in second.drift for region in REGIONS)
    # That is how things are from now on.
    platform.land(
        "crm/crm_customers_2025-03.csv",
        members(40, "customer_id,customer_name,email,Sales_Region,note", ",x"),
    )
    assert only(platform.register()).drift == ()


@pytest.mark.parametrize(
    ("name", "value", "likely"),
    [
        ("area", "known", "names 40% alike, 100% of its values known from there"),
        ("regions", "other", "names 92% alike, 0% of its values known from there"),
        ("sales_region", "other", None),
        ("comment", "other", None),
    ],
)
def test_a_rename_is_told_by_name_or_values(
    platform: Platform, name: str, value: str, likely: str | None
) -> None:
    known, other = members(40), members(40, f"customer_id,customer_name,email,{name}")
    if value == "other":
        for number, region in enumerate(REGIONS):
            other = other.replace(f",{region}\n", f",text {number}\n")
    platform.land("crm/crm_customers_2025-01.csv", known)
    platform.land("crm/crm_customers_2025-02.csv", other)
    said = platform.register().deliveries[1].drift
    expected = f"{name} is likely the new name of region ({likely})"
    assert [s for s in said if "likely" in s] == ([expected] if likely else [])


def test_a_strange_name_is_compared_like_any_other(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", members(40))
    header = 'customer_id,customer_name,email,"~a/b.""$[0]\'c"'
    platform.land("crm/crm_customers_2025-02.csv", members(40, header))
    said = platform.register().deliveries[1].drift
    assert said[-1].startswith("~a/b.\"$[0]'c is likely the new name of region")
    assert said[-1].endswith("100% of its values known from there)")


def test_a_missing_required_column_names_its_likely_new_name(platform: Platform) -> None:
    renamed = ORDERS.replace("product_code", "article").replace("total_amount", "amount_total")
    codes = [f"{n},7,P0000{n % 9},2025-01-05,2,5.00,{n}.00,PAID" for n in range(1, 60)]
    # Before anything of the source is known there is only the name.
    platform.land(
        "erp/orders_1.csv", lines(renamed.replace("amount_total", "total_amounts"), *codes)
    )
    reason = str(only(platform.register()).reason)
    assert "orders_1.csv has no column total_amount; its header is: order_id" in reason
    assert "total_amounts is likely the new name of total_amount (names 96% alike)" in reason
    assert reason.endswith("Rename it in the export, or rename the column in the contract.")
    platform.land("erp/orders_2.csv", lines(ORDERS, *codes))
    assert only(platform.register()).status == "loaded"
    platform.land(
        "erp/orders_3.csv", lines(renamed.replace(",", ";"), *codes[:9]).replace(",", ";")
    )
    reason = str(only(platform.register()).reason)
    assert "has no column total_amount" in reason
    assert (
        "amount_total is likely the new name of total_amount "
        "(names 50% alike, 100% of its values known from there)"
    ) in reason


def test_a_missing_column_that_nothing_resembles_is_only_missing(platform: Platform) -> None:
    platform.land("erp/orders.csv", lines(ORDERS.replace("total_amount", "zzz"), order(1)))
    reason = str(only(platform.register()).reason)
    assert "likely" not in reason
    assert reason.endswith("Export it again with every required column.")


def test_freeze_refuses_a_file_with_new_columns(platform: Platform) -> None:
    platform.land("erp/orders_1.csv", lines(ORDERS, order(1)))
    frozen = registered(platform, "erp/orders", on_new_column="freeze")
    assert only(frozen).status == "loaded"
    platform.land("erp/orders_2.csv", lines(f"{ORDERS},tier,Cost Centre", order(2) + ",gold,7"))
    refused = only(registered(platform, "erp/orders", on_new_column="freeze"))
    assert refused.status == "rejected"
    assert str(refused.reason).startswith(
        "it has columns that its contract does not know, and takes none: tier, Cost Centre. "
        "Declare them in contracts/silver/orders.py"
    )
    assert registered(platform, "erp/orders", on_new_column="freeze").deliveries == []
    # What the contract says now gives it another chance; its entry stays one.
    assert only(platform.register()).status == "loaded"
    assert [e["status"] for e in platform.ledger()] == ["loaded", "loaded"]
    assert platform.balances()


def test_evolve_says_which_table_gets_the_column(platform: Platform) -> None:
    header = f"{ORDERS},Loyalty Tier,month"
    platform.land("erp/orders.csv", lines(header, order(1) + ",gold,1"))
    delivery = only(registered(platform, "erp/orders", on_new_column="evolve"))
    assert delivery.drift == (
        "new column loyalty_tier was added to bronze.orders",
        # The table has a column of that name, which is MetaLayer's own.
        "new column month is kept in _extra",
    )


def test_what_marks_a_repair_is_no_drift(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", members(10))
    platform.register()
    repair = members(1, f"{SNAPSHOT},_repairs", ",0123456789abcdef:2")
    platform.land("crm/crm_customers_repair_2025-02.csv", repair)
    # Allowed although columns are frozen, and although one row is much less than ten.
    delivery = only(registered(platform, "crm/crm_customers", on_new_column="freeze"))
    assert (delivery.status, delivery.extra_columns, delivery.drift) == ("loaded", (), ())
    assert platform.ask("select is_repair from meta.deliveries order by delivery_id") == [
        (False,), (True,)
    ]  # fmt: skip


# --- snapshots that shrink ---------------------------------------------------------------------


def test_a_snapshot_that_shrinks_too_much_is_refused(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", members(10))
    assert platform.build("bronze.crm_customers", "silver.crm_customers").succeeded
    platform.land("crm/crm_customers_2025-02.csv", members(4))
    refused = only(platform.register())
    assert (refused.status, refused.reason) == (
        "rejected",
        "crm/crm_customers_2025-02.csv has 4 rows, and the snapshot before it, "
        "crm/crm_customers_2025-01.csv, has 10: more than 50% are missing (max_shrink). If that is "
        "right, raise max_shrink in contracts/silver/crm_customers.py, or take the one before out "
        "with `metalayer land --withdraw crm/crm_customers_2025-01.csv`",
    )
    assert platform.build("bronze.crm_customers", "silver.crm_customers").months == []
    assert platform.one("select count(*) from silver.crm_customers") == 10
    # Half is the limit, not beyond it.
    platform.land("crm/crm_customers_2025-02.csv", members(5))
    assert only(platform.register()).status == "loaded"
    assert platform.balances()


def test_the_snapshot_before_is_told_by_month(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-03.csv", members(40))
    platform.land("crm/crm_customers_2025-01.csv", members(4))
    # January landed late: March does not come before it.
    assert [d.status for d in platform.register().deliveries] == ["loaded", "loaded"]
    platform.land("crm/crm_customers_2025-02.csv", members(3))
    assert only(platform.register()).status == "loaded"
    platform.land("crm/crm_customers_2025-04.csv", members(19))
    assert "2025-03.csv, has 40" in str(only(platform.register()).reason)


def test_an_earlier_version_of_a_snapshot_counts_as_before(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", members(10))
    platform.register()
    platform.land("crm/crm_customers_2025-01.csv", SNAPSHOT + "\n")
    empty = only(registered(platform, "crm/crm_customers", max_shrink=1))
    assert "has no rows, and the snapshot before it" in str(empty.reason)
    platform.land("crm/crm_customers_2025-01.csv", members(1))
    refused = only(platform.register())
    assert "has 1 rows, and its earlier version has 10" in str(refused.reason)
    assert str(refused.reason).endswith("and land this one again")
    # The contract says that this may be; then it is judged again as it is.
    assert only(registered(platform, "crm/crm_customers", max_shrink=1)).status == "loaded"
    statuses = [e["status"] for e in platform.ledger()]
    assert statuses == ["superseded", "rejected", "loaded"]


def test_the_first_snapshot_may_be_empty_and_a_delta_may_shrink(platform: Platform) -> None:
    platform.land("crm/crm_customers_2025-01.csv", SNAPSHOT + "\n")
    platform.land("erp/orders_1.csv", lines(ORDERS, *map(order, range(30))))
    platform.land("erp/orders_2.csv", lines(ORDERS, order(1)))
    assert {d.status for d in platform.register().deliveries} == {"loaded"}


# --- rows that cannot be used ------------------------------------------------------------------


def test_a_file_past_max_rejects_is_refused_with_ten_examples(platform: Platform) -> None:
    bad = [order(n, f"day {n}") for n in range(12)]
    platform.land("erp/orders.csv", lines(ORDERS, *map(order, range(100, 400)), *bad, "1,2"))
    refused = only(registered(platform, "erp/orders", {"max_rejects": 12}))
    first, *examples = str(refused.reason).splitlines()
    assert first == (
        "13 of 313 rows cannot be used (limit 12 rows): order_date month cannot be told: 12 rows; "
        "expected 8 fields, found 2: 1 rows. Land it corrected; an earlier version stays in place"
    )
    assert examples == [
        f"erp/orders.csv:{302 + n} order_date month cannot be told 'day {n}'" for n in range(10)
    ]
    assert platform.rejects() == []
    assert registered(platform, "erp/orders", {"max_rejects": 12}).deliveries == []
    assert only(registered(platform, "erp/orders", {"max_rejects": 13})).status == "loaded"
    assert platform.balances()


def test_no_reject_at_all_can_be_asked_for(platform: Platform) -> None:
    platform.land("erp/orders.csv", lines(ORDERS, order(1), order(2, "never")))
    # The handful that a rate always tolerates is not tolerated by a number.
    refused = only(registered(platform, "erp/orders", {"max_rejects": 0}))
    assert "1 of 2 rows cannot be used (limit 0 rows)" in str(refused.reason)
    assert only(platform.register()).status == "loaded"


def test_personal_values_are_not_shown(
    platform: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = catalog().sources["erp/orders"]
    columns = tuple(
        dataclasses.replace(c, pii="birth_date") if c.name == "order_date" else c
        for c in spec.columns
    )
    platform.land("erp/orders.csv", lines(ORDERS, order(1, "31.12.1999")))
    refused = registered(platform, "erp/orders", {"columns": columns, "max_rejects": 0})
    assert str(only(refused).reason).endswith(
        "\nerp/orders.csv:2 order_date month cannot be told ***"
    )
    _print_registration(refused)
    err = capsys.readouterr().err
    assert "1999" not in err
    assert "         erp/orders.csv:2 order_date month cannot be told ***" in err.splitlines()


def test_the_limit_that_was_passed_is_named(platform: Platform) -> None:
    rows = [*map(order, range(100, 300)), *(order(n, "?") for n in range(30))]
    platform.land("erp/orders.csv", lines(ORDERS, *rows))
    refused = only(registered(platform, "erp/orders", {"max_reject_rate": 0.025}))
    assert "30 of 230 rows cannot be used (limit 2.5%)" in str(refused.reason)
    assert only(registered(platform, "erp/orders", {"max_reject_rate": 0.2})).status == "loaded"
