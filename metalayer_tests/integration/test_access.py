"""Who sees what, over connections of real roles: masks, grants, and what is tried against them."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from psycopg2 import sql

from metalayer.asof import query_as_of
from metalayer.catalog import catalog
from metalayer.contracts.contract import TableSpec
from metalayer.differences import difference
from metalayer.errors import ContractError, UsageError, WarehouseError
from metalayer.governance.masks import is_masked
from metalayer.governance.plain import keep_masked, open_unmasked
from metalayer.governance.roles import ROLES, apply_roles, plan_roles
from metalayer.inspection import quarantine_filter, rejects
from metalayer.warehouse.ddl import StoredMask, as_text, stored_masks, stored_name
from metalayer.warehouse.keeping import Keeping
from metalayer.warehouse.migrate import install, plan_migration, prepare
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.stage import create_stage, fill_from_select
from metalayer.warehouse.versions import rollback
from metalayer_tests.story import Platform

SPECS = list(catalog().specs.values())
PERSONAL = [spec for spec in SPECS if any(c.pii for c in spec.columns)]
READERS = ("analyst", "bi", "engineer", "steward")
PLAIN = {
    "Zebulon", "Quigley", "Zebulon Quigley", "zebulon@example.org", "+12125550187",
    "(212) 555-0187", "Springfield", "90210", "1980-05-17",
}  # fmt: skip
CUSTOMERS = (
    "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at\n"
    "1,Zebulon,Quigley,zebulon@example.org,(212) 555-0187,Springfield,NY,90210,1980-05-17,"
    "2024-01-01,2025-01-05\n"
    "2,Ann,,,,,,,,2024-01-01,2025-01-06\n"
)
SNAPSHOT = (
    "customer_id,customer_name,email,region\n1,Zebulon Quigley,zebulon@example.org,north\n"
    "3,Zebulon Quigley,other@example.org,north\n"
)

FILES = (
    "select relname, relfilenode from pg_class "
    "where relnamespace = 'months'::regnamespace order by 1"
)

Connect = Callable[[str], Any]


@pytest.fixture
def filled(platform: Platform) -> Platform:
    platform.land("crm/customers_2025-01.csv", CUSTOMERS)
    platform.land("crm/crm_customers_2025-01.csv", SNAPSHOT)
    platform.build()
    apply(platform)
    return platform


@pytest.fixture
def connect(platform: Platform, database: str) -> Iterator[Connect]:
    """Connections of logins of the test's own, each a member of one of the roles."""
    apply(platform)
    made: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def open_as(reader: str) -> Any:
            if reader not in made:
                made[reader] = f"person_{uuid.uuid4().hex[:10]}"
                execute(platform, f"create role {made[reader]} login in role metalayer_{reader}")
            url = database.replace("+psycopg2", "").replace("postgres@", f"{made[reader]}@", 1)
            connection = stack.enter_context(contextlib.closing(psycopg2.connect(url)))
            connection.autocommit = True
            return connection

        yield open_as
    for name in made.values():
        execute(platform, f"drop owned by {name}; drop role {name}")


def apply(platform: Platform, specs: list[TableSpec] | None = None) -> None:
    with transaction(platform.warehouse.pool) as connection:
        apply_roles(connection, specs or SPECS)


