"""The health monitor: what is odd about the data, a run or a comparison, and what to do about it.

Before training it looks at rows and environments, during training at the penalty, afterwards at what came of
it. Every remark is a `Finding`. It looks only: nothing here changes a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sparseirm.core import Outputs, Penalty
from sparseirm.penalties import no_penalty
from sparseirm.training.state import Plan

SEVERITIES = ("good", "note", "warning", "problem")
"""How much a finding matters: nothing to do, worth knowing, look into it, do not trust the result."""

LEVEL = 0.01
"""Chance of a false alarm of a whole family of tests, Holm-corrected."""

FEW_ROWS = 100
"""Rows below which an environment says little about itself."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """One remark of the monitor.

    Attributes:
        stage: ``before``, ``during`` or ``after`` training.
        severity: one of `SEVERITIES`.
        name: a short name for what it is about.
        seen: what was seen, with its numbers.
        do: what to do about it.
    """

    stage: str
    severity: str
    name: str
    seen: str
    do: str


# Before: rows and environments.


def before(
    x: Floats, y: Floats, env: NDArray[np.int64], names: Sequence[str], classes: Sequence[str]
) -> list[Finding]:
    """What the training rows say before anything is trained.

    Args:
        x: ``(n, d)`` inputs, such as encoded columns.
        y: ``(n,)`` class numbers, or targets.
        env: ``(n,)`` environment numbers.
        names: name of each environment.
        classes: name of each class; empty for regression.

    Returns:
        The findings, in the order of the questions: enough environments, enough rows, labels, differences.
    """
    found = [*_number_of_environments(names), *_sizes(env, names)]
    found += _labels(y, env, names, classes) if classes else []
    if len(names) > 1:
        found += [*_environment_predicts(y, env, classes), *_differences(x, y, env, classes)]
    return found


def _number_of_environments(names: Sequence[str]) -> list[Finding]:
    seen = f"{counted(len(names), 'training environment')}: {listed(names)}"
    if len(names) == 1:
        do = "Invariance needs two or more; name a column that says where or when each row was taken."
        return [Finding("before", "problem", "environments", f"{seen}.", do)]
    if len(names) == 2:
        do = (
            "A spurious column must differ between these two to be seen, and leaving one out to test leaves "
            "nothing to compare. A third environment, even a small one, helps most."
        )
        return [Finding("before", "warning", "environments", f"Only {seen}.", do)]
    return [Finding("before", "good", "environments", f"{seen}.", "Nothing.")]


def _sizes(env: NDArray[np.int64], names: Sequence[str]) -> list[Finding]:
    counts = np.bincount(env, minlength=len(names))
    small = [f"{names[e]} ({counts[e]})" for e in np.argsort(counts) if counts[e] < FEW_ROWS]
    if small:
        return [
            Finding(
                *("before", "warning", "small environments"),
                f"Few rows in {listed(small)}.",
                "Environments count alike in the loss, however small: merge small ones that belong together.",
            )
        ]
    return []


def _labels(y: Floats, env: NDArray[np.int64], names: Sequence[str], classes: Sequence[str]) -> list[Finding]:
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (env, y.astype(int)), 1)
    found = []
    absent = [f"{classes[c]} in {names[e]}" for e, c in np.argwhere(table == 0)]
    if absent:
        found.append(
            Finding(
                *("before", "warning", "absent class"),
                f"No row of class {listed(absent)}.",
                "There the model cannot learn what sets that class apart, and the environment itself becomes "
                "a clue. Collect such rows, or drop the class or the environment.",
            )
        )
    share = table.sum(0) / table.sum()
    if share.min() < 0.05:
        rare = classes[int(share.argmin())]
        found.append(
            Finding(
                *("before", "note", "rare class"),
                f"Class {rare} makes up {share.min():.1%} of the rows.",
                "Accuracy hardly sees it; look at the risk as well, and consider class weights.",
            )
        )
    return found


def _environment_predicts(y: Floats, env: NDArray[np.int64], classes: Sequence[str]) -> list[Finding]:
    """How much of the target's variation the environment alone explains (eta squared, over all classes)."""
    targets = _targets(y, classes)
    centred = targets - targets.mean(0)
    counts = np.bincount(env)
    sums = np.stack([np.bincount(env, weights=column) for column in centred.T], axis=1)
    explained = float((sums**2 / counts[:, None]).sum() / max((centred**2).sum(), 1e-300))
    if explained < 0.05:
        return []
    what = "labels" if classes else "the target"
    return [
        Finding(
            *("before", "warning", "environment predicts the target"),
            f"The environment alone explains {explained:.0%} of the variation of {what}.",
            "Columns that merely tell environments apart then look useful. Balance the classes within "
            "environments (class weights do not), or predict the deviation from the environment's mean.",
        )
    ]


