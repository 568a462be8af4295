"""How good the tables are, as scores that say what they rest on: what the quality page shows.

    ledger, versions, quarantine, profiles --> scores of each table, flow, rules, times

A score is a share from 0 to 1 of what was looked at, None where there is nothing to look at. Of a
table it is the mean of its dimensions, beside the worst of them, which a mean would hide.

Asked of PostgreSQL alone, like metrics. Does not belong here: how it looks (`pages/quality.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from metalayer.inspection import Reject, TableStatus, quarantine_filter, rejects, table_status
from metalayer.operations.looking import is_there
from metalayer.wording import counted

DIMENSIONS = (
    "completeness", "validity", "uniqueness", "consistency", "freshness", "conservation"
)  # fmt: skip
_SECONDS_TAG = "metalayer/seconds"
_PHASE = re.compile(r"([A-Za-z][A-Za-z ]*?) ([\d.]+) s(?:,|$)")
_MOST_REJECTS = 200


@dataclass(frozen=True)
class Score:
    """A score of one dimension.

    Attributes:
        value: 0 to 1, or None where it does not apply or was not measured.
        why: What was counted, in a sentence.
        next_step: The command that says more, where something is wrong.
    """

    value: float | None
    why: str
    next_step: str = ""


@dataclass(frozen=True)
class TableQuality:
    """A table and its scores."""

    status: TableStatus
    scores: Mapping[str, Score]
    anomalies: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """`layer.name`."""
        return self.status.table

    @property
    def score(self) -> float | None:
        """The mean of its scores; None where none was measured."""
        values = self._values
        return sum(values) / len(values) if values else None

    @property
    def worst(self) -> float:
        """The worst of its scores; 1 where none was measured."""
        return min(self._values, default=1.0)

    @property
    def _values(self) -> list[float]:
        return [s.value for s in self.scores.values() if s.value is not None]


@dataclass(frozen=True)
class Rule:
    """A rule that rows break: how many, in which table."""

    table: str
    column: str
    rule: str
    rows: int
    newest: datetime


@dataclass(frozen=True)
class Link:
    """Rows that go from one place to another, in the flow from files to gold."""

    source: str
    target: str
    rows: int
    is_loss: bool = False


@dataclass(frozen=True)
class Quality:
    """Everything that the page's first sight shows.

    Attributes:
        tables: Bronze first, upstream before downstream.
        files: What became of landed files -> how many versions.
        phases: Phase -> seconds, of the last runs together.
    """

    asked_at: datetime
    tables: Sequence[TableQuality]
    rules: Sequence[Rule]
    flow: Sequence[Link]
    files: Mapping[str, int]
    refused: int
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The mean of the tables' scores."""
        values = [t.score for t in self.tables if t.score is not None]
        return sum(values) / len(values) if values else None

    @property
    def said(self) -> str:
        """How it is, in a sentence."""
        if not any(t.status.months for t in self.tables):
            return "Nothing has been built yet"
        late = sum(t.status.late_since is not None for t in self.tables)
        failed = sum(bool(t.status.failed_months) for t in self.tables)
        unusual = sum(t.anomalies > 0 for t in self.tables)
        said = [
            f"{counted(number, noun)} {what}"
            for number, noun, what in (
                (self.refused, "file", "refused"),
                (failed, "table", "with a month that failed"),
                (late, "table", "late"),
                (unusual, "table", "unusual"),
            )
            if number
        ]
        return ", ".join(said) if said else "Everything is as it should be"


