"""Soft threshold reparameterisation: one learned threshold per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

from sparseirm.core import Layout, Memory, Moment
from sparseirm.schedules import cubic
from sparseirm.sparsifiers.budgets import layer_sizes, raised
from sparseirm.sparsifiers.projection import top_k
from sparseirm.sparsifiers.timing import Decided, decides, ordered, positive


@dataclass(frozen=True)
class SoftThreshold(Decided):
    """Shrinks every weight towards zero by the learned threshold of its layer, and drops what is below.

    ``effective = sign(w) relu(|w| - sigmoid(t))``: Kusupati et al. 2020 (arXiv:2002.03231), equation 5.
    There weight decay on ``t`` decides how many weights remain. Here a budget does: the price of low
    thresholds, ``multiplier * mean(-log sigmoid(t))`` over layers, has a multiplier that rises with the
    density in excess of what is allowed and returns to 0 as soon as there is none (`budgets.raised`).
    What is allowed falls from all to K along the cubic density. At ``decide_at`` the mask is fixed to the
    K weights furthest above their threshold, the weights take in their thresholds, and the rest of the run
    trains these. All times are fractions of the run.

    Attributes:
        budget: K, weights kept at the end.
        shrink_from: until then thresholds have no price.
        shrink_to: from then on the budget is all that is allowed.
        decide_at: from then on the mask is fixed; 1 leaves the thresholds to the end.
        score_lr: learning rate (Adam) of ``t``.
        multiplier_lr: what one step at an excess of all d weights adds to the multiplier.
        first: ``t`` at the start; sigmoid(-5) is 0.0067.

    Raises:
        SettingError: if the times are not in order within [0, 1] or a rate is not positive.
    """

    budget: int
    shrink_from: float = 0.0
    shrink_to: float = 0.13
    decide_at: float = 0.16
    score_lr: float = 3e-2
    multiplier_lr: float = 0.01
    first: float = -5.0

    def __post_init__(self) -> None:
        ordered(self, "shrink_from", "shrink_to", "decide_at")
        positive(self, "score_lr", "multiplier_lr")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """The same low threshold for every layer, and no price."""
        kept = layer_sizes(layout, per_layer=True, device=weights.device)
        kept["multiplier"] = weights.new_zeros(())
        return Memory({"thresholds": weights.new_full(kept["sizes"].shape, self.first)}, kept)

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """What exceeds the thresholds; the weights under the fixed mask once it is decided."""
        if "mask" in memory.kept:
            return weights * memory.kept["mask"]
        return weights.sign() * self._excess(weights, memory).relu()

    def price(self, memory: Memory) -> Tensor | float:
        """The price of low thresholds, in units of the loss; nothing once the mask is decided."""
        if "mask" in memory.kept:
            return 0.0
        return memory.kept["multiplier"] * softplus(-memory.learned["thresholds"]).mean()

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Adapt the price; fix the mask when it is time."""
        if "mask" in memory.kept:
            return
        allowed = cubic(now.progress, self.shrink_from, self.shrink_to, 1.0, self.budget / weights.numel())
        excess = (self._excess(weights, memory) > 0).to(weights.dtype).mean() - allowed
        memory.kept["multiplier"] = raised(memory.kept["multiplier"], excess, self.multiplier_lr)
        if decides(now, self.decide_at):
            mask = self.mask(weights, memory)
            weights.copy_(weights.sign() * self._excess(weights, memory).relu())
            memory.kept["mask"] = mask

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` weights furthest above their threshold."""
        if "mask" in memory.kept:
            return memory.kept["mask"]
        return top_k(self._excess(weights, memory).detach(), self.budget)

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """What the weights under the mask exceed their thresholds by, others zero."""
        mask = self.mask(weights, memory)
        if "mask" in memory.kept:
            return weights * mask
        return weights.sign() * self._excess(weights, memory).detach().relu() * mask

    def _excess(self, weights: Tensor, memory: Memory) -> Tensor:
        thresholds = torch.sigmoid(memory.learned["thresholds"])
        sizes = memory.kept["sizes"]
        return weights.abs() - thresholds.repeat_interleave(sizes, output_size=weights.numel())
