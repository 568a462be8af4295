"""Read-only questions to the warehouse: status, ledger, rejects, and whatever a user asks in SQL.

Everything is answered by PostgreSQL alone, so a command that only asks does without the contracts,
Dagster and the data frames, whose import takes seconds. Printing the answers belongs to the
commands; nothing here writes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
from psycopg2 import errorcodes, sql
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from metalayer.errors import UsageError, WarehouseError
from metalayer.lateness import punctuality
from metalayer.settings import Settings, without_password
from metalayer.warehouse.server import SESSION, tls_advice, warehouse_server

_FETCHED_AT_ONCE = 5000
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_SHORT_ZONE = re.compile(r"([+-]\d\d)$")


@dataclass(frozen=True)
class TableStatus:
    """One table, over all its published months.

    `rows_read` = `rows` + `quarantined` + `superseded`; in bronze the records that could not be
    read count as read and quarantined.

    Attributes:
        months: how many; `first_month` and `last_month` as "2025-01".
        fresh: whether the newest publish is younger than the contract asks; None if never built.
        due_month: the newest month that is to be there by now; None where none is due.
        late_since: when the first missing month was due; None where none is missing.
        waits_for: the tables that lack `due_month`, of it and what it is made from.
        failed_months: "2025-01" -> why it failed, of months that were not published since.
        rolled_back: "2025-01" -> the earlier version that a rollback brought back.
        expired: months whose rows were kept as long as the contract says.
    """

    layer: str
    table: str
    months: int
    first_month: str | None
    last_month: str | None
    rows_read: int
    rows: int
    quarantined: int
    superseded: int
    last_published: datetime | None
    fresh: bool | None
    fresh_within_days: float
    owner: str
    due_month: str | None = None
    late_since: datetime | None = None
    waits_for: list[str] = field(default_factory=list)
    failed_months: dict[str, str] = field(default_factory=dict)
    rolled_back: dict[str, int] = field(default_factory=dict)
    expired: int = 0


@dataclass(frozen=True)
class LedgerEntry:
    """One delivery; `rows_read` = `rows_loaded` + `rows_rejected` + `rows_superseded`.

    `rows_erased` records of erased persons were taken out of the file, or made anonymous in it.
    """

    file: str
    source: str
    sha256: str
    status: str
    rows_read: int
    rows_loaded: int
    rows_rejected: int
    rows_superseded: int
    months: list[str]
    delivery_id: int
    reason: str | None
    extra_columns: list[str]
    missing_columns: list[str]
    drift: list[str]
    registered_at: datetime
    rows_erased: int


@dataclass(frozen=True)
class Reject:
    """One quarantined row, with the first rule it breaks; `violations` are all of them."""

    table: str
    month: str | None
    file: str | None
    line: int | None
    column: str | None
    rule: str
    value: str | None
    raw: str | None
    violations: list[dict[str, Any]]


@contextlib.contextmanager
def reading(settings: Settings, progress: Callable[[str], None] | None = None) -> Iterator[Any]:
    """A connection that can only read, or None where no warehouse has been made yet.

    An embedded server is started, or joined, only where there is one. The whole block sees one
    state of the warehouse.

    Raises:
        WarehouseError: when the server cannot be started or reached.
    """
    with contextlib.ExitStack() as stack:
        if settings.database_url is not None:
            url = settings.database_url.get_secret_value()
        elif (settings.pgdata / "PG_VERSION").exists():
            url = stack.enter_context(warehouse_server(settings, progress)).warehouse_url
        else:
            yield None
            return
        connection = stack.enter_context(contextlib.closing(_connect(url)))
        with connection.cursor() as cursor:
            # By the catalog: an analyst may not look into the schema.
            cursor.execute(
                "select exists (select from pg_class as c join pg_namespace as n "
                "on n.oid = c.relnamespace where n.nspname = 'meta' and c.relname = 'tables')"
            )
            (is_installed,) = cursor.fetchone()
        # What is asked sees the warehouse as it is then, not as it was at that look.
        connection.rollback()
        yield connection if is_installed else None


def _connect(url: str) -> Any:
    try:
        connection = psycopg2.connect(
            libpq_url(url), application_name="metalayer", connect_timeout=10
        )
    except psycopg2.Error as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WarehouseError(
            f"PostgreSQL at {without_password(libpq_url(url))} cannot be reached: {lines[0]}",
            tls_advice(error)
            or "`metalayer doctor` shows which server is used and whether it answers.",
        ) from None
    with connection.cursor() as cursor:
        cursor.execute(SESSION)
    connection.commit()
    # One transaction for all that follows: a build that publishes meanwhile changes no answer.
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    return connection


def libpq_url(url: str) -> str:
    """A SQLAlchemy URL as psql and psycopg2 take it."""
    return re.sub(r"^postgresql\+\w+:", "postgresql:", url)


def table_status(
    connection: Any, start_month: date = date.min, now: datetime | None = None
) -> list[TableStatus]:
    """Every table there is, bronze first, upstream before downstream; zeros where never built.

    Args:
        start_month: No month before it is due.
        now: The moment at which tables are late or not; None: this one.
    """
    with connection.cursor() as cursor:
        due = punctuality(cursor, start_month, now)
        failed = _failed_months(cursor)
        restored, expired = _rolled_back(cursor), _expired(cursor)
    return [
        replace(
            table,
            due_month=month.strftime("%Y-%m") if (month := due[table.table].due_month) else None,
            late_since=due[table.table].late_since,
            waits_for=list(due[table.table].waits_for),
            failed_months=failed.get(table.table, {}),
            rolled_back=restored.get(table.table, {}),
            expired=expired.get(table.table, 0),
        )
        for table in _published_status(connection)
    ]


def _rolled_back(cursor: Any) -> dict[str, dict[str, int]]:
    """Table -> month -> the version that a rollback brought back, as long as it stands."""
    # A warehouse of an earlier release does not say so.
    cursor.execute(
        "select table_name, to_char(month, 'YYYY-MM'), (to_jsonb(v) ->> 'restores')::int "
        "from meta.versions as v where is_current and to_jsonb(v) ->> 'restores' is not null "
        "order by 1, 2"
    )
    return _by_month(cursor)


def _expired(cursor: Any) -> dict[str, int]:
    """Table -> how many of its months have expired."""
    cursor.execute("select to_regclass('meta.expired_months') is not null")
    if cursor.fetchone() == (False,):
        return {}
    cursor.execute("select table_name, count(*) from meta.expired_months group by 1")
    return dict(cursor.fetchall())


def _failed_months(cursor: Any) -> dict[str, dict[str, str]]:
    """Table -> month -> why its last audit failed, unless it was published since."""
    cursor.execute(
        "select f.table_name, to_char(f.month, 'YYYY-MM'), f.problem "
        "from meta.failed_months as f left join meta.versions as v "
        "on v.table_name = f.table_name and v.month = f.month and v.is_current "
        "where v.published_at is null or v.published_at < f.failed_at order by 1, 2"
    )
    return _by_month(cursor)


def _by_month(cursor: Any) -> dict[str, dict[str, Any]]:
    """Rows of table, month and what is said of it: table -> month -> that."""
    found: dict[str, dict[str, Any]] = {}
    for table, month, said in cursor.fetchall():
        found.setdefault(table, {})[month] = said
    return found


def _published_status(connection: Any) -> list[TableStatus]:
    return _all(
        connection,
        TableStatus,
        """
        with filed as (
            select table_name, count(*) as rows from meta.quarantine group by table_name
        ),
        published as (
            select table_name, count(*) as months, min(month) as first, max(month) as last,
                sum(rows_read) as rows_read, sum(rows) as rows, max(published_at) as published_at,
                sum(rows_quarantined) as quarantined, sum(rows_superseded) as superseded
            from meta.versions
            where is_current
            group by table_name
        )
        select
            t.layer,
            t.table_name,
            coalesce(p.months, 0),
            to_char(p.first, 'YYYY-MM'),
            to_char(p.last, 'YYYY-MM'),
            -- Records that landing could not read never were rows of a bronze month.
            (coalesce(p.rows_read, 0) + coalesce(f.rows - coalesce(p.quarantined, 0), 0))::bigint,
            coalesce(p.rows, 0)::bigint,
            coalesce(f.rows, p.quarantined, 0)::bigint,
            coalesce(p.superseded, 0)::bigint,
            p.published_at,
            p.published_at >= now() - t.fresh_within,
            round(extract(epoch from t.fresh_within) / 86400, 2)::float8,
            t.owner
        from meta.tables as t
        left join published as p using (table_name)
        left join filed as f on f.table_name = t.table_name and t.layer = 'bronze'
        order by array_position(array['bronze', 'silver', 'gold'], t.layer), t.position
        """,
    )


def ledger(connection: Any) -> list[LedgerEntry]:
    """Every delivery, oldest first."""
    return _all(
        connection,
        LedgerEntry,
        """
        select file, source, sha256, status, rows_read, rows_loaded, rows_rejected,
            rows_superseded, months, delivery_id, reason, extra_columns, missing_columns,
            drift, registered_at,
            -- A warehouse of an earlier release has none.
            coalesce((to_jsonb(l) ->> 'rows_erased')::bigint, 0)
        from meta.ledger as l
        order by delivery_id
        """,
    )


def quarantine_filter(
    connection: Any, of: str | None = None, file: str | None = None, month: str | None = None
) -> sql.Composable:
    """Which quarantined rows are wanted: SQL over `meta.quarantine as q`, `meta.deliveries as d`.

    Args:
        of: "silver.orders" or "silver"; None: all tables.
        file: Its name in the ledger, "erp/orders.csv", or without its folder.
        month: "2025-01"; None: all, and the rows that could not be placed in one.

    Raises:
        UsageError: for an unknown table, listing the tables; an unknown file; no month.
    """
    with connection.cursor() as cursor:
        cursor.execute("select table_name, layer from meta.tables order by position")
        tables = cursor.fetchall()
        chosen = [name for name, layer in tables if of in (None, name, layer)]
        if not chosen:
            names = ", ".join(name for name, _ in tables)
            raise UsageError(f"There is no table or layer '{of}'", f"Tables are {names}.")
        parts = [sql.SQL("q.table_name = any({}::text[])").format(sql.Literal(chosen))]
        if file is not None:
            is_file = sql.SQL("{} in (d.file, split_part(d.file, '/', 2))").format(
                sql.Literal(file)
            )
            cursor.execute(sql.SQL("select from meta.deliveries as d where {}").format(is_file))
            if not cursor.rowcount:
                raise UsageError(
                    f"There is no file '{file}' in the ledger", "`metalayer ledger` lists them."
                )
            parts.append(is_file)
    if month is not None:
        if not _MONTH.fullmatch(month):
            raise UsageError(f"'{month}' is no month", "Write it like 2025-01.")
        parts.append(sql.SQL("to_char(q.month, 'YYYY-MM') = {}").format(sql.Literal(month)))
    return sql.SQL(" and ").join(parts)


_PLAIN_REJECT = "q.value, q.raw, q.violations"
# A warehouse of an earlier release does not say which of its tables have personal columns.
_MASKED_REJECT = """
    case when to_jsonb(t) ->> 'has_personal' = 'false' or q.value is null then q.value
        else '***' end,
    case when to_jsonb(t) ->> 'has_personal' = 'false' or q.raw is null then q.raw else '***' end,
    case when to_jsonb(t) ->> 'has_personal' = 'false' then q.violations
        else (
            select coalesce(
                jsonb_agg(
                    case when v ->> 'value' is null then v else v || '{"value": "***"}' end
                ),
                '[]'
            )
            from jsonb_array_elements(q.violations) as v
        ) end
