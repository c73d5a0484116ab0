"""What else can make training faster, measured so that using it or not is a decision: compile, stack."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sparseirm.bench.timing import Check, Row, at_most, interleaved, row
from sparseirm.bench.workloads import DECIDED, Ours, ours, perceptron, samples
from sparseirm.data.environments import Batches
from sparseirm.losses import BINARY
from sparseirm.models import Network, build
from sparseirm.together import first_steps
from sparseirm.training.precision import PRECISIONS, autocast, fast_matmul
from sparseirm.training.together import Member, train_together

CPU = torch.device("cpu")

AT_ONCE = 10
"""Steps of a round where runs at once are timed: stacking them is done once in it."""


def compiled(n: int, width: int, repeats: int) -> tuple[list[Row], list[str]]:
    """The network's part of a step, forward and backward, by ``torch.compile`` and without it.

    Args:
        n: samples.
        width: hidden units.
        repeats: timed rounds.

    Returns:
        A row for each precision, and a sentence on how long compiling took. PyTorch raises a RuntimeError if
        nothing can be compiled here, for example for want of a C++ compiler.
    """
    batch, rows, notes = samples(n), [], []
    y = batch.y.float()
    for precision in PRECISIONS:
        module = build(perceptron(width), 0)

        def loss(module: nn.Module = module, precision: str = precision) -> Tensor:
            with autocast(precision, CPU):
                logits: Tensor = module(batch.x)
            return binary_cross_entropy_with_logits(logits.float().flatten(), y)

        plain, fused = _step(module, loss), _step(module, torch.compile(loss))
        with fast_matmul():
            begun = time.perf_counter()
            with TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
                fused()  # compiles it, and finds nothing compiled before
            spent = time.perf_counter() - begun
            times = interleaved({"plain": plain, "compiled": fused}, repeats)
        what = f"the network's part of a step, {precision}, by torch.compile"
        rows.append(row(what, times["compiled"], times["plain"], "without it"))
        notes.append(f"compiling {what} took {spent:.1f} s")
    return rows, notes


def stacked(n: int, widths: tuple[int, ...], seeds: int, repeats: int) -> tuple[list[Row], list[Check]]:
    """Steps of several seeds' runs at once and one after the other, in this process.

    Args:
        n: samples of each seed.
        widths: hidden units.
        seeds: runs.
        repeats: timed rounds of `AT_ONCE` steps.

    Returns:
        A row for each width, and the largest difference of a weight after the first round, which is that of
        float32 numbers added up in another order.
    """
    rows, checks = [], []
    batches = [samples(n, seed=seed) for seed in range(seeds)]
    for width in widths:
        singles, both = ([ours(batch, perceptron(width), options=DECIDED) for batch in batches] for _ in "ab")
        members = [
            Member(Batches(run.batch, run.n_envs), run.penalty, run.sparsifier, run.plan, run.state)
            for run in both
        ]

        def at_once(net: Network = both[0].network, members: list[Member] = members) -> None:
            first_steps(lambda count: train_together(net, BINARY, members, count), AT_ONCE)

        def in_turn(singles: list[Ours] = singles) -> None:
            for run in singles:
                run.take_steps(AT_ONCE)

        at_once()
        in_turn()
        pairs = zip(both, singles, strict=True)
        apart = max(float((a.state.weights - b.state.weights).detach().abs().max()) for a, b in pairs)
        times = interleaved({"at once": at_once, "in turn": in_turn}, repeats)
        what = f"{seeds} runs of {n:,} samples, width {width}, at once"
        rows.append(row(what, times["at once"], times["in turn"], "one after the other in the same process"))
        checks.append(at_most(f"{what}: largest difference of a weight after {AT_ONCE} steps", apart, 1e-4))
    return rows, checks


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward pass, as during training."""

    def step() -> None:
        torch.autograd.grad(loss(), list(module.parameters()))

    return step
