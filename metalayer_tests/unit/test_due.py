"""When a month is due: the calendar of a contract."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalayer.contracts.due import Due
from metalayer.errors import ContractError
from metalayer.warehouse.ddl import next_month


def test_a_month_is_due_on_a_day_and_hour_of_the_next() -> None:
    due = Due(day=5, hour=6)
    assert due.moment(date(2025, 6, 1)) == datetime(2025, 7, 5, 6, tzinfo=UTC)
    assert due.moment(date(2025, 12, 1)) == datetime(2026, 1, 5, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "month"),
    [
        (datetime(2025, 7, 5, 5, 59, 59, tzinfo=UTC), date(2025, 5, 1)),
        (datetime(2025, 7, 5, 6, tzinfo=UTC), date(2025, 6, 1)),
        (datetime(2026, 1, 5, 5, tzinfo=UTC), date(2025, 11, 1)),
        (datetime(2026, 1, 31, 23, tzinfo=UTC), date(2025, 12, 1)),
        # 07:30 in a zone two hours ahead is half past five.
        (datetime(2025, 7, 5, 7, 30, tzinfo=timezone(timedelta(hours=2))), date(2025, 5, 1)),
    ],
)
def test_the_newest_month_that_is_due(now: datetime, month: date) -> None:
    assert Due(day=5, hour=6).newest_month(now) == month


@given(
    st.builds(Due, day=st.integers(1, 28), hour=st.integers(0, 23)),
    st.datetimes(timezones=st.just(UTC)).filter(lambda now: 2 < now.year < 9999),
)
def test_a_month_is_due_from_its_moment_until_that_of_the_next(due: Due, now: datetime) -> None:
    month = due.newest_month(now)
    assert due.moment(month) <= now < due.moment(next_month(month))


@pytest.mark.parametrize(
    ("day", "hour", "message"),
    [
        (0, 6, "Due(day=0) is no day that every month has"),
        (29, 6, "Due(day=29) is no day that every month has"),
        (1.5, 6, "Due(day=1.5) is no day that every month has"),
        (5, 24, "Due(hour=24) is no hour of a day"),
        (5, True, "Due(hour=True) is no hour of a day"),
    ],
)
def test_what_is_no_day_or_hour_is_refused(day: int, hour: int, message: str) -> None:
    with pytest.raises(ContractError) as refused:
        Due(day=day, hour=hour)
    assert refused.value.message == message
    assert refused.value.next_step.startswith("Use a whole number from ")
