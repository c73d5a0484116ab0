"""After training: is it better than plain training?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sparseirm.monitor.findings import Finding


@dataclass(frozen=True)
class Interval:
    """A mean over environments, with its 95 % interval (Student's t).

    Attributes:
        mean: the mean.
        low: lower end; minus infinity where nothing tells the noise: one value, or all of them equal.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Interval:
        """The interval of the mean of independent values.

        >>> found = Interval.of([1.0, 2.0, 3.0])
        >>> round(found.low, 3), found.mean, round(found.high, 3)
        (-0.484, 2.0, 4.484)
        """
        n, mean = len(values), float(np.mean(values))
        if n < 2 or np.ptp(values) < 1e-12:
            return Interval(mean, -math.inf, math.inf)
        half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half)


def after(gain: Interval, unit: str, better_named: str) -> Finding:
    """Whether a method beats plain training on held-out environments beyond noise.

    Args:
        gain: score of the method minus that of ERM, paired by environment, larger is better.
        unit: what the score is, such as ``accuracy``.
        better_named: name of the method, for the message.

    Returns:
        One finding, in whichever direction.
    """
    seen = f"{better_named} against ERM on held-out environments: {gain.mean:+.3g} {unit}"
    if not math.isfinite(gain.low):
        do = "Environments are too few or too alike to tell how much of that is chance: add some, or seeds."
        return Finding("after", "note", "as good as ERM", f"{seen}.", do)
    seen += f" ({gain.low:+.3g} to {gain.high:+.3g})."
    if gain.low > 0:
        return Finding("after", "good", "better than ERM", seen, "Use it.")
    if gain.high < 0:
        do = (
            "For environments that differ no more than these, ERM predicts better. What is paid here buys "
            "safety in ones that differ more: decide whether yours will."
        )
        return Finding("after", "warning", "price of invariance", seen, do)
    return Finding(
        "after",
        "note",
        "as good as ERM",
        seen,
        "ERM is as good here, within noise: prefer it, unless new environments differ more than these do.",
    )
