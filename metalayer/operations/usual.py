"""What is unusual about the newest of a series of figures, by those before it.

A finding needs both: a distance from what is usual that is large beside how much the figures vary
anyway, and large in itself. Many series are looked at each day, so the first limit is high: of
numbers that only vary by chance hardly one in a million is past it.

Figures of days have a week in them, of months a year. Where there are enough, seasons are taken
out by STL (Cleveland, Cleveland, McRae and Terpenning, 1990), robustly; with fewer a day is held
against the same day of the weeks before, a month against those before.

Only numbers belong here. Does not belong here: where they come from, or what becomes of a finding
(`anomalies.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Measure = Literal["volume", "nulls", "distribution", "freshness"]

#: How much history there is to be before anything is said.
LEAST_DAYS, LEAST_MONTHS = 14, 8
_SEASON_DAYS, _SEASON_MONTHS = 7, 12
_SEASONAL_DAYS, _SEASONAL_MONTHS = 28, 36
#: No older figures count.
_MOST_DAYS, _MOST_MONTHS = 365, 120
#: How many times the usual deviation is too far, and by how much at least.
_SCORE = 6.0
_LEAST_VOLUME, _LEAST_NULLS, _LEAST_DISTANCE = 0.35, 0.10, 0.25
_LEAST_LAG_DAYS = 3.0
#: Smaller figures vary by chance as much as that.
_LEAST_ROWS = 20.0
#: The median of absolute deviations is so much of a normal standard deviation.
_OF_NORMAL = 1.4826
_FLOOR_VOLUME, _FLOOR_NULLS, _FLOOR_DISTANCE, _FLOOR_LAG = 0.05, 0.01, 0.02, 0.5
#: The least deviation of days where there are too few for a season.
_FLOOR_SHORT = 0.09


@dataclass(frozen=True)
class Verdict:
    """A figure that is not usual.

    Attributes:
        observed: The figure.
        low, high: Between which it usually is.
        score: Its distance from the middle, in usual deviations.
    """

    observed: float
    low: float
    high: float
    score: float


def volume(history: Sequence[float], observed: float, *, by: Literal["day", "month"]
           ) -> Verdict | None:  # fmt: skip
    """Whether a day or month has unusually few or many rows; None: it has not, or nobody knows.

    Args:
        history: Rows of the days or months before it, without a gap, the last right before.
    """
    most = _MOST_DAYS if by == "day" else _MOST_MONTHS
    past = np.asarray(history[-most:], dtype=float)
    if len(past) < (LEAST_DAYS if by == "day" else LEAST_MONTHS):
        return None
    season = _SEASON_DAYS if by == "day" else _SEASON_MONTHS
    if not _may_be_unusual(past, observed, season):
        return None
    logs = np.log1p(past)
    enough = _SEASONAL_DAYS if by == "day" else _SEASONAL_MONTHS
    if len(past) >= enough:
        middle, scale = _seasonal(logs, season)
    elif by == "day":
        # As on the same day of the weeks before, which are two or three.
        middle, scale = float(np.median(logs[-season::-season])), _FLOOR_SHORT
    else:
        recent = logs[-_SEASON_MONTHS:]
        middle, scale = float(np.median(recent)), _scale(recent - np.median(recent))
    usual = math.expm1(middle)
    # Small counts vary by the root of themselves.
    scale = max(scale, _FLOOR_VOLUME, 1 / math.sqrt(max(usual, 1.0)))
    score = (math.log1p(observed) - middle) / scale
    effect = observed / usual if usual > 0 else math.inf
    is_far = effect <= 1 - _LEAST_VOLUME or effect >= 1 / (1 - _LEAST_VOLUME)
    if usual < _LEAST_ROWS or abs(score) < _SCORE or not is_far:
        return None
    low, high = math.expm1(middle - 3 * scale), math.expm1(middle + 3 * scale)
    return Verdict(observed, max(0.0, low), high, abs(score))


def _may_be_unusual(past: np.ndarray, observed: float, season: int) -> bool:
    """Whether it is worth a closer look: most figures are as the same day of the weeks before."""
    same = past[-season::-season][:6] if len(past) >= season else past
    return not 0.8 * float(np.min(same)) <= observed <= 1.25 * float(np.max(same))


def _seasonal(logs: np.ndarray, season: int) -> tuple[float, float]:
    """What is expected next, and how far the figures usually are from what was expected of them."""
    # Takes seconds to import, and is needed seldom.
    from statsmodels.tsa.seasonal import STL

    found = STL(logs, period=season, robust=True).fit()
    level = float(np.median(found.trend[-season:]))
    middle = level + float(found.seasonal[-season])
    recent = found.resid[-8 * season :]
    return middle, _scale(recent)


def nulls(shares: Sequence[float], rows: Sequence[float], observed: float, observed_rows: float, *,
          by: Literal["day", "month"]) -> Verdict | None:  # fmt: skip
    """Whether unusually many values of a column are missing on a day or in a month.

    Args:
        shares: Share of missing values of each day or month before, 0 to 1.
        rows: Rows of each.
    """
    least = LEAST_DAYS if by == "day" else LEAST_MONTHS
    known = [s for s, n in zip(shares, rows, strict=True) if n > 0][-8 * least :]
    if len(known) < least or observed_rows < _LEAST_ROWS:
        return None
    past = np.asarray(known)
    middle = float(np.median(past))
    chance = math.sqrt(max(middle * (1 - middle), 0.0) / observed_rows)
    scale = max(_scale(past - middle), _FLOOR_NULLS, chance)
    score = (observed - middle) / scale
    if abs(score) < _SCORE or abs(observed - middle) < _LEAST_NULLS:
        return None
    return Verdict(observed, max(0.0, middle - 3 * scale), min(1.0, middle + 3 * scale), abs(score))


def distribution(history: Sequence[dict[str, float]], observed: dict[str, float]) -> Verdict | None:
    """Whether the shares of frequent values are unusual; the figure is how much of them moved.

    That is the total variation distance from the mean of the months before, 0 to 1.

    Args:
        history: Value -> its share, of each month before.
    """
    past = [shares for shares in history[-LEAST_MONTHS * 3 :] if shares]
    if len(past) < LEAST_MONTHS or not observed:
        return None
    values = sorted({value for shares in (*past, observed) for value in shares})
    table = np.asarray([[shares.get(v, 0.0) for v in values] for shares in past])
    middle = np.median(table, axis=0)
    distances = np.abs(table - middle).sum(axis=1) / 2
    now = np.asarray([observed.get(v, 0.0) for v in values])
    distance = float(np.abs(now - middle).sum() / 2)
    usual = float(np.median(distances))
    scale = max(_scale(distances - usual), _FLOOR_DISTANCE)
    score = (distance - usual) / scale
    if score < _SCORE or distance < _LEAST_DISTANCE:
        return None
    return Verdict(distance, 0.0, usual + 3 * scale, score)


def freshness(lags: Sequence[float], observed: float) -> Verdict | None:
    """Whether the newest day there is is older than it usually is when a table is published.

    Args:
        lags: Days from the newest day to the publish, of each publish before.
    """
    past = np.asarray(lags[-90:], dtype=float)
    if len(past) < LEAST_DAYS:
        return None
    middle = float(np.median(past))
    scale = max(_scale(past - middle), _FLOOR_LAG)
    score = (observed - middle) / scale
    if score < _SCORE or observed - middle < _LEAST_LAG_DAYS:
        return None
    return Verdict(observed, 0.0, middle + 3 * scale, score)


def _scale(deviations: np.ndarray) -> float:
    return float(_OF_NORMAL * np.median(np.abs(deviations)))
