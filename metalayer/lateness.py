"""Which tables lack the newest month that is due, asked of PostgreSQL alone.

A month of a table is there when it is published, and so is that month of every table that it is
made from; of a landed source, and of a calendar, it must have rows. So a month that was built
before all that it is made from had landed does not pass for one that is there.

Does not belong here: how old a publish may be (`fresh_within`, see `inspection.py`), Dagster, or
telling anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from metalayer.contracts.due import Due

_SOURCES = "bronze."
_NAMED = 3


@dataclass(frozen=True)
class Punctuality:
    """Whether a table has the newest month that is due.

    Attributes:
        due_month: That month; None where no month is due, or the table's may fail to come.
        newest_month: The newest month up to then that is there.
        late_since: When the first month that is missing since then was due; None if none is.
        waits_for: What lacks `due_month` of that which the table is made from, sources first; the
            table itself where all of it is there.
    """

    table: str
    due: Due | None
    due_month: date | None = None
    newest_month: date | None = None
    late_since: datetime | None = None
    waits_for: tuple[str, ...] = ()

    @property
    def is_late(self) -> bool:
        """Whether the month that is due is missing."""
        return self.late_since is not None

    @property
    def verdict(self) -> str:
        """What there is to say, in a sentence or two."""
        if self.due is None:
            return f"No month of {self.table} is ever due: its contract says due = None."
        if self.due_month is None:
            return f"No month of {self.table} is due yet."
        due = f"{self.due_month:%Y-%m} was due on {self.due.moment(self.due_month):%Y-%m-%d %H:%M}"
        if self.late_since is None:
            return f"{self.table} has the month that is due: {due} UTC."
        if self.newest_month is None:
            return f"{self.table} is late: {due} UTC, and no earlier month is there either."
        return (
            f"{self.table} is late: {due} UTC, the newest month there is {self.newest_month:%Y-%m}."
        )

    @property
    def next_step(self) -> str:
        """What to do about it; "" when there is nothing to do."""
        if self.late_since is None or self.due_month is None:
            return ""
        month = f"{self.due_month:%Y-%m}"
        if self.waits_for == (self.table,) and not self.table.startswith(_SOURCES):
            return (
                f"Everything it is made from has {month}: materialize that month here, or "
                f"`metalayer build {self.table}`, and see why it failed if it does."
            )
        sources = [name for name in self.waits_for if name.startswith(_SOURCES)]
        lacking = sources or list(self.waits_for)
        named = ", ".join(lacking[:_NAMED])
        if len(lacking) > _NAMED:
            named += f" and {len(lacking) - _NAMED} more"
        if sources:
            return (
                f"Land the export of {month} that fills {named}, then build. If it has landed, "
                "`metalayer ledger` says what became of it. If it need not come every month, say "
                "due = None in the contract."
            )
        return f"{named} must be built for {month} first: see its checks, or `metalayer build`."


def punctuality(
    cursor: Any, start_month: date, now: datetime | None = None
) -> dict[str, Punctuality]:
    """Every table that the warehouse knows of -> whether it has the month that is due at `now`.

    Args:
        start_month: No month before it is ever due.
        now: With a time zone; None: this moment.
    """
    now = now or datetime.now(UTC)
    # An earlier release did not note these.
    cursor.execute(
        "select table_name, (to_jsonb(t) ->> 'due_day')::int, (to_jsonb(t) ->> 'due_hour')::int, "
        "coalesce(to_jsonb(t) ->> 'made_from', '') from meta.tables as t order by position"
    )
    tables = {
        name: (Due(day, hour) if day is not None else None, [n for n in made_from.split(",") if n])
        for name, day, hour, made_from in cursor.fetchall()
    }
    cursor.execute(
        "select table_name, month, rows_read from meta.versions where is_current and month >= %s",
        (start_month,),
    )
    published: dict[str, set[date]] = {name: set() for name in tables}
    for name, month, rows in cursor.fetchall():
        _, made_from = tables.get(name, (None, []))
        if rows or made_from:
            published.setdefault(name, set()).add(month)
    # A source that may fail to come holds nobody up.
    expected = {name for name, (due, _) in tables.items() if due is not None}
    return {
        name: _judged(
            name, due, [n for n in made_from if n in expected], published, start_month, now
        )
        for name, (due, made_from) in tables.items()
    }


def _judged(
    table: str,
    due: Due | None,
    made_from: Collection[str],
    published: Mapping[str, set[date]],
    start_month: date,
    now: datetime,
) -> Punctuality:
    if due is None or due.newest_month(now) < start_month:
        return Punctuality(table, due)
    month = due.newest_month(now)
    needed = [*made_from, table]
    there = set.intersection(*(published.get(name, set()) for name in needed))
    newest = max((m for m in there if m <= month), default=None)
    if newest == month:
        return Punctuality(table, due, month, newest)
    first_missing = month if newest is None else following_month(newest)
    if not made_from and not table.startswith(_SOURCES):
        # It spans the months that anything landed for.
        sources = [name for name in published if name.startswith(_SOURCES)]
        if not any(month in published[name] for name in sources):
            needed = [*sources, table]
    lacking = tuple(name for name in needed if month not in published.get(name, set()))
    return Punctuality(table, due, month, newest, due.moment(first_missing), lacking)


def following_month(month: date) -> date:
    """First day of the month after `month`."""
    year, following = divmod(month.year * 12 + month.month, 12)
    return date(year, following + 1, 1)
