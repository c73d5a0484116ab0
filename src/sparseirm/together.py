"""Small runs at once in one process, where that was measured to be faster; `training.together` says how."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from sparseirm.core import Loss, SettingError, first_line
from sparseirm.data import DataSet
from sparseirm.files import canonical
from sparseirm.methods import METHODS
from sparseirm.models import Network
from sparseirm.recipe import Recipe
from sparseirm.runs import Point, Result, Underway, checkpoint_pause, claim, environment, held, run
from sparseirm.training.loop import Record, train
from sparseirm.training.processes import check_alone
from sparseirm.training.sharding import joined
from sparseirm.training.stages import enter
from sparseirm.training.state import State
from sparseirm.training.together import Member, train_together, why_apart

MOST = 32
"""Runs at once at most, where nobody says how many."""

LARGEST = 1 << 28
"""Bytes that all their training inputs may take then: large runs gain nothing, and there are many of them."""

STEPS, ROUNDS = 4, 3
"""Steps timed in a row, together and singly in turn, and how often."""

FASTER = 1.1
"""How much faster than one after the other runs at once must be."""

OF_DATA = ("data", "data_options", "test_envs", "data_digest", "n_train", "leave_out")
OF_SHAPE = (*OF_DATA, "model", "width", "batch_size", "precision", "environments")
"""What runs must have in common to be of one shape, as far as recipes tell."""

Together = int | Literal["auto", "off"]
"""How many runs at once: a number, as many as gain from it, or no run beside another."""


def run_together(
    recipes: Sequence[Recipe],
    *,
    together: int | Literal["auto"] = "auto",
    data_root: str | None = None,
    outs: Sequence[Path | str] | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, Record, list[Point]], None] = lambda at, record, trajectory: None,
    checkpoint_seconds: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Result | Exception]:
    """Carry out recipes as `sparseirm.run` carries out each, those of one shape at once.

    Runs at once may differ in seed, method, penalty, sparsifier and every rate and weight. Results differ
    from those of single runs by rounding; their ``environment`` says under ``together`` how many ran at once.
    What cannot be stacked, or does not gain from it, runs one after the other.

    Args:
        recipes: what to run.
        together: how many at once; ``auto`` takes up to 32, and measures whether that is faster.
        data_root: folder of the data files.
        outs: a folder for each run, as `sparseirm.run` has one.
        resume: go on from the checkpoints in these folders.
        device: where to compute.
        on_step: called after every step of a run with its index, its record and its trajectory so far.
        checkpoint_seconds: as of `sparseirm.run`.
        say: called with a line about every decision.

    Returns:
        For each recipe its result, or the exception that ended it.

    Raises:
        SettingError: if ``together`` is below 2, a recipe cannot be resolved or its data files are not to be
            had, ``outs`` are not as many, or torchrun started this process beside others.

    Example:
        >>> found = run_together([Recipe(method="erm", width=8, steps=9, seed=s) for s in (0, 1)], together=2)
        >>> [result.environment["together"] for result in found]
        [2, 2]
    """
    check_alone()
    if outs is not None and len(outs) != len(recipes):
        raise SettingError(f"`outs` must name a folder for each of {len(recipes)} runs; got {len(outs)}.")
    recipes = [recipe.resolved().pinned(data_root) for recipe in recipes]
    folders = [None if outs is None else Path(outs[at]) for at in range(len(recipes))]
    pause = checkpoint_pause() if checkpoint_seconds is None else checkpoint_seconds
    found: dict[int, Result | Exception] = {}
    for group in groups(recipes, together):

        def tell(at: int, record: Record, trajectory: list[Point], group: list[int] = group) -> None:
            on_step(group[at], record, trajectory)

        mine, there = [recipes[at] for at in group], [folders[at] for at in group]
        ended = at_once(mine, there, data_root, resume, device, tell, pause, together == "auto", say)
        if isinstance(ended, str):
            say(f"{_words(mine)} one after the other: {ended}")
            parts = zip(mine, there, range(len(group)), strict=True)
            ended = [_singly(r, data_root, o, resume, device, partial(tell, at), pause) for r, o, at in parts]
        found |= zip(group, ended, strict=True)
    return [found[at] for at in range(len(recipes))]


def _singly(
    recipe: Recipe,
    data_root: str | None,
    out: Path | None,
    resume: bool,
    device: str,
    on_step: Callable[[Record, list[Point]], None],
    pause: float,
) -> Result | Exception:
    options: dict[str, Any] = {"data_root": data_root, "out": out, "resume": resume, "device": device}
    try:
        return run(recipe, **options, on_step=on_step, checkpoint_seconds=pause)
    except Exception as error:
        return error


def groups(recipes: Sequence[Recipe], together: Together, workers: int = 1) -> list[list[int]]:
    """Which resolved recipes may run at once: places of those of one shape, shared out among workers.

    Args:
        recipes: resolved recipes.
        together: how many at most in a group; ``auto`` for `MOST`.
        workers: in how many processes groups run side by side.

    Returns:
        Places in ``recipes``, each once.

    Raises:
        SettingError: if ``together`` is below 2.

    Example:
        >>> wide, small = Recipe(width=64).resolved(), Recipe(width=8).resolved()
        >>> groups([small, wide, small, small, small], 3), groups([small] * 4, "auto", workers=2)
        ([[0, 2], [3, 4], [1]], [[0, 1], [2, 3]])
    """
    if together == "off":
        return [[at] for at in range(len(recipes))]
    most = MOST if together == "auto" else together
    if not isinstance(most, int) or most < 2:
        raise SettingError(f"`together` must be auto, off, or 2 or more runs; got {together!r}.")
    alike: dict[str, list[int]] = {}
    for at, recipe in enumerate(recipes):
        alike.setdefault(_shape(recipe), []).append(at)
    found = []
    for places in alike.values():
        n = max(-(-len(places) // most), min(workers, len(places) // 2))
        cuts = [len(places) * piece // n for piece in range(n + 1)]
        found += [places[a:b] for a, b in pairwise(cuts)]
    return found


def at_once(
    recipes: Sequence[Recipe],
    folders: Sequence[Path | None],
    data_root: str | None,
    resume: bool,
    device: str,
    on_step: Callable[[int, Record, list[Point]], None],
    checkpoint_seconds: float,
    measure: bool,
    say: Callable[[str], None],
) -> list[Result | Exception] | str:
    """Carry out resolved recipes of one shape at once.

    Args:
        recipes: what to run.
        folders: the folder of each, or None.
        data_root: as in `run_together`; so are ``resume``, ``device`` and ``say``.
        resume: see there.
        device: see there.
        on_step: called after every step with a place in ``recipes``, its record and its trajectory; all runs
            have a state then, which is saved if it raises KeyboardInterrupt.
        checkpoint_seconds: time between two checkpoints of all of them.
        measure: whether to find out first if that is faster than one after the other.
        say: see there.

    Returns:
        For each its result or the exception that ended it; or the reason why they are not to run at once, and
        then nothing has happened.
    """
    found: dict[int, Result | Exception] = {}
    with joined(device) as (_, place), ExitStack() as until_the_end:
        try:
            most = LARGEST if measure else math.inf
            runs = _opened(recipes, folders, data_root, resume, place, most, until_the_end, found)
            here = {**environment(place), "together": len(runs)}
            states = {at: run.begin(here) for at, run in runs.items()}
            why = _why_apart([*runs.values()], measure, say)
        except Exception as error:  # that of a single run, which will have it again
            why = first_line(error)
        if why is not None:
            return why
        ended = _together(runs, states, on_step, checkpoint_seconds) if runs else {}
    return [(found | ended)[at] for at in range(len(recipes))]


def _opened(
    recipes: Sequence[Recipe],
    folders: Sequence[Path | None],
    data_root: str | None,
    resume: bool,
    place: torch.device,
    most: float,
    until_the_end: ExitStack,
    found: dict[int, Result | Exception],
) -> dict[int, Underway]:
    """The runs that are yet to be carried out; results of the others go to ``found``."""
    runs: dict[int, Underway] = {}
    data: dict[str, DataSet] = {}
    for at, (recipe, folder) in enumerate(zip(recipes, folders, strict=True)):
        if folder is not None:
            until_the_end.enter_context(held(folder))
            if finished := claim(folder, recipe, resume):
                found[at] = finished
                continue
        key = _key(
            recipe, (*OF_DATA, "correlations", "label_noise", "seed"), gray=METHODS[recipe.method].gray
        )
        data[key] = data.get(key) or recipe.make_data(data_root).to(place)
        if sum(each.train.samples.x.nbytes for each in data.values()) > most:
            raise SettingError(f"their training inputs take more than {most / (1 << 20):.0f} MB")
        runs[at] = Underway(recipe, data[key], place, folder)
    return runs


def _why_apart(runs: Sequence[Underway], measure: bool, say: Callable[[str], None]) -> str | None:
    """Why runs are not to be trained together, or None."""
    if len(runs) < 2:
        return "there is no other of its shape" if runs else None
    if any(len(run.stages) > 1 for run in runs):
        return "they consist of several trainings"
    network, loss = runs[0].network, runs[0].loss
    why = why_apart(network, loss, [_fresh(run) for run in runs])
    if why or not measure:
        return why
    gain = _gain(runs)
    if gain is None:
        return "they are too short to measure whether they gain"
    if gain < FASTER:
        return f"at once they would take {1 / gain:.2f} times as long"
    say(f"{_words([run.recipe for run in runs])} at once: {gain:.1f} times as fast as one after the other")
    return None


def _gain(runs: Sequence[Underway]) -> float | None:
    """How many times as fast as one after the other steps of runs are at once; None without enough steps."""
    network, loss = runs[0].network, runs[0].loss
    both: list[float] = []
    each: list[float] = []
    for turn in range(ROUNDS):
        both += _step_times(partial(train_together, network, loss, [_fresh(run) for run in runs]))
        each += _step_times(partial(_alone, network, loss, _fresh(runs[turn % len(runs)])))
    return len(runs) * median(each) / median(both) if both and each else None


def _alone(network: Network, loss: Loss, one: Member, between: Callable[[], None]) -> None:
    train(
        *(network, one.batches, loss, one.penalty, one.sparsifier, one.plan, one.state, one.seed),
        on_step=lambda state, record: between(),
    )


def _step_times(go: Callable[[Callable[[], None]], object]) -> list[float]:
    """Seconds of a few steps after the first."""
    return [after - before for before, after in pairwise(first_steps(go, STEPS + 1))]


def first_steps(go: Callable[[Callable[[], None]], object], n: int) -> list[float]:
    """Go on with a training for some steps, and leave it between two of them.

    Args:
        go: goes on with the training, and calls what it is handed after every step.
        n: number of steps.

    Returns:
        The clock after each of them, or after each there was, in seconds.
    """
    ends: list[float] = []

    def count() -> None:
        ends.append(time.perf_counter())
        if len(ends) == n:
            raise _Enough

    with suppress(_Enough):
        go(count)
    return ends


class _Enough(BaseException):
    """A training is to be left between two steps."""


def _fresh(run: Underway) -> Member:
    """A run before its first step, with a state of its own."""
    return _member(run, enter(run.network, run.stages, 0, run.recipe.seed))


def _member(
    run: Underway, state: State, on_step: Callable[[State, Record], None] = lambda state, record: None
) -> Member:
    stage, penalty = run.stages[0], run.recipe.make_penalty()
    return Member(run.batches, penalty, stage.sparsifier, stage.plan, state, run.recipe.seed, on_step)


def _shape(recipe: Recipe) -> str:
    """What a recipe says about the shape of its training."""
    return _key(recipe, OF_SHAPE, n_envs=len(recipe.correlations or ()), gray=METHODS[recipe.method].gray)


def _key(recipe: Recipe, names: Sequence[str], **more: Any) -> str:
    plain = asdict(recipe)
    return canonical({**{name: plain[name] for name in names}, **more})


def _words(recipes: Sequence[Recipe]) -> str:
    """Runs of one shape in words."""
    first = recipes[0]
    size = f" {first.n_train}" if first.n_train else ""
    model = f"width {first.width}" if first.width else first.model
    return f"{len(recipes)} runs on {first.data}{size}, {model},"


def _together(
    runs: dict[int, Underway],
    states: dict[int, State],
    on_step: Callable[[int, Record, list[Point]], None],
    pause: float,
) -> dict[int, Result | Exception]:
    """Train runs together to their ends."""
    records: dict[int, Record] = {}
    members: dict[int, Member] = {}
    whole = False

    def look(at: int, state: State, record: Record) -> None:
        records[at] = record
        runs[at].look(state, record)

    def between() -> None:
        nonlocal whole
        whole = True
        for at, member in members.items():
            if member.failure is None and at in records:
                try:
                    on_step(at, records.pop(at), runs[at].trajectory)
                    runs[at].save(member.state, pause)
                except Exception as error:  # of this run, and no reason for the others to end
                    member.failure = error
        whole = False

    for at, one in runs.items():
        one.share = len(runs)
        members[at] = _member(one, states[at], partial(look, at))
    try:
        one = next(iter(runs.values()))
        train_together(one.network, one.loss, [*members.values()], between)
    except KeyboardInterrupt:
        for at, member in members.items():
            if whole and member.failure is None:
                runs[at].save(member.state)
        raise
    return {at: _ended(runs[at], member) for at, member in members.items()}


def _ended(run: Underway, member: Member) -> Result | Exception:
    try:
        return member.failure or run.end(member.state)
    except Exception as error:  # of the disk, say
        return error
