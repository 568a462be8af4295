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
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import psycopg2

from metalayer.errors import MetaLayerError
from metalayer.failure import broken_contract
from metalayer.lateness import Punctuality, following_month, punctuality
from metalayer.operations.anomalies import Anomaly, open_anomalies
from metalayer.operations.backup_state import load_state
from metalayer.operations.looking import is_there, looking, shortened
from metalayer.operations.reasons import next_step_of, reasons, said_of
from metalayer.settings import Settings
from metalayer.warehouse.server import standing_server
from metalayer.wording import counted, named

Severity = Literal["warning", "critical"]

_LEAST_FREE_SHARE, _LEAST_FREE_BYTES = 0.1, 20 * 1024**3
_MONTHS_TOLD = 3
_BACKUP_PATIENCE = 1.5
_PATIENCE = 10.0


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
        settles_seconds: For how long it may be so, or no longer so, before it is worth telling:
            some things mend themselves, or come and go.
        about: What it is about in particular, months say.
        spreads: Whether something that was not in `about` before is worth telling again.
        is_explained: Whether another condition that is told says why. It lasts, and is not told.
        stays_explained: Whether that holds for good, for what is the same in `about`.
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
    about: frozenset[str] = frozenset()
    spreads: bool = True
    is_explained: bool = False
    stays_explained: bool = False


@dataclass(frozen=True)
class Findings:
    """What is wrong, and of what it cannot be told.

    Attributes:
        conditions: What was found, also what another of them explains.
        unknown: Kinds of which nobody can say whether they are over.
    """

    conditions: tuple[Condition, ...]
    unknown: frozenset[str] = frozenset()

    @property
    def told(self) -> tuple[Condition, ...]:
        """What there is to tell: one for each cause."""
        return tuple(c for c in self.conditions if not c.is_explained)


@dataclass(frozen=True)
class _Table:
    name: str
    owner: str
    made_from: frozenset[str]
    source: str | None


@dataclass
class _Known:
    """What the warehouse says of its tables.

    Attributes:
        refused: Bronze table -> the months of which a file was refused.
        failed: Table -> the months that failed.
        holes: Table -> the first of these that nobody has ever seen: what looks back waits for it.
        unsound: Tables of which a check failed, behind which nothing is built.
    """

    tables: Mapping[str, _Table]
    late: Mapping[str, Punctuality]
    refused: dict[str, set[date]] = field(default_factory=dict)
    failed: dict[str, set[date]] = field(default_factory=dict)
    holes: dict[str, date] = field(default_factory=dict)
    unsound: set[str] = field(default_factory=set)

    def is_explained(self, table: str, month: date) -> bool:
        """Whether it is told already why a table lacks a month that all it is made from has."""
        upstream = self.tables[table].made_from
        return (
            month in self.refused.get(table, ())
            or month in self.failed.get(table, ())
            or bool(upstream & self.unsound)
            or any(self.holes.get(name, date.max) <= month for name in upstream)
        )

    def behind(self, *tables: str) -> tuple[str, ...]:
        """The tables that are made from these, near or far."""
        wanted = set(tables)
        return tuple(t.name for t in self.tables.values() if t.made_from & wanted)

    def owner(self, table: str | None) -> str | None:
        """Whose a table is."""
        known = self.tables.get(table) if table else None
        return known.owner if known else None


_OF_WAREHOUSE = frozenset(
    ("delivery_rejected", "month_failed", "check_failed", "month_missing", "anomaly")
)
_OF_RUNS = frozenset(("run_failed",))
_log = logging.getLogger(__name__)


def find(settings: Settings, now: datetime | None = None) -> Findings:
    """What is wrong at `now` (this moment).

    Nothing is started for it: where PostgreSQL does not answer, that is what is wrong.
    """
    now = now or datetime.now(UTC)
    found = [*_disks(settings, now), *_backups(settings, now)]
    unknown: set[str] = set()
    failed: list[datetime] = []
    with contextlib.ExitStack() as stack:
        try:
            server = standing_server(settings)
            connection = stack.enter_context(looking(server.warehouse_url, "alerts", _PATIENCE))
        except (psycopg2.OperationalError, MetaLayerError) as error:
            found.append(_down(error, now))
            return Findings(tuple(found), _OF_WAREHOUSE | _OF_RUNS)
        with _unless_refused(_OF_WAREHOUSE, unknown), connection.cursor() as cursor:
            known, failed = _of_warehouse(cursor, settings, now)
            found += known
        # A run that failed may be explained by what is not known.
        try:
            connection = stack.enter_context(looking(server.dagster_url, "alerts", _PATIENCE))
        except psycopg2.OperationalError as error:
            found.append(_down(error, now, "dagster_down", "Dagster's database does not answer"))
            unknown |= _OF_RUNS
        else:
            with _unless_refused(_OF_RUNS, unknown), connection.cursor() as cursor:
                found += [] if unknown else _runs(cursor, failed)
    return Findings(tuple(found), frozenset(unknown | (_OF_RUNS if unknown else set())))


