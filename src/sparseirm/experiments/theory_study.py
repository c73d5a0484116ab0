"""The paper's theory, computed: its statements on the linear model, and whether training lives up to them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from sparseirm.data.environments import Batch
from sparseirm.data.synthetic import LinearSEM, linear_sem
from sparseirm.evaluation.rivals import LARGEST_SEARCH, search
from sparseirm.evaluation.theory import best_mask, largest_weights, learned_mask, mask_loss
from sparseirm.experiments.statistics import Floats, explained, line, middle
from sparseirm.penalties import PENALTIES
from sparseirm.randomness import seed_of
from sparseirm.sparsifiers import ProbMask
from sparseirm.training.state import Plan

LAMBDA = 10.0
"""Penalty weight of equation 15 wherever nothing else is said."""

CONFIDENCE = 0.9
"""The probability 1 - delta for which the number of samples is sought."""


def half_spurious(d: int, d_inv: int = 2) -> LinearSEM:
    """``d`` features, every second of those that are not invariant a spurious one.

    >>> half_spurious(9).d_s, half_spurious(9).d_r
    (3, 4)
    """
    d_s = (d - d_inv) // 2
    return LinearSEM(d_inv=d_inv, d_s=d_s, d_r=d - d_inv - d_s)


def only_random(d: int, d_inv: int = 2) -> LinearSEM:
    """``d`` features without a spurious one.

    >>> only_random(9).d_s, only_random(9).d_r
    (0, 7)
    """
    return LinearSEM(d_inv=d_inv, d_s=0, d_r=d - d_inv)


@dataclass(frozen=True)
class Case:
    """One way to let the number of features grow.

    Attributes:
        label: in words.
        sem: number of features to model.
        d_inv: number of invariant features, and the budget K.
        penalty_weight: lambda.
        dimensions: numbers of features, d.
        sizes: numbers of samples of each environment, n.
        trials: independent draws of the data, each nested: fewer samples and features are parts of it.
    """

    label: str
    sem: Callable[[int, int], LinearSEM]
    d_inv: int
    penalty_weight: float
    dimensions: tuple[int, ...]
    sizes: tuple[int, ...]
    trials: int


@dataclass(frozen=True)
class Training:
    """How one method is trained in section B.2's setting."""

    label: str
    penalty: str
    plan: Plan
    sparsifier: ProbMask


REX = Training(
    "SparseIRM (rex)",
    "rex",
    Plan(steps=1000, lr=0.1, lr_schedule="constant", l2=0.0, penalty_weight=10.0, penalty_from=0.05),
    ProbMask(2, 0.3, 0.8, 0.8, score_lr=3e-3, score_eps=0.0, first_temperature=0.3, last_temperature=0.3),
)
IRMV1 = Training(
    "SparseIRM (irmv1)",
    "irmv1",
    Plan(steps=1000, lr=0.03, lr_schedule="constant", l2=0.0, penalty_weight=1.0, penalty_from=0.1),
    ProbMask(2, 0.1, 0.6, 0.8, score_lr=3e-3, score_eps=0.0, first_temperature=1.0, last_temperature=0.3),
)
ERM = replace(REX, label="SparseERM", plan=replace(REX.plan, penalty_weight=0.0))
TRAININGS = (REX, IRMV1, ERM)
"""Chosen by random search over some 350 settings on data of seeds 1000-1031, d = 16 and 64, n = 500;
reported are seeds from 0."""


@dataclass(frozen=True)
class Sizes:
    """Everything that decides how long the computation takes."""

    interpolation: tuple[int, ...]
    interpolation_seeds: int
    cases: tuple[Case, ...]
    weights: tuple[float, ...]
    weights_case: Case
    cells: tuple[tuple[int, int], ...]
    runs: int
    resamples: int


