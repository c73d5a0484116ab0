"""The paper's theory as one command: its statements computed on the linear model, and what training finds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparseirm.experiments.sheets import page, show
from sparseirm.experiments.theory_figure import draw
from sparseirm.experiments.theory_study import LAMBDA, TheoryReport, compute
from sparseirm.experiments.theory_tables import sheets
from sparseirm.files import plain, write_bytes, write_json


def _without_functions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a report, with the names of functions in their place."""
    return {name: value.__name__ if callable(value) else value for name, value in pairs}


def theory(out: Path = Path("out/theory"), quick: bool = False) -> TheoryReport:
    """Check the paper's theory on its linear model by computing it, in under ten minutes on one core.

    Where do too many features bring every loss to zero (Proposition 1, Corollary 1)? How many samples make
    the invariant features the best ones (Theorem 1), and does that number grow like ln d? Does training
    find them? Writes ``theory.md``, ``theory.svg`` and ``theory.json``.

    Example: sparseirm theory --quick

    Args:
        out: folder for table, figure and numbers.
        quick: a small version, in under half a minute.

    Returns:
        All numbers.
    """
    report = compute(quick)
    publish(report, out)
    return report


def publish(report: TheoryReport, out: Path) -> None:
    """Print the tables of a report, and write them, the figure and all numbers to a folder.

    Args:
        report: the numbers.
        out: the folder.
    """
    tables = sheets(report)
    show(tables)
    numbers = asdict(report, dict_factory=_without_functions)
    write_json(out / "theory.json", plain({**numbers, "penalty_weight": LAMBDA}))
    write_bytes(out / "theory.md", page("Theory, computed", tables))
    figure = draw(report, out / "theory.svg")
    print(f"figure: {figure}, tables: {out / 'theory.md'}, numbers: {out / 'theory.json'}")
