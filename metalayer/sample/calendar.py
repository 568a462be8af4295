"""The months a run covers: their days, their seasons, and days as text.

Days are counted from 1970-01-01, seconds from the first second of the run, months from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import polars as pl

from metalayer.errors import UsageError
from metalayer.sample.draws import Ints

# Everything generated lies in the past whatever the clock says, or two runs of the same command
# could differ.
LAST_MONTH = date(2025, 12, 1)
USUAL_START = date(2024, 1, 1)
EARLIEST_START = date(2020, 1, 1)

# Sales of a January, a February, ... relative to 100.
SEASON = (84, 80, 95, 94, 101, 99, 93, 90, 101, 106, 128, 142)

DAY = 86_400


@dataclass(frozen=True)
class Calendar:
    """A run of `months` months from `start` (the first day of a month)."""

    start: date
    months: int

    @cached_property
    def first_days(self) -> Ints:
        """Day number of the first of each month; one more than `months`, the last is the end."""
        first = np.datetime64(self.start.isoformat()[:7], "M")
        return (first + np.arange(self.months + 1)).astype("datetime64[D]").astype(np.int64)

    @property
    def seconds(self) -> int:
        """Length of the run."""
        return int(self.first_days[-1] - self.first_days[0]) * DAY

    @cached_property
    def labels(self) -> list[str]:
        """The months as `YYYY-MM`."""
        return [str(day)[:7] for day in self.first_days[:-1].astype("datetime64[D]")]

    @cached_property
    def _texts(self) -> pl.Series:
        return (
            pl.Series(range(self.first_days[0], self.first_days[-1]), dtype=pl.Int32)
            .cast(pl.Date)
            .cast(pl.String)
        )

    def month_of(self, days: Ints) -> Ints:
        """Month number of each day."""
        return np.searchsorted(self.first_days, days, side="right").astype(np.int64) - 1

    def text_of(self, days: Ints) -> pl.Series:
        """`YYYY-MM-DD` of each day of the run."""
        return pick(self._texts, days - self.first_days[0])

    def timestamp_of(self, seconds: Ints) -> pl.Series:
        """`YYYY-MM-DD hh:mm:ss` of each second of the run."""
        days = self.text_of(seconds // DAY + self.first_days[0])
        return days + pick(_TIMES_OF_DAY, seconds % DAY)

    def spread(self, rows: int) -> Ints:
        """First row number of each month when `rows` follow trend and season; ends with `rows`."""
        weights = [
            SEASON[(self.start.month - 1 + month) % 12] * (100 + 2 * month)
            for month in range(self.months)
        ]
        edges = np.cumsum(np.asarray([0, *weights], dtype=np.int64))
        starts: Ints = edges * rows // edges[-1]
        return starts


def usual_start(months: int) -> date:
    """First month of a run that names none: 2024-01, or earlier where it would end too late.

    Raises:
        UsageError: if so many months do not fit between 2020-01 and 2025-12.
    """
    most = _months_between(EARLIEST_START, LAST_MONTH) + 1
    if not 1 <= months <= most:
        raise UsageError(
            f"{months} months cannot be generated",
            f"Ask for 1 to {most} months, or name the month to start with.",
        )
    return min(USUAL_START, _months_after(LAST_MONTH, 1 - months))


def calendar_from(start: date, months: int) -> Calendar:
    """The calendar of a run that names its first month.

    Raises:
        UsageError: if the run has no month or ends after 2025-12.
    """
    start = start.replace(day=1)
    if months < 1 or _months_between(start, LAST_MONTH) < months - 1:
        raise UsageError(
            f"{months} months from {start:%Y-%m} cannot be generated",
            f"Ask for 1 month or more, ending {LAST_MONTH:%Y-%m} at the latest.",
        )
    return Calendar(start, months)


def pick(texts: pl.Series | Sequence[str], positions: Ints) -> pl.Series:
    """The text at each position."""
    series = texts if isinstance(texts, pl.Series) else pl.Series(texts, dtype=pl.String)
    return series.gather(pl.Series(positions))


def _months_between(first: date, last: date) -> int:
    return (last.year - first.year) * 12 + last.month - first.month


def _months_after(month: date, count: int) -> date:
    years, months = divmod(month.month - 1 + count, 12)
    return date(month.year + years, months + 1, 1)


_TIMES_OF_DAY = pl.Series(
    [f" {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}" for second in range(DAY)]
)