"""


@contextlib.contextmanager
def rejects(
    connection: Any, wanted: sql.Composable, *, unmasked: bool = False
) -> Iterator[tuple[int, Iterator[Reject]]]:
    """The quarantined rows: how many, and the rows one by one.

    Args:
        wanted: Which, from `quarantine_filter`.
        unmasked: Whether to show values and rows of tables with personal columns. In a row that
            broke a rule they may stand in any column.
    """
    told = _PLAIN_REJECT if unmasked else _MASKED_REJECT
    source = sql.SQL(
        "from meta.quarantine as q join meta.tables as t using (table_name) "
        "left join meta.deliveries as d using (delivery_id) where {}"
    ).format(wanted)
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("select count(*) {}").format(source))
        (count,) = cursor.fetchone()
    with connection.cursor(name="rejects") as cursor:
        cursor.itersize = _FETCHED_AT_ONCE
        cursor.execute(
            sql.SQL(
                """
                select q.table_name, to_char(q.month, 'YYYY-MM'), d.file, q.line, q.column_name,
                    q.rule, {}
                {}
                order by t.position, q.month nulls first, q.delivery_id, q.line
                """
            ).format(sql.SQL(told), source)
        )
        yield count, (Reject(*row) for row in cursor)


def _all(connection: Any, kind: Callable[..., Any], query: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return [kind(*row) for row in cursor]


# --- a user's own SQL --------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        columns: names, made unique by a number where the query repeats one.
        numeric: whether each column holds numbers.
        rows: one by one, as they come from the server. Numbers are exact (`int`, `Decimal`, or
            `float` for floating point), dates and times ISO text, JSON what it says, arrays lists.
    """

    columns: list[str]
    numeric: list[bool]
    rows: Iterator[tuple[Any, ...]]


