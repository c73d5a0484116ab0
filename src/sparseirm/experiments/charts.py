"""Small figures of a report: accuracy against width beside the paper's, and the way of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparseirm.experiments.beside_paper import Finding
from sparseirm.experiments.figures import accuracy, over_steps
from sparseirm.runs import Result

COLOURS = {
    "Oracle": "#8b93a3",
    "ERM": "#c58a00",
    "SparseERM": "#5f9e2f",
    "IRM": "#d9485f",
    "BayesianIRM": "#b8651b",
    "MRM": "#8562c9",
    "SparseIRM": "#0d94a0",
}
"""One colour per method that shows on light and dark pages."""

SPLITS = {"train": "#8b93a3", "val": "#c58a00", "test": "#d9485f"}
SIZE = (3.7, 3.0)


def against_width(findings: Iterable[Finding], split: str) -> Figure:
    """Accuracy of every method against width: ours with 95 % intervals, the paper's dashed.

    Args:
        findings: cells of one data set and one penalty, under the same settings.
        split: ``train`` or ``test``.

    Returns:
        The figure; a cross is a cell most of whose runs have collapsed.
    """
    rows: dict[str, list[Finding]] = {}
    for finding in findings:
        rows.setdefault(finding.cell.method, []).append(finding)
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for method, row in rows.items():
        _line(axes, row, split, COLOURS.get(method, "#8b93a3"), method)
    widths = sorted({f.cell.width for row in rows.values() for f in row if f.cell.width})
    axes.set_xticks(widths, [str(width) for width in widths], fontsize=8)
    axes.set_xlim(min(widths) - 25, max(widths) + 25)
    _frame(axes, f"{split} accuracy, %", "width")
    handles, labels = axes.get_legend_handles_labels()
    columns = math.ceil(len(labels) / 2)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, row: Sequence[Finding], split: str, colour: str, method: str) -> None:
    published = [(f.cell.width or 0, value) for f in row if (value := f.published(split)) is not None]
    axes.plot(*np.reshape(published, (-1, 2)).T, "--", color=colour, lw=1, alpha=0.75)
    ours = [(f, figures) for f in row if (figures := f.accuracy(split))]
    if not ours:
        return
    x, y = [f.cell.width or 0 for f, _ in ours], [figures.mean for _, figures in ours]
    bars = [figures.half_width if figures.interval else 0.0 for _, figures in ours]
    axes.errorbar(x, y, bars, fmt="o-", color=colour, ms=4, lw=1.8, capsize=2, label=method)
    lost = [2 * f.collapsed > len(f.results) for f, _ in ours]
    axes.plot(np.array(x)[lost], np.array(y)[lost], "x", color=colour, ms=9, mew=2)


def trajectory(results: Sequence[Result]) -> Figure:
    """Accuracy in training, on held-out samples of the training environments, and in the test, step by step.

    Args:
        results: the same recipe with different seeds; thin lines are seeds, the thick one their mean.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(3.3, 2.5), layout="constrained")
    axes = figure.subplots()
    for split, colour in SPLITS.items():
        if all(split in result.last for result in results):
            over_steps(axes, results, accuracy(split), colour, label=split)
    axes.set_ylim(0, 102)
    _frame(axes, "accuracy, %", "step")
    axes.legend(fontsize=7.5, frameon=False, ncols=3, loc="lower right", handlelength=1.2, columnspacing=1)
    return figure


def _frame(axes: Axes, vertical: str, horizontal: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#8b93a3", alpha=0.25, lw=0.6)
    axes.tick_params(labelsize=8)
    axes.set_ylabel(vertical, fontsize=9)
    axes.set_xlabel(horizontal, fontsize=9)
