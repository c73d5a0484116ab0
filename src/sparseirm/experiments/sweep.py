"""Run what the store lacks: the longest first, each once, whatever dies on the way."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparseirm.experiments.estimates import Estimates, cost
from sparseirm.experiments.executors import Handle, Submitter
from sparseirm.experiments.store import Store
from sparseirm.recipe import Recipe
from sparseirm.runs import Point, Result, checkpoint_pause, run
from sparseirm.together import Together, at_once, groups
from sparseirm.training.loop import Record
from sparseirm.training.processes import check_alone

ATTEMPTS = 3
"""How often a run is started whose process dies under it, before its failure is recorded."""

MOST_LOSSES = 10
"""How many processes may die for each attempt while a run only waits for its turn in them."""

PAUSE, BEAT = 0.1, 2.0
"""Seconds between two looks at the executor, and between two signs of life of a run."""

OVER = "not started: the time budget is used up"
STOPPED = "stopped: the time budget is used up; it will go on from its checkpoint"

_TURN = threading.Lock()
"""One run at a time in a process: generators and settings of PyTorch belong to the process."""


class Postponed(str):
    """Why a run was left for another time: no failure, and nothing is recorded."""


class Elsewhere(Postponed):
    """A run that another process has; to be waited for."""


class Apart(str):
    """Why runs are carried out one by one instead of at once."""


class OutOfTime(KeyboardInterrupt):
    """The time budget was used up in the middle of a run, which then saves its checkpoint."""


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        total: different runs asked for.
        done: those with a result, found or new.
        failed: those that failed.
        postponed: those left for another time.
        running: runs in flight, here or in another sweep on the same store, and how much of each is over.
        seconds: about how long the rest will take, or None before anything has been measured.
    """

    total: int
    done: int
    failed: int
    postponed: int
    running: list[tuple[Recipe, float]]
    seconds: float | None


