"""The last months of one environment as exports for another, personal values as pseudonyms.

    FROM's bronze rows that count --> one statement a source and month --> CSV in TO's landing zone

PostgreSQL makes the pseudonyms while it reads, so that nothing plain leaves it; TO's own code then
builds everything, as from any export. FROM is only read, but for its audit log. Rows that count no
more, what no contract knows, and records that could not be read stay behind.

Whoever the months speak of comes along: of a source that others reference (customers), the newest
earlier row of each.

Does not belong here: what a pseudonym is (`pseudonyms.py`), or which environments there are
(`settings.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import phonenumbers
from psycopg2 import sql
from psycopg2.extensions import parse_dsn

from metalayer.catalog import Catalog
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import ContractError, LandingError, UsageError
from metalayer.governance.masks import is_personal
from metalayer.governance.pseudonyms import (
    KEY,
    SHARED_BY,
    Delivered,
    checked,
    free_text_pseudonym,
    number_pseudonym,
    pseudonym,
)
from metalayer.governance.subjects import kinds, places
from metalayer.inspection import libpq_url
from metalayer.landing.files import match_source, refuse_leaving
from metalayer.settings import PRODUCTION, Settings
from metalayer.warehouse.acts import record, record_now, seal
from metalayer.warehouse.ddl import next_month, stored_name
from metalayer.warehouse.migrate import prepare
from metalayer.warehouse.pool import transaction, warehouse_pool

_MOST_SHARED = 1_000
_PLACE = "select system_identifier::text, current_database() from pg_control_system()"


@dataclass(frozen=True)
class Copied:
    """One file that was written.

    Attributes:
        source: "erp/orders".
        name: Inside the landing zone.
        rows: Rows in it.
    """

    source: str
    name: str
    rows: int


def refuse_copy(source: Settings, target: Settings) -> None:
    """Refuse what must not be copied: into production, or to the same place.

    Raises:
        UsageError: naming both environments and what they share.
    """
    if target.env == PRODUCTION:
        raise UsageError(
            f"Nothing is copied into {PRODUCTION}: copies hold pseudonyms, not what happened",
            f"Copy out of it, as in `metalayer env copy {PRODUCTION} dev --months 3`.",
        )
    shared = [
        f"{what} {value}"
        for what, value, other in (
            ("the database", _database(source), _database(target)),
            ("the home", str(source.home), str(target.home)),
            ("the landing zone", str(source.landing), str(target.landing)),
        )
        if value == other
    ]
    if source.env == target.env or shared:
        said = ", ".join(shared) or "everything"
        raise UsageError(
            f"{source.env} and {target.env} are the same place: they share {said}",
            f"Give each its own, in .env.{source.env} and .env.{target.env}; `metalayer env` shows "
            "what each has. Variables of the shell count for the environment that METALAYER_ENV "
            "names only.",
        )


def copy_months(
    connection: Any,
    source: Settings,
    target: Settings,
    tables: Catalog,
    months: int,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Copied]:
    """Land the newest months of an environment in another, with pseudonyms.

    Doing so again replaces the files. Both audit logs note it before anything is written.

    Args:
        connection: To the warehouse of `source`, reading one state of it, see `inspection.reading`.
        source, target: Settings of the environments; `refuse_copy` has let them pass.
        months: How many, up to the newest that has rows.

    Raises:
        UsageError: when there is nothing to copy, when the role may not read the key of the
            pseudonyms, or when both are one database after all.
        LandingError: when a file cannot be written.
    """
    with connection.cursor() as cursor:
        window = _window(cursor, tables, months, target)
        cursor.execute(_PLACE)
        _enter(source, target, cursor.fetchone(), tables, window)
        span = {"first_month": f"{window[0]:%Y-%m}", "last_month": f"{window[-1]:%Y-%m}"}
        record_now(source, "copy_out", target.env, span)
        copied: list[Copied] = []
        for spec in tables.sources.values():
            tell(f"Copying what feeds {spec.full_name}")
            copied += _copy_source(cursor, tables, spec, target.landing, window, source.env)
        return copied


def _window(cursor: Any, tables: Catalog, months: int, target: Settings) -> list[date]:
    """The months to copy."""
    cursor.execute(
        # By the catalog, which everybody may read.
        "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') "
        "from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
        "where n.nspname = 'meta' and c.relname = 'secret'"
    )
    if cursor.fetchone() == (False,):
        raise UsageError(
            "The connected database role may not read the key that pseudonyms are made with",
            "Connect as the owner of the tables.",
        )
    cursor.execute(
        "select max(month) from meta.versions "
        "where is_current and rows > 0 and table_name = any(%s)",
        ([f"bronze.{spec.name}" for spec in tables.sources.values()],),
    )
    (last,) = cursor.fetchone()
    if last is None:
        raise UsageError("There is no month to copy yet", "Land exports there, and build.")
    window = [last]
    while len(window) < months:
        window.insert(0, _month_before(window[0]))
    window = [month for month in window if month >= target.start_month]
    if not window:
        raise UsageError(
            f"{target.env} keeps months from {target.start_month:%Y-%m} on; the newest is "
            f"{last:%Y-%m}",
            f"Set METALAYER_START_MONTH to an earlier month in .env.{target.env}.",
        )
    return window


def _enter(
    source: Settings,
    target: Settings,
    place: tuple[str, str],
    tables: Catalog,
    window: Sequence[date],
) -> None:
    """Make the target's tables if there are none, and note there what comes."""
    with warehouse_pool(target) as pool:
        with transaction(pool) as connection, connection.cursor() as cursor:
            cursor.execute(_PLACE)
            if cursor.fetchone() == place:
                raise UsageError(
                    f"{source.env} and {target.env} are one database by two names: {place[1]}",
                    f"Give each its own, in .env.{source.env} and .env.{target.env}.",
                )
            prepare(connection, list(tables.specs.values()), tables.selects)
            # Acts are recorded in a transaction after it.
            connection.commit()
            span = {"first_month": f"{window[0]:%Y-%m}", "last_month": f"{window[-1]:%Y-%m}"}
            record(cursor, "copy_in", source.env, span)
        seal(pool, target)


