"""From soft assignments to labels."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseirm.core import SettingError

LEAST = 10
"""Fewest samples an inferred environment may have."""


def harden(shares: Tensor, losses: Tensor) -> Tensor:
    """The environment each sample belongs to most, environments numbered by the reference's risk there.

    Args:
        shares: ``(n, E)``, how far each sample belongs to each environment.
        losses: ``(n,)``, the reference's; the environment of the least mean loss becomes number 0.

    Returns:
        ``(n,)``, int64, in ``0 .. E - 1``.

    Raises:
        SettingError: if an environment has fewer than `LEAST` samples.

    Example:
        >>> shares = torch.tensor([[1.0, 0.0], [0.2, 0.8]]).repeat(10, 1)
        >>> harden(shares, torch.tensor([0.7, 0.1]).repeat(10))[:4]
        tensor([1, 0, 1, 0])
    """
    n_envs = shares.shape[1]
    env = shares.argmax(1)
    sizes = torch.bincount(env, minlength=n_envs)
    if sizes.min() < LEAST:
        raise SettingError(
            f"of the {n_envs} inferred environments one would have {int(sizes.min())} of {len(env)} training "
            f"samples, and {LEAST} are the least. Either there is nothing to tell environments apart, or the "
            "reference has learnt the samples by heart: lower `reference_steps`, or give environments."
        )
    sums = losses.new_zeros(n_envs).index_add(0, env, losses)
    return (sums / sizes).argsort().argsort()[env]
