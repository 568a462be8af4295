"""The second step of a build: every staged row held against its contract.

Rows are read back in batches (COPY out, Polars) and validated with Pandera; failed casts travel
with the row; uniqueness is PostgreSQL's. Rows that break the contract leave the stage for the
session's quarantine table, from which `publish.py` files them with the month. A month with more of
them than its contract allows fails, and so does one that lost or gained rows on the way.

Does not belong here: how a table is filled, or what happens to a month that failed.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pandera.errors
import pandera.polars as pa
import polars as pl
import psycopg2.errors
from psycopg2 import sql

from metalayer.contracts.contract import (
    REJECTS_ALWAYS_TOLERATED,
    ColumnSpec,
    TableSpec,
    pandera_schema,
)
from metalayer.lineage.select import FAILED_CASTS, RECORD_SEPARATOR, UNIT_SEPARATOR
from metalayer.warehouse.ddl import identifiers
from metalayer.warehouse.stage import SCHEMA, Stage

#: Rows read back at once: the audit's memory is bounded by this, not by the month.
BATCH_ROWS = 250_000
_EXAMPLES = 10
_SHOWN_OF_A_VALUE = 200
_ROW, _LEAF = "_row", "_leaf"


@dataclass(frozen=True)
class Violation:
    """One rule that one row breaks."""

    column: str | None
    rule: str
    value: str | None


@dataclass
class MonthAudit:
    """The verdict on one staged month.

    Attributes:
        rows: Rows that keep the contract.
        quarantined: Rows that do not.
        rules: (column, rule) -> rows that break it.
        examples: Up to ten violations, for messages.
        problem: Why the month must not be published, or None.
    """

    rows: int = 0
    quarantined: int = 0
    rules: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    examples: list[Violation] = field(default_factory=list)
    problem: str | None = None


def audit_stage(cursor: Any, stage: Stage) -> dict[date, MonthAudit]:
    """Validate every staged row and move those that break the contract to quarantine.

    Returns:
        Month -> verdict. Leaves of the stage keep only rows that keep the contract, and have a
        unique index on the key.
    """
    cursor.execute(
        "create temporary table if not exists staged_quarantine (leaf text, place tid, "
        "month date, delivery_id bigint, line bigint, violations jsonb, raw text); "
        "truncate staged_quarantine"
    )
    months = {leaf: month for month, leaf in stage.leaves.items()}
    audits = {month: MonthAudit() for month in stage.leaves}
    schema = _audited_schema(stage.spec)
    for batch in _batches(cursor, stage, schema):
        violations = [*_rule_violations(batch, schema, stage.spec), *_cast_violations(batch, stage)]
        _record(cursor, audits, months, _merged(violations))
    outside = _quarantine_outside(cursor, stage)
    _take_out(cursor, stage)
    for month in stage.leaves:
        _enforce_key(cursor, stage, month, audits[month])
    if outside and not stage.spec.has_provenance:
        # Nothing tells which month such a row was made for, so none of them can be trusted.
        for audit in audits.values():
            audit.problem = (
                f"its SELECT gives {outside:,} rows whose {stage.spec.month_column} is not in the "
                "months that were asked for"
            )
    return audits


def judge(
    audits: Mapping[date, MonthAudit], spec: TableSpec, published: Mapping[date, int]
) -> None:
    """Set `problem` on each month whose share of rejected rows is past the contract's limit.

    Args:
        published: Month -> rows readers have now. A month is never emptied by bad rows alone.
    """
    for month, audit in audits.items():
        total = audit.rows + audit.quarantined
        tolerated = max(REJECTS_ALWAYS_TOLERATED, spec.max_reject_rate * total)
        if published.get(month) and not audit.rows:
            tolerated = 0
        if audit.problem is None and audit.quarantined > tolerated:
            audit.problem = (
                f"{audit.quarantined:,} of {total:,} rows break the contract "
                f"(limit {spec.max_reject_rate:.0%}): {explain(audit, spec)}"
            )


def explain(audit: MonthAudit, spec: TableSpec) -> str:
    """The broken rules with counts and first values; personal values are masked."""
    parts = []
    for (name, rule), count in audit.rules.most_common(5):
        values = [
            _shown(example.value, name, spec)
            for example in audit.examples
            if (example.column, example.rule) == (name, rule)
        ]
        examples = f", e.g. {', '.join(dict.fromkeys(values))}" if values else ""
        parts.append(f"{name or 'row'} {rule}: {count:,} rows{examples}")
    return "; ".join(parts)


def _shown(value: str | None, name: str | None, spec: TableSpec) -> str:
    personal = {c.name for c in spec.columns if c.pii}
    if value is None:
        return "no value"
    return "***" if name in personal else repr(value[:40])


def _audited_schema(spec: TableSpec) -> pa.DataFrameSchema:
    """The contract's rules on the columns that have any: the others' types PostgreSQL ensures."""
    schema = pandera_schema(spec)
    if schema.checks:
        return schema
    ruled = {n: c for n, c in schema.columns.items() if c.checks or not c.nullable}
    return pa.DataFrameSchema(ruled)


def _batches(cursor: Any, stage: Stage, schema: pa.DataFrameSchema) -> Iterator[pl.DataFrame]:
    """The staged rows, some leaves or a part of one at a time, with their leaf and place."""
    names = list(schema.columns)
    if stage.tracks_casts:
        names.append(FAILED_CASTS)
    columns = {c.name: c for c in stage.spec.stored}
    selected = [_copied(columns[n]) if n in columns else sql.Identifier(n) for n in names]
    overrides: dict[str, Any] = {_LEAF: pl.String, _ROW: pl.String}
    overrides |= {n: columns[n].dtype if n in columns else pl.String for n in names}
    for source, condition in _slices(cursor, stage):
        buffer = io.BytesIO()
        cursor.copy_expert(
            sql.SQL(
                "copy (select {leaf}, s.ctid, {columns} from {source} as s {condition}) "
                "to stdout (format csv)"
            ).format(
                leaf=sql.SQL("tableoid::regclass::text"),
                columns=sql.SQL(", ").join(selected),
                source=source,
                condition=condition,
            ),
            buffer,
        )
        if buffer.tell() == 0:
            continue
        buffer.seek(0)
        yield pl.read_csv(
            buffer,
            has_header=False,
            new_columns=list(overrides),
            schema_overrides=list(overrides.values()),
            infer_schema=False,
        ).with_columns(pl.col(_LEAF).str.strip_prefix(f"{SCHEMA}."))


def _copied(column: ColumnSpec) -> sql.Composable:
    name = sql.Identifier(column.name)
    if column.dtype == pl.Boolean:
        return sql.SQL("case when {c} then 'true' when not {c} then 'false' end").format(c=name)
    return name


def _slices(cursor: Any, stage: Stage) -> Iterator[tuple[sql.Composable, sql.Composable]]:
    """Parts of the stage of at most about `BATCH_ROWS` rows each, as (table, where clause)."""
    cursor.execute(sql.SQL("select count(*) from {}").format(stage.parent))
    (total,) = cursor.fetchone()
    if total <= BATCH_ROWS:
        yield stage.parent, sql.SQL("")
        return
    for month in stage.leaves:
        leaf = stage.leaf(month)
        cursor.execute(
            sql.SQL(
                "select count(*), pg_relation_size({name}) / current_setting('block_size')::int "
                "from {leaf}"
            ).format(name=sql.Literal(leaf.as_string(cursor)), leaf=leaf)
        )
        rows, blocks = cursor.fetchone()
        step = max(1, blocks * BATCH_ROWS // max(rows, 1))
        for first in range(0, blocks, step):
            yield (
                leaf,
                sql.SQL("where s.ctid >= {} and s.ctid < {}").format(
                    sql.Literal(f"({first},0)"), sql.Literal(f"({first + step},0)")
                ),
            )


def _rule_violations(
    batch: pl.DataFrame, schema: pa.DataFrameSchema, spec: TableSpec
) -> list[pl.DataFrame]:
    """Rows of (leaf, place, column, rule, value, order) for each rule a row breaks."""
    try:
        schema.validate(batch.select(list(schema.columns)), lazy=True)
    except pandera.errors.SchemaErrors as errors:
        cases = errors.failure_cases.filter(pl.col("index").is_not_null())
        unplaced = errors.failure_cases.filter(pl.col("index").is_null())
        if len(unplaced):
            first = unplaced.row(0, named=True)
            raise TypeError(
                f"{spec.full_name}: rule {first['check']!r} failed as a whole: "
                f"{first['failure_case']}"
            ) from errors
        rules = {name: readable_rule(name) for name in cases.get_column("check").unique().to_list()}
        places = batch.select(_LEAF, _ROW).with_row_index("index")
        return [
            cases.select(
                pl.col("index").cast(pl.UInt32),
                pl.when(pl.col("schema_context") == "Column")
                .then(pl.col("column"))
                .alias("column"),
                pl.col("check").replace_strict(rules).alias("rule"),
                pl.when(pl.col("schema_context") == "Column")
                .then(pl.col("failure_case").str.slice(0, _SHOWN_OF_A_VALUE))
                .alias("value"),
            )
            .join(places, on="index")
            .select(_LEAF, _ROW, "column", "rule", "value", pl.lit(1).alias("order"))
        ]
    return []


def _cast_violations(batch: pl.DataFrame, stage: Stage) -> list[pl.DataFrame]:
    if not stage.tracks_casts:
        return []
    failed = batch.filter(pl.col(FAILED_CASTS).is_not_null())
    if failed.is_empty():
        return []
    types = {c.name: f"not a {c.type}" for c in stage.spec.stored}
    parts = pl.col(FAILED_CASTS).str.splitn(UNIT_SEPARATOR, 2)
    return [
        failed.select(_LEAF, _ROW, pl.col(FAILED_CASTS).str.split(RECORD_SEPARATOR))
        .explode(FAILED_CASTS)
        .select(
            _LEAF,
            _ROW,
            parts.struct.field("field_0").alias("column"),
            parts.struct.field("field_1").alias("value"),
        )
        .with_columns(
            pl.col("column").replace_strict(types, default="not readable").alias("rule"),
            pl.lit(0).alias("order"),
        )
        .select(_LEAF, _ROW, "column", "rule", "value", "order")
    ]


def readable_rule(check: str) -> str:
    """A Pandera check's name as a rule a person reads: "greater_than(0)" is "must be > 0"."""
    operators = {
        "greater_than_or_equal_to": ">=",
        "greater_than": ">",
        "less_than_or_equal_to": "<=",
        "less_than": "<",
    }
    name, _, operand = check.partition("(")
    operand = operand.removesuffix(")")
    if name == "not_nullable":
        return "is required"
    if name in operators:
        return f"must be {operators[name]} {operand}"
    if name == "isin":
        return f"must be one of {operand.strip('[]')}".replace("'", "")
    if name == "str_matches":
        return f"must match {operand}"
    return check


