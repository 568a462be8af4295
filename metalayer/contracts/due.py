"""When a month of a table is due: the part of the vocabulary that needs no contract to be read.

Only the calendar belongs here. Which months there are, and which tables are late, is asked of the
warehouse (`metalayer/lateness.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from metalayer.errors import ContractError

#: Every month has such a day.
LAST_DAY = 28


@dataclass(frozen=True)
class Due:
    """By when a month is to be there: the day and hour (UTC) of the month that follows it.

    >>> Due(day=5, hour=6).moment(date(2025, 12, 1)).isoformat()
    '2026-01-05T06:00:00+00:00'

    Raises:
        ContractError: for a day that not every month has, or no hour of a day.
    """

    day: int
    hour: int = 0

    def __post_init__(self) -> None:
        if not _is_whole(self.day) or not 1 <= self.day <= LAST_DAY:
            raise ContractError(
                f"Due(day={self.day!r}) is no day that every month has",
                f"Use a whole number from 1 to {LAST_DAY}",
            )
        if not _is_whole(self.hour) or not 0 <= self.hour <= 23:
            raise ContractError(
                f"Due(hour={self.hour!r}) is no hour of a day", "Use a whole number from 0 to 23"
            )

    def __str__(self) -> str:
        return f"day {self.day} of the next month, {self.hour:02}:00 UTC"

    def moment(self, month: date) -> datetime:
        """The moment from which a table that lacks `month` (its first day) is late."""
        year, following = divmod(month.year * 12 + month.month, 12)
        return datetime(year, following + 1, self.day, self.hour, tzinfo=UTC)

    def newest_month(self, now: datetime) -> date:
        """First day of the newest month that is due at `now`, which has a time zone."""
        # The month that has begun when `day` and `hour` are taken off follows the one that is due.
        follows = now.astimezone(UTC) - timedelta(days=self.day - 1, hours=self.hour)
        year, month = divmod(follows.year * 12 + follows.month - 2, 12)
        return date(year, month + 1, 1)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
