"""Modular Risk Minimization's mask: learned gates, and a fixed price on every one that is open."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError
from sparseirm.sparsifiers.gates import uniform
from sparseirm.sparsifiers.projection import top_k
from sparseirm.sparsifiers.timing import positive, within


@dataclass(frozen=True)
class ModularMask:
    """Relaxed Bernoulli gates with free logits; the expected number of open ones costs something.

    After Zhang et al. 2021 (arXiv:2106.02890). The gate of a weight is
    ``sigmoid((logit + logit(u)) / temperature)`` with a uniform draw u, its probability ``sigmoid(logit)``,
    and the price ``coefficient * E[open] / d``. They keep what is more likely open than not, so that the
    coefficient decides how much that is; here the budget does, and the final mask is its most probable
    weights. A coefficient that leaves about as many open as the budget allows fits best.

    Attributes:
        budget: K, weights kept at the end.
        coefficient: what the loss gains if every gate is open, in units of the loss.
        score_lr: learning rate (Adam) of the logits.
        first_open: probability of every gate at the start.
        temperature: of the gates.

    Raises:
        SettingError: if a value is out of its range.
    """

    budget: int
    coefficient: float = 1.0
    score_lr: float = 3e-2
    first_open: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "score_lr", "temperature")
        within(self, "first_open")
        if not self.coefficient >= 0:
            raise SettingError(f"`coefficient` must be 0 or more; got {self.coefficient}.")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Every gate as open as ``first_open`` says."""
        return Memory({"logits": torch.full_like(weights.detach(), self.first_open).logit()})

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """One draw of gates times the weights."""
        noise = uniform(weights, now.noise).logit()
        return weights * torch.sigmoid((memory.learned["logits"] + noise) / self.temperature)

    def price(self, memory: Memory) -> Tensor:
        """``coefficient * E[open] / d``, in units of the loss."""
        return self.coefficient * memory.learned["logits"].sigmoid().mean()

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Nothing to do."""

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The ``budget`` weights most likely open."""
        return top_k(memory.learned["logits"].detach(), self.budget)

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)
