"""No sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment


@dataclass(frozen=True)
class Dense:
    """Keeps every weight: ERM and IRM as usual.

    Attributes:
        budget: d, the number of maskable weights.
    """

    budget: int
    score_lr: ClassVar[float] = 0.0
    final_from: ClassVar[float] = 0.0
    rows: ClassVar[bool] = True

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Nothing to remember."""
        return Memory()

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """The weights themselves."""
        return weights

    def price(self, memory: Memory) -> float:
        """Nothing is added to the loss."""
        return 0.0

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Nothing to do."""

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """All ones."""
        return torch.ones_like(weights, dtype=torch.bool)

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)
