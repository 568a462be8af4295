"""Everything that is held of one person: in which tables, from which lines of which files.

A person is known by a number. Contracts say which columns hold it (`identifies=`); the others
follow from what references them, and from column lineage. Where a table has no such column, the
person's e-mail addresses and phone numbers are looked for. Files that are in no table are searched
as bytes.

Nothing is changed. Does not belong here: writing it down for the person (`handover.py`), or who may
ask (`plain.py`).
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg2 import sql

from metalayer.catalog import Catalog
from metalayer.contracts.classification import ANONYMOUS
from metalayer.contracts.contract import ColumnSpec, TableSpec
from metalayer.errors import UsageError
from metalayer.governance.dictionary import dictionary
from metalayer.governance.roles import PREFIX
from metalayer.governance.sealing import Sealer
from metalayer.landing.files import landed_paths
from metalayer.lineage.columns import Origin, expressions
from metalayer.settings import Settings
from metalayer.tracing import Lines
from metalayer.warehouse.ddl import identifiers, reading_name
from metalayer.warehouse.keys import sealer
from metalayer.warehouse.leaves import LEAVES, columns_of

#: Kinds of personal data by which somebody can be written to, and so be found.
_CONTACTS = ("email", "phone")
#: A phone number is compared by so many of its last digits: the country is often left out.
_PHONE_DIGITS = 9
# What was delivered for a number, as the typed table would read it, by functions that everybody may
# call: those of `meta` are the pipeline's.
_AS_WHOLE = (
    "(case when pg_input_is_valid({t}, 'numeric') then {t}::numeric "
    "when {t} ~ '^[+-]?[0-9]{{1,3}}(,[0-9]{{3}})+([.][0-9]*)?$' "
    "then replace({t}, ',', '')::numeric end)"
)
_BLANKS = " \t\r\n\u00a0"
_CHUNK_BYTES = 1 << 22
_MOST_SEARCHED_BYTES = 1 << 36
#: How a file may have written what is looked for in it.
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")


@dataclass(frozen=True)
class Held:
    """What one table holds of a person.

    Attributes:
        purpose: What for, as its contract says; empty if it does not.
        recipients: Roles that may read the table, and the logins that are members of them.
        found_by: The columns by which the rows were found.
        columns: Name -> what it means.
        rows: Column -> value as text. Rows that came from a file say which, and on which line.
    """

    table: str
    purpose: str
    owner: str
    recipients: list[str]
    found_by: list[str]
    columns: dict[str, str]
    rows: list[dict[str, str | None]]


@dataclass(frozen=True)
class Rejected:
    """A quarantined row of the person, as it was delivered."""

    table: str
    file: str | None
    delivery_id: int | None
    line: int | None
    rule: str
    delivered: str | None
    #: The same as the warehouse has it, encrypted or not.
    kept: str | None = None


@dataclass(frozen=True)
class Earlier:
    """How many rows of the person an earlier version of a month holds, as long as it is kept."""

    table: str
    month: str
    version: int
    rows: int


@dataclass(frozen=True)
class Subject:
    """Everything that is held of one person.

    Attributes:
        kind: Whom the number is of: "customer".
        contacts: E-mail addresses and phone numbers by which the person was looked for.
        other_files: Landed files that are in no table and name an e-mail address or phone number of
            the person.
        unsearched: What could not be searched to its end: landed files, earlier versions.
    """

    kind: str
    number: str
    contacts: dict[str, list[str]] = field(default_factory=dict)
    tables: list[Held] = field(default_factory=list)
    quarantined: list[Rejected] = field(default_factory=list)
    earlier_versions: list[Earlier] = field(default_factory=list)
    files: list[Lines] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    unsearched: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not (self.tables or self.quarantined or self.earlier_versions or self.other_files)


def kinds(tables: Catalog) -> list[str]:
    """Whom the contracts know by a number."""
    return sorted({c.identifies for s in tables.specs.values() for c in s.columns if c.identifies})


def places(tables: Catalog, kind: str) -> dict[str, tuple[str, ...]]:
    """Table -> its columns that hold the number of a `kind` of person, upstream first.

    Those are the columns that say so, those that reference one, what was delivered for either, and
    what a SELECT passes on from them unchanged.
    """
    made_from = dictionary(tables).made_from
    holding: set[Origin] = set()
    for name, spec in tables.specs.items():
        for column in spec.columns:
            place = Origin(name, column.name)
            origins = made_from.get(place, ())
            if _declares(tables, spec, column, kind) or (
                origins
                and holding.issuperset(origins)
                and column.derived is None
                and not expressions(tables.selects[name], tables.specs, column.name)
            ):
                holding.add(place)
    return {
        name: held
        for name in tables.specs
        if (
            held := tuple(
                c.name for c in tables.specs[name].columns if Origin(name, c.name) in holding
            )
        )
    }


def _declares(tables: Catalog, spec: TableSpec, column: ColumnSpec, kind: str) -> bool:
    """Whether contracts say that a column holds the number, or what was delivered for it."""
    if spec.layer == "bronze":
        typed = tables.specs[f"silver.{spec.name}"]
        column = next((c for c in typed.columns if c.name == column.name), column)
    if column.references is not None:
        target = tables.specs[column.references.table]
        return target.column(column.references.column).identifies == kind
    return column.identifies == kind


def subject(
    cursor: Any,
    tables: Catalog,
    settings: Settings,
    kind: str,
    number: str,
    told: Callable[[str], None] = lambda _: None,
    known: Mapping[str, Collection[str]] | None = None,
) -> Subject:
    """Find everything that is held of a person.

    Args:
        cursor: Of a role that sees plain values, see `plain.py`.
        settings: Where the landing zone is, and how far a gzip may unfold in it.
        kind: One of `kinds`.
        number: As it is written in the tables.
        told: Is told what is looked at.
        known: Contacts of the person that the tables need not have any more.

    Raises:
        UsageError: when no contract knows such persons, or that is no number of one.
        ConfigurationError: when columns are encrypted, and the key is not at hand.
    """
    if kind not in kinds(tables):
        raise UsageError(
            f"No contract says which columns number a {kind}",
            f'Give the key of its table identifies="{kind}".',
        )
    held_in = places(tables, kind)
    keys = None
    if any(spec.sealed for spec in tables.specs.values()):
        keys = sealer(cursor, settings)
    search = _Search(
        cursor, tables, held_in, canonical(cursor, tables, held_in, kind, number), keys
    )
    contacts = {
        kind_: found | set((known or {}).get(kind_, ()))
        for kind_, found in search.contacts().items()
    }
    found = Subject(kind, search.number, {k: sorted(values) for k, values in contacts.items()})
    for name in tables.specs:
        told(name)
        held = search.held(name, contacts)
        if held.rows:
            found.tables.append(held)
    told("the quarantine")
    found.quarantined.extend(search.quarantined(contacts))
    told("earlier versions")
    if search.may_look_back():
        found.earlier_versions.extend(search.earlier())
    else:
        found.unsearched.append("earlier versions of months, which this database role may not read")
    found.files.extend(search.files())
    seen = {lines.file for lines in found.files}
    needles = _needles(contacts)
    most_bytes = settings.max_unpacked_mb * 1024**2
    for file, path in landed_paths(settings.landing) if needles else ():
        if file not in seen:
            told(file)
            is_there = _mentions(path, needles, most_bytes)
            if is_there is None:
                found.unsearched.append(file)
            elif is_there:
                found.other_files.append(file)
    return found


def canonical(
    cursor: Any,
    tables: Catalog,
    held_in: Mapping[str, tuple[str, ...]],
    kind: str,
    number: str,
) -> str:
    """A number in the one way that it is written in the tables: 7 for " 007".

    Raises:
        UsageError: when it cannot be of the columns' type.
    """
    written = number.strip()
    for table, names in held_in.items():
        spec = tables.specs[table]
        for type_ in {spec.column(name).type for name in names if spec.layer != "bronze"}:
            cursor.execute("select pg_input_is_valid(%s, %s)", (written, type_))
            if cursor.fetchone() == (False,):
                raise UsageError(
                    f"'{written}' is no number of a {kind}",
                    f"Write it as {table}.{names[0]} has it ({type_}).",
                )
            cursor.execute(
                sql.SQL("select {}::{}::text").format(sql.Literal(written), sql.SQL(type_))
            )
            (written,) = cursor.fetchone()
        fixed = {str((spec.unknown_member or {}).get(name)) for name in names} | {ANONYMOUS}
        if written in fixed:
            raise UsageError(
                f"{written} is nobody's number: it stands for a {kind} who is not known, or was "
                "erased",
                f"Give the number of one {kind}.",
            )
    return written


class _Search:
    """Rows of one person, table by table; remembers the lines of files they came from."""

    def __init__(
        self,
        cursor: Any,
        tables: Catalog,
        held_in: Mapping[str, tuple[str, ...]],
        number: str,
        keys: Sealer | None,
    ) -> None:
        self.number = number
        self._keys = keys
        self._cursor = cursor
        self._tables = tables
        self._places = held_in
        self._lines: set[tuple[int, int]] = set()
        self._names: dict[int, str] = {}

    def contacts(self) -> dict[str, set[str]]:
        """Kind of contact -> what the person's rows have of it, now or in an earlier version.

        An address that several people share, or that is a part of another's, leads to none of them.
        """
        found: dict[str, set[str]] = {kind: set() for kind in _CONTACTS}
        written = [
            (self._tables.specs[table], names, column)
            for table, names in self._places.items()
            for column in self._tables.specs[table].columns
            if column.pii in found
        ]
        for spec, names, column in written:
            if spec.layer == "bronze":
                continue  # as somebody typed it
            for relation in (
                reading_name(spec),
                *self._earlier_leaves(spec, {*names, column.name}),
            ):
                self._cursor.execute(
                    sql.SQL(
                        "select distinct {c}::text from {t} where {own} and {c} is not null"
                    ).format(
                        c=sql.Identifier(column.name),
                        t=relation,
                        own=self._by_number(spec, names),
                    )
                )
                values = {self._opened(value) for (value,) in self._cursor.fetchall()}
                found[column.pii or ""] |= {value for value in values if value is not None}
        for spec, names, column in written:
            kind = column.pii or ""
            plain = sorted(found[kind])
            as_kept = self._as_kept(column, plain)
            is_inside = sql.SQL(
                "strpos(lower({c}::text), lower(v)) > 0"
                if column.sealed_type is None
                else "{c} = v"
            ).format(c=sql.Identifier(column.name))
            self._cursor.execute(
                sql.SQL(
                    "select n from unnest({values}::text[]) with ordinality as v (v, n) "
                    "where exists (select from {t} where not {own} and {is_inside})"
                ).format(
                    values=sql.Literal(as_kept),
                    t=reading_name(spec),
                    own=self._by_number(spec, names),
                    is_inside=is_inside,
                )
            )
            found[kind] -= {plain[number - 1] for (number,) in self._cursor.fetchall()}
        return found

    def _opened(self, value: str | None) -> str | None:
        """A value in plain, whether it is encrypted or not."""
        return value if value is None or self._keys is None else self._keys.opened(value)

    def _as_kept(self, column: ColumnSpec, values: Iterable[str]) -> list[str]:
        """Plain values as the column has them."""
        if column.sealed_type is None or self._keys is None:
            return list(values)
        return [
            self._keys.sealed_value(value, column.pii or "", column.sealed_type) for value in values
        ]

    def _earlier_leaves(self, spec: TableSpec, needed: Set[str]) -> list[sql.Identifier]:
        """The rows of kept versions that have these columns, where the role may look."""
        if not self.may_look_back():
            return []
        leaves = sorted({leaf for table, _, _, leaf in self._kept() if table == spec.full_name})
        columns = columns_of(self._cursor, leaves)
        return [sql.Identifier(LEAVES, leaf) for leaf in leaves if columns[leaf].keys() >= needed]

    def _kept(self) -> list[tuple[str, str, int, str]]:
        """Table, month, version and leaf of every version that has been replaced, and is kept."""
        self._cursor.execute(
            "select table_name, to_char(month, 'YYYY-MM'), version, leaf from meta.versions "
            "where not is_current and table_name = any(%s) order by table_name, month, version",
            (list(self._places),),
        )
        return list(self._cursor.fetchall())

    def held(self, table: str, contacts: Mapping[str, Collection[str]]) -> Held:
        """The person's rows in a table."""
        spec = self._tables.specs[table]
        found_by, condition = self._condition(spec, contacts)
        rows = self._rows(spec, condition) if found_by else []
        return Held(
            table,
            spec.purpose or "",
            spec.owner,
            self._recipients(spec) if rows else [],
            found_by,
            {c.name: c.meaning for c in spec.columns},
            rows,
        )

    def _condition(
        self, spec: TableSpec, contacts: Mapping[str, Collection[str]]
    ) -> tuple[list[str], sql.Composable]:
        names = list(self._places.get(spec.full_name, ()))
        if names:
            return names, self._by_number(spec, names)
        if spec.layer == "bronze":
            return [], sql.SQL("false")
        written = [c for c in spec.columns if c.pii in _CONTACTS and contacts[c.pii]]
        parts = [
            sql.SQL("{}::text = any({})").format(
                sql.Identifier(c.name),
                sql.Literal(self._as_kept(c, sorted(contacts[c.pii or ""]))),
            )
            for c in written
        ]
        return [c.name for c in written], sql.SQL(" or ").join(parts)

    def _by_number(self, spec: TableSpec, names: Sequence[str]) -> sql.Composable:
        number = sql.Literal(self.number)
        parts: list[sql.Composable] = []
        for name in names:
            column = sql.Identifier(name)
            value: sql.Composable = column
            type_ = spec.column(name).type
            if spec.layer == "bronze":
                type_ = self._tables.specs[f"silver.{spec.name}"].column(name).type
                value = _as_typed(column, type_)
            parts.append(sql.SQL("{} = {}::{}").format(value, number, sql.SQL(type_)))
        return sql.SQL("({})").format(sql.SQL(" or ").join(parts))

    def _rows(self, spec: TableSpec, condition: sql.Composable) -> list[dict[str, str | None]]:
        names = [c.name for c in spec.columns]
        texts = [sql.SQL("{}::text").format(sql.Identifier(name)) for name in names]
        self._cursor.execute(
            sql.SQL("select {} from {} where {} order by {}").format(
                sql.SQL(", ").join(texts),
                reading_name(spec),
                condition,
                identifiers([spec.month_column, *spec.key]),
            )
        )
        rows = [dict(zip(names, values, strict=True)) for values in self._cursor.fetchall()]
        for row in rows:
            row |= {c.name: self._opened(row[c.name]) for c in spec.sealed}
        if spec.has_provenance:
            for row in rows:
                delivery, line = int(row.pop("_delivery_id") or 0), int(row.pop("_line") or 0)
                row |= {"_file": self._file(delivery), "_line": str(line)}
                self._lines.add((delivery, line))
        return rows

    def _file(self, delivery: int) -> str:
        if not self._names:
            self._cursor.execute("select delivery_id, file from meta.deliveries")
            self._names = dict(self._cursor.fetchall())
        return self._names.get(delivery, "")

    def _recipients(self, spec: TableSpec) -> list[str]:
        self._cursor.execute(
            "with recursive reader as (select oid, rolname::text from pg_roles "
            "where rolname = any(%s) union select m.oid, m.rolname::text from reader "
            "join pg_auth_members as a on a.roleid = reader.oid join pg_roles as m "
            "on m.oid = a.member) select rolname from reader order by rolname",
            ([f"{PREFIX}{reader}" for reader in spec.readers],),
        )
        return [name for (name,) in self._cursor.fetchall()]

    def quarantined(self, contacts: Mapping[str, Collection[str]]) -> Iterator[Rejected]:
        """Rows that broke a contract, now or in an earlier version, on lines of the person.

        And records that could not be read, and have an e-mail address or phone number of theirs.
        """
        # Those of typed tables are kept with the columns that were delivered.
        numbered = [
            sql.SQL("(q.table_name = {} and {} = {}::{})").format(
                sql.Literal(table),
                _as_typed(sql.SQL("(q.fields ->> {})").format(sql.Literal(name)), column.type),
                sql.Literal(self.number),
                sql.SQL(column.type),
            )
            for table, names in self._places.items()
            for name in names
            if (column := self._tables.specs[table].column(name))
            and not table.startswith("bronze.")
        ]
        # Where a source has encrypted columns, such records are encrypted as a whole.
        sealed = [f"bronze.{s.name}" for s in self._tables.sources.values() if s.sealed]
        emails = list(map(_whole, contacts["email"]))
        digits = [number for number in map(_last_digits, contacts["phone"]) if number]
        self._cursor.execute(
            sql.SQL(
                "with line as (select (l ->> 0)::bigint as delivery_id, (l ->> 1)::bigint as line "
                "from jsonb_array_elements(%s::jsonb) as listed(l)), "
                "kept as (select table_name, delivery_id, line, rule, raw from meta.quarantine "
                "union all "
                "select table_name, delivery_id, line, rule, raw from meta.past_quarantine), "
                "q as (select *, case when pg_input_is_valid(raw, 'jsonb') then raw::jsonb end "
                "as fields, table_name = any(%s) as is_sealed from kept), "
                "f as (select q.*, {numbered} or exists (select from line as l "
                "where l.delivery_id = q.delivery_id and l.line = q.line) "
                "or (q.table_name like 'bronze.%%' and not q.is_sealed and ("
                "exists (select from unnest(%s::text[]) as e where lower(q.raw) ~ e) "
                "or exists (select from unnest(%s::text[]) as p where "
                "regexp_replace(q.raw, '[^0-9,;|\\t]', '', 'g') ~ (p || '(?![0-9])')))) "
                "as is_theirs from q) "
                "select distinct f.is_theirs is true, f.table_name, d.file, f.delivery_id, f.line, "
                "f.rule, f.raw from f left join meta.deliveries as d using (delivery_id) "
                "where f.is_theirs or f.is_sealed "
                "order by f.table_name, f.delivery_id, f.line"
            ).format(numbered=sql.SQL(" or ").join([*numbered, sql.SQL("false")])),
            (json.dumps(sorted(self._lines)), sealed, emails, digits),
        )
        for is_theirs, table, file, delivery, line, rule, raw in self._cursor.fetchall():
            plain = self._opened_record(table, raw)
            if is_theirs or _mentions_contact(plain or "", emails, digits):
                yield Rejected(table, file, delivery, line, rule, plain, raw)

    def _opened_record(self, table: str, raw: str | None) -> str | None:
        if raw is None or self._keys is None:
            return raw
        if table.startswith("bronze."):
            return self._keys.opened(raw)
        return self._keys.opened_in_json(raw)

    def may_look_back(self) -> bool:
        """Whether the connected role may read earlier versions: only the warehouse's owner may."""
        self._cursor.execute("select has_schema_privilege(%s, 'usage')", (LEAVES,))
        return bool(self._cursor.fetchone()[0])

    def earlier(self) -> Iterator[Earlier]:
        """Versions that have been replaced, and are kept with rows of the person in them."""
        kept = self._kept()
        columns = columns_of(self._cursor, [leaf for *_, leaf in kept])
        # A rollback lets two versions share their rows.
        counted: dict[str, int] = {}
        for table, month, version, leaf in kept:
            names = [name for name in self._places[table] if name in columns[leaf]]
            if leaf not in counted:
                counted[leaf] = self._count(self._tables.specs[table], names, leaf)
            if counted[leaf]:
                yield Earlier(table, month, version, counted[leaf])

    def _count(self, spec: TableSpec, names: Sequence[str], leaf: str) -> int:
        if not names:
            return 0
        self._cursor.execute(
            sql.SQL("select count(*) from {} where {}").format(
                sql.Identifier(LEAVES, leaf), self._by_number(spec, names)
            )
        )
        return int(self._cursor.fetchone()[0])

    def files(self) -> list[Lines]:
        """The landed lines that the rows found so far came from."""
        lines: dict[tuple[str, int], set[int]] = {}
        for delivery, line in self._lines:
            lines.setdefault((self._file(delivery), delivery), set()).add(line)
        return [Lines(*place, sorted(found)) for place, found in sorted(lines.items())]


