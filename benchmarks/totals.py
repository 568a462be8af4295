"""What the gold tables hold, in figures by which contenders are compared to the cent.

That is the rows of every gold table and the sum of every column of money or other exact numbers.
Members of dimensions that stand for "unknown" are left out: only MetaLayer writes them. The column
of KPIs is as well: it mixes units, and DuckDB divides in floating point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from decimal import Decimal

import psycopg2

from benchmarks.contender import BenchmarkError, Run, Totals
from benchmarks.selects import built_tables
from metalayer.contracts.contract import TableSpec

_MIXED = {"gold.business_kpis.value"}


def postgres_totals(run: Run) -> Totals:
    """Totals of the schema `gold` in the run's database."""
    with contextlib.closing(psycopg2.connect(run.url)) as connection, connection.cursor() as cursor:
        cursor.execute(totals_query())
        return dict(cursor.fetchall())


def totals_query() -> str:
    """A query for rows of (what, total) that PostgreSQL and DuckDB both understand."""
    gold = (spec for spec in built_tables() if spec.layer == "gold")
    return "\nunion all\n".join(part for spec in gold for part in _parts(spec))


def compare(name: str, found: Totals, reference: str, expected: Totals) -> None:
    """Raise `BenchmarkError`, naming the first few, when totals differ."""
    differing = [
        f"{what} is {found.get(what)}, not {expected.get(what)}"
        for what in sorted({*found, *expected})
        if found.get(what) != expected.get(what)
    ]
    if differing:
        raise BenchmarkError(
            f"{name} comes to other totals than {reference}: {'; '.join(differing[:5])}"
        )


def _parts(spec: TableSpec) -> Iterator[str]:
    known = f" where {spec.key[0]} <> 0" if spec.unknown_member is not None else ""
    rows = "cast(count(*) as numeric(38, 4))"
    yield f"select '{spec.full_name}', {rows} from {spec.full_name}{known}"
    for column in spec.stored:
        what = f"{spec.full_name}.{column.name}"
        if column.dtype.is_decimal() and what not in _MIXED:
            total = f"cast(coalesce(sum({column.name}), 0) as numeric(38, 4))"
            yield f"select '{what}', {total} from {spec.full_name}"


def as_text(totals: Totals) -> dict[str, str]:
    """The totals for a JSON file: exact, without closing zeros."""
    return {what: format(Decimal(total).normalize(), "f") for what, total in totals.items()}