def _differences(x: Floats, y: Floats, env: NDArray[np.int64], classes: Sequence[str]) -> list[Finding]:
    shifted = holm(shift_of_columns(x, env)) < LEVEL
    changed = holm(change_of_relations(x, y, env, classes)) < LEVEL
    if not shifted.any() and not changed.any():
        return [
            Finding(
                *("before", "warning", "alike environments"),
                "No column differs between environments, in its values or in its relation to the target.",
                "There is nothing for invariance to hold against: expect plain training to do as well. Check "
                "that the environment column says where or when rows were taken.",
            )
        ]
    return [
        Finding(
            *("before", "good", "environments differ"),
            f"Between environments {shifted.sum()} of {len(shifted)} inputs differ in their values, and "
            f"{changed.sum()} in their relation to the target.",
            "Nothing; the second number is what invariance needs.",
        )
    ]


def shift_of_columns(x: Floats, env: NDArray[np.int64]) -> Floats:
    """Do the values of each column differ between environments? Kruskal-Wallis tests.

    Args:
        x: ``(n, d)``.
        env: ``(n,)`` environment numbers, two or more.

    Returns:
        p-value of each column, ``(d,)``, not corrected; 1 for a constant.
    """
    groups = [x[env == e] for e in range(int(env.max()) + 1)]
    found = np.ones(x.shape[1])
    for at in range(x.shape[1]):
        if np.ptp(x[:, at]) > 0:
            found[at] = stats.kruskal(*(group[:, at] for group in groups)).pvalue
    return found


def change_of_relations(x: Floats, y: Floats, env: NDArray[np.int64], classes: Sequence[str]) -> Floats:
    """Does the slope of the target on each column, by itself, differ between environments?

    Cochran's Q of the environments' least-squares slopes (robust standard errors), against chi-squared with
    one degree of freedom less than environments. For several classes the smallest p-value over the classes,
    times their number.

    Args:
        x: ``(n, d)``.
        y: ``(n,)`` class numbers, or targets.
        env: ``(n,)`` environment numbers, two or more.
        classes: name of each class; empty for regression.

    Returns:
        p-value of each column, ``(d,)``, not corrected for the number of columns; 1 where a column is
        constant in all environments but one.
    """
    targets = _targets(y, classes)
    slopes, weights = [], []
    for e in range(int(env.max()) + 1):
        inputs = x[env == e] - x[env == e].mean(0)
        outputs = targets[env == e] - targets[env == e].mean(0)
        power = (inputs**2).sum(0)[:, None]
        usable = power > 1e-9 * len(inputs)
        slope = (inputs.T @ outputs) / np.where(usable, power, 1)
        # Sum over rows of (x * residual)**2, written out so that no (n, d, k) array is made.
        squares = (inputs**2).T @ outputs**2 - 2 * slope * ((inputs**3).T @ outputs)
        squares += slope**2 * (inputs**4).sum(0)[:, None]
        variance = squares / np.where(usable, power, 1) ** 2
        slopes.append(slope)
        weights.append(np.where(usable & (variance > 0), 1 / np.maximum(variance, 1e-300), 0))
    slope, weight = np.stack(slopes), np.stack(weights)
    centre = (weight * slope).sum(0) / np.maximum(weight.sum(0), 1e-300)
    q = (weight * (slope - centre) ** 2).sum(0)
    freedom = (weight > 0).sum(0) - 1
    p = np.where(freedom > 0, stats.chi2.sf(q, np.maximum(freedom, 1)), 1.0)
    smallest: Floats = np.minimum(1.0, p.min(1) * p.shape[1])
    return smallest