def quality(
    connection: Any, dagster: Any | None, start_month: date, now: datetime | None = None
) -> Quality:
    """Ask for everything.

    Args:
        connection: To the warehouse, for reading.
        dagster: To Dagster's database; None leaves the phases out.
    """
    now = now or datetime.now(UTC)
    with connection.cursor() as cursor:
        if not is_there(cursor, "meta.tables") or not is_there(cursor, "meta.profiles"):
            return Quality(now, (), (), (), {}, 0)
        found = table_status(connection, start_month, now)
        measured = _Measured.of(cursor)
        tables = [
            TableQuality(
                status,
                _scores(status, measured, now),
                measured.anomalies.get(status.table, 0),
                measured.seconds.get(status.table, 0.0),
            )
            for status in found
        ]
        cursor.execute("select status, count(*) from meta.deliveries group by 1 order by 2 desc, 1")
        files = dict(cursor.fetchall())
        cursor.execute(
            "select count(*) from (select distinct on (source, file) status from meta.deliveries "
            "order by source, file, delivery_id desc) as d where status = 'rejected'"
        )
        (refused,) = cursor.fetchone()
        return Quality(
            now, tables, _rules(cursor), _flow(cursor, found), files, refused, _phases(dagster)
        )


@dataclass(frozen=True)
class _Measured:
    """What is asked of all tables at once."""

    repeated: Mapping[str, int]
    filled: Mapping[str, tuple[int, int, str, int]]
    resolved: Mapping[str, tuple[int, int]]
    unbalanced: Mapping[str, int]
    anomalies: Mapping[str, int]
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, cursor: Any) -> _Measured:
        def by_table(query: str) -> dict[str, Any]:
            cursor.execute(query)
            return {name: rest[0] if len(rest) == 1 else tuple(rest)
                    for name, *rest in cursor.fetchall()}  # fmt: skip

        profiles = (  # a constant
            "with cells as (select p.table_name, c.key as name, sum(p.rows) as rows, "
            "sum((c.value ->> 'nulls')::bigint) as nulls, "
            "sum(p.rows - (c.value ->> 'nulls')::bigint) filter (where c.value ? 'unresolved') "
            "as referring, sum((c.value ->> 'unresolved')::bigint) as unresolved "
            "from meta.profiles as p join meta.versions as v using (table_name, month, version) "
            "cross join lateral jsonb_each(p.columns) as c where v.is_current group by 1, 2) "
        )
        return cls(
            by_table(
                "select table_name, count(*) from meta.quarantine "
                "where rule = 'must be unique' group by 1"
            ),
            by_table(
                f"{profiles} select table_name, sum(rows)::bigint, sum(nulls)::bigint, "  # noqa: S608
                "(array_agg(name order by nulls::numeric / rows desc))[1], "
                "max(nulls)::bigint from cells where nulls < rows group by 1"
            ),
            by_table(
                f"{profiles} select table_name, sum(referring)::bigint, sum(unresolved)::bigint "  # noqa: S608
                "from cells where referring > 0 group by 1"
            ),
            by_table(
                "select table_name, count(*) filter (where rows_read <> rows + rows_quarantined "
                "+ rows_superseded) from meta.versions where is_current group by 1"
            ),
            by_table(
                "select table_name, count(*) from meta.anomalies where state = 'open' group by 1"
            ),
            by_table(
                "select table_name, sum(seconds) from meta.versions where is_current group by 1"
            ),
        )


def _scores(status: TableStatus, measured: _Measured, now: datetime) -> dict[str, Score]:
    table, counting = status.table, status.rows + status.quarantined
    return {
        "completeness": _completeness(measured.filled.get(table), table),
        "validity": _share(
            status.quarantined,
            counting,
            f"{status.quarantined:,} of {counting:,} rows break the contract",
            f"metalayer rejects {table}",
        ),
        "uniqueness": _share(
            measured.repeated.get(table, 0),
            counting,
            f"{measured.repeated.get(table, 0):,} of {counting:,} rows repeat a key",
            f"metalayer rejects {table}",
        ),
        "consistency": _consistency(measured.resolved.get(table), table),
        "freshness": _freshness(status, now),
        "conservation": _share(
            measured.unbalanced.get(table, 0),
            status.months,
            f"in {status.months - measured.unbalanced.get(table, 0):,} of "
            f"{counted(status.months, 'month')} rows read = published + quarantined + superseded",
            "metalayer ledger",
        ),
    }


