"""After any history, the tables equal those of one clean build from the files that count.

Hypothesis plays histories of all that real exports do: land, correct, shrink, move, copy, drift,
withdraw, mend, build some months, by force as well, roll back, break off. After each, everything is
built and compared with a fresh warehouse that only ever saw the files that count now.

`pytest metalayer_tests/integration/test_histories.py --histories 2000` plays more of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast, get_args

import dagster as dg
import hypothesis.strategies as st
import psycopg2
import pytest
from hypothesis import HealthCheck, Phase, event, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg2 import sql
from sqlalchemy.exc import SQLAlchemyError

from metalayer.assets.atomic import build_atomically
from metalayer.assets.headless import current_plan
from metalayer.assets.resources import Warehouse
from metalayer.catalog import catalog
from metalayer.contracts.contract import OnNewColumn, TableSpec
from metalayer.errors import MetaLayerError
from metalayer.jobs import table_job
from metalayer.landing import settle as settling
from metalayer.planning import plan
from metalayer.settings import Settings
from metalayer.warehouse import publish as publishing
from metalayer.warehouse import staging
from metalayer.warehouse.build import build_months
from metalayer.warehouse.ddl import identifiers, month_bounds, reading_name, stored_name
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.pool import connect_pool, transaction
from metalayer.warehouse.state import load_state
from metalayer.warehouse.versions import rollback
from metalayer_tests.integration.test_repair import Desk, read, write
from metalayer_tests.story import Platform

pytestmark = pytest.mark.usefixtures("keys_in_parts")

SHARDS = 8
MONTHS = (date(2025, 1, 1), date(2025, 2, 1), date(2025, 3, 1))
HEADERS = {
    "orders": (
        "order_id,customer_id,product_code,order_date,quantity,unit_price,total_amount,status"
    ),
    "erp_sales": "sales_id,product_id,customer_id,quantity,sale_date,sale_amount",
    "customers": (
        "customer_id,first_name,last_name,email,phone,city,state,zip,dob,created_at,updated_at"
    ),
    "crm_customers": "customer_id,customer_name,email,region",
}
FILES = {
    "orders": ("erp/orders_a.csv", "erp/orders_b.csv", "erp/orders_c.csv"),
    "erp_sales": ("erp/erp_sales_a.csv", "erp/erp_sales_b.csv"),
    "customers": ("crm/customers_a.csv", "crm/customers_b.csv"),
    "crm_customers": tuple(f"crm/crm_customers_2025-0{n}.csv" for n in (1, 2, 3)),
}

# --- rows that collide, move and break contracts ------------------------------------------------

number = st.integers(1, 4)
day = st.builds("2025-{:02}-{:02}".format, st.integers(1, 3), st.sampled_from((1, 7, 28)))
#: Some days cannot be read, and some rows break a rule.
landed_day = st.one_of(day, day, day, day, st.just("2025-02-30"))
quantity = st.sampled_from((1, 2, 3, 0))


def _order(key: int, who: int, what: int, when: str, count: int, status: str) -> str:
    return f"{key},{who},P0000{what},{when},{count},5.00,{count * 5}.00,{status}"


def _change(who: int, name: str, city: str, when: str, hour: int) -> str:
    return f"{who},{name},Berg,{name}@x.org,,{city},DK,8000,,2024-12-01,{when} {hour:02}:00:00"


ROWS: dict[str, st.SearchStrategy[str]] = {
    "orders": st.builds(
        _order,
        st.integers(1, 6),
        number,
        st.integers(1, 2),
        landed_day,
        quantity,
        st.sampled_from(("PAID", "CANCELLED", "SHIPPED", "LOST")),
    ),
    "erp_sales": st.builds(
        "{},{},{},{},{},{}.00".format,
        st.integers(1, 4),
        st.integers(1, 2),
        number,
        quantity,
        landed_day,
        st.integers(1, 9),
    ),
    "customers": st.builds(
        _change, number, st.sampled_from(("Ada", "Bo")), st.sampled_from(("Ribe", "Aarhus")),
        day, st.sampled_from((0, 9)),
    ),
    "crm_customers": st.builds(
        "{},{} Berg,{}@x.org,{}".format,
        number,
        st.sampled_from(("Ada", "Bo")),
        st.sampled_from(("ada", "bo")),
        st.sampled_from(("N", "south")),
    ),
}  # fmt: skip


@st.composite
def exports(draw: st.DrawFn) -> tuple[str, str]:
    """A landed file's name and content."""
    source = draw(st.sampled_from(sorted(FILES)))
    rows = draw(st.lists(ROWS[source], min_size=1, max_size=6))
    header = HEADERS[source]
    drift = draw(st.sampled_from(("", "", "", "new", "gone")))
    if drift == "new":
        header, rows = f"{header},tier", [f"{row},gold" for row in rows]
    elif drift == "gone" and source == "crm_customers":
        header, rows = header.rpartition(",")[0], [row.rpartition(",")[0] for row in rows]
    return draw(st.sampled_from(FILES[source])), "\n".join([header, *rows]) + "\n"


