"""Why cells differ from the paper: short texts beside the results, each about the cells it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sparseirm.core import SettingError
from sparseirm.experiments.beside_paper import Finding


@dataclass(frozen=True)
class Deviation:
    """A text and what it is about.

    Attributes:
        title: in short.
        cells: patterns of `address` it speaks about.
        paragraphs: the text.
    """

    title: str
    cells: tuple[str, ...]
    paragraphs: tuple[str, ...]

    def about(self, finding: Finding) -> bool:
        """Whether it speaks about a finding."""
        return any(fnmatch(address(finding), pattern) for pattern in self.cells)


def address(finding: Finding) -> str:
    """A cell and its settings as one word.

    >>> from sparseirm.experiments.grids import Cell
    >>> address(Finding(Cell("colored_mnist", 20000, "mlp", 64, "IRM", "rex"), "ours"))
    'colored_mnist/20000/mlp/64/IRM/rex/ours'
    """
    cell = finding.cell
    parts = (cell.data, cell.n_train, cell.model, cell.width, cell.method, cell.penalty, finding.settings)
    return "/".join(str(part or "-") for part in parts)


def read(folder: Path) -> list[Deviation]:
    """The texts of a folder, each a file ``NAME.md``, in the order of their names.

    Args:
        folder: the folder; it may be missing. A file begins with the lines ``title: ...`` and ``cells: ...``
            (patterns of `address`, with blanks between them, or ``table4``), then an empty line, then
            paragraphs.

    Returns:
        The texts.

    Raises:
        SettingError: if a file begins in another way.
    """
    found = []
    for path in sorted(folder.glob("*.md")):
        head, _, text = path.read_text().partition("\n\n")
        fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
        if {"title", "cells"} != fields.keys():
            raise SettingError(f"{path} must begin with the lines `title: ...` and `cells: ...`, and a gap.")
        paragraphs = tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())
        found.append(Deviation(fields["title"], tuple(fields["cells"].split()), paragraphs))
    return found


def unexplained(findings: Sequence[Finding], told: Sequence[Deviation]) -> list[Finding]:
    """Findings under our settings that deviate (`Finding.deviates`), and no text says why."""
    return [
        finding
        for finding in findings
        if finding.settings == "ours"
        and finding.deviates
        and not any(deviation.about(finding) for deviation in told)
    ]
