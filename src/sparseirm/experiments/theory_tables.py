"""The theory's numbers as tables in words."""

from __future__ import annotations

import math

from sparseirm.experiments.sheets import Sheet
from sparseirm.experiments.statistics import wilson
from sparseirm.experiments.theory_study import CONFIDENCE, LAMBDA, Identified, TheoryReport


def sheets(report: TheoryReport) -> list[Sheet]:
    """The report as tables.

    Args:
        report: the numbers.

    Returns:
        One sheet each for interpolation, Theorem 1, the line in ``ln d``, penalty weights, optimisation.
    """
    return [
        _interpolation_sheet(report),
        *(_probability_sheet(found) for found in report.identified),
        _line_sheet(report),
        _weight_sheet(report),
        _discovery_sheet(report),
    ]


def _interpolation_sheet(report: TheoryReport) -> Sheet:
    n = report.interpolation[-1].n
    every = ", ".join(map(str, sorted({row.n for row in report.interpolation})))
    held = [
        (row.claimed[k], row.claimed[k] and row.largest[k] < 1e-12)
        for row in report.interpolation
        for k in (0, 1)
    ]
    claims, holds = (sum(column) for column in zip(*held, strict=True))
    rows = tuple(
        (
            str(row.d),
            *(f"{value:.3g}" if value > 1e-12 else "0" for value in (row.everything, row.without)),
            f"{row.invariant:.3g}",
            " and ".join(name for name, on in zip(("Prop. 1", "Cor. 1"), row.claimed, strict=True) if on),
        )
        for row in report.interpolation
        if row.n == n
    )
    return Sheet(
        "Proposition 1 and Corollary 1: enough features, no loss",
        f"Losses at n = {n} samples in each of 2 environments, lambda = {LAMBDA:g}, means over seeds. Over "
        f"all n computed ({every}) the two statements claim {claims} losses to be zero; {holds} are (largest "
        "of all seeds below 1e-12).",
        ("d", "L(all)", "L(spurious + random)", "L(invariant)", "claimed to be 0 by"),
        rows,
    )


def _probability_sheet(found: Identified) -> Sheet:
    case, trials = found.case, found.case.trials
    searched = "every mask tried" if found.exhaustive else "a part of the masks tried: upper bounds"
    shown = range(len(case.sizes))[:: 1 if len(case.sizes) < 10 else 2]
    rows = []
    for d, needed, (low, high) in zip(case.dimensions, found.needed, found.interval, strict=True):
        hits = (found.breaks > d).sum(0)[shown]
        cells = [f"{h / trials:.2f} [{_range(wilson(int(h), trials))}]" for h in hits]
        rows.append((str(d), *cells, f"{_number(needed)} [{_number(low)}, {_number(high)}]"))
    return Sheet(
        f"Theorem 1: {case.label}",
        f"Probability that the invariant mask is the strict minimiser, lambda = {case.penalty_weight:g}, "
        f"{trials} draws, {searched}; Wilson's 95 % interval. Last column: n for probability {CONFIDENCE:g}, "
        "with its 95 % interval by bootstrap over draws; - if not among the n computed.",
        ("d", *(f"n = {case.sizes[at]}" for at in shown), f"n at {CONFIDENCE:g}"),
        tuple(rows),
    )


def _range(ends: tuple[float, float]) -> str:
    return ", ".join(f"{end:.2f}" for end in ends)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def _line_sheet(report: TheoryReport) -> Sheet:
    rows = tuple(
        (
            found.case.label,
            f"{found.offset:.0f} + {found.slope:.1f} ln d",
            f"[{found.slope_interval[0]:.1f}, {found.slope_interval[1]:.1f}]",
            *(f"{value:.3f}" for value in found.fit),
        )
        for found in report.identified
    )
    return Sheet(
        "How the samples needed grow with the features",
        f"Line through the n at probability {CONFIDENCE:g}; 95 % interval of the slope by bootstrap over "
        "draws; R2 of a line in ln d, beside lines in the square root of d and in d itself.",
        ("features", "n needed", "slope, 95 %", "R2 in ln d", "R2 in sqrt d", "R2 in d"),
        rows,
    )


def _weight_sheet(report: TheoryReport) -> Sheet:
    case = report.weights[0].case
    d = case.dimensions[0]
    rows = tuple(
        (
            f"{found.case.penalty_weight:g}",
            *(f"{p:.2f}" for p in found.probability(d)),
            _number(found.needed[0]),
        )
        for found in report.weights
    )
    return Sheet(
        "What the penalty weight does",
        f"Probability that the invariant mask is the strict minimiser, d = {d}, half of the others spurious, "
        f"{case.trials} draws. Too small a weight prefers spurious features however many the samples; too "
        "large a one prefers few features, since each costs lambda times its estimation error. "
        "- means that no n computed is enough.",
        ("lambda", *(f"n = {n}" for n in case.sizes), f"n at {CONFIDENCE:g}"),
        rows,
    )


def _discovery_sheet(report: TheoryReport) -> Sheet:
    rows = tuple(
        (
            row.method,
            str(row.d),
            str(row.n),
            f"{row.found}/{len(row.kept)}",
            _range(wilson(row.found, len(row.kept))),
            *(f"{mean:.2f}" for mean in row.means),
        )
        for row in report.discovery
    )
    return Sheet(
        "Does optimisation find it? K = 2 of d features",
        "Seeds in which the final mask is exactly the invariant one, with Wilson's 95 % interval, and the "
        "mean numbers of features kept. 'Every mask tried' is the minimiser that Theorem 1 speaks of.",
        ("method", "d", "n", "found", "95 %", "invariant", "spurious", "random"),
        rows,
    )
