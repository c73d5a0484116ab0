"""One candidate, fitted to some rows and looked at on others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseirm.core import Loss
from sparseirm.estimator import EnvironmentWarning, Estimator, SparseIRMClassifier, SparseIRMRegressor
from sparseirm.evaluation.readouts import disagreement
from sparseirm.randomness import generator

if TYPE_CHECKING:
    import pandas as pd

IMPORTANCE_ROWS, IMPORTANCE_COLUMNS = 1000, 200
"""Rows per environment and columns, those with most weight, whose importance is measured."""

BINS = 10
"""Bins of predictions, to compare them with what came true."""


@dataclass(frozen=True)
class Candidate:
    """A method to compare, as the parameters of an estimator.

    Attributes:
        name: how results and options call it.
        label: the same in words.
        parameters: parameters of the estimator, but for its seed.
        columns: number of columns it keeps, if it has gates on columns.
    """

    name: str
    label: str
    parameters: Mapping[str, Any]
    columns: int | None = None

    @property
    def by_columns(self) -> bool:
        """Whether it switches columns off, so that it tells them apart."""
        return self.parameters.get("gates") in ("search", "screen", "columns")

    def estimator(self, classifies: bool, seed: int) -> Estimator:
        """An unfitted estimator."""
        kind = SparseIRMClassifier if classifies else SparseIRMRegressor
        return kind(**self.parameters, random_state=seed)


@dataclass(frozen=True)
class Seen:
    """A fitted model on the rows of one environment that it was not trained on.

    Attributes:
        env: name of the environment.
        rows: number of rows, n.
        risk: mean loss: nats, or squared error over the variance of the training targets.
        risk_variance: variance of the loss over rows.
        score: accuracy, or share of the target's variance explained (R2).
        score_error: standard error of the score from the spread of its rows.
        constant_risk: mean loss of the best constant prediction on the training rows.
        disagreement: see `sparseirm.evaluation.readouts.disagreement`; None for a held-out environment.
        importance: by column in use, how much the risk rises when the column's values are shuffled.
        bins: per bin of predictions its number of rows, sum of predictions, and sum of what came true.
        guess: score of the constant that fits these rows best: share of their most frequent class, or 0.
    """

    env: str
    rows: int
    risk: float
    risk_variance: float
    score: float
    score_error: float
    constant_risk: float
    disagreement: float | None
    importance: dict[str, float]
    bins: list[tuple[float, float, float]]
    guess: float


@dataclass(frozen=True)
class Assessment:
    """What came of one fit.

    Attributes:
        candidate: name of the candidate.
        kind: ``held out`` if the environments looked at took no part in training, ``fresh`` if rows of all
            environments did.
        seed: seed of the fit.
        seen: the model on each environment that was looked at for choosing.
        tested: the model on each test environment, which no choice may look at.
        column_weights: share of the surviving first-layer weight by column, see the estimator.
    """

    candidate: str
    kind: str
    seed: int
    seen: list[Seen]
    tested: list[Seen]
    column_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Rows of a problem: inputs, target and environment.

    Attributes:
        inputs: the columns.
        y: ``(n,)`` labels or targets.
        env: ``(n,)`` name of each row's environment.
    """

    inputs: pd.DataFrame
    y: NDArray[Any]
    env: NDArray[Any]


