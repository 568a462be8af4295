"""Which months of which tables a build would rebuild, and why.

A month is stale when it was built by other code or from other inputs than there are now, or never.
What stands behind a stale month may have to follow: whether it does is known once the stale month
is built, since a month rebuilt to the same content stops there.

Does not belong here: how a table is built (`jobs.py`), or running anything (`assets`, through
Dagster).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

from sqlalchemy import Engine

from metalayer.catalog import catalog
from metalayer.jobs import CALENDAR, calendar_span, month_ranges, months_between, table_job
from metalayer.landing.ledger import Progress, Registration, register_in
from metalayer.lineage.select import Reach
from metalayer.settings import Settings
from metalayer.warehouse.build import TableJob, is_settled, is_stale, to_be_checked
from metalayer.warehouse.failures import Failures, load_failures
from metalayer.warehouse.migrate import install, is_installed
from metalayer.warehouse.pool import transaction
from metalayer.warehouse.state import Published, State, load_state

#: What each part of a code version stands for, in order.
_CODE = ("its contract changed", "its SELECT changed", "the functions of MetaLayer changed")


@dataclass(frozen=True)
class Reason:
    """Why a month would be rebuilt.

    Attributes:
        kind: "delivery" (of the landed files), "code", "upstream", "forced", or "never built".
        text: In words, for people.
        about: The landed file or the upstream table, where there is one.
    """

    kind: Literal["delivery", "code", "upstream", "forced", "never built"]
    text: str
    about: str | None = None


@dataclass(frozen=True)
class Plan:
    """Which months of which tables would be rebuilt, upstream first.

    Attributes:
        stale: Table -> months that are out of date by themselves.
        affected: Table -> months that may have to follow, `stale` included.
        unpublished: Table -> stale months that no reader has seen any version of.
        unchecked: Table -> published months whose blocking checks have not passed yet.
        forced: Table -> months that are rebuilt whether or not they are stale.
        reasons: (table, month) -> why, for every affected month.
    """

    stale: Mapping[str, set[date]]
    affected: Mapping[str, set[date]]
    unpublished: Mapping[str, set[date]]
    unchecked: Mapping[str, set[date]] = field(default_factory=dict)
    forced: Mapping[str, set[date]] = field(default_factory=dict)
    reasons: Mapping[tuple[str, date], tuple[Reason, ...]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not any(self.affected.values()) and not any(self.unchecked.values())


def plan(
    state: State,
    settings: Settings,
    selected: Collection[str] | None = None,
    months: set[date] | None = None,
    *,
    files: Mapping[str, tuple[str, str]] | None = None,
    force: bool = False,
) -> Plan:
    """Find what is out of date, and what may follow from rebuilding it.

    Args:
        selected: Tables to consider; None: all.
        months: Months to build. Months outside of it are left out unless they are published
            already: what is published is kept in step with what it is made from.
        files: Delivery id, as text -> (file, status), so that reasons can name them; see
            `delivered_files`.
        force: Take the months that are asked for as stale, whatever they were built from.
    """
    tables = catalog()
    stale: dict[str, set[date]] = {}
    affected: dict[str, set[date]] = {}
    unpublished: dict[str, set[date]] = {}
    unchecked: dict[str, set[date]] = {}
    forced: dict[str, set[date]] = {}
    reasons: dict[tuple[str, date], tuple[Reason, ...]] = {}
    extent: dict[str, set[date]] = {}
    for table in tables.specs:
        extent[table] = months_with_data(table, state).union(
            *(extent[name] for name in tables.inputs(table))
        )
        if selected is not None and table not in selected:
            continue
        published = state.published.get(table, {})
        wanted = extent[table] if months is None else extent[table] & (months | set(published))
        # Earlier ones, published before the first month was moved, are no partitions any more.
        wanted = {m for m in wanted if m >= settings.start_month}
        forced[table] = (wanted if months is None else wanted & months) if force else set()
        job = table_job(table, settings)
        wanted = {m for m in wanted if not is_settled(job, state, m)}
        forced[table] &= wanted
        stale[table] = {m for m in wanted if m in forced[table] or is_stale(job, state, m)}
        unpublished[table] = stale[table] - set(published)
        unchecked[table] = {
            m for m in wanted - stale[table] if m in published and not published[m].is_checked
        }
        behind: dict[date, list[Reason]] = {}
        for name, reach in tables.inputs(table).items():
            for month in reached_months(affected.get(name, set()), reach, wanted):
                behind.setdefault(month, []).append(Reason("upstream", f"{name} may change", name))
        affected[table] = stale[table] | set(behind)
        for month in sorted(affected[table]):
            why = behind.get(month, [])
            if month in stale[table]:
                why = _own_reasons(job, state, month, files or {})
            reasons[table, month] = tuple(why or [Reason("forced", "rebuilt by force")])
    return Plan(stale, affected, unpublished, unchecked, forced, reasons)


def without(todo: Plan, given_up: set[tuple[str, date]], blocked: set[str]) -> Plan:
    """The plan less what failed in this build, and less what stands behind a blocking check."""
    behind = set(blocked)
    tables = catalog()
    for table in tables.specs:
        if behind & set(tables.inputs(table)):
            behind.add(table)

    held = _held_up(todo, given_up)

    def keep(months: Mapping[str, set[date]]) -> dict[str, set[date]]:
        return {
            table: {m for m in wanted if (table, m) not in given_up} - held.get(table, set())
            for table, wanted in months.items()
            if table not in behind
        }

    stale = keep(todo.stale)
    return replace(
        todo,
        stale=stale,
        # What may follow is nothing without something to follow.
        affected=keep(todo.affected) if any(stale.values()) else {},
        unchecked=keep(todo.unchecked),
    )


def _held_up(todo: Plan, given_up: set[tuple[str, date]]) -> dict[str, set[date]]:
    """Months that would be made from a hole: an input month that failed and was never published.

    Without it sums would be too low and look right. A failed month that has an earlier version is
    no hole: that version stands.
    """
    tables = catalog()
    held: dict[str, set[date]] = {}
    for table, month in given_up:
        if month in todo.unpublished.get(table, ()):
            held.setdefault(table, set()).add(month)
    for table in tables.specs:
        reached = months_behind(tables.inputs(table), held, todo.affected.get(table, set()))
        if reached:
            held.setdefault(table, set()).update(reached)
    return held


def runs_of(todo: Plan, *, exactly: bool) -> Iterator[tuple[date, date, list[str]]]:
    """Ranges of months to run, each with the tables that have something to do in it.

    Args:
        exactly: Whether a range is of months that have the same tables. Otherwise a month may be
            taken along in which a table has nothing to do, which costs less than a run more.
    """
    at: dict[date, set[str]] = {}
    for table in catalog().specs:
        for month in todo.affected.get(table, set()) | todo.unchecked.get(table, set()):
            at.setdefault(month, set()).add(table)
    yield from ranges_of(at, lambda _table, _month: not exactly)


def ranges_of(
    at: Mapping[date, set[str]], may_join: Callable[[str, date], bool]
) -> Iterator[tuple[date, date, list[str]]]:
    """Months and their tables, as ranges of months that follow each other.

    Args:
        may_join: Whether a month of a table may be taken along although it is not in `at`.
    """
    for first, last in month_ranges(at):
        run: list[date] = []
        together: set[str] = set()
        for month in months_between(first, last):
            joined = together | at[month]
            if not all(
                table in at[each] or may_join(table, each)
                for table in joined
                for each in (*run, month)
            ):
                yield _run_over(run, together)
                run, joined = [], at[month]
            run.append(month)
            together = joined
        yield _run_over(run, together)


def _run_over(months: list[date], together: set[str]) -> tuple[date, date, list[str]]:
    return months[0], months[-1], [table for table in catalog().specs if table in together]


def months_with_data(table: str, state: State) -> set[date]:
    """Months `table` has rows for, or would have if it were built now.

    Those in which something was delivered (bronze) or any input has rows; those of a calendar see
    `calendar_span`. Months once published stay, so that they can become empty.
    """
    tables = catalog()
    spec = tables.specs[table]
    own = set(state.published.get(table, {}))
    if spec.layer == "bronze":
        assert spec.source is not None
        return own | set(state.delivered.get(spec.source.name, {}))
    inputs = tables.inputs(table)
    if not inputs:
        span = calendar_span(state, tables)
        return own | set(months_between(*span) if span else ())
    return own.union(*(set(state.published.get(name, {})) for name in inputs))


def reached_months(changed: set[date], reach: Reach, months: set[date]) -> set[date]:
    """The `months` that a change of an input's months `changed` may touch."""
    if not changed:
        return set()
    if reach is Reach.SAME:
        return changed & months
    first = min(changed)
    if reach is Reach.BEFORE:
        return {m for m in months if m > first}
    return {m for m in months if m >= first} if reach is Reach.UP_TO else set(months)


