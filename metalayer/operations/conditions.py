"""What is wrong just now, one entry for each cause, with whom it concerns and what to do.

    PostgreSQL's answers, the disk --> conditions --> alerts.py: who is told

A condition is a state and not an event: as long as it lasts it is found each time, under the same
key, and when it is no longer found it is over. What only follows from another is not found beside
it: a source that is late explains every table behind it, a month that failed the run that failed,
a refused file the month that did not come.

Asked of PostgreSQL alone, like `status`, so it costs no import of contracts or Dagster.

Does not belong here: telling anybody (`alerts.py`), or figures (`metrics.py`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal

import psycopg2

from metalayer.errors import MetaLayerError
from metalayer.lateness import Punctuality, punctuality
from metalayer.operations.looking import looking
from metalayer.settings import Settings
from metalayer.warehouse.server import standing_server
from metalayer.wording import counted, named

Severity = Literal["warning", "critical"]

_LEAST_FREE_SHARE, _LEAST_FREE_BYTES = 0.1, 20 * 1024**3
_MOST_CHARACTERS = 400
_MONTHS_TOLD = 3


@dataclass(frozen=True)
class Condition:
    """Something that is wrong.

    Attributes:
        key: The same as long as it lasts: "month_failed silver.orders".
        title: What, in a line.
        what: The same with its details.
        since: When it began, or was due.
        owner: Whose table it is, as the contract says; None where it is nobody's in particular.
        affects: Tables that lack something for it, upstream before downstream.
        next_step: What to do.
        settles_seconds: For how long it may be so before it is worth telling: some things mend
            themselves.
    """

    key: str
    title: str
    what: str
    since: datetime
    next_step: str
    severity: Severity = "warning"
    owner: str | None = None
    affects: tuple[str, ...] = ()
    settles_seconds: float = 0.0

    @property
    def kind(self) -> str:
        """What sort of thing it is: "month_failed"."""
        return self.key.partition(" ")[0]


@dataclass(frozen=True)
class Findings:
    """What is wrong, and of what it cannot be told.

    Attributes:
        conditions: What was found.
        unknown: Kinds of which nobody can say whether they are over.
    """

    conditions: tuple[Condition, ...]
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Table:
    name: str
    owner: str
    made_from: frozenset[str]
    source: str | None


@dataclass
class _Known:
    """What the warehouse says of its tables."""

    tables: Mapping[str, _Table]
    late: Mapping[str, Punctuality]
    explained: set[str] = field(default_factory=set)

    def behind(self, *tables: str) -> tuple[str, ...]:
        """The tables that are made from these, near or far."""
        wanted = set(tables)
        return tuple(t.name for t in self.tables.values() if t.made_from & wanted)

    def owner(self, table: str | None) -> str | None:
        """Whose a table is."""
        known = self.tables.get(table) if table else None
        return known.owner if known else None


_OF_WAREHOUSE = frozenset(
    ("delivery_rejected", "month_failed", "check_failed", "month_missing", "run_failed")
)


def find(settings: Settings, now: datetime | None = None) -> Findings:
    """What is wrong at `now` (this moment).

    Nothing is started for it: where PostgreSQL does not answer, that is what is wrong.
    """
    now = now or datetime.now(UTC)
    disks = list(_disks(settings, now))
    try:
        server = standing_server(settings)
        with looking(server.warehouse_url, "alerts") as connection, connection.cursor() as cursor:
            found, explained = _of_warehouse(cursor, settings, now)
        with looking(server.dagster_url, "alerts") as connection, connection.cursor() as cursor:
            found += _runs(cursor, explained)
    except (psycopg2.OperationalError, MetaLayerError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        down = Condition(
            key="warehouse_down",
            title="PostgreSQL does not answer",
            what=f"Nothing lands and nothing is built: {first[:_MOST_CHARACTERS]}",
            since=now,
            next_step="Look whether `metalayer up` runs, then `metalayer doctor`.",
            severity="critical",
            settles_seconds=60.0,
        )
        return Findings((down, *disks), _OF_WAREHOUSE)
    return Findings((*found, *disks))


def _of_warehouse(
    cursor: Any, settings: Settings, now: datetime
) -> tuple[list[Condition], list[datetime]]:
    """What is wrong with files and tables; and when audits and checks failed."""
    cursor.execute("select to_regclass('meta.tables') is not null")
    if cursor.fetchone() == (False,):
        return [], []
    cursor.execute("select table_name, owner, made_from, source from meta.tables order by position")
    tables = {
        name: _Table(name, owner, frozenset(n for n in made_from.split(",") if n), source)
        for name, owner, made_from, source in cursor.fetchall()
    }
    known = _Known(tables, punctuality(cursor, settings.start_month, now))
    failed: list[datetime] = []
    found = [
        *_rejected(cursor, settings, known),
        *_failed_months(cursor, known, failed),
        *_failed_checks(cursor, known, failed),
    ]
    return [*found, *_missing(known)], failed


def _rejected(cursor: Any, settings: Settings, known: _Known) -> Iterator[Condition]:
    """Files whose last version was refused, as long as they lie there."""
    cursor.execute(
        "select source, file, reason, registered_at from (select distinct on (source, file) * "
        "from meta.deliveries order by source, file, delivery_id desc) as d "
        "where status = 'rejected' order by source, file"
    )
    of_source = {t.source: t.name for t in known.tables.values() if t.source}
    for source, file, reason, at in cursor.fetchall():
        if not (settings.landing / file).exists():
            continue
        table = of_source.get(source)
        if table:
            # What of it did not come did not come for this.
            known.explained.add(table)
        yield Condition(
            key=f"delivery_rejected {file}",
            title=f"{file} was refused",
            what=f"None of its rows is in the tables. {_shortened(reason or '')}",
            since=at,
            next_step="Have it exported again and land it under the same name; "
            "`metalayer ledger` has the whole reason.",
            owner=known.owner(table),
            affects=known.behind(table) if table else (),
        )


def _failed_months(cursor: Any, known: _Known, failed: list[datetime]) -> Iterator[Condition]:
    """Tables of which months failed their audit and were not published since."""
    cursor.execute(
        "select f.table_name, array_agg(to_char(f.month, 'YYYY-MM') order by f.month), "
        "(array_agg(f.problem order by f.month))[1], min(f.failed_at), array_agg(f.failed_at) "
        "from meta.failed_months as f left join meta.versions as v "
        "on v.table_name = f.table_name and v.month = f.month and v.is_current "
        "where v.published_at is null or v.published_at < f.failed_at group by 1"
    )
    for table, months, problem, since, times in cursor.fetchall():
        failed += times
        known.explained.add(table)
        yield Condition(
            key=f"month_failed {table}",
            title=f"{counted(len(months), 'month')} of {table} broke the contract",
            what=f"{named(months, _MONTHS_TOLD)}: {_shortened(problem)} "
            "Readers see these months as they were before.",
            since=since,
            next_step=f"`metalayer rejects {table}` shows rows that are in quarantine; mend the "
            "file and land it again, or change the contract.",
            owner=known.owner(table),
            affects=known.behind(table),
        )


def _failed_checks(cursor: Any, known: _Known, failed: list[datetime]) -> Iterator[Condition]:
    """Tables whose blocking checks failed, which hold up what is behind them."""
    cursor.execute("select table_name, problem, failed_at from meta.failed_checks order by 1")
    for table, problem, since in cursor.fetchall():
        failed.append(since)
        known.explained.add(table)
        yield Condition(
            key=f"check_failed {table}",
            title=f"A check of {table} failed",
            what=f"{_shortened(problem)} What is made from it is held back.",
            since=since,
            next_step=f"Open {table} in the web interface: the check says which rows.",
            severity="critical",
            owner=known.owner(table),
            affects=known.behind(table),
        )


def _missing(known: _Known) -> Iterator[Condition]:
    """Tables that lack a month that is due, of themselves: one for each cause."""
    late = {name: p for name, p in known.late.items() if p.is_late and p.due_month}
    for name, told in late.items():
        assert told.due_month is not None
        assert told.late_since is not None
        if told.waits_for != (name,) or name in known.explained:
            continue
        if told.newest_month is None:
            continue  # it has never come: nobody is used to it
        if known.tables[name].made_from & known.explained:
            continue
        month: date = told.due_month
        yield Condition(
            key=f"month_missing {name}",
            title=f"{name} lacks {month:%Y-%m}",
            what=told.verdict,
            since=told.late_since,
            next_step=told.next_step,
            owner=known.owner(name),
            affects=tuple(t for t in known.behind(name) if t in late),
        )


def _runs(cursor: Any, explained: Iterable[datetime]) -> list[Condition]:
    """Whether the last run that ended has failed, for no reason that is told already."""
    cursor.execute("select to_regclass('runs') is not null")
    if cursor.fetchone() == (False,):
        return []
    cursor.execute(
        "select run_id, status, to_timestamp(coalesce(start_time, end_time)), "
        "to_timestamp(end_time) from runs where status in ('SUCCESS', 'FAILURE') "
        "and end_time is not null order by end_time desc limit 1"
    )
    last = cursor.fetchone()
    if last is None or last[1] == "SUCCESS":
        return []
    run, _, began, ended = last
    if any(began <= at <= ended for at in explained):
        return []
    return [
        Condition(
            key="run_failed",
            title=f"Run {run[:8]} failed",
            what="The last run that ended has failed, and none has succeeded since. What it was to "
            "build is as it was before.",
            since=ended,
            next_step=f"Open run {run[:8]} in the web interface: its failed step says why.",
        )
    ]


def _disks(settings: Settings, now: datetime) -> Iterator[Condition]:
    """Folders on disks that are nearly full."""
    told: set[int] = set()
    for name, folder in (("home", settings.home), ("landing", settings.landing)):
        with contextlib.suppress(OSError):
            disk, usage = folder.stat().st_dev, shutil.disk_usage(folder)
            least = min(_LEAST_FREE_SHARE * usage.total, _LEAST_FREE_BYTES)
            if disk in told or usage.free >= least:
                continue
            told.add(disk)
            yield Condition(
                key=f"disk_low {name}",
                title=f"{usage.free / 1e9:,.1f} GB are free where the {name} folder is",
                what=f"Of {usage.total / 1e9:,.1f} GB. A full disk ends builds; what is published "
                "stays readable.",
                since=now,
                next_step="Make room, or keep fewer versions with METALAYER_KEEP_VERSIONS.",
                severity="critical",
            )


def _shortened(text: str) -> str:
    """The first line of what was said, and not all of a long one."""
    line = (text.strip().splitlines() or [""])[0]
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."
