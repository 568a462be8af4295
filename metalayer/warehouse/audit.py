"""The second step of a build: every staged row held against its contract.

Rows that break a rule (`violations.py`) leave the stage for the session's quarantine
(`quarantine.py`); uniqueness is PostgreSQL's. A month with more of them than its contract allows
fails, and so does one that lost or gained rows on the way.

Does not belong here: how a table is filled, or what happens to a month that failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import polars as pl
import psycopg2.errors
from psycopg2 import sql

from metalayer.contracts.contract import TableSpec
from metalayer.governance.masks import is_open, may_be_shifted
from metalayer.warehouse.ddl import identifiers
from metalayer.warehouse.quarantine import (
    note,
    open_quarantine,
    quarantine_duplicates,
    quarantine_outside,
    take_out,
)
from metalayer.warehouse.stage import Stage
from metalayer.warehouse.survey import Tally, survey
from metalayer.warehouse.violations import LEAF, BadRows, is_failed_cast

_EXAMPLES = 10
_RULES = 5
_SHOWN_CHARACTERS = 60


@dataclass
class MonthAudit:
    """The verdict on one staged month.

    Attributes:
        tally: The rows that keep the contract.
        quarantined: Rows that do not.
        rules: (column, rule) -> rows that break it.
        unjudged: Rows that were not looked at any more, as the month fails in any case.
        problem: Why the month must not be published, or None. The first line says it; others may
            show examples.
    """

    tally: Tally = field(default_factory=Tally)
    quarantined: int = 0
    rules: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    unjudged: int = 0
    problem: str | None = None

    @property
    def rows(self) -> int:
        """All rows that came, good and bad."""
        return self.tally.rows + self.quarantined + self.unjudged


def audit_stage(cursor: Any, stage: Stage) -> dict[date, MonthAudit]:
    """Hold every staged row against the contract, and move those that break it to quarantine.

    Returns:
        Month -> verdict. Leaves of the stage keep only rows that keep the contract, and have a
        unique index on the key; those of months of which rows are unjudged are empty.
    """
    open_quarantine(cursor)
    audits = {month: MonthAudit() for month in stage.leaves}
    found = survey(cursor, stage)
    bad_rows = BadRows(cursor, stage, found)
    for bad in bad_rows:
        _count_rules(audits, stage, bad)
        note(cursor, bad)
    unjudged = bad_rows.unjudged
    outside = quarantine_outside(cursor, stage) if stage.outside in found else 0
    take_out(cursor, stage, emptied=unjudged)
    for month, leaf in stage.leaves.items():
        audits[month].unjudged = unjudged.get(leaf, 0)
    repeating = _enforce_keys(cursor, stage, audits)
    _tally(cursor, stage, audits, found, repeating)
    if outside and not stage.spec.has_provenance:
        # Nothing tells which month such a row was made for, so none of them can be trusted.
        for audit in audits.values():
            audit.problem = (
                f"its SELECT gives {outside:,} rows whose {stage.spec.month_column} is not in the "
                "months that were asked for"
            )
    return audits


def judge(
    cursor: Any,
    audits: Mapping[date, MonthAudit],
    spec: TableSpec,
) -> None:
    """Set `problem` on each month with more rejected rows than its contract allows.

    What is published does not count: the same rows come to the same verdict whatever was there
    before.
    """
    for month, audit in audits.items():
        limit = spec.limit_passed(audit.quarantined, audit.rows)
        if audit.problem is None and limit is not None:
            some = "at least " if audit.unjudged else ""
            told = "; ".join(
                f"{name or 'row'} {rule}: {some}{count:,} rows"
                for (name, rule), count in audit.rules.most_common(_RULES)
            )
            audit.problem = "\n".join(
                [
                    f"{some}{audit.quarantined:,} of {audit.rows:,} rows break the contract "
                    f"({limit}): {told}",
                    *_examples(cursor, spec, month),
                ]
            )
        # The leaf of such a month is empty: it must never be taken for what was delivered.
        assert audit.problem is not None or not audit.unjudged


def _examples(cursor: Any, spec: TableSpec, month: date) -> list[str]:
    """Some rejected rows, a line each: `file:line column rule 'value'`; personal values masked."""
    personal = [c.name for c in spec.columns if not is_open(c)]
    hides_texts = may_be_shifted(spec)  # there nothing is shown of what could not be typed
    # What came from no file goes by its key.
    keys = [name for name in spec.key if name not in personal]
    cursor.execute(
        "select coalesce(d.file || ':' || q.line, (select string_agg(k || ' ' || "
        "coalesce(q.raw::jsonb ->> k, '?'), ', ') from unnest(%s::text[]) as k), 'row'), "
        "q.violations from staged_quarantine as q left join meta.deliveries as d "
        "using (delivery_id) where q.month = %s order by q.delivery_id, q.line limit %s",
        (keys, month, _EXAMPLES),
    )
    return [
        f"{place} {_told(violations[0], personal, hides_texts=hides_texts)}"
        for place, violations in cursor.fetchall()
    ]


def _told(violation: Mapping[str, str | None], personal: list[str], *, hides_texts: bool) -> str:
    column, value = violation["column"], violation["value"]
    told = f"{column or 'row'} {violation['rule']}"
    if value is None:
        return told
    # A key of several columns is named by all of them.
    is_personal = any(name in personal for name in (column or "").split(", "))
    is_personal |= (
        hides_texts and violation["rule"] is not None and is_failed_cast(violation["rule"])
    )
    return f"{told} ***" if is_personal else f"{told} {value[:_SHOWN_CHARACTERS]!r}"


def _count_rules(audits: Mapping[date, MonthAudit], stage: Stage, bad: pl.DataFrame) -> None:
    months = {leaf: month for month, leaf in stage.leaves.items()}
    each = bad.explode("violations").select(LEAF, pl.col("violations").struct.unnest())
    for leaf, name, rule, count in each.group_by(LEAF, "column", "rule").len().rows():
        if leaf in months:
            audits[months[leaf]].rules[(name, rule)] += count


def _enforce_keys(cursor: Any, stage: Stage, audits: Mapping[date, MonthAudit]) -> set[date]:
    """Give each leaf its unique index; the months in which keys repeated, and do not any more."""
    key = identifiers(stage.spec.key)
    create = {
        month: sql.SQL("create unique index on {} ({})").format(stage.leaf(month), key)
        for month in stage.leaves
    }
    try:
        _try(cursor, sql.SQL("; ").join(create.values()))
    except psycopg2.errors.UniqueViolation:
        pass  # one month at a time, to see which
    else:
        return set()
    repeating = set()
    for month, statement in create.items():
        try:
            _try(cursor, statement)
        except psycopg2.errors.UniqueViolation:
            repeating.add(month)
            repeated = quarantine_duplicates(cursor, stage, month)
            audits[month].rules[(", ".join(stage.spec.key), "must be unique")] += repeated
            cursor.execute(statement)
    return repeating


def _try(cursor: Any, statement: sql.Composable) -> None:
    """Execute what may fail, and then leaves the transaction as it was."""
    cursor.execute("savepoint before")
    try:
        cursor.execute(statement)
    except psycopg2.errors.UniqueViolation:
        cursor.execute("rollback to savepoint before; release savepoint before")
        raise
    cursor.execute("release savepoint before")


def _tally(
    cursor: Any,
    stage: Stage,
    audits: Mapping[date, MonthAudit],
    found: Mapping[str, Mapping[bool, Tally]],
    repeating: Collection[date],
) -> None:
    """Note what is left of each month, and how much of it was quarantined.

    Only what may have changed since `found` is read again: suspects, and months with repeated keys.
    """
    suspected = [leaf for leaf in stage.leaves.values() if True in found.get(leaf, {})]
    cleared = survey(cursor, stage, suspected, only_suspects=True) if suspected else {}
    again = [stage.leaves[month] for month in repeating]
    whole = survey(cursor, stage, again) if again else {}
    cursor.execute("select leaf, month, count(*) from staged_quarantine group by leaf, month")
    quarantined = cursor.fetchall()
    for month, audit in audits.items():
        leaf = stage.leaves[month]
        audit.quarantined = sum(n for name, of, n in quarantined if name == leaf or of == month)
        if audit.unjudged:
            bad = sum(n for name, _, n in quarantined if name == leaf)
            every = sum(tally.rows for tally in found[leaf].values())
            audit.tally = Tally(every - audit.unjudged - bad)
            continue
        if month in repeating:
            parts = list(whole.get(leaf, {}).values())
        else:
            parts = [found.get(leaf, {}).get(False, Tally())]
            parts += cleared.get(leaf, {}).values()
        audit.tally = sum(parts, Tally())
