"""Candidates on environments left out and on rows left out, in processes of one thread each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, as_completed
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sparseirm.core import NonFiniteError, SettingError
from sparseirm.experiments.executors import Handle, Submitter
from sparseirm.monitor import counted, listed
from sparseirm.study.assessment import Assessment, Candidate, Sample, assess
from sparseirm.study.problem import Problem
from sparseirm.table.thinning import thinned

MOST_FOLDS = 8
"""Groups of environments that are left out in turn, if there are more environments."""

FEWEST_FOLDS = 3
"""Parts the rows of each environment are split into, one of which is left out; more seeds make more parts."""


def candidates(n_columns: int, kept: Sequence[int] = (), steps: int | None = None) -> list[Candidate]:
    """ERM, IRM with REx, and SparseIRM: gates on weights, columns searched or screened, gates on columns.

    Args:
        n_columns: number of columns in use.
        kept: numbers of columns that gates keep; by default a quarter of them.
        steps: optimiser steps of each fit; None for the default.

    Returns:
        The candidates, the simplest first.

    Raises:
        SettingError: if a number of columns is not between 1 and ``n_columns``.

    Example:
        >>> [candidate.name for candidate in candidates(20)]
        ['erm', 'irm', 'sparseirm', 'sparseirm-search', 'sparseirm-screen', 'sparseirm-5']
    """
    for k in kept:
        if not 1 <= k <= n_columns:
            raise SettingError(f"`columns` must lie between 1 and the {n_columns} columns in use; got {k}.")
    numbers = sorted(set(kept) or {max(1, round(n_columns / 4))})
    length = {} if steps is None else {"steps": steps}
    return [
        Candidate("erm", "ERM", {"method": "erm", **length}),
        Candidate("irm", "IRM (REx)", {"method": "irm", **length}),
        Candidate("sparseirm", "SparseIRM, gates on weights", {"gates": "weights", **length}),
        Candidate("sparseirm-search", "SparseIRM, columns searched", {"gates": "search", **length}),
        Candidate("sparseirm-screen", "SparseIRM, columns screened", {"gates": "screen", **length}),
        *(
            Candidate(
                name=f"sparseirm-{k}",
                label=f"SparseIRM, gates on {counted(k, 'column')}",
                parameters={"gates": "columns", "budget": k, **length},
                columns=k,
            )
            for k in numbers
        ),
    ]


@dataclass(frozen=True)
class Fold:
    """Which rows one fit trains on, and which it is looked at on.

    Attributes:
        kind: ``held out`` or ``fresh``, see `sparseirm.study.assessment.Assessment`.
        seed: seed of the fits.
        train: places of the training rows.
        fresh: places of the rows to look at.
    """

    kind: str
    seed: int
    train: NDArray[np.int64]
    fresh: NDArray[np.int64]


def folds(problem: Problem, seeds: Sequence[int], most_rows: int) -> list[Fold]:
    """Leave out environments in turn, and in every environment parts of the rows, for every seed.

    Environments are left out only if there are three or more for training: with two, one would be left, and
    a method that compares environments would have nothing to compare.

    Args:
        problem: the problem; rows of test environments are in no fold.
        seeds: seeds of the fits; each leaves out other rows.
        most_rows: rows used at most, drawn from every environment and class alike.

    Returns:
        The folds.

    Raises:
        SettingError: if a class has no training row in one of them.
    """
    rows = _thinned(problem, most_rows)
    env = problem.env[rows]
    found = []
    if problem.n_train_envs >= 3:
        sizes = np.bincount(env, minlength=problem.n_train_envs)
        group = np.empty(problem.n_train_envs, dtype=np.int64)
        group[np.argsort(-sizes, kind="stable")] = np.arange(problem.n_train_envs) % MOST_FOLDS
        for out in range(min(problem.n_train_envs, MOST_FOLDS)):
            held = group[env] == out
            found += [Fold("held out", seed, rows[~held], rows[held]) for seed in seeds]
    parts = max(FEWEST_FOLDS, len(seeds))
    for at, seed in enumerate(seeds):
        left = np.arange(len(rows)) % parts == at
        found.append(Fold("fresh", seed, rows[~left], rows[left]))
    if problem.classes:
        _check_classes(problem, found)
    return found


def _check_classes(problem: Problem, found: Sequence[Fold]) -> None:
    """Refuse folds in which a class is to be predicted that training does not know."""
    codes = problem.codes.astype(np.int64)
    for part in found:
        unknown = np.setdiff1d(codes[part.fresh], codes[part.train])
        if len(unknown):
            held = [problem.names[e] for e in np.unique(problem.env[part.fresh])]
            out = listed([repr(name) for name in held]) if part.kind == "held out" else "a part of the rows"
            raise SettingError(
                f"class {problem.classes[unknown[0]]} of {problem.target!r} has no training row when {out} "
                "is left out; it could not be predicted. Merge it with another, or remove its rows."
            )


def _thinned(problem: Problem, most_rows: int) -> NDArray[np.int64]:
    """Places of the training rows, about so many, shuffled within environments and classes."""
    rows = problem.training
    by_class = problem.codes[rows].astype(np.int64) if problem.classes else 0
    return rows[thinned(problem.env[rows] * (len(problem.classes) + 1) + by_class, most_rows)]


def compare_candidates(
    problem: Problem,
    chosen: Sequence[Candidate],
    parts: Sequence[Fold],
    executor: Submitter,
    on_done: Callable[[], None] = lambda: None,
) -> list[Assessment]:
    """Every candidate on every fold.

    Args:
        problem: the problem.
        chosen: the candidates.
        parts: the folds.
        executor: where to run.
        on_done: called after every fit.

    Returns:
        One assessment per candidate and fold, in that order.

    Raises:
        SettingError: if a fit fails; the message names candidate and reason.
    """
    tests = _sample(problem, problem.testing) if len(problem.testing) else None
    rows = [(_sample(problem, part.train), _sample(problem, part.fresh)) for part in parts]
    jobs: list[tuple[Candidate, Handle]] = []
    for candidate in chosen:
        for part, (train, fresh) in zip(parts, rows, strict=True):
            test = tests if part.kind == "fresh" else None
            arguments = (candidate, bool(problem.classes), part.kind, part.seed, train, fresh, test)
            jobs.append((candidate, executor.submit(assess, *arguments)))
    return gathered(jobs, on_done)


def gathered(jobs: Sequence[tuple[Candidate, Handle]], on_done: Callable[[], None]) -> list[Any]:
    """What jobs returned, in their order, once all are done or one has failed.

    Args:
        jobs: candidates with their jobs.
        on_done: called after every job.

    Returns:
        The results.

    Raises:
        SettingError: if one fails; the message names candidate and reason.
    """
    label = {cast("Future[Any]", job): candidate.label for candidate, job in jobs}
    for job in as_completed(label):
        try:
            job.result()
        except BrokenExecutor:
            raise SettingError(
                "a process died, perhaps for want of memory; lower `rows` or `workers`."
            ) from None
        except (ValueError, NonFiniteError) as error:
            raise SettingError(f"{label[job]} could not be fitted: {error}") from None
        on_done()
    return [job.result() for _, job in jobs]


def _sample(problem: Problem, rows: NDArray[np.int64]) -> Sample:
    names = np.array(problem.names, dtype=object)
    return Sample(problem.inputs.iloc[rows], problem.y[rows], names[problem.env[rows]])
