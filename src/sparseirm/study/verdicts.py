"""Which columns carry a signal that holds, and which look spurious, with the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparseirm.monitor import LEVEL, change_of_relations, holm
from sparseirm.study.assessment import Assessment
from sparseirm.study.choice import Choice, Standing
from sparseirm.study.problem import Problem

STABLE, SPURIOUS, DOUBTFUL, UNUSED = "stable", "spurious-looking", "doubtful", "unused"

LEAST_USE = 0.02
"""Share of a model's whole importance from which a column counts as used."""

MOST_TESTED_ROWS = 50_000
"""Rows used at most for the test of relations."""


@dataclass(frozen=True)
class Verdict:
    """What is known about one column.

    Attributes:
        column: its name.
        verdict: ``stable``: kept, used in every environment, and its relation to the target is the same
            everywhere as far as the rows can tell. ``spurious-looking``: ERM uses it, its relation to the
            target changes between environments, and the sparse model drops it. ``doubtful``: the evidence is
            mixed. ``unused``: nobody uses it.
        why: the evidence in words.
        kept: share of the sparse model's fits, over seeds and environments left out, that keep it.
        weight: its mean share of the surviving first-layer weight in them.
        importance: by environment, rise of the sparse model's risk if it is shuffled, mean over seeds.
        erm_importance: the same of ERM.
        relation_p: Holm-corrected p-value that its relation to the target is the same in all training
            environments.
    """

    column: str
    verdict: str
    why: str
    kept: float
    weight: float
    importance: dict[str, float]
    erm_importance: dict[str, float]
    relation_p: float


def witness(choice: Choice, table: Sequence[Standing]) -> Standing:
    """The sparse model that tells columns apart: the one taken, or the best that switches columns off."""
    if choice.taken.candidate.by_columns:
        return choice.taken
    sparse = [one for one in table if one.candidate.by_columns]
    invariant = [one for one in sparse if one.candidate.name in choice.invariant]
    return min(invariant, key=lambda one: one.risk) if invariant else min(sparse, key=lambda one: one.uneven)


def judge_columns(found: Sequence[Assessment], sparse: str, p: Mapping[str, float]) -> list[Verdict]:
    """A verdict on every column in use.

    Args:
        found: all assessments.
        sparse: name of the candidate that tells columns apart, see `witness`.
        p: by column, see `relation_p`.

    Returns:
        One verdict per column, in the order of ``p``.
    """
    mine = [one for one in found if one.candidate == sparse]
    erm = _importance([one for one in found if one.candidate == "erm"])
    own = _importance(mine)
    return [
        _verdict(
            name,
            kept=float(np.mean([one.column_weights.get(name, 0.0) > 0 for one in mine])),
            weight=float(np.mean([one.column_weights.get(name, 0.0) for one in mine])),
            own=own,
            erm=erm,
            p=p[name],
        )
        for name in p
    ]


def relation_p(problem: Problem) -> dict[str, float]:
    """By column in use, the smallest p-value of its inputs' changes of relation, corrected for all inputs."""
    encoding, rows, inputs = problem.encoded(MOST_TESTED_ROWS)
    p = holm(change_of_relations(inputs, problem.codes[rows], problem.env[rows], problem.classes))
    ends = np.cumsum(encoding.blocks)
    return {
        column.name: float(p[end - block : end].min())
        for column, block, end in zip(encoding.used, encoding.blocks, ends, strict=True)
    }


def _importance(found: Sequence[Assessment]) -> dict[str, dict[str, float]]:
    """By environment and column, mean over seeds of the rise on fresh rows; 0 for a column not in use."""
    seen = [one for a in found if a.kind == "fresh" for one in a.seen]
    means: dict[str, dict[str, float]] = {}
    for env in sorted({one.env for one in seen}):
        parts = [one.importance for one in seen if one.env == env]
        names = {name for part in parts for name in part}
        means[env] = {name: float(np.mean([part.get(name, 0.0) for part in parts])) for name in names}
    return means


def _verdict(
    name: str,
    kept: float,
    weight: float,
    own: Mapping[str, Mapping[str, float]],
    erm: Mapping[str, Mapping[str, float]],
    p: float,
) -> Verdict:
    changes = p < LEVEL
    erm_uses = _share(name, erm) >= LEAST_USE
    everywhere = all(part.get(name, 0.0) > 0 for part in own.values()) and _share(name, own) >= LEAST_USE
    relation = (
        f"its relation to the target {'changes' if changes else 'does not change'} between environments"
    )
    keeps = f"kept in {kept:.0%} of the sparse fits"
    if kept >= 0.5:
        verdict = STABLE if everywhere and not changes else DOUBTFUL if everywhere or changes else UNUSED
    else:
        verdict = SPURIOUS if erm_uses and changes else DOUBTFUL if erm_uses else UNUSED
    used = f"ERM {'uses' if erm_uses else 'hardly uses'} it"
    return Verdict(
        column=name,
        verdict=verdict,
        why=f"{keeps}; {used}; {relation}",
        kept=kept,
        weight=weight,
        importance={env: part.get(name, 0.0) for env, part in own.items()},
        erm_importance={env: part.get(name, 0.0) for env, part in erm.items()},
        relation_p=p,
    )


def _share(name: str, importance: Mapping[str, Mapping[str, float]]) -> float:
    """Share of the column in the whole importance, mean over environments."""
    shares = []
    for part in importance.values():
        whole = sum(max(rise, 0.0) for rise in part.values())
        shares.append(max(part.get(name, 0.0), 0.0) / whole if whole > 0 else 0.0)
    return float(np.mean(shares)) if shares else 0.0