GRID = (10, 15, 20, 30, 40, 60, 80, 100, 120, 150, 180, 220, 260, 300, 350, 400)
FULL = Sizes(
    interpolation=(25, 50, 100),
    interpolation_seeds=20,
    cases=(
        Case(
            "K = 2, half spurious", half_spurious, 2, LAMBDA, (8, 16, 32, 64, 128, 256, 512, 1024), GRID, 200
        ),
        Case(
            "K = 2, only random", only_random, 2, LAMBDA, (8, 16, 32, 64, 128, 256, 512, 1024), GRID[:9], 200
        ),
        Case(
            "K = 3, half spurious", half_spurious, 3, 30.0, (8, 16, 32, 64, 128), (*GRID[3:], 500, 600), 200
        ),
    ),
    weights=(1.0, 3.0, 10.0, 30.0, 100.0),
    weights_case=Case("", half_spurious, 2, 0.0, (64,), (20, 50, 100, 200, 400, 800, 1600), 200),
    cells=((16, 500), (64, 500), (256, 500), (64, 100)),
    runs=12,
    resamples=500,
)
QUICK = Sizes(
    interpolation=(25,),
    interpolation_seeds=5,
    cases=(
        Case("K = 2, half spurious", half_spurious, 2, LAMBDA, (8, 16, 32, 64, 128), GRID[2:14:2], 60),
        Case("K = 2, only random", only_random, 2, LAMBDA, (8, 16, 32, 64, 128), GRID[:6], 60),
    ),
    weights=(1.0, 10.0, 100.0),
    weights_case=Case("", half_spurious, 2, 0.0, (64,), (50, 200, 800), 40),
    cells=((16, 500),),
    runs=2,
    resamples=200,
)


@dataclass(frozen=True)
class Interpolation:
    """Losses of three masks at one number of samples and features, means over seeds.

    Attributes:
        n: samples of each of the two environments.
        d: all features; the two invariant ones are among them.
        everything: ``L(Phi_all)``.
        without: ``L(Phi_sr)``, no invariant feature.
        invariant: ``L(Phi_inv)``.
        largest: the largest ``(L(Phi_all), L(Phi_sr))`` of any seed.
    """

    n: int
    d: int
    everything: float
    without: float
    invariant: float
    largest: tuple[float, float]

    @property
    def claimed(self) -> tuple[bool, bool]:
        """Whether Proposition 1 and Corollary 1 say that the first two losses are zero."""
        return self.d > 2 * self.n, self.d - 2 > 2 * self.n


def interpolation(sizes: Sequence[int], seeds: int) -> list[Interpolation]:
    """Proposition 1 and Corollary 1 where the number of features passes the number of samples.

    Args:
        sizes: samples of each environment.
        seeds: draws of the data.

    Returns:
        One row for each size and number of features, from few to four times the samples.
    """
    rows = []
    for n in sizes:
        shares = (0.04, 0.07, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.25, 1.5, 2.0)
        around = (2 * n - 1, 2 * n, 2 * n + 1, 2 * n + 2, 2 * n + 3)
        for d in sorted({*(max(4, round(share * 2 * n)) for share in shares), *around}):
            sem = half_spurious(d)
            masks = (torch.ones(d, dtype=torch.bool), ~sem.invariant, sem.invariant)
            draws = [sem.draw((n, n), seed) for seed in range(seeds)]
            losses = np.array([[mask_loss(draw, mask).at(LAMBDA) for mask in masks] for draw in draws])
            everything, without, invariant = map(float, losses.mean(0))
            largest = (float(losses[:, 0].max()), float(losses[:, 1].max()))
            rows.append(Interpolation(n, d, everything, without, invariant, largest))
    return rows


@dataclass(frozen=True)
class Identified:
    """How often the invariant mask is the strict minimiser, by samples and features.

    Attributes:
        case: what was drawn.
        breaks: ``(trials, sizes)`` smallest number of features at which it is not; infinity for none.
        exhaustive: whether every mask was looked at; otherwise probabilities are upper bounds.
        needed: samples needed for probability `CONFIDENCE` at each number of features, NaN if beyond.
        interval: 95 % interval of each, by bootstrap over trials.
        slope: samples needed for each unit of ``ln d``.
        slope_interval: its 95 % interval, by bootstrap over trials.
        offset: where the line meets ``ln d = 0``.
        fit: share of the variation over d explained by a line in ``ln d``, in ``sqrt d`` and in ``d``.
    """

    case: Case
    breaks: Floats
    exhaustive: bool
    needed: tuple[float, ...]
    interval: tuple[tuple[float, float], ...]
    slope: float
    slope_interval: tuple[float, float]
    offset: float
    fit: tuple[float, float, float]

    def probability(self, d: int) -> Floats:
        """Share of trials in which the statement of Theorem 1 holds, ``(sizes,)``."""
        return np.asarray((self.breaks > d).mean(0), dtype=np.float64)


