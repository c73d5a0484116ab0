"""Gradual magnitude pruning of whole groups: inputs, neurons or channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment
from sparseirm.registry import one_of
from sparseirm.schedules import cubic
from sparseirm.sparsifiers.groups import GROUPS, UNITS, expand, fitting, grouped, layers_of
from sparseirm.sparsifiers.timing import done, due, ordered, within


@dataclass(frozen=True)
class GroupMagnitude:
    """Keeps the groups of largest weights, ever fewer along the cubic density; no group comes back.

    The size of a group is the mean square of its weights beside that of all groups of its layer in use, so
    that no layer dies while others have many. It says how much a group is used only if weights start small
    beside what they learn; for gates on inputs start the first layer small, as `sparseirm.estimator` does.
    Weights outside the groups always stay, and so do biases.

    Attributes:
        budget: K, kept from ``shrink_to`` on.
        groups: ``input``, ``neuron`` or ``channel``, see `sparseirm.sparsifiers.groups.groups_of`.
        budget_in: ``weights``: ``budget`` counts all maskable weights kept, those without a gate included,
            and the mask may keep fewer; ``groups``: it counts groups.
        blocks: how many groups in a row stay or go together, such as the inputs of one categorical column;
            by default every group is its own.
        every: time between two new masks.
        shrink_from: until then every group is kept.
        shrink_to: from then on the budget holds and the mask is fixed.

    All times are fractions of the run.

    Raises:
        SettingError: if a setting is out of range, or a budget leaves no room for a group (at ``start``).
    """

    budget: int
    groups: str = "neuron"
    budget_in: str = "weights"
    blocks: tuple[int, ...] = ()
    every: float = 0.01
    shrink_from: float = 0.0
    shrink_to: float = 0.13
    score_lr: ClassVar[float] = 0.0
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of("kind of group", self.groups, GROUPS)
        one_of("unit of a budget", self.budget_in, UNITS)
        ordered(self, "shrink_from", "shrink_to")
        within(self, "every")

    @property
    def final_from(self) -> float:
        """The mask is decided then, see `Sparsifier`."""
        return self.shrink_to

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """All groups, unless the budget holds from the start."""
        kept = grouped(layout, self.groups, self.budget, self.budget_in, weights.device, self.blocks)
        kept["group_layer"] = layers_of(layout, kept)
        memory = Memory({}, {**kept, "use": torch.ones_like(kept["group_sizes"], dtype=torch.bool)})
        if self.shrink_to == 0:
            memory.kept["use"] = self._fitting(weights.detach(), memory, self.budget)
        return memory

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """The weights of the groups in use."""
        return weights * expand(memory.kept["use"], memory.kept)

    def price(self, memory: Memory) -> float:
        """Nothing is added to the loss."""
        return 0.0

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Drop the smallest groups if that is due and the mask is not final."""
        over = done(now)
        if now.progress < self.shrink_to and (due(now, self.every) or over >= self.shrink_to):
            whole = weights.numel() if self.budget_in == "weights" else len(memory.kept["use"])
            allowed = round(cubic(over, self.shrink_from, self.shrink_to, whole, self.budget))
            memory.kept["use"] = self._fitting(weights, memory, allowed)

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights of the largest groups in use that fit the budget, and those of no group."""
        return expand(self._fitting(weights, memory, self.budget), memory.kept)

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights under the mask, others zero."""
        return weights * self.mask(weights, memory)

    def _fitting(self, weights: Tensor, memory: Memory, budget: int) -> Tensor:
        return memory.kept["use"] & fitting(_sizes(weights, memory), budget, self.budget_in, memory.kept)


def _sizes(weights: Tensor, memory: Memory) -> Tensor:
    """Mean square of each group over the mean of the groups of its layer in use; -1 if it is not in use."""
    kept = memory.kept
    use, group, layer = kept["use"], kept["group"], kept["group_layer"]
    gated = group >= 0
    squares = weights.new_zeros(len(use)).index_add_(0, group[gated], weights[gated].square())
    squares /= kept["group_sizes"]
    layers = weights.new_zeros(2, int(layer.max()) + 1)
    of_layer, n = layers.index_add_(1, layer, torch.stack([squares * use, use.to(squares.dtype)]))
    sizes: Tensor = squares / (of_layer / n)[layer]
    return sizes.nan_to_num().masked_fill(~use, -1)
