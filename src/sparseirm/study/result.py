"""Everything a fit found, as plain data: ``result.json``, from which a report can be made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sparseirm.monitor import Finding
from sparseirm.study.assessment import Assessment, Candidate
from sparseirm.study.choice import LEAST_SKILL, MOST_DISAGREEMENT, MOST_UNEVEN, Choice, Standing
from sparseirm.study.problem import Problem
from sparseirm.study.verdicts import Verdict


def described(problem: Problem) -> dict[str, Any]:
    """The problem: target, columns and environments.

    Args:
        problem: the problem.

    Returns:
        Plain data.
    """
    missing = problem.inputs.isna().mean()
    return {
        "rows": len(problem.y),
        "target": problem.target,
        "task": "classification" if problem.classes else "regression",
        "classes": list(problem.classes),
        "env": problem.env_column,
        "columns": [
            {**asdict(column), "levels": list(column.levels), "missing": float(missing[column.name])}
            for column in problem.columns
        ],
        "environments": [_environment(problem, e) for e in range(len(problem.names))],
    }


def _environment(problem: Problem, e: int) -> dict[str, Any]:
    rows = problem.env == e
    told: dict[str, Any]
    if problem.classes:
        counts = np.bincount(problem.codes[rows].astype(int), minlength=len(problem.classes))
        told = {"labels": dict(zip(problem.classes, counts.tolist(), strict=True))}
    else:
        y = problem.codes[rows]
        told = {"target_mean": float(y.mean()), "target_deviation": float(y.std())}
    role = "train" if e < problem.n_train_envs else "test"
    return {"name": problem.names[e], "role": role, "rows": int(rows.sum()), **told}


def compared(table: Sequence[Standing], choice: Choice) -> dict[str, Any]:
    """The comparison: every candidate in every environment, the rule, and what it took.

    Args:
        table: the standings.
        choice: the choice.

    Returns:
        Plain data.
    """
    return {
        "rule": {
            "most_uneven": MOST_UNEVEN,
            "most_disagreement": MOST_DISAGREEMENT,
            "least_skill": LEAST_SKILL,
        },
        "score": "accuracy" if _classifies(choice) else "R2",
        "candidates": [_candidate(one, choice) for one in table],
        "taken": choice.taken.candidate.name,
        "why": choice.why,
        "against_erm": {"candidate": choice.rival.candidate.name, **_finite(asdict(choice.gain))},
    }


def calibration(found: Sequence[Assessment], candidate: Candidate) -> dict[str, list[dict[str, float]]]:
    """By training environment, what was predicted against what came true, on fresh rows of all seeds.

    Args:
        found: all assessments.
        candidate: whose predictions.

    Returns:
        By environment the bins that hold rows: their number, mean prediction (probability of the predicted
        class, or standardised target) and mean of what came true (share of hits, or standardised target).
    """
    sums: dict[str, np.ndarray[Any, Any]] = {}
    for one in found:
        if one.candidate == candidate.name and one.kind == "fresh":
            for seen in one.seen:
                sums[seen.env] = sums.get(seen.env, 0) + np.array(seen.bins)
    return {
        env: [
            {"rows": rows, "predicted": told / rows, "true": came / rows} for rows, told, came in bins.tolist() if rows
        ]
        for env, bins in sums.items()
    }


def result(
    problem: Problem,
    table: Sequence[Standing],
    choice: Choice,
    found: Sequence[Assessment],
    verdicts: Sequence[Verdict],
    witness: Candidate,
    findings: Sequence[Finding],
    model: dict[str, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """All of it.

    Args:
        problem: the problem.
        table: the standings.
        choice: the choice.
        found: all assessments.
        verdicts: on every column.
        witness: the candidate the verdicts rest on.
        findings: the monitor's, in order.
        model: what is to be told of the final model.
        settings: what the command was told.

    Returns:
        Plain data without NaN or infinity.
    """
    erm = next(one.candidate for one in table if one.candidate.name == "erm")
    return {
        "status": "done",
        "kind": "table",
        "settings": settings,
        "data": described(problem),
        "findings": [asdict(finding) for finding in findings],
        "comparison": compared(table, choice),
        "columns": {"by": witness.name, "verdicts": [asdict(verdict) for verdict in verdicts]},
        "calibration": {one.name: calibration(found, one) for one in {erm.name: erm, choice.taken.candidate.name: choice.taken.candidate}.values()},
        "model": model,
    }


def _classifies(choice: Choice) -> bool:
    return choice.classifies


def _candidate(one: Standing, choice: Choice) -> dict[str, Any]:
    return _finite(
        {
            "name": one.candidate.name,
            "label": one.candidate.label,
            "parameters": dict(one.candidate.parameters),
            "held_out": [asdict(score) for score in one.held_out],
            "fresh": [asdict(score) for score in one.fresh],
            "tested": [asdict(score) for score in one.tested],
            "uneven": one.uneven,
            "disagreement": one.disagreement,
            "skill": one.skill,
            "invariant": one.candidate.name in choice.invariant,
        }
    )


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    """The same with None for numbers that JSON has no words for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in data.items()
    }
