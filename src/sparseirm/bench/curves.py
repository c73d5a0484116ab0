"""How time and memory of a training step grow with width, samples, environments and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from matplotlib.figure import Figure

from sparseirm.bench.isolated import Cost, Task, measured
from sparseirm.experiments.figures import saved
from sparseirm.experiments.illustrations import SPARSE

LINEAR = 1.1
"""Exponents up to this count as linear: a fit to a few timed points is no better."""

LARGEST = 4
"""Points an exponent is fitted to, the largest ones: below them a constant cost hides the growth."""

NOISE = 0.2
"""What a larger size may cost less than a smaller one; beyond it, no exponent is believed."""


@dataclass(frozen=True)
class Curve:
    """One thing that grows while the rest stays.

    Attributes:
        name: what grows, in words.
        sizes: its values, rising.
        task: the training at one of them.
        most: largest exponent of time and memory that is right.
    """

    name: str
    sizes: tuple[int, ...]
    task: Callable[[int], Task]
    most: float


@dataclass(frozen=True)
class Growth:
    """A measured curve.

    Attributes:
        name: what grows.
        sizes: its values.
        seconds: of a step.
        gigabytes: of memory, beyond what an empty process takes.
        time_exponent: ``b`` of ``seconds ~ size**b`` at the largest sizes.
        memory_exponent: the same of memory.
        most: largest exponent that is right.
        holds: whether both exponents are, and the points can tell.
        note: why the points cannot tell, if so.
    """

    name: str
    sizes: list[int]
    seconds: list[float]
    gigabytes: list[float]
    time_exponent: float
    memory_exponent: float
    most: float
    holds: bool
    note: str = ""


def of_width(width: int) -> int:
    """Maskable weights of a perceptron on ColoredMNIST: ``392 w + w**2 + w``."""
    return 393 * width + width**2


def width_of(weights: int) -> int:
    """The width at which a perceptron on ColoredMNIST has about that many weights.

    >>> of_width(width_of(1_000_000))
    1000768
    """
    return round((-393 + math.sqrt(393**2 + 4 * weights)) / 2)


MNIST = (2, 14, 14)

CURVES = {
    "width": Curve(
        "hidden units",
        (64, 128, 256, 512, 1024, 2048, 4096),
        lambda w: Task(2048, MNIST, width=w),
        2 * LINEAR,
    ),
    "samples": Curve(
        "samples",
        (2_000, 8_000, 32_000, 125_000, 250_000, 500_000, 1_000_000),
        lambda n: Task(n, MNIST),
        LINEAR,
    ),
    "environments": Curve(
        "environments", (2, 4, 8, 16, 32, 64), lambda e: Task(20_000, MNIST, n_envs=e), LINEAR
    ),
    "weights": Curve(
        "weights",
        (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000),
        lambda d: Task(64, MNIST, width=width_of(d)),
        LINEAR,
    ),
}
"""All curves by name."""


def smaller(curve: Curve) -> Curve:
    """The same with two small sizes, to try it out."""
    return replace(curve, sizes=curve.sizes[:2], task=lambda size: replace(curve.task(size), n=256))


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power with which a cost grows at the largest sizes: the slope in logarithms, by least squares.

    Args:
        sizes: rising.
        costs: positive, one for each.

    Returns:
        ``b`` of ``cost ~ size**b``, from the last `LARGEST` points.

    Example:
        >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 6)
        2.0
    """
    x, y = ([math.log(value) for value in values[-LARGEST:]] for values in (sizes, costs))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def falls(costs: Sequence[float]) -> bool:
    """Whether, of the points an exponent is fitted to, a larger size costs clearly less than a smaller one.

    >>> falls([1.0, 2.0, 1.9, 4.0]), falls([1.0, 4.0, 3.0, 3.5])
    (False, True)
    """
    fitted = costs[-LARGEST:]
    return any(
        later < (1 - NOISE) * most for later, most in zip(fitted, accumulate(fitted, max), strict=True)
    )


def growth(curve: Curve, cost: Callable[[Task], Cost] = measured) -> Growth:
    """Measure a curve.

    Args:
        curve: what grows.
        cost: what a task costs; by default measured in a process of its own.

    Returns:
        The costs at every size, and their exponents.
    """
    costs = [cost(curve.task(size)) for size in curve.sizes]
    seconds, gigabytes = [c.seconds for c in costs], [max(c.more, 1) / 1e9 for c in costs]
    powers = exponent(curve.sizes, seconds), exponent(curve.sizes, gigabytes)
    note = "too noisy: a larger size cost less" if falls(seconds) or falls(gigabytes) else ""
    holds = max(powers) <= curve.most and not note
    return Growth(curve.name, list(curve.sizes), seconds, gigabytes, *powers, curve.most, holds, note)


def figure(curves: Mapping[str, Growth], path: Path) -> Path:
    """Draw all curves: time above, memory below, both axes logarithmic.

    Args:
        curves: measured curves.
        path: where the figure goes; the ending chooses the format.

    Returns:
        ``path``.
    """
    drawing = Figure(figsize=(3.2 * len(curves), 5.6), layout="constrained")
    panels = drawing.subplots(2, len(curves), squeeze=False)
    for column, curve in zip(panels.T, curves.values(), strict=True):
        both = ((curve.seconds, curve.time_exponent, "s"), (curve.gigabytes, curve.memory_exponent, "GB"))
        for axes, (costs, power, unit) in zip(column, both, strict=True):
            axes.loglog(curve.sizes, costs, "o-", color=SPARSE)
            axes.set_title(f"{unit} ~ {curve.name}^{power:.2f}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        column[1].set_xlabel(curve.name)
    panels[0][0].set_ylabel("a training step, s")
    panels[1][0].set_ylabel("memory, GB")
    return saved(drawing, path)
