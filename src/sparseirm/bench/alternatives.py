"""What else could make training faster, measured so that leaving it out is a decision: compile, stack."""

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
from sparseirm.bench.workloads import perceptron, samples
from sparseirm.models import build
from sparseirm.training.precision import PRECISIONS, autocast, fast_matmul

CPU = torch.device("cpu")


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
    """Forward and backward pass of several seeds' networks, stacked into one and one after the other.

    Args:
        n: samples of each seed.
        widths: hidden units.
        seeds: networks.
        repeats: timed rounds.

    Returns:
        A row for each width, and the largest difference of a logit, which has to be none if a run's result is
        not to depend on what it was computed beside.
    """
    rows, checks = [], []
    batches = [samples(n, seed=seed) for seed in range(seeds)]
    x, y = torch.stack([b.x for b in batches]), torch.stack([b.y.float() for b in batches])
    for width in widths:
        modules = [build(perceptron(width), seed) for seed in range(seeds)]
        weights, _ = torch.func.stack_module_state(modules)
        shell = modules[0]

        def one(weights: dict[str, Tensor], x: Tensor, shell: nn.Module = shell) -> Tensor:
            logits: Tensor = torch.func.functional_call(shell, weights, (x,))
            return logits.flatten()

        together = torch.vmap(one)

        def all_at_once(
            weights: dict[str, Tensor] = weights, together: Callable[..., Tensor] = together
        ) -> None:
            loss = binary_cross_entropy_with_logits(together(weights, x), y, reduction="none").mean(1).sum()
            torch.autograd.grad(loss, list(weights.values()))

        def in_turn(modules: list[nn.Module] = modules) -> None:
            for module, batch, labels in zip(modules, batches, y, strict=True):
                loss = binary_cross_entropy_with_logits(module(batch.x).flatten(), labels)
                torch.autograd.grad(loss, list(module.parameters()))

        with fast_matmul():
            times = interleaved({"stacked": all_at_once, "in turn": in_turn}, repeats)
            with torch.no_grad():
                alone = torch.stack([m(b.x).flatten() for m, b in zip(modules, batches, strict=True)])
                apart = float((together(weights, x) - alone).abs().max())
        what = f"networks of {seeds} seeds, {n:,} samples, width {width}, stacked into one"
        rows.append(row(what, times["stacked"], times["in turn"], "one after the other"))
        checks.append(at_most(f"{what}: largest difference of a logit", apart, 0))
    return rows, checks


def _step(module: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward pass, as during training."""

    def step() -> None:
        torch.autograd.grad(loss(), list(module.parameters()))

    return step