def identified(case: Case, resamples: int) -> Identified:
    """Theorem 1: when is the invariant mask the strict minimiser among all masks of at most K features?

    Args:
        case: the draws.
        resamples: bootstrap resamples of the trials.

    Returns:
        Probabilities, the samples needed, and a line through them.
    """
    found = [_breaks(case, seed) for seed in range(case.trials)]
    breaks = np.array([row for row, _ in found])
    needed = samples_needed(breaks, case.dimensions, case.sizes)
    noise = np.random.default_rng(seed_of(0, "theory bootstrap"))
    picks = noise.integers(case.trials, size=(resamples, case.trials))
    again = np.array([samples_needed(breaks[pick], case.dimensions, case.sizes) for pick in picks])
    log_d = np.log(case.dimensions)
    lines = np.array([line(log_d, row) for row in again])
    slope, offset = line(log_d, needed)
    return Identified(
        case,
        breaks,
        all(exhaustive for _, exhaustive in found),
        tuple(map(float, needed)),
        tuple(middle(column) for column in again.T),
        slope,
        middle(lines[:, 0]),
        offset,
        (
            explained(log_d, needed),
            explained(np.sqrt(case.dimensions), needed),
            explained(np.asarray(case.dimensions, dtype=np.float64), needed),
        ),
    )


def _breaks(case: Case, seed: int) -> tuple[list[float], bool]:
    """For each number of samples, the smallest number of features with a rival, in one draw of the data."""
    d, n_most = max(case.dimensions), max(case.sizes)
    sem = case.sem(d, case.d_inv)
    samples = sem.draw([n_most] * sem.n_envs, seed)
    x = samples.x[:, _mixed(sem)]
    within = torch.arange(n_most).repeat(sem.n_envs)
    row, exhaustive = [], True
    for n in case.sizes:
        own, at = within < n, math.inf
        for width in sorted({min(32, d), min(128, d), min(512, d), d}):
            part = Batch(x[own, :width], samples.y[own], samples.env[own])
            result = search(part, case.d_inv, case.penalty_weight, most=LARGEST_SEARCH)
            exhaustive &= result.exhaustive
            if result.breaks_at is not None:
                at = result.breaks_at
                break
        row.append(at)
    return row, exhaustive


def _mixed(sem: LinearSEM) -> Tensor:
    """Columns reordered so that every stretch from the first on holds spurious and random ones alike."""
    spurious = (torch.arange(sem.d_s) + 0.5) / max(sem.d_s, 1)
    noise = (torch.arange(sem.d_r) + 0.6) / max(sem.d_r, 1)
    order = torch.cat([spurious, noise]).argsort(stable=True)
    return torch.cat([torch.arange(sem.d_inv), order + sem.d_inv])


def samples_needed(breaks: Floats, dimensions: Sequence[int], sizes: Sequence[int]) -> Floats:
    """The number of samples at which the probability reaches `CONFIDENCE`, for each number of features.

    Probabilities are first made to rise with the number of samples (isotonic regression), then joined by
    straight lines.

    Args:
        breaks: ``(trials, sizes)`` as in `Identified`.
        dimensions: numbers of features.
        sizes: numbers of samples, ascending.

    Returns:
        ``(dimensions,)``, NaN where no or every number of samples is enough.

    Example:
        >>> samples_needed(np.array([[4.0, 9.0], [4.0, 9.0]]), [8, 16], [10, 20])
        array([19., nan])
    """
    needed = []
    for d in dimensions:
        rising = isotonic_regression((breaks > d).mean(0)).x
        reached = np.flatnonzero(rising >= CONFIDENCE - 1e-12)
        if not len(reached) or reached[0] == 0:
            needed.append(math.nan)
            continue
        k = int(reached[0])
        step = (CONFIDENCE - rising[k - 1]) / (rising[k] - rising[k - 1])
        needed.append(sizes[k - 1] + float(step) * (sizes[k] - sizes[k - 1]))
    return np.array(needed)


@dataclass(frozen=True)
class Discovery:
    """What one method keeps, over seeds.

    Attributes:
        method: in words.
        d: number of features.
        n: samples of each environment.
        kept: for each seed, how many invariant, spurious and random features the final mask keeps.
    """

    method: str
    d: int
    n: int
    kept: tuple[tuple[int, int, int], ...]

    @property
    def found(self) -> int:
        """In how many seeds the mask is exactly the invariant one."""
        return sum(kept == (2, 0, 0) for kept in self.kept)

    @property
    def means(self) -> tuple[float, ...]:
        """Mean numbers of invariant, spurious and random features kept."""
        return tuple(float(column) for column in np.mean(self.kept, axis=0))