def months_behind(
    inputs: Mapping[str, Reach], changed: Mapping[str, set[date]], months: set[date]
) -> set[date]:
    """The `months` of a table that a change of its inputs may touch.

    Args:
        inputs: Table -> which months of it a month is made from.
        changed: Table -> its months that change.
    """
    found: set[date] = set()
    for name, reach in inputs.items():
        found |= reached_months(changed.get(name, set()), reach, months)
    return found


def delivered_files(cursor: Any) -> dict[str, tuple[str, str]]:
    """Delivery id, as text -> its file and its status in the ledger."""
    cursor.execute("select delivery_id::text, file, status from meta.deliveries")
    return {number: (file, status) for number, file, status in cursor.fetchall()}


def _own_reasons(
    job: TableJob, state: State, month: date, files: Mapping[str, tuple[str, str]]
) -> list[Reason]:
    """Why a month is stale by itself."""
    published = state.published.get(job.spec.full_name, {}).get(month)
    inputs = job.inputs(state, month)
    if published is None:
        if job.spec.layer == "bronze":
            return list(_deliveries({}, inputs, files))
        return [Reason("never built", "never built")]
    found = list(_code(published, job))
    if job.spec.layer == "bronze":
        found += _deliveries(published.inputs, inputs, files)
    elif CALENDAR in inputs:
        if published.inputs != inputs:
            found.append(Reason("delivery", f"it is {inputs[CALENDAR]} the months with rows now"))
    else:
        found += [
            Reason("upstream", f"{name} has changed", name)
            for name, fingerprint in inputs.items()
            if published.inputs.get(name) != fingerprint
        ]
    return found


