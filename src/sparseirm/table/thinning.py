"""Fewer rows, but of every group some."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 50
"""Rows that every group keeps, if it has as many."""


def thinned(group: NDArray[Any], most: int) -> NDArray[np.int64]:
    """Places of about ``most`` rows, drawn at random from every group in proportion, but `LEAST` of each.

    Args:
        group: ``(n,)`` group of each row.
        most: how many rows are wanted; if there are no more, all are kept.

    Returns:
        Places, group after group and shuffled within each; the same for the same groups.

    Example:
        >>> group = np.repeat([0, 1], [100_000, 60])
        >>> np.bincount(group[thinned(group, 1000)]).tolist()
        [999, 50]
    """
    _, which, counts = np.unique(group, return_inverse=True, return_counts=True)
    luck = np.random.default_rng(0).permutation(len(which))
    order = luck[np.argsort(which[luck], kind="stable")]
    share = min(1.0, most / max(len(which), 1))
    quota = np.minimum(counts, np.maximum(LEAST, np.floor(counts * share))).astype(np.int64)
    rank = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[rank < np.repeat(quota, counts)]
