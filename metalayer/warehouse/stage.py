"""The first step of a build: a window's months written where nobody reads.

A stage is a partitioned table of its own with one leaf a month. The leaves are made in the
transaction that fills them, so that nothing is left behind when it fails, and each already has the
shape to become a partition of the real table: publishing moves no row.

Does not belong here: what the rows are (the caller fills), whether they are right (`audit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.lineage.select import FAILED_CASTS
from metalayer.warehouse.ddl import identifiers, month_bounds, stored_masks, stored_name
from metalayer.warehouse.leaves import LEAVES


@dataclass(frozen=True)
class Stage:
    """Where the rows of some months wait for their audit.

    Attributes:
        spec: The table.
        parent: The partitioned table to write to.
        leaves: Month -> name of its leaf in the schema `months`.
        outside: Leaf for rows whose month is none of the window's.
    """

    spec: TableSpec
    parent: sql.Identifier
    leaves: Mapping[date, str]
    outside: str

    @property
    def tracks_casts(self) -> bool:
        """Whether a row carries the casts that failed (tables typed from landed text)."""
        return self.spec.layer == "silver" and self.spec.source is not None

    @property
    def columns(self) -> list[str]:
        """Columns to fill, in order."""
        names = [c.name for c in self.spec.stored]
        return [*names, FAILED_CASTS] if self.tracks_casts else names

    def leaf(self, month: date) -> sql.Identifier:
        """The table in which the rows of `month` wait."""
        return sql.Identifier(LEAVES, self.leaves[month])


def create_stage(cursor: Any, spec: TableSpec, months: Sequence[date]) -> Stage:
    """Create an empty stage for `months`, in the caller's transaction."""
    cursor.execute(
        "select nextval('meta.leaf_number') from generate_series(1, %s)", (len(months) + 1,)
    )
    numbers = [number for (number,) in cursor.fetchall()]
    names = {
        month: f"{spec.layer}_{spec.name}_{month:%Y_%m}_{number}"
        for month, number in zip(months, numbers, strict=False)
    }
    stem = f"stage_{spec.layer}_{spec.name}_{numbers[-1]}"
    stage = Stage(spec, sql.Identifier(LEAVES, stem), names, f"{stem}_outside")
    column = sql.Identifier(spec.month_column)
    extra = sql.SQL(", {} text").format(sql.Identifier(FAILED_CASTS))
    statements = [
        sql.SQL("create table {} (like {}{}) partition by range ({})").format(
            stage.parent, stored_name(spec), extra if stage.tracks_casts else sql.SQL(""), column
        )
    ]
    for month in months:
        start, end = (sql.Literal(day.isoformat()) for day in month_bounds(month))
        # The check lets ATTACH trust the bounds instead of scanning the month again.
        statements.append(
            sql.SQL(
                "create table {leaf} partition of {parent} (constraint month_bounds check "
                "({column} is not null and {column} >= {start} and {column} < {end})) "
                "for values from ({start}) to ({end})"
            ).format(
                leaf=stage.leaf(month), parent=stage.parent, column=column, start=start, end=end
            )
        )
    statements.append(
        sql.SQL("create table {} partition of {} default").format(
            sql.Identifier(LEAVES, stage.outside), stage.parent
        )
    )
    cursor.execute(sql.SQL("; ").join(statements))
    return stage


def fill_from_select(cursor: Any, stage: Stage, select: str) -> None:
    """Write what `select` returns (columns as in `stage.columns`) into the stage, and its masks."""
    columns = identifiers(stage.columns)
    masks = stored_masks(stage.spec).values()
    if not masks:
        cursor.execute(
            sql.SQL("insert into {} ({}) {}").format(stage.parent, columns, sql.SQL(select))
        )
        return
    cursor.execute(
        sql.SQL(
            "insert into {stage} ({columns}, {names}) select {columns}, {values} "
            "from (select {typed} from (\n{select}\n) as made ({columns})) as typed"
        ).format(
            stage=stage.parent,
            columns=columns,
            names=identifiers(m.name for m in masks),
            values=sql.SQL(", ").join(m.value for m in masks),
            # As the insert itself would: an untyped null is a text inside of a subquery.
            typed=sql.SQL(", ").join(
                sql.SQL("cast({c} as {type}) as {c}").format(
                    c=sql.Identifier(c.name), type=sql.SQL(c.type)
                )
                for c in stage.spec.stored
            ),
            select=sql.SQL(select),
        )
    )


def finish_stage(cursor: Any, stage: Stage) -> None:
    """Turn the audited leaves into stand-alone tables with the contract's constraints.

    Not knowing that all rows of a leaf lie in its month, PostgreSQL would take a window for one row
    in two hundred, and nest loops over whole tables.
    """
    required = [c.name for c in stage.spec.stored if not c.nullable]
    statements = []
    for month in stage.leaves:
        changes = [
            sql.SQL("alter column {} set not null").format(sql.Identifier(name))
            for name in required
        ]
        leaf = stage.leaf(month)
        statements.append(sql.SQL("alter table {} detach partition {}").format(stage.parent, leaf))
        if stage.tracks_casts:
            changes.append(sql.SQL("drop column {}").format(sql.Identifier(FAILED_CASTS)))
        statements.append(sql.SQL("alter table {} {}").format(leaf, sql.SQL(", ").join(changes)))
    statements.append(sql.SQL("drop table {}").format(stage.parent))
    column = sql.Identifier(stage.spec.month_column)
    statements += [
        sql.SQL("analyze {} ({})").format(stage.leaf(month), column) for month in stage.leaves
    ]
    cursor.execute(sql.SQL("; ").join(statements))