def assess(
    candidate: Candidate,
    classifies: bool,
    kind: str,
    seed: int,
    train: Sample,
    fresh: Sample,
    test: Sample | None,
) -> Assessment:
    """Fit a candidate to ``train`` and look at it on other rows; to be run in a process of its own.

    Args:
        candidate: what to fit.
        classifies: whether the target is a class.
        kind: ``held out`` or ``fresh``, see `Assessment`.
        seed: seed of the fit.
        train: the training rows.
        fresh: rows to look at for choosing.
        test: rows of test environments, or None.

    Returns:
        What came of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnvironmentWarning)
        model = candidate.estimator(classifies, seed).fit(train.inputs, train.y, env=train.env)
    view = _View(model, classifies, constant(train, classifies), seed)
    return Assessment(
        candidate=candidate.name,
        kind=kind,
        seed=seed,
        seen=view.of(fresh, agreement=kind == "fresh"),
        tested=[] if test is None else view.of(test, agreement=False),
        column_weights=dict(zip(model.columns_, model.column_weights_.tolist(), strict=True)),
    )


def constant(train: Sample, classifies: bool) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """The loss of each row under the best constant prediction; every environment counts alike."""
    envs, which = np.unique(train.env, return_inverse=True)
    weight = 1 / np.bincount(which)[which] / len(envs)
    if not classifies:
        mean = float((weight * train.y).sum())
        power = float((weight * (train.y - mean) ** 2).sum()) or 1.0
        return lambda y: (y - mean) ** 2 / power
    classes, codes = np.unique(train.y, return_inverse=True)
    shares = np.bincount(codes, weights=weight)
    return lambda y: -np.log(shares[np.searchsorted(classes, y)])


@dataclass(frozen=True)
class _View:
    """A fitted model, to be looked at environment by environment."""

    model: Estimator
    classifies: bool
    constant: Callable[[NDArray[Any]], NDArray[np.float64]]
    seed: int

    def of(self, sample: Sample, agreement: bool) -> list[Seen]:
        inputs = torch.from_numpy(self.model.encoding_.inputs(sample.inputs))
        target = self._target(sample.y)
        logits = self.model.logits_of(inputs)
        names, env = np.unique(sample.env, return_inverse=True)
        apart = self._disagreement(inputs, logits, target, env) if agreement else [None] * len(names)
        seen = []
        for e, name in enumerate(names):
            rows = torch.from_numpy(np.flatnonzero(env == e))
            part = inputs[rows], logits[rows], target[rows]
            seen.append(self._seen(str(name), sample.y[env == e], *part, apart[e]))
        return seen

    def _target(self, y: NDArray[Any]) -> Tensor:
        """Class numbers, or standardised targets."""
        if isinstance(self.model, SparseIRMClassifier):
            return torch.from_numpy(np.searchsorted(self.model.classes_, y))
        return torch.from_numpy((y - self.model.target_mean_) / self.model.target_scale_)

    def _seen(
        self, env: str, y: NDArray[Any], inputs: Tensor, logits: Tensor, target: Tensor, apart: float | None
    ) -> Seen:
        luck = torch.randperm(len(target), generator=generator(self.seed, "importance rows", env))
        some = luck[:IMPORTANCE_ROWS].sort().values  # rows come class by class
        importance = self._importance(env, inputs[some], target[some])
        return seen_in(
            env, logits, target, self.model.loss, float(self.constant(y).mean()), apart, importance
        )

    def _disagreement(
        self, inputs: Tensor, logits: Tensor, target: Tensor, env: NDArray[np.int64]
    ) -> list[float | None]:
        used = next(self.model.module_.parameters()).detach().abs().sum(0) > 0
        residual = one_hot(target, logits) - probabilities(logits) if self.classifies else target - logits
        found = disagreement(inputs[:, used].double().numpy(), residual.double().numpy(), env)
        return [None if np.isnan(value) else float(value) for value in found]

    @torch.no_grad()
    def _importance(self, env: str, inputs: Tensor, target: Tensor) -> dict[str, float]:
        """Rise of the risk when the inputs of one column are shuffled together, for the columns in use."""
        before = float(self.model.loss.value(self.model.logits_of(inputs), target).mean())
        order = torch.randperm(len(inputs), generator=generator(self.seed, "importance", env))
        weights, blocks = self.model.column_weights_, self.model.encoding_.blocks
        ends = np.cumsum(blocks)
        rises = {}
        for at in np.argsort(-weights)[:IMPORTANCE_COLUMNS]:
            if weights[at] == 0:
                break
            shuffled = inputs.clone()
            block = slice(ends[at] - blocks[at], ends[at])
            shuffled[:, block] = inputs[order, block]
            after = float(self.model.loss.value(self.model.logits_of(shuffled), target).mean())
            rises[self.model.columns_[at]] = after - before
        return rises


def seen_in(
    env: str,
    logits: Tensor,
    target: Tensor,
    loss: Loss,
    constant_risk: float,
    disagreement: float | None = None,
    importance: dict[str, float] | None = None,
) -> Seen:
    """What a model says about the rows of one environment against what is true.

    Args:
        env: name of the environment.
        logits: ``(n,)`` or ``(n, k)``, or standardised predictions.
        target: ``(n,)`` class numbers, or standardised targets.
        loss: the loss per row.
        constant_risk: mean loss of the best constant prediction.
        disagreement: see `Seen`.
        importance: see `Seen`.

    Returns:
        Risk, score and calibration, with what was given.
    """
    losses = loss.value(logits, target)
    n, risk = len(losses), float(losses.mean())
    variance = float(losses.var(correction=0))
    if loss.classifies:
        score = float((loss.predict(logits) == target).double().mean())
        error = float(np.sqrt(score * (1 - score) / n))
        guess = float(target.bincount().max()) / n
    else:
        power = max(float(target.var(correction=0)), 1e-12)
        score, error = 1 - risk / power, float(np.sqrt(variance / n)) / power
        guess = 0.0
    return Seen(
        env=env,
        rows=n,
        risk=risk,
        risk_variance=variance,
        score=score,
        score_error=error,
        constant_risk=constant_risk,
        disagreement=disagreement,
        importance=importance or {},
        bins=_bins(logits, target, loss.classifies),
        guess=guess,
    )


def _bins(logits: Tensor, target: Tensor, classifies: bool) -> list[tuple[float, float, float]]:
    """Rows by what was predicted: probability of the predicted class, or the standardised target."""
    if classifies:
        told, label = probabilities(logits).max(1)
        came = (label == target).double()
        edges = torch.linspace(0, 1, BINS + 1)[1:-1]
    else:
        told, came = logits, target
        edges = torch.special.ndtri(torch.linspace(0, 1, BINS + 1)[1:-1])
    place = torch.bucketize(told.double(), edges.double())
    sums = torch.zeros(BINS, 3, dtype=torch.float64)
    sums.index_add_(0, place, torch.stack([torch.ones_like(told), told, came.double()], dim=1).double())
    return [tuple(row) for row in sums.tolist()]


def probabilities(logits: Tensor) -> Tensor:
    """Probabilities of all classes, ``(n, k)``."""
    if logits.ndim == 1:
        logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
    return logits.softmax(1)


def one_hot(target: Tensor, logits: Tensor) -> Tensor:
    """The class numbers as ``(n, k)`` zeros and ones, as many columns as there are classes."""
    k = 2 if logits.ndim == 1 else logits.shape[1]
    return torch.nn.functional.one_hot(target, k).double()
