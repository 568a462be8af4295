"""Published rows as pandas frames: what `metalayer.read` gives an analyst.

Does not belong here: any writing, Dagster, or which rows a table had in the past (`asof.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
from psycopg2 import sql
from sqlalchemy import Engine

from metalayer.asof import AsOf, parse_as_of, table_as_of
from metalayer.catalog import catalog
from metalayer.contracts.contract import TableSpec
from metalayer.errors import UsageError, WarehouseError
from metalayer.governance.plain import open_unmasked
from metalayer.jobs import months_between
from metalayer.settings import Settings
from metalayer.warehouse.acts import record_now
from metalayer.warehouse.ddl import identifiers, next_month
from metalayer.warehouse.evolve import evolved_columns, with_evolved
from metalayer.warehouse.keys import opener
from metalayer.warehouse.pool import transaction, warehouse_pool

_MONTHS = re.compile(r"(\d{4})-(\d{2})(?:\.\.(\d{4})-(\d{2}))?")
# What pandas would make of a column with gaps is a float or an object: name the type instead.
_DTYPES = {"bigint": "Int64", "boolean": "boolean", "text": "string"}
# Type -> how a value of it is read that was encrypted as text; others are texts that pandas reads.
_FROM_TEXT: Mapping[str, Callable[[str], Any]] = {
    "bigint": int,
    "numeric": Decimal,
    "double precision": float,
    "boolean": "true".__eq__,
}


def read(
    table: str,
    months: str | None = None,
    as_of: int | str | date | datetime | None = None,
    *,
    decrypt: bool = False,
) -> pd.DataFrame:
    """Read a published table, or some months of it, as a pandas frame.

    Args:
        table: "gold.fact_sales".
        months: "2025-01" or "2025-01..2025-03", both ends included; None: all months.
        as_of: An earlier state. A number is that version of each month that is read. A time is what
            readers saw at that instant: `datetime` (UTC unless it has a zone), `date` (its first
            instant), or either as ISO text. None: as it is now.
        decrypt: Whether encrypted columns are opened, with the key from the environment or the key
            file. It is noted in the audit log.

    Returns:
        One row a row, columns as in the contract. Amounts are exact (`decimal.Decimal`), dates
        and times are `datetime64`.

    Raises:
        UsageError: for an unknown table, unreadable months or time, or a month that has not had
            that version; to decrypt, for a database role that sees personal values masked.
        ConfigurationError: to decrypt, when the key is not at hand.
        WarehouseError: when there is no warehouse, the table was never built, what it was then is
            not kept any more, or PostgreSQL cannot be reached.
    """
    catalog().spec(table)
    wanted = parse_months(months) if months is not None else None
    moment = parse_as_of(as_of) if as_of is not None else None
    settings = Settings.load()
    if settings.database_url is None and not settings.pgdata.exists():
        raise WarehouseError(
            f"There is no warehouse at {settings.home}",
            "Set METALAYER_HOME to the folder that has one, or build one with `metalayer demo`",
        )
    with warehouse_pool(settings) as pool:
        if decrypt:
            with transaction(pool) as connection:
                open_unmasked(connection, table)
            record_now(settings, "decrypted_read", table)
        return read_months(pool, table, wanted, moment, settings if decrypt else None)


def read_months(
    pool: Engine,
    table: str,
    months: Sequence[date] | None = None,
    as_of: AsOf | None = None,
    decrypting: Settings | None = None,
) -> pd.DataFrame:
    """Rows of the given months (None: all), as they are or were, over an open pool.

    Args:
        decrypting: Where the keys are by which encrypted columns are to be opened; None: they stay
            as they are.
    """
    spec = catalog().spec(table)
    with transaction(pool) as connection, connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s) is not null", (table,))
        if not cursor.fetchone()[0]:
            raise WarehouseError(f"{table} has not been built yet", "Build it: `metalayer build`")
        spec = with_evolved(spec, evolved_columns(cursor, spec))
        names = [c.name for c in spec.columns]
        source: sql.Composable = sql.Identifier(spec.layer, spec.name)
        if as_of is not None:
            past = table_as_of(connection, table, as_of, months)
            source = sql.SQL("({})").format(sql.SQL(past or ""))
        cursor.execute(
            sql.SQL("select {columns} from {source} as t where {months} order by {order}").format(
                columns=identifiers(names),
                source=source,
                months=_within(spec.month_column, months),
                order=identifiers([spec.month_column, *spec.key]),
            )
        )
        # Coerced, exact amounts would become floating point numbers.
        frame = pd.DataFrame.from_records(cursor.fetchall(), columns=names, coerce_float=False)
        if decrypting is not None:
            with_keys = opener(cursor, decrypting)
            spec = _in_plain(spec)
            for c in spec.sealed:
                read_text = _FROM_TEXT.get(c.type.partition("(")[0], str)
                different = frame[c.name].dropna().unique()
                plain = {text: read_text(with_keys.opened(text)) for text in different}
                frame[c.name] = frame[c.name].map(plain)
    return _typed(frame, spec)


def _in_plain(spec: TableSpec) -> TableSpec:
    """The table with the types that encrypted columns have in plain; in bronze they are texts."""
    if spec.layer == "bronze":
        return spec
    columns = tuple(replace(c, type=c.sealed_type or c.type) for c in spec.columns)
    return replace(spec, columns=columns)


def _within(column: str, months: Sequence[date] | None) -> sql.Composable:
    """Condition for the rows of `months`, as ranges that PostgreSQL can prune partitions by."""
    if months is None:
        return sql.SQL("true")
    ranges = [
        sql.SQL("({c} >= {start} and {c} < {end})").format(
            c=sql.Identifier(column),
            start=sql.Literal(month),
            end=sql.Literal(next_month(month)),
        )
        for month in months
    ]
    return sql.SQL("({})").format(sql.SQL(" or ").join(ranges)) if ranges else sql.SQL("false")


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
