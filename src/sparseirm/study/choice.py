"""Which method to take, by a rule that never sees a test environment.

A method is *even* if its risk on fresh rows is the same in every training environment, and its environments
*agree* if none of them would do noticeably better with a linear correction of its own on the columns the
method keeps: REx's criterion and the paper's equation 14, on rows the fit did not see. Among the methods that
are both, the one with the lowest risk on held-out environments is taken, and ERM if it is as good. If there
is no such method, the one with the best worst held-out environment, and ERM if that is as good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparseirm.monitor import Interval
from sparseirm.study.assessment import Assessment, Candidate, Seen

MOST_UNEVEN = 0.1
"""Standard deviation of the risks over environments, beyond noise and relative, up to which they are even."""

MOST_DISAGREEMENT = 0.05
"""Share of an environment's error that a correction of its own may remove."""

LEAST_SKILL = 0.25
"""Share of ERM's advantage over a constant that a method needs, not to count as even for knowing nothing."""


GUESSING = "no better than guessing"
"""Name of the finding about a model that knows nothing."""


@dataclass(frozen=True)
class EnvScore:
    """A candidate in one environment, over seeds.

    Attributes:
        env: name of the environment.
        rows: rows it was looked at on, each once per seed that left it out.
        score: accuracy, or share of variance explained.
        low: lower end of the score's 95 % interval, from rows and seeds.
        high: upper end.
        risk: mean loss.
        risk_error: standard error of the mean loss, from rows and seeds.
        constant_risk: mean loss of the best constant prediction.
        disagreement: mean over seeds, or None.
        guess: score of the constant that fits these rows best.
    """

    env: str
    rows: int
    score: float
    low: float
    high: float
    risk: float
    risk_error: float
    constant_risk: float
    disagreement: float | None
    guess: float


@dataclass(frozen=True)
class Standing:
    """How one candidate did.

    Attributes:
        candidate: the candidate.
        held_out: on environments left out of training; empty with two environments.
        fresh: on rows left out, of environments that were trained on.
        tested: on test environments, for the record; no choice looks at it.
        uneven: standard deviation of the fresh risks beyond noise, over the smaller of mean risk and skill.
        disagreement: the largest over training environments.
        skill: how much lower the fresh risk is than a constant's, mean over environments.
    """

    candidate: Candidate
    held_out: list[EnvScore]
    fresh: list[EnvScore]
    tested: list[EnvScore]
    uneven: float
    disagreement: float
    skill: float

    @property
    def judged(self) -> list[EnvScore]:
        """What risks are compared on: held-out environments, or fresh rows if there are none."""
        return self.held_out or self.fresh

    @property
    def risk(self) -> float:
        """Mean over environments of the risks that are compared."""
        return float(np.mean([score.risk for score in self.judged]))

    @property
    def worst(self) -> float:
        """The worst environment's risk of those compared."""
        return max(score.risk for score in self.judged)

    @property
    def score(self) -> float:
        """Mean over environments of the scores that are compared."""
        return float(np.mean([score.score for score in self.judged]))


@dataclass(frozen=True)
class Choice:
    """What the rule took, and why.

    Attributes:
        taken: the standing of the candidate taken.
        why: one paragraph.
        invariant: names of the candidates that are even and agree.
        rival: what ERM was compared with: the candidate taken, or the best of the others.
        gain: score of the rival minus ERM's, by environment, with its interval.
    """

    taken: Standing
    why: str
    invariant: list[str]
    rival: Standing
    gain: Interval


def standings(chosen: Sequence[Candidate], found: Sequence[Assessment]) -> list[Standing]:
    """Gather assessments by candidate.

    Args:
        chosen: the candidates.
        found: their assessments.

    Returns:
        One standing per candidate, in order.
    """
    return [_standing(candidate, [a for a in found if a.candidate == candidate.name]) for candidate in chosen]


def _standing(candidate: Candidate, found: Sequence[Assessment]) -> Standing:
    held_out = env_scores(
        [seen for one in found if one.kind == "held out" for seen in one.seen], pooled=False
    )
    fresh = env_scores([seen for one in found if one.kind == "fresh" for seen in one.seen], pooled=True)
    tested = env_scores([seen for one in found for seen in one.tested], pooled=False)
    risks = np.array([score.risk for score in fresh])
    noise = float(np.mean([score.risk_error**2 for score in fresh]))
    skill = float(np.mean([score.constant_risk - score.risk for score in fresh]))
    spread = math.sqrt(max(0.0, float(risks.var(ddof=1)) - noise))
    apart = [score.disagreement for score in fresh if score.disagreement is not None]
    return Standing(
        candidate=candidate,
        held_out=held_out,
        fresh=fresh,
        tested=tested,
        uneven=spread / min(risks.mean(), skill) if skill > 0 else math.inf,
        disagreement=max(apart, default=math.inf),
        skill=skill,
    )