def discovery(cells: Sequence[tuple[int, int]], runs: int) -> list[Discovery]:
    """Does optimisation find the invariant mask? K = 2 of d features, beside the exact minimiser.

    Args:
        cells: pairs of d and n.
        runs: seeds of data, initial weights and gates.

    Returns:
        One row for each method and cell.
    """
    rows = []
    for d, n in cells:
        sem = half_spurious(d)
        draws = [linear_sem(sem, n_train=n, n_test=1, seed=seed) for seed in range(runs)]
        masks: dict[str, list[Tensor]] = {
            "every mask tried": [best_mask(data.train.samples, 2, LAMBDA) for data in draws],
            "least squares, top K": [largest_weights(data.train.samples, 2) for data in draws],
        }
        for how in TRAININGS:
            masks[how.label] = [
                learned_mask(data, how.sparsifier, PENALTIES[how.penalty], how.plan, seed)
                for seed, data in enumerate(draws)
            ]
        rows += [
            Discovery(name, d, n, tuple(_kept(mask, sem) for mask in chosen))
            for name, chosen in masks.items()
        ]
    return rows


def _kept(mask: Tensor, sem: LinearSEM) -> tuple[int, int, int]:
    invariant, spurious = int(mask[sem.invariant].sum()), int(mask[sem.spurious].sum())
    return invariant, spurious, int(mask.sum()) - invariant - spurious


@dataclass(frozen=True)
class TheoryReport:
    """All numbers of the computation.

    Attributes:
        quick: whether the small sizes were used.
        interpolation: Proposition 1 and Corollary 1.
        identified: Theorem 1, one for each case.
        weights: Theorem 1 at one number of features, for several penalty weights.
        discovery: what optimisation finds.
        seconds: time of each part.
    """

    quick: bool
    interpolation: tuple[Interpolation, ...]
    identified: tuple[Identified, ...]
    weights: tuple[Identified, ...]
    discovery: tuple[Discovery, ...]
    seconds: dict[str, float]

    @staticmethod
    def from_json(payload: dict[str, Any]) -> TheoryReport:
        """The report of a ``theory.json``."""
        parts = _restored(payload)
        return TheoryReport(
            parts["quick"],
            tuple(Interpolation(**each) for each in parts["interpolation"]),
            tuple(map(_identified, parts["identified"])),
            tuple(map(_identified, parts["weights"])),
            tuple(Discovery(**each) for each in parts["discovery"]),
            parts["seconds"],
        )


def _identified(parts: dict[str, Any]) -> Identified:
    sems = {sem.__name__: sem for sem in (half_spurious, only_random)}
    case = Case(**{**parts["case"], "sem": sems[parts["case"]["sem"]]})
    return Identified(**{**parts, "case": case, "breaks": np.nan_to_num(parts["breaks"], nan=np.inf)})


def _restored(value: Any) -> Any:
    """Plain data with tuples for lists and NaN for None, within each other."""
    if isinstance(value, dict):
        return {name: _restored(part) for name, part in value.items()}
    if isinstance(value, list):
        return tuple(map(_restored, value))
    return math.nan if value is None else value


def compute(quick: bool = False) -> TheoryReport:
    """Compute everything, with the declared sizes and seeds.

    Args:
        quick: a small version, in under half a minute.

    Returns:
        The report.
    """
    sizes, seconds = (QUICK if quick else FULL), {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.perf_counter() - clock, time.perf_counter()

    crossing = tuple(interpolation(sizes.interpolation, sizes.interpolation_seeds))
    lap("Proposition 1 and Corollary 1")
    cases = tuple(identified(case, sizes.resamples) for case in sizes.cases)
    lap("Theorem 1")
    weighted = (replace(sizes.weights_case, penalty_weight=weight) for weight in sizes.weights)
    weights = tuple(identified(case, sizes.resamples) for case in weighted)
    lap("penalty weights")
    kept = tuple(discovery(sizes.cells, sizes.runs))
    lap("optimisation")
    return TheoryReport(quick, crossing, cases, weights, kept, seconds)
