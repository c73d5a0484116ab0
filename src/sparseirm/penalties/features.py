"""Penalties on what the network computes: the representation, the last layer's gradients, the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseirm.core import Outputs, SettingError, accumulator
from sparseirm.penalties.gradients import irmv1


def coral(out: Outputs) -> Tensor:
    """Mean squared difference of the representation's means and covariances, over pairs of environments.

    ``J = mean over e < f of |m_e - m_f|**2 / h + |C_e - C_f|**2 / h**2`` with ``m`` the mean and ``C`` the
    covariance of the h features: deep CORAL, Sun and Saenko 2016 (arXiv:1607.01719), in DomainBed's form,
    which adds the means and drops the paper's factor 1/4. Covariances are means over samples (DomainBed
    divides by ``n - 1``), so that sample weights act as repetitions.

    Args:
        out: outputs of one pass, with features.

    Returns:
        Shape ``()``. Unit: squares and fourth powers of the features' unit. Range [0, inf); zero when all
        environments have the same means and covariances.

    Raises:
        SettingError: if the model has no linear head.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> x, y, env = torch.tensor([[0.0], [2.0], [1.0], [1.0]]), torch.zeros(4), torch.tensor([0, 0, 1, 1])
        >>> coral(Outputs(x[:, 0], y, env, 2, SQUARED, features=x))
        tensor(1.)
    """
    features = _features(out, "coral")
    means = out.env_mean(features)
    centred = features - means[out.env]
    # The mean over pairs of squared differences is twice the variance, with E - 1.
    one = min(1, out.n_envs - 1)
    covariances = _mean_products(out, centred, centred)
    return 2 * (means.var(0, correction=one).mean() + covariances.var(0, correction=one).mean())


@dataclass(frozen=True)
class IBIRM:
    """IRMv1 plus the variance of the representation within environments.

    ``J = J_IRMv1 + bottleneck * 1/E sum_e 1/h sum_k Var_e(feature k)``: IB-IRM, Ahuja et al. 2021
    (arXiv:2106.06607), in DomainBed's form with one weight for both terms and their ratio as a number here.
    Variances are means over samples (DomainBed divides by ``n - 1`` and takes `irmv1_split` for IRMv1).

    Shape ``()``. Unit loss**2 (``bottleneck`` carries loss**2 / feature**2). Range [0, inf); zero when
    `irmv1` is zero and the representation is constant in each environment.

    Attributes:
        bottleneck: weight of the variance relative to IRMv1, at least 0; DomainBed's default is 1.

    Raises:
        SettingError: if ``bottleneck`` is negative.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> x, y, env = torch.tensor([[0.0], [2.0], [1.0], [1.0]]), torch.zeros(4), torch.tensor([0, 0, 1, 1])
        >>> out = Outputs(x[:, 0], y, env, 2, SQUARED, features=x)
        >>> irmv1(out), IBIRM(bottleneck=10.0)(out)
        (tensor(10.), tensor(15.))
    """

    bottleneck: float = 1.0

    def __post_init__(self) -> None:
        if not self.bottleneck >= 0:
            raise SettingError(f"`bottleneck` must be 0 or more; got {self.bottleneck}.")

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass, shape ``()``."""
        features = _features(out, "ib_irm")
        variances = out.env_mean((features - out.env_mean(features)[out.env]).square())
        return irmv1(out) + self.bottleneck * variances.mean()


def fishr(out: Outputs) -> Tensor:
    """Variance over environments of the variances of the samples' gradients in the last layer.

    ``J = mean over weights j of Var_e(v_ej)`` with ``v_ej`` the variance over the samples of environment e of
    their loss' gradient by weight j: Fishr, Rame et al. 2022 (arXiv:2109.02934), with the mean over weights
    of the released code (the paper has the sum) and without its moving average over steps, for a penalty has
    no memory. The gradient of a sample is a closed form: the loss' derivative by the logits times the
    features, and times 1 for the bias; so the last linear layer must be what gives the logits. Masked
    weights of that layer count too.

    Args:
        out: outputs of one pass, with features.

    Returns:
        Shape ``()``. Unit loss**4 / weight**4. Range [0, inf); zero when all environments have the same
        gradient variances.

    Raises:
        SettingError: if the model has no linear head.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> x, y, env = torch.tensor([[0.0], [2.0], [1.0], [1.0]]), torch.zeros(4), torch.tensor([0, 0, 1, 1])
        >>> fishr(Outputs(x[:, 0], y, env, 2, SQUARED, features=x))
        tensor(34.)
    """
    features = _features(out, "fishr").to(accumulator(out.logits.device))
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    by_logits = torch.func.grad(lambda logits: out.loss.value(logits, out.y).sum())(out.logits)
    residuals = by_logits.reshape(len(inputs), -1).to(inputs.dtype)
    means = _mean_products(out, residuals, inputs)
    variances = _mean_products(out, residuals.square(), inputs.square()) - means.square()
    return variances.var(0, correction=0).mean().to(out.logits.dtype)


def spectral_decoupling(out: Outputs) -> Tensor:
    """Mean squared logit.

    ``J = 1/E sum_e mean_e(|f|**2 / k)`` for k logits: spectral decoupling, Pezeshki et al. 2021
    (arXiv:2011.09468; there with a factor 1/2), in DomainBed's form. It ignores the environments but for
    giving them equal weight: not a penalty on invariance, yet a usual baseline for one.

    Args:
        out: logits and environments of one pass.

    Returns:
        Shape ``()``. Unit logit**2. Range [0, inf); zero when all logits are zero.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> z, y, env = torch.tensor([1.0, 3.0, 1.0]), torch.zeros(3), torch.tensor([0, 0, 1])
        >>> spectral_decoupling(Outputs(z, y, env, 2, BINARY))
        tensor(3.)
    """
    return out.env_mean(out.logits.square().reshape(len(out.logits), -1)).mean()


def _features(out: Outputs, penalty: str) -> Tensor:
    if out.features is None:
        raise SettingError(
            f"penalty {penalty!r} needs a representation, and the model has no linear head: its last "
            "`nn.Linear`, with input of shape (n, h), is where the representation is read. Use such a model, "
            "or a penalty that does without, such as 'irmv1' or 'rex'."
        )
    return out.features


def _mean_products(out: Outputs, a: Tensor, b: Tensor) -> Tensor:
    """Each environment's weighted mean of ``a_i b_i'``: ``(n, p), (n, q) -> (n_envs, p, q)``.

    The same as `Outputs.env_mean` of all products, without the ``(n, p, q)`` tensor of them.
    """
    weight = torch.ones_like(a[:, 0]) if out.weight is None else out.weight.to(a.dtype)
    means = []
    for env in range(out.n_envs):
        members = out.env == env
        share = weight[members] / weight[members].sum()
        means.append((share[:, None] * a[members]).T @ b[members])
    return torch.stack(means)
