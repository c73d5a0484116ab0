"""Where runs are carried out: processes of this machine, a Slurm cluster, or a Dask cluster."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from sparseirm.core import SettingError
from sparseirm.registry import one_of

T = TypeVar("T")


class Handle(Protocol):
    """A call under way; futures of `concurrent.futures`, Dask and submitit's jobs are such."""

    def done(self) -> bool:
        """Whether it has ended, in whichever way."""
        ...

    def result(self) -> Any:
        """What it returned; raises what it raised, or an error of the executor if its process died."""
        ...

    def cancel(self) -> Any:
        """Do not start it, if that is still possible."""
        ...


class Submitter(Protocol):
    """All that a sweep needs of an executor."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Handle:
        """Have a call carried out somewhere, some time."""
        ...


def connect(
    name: str = "local",
    workers: int | None = None,
    folder: Path = Path("work"),
    options: Mapping[str, Any] | None = None,
) -> AbstractContextManager[Submitter]:
    """An executor by name.

    Args:
        name: ``local``, ``slurm``, or ``dask://HOST:PORT``, the address of a scheduler.
        workers: number of local processes; None for one per core.
        folder: where slurm's jobs leave their logs; all nodes must see it.
        options: submitit's parameters for slurm, such as ``timeout_min`` and ``slurm_partition``.

    Returns:
        A context, which gives the executor; nothing is started or looked for before it is entered.

    Raises:
        SettingError: if the name is unknown, or a value has no effect with it.
    """
    kind, _, address = name.partition("://")
    one_of("executor", kind, ("local", "slurm", "dask"))
    if kind != "local" and workers is not None:
        raise SettingError(f"`workers` has no effect with {kind}, which decides itself; got {workers}.")
    if kind != "slurm" and options:
        raise SettingError(f"`slurm_options` has no effect with {kind}; got {dict(options)}. Leave it out.")
    if (kind == "dask") != bool(address):
        raise SettingError(f"`executor` must be local, slurm or dask://HOST:PORT; got {name!r}.")
    _check_count(workers)
    if kind == "dask":
        return dask(f"tcp://{address}")
    return local(workers) if kind == "local" else slurm(folder, options)


@contextmanager
def local(workers: int | None = None) -> Iterator[Submitter]:
    """Local processes, one per core unless told otherwise; they start fresh and share nothing.

    Args:
        workers: number of processes, at least 1; None for one per core.

    Yields:
        Submitter: the pool. Its processes end with the context, or with the process that opened it.

    Raises:
        SettingError: if ``workers`` is below 1.
    """
    _check_count(workers)
    pool, others = _Pool(workers or cores()), {*multiprocessing.active_children()}
    try:
        yield pool
    except BaseException:
        pool.processes.shutdown(wait=False, cancel_futures=True)
        for process in {*multiprocessing.active_children()} - others:
            process.terminate()
        raise
    pool.processes.shutdown()


@contextmanager
def dask(address: str) -> Iterator[Submitter]:
    """The workers of a Dask cluster, which must see the store under the same path.

    Runs take turns in a worker, since PyTorch's settings belong to the process: start it with one thread.

    Args:
        address: the scheduler's, such as ``tcp://host:8786``.

    Yields:
        Submitter: the cluster. Runs of a worker that dies are started again on another.

    Raises:
        SettingError: if the package is missing, or no scheduler answers.
    """
    distributed = _needs("distributed", "dask")
    try:
        client = distributed.Client(address, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SettingError(
            f"no Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`."
        ) from None
    with client:
        yield _OneThread(client.get_executor(pure=False))


@contextmanager
def slurm(
    folder: Path, options: Mapping[str, Any] | None = None, cluster: str = "slurm"
) -> Iterator[Submitter]:
    """A job of a Slurm cluster for each run, through submitit.

    submitit hands over calls as pickles in ``folder``; nobody else should be able to write there.

    Args:
        folder: where calls and logs go; all nodes must see it, and the store.
        options: submitit's parameters, such as ``timeout_min`` and ``slurm_partition``.
        cluster: submitit's name of the cluster; ``local`` for processes of this machine.

    Yields:
        Submitter: the cluster.

    Raises:
        SettingError: if the package is missing, there is no Slurm here, or an option is unknown.
    """
    submitit = _needs("submitit", "slurm")
    try:
        jobs = submitit.AutoExecutor(folder=folder, cluster=cluster)
        jobs.update_parameters(**{"name": "sparseirm", "cpus_per_task": 1, **(options or {})})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise SettingError(f"`executor` slurm cannot be used: {error}") from None
    yield _OneThread(jobs)


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_count(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise SettingError(f"`workers` must be at least 1; got {workers}. Leave it out for one per core.")


class _Pool:
    """Processes that are replaced when one of them was killed."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.processes = self._fresh()

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Handle:
        try:
            return self.processes.submit(call, *arguments)
        except BrokenExecutor:
            self.processes = self._fresh()
            return self.processes.submit(call, *arguments)

    def _fresh(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_alone, initargs=(os.getpid(),)
        )


@dataclass(frozen=True)
class _OneThread:
    """Another executor, whose calls are carried out with one thread each."""

    executor: Submitter

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Handle:
        return self.executor.submit(_with_one_thread, call, *arguments)


def _with_one_thread(call: Callable[..., T], /, *arguments: Any) -> T:
    torch.set_num_threads(1)
    return call(*arguments)


def _alone(parent: int) -> None:
    """One thread, deaf to Ctrl-C, and no life after the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _needs(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SettingError(
            f"`executor` {extra} needs the package {package}: pip install 'sparseirm[{extra}]' ({error})."
        ) from None
