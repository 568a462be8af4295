"""What one table is: the base of all contracts, and the values read off them.

A contract is a Pandera model over Polars whose fields are made with `key`, `column` and
`month_column`, plus two plain inner classes: `Table` (facts of the table) and, on a table that is
fed from landed files, `Source` (facts of the files). This module turns such a class into a
`TableSpec`, the value every other part of MetaLayer works from: DDL, audit, Dagster asset, checks
and docs are all derived from it.

Belongs here: the vocabulary of a contract and its validation. Does not belong here: any table of
the domain (those are the modules beside this one), SQL, Dagster, or anything that does I/O.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pandera.polars as pa
import polars as pl

from metalayer.contracts.classification import (
    Sensitivity,
    checked_kind,
    checked_person,
    checked_reason,
    checked_sensitivity,
)
from metalayer.contracts.due import Due as Due
from metalayer.contracts.sealed import WELL_SEALED
from metalayer.errors import ContractError

Layer = Literal["bronze", "silver", "gold"]
OnNewColumn = Literal["rescue", "evolve", "freeze"]
Reader = Literal["analyst", "bi", "engineer", "steward"]
#: The roles that a contract can open its table to, each `metalayer_<reader>` in PostgreSQL.
READERS: tuple[str, ...] = get_args(Reader)
# Nobody else sees what was delivered: bronze is opened to those of them that silver is open to.
_READERS_OF_BRONZE = ("engineer", "steward")

# Python annotation -> (PostgreSQL type, Polars dtype). Decimal is completed with its scale.
_TYPES: Mapping[type, tuple[str, Any]] = {
    int: ("bigint", pl.Int64),
    str: ("text", pl.String),
    bool: ("boolean", pl.Boolean),
    float: ("double precision", pl.Float64),
    date: ("date", pl.Date),
    datetime: ("timestamp", pl.Datetime("us")),
}
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# PostgreSQL cuts names at 63 bytes; those of a month's partitions hold the table's and 30 more.
_TABLE_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")

#: Up to this many rejected rows in a month are never judged by `max_reject_rate`: a rate says
#: nothing about a handful of rows.
REJECTS_ALWAYS_TOLERATED = 25
#: What a contract gets that says nothing about it.
_DUE, _FRESH_WITHIN = Due(day=5, hour=6), timedelta(days=35)


@dataclass(frozen=True)
class Reference:
    """Where a column's values must exist: `table` ("silver.customers") and its `column`."""

    table: str
    column: str


@dataclass(frozen=True)
class ColumnSpec:
    """One column as its contract declares it.

    Attributes:
        name: Name in SQL and in frames.
        type: PostgreSQL type, e.g. "numeric(18,2)".
        dtype: The Polars dtype an audited frame has.
        meaning: One sentence for the dictionary.
        nullable: Whether a published row may lack a value.
        is_key: Part of the table's key.
        pii: Kind of personal data ("name", "email", ...) or None.
        references: Where the value must exist, or None.
        null_tokens: Landed texts that mean "no value" (compared trimmed, any case).
        is_landed: Delivered in the files of the contract's `Source`.
        derived: SQL over the stored columns; the column is computed on reading, not stored.
        is_free_text: Typed by people, who may write anything; never shown in samples.
        sensitivity: Who may see it, from "public" to "restricted".
        declassified: Why the column is not as personal as what it is made from, or None.
        identifies: Whom its values number ("customer"), or None.
        sealed_type: PostgreSQL type of the values where these are encrypted, and stored as text;
            None where they are not.
    """

    name: str
    type: str
    dtype: Any
    meaning: str
    nullable: bool = False
    is_key: bool = False
    pii: str | None = None
    references: Reference | None = None
    null_tokens: tuple[str, ...] = ()
    is_landed: bool = False
    derived: str | None = None
    # Says nothing of the rows, so it is no part of what makes them out of date.
    is_free_text: bool = field(default=False, repr=False)
    sensitivity: Sensitivity = field(default="internal", repr=False)
    declassified: str | None = field(default=None, repr=False)
    identifies: str | None = field(default=None, repr=False)
    sealed_type: str | None = None


