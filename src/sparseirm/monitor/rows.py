"""Before training: what rows and environments say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sparseirm.monitor.findings import Finding, counted, listed

LEVEL = 0.01
"""Chance of a false alarm of a whole family of tests, Holm-corrected."""

FEW_ROWS = 100
"""Rows below which an environment says little about itself."""

Floats = NDArray[np.float64]


def before(
    x: Floats,
    y: Floats,
    env: NDArray[np.int64],
    names: Sequence[str],
    classes: Sequence[str],
    images: bool = False,
) -> list[Finding]:
    """What the training rows say before anything is trained.

    Args:
        x: ``(n, d)`` inputs, such as encoded columns.
        y: ``(n,)`` class numbers, or targets.
        env: ``(n,)`` environment numbers.
        names: name of each environment.
        classes: name of each class; empty for regression.
        images: whether rows are images and columns parts of them, for the words.

    Returns:
        The findings, in the order of the questions: enough environments, enough rows, labels, differences.
    """
    thing = "image" if images else "row"
    found = [*_number_of_environments(names), *_sizes(env, names, thing)]
    found += _labels(y, env, names, classes, thing) if classes else []
    if len(names) > 1:
        found += [*_environment_predicts(y, env, classes), *_differences(x, y, env, classes, images)]
    return found


def spellings(groups: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Names that differ only in capitals, and so count as different.

    Args:
        groups: by what they are, such as ``environments``, the names.

    Returns:
        A finding for each group that has such names.

    Example:
        >>> spellings({"environments": ["Aachen", "AACHEN", "Ulm"]})[0].seen
        'Of the environments these differ only in capitals: Aachen and AACHEN.'
    """
    found = []
    for what, names in groups.items():
        alike = defaultdict(list)
        for name in names:
            alike[name.casefold()].append(name)
        pairs = [" and ".join(same) for same in alike.values() if len(same) > 1]
        if pairs:
            found.append(
                Finding(
                    *("before", "warning", "spellings"),
                    f"Of the {what} these differ only in capitals: {listed(pairs)}.",
                    "They count as different: if they are the same, spell them alike and fit again.",
                )
            )
    return found


def _number_of_environments(names: Sequence[str]) -> list[Finding]:
    seen = f"{counted(len(names), 'training environment')}: {listed(names)}"
    if len(names) == 1:
        do = "Invariance needs two or more; name a column that says where or when each row was taken."
        return [Finding("before", "problem", "environments", f"{seen}.", do)]
    if len(names) == 2:
        do = (
            "What misleads must differ between these two to be seen, and leaving one out to test leaves "
            "nothing to compare. A third environment, even a small one, helps most."
        )
        return [Finding("before", "warning", "environments", f"Only {seen}.", do)]
    return [Finding("before", "good", "environments", f"{seen}.", "Nothing.")]


def _sizes(env: NDArray[np.int64], names: Sequence[str], thing: str) -> list[Finding]:
    counts = np.bincount(env, minlength=len(names))
    small = [f"{names[e]} ({counts[e]})" for e in np.argsort(counts) if counts[e] < FEW_ROWS]
    if small:
        return [
            Finding(
                *("before", "warning", "small environments"),
                f"Few {thing}s in {listed(small)}.",
                "Environments count alike in the loss, however small: merge small ones that belong together.",
            )
        ]
    return []


def _labels(
    y: Floats, env: NDArray[np.int64], names: Sequence[str], classes: Sequence[str], thing: str
) -> list[Finding]:
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (env, y.astype(int)), 1)
    found = []
    absent = [f"{classes[c]} in {names[e]}" for e, c in np.argwhere(table == 0)]
    if absent:
        found.append(
            Finding(
                *("before", "warning", "absent class"),
                f"No {thing} of class {listed(absent)}.",
                "There the model cannot learn what sets that class apart, and the environment itself becomes "
                f"a clue. Collect such {thing}s, or drop the class or the environment.",
            )
        )
    share = table.sum(0) / table.sum()
    if share.min() < 0.05:
        rare = classes[int(share.argmin())]
        weigh = " From Python, `class_weight` of `SparseIRMClassifier` makes it count more." * (
            thing == "row"
        )
        found.append(
            Finding(
                *("before", "note", "rare class"),
                f"Class {rare} makes up {share.min():.1%} of the {thing}s.",
                f"Accuracy hardly sees it: look at the predictions for this class by themselves.{weigh}",
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
            "What merely tells environments apart then looks useful. "
            + ("Balance the classes in each." if classes else "Predict the deviation from each one's mean."),
        )
    ]


def _differences(
    x: Floats, y: Floats, env: NDArray[np.int64], classes: Sequence[str], images: bool
) -> list[Finding]:
    shifted = holm(shift_of_columns(x, env)) < LEVEL
    changed = holm(change_of_relations(x, y, env, classes)) < LEVEL
    if not shifted.any() and not changed.any():
        return [
            Finding(
                *("before", "warning", "alike environments"),
                f"No {'part of the images' if images else 'column'} differs between environments, in its "
                "values or in its relation to the target.",
                "There is nothing for invariance to hold against: expect plain training to do as well. Check "
                f"that environments say where or when {'images' if images else 'rows'} were taken.",
            )
        ]
    return [
        Finding(
            *("before", "good", "environments differ"),
            f"Between environments {shifted.sum()} of {len(shifted)} "
            f"{'parts of coarse thumbnails' if images else 'inputs'} differ in their values, and "
            f"{changed.sum()} in their relation to the target.",
            "The second number is what invariance needs.",
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
