"""L0 regularisation with hard concrete gates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment
from sparseirm.schedules import cubic
from sparseirm.sparsifiers.budgets import raised
from sparseirm.sparsifiers.gates import uniform
from sparseirm.sparsifiers.projection import top_k
from sparseirm.sparsifiers.timing import Decided, decides, ordered, positive, within


def hard_concrete(log_alpha: Tensor, u: Tensor, temperature: float, stretch: float) -> Tensor:
    """Gates in [0, 1] that are exactly 0 or 1 with positive probability.

    ``clip((1 + 2 c) sigmoid((log_alpha + logit(u)) / beta) - c, 0, 1)``: Louizos et al. 2018
    (arXiv:1712.01312), equations 10 and 11, with gamma = -c and zeta = 1 + c.

    Args:
        log_alpha: ``(d,)``, the larger the more likely open.
        u: ``(d,)`` uniform draws in (0, 1); 1/2 gives a deterministic gate at temperature 1.
        temperature: beta.
        stretch: c, how far the sigmoid reaches beyond 0 and 1.

    Returns:
        ``(d,)`` gates, differentiable in ``log_alpha`` where they are neither 0 nor 1.

    Example:
        >>> hard_concrete(torch.tensor([-9.0, 0.0, 9.0]), torch.tensor(0.5), 2 / 3, 0.1)
        tensor([0.0000, 0.5000, 1.0000])
    """
    return ((1 + 2 * stretch) * torch.sigmoid((log_alpha + u.logit()) / temperature) - stretch).clamp(0, 1)


def open_probability(log_alpha: Tensor, temperature: float, stretch: float) -> Tensor:
    """Probability that a gate is not 0, whose sum is the expected L0 norm; ``(d,)``, equation 12."""
    return torch.sigmoid(log_alpha - temperature * math.log(stretch / (1 + stretch)))


@dataclass(frozen=True)
class HardConcrete(Decided):
    """Learned gates per weight, and a price on the expected number of open ones.

    The price is ``multiplier * E[L0] / d``. Louizos et al. leave its weight to the user; here it is the
    multiplier of the constraint ``E[L0] <= allowed``, where ``allowed`` falls from d to K along the cubic
    density between ``shrink_from`` and ``shrink_to``. It rises with the excess over what is allowed and
    returns to 0 as soon as there is none (`budgets.raised`). At ``decide_at`` the mask is fixed to the K
    weights whose gates are most open, their weights take in their gates, and the rest of the run trains
    these. All times are fractions of the run.

    Attributes:
        budget: K, weights kept at the end.
        shrink_from: until then the price is zero.
        shrink_to: from then on the budget is all that is allowed.
        decide_at: from then on the mask is fixed; 1 leaves it random to the end.
        score_lr: learning rate (Adam) of ``log_alpha``.
        multiplier_lr: what one step at an excess of all d weights adds to the multiplier.
        first_open: sigmoid of ``log_alpha`` at the start, up to a little noise.
        temperature: beta of the gates.
        stretch: c of the gates, see `hard_concrete`.

    Raises:
        SettingError: if the times are not in order within [0, 1] or another value is out of range.
    """

    budget: int
    shrink_from: float = 0.0
    shrink_to: float = 0.13
    decide_at: float = 0.16
    score_lr: float = 3e-2
    multiplier_lr: float = 0.3
    first_open: float = 0.9
    temperature: float = 2 / 3
    stretch: float = 0.1

    def __post_init__(self) -> None:
        ordered(self, "shrink_from", "shrink_to", "decide_at")
        positive(self, "score_lr", "multiplier_lr", "temperature", "stretch")
        within(self, "first_open")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Every gate about as open as ``first_open`` says, and no price."""
        spread = torch.randn(weights.shape, generator=noise, device=noise.device).to(weights)
        log_alpha = math.log(self.first_open / (1 - self.first_open)) + 0.01 * spread
        return Memory({"log_alpha": log_alpha}, {"multiplier": weights.new_zeros(())})

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """One draw of gates times the weights; the fixed mask once it is decided."""
        if "mask" in memory.kept:
            return weights * memory.kept["mask"]
        u = uniform(weights, now.noise)
        return weights * hard_concrete(memory.learned["log_alpha"], u, self.temperature, self.stretch)

    def price(self, memory: Memory) -> Tensor | float:
        """``multiplier * E[L0] / d``, in units of the loss; nothing once the mask is decided."""
        return 0.0 if "mask" in memory.kept else memory.kept["multiplier"] * self._density(memory)

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Adapt the price; fix the mask when it is time."""
        if "mask" in memory.kept:
            return
        allowed = cubic(now.progress, self.shrink_from, self.shrink_to, 1.0, self.budget / weights.numel())
        excess = self._density(memory) - allowed
        memory.kept["multiplier"] = raised(memory.kept["multiplier"], excess, self.multiplier_lr)
        if decides(now, self.decide_at):
            mask = self.mask(weights, memory)
            weights.mul_(self._gates(memory))
            memory.kept["mask"] = mask

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` weights whose gates are most open."""
        if "mask" in memory.kept:
            return memory.kept["mask"]
        return top_k(memory.learned["log_alpha"].detach(), self.budget)

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask times their gates without noise (equation 13), others zero."""
        mask = self.mask(weights, memory)
        return weights * mask if "mask" in memory.kept else weights * self._gates(memory) * mask

    def _gates(self, memory: Memory) -> Tensor:
        log_alpha = memory.learned["log_alpha"].detach()
        return hard_concrete(log_alpha, log_alpha.new_tensor(0.5), 1.0, self.stretch)

    def _density(self, memory: Memory) -> Tensor:
        return open_probability(memory.learned["log_alpha"], self.temperature, self.stretch).mean()