@dataclass(frozen=True)
class SourceSpec:
    """The landed files that feed a silver table, through the bronze table derived from it.

    Attributes:
        name: "erp/orders": the system's folder and the export's name.
        pattern: Glob inside the landing zone, e.g. "erp/orders*.csv"; `.gz` is accepted as well.
        kind: "delta" only adds and corrects; "snapshot" delivers the whole state each time.
        month_from: The landed column that tells a row's month; None: the month of the delivery.
        max_shrink: Share of the rows of the snapshot before that a snapshot may lack, 0 to 1.
        on_new_column: What a column that the contract does not know does: "rescue" keeps it in
            `_extra`, "evolve" adds it to the bronze table, "freeze" refuses the file.
    """

    name: str
    pattern: str
    kind: Literal["delta", "snapshot"]
    month_from: str | None
    max_shrink: float = 0.5
    on_new_column: OnNewColumn = "rescue"


@dataclass(frozen=True, eq=False)
class TableSpec:
    """Everything known about one table, read off its contract.

    Attributes:
        layer, name: `gold` and `fact_sales`; together the table's name in SQL.
        description: The contract's docstring.
        owner: Dagster owner, e.g. "team:sales-data".
        columns: In the order of the published table, derived columns included.
        month_column: The column whose month decides the partition.
        fresh_within: How old the newest publish may be.
        due: By when a month is to be there; None: its months may fail to come.
        max_reject_rate: Share of a month's rows that may be quarantined, 0 to 1.
        max_rejects: How many rows of a month may be quarantined; None: any number.
        rows_from: Table each of whose rows must arrive here as one row, or None.
        sums_from: Own column -> "layer.table.column" whose monthly sum it must equal.
        rows_follow: Column such that a row depends only on the rows of the inputs with the same
            value in it, or None. A change of a few values then rebuilds their rows alone.
        unknown_member: Values of the member that facts without a match point at, or None.
        views: Name -> SELECT of further views beside the table.
        readers: Roles that may read it and its views, of `READERS`; nobody unless it says so.
        purpose: What personal data in it is held for, in a sentence, or None.
        retention_months: For how many months besides the present one rows are kept, or None: for
            good. A table whose rows are another's (`rows_from`) keeps them as long as that.
        source: The landed files (silver), the same on the bronze table derived from it.
        contract: The Pandera model, None for a derived bronze table.
        path: File of the contract, for messages.
    """

    layer: Layer
    name: str
    description: str
    owner: str
    columns: tuple[ColumnSpec, ...]
    month_column: str
    fresh_within: timedelta
    max_reject_rate: float
    rows_from: str | None = None
    sums_from: Mapping[str, str] = field(default_factory=dict)
    rows_follow: str | None = None
    max_rejects: int | None = None
    due: Due | None = _DUE
    unknown_member: Mapping[str, Any] | None = None
    views: Mapping[str, str] = field(default_factory=dict)
    readers: tuple[str, ...] = ()
    purpose: str | None = None
    retention_months: int | None = None
    source: SourceSpec | None = None
    contract: type[Contract] | None = None
    path: Path | None = None

    @property
    def full_name(self) -> str:
        """`layer.name`, the table's name in SQL."""
        return f"{self.layer}.{self.name}"

    @property
    def stored_name(self) -> str:
        """Name of the partitioned table that holds the rows; `name` is a view where they differ."""
        is_view = any(c.derived or c.pii for c in self.columns)
        return f"{self.name}_stored" if is_view else self.name

    @property
    def stored(self) -> tuple[ColumnSpec, ...]:
        """The columns that rows on disk have."""
        return tuple(c for c in self.columns if c.derived is None)

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the columns that identify a row."""
        return tuple(c.name for c in self.columns if c.is_key)

    @property
    def landed(self) -> tuple[ColumnSpec, ...]:
        """The columns that the source's files have."""
        return tuple(c for c in self.columns if c.is_landed)

    @property
    def sealed(self) -> tuple[ColumnSpec, ...]:
        """The columns whose values are encrypted."""
        return tuple(c for c in self.columns if c.sealed_type is not None)

    @property
    def has_provenance(self) -> bool:
        """Whether each row says which delivery and line it came from."""
        return any(c.name == "_line" for c in self.columns)

    def limit_passed(self, rejects: int, rows: int) -> str | None:
        """The limit that so many rejects of so many rows are past, in words; None: they are not.

        `max_rejects` is meant as it stands. Of `max_reject_rate` a handful of rows is always let
        pass: a rate says nothing about so few.
        """
        if self.max_rejects is not None and rejects > self.max_rejects:
            return f"limit {self.max_rejects:,} rows"
        if rejects > max(REJECTS_ALWAYS_TOLERATED, self.max_reject_rate * rows):
            return f"limit {self.max_reject_rate * 100:g}%"
        return None

    def column(self, name: str) -> ColumnSpec:
        """The column of that name; `ContractError` listing the columns, when there is none."""
        for spec in self.columns:
            if spec.name == name:
                return spec
        raise ContractError(
            f"{self.full_name} has no column '{name}'",
            f"Its columns are {', '.join(c.name for c in self.columns)}",
        )


