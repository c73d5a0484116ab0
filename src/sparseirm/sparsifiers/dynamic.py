"""Dynamic sparse training: always K weights; now and then small ones give way to new ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError
from sparseirm.schedules import cosine
from sparseirm.sparsifiers.budgets import best, layer_sizes
from sparseirm.sparsifiers.gates import uniform
from sparseirm.sparsifiers.masked import Masked
from sparseirm.sparsifiers.timing import Decided, due, ordered, within


@dataclass(frozen=True)
class _Dynamic(Decided, Masked, ABC):
    budget: int
    every: float = 0.02
    drop: float = 0.3
    decide_at: float = 0.45
    per_layer: bool = False

    def __post_init__(self) -> None:
        ordered(self, "decide_at")
        within(self, "every", "drop")

    @abstractmethod
    def growth(self, weights: Tensor, gradient: Tensor | None, noise: Generator) -> Tensor:
        """Scores ``(d,)``: the largest of them grow among the weights not in use."""

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """``budget`` weights at random."""
        kept = layer_sizes(layout, self.per_layer, weights.device)
        return Memory({}, {**kept, "mask": best(uniform(weights, noise), self.budget, kept.get("sizes"))})

    def after_step(
        self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None
    ) -> Tensor | None:
        """Drop and grow if that is due; weights that come into use start at zero, without a history."""
        if not due(now, self.every) or now.progress >= self.decide_at:
            return None
        old, sizes = memory.kept["mask"], memory.kept.get("sizes")
        dropped = round(cosine(now.progress / self.decide_at, self.drop) * self.budget)
        survivors = best(weights.abs().masked_fill(~old, -1), self.budget - dropped, sizes)
        growth = self.growth(weights, gradient, now.noise).masked_fill(survivors, math.inf)
        memory.kept["mask"] = best(growth, self.budget, sizes)
        fresh = memory.kept["mask"] & ~old
        weights[fresh] = 0
        return fresh


@dataclass(frozen=True)
class SET(_Dynamic):
    """Sparse evolutionary training: the smallest weights in use give way to random others.

    Mocanu et al. 2018 (arXiv:1707.04780), with the fraction dropped falling to zero along a cosine as in
    `RigL`. The first mask is random: K of all d weights with equal chances, or ``per_layer`` the same
    fraction of each layer; the paper's Erdos-Renyi densities are not offered, because the budget is one
    number. A weight dropped may be drawn again at once and then keeps its value.

    Attributes:
        budget: K, weights in use at any time.
        every: time between two changes of the mask.
        drop: fraction of the weights in use that is dropped the first time.
        decide_at: from then on the mask is fixed; it should leave new weights time to learn.
        per_layer: drop, grow and keep the same fraction of every layer; by default all layers compete.

    All times are fractions of the run.

    Raises:
        SettingError: if a value is out of range.
    """

    def growth(self, weights: Tensor, gradient: Tensor | None, noise: Generator) -> Tensor:
        """Uniform draws."""
        return uniform(weights, noise)


@dataclass(frozen=True)
class RigL(_Dynamic):
    """The rigged lottery: the smallest weights in use give way to those with the largest gradient.

    Evci et al. 2020 (arXiv:1911.11134), Algorithm 1: ``alpha / 2 (1 + cos(pi t / T))`` of the weights in
    use are dropped by absolute value, and as many grow where ``|dL/d(effective)|`` is largest among all not
    in use then (so one dropped may stay, and keeps its value). Penalties count in the gradient. It is the
    gradient of the step just taken; the paper's takes no step then. About the first mask see `SET`.

    Attributes:
        budget: K, weights in use at any time.
        every: time between two changes of the mask.
        drop: alpha, fraction of the weights in use that is dropped the first time.
        decide_at: T, from then on the mask is fixed. The paper's is three quarters of the time in which
            weights learn, and so is this one with the default learning rate, which is zero after 60 %.
        per_layer: drop, grow and keep the same fraction of every layer; by default all layers compete.

    All times are fractions of the run.

    Raises:
        SettingError: if a value is out of range, or `after_step` is to grow weights without a gradient.
    """

    def growth(self, weights: Tensor, gradient: Tensor | None, noise: Generator) -> Tensor:
        """Absolute values of the dense gradient."""
        if gradient is None:
            raise SettingError(
                "rigl grows by the gradient of the effective weights; pass it to `after_step`."
            )
        return gradient.abs()
