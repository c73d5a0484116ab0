"""Figures drawn from results alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparseirm.experiments.tables import Row
from sparseirm.files import write_bytes
from sparseirm.runs import Point, Result

COLOURS = {"train": "#8d99ae", "test": "#d1495b"}


def encoded(
    figure: Figure, suffix: str, dpi: float | str = "figure", about: Mapping[str, str] | None = None
) -> bytes:
    """A figure as the content of a file: the same figure is the same bytes, whenever it is drawn.

    Args:
        figure: the figure.
        suffix: ending of the file, such as ``.svg`` or ``.png``; it chooses the format.
        dpi: dots per inch of images.
        about: what an SVG says about itself.

    Returns:
        The file's content.
    """
    undated = {".svg": {"Date": None, **(about or {})}, ".pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sparseirm"}):
        figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=undated.get(suffix))
    return buffer.getvalue()


def saved(
    figure: Figure, path: Path, dpi: float | str = "figure", about: Mapping[str, str] | None = None
) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure: the figure.
        path: where it goes; the ending chooses the format.
        dpi: see `encoded`.
        about: see `encoded`.

    Returns:
        ``path``.
    """
    write_bytes(path, encoded(figure, path.suffix, dpi, about))
    return path


def comparison(rows: Sequence[Row], title: str, path: Path) -> Path:
    """Draw train and test accuracy of every method: bars at the last step, and the way there.

    Args:
        rows: one per method, all on the same data set.
        title: what the reader looks at.
        path: where the figure goes; the ending chooses the format.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(3.1 * max(len(rows), 3), 6.4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.add_gridspec(2, len(rows), height_ratios=[1.15, 1])
    bars = figure.add_subplot(grid[0, :])
    x = np.arange(len(rows))
    for shift, split in ((-0.19, "train"), (0.19, "test")):
        heights = [row.accuracy(split).mean for row in rows]
        bars.bar(x + shift, heights, 0.36, color=COLOURS[split], label=f"{split} environments")
        for at, row, height in zip(x, rows, heights, strict=True):
            values = row.accuracy(split).values
            bars.plot([at + shift] * len(values), values, "o", ms=3.5, color="black", alpha=0.55)
            bars.text(at + shift, max(values) + 3, f"{height:.0f}", ha="center", fontsize=10)
    bars.set_xticks(x, [row.label for row in rows], fontsize=10)
    bars.set(ylabel="accuracy at the last step, %", ylim=(0, 112))
    bars.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2)
    bars.spines[["top", "right"]].set_visible(False)
    hint = "dots are seeds; a method you can trust is as good in the test as in training"
    bars.set_title(hint, fontsize=9, loc="left")
    for column, row in enumerate(rows):
        _trajectory(figure.add_subplot(grid[1, column]), row, first=column == 0)
    return saved(figure, path, dpi=150)


def _trajectory(axes: Axes, row: Row, first: bool) -> None:
    for split, colour in COLOURS.items():
        over_steps(axes, row.results, accuracy(split), colour)
    axes.set(xlabel="step", ylim=(0, 105), title=row.label)
    axes.set_ylabel("accuracy, %" if first else "")
    axes.spines[["top", "right"]].set_visible(False)


def over_steps(
    axes: Axes,
    results: Sequence[Result],
    height: Callable[[Point], float],
    colour: str,
    style: str = "-",
    label: str | None = None,
) -> None:
    """Draw a thin line for every run and a thick one for their mean, at the steps where all were evaluated.

    Args:
        axes: where to.
        results: the same recipe with different seeds.
        height: what is drawn of an evaluation.
        colour: of all lines.
        style: of all lines, as in matplotlib.
        label: of the thick line.
    """
    found = [{point.step: height(point) for point in result.trajectory} for result in results]
    steps = [step for step in found[0] if all(step in run for run in found)]
    runs = np.array([[run[step] for step in steps] for run in found])
    axes.plot(steps, runs.T, style, color=colour, alpha=0.25, lw=1)
    axes.plot(steps, runs.mean(0), style, color=colour, lw=2, label=label)


def accuracy(split: str) -> Callable[[Point], float]:
    """What `over_steps` is to draw: the accuracy on a split, in percent."""
    return lambda point: point.scores[split].accuracy
