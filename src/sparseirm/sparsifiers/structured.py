"""Structured ProbMask: one probability per group of weights, which stay or go together."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError, Tensors
from sparseirm.registry import one_of
from sparseirm.sparsifiers.groups import GROUPS, UNITS, count, expand, fitting, grouped
from sparseirm.sparsifiers.probmask import ProbMask


@dataclass(frozen=True)
class StructuredProbMask(ProbMask):
    """A `ProbMask` over groups of weights; weights outside the groups always stay.

    The final mask holds whole groups only: the most probable ones, as many as fit. So ``exact`` is False:
    it may keep fewer weights than the budget. Until then the expected number of groups is held at what fits
    on average, which is the same if all groups have one size. Biases have no gate: a unit without weights
    still gives the constant of its bias.

    Attributes:
        groups: ``input``, ``neuron`` or ``channel``, see `sparseirm.sparsifiers.groups.groups_of`.
        budget_in: ``weights``: ``budget`` counts all maskable weights kept, those without a gate included;
            ``groups``: it counts groups.
        score_eps: as of `ProbMask`, with d groups; by default the epsilon of the weights.

    All other attributes are those of `ProbMask`.

    Raises:
        SettingError: if a setting is out of range, or a budget leaves no room for a group (at ``start``).
    """

    groups: str = "neuron"
    budget_in: str = "weights"
    score_eps: float = 0.0
    exact = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind of group", self.groups, GROUPS)
        one_of("unit of a budget", self.budget_in, UNITS)
        if self.per_layer:
            raise SettingError("`per_layer` has no effect on groups; leave it out.")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Probability 1 for every group."""
        kept = grouped(layout, self.groups, self.budget, self.budget_in, weights.device)
        memory = self._gates(kept).start(weights.new_ones(len(kept["group_sizes"])), layout, noise)
        memory.kept |= kept
        return memory

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """One draw of relaxed gates, each times the weights of its group."""
        return weights * expand(self._gates(memory.kept).effective(_ones(memory), memory, now), memory.kept)

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        """Project the probabilities onto the budget of the moment; fix the mask when it is time."""
        if "mask" in memory.kept:
            return
        self._gates(memory.kept).after_step(_ones(memory), memory, now, None)
        if "mask" in memory.kept:
            memory.kept["mask"] = self._fitting(memory).to(weights.dtype)

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The weights of the most probable groups that fit the budget, and those of no group."""
        if "mask" in memory.kept or "draw" in memory.kept:
            return expand(self._gates(memory.kept).mask(_ones(memory), memory), memory.kept)
        return expand(self._fitting(memory), memory.kept)

    def _gates(self, kept: Tensors) -> ProbMask:
        """The `ProbMask` over one weight of value 1 per group."""
        given = {f.name: getattr(self, f.name) for f in fields(ProbMask)}
        return ProbMask(**{**given, "budget": count(self.budget, self.budget_in, kept)})

    def _fitting(self, memory: Memory) -> Tensor:
        scores = memory.learned["probabilities"].detach()
        return fitting(scores, self.budget, self.budget_in, memory.kept)


def _ones(memory: Memory) -> Tensor:
    return torch.ones_like(memory.learned["probabilities"].detach())
