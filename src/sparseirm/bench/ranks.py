"""A training step divided over processes of one thread each: how much shorter, how exact, what they send."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from sparseirm.bench.elsewhere import Server, server
from sparseirm.bench.equality import TOLERANCE, WIDTH, N, apart
from sparseirm.bench.timing import Check, Elsewhere, Row, at_most, interleaved, row
from sparseirm.bench.workloads import OPEN, ours, perceptron, samples
from sparseirm.files import read_tensors, write_tensors
from sparseirm.training.precision import kept_memory
from sparseirm.training.sharding import Sharding

RANKS = 2

EXACT, TALK = 1e-6, 0.02
"""What the gradient of few samples may differ by, and what share of a step messages may take."""

Messages = list[float]
"""Seconds of every message of a step that is no waiting for another process."""


@contextmanager
def group(ranks: int, n: int, width: int, folder: Path) -> Iterator[Callable[[], Messages]]:
    """Processes that train together, as torchrun would start them, while the context is open.

    Args:
        ranks: number of processes.
        n: samples of a step, of all processes together.
        width: hidden units.
        folder: where each leaves the gradient of the first step, and where they meet; empty.

    Yields:
        Callable[[], Messages]: takes a step. Raises RuntimeError if a process has ended.
    """
    with ExitStack() as stack:
        given = [[str(value) for value in (folder, rank, ranks, n, width)] for rank in range(ranks)]
        members = [stack.enter_context(server("sparseirm.bench.ranks", *arguments)) for arguments in given]
        yield lambda: _together(members)


def _together(members: list[Server]) -> Messages:
    for member in members:
        member.ask("step")
    spent = [json.loads(member.answer("a process of several")) for member in members]
    # who comes last to a message waits for nobody
    return [min(of_each) for of_each in zip(*spent, strict=True)]


@contextmanager
def compared(n: int, width: int) -> Iterator[tuple[Callable[[], Messages], Callable[[], Messages], float]]:
    """One process beside several, while the context is open.

    Args:
        n: samples of a step.
        width: hidden units.

    Yields:
        tuple[Callable[[], Messages], Callable[[], Messages], float]: the steps of both, and how far apart
        their first gradients are, as a norm relative to that of one process.
    """
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(TemporaryDirectory())) for _ in range(2)]
        sizes = zip((1, RANKS), folders, strict=True)
        alone, together = (stack.enter_context(group(ranks, n, width, folder)) for ranks, folder in sizes)
        alone(), together()
        wanted = _gradient(folders[0], 0)
        yield alone, together, max(apart(_gradient(folders[1], rank), wanted) for rank in range(RANKS))


def _gradient(folder: Path, rank: int) -> Tensor:
    return read_tensors(folder / str(rank))[0]["gradient"]


def scaling(n: int, width: int, repeats: int) -> tuple[list[Row], list[Check]]:
    """A step in several processes beside one in a single process, each with one thread.

    Args:
        n: samples.
        width: hidden units.
        repeats: timed rounds.

    Returns:
        The row; and how exact gradients are, and what share of a step messages take.
    """
    messages: list[Messages] = []
    with compared(N, WIDTH) as (_, _, few):
        pass
    with compared(n, width) as (alone, together, many):
        calls = {
            "one": Elsewhere("one", alone),
            "several": Elsewhere("several", lambda: messages.append(together())),
        }
        times = interleaved(calls, repeats)
    shares = [sum(sent) / spent for sent, spent in zip(messages[-repeats:], times["several"], strict=True)]
    what = f"training step, fp32, gates drawn, {RANKS} processes of one thread each"
    apart_by = "difference of the gradient from that of one process"
    return [row(what, times["several"], times["one"], "one process of one thread")], [
        at_most(f"{what}: {apart_by}, {N:,} samples", few, EXACT),
        at_most(f"{what}: {apart_by}, {n:,} samples, whose long sums round more", many, TOLERANCE),
        at_most(f"{what}: share of messages in its time", median(shares), TALK),
    ]


@contextmanager
def timed_messages() -> Iterator[list[float]]:
    """Seconds of every message between processes that is sent while the context is open."""
    spent: list[float] = []

    def timed(send: Callable[..., Any]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            begun = time.perf_counter()
            send(*arguments)
            spent.append(time.perf_counter() - begun)

        return call

    with ExitStack() as stack:
        for name in ("all_reduce", "all_gather"):  # what `sparseirm.training.processes` sends
            stack.enter_context(patch.object(dist, name, timed(getattr(dist, name))))
        yield spent


def work(folder: Path, rank: int, ranks: int, n: int, width: int) -> None:
    """Be one of the processes: take a step for every line, and answer with what its messages took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    run = ours(samples(n), perceptron(width), options=OPEN, sharding=Sharding(rank, ranks))
    run.step()
    found = [leaf.grad.flatten() for leaf in run.state.leaves if leaf.grad is not None]
    write_tensors(folder / str(rank), {"gradient": torch.cat(found)}, {})
    with kept_memory():
        for _ in sys.stdin:
            with timed_messages() as spent:
                run.step()
            print(json.dumps(spent), flush=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