def _share(bad: int, of: int, why: str, next_step: str) -> Score:
    if not of:
        return Score(None, "Nothing is there yet")
    return Score(1 - bad / of, why[:1].upper() + why[1:], next_step if bad else "")


def _completeness(filled: tuple[int, int, str, int] | None, table: str) -> Score:
    if filled is None:
        return Score(None, "Not measured yet")
    cells, nulls, worst, lacking = filled
    why = f"{nulls:,} of {cells:,} values are missing"
    if nulls:
        why += f", most of {worst} ({lacking:,})"
    return Score(1 - nulls / cells, why, f'metalayer query "table {table}"' if nulls else "")


def _consistency(resolved: tuple[int, int] | None, table: str) -> Score:
    if resolved is None:
        return Score(None, "It refers to no other table")
    referring, unresolved = resolved
    return Score(
        1 - unresolved / referring,
        f"{unresolved:,} of {referring:,} keys point at nothing",
        "metalayer status" if unresolved else "",
    )


def _freshness(status: TableStatus, now: datetime) -> Score:
    """Whole as long as nothing is late or old; less, the longer it lasts, none after a month."""
    if not status.months:
        return Score(None, "Nothing is there yet")
    late = (now - status.late_since).total_seconds() if status.late_since is not None else 0.0
    if late > 0:
        waits = ", ".join(status.waits_for) or status.table
        why = f"{status.due_month} was due {counted(round(late / 86_400), 'day')} ago: {waits}"
        return Score(max(0.0, 1 - late / (30 * 86_400)), why, "metalayer status")
    if status.fresh is False:
        days = f"{status.fresh_within_days:.0f} days"
        return Score(0.5, f"Nothing was published for longer than {days}", "metalayer status")
    return Score(1.0, "The month that is due is there")


def _rules(cursor: Any) -> list[Rule]:
    cursor.execute(
        "select table_name, coalesce(column_name, ''), rule, count(*), max(quarantined_at) "
        "from meta.quarantine group by 1, 2, 3 order by 4 desc, 1, 2, 3"
    )
    return [Rule(*row) for row in cursor.fetchall()]