def env_scores(seen: Sequence[Seen], pooled: bool) -> list[EnvScore]:
    """Looks at a model gathered by environment.

    Args:
        seen: the looks, of one or more seeds.
        pooled: whether every seed looked at other rows.

    Returns:
        One score per environment, in alphabetical order.
    """
    found = []
    for env in sorted({one.env for one in seen}):
        parts = [one for one in seen if one.env == env]
        rows = sum(one.rows for one in parts) if pooled else parts[0].rows

        def error(by_rows: Sequence[float], by_seed: Sequence[float], pooled: bool = pooled) -> float:
            """Standard error of a mean over seeds: of its rows, and of the seeds if they share rows."""
            n = len(by_seed)
            if pooled:
                return math.sqrt(sum(part**2 for part in by_rows)) / n
            seeds = float(np.var(by_seed, ddof=1)) / n if n > 1 else 0.0
            return math.sqrt(float(np.mean(np.square(by_rows))) + seeds)

        score = float(np.mean([one.score for one in parts]))
        half = 1.96 * error([one.score_error for one in parts], [one.score for one in parts])
        apart = [one.disagreement for one in parts if one.disagreement is not None]
        found.append(
            EnvScore(
                env=env,
                rows=rows,
                score=score,
                low=score - half,
                high=min(1.0, score + half),
                risk=float(np.mean([one.risk for one in parts])),
                risk_error=error(
                    [math.sqrt(one.risk_variance / one.rows) for one in parts], [one.risk for one in parts]
                ),
                constant_risk=float(np.mean([one.constant_risk for one in parts])),
                disagreement=float(np.mean(apart)) if apart else None,
                guess=float(np.mean([one.guess for one in parts])),
            )
        )
    return found


def beats_guessing(scores: Sequence[EnvScore], classifies: bool) -> bool:
    """Whether a model is better than a constant, mean over environments and beyond noise (95 %).

    Classes may be known by the score or by the risk, as accuracy hardly sees a rare one.

    Args:
        scores: a candidate in some environments.
        classifies: whether scores are accuracies.

    Returns:
        Whether it is.
    """

    def beyond(gains: Sequence[float], halves: Sequence[float]) -> bool:
        return sum(gains) > math.sqrt(sum(half**2 for half in halves))

    by_score = beyond([one.score - one.guess for one in scores], [one.score - one.low for one in scores])
    gains = [one.constant_risk - one.risk for one in scores]
    return by_score or (classifies and beyond(gains, [1.96 * one.risk_error for one in scores]))


def choose(table: Sequence[Standing], wanted: str = "auto") -> Choice:
    """Apply the rule; it reads ``held_out`` and ``fresh`` only.

    Args:
        table: the standings; ERM must be among them.
        wanted: ``auto``, or the beginning of a candidate's name: ``erm``, ``irm`` or ``sparseirm``, to choose
            among these.

    Returns:
        The choice.
    """
    erm = next(one for one in table if one.candidate.name == "erm")
    even = [one for one in table if is_invariant(one, erm)]
    names = [one.candidate.name for one in even]
    if wanted != "auto":
        allowed = [one for one in table if one.candidate.name.split("-")[0] == wanted]
        taken = _best([one for one in allowed if one in even], allowed)
        return _choice(taken, table, erm, names, f"You asked for {wanted}.")
    best = _best(even, list(table))
    if best is not erm and (erm in even or not even) and _gain(best, erm, by_risk=True).low <= 0:
        best = erm
    return _choice(best, table, erm, names, _reason(best, erm, bool(even)))


def is_invariant(one: Standing, erm: Standing) -> bool:
    """Whether a candidate is even, its environments agree, and it knows enough."""
    knows = one.skill > 0 and one.skill >= LEAST_SKILL * erm.skill
    return knows and one.uneven <= MOST_UNEVEN and one.disagreement <= MOST_DISAGREEMENT


def _best(even: Sequence[Standing], rest: Sequence[Standing]) -> Standing:
    return min(even, key=lambda one: one.risk) if even else min(rest, key=lambda one: one.worst)


def _gain(one: Standing, erm: Standing, by_risk: bool = False) -> Interval:
    """How much better a candidate is than ERM, paired by environment."""
    pairs = zip(one.judged, erm.judged, strict=True)
    return Interval.of([b.risk - a.risk if by_risk else a.score - b.score for a, b in pairs])


def _choice(taken: Standing, table: Sequence[Standing], erm: Standing, names: list[str], why: str) -> Choice:
    rivals = [one for one in table if one is not erm]
    rival = taken
    if taken is erm:
        rival = _best([one for one in rivals if one.candidate.name in names], rivals)
    return Choice(taken, why, names, rival, _gain(rival, erm))


def _reason(taken: Standing, erm: Standing, even: bool) -> str:
    label = taken.candidate.label
    if taken is erm and even:
        return (
            "ERM's risk is the same in all training environments, they agree on how to use its inputs, and "
            "no other such method is better on held-out data beyond noise: ERM is as good here."
        )
    if taken is erm:
        return (
            "No method has the same risk in all training environments, and none is better than ERM beyond "
            "noise where it matters: ERM is as good here, and no method can be trusted to be invariant."
        )
    if even:
        fault = []
        if erm.uneven > MOST_UNEVEN:
            risks = sorted(score.risk for score in erm.fresh)
            fault.append(
                f"its risk ranges from {risks[0]:.3g} to {risks[-1]:.3g} over the training environments"
            )
        if erm.disagreement > MOST_DISAGREEMENT:
            fault.append(
                f"one of them would remove {erm.disagreement:.0%} of its error by using the same inputs "
                "differently"
            )
        if not fault:
            return f"{label} is invariant as far as the data can tell, and better than ERM on held-out data."
        return (
            f"ERM is not invariant: {' and '.join(fault)}. {label} is, as far as the data can tell, and has "
            "the lowest risk on held-out data of all such methods."
        )
    return (
        f"No method has the same risk in all training environments. {label} has the best worst held-out "
        "environment, beyond noise."
    )
