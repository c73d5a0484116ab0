"""Edge-popup: the mask is the top K of learned scores, with a straight-through gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment
from sparseirm.sparsifiers.budgets import best, layer_sizes
from sparseirm.sparsifiers.gates import uniform
from sparseirm.sparsifiers.timing import Decided, decides, ordered, positive


@dataclass(frozen=True)
class EdgePopup(Decided):
    """Uses the ``budget`` weights of largest score in every step; the weights are trained as well.

    Ramanujan et al. 2020 (arXiv:1911.13299), section 3: the step function has the derivative of the
    identity, so ``dL/ds = w dL/d(effective)`` for every score, kept or not, and
    ``dL/dw = m dL/d(effective)``. There the weights stay as they were drawn. Scores start uniform in
    (0, 1), so the first mask is random.

    Attributes:
        budget: K, weights kept from the first step on.
        decide_at: fraction of the run from which the mask is fixed; 1 lets it change to the end.
        score_lr: learning rate (Adam) of the scores.
        per_layer: keep the same fraction of every layer; by default all layers share the budget.

    Raises:
        SettingError: if ``decide_at`` is not in (0, 1] or ``score_lr`` is not positive.
    """

    budget: int
    decide_at: float = 0.16
    score_lr: float = 3e-2
    per_layer: bool = False

    def __post_init__(self) -> None:
        ordered(self, "decide_at")
        positive(self, "score_lr")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """A random score for every weight."""
        return Memory(
            {"scores": uniform(weights, noise)}, layer_sizes(layout, self.per_layer, weights.device)
        )

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """The weights under the mask of the moment."""
        mask = self.mask(weights, memory)
        if "mask" in memory.kept:
            return weights * mask
        scores = memory.learned["scores"]
        return weights * (mask + (scores - scores.detach()))

    def price(self, memory: Memory) -> float:
        """Nothing is added to the loss."""
        return 0.0

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Fix the mask when it is time."""
        if "mask" not in memory.kept and decides(now, self.decide_at):
            memory.kept["mask"] = self.mask(weights, memory)

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` weights of largest score."""
        if "mask" in memory.kept:
            return memory.kept["mask"]
        return best(memory.learned["scores"].detach(), self.budget, memory.kept.get("sizes"))

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)
