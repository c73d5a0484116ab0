"""Tables in words, with a title and a note: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

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
    console = Console(width=None if Console().is_terminal else 160)
    for sheet in sheets:
        table = plain_table(sheet.headings, sheet.rows)
        console.print(f"\n[bold]{sheet.title}[/bold]\n{sheet.note}", table, sep="\n", highlight=False)


def page(title: str, sheets: Iterable[Sheet]) -> bytes:
    """Sheets as one page in Markdown, UTF-8."""
    return (f"# {title}\n\n" + "\n".join(sheet.markdown for sheet in sheets)).encode()