PROVENANCE = (
    ColumnSpec("_delivery_id", "bigint", pl.Int64, "Delivery that brought the row (meta.ledger)"),
    ColumnSpec("_line", "bigint", pl.Int64, "Line of the delivered file on which the row begins"),
)


@dataclass(frozen=True)
class _Facts:
    """What a field carries beyond Pandera's own settings."""

    role: Literal["key", "column", "month"]
    is_key: bool
    precision: int
    scale: int
    pii: str | None
    references: str | None
    null_tokens: tuple[str, ...]
    is_landed: bool | None
    derived: str | None
    is_free_text: bool
    sensitivity: str | None
    declassified: str | None
    identifies: str | None
    encrypted: bool


def column(
    meaning: str,
    *,
    role: Literal["key", "column", "month"] = "column",
    is_key: bool = False,
    precision: int = 18,
    scale: int = 2,
    pii: str | None = None,
    references: str | None = None,
    null_tokens: Sequence[str] = (),
    landed: bool | None = None,
    derived: str | None = None,
    free_text: bool = False,
    sensitivity: str | None = None,
    declassified: str | None = None,
    identifies: str | None = None,
    encrypted: bool = False,
    **rules: Any,
) -> Any:
    """Declare a column; `rules` are those of `pandera.Field` (ge, gt, isin, str_matches, ...).

    Args:
        meaning: One sentence for the dictionary.
        precision, scale: Digits in all and after the point of a Decimal. A landed number that
            does not fit without rounding is quarantined.
        pii: Kind of personal data (`classification.Pii`); such values are masked in messages.
        references: "silver.customers.customer_id": every value must exist there.
        null_tokens: Landed texts that mean "no value", e.g. ("NULL", "N/A").
        landed: Whether the source's files have this column; by default all but derived ones do.
        derived: SQL expression computed on reading, e.g. a window function over the versions.
        free_text: Whether people type what they like into it; samples do not show it.
        sensitivity: "public", "internal", "confidential" or "restricted"; by default what `pii`
            stands for, and internal without it.
        declassified: Why a column made from personal or more sensitive ones is neither.
        identifies: Whom its values number, as "customer"; columns that reference it do as well.
        encrypted: Whether the warehouse only holds ciphertext of it, from bronze on. Equal values
            stay equal; no rule looks at them but that they are of their type.
    """
    facts = _Facts(
        role, is_key or role == "key", precision, scale, pii, references, tuple(null_tokens),
        landed, derived, free_text, sensitivity, declassified, identifies, encrypted,
    )  # fmt: skip
    return pa.Field(description=meaning, metadata={"metalayer": facts}, **rules)


def key(meaning: str, **options: Any) -> Any:
    """Declare a column that identifies a row; several together make a composite key."""
    return column(meaning, role="key", **options)


def month_column(meaning: str, **options: Any) -> Any:
    """Declare the column whose month decides the partition; `is_key=True` where it is both."""
    return column(meaning, role="month", **options)


def row_rule(meaning: str, doubt: str | None = None) -> Callable[[Callable[..., pl.Expr]], Any]:
    """Declare a rule across columns: a classmethod-like function returning a boolean expression.

    The expression must be true (or null) for every row that keeps the contract.

    Args:
        doubt: A condition in PostgreSQL's SQL that every row meets which breaks the rule. With it
            only such rows are read back to be judged; without it all are.
    """

    def declare(expression: Callable[..., pl.Expr]) -> Any:
        def holds(cls: type, data: Any) -> pl.LazyFrame:
            frame: pl.LazyFrame = data.lazyframe
            return frame.select(expression(cls).fill_null(True))

        holds.__name__ = expression.__name__
        return pa.dataframe_check(
            holds, name=meaning, error=meaning, description=meaning, statistics={"doubt": doubt}
        )

    return declare


