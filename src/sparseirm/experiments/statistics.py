"""Intervals of probabilities and straight lines through points."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]


def wilson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a probability from ``hits`` out of ``trials``.

    >>> [round(end, 3) for end in wilson(9, 10)]
    [0.596, 0.982]
    """
    z = float(norm.ppf((1 + level) / 2))
    centre, width = hits + z * z / 2, z * math.sqrt(hits * (trials - hits) / trials + z * z / 4)
    return max(0.0, (centre - width) / (trials + z * z)), min(1.0, (centre + width) / (trials + z * z))


def line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and offset of the least-squares line through the points whose ``y`` is not NaN.

    >>> [round(part, 6) for part in line(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, np.nan]))]
    [2.0, 1.0]
    """
    there = ~np.isnan(y)
    if there.sum() < 2:
        return math.nan, math.nan
    slope, offset = np.polyfit(x[there], y[there], 1)
    return float(slope), float(offset)


def explained(x: Floats, y: Floats) -> float:
    """Share of the variation of ``y`` that a line in ``x`` explains (R2); NaN for fewer than three points.

    >>> round(explained(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])), 6)
    1.0
    """
    there = ~np.isnan(y)
    if there.sum() < 3:
        return math.nan
    slope, offset = line(x, y)
    rest, whole = y[there] - slope * x[there] - offset, y[there] - y[there].mean()
    return float(1 - (rest @ rest) / (whole @ whole))


def middle(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """The quantiles between which ``level`` of the values lie, NaN left out: a bootstrap interval.

    >>> middle(np.array([0.0, 1.0, np.nan]), level=0.5)
    (0.25, 0.75)
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