def _down(
    error: Exception,
    now: datetime,
    key: str = "warehouse_down",
    title: str = "PostgreSQL does not answer",
) -> Condition:
    return Condition(
        key=key,
        title=title,
        what=f"Nothing lands and nothing is built: {shortened(str(error))}",
        since=now,
        next_step="Look whether `metalayer up` runs, then `metalayer doctor`.",
        severity="critical",
        settles_seconds=60.0,
    )


@contextlib.contextmanager
def _unless_refused(kinds: frozenset[str], unknown: set[str]) -> Iterator[None]:
    """Go on where PostgreSQL refuses an answer, or takes too long: of `kinds` nothing is known."""
    try:
        yield
    except psycopg2.Error as error:
        unknown |= kinds
        _log.warning("it cannot be told what is wrong: %s", shortened(str(error)))


def _of_warehouse(
    cursor: Any, settings: Settings, now: datetime
) -> tuple[list[Condition], list[datetime]]:
    """What is wrong with files and tables; and when audits and checks failed."""
    if not is_there(cursor, "meta.tables"):
        return [], []
    cursor.execute(
        # A warehouse of an earlier release does not say these.
        "select table_name, owner, coalesce(to_jsonb(t) ->> 'made_from', ''), "
        "to_jsonb(t) ->> 'source' from meta.tables as t order by position"
    )
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
        *_unusual(cursor, known),
    ]
    return [*found, *_missing(known)], failed


def _rejected(cursor: Any, settings: Settings, known: _Known) -> Iterator[Condition]:
    """Files whose last version was refused, as long as they lie there."""
    cursor.execute(
        "select delivery_id, source, file, reason, registered_at, fallback_month from ("
        "select distinct on (source, file) * "
        "from meta.deliveries order by source, file, delivery_id desc) as d "
        "where status = 'rejected' order by source, file"
    )
    of_source = {t.source: t.name for t in known.tables.values() if t.source}
    for delivery, source, file, reason, at, month in cursor.fetchall():
        with contextlib.suppress(OSError):  # who may not look takes it for there
            if not (settings.landing / file).exists():
                continue
        table = of_source.get(source)
        if table:
            # What of that month did not come did not come for this.
            known.refused.setdefault(table, set()).add(month.replace(day=1))
        yield Condition(
            key=f"delivery_rejected {file}",
            title=f"{file} was refused",
            what=f"None of its rows is in the tables. {shortened(reason or '')}",
            since=at,
            next_step="Have it exported again and land it under the same name; "
            "`metalayer ledger` has the whole reason.",
            owner=known.owner(table),
            affects=(table, *known.behind(table)) if table else (),
            about=frozenset((str(delivery),)),
        )


def _failed_months(cursor: Any, known: _Known, failed: list[datetime]) -> Iterator[Condition]:
    """Tables of which months failed their audit and were not published anew since."""
    if not is_there(cursor, "meta.failed_months"):
        return
    cursor.execute(
        "select f.table_name, min(f.month) filter (where v.month is null), "
        "array_agg(f.month order by f.month), "
        "(array_agg(f.problem order by f.month))[1], min(f.failed_at), array_agg(f.failed_at) "
        "from meta.failed_months as f left join meta.versions as v "
        "on v.table_name = f.table_name and v.month = f.month and v.is_current "
        # What a rollback published is an earlier state.
        "where v.published_at is null or v.published_at < f.failed_at or v.restores is not null "
        "group by 1"
    )
    for table, hole, found, problem, since, times in cursor.fetchall():
        if table not in known.tables:
            continue
        failed += times
        months = [f"{month:%Y-%m}" for month in found]
        known.failed[table] = set(found)
        if hole is not None:
            known.holes[table] = hole
        yield Condition(
            key=f"month_failed {table}",
            title=f"{counted(len(months), 'month')} of {table} broke the contract",
            what=f"{named(months, _MONTHS_TOLD)}: {shortened(problem)} "
            "Readers see these months as they were before.",
            since=since,
            next_step=broken_contract(table, problem).next_step,
            owner=known.owner(table),
            affects=known.behind(table),
            about=frozenset(months),
        )


def _failed_checks(cursor: Any, known: _Known, failed: list[datetime]) -> Iterator[Condition]:
    """Tables whose blocking checks failed, which hold up what is behind them."""
    if not is_there(cursor, "meta.failed_checks"):
        return
    cursor.execute(
        "select table_name, problem, failed_at from meta.failed_checks as f "
        # They have passed since where nothing is left to be asked about.
        "where exists (select from meta.versions as v where v.table_name = f.table_name "
        "and v.is_current and not v.is_checked) order by 1"
    )
    for table, problem, since in cursor.fetchall():
        if table not in known.tables:
            continue
        failed.append(since)
        known.unsound.add(table)
        yield Condition(
            key=f"check_failed {table}",
            title=f"A check of {table} failed",
            what=f"{shortened(problem)} What is made from it is held back.",
            since=since,
            next_step=f"Open {table} in the web interface: the check says which rows.",
            severity="critical",
            owner=known.owner(table),
            affects=known.behind(table),
        )