class Contract(pa.DataFrameModel):
    """Base of every contract. See `docs/add-a-table.md` for a walk through one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Pandera takes every public attribute for a field, so the plain inner classes step aside.
        for name in ("Table", "Source"):
            inner = cls.__dict__.get(name)
            if inner is not None:
                delattr(cls, name)
            setattr(cls, f"_{name.lower()}_facts", inner)
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]

    class Config:
        strict = True


@cache
def table_spec(contract: type[Contract]) -> TableSpec:
    """Read the `TableSpec` off a contract class.

    Raises:
        ContractError: naming the file and the fix, when something required is missing.
    """
    path = Path(inspect.getfile(contract))
    layer, name = path.parent.name, path.stem
    where = f"contracts/{layer}/{name}.py"
    facts = getattr(contract, "_table_facts", None)
    source = getattr(contract, "_source_facts", None)
    description = inspect.cleandoc(contract.__dict__.get("__doc__") or "")

    def required(value: Any, what: str, fix: str) -> Any:
        if not value:
            raise ContractError(f"{where} has no {what}", fix)
        return value

    if not _TABLE_NAME.fullmatch(name):
        raise ContractError(
            f"{where} is no name for a table",
            "Use up to 32 lower case letters, digits and _, the first a letter",
        )
    required(description, "description", f"Give class {contract.__name__} a docstring")
    required(facts, "table facts", "Add an inner `class Table:` with at least `owner`")
    columns, found = _columns(contract, where, is_landed=source is not None)
    owner = required(
        getattr(facts, "owner", None), "owner", 'Add owner = "team:..." to `class Table:`'
    )
    required(any(c.is_key for c in columns), "key", "Declare the identifying column with key(...)")
    month: str = required(
        found, "month column", "Declare the column that tells the month with month_column(...)"
    )
    if source is not None:
        columns += PROVENANCE
    return TableSpec(
        layer=_layer(layer, where),
        name=name,
        description=description,
        owner=owner,
        columns=columns,
        month_column=month,
        fresh_within=_fresh_within(facts, where),
        due=_due(facts, where),
        max_reject_rate=getattr(facts, "max_reject_rate", 0.10),
        max_rejects=getattr(facts, "max_rejects", None),
        rows_from=getattr(facts, "rows_from", None),
        sums_from=dict(getattr(facts, "sums_from", {})),
        rows_follow=getattr(facts, "rows_follow", None),
        unknown_member=getattr(facts, "unknown_member", None),
        views=dict(getattr(facts, "views", {})),
        readers=_readers(facts, where),
        purpose=_purpose(facts, where),
        retention_months=_retention(facts, where),
        source=_source(source, where, columns, month) if source is not None else None,
        contract=contract,
        path=path,
    )


def bronze_spec(silver: TableSpec) -> TableSpec:
    """The bronze table that holds what a silver table's source delivered, as text."""
    assert silver.source is not None
    landed = tuple(
        ColumnSpec(
            *(c.name, "text", pl.String, f"As delivered: {c.meaning}"),
            nullable=True,
            pii=c.pii,
            is_free_text=c.is_free_text,
            sensitivity=c.sensitivity,
            identifies=c.identifies,
            sealed_type=c.sealed_type,
            # What stands for no value cannot be told any more once it is encrypted.
            null_tokens=c.null_tokens if c.sealed_type is not None else (),
        )
        for c in silver.landed
    )
    machinery = (
        ColumnSpec(
            "_extra", "jsonb", pl.String, "Delivered columns no contract knows", nullable=True
        ),
        *(ColumnSpec(c.name, c.type, c.dtype, c.meaning, is_key=True) for c in PROVENANCE),
        ColumnSpec("_is_latest", "boolean", pl.Boolean, "No later delivery replaces the row"),
        ColumnSpec("month", "date", pl.Date, "First day of the month the row belongs to"),
    )
    return TableSpec(
        layer="bronze",
        name=silver.name,
        description=f"{silver.source.pattern} as delivered, every column as text. "
        f"{silver.full_name} types and cleans it.",
        owner=silver.owner,
        columns=landed + machinery,
        month_column="month",
        fresh_within=silver.fresh_within,
        due=silver.due,
        max_reject_rate=silver.max_reject_rate,
        max_rejects=silver.max_rejects,
        readers=tuple(r for r in silver.readers if r in _READERS_OF_BRONZE),
        purpose=silver.purpose,
        retention_months=silver.retention_months,
        source=silver.source,
        path=silver.path,
    )


