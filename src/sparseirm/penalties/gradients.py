"""Penalties on gradients of the environments' risks: IRMv1 and its variants, gradient alignment."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseirm.core import Outputs, SettingError


def irmv1(out: Outputs) -> Tensor:
    """Mean squared slope of the environments' risks along the scale of the logits.

    ``J = 1/E sum_e (d/dw R_e(w f) at w = 1)**2``: the penalty tagged (IRMv1) in Arjovsky et al. 2019
    (arXiv:1907.02893), J-IRMv1 of the Sparse IRM paper; there a sum over environments, here a mean,
    as in the released code. The slope is a closed form of logits and labels, so no second backward
    pass is needed. Each environment's slope is its own mean, whatever the environments' sizes.
    On minibatches the square is biased upwards by the variance of the slope; see `irmv1_split`.

    Args:
        out: logits, labels and environments of one pass.

    Returns:
        Shape ``()``. Unit loss**2 (nats**2 for cross-entropy). Range [0, inf); zero when rescaling the
        logits lowers no environment's risk.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> z, y, env = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 1])
        >>> irmv1(Outputs(z, y, env, 2, BINARY))
        tensor(0.3034)
    """
    return out.slopes.square().mean()


def irmv1_split(out: Outputs) -> Tensor:
    """Mean product of the slopes of two random halves of each environment: IRMv1 without its bias.

    ``J = 1/E sum_e d_e(A_e) d_e(B_e)`` with ``d_e(S)`` the slope of the risk over the samples ``S`` and
    ``A_e``, ``B_e`` halves of environment e: the unbiased estimate of the squared gradient for minibatches
    that Arjovsky et al. 2019 (arXiv:1907.02893) give with IRMv1. With equal sample weights its mean over
    batches is the squared slope of the population; `irmv1` adds the variance of the batch's slope to that.
    The halves are drawn with ``out.noise``; without it the samples go to them in turn. Their numbers of
    samples differ by at most one.

    Args:
        out: logits, labels and environments of one pass.

    Returns:
        Shape ``()``. Unit loss**2. Range (-inf, inf): a single batch may give a negative value, only the mean
        over batches is positive. Zero in the mean when rescaling the logits lowers no environment's risk.

    Raises:
        SettingError: if an environment has fewer than two samples of positive weight.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> z, y, env = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.zeros(4), torch.tensor([0, 0, 1, 1])
        >>> irmv1_split(Outputs(z, y, env, 2, SQUARED))
        tensor(10.)
    """
    first, second = halves(out)
    return (first.slopes * second.slopes).mean()


def halves(out: Outputs) -> tuple[Outputs, Outputs]:
    """The same outputs twice, each with weight on one half of every environment's samples.

    Random with ``out.noise``, else in turn. Samples without weight count in neither half.

    Args:
        out: outputs of one pass.

    Returns:
        The outputs with the weights of one half each, zero elsewhere.

    Raises:
        SettingError: if an environment has fewer than two samples of positive weight.
    """
    n, device = len(out.env), out.env.device
    weight = torch.ones(n, device=device) if out.weight is None else out.weight
    counted = weight > 0
    fewest, where = torch.bincount(out.env[counted], minlength=out.n_envs).min(0)
    if fewest < 2:
        raise SettingError(
            "a penalty on two halves needs 2 samples of every environment in every batch; environment "
            f"{int(where)} has {int(fewest)} of {n}. Use a larger `batch_size`, or a penalty without halves, "
            "such as 'irmv1'."
        )
    if out.noise is None:
        order = torch.arange(n, device=device)
    else:
        order = torch.randperm(n, generator=out.noise, device=device)
    # Sorted by environment, samples without weight last, neighbours are dealt to different halves.
    order = order[torch.argsort((2 * out.env + ~counted)[order], stable=True)]
    in_first = torch.empty(n, dtype=torch.bool, device=device)
    in_first[order] = torch.arange(n, device=device) % 2 == 0
    rest = {"features": vars(out)["features"]}  # which stay a function where nobody has asked for them
    return replace(out, weight=weight * in_first, **rest), replace(out, weight=weight * ~in_first, **rest)


@dataclass(frozen=True)
class BayesianIRM:
    """IRMv1's squared slope, averaged over dummy classifiers drawn around 1.

    ``J = 1/E sum_e mean_j (d/dw R_e(w f) at w = w_j)**2``, ``w_j ~ N(1, sd**2)``: Lin et al. 2022 (CVPR,
    "Bayesian Invariant Risk Minimization"), whose expectation is over the posterior of the classifier; the
    released code takes a normal distribution around 1 for it. A draw is shared by all environments; the
    released code draws one for each, which has the same mean. Released values: ``sd`` of 1200 divided by the
    number of training samples for ColoredMNIST (0.06 for 20,000) and 1500 for CifarMnist, 10 draws; squared
    slopes for ColoredMNIST, products of the slopes of two random halves (``split``) for CifarMnist.

    Shape ``()``. Unit loss**2. Range [0, inf), or (-inf, inf) with ``split``; for ``sd=0`` it is `irmv1`, for
    ``sd=0, split=True`` it is `irmv1_split`. Zero when the slope vanishes at every drawn classifier, so for
    ``sd > 0`` also the curvature along the scale is penalised.

    Attributes:
        sd: standard deviation of the classifier, at least 0.
        n_draws: number of classifiers drawn in each step, at least 1. Without ``out.noise`` they are the
            quantiles of the normal distribution at ``(j - 1/2) / n_draws``.
        split: whether to take the product of the slopes of two halves, unbiased on minibatches; all draws
            of a step share the halves.

    Raises:
        SettingError: if a value is out of its range.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> out = Outputs(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0, 1]), 2, SQUARED)
        >>> BayesianIRM(sd=0.0)(out), irmv1(out), BayesianIRM(sd=0.5)(out)
        (tensor(34.), tensor(34.), tensor(41.4782))
    """

    sd: float = 0.06
    n_draws: int = 10
    split: bool = False

    def __post_init__(self) -> None:
        if not self.sd >= 0:
            raise SettingError(f"`sd` of the Bayesian penalty must be 0 or more; got {self.sd}.")
        if self.n_draws < 1:
            raise SettingError(f"`n_draws` must be at least 1; got {self.n_draws}.")

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass, shape ``()``."""
        scales = 1 + self.sd * self._standard_normal(out)
        slopes = torch.stack([out.loss.slope(w * out.logits, out.y) / w for w in scales], 1)
        if not self.split:
            return out.env_mean(slopes).square().mean()
        first, second = halves(out)
        return (first.env_mean(slopes) * second.env_mean(slopes)).mean()

    def _standard_normal(self, out: Outputs) -> Tensor:
        draws = out.logits.new_empty(self.n_draws)
        if out.noise is not None:
            return draws.normal_(generator=out.noise)
        middles = (torch.arange(self.n_draws).to(draws) + 0.5) / self.n_draws
        quantiles: Tensor = torch.special.ndtri(middles)
        return quantiles


