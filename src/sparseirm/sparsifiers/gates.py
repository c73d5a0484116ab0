"""Relaxed Bernoulli gates times weights, forward and analytic backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from sparseirm.sparsifiers.projection import CHUNK

SMALLEST, LARGEST = 2.0**-25, 1 - 2.0**-24
"""Uniform draws are kept inside the open interval (0, 1) that float32 can tell apart."""


def uniform(like: Tensor, noise: Generator) -> Tensor:
    """Uniform draws in the open interval (0, 1), in the shape of ``like``.

    >>> uniform(torch.zeros(2), torch.Generator().manual_seed(0)).round(decimals=4)
    tensor([0.4963, 0.7682])
    """
    return torch.rand(like.shape, generator=noise, device=noise.device).to(like).clamp_(SMALLEST, LARGEST)


def gated(
    weights: Tensor,
    probabilities: Tensor,
    u: Tensor | Generator | Sequence[Generator],
    temperature: float,
    floor: float,
) -> Tensor:
    """Weights times relaxed gates: ``w * m`` with ``m = sigmoid((logit(s) + logit(u)) / tau)``.

    Line 5-7 of Algorithm 1: the difference of two Gumbel(0, 1) draws is the logistic noise ``logit(u)``,
    so one uniform draw is enough. The gradient is ``dL/dw = g m`` and
    ``dL/ds = g w m (1 - m) / (tau max(s (1 - s), floor))``. At s = 0 both gate and ``dL/ds`` are 0, which is
    the limit for tau < 1; for tau = 1 the limit of the derivative is ``g w u / (1 - u)``.

    Args:
        weights: ``(d,)`` float32, or ``(R, d)`` for R runs.
        probabilities: float32 in [0, 1] of the same shape, the probability that a weight is kept.
        u: uniform draws in (0, 1) of the same shape, one per gate; or a generator, of every row one,
            to draw what `uniform` would without holding all of it.
        temperature: tau > 0; the gates become 0 or 1 as it falls.
        floor: smallest ``s (1 - s)`` that the gradient divides by; it bounds the heavy tail near 0 and 1.

    Returns:
        Effective weights of the same shape, differentiable in ``weights`` and ``probabilities``.

    Example:
        >>> half = torch.tensor([0.5])
        >>> gated(torch.tensor([2.0]), half, torch.tensor([0.75]), temperature=1.0, floor=0.0)
        tensor([1.5000])
    """
    product: Tensor = _Gated.apply(weights, probabilities, u, temperature, floor)
    return product


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        probabilities: Tensor,
        u: Tensor | Generator | Sequence[Generator],
        temperature: float,
        floor: float,
    ) -> Tensor:
        gates, product = torch.empty_like(weights), torch.empty_like(weights)
        pieces = _chunks(weights, probabilities, gates, product)
        for (w, s, m, out), r in zip(pieces, _draws(u, weights), strict=True):
            torch.mul(s, r, out=m).div_((1 - s).mul_(1 - r))
            m.log_().div_(temperature).sigmoid_()
            torch.mul(w, m, out=out)
        ctx.save_for_backward(weights, probabilities, gates)
        ctx.temperature, ctx.floor = temperature, floor
        return product

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, probabilities, gates = ctx.saved_tensors
        grad_w, grad_s = torch.empty_like(weights), torch.empty_like(weights)
        for g, w, s, m, gw, gs in _chunks(
            grads[0].contiguous(), weights, probabilities, gates, grad_w, grad_s
        ):
            torch.mul(g, m, out=gw)
            spread = (1 - s).mul_(s).clamp_min_(max(ctx.floor, torch.finfo(s.dtype).tiny))
            torch.mul(gw, w, out=gs).mul_(1 - m).div_(spread).div_(ctx.temperature)
        return grad_w, grad_s, None, None, None


def _draws(u: Tensor | Generator | Sequence[Generator], like: Tensor) -> Iterable[Tensor]:
    if isinstance(u, Tensor):
        return _pieces(u)
    each = (u,) if isinstance(u, Generator) else u
    rows = zip(_rows(like), each, strict=True)
    return (uniform(piece, noise) for row, noise in rows for piece in torch.split(row, CHUNK))


def _chunks(*vectors: Tensor) -> zip[tuple[Tensor, ...]]:
    return zip(*map(_pieces, vectors), strict=True)


def _pieces(vectors: Tensor) -> list[Tensor]:
    """Views of a vector, or of every row of a matrix, that fit into the cache."""
    return [piece for row in _rows(vectors) for piece in torch.split(row, CHUNK)]


def _rows(vectors: Tensor) -> tuple[Tensor, ...]:
    return (vectors,) if vectors.ndim == 1 else vectors.unbind()