@cache
def pandera_schema(spec: TableSpec) -> pa.DataFrameSchema:
    """The contract as a Pandera schema of the stored columns, with exact Polars dtypes."""
    declared = spec.contract.to_schema() if spec.contract is not None else None
    columns = {}
    for c in spec.stored:
        column = declared.columns.get(c.name) if declared is not None else None
        if column is None:
            column = pa.Column(nullable=c.nullable, name=c.name, description=c.meaning)
        column.dtype = c.dtype
        if c.sealed_type is not None and spec.layer != "bronze":
            column.checks = [pa.Check.str_matches(WELL_SEALED)]
        columns[c.name] = column
    return pa.DataFrameSchema(
        columns,
        checks=declared.checks if declared is not None else None,
        name=spec.full_name.replace(".", "_"),
        description=spec.description,
        strict=True,
    )


def _layer(folder: str, where: str) -> Layer:
    if folder == "silver":
        return "silver"
    if folder == "gold":
        return "gold"
    raise ContractError(
        f"{where} is in no layer a contract can be written for",
        "Put it in contracts/silver/ or contracts/gold/; bronze tables are derived from `Source`",
    )


def _columns(
    contract: type[Contract], where: str, *, is_landed: bool
) -> tuple[tuple[ColumnSpec, ...], str | None]:
    fields = contract.__fields__
    types = get_type_hints(contract)
    columns: list[ColumnSpec] = []
    month: str | None = None
    for attribute, (_, info) in fields.items():
        facts = (info.metadata or {}).get("metalayer")
        if facts is None:
            raise ContractError(
                f"{where}: '{attribute}' is not declared with key(), column() or month_column()",
                "Use one of them, so that the column has a meaning",
            )
        name = info.alias or attribute
        if not _IDENTIFIER.fullmatch(name):
            raise ContractError(
                f"{where}: '{name}' is no plain column name", "Use lower case letters, digits and _"
            )
        if facts.role == "month":
            if month is not None:
                raise ContractError(
                    f"{where} has two month columns, '{month}' and '{name}'", "Keep one"
                )
            month = name
        if info.unique:
            raise ContractError(
                f"{where}: '{name}' is declared unique", "Use key(): rows are judged by themselves"
            )
        named = f"{where}: '{name}'"
        sql_type, dtype = _types(types[attribute], facts, named)
        sealed_type = None
        if facts.encrypted:
            _refuse_what_cannot_be_sealed(facts, info, named)
            sealed_type, sql_type, dtype = sql_type, *_TYPES[str]
        columns.append(
            ColumnSpec(
                name=name,
                type=sql_type,
                dtype=dtype,
                meaning=info.description or "",
                nullable=bool(info.nullable),
                is_key=facts.is_key,
                pii=checked_kind(facts.pii, named),
                references=_reference(facts.references, named),
                null_tokens=facts.null_tokens,
                is_landed=is_landed and facts.derived is None and facts.is_landed is not False,
                derived=facts.derived,
                is_free_text=facts.is_free_text,
                sensitivity=checked_sensitivity(facts.sensitivity, facts.pii, named),
                declassified=checked_reason(facts.declassified, named),
                identifies=checked_person(facts.identifies, named),
                sealed_type=sealed_type,
            )
        )
    return tuple(columns), month


