"""Tables as they were: a query's text with every table replaced by the rows it had then.

The rows of a kept version lie in a table of their own, so a table as of some moment is the union
of one such table for each month. A view, MetaLayer's or the user's, is replaced by its own SELECT,
treated the same way. What is not MetaLayer's, and its own records in `meta`, are read as they are.

Does not belong here: running the query (`inspection.py`, `reading.py`), or the contracts: whoever
only asks does without them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from psycopg2 import sql

from metalayer.errors import UsageError, WarehouseError
from metalayer.history import holding
from metalayer.warehouse import retype
from metalayer.warehouse.leaves import LEAVES, columns_of

#: A version of each month, its last where it has had fewer; or an instant with its time zone.
AsOf = int | datetime

_SYSTEM = ("pg_catalog", "information_schema", "meta")
_FORMS = (
    "Write a version as 3, a day as 2025-07-01 (its beginning, UTC), a time as 2025-07-01T10:30"
)


def parse_as_of(value: int | str | date | datetime) -> AsOf:
    """A version number, or the instant that is meant.

    A time without a zone is UTC, a day means its first instant. A text of digits is a version.

    Raises:
        UsageError: when it is neither.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            value = int(text) if text.isdecimal() else datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"'{text}' is neither a version nor a time", _FORMS) from None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{value!r} is neither a version nor a time", _FORMS)
    return value


def query_as_of(connection: Any, query: str, as_of: AsOf) -> str:
    """A query of the user's, on the tables as they were.

    The connection is left in a transaction that holds all that the new text reads.

    Raises:
        UsageError: when it is not one SELECT that can be understood, no month of any table in it
            has had that version, or the role may not read earlier versions.
        WarehouseError: when a version that it needs is not kept.
    """
    from metalayer.lineage.splice import spliced

    def look(cursor: Any) -> _Read:
        past = _Past(cursor, as_of)
        return past.read(spliced(query, "the query", past.relation))

    return holding(connection, look, lambda read: read.leaves).text


def table_as_of(
    connection: Any, table: str, as_of: AsOf, months: Collection[date] | None = None
) -> str | None:
    """A SELECT of one table, or view, as it was; None where there is none.

    The connection is left in a transaction that holds all that the text reads.

    Args:
        months: Those that will be looked at; None: all. What is computed over several months, as
            the end of a customer's version is, takes the others as of the same time; where `as_of`
            is a version it takes them as they are now.

    Raises:
        UsageError: when no month has had that version, or the role may not read it.
        WarehouseError: when a version that is needed is not kept.
    """

    def look(cursor: Any) -> _Read:
        past = _Past(cursor, as_of, months)
        return past.read(past.relation(tuple(table.split("."))) or "")

    return holding(connection, look, lambda read: read.leaves).text or None


@dataclass(frozen=True)
class _Read:
    """SQL, and the names of the leaves that it reads."""

    text: str
    leaves: Collection[str]


@dataclass(frozen=True)
class _Kept:
    # Texts as they are shown: whoever asks may have dates read in another way than as dates.
    month: str
    version: int
    is_current: bool
    leaf: str
    published_at: str
    is_before: bool


def _refuse_readers(cursor: Any) -> None:
    """Versions of months lie behind the masks, where only the warehouse's owner may look."""
    cursor.execute(
        "select current_user, bool_and(has_schema_privilege(name, 'usage')) "
        "from unnest(array['meta', %s]) as name",
        (LEAVES,),
    )
    role, may = cursor.fetchone()
    if not may:
        raise UsageError(
            f"Earlier versions are kept behind the masks, and {role} may not look there",
            "Ask as the role that builds the warehouse, or read the tables as they are now",
        )


