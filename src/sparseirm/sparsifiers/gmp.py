"""Gradual magnitude pruning: the smallest weights are masked, a few more every so often."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment
from sparseirm.schedules import cubic
from sparseirm.sparsifiers.budgets import best, layer_sizes
from sparseirm.sparsifiers.masked import Masked
from sparseirm.sparsifiers.timing import done, due, ordered, within


@dataclass(frozen=True)
class GradualMagnitude(Masked):
    """Keeps the largest weights by absolute value, ever fewer along the cubic density.

    Zhu & Gupta 2017 (arXiv:1710.01878): the mask is chosen anew every so often among all weights, masked
    ones with the value they had, and stays as it is once the budget is reached. With ``shrink_from`` equal
    to ``shrink_to`` this is one-shot pruning; with both 0, at the start.

    Attributes:
        budget: K, weights kept from ``shrink_to`` on.
        every: time between two new masks.
        shrink_from: until then every weight is kept.
        shrink_to: from then on the budget holds and the mask is fixed.
        per_layer: keep the same fraction of every layer; by default all layers share the budget.

    All times are fractions of the run.

    Raises:
        SettingError: if the times are not in order within [0, 1] or ``every`` is not in (0, 1).
    """

    budget: int
    every: float = 0.01
    shrink_from: float = 0.0
    shrink_to: float = 0.13
    per_layer: bool = False

    def __post_init__(self) -> None:
        ordered(self, "shrink_from", "shrink_to")
        within(self, "every")

    @property
    def final_from(self) -> float:
        """The mask is decided then, see `Sparsifier`."""
        return self.shrink_to

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """All weights, unless the budget holds from the start."""
        kept = layer_sizes(layout, self.per_layer, weights.device)
        count = self._count(0.0, weights.numel())
        return Memory({}, {**kept, "mask": best(weights.detach().abs(), count, kept.get("sizes"))})

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Choose the mask anew if that is due and it is not final."""
        over = done(now)
        if now.progress < self.shrink_to and (due(now, self.every) or over >= self.shrink_to):
            count = self._count(over, weights.numel())
            memory.kept["mask"] = best(weights.abs(), count, memory.kept.get("sizes"))

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` largest weights of those in use."""
        size = weights.abs().masked_fill(~memory.kept["mask"], -1)
        return best(size, self.budget, memory.kept.get("sizes"))

    def _count(self, progress: float, d: int) -> int:
        return round(cubic(progress, self.shrink_from, self.shrink_to, d, self.budget))
