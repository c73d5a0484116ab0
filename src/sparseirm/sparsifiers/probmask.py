"""ProbMask: every weight is kept with a learned probability, under one budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError, accumulator
from sparseirm.registry import one_of
from sparseirm.schedules import cubic, linear
from sparseirm.sparsifiers.budgets import best, layer_sizes, project_within
from sparseirm.sparsifiers.gates import gated, uniform
from sparseirm.sparsifiers.timing import Decided, decides, ordered, positive


@dataclass(frozen=True)
class ProbMask(Decided):
    """Relaxed Bernoulli gates with probabilities projected onto the budget after every step.

    Algorithm 1 of the Sparse IRM paper, after Zhou et al. 2021 (arXiv:2105.00405). The expected number
    of kept weights falls from all of them to the budget between ``shrink_from`` and ``shrink_to``; at
    ``decide_at`` the mask is fixed to the ``budget`` most probable weights, and the rest of the run
    trains these. All times are fractions of the run.

    Attributes:
        budget: K, weights kept at the end.
        shrink_from: until then every weight is kept.
        shrink_to: from then on the budget holds.
        decide_at: from then on the mask is fixed; 1 leaves it random to the end, as the paper does.
        score_lr: learning rate (Adam) of the probabilities.
        score_eps: Adam's epsilon for the probabilities in units of 1 / d; those of weights that matter less
            than that to the loss move slower than others. 0 for the epsilon of the weights.
        first_temperature: temperature of the gates at the start.
        last_temperature: temperature of the gates when the mask is decided (or at the end).
        final: ``top_k`` evaluates and exports the ``budget`` most probable weights; ``sample`` one draw of
            the probabilities, as Algorithm 1 does, which keeps the budget only in expectation.
        gradient_floor: smallest ``s (1 - s)`` the gate's gradient divides by.
        per_layer: keep the same fraction of every layer; by default all layers share the budget.

    Raises:
        SettingError: if the times are not in order within [0, 1] or a rate is not positive.
    """

    budget: int
    shrink_from: float = 0.0
    shrink_to: float = 0.13
    decide_at: float = 0.16
    score_lr: float = 3e-2
    score_eps: float = 3.0
    first_temperature: float = 1.0
    last_temperature: float = 0.03
    gradient_floor: float = 1e-20
    final: str = "top_k"
    per_layer: bool = False

    def __post_init__(self) -> None:
        ordered(self, "shrink_from", "shrink_to", "decide_at")
        positive(self, "score_lr", "first_temperature", "last_temperature")
        if not self.score_eps >= 0:
            raise SettingError(f"`score_eps` must not be negative; got {self.score_eps}.")
        one_of("final mask", self.final, ("top_k", "sample"))
        if self.final == "sample" and self.decide_at < 1:
            raise SettingError(
                "`final` has no effect once the mask is decided; pass `decide_at=1` with sample."
            )

    @property
    def exact(self) -> bool:
        """Whether `mask` has exactly ``budget`` ones; one draw has them in expectation."""
        return self.final == "top_k"

    @property
    def rows(self) -> bool:
        """Whether several runs can be handed over at once, see `sparseirm.core.Sparsifier`."""
        return not self.per_layer

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Probability 1 for every weight."""
        kept = layer_sizes(layout, self.per_layer, weights.device)
        shape = kept["sizes"].shape if self.per_layer else ()
        kept["multiplier"] = torch.zeros(shape, dtype=accumulator(weights.device), device=weights.device)
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
        return gated(weights, probabilities, now.noises, temperature, self.gradient_floor)

    def price(self, memory: Memory) -> float:
        """Nothing is added to the loss."""
        return 0.0

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Project the probabilities onto the budget of the moment; fix the mask when it is time."""
        if "mask" in memory.kept:
            return
        probabilities, sizes = memory.learned["probabilities"], memory.kept.get("sizes")
        d = weights.shape[-1]
        allowed = cubic(now.progress, self.shrink_from, self.shrink_to, d, self.budget)
        memory.kept["multiplier"] = project_within(probabilities, allowed, memory.kept["multiplier"], sizes)
        if decides(now, self.decide_at):
            memory.kept["mask"] = best(probabilities, self.budget, sizes).to(weights.dtype)

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` most probable weights, or the run's one draw of them."""
        probabilities = memory.learned["probabilities"].detach()
        if "mask" in memory.kept:
            return memory.kept["mask"].bool()
        if "draw" in memory.kept:
            return memory.kept["draw"] < probabilities
        return best(probabilities, self.budget, memory.kept.get("sizes"))

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)
