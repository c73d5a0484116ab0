"""A whole study of one table: look, compare, choose, judge the columns, fit the final model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparseirm.estimator import Estimator
from sparseirm.experiments.executors import Submitter
from sparseirm.monitor import Finding, after, before, during
from sparseirm.study.assessment import Assessment, Candidate
from sparseirm.study.choice import Choice, Standing, choose, standings
from sparseirm.study.comparison import Fold, compare_candidates
from sparseirm.study.problem import Problem
from sparseirm.study.verdicts import (
    MOST_TESTED_ROWS,
    SPURIOUS,
    STABLE,
    Verdict,
    judge_columns,
    relation_p,
    witness,
)
from sparseirm.training.loop import Record

NOT_BY_SCORE = (
    "It was not taken for its score here but for what is said under the choice: it pays if new environments "
    "differ more than these do. If they will not, ERM is the better or the cheaper choice."
)
"""What to do about a method that was taken although ERM scores as high."""


@dataclass(frozen=True)
class Study:
    """What a study found.

    Attributes:
        problem: what was to be learnt.
        found: every fit of the comparison.
        table: how each candidate did.
        choice: which one was taken.
        witness: the candidate the verdicts on columns rest on.
        verdicts: on every column in use.
        findings: the monitor's, in the order of the stages.
        model: the candidate taken, fitted to all training rows.
        seconds: time it took.
    """

    problem: Problem
    found: list[Assessment]
    table: list[Standing]
    choice: Choice
    witness: Candidate
    verdicts: list[Verdict]
    findings: list[Finding]
    model: Estimator
    seconds: float


def look(problem: Problem) -> list[Finding]:
    """The monitor's findings before training; it sees training rows only."""
    _, rows, inputs = problem.encoded(MOST_TESTED_ROWS)
    return before(inputs, problem.codes[rows], problem.env[rows], problem.train_names, problem.classes)


def conduct(
    problem: Problem,
    tried: Sequence[Candidate],
    parts: Sequence[Fold],
    executor: Submitter,
    wanted: str = "auto",
    on_fit: Callable[[], None] = lambda: None,
    on_step: Callable[[Record, int], None] = lambda record, steps: None,
) -> Study:
    """Compare, choose, judge, and fit the final model.

    Args:
        problem: what is to be learnt.
        tried: the candidates, ERM among them and one that switches columns off.
        parts: rows to train on and to look at, see `sparseirm.study.comparison.folds`.
        executor: where the fits of the comparison run.
        wanted: ``auto``, or which kind of candidate to take, see `sparseirm.study.choice.choose`.
        on_fit: called after every fit of the comparison.
        on_step: called after every step of the final fit, with its record and the number of steps.

    Returns:
        The study.

    Raises:
        SettingError: if a fit fails.
    """
    begun = time.monotonic()
    found = compare_candidates(problem, tried, parts, executor, on_fit)
    table = standings(tried, found)
    choice = choose(table, wanted)
    sparse = witness(choice, table).candidate
    verdicts = judge_columns(found, sparse.name, relation_p(problem))
    model = choice.taken.candidate.estimator(bool(problem.classes), parts[0].seed)
    model.on_step = on_step
    rows = problem.training
    names = np.array(problem.names, dtype=object)
    model.fit(problem.inputs.iloc[rows], problem.y[rows], env=names[problem.env[rows]])
    del model.on_step
    unit = "accuracy" if problem.classes else "R2"
    findings = [*look(problem), *_on_fit(model, choice.taken), *afterwards(choice, table, verdicts, unit)]
    seconds = time.monotonic() - begun
    return Study(problem, found, table, choice, sparse, verdicts, findings, model, seconds)


def _on_fit(model: Estimator, taken: Standing) -> list[Finding]:
    fitted = model.fitted_
    kept = fitted.kept if taken.candidate.columns is None else int((model.column_weights_ > 0).sum())
    constant_risk = float(np.mean([score.constant_risk for score in taken.fresh]))
    return during(
        fitted.traces,
        budget=fitted.budget,
        kept=kept,
        undecided=fitted.undecided,
        constant_risk=constant_risk,
    )


def afterwards(
    choice: Choice, table: Sequence[Standing], verdicts: Sequence[Verdict], unit: str
) -> list[Finding]:
    """The monitor's findings on the comparison.

    Args:
        choice: what was taken.
        table: how each candidate did.
        verdicts: on columns, if there are any.
        unit: what scores are, such as accuracy.

    Returns:
        The findings.
    """
    told = f"Taken: {choice.taken.candidate.label}. {choice.why}"
    found = [Finding("after", "good", "choice", told, "Nothing.")]
    if choice.taken.held_out:
        compared = after(choice.gain, unit, choice.rival.candidate.label)
        if choice.taken.candidate.name != "erm" and compared.severity != "good":
            compared = replace(compared, do=NOT_BY_SCORE)
        found.append(compared)
    else:
        found.append(
            Finding(
                *("after", "warning", "not checked"),
                "With two training environments, leaving one out leaves one, and nothing to compare: no "
                "method could be tried on an environment it had not seen. Scores are those of rows left out.",
                "Keep a third environment, even a small one; or treat the result as untested.",
            )
        )
    erm = next(one for one in table if one.candidate.name == "erm")
    if erm.tested:
        found.append(_tested(choice.taken if choice.taken is not erm else choice.rival, erm, unit))
    spurious = [one.column for one in verdicts if one.verdict == SPURIOUS]
    if spurious:
        found.append(
            Finding(
                *("after", "warning", "spurious-looking columns"),
                f"ERM uses {', '.join(spurious)}, but how that goes with the target changes between "
                "environments.",
                "Ask how these values come about: after the target, or by a site's own habits? If so, drop "
                "such columns.",
            )
        )
    stable = [one.column for one in verdicts if one.verdict == STABLE]
    if stable:
        seen = f"{', '.join(stable)}: used in every environment, in the same way."
        found.append(Finding("after", "good", "stable columns", seen, "Nothing."))
    return found


def _tested(one: Standing, erm: Standing, unit: str) -> Finding:
    """How the test environments turned out; nothing was chosen by them."""
    gains = [a.score - b.score for a, b in zip(one.tested, erm.tested, strict=True)]
    each = "; ".join(
        f"{a.env}: {a.score:.3g} ({a.low:.3g} to {a.high:.3g}) against ERM's {b.score:.3g}"
        for a, b in zip(one.tested, erm.tested, strict=True)
    )
    seen = f"{unit} of {one.candidate.label} in test environments, trained on a part of the rows: {each}."
    severity = "good" if min(gains) > 0 else "note"
    do = "Nothing was chosen by these figures; keep it so."
    return Finding("after", severity, "test environments", seen, do)