class _Past:
    """The tables as of one moment, as SQL; remembers the leaves that it takes."""

    def __init__(self, cursor: Any, as_of: AsOf, months: Collection[date] | None = None) -> None:
        self.leaves: set[str] = set()
        self._cursor = cursor
        self._as_of = as_of
        self._months = None if months is None else {f"{month:%Y-%m}" for month in months}
        self._is_in_a_view = False
        # Table -> the latest version of those that were taken by number.
        self._latest: dict[str, int] = {}
        self._known: dict[tuple[str, ...], str | None] = {}
        _refuse_readers(cursor)
        cursor.execute("select table_name from meta.tables")
        self._tables = {table for (table,) in cursor.fetchall()}
        cursor.execute("select current_database()")
        (self._database,) = cursor.fetchone()

    def read(self, text: str) -> _Read:
        """The finished text, with what it reads.

        Raises:
            UsageError: when a version is asked for that no month of its tables has had.
        """
        if self._latest and self._as_of not in self._latest.values():
            known = ", ".join(f"{latest} of {table}" for table, latest in self._latest.items())
            raise UsageError(
                f"No month that is read has had a version {self._as_of}",
                f"The latest: {known}. `metalayer versions TABLE` lists the months of each.",
            )
        return _Read(text, self.leaves)

    def relation(self, name: tuple[str, ...]) -> str | None:
        """The SELECT to read instead of a table or view; None for what is read as it is."""
        if name not in self._known:
            self._known[name] = self._relation(name)
        return self._known[name]

    def _relation(self, name: tuple[str, ...]) -> str | None:
        if len(name) == 3 and name[0] != self._database:
            return None  # PostgreSQL says what it thinks of other databases
        self._cursor.execute(
            "select c.oid, n.nspname::text, c.relname::text, c.relkind::text "
            "from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
            "where c.oid = to_regclass(%s)",
            (sql.Identifier(*name[-2:]).as_string(self._cursor),),
        )
        found = self._cursor.fetchone()
        if found is None or found[1] in _SYSTEM:
            return None
        oid, schema, relation, kind = found
        if kind == "v":
            return self._view(f"{schema}.{relation}", oid)
        table = f"{schema}.{relation}"
        table = table if table in self._tables else table.removesuffix("_stored")
        return self._table(table, oid) if kind == "p" and table in self._tables else None

    def _view(self, name: str, oid: int) -> str | None:
        from metalayer.lineage.splice import spliced

        self._cursor.execute("select pg_get_viewdef(%s::oid)", (oid,))
        body = self._cursor.fetchone()[0].strip().removesuffix(";")
        outer, self._is_in_a_view = self._is_in_a_view, True
        replaced = spliced(body, f"the view {name}", self.relation)
        self._is_in_a_view = outer
        return replaced if replaced != body else None

    def _table(self, table: str, oid: int) -> str:
        """The union of a table's leaves, in the columns that the table has now."""
        self._cursor.execute(
            "select attname, format_type(atttypid, atttypmod) from pg_attribute "
            "where attrelid = %s and attnum > 0 and not attisdropped order by attnum",
            (oid,),
        )
        columns: dict[str, str] = dict(self._cursor.fetchall())
        leaves = {kept.leaf: f"version {kept.version} of {table} {kept.month}"
                  for kept in self._chosen(table)}  # fmt: skip
        # The member that facts without a match point at has a partition of its own.
        unknown = f"{table.replace('.', '_')}_unknown"
        self._cursor.execute("select to_regclass(%s) is not null", (f"{LEAVES}.{unknown}",))
        if self._cursor.fetchone()[0]:
            leaves[unknown] = f"the Unknown member of {table}"
        self.leaves.update(leaves)
        held = columns_of(self._cursor, list(leaves))
        selects = [
            sql.SQL("select {} from {}").format(
                self._columns(leaf, what, columns, held[leaf]), sql.Identifier(LEAVES, leaf)
            )
            for leaf, what in leaves.items()
        ]
        if not selects:
            selects = [sql.SQL("select {} where false").format(self._columns("", "", columns, {}))]
        text: str = sql.SQL(" union all ").join(selects).as_string(self._cursor)
        return text

    def _chosen(self, table: str) -> list[_Kept]:
        """The version of each month that is asked for."""
        instant = self._as_of if isinstance(self._as_of, datetime) else None
        self._cursor.execute(
            "select to_char(month, 'YYYY-MM'), version, is_current, leaf, "
            "to_char(published_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS'), "
            "coalesce(published_at <= %s, false) from meta.versions "
            "where table_name = %s order by month, version",
            (instant, table),
        )
        kept: dict[str, list[_Kept]] = {}
        for row in self._cursor.fetchall():
            kept.setdefault(row[0], []).append(_Kept(*row))
        months = set(kept)
        if self._months is not None and not self._is_in_a_view:
            months = self._months if instant is None else months & self._months
        choose = self._numbered if instant is None else self._standing
        chosen = [choose(table, month, kept.get(month, [])) for month in sorted(months)]
        return [version for version in chosen if version is not None]

    def _numbered(self, table: str, month: str, kept: Sequence[_Kept]) -> _Kept | None:
        """The version of that number, or the last of a month that has had fewer.

        Of a month that is not looked at, the current one.
        """
        if self._months is not None and month not in self._months:
            return next(version for version in kept if version.is_current)
        assert isinstance(self._as_of, int)
        numbers = [v.version for v in kept]
        if self._as_of not in numbers and (not kept or self._as_of < numbers[-1]):
            shown = ", ".join(map(str, numbers))
            raise UsageError(
                f"{table} {month} has no version {self._as_of}",
                f"Kept are {shown}." if kept else f"`metalayer versions {table}` lists its months.",
            )
        chosen = next((v for v in kept if v.version == self._as_of), kept[-1])
        self._latest[table] = max(self._latest.get(table, 0), chosen.version)
        return chosen

    def _standing(self, table: str, month: str, kept: Sequence[_Kept]) -> _Kept | None:
        """The version that readers saw at the instant; None where there was none yet."""
        before = [v for v in kept if v.is_before]
        if before:
            return before[-1]
        if kept[0].version > 1:
            raise WarehouseError(
                f"What {table} {month} was at {self._as_of:%Y-%m-%d %H:%M:%S} UTC is not kept",
                f"Of this month, history goes back to {kept[0].published_at} UTC. "
                "METALAYER_KEEP_VERSIONS says how many versions are kept from now on.",
            )
        return None

    def _columns(
        self, leaf: str, what: str, columns: dict[str, str], held: dict[str, str]
    ) -> sql.Composed:
        """The table's columns, read from a leaf that may have fewer, or other types."""
        found: list[sql.Composable] = []
        for name, kind in columns.items():
            column = sql.Identifier(name)
            value: sql.Composable
            if held.get(name) == kind:
                found.append(column)
                continue
            if name in held:
                self._refuse_loss(leaf, what, name, held[name], kind)
                value = retype.conversion(column, held[name], kind)
            else:
                value = sql.SQL("null::{}").format(sql.SQL(kind))
            found.append(sql.SQL("{} as {}").format(value, column))
        return sql.SQL(", ").join(found)

    def _refuse_loss(self, leaf: str, what: str, name: str, old: str, new: str) -> None:
        if retype.is_lossless(old, new):
            return
        column = sql.Identifier(name)
        self._cursor.execute(
            sql.SQL("select count(*) from {} where {} is not null and not {}").format(
                sql.Identifier(LEAVES, leaf), column, retype.fits(column, old, new)
            )
        )
        (count,) = self._cursor.fetchone()
        if count:
            raise WarehouseError(
                f"{what[:1].upper()}{what[1:]} has {count:,} values of {name} ({old}) that its "
                f"type of today, {new}, does not hold",
                f"They can be read as they lie, in {LEAVES}.{leaf}.",
            )
