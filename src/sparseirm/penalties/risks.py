"""Penalties on the environments' risks themselves: REx, group DRO, quantiles.

The last three are papers' objectives that stand in place of the mean risk. Here each is written as what it
adds to the mean risk, so that the objective of the paper is ``mean risk + 1 * penalty``; a larger weight
pushes further in the same direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseirm.core import Outputs, SettingError, accumulator


def no_penalty(out: Outputs) -> Tensor:
    """Zero, for plain training on the mean risk: shape ``()``, with a gradient of zeros.

    >>> from sparseirm.losses import SQUARED
    >>> no_penalty(Outputs(torch.ones(2), torch.zeros(2), torch.tensor([0, 1]), 2, SQUARED))
    tensor(0.)
    """
    return out.risks.sum() * 0


def rex(out: Outputs) -> Tensor:
    """Variance of the environments' risks (V-REx).

    ``J = 1/E sum_e (R_e - mean R)**2``: Krueger et al. 2021 (arXiv:2003.00688), J-REx of the Sparse
    IRM paper.

    Args:
        out: logits, labels and environments of one pass.

    Returns:
        Shape ``()``. Unit loss**2. Range [0, inf); zero when all environments have the same risk.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> z, env = torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
        >>> rex(Outputs(z, torch.zeros(2), env, 2, SQUARED))
        tensor(2.2500)
    """
    return out.risks.var(correction=0)


@dataclass(frozen=True)
class MinimaxREx:
    """What the worst risk over extrapolated environments adds to the mean risk (MM-REx).

    ``mean R + J = (1 - E l) max_e R_e + l sum_e R_e``, hence ``J = (1 - E l) (max_e R_e - mean R)`` with
    ``l = lambda_min``: the maximum of ``sum_e q_e R_e`` over weights that sum to 1 and are at least ``l``,
    Krueger et al. 2021 (arXiv:2003.00688). The objective of the paper is this penalty with weight 1.

    Shape ``()``. Unit loss. Range [0, inf); zero when all environments have the same risk.

    Attributes:
        lambda_min: the least weight of an environment, at most 0; 0 is `GroupDRO`, below it extrapolates.

    Raises:
        SettingError: if ``lambda_min`` is positive.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> out = Outputs(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0, 1]), 2, SQUARED)
        >>> MinimaxREx(lambda_min=-1.0)(out), out.risks.mean() + MinimaxREx(lambda_min=-1.0)(out)
        (tensor(4.5000), tensor(7.))
    """

    lambda_min: float = -1.0

    def __post_init__(self) -> None:
        if not self.lambda_min <= 0:
            raise SettingError(
                f"`lambda_min` must be 0 or less; got {self.lambda_min}. Positive values would interpolate "
                "between the mean and the worst risk: for that lower `penalty_weight` of 'groupdro'."
            )

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass, shape ``()``."""
        return (1 - out.n_envs * self.lambda_min) * (out.risks.amax() - out.risks.mean())


@dataclass(frozen=True)
class GroupDRO:
    """What the worst environment's risk adds to the mean risk.

    ``J = max_e R_e - mean R``, or with a temperature t the smooth maximum
    ``J = t log(1/E sum_e exp(R_e / t)) - mean R``: group DRO, Sagawa et al. 2020 (arXiv:1911.08731), whose
    groups are the environments. Their algorithm keeps weights of the environments from step to step and
    multiplies them by ``exp(eta R_e)``; a penalty has no memory, and the gradient of the smooth maximum is
    that of the risks weighted by one such update from equal weights with ``eta = 1 / t``.
    The objective of the paper is this penalty with weight 1.

    Shape ``()``. Unit loss. Range [0, inf); zero when all environments have the same risk.

    Attributes:
        temperature: t, in units of the loss, at least 0; 0 is the maximum itself.

    Raises:
        SettingError: if the temperature is negative.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> out = Outputs(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0, 1]), 2, SQUARED)
        >>> GroupDRO()(out), GroupDRO(temperature=1.0)(out)
        (tensor(1.5000), tensor(0.8554))
    """

    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise SettingError(f"`temperature` must be 0 or more; got {self.temperature}.")

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass, shape ``()``."""
        excess = out.risks - out.risks.mean()
        if self.temperature == 0:
            return excess.amax()
        return self.temperature * ((excess / self.temperature).logsumexp(0) - math.log(out.n_envs))


@dataclass(frozen=True)
class EQRM:
    """What a high quantile of the environments' risks adds to the mean risk.

    ``J = q - mean R`` with q the ``quantile`` of a kernel density estimate of the risks: normal kernels of
    standard deviation ``1.06 s E**-0.2``, s the sample standard deviation (with ``E - 1``): empirical
    quantile risk minimisation, Eastwood et al. 2022 (arXiv:2207.09944) with the bandwidth of the released
    code. The gradient is exact: that of the implicit function ``cdf(q) = quantile``, bandwidth included.
    The objective of the paper is this penalty with weight 1. With two environments the quantile is the mean
    plus a fixed multiple of the risks' difference, so the penalty is that difference.

    Shape ``()``. Unit loss. Range (-inf, inf): negative where the quantile lies below the mean, as for
    ``quantile`` below 1/2 or one far worse environment among many. Zero when all risks are equal.

    Attributes:
        quantile: alpha of the paper, in (0, 1); 0.75 is DomainBed's default.

    Raises:
        SettingError: if ``quantile`` is out of its range.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> out = Outputs(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0, 1]), 2, SQUARED)
        >>> EQRM()(out), EQRM(quantile=0.95)(out)
        (tensor(1.7406), tensor(4.0350))
    """

    quantile: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise SettingError(
                f"`quantile` must lie strictly between 0 and 1; got {self.quantile}. "
                "For the worst environment use penalty 'groupdro'."
            )

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass, shape ``()``."""
        risks = out.risks.to(accumulator(out.risks.device))
        excess = risks - risks.mean()
        # The norm, unlike the root of a variance, has a gradient where all risks are equal.
        deviation = torch.linalg.vector_norm(excess) / math.sqrt(max(out.n_envs - 1, 1))
        width = (1.06 * out.n_envs**-0.2 * deviation).clamp(min=math.sqrt(torch.finfo(risks.dtype).tiny))
        return _quantile(excess, width, self.quantile).to(out.risks.dtype)


def _quantile(values: Tensor, width: Tensor, level: float) -> Tensor:
    """Quantile of the mean of normal distributions around ``values`` with standard deviation ``width``."""

    def below(x: Tensor) -> Tensor:
        share: Tensor = torch.special.ndtr((x - values) / width).mean()
        return share

    with torch.no_grad():
        shift: Tensor = width * torch.special.ndtri(values.new_tensor(level))
        low, high = values.amin() + shift, values.amax() + shift
        for _ in range(60):
            middle = (low + high) / 2
            too_low = below(middle) < level
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        density = (-0.5 * ((high - values) / width).square()).exp().mean() / (math.sqrt(2 * math.pi) * width)
    # One Newton step: the value stays, and its derivative is that of the implicit function.
    return high - (below(high) - level) / density
