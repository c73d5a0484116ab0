"""What `sparseirm bench` measured, as tables: for the terminal and for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparseirm.experiments.tables import markdown_table

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
            ("what", "ratio", "smallest to largest", "ours, s", "reference, s", "reference"),
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
            + [("size", report["size"]["name"]), ("load before", _load(report))],
        ),
    }


def markdown(report: Mapping[str, Any], name: str) -> str:
    """One of the tables in Markdown, with its notes below if it is ``rows``."""
    heads, lines = sheets(report)[name]
    notes = [f"\n{note[0].upper()}{note[1:]}.\n" for note in report["notes"]] if name == "rows" else []
    return (markdown_table(heads, lines) if lines else "Not measured.\n") + "".join(notes)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    spread = f"{row['low']:.2f} to {row['high']:.2f}"
    seconds = (f"{row[name]:.3g}" for name in ("ours_s", "reference_s"))
    return (row["name"], f"{row['ratio']:.2f}", spread, *seconds, row["reference"])


def _curve(curve: Mapping[str, Any]) -> tuple[str, ...]:
    powers = (f"size^{curve[name]:.2f}" for name in ("time_exponent", "memory_exponent", "most"))
    return (f"{curve['name']}, {curve['sizes'][0]:,} to {curve['sizes'][-1]:,}", *powers, _verdict(curve))


def _verdict(measured: Mapping[str, Any]) -> str:
    return "holds" if measured["holds"] else "missed"


def _load(report: Mapping[str, Any]) -> str:
    loads: Sequence[float] = [
        group["load"] for group in report["groups"].values() if group["load"] is not None
    ]
    return f"{max(loads):.2f}" if loads else "unknown"
