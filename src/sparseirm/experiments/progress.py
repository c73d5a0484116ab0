"""What a sweep shows while it runs: one line that moves on a terminal, a line for every run elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import Postponed, Progress
from sparseirm.experiments.tables import label
from sparseirm.recipe import Recipe


def duration(seconds: float | None) -> str:
    """Seconds in words.

    >>> duration(42), duration(600), duration(9000), duration(None)
    ('42 s', '10 min', '2 h 30 min', 'unknown time')
    """
    if seconds is None:
        return "unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def name(recipe: Recipe) -> str:
    """A resolved run in words.

    >>> name(Recipe(method="erm", width=64, seed=2).resolved())
    'colored_digits 1200, width 64, ERM, seed 2'
    >>> name(Recipe(data="cifar_mnist", model="resnet18", method="erm").resolved())
    'cifar_mnist 10000, resnet18, ERM, seed 0'
    """
    data = f"{recipe.data} {recipe.n_train}" if recipe.n_train else recipe.data
    model = f"width {recipe.width}" if recipe.width else recipe.model
    settings = "" if recipe.settings == "ours" else f", {recipe.settings} settings"
    return f"{data}, {model}, {label(recipe)}{settings}, seed {recipe.seed}"


def summary(progress: Progress) -> str:
    """All runs in one line."""
    words = [f"{progress.done} of {progress.total} done", f"{len(progress.running)} running"]
    words += [f"{progress.failed} failed"] if progress.failed else []
    words += [f"{progress.postponed} left for later"] if progress.postponed else []
    waiting = progress.total - progress.done - progress.failed - progress.postponed
    return ", ".join(words + ([f"about {duration(progress.seconds)} left"] if waiting else []))


@dataclass
class Reporter:
    """Shows a sweep; its two methods are what `sweep` calls.

    Attributes:
        store: the store of the sweep, where results are looked up.
        console: where lines go.
        live: the lines that move, on a terminal.
        ended: runs that had ended when it was last said how many.
        failed: runs that have failed.
    """

    store: Store
    console: Console
    live: Live | None = None
    ended: int = 0
    failed: int = 0

    def on_done(self, recipe: Recipe, failure: str | None) -> None:
        """A run has ended: say how."""
        result = self.store.get(recipe)
        if result:
            last = result.last
            scores = ", ".join(f"{p} {last[p].accuracy:.1f}" for p in ("train", "val", "test") if p in last)
            outcome = f"{scores} in {duration(result.seconds)}"
        elif isinstance(failure, Postponed):
            outcome = str(failure)
        else:
            outcome, self.failed = f"FAILED: {failure}", self.failed + 1
        self.say(f"{name(recipe)}: {outcome}")

    def watch(self, progress: Progress) -> None:
        """Time has passed: move, or on a file say how many have ended when more have."""
        ended = progress.done + progress.failed + progress.postponed
        if self.live:
            running = "".join(f"\n  {over:4.0%}  {name(recipe)}" for recipe, over in progress.running)
            self.live.update(Text(summary(progress) + running), refresh=True)
        elif ended > self.ended:
            self.say(f"  {summary(progress)}")
        self.ended = ended

    def say(self, line: str) -> None:
        """Say a line."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def reporter(store: Store) -> Iterator[Reporter]:
    """A reporter on the error stream."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(store, console)
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:
        yield Reporter(store, console, live)
