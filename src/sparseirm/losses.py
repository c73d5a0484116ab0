"""Losses per sample with closed-form slopes: binary and multi-class cross-entropy, squared error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparseirm.core import Loss


def _binary(logits: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")


def _binary_slope(logits: Tensor, y: Tensor) -> Tensor:
    return (torch.sigmoid(logits) - y) * logits


def _multiclass(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y.long(), reduction="none")


def _multiclass_slope(logits: Tensor, y: Tensor) -> Tensor:
    chosen = logits.gather(1, y.long()[:, None])[:, 0]
    return (logits.softmax(1) * logits).sum(1) - chosen


BINARY = Loss("binary", _binary, _binary_slope, lambda z: (z > 0).long())
"""Cross-entropy of one logit per sample with labels 0 and 1, in nats."""

MULTICLASS = Loss("multiclass", _multiclass, _multiclass_slope, lambda z: z.argmax(1))
"""Cross-entropy of ``k`` logits per sample with labels ``0 .. k - 1``, in nats."""

SQUARED = Loss(
    "squared", lambda z, y: (z - y).square(), lambda z, y: 2 * (z - y) * z, lambda z: z, classifies=False
)
"""Squared error, in squared units of the target."""

LOSSES = {loss.name: loss for loss in (BINARY, MULTICLASS, SQUARED)}
