"""Euclidean projection onto ``{s in [0, 1]^d : sum s <= K}``, exact, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseirm.core import accumulator, at_hand

PASSES = 16
"""Newton passes where the host must not wait for the device: enough for one weight in ten thousand."""

LONGEST = 64
"""Passes at most on a CPU, which stops as soon as the sum is right: after 8 for budgets of 1 % and more."""

CHUNK = 1 << 16
"""Elements per piece, so that no temporary is larger than the cache (and large ones cost page faults)."""


def project(scores: Tensor, budget: Tensor | float, guess: Tensor | None = None) -> Tensor:
    """Project ``scores`` in place onto the capped simplex; return the multiplier found.

    The projection is ``clip(s - v, 0, 1)`` with ``v = 0`` if that already sums to at most K, otherwise
    with the ``v`` that makes the sum equal K (Zhou et al. 2021, arXiv:2105.00405, Theorem 1). The root
    is found by a Newton iteration kept inside a bracket by secant and halving steps (cf. Cominetti et
    al. 2014): ``h(v) = sum clip(s - v, 0, 1) - K`` is piecewise linear and does not increase.

    Args:
        scores: ``(d,)`` float tensor, changed in place; all layers together, so the budget is global. Or
            ``(R, d)``, whose rows are projected each by itself.
        budget: K, the largest allowed sum (number of weights kept in expectation), ``0 <= K``.
        guess: ``()`` multiplier of the previous step, which saves passes, or ``(R,)``; None starts from 0.

    Returns:
        ``()`` or ``(R,)`` float64 tensor: the multiplier ``v >= 0``.

    Example:
        >>> s = torch.tensor([0.9, 0.8, 0.1])
        >>> v = project(s, 1.0)
        >>> s, round(float(v), 4)
        (tensor([0.5500, 0.4500, 0.0000]), 0.35)
    """
    exact = accumulator(scores.device)
    low = torch.zeros(scores.shape[:-1], dtype=exact, device=scores.device)
    k = low + budget  # to copy a number from the host would wait for the device
    high = scores.amax(-1).to(exact).clamp_min(0)
    excess_low, excess_high = _total(scores, low) - k, -k
    inside = excess_low <= 0
    v = low if guess is None else guess.to(exact).clamp(low, high)
    v = torch.where(inside, low, torch.where(k <= 0, high, v))
    looks = at_hand(scores.device)
    for turn in range(LONGEST if looks else PASSES):
        if looks and inside.all():
            break
        excess = _total(scores, v) - k
        if looks and (excess.abs() <= 1e-12 * k).all():
            break
        above = excess > 0
        slope = _moving(scores, v, above)
        rounding = 4 * torch.finfo(exact).eps * v * slope
        settled = inside | (excess.abs() <= 1e-12 * k + rounding)
        if looks and settled.all():
            break
        low, excess_low = torch.where(above, v, low), torch.where(above, excess, excess_low)
        high, excess_high = torch.where(above, high, v), torch.where(above, excess_high, excess)
        newton = v + excess / slope.clamp_min(1)
        secant = low + (high - low) * excess_low / (excess_low - excess_high).clamp_min(
            torch.finfo(exact).tiny
        )
        rescue = secant if turn % 2 == 0 else (low + high) / 2
        stray = (slope == 0) | (newton <= low) | (newton >= high)
        v = torch.where(settled, v, torch.where(stray, rescue, newton))
    for piece in _pieces(scores):
        piece.copy_(piece.to(exact, copy=True).sub_(v.unsqueeze(-1)).clamp_(0, 1))
    return v


def _pieces(scores: Tensor) -> tuple[Tensor, ...]:
    """Columns of all rows, as many as `CHUNK` elements allow."""
    return torch.split(scores, max(1, CHUNK * scores.shape[-1] // scores.numel()), -1)


def _total(scores: Tensor, v: Tensor) -> Tensor:
    """Sum of ``clip(s - v, 0, 1)``."""
    total = torch.zeros_like(v)
    for piece in _pieces(scores):
        total = total + piece.to(v.dtype, copy=True).sub_(v.unsqueeze(-1)).clamp_(0, 1).sum(-1)
    return total


def _moving(scores: Tensor, v: Tensor, above: Tensor) -> Tensor:
    """How many entries of ``clip(s - v, 0, 1)`` change as ``v`` rises (if ``above``) or falls."""
    first, last = _below(v, scores.dtype, above), _below(v + 1, scores.dtype, above)
    count = torch.zeros_like(v)
    first, last = first.unsqueeze(-1), last.unsqueeze(-1)
    for piece in _pieces(scores):
        ones = torch.empty_like(piece)  # numbers, because adding truth values is slower than comparing
        count = count + torch.gt(piece, first, out=ones).sum(-1) - torch.gt(piece, last, out=ones).sum(-1)
    return count


def _below(v: Tensor, dtype: torch.dtype, equal: Tensor) -> Tensor:
    """The largest number of a type that is at most ``v``, or less than ``v`` unless ``equal``."""
    near = v.to(dtype)
    exact = near.to(v.dtype)
    return torch.where((exact > v) | ((exact == v) & ~equal), near.nextafter(near - torch.inf), near)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Bool mask of exactly ``k`` ones at the largest scores of every row; ties go to the earlier position.

    >>> top_k(torch.tensor([0.5, 0.9, 0.5, 0.5]), 2).tolist()
    [True, True, False, False]
    """
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.shape[-1] - k + 1, -1, keepdim=True).values
    above, ties = scores > threshold, scores == threshold
    return above | (ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
