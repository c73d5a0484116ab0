"""Penalties on the environments' risks themselves: REx."""

from __future__ import annotations

from torch import Tensor

from sparseirm.core import Outputs


def rex(out: Outputs) -> Tensor:
    """Variance of the environments' risks (V-REx).

    ``J = 1/E sum_e (R_e - mean R)**2``: Krueger et al. 2021 (arXiv:2003.00688), J-REx of the Sparse
    IRM paper.

    Shape ``()``. Unit loss**2. Range [0, inf); zero when all environments have the same risk.

    Example:
        >>> import torch
        >>> from sparseirm.losses import SQUARED
        >>> z, env = torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
        >>> rex(Outputs(z, torch.zeros(2), env, 2, SQUARED))
        tensor(2.2500)
    """
    return out.risks.var(correction=0)
