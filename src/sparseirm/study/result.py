"""Everything a study found as plain data: ``result.json``, from which a report can be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sparseirm.files import plain
from sparseirm.study.assessment import Assessment, Seen
from sparseirm.study.choice import LEAST_SKILL, MOST_DISAGREEMENT, MOST_UNEVEN, Choice, Standing
from sparseirm.study.problem import Problem
from sparseirm.study.study import Study


def as_result(study: Study, settings: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """The study as plain data.

    Args:
        study: what was found.
        settings: what the command was told.
        machine: versions, processor and threads, see `sparseirm.runs.environment`.

    Returns:
        Plain data; None stands for numbers that JSON has no words for. Its parts are ``data`` (columns and
        environments), ``findings``, ``comparison`` (every candidate in every environment, the rule and what
        it took), ``columns`` (verdicts), ``calibration`` and ``model``.
    """
    taken = study.choice.taken.candidate
    payload = {
        "status": "done",
        "kind": "table",
        "settings": settings,
        "data": _data(study.problem),
        "findings": [asdict(finding) for finding in study.findings],
        "comparison": comparison(study.choice, study.table, "accuracy" if study.problem.classes else "R2"),
        "columns": {"by": study.witness.name, "verdicts": [asdict(verdict) for verdict in study.verdicts]},
        "calibration": {name: calibration(study.found, name) for name in {"erm": 0, taken.name: 0}},
        "model": _model(study),
        "seconds": study.seconds,
        "environment": machine,
    }
    return dict(plain(payload))


def _data(problem: Problem) -> dict[str, Any]:
    missing = problem.inputs.isna().mean()
    return {
        "rows": len(problem.y),
        "target": problem.target,
        "task": "classification" if problem.classes else "regression",
        "classes": problem.classes,
        "env": problem.env_column,
        "columns": [{**asdict(column), "missing": float(missing[column.name])} for column in problem.columns],
        "environments": [_environment(problem, e) for e in range(len(problem.names))],
    }


def _environment(problem: Problem, e: int) -> dict[str, Any]:
    rows = problem.env == e
    y = problem.codes[rows]
    if problem.classes:
        counts = np.bincount(y.astype(int), minlength=len(problem.classes))
        told: dict[str, Any] = {"labels": dict(zip(problem.classes, counts.tolist(), strict=True))}
    else:
        told = {"target_mean": float(y.mean()), "target_deviation": float(y.std())}
    role = "train" if e < problem.n_train_envs else "test"
    return {"name": problem.names[e], "role": role, "rows": int(rows.sum()), **told}


def comparison(choice: Choice, table: Sequence[Standing], score: str) -> dict[str, Any]:
    """Every candidate in every environment, the rule, and what it took.

    Args:
        choice: what was taken.
        table: how each candidate did.
        score: what scores are: accuracy or R2.

    Returns:
        Plain data.
    """
    return {
        "score": score,
        "rule": {
            "most_uneven": MOST_UNEVEN,
            "most_disagreement": MOST_DISAGREEMENT,
            "least_skill": LEAST_SKILL,
        },
        "candidates": [
            {
                **asdict(one),
                **asdict(one.candidate),
                "candidate": one.candidate.name,
                "invariant": one.candidate.name in choice.invariant,
            }
            for one in table
        ],
        "taken": choice.taken.candidate.name,
        "why": choice.why,
        "against_erm": {"candidate": choice.rival.candidate.name, **asdict(choice.gain)},
    }


def calibration(found: Sequence[Assessment], name: str) -> dict[str, dict[str, list[dict[str, float]]]]:
    """How far the predictions of a candidate came true, on ``held_out`` environments and on ``fresh`` rows.

    Args:
        found: all assessments.
        name: name of the candidate.

    Returns:
        By kind and environment the bins that hold rows: how many, what was predicted, and what came true.
        Predicted is the probability of the predicted class, or the standardised target; what came true is
        the share of hits, or the standardised target.
    """
    mine = [one for one in found if one.candidate == name]
    return {
        kind: _bins([seen for one in mine if one.kind == kind.replace("_", " ") for seen in one.seen])
        for kind in ("held_out", "fresh")
    }


def _bins(found: Sequence[Seen]) -> dict[str, list[dict[str, float]]]:
    sums: dict[str, Any] = {}
    for seen in found:
        sums[seen.env] = sums.get(seen.env, 0) + np.array(seen.bins)
    return {
        env: [
            {"rows": rows, "predicted": told / rows, "true": came / rows}
            for rows, told, came in bins.tolist()
            if rows
        ]
        for env, bins in sums.items()
    }


def _model(study: Study) -> dict[str, Any]:
    model, fitted = study.model, study.model.fitted_
    return {
        "candidate": study.choice.taken.candidate.name,
        "parameters": dict(study.choice.taken.candidate.parameters),
        "columns": dict(zip(model.columns_, model.column_weights_.tolist(), strict=True)),
        "inputs": sum(model.encoding_.blocks),
        "n_weights": fitted.n_weights,
        "kept": fitted.kept,
        "steps": fitted.steps,
        "trace": [asdict(trace) for trace in fitted.traces],
    }
