"""Penalties on the slopes of the environments' risks: IRMv1."""

from __future__ import annotations

from torch import Tensor

from sparseirm.core import Outputs


def irmv1(out: Outputs) -> Tensor:
    """Mean squared slope of the environments' risks along the scale of the logits.

    ``J = 1/E sum_e (d/dw R_e(w f) at w = 1)**2``: the penalty tagged (IRMv1) in Arjovsky et al. 2019
    (arXiv:1907.02893), J-IRMv1 of the Sparse IRM paper; there a sum over environments, here a mean,
    as in the released code. The slope is a closed form of logits and labels, so no second backward
    pass is needed. Each environment's slope is its own mean, whatever the environments' sizes.

    Shape ``()``. Unit loss**2 (nats**2 for cross-entropy). Range [0, inf); zero when rescaling the
    logits lowers no environment's risk.

    Example:
        >>> import torch
        >>> from sparseirm.losses import BINARY
        >>> z, y, env = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 1])
        >>> irmv1(Outputs(z, y, env, 2, BINARY))
        tensor(0.3034)
    """
    return out.slopes.square().mean()
