"""The progress bar of commands that wait for one thing after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(title: str, total: int, unit: str, shown: bool = True) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, silence elsewhere.

    Args:
        title: what is waited for.
        total: how much of it there is.
        unit: what is counted, in the plural.
        shown: False for silence on a terminal too.

    Yields:
        Callable[..., None]: moves it, to ``completed`` or by ``advance``; ``total`` changes the end, ``note``
        what stands beside it.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda **change: progress.update(task, **change)