def _flow(cursor: Any, tables: Sequence[TableStatus]) -> list[Link]:
    """Rows from files to gold, with what is lost on the way.

    A gold table that is made from several typed ones has its rows from each in equal parts; what is
    made from gold is left out.
    """
    cursor.execute(
        "select t.source, t.table_name, sum(l.rows_read)::bigint, sum(l.rows_superseded)::bigint, "
        "(select sum(d.rows_rejected - d.rows_repaired) from meta.deliveries as d "
        "where d.source = t.source and d.status = 'loaded')::bigint "
        "from meta.tables as t join meta.ledger as l on l.source = t.source "
        "where l.status = 'loaded' and t.layer = 'bronze' group by 1, 2 order by 2"
    )
    links = []
    for source, table, read, superseded, unreadable in cursor.fetchall():
        files = f"{source} files"
        kept = read - (unreadable or 0) - (superseded or 0)
        links += [Link(files, table, kept)]
        links += [Link(files, "unreadable", unreadable or 0, is_loss=True)]
        links += [Link(files, "superseded", superseded or 0, is_loss=True)]
    by_name = {status.table: status for status in tables}
    cursor.execute(
        "select table_name, array_agg(distinct i) from meta.versions, "
        "jsonb_object_keys(inputs) as i where is_current group by 1"
    )
    for table, inputs in sorted(cursor.fetchall()):
        status = by_name.get(table)
        upstream = sorted(name for name in inputs if name in by_name)
        if status is None or not upstream or status.layer == "bronze":
            continue
        if status.layer == "silver":
            links.append(Link(upstream[0], table, status.rows))
            links.append(Link(upstream[0], "quarantined", status.quarantined, is_loss=True))
        else:
            own = [name for name in upstream if by_name[name].layer == "silver"]
            links += [Link(name, table, max(1, status.rows // len(own))) for name in own]
    return [link for link in links if link.rows > 0]


def _phases(dagster: Any | None) -> dict[str, float]:
    """Where the last fifty runs spent their time."""
    if dagster is None:
        return {}
    with dagster.cursor() as cursor:
        if not is_there(cursor, "run_tags"):
            return {}
        cursor.execute(
            "select value from run_tags where key = %s order by id desc limit 50", (_SECONDS_TAG,)
        )
        found: dict[str, float] = {}
        for (value,) in cursor.fetchall():
            for phase, seconds in _PHASE.findall(value):
                found[phase.strip()] = found.get(phase.strip(), 0.0) + float(seconds)
    return found


@dataclass(frozen=True)
class Trend:
    """Scores over time: labels, and by dimension a share or None for each."""

    labels: Sequence[str]
    scores: Mapping[str, Sequence[float | None]]


def by_month(connection: Any, table: str) -> Trend:
    """Scores of each published month of a table."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"select to_char(v.month, 'YYYY-MM'), {_SHARES} from meta.versions as v "  # noqa: S608
            "left join meta.profiles as p using (table_name, month, version) "
            "where v.is_current and v.table_name = %s order by 1",
            (table,),
        )
        return _trend(cursor.fetchall())


def by_day(connection: Any, table: str) -> Trend:
    """Scores of what was published on each day."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select day, sum(good) / nullif(sum(counting), 0), "
            "avg(balanced), sum(filled) / nullif(sum(cells), 0) from ("
            "select to_char(p.published_at, 'YYYY-MM-DD') as day, p.rows::numeric as good, "
            "(p.rows + p.rows_quarantined)::numeric as counting, (p.rows_read = p.rows + "
            "p.rows_quarantined + p.rows_superseded)::int::numeric as balanced, "
            "(select count(*) * p.rows - sum((c.value ->> 'nulls')::numeric) "
            "from jsonb_each(p.columns) as c) as filled, "
            "(select count(*) * p.rows from jsonb_each(p.columns) as c) as cells "
            "from meta.profiles as p where p.table_name = %s) as d group by 1 order by 1 desc "
            "limit 90",
            (table,),
        )
        return _trend(cursor.fetchall()[::-1])


_SHARES = (
    "v.rows::numeric / nullif(v.rows + v.rows_quarantined, 0), "
    "(v.rows_read = v.rows + v.rows_quarantined + v.rows_superseded)::int::numeric, "
    "(select 1 - sum((c.value ->> 'nulls')::numeric) / nullif(count(*) * p.rows, 0) "
    "from jsonb_each(p.columns) as c)"
)


def _trend(rows: Iterable[Sequence[Any]]) -> Trend:
    every = list(rows)
    names = ("validity", "conservation", "completeness")
    return Trend(
        [row[0] for row in every],
        {
            name: [None if row[place] is None else float(row[place]) for row in every]
            for place, name in enumerate(names, 1)
        },
    )


def rejected_rows(
    connection: Any, table: str, column: str | None = None, rule: str | None = None
) -> tuple[int, list[Reject]]:
    """How many rows of a table are quarantined, and the first of them, masked.

    Args:
        connection: Not in autocommit.
        column, rule: Only rows that broke this rule.
    """
    from psycopg2 import sql

    wanted = quarantine_filter(connection, table, None, None)
    if rule is not None:
        wanted = sql.SQL("({}) and q.rule = {} and coalesce(q.column_name, '') = {}").format(
            wanted, sql.Literal(rule), sql.Literal(column or "")
        )
    with rejects(connection, wanted) as (count, rows):
        return count, [row for row, _ in zip(rows, range(_MOST_REJECTS), strict=False)]