# --- a way to build without Dagster, and to break off -------------------------------------------


def build_plainly(
    platform: Platform, months: set[date] | None = None, *, force: bool = False
) -> None:
    """Build what is out of date table by table, as Dagster's steps do."""
    settings_ = platform.warehouse.settings
    # Twice: a calendar is made before the tables whose rows it follows.
    for table in (*catalog().specs, "gold.dim_date"):
        with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
            state = load_state(cursor)
        stale = plan(state, settings_, [table], months, force=force).stale[table]
        for result in build_months(
            platform.warehouse.pool, table_job(table, settings_), sorted(stale), workers=1,
            force=force,
        ):  # fmt: skip
            assert result.outcome != "failed", result.problem


#: Where registering or building may break off: a function that is given a cursor or a connection,
#: by its module.
POINTS = (
    (settling, "_newest_snapshots"),
    (settling, "_settle_keys"),
    (settling, "_count"),
    (staging, "create_stage"),
    (staging, "audit_stage"),
    (staging, "finish_stage"),
    (publishing, "_record"),
    (publishing, "_swap"),
    (publishing, "_confirm"),
)


@contextlib.contextmanager
def broken_off(point: int, at: int) -> Iterator[None]:
    """Have the server end the session at the `at`-th time that a point is reached."""
    module, name = POINTS[point]
    function = getattr(module, name)
    calls = 0

    def wrapped(cursor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(cursor, *args, **kwargs)
        if calls == at:
            cursor.execute("select pg_terminate_backend(pg_backend_pid())")
        return result

    setattr(module, name, wrapped)
    try:
        yield
    except (psycopg2.Error, SQLAlchemyError, MetaLayerError):
        event(f"broken off at {name}")
    finally:
        setattr(module, name, function)


# --- what is compared ---------------------------------------------------------------------------

TYPED = [name for name, spec in catalog().specs.items() if spec.layer != "bronze"]
#: What is recorded of the typed tables; their rows are looked at besides, and those of bronze by
#: file instead of by delivery.
CONTENTS = (
    "select table_name, month, data_version, rows from meta.versions "
    "where is_current and table_name not like 'bronze.%%' and rows > 0 order by 1, 2"
)
BRONZE = (
    "select d.file, d.sha256, b._line, b.month, b._is_latest, b._extra, "
    "to_jsonb(b) ->> 'tier' from bronze.{} as b "
    "join meta.deliveries as d on d.delivery_id = b._delivery_id order by 1, 2, 3"
)
LOADED = (
    "select file, sha256, rows_read, rows_loaded, rows_rejected, rows_superseded from meta.ledger "
    "where status = 'loaded' order by delivery_id"
)


def rows_of(platform: Platform, table: str) -> list[Any]:
    """Every row as a reader sees it, derived columns included; where it came from apart."""
    spec = catalog().spec(table)
    columns = [c.name for c in spec.columns if c.name not in ("_delivery_id", "_line")]
    query = sql.SQL("select row({})::text from {} order by 1").format(
        identifiers(columns), reading_name(spec)
    )
    with transaction(platform.warehouse.pool) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def contents(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"bronze.{name}": platform.ask(BRONZE.format(name)) for name in HEADERS
    }
    found |= {"tables": platform.ask(CONTENTS), "loaded": platform.ask(LOADED)}
    found |= {name: rows_of(platform, name) for name in TYPED}
    found["rejects"] = sorted(
        platform.ask(
            "select table_name, month, d.file, line, violations::text from meta.quarantine "
            "join meta.deliveries as d using (delivery_id) where d.status = 'loaded'"
        ),
        key=repr,
    )
    return found


@contextlib.contextmanager
def contracts_that_say(rules: Mapping[str, OnNewColumn]) -> Iterator[None]:
    """What a new column does, by source, as the contracts of a history say.

    They take snapshots of any size: how much one may shrink is judged by what was there before.
    """
    specs = cast("dict[str, TableSpec]", catalog().specs)
    before = dict(specs)
    for name, spec in before.items():
        if spec.source is not None:
            rule = rules[spec.source.name]
            source = replace(spec.source, max_shrink=1.0, on_new_column=rule)
            specs[name] = replace(spec, source=source)
    try:
        yield
    finally:
        specs.update(before)


class History(RuleBasedStateMachine):
    """One history: a warehouse, its landing zone, and every content that ever landed."""

    clone: Callable[[], contextlib.AbstractContextManager[str]]

    @initialize(
        several=st.lists(exports(), min_size=3, max_size=6),
        rules=st.fixed_dictionaries(
            {source: st.sampled_from(get_args(OnNewColumn)) for source in catalog().sources}
        ),
    )
    def begin(self, several: Sequence[tuple[str, str]], rules: Mapping[str, OnNewColumn]) -> None:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(contracts_that_say(rules))
        self.platform = self.new_platform()
        self.landed: dict[str, bytes] = {}
        self.names: set[str] = set()
        self.exports_land_together(several)
        self.everything_is_built()

    def new_platform(self) -> Platform:
        url = self.stack.enter_context(self.clone())
        home = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        settings_ = Settings(
            _env_file=None, home=home, landing=home / "landing", database_url=url, workers=1
        )
        pool = connect_pool(url, 3)
        self.stack.callback(pool.dispose)
        instance = self.stack.enter_context(dg.DagsterInstance.ephemeral())
        return Platform(Warehouse(pool, settings_), instance)

    def land(self, name: str, content: bytes) -> None:
        self.landed[hashlib.sha256(content).hexdigest()] = content
        self.names.add(name)
        self.platform.land(name, content)

    # What happens -------------------------------------------------------------------------------

    @rule(export=exports())
    def an_export_lands(self, export: tuple[str, str]) -> None:
        event("corrected" if export[0] in self.names else "landed")
        self.land(export[0], export[1].encode())

    @rule(several=st.lists(exports(), min_size=2, max_size=5))
    def several_exports_land(self, several: Sequence[tuple[str, str]]) -> None:
        self.exports_land_together(several)

    def exports_land_together(self, several: Sequence[tuple[str, str]]) -> None:
        for name, content in several:
            self.land(name, content.encode())

    @precondition(lambda self: self.names)
    @rule(pick=st.integers(0, 99), suffix=st.sampled_from(("x", "y")))
    def a_copy_lands(self, pick: int, suffix: str) -> None:
        name = sorted(self.names)[pick % len(self.names)]
        path = self.platform.landing / name
        if path.exists():
            stem, _, end = name.rpartition("_")
            # The name of a snapshot says its month.
            copy = f"{stem}_{suffix}_{end}" if "crm_customers" in name else f"{stem}_{suffix}.csv"
            self.land(copy, path.read_bytes())

    @precondition(lambda self: self.names)
    @rule(pick=st.integers(0, 99), keep=st.integers(1, 3))
    def a_file_shrinks(self, pick: int, keep: int) -> None:
        name = sorted(self.names)[pick % len(self.names)]
        path = self.platform.landing / name
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            self.land(name, b"".join(lines[: 1 + keep]))

    @precondition(lambda self: self.names)
    @rule(pick=st.integers(0, 99))
    def a_file_is_withdrawn(self, pick: int) -> None:
        self.platform.register()
        files = {file for (file,) in self.platform.ask("select file from meta.ledger")}
        names = sorted(files)
        if names:
            self.platform.withdraw(names[pick % len(names)])

    @rule(months=st.sets(st.sampled_from(MONTHS), min_size=1))
    def some_months_are_built(self, months: set[date]) -> None:
        self.platform.register()
        build_plainly(self.platform, months)

    @rule(months=st.sets(st.sampled_from(MONTHS), min_size=1))
    def some_months_are_built_by_force(self, months: set[date]) -> None:
        self.platform.register()
        build_plainly(self.platform, months, force=True)

    @rule(when=day, pick=st.integers(1, 3))
    def some_of_the_quarantine_is_mended(self, when: str, pick: int) -> None:
        desk = Desk(self.platform, Path(self.stack.enter_context(tempfile.TemporaryDirectory())))
        path, _ = desk.export()
        rows = read(path)
        if not rows:
            return
        for row in rows[::pick]:
            dated = "order_date" if row["_source"] == "erp/orders" else "sale_date"
            total = "total_amount" if dated == "order_date" else "sale_amount"
            row |= {dated: when, "quantity": "2", total: "10.00"}
            if "status" in row and dated == "order_date":
                row["status"] = "PAID"
        write(path, rows)
        for name in desk.land(path).names:
            event("mended")
            content = (self.platform.landing / name).read_bytes()
            self.landed[hashlib.sha256(content).hexdigest()] = content
            self.platform.land(name, content)

    @rule()
    def all_is_built(self) -> None:
        self.everything_is_built()

    def everything_is_built(self) -> None:
        self.platform.register()
        build_plainly(self.platform)

    @rule()
    def everything_is_built_at_once(self) -> None:
        self.platform.register()
        warehouse = self.platform.warehouse
        done = build_atomically(warehouse, current_plan(warehouse), lambda _result: None)
        # What was rolled back differs on purpose from what it was made from, and may be told off.
        is_restored = self.platform.one(
            "select exists (select from meta.versions where is_current and restores is not null)"
        )
        assert done.succeeded or is_restored, done.failed_checks

    @rule(point=st.integers(0, len(POINTS) - 1), at=st.integers(1, 12))
    def a_build_breaks_off(self, point: int, at: int) -> None:
        with broken_off(point, at):
            self.platform.register()
            build_plainly(self.platform)

    @rule(pick=st.integers(0, 999))
    def a_month_is_rolled_back(self, pick: int) -> None:
        kept = self.platform.ask(
            "select table_name, month, version, leaf from meta.versions where not is_current "
            "and table_name not like 'bronze.%%' order by 1, 2, 3"
        )
        if not kept:
            return
        table, month, version, leaf = kept[pick % len(kept)]
        before = self.rows_in(sql.Identifier(LEAVES, leaf), table, month)
        rollback(self.platform.warehouse.pool, catalog().spec(table), month, version)
        event("rolled back")
        assert self.rows_in(stored_name(catalog().spec(table)), table, month) == before

    def rows_in(self, name: sql.Composable, table: str, month: date) -> list[Any]:
        """The rows of a month in the table of that name."""
        spec = catalog().spec(table)
        query = sql.SQL("select row({})::text from {} where {c} >= %s and {c} < %s order by 1")
        query = query.format(
            identifiers(c.name for c in spec.stored), name, c=sql.Identifier(spec.month_column)
        )
        with transaction(self.platform.warehouse.pool) as connection, connection.cursor() as cursor:
            cursor.execute(query, month_bounds(month))
            return list(cursor.fetchall())

    # What must hold -----------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "platform"):
            return
        try:
            self.compare()
        finally:
            self.stack.close()

    def compare(self) -> None:
        """Build everything, and hold it against a clean build of the files that count."""
        self.platform.register()
        restored = self.platform.ask(
            "select table_name, month from meta.versions where is_current and restores is not null"
        )
        self._go_forward(restored)
        build_plainly(self.platform)
        assert self.platform.balances()
        clean = self.new_platform()
        for file, sha256 in self.platform.ask(
            "select file, sha256 from meta.ledger where status = 'loaded' order by delivery_id"
        ):
            clean.land(file, self.landed[sha256])
        clean.register()
        build_plainly(clean)
        expected, actual = contents(clean), contents(self.platform)
        for name, rows in expected.items():
            assert actual[name] == rows, name
        event(f"{min(len(expected['loaded']), 5)} files count")

    def _go_forward(self, restored: Sequence[tuple[str, date]]) -> None:
        """Rolled back months stand until they are built again: do so."""
        platform = self.platform
        for table, month in restored:
            job = table_job(table, platform.warehouse.settings)
            list(build_months(platform.warehouse.pool, job, [month], workers=1, force=True))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_history_equals_a_clean_build(
    shard: int,
    pytestconfig: pytest.Config,
    clone: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    histories = int(pytestconfig.getoption("--histories"))

    @seed(shard)
    class Sharded(History):
        pass

    Sharded.clone = staticmethod(clone)  # type: ignore[assignment]
    run_state_machine_as_test(
        Sharded,
        settings=settings(
            max_examples=-(-histories // SHARDS),
            stateful_step_count=8,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
