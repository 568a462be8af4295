"""What is unusual by the figures before it: clean histories are left alone, faults are found."""

from __future__ import annotations

import numpy as np
import pytest

from metalayer.operations import usual

WEEKEND = np.array([1.0, 1.0, 1.05, 1.0, 1.1, 0.5, 0.4])


def days(seed: int, number: int, level: float, growth: float = 0.0) -> list[float]:
    """Rows of days with a week in them, growing, as they come by chance."""
    chance = np.random.default_rng(seed)
    every = np.arange(number)
    expected = level * (1 + growth) ** every * WEEKEND[every % 7]
    return [float(n) for n in chance.poisson(expected * np.exp(chance.normal(0, 0.06, number)))]


@pytest.mark.parametrize("seed", range(4))
def test_ninety_clean_days_of_many_series_give_one_false_alarm_at_most(seed: int) -> None:
    """Eight tables with ten columns each: 90 days, each judged by those before."""
    chance = np.random.default_rng(seed)
    alarms = 0
    for table in range(8):
        rows = days(seed * 100 + table, 104, float(chance.choice([60, 400, 5000])), 0.002)
        for place in range(14, 104):
            alarms += usual.volume(rows[:place], rows[place], by="day") is not None
        for column in range(10):
            share = [0.0, 0.01, 0.05, 0.2, 0.5][column % 5]
            nulls = [float(chance.binomial(int(n), share)) / n if n else 0.0 for n in rows]
            for place in range(14, 104):
                alarms += (
                    usual.nulls(nulls[:place], rows[:place], nulls[place], rows[place], by="day")
                    is not None
                )
    assert alarms <= 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [20, 60, 200])
def test_half_the_rows_of_a_day_are_noticed(seed: int, length: int) -> None:
    rows = days(seed, length + 1, 2000)
    assert usual.volume(rows[:-1], rows[-1], by="day") is None
    found = usual.volume(rows[:-1], rows[-1] / 2, by="day")
    assert found is not None
    assert found.observed < found.low < found.high
    assert usual.volume(rows[:-1], rows[-1] * 2, by="day") is not None
    assert usual.volume(rows[:-1], 0.0, by="day") is not None


def test_a_third_of_a_column_missing_is_noticed() -> None:
    rows = [500.0] * 40
    for share in (0.0, 0.02, 0.1):
        found = usual.nulls([share] * 40, rows, share + 0.3, 500, by="day")
        assert found is not None
        assert usual.nulls([share] * 40, rows, share + 0.05, 500, by="day") is None
    # Filled all at once is as unusual; of ten rows nobody knows.
    assert usual.nulls([0.5] * 40, rows, 0.1, 500, by="day") is not None
    assert usual.nulls([0.0] * 40, rows, 0.3, 10, by="day") is None


def test_with_little_history_nothing_is_said() -> None:
    assert usual.volume([1000.0] * 13, 10.0, by="day") is None
    assert usual.volume([1000.0] * 14, 10.0, by="day") is not None
    assert usual.volume([1000.0] * 7, 10.0, by="month") is None
    assert usual.volume([1000.0] * 8, 10.0, by="month") is not None
    assert usual.nulls([0.0] * 13, [500.0] * 13, 0.9, 500, by="day") is None
    assert usual.distribution([{"a": 1.0}] * 7, {"b": 1.0}) is None
    assert usual.freshness([1.0] * 13, 30.0) is None


def test_nothing_at_all_and_few_rows_are_no_news() -> None:
    assert usual.volume([0.0] * 60, 0.0, by="day") is None
    assert usual.volume([0.0] * 60, 500.0, by="day") is None  # it begins
    assert usual.volume([4.0, 5.0, 3.0, 6.0, 5.0, 4.0, 5.0] * 8, 1.0, by="day") is None


def test_an_earlier_anomaly_does_not_hide_the_next_and_a_new_level_becomes_usual() -> None:
    rows = days(1, 80, 2000)
    rows[60] /= 10
    rows[66] *= 5
    assert usual.volume(rows[:-1], rows[-1], by="day") is None
    assert usual.volume(rows[:-1], rows[-1] / 2, by="day") is not None
    risen = days(2, 60, 1000) + days(3, 60, 2500)[4:]
    assert usual.volume(risen[:60], risen[60], by="day") is not None
    assert usual.volume(risen[:-1], risen[-1], by="day") is None


def test_a_year_is_a_season_of_months() -> None:
    chance = np.random.default_rng(5)
    season = np.array([1, 1, 1, 1, 1, 1, 0.4, 0.4, 1, 1, 1.3, 2.2])
    months = [float(n) for n in chance.poisson(3000 * season[np.arange(61) % 12])]
    for place in range(48, 61):
        assert usual.volume(months[:place], months[place], by="month") is None
    december, july = 59, 54
    assert usual.volume(months[:december], 3000.0, by="month") is not None
    assert usual.volume(months[:july], 3000.0, by="month") is not None


def test_values_that_shift_are_noticed() -> None:
    chance = np.random.default_rng(3)
    usually = [0.6, 0.3, 0.1]
    past = [
        dict(zip("abc", chance.multinomial(1000, usually) / 1000, strict=True)) for _ in range(12)
    ]
    assert usual.distribution(past, {"a": 0.58, "b": 0.31, "c": 0.11}) is None
    found = usual.distribution(past, {"a": 0.2, "b": 0.3, "c": 0.5})
    assert found is not None
    assert found.observed == pytest.approx(0.4, abs=0.02)
    assert usual.distribution(past, {"x": 1.0}) is not None


def test_a_newest_day_that_is_old_is_noticed() -> None:
    assert usual.freshness([1.0, 1.0, 2.0, 1.0] * 5, 2.0) is None
    assert usual.freshness([1.0, 1.0, 2.0, 1.0] * 5, 9.0) is not None
    assert usual.freshness([30.0] * 20, 31.0) is None