_NUMERIC = {20, 21, 23, 26, 700, 701, 1700}
# psycopg2 fails on dates and times past Python's; what PostgreSQL writes is ISO already.
_DAYS = psycopg2.extensions.new_type(
    (1082, 1083, 1266, 1186, 17), "AS_WRITTEN", lambda value, _cursor: value
)
_MOMENTS = psycopg2.extensions.new_type(
    (1114, 1184), "ISO_MOMENT", lambda value, _cursor: _iso(value)
)
_ARRAYS = (
    psycopg2.extensions.new_array_type((1182, 1183, 1270, 1187, 1001), "AS_WRITTEN_ARRAY", _DAYS),
    psycopg2.extensions.new_array_type((1115, 1185), "ISO_MOMENT_ARRAY", _MOMENTS),
)
_exact_json = functools.partial(json.loads, parse_float=Decimal)


@contextlib.contextmanager
def ask(connection: Any, query: str, before: str = "") -> Iterator[Answer]:
    """Run one query of the user's, which can only read, and stream its rows.

    Args:
        before: What to put before it: with `explain ` it is looked at, and not run.

    The text goes to the server as a value, and PL/pgSQL opens a cursor on it: that takes exactly
    one statement, and only one that returns rows. Sent as it is, `commit; drop table x` would be
    two statements to the protocol psycopg2 speaks, and leave the read-only transaction.

    Raises:
        UsageError: when it is not one statement that returns rows.
        WarehouseError: with PostgreSQL's message, and the place in the query.
    """
    for typecaster in (_DAYS, _MOMENTS, *_ARRAYS):
        psycopg2.extensions.register_type(typecaster, connection)
    psycopg2.extras.register_default_json(connection, loads=_exact_json)
    psycopg2.extras.register_default_jsonb(connection, loads=_exact_json)
    # Lets Ctrl-C cancel a long query.
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    try:
        with _explained(query, before), connection.cursor() as cursor:
            if connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
                # One statement sees one state anyway, taken once its tables are locked. A snapshot
                # from before would see a month empty that is swapped in between.
                cursor.execute("set transaction isolation level read committed")
            cursor.execute("select set_config('metalayer.query', %s, true)", (before + query,))
            # All rows are wanted, not the first few soon.
            cursor.execute("set local cursor_tuple_fraction = 1.0")
            cursor.execute(
                "do $$ declare answer refcursor := 'answer'; begin "
                "open answer for execute current_setting('metalayer.query'); end $$"
            )
            fetch = f"fetch forward {_FETCHED_AT_ONCE} from answer"
            cursor.execute(fetch)
            described = list(cursor.description)
            yield Answer(
                _unique([d.name for d in described]),
                [d.type_code in _NUMERIC for d in described],
                _streamed(cursor, fetch, query),
            )
    finally:
        psycopg2.extensions.set_wait_callback(None)


