"""The command `demo`: from the committed sample to tables one can look at.

What it shows of gold names the tables of the sample; nothing else in the command line does.
Personal data stays off the screen, made up as it is here.
"""

from __future__ import annotations

import filecmp
import itertools
from typing import TYPE_CHECKING, Any

from metalayer.cli.build import LOADING, print_failures, say_registered
from metalayer.console import Column, print_table, say, say_next, working
from metalayer.errors import ConfigurationError

if TYPE_CHECKING:
    from metalayer.cli.running import Build
    from metalayer.inspection import TableStatus
    from metalayer.landing.ledger import Registration
    from metalayer.settings import Settings

_TOP_CUSTOMERS = """
select customer_id, segment, orders, lifetime_value, last_order_on
from gold.customer_360_current
order by lifetime_value desc, customer_id
limit 5
"""
_MONTHLY_SALES = """
select to_char(month, 'YYYY-MM'), orders, buyers, revenue, invoiced_amount
from gold.agg_monthly_sales
order by month desc
limit 6
"""
_KPIS = """
select replace(kpi, '_', ' '), trim_scale(value)::text, unit
from gold.business_kpis
where month = (select max(month) from gold.agg_monthly_sales where revenue > 0)
order by kpi
"""


def demo() -> None:
    """Build everything from the sample that comes with MetaLayer, and show what came of it.

    Starts the embedded PostgreSQL (or uses METALAYER_DATABASE_URL), lands the sample's files and
    builds every table. Running it again changes nothing.
    """
    import typer

    from metalayer.settings import Settings

    settings = Settings.load()
    say(f"The warehouse: PostgreSQL {settings.database_shown}")
    with working(LOADING):
        from metalayer.cli import running

        landed = land_sample(settings)
    say(landed)
    with running.platform(settings) as (warehouse, instance):
        done = running.run(warehouse, instance, registered=_say_registered)
        if done.failures:
            print_failures(done)
            raise typer.Exit(1)
        _show(warehouse, done)
    say_next(
        ("status", "each table"),
        ("ledger", "each file, and what became of it"),
        ("rejects silver.orders", "rows that broke a contract"),
        ('query "table gold.agg_monthly_sales"', "ask in SQL"),
        ("up", "the web interface, and tables that follow by themselves"),
        ("land FILE...", "take in exports of your own"),
    )


def _say_registered(registration: Registration) -> None:
    say_registered(registration)
    if any(d.status == "rejected" for d in registration.deliveries):
        say("  (some files of the sample are broken on purpose; the ledger says how)", "dim")


def land_sample(settings: Settings) -> str:
    """Copy the sample's files that are not in the landing zone as they are; says how many.

    Raises:
        ConfigurationError: when this MetaLayer comes without the sample.
    """
    from metalayer.catalog import catalog
    from metalayer.landing.files import land
    from metalayer.settings import PROJECT_ROOT

    sample = PROJECT_ROOT / "data" / "sample"
    files = sorted(p for p in sample.rglob("*.csv*") if p.name.endswith((".csv", ".csv.gz")))
    if not files:
        raise ConfigurationError(
            f"The sample is not there: {sample} has no CSV files",
            "Run the demo in a clone of MetaLayer, or make files with `metalayer generate`.",
        )
    new = []
    for path in files:
        there = settings.landing / path.relative_to(sample)
        if not (there.is_file() and filecmp.cmp(path, there, shallow=False)):
            new.append(path)
    sources = [s.source for s in catalog().sources.values() if s.source is not None]
    land(new, settings.landing, sources)
    return f"{len(new)} of {len(files)} files of data/sample copied to {settings.landing}"


def _show(warehouse: Any, done: Build) -> None:
    from metalayer import inspection
    from metalayer.warehouse.pool import transaction

    with transaction(warehouse.pool) as connection:
        tables = inspection.table_status(connection)
        answers = []
        with connection.cursor() as cursor:
            for query in (_TOP_CUSTOMERS, _MONTHLY_SALES, _KPIS):
                cursor.execute(query)
                answers.append(cursor.fetchall())
    _print_layers(tables, done)
    customers, sales, kpis = answers
    print_table(
        [
            Column("customer", is_number=True),
            Column("segment"),
            Column("orders", is_number=True),
            Column("lifetime value", is_number=True),
            Column("last order"),
        ],
        [(str(c), segment, n, f"{value:,}", day) for c, segment, n, value, day in customers],
        title="\nBest customers (gold.customer_360_current)",
    )
    print_table(
        [
            Column("month"),
            Column("orders", is_number=True),
            Column("buyers", is_number=True),
            Column("revenue", is_number=True),
            Column("invoiced", is_number=True),
        ],
        [(m, o, b, f"{r:,}", f"{i:,}") for m, o, b, r, i in reversed(sales)],
        title="\nSales by month (gold.agg_monthly_sales)",
    )
    print_table(
        [Column("KPI"), Column("value", is_number=True), Column("unit")],
        kpis,
        title=f"\nKPIs of {sales[0][0]} (gold.business_kpis)" if sales else "\nKPIs",
    )


def _print_layers(tables: list[TableStatus], done: Build) -> None:
    seconds = {t.table: t.seconds for t in done.tables}
    rows = []
    for layer, members in itertools.groupby(tables, key=lambda t: t.layer):
        each = list(members)
        rows.append(
            (
                layer,
                len(each),
                sum(t.rows_read for t in each),
                sum(t.rows for t in each),
                sum(t.quarantined for t in each),
                sum(t.superseded for t in each),
                sum(seconds.get(t.table, 0.0) for t in each),
            )
        )
    print_table(
        [
            Column("layer"),
            Column("tables", is_number=True),
            Column("rows\nread", is_number=True),
            Column("\npublished", is_number=True),
            Column("\nquarantined", is_number=True),
            Column("\nsuperseded", is_number=True),
            Column("\nseconds", is_number=True),
        ],
        rows,
    )
    if done.outcome.months:
        say(f"Built in {done.seconds:.1f} s. Read = published + quarantined + superseded, in each.")
    else:
        say("Nothing to do: all tables are up to date.")