def sweep(
    recipes: Sequence[Recipe],
    store: Store,
    executor: Submitter,
    data_root: str | None = None,
    on_done: Callable[[Recipe, str | None], None] = lambda recipe, failure: None,
    time_budget: float | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    together: Together = "off",
    workers: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> list[Result | None]:
    """Results of all recipes, in their order: from the store, or run now, longest first.

    Runs that another sweep on the same store has are waited for, and carried out here if it dies.

    Args:
        recipes: what to run; finished ones cost nothing.
        store: where results are looked up and kept; the executor's processes must see it too.
        executor: where to run.
        data_root: folder of the data files, where the runs are carried out.
        on_done: called after every run that was missing, with its recipe and why it still has no result, or
            None; a reason that is no failure is `Postponed`.
        time_budget: seconds after which no run is started or waited for, and runs in flight stop at a
            checkpoint.
        watch: called about once a second, and at the end.
        together: how many runs of one shape a process carries out at once, see
            `sparseirm.together.run_together`; those that cannot be, or do not gain from it, are carried out
            one by one.
        workers: number of processes that are to share the runs of a shape.
        say: called with a line about runs at once.

    Returns:
        One result per recipe; None for one that failed, or was left for another time.

    Raises:
        SettingError: if a recipe cannot be resolved (before anything runs), a stored result is damaged, or
            torchrun started this process beside others.
    """
    check_alone()
    groups((), together)  # which says what is wrong with it
    store.tidy()
    wanted = [recipe.resolved() for recipe in pinned(recipes, data_root)]
    deadline = None if time_budget is None else time.time() + time_budget
    work = _Work(store, executor, data_root, deadline, together, workers, say)
    work.begin({recipe.key: recipe for recipe in wanted})
    look = 0.0
    try:
        while work.flights or work.waiting:
            for recipe, failure in work.landed():
                on_done(recipe, failure)
            if time.monotonic() >= look:
                for recipe, failure in work.depart():
                    on_done(recipe, failure)
                watch(work.progress())
                look = time.monotonic() + 1
            time.sleep(PAUSE)
    except BaseException:
        work.cancel()
        raise
    watch(work.progress())
    return [store.get(recipe) for recipe in wanted]


def pinned(recipes: Sequence[Recipe], data_root: str | None = None) -> list[Recipe]:
    """The recipes tied to the content of their files, which are read once for each data set.

    Args:
        recipes: the recipes.
        data_root: folder of the data files.

    Returns:
        One recipe each, as of `Recipe.pinned`.

    Raises:
        SettingError: if one is tied to other files, or files are not to be had.
    """
    found = {name: Recipe(data=name).pinned(data_root).data_digest for name in {r.data for r in recipes}}
    return [
        replace(recipe, data_digest=found[recipe.data])
        if recipe.data_digest is None
        else recipe.pinned(data_root)
        for recipe in recipes
    ]


def carry_out(
    recipe: Recipe, root: Path, data_root: str | None = None, deadline: float | None = None
) -> str | None:
    """Run one recipe into the store, going on from its checkpoint; return why it has no result, or None."""
    store = Store(root)
    with _TURN:
        if deadline is not None and time.time() > deadline:
            return Postponed(OVER)
        with store.claim(recipe) as folder:
            if folder is None:
                return Elsewhere("another process is running it")
            try:
                if store.get(recipe) is None:
                    pulse = _pulse(store, recipe, deadline)
                    store.put(run(recipe, data_root=data_root, out=folder, resume=True, on_step=pulse))
            except OutOfTime:
                return Postponed(STOPPED)
            except Exception as error:
                return _kept(store, recipe, error)
            store.clear(recipe)
    return None


def carry_out_at_once(
    recipes: Sequence[Recipe], root: Path, data_root: str | None, deadline: float | None, measure: bool
) -> tuple[list[str], dict[str, str | None]]:
    """Run recipes of one shape into the store at once.

    Args:
        recipes: resolved recipes.
        root: folder of the store.
        data_root: folder of the data files.
        deadline: time at which to stop.
        measure: whether to do so only if it is faster than one by one.

    Returns:
        Lines to say; and for the key of every recipe why it has no result, or None. Those that are to be
        carried out one by one are `Apart`.
    """
    store, said = Store(root), list[str]()
    with _TURN, ExitStack() as claims:
        if deadline is not None and time.time() > deadline:
            return said, {recipe.key: Postponed(OVER) for recipe in recipes}
        found: dict[str, str | None] = {}
        mine: list[tuple[Recipe, Path]] = []
        for recipe in recipes:
            folder = claims.enter_context(store.claim(recipe))
            if folder is None:
                found[recipe.key] = Elsewhere("another process is running it")
            elif store.get(recipe) is None:
                mine.append((recipe, folder))
            else:
                found[recipe.key] = None
                store.clear(recipe)
        pulses = [_pulse(store, recipe, deadline) for recipe, _ in mine]

        def on_step(at: int, record: Record, trajectory: list[Point]) -> None:
            pulses[at](record, trajectory)

        try:
            ended = at_once(
                *([recipe for recipe, _ in mine], [folder for _, folder in mine], data_root, True, "cpu"),
                *(on_step, checkpoint_pause(), measure, said.append),
            )
        except OutOfTime:
            why = Postponed(STOPPED)
            return said, found | {recipe.key: why for recipe, _ in mine}
        if isinstance(ended, str):
            return said, found | {recipe.key: Apart(ended) for recipe, _ in mine}
        for (recipe, _), outcome in zip(mine, ended, strict=True):
            found[recipe.key] = _kept(store, recipe, outcome)
    return said, found


def _kept(store: Store, recipe: Recipe, outcome: Result | Exception) -> str | None:
    """Put a result into the store, or the reason why there is none, and return that."""
    if isinstance(outcome, Exception):
        reason = f"{type(outcome).__name__}: {outcome}"
        store.fail(recipe, reason)
        return reason
    store.put(outcome)
    store.clear(recipe)
    return None


def _pulse(store: Store, recipe: Recipe, deadline: float | None) -> Callable[[Record, list[Point]], None]:
    """What happens between steps: a sign of life now and then, and the end when time is up."""
    store.beat(recipe, 0, recipe.total_steps)
    last = time.monotonic()

    def on_step(record: Record, trajectory: list[Point]) -> None:
        nonlocal last
        if time.monotonic() - last >= BEAT:
            store.beat(recipe, record.step, record.total)
            last = time.monotonic()
        if deadline is not None and time.time() > deadline:
            raise OutOfTime

    return on_step


@dataclass
class _Work:
    """Runs in flight, those that are yet to be started here or end elsewhere, and what became of others."""

    store: Store
    executor: Submitter
    data_root: str | None
    deadline: float | None
    together: Together
    workers: int
    say: Callable[[str], None]
    total: int = 0
    called_off: bool = False
    waiting: dict[str, Recipe] = field(default_factory=dict)
    flights: dict[str, tuple[Recipe, Handle]] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    estimates: Estimates = field(default_factory=Estimates)

    def begin(self, wanted: dict[str, Recipe]) -> None:
        self.total = len(wanted)
        missing = [recipe for recipe in wanted.values() if self.store.get(recipe) is None]
        if missing:
            self.estimates = Estimates.of(self.store.all())
        self.waiting = {r.key: r for r in sorted(missing, key=self._length, reverse=True)}

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline

    def depart(self) -> Iterator[tuple[Recipe, str | None]]:
        """Start what waits and nobody else has; runs that have a result by now, or are out of time."""
        ready = []
        for key, recipe in list(self.waiting.items()):
            claimed = self.store.claimed(recipe)
            if claimed and not self.late:
                continue
            del self.waiting[key]
            if self.store.get(recipe):
                yield recipe, self._recorded(recipe, None)
            elif self.late:
                also = ", and another process is running it" if claimed else ""
                yield recipe, self._recorded(recipe, Postponed(f"{OVER}{also}"))
            else:
                ready.append(recipe)
        for group in groups(ready, self.together, self.workers):
            self._start_at_once([ready[at] for at in group])

    def landed(self) -> Iterator[tuple[Recipe, str | None]]:
        """Runs that have ended since the last call, and why they have no result."""
        if self.late and not self.called_off:
            self.called_off = True
            self.cancel()
        for key, (recipe, handle) in list(self.flights.items()):
            if handle.done():
                del self.flights[key]
                try:
                    failure = handle.result()
                except CancelledError:
                    failure = Postponed(OVER)
                except Exception as error:
                    if self._again(recipe):
                        continue
                    failure = f"the executor gave it up: {type(error).__name__}: {error}"
                    self.store.fail(recipe, failure)
                if isinstance(failure, Apart):
                    self._start(recipe)
                    continue
                if isinstance(failure, Elsewhere):
                    self.waiting[key] = recipe
                    continue
                yield recipe, self._recorded(recipe, failure)

    def progress(self) -> Progress:
        running, left, calls = [], 0.0, set[int]()
        flights = [(recipe, id(_call(handle))) for recipe, handle in self.flights.values()]
        for recipe, call in [*((recipe, id(recipe)) for recipe in self.waiting.values()), *flights]:
            over = self.store.over(recipe)
            if over is not None:
                running.append((recipe, over))
                calls.add(call)  # runs at once share the time of one process
            left += (1 - (over or 0)) * (self._seconds(recipe) or math.nan)
        seconds = None if math.isnan(left) else left / max(1, len(calls))
        failed, postponed = self.counts["failed"], self.counts["postponed"]
        done = self.total - len(self.waiting) - len(self.flights) - failed - postponed
        return Progress(self.total, done, failed, postponed, running, seconds)

    def cancel(self) -> None:
        """Take back what has not begun."""
        begun = {id(_call(handle)) for r, handle in self.flights.values() if self.store.over(r) is not None}
        for _, handle in self.flights.values():
            if id(_call(handle)) not in begun:
                handle.cancel()

    def _start(self, recipe: Recipe) -> None:
        handle = self.executor.submit(carry_out, recipe, self.store.root, self.data_root, self.deadline)
        self.flights[recipe.key] = recipe, handle

    def _start_at_once(self, recipes: list[Recipe]) -> None:
        if len(recipes) == 1:
            self._start(recipes[0])
            return
        measure = self.together == "auto"
        given = (recipes, self.store.root, self.data_root, self.deadline, measure)
        group = _Group(self.executor.submit(carry_out_at_once, *given), self.say)
        for recipe in recipes:
            self.flights[recipe.key] = recipe, _Part(group, recipe.key)

    def _again(self, recipe: Recipe) -> bool:
        """Start a run again whose process died, unless that has happened too often."""
        begun = self.store.over(recipe) is not None  # others only waited in the same executor
        self.losses[recipe.key] += MOST_LOSSES if begun else 1
        again = self.losses[recipe.key] < ATTEMPTS * MOST_LOSSES
        if again:
            self._start(recipe)
        return again

    def _recorded(self, recipe: Recipe, failure: str | None) -> str | None:
        result = self.store.get(recipe) if failure is None else None
        if result:
            self.estimates.learn(result)
            return None
        if failure is None:
            failure = Postponed(
                f"it finished, but {self.store.root} has no result of it: workers need the same folder, "
                "under the same path, and the same version of sparseirm"
            )
        self.counts["postponed" if isinstance(failure, Postponed) else "failed"] += 1
        return failure

    def _length(self, recipe: Recipe) -> tuple[float, float]:
        return self._seconds(recipe) or 0.0, cost(recipe)

    def _seconds(self, recipe: Recipe) -> float | None:
        return self.estimates.seconds(recipe, shared=self.together != "off")


@dataclass
class _Group:
    """Runs that are carried out at once, and what is said about them, once."""

    handle: Handle
    say: Callable[[str], None]
    said: bool = False

    def result(self) -> dict[str, str | None]:
        lines: list[str]
        found: dict[str, str | None]
        lines, found = self.handle.result()
        if not self.said:
            self.said = True
            reasons = Counter(str(why) for why in found.values() if isinstance(why, Apart))
            for line in [*lines, *(f"{n} runs one by one: {why}" for why, n in reasons.items())]:
                self.say(line)
        return found


@dataclass(frozen=True)
class _Part:
    """One run of a group, as a handle."""

    group: _Group
    key: str

    def done(self) -> bool:
        return self.group.handle.done()

    def result(self) -> str | None:
        return self.group.result()[self.key]

    def cancel(self) -> Any:
        return self.group.handle.cancel()


def _call(handle: Handle) -> Handle:
    """What carries out a run: its own call, or that of its group."""
    return handle.group.handle if isinstance(handle, _Part) else handle
