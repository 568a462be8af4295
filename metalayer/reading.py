"""Published rows as pandas frames: what `metalayer.read` gives an analyst.

Does not belong here: any writing, or Dagster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date

import pandas as pd
import sqlalchemy as sa
from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.contracts.contract import TableSpec
from metalayer.errors import UsageError, WarehouseError
from metalayer.jobs import months_between
from metalayer.settings import Settings
from metalayer.warehouse.ddl import next_month
from metalayer.warehouse.pool import connect_pool
from metalayer.warehouse.server import warehouse_server

_MONTHS = re.compile(r"(\d{4})-(\d{2})(?:\.\.(\d{4})-(\d{2}))?")
# What pandas would make of a column with gaps is a float or an object: name the type instead.
_DTYPES = {"bigint": "Int64", "boolean": "boolean", "text": "string"}


def read(table: str, months: str | None = None) -> pd.DataFrame:
    """Read a published table, or some months of it, as a pandas frame.

    Args:
        table: "gold.fact_sales".
        months: "2025-01" or "2025-01..2025-03", both ends included; None: all months.

    Returns:
        One row a row, columns as in the contract. Amounts are exact (`decimal.Decimal`), dates
        and times are `datetime64`.

    Raises:
        UsageError: for an unknown table or unreadable months.
        WarehouseError: when there is no warehouse, the table was never built, or PostgreSQL cannot
            be reached.
    """
    catalog().spec(table)
    wanted = parse_months(months) if months is not None else None
    settings = Settings.load()
    if settings.database_url is None and not settings.pgdata.exists():
        raise WarehouseError(
            f"There is no warehouse at {settings.home}",
            "Set METALAYER_HOME to the folder that has one, or build one with `metalayer demo`",
        )
    with warehouse_server(settings) as server:
        pool = connect_pool(server.warehouse_url, 1)
        try:
            return read_months(pool, table, wanted)
        finally:
            pool.dispose()


def read_months(pool: Engine, table: str, months: Sequence[date] | None = None) -> pd.DataFrame:
    """Rows of the given months (None: all) over an open pool."""
    spec = catalog().spec(table)
    source = sa.table(spec.name, *(sa.column(c.name) for c in spec.columns), schema=spec.layer)
    query = sa.select(source)
    month = source.c[spec.month_column]
    if months is not None:
        query = query.where(
            sa.or_(sa.false(), *(sa.and_(month >= m, month < next_month(m)) for m in months))
        )
    query = query.order_by(month, *(source.c[name] for name in spec.key))
    with pool.connect() as connection:
        if not sa.inspect(connection).has_table(spec.name, schema=spec.layer):
            raise WarehouseError(f"{table} has not been built yet", "Build it: `metalayer build`")
        # Coerced, exact amounts would become floating point numbers.
        frame = pd.read_sql(query, connection, coerce_float=False)
    return _typed(frame, spec)


def parse_months(text: str) -> list[date]:
    """First days of the months in "2025-01" or "2025-01..2025-03".

    Raises:
        UsageError: when `text` is neither.
    """
    match = _MONTHS.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        first = date(int(match[1]), int(match[2]), 1)
        last = date(int(match[3]), int(match[4]), 1) if match[3] else first
    except ValueError:
        raise UsageError(
            f"'{text}' names no months", "Write 2025-01, or 2025-01..2025-03"
        ) from None
    if last < first:
        raise UsageError(f"'{text}' ends before it begins", f"Write {last:%Y-%m}..{first:%Y-%m}")
    return months_between(first, last)


def _typed(frame: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    for c in spec.columns:
        if c.type in _DTYPES:
            frame[c.name] = frame[c.name].astype(_DTYPES[c.type])
        elif c.type in ("date", "timestamp"):
            # In microseconds: a birth date of 1066 or an end of 9999 fits.
            frame[c.name] = frame[c.name].astype("datetime64[us]")
    return frame
