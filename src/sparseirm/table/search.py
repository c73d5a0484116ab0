"""Which columns predict alike in every environment: a stepwise search with linear predictors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseirm.monitor import LEVEL, change_of_relations, holm
from sparseirm.table.thinning import thinned

Floats = NDArray[np.float64]

STRICTNESS = 100.0
"""What one nat of disagreement between environments costs, in nats of log risk."""

CAUTION = 1.0
"""Standard deviations of pure chance up to which disagreement costs nothing."""

RIDGE = 1e-3
"""Weight of the squared coefficients, per row; inputs have about unit variance."""

PATIENCE = 10
"""Columns that are added although none makes things better."""

MOST_ROWS, MOST_INPUTS, MOST_STEPS = 10_000, 256, 64
"""Rows used at most; inputs searched at most, the rest having the weakest relations; columns added one after
the other at most, and number of columns up to which the search also starts from all of them."""


def find_columns(
    x: NDArray[Any],
    targets: Floats,
    env: NDArray[np.int64],
    weight: Floats,
    blocks: Iterable[int],
    classifies: bool,
    most: int | None = None,
    offered: Collection[int] = (),
) -> list[int]:
    """The columns whose best linear predictor has low risk and is the same in all environments.

    Minimises over sets S of columns

    ``log R(S) + |S| log(n) / 2n + strictness * (log R(S) - mean_e log R_e(S) - chance)``

    where ``R`` is the risk of one linear predictor for all rows (with an intercept for each environment) and
    ``R_e`` that of a predictor of environment e alone: the terms ``R(beta, Phi) - R_e(beta_e, Phi)`` of
    equation 14 of the Sparse IRM paper and REx's difference of the risks in one, on a scale without a unit.
    ``chance`` is what rows of one kind would show by chance. Columns are added and removed one by one, from
    none and from all; what a move brings is foreseen from gradient and curvature, and then fitted.

    Args:
        x: ``(n, d)`` inputs of about unit variance.
        targets: ``(n, k)``: 0 or 1 for each class, one column for two classes; or the target.
        env: ``(n,)`` environment numbers from 0; with one environment only risk and size count.
        weight: ``(n,)`` positive weights; they compare rows of one environment.
        blocks: number of inputs of each column.
        classifies: whether the loss is cross-entropy; squared error otherwise.
        most: number of columns at most.
        offered: columns to choose from; all by default.

    Returns:
        The columns, sorted; at least one.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> env, cause = np.repeat([0, 1], 500), rng.normal(size=1000)
        >>> y = cause + rng.normal(size=1000)
        >>> x = np.column_stack([cause, y + np.where(env == 0, 0.5, 2) * rng.normal(size=1000)])
        >>> find_columns(x, y[:, None], env, np.ones(1000), (1, 1), classifies=False)
        [0]
    """
    sizes = np.array(list(blocks))
    rows = thinned(env, MOST_ROWS)
    search = _Search(x[rows].astype(np.float64), targets[rows], env[rows], weight[rows], sizes, classifies)
    most = len(sizes) if most is None else most
    known = search.strongest(np.array(sorted(offered or range(len(sizes)))))
    starts: list[tuple[int, ...]] = [(), tuple(sorted(known))] if len(known) <= MOST_STEPS else [()]
    found = [search.climb(search.best_on_way(start, known, most), known, most) for start in starts]
    return sorted(min(found, key=lambda state: state.objective).chosen)


def unchanged_columns(
    x: NDArray[Any], y: Floats, env: NDArray[np.int64], blocks: Iterable[int], n_classes: int
) -> list[int]:
    """The columns whose own relation to the target does not change between environments, as far as rows tell.

    A coarser question than that of `find_columns`, with more power where labels are nearly certain; it goes
    wrong if columns depend on each other differently in different environments.

    Args:
        x: ``(n, d)`` inputs.
        y: ``(n,)`` class numbers, or targets.
        env: ``(n,)`` environment numbers.
        blocks: number of inputs of each column.
        n_classes: number of classes; 0 for regression.

    Returns:
        The columns, sorted; none if the relation of every one changes.
    """
    rows = thinned(env, MOST_ROWS)
    classes = tuple(map(str, range(n_classes)))
    p = holm(change_of_relations(x[rows].astype(np.float64), y[rows], env[rows], classes))
    ends = np.cumsum(list(blocks))
    starts = [0, *ends[:-1].tolist()]
    return [c for c, (start, end) in enumerate(zip(starts, ends, strict=True)) if p[start:end].min() >= LEVEL]


@dataclass(frozen=True)
class _State:
    """A set of columns, what it costs, and what each single change would cost as far as foreseen."""

    chosen: tuple[int, ...]
    objective: float
    foreseen: dict[int, float]


@dataclass(frozen=True)
class _Fit:
    """A linear predictor of some rows.

    Attributes:
        losses: ``(n,)`` loss of each row.
        risk: their weighted mean.
        change: by column, how much the risk falls with it if it is out, or rises without it if it is in.
    """

    losses: Floats
    risk: float
    change: Floats


@dataclass(frozen=True)
class _Search:
    x: Floats
    targets: Floats
    env: NDArray[np.int64]
    weight: Floats
    sizes: NDArray[np.int64]
    classifies: bool

    @cached_property
    def columns(self) -> list[slice]:
        """Where the inputs of each column lie."""
        ends = np.cumsum(self.sizes)
        return [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    @cached_property
    def members(self) -> list[NDArray[np.int64]]:
        """Rows of each environment."""
        return [np.flatnonzero(self.env == e) for e in range(int(self.env.max()) + 1)]

    @cached_property
    def share(self) -> Floats:
        """Weight of each row; every environment has a sum of 1."""
        return self.weight / np.bincount(self.env, weights=self.weight)[self.env]

    def strongest(self, offered: NDArray[np.int64]) -> list[int]:
        """The columns with the strongest relations to the target, as many as are searched."""
        strength = self._fits(())[0].change / self.sizes
        order = offered[np.argsort(-strength[offered], kind="stable")]
        return [int(c) for c in order[np.cumsum(self.sizes[order]) <= max(MOST_INPUTS, self.sizes.max())]]

    def climb(self, state: _State, known: list[int], most: int) -> _State:
        """Add or remove one column at a time for as long as that helps."""
        while True:
            moves = sorted(known, key=state.foreseen.__getitem__)[:3]
            tried = [self.changed(state, column) for column in moves]
            better = [one for one in tried if 0 < len(one.chosen) <= most]
            best = min(better, key=lambda one: one.objective, default=state)
            if best.objective > state.objective - 1e-9:
                return state
            state = best

    def best_on_way(self, start: tuple[int, ...], known: list[int], most: int) -> _State:
        """The best set, of one column or more, on the way from no column to all, or from all to none.

        The way goes on when a step makes things worse: columns that help only together are found so.
        """
        state, best, since = self.state(start), None, 0
        for _ in range(min(len(known), MOST_STEPS)):
            left = [c for c in known if (c in state.chosen) == bool(start)]
            state = self.changed(state, min(left, key=state.foreseen.__getitem__))
            since += 1
            if 0 < len(state.chosen) <= most and (best is None or state.objective < best.objective):
                best, since = state, 0
            if since == PATIENCE and not start:
                break
        return best or self.state((known[0],))

    def changed(self, state: _State, column: int) -> _State:
        """The set with the column added, or removed."""
        return self.state(tuple(sorted(set(state.chosen) ^ {column})))

    def state(self, chosen: tuple[int, ...]) -> _State:
        """Fit the columns to all rows, and to each environment alone."""
        together, *alone = self._fits(chosen)
        risks = np.array([together.risk, *(fit.risk for fit in alone)])
        changes = np.stack([together.change, *(fit.change for fit in alone)])
        means = np.array([np.average(together.losses[m], weights=self.share[m]) for m in self.members])
        errors = [
            (self.share[m] ** 2 * (together.losses[m] - mean) ** 2).sum() / mean**2
            for m, mean in zip(self.members, means, strict=True)
        ]
        noise, inputs = float(np.mean(errors)), int(self.sizes[list(chosen)].sum())
        foreseen = {}
        for c, size in enumerate(self.sizes.tolist()):
            sign = 1 if c in chosen else -1
            after = self._moved(risks, sign * changes[:, c])
            foreseen[c] = self._objective(after, noise, inputs - sign * size)
        return _State(chosen, self._objective(risks, noise, inputs), foreseen)

    def _moved(self, risks: Floats, change: Floats) -> Floats:
        """Risks after a change, which is exact for squared error; never below zero for cross-entropy."""
        if self.classifies:
            return risks * np.exp(np.clip(change / risks, -20, 20))
        return risks + change

    def _objective(self, risks: Floats, noise: float, inputs: int) -> float:
        """The cost of a set of columns.

        Args:
            risks: of the predictor for all rows, then of those of each environment.
            noise: mean square error of the logarithm of an environment's risk.
            inputs: number of inputs.

        Returns:
            The cost, in nats of log risk.
        """
        envs, risk = len(risks) - 1, max(float(risks[0]), 1e-12)
        one = (1 / (2 * risk) if self.classifies else 1.0) / len(self.env)  # log risk a useless input removes
        free = (envs - 1) * inputs
        expected = free * one + noise * (envs - 1) / (2 * envs)
        error = np.sqrt(2 * free) * one + noise * np.sqrt(2 * (envs - 1)) / (2 * envs)
        apart = np.log(risk) - np.mean(np.log(np.maximum(risks[1:], 1e-12)))
        size = np.log(len(self.env)) * inputs * one
        return float(np.log(risk) + size + STRICTNESS * max(0.0, apart - expected - CAUTION * error))

    def _fits(self, chosen: tuple[int, ...]) -> list[_Fit]:
        """The predictor for all rows, with an intercept for each environment; then each environment's."""
        one_each = np.eye(len(self.members))[self.env]
        everything = np.arange(len(self.env))
        return [
            self._fit(chosen, everything, one_each),
            *(self._fit(chosen, rows, np.ones((len(rows), 1))) for rows in self.members),
        ]

    def _fit(self, chosen: tuple[int, ...], rows: NDArray[np.int64], intercepts: Floats) -> _Fit:
        places = [at for c in chosen for at in range(self.columns[c].start, self.columns[c].stop)]
        x, share = self.x[rows], self.share[rows] / self.share[rows].sum()
        design = np.column_stack([intercepts, x[:, places]])
        losses, change = np.zeros(len(rows)), np.zeros(len(self.sizes))
        for target in self.targets[rows].T:
            value, slope, curvature, beta = self._newton(design, target, share)
            losses += value
            scaled = design * curvature[:, None]
            inverse = np.linalg.inv(design.T @ scaled + RIDGE * np.eye(len(beta)))
            cross, ends = x.T @ scaled, intercepts.shape[1]
            for c, column in enumerate(self.columns):
                if c in chosen:
                    own, ends = slice(ends, ends + int(self.sizes[c])), ends + int(self.sizes[c])
                    change[c] += _quadratic(inverse[own, own], beta[own])
                else:
                    power = (x[:, column] * curvature[:, None]).T @ x[:, column]
                    rest = power - cross[column] @ inverse @ cross[column].T
                    rest.flat[:: len(rest) + 1] += RIDGE
                    change[c] += _quadratic(rest, x[:, column].T @ slope)
        return _Fit(losses, float(share @ losses), change)

    def _newton(self, design: Floats, target: Floats, share: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Loss of each row, its weighted slope and curvature by the prediction, and the coefficients."""
        beta = np.zeros(design.shape[1])
        for _ in range(25):
            value, slope, curvature = _loss(design @ beta, target, self.classifies)
            slope, curvature = slope * share, curvature * share
            hessian = (design * curvature[:, None]).T @ design + RIDGE * np.eye(len(beta))
            step = np.linalg.solve(hessian, design.T @ slope + RIDGE * beta)
            if np.abs(step).max() < 1e-6:
                break
            beta = beta - step
        return value, slope, curvature, beta


def _loss(told: Floats, target: Floats, classifies: bool) -> tuple[Floats, Floats, Floats]:
    """Loss of each row, with its first and second derivative by the prediction."""
    if not classifies:
        return (told - target) ** 2, 2 * (told - target), np.full(len(told), 2.0)
    told = np.clip(told, -30, 30)
    p = 1 / (1 + np.exp(-told))
    return np.logaddexp(0, told) - target * told, p - target, np.maximum(p * (1 - p), 1e-9)


def _quadratic(matrix: NDArray[Any], vector: NDArray[Any]) -> float:
    """``vector . matrix^-1 vector / 2``."""
    return float(vector @ np.linalg.solve(matrix, vector) / 2)
