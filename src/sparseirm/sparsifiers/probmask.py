"""ProbMask: every weight is kept with a learned probability, under one global budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError, accumulator
from sparseirm.registry import one_of
from sparseirm.schedules import cubic, linear
from sparseirm.sparsifiers.gates import gated, uniform
from sparseirm.sparsifiers.projection import project, top_k


@dataclass(frozen=True)
class ProbMask:
    """Relaxed Bernoulli gates with probabilities projected onto the budget after every step.

    Algorithm 1 of the Sparse IRM paper, after Zhou et al. 2021 (arXiv:2105.00405). The expected number
    of kept weights falls from all of them to the budget between ``shrink_from`` and ``shrink_to``; at
    ``decide_at`` the mask is fixed to the ``budget`` most probable weights, and the rest of the run
    trains these. All times are fractions of the run.

    Attributes:
        budget: K, weights kept at the end, over all layers together.
        shrink_from: until then every weight is kept.
        shrink_to: from then on the budget holds.
        decide_at: from then on the mask is fixed; 1 leaves it random to the end, as the paper does.
        score_lr: learning rate (Adam) of the probabilities.
        first_temperature: temperature of the gates at the start.
        last_temperature: temperature of the gates when the mask is decided (or at the end).
        final: ``top_k`` evaluates and exports the ``budget`` most probable weights; ``sample`` one draw of
            the probabilities, as Algorithm 1 does, which keeps the budget only in expectation.
        gradient_floor: smallest ``s (1 - s)`` the gate's gradient divides by.

    Raises:
        SettingError: if the times are not in order within [0, 1] or a rate is not positive.
    """

    budget: int
    shrink_from: float = 0.0
    shrink_to: float = 0.2
    decide_at: float = 0.25
    score_lr: float = 3e-2
    first_temperature: float = 1.0
    last_temperature: float = 0.03
    gradient_floor: float = 1e-20
    final: str = "top_k"

    def __post_init__(self) -> None:
        if not 0 <= self.shrink_from <= self.shrink_to <= self.decide_at <= 1 or self.decide_at == 0:
            raise SettingError(
                "`shrink_from` <= `shrink_to` <= `decide_at` must hold in [0, 1] (fractions of the run), and "
                "the mask cannot be decided before the first step; "
                f"got {self.shrink_from}, {self.shrink_to}, {self.decide_at}."
            )
        one_of("final mask", self.final, ("top_k", "sample"))
        if self.final == "sample" and self.decide_at < 1:
            raise SettingError(
                "`final` has no effect once the mask is decided; pass `decide_at=1` with sample."
            )
        for name in ("score_lr", "first_temperature", "last_temperature"):
            if not getattr(self, name) > 0:
                raise SettingError(f"`{name}` must be positive; got {getattr(self, name)}.")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Probability 1 for every weight."""
        kept = {"multiplier": torch.zeros((), dtype=accumulator(weights.device), device=weights.device)}
        if self.final == "sample":
            kept["draw"] = uniform(weights, noise)
        return Memory({"probabilities": torch.ones_like(weights)}, kept)

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """One draw of relaxed gates times the weights; the fixed mask once it is decided."""
        if "mask" in memory.kept:
            return weights * memory.kept["mask"]
        probabilities = memory.learned["probabilities"]
        done = now.progress / self.decide_at
        temperature = linear(done, self.first_temperature, self.last_temperature)
        return gated(weights, probabilities, uniform(weights, now.noise), temperature, self.gradient_floor)

    def price(self, memory: Memory) -> float:
        """Nothing is added to the loss."""
        return 0.0

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Project the probabilities onto the budget of the moment; fix the mask when it is time."""
        if "mask" in memory.kept:
            return
        probabilities = memory.learned["probabilities"]
        d = weights.numel()
        kept = cubic(now.progress, self.shrink_from, self.shrink_to, d, self.budget)
        memory.kept["multiplier"] = project(probabilities, kept, memory.kept["multiplier"])
        if (now.step + 1) / now.steps >= self.decide_at and self.decide_at < 1:
            memory.kept["mask"] = top_k(probabilities, self.budget).to(weights.dtype)

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` most probable weights, or the run's one draw of them."""
        probabilities = memory.learned["probabilities"].detach()
        if "mask" in memory.kept:
            return memory.kept["mask"].bool()
        if "draw" in memory.kept:
            return memory.kept["draw"] < probabilities
        return top_k(probabilities, self.budget)

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)