def _merged(violations: list[pl.DataFrame]) -> pl.DataFrame | None:
    """One row per bad row: leaf, place, and its violations as JSON, failed casts first."""
    if not violations:
        return None
    every = pl.concat(violations)
    # A value that could not be cast is also missing: the cast is the cause.
    every = every.sort("order", maintain_order=True).unique(
        [_LEAF, _ROW, "column"], keep="first", maintain_order=True
    )
    return every.group_by(_LEAF, _ROW, maintain_order=True).agg(
        pl.struct("column", "rule", "value").alias("violations")
    )


def _record(
    cursor: Any,
    audits: Mapping[date, MonthAudit],
    months: Mapping[str, date],
    bad: pl.DataFrame | None,
) -> None:
    """Count the bad rows of a batch and note them in the session's quarantine."""
    if bad is None:
        return
    each = bad.explode("violations").select(_LEAF, pl.col("violations").struct.unnest())
    for leaf, name, rule, count in each.group_by(_LEAF, "column", "rule").len().rows():
        if leaf in months:
            audits[months[leaf]].rules[(name, rule)] += count
    for leaf, name, rule, value in each.group_by(_LEAF).head(_EXAMPLES).rows():
        if leaf in months and len(audits[months[leaf]].examples) < _EXAMPLES:
            audits[months[leaf]].examples.append(Violation(name, rule, value))
    listed = pl.col("violations").list.eval(pl.element().struct.json_encode()).list.join(",")
    lines = bad.select(_LEAF, _ROW, pl.concat_str(pl.lit("["), listed, pl.lit("]")))
    buffer = io.BytesIO()
    lines.write_csv(buffer, include_header=False)
    buffer.seek(0)
    cursor.copy_expert(
        "copy staged_quarantine (leaf, place, violations) from stdin (format csv)", buffer
    )


