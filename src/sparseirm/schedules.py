"""Values that change during a run, as pure functions of its progress in [0, 1]."""

from __future__ import annotations

import math


def cubic(progress: float, start: float, end: float, first: float, last: float) -> float:
    """``first`` until ``start``, ``last`` from ``end`` on, and a cubic fall between them.

    ``last + (first - last) (1 - (t - start) / (end - start))**3``: Zhu & Gupta 2017 (arXiv:1710.01878),
    the density schedule of Algorithm 1.

    Args:
        progress: t, fraction of the run that is over, in [0, 1].
        start: fraction of the run until which the value is ``first``.
        end: fraction of the run from which it is ``last``; at ``start`` or before, it jumps there.
        first: value at the start.
        last: value at the end.

    Returns:
        The value at ``progress``, in the unit of ``first`` and ``last``.

    Example:
        >>> [round(cubic(t, 0.2, 0.6, 1.0, 0.1), 4) for t in (0.0, 0.2, 0.4, 0.6, 1.0)]
        [1.0, 1.0, 0.2125, 0.1, 0.1]
    """
    if progress >= end:
        return last
    if progress <= start:
        return first
    return last + (first - last) * (1 - (progress - start) / (end - start)) ** 3


def linear(progress: float, first: float, last: float) -> float:
    """A straight line from ``first`` to ``last``.

    >>> linear(0.5, 1.0, 0.0)
    0.5
    """
    return first + (last - first) * progress


def cosine(progress: float, first: float, last: float = 0.0) -> float:
    """Half a cosine from ``first`` to ``last`` (Loshchilov & Hutter 2017, arXiv:1608.03983).

    >>> [round(cosine(t, 1.0), 3) for t in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
