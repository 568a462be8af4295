"""Stories of contracts that change under a filled warehouse: what is done, said, and refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import polars as pl
import pytest
from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ContractError, WarehouseError
from metalayer.lineage.columns import undeclared_reads
from metalayer.lineage.select import Select
from metalayer.warehouse import altering
from metalayer.warehouse.migrate import Migration, ensure_tables, plan_migration, prepare
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.server import WarehouseServer
from metalayer_tests.integration.sharing import module_platform
from metalayer_tests.integration.test_build import CUSTOMERS, ORDERS, customer, order
from metalayer_tests.story import Platform

LEAVES = (
    "select c.relname, c.relfilenode from pg_inherits as i "
    "join pg_class as c on c.oid = i.inhrelid where i.inhparent = %s::regclass order by 1"
)
KIND = (
    "select format_type(atttypid, atttypmod) from pg_attribute "
    "where attrelid = %s::regclass and attname = %s"
)


def changed(table: str, columns: Mapping[str, Mapping[str, Any]], **facts: Any) -> TableSpec:
    """A table of the catalog with columns that say something else."""
    spec = catalog().spec(table)
    return replace(
        spec,
        columns=tuple(replace(c, **columns.get(c.name, {})) for c in spec.columns),
        **facts,
    )


def without(table: str, *names: str) -> TableSpec:
    spec = catalog().spec(table)
    return replace(spec, columns=tuple(c for c in spec.columns if c.name not in names))


def with_column(table: str, name: str, **facts: Any) -> TableSpec:
    spec = catalog().spec(table)
    column = ColumnSpec(name, "text", pl.String, "Something new", nullable=True, **facts)
    return replace(spec, columns=(*spec.columns[:2], column, *spec.columns[2:]))


def all_with(*specs: TableSpec) -> list[TableSpec]:
    named = {spec.full_name: spec for spec in specs}
    return [named.get(name, spec) for name, spec in catalog().specs.items()]


@dataclass
class Desk:
    """One transaction on a filled warehouse, which comes to nothing in the end."""

    connection: Any

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())

    def one(self, query: str, *values: Any) -> Any:
        ((value,),) = self.ask(query, *values)
        return value

    def plan(self, *specs: TableSpec, selects: Mapping[str, Select] | None = None) -> Migration:
        with self.connection.cursor() as cursor:
            return plan_migration(
                cursor, all_with(*specs), catalog().selects if selects is None else selects
            )

    def migrate(self, *specs: TableSpec, selects: Mapping[str, Select] | None = None) -> Migration:
        return prepare(
            self.connection, all_with(*specs), catalog().selects if selects is None else selects
        )


def altering_steps(found: Migration) -> list[Any]:
    return [step for step in found.steps if step.kind == "alter"]


def fill(platform: Platform) -> None:
    """Two months of orders and a customer, built."""
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05") + order(2, "2025-02-05"))
    platform.land("crm/customers.csv", CUSTOMERS + customer(7, "2025-01-02"))
    assert platform.build().succeeded


@pytest.fixture(scope="module")
def warehouse(
    server: WarehouseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("migrate")
    with module_platform(server, folder, date(2025, 1, 1), date(2025, 3, 1)) as platform:
        fill(platform)
        yield platform.warehouse.pool


@pytest.fixture
def filled(warehouse: Engine) -> Iterator[Desk]:
    with transaction(warehouse) as connection:
        yield Desk(connection)
        connection.rollback()


def test_a_warehouse_in_line_has_nothing_to_migrate(filled: Desk) -> None:
    assert filled.plan() == Migration(())
    assert filled.migrate() == Migration(())


def test_the_repository_reads_no_column_that_is_not_declared() -> None:
    assert undeclared_reads(catalog().selects, catalog().specs, {}) == {}


def test_a_new_warehouse_is_made_by_the_text_of_its_plan(empty_database: str) -> None:
    specs, selects = list(catalog().specs.values()), catalog().selects
    shown = plan_migration(None, specs, selects)
    assert sum(step.does == ("Creates the table.",) for step in shown.steps) == len(specs)
    pool = connect_pool(empty_database, 1)
    with transaction(pool) as connection, connection.cursor() as cursor:
        assert plan_migration(cursor, specs, selects) == shown
        for step in shown.steps:
            cursor.execute(step.sql)
        # What is left is to note that MetaLayer's own schema is there.
        (left,) = plan_migration(cursor, specs, selects).steps
        assert left.about == "meta"
        prepare(connection, specs, selects)
        assert plan_migration(cursor, specs, selects) == Migration(())
        assert_has_all(cursor, specs)
    pool.dispose()


def assert_has_all(cursor: Any, specs: list[TableSpec]) -> None:
    for spec in specs:
        cursor.execute(
            "select column_name from information_schema.columns where table_schema = %s "
            "and table_name = %s order by ordinal_position",
            (spec.layer, spec.name),
        )
        assert [name for (name,) in cursor.fetchall()] == [c.name for c in spec.columns]


def test_an_added_column_writes_no_row_and_is_empty(filled: Desk) -> None:
    before = filled.ask(LEAVES, "gold.customer_360")
    spec = with_column("gold.customer_360", "channel")
    shown = filled.plan(spec)
    (step,) = altering_steps(shown)
    assert (step.about, step.months, step.rows, step.loses_data) == (
        "gold.customer_360",
        0,
        0,
        False,
    )
    assert filled.migrate(spec).steps == shown.steps
    assert filled.ask(LEAVES, "gold.customer_360") == before
    assert filled.one("select count(*) from gold.customer_360_current where channel is null") == 1
    assert filled.plan(spec) == Migration(())


def test_meanings_alone_change_no_table(filled: Desk) -> None:
    spec = changed("gold.fact_orders", {"status": {"meaning": "It's said otherwise"}}, owner="me")
    shown = filled.migrate(spec)
    assert {step.kind for step in shown.steps} == {"note"}
    assert (
        filled.one(
            "select col_description('gold.fact_orders'::regclass, attnum) from pg_attribute "
            "where attrelid = 'gold.fact_orders'::regclass and attname = 'status'"
        )
        == "It's said otherwise"
    )
    assert filled.one("select owner from meta.tables where table_name = 'gold.fact_orders'") == "me"


def test_a_column_that_is_read_is_not_dropped(filled: Desk) -> None:
    spec = without("gold.fact_orders", "customer_id", "status")
    with pytest.raises(ContractError) as refused:
        filled.migrate(spec)
    message = str(refused.value)
    assert (
        "contracts/gold/fact_orders.py does not declare gold.fact_orders.status any more" in message
    )
    assert "sql/gold/sales_reconciliation.sql (in a condition)" in message
    assert "sql/gold/customer_360.sql (for gold.customer_360." in message
    assert "sql/gold/agg_daily_sales.sql (in a condition)" in message  # customer_id, counted
    assert len(filled.plan(spec).refusals) == 2
    assert filled.one("select count(*) from gold.fact_orders where status = 'COMPLETED'") == 2


def test_a_column_that_a_view_or_a_derived_column_reads_is_not_dropped(filled: Desk) -> None:
    dimension = catalog().spec("gold.dim_customer")
    readers = {
        str(reader)
        for column, found in undeclared_reads(
            {},
            {
                **catalog().specs,
                "gold.dim_customer": without("gold.dim_customer", "valid_from"),
                "gold.customer_360": without("gold.customer_360", "customer_id"),
            },
            {"gold.customer_360": {"customer_id": "bigint"}},
        ).items()
        for reader in found
        if column.column in ("valid_from", "customer_id")
    }
    assert dimension.stored_name == "dim_customer_stored"
    assert "contracts/gold/dim_customer.py (for the derived column valid_to)" in readers
    assert "contracts/gold/customer_360.py (for the view gold.customer_360_current)" in readers


def test_a_column_nobody_reads_is_dropped_and_kept_versions_have_it(platform: Platform) -> None:
    fill(platform)
    platform.land("erp/orders.csv", ORDERS + order(1, "2025-01-05", quantity=3))
    assert platform.build().succeeded
    spec = without("gold.agg_monthly_sales", "cancelled_amount")
    selects = {k: v for k, v in catalog().selects.items() if k != "gold.agg_monthly_sales"}
    with transaction(platform.warehouse.pool) as connection:
        desk = Desk(connection)
        rows = desk.ask("select month, orders, revenue from gold.agg_monthly_sales")
        (step,) = altering_steps(desk.plan(spec, selects=selects))
        assert step.loses_data
        assert "Drops column cancelled_amount" in step.does[0]
        desk.migrate(spec, selects=selects)
        assert desk.ask("select month, orders, revenue from gold.agg_monthly_sales") == rows
        has_it = (
            "select count(*) from meta.versions as v join pg_attribute as a "
            "on a.attrelid = ('months.' || v.leaf)::regclass and a.attname = 'cancelled_amount' "
            "and not a.attisdropped where v.table_name = 'gold.agg_monthly_sales' "
            "and v.is_current = %s"
        )
        assert desk.one(has_it, False) >= 1
        assert desk.one(has_it, True) == 0


@pytest.mark.parametrize(
    ("table", "column", "kind", "is_written"),
    [
        ("gold.agg_monthly_sales", "orders", "numeric(19,0)", True),
        ("gold.agg_monthly_sales", "revenue", "numeric(20,2)", False),
        ("gold.agg_monthly_sales", "revenue", "numeric(22,4)", True),
        ("gold.fact_orders", "quantity", "text", True),
        ("gold.customer_360", "first_order_on", "timestamp", True),
        ("gold.customer_360", "orders", "numeric(25,2)", True),  # under a view
        ("gold.dim_customer", "created_at", "text", True),  # under a view that derives columns
    ],
)
def test_widening_keeps_every_value_in_place(
    filled: Desk, table: str, column: str, kind: str, is_written: bool
) -> None:
    stored = f"{catalog().spec(table).layer}.{catalog().spec(table).stored_name}"
    values = f"select {column}::text, count(*) from {table} group by 1 order by 1"
    before, leaves = filled.ask(values), filled.ask(LEAVES, stored)
    spec = changed(table, {column: {"type": kind}})
    (step,) = altering_steps(filled.plan(spec))
    assert step.does[0].startswith(f"Widens column {column} from ")
    assert (step.rows > 0, step.months > 0, step.bytes > 0) == (is_written,) * 3
    filled.migrate(spec)
    assert filled.one(KIND, stored, column) == kind.replace(
        "timestamp", "timestamp without time zone"
    )
    after = filled.ask(values)
    assert [n for _, n in after] == [n for _, n in before]
    for (old, _), (new, _) in zip(before, after, strict=True):
        assert old == new or (new.startswith(old) and set(new.removeprefix(old)) <= set("0.: "))
    assert (filled.ask(LEAVES, stored) != leaves) == is_written
    assert filled.plan(spec) == Migration(())


def test_months_built_before_and_after_widening_stand_side_by_side(platform: Platform) -> None:
    fill(platform)
    spec = changed("gold.agg_monthly_sales", {"revenue": {"type": "numeric(20,2)"}})
    with transaction(platform.warehouse.pool) as connection:
        Desk(connection).migrate(spec)
    platform.land("erp/orders_more.csv", ORDERS + order(3, "2025-02-06", quantity=3))
    assert platform.build().succeeded
    assert platform.ask("select month, revenue from gold.agg_monthly_sales order by 1") == [
        (date(2025, 1, 1), 10),
        (date(2025, 2, 1), 25),
    ]
    assert platform.balances()


def test_narrowing_is_refused_with_what_would_be_lost(filled: Desk) -> None:
    spec = changed("gold.fact_orders", {"total_amount": {"type": "numeric(3,2)"}})
    with pytest.raises(ContractError) as refused:
        filled.migrate(spec)
    assert refused.value.message == (
        "contracts/gold/fact_orders.py changes gold.fact_orders.total_amount from numeric(18,2) "
        "to numeric(3,2), which cannot hold 2 of the stored values exactly: '10.00'"
    )
    assert "Declare a type that holds them" in refused.value.next_step
    assert filled.one(KIND, "gold.fact_orders", "total_amount") == "numeric(18,2)"


def test_personal_values_are_not_shown_when_narrowing_is_refused(filled: Desk) -> None:
    spec = changed(
        "silver.customers", {name: {"type": "date"} for name in ("zip", "city", "state")}
    )
    refusals = filled.plan(spec).refusals
    assert len(refusals) == 3
    for refusal in refusals:
        assert "hold 1 of the stored values exactly: ***" in refusal.message


def test_narrowing_that_every_value_survives_is_done(filled: Desk) -> None:
    spec = changed(
        "gold.fact_orders",
        {"unit_price": {"type": "numeric(4,0)"}, "quantity": {"type": "numeric(3,1)"}},
    )
    (step,) = altering_steps(filled.plan(spec))
    assert "Changes column unit_price from numeric(18,4) to numeric(4,0)" in " ".join(step.does)
    filled.migrate(spec)
    assert filled.ask("select distinct unit_price, quantity from gold.fact_orders") == [(5, 2)]


def test_the_month_column_stays(filled: Desk) -> None:
    retyped = changed("gold.fact_orders", {"order_date": {"type": "timestamp"}})
    other = replace(catalog().spec("silver.customers"), month_column="dob")
    for spec in (retyped, other):
        with pytest.raises(ContractError, match="changes the month column"):
            filled.migrate(spec, selects={})


def test_a_contract_that_asks_less_lets_published_months_take_more(filled: Desk) -> None:
    spec = changed(
        "gold.agg_daily_sales",
        {"buyers": {"nullable": True}, "units": {"is_key": True}},
    )
    said = " ".join(sentence for s in altering_steps(filled.plan(spec)) for sentence in s.does)
    assert "Lets column buyers be empty in 2 published months." in said
    assert "Drops the unique index on the earlier key of 2 published months" in said
    filled.migrate(spec)
    assert filled.plan(spec) == Migration(())
    with filled.connection.cursor() as cursor:
        cursor.execute("insert into gold.agg_daily_sales select * from gold.agg_daily_sales")
        cursor.execute("update gold.agg_daily_sales set buyers = null")


def test_the_first_derived_column_turns_the_table_into_a_view_and_back(filled: Desk) -> None:
    rows = filled.ask("select * from gold.customer_360 order by customer_id, month")
    leaves = filled.ask(LEAVES, "gold.customer_360")
    spec = with_column("gold.customer_360", "first_letter", derived="left(segment, 1)")
    filled.migrate(spec)
    for first_letter, segment in filled.ask(
        "select first_letter, segment from gold.customer_360_current"
    ):
        assert first_letter == segment[0]
    assert filled.one("select count(*) from gold.customer_360_stored") == len(rows)
    assert filled.plan(spec) == Migration(())
    filled.migrate()
    assert filled.ask("select * from gold.customer_360 order by customer_id, month") == rows
    assert filled.ask(LEAVES, "gold.customer_360") == leaves
    assert filled.plan() == Migration(())


def test_the_unknown_member_is_as_the_contract_has_it(filled: Desk) -> None:
    dimension = catalog().spec("gold.dim_customer")
    assert dimension.unknown_member is not None
    member = {**dimension.unknown_member, "customer_name": "Nobody's"}
    filled.migrate(replace(dimension, unknown_member=member))
    name = "select customer_name from gold.dim_customer where customer_key = 0"
    assert filled.ask(name) == [("Nobody's",)]
    filled.migrate(replace(dimension, unknown_member=None))
    assert filled.ask(name) == []
    filled.migrate()
    assert filled.ask(name) == [("Unknown",)]


def test_a_view_that_no_contract_has_any_more_goes(filled: Desk) -> None:
    filled.migrate(replace(catalog().spec("gold.customer_360"), views={}))
    assert filled.one("select to_regclass('gold.customer_360_current') is null")
    assert filled.one("select count(*) from gold.customer_360") > 0


def test_a_select_that_reads_what_nobody_declares_is_refused(filled: Desk) -> None:
    import sqlglot

    select = catalog().selects["gold.dim_product"]
    text = select.text.replace("product_code", "product_colour", 1)
    broken = replace(select, text=text, tree=sqlglot.parse_one(text, read="postgres"))
    with pytest.raises(ContractError, match=r"sql/gold/dim_product.sql reads a column that no"):
        filled.migrate(selects={**catalog().selects, "gold.dim_product": broken})


def test_readers_never_wait_for_a_change_that_waits_for_one(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(altering, "PATIENCE_SECONDS", 3.0)
    spec = with_column("gold.fact_orders", "channel")
    waits: list[float] = []
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            began = time.monotonic()
            platform.ask("select count(*) from gold.fact_orders")
            waits.append(time.monotonic() - began)

    with transaction(platform.warehouse.pool) as report, report.cursor() as reading:
        reading.execute("select count(*) from gold.fact_orders")
        thread = threading.Thread(target=poll)
        thread.start()
        with (
            pytest.raises(WarehouseError, match=r"in use by 'metalayer' \(process \d+, in gold"),
            transaction(platform.warehouse.pool) as connection,
        ):
            Desk(connection).migrate(spec)
        over.set()
        thread.join()
    assert len(waits) > 10
    assert max(waits) < 1.0
    with transaction(platform.warehouse.pool) as connection:
        Desk(connection).migrate(spec)
    assert platform.one("select count(channel) from gold.fact_orders") == 0


def test_tables_of_their_own_are_brought_in_line_without_the_others(pool: Engine) -> None:
    spec = changed("gold.agg_monthly_sales", {"orders": {"type": "text"}})
    with transaction(pool) as connection:
        about = {step.about for step in ensure_tables(connection, [spec]).steps}
    assert about == {"gold.agg_monthly_sales"}