# --- files that are in no table -----------------------------------------------------------------


def _as_typed(text: sql.Composable, type_: str) -> sql.Composable:
    """What was delivered for a number, as its typed table reads it."""
    plain = sql.SQL("btrim({}, {})").format(text, sql.Literal(_BLANKS))
    return sql.SQL(_AS_WHOLE).format(t=plain) if type_ == "bigint" else plain


def _whole(email: str) -> str:
    """A pattern for PostgreSQL: the address, and not a part of a longer one."""
    return rf"(?<![a-z0-9._%+-]){re.escape(email.lower())}(?![a-z0-9_-]|\.[a-z0-9])"


def _mentions_contact(record: str, emails: Sequence[str], digits: Sequence[str]) -> bool:
    """Whether a record has one of the addresses (patterns), or numbers by their last digits."""
    lower, numbers = record.lower(), re.sub(r"[^0-9,;|\t]", "", record)
    return any(re.search(email, lower) for email in emails) or any(
        re.search(rf"{number}(?![0-9])", numbers) for number in digits
    )


def _last_digits(phone: str) -> str:
    digits = "".join(filter(str.isdigit, phone))
    return digits[-_PHONE_DIGITS:] if len(digits) >= _PHONE_DIGITS else ""


def mentions_of(subject: Subject, folder: Path) -> Iterator[tuple[str, bool]]:
    """Files below a folder that name a contact of the person, packed ones unpacked.

    Yields:
        The file, and whether it names one; False where it could not be read to its end.
    """
    needles = _needles(subject.contacts)
    for file, path in landed_paths(folder) if needles else ():
        is_there = _mentions(path, needles, _MOST_SEARCHED_BYTES)
        if is_there is not False:
            yield file, is_there is True


def _needles(contacts: Mapping[str, Iterable[str]]) -> list[bytes]:
    """E-mail addresses and phone numbers as a file may have them, in lower case."""
    texts = {email.lower() for email in contacts["email"]}
    for phone in contacts["phone"]:
        texts |= {phone, phone.lstrip("+"), _last_digits(phone)} - {""}
    return [text.encode(encoding) for text in texts for encoding in _ENCODINGS]


def _mentions(path: Path, needles: Sequence[bytes], most_bytes: int) -> bool | None:
    """Whether a file, packed or not, has one of the texts; None if it cannot be read to its end."""
    longest = max(map(len, needles))
    before = b""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                text = before + chunk.lower()
                if any(needle in text for needle in needles):
                    return True
                before = text[-longest:]
                if path.name.endswith(".gz") and file.tell() > most_bytes:
                    return None
    except FileNotFoundError:
        return False
    except (OSError, EOFError, zlib.error):
        return None
    return False
