"""Staged rows held against their contract's rules: which row breaks which.

Suspect rows (`suspects.py`) are read back in batches (COPY out, Polars) and validated with Pandera;
failed casts travel with the row. Only columns that have rules are read, and no more of a month than
it takes to know that it fails.

Does not belong here: the verdict on a month (`audit.py`), or what becomes of a bad row
(`quarantine.py`).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pandera.errors
import pandera.polars as pa
import polars as pl
from psycopg2 import sql

from metalayer.contracts.contract import ColumnSpec, TableSpec, pandera_schema
from metalayer.contracts.promises import readable_rule
from metalayer.lineage.select import FAILED_CASTS, RECORD_SEPARATOR, UNIT_SEPARATOR
from metalayer.warehouse.leaves import LEAVES
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.survey import Tally
from metalayer.warehouse.suspects import suspect

#: Rows read back at once: the audit's memory is bounded by this, not by the month.
BATCH_ROWS = 50_000
#: Rows in the first batch of a leaf that may have too many bad ones: those that its rate allows,
#: and so much more.
_FIRST_BATCH = 1.25
_SHOWN_OF_A_VALUE = 200
#: Columns of a batch that say where in the stage a row is: its leaf, and its place in it.
ROW, LEAF = "_row", "_leaf"
# What is said of a landed text that could not be typed.
_NOT_A, _NOT_READABLE = "not a ", "not readable"


class BadRows:
    """The staged rows that break a rule, in batches, each with what it breaks.

    To be iterated once. Once a month has more than its contract allows, and there are so many
    suspects that it takes several batches, the rest of it is not looked at.

    Args:
        found: What the stage holds, see `survey`.

    Yields:
        `_leaf`, `_row` (its ctid) and `violations`: a list of (column, rule, value), failed casts
        first.

    Attributes:
        unjudged: Once it is iterated, leaf -> suspects that were not looked at.
    """

    def __init__(
        self,
        cursor: Any,
        stage: Stage,
        found: Mapping[str, Mapping[bool, Tally]],
    ) -> None:
        self.unjudged: dict[str, int] = {}
        self._cursor = cursor
        self._stage = stage
        self._found = found
        self._judged: Counter[str] = Counter()
        self._bad: Counter[str] = Counter()

    def __iter__(self) -> Iterator[pl.DataFrame]:
        stage = self._stage
        schema = _audited_schema(stage.spec)
        for source, condition in self._slices():
            batch = _batch(self._cursor, stage, schema, source, condition)
            if batch is None:
                continue
            self._judged.update(_by_leaf(batch))
            merged = _merged(
                [*_rule_violations(batch, schema, stage.spec), *_cast_violations(batch, stage)]
            )
            if merged is not None:
                self._bad.update(_by_leaf(merged))
                yield merged

    def _slices(self) -> Iterator[tuple[sql.Composable, sql.Composable]]:
        """Parts of the stage with at most about `BATCH_ROWS` suspects, as (table, condition)."""
        condition = suspect(self._stage)
        suspects = {leaf: rows[True].rows for leaf, rows in self._found.items() if True in rows}
        if sum(suspects.values()) <= BATCH_ROWS:
            if suspects:
                yield self._stage.parent, condition
            return
        for name, count in sorted(suspects.items()):
            leaf = sql.Identifier(LEAVES, name)
            for start, end in self._parts(name):
                if self._judged[name] == count:
                    break
                if self._has_failed(name, self._bad[name]):
                    self.unjudged[name] = count - self._judged[name]
                    break
                yield (
                    leaf,
                    sql.SQL("{} and s.ctid >= {} and s.ctid < {}").format(
                        condition, sql.Literal(f"({start},0)"), sql.Literal(f"({end},0)")
                    ),
                )

    def _has_failed(self, leaf: str, bad: int) -> bool:
        """Whether so many bad rows are too many for a month; those of no month always count."""
        rows = sum(tally.rows for tally in self._found[leaf].values())
        return leaf != self._stage.outside and self._stage.spec.limit_passed(bad, rows) is not None

    def _parts(self, leaf: str) -> Iterator[tuple[int, int]]:
        """Ranges of a leaf's blocks with about `BATCH_ROWS` rows.

        The first is smaller where enough rows are suspect for the month to fail by itself.
        """
        self._cursor.execute(
            "select pg_relation_size(%s) / current_setting('block_size')::int",
            (sql.Identifier(LEAVES, leaf).as_string(self._cursor),),
        )
        (blocks,) = self._cursor.fetchone()
        # As if all its rows were suspect: bad rows come in clusters.
        every = sum(tally.rows for tally in self._found[leaf].values())
        blocks_a_row = blocks / every
        start, rows = 0, BATCH_ROWS
        if self._has_failed(leaf, self._found[leaf][True].rows):
            rows = min(rows, int(self._stage.spec.max_reject_rate * every * _FIRST_BATCH) + 1)
        while start < blocks:
            end = min(blocks, start + max(1, int(rows * blocks_a_row)))
            yield start, end
            start, rows = end, BATCH_ROWS


def _audited_schema(spec: TableSpec) -> pa.DataFrameSchema:
    """The contract's rules on the columns that have any: the others' types PostgreSQL ensures."""
    schema = pandera_schema(spec)
    if schema.checks:
        return schema
    ruled = {n: c for n, c in schema.columns.items() if c.checks or not c.nullable}
    return pa.DataFrameSchema(ruled)


def _by_leaf(rows: pl.DataFrame) -> dict[str, int]:
    return dict(rows.group_by(LEAF).len().iter_rows())


def _batch(
    cursor: Any,
    stage: Stage,
    schema: pa.DataFrameSchema,
    source: sql.Composable,
    condition: sql.Composable,
) -> pl.DataFrame | None:
    """Suspect rows, with their leaf and place; None if there are none."""
    names = list(schema.columns)
    if stage.tracks_casts:
        names.append(FAILED_CASTS)
    columns = {c.name: c for c in stage.spec.stored}
    selected = [_copied(columns[n]) if n in columns else sql.Identifier(n) for n in names]
    overrides: dict[str, Any] = {LEAF: pl.String, ROW: pl.String}
    overrides |= {n: columns[n].dtype if n in columns else pl.String for n in names}
    buffer = io.BytesIO()
    cursor.copy_expert(
        sql.SQL(
            "copy (select {leaf}, s.ctid, {columns} from {source} as s where {condition}) "
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
        return None
    buffer.seek(0)
    return pl.read_csv(
        buffer,
        has_header=False,
        new_columns=list(overrides),
        schema_overrides=list(overrides.values()),
        infer_schema=False,
    ).with_columns(pl.col(LEAF).str.strip_prefix(f"{LEAVES}."))


def _copied(column: ColumnSpec) -> sql.Composable:
    name = sql.Identifier(column.name)
    if column.dtype == pl.Boolean:
        return sql.SQL("case when {c} then 'true' when not {c} then 'false' end").format(c=name)
    return name


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
            # Not from `errors`, which lists the values of every row that breaks a rule.
            raise TypeError(
                f"{spec.full_name}: rule {first['check']!r} failed as a whole: "
                f"{first['failure_case']}"
            ) from None
        rules = {name: readable_rule(name) for name in cases.get_column("check").unique().to_list()}
        places = batch.select(LEAF, ROW).with_row_index("index")
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
            .select(LEAF, ROW, "column", "rule", "value", pl.lit(1).alias("order"))
        ]
    return []


def _cast_violations(batch: pl.DataFrame, stage: Stage) -> list[pl.DataFrame]:
    if not stage.tracks_casts:
        return []
    failed = batch.filter(pl.col(FAILED_CASTS).is_not_null())
    if failed.is_empty():
        return []
    types = {c.name: f"{_NOT_A}{c.sealed_type or c.type}" for c in stage.spec.stored}
    parts = pl.col(FAILED_CASTS).str.splitn(UNIT_SEPARATOR, 2)
    return [
        failed.select(LEAF, ROW, pl.col(FAILED_CASTS).str.split(RECORD_SEPARATOR))
        .explode(FAILED_CASTS)
        .select(
            LEAF,
            ROW,
            parts.struct.field("field_0").alias("column"),
            parts.struct.field("field_1").alias("value"),
        )
        .with_columns(
            pl.col("column").replace_strict(types, default=_NOT_READABLE).alias("rule"),
            pl.lit(0).alias("order"),
        )
        .select(LEAF, ROW, "column", "rule", "value", "order")
    ]


def is_failed_cast(rule: str) -> bool:
    """Whether a rule says that a landed text could not be typed."""
    return rule.startswith(_NOT_A) or rule == _NOT_READABLE


def _merged(violations: list[pl.DataFrame]) -> pl.DataFrame | None:
    """One row per bad row: leaf, place, and its violations as JSON, failed casts first."""
    if not violations:
        return None
    every = pl.concat(violations)
    # A value that could not be cast is also missing: the cast is the cause.
    every = every.sort("order", maintain_order=True).unique(
        [LEAF, ROW, "column"], keep="first", maintain_order=True
    )
    return every.group_by(LEAF, ROW, maintain_order=True).agg(
        pl.struct("column", "rule", "value").alias("violations")
    )
