"""The numbers of a study as one plain table: ``summary.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from sparseirm.experiments.beside_paper import Finding
from sparseirm.experiments.rules import Chosen

COLUMNS = (
    *("dataset", "n_train", "model", "width", "method", "penalty", "settings", "rule"),
    *("seeds", "mean", "ci_low", "ci_high", "train_mean", "paper", "collapsed"),
)
"""Accuracies are percent; ``seeds`` and ``collapsed`` are numbers of runs; one seed has no interval."""


def summary(findings: Iterable[Finding]) -> str:
    """One line for every cell, settings and selection rule that has a number, under `COLUMNS`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for finding in findings:
        writer.writerows(_line(finding, chosen) for chosen in finding.rules if chosen.points)
    return buffer.getvalue()


def _line(finding: Finding, chosen: Chosen) -> dict[str, Any]:
    cell, test = finding.cell, chosen.accuracy("test")
    (recipe, *_) = (result.recipe for result in finding.results.values())
    low, high = test.interval or (None, None)
    return {
        "dataset": cell.data,
        "n_train": recipe.n_train,
        "model": cell.model,
        "width": cell.width,
        "method": cell.method,
        "penalty": cell.penalty,
        "settings": finding.settings,
        "rule": chosen.rule,
        "seeds": len(chosen.points),
        "mean": _percent(test.mean),
        "ci_low": _percent(low),
        "ci_high": _percent(high),
        "train_mean": _percent(chosen.accuracy("train").mean),
        "paper": cell.test,
        "collapsed": chosen.collapsed,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
