"""A whole study of one table: look, compare, choose, judge the columns, fit the final model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparseirm.estimator import Estimator
from sparseirm.experiments.executors import Submitter
from sparseirm.monitor import Finding, after, before, during, listed, spellings
from sparseirm.study.assessment import Assessment, Candidate
from sparseirm.study.choice import GUESSING, Choice, Standing, beats_guessing, choose, standings
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

TWO_CANNOT_TELL = (
    "With two training environments a spurious column that behaves alike in both cannot be told from a "
    "stable one: ask how these values come about, or add a third environment."
)
"""How far to trust a stable column that was seen in two environments only."""


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
    named = {"environments": problem.names, "classes": problem.classes}
    named |= {f"values of {column.name}": column.levels for column in problem.columns}
    found = before(inputs, problem.codes[rows], problem.env[rows], problem.train_names, problem.classes)
    return [*spellings(named), *found]


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
    knows = beats_guessing(choice.taken.judged, unit == "accuracy")
    found = [Finding("after", "good" if knows else "note", "choice", told, "Nothing.")]
    if not knows:
        found.append(_knows_nothing(choice.taken, unit))
    if choice.taken.held_out:
        compared = after(choice.gain, unit, choice.rival.candidate.label)
        if choice.taken.candidate.name != "erm" and compared.severity != "good":
            compared = replace(compared, do=NOT_BY_SCORE)
        if not knows and compared.severity == "good":
            compared = replace(compared, severity="note", do="Neither is to be used: see above.")
        found.append(compared)
    else:
        found.append(
            Finding(
                *("after", "warning", "not checked"),
                "With two training environments, leaving one out leaves one, and nothing to compare: no "
                "method could be tried on an environment it had not seen. Scores are those in known ones.",
                "Keep a third environment, even a small one; or treat the result as untested.",
            )
        )
    erm = next(one for one in table if one.candidate.name == "erm")
    if erm.tested:
        found.append(_tested(choice.taken, erm, unit))
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
        severity, do = ("good", "Nothing.") if choice.taken.held_out else ("note", TWO_CANNOT_TELL)
        found.append(Finding("after", severity, "stable columns", seen, do))
    return found


def _knows_nothing(taken: Standing, unit: str) -> Finding:
    """The model that was taken is no better than a constant on data left out."""
    guess = float(np.mean([one.guess for one in taken.judged]))
    where = "environments" if taken.held_out else "data"
    constant = (
        "always answering the most frequent class" if unit == "accuracy" else "always answering the mean"
    )
    return Finding(
        *("after", "problem", GUESSING),
        f"On {where} left out of training {taken.candidate.label} has {taken.score:.3g} {unit}, mean over "
        f"environments; {constant} has {guess:.3g}. Beyond noise that is no better.",
        "It knows nothing that holds there. See in which environments it fails; more data, more steps "
        "(`--steps`) or other inputs may help.",
    )


def _tested(one: Standing, erm: Standing, unit: str) -> Finding:
    """How the test environments turned out; nothing was chosen by them."""
    pairs = list(zip(one.tested, erm.tested, strict=True))
    each = "; ".join(
        f"{a.env}: {a.score:.3g} ({a.low:.3g} to {a.high:.3g})"
        + (f" against ERM's {b.score:.3g}" if one is not erm else "")
        for a, b in pairs
    )
    seen = f"{unit} of {one.candidate.label} in test environments, trained on a part of the data: {each}."
    do = "Nothing was chosen by these figures; keep it so."
    lost = [a.env for a in one.tested if not beats_guessing([a], unit == "accuracy")]
    if lost:
        do = f"In {listed(lost)} it is no better than guessing: do not use it in such environments. {do}"
        return Finding("after", "warning", "test environments", seen, do)
    severity = "good" if all(a.low > b.high for a, b in pairs) else "note"
    return Finding("after", severity, "test environments", seen, do)
