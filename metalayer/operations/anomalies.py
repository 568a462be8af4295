"""Anomalies: what is unusual in what was just published, kept until it is over or expected.

    meta.profiles --> series of days and months --> usual.py --> meta.anomalies

Only what a build has changed is judged, so it costs as much as that. An anomaly is open until the
same day or month is published anew and is as usual, or until somebody says that it was expected.

Does not belong here: what is usual (`usual.py`), profiles (`warehouse/profiling.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from metalayer.errors import UsageError
from metalayer.warehouse.acts import record

if TYPE_CHECKING:
    from metalayer.operations.usual import Verdict

#: What is further back is not judged any more, however old the file is that changed it.
_JUDGED_DAYS, _JUDGED_MONTHS = 31, 2
_PLOTTED = 60
_COLUMNS = (
    "anomaly_id, table_name, measure, column_name, period, observed, low, high, score, found_at, "
    "state, why, series"
)


@dataclass(frozen=True)
class Anomaly:
    """One anomaly.

    Attributes:
        measure: "volume", "nulls", "distribution" or "freshness".
        column: Of which column; empty where it is of the rows.
        period: The day or month: "2025-07-14", "2025-07".
        observed, low, high: The figure, and between which it usually is.
        state: "open", "expected" or "over".
        series: (period, figure) of those before and itself, for a plot.
    """

    id: int
    table: str
    measure: str
    column: str
    period: str
    observed: float
    low: float
    high: float
    score: float
    found_at: datetime
    state: str
    why: str
    series: Sequence[tuple[str, float]]

    @property
    def said(self) -> str:
        """What is unusual, in a sentence."""
        of = f"{self.column}: " if self.column else ""
        if self.measure == "volume":
            usual = f"usually {self.low:,.0f} to {self.high:,.0f}"
            return f"{self.period}: {self.observed:,.0f} rows, {usual}"
        if self.measure == "nulls":
            usual = f"usually {self.low:.0%} to {self.high:.0%}"
            return f"{self.period}: {of}{self.observed:.0%} have no value, {usual}"
        if self.measure == "distribution":
            return (
                f"{self.period}: {of}{self.observed:.0%} of the rows have another value than "
                f"usual, as a rule at most {self.high:.0%}"
            )
        return (
            f"{self.period}: the newest day is {self.observed:,.0f} days old, usually at most "
            f"{self.high:,.0f}"
        )


@dataclass(frozen=True)
class _Found:
    measure: str
    column: str
    period: str
    verdict: Verdict | None
    series: list[tuple[str, float]]


def judge(
    cursor: Any,
    table: str,
    changed: Mapping[date, set[date]],
    now: datetime | None = None,
    *,
    by_day: bool = True,
) -> list[Anomaly]:
    """Judge what has changed in a table, and note what is unusual; gives all that is open.

    Args:
        changed: Month -> its days that changed, see `profiling.profile_table`.
        by_day: Whether its days are comparable: those of events are, those of which others are made
            may be of any kind.
    """
    if changed:
        profiles = _profiles(cursor, table)
        today = (now or datetime.now(UTC)).date()
        for found in _judged(profiles, changed, today, by_day=by_day):
            _note(cursor, table, found)
    return open_anomalies(cursor, table)


@dataclass(frozen=True)
class _Profile:
    month: date
    published_at: datetime
    rows: int
    columns: Mapping[str, Any]
    days: Mapping[str, Any]


def _profiles(cursor: Any, table: str) -> list[_Profile]:
    """The profiles of what is published, oldest month first."""
    cursor.execute(
        "select p.month, p.published_at, p.rows, p.columns, p.days from meta.profiles as p "
        "join meta.versions as v using (table_name, month, version) "
        "where v.is_current and table_name = %s order by 1",
        (table,),
    )
    return [_Profile(*row) for row in cursor.fetchall()]


def _judged(
    profiles: Sequence[_Profile], changed: Mapping[date, set[date]], today: date, *, by_day: bool
) -> Iterator[_Found]:
    days = {
        date.fromisoformat(day): told for p in profiles if by_day for day, told in p.days.items()
    }
    if days:
        yield from _of_days(days, {day for each in changed.values() for day in each}, today)
        yield from _of_lags(profiles, max(days), today)
    months = [p for p in profiles if p.month < today.replace(day=1)]
    for place, profile in enumerate(months):
        if profile.month in changed and place >= len(months) - _JUDGED_MONTHS:
            yield from _of_month(months[:place], profile, has_days=bool(days))


def _of_days(
    days: Mapping[date, Mapping[str, Any]], changed: Iterable[date], today: date
) -> Iterator[_Found]:
    from metalayer.operations import usual

    first, last = min(days), max(days)
    every = [first + timedelta(n) for n in range((last - first).days + 1)]
    rows = [float(days[day]["rows"]) if day in days else 0.0 for day in every]
    # A day on which nothing came is in no profile.
    newest = max(changed, default=last)
    wanted = {*changed, *(day for day in every if day not in days and day <= newest)}
    columns = sorted({name for told in days.values() for name in told["nulls"]})
    for place in range(max(0, len(every) - _JUDGED_DAYS), len(every)):
        day = every[place]
        if day not in wanted or day >= today:
            continue
        yield _Found(
            "volume",
            "",
            day.isoformat(),
            usual.volume(rows[:place], rows[place], by="day"),
            _series(every, rows, place),
        )
        for column in columns:
            shares = [
                days[d]["nulls"].get(column, 0) / days[d]["rows"] if d in days else 0.0
                for d in every[: place + 1]
            ]
            verdict = usual.nulls(shares[:-1], rows[:place], shares[-1], rows[place], by="day")
            series = _series(every, shares, place)
            yield _Found("nulls", column, day.isoformat(), verdict, series)


def _of_lags(profiles: Sequence[_Profile], newest: date, today: date) -> Iterator[_Found]:
    from metalayer.operations import usual

    lags = []
    for profile in sorted(profiles, key=lambda p: p.published_at):
        if profile.days:
            last = date.fromisoformat(max(profile.days))
            lags.append(float((profile.published_at.date() - last).days))
    verdict = usual.freshness(lags[:-1], float((today - newest).days))
    yield _Found("freshness", "", newest.isoformat(), verdict, [])


def _of_month(before: Sequence[_Profile], now: _Profile, *, has_days: bool) -> Iterator[_Found]:
    from metalayer.operations import usual

    period = f"{now.month:%Y-%m}"
    names = [f"{p.month:%Y-%m}" for p in (*before, now)]
    if not has_days:
        rows = [float(p.rows) for p in before]
        verdict = usual.volume(rows, float(now.rows), by="month")
        yield _Found("volume", "", period, verdict, [*zip(names, [*rows, now.rows], strict=True)])
    for column, told in now.columns.items():
        past = [p for p in before if column in p.columns and p.rows]
        labels = [*(f"{p.month:%Y-%m}" for p in past), period]
        if not has_days and now.rows:
            shares = [p.columns[column]["nulls"] / p.rows for p in past]
            share = told["nulls"] / now.rows
            verdict = usual.nulls(
                shares, [float(p.rows) for p in past], share, float(now.rows), by="month"
            )
            series = [*zip(labels, [*shares, share], strict=True)]
            yield _Found("nulls", column, period, verdict, series)
        if told["top"]:
            verdict = usual.distribution([_shares(p.columns[column]) for p in past], _shares(told))
            yield _Found("distribution", column, period, verdict, [])


def _shares(told: Mapping[str, Any]) -> dict[str, float]:
    """Value -> its share of those that are among the most frequent."""
    total = sum(rows for _, rows in told["top"])
    return {value: rows / total for value, rows in told["top"]} if total else {}


def _series(every: Sequence[date], values: Sequence[float], place: int) -> list[tuple[str, float]]:
    first = max(0, place + 1 - _PLOTTED)
    return [(every[n].isoformat(), values[n]) for n in range(first, place + 1)]


def _note(cursor: Any, table: str, found: _Found) -> None:
    """Open an anomaly, or end it where the same is as usual now."""
    key = (table, found.measure, found.column, found.period)
    if found.verdict is None:
        period = "" if found.measure == "freshness" else "and period = %s "
        cursor.execute(
            "update meta.anomalies set state = 'over', ended_at = now() where state = 'open' "  # noqa: S608
            f"and table_name = %s and measure = %s and column_name = %s {period}",
            key if period else key[:3],
        )
        return
    verdict = found.verdict
    cursor.execute(
        "insert into meta.anomalies (table_name, measure, column_name, period, observed, low, "
        "high, score, series) values (%s, %s, %s, %s, %s, %s, %s, %s, %s) "
        "on conflict (table_name, measure, column_name, period) do update set "
        "observed = excluded.observed, low = excluded.low, high = excluded.high, "
        "score = excluded.score, series = excluded.series, "
        "state = case meta.anomalies.state when 'expected' then 'expected' else 'open' end",
        (
            *key,
            *map(float, (verdict.observed, verdict.low, verdict.high, verdict.score)),
            json.dumps(found.series),
        ),
    )


def open_anomalies(cursor: Any, table: str | None = None) -> list[Anomaly]:
    """What is open, of a table or of all, newest first."""
    return anomalies(cursor, table, states=("open",))


def anomalies(
    cursor: Any,
    table: str | None = None,
    states: Sequence[str] = ("open", "expected", "over"),
    limit: int | None = None,
) -> list[Anomaly]:
    """Anomalies, the newest period first."""
    cursor.execute(
        f"select {_COLUMNS} from meta.anomalies where (%s::text is null or table_name = %s) "  # noqa: S608
        "and state = any(%s) order by period desc, score desc, anomaly_id limit %s",
        (table, table, list(states), limit),
    )
    return [Anomaly(*row) for row in cursor.fetchall()]


def expect(cursor: Any, number: int, why: str) -> Anomaly:
    """Note that an anomaly was to be expected: it is told no more.

    Raises:
        UsageError: when there is no such anomaly.
    """
    cursor.execute(
        "update meta.anomalies set state = 'expected', why = %s, ended_at = now() "  # noqa: S608
        f"where anomaly_id = %s returning {_COLUMNS}",
        (why, number),
    )
    row = cursor.fetchone()
    if row is None:
        raise UsageError(
            f"There is no anomaly {number}", "`metalayer anomalies --all` lists them with numbers."
        )
    found = Anomaly(*row)
    record(cursor, "expect", f"anomaly {number} of {found.table}", {"said": found.said}, why=why)
    return found