def _code(published: Published, job: TableJob) -> Iterable[Reason]:
    if published.code_version == job.code_version:
        return
    before, now = published.code_version.split("."), job.code_version.split(".")
    if len(before) != len(now):
        yield Reason("code", "its contract or SELECT changed")
        return
    for was, part, text in zip(before, now, _CODE, strict=True):
        if was != part:
            yield Reason("code", text)


def _deliveries(
    before: Mapping[str, str], now: Mapping[str, str], files: Mapping[str, tuple[str, str]]
) -> Iterable[Reason]:
    """What came to the deliveries of a bronze month, left them, or counts otherwise now."""
    for number in sorted(before.keys() | now.keys(), key=lambda n: (len(n), n)):
        file, status = files.get(number, (f"delivery {number}", ""))
        if number not in before:
            text = f"new delivery {file}"
        elif number not in now:
            has_left = f"was {status}" if status != "loaded" else "has no rows in it any more"
            text = f"{file} {has_left}"
        elif before[number] == now[number]:
            continue
        elif before[number].partition(":")[0] != now[number].partition(":")[0]:
            text = f"{file} was read anew by another contract"
        else:
            text = f"other rows of {file} count now"
        yield Reason("delivery", text, file)


def forget_mended(cursor: Any, settings: Settings, state: State) -> Failures:
    """Let go of failures of what is up to date now, so that nobody takes them for standing ones.

    Returns:
        The failures that stand.
    """
    failures, specs = load_failures(cursor), catalog().specs
    mended = [
        (table, month, made_from)
        for (table, month), made_from in failures.months.items()
        if table in specs and not is_stale(table_job(table, settings), state, month)
    ]
    if mended:
        # What failed otherwise meanwhile stays.
        cursor.execute(
            "delete from meta.failed_months as f using unnest(%s, %s::date[], %s) "
            "as m (name, month, made_from) where f.table_name = m.name and f.month = m.month "
            "and f.made_from = m.made_from",
            [list(each) for each in zip(*mended, strict=True)],
        )
    passed = [
        (table, versions)
        for table, versions in failures.checks.items()
        if table in specs
        and not to_be_checked(job := table_job(table, settings), state)
        and not any(is_stale(job, state, m) for m in state.published.get(table, {}))
    ]
    if passed:
        cursor.execute(
            "delete from meta.failed_checks as f using unnest(%s, %s) as m (name, versions) "
            "where f.table_name = m.name and f.versions = m.versions",
            [list(each) for each in zip(*passed, strict=True)],
        )
    well, sound = {(table, month) for table, month, _ in mended}, dict(passed)
    return Failures(
        {of: made_from for of, made_from in failures.months.items() if of not in well},
        {table: asked for table, asked in failures.checks.items() if table not in sound},
    )


def preview(
    pool: Engine,
    settings: Settings,
    selected: Collection[str] | None = None,
    months: set[date] | None = None,
    *,
    force: bool = False,
    today: date | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Registration]:
    """What a build would find in the landing zone and rebuild; nothing of it is kept.

    The files are read and registered in a transaction that is taken back, so the plan is the one
    that a build would make. What stays is the cache of parsed files.
    """
    with transaction(pool) as connection, connection.cursor() as cursor:
        if not is_installed(cursor):
            install(connection)
        registration = register_in(
            cursor, settings, catalog().sources, today=today, progress=progress
        )
        found = plan(
            load_state(cursor),
            settings,
            selected,
            months,
            files=delivered_files(cursor),
            force=force,
        )
        connection.rollback()
    return found, registration