def _copy_source(
    cursor: Any,
    tables: Catalog,
    spec: TableSpec,
    landing: Path,
    window: Sequence[date],
    env: str,
) -> Iterator[Copied]:
    assert spec.source is not None
    statement = _Statement(cursor, tables, spec)
    reference = _referenced(tables, spec)
    if reference is not None:
        before = statement.newest_before(window[0], reference)
        yield from _write(cursor, spec, landing, f"from-{env}_earlier", before)
    for month in window:
        rows = statement.of(month)
        yield from _write(cursor, spec, landing, f"from-{env}_{month:%Y-%m}", rows)


def _write(
    cursor: Any, spec: TableSpec, landing: Path, part: str, rows: sql.Composable
) -> Iterator[Copied]:
    """Write what a statement returns as an export; one without rows only over an earlier one."""
    name = _name(spec, part)
    refuse_leaving(landing, name)
    path = landing / name
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as out:
            cursor.copy_expert(
                sql.SQL("copy ({}) to stdout (format csv, header true)").format(rows), out
            )
        count = int(cursor.rowcount)
        if count or path.exists():
            aside.replace(path)
            assert spec.source is not None
            yield Copied(spec.source.name, name, count)
    except OSError as error:
        raise LandingError(
            f"{path} cannot be written: {error.strerror}",
            "Check the folder's permissions and free space",
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def _name(spec: TableSpec, part: str) -> str:
    """Name of an export that the source's pattern matches, and no other source's."""
    assert spec.source is not None
    name = spec.source.pattern.replace("*", f"_{part}", 1).replace("*", "")
    if "*" not in spec.source.pattern or match_source(name, [spec.source]) is None:
        raise ContractError(
            f"{spec.full_name}: exports by month cannot be named so that they match "
            f"{spec.source.pattern}",
            'Let `files` of its `class Source:` have a *, as in "system/export*.csv".',
        )
    return name


def _referenced(tables: Catalog, spec: TableSpec) -> str | None:
    """The column by which other tables reference rows that may be of any earlier month."""
    assert spec.source is not None
    if spec.source.kind == "snapshot" or spec.source.month_from is None:
        return None
    return next(
        (
            column.references.column
            for other in tables.specs.values()
            for column in other.columns
            if column.references is not None and column.references.table == spec.full_name
        ),
        None,
    )


class _Statement:
    """SELECTs of one source's rows, with pseudonyms."""

    def __init__(self, cursor: Any, tables: Catalog, spec: TableSpec) -> None:
        self._spec = spec
        self._codes = region_codes()
        self._numbers = {
            name for kind in kinds(tables) for name in places(tables, kind).get(spec.full_name, ())
        }
        self._shared = self._shared_texts(cursor)
        self._bronze = sql.Identifier("bronze", tables.specs[f"bronze.{spec.name}"].stored_name)

    def of(self, month: date) -> sql.Composed:
        """The rows of a month that count."""
        return sql.SQL(
            "with k as materialized ({key}) select {columns} from {bronze} as b cross join k "
            "left join {typed} as s on s._delivery_id = b._delivery_id and s._line = b._line "
            "and s.{month_column} >= {first} and s.{month_column} < {end} "
            "where b.month = {first} and b._is_latest order by b._delivery_id, b._line"
        ).format(**self._parts(), first=sql.Literal(month), end=sql.Literal(next_month(month)))

    def newest_before(self, month: date, column: str) -> sql.Composed:
        """Of each value of a column its newest row before a month."""
        return sql.SQL(
            "with k as materialized ({key}), s as materialized ("
            "select distinct on (t.{column}) t.* from {typed} as t "
            "where t.{month_column} < {first} "
            "order by t.{column}, t.{month_column} desc, t._delivery_id, t._line) "
            "select {columns} from s cross join k join {bronze} as b "
            "on b._delivery_id = s._delivery_id and b._line = s._line "
            "and b.month = date_trunc('month', s.{month_column})::date "
            "order by b._delivery_id, b._line"
        ).format(**self._parts(), column=sql.Identifier(column), first=sql.Literal(month))

    def _parts(self) -> Mapping[str, sql.Composable]:
        columns = sql.SQL(", ").join(
            sql.SQL("{} as {}").format(self._copied(c), sql.Identifier(c.name))
            for c in self._spec.landed
        )
        return {
            "key": sql.SQL(KEY),
            "columns": columns,
            "bronze": self._bronze,
            "typed": stored_name(self._spec),
            "month_column": sql.Identifier(self._spec.month_column),
        }

    def _copied(self, column: ColumnSpec) -> sql.Composable:
        """What a column's value is copied as."""
        value = self._delivered(column)
        if column.name in self._numbers:
            return number_pseudonym(column, value)
        if column.pii:
            return pseudonym(column, value, self._codes)
        if column.is_free_text:
            return free_text_pseudonym(value)
        return checked(column, value) if is_personal(self._spec) else value.raw

    def _delivered(self, column: ColumnSpec) -> Delivered:
        raw = sql.Identifier("b", column.name)
        is_taken = sql.SQL("s._line is not null")
        cleaned = sql.SQL("meta.clean_text({})").format(raw)
        tokens = [token.upper() for token in column.null_tokens]
        tidy = sql.SQL(
            "case when {taken} then {typed}::text when upper({clean}) <> all ({tokens}::text[]) "
            "then {clean} end"
        ).format(
            taken=is_taken,
            typed=sql.Identifier("s", column.name),
            clean=cleaned,
            tokens=sql.Literal(tokens),
        )
        shared = sql.SQL("{} = any ({}::text[])").format(
            tidy, sql.Literal(self._shared.get(column.name, []))
        )
        return Delivered(raw, tidy, is_taken, shared)

    def _shared_texts(self, cursor: Any) -> dict[str, list[str]]:
        """Column of free text -> its values that enough people have in common."""
        spec = self._spec
        who = next((c.name for c in spec.columns if c.name in self._numbers), spec.key[0])
        found = {}
        for column in spec.landed:
            if not column.is_free_text or column.pii:
                continue
            cursor.execute(
                sql.SQL(
                    "select {c} from {t} where {c} is not null group by 1 "
                    "having count(distinct {who}) >= %s order by count(*) desc limit %s"
                ).format(
                    c=sql.Identifier(column.name), t=stored_name(spec), who=sql.Identifier(who)
                ),
                (SHARED_BY, _MOST_SHARED),
            )
            found[column.name] = [value for (value,) in cursor.fetchall()]
        return found


def region_codes() -> list[str]:
    """Area codes of North America in which a number of exchange 555 counts as valid."""
    parsed = (
        (
            str(code),
            phonenumbers.PhoneNumber(country_code=1, national_number=code * 10**7 + 5550100),
        )
        for code in range(200, 1000)
    )
    return [
        code
        for code, number in parsed
        if phonenumbers.is_valid_number(number)
        # Free of charge, or dear: no subscribers' numbers.
        and phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE
    ]


def _database(settings: Settings) -> str:
    """Where a warehouse is, without who connects and how."""
    if settings.database_url is None:
        return f"in {settings.pgdata}"
    parts = parse_dsn(libpq_url(settings.database_url.get_secret_value()))
    host, port = parts.get("host", "localhost").lower(), parts.get("port", "5432")
    return f"{parts.get('dbname')} at {host}:{port}"


def _month_before(month: date) -> date:
    return date(month.year - (month.month == 1), (month.month - 2) % 12 + 1, 1)
