"""Rules that choose the step of a run whose accuracy is reported, from its trajectory.

All rules choose among the evaluated steps whose network keeps no more weights than it was allowed to: a
sparse method's first steps, before its budget is reached, are no results of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from sparseirm.core import SettingError
from sparseirm.evaluation.metrics import Score

RULES = {
    "last": "the last step: what we report, nothing is chosen",
    "train_val": "best accuracy on held-out samples of the training environments",
    "leave_one_env_out": "best accuracy on training environments left out, each in a run of its own",
    "oracle": "best accuracy on the test environments: an upper bound, not a result",
}
"""The rules by name, in words."""

TWO_ENVIRONMENTS = (
    "needs three or more training environments: without one of two, a single one is left to train on, and "
    "that says nothing about what differs between environments"
)
"""Why leave-one-environment-out is refused."""

SLACK = 1.01
"""How much more than its budget a network may keep: masks that are drawn differ by a little."""


class Evaluated(Protocol):
    """One evaluation on the way; `sparseirm.runs.Point` is one."""

    @property
    def step(self) -> int:
        """Optimiser steps taken."""
        ...

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        ...

    @property
    def scores(self) -> Mapping[str, Score]:
        """Score by split."""
        ...


P = TypeVar("P", bound=Evaluated)


def within_budget(trajectory: Sequence[P], density: float) -> list[P]:
    """The evaluations a rule may choose from: those that keep ``density`` or less, and the last."""
    return [*(point for point in trajectory[:-1] if point.density <= SLACK * density), trajectory[-1]]


def best(points: Sequence[P], split: str) -> P:
    """The most accurate on a split; of equals, the last.

    Args:
        points: evaluations, in order.
        split: ``val`` for the rule train_val, ``test`` for oracle.

    Returns:
        One of them.

    Raises:
        SettingError: if the data set has no such split.
    """
    if any(split not in point.scores for point in points):
        raise SettingError(f"the data set has no split {split!r} to choose by.")
    return max(points, key=lambda point: (point.scores[split].accuracy, point.step))


def leave_one_env_out(points: Sequence[P], rounds: Sequence[Sequence[P]]) -> P:
    """The step with the best mean accuracy on environments that were left out.

    Args:
        points: evaluations of the run on all training environments.
        rounds: trajectories of the same run without each of them, which is their ``val``.

    Returns:
        The evaluation of ``points`` at that step; of equals, the last.

    Raises:
        SettingError: if there are fewer than three rounds, or they share no step with ``points``.
    """
    if len(rounds) < 3:
        raise SettingError(f"leave_one_env_out {TWO_ENVIRONMENTS}.")
    accuracy = [{point.step: point.scores["val"].accuracy for point in left_out} for left_out in rounds]
    shared = [point for point in points if all(point.step in of_round for of_round in accuracy)]
    if not shared:
        raise SettingError("the runs were evaluated at different steps; give them the same `eval_every`.")
    return max(shared, key=lambda point: (sum(of_round[point.step] for of_round in accuracy), point.step))
