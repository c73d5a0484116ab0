"""Groups of weights that stay or go together, and the best of them within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor

from sparseirm.core import Layout, SettingError, Tensors
from sparseirm.registry import one_of
from sparseirm.sparsifiers.projection import top_k

GROUPS: dict[str, Callable[[int, int, Size], int | None]] = {
    "input": lambda layer, last, shape: 1 if layer == 0 else None,
    "neuron": lambda layer, last, shape: 0 if layer < last and len(shape) == 2 else None,
    "channel": lambda layer, last, shape: 0 if layer < last and len(shape) > 2 else None,
}
"""Name to the axis of a tensor along which its groups lie, or None if it has no gates."""

UNITS = ("weights", "groups")
"""What a budget may count."""


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
        raise SettingError(f"this model has no {kind} to mask; {_instead(layout)}.")
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _instead(layout: Layout) -> str:
    """The groups a model has, and how to choose them."""
    shapes, last = layout.shapes, len(layout.shapes) - 1
    there = [
        kind
        for kind, axis_of in GROUPS.items()
        if any(axis_of(layer, last, shape) is not None for layer, shape in enumerate(shapes))
    ]
    if not there:
        return "it has no other groups either: choose another sparsifier"
    return f"choose other `groups`: {' or '.join(f'`--sparsifier-options groups {kind}`' for kind in there)}"


def grouped(
    layout: Layout, kind: str, budget: int, budget_in: str, device: torch.device, blocks: Sequence[int] = ()
) -> Tensors:
    """What a memory keeps of its groups: ``group``, as in `groups_of`, and ``group_sizes``.

    Args:
        layout: the maskable tensors, in the order of the model.
        kind: kind of group, see `groups_of`.
        budget: K, which must leave room for at least one group.
        budget_in: what ``budget`` counts, see `UNITS`.
        device: where the tensors go.
        blocks: how many groups in a row are one, such as the inputs of one categorical column; by default
            every group is its own.

    Returns:
        int64 ``(d,)`` and ``(n_groups,)``.

    Raises:
        SettingError: if the model has no such group, ``blocks`` do not add up to the groups there are, or
            the budget has no room for a group.
    """
    group = groups_of(layout, kind).to(device)
    if blocks:
        n = int(group.max()) + 1
        if sum(blocks) != n or min(blocks) < 1:
            raise SettingError(
                f"`blocks` must be positive and add up to the {n} groups; got {tuple(blocks)}."
            )
        block = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(blocks)).to(device)
        group = torch.where(group >= 0, block[group], -1)
    kept = {"group": group, "group_sizes": torch.bincount(group[group >= 0])}
    sizes = kept["group_sizes"]
    if budget_in == "groups" and not 1 <= budget <= len(sizes):
        raise SettingError(f"`budget` must be 1 to {len(sizes)} groups; got {budget}.")
    if budget_in == "weights" and room(budget, kept) < int(sizes.max()):
        raise SettingError(
            f"`budget` {budget} leaves no room for a group of {int(sizes.max())} weights beside the "
            f"{len(group) - int(sizes.sum())} without a gate. Raise it, or count `budget_in` groups."
        )
    return kept


def layers_of(layout: Layout, kept: Tensors) -> Tensor:
    """Which of the maskable tensors each group lies in: int64 ``(n_groups,)``."""
    group, sizes = kept["group"], torch.tensor(layout.sizes, device=kept["group"].device)
    layer = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    gated = group >= 0
    return torch.zeros_like(kept["group_sizes"]).index_put((group[gated],), layer[gated])


def room(budget: int, kept: Tensors) -> int:
    """How many weights with a gate a budget in weights allows."""
    return budget - (len(kept["group"]) - int(kept["group_sizes"].sum()))


def count(budget: int, budget_in: str, kept: Tensors) -> int:
    """How many groups a budget allows, if all have the mean size; at least one."""
    if budget_in == "groups":
        return budget
    return max(1, int(room(budget, kept) / kept["group_sizes"].double().mean()))


def fitting(scores: Tensor, budget: int, budget_in: str, kept: Tensors) -> Tensor:
    """The groups of the largest scores, as many as fit the budget: bool ``(n_groups,)``."""
    if budget_in == "groups":
        return top_k(scores, budget)
    order = scores.argsort(descending=True, stable=True)
    fits = kept["group_sizes"][order].cumsum(0) <= room(budget, kept)
    return torch.zeros_like(fits).index_put((order,), fits)


def expand(gates: Tensor, kept: Tensors) -> Tensor:
    """From one value per group to one per weight, shape ``(d,)``; those of no group get 1."""
    group = kept["group"] % (len(gates) + 1)
    return torch.cat([gates, torch.ones_like(gates[:1])]).index_select(0, group)