def _quarantine_outside(cursor: Any, stage: Stage) -> int:
    """Rows whose month is not the window's cannot be placed; they are counted, never dropped."""
    cursor.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(SCHEMA, stage.outside)))
    (count,) = cursor.fetchone()
    if not count:
        return 0
    rule = {
        "column": stage.spec.month_column,
        "rule": "must lie in the month the row was read for",
        "value": None,
    }
    cursor.execute(
        sql.SQL(
            "insert into staged_quarantine (leaf, place, violations) "
            "select %s, ctid, %s::jsonb from {} as s where not exists (select from "
            "staged_quarantine as q where q.leaf = %s and q.place = s.ctid)"
        ).format(sql.Identifier(SCHEMA, stage.outside)),
        (stage.outside, json.dumps([rule]), stage.outside),
    )
    return int(count)


def _take_out(cursor: Any, stage: Stage) -> None:
    """Complete the session's quarantine from the staged rows, and delete these from the stage."""
    cursor.execute("select distinct leaf from staged_quarantine where raw is null")
    leaves = {leaf for (leaf,) in cursor.fetchall()}
    if not leaves:
        return
    months = {leaf: month for month, leaf in stage.leaves.items()}
    for leaf in sorted(leaves):
        _complete(cursor, stage, leaf, months.get(leaf))
        cursor.execute(
            sql.SQL(
                "delete from {} as s using staged_quarantine as q where q.leaf = %s "
                "and q.place = s.ctid"
            ).format(sql.Identifier(SCHEMA, leaf)),
            (leaf,),
        )
    # Places are reused by later versions of a leaf's rows: from here on the leaf alone counts.
    cursor.execute("update staged_quarantine set place = null where place is not null")


