"""What sparsifiers share whose memory holds the mask of the moment."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sparseirm.core import Memory, Moment


class Masked:
    """Runs with ``memory.kept["mask"]``, bool ``(d,)``, and learns nothing but the weights."""

    score_lr: ClassVar[float] = 0.0

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """The weights under the mask of the moment."""
        return weights * memory.kept["mask"]

    def price(self, memory: Memory) -> float:
        """Nothing is added to the loss."""
        return 0.0

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The mask of the moment."""
        return memory.kept["mask"]

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)
