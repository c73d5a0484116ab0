"""What SparseIRM should do by the paper, and by our own goals, held against the cells of its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparseirm.experiments.beside_paper import Difference, Finding, difference
from sparseirm.experiments.tables import markdown_table

PENALTIES = {"irmv1": "IRMv1", "rex": "REx"}
"""The penalties of the paper's tables, as they are written."""

WIDE, NEAR = 640, 3.0
"""The width at which, and the points of accuracy within which SparseIRM should be as good as the Oracle."""

GOAL = 20
"""In how many of the 24 cells of a penalty SparseIRM should reach the paper's number; others hold in all."""


@dataclass(frozen=True)
class Claim:
    """A statement about several cells.

    Attributes:
        words: the statement.
        reached: cells where it holds for the mean over seeds.
        sure: cells where it holds for the whole 95 % interval.
        single: cells where it holds, and one seed is all there is.
        reversed: cells where it holds, and SparseIRM is better in the test than in training.
        tested: cells with runs that can tell.
        cells: all cells it speaks about.
        goal: in how many of them it should hold: what we set out for.
    """

    words: str
    reached: int
    sure: int
    single: int
    reversed: int
    tested: int
    cells: int
    goal: int


def in_markdown(statements: Sequence[Claim]) -> str:
    """The statements with their counts as a Markdown table."""
    lines = [
        (
            claim.words,
            f"{claim.reached} of {claim.cells}",
            f"at least {claim.goal}",
            *map(str, (claim.sure, claim.single, claim.reversed)),
            f"{claim.tested} of {claim.cells}",
        )
        for claim in statements
    ]
    counts = ("whole 95 % interval", "one seed", "test above train")
    return markdown_table(("claim", "holds in", "our goal", *counts, "runs for"), lines)


def claims(findings: Sequence[Finding]) -> list[Claim]:
    """Three statements for each penalty, on the cells with a width, under our settings.

    A cell with a collapsed run reaches nothing, whatever its test accuracy, nor does one beside such a cell.

    Args:
        findings: findings of all cells.

    Returns:
        The statements with their counts.
    """
    ours: dict[tuple[object, ...], Finding] = {
        (f.cell.data, f.cell.n_train, f.cell.width, f.cell.method, f.cell.penalty): f
        for f in findings
        if f.settings == "ours" and f.cell.width
    }

    def beside(method: str, penalty: str) -> Callable[[Finding], Difference | None]:
        def gap(mine: Finding) -> Difference | None:
            cell = mine.cell
            other = ours.get((cell.data, cell.n_train, cell.width, method, penalty))
            return difference(mine, other) if other else None

        return gap

    made = []
    for penalty, written in PENALTIES.items():
        mine = [f for f in ours.values() if (f.cell.method, f.cell.penalty) == ("SparseIRM", penalty)]
        wide = [f for f in mine if f.cell.width == WIDE]
        name = f"SparseIRM ({written})"
        dense = f"{name} is better than dense IRM on the same seeds"
        oracle = f"{name} at width {WIDE} is less than {NEAR:g} points below our own Oracle"
        made += [
            _claim(f"{name} reaches the paper's number", mine, _to_paper, 0.0, GOAL),
            _claim(dense, mine, beside("IRM", penalty), 0.0, len(mine)),
            _claim(oracle, wide, beside("Oracle", ""), -NEAR, len(wide)),
        ]
    return made


def _to_paper(finding: Finding) -> Difference | None:
    return Difference(finding.gap, not finding.collapsed) if finding.gap else None


def _claim(
    words: str,
    findings: Sequence[Finding],
    gap: Callable[[Finding], Difference | None],
    least: float,
    goal: int,
) -> Claim:
    gaps = [(finding, found) for finding in findings if (found := gap(finding))]
    holds = [
        (finding, found.figures) for finding, found in gaps if found.sound and found.figures.mean >= least
    ]
    ends = [figures.interval[0] for _, figures in holds if figures.interval]
    return Claim(
        words,
        reached=len(holds),
        sure=sum(end >= least for end in ends),
        single=len(holds) - len(ends),
        reversed=sum(finding.reversed for finding, _ in holds),
        tested=len(gaps),
        cells=len(findings),
        goal=goal,
    )
