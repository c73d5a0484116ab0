"""Structured ProbMask: one probability per group of weights, which stay or go together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Generator, Size, Tensor

from sparseirm.core import Layout, Memory, Moment, SettingError
from sparseirm.registry import one_of
from sparseirm.sparsifiers.probmask import ProbMask
from sparseirm.sparsifiers.projection import top_k

GROUPS: dict[str, Callable[[int, int, Size], int | None]] = {
    "input": lambda layer, last, shape: 1 if layer == 0 else None,
    "neuron": lambda layer, last, shape: 0 if layer < last and len(shape) == 2 else None,
    "channel": lambda layer, last, shape: 0 if layer < last and len(shape) > 2 else None,
}
"""Name to the axis of a tensor along which its groups lie, or None if it has no gates."""


def groups_of(layout: Layout, kind: str) -> Tensor:
    """Index of the group of each weight.

    Args:
        layout: the maskable tensors, in the order of the model.
        kind: ``input``, one group per input of the first layer (its columns: Phi of the paper's section
            3.2); ``neuron``, one per output unit of each linear layer (its rows) but the last layer;
            ``channel``, one per output channel of each convolution but the last layer.

    Returns:
        int64 ``(d,)``, -1 for a weight that has no gate and always stays.

    Raises:
        SettingError: if the model has no such group.

    Example:
        >>> layout = Layout(("a", "b"), (torch.Size([2, 3]), torch.Size([1, 2])))
        >>> groups_of(layout, "input").tolist(), groups_of(layout, "neuron").tolist()
        ([0, 1, 2, 0, 1, 2, -1, -1], [0, 0, 0, 1, 1, 1, -1, -1])
    """
    axis_of = GROUPS[one_of("kind of group", kind, GROUPS)]
    pieces, n = [], 0
    for layer, shape in enumerate(layout.shapes):
        axis = axis_of(layer, len(layout.shapes) - 1, shape)
        if axis is None:
            pieces.append(torch.full(shape, -1))
            continue
        along = [-1 if place == axis else 1 for place in range(len(shape))]
        pieces.append(torch.arange(n, n + shape[axis]).view(along).expand(shape))
        n += shape[axis]
    if n == 0:
        raise SettingError(f"this model has no {kind} to mask; choose other `groups`: {', '.join(GROUPS)}.")
    return torch.cat([piece.reshape(-1) for piece in pieces])


@dataclass(frozen=True)
class StructuredProbMask(ProbMask):
    """A `ProbMask` over groups of weights; weights outside the groups always stay.

    The final mask holds whole groups only: the most probable ones, as many as fit. So ``exact`` is False:
    it may keep fewer weights than the budget. Until then the expected number of groups is held at what fits
    on average, which is the same if all groups have one size. Biases have no gate: a unit without weights
    still gives the constant of its bias.

    Attributes:
        groups: ``input``, ``neuron`` or ``channel``, see `groups_of`.
        budget_in: ``weights``: ``budget`` counts all maskable weights kept, those without a gate included;
            ``groups``: it counts groups.

    All other attributes are those of `ProbMask`.

    Raises:
        SettingError: if a setting is out of range, or a budget leaves no room for a group (at ``start``).
    """

    groups: str = "neuron"
    budget_in: str = "weights"
    exact = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind of group", self.groups, GROUPS)
        one_of("unit of a budget", self.budget_in, ("weights", "groups"))
        if self.per_layer:
            raise SettingError("`per_layer` has no effect on groups; leave it out.")

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """Probability 1 for every group."""
        group = groups_of(layout, self.groups).to(weights.device)
        group_sizes = torch.bincount(group[group >= 0])
        kept = {"group": group, "group_sizes": group_sizes}
        self._check(kept)
        memory = self._gates(kept).start(weights.new_ones(len(group_sizes)), layout, noise)
        memory.kept |= kept
        return memory

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """One draw of relaxed gates, each times the weights of its group."""
        return weights * _expand(self._gates(memory.kept).effective(_ones(memory), memory, now), memory)

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
            return _expand(self._gates(memory.kept).mask(_ones(memory), memory), memory)
        return _expand(self._fitting(memory), memory)

    def _gates(self, kept: dict[str, Tensor]) -> ProbMask:
        """The `ProbMask` over one weight of value 1 per group."""
        count = self.budget
        if self.budget_in == "weights":
            count = max(1, int(_room(self.budget, kept) / kept["group_sizes"].double().mean()))
        return ProbMask(**{f.name: getattr(self, f.name) for f in fields(ProbMask)} | {"budget": count})

    def _fitting(self, memory: Memory) -> Tensor:
        probabilities = memory.learned["probabilities"].detach()
        if self.budget_in == "groups":
            return top_k(probabilities, self.budget)
        order = probabilities.argsort(descending=True, stable=True)
        fits = memory.kept["group_sizes"][order].cumsum(0) <= _room(self.budget, memory.kept)
        return torch.zeros_like(fits).index_put((order,), fits)

    def _check(self, kept: dict[str, Tensor]) -> None:
        sizes = kept["group_sizes"]
        if self.budget_in == "groups" and not 1 <= self.budget <= len(sizes):
            raise SettingError(f"`budget` must be 1 to {len(sizes)} groups; got {self.budget}.")
        if self.budget_in == "weights" and _room(self.budget, kept) < int(sizes.max()):
            raise SettingError(
                f"`budget` {self.budget} leaves no room for a group of {int(sizes.max())} weights beside the "
                f"{len(kept['group']) - int(sizes.sum())} without a gate. Raise it, or count "
                "`budget_in` groups."
            )


def _room(budget: int, kept: dict[str, Tensor]) -> int:
    """How many weights with a gate a budget in weights allows."""
    return budget - (len(kept["group"]) - int(kept["group_sizes"].sum()))


def _ones(memory: Memory) -> Tensor:
    return torch.ones_like(memory.learned["probabilities"].detach())


def _expand(gates: Tensor, memory: Memory) -> Tensor:
    """From one value per group to one per weight, shape ``(d,)``; those of no group get 1."""
    group = memory.kept["group"] % (len(gates) + 1)
    return torch.cat([gates, torch.ones_like(gates[:1])]).index_select(0, group)
