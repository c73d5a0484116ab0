"""The paper's theory as computation: the loss of a feature mask, and the masks that methods choose.

Everything here is about a linear predictor on masked features, ``f(x) = v . (Phi * x)``, with squared
error: section 3.2 and appendix B of the Sparse IRM paper. There, as here, nothing is added to ``v . x``:
all variables have mean zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor, nn

from sparseirm.core import Penalty, SettingError, Sparsifier
from sparseirm.data.environments import Batch, Batches, DataSet
from sparseirm.losses import LOSSES
from sparseirm.models import build, network
from sparseirm.sparsifiers import top_k
from sparseirm.training.loop import train
from sparseirm.training.state import Plan, start

AT_ONCE = 1 << 15
"""Masks whose losses are computed together."""


@dataclass(frozen=True)
class MaskLoss:
    """The two parts of the loss of a mask, so that it is known for every penalty weight.

    Attributes:
        risk: ``sum_e R_e(beta)``, squared units of the target.
        gap: ``sum_e R_e(beta) - R_e(beta_e)``, the same unit, never negative.
    """

    risk: float
    gap: float

    def at(self, penalty_weight: float) -> float:
        """``L(Phi)`` of equation 15, for one lambda.

        >>> MaskLoss(risk=2.0, gap=0.25).at(10.0)
        4.5
        """
        return self.risk + penalty_weight * self.gap


def mask_loss(samples: Batch, mask: Tensor) -> MaskLoss:
    """Exact empirical loss of a feature mask, by least squares.

    ``L(Phi) = sum_e R_e(beta) + lambda (R_e(beta) - R_e(beta_e))``: equations 14 and 15, where ``beta``
    fits the mean over environments of their mean squared errors and ``beta_e`` fits environment ``e``
    alone (equation 13). The gap is taken as ``E_e (Phi(x) . (beta - beta_e))**2`` (equation 16), the part
    of the pooled fit's residual that environment ``e`` could still explain, so nothing cancels. With more
    features than samples the fits of least norm are used; every other fit gives the same loss.

    Args:
        samples: ``x`` ``(n, d)``, ``y`` ``(n,)``, environments ``0 .. E - 1``, each with a sample.
        mask: bool ``(d,)``, the features kept.

    Returns:
        Risk and gap, computed in float64.

    Raises:
        SettingError: if the mask has another length than the features.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0])
        >>> loss = mask_loss(Batch(x, y, torch.tensor([0, 1])), torch.tensor([True]))
        >>> round(loss.risk, 9), round(loss.gap, 9), round(loss.at(10.0), 9)
        (2.0, 2.0, 22.0)
    """
    if mask.shape != samples.x.shape[1:]:
        raise SettingError(f"`mask` must have shape {tuple(samples.x.shape[1:])}; got {tuple(mask.shape)}.")
    x, y = samples.x[:, mask].double(), samples.y.double()
    counts = torch.bincount(samples.env).double()
    share = counts[samples.env].rsqrt()
    residual = _residual(share[:, None] * x, share * y) / share
    risk = gap = 0.0
    for e, n in enumerate(counts.tolist()):
        own = samples.env == e
        left = residual[own]
        risk += float(left.square().sum()) / n
        gap += float((left - _residual(x[own], left)).square().sum()) / n
    return MaskLoss(risk, gap)


def _residual(x: Tensor, y: Tensor) -> Tensor:
    """What least squares on the columns of ``x`` leaves of ``y``, twice for the last digits."""
    if x.numel() == 0:
        return y
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    basis = u[:, s > s[:1] * max(x.shape) * torch.finfo(x.dtype).eps]
    for _ in range(2):
        y = y - basis @ (basis.mT @ y)
    return y


@dataclass(frozen=True)
class Moments:
    """Second moments, all that the loss of any mask depends on.

    Row 0 of each tensor is the mean over environments, rows 1 to E are the environments.

    Attributes:
        gram: ``(E + 1, d, d)``, mean of ``x x'``.
        cross: ``(E + 1, d)``, mean of ``x y``.
        power: ``(E + 1,)``, mean of ``y**2``.
    """

    gram: Tensor
    cross: Tensor
    power: Tensor

    @property
    def n_envs(self) -> int:
        """Number of environments, E."""
        return len(self.power) - 1

    def without(self, i: int, later: int = 0) -> Moments:
        """What is left of columns ``later ..`` and of the target once column ``i`` explains its part.

        One pivot of a Cholesky factorisation of all Gram matrices at once.
        """
        column, pivot = self.gram[:, later:, i], self.gram[:, i, i]
        per = torch.where(pivot > 0, 1 / pivot, 0.0)
        share = column * per[:, None]
        gram = self.gram[:, later:, later:] - share[:, :, None] * column[:, None, :]
        explained = self.cross[:, i]
        return Moments(
            gram, self.cross[:, later:] - share * explained[:, None], self.power - explained.square() * per
        )

    def losses(self, masks: Tensor, penalty_weight: float) -> Tensor:
        """Loss of many masks of the same size, by batched Cholesky solves.

        Args:
            masks: ``(m, k)`` indices of the columns each mask keeps.
            penalty_weight: lambda.

        Returns:
            ``(m,)`` losses, equation 15.
        """
        gram = self.gram[:, masks[:, :, None], masks[:, None, :]]
        cross = self.cross[:, masks][..., None]
        factor = torch.linalg.cholesky(gram)
        explained = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum((-1, -2))
        return self.loss_of(self.power[:, None] - explained, penalty_weight)

    def loss_of(self, left: Tensor, penalty_weight: float) -> Tensor:
        """Equation 15 from ``(E + 1, ...)`` power left unexplained, shape ``(...)``."""
        risk = self.n_envs * left[0]
        return risk + penalty_weight * (risk - left[1:].sum(0))


def moments(samples: Batch) -> Moments:
    """Second moments of samples, environments weighted equally as in equation 15.

    Args:
        samples: ``x`` ``(n, d)`` and ``y`` ``(n,)`` in environments ``0 .. E - 1``.

    Returns:
        The moments, in float64.

    Example:
        >>> moments(Batch(torch.tensor([[1.0], [3.0]]), torch.ones(2), torch.tensor([0, 1]))).gram[:, 0, 0]
        tensor([5., 1., 9.], dtype=torch.float64)
    """
    grams, crosses, powers = [], [], []
    for e in range(int(samples.env.max()) + 1):
        own = samples.env == e
        x, y = samples.x[own].double(), samples.y[own].double()
        grams.append(x.mT @ x / len(y))
        crosses.append(x.mT @ y / len(y))
        powers.append(y @ y / len(y))
    gram, cross, power = torch.stack(grams), torch.stack(crosses), torch.stack(powers)
    return Moments(*(torch.cat([t.mean(0, keepdim=True), t]) for t in (gram, cross, power)))


def best_mask(samples: Batch, budget: int, penalty_weight: float) -> Tensor:
    """The mask of least loss among all of at most ``budget`` features, by trying every one.

    The minimiser of problem 8. For a few million masks; `sparseirm.evaluation.rivals` goes further.

    Args:
        samples: more samples in every environment than ``budget``.
        budget: K, the most features a mask may keep.
        penalty_weight: lambda.

    Returns:
        Bool ``(d,)``.

    Example:
        >>> from sparseirm.data.synthetic import LinearSEM
        >>> sem = LinearSEM(d_inv=2, d_s=2, d_r=2)
        >>> best_mask(sem.draw((100, 100), seed=0), budget=2, penalty_weight=10.0).tolist()
        [True, True, False, False, False, False]
    """
    known, d = moments(samples), samples.x.shape[1]
    best, chosen = float("inf"), torch.zeros(0, dtype=torch.int64)
    for size in range(budget + 1):
        for masks in _pieces(d, size):
            losses = known.losses(masks, penalty_weight)
            least = int(losses.argmin())
            if float(losses[least]) < best:
                best, chosen = float(losses[least]), masks[least]
    return torch.zeros(d, dtype=torch.bool).index_fill(0, chosen, True)


def _pieces(d: int, size: int) -> Iterator[Tensor]:
    """All ``size`` out of ``d`` columns, ``(m, size)`` at a time."""
    every = combinations(range(d), size)
    while piece := list(islice(every, AT_ONCE)):
        yield torch.tensor(piece, dtype=torch.int64)


def largest_weights(samples: Batch, budget: int) -> Tensor:
    """The mask of plain least squares: fit all features, keep the ``budget`` largest weights.

    Args:
        samples: all environments, weighted by their samples; of several fits the one of least norm.
        budget: K, number of features kept.

    Returns:
        Bool ``(d,)``.

    Example:
        >>> largest_weights(Batch(torch.eye(2), torch.tensor([1.0, -2.0]), torch.tensor([0, 1])), 1)
        tensor([False,  True])
    """
    weights = torch.linalg.pinv(samples.x.double()) @ samples.y.double()
    return top_k(weights.abs(), budget)


def learned_mask(
    data: DataSet, sparsifier: Sparsifier, penalty: Penalty, plan: Plan, seed: int = 0
) -> Tensor:
    """The mask that training finds: problem 12, a linear predictor whose inputs are gated.

    Appendix B.2: with the representation frozen to the identity, masking weights is masking features.

    Args:
        data: a regression with one vector of features per sample, such as `linear_sem`.
        sparsifier: decides the mask over the ``d`` weights; its budget is K.
        penalty: the invariance penalty.
        plan: steps, learning rates and penalty weight.
        seed: seed of initial weights and gates.

    Returns:
        Bool ``(d,)``, the deterministic mask at the end of training.

    Raises:
        SettingError: if the data set is no regression on vectors.

    Example:
        >>> from sparseirm.data.synthetic import linear_sem
        >>> from sparseirm.penalties import rex
        >>> from sparseirm.sparsifiers import ProbMask
        >>> int(learned_mask(linear_sem(), ProbMask(budget=2), rex, Plan(steps=5)).sum())
        2
    """
    samples = data.train.samples
    if data.loss != "squared" or samples.x.ndim != 2:
        raise SettingError(
            f"the theory is about regression on vectors; {data.name!r} has loss {data.loss!r} and samples "
            f"of shape {tuple(samples.x.shape[1:])}. Use `linear_sem`."
        )
    net = network(build(lambda: nn.Linear(samples.x.shape[1], 1, bias=False), seed))
    state = start(net, sparsifier, plan, seed)
    batches = Batches(samples, len(data.train.names), seed=seed)
    train(net, batches, LOSSES[data.loss], penalty, sparsifier, plan, state, seed)
    return sparsifier.mask(state.weights.detach(), state.memory)
