"""The best weights within a budget, over all layers together or in every layer alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseirm.core import Layout, Tensors
from sparseirm.sparsifiers.projection import project, top_k


def layer_sizes(layout: Layout, per_layer: bool, device: torch.device) -> Tensors:
    """What a memory keeps so that budgets hold per layer: ``sizes``, int64 ``(n_layers,)``; else nothing."""
    return {"sizes": torch.tensor(layout.sizes, device=device)} if per_layer else {}


def shares(k: int, sizes: list[int]) -> list[int]:
    """Split ``k`` over layers in proportion to their sizes, by largest remainder; it sums to ``k``.

    >>> shares(10, [50, 30, 5])
    [6, 3, 1]
    """
    whole = [k * size // sum(sizes) for size in sizes]
    remainders = [k * size % sum(sizes) for size in sizes]
    first = sorted(range(len(sizes)), key=lambda layer: -remainders[layer])[: k - sum(whole)]
    return [share + (layer in first) for layer, share in enumerate(whole)]


def best(scores: Tensor, k: int, sizes: Tensor | None = None) -> Tensor:
    """Bool mask of exactly ``k`` ones at the largest scores.

    Args:
        scores: ``(d,)``.
        k: number of ones.
        sizes: ``(n_layers,)`` weights of each layer, to keep the same share of every one; None lets all
            layers compete.

    Returns:
        Bool ``(d,)``; ties go to the earlier position.

    Example:
        >>> scores = torch.tensor([3.0, 4.0, 1.0, 2.0])
        >>> best(scores, 2).tolist(), best(scores, 2, torch.tensor([2, 2])).tolist()
        ([True, True, False, False], [False, True, False, True])
    """
    if sizes is None:
        return top_k(scores, k)
    layers = sizes.tolist()
    pieces = zip(torch.split(scores, layers), shares(k, layers), strict=True)
    return torch.cat([top_k(piece, share) for piece, share in pieces])


def project_within(scores: Tensor, k: float, guess: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Project ``scores`` in place onto the budget ``k``, or every layer onto its share of it.

    Args:
        scores: ``(d,)``, changed in place.
        k: largest allowed sum.
        guess: multiplier of the previous step, ``()``, or ``(n_layers,)`` with ``sizes``.
        sizes: as in `best`.

    Returns:
        The multiplier found, in the shape of ``guess``.
    """
    if sizes is None:
        return project(scores, k, guess)
    layers = zip(torch.split(scores, sizes.tolist()), guess, strict=True)
    return torch.stack([project(layer, k * layer.numel() / scores.numel(), v) for layer, v in layers])


def raised(multiplier: Tensor, excess: Tensor, rate: float) -> Tensor:
    """A Lagrange multiplier after one step: up by ``rate * excess``, or back to zero within the budget.

    Dual ascent with restarts, Gallego-Posada et al. 2022 (arXiv:2208.04425).

    Args:
        multiplier: ``()``, what one unit of density costs now.
        excess: ``()``, density minus the density allowed.
        rate: what one step at an excess of 1 adds.

    Returns:
        ``()``, at least 0.

    Example:
        >>> [raised(torch.tensor(1.0), torch.tensor(e), rate=0.5).item() for e in (0.5, -0.1)]
        [1.25, 0.0]
    """
    return torch.where(excess > 0, multiplier + rate * excess, 0.0)