def _refuse_what_cannot_be_sealed(facts: _Facts, info: Any, where: str) -> None:
    """What asks for values in plain says so before anything is encrypted."""
    asked = {
        "is part of the key": facts.is_key,
        "is the month column": facts.role == "month",
        "is derived": facts.derived is not None,
        "identifies somebody": facts.identifies is not None,
        "references another table": facts.references is not None,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise ContractError(
                f"{where} is encrypted and {what}", "Leave one of the two out of the contract"
            )
    if info.checks:
        rules = ", ".join(str(check.name) for check in info.checks)
        raise ContractError(
            f"{where} is encrypted and has rules: {rules}",
            "Take them out: of an encrypted value only the type is checked, as it is read",
        )


def _fresh_within(facts: Any, where: str) -> timedelta:
    found = getattr(facts, "fresh_within", _FRESH_WITHIN)
    # A warning comes before it, and Dagster looks once a minute.
    if not isinstance(found, timedelta) or found < timedelta(hours=1):
        raise ContractError(
            f"{where}: Table.fresh_within is {found!r}",
            "Use a timedelta of an hour or more, e.g. timedelta(days=35)",
        )
    return found


def _readers(facts: Any, where: str) -> tuple[str, ...]:
    found = getattr(facts, "readers", ())
    if not isinstance(found, tuple) or not set(found) <= set(READERS):
        raise ContractError(
            f"{where}: Table.readers is {found!r}",
            f"Use a tuple of {', '.join(READERS)}; without it nobody reads the table",
        )
    return found


def _purpose(facts: Any, where: str) -> str | None:
    found = getattr(facts, "purpose", None)
    if found is not None and not (isinstance(found, str) and found.strip()):
        raise ContractError(
            f"{where}: Table.purpose is {found!r}", "Say in a sentence what the data is held for"
        )
    return found


def _retention(facts: Any, where: str) -> int | None:
    found = getattr(facts, "retention_months", None)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ContractError(
            f"{where}: Table.retention_months is {found!r}",
            "Use a whole number of months from 1 on, or leave it out to keep rows for good",
        )
    if _purpose(facts, where) is None:
        raise ContractError(
            f"{where}: Table.retention_months without a purpose",
            "Say in `purpose` what the data is held for: that is what the months follow from",
        )
    return found


def _due(facts: Any, where: str) -> Due | None:
    found = getattr(facts, "due", _DUE)
    if found is not None and not isinstance(found, Due):
        raise ContractError(
            f"{where}: Table.due is {found!r}",
            "Use Due(day=5, hour=6) for the 5th of the next month, 06:00 UTC, or None for never",
        )
    return found


def _types(annotation: Any, facts: _Facts, where: str) -> tuple[str, Any]:
    if annotation is Decimal:
        return (
            f"numeric({facts.precision},{facts.scale})",
            pl.Decimal(facts.precision, facts.scale),
        )
    if annotation not in _TYPES:
        known = ", ".join(t.__name__ for t in (*_TYPES, Decimal))
        raise ContractError(f"{where} has the unknown type {annotation!r}", f"Use one of {known}")
    return _TYPES[annotation]


def _reference(text: str | None, where: str) -> Reference | None:
    if text is None:
        return None
    table, _, name = text.rpartition(".")
    if table.count(".") != 1:
        raise ContractError(f"{where} references '{text}'", 'Write it as "layer.table.column"')
    return Reference(table, name)


def _source(
    facts: Any, where: str, columns: tuple[ColumnSpec, ...], month: str | None
) -> SourceSpec:
    pattern = getattr(facts, "files", None)
    if not pattern or "/" not in pattern:
        raise ContractError(
            f"{where}: `class Source:` has no files", 'Add files = "system/export*.csv"'
        )
    kind: Any = getattr(facts, "kind", "delta")
    if kind not in ("delta", "snapshot"):
        raise ContractError(f"{where}: Source.kind is '{kind}'", 'Use "delta" or "snapshot"')
    on_new_column: Any = getattr(facts, "on_new_column", "rescue")
    if on_new_column not in get_args(OnNewColumn):
        raise ContractError(
            f"{where}: Source.on_new_column is '{on_new_column}'",
            f"Use one of {', '.join(get_args(OnNewColumn))}",
        )
    max_shrink = getattr(facts, "max_shrink", 0.5)
    if not 0 <= max_shrink <= 1:
        raise ContractError(
            f"{where}: Source.max_shrink is {max_shrink!r}", "Use a share from 0 to 1"
        )
    landed = {c.name for c in columns if c.is_landed}
    name = re.sub(r"[*?\[\]]+", "", pattern.removesuffix(".csv"))
    month_from = month if month in landed else None
    return SourceSpec(name, pattern, kind, month_from, max_shrink, on_new_column)