def _streamed(cursor: Any, fetch: str, query: str) -> Iterator[tuple[Any, ...]]:
    while rows := cursor.fetchall():
        yield from rows
        with _explained(query):
            cursor.execute(fetch)


@contextlib.contextmanager
def _explained(query: str, before: str = "") -> Iterator[None]:
    try:
        yield
    except psycopg2.errors.QueryCanceled:
        raise KeyboardInterrupt from None
    except psycopg2.errors.InvalidCursorDefinition as error:
        raise UsageError(
            f"`query` takes one statement that returns rows ({error.diag.message_primary})",
            "Ask with one SELECT; to change tables, land files and `metalayer build`.",
        ) from None
    except psycopg2.Error as error:
        message = error.diag.message_primary or str(error).strip() or type(error).__name__
        place = error.diag.internal_position
        if place and error.diag.internal_query == before + query:
            message += _pointed(query, int(place) - len(before))
        if error.pgcode == errorcodes.READ_ONLY_SQL_TRANSACTION:
            message = f"`query` only reads: {message}"
        raise WarehouseError(message, error.diag.message_hint or "") from None


def _pointed(query: str, position: int) -> str:
    """The line of the query that a position (from 1, in characters) is in, and a mark below it."""
    before = query[: position - 1]
    number, column = before.count("\n") + 1, position - 1 - (before.rfind("\n") + 1)
    line = query.split("\n")[number - 1]
    start = max(0, column - 50)
    label = f"line {number}: "
    return f"\n{label}{line[start : start + 70]}\n{' ' * (len(label) + column - start)}^"


def _iso(value: str | None) -> str | None:
    """`2025-01-31 10:00:00+00`, as PostgreSQL writes it, in ISO 8601."""
    if value is None or value.endswith("BC"):
        return value
    day, separator, time_of_day = value.partition(" ")
    zoned = _SHORT_ZONE.sub(r"\1:00", time_of_day)
    return f"{day}T{zoned}" if separator else value


def _unique(names: list[str]) -> list[str]:
    unique: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique.append(candidate)
    return unique