def execute(platform: Platform, statement: str) -> None:
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def ask(connection: Any, query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


@pytest.mark.parametrize("reader", READERS)
def test_every_personal_column_of_every_table_as_the_role_sees_it(
    filled: Platform, connect: Connect, reader: str
) -> None:
    connection = connect(reader)
    looked = 0
    for spec in PERSONAL:
        if reader not in spec.readers:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                ask(connection, f"select * from {spec.full_name}")
            continue
        for c in [c for c in spec.columns if c.pii]:
            query = f'select "{c.name}"::text from {spec.full_name} order by "{spec.key[0]}"::text'
            (query, plain) = (query, filled.ask(query))
            seen = ask(connection, query)
            assert [v is None for (v,) in seen] == [v is None for (v,) in plain], (
                spec.full_name,
                c,
            )
            values = {v for (v,) in seen}
            opened = {v and filled.plain(v) for (v,) in plain}
            assert PLAIN & opened, "the table holds a value to be masked"
            looked += 1
            if reader == "steward":
                assert seen == plain
            else:
                assert not PLAIN & values, (spec.full_name, c.name)
                assert not any("~" in v for v in values if v), "ciphertext is no mask"
    assert looked


def test_masks_are_those_of_the_contract_s_kinds(filled: Platform, connect: Connect) -> None:
    ((name, *rest),) = ask(
        connect("analyst"),
        "select customer_name, email, phone, city, zip, dob from gold.dim_customer "
        "where customer_id = 1 and phone is not null limit 1",
    )
    assert rest == ["z***@example.org", "***87", "***", "902**", "1980"]
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")


def test_pseudonyms_join_and_count_across_tables(filled: Platform, connect: Connect) -> None:
    engineer = connect("engineer")
    joined = (
        "select count(*), count(distinct s.customer_name) from silver.crm_customers as s "
        "join gold.dim_customer as d on d.customer_name = s.customer_name"
    )
    assert ask(engineer, joined) == filled.ask(joined)
    assert ask(engineer, joined)[0][0] >= 2


def test_pseudonyms_of_another_warehouse_are_others(empty_database: str, filled: Platform) -> None:
    with contextlib.closing(psycopg2.connect(empty_database.replace("+psycopg2", ""))) as other:
        install(other)
        theirs = ask(other, "select pseudonym_key from meta.secret")
        install(other)
        assert ask(other, "select pseudonym_key from meta.secret") == theirs
    ours = filled.ask("select pseudonym_key from meta.secret")
    assert [bytes(key) for (key,) in theirs] != [bytes(key) for (key,) in ours]
    assert len(bytes(theirs[0][0])) == 32


def test_a_table_without_a_word_about_access_is_closed(filled: Platform, connect: Connect) -> None:
    analyst, steward = connect("analyst"), connect("steward")
    assert ask(analyst, "select count(*) from gold.dim_date")
    silent = [replace(s, readers=()) if s.full_name == "gold.dim_date" else s for s in SPECS]
    apply(filled, silent)
    for connection in (analyst, steward):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(connection, "select count(*) from gold.dim_date")
    apply(filled)
    assert ask(analyst, "select count(*) from gold.dim_date")


def test_a_reader_that_no_role_is_for_is_refused() -> None:
    from metalayer.contracts.contract import _readers

    with pytest.raises(ContractError, match="Use a tuple of analyst, bi, engineer, steward"):
        _readers(type("Table", (), {"readers": ("everybody",)}), "contracts/gold/x.py")


SURPLUS = {
    "grant select on gold.dim_customer_stored to metalayer_analyst": "table",
    "grant select (email) on gold.dim_customer_stored to metalayer_bi": "column",
    "grant insert on gold.dim_date to metalayer_engineer": "table",
    "grant select on gold.dim_date to public": "table",
    "grant usage on schema months to metalayer_analyst": "schema",
    "grant execute on function meta.clean_text(text) to public": "function",
    "grant usage on sequence meta.leaf_number to metalayer_bi": "sequence",
    "grant metalayer_steward to metalayer_analyst": "",
    "alter default privileges in schema gold grant select on tables to metalayer_bi": "",
}


@pytest.mark.parametrize("surplus", SURPLUS)
def test_surplus_goes_and_the_plan_says_so(filled: Platform, surplus: str) -> None:
    with filled.warehouse.pool.connect() as held:
        raw: Any = held.connection.driver_connection
        with raw.cursor() as cursor:
            assert plan_roles(cursor, SPECS).statements == ()
            cursor.execute(surplus)
            planned = plan_roles(cursor, SPECS)
            assert len(planned.statements) == 1
            assert [g.kind for g in planned.revoked] == [k for k in [SURPLUS[surplus]] if k]
        # Undone with the transaction: roles are the server's, and other tests use them.
        assert apply_roles(raw, SPECS) == planned
        with raw.cursor() as cursor:
            assert plan_roles(cursor, SPECS).statements == ()
        raw.rollback()


def test_public_has_nothing(filled: Platform) -> None:
    stranger = f"stranger_{uuid.uuid4().hex[:8]}"
    with filled.warehouse.pool.connect() as held:
        raw: Any = held.connection.driver_connection
        with raw.cursor() as cursor:
            cursor.execute(f"create role {stranger}")
            cursor.execute(
                "select n.nspname, c.relname from pg_class as c join pg_namespace as n "
                "on n.oid = c.relnamespace where n.nspname in "
                "('bronze', 'silver', 'gold', 'meta', 'months') and c.relkind in ('r', 'p', 'v') "
                f"and (has_table_privilege('{stranger}', c.oid, 'select, insert, update, delete') "
                f"or has_schema_privilege('{stranger}', n.oid, 'usage, create'))"
            )
            assert cursor.fetchall() == []
        raw.rollback()


@pytest.mark.parametrize("reader", READERS)
def test_only_the_pipeline_writes(filled: Platform, connect: Connect, reader: str) -> None:
    connection = connect(reader)
    for spec in SPECS:
        # A view that computes over its rows takes none from anybody.
        refused = (
            psycopg2.errors.InsufficientPrivilege,
            psycopg2.errors.ObjectNotInPrerequisiteState,
        )
        with pytest.raises(refused):
            ask(connection, f"delete from {spec.full_name} returning 1")
    pipeline = connect("pipeline")
    assert len(ask(pipeline, "delete from gold.customer_360_stored returning 1")) > 0


LEAKY = (
    "create function pg_temp.leak(t text) returns boolean language plpgsql cost 0.0000001 as "
    "$$ begin raise notice '%', t; return true; end $$"
)


@pytest.mark.parametrize("reader", ["analyst", "bi", "engineer"])
def test_plain_values_are_not_found_out(filled: Platform, connect: Connect, reader: str) -> None:
    connection = connect(reader)
    execute(filled, "analyze")
    # By filtering, by ordering, by a cast that fails, by a function in the condition.
    count = "select count(*) from gold.dim_customer where "
    assert ask(connection, f"{count} email = 'zebulon@example.org'") == [(0,)]
    assert ask(connection, f"{count} email like 'zeb%' or phone like '%0187'") == [(0,)]
    assert ask(connection, f"{count} dob = '1980-05-17'") == [(0,)]
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation) as failed:
        ask(connection, "select email::int from gold.dim_customer")
    assert "zebulon" not in str(failed.value)
    ask(connection, "select 1")
    with connection.cursor() as cursor:
        cursor.execute(LEAKY)
    row = "(d.*)::text" if reader else ""
    ask(connection, f"select 1 from gold.dim_customer as d where pg_temp.leak(email || {row})")
    ask(connection, "select 1 from gold.customer_360_current where pg_temp.leak(customer_name)")
    said = " ".join(connection.notices)
    assert "example.org" in said
    assert not [value for value in PLAIN if value in said]
    # By the planner's words and by what it knows of the columns.
    plan = ask(connection, "explain (analyze, verbose) select * from gold.dim_customer")
    stats = ask(connection, "select * from pg_stats where schemaname <> 'pg_catalog'")
    assert not [value for value in PLAIN if value in f"{plan} {stats}"]


