"""Masks that never change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError
from sparseirm.sparsifiers.budgets import best, layer_sizes
from sparseirm.sparsifiers.gates import uniform
from sparseirm.sparsifiers.masked import Masked


class _Fixed(Masked, ABC):
    final_from: ClassVar[float] = 0.0

    @abstractmethod
    def chosen(self, weights: Tensor, layout: Layout, noise: Generator) -> Tensor:
        """The mask, bool ``(d,)``."""

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """The mask."""
        return Memory({}, {"mask": self.chosen(weights, layout, noise)})

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Nothing to do."""
        return


@dataclass(frozen=True)
class RandomMask(_Fixed):
    """Keeps ``budget`` weights drawn before the first step: the baseline of every sparsifier.

    Attributes:
        budget: K, weights kept.
        per_layer: draw the same fraction of every layer; by default every weight has the same chance.
    """

    budget: int
    per_layer: bool = False
    rows: ClassVar[bool] = True

    def chosen(self, weights: Tensor, layout: Layout, noise: Generator) -> Tensor:
        """``budget`` weights at random."""
        sizes = layer_sizes(layout, self.per_layer, weights.device)
        return best(uniform(weights, noise), self.budget, sizes.get("sizes"))


@dataclass(frozen=True)
class FixedMask(_Fixed):
    """Keeps the weights of a given mask, to train a subnetwork found before.

    Attributes:
        budget: K, the number of ones in ``given``.
        given: bool ``(d,)``, in the order of the network's `Layout`; None if an earlier stage of the run
            finds it, and puts it into the memory (`sparseirm.training.stages.enter`).

    Raises:
        SettingError: if ``given`` is not a bool vector of ``budget`` ones, or not as long as the weights.

    Example:
        >>> import torch
        >>> FixedMask(2, torch.tensor([True, False, True])).budget
        2
    """

    budget: int
    given: Tensor | None = field(default=None, repr=False, compare=False)
    rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.given is None:
            return
        ones = int(self.given.count_nonzero())
        if str(self.given.dtype) != "torch.bool" or self.given.ndim != 1 or ones != self.budget:
            raise SettingError(
                f"`given` must be a bool vector of `budget` ({self.budget}) ones; got {self.given.dtype} of "
                f"shape {tuple(self.given.shape)} with {ones}."
            )

    def chosen(self, weights: Tensor, layout: Layout, noise: Generator) -> Tensor:
        """A copy of the mask, on the device of the weights; all zeros while it is not known."""
        if self.given is None:
            return torch.zeros_like(weights, dtype=torch.bool)
        if len(self.given) != len(weights):
            raise SettingError(
                f"`given` must have an entry for each of the {len(weights)} maskable weights; "
                f"got {len(self.given)}."
            )
        return self.given.clone().to(weights.device)
