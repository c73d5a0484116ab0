"""Tables in words, with a title and a note: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparseirm.experiments.tables import markdown_table


@dataclass(frozen=True)
class Sheet:
    """A table in words: a title, what one sees in it, headings and rows."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def markdown(self) -> str:
        """The sheet in Markdown."""
        return f"## {self.title}\n\n{self.note}\n\n{self.table}"

    @property
    def table(self) -> str:
        """Its table in Markdown, without title and note."""
        return markdown_table(self.headings, self.rows)


def plain_console(width: int | None = 110) -> Console:
    """Where commands print; what looks like markup in names of the data is printed as it is.

    Args:
        width: characters per line; None for those of the terminal.

    Returns:
        The console.
    """
    return Console(width=width, highlight=False, markup=False)


def plain_table(headings: Sequence[str], lines: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of the terminal, the first column to the left."""
    shown = Table(title=title)
    for at, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if at else "left")
    for line in lines:
        shown.add_row(*line)
    return shown


def show(sheets: Iterable[Sheet]) -> None:
    """Print sheets."""
    console = plain_console(None if Console().is_terminal else 160)
    for sheet in sheets:
        table = plain_table(sheet.headings, sheet.rows)
        console.print(Text(f"\n{sheet.title}", style="bold"), sheet.note, table, sep="\n")


def page(title: str, sheets: Iterable[Sheet]) -> bytes:
    """Sheets as one page in Markdown, UTF-8."""
    return (f"# {title}\n\n" + "\n".join(sheet.markdown for sheet in sheets)).encode()
