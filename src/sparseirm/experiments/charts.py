"""Small figures of a report: accuracy against width beside the paper's, and the way of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
SHOWN = ("test", "train")
SIZE = (3.7, 3.0)


def against_width(findings: Iterable[Finding], split: str) -> Figure:
    """Accuracy of every method against width: ours with 95 % intervals, the paper's dashed.

    Args:
        findings: cells of one data set and one penalty, under the same settings.
        split: ``train`` or ``test``.

    Returns:
        The figure, whose limits are the same for both splits; a hollow mark is a single seed, a cross a cell
        with a collapsed run.
    """
    findings = [*findings]
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
    axes.set_ylim(*_limits(findings))
    _frame(axes, f"{split} accuracy, %", "width")
    handles, _ = axes.get_legend_handles_labels()
    if any(finding.published(split) is not None for finding in findings):
        handles.append(Line2D([], [], ls="--", lw=1, color="#8b93a3", label="the paper's"))
    columns = math.ceil(len(handles) / 2)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _limits(findings: Sequence[Finding]) -> tuple[float, float]:
    """From the lowest to the highest accuracy in training and test, ours with intervals and the paper's."""
    shown = [v for f in findings for split in SHOWN if (v := f.published(split)) is not None]
    ours = [figures for f in findings for split in SHOWN if (figures := f.accuracy(split))]
    shown += [end for figures in ours for end in figures.interval or (figures.mean,)]
    return max(0.0, min(shown) - 2), min(102.0, max(shown) + 2)


def _line(axes: Axes, row: Sequence[Finding], split: str, colour: str, method: str) -> None:
    published = [(f.cell.width or 0, value) for f in row if (value := f.published(split)) is not None]
    axes.plot(*np.reshape(published, (-1, 2)).T, "--", color=colour, lw=1, alpha=0.75)
    ours = [(f, figures) for f in row if (figures := f.accuracy(split))]
    if not ours:
        return
    x, y = [f.cell.width or 0 for f, _ in ours], [figures.mean for _, figures in ours]
    bars = [figures.half_width if figures.interval else 0.0 for _, figures in ours]
    axes.errorbar(x, y, bars, fmt="o-", color=colour, ms=4, lw=1.8, capsize=2, label=method)
    alone = [figures.interval is None for _, figures in ours]
    axes.plot(np.array(x)[alone], np.array(y)[alone], "o", color=colour, mfc="white", ms=4, zorder=3)
    lost = [f.collapsed > 0 for f, _ in ours]
    axes.plot(np.array(x)[lost], np.array(y)[lost], "x", color=colour, ms=9, mew=2)


def trajectory(results: Sequence[Result]) -> Figure:
    """Accuracy in training, on held-out samples of the training environments, and in the test, step by step.

    Args:
        results: the same recipe with different seeds; thin lines are seeds, the thick one their mean.
            Vertical ones part the stages of a method that has several; a dotted one is where the penalty
            begins.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(3.3, 2.5), layout="constrained")
    axes = figure.subplots()
    for split, colour in SPLITS.items():
        if all(split in result.last for result in results):
            over_steps(axes, results, accuracy(split), colour, label=split)
    recipe, ends = results[0].recipe, results[0].stage_ends
    for begin, end in pairwise([0, *ends]):
        if begin:
            axes.axvline(begin, color="#8b93a3", lw=0.8)
        if recipe.penalty and recipe.penalty_from:
            axes.axvline(begin + recipe.penalty_from * (end - begin), color="#8b93a3", lw=1, ls=":")
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
