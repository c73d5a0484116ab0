"""Means over seeds and their intervals, paired differences; intervals of probabilities, straight lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figures:
    """A quantity over seeds.

    Attributes:
        values: one per seed.

    Example:
        >>> Figures((60.0, 62.0, 64.0)).mean, round(Figures((60.0, 62.0, 64.0)).half_width, 2)
        (62.0, 4.97)
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; NaN for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def half_width(self) -> float:
        """Half the 95 % interval of the mean (Student's t); NaN for one seed."""
        n = len(self.values)
        return float(student.ppf(0.975, n - 1)) * self.deviation / math.sqrt(n) if n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean (Student's t); None for one seed, which has none."""
        half = self.half_width
        return None if math.isnan(half) else (self.mean - half, self.mean + half)

    @property
    def words(self) -> str:
        """Mean and half the 95 % interval; one seed has none."""
        return f"{self.mean:.1f}" if self.interval is None else f"{self.mean:.1f} ± {self.half_width:.1f}"

    @property
    def signed(self) -> str:
        """Mean of differences with its sign; no minus before what is rounded to nothing.

        >>> Figures((-0.04,)).signed, Figures((-0.06,)).signed
        ('+0.0', '-0.1')
        """
        return f"{round(self.mean, 1) + 0.0:+.1f}"

    def __str__(self) -> str:
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.1f}"
        return f"{self.mean:.1f}{spread}"


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Figures | None:
    """Differences between two methods on the seeds they share: what the seeds have in common cancels out.

    The interval of the result is that of the paired t test.

    Args:
        one: a quantity by seed.
        other: the same of the method it is compared with.

    Returns:
        ``one - other``, one value per shared seed; None if they share none.

    Example:
        >>> difference = paired({0: 60.0, 1: 66.0, 2: 63.0}, {0: 50.0, 1: 54.0, 5: 0.0})
        >>> difference.values, difference.mean
        ((10.0, 12.0), 11.0)
    """
    shared = sorted(one.keys() & other.keys())
    return Figures(tuple(one[seed] - other[seed] for seed in shared)) if shared else None


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
