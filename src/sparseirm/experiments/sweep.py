"""Run what the store lacks, in processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from sparseirm.core import SettingError
from sparseirm.experiments.store import Store
from sparseirm.recipe import Recipe
from sparseirm.runs import Result, run


@contextmanager
def local(workers: int | None = None) -> Iterator[Executor]:
    """Local processes, one per core unless told otherwise; they start fresh and share nothing.

    Args:
        workers: number of processes, at least 1; None for one per core.

    Yields:
        Executor: the pool. Its processes end with the context, or with the process that opened it.

    Raises:
        SettingError: if ``workers`` is below 1.
    """
    if workers is not None and workers < 1:
        raise SettingError(f"`workers` must be at least 1; got {workers}. Leave it out for one per core.")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers or cores(), mp_context=context, initializer=_alone, initargs=(os.getpid(),)
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    recipes: Sequence[Recipe],
    store: Store,
    executor: Executor,
    data_root: str | None = None,
    on_done: Callable[[Recipe, str | None], None] = lambda recipe, failure: None,
    time_budget: float | None = None,
) -> list[Result | None]:
    """Results of all recipes, in their order: from the store, or run now, widest networks first.

    Args:
        recipes: what to run; finished ones cost nothing.
        store: where results are looked up and kept.
        executor: where to run; anything with the interface of `concurrent.futures.Executor`.
        data_root: folder of the data files.
        on_done: called after every run with its recipe and the reason of its failure, or None.
        time_budget: seconds after which no further run is started.

    Returns:
        One result per recipe; None for one that failed, was not started, or is in another's hands.

    Raises:
        SettingError: if a recipe cannot be resolved (before anything runs), or a stored result is damaged.
    """
    store.tidy()
    recipes = pinned(recipes, data_root)
    missing = {recipe.key: recipe for recipe in recipes if store.get(recipe) is None}
    order = sorted(missing.values(), key=_cost, reverse=True)
    deadline = None if time_budget is None else time.time() + time_budget
    futures = {
        executor.submit(carry_out, recipe, store.root, data_root, deadline): recipe for recipe in order
    }
    for recipe in recipes:
        if recipe.key not in missing:
            on_done(recipe, None)
    for future in as_completed(futures):
        try:
            failure = future.result()
        except BrokenExecutor:
            failure = "its process died; the same command goes on from its last checkpoint"
        on_done(futures[future], failure)
    return [store.get(recipe) for recipe in recipes]


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
    """Run one recipe into the store, going on from its checkpoint; return why it failed, or None."""
    store = Store(root)
    if deadline is not None and time.time() > deadline:
        return "not started: the time budget is used up"
    with store.claim(recipe) as folder:
        if folder is None:
            return None if store.get(recipe) else "not started: another process is running it"
        try:
            if store.get(recipe) is None:
                store.put(run(recipe, data_root=data_root, out=folder, resume=True))
        except Exception as error:
            store.fail(recipe, f"{type(error).__name__}: {error}")
            return f"{type(error).__name__}: {error}"
        store.clear(recipe)
    return None


def _cost(recipe: Recipe) -> float:
    recipe = recipe.resolved()
    width = recipe.width or 8000  # of an MLP about as slow as a ResNet-18
    return (recipe.batch_size or recipe.n_train or 1) * width * (width + 400) * recipe.total_steps


def _alone(parent: int) -> None:
    """One thread, deaf to Ctrl-C, and no life after the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