def _targets(y: Floats, classes: Sequence[str]) -> Floats:
    """``(n, k)``: the target, one class against the other, or one column per class."""
    if len(classes) > 2:
        return cast(Floats, np.eye(len(classes))[y.astype(int)])
    return y.astype(np.float64)[:, None]


def holm(p: Floats) -> Floats:
    """p-values corrected for their number, Holm 1979.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return cast(Floats, np.minimum(1.0, stepped)[np.argsort(order)])


# During: the penalty and the network.


@dataclass(frozen=True)
class Trace:
    """One look at a run.

    Attributes:
        step: steps taken before it.
        risks: risk of each environment.
        penalty: the penalty, unweighted.
        weight: lambda of the step.
        share: share of the penalty in the gradient by the weights, ``lambda |p| / (lambda |p| + |r|)`` of the
            norms of both gradients; 0 while lambda is.
        reaches: whether the penalty has a gradient by the weights that is not zero.
        spread: standard deviation of the logits.
    """

    step: int
    risks: tuple[float, ...]
    penalty: float
    weight: float
    share: float
    reaches: bool
    spread: float


@dataclass
class Probe:
    """A penalty that is watched: it gives the same values, and looks at the run every so often.

    Attributes:
        penalty: the penalty, or None for one that is always zero.
        plan: the plan of the run.
        looks: how many looks a run gets.
        traces: what was seen.
        step: steps seen.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> from sparseirm.penalties import rex
        >>> w = torch.ones(1, requires_grad=True)
        >>> z, env = w * torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
        >>> probe = Probe(rex, Plan(steps=10, penalty_weight=1.0, penalty_from=0.0))
        >>> probe(Outputs(z, torch.zeros(2), env, 2, SQUARED, parameters=(w,))).item()
        2.25
        >>> probe.traces[0].risks, round(probe.traces[0].share, 2)
        ((1.0, 4.0), 0.64)
    """

    penalty: Penalty | None
    plan: Plan
    looks: int = 20
    traces: list[Trace] = field(default_factory=list)
    step: int = 0

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass."""
        value = no_penalty(out) if self.penalty is None else self.penalty(out)
        if self.step % max(1, self.plan.steps // self.looks) == 0 or self.step == self.plan.steps - 1:
            self.traces.append(self._look(out, value))
        self.step += 1
        return value

    def _look(self, out: Outputs, value: Tensor) -> Trace:
        weight = self.plan.penalty_weight_at(self.step)
        risk, penalty = _slope(out.risks.mean(), out), _slope(value, out)
        total = risk + weight * penalty
        return Trace(
            step=self.step,
            risks=tuple(out.risks.tolist()),
            penalty=float(value.detach()),
            weight=weight,
            share=weight * penalty / total if total > 0 else 0.0,
            reaches=self.penalty is None or penalty > 0,
            spread=float(out.logits.detach().double().std(correction=0)),
        )


def _slope(value: Tensor, out: Outputs) -> float:
    """Norm of the gradient by the weights the pass ran with."""
    parameters = [p for p in out.parameters if p.requires_grad]
    if not parameters or not value.requires_grad:
        return 0.0
    pieces = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(
        sum(float(piece.detach().double().square().sum()) for piece in pieces if piece is not None)
    )


def during(
    traces: Sequence[Trace],
    *,
    budget: int,
    kept: int,
    undecided: float | None,
    constant_risk: float | None = None,
) -> list[Finding]:
    """What a finished run says about itself.

    Args:
        traces: the looks at it, first to last.
        budget: K asked for, in the unit of ``kept``.
        kept: K achieved.
        undecided: fraction of mask probabilities that are neither 0 nor 1, or None without any.
        constant_risk: mean training risk of the best constant prediction, to recognise a collapse.

    Returns:
        The findings; none for a run without remarks.
    """
    found, last = [], traces[-1]
    acting = [trace for trace in traces if trace.weight > 0]
    if acting and not any(trace.reaches for trace in acting):
        found.append(
            Finding(
                *("during", "problem", "penalty without gradient"),
                "The penalty never had a gradient by the weights.",
                "With one environment, or a penalty detached from the network, it does nothing: check both.",
            )
        )
    elif acting:
        found += _share(float(np.mean([trace.share for trace in acting[len(acting) // 2 :]])))
    if constant_risk is not None and np.mean(last.risks) > 0.98 * constant_risk:
        found.append(
            Finding(
                *("during", "problem", "collapse"),
                f"Training risk {np.mean(last.risks):.3g} is no better than a constant's, "
                f"{constant_risk:.3g} (standard deviation of the logits {last.spread:.2g}).",
                "Lower the penalty weight or the L2 weight, keep more columns, or train for more steps.",
            )
        )
    gap = max(last.risks) - min(last.risks)
    if acting and gap > 0.25 * float(np.mean(last.risks)):
        found.append(
            Finding(
                *("during", "note", "uneven risks"),
                f"The training risks still range from {min(last.risks):.3g} to {max(last.risks):.3g}.",
                "Raise the penalty weight or keep fewer columns; or environments differ in noise, which no "
                "predictor can change.",
            )
        )
    if undecided is not None and undecided > 0.05:
        found.append(
            Finding(
                *("during", "warning", "undecided mask"),
                f"{undecided:.0%} of the mask's probabilities are neither 0 nor 1.",
                "The mask is partly a coin toss: decide it earlier (`decide_at`) or raise `score_lr`.",
            )
        )
    if kept != budget:
        found.append(
            Finding(
                *("during", "note" if kept < budget else "problem", "budget missed"),
                f"Asked to keep {budget}, kept {kept}.",
                "Groups stay or go whole, so fewer is usual with groups; more is a fault of the sparsifier.",
            )
        )
    return found


def _share(share: float) -> Iterable[Finding]:
    if share < 0.01:
        yield Finding(
            *("during", "warning", "faint penalty"),
            f"The penalty's share of the gradient was {share:.2%} in the second half of its time.",
            "It hardly acts: raise the penalty weight.",
        )
    elif share > 0.99:
        yield Finding(
            *("during", "note", "strong penalty"),
            f"The penalty's share of the gradient was {share:.1%} in the second half of its time.",
            "The risk hardly counts: if the fit is poor, lower the penalty weight.",
        )


# After: is it better than plain training?


@dataclass(frozen=True)
class Interval:
    """A mean over environments, with its 95 % interval (Student's t).

    Attributes:
        mean: the mean.
        low: lower end; minus infinity for one environment.
        high: upper end.
    """

    mean: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Interval:
        """The interval of the mean of independent values.

        >>> found = Interval.of([1.0, 2.0, 3.0])
        >>> round(found.low, 3), found.mean, round(found.high, 3)
        (-0.484, 2.0, 4.484)
        """
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return Interval(mean, -math.inf, math.inf)
        half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half)


def after(gain: Interval, unit: str, better_named: str) -> Finding:
    """Whether a method beats plain training on held-out environments beyond noise.

    Args:
        gain: score of the method minus that of ERM, paired by environment, larger is better.
        unit: what the score is, such as ``accuracy``.
        better_named: name of the method, for the message.

    Returns:
        One finding, in whichever direction.
    """
    seen = f"{better_named} against ERM on held-out environments: {gain.mean:+.3g} {unit}"
    seen += f" ({gain.low:+.3g} to {gain.high:+.3g})." if math.isfinite(gain.low) else "."
    if gain.low > 0:
        return Finding("after", "good", "better than ERM", seen, "Use it.")
    if gain.high < 0:
        do = (
            "For environments that differ no more than these, ERM predicts better. What is paid here buys "
            "safety in ones that differ more: decide whether yours will."
        )
        return Finding("after", "warning", "price of invariance", seen, do)
    return Finding(
        "after",
        "note",
        "as good as ERM",
        seen,
        "ERM is as good here, within noise: prefer it, unless new environments differ more than these do.",
    )


def counted(n: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "row"), counted(0, "row")
    ('1 row', '0 rows')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names with commas between them; those beyond ``most`` are only counted.

    >>> listed(["a", "b", "c"], most=1)
    'a and 2 more'
    """
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
