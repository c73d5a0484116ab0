"""What `sparseirm bench` measured, as tables: for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparseirm.experiments.tables import markdown_table

RELEASED = "the released way"
TUNED = "the released way with oneDNN's products and memory kept in huge pages"
LIMIT = "its matrix products alone, each by the fastest library"
COPY = "copying 11 numbers for each score"
DENSE = "dense, oneDNN"
ERM = "our plain dense training (ERM)"
IRM = "our dense training with the same penalty (IRM)"

_STEPS = ("training step", "training step, 10 classes")
_STEP_GOALS = {
    ("fp32, gates drawn", RELEASED): 2.5,
    ("fp32, gates drawn", TUNED): 1.1,
    ("fp32, gates drawn", LIMIT): 0.7,
    ("bf16, gates drawn", LIMIT): 0.55,
    ("fp32, gates drawn", ERM): 1 / 1.05,
    ("fp32, mask decided", ERM): 1 / 1.05,
    ("bf16, gates drawn", ERM): 1 / 1.05,
    ("bf16, mask decided", ERM): 1 / 1.05,
}
_RUN = "run of 1,500 epochs, extrapolated from measured pieces, evaluated each epoch"
_EACH = f"{RELEASED}, evaluated each epoch"
_MASK = "gates, optimiser and projection of"

GOALS = {
    **{(f"{step}, {what}", of): goal for step in _STEPS for (what, of), goal in _STEP_GOALS.items()},
    (f"{_RUN}, fp32", _EACH): 4.0,
    (f"{_RUN}, bf16", _EACH): 8.0,
    (f"{_RUN}, steps at rest skipped, fp32", _EACH): 4.0,
    (f"{_RUN}, steps at rest skipped, bf16", _EACH): 8.0,
    (f"{_MASK} 300,000 scores", RELEASED): 2.5,
    (f"{_MASK} 300,000 scores", COPY): 1 / 3,
    (f"{_MASK} 11,000,000 scores", RELEASED): 10.0,
    (f"{_MASK} 11,000,000 scores", COPY): 1 / 3,
    ("step of ResNet-18, batch of 128, gates drawn", ERM): 1 / 1.15,
    ("step of ResNet-18, batch of 128, gates drawn", IRM): 1 / 1.25,
    ("step of ResNet-18, batch of 128, mask decided", ERM): 1 / 1.15,
    ("step of ResNet-18, batch of 128, mask decided", IRM): 1 / 1.25,
    ("20 seeds of a run of 400 steps on 1,200 digits, 2 processes", "one process"): 1.8,
    ("inference, width 2048, 5% of the weights, batch of 64", DENSE): 2.0,
    ("inference, width 2048, 5% of the weights, batch of 1024", DENSE): 2.0,
    ("step of dense IRM, 50000 samples, width 390", "the trainer of domainlab==0.7.1"): 2.0,
}
"""Ratios that were set as goals before anything was measured, by row and reference."""

Sheet = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings and lines."""


def sheets(report: Mapping[str, Any]) -> dict[str, Sheet]:
    """The tables of a ``bench.json``.

    Args:
        report: its content.

    Returns:
        ``rows``, ``checks``, ``curves`` and ``machine``.
    """
    return {
        "rows": (
            ("what", "ratio", "goal", "smallest to largest", "ours, s", "reference, s", "reference"),
            [_row(row) for row in report["rows"]],
        ),
        "checks": (
            ("measured", "value", "at most", ""),
            [
                (check["name"], f"{check['value']:.3g}", f"{check['most']:.3g}", _verdict(check))
                for check in report["checks"]
            ],
        ),
        "curves": (
            ("growing", "time grows like", "memory grows like", "at most", ""),
            [_curve(curve) for curve in report["curves"].values()],
        ),
        "machine": (
            ("measured on", ""),
            [(name, str(value)) for name, value in report["machine"].items()]
            + [("size", report["size"]["name"]), ("cores busy with other work before", _load(report))],
        ),
    }


def markdown(report: Mapping[str, Any], name: str) -> str:
    """One of the tables in Markdown, with its notes below if it is ``rows``."""
    heads, lines = sheets(report)[name]
    notes = [f"\n{note[0].upper()}{note[1:]}.\n" for note in report["notes"]] if name == "rows" else []
    return (markdown_table(heads, lines) if lines else "Not measured.\n") + "".join(notes)


def goals(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows that have a goal, in Markdown.

    Args:
        reports: contents of several ``bench.json`` by the headings of their columns.

    Returns:
        The table; a ratio that misses its goal is in brackets.
    """
    ratios = {name: {_about(row): row["ratio"] for row in report["rows"]} for name, report in reports.items()}
    lines = []
    for (what, of), goal in GOALS.items():
        found = [each.get((what, of)) for each in ratios.values()]
        cells = ["" if r is None else f"{r:.2f}" if r >= goal else f"({r:.2f})" for r in found]
        lines.append((what, of, f"{goal:.3g}", *cells))
    return markdown_table(("what", "reference", "goal", *ratios), lines)


def _about(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["name"], row["reference"]


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    seconds = (f"{row[name]:.3g}" for name in ("ours_s", "reference_s"))
    goal = GOALS.get(_about(row))
    verdict = "" if goal is None else f"{goal:.3g}, {'reached' if row['ratio'] >= goal else 'missed'}"
    return (row["name"], f"{row['ratio']:.2f}", verdict, spread, *seconds, row["reference"])


def _curve(curve: Mapping[str, Any]) -> tuple[str, ...]:
    powers = (f"size^{curve[name]:.2f}" for name in ("time_exponent", "memory_exponent", "most"))
    return (f"{curve['name']}, {curve['sizes'][0]:,} to {curve['sizes'][-1]:,}", *powers, _verdict(curve))


def _verdict(measured: Mapping[str, Any]) -> str:
    return "holds" if measured["holds"] else measured.get("note") or "missed"


def _load(report: Mapping[str, Any]) -> str:
    loads: Sequence[float] = [
        group["load"] for group in report["groups"].values() if group["load"] is not None
    ]
    return f"{max(loads):.2f}" if loads else "unknown"