def iga(out: Outputs) -> Tensor:
    """Variance over environments of the gradients of their risks, summed over all parameters.

    ``J = trace Var_e(grad R_e)``: inter-environmental gradient alignment, Koyama and Yamaguchi 2020
    (arXiv:2008.01883); DomainBed sums over environments, here it is their mean, as a variance is. The
    gradients are those by the weights the network ran with, so masked weights count with the slope they would
    have. Costs one more backward pass per environment, and needs a network that can be differentiated twice.

    Args:
        out: outputs of one pass, with the parameters it ran with.

    Returns:
        Shape ``()``. Unit loss**2 / weight**2. Range [0, inf); zero when all environments' risks have the
        same gradient.

    Raises:
        SettingError: if the outputs carry no parameters, or were computed without gradients.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> w, x = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0, 2.0])
        >>> iga(Outputs(w * x, torch.zeros(2), torch.tensor([0, 1]), 2, SQUARED, parameters=(w,)))
        tensor(9., grad_fn=<SumBackward0>)
    """
    parameters = [p for p in out.parameters if p.requires_grad]
    if not parameters or not out.risks.requires_grad:
        raise SettingError(
            "penalty 'iga' needs gradients by the weights: give `Outputs` the `parameters` its logits were "
            "computed from, with gradients enabled; or use a penalty that does without, such as 'irmv1'."
        )
    gradients = []
    for risk in out.risks:
        pieces = torch.autograd.grad(risk, parameters, create_graph=True, materialize_grads=True)
        gradients.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(gradients).var(0, correction=0).sum()