def _complete(cursor: Any, stage: Stage, leaf: str, month: date | None) -> None:
    """Fill in month, provenance and the raw row of the quarantined rows of one leaf."""
    spec = stage.spec
    provenance = spec.has_provenance
    if provenance and spec.layer == "silver":
        raw = sql.SQL(
            "(to_jsonb(b) - '_delivery_id' - '_line' - '_is_latest' - 'month' "
            "- case when b._extra is null then '_extra' else '' end)::text"
        )
        bronze = sql.SQL(
            "left join {} as b on b._delivery_id = s._delivery_id and b._line = s._line {}"
        ).format(
            sql.Identifier("bronze", spec.name),
            sql.SQL("and b.month = {}").format(sql.Literal(month.isoformat()))
            if month
            else sql.SQL(""),
        )
        found_month = sql.SQL("b.month")
    else:
        raw, bronze = sql.SQL("to_jsonb(s)::text"), sql.SQL("")
        found_month = sql.Literal(month.isoformat() if month else None)
    cursor.execute(
        sql.SQL(
            "update staged_quarantine as q set month = f.month::date, delivery_id = f.delivery_id, "
            "line = f.line, raw = f.raw from (select s.ctid, {month} as month, "
            "{delivery} as delivery_id, {line} as line, {raw} as raw from {leaf} as s {bronze}) "
            "as f where q.leaf = %s and q.place = f.ctid"
        ).format(
            month=found_month,
            delivery=sql.SQL("s._delivery_id" if provenance else "null::bigint"),
            line=sql.SQL("s._line" if provenance else "null::bigint"),
            raw=raw,
            leaf=sql.Identifier(SCHEMA, leaf),
            bronze=bronze,
        ),
        (leaf,),
    )


def _enforce_key(cursor: Any, stage: Stage, month: date, audit: MonthAudit) -> None:
    """Give the leaf its unique index; where keys repeat, all but the last row are quarantined."""
    leaf, key = stage.leaf(month), identifiers(stage.spec.key)
    create = sql.SQL("create unique index on {} ({})").format(leaf, key)
    cursor.execute("savepoint before_index")
    try:
        cursor.execute(create)
    except psycopg2.errors.UniqueViolation:
        cursor.execute("rollback to savepoint before_index")
        _quarantine_duplicates(cursor, stage, month, audit)
        cursor.execute(create)
    cursor.execute("release savepoint before_index")
    cursor.execute(
        sql.SQL(
            "select (select count(*) from {}), "
            "(select count(*) from staged_quarantine where leaf = %s or month = %s)"
        ).format(leaf),
        (stage.leaves[month], month),
    )
    audit.rows, audit.quarantined = cursor.fetchone()


def _quarantine_duplicates(cursor: Any, stage: Stage, month: date, audit: MonthAudit) -> None:
    name = ", ".join(stage.spec.key)
    newest = "_delivery_id desc, _line desc" if stage.spec.has_provenance else "ctid desc"
    cursor.execute(
        sql.SQL(
            "insert into staged_quarantine (leaf, place, violations) "
            "select {leaf_name}, place, jsonb_build_array(jsonb_build_object("
            "'column', {name}, 'rule', 'must be unique', 'value', value)) from ("
            "select ctid as place, concat_ws(', ', {key}) as value, row_number() over "
            "(partition by {key} order by {newest}) as occurrence from {leaf}) as ranked "
            "where occurrence > 1"
        ).format(
            leaf_name=sql.Literal(stage.leaves[month]),
            name=sql.Literal(name),
            key=identifiers(stage.spec.key),
            newest=sql.SQL(newest),
            leaf=stage.leaf(month),
        )
    )
    audit.rules[(name, "must be unique")] += cursor.rowcount
    _take_out(cursor, stage)
