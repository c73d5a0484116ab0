"""Wherever runs are carried out: each is carried out once, and a killed process loses nothing."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from makers import why_failed
from sparseirm import Recipe, run
from sparseirm.core import SettingError
from sparseirm.experiments.executors import Handle, Submitter, connect, dask, local, slurm
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import Progress, sweep

QUICK = Recipe(method="erm", width=4, steps=4, eval_every=4)
LONG = replace(QUICK, width=390, steps=250, eval_every=250)
HERE = Path(__file__).parent


def journalled(journal: Path, call: Callable[..., Any], recipe: Recipe, *rest: Any) -> Any:
    """Carries out a run and writes down when it begins, where, and how it ends."""
    with journal.open("a") as file:
        print("begin", recipe.key, os.getpid(), file=file, flush=True)
    outcome = call(recipe, *rest)
    with journal.open("a") as file:
        print("end", recipe.key, outcome, file=file, flush=True)
    return outcome


@dataclass
class Journal:
    """A submitter that keeps a journal of what another one does."""

    inner: Submitter
    path: Path

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Handle:
        return self.inner.submit(journalled, self.path, call, *arguments)

    def lines(self, word: str) -> list[list[str]]:
        entries = [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []
        return [entry[1:] for entry in entries if entry[0] == word]


@dataclass
class Killer:
    """Kills the process of the first run it sees, once."""

    journal: Journal
    victim: str = ""

    def __call__(self, progress: Progress) -> None:
        if progress.running and not self.victim:
            self.victim, pid = self.journal.lines("begin")[0]
            os.kill(int(pid), signal.SIGKILL)


def assert_nothing_was_lost_or_run_twice(journal: Journal, recipes: list[Recipe], killed: str) -> None:
    ended = journal.lines("end")
    assert Counter(key for key, _ in ended) == Counter(recipe.key for recipe in recipes)
    assert {outcome for _, outcome in ended} == {"None"}
    begun = Counter(key for key, _ in journal.lines("begin"))
    assert begun == Counter(recipe.key for recipe in recipes) + Counter([killed] if killed else [])


def test_local_processes_survive_a_kill(tmp_path: Path) -> None:
    recipes, store = [LONG, replace(QUICK, seed=1)], Store(tmp_path)
    with local(1) as pool:
        journal = Journal(pool, tmp_path / "journal")
        killer = Killer(journal)
        found = sweep(recipes, store, journal, watch=killer)
    assert killer.victim == LONG.key and [result is not None for result in found] == [True, True]
    assert_nothing_was_lost_or_run_twice(journal, recipes, killer.victim)
    assert found[1] is not None and found[1].trajectory == run(recipes[1]).trajectory


def test_a_run_that_kills_its_process_every_time_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly:
        def submit(self, call: Callable[..., Any], /, recipe: Recipe, *rest: Any) -> Handle:
            def die() -> None:
                Store(tmp_path).beat(recipe, 1, 4)
                raise SystemError("killed")

            return pool.submit(
                die if recipe.seed == 0 else call, *(() if recipe.seed == 0 else (recipe, *rest))
            )

    reasons = []
    with ThreadPoolExecutor(1) as pool:
        recipes = [QUICK, replace(QUICK, seed=1)]
        found = sweep(recipes, Store(tmp_path), Deadly(), on_done=lambda r, why: reasons.append(why))
    assert [result is not None for result in found] == [False, True]
    assert "gave it up: SystemError: killed" in str(why_failed(Store(tmp_path), QUICK)) and None in reasons


def test_an_interrupt_ends_the_workers_and_no_other_process() -> None:
    own = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    own.start()
    try:
        with pytest.raises(KeyboardInterrupt), local(1) as pool:
            pool.submit(os.getpid).result()
            (worker,) = {*multiprocessing.active_children()} - {own}
            raise KeyboardInterrupt
        worker.join()
        own.join(1)
        assert own.is_alive()
    finally:
        own.kill()
        own.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_submitit_carries_out_runs_one_by_one(tmp_path: Path) -> None:
    recipes = [replace(QUICK, seed=seed) for seed in (0, 1)]
    with slurm(tmp_path / "jobs", cluster="debug") as jobs:
        journal = Journal(jobs, tmp_path / "journal")
        found = sweep(recipes, Store(tmp_path / "store"), journal)
    assert all(found)
    assert_nothing_was_lost_or_run_twice(journal, recipes, "")


@pytest.mark.slow
def test_submitit_carries_out_runs_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    recipes = [replace(QUICK, seed=seed) for seed in (0, 1)]
    with slurm(tmp_path / "jobs", {"timeout_min": 5}, cluster="local") as jobs:
        journal = Journal(jobs, tmp_path / "journal")
        found = sweep(recipes, Store(tmp_path / "store"), journal)
    assert [result and result.environment["threads"] for result in found] == [1, 1]
    assert_nothing_was_lost_or_run_twice(journal, recipes, "")


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A Dask scheduler and two worker processes without nannies on loopback."""
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    file = folder / "scheduler.json"
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    worker = ["worker", *options, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"]
    worker += ["--local-directory", str(folder)]
    commands = [["scheduler", *options, "--host", "127.0.0.1", "--port", "0"], worker, worker]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        while not file.exists():
            assert processes[0].poll() is None
            time.sleep(0.2)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_dask_loses_nothing_and_runs_nothing_twice_when_a_worker_is_killed(tmp_path: Path) -> None:
    recipes = [LONG, *(replace(QUICK, seed=seed) for seed in range(1, 5))]
    with cluster(tmp_path) as address, dask(address) as workers:
        journal = Journal(workers, tmp_path / "journal")
        killer = Killer(journal)
        found = sweep(recipes, Store(tmp_path / "store"), journal, watch=killer)
        assert killer.victim and all(found)
        assert sweep(recipes, Store(tmp_path / "store"), journal) == found
    assert_nothing_was_lost_or_run_twice(journal, recipes, killer.victim)
    assert len({pid for _, pid in journal.lines("begin")}) == 2
    assert found[1] is not None and found[1].trajectory == run(recipes[1]).trajectory


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sun-grid", {}, "no executor is named 'sun-grid'"),
        ("dask", {}, "must be local, slurm or dask://HOST:PORT"),
        ("local://x", {}, "must be local, slurm or dask://HOST:PORT"),
        ("dask://127.0.0.1:1", {"workers": 2}, "`workers` has no effect with dask"),
        ("local", {"options": {"timeout_min": 1}}, "`slurm_options` has no effect with local"),
        ("local", {"workers": 0}, "`workers` must be at least 1"),
        ("slurm", {"options": {"partitoin": "x"}}, "`executor` slurm cannot be used"),
    ],
)
def test_an_executor_that_cannot_be_is_refused(
    name: str, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message), connect(name, folder=tmp_path, **given):
        pass


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(SettingError, match="no Dask scheduler answers at tcp:"),
        dask("tcp://127.0.0.1:9"),
    ):
        pass


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingError, match=r"pip install 'sparseirm\[dask\]'"), dask("tcp://127.0.0.1:9"):
        pass