def _unusual(cursor: Any, known: _Known) -> Iterator[Condition]:
    """Tables with something unusual; where what they are made from has it too, it is told there."""
    if not is_there(cursor, "meta.anomalies"):
        return
    found: dict[str, list[Anomaly]] = {}
    for anomaly in open_anomalies(cursor):
        found.setdefault(anomaly.table, []).append(anomaly)
    for table, unusual in found.items():
        if table not in known.tables:
            continue
        yield Condition(
            key=f"anomaly {table}",
            title=f"{table} looks unusual",
            what=f"{unusual[0].said}"
            + (f", and {counted(len(unusual) - 1, 'thing')} more." if len(unusual) > 1 else "."),
            since=min(a.found_at for a in unusual),
            next_step="Ask whoever exports it. `metalayer anomalies` lists all; `--expected` "
            "silences one, with the reason.",
            owner=known.owner(table),
            affects=known.behind(table),
            about=frozenset(f"{a.measure} {a.column} {a.period}" for a in unusual),
            is_explained=any(
                {a.period[:7] for a in unusual} <= {a.period[:7] for a in found[name]}
                for name in known.tables[table].made_from & found.keys()
            ),
            stays_explained=True,
        )


def _missing(known: _Known) -> Iterator[Condition]:
    """Tables that lack a month that is due, of themselves: one for each cause."""
    late = {name: p for name, p in known.late.items() if p.is_late and p.due_month}
    for name, told in late.items():
        assert told.due_month is not None
        assert told.late_since is not None
        month: date = told.due_month
        if told.waits_for != (name,):
            continue
        if told.newest_month is None:
            continue  # it has never come: nobody is used to it
        yield Condition(
            key=f"month_missing {name}",
            title=f"{name} lacks {_months(told.newest_month, month)}",
            what=told.verdict,
            since=told.late_since,
            next_step=told.next_step,
            owner=known.owner(name),
            affects=tuple(t for t in known.behind(name) if t in late),
            about=frozenset((f"{month:%Y-%m}",)),
            is_explained=known.is_explained(name, month),
        )


def _months(newest: date, due: date) -> str:
    """What is missing behind the newest month that is there: "2025-02", "2025-02 to 2025-04"."""
    first = following_month(newest)
    return f"{first:%Y-%m}" if first == due else f"{first:%Y-%m} to {due:%Y-%m}"


def _runs(cursor: Any, explained: Iterable[datetime]) -> list[Condition]:
    """Jobs whose last run that ended has failed; explained where a month or check failed in it."""
    if not is_there(cursor, "runs"):
        return []
    cursor.execute(
        "select distinct on (pipeline_name) pipeline_name, run_id, status, "
        "to_timestamp(coalesce(start_time, end_time)), to_timestamp(end_time) from runs "
        "where status in ('SUCCESS', 'FAILURE') and end_time is not null "
        "order by pipeline_name, end_time desc"
    )
    failed = [row for row in cursor.fetchall() if row[2] == "FAILURE"]
    found = reasons(cursor, [run for _, run, *_ in failed])
    return [
        Condition(
            key=f"run_failed {job}",
            title=f"Run {run[:8]} failed",
            what="The last run of its job that ended has failed, and none has succeeded since. "
            f"What it was to build is as it was before.{said_of(found.get(run))}",
            since=ended,
            next_step=next_step_of(run, found.get(run)),
            about=frozenset((run,)),
            # One that is tried again and again is told once.
            spreads=False,
            is_explained=any(began <= at <= ended for at in explained),
            stays_explained=True,
        )
        for job, run, _, began, ended in failed
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
                # Sorting alone takes and gives back gigabytes.
                settles_seconds=300.0,
            )


def _backups(settings: Settings, now: datetime) -> Iterator[Condition]:
    """Backups that are not taken, and recoveries that do not succeed."""
    if settings.backup_url is None:
        return
    state = load_state(settings)
    if state.failed_at is not None:
        yield Condition(
            key="backup_failed",
            title="Backups fail",
            what=f"{shortened(state.failure)}. What is done since is in no backup.",
            since=datetime.fromisoformat(state.failed_at),
            next_step="`metalayer backup` tries again and says why; logs/backup.log has earlier "
            "tries.",
            severity="critical",
            # A network comes and goes.
            settles_seconds=900.0,
        )
    taken = datetime.fromisoformat(state.backup_at) if state.backup_at else None
    interval = timedelta(hours=settings.backup_hours)
    if taken is not None and now - taken > _BACKUP_PATIENCE * interval:
        yield Condition(
            key="backup_old",
            title=f"The last backup is of {taken:%Y-%m-%d %H:%M} UTC",
            what=f"One is to be taken every {counted(settings.backup_hours, 'hour')}.",
            since=taken + interval,
            next_step="`metalayer backup` takes one; look whether `metalayer up` runs, which does.",
        )
    if state.drill_at is not None and state.drill_failure:
        yield Condition(
            key="drill_failed",
            title="Backups cannot be recovered from",
            what=shortened(state.drill_failure),
            since=datetime.fromisoformat(state.drill_at),
            next_step="`metalayer backup --full` takes a new one, `metalayer drill` tries it.",
            severity="critical",
        )
