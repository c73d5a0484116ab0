"""The theory's numbers as one figure."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparseirm.experiments.figures import saved
from sparseirm.experiments.statistics import wilson
from sparseirm.experiments.theory_study import CONFIDENCE, Discovery, Identified, TheoryReport

INVARIANT, SPURIOUS, RANDOM, EVERYTHING = "#00798c", "#d1495b", "#c9ced9", "#30343f"
"""One colour for each kind of feature, told apart by lightness as well."""

MARKS = "osD^"


def draw(report: TheoryReport, path: Path) -> Path:
    """Draw what the theory says, how many samples it needs, and what optimisation finds.

    Args:
        report: the numbers.
        path: where the figure goes; the ending chooses the format.

    Returns:
        ``path``.
    """
    cells = list(dict.fromkeys((row.d, row.n) for row in report.discovery))
    figure = Figure(figsize=(14, 8), layout="constrained")
    figure.suptitle("Sparse invariant risk minimisation in theory: the linear model, computed", fontsize=14)
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=[1.3, 1], hspace=0.04))
    left, middle, right = top.subplots(1, 3)
    _interpolation(left, report)
    _probability(middle, report.identified[0])
    _needed(right, report)
    bottom.suptitle(
        "Does optimisation find the 2 invariant features among d?  Features kept, mean over seeds",
        fontsize=11,
    )
    for column, (axes, cell) in enumerate(
        zip(bottom.subplots(1, len(cells), squeeze=False)[0], cells, strict=True)
    ):
        rows = [row for row in report.discovery if (row.d, row.n) == cell]
        _kept(axes, rows, first=column == 0)
    handles, labels = bottom.axes[0].get_legend_handles_labels()
    bottom.legend(handles, labels, loc="outside lower center", frameon=False, ncols=3)
    return saved(figure, path, dpi=110)


def _clean(axes: Axes, title: str, note: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{title}\n", fontsize=11, loc="left", fontweight="bold")
    axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=9, color="#555555")


def _interpolation(axes: Axes, report: TheoryReport) -> None:
    n = report.interpolation[-1].n
    rows = [row for row in report.interpolation if row.n == n]
    share = [row.d / (2 * n) for row in rows]
    axes.axvspan(1, max(share), color="#f3f1ec", zorder=0)
    for values, colour, style, name in (
        ([row.everything for row in rows], EVERYTHING, "-", "all features"),
        ([row.without for row in rows], SPURIOUS, "--", "spurious and random only"),
        ([row.invariant for row in rows], INVARIANT, "-", "invariant only"),
    ):
        axes.plot(share, values, style, color=colour, lw=2.2, label=name)
    axes.set(
        xlabel="features d per training sample, $d\\,/\\,(n_1+n_2)$", ylabel="loss $L(\\Phi)$", ylim=(0, None)
    )
    height = 1.25 * axes.get_ylim()[1]
    axes.set_ylim(0, height)
    axes.text(
        1.04,
        0.38 * height,
        "more features\nthan samples:\nloss 0 without\nany invariant\nfeature",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    _clean(axes, "Proposition 1, Corollary 1", f"n = {n} samples in each of two environments")


def _probability(axes: Axes, found: Identified) -> None:
    case = found.case
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, len(case.dimensions)))
    for d, shade in zip(case.dimensions, shades, strict=True):
        hits = (found.breaks > d).sum(0)
        low, high = np.transpose([wilson(int(h), case.trials) for h in hits])
        axes.fill_between(case.sizes, low, high, color=shade, alpha=0.15, lw=0)
        axes.plot(case.sizes, hits / case.trials, color=shade, lw=2, label=f"{d}")
    axes.axhline(CONFIDENCE, color="#555555", lw=0.8, ls=":")
    axes.set(xlabel="samples n of each environment", ylabel="probability", ylim=(0, 1.03))
    axes.legend(title="features d", frameon=False, fontsize=9, loc="lower right")
    _clean(
        axes,
        "Theorem 1: the invariant mask is the best one",
        f"{case.label}; bands: 95 %, {case.trials} draws",
    )


def _needed(axes: Axes, report: TheoryReport) -> None:
    for found, colour, mark in zip(report.identified, (INVARIANT, "#8d99ae", SPURIOUS), MARKS, strict=False):
        d, needed = np.array(found.case.dimensions), np.array(found.needed)
        there = ~np.isnan(needed)
        if not there.any():
            continue
        low, high = np.array(found.interval).T
        bars = np.maximum(np.stack([needed - low, high - needed])[:, there], 0)
        name = f"{found.case.label}: {found.slope:.0f} per ln d"
        axes.errorbar(d[there], needed[there], bars, fmt=mark, color=colour, ms=6, capsize=2.5, label=name)
        if not math.isnan(found.slope):
            axes.plot(d, found.offset + found.slope * np.log(d), color=colour, lw=1.6, alpha=0.7)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, at: f"{value:g}")
    axes.set(xlabel="features d (logarithmic)", ylabel="samples n needed", ylim=(0, None))
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    _clean(axes, "Do the samples needed grow like ln d?", f"n for probability {CONFIDENCE:g}; bars: 95 %")


def _kept(axes: Axes, rows: list[Discovery], first: bool) -> None:
    at, edge = np.arange(len(rows))[::-1], np.zeros(len(rows))
    for kind, (name, colour) in enumerate(
        (("invariant", INVARIANT), ("spurious", SPURIOUS), ("random", RANDOM))
    ):
        widths = np.array([row.means[kind] for row in rows])
        axes.barh(at, widths, 0.66, left=edge, color=colour, label=name)
        edge += widths
    for y, row in zip(at, rows, strict=True):
        axes.text(2.06, y, f"{row.found}/{len(row.kept)}", va="center", fontsize=10)
    axes.set(xlim=(0, 2.4), xticks=(0, 1, 2))
    axes.set_yticks(at, [row.method for row in rows] if first else [""] * len(rows), fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(f"d = {rows[0].d}, n = {rows[0].n}", fontsize=10, loc="left")
    axes.text(2.06, len(rows) - 0.45, "found", fontsize=9, color="#555555")