@pytest.mark.parametrize("reader", ["analyst", "bi", "engineer"])
@pytest.mark.parametrize(
    "query",
    [
        "select * from gold.dim_customer_stored",
        "select * from silver.customers_stored",
        "select * from meta.secret",
        "select * from meta.reader",
        "select value, raw, violations from meta.quarantine",
        "select * from meta.past_quarantine",
        "select drift from meta.deliveries",
        "set role metalayer_steward",
        "create function gold.f() returns int language sql return 1",
        "create view gold.v as select 1 as one",
        "select pg_read_file('postgresql.conf')",
        "alter view gold.dim_customer owner to current_user",
    ],
)
def test_what_is_behind_the_masks_is_refused(
    filled: Platform, connect: Connect, reader: str, query: str
) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask(connect(reader), query)


@pytest.mark.parametrize("reader", ["analyst", "engineer", "steward"])
def test_versions_of_months_are_closed(filled: Platform, connect: Connect, reader: str) -> None:
    connection = connect(reader)
    for (leaf,) in filled.ask("select leaf from meta.versions where table_name like '%customer%'"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(connection, f"select * from months.{leaf}")


def test_a_setting_masks_and_does_not_unmask(filled: Platform, connect: Connect) -> None:
    emails = "select email from silver.customers where customer_id = 1"
    analyst, steward = connect("analyst"), connect("steward")
    with analyst.cursor() as cursor:
        cursor.execute("set metalayer.masked = 'off'")
    assert ask(analyst, "select email from gold.customer_360 where customer_id = 1")[0][0][1] == "*"
    with steward.cursor() as cursor:
        cursor.execute("set metalayer.masked = 'on'")
    assert ask(steward, emails) == [("z***@example.org",)]


def test_masks_leave_months_pruned(filled: Platform, connect: Connect) -> None:
    plan = ask(
        connect("engineer"),
        "explain select * from silver.customers where updated_at >= date '2025-01-01' "
        "and updated_at < date '2025-02-01' and email like 'z%'",
    )
    scanned = [line for (line,) in plan if "Scan on" in line and " on reader" not in line]
    assert sum("silver_customers" in line for line in scanned) == 1


def test_an_existing_warehouse_gets_masks_and_keeps_its_rows(
    filled: Platform, connect: Connect
) -> None:
    analyst = connect("analyst")
    bare = [replace(s, columns=tuple(replace(c, pii=None) for c in s.columns)) for s in SPECS]
    migrate(filled, bare)
    assert ("p",) in filled.ask(
        "select relkind from pg_class where oid = 'silver.customers'::regclass"
    )
    execute(filled, "grant select on silver.customers to metalayer_analyst")
    execute(filled, "grant usage on schema silver to metalayer_analyst")
    emails = "select email from silver.customers where customer_id = 1"
    assert ask(analyst, emails) == [("zebulon@example.org",)]
    before = filled.ask("select * from meta.versions order by 1, 2, 3")
    files = filled.ask(FILES)
    migrate(filled, SPECS)
    assert ask(analyst, emails) == [("z***@example.org",)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask(analyst, "select * from silver.customers_stored")
    assert filled.ask("select * from meta.versions order by 1, 2, 3") == before
    assert files == filled.ask(FILES)
    outcome = filled.build()
    assert outcome.succeeded
    assert filled.ask("select * from meta.versions order by 1, 2, 3") == before


def migrate(platform: Platform, specs: list[TableSpec]) -> None:
    with transaction(platform.warehouse.pool) as connection:
        prepare(connection, specs, catalog().selects)


def test_builds_read_plain_values(filled: Platform) -> None:
    assert filled.ask(
        "select customer_name, email from gold.customer_360 where customer_id = 1"
    ) == [("Zebulon Quigley", "zebulon@example.org")]


def test_whoever_may_not_create_roles_is_told_what_to_run(
    platform: Platform, database: str
) -> None:
    """On a server whose roles are not there yet; they are the server's, so in a transaction."""
    name = f"owner_{uuid.uuid4().hex[:8]}"
    with platform.warehouse.pool.connect() as held:
        raw: Any = held.connection.driver_connection
        with raw.cursor() as cursor:
            cursor.execute("select oid from pg_roles where rolname = any(%s)", (list(ROLES),))
            for role in ROLES:
                cursor.execute(
                    f"do $$ begin alter role {role} rename to {role}_{name}; "
                    "exception when undefined_object then null; end $$"
                )
            cursor.execute(f"create role {name}; set local role {name}")
        with pytest.raises(WarehouseError) as refused:
            apply_roles(raw, SPECS)
        raw.rollback()
    assert "create role metalayer_analyst nologin;" in str(refused.value)


def test_commands_show_masks_unless_asked(filled: Platform, connect: Connect) -> None:
    execute(
        filled,
        "insert into meta.quarantine (table_name, rule, column_name, value, raw, violations) "
        "values "
        "('silver.customers', 'bad', 'email', 'zebulon', 'Zebulon,1', "
        """'[{"column": "email", "rule": "bad", "value": "zebulon"}]'), """
        "('silver.orders', 'bad', 'quantity', '-1', '7,-1', '[]')",
    )
    with transaction(filled.warehouse.pool) as connection:
        wanted = quarantine_filter(connection)
        with rejects(connection, wanted) as (_, rows):
            masked = {r.table: r for r in rows if r.rule == "bad"}
        with rejects(connection, wanted, unmasked=True) as (_, rows):
            plain = {r.table: r for r in rows if r.rule == "bad"}
    assert "ebulon" not in repr(masked["silver.customers"])
    assert masked["silver.customers"].value == masked["silver.customers"].raw == "***"
    assert masked["silver.orders"].value == "-1"
    assert plain["silver.customers"].value == "zebulon"
    with transaction(filled.warehouse.pool) as connection:
        open_unmasked(connection, "the query")
        keep_masked(connection, "select email from silver.customers")
        seen = ask(connection, "select email from silver.customers where customer_id = 1")
        assert seen == [("z***@example.org",)]
        for behind in ("silver.customers_stored", 'months."a"', "meta.quarantine"):
            with pytest.raises(UsageError, match="--unmasked"):
                keep_masked(connection, f"select * from {behind}")
    open_unmasked(connect("steward"), "the query")
    with pytest.raises(UsageError, match="metalayer_steward"):
        open_unmasked(connect("analyst"), "the query")


def test_the_past_is_masked_as_the_present_is(filled: Platform) -> None:
    looked_at = 0
    with transaction(filled.warehouse.pool) as connection:
        keep_masked(connection, "select 1")
        for spec in SPECS:
            for column in (c for c in spec.columns if is_masked(spec, c)):
                query = f"select {column.name}::text from {spec.full_name}"
                now = ask(connection, query)
                then = ask(connection, query_as_of(connection, query, 1))
                assert sorted(map(str, then)) == sorted(map(str, now)), (spec.full_name, column)
                assert not PLAIN & {value for (value,) in then}
                looked_at += len(then)
    assert looked_at


@pytest.mark.parametrize("reader", ["analyst", "bi", "engineer"])
def test_who_sees_masks_may_not_read_the_past(
    filled: Platform, connect: Connect, reader: str
) -> None:
    table = "silver.customers" if reader == "engineer" else "gold.dim_customer"
    connection = connect(reader)
    query = f"select * from {table}"
    assert ask(connection, query)
    with pytest.raises(UsageError, match=r"behind the masks, and person_[0-9a-f]+ may not"):
        query_as_of(connection, query, 1)


def test_every_mask_keeps_the_type_of_its_column(filled: Platform) -> None:
    for spec in PERSONAL:
        assert [c for c in spec.columns if is_masked(spec, c)]
        types = dict(
            filled.ask(
                "select attname::text, format_type(atttypid, atttypmod) from pg_attribute "
                "where attrelid = %s::regclass and attnum > 0",
                spec.full_name,
            )
        )
        stored = dict(
            filled.ask(
                "select attname::text, format_type(atttypid, atttypmod) from pg_attribute "
                "where attrelid = %s::regclass and attnum > 0 and not attisdropped",
                f"{spec.layer}.{spec.stored_name}",
            )
        )
        names = {mask.name for mask in stored_masks(spec).values()}
        assert {n: t for n, t in types.items() if n in stored} | dict.fromkeys(names) == {
            n: None if n in names else t for n, t in stored.items()
        }


GOLD = [spec for spec in PERSONAL if spec.layer == "gold"]


def test_gold_stores_the_masks_that_would_be_computed(filled: Platform) -> None:
    assert {(s.name, column) for s in GOLD for column in stored_masks(s)} == {
        *(("dim_customer", c) for c in ("customer_name", "email", "phone", "city", "zip", "dob")),
        *(("customer_360", c) for c in ("customer_name", "email", "city")),
    }
    assert masks_stored(filled) == masks_computed(filled)
    assert None not in masks_stored(filled)["dim_customer", "email"]


def masks_stored(platform: Platform) -> dict[tuple[str, str], list[Any]]:
    """(table, column) -> the mask in each row with a value, in order."""
    return masks(platform, lambda mask: sql.Identifier(mask.name))


def masks_computed(platform: Platform) -> dict[tuple[str, str], list[Any]]:
    return masks(platform, lambda mask: mask.value)


def masks(
    platform: Platform, told: Callable[[StoredMask], sql.Composable]
) -> dict[tuple[str, str], list[Any]]:
    found = {}
    for spec in GOLD:
        for column, mask in stored_masks(spec).items():
            query = sql.SQL("select {} from {} where {} is not null and {} > 0 order by 1").format(
                told(mask), stored_name(spec), sql.Identifier(column), sql.Identifier("customer_id")
            )
            found[spec.name, column] = [v for (v,) in platform.ask(as_text(query))]
    return found


def test_masks_that_are_not_stored_yet_are_computed(filled: Platform, connect: Connect) -> None:
    analyst = connect("analyst")
    query = "select * from gold.dim_customer order by customer_key"
    seen, stored = ask(analyst, query), masks_stored(filled)
    # As an earlier release left it, which stored none.
    for mask in stored_masks(catalog().specs["gold.dim_customer"]).values():
        execute(
            filled,
            f'alter table gold.dim_customer_stored rename "{mask.name}" to "{mask.of.name}~0"',
        )
    execute(filled, "delete from meta.installed")
    with transaction(filled.warehouse.pool) as connection, connection.cursor() as cursor:
        steps = plan_migration(cursor, SPECS, catalog().selects).steps
    assert not any(step.loses_data for step in steps)
    migrate(filled, SPECS)
    assert set(masks_stored(filled)["dim_customer", "email"]) == {None}
    assert ask(analyst, query) == seen
    assert filled.build().succeeded
    assert set(masks_stored(filled)["dim_customer", "email"]) == {None}, "nothing is built for it"
    assert filled.build(force=True).succeeded
    assert masks_stored(filled) == stored
    assert ask(analyst, query) == seen


def test_masks_are_no_difference_between_versions(filled: Platform) -> None:
    mask = stored_masks(catalog().specs["gold.dim_customer"])["email"].name
    execute(filled, f'update gold.dim_customer_stored set "{mask}" = null')
    assert filled.build("gold.dim_customer", force=True).succeeded
    with transaction(filled.warehouse.pool) as connection:
        found = difference(connection, "gold.dim_customer", date(2025, 1, 1), 1, 2)
    assert found.rows_changed == 0
    assert mask not in repr(found)


def test_a_select_may_have_untyped_values_in_personal_columns(filled: Platform) -> None:
    spec = catalog().specs["gold.dim_customer"]
    with transaction(filled.warehouse.pool) as connection, connection.cursor() as cursor:
        stage = create_stage(cursor, spec, [date(2031, 1, 1)])
        values = {"customer_key": "7", "customer_id": "7", "valid_from": "'2031-01-05'",
                  "email": "'ann@example.org'", "is_deleted": "false"}  # fmt: skip
        row = ", ".join(values.get(name, "null") for name in stage.columns)
        fill_from_select(cursor, stage, f"select {row}")
        mask = stored_masks(spec)["email"].name
        cursor.execute(
            sql.SQL("select {}, email, created_at from {}").format(
                sql.Identifier(mask), stage.parent
            )
        )
        assert cursor.fetchall() == [("a***@example.org", "ann@example.org", None)]
        connection.rollback()


def test_a_version_with_masks_of_another_making_comes_back(
    filled: Platform, connect: Connect
) -> None:
    analyst = connect("analyst")
    query = "select * from gold.dim_customer order by customer_key"
    seen = ask(analyst, query)
    ((leaf,),) = filled.ask(
        "select leaf from meta.versions where table_name = 'gold.dim_customer' and is_current"
    )
    filled.land("crm/customers_2025-01b.csv", CUSTOMERS.replace("zebulon@", "zeb@"))
    assert filled.build().succeeded
    assert ask(analyst, query) != seen
    assert masks_stored(filled) == masks_computed(filled)
    mask = stored_masks(catalog().specs["gold.dim_customer"])["email"].name
    execute(filled, f'alter table months."{leaf}" rename "{mask}" to "email~0"')
    execute(filled, f'update months."{leaf}" set "email~0" = \'old\'')
    rollback(
        filled.warehouse.pool,
        catalog().specs["gold.dim_customer"],
        date(2025, 1, 1),
        1,
        Keeping(versions=3, days=30),
    )
    assert ask(analyst, query) == seen
