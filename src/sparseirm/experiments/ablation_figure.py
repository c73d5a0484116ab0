"""The ablations' numbers as one figure."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparseirm.experiments.ablation_study import AblationReport
from sparseirm.experiments.figures import COLOURS, saved


def draw(report: AblationReport, path: Path) -> Path:
    """Draw Figure 4 of the paper, and below it the probe's accuracy and the accuracy against density.

    Args:
        report: the numbers.
        path: where the figure goes; the ending chooses the format.

    Returns:
        ``path``.
    """
    labels = _labels(report)
    figure = Figure(figsize=(max(9.0, 2.6 * len(labels)), 8.4), layout="constrained")
    figure.suptitle(f"What the representation knows about the {report.attribute}", fontsize=13)
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[1.25, 1], hspace=0.05))
    _maps(top, report)
    left, right = bottom.subplots(1, 2)
    _probe(left, report, labels)
    _densities(right, report)
    return saved(figure, path, dpi=110)


def maps(report: AblationReport) -> Figure:
    """Figure 4 of the paper alone: how far each unit moves when the attribute is exchanged."""
    figure = Figure(figsize=(2.2 * len(_labels(report)) + 0.8, 4.0), layout="constrained")
    _maps(figure, report)
    return figure


def _labels(report: AblationReport) -> list[str]:
    return list(dict.fromkeys(reading.label for reading in report.readings))


def rectangle(h: int) -> tuple[int, int]:
    """Rows and columns to show ``h`` units in, at least as many rows as columns.

    >>> rectangle(640), rectangle(7)
    ((32, 20), (7, 1))
    """
    columns = max(n for n in range(1, math.isqrt(h) + 1) if h % n == 0)
    return h // columns, columns


def _maps(figure: matplotlib.figure.FigureBase, report: AblationReport) -> None:
    """How far every unit moves for one image, on one scale for all methods; of each the first seed."""
    first = [next(r for r in report.readings if r.label == name) for name in _labels(report)]
    highest = max(max(reading.units) for reading in first) or 1.0
    panels = figure.subplots(1, len(first), squeeze=False)[0]
    for axes, reading in zip(panels, first, strict=True):
        shape = rectangle(len(reading.units))
        picture = axes.imshow(
            np.reshape(reading.units, shape), cmap="magma", vmin=0, vmax=highest, interpolation="nearest"
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{reading.label}\nmean of all images {reading.moved:.2g}", fontsize=10)
    figure.colorbar(picture, ax=panels, shrink=0.8)
    figure.suptitle(
        f"|difference| of each unit when the {report.attribute} of one image is exchanged", fontsize=11
    )


def _probe(axes: Axes, report: AblationReport, labels: list[str]) -> None:
    """How well the attribute can be read from the representation."""
    at = np.arange(len(labels))
    for shift, part, colour in ((-0.19, "seen", COLOURS["train"]), (0.19, "fresh", COLOURS["test"])):
        for x, name in zip(at, labels, strict=True):
            values = [getattr(reading, part) for reading in report.readings if reading.label == name]
            legend = f"{part} samples" if x == 0 else None
            axes.bar(x + shift, np.mean(values), 0.36, color=colour, label=legend)
            axes.plot([x + shift] * len(values), values, "o", ms=3.5, color="black", alpha=0.55)
    axes.axhline(report.chance, color="#555555", lw=0.8, ls=":")
    axes.text(len(labels) - 0.55, report.chance + 1, "chance", ha="right", fontsize=8, color="#555555")
    axes.set_xticks(at, labels, fontsize=9)
    axes.set(ylabel=f"accuracy of the probe for the {report.attribute}, %", ylim=(0, 112))
    axes.legend(frameon=False, ncols=2, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def _densities(axes: Axes, report: AblationReport) -> None:
    """Accuracy at the last step against density; solid in the test, dashed in training."""
    if not report.budgets:
        axes.axis("off")
        return
    names = list(dict.fromkeys(budget.label for budget in report.budgets))
    for name, colour in zip(
        names, matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(names))), strict=True
    ):
        line = sorted((b for b in report.budgets if b.label == name), key=lambda budget: budget.density)
        x = [budget.density for budget in line]
        for split, style in (("train", "--"), ("test", "-")):
            values = [getattr(budget, split) for budget in line]
            axes.plot(x, [np.mean(each) for each in values], style, color=colour, label=f"{name}, {split}")
            for density, each in zip(x, values, strict=True):
                axes.plot([density] * len(each), each, "o", ms=3, color=colour, alpha=0.4)
    axes.set_xscale("log")
    shown = sorted({budget.density for budget in report.budgets})
    axes.set_xticks(shown, [f"{density:g}" for density in shown])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="density: fraction of weights kept", ylabel="accuracy at the last step, %")
    axes.set_ylim(0, 105)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
