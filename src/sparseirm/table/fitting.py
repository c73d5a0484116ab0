"""Rows as numbers, and a network fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparseirm.core import Layout, Loss, Sparsifier
from sparseirm.data.environments import Batch, Batches
from sparseirm.evaluation.metrics import deployed, undecided
from sparseirm.models import build, network
from sparseirm.monitor import Probe, Trace
from sparseirm.sparsifiers import FixedMask
from sparseirm.sparsifiers.groups import expand, grouped
from sparseirm.table.design import SEARCHES, Design
from sparseirm.table.encoding import Encoding
from sparseirm.table.search import find_columns, unchanged_columns
from sparseirm.training.loop import Record, train
from sparseirm.training.state import State, start


@dataclass(frozen=True)
class Rows:
    """Rows to train on.

    Attributes:
        values: ``(n, n_columns)`` float64, see `sparseirm.table.encoding.values`.
        y: ``(n,)`` class numbers or targets, float64.
        env: ``(n,)`` environment numbers from 0, each with a row.
        weight: ``(n,)`` positive weights; they compare rows of one environment, for environments count alike.
    """

    values: NDArray[np.float64]
    y: NDArray[np.float64]
    env: NDArray[np.int64]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.y)

    def distinct(self) -> Rows:
        """Rows that repeat as one with the sum of their weights, in an order of their own.

        So a weight of 2 and a row given twice mean the same to the last bit, in whatever order rows come.
        """
        known = np.where(np.isnan(self.values), np.inf, self.values)  # NaN is not equal to itself
        keys = np.column_stack([known, self.y, self.env])
        _, first, place = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        weight = np.bincount(place.reshape(-1), weights=self.weight).astype(np.float64)
        return Rows(self.values[first], self.y[first], self.env[first], weight)


@dataclass(frozen=True)
class Fitted:
    """A trained network and how it got there.

    Attributes:
        module: the network with its mask folded in, float64, in evaluation mode.
        steps: optimiser steps taken.
        n_weights: number of maskable weights, d.
        budget: K, what was asked to be kept, in the sparsifier's unit.
        kept: number of ones in the mask.
        undecided: fraction of mask probabilities that are neither 0 nor 1, or None without any.
        traces: what the monitor noted along the way.
    """

    module: nn.Module
    steps: int
    n_weights: int
    budget: int
    kept: int
    undecided: float | None
    traces: tuple[Trace, ...]


def fit_rows(
    design: Design,
    encoding: Encoding,
    rows: Rows,
    loss: Loss,
    n_outputs: int,
    seed: int,
    on_step: Callable[[Record, int], None] = lambda record, steps: None,
) -> Fitted:
    """Train a network on rows.

    Args:
        design: method, penalty, gates and plan.
        encoding: how values become inputs.
        rows: the rows.
        loss: the loss per row.
        n_outputs: number of logits.
        seed: seed of initial weights, batches and gates.
        on_step: called after every step with its record and the number of steps of the run.

    Returns:
        The trained network.

    Raises:
        SettingError: if the design does not fit the table.
        NonFiniteError: if risk or penalty become NaN or infinite.
    """
    n, n_envs, blocks = len(rows), int(rows.env.max()) + 1, encoding.blocks
    net = network(build(lambda: design.module(sum(blocks), design.hidden(n), n_outputs), seed))
    inputs, y = encoding.inputs(rows.values), torch.from_numpy(rows.y)
    if design.gate in SEARCHES:
        sparsifier = _on_columns(net.layout, blocks, _found(design, inputs, rows, loss, n_outputs, blocks))
    else:
        sparsifier = design.make_sparsifier(net.layout.size, n, n_envs, blocks)
    plan = design.plan(n)
    samples = Batch(
        torch.from_numpy(inputs),
        y.long() if loss.classifies else y.float(),
        torch.from_numpy(rows.env),
        torch.from_numpy(rows.weight).float(),
    )
    batches = Batches(samples, n_envs, design.batch(n, n_envs), seed)
    state = start(net, sparsifier, plan, seed)
    probe = Probe(design.make_penalty(), plan)

    def after_step(state: State, record: Record) -> None:
        on_step(record, plan.steps)

    train(net, batches, loss, probe, sparsifier, plan, state, seed, after_step)
    tensors = {**net.layout.split(deployed(sparsifier, state)), **state.others, **state.buffers}
    net.module.load_state_dict({name: tensor.detach() for name, tensor in tensors.items()})
    return Fitted(
        module=net.module.double().eval(),
        steps=plan.steps,
        n_weights=net.layout.size,
        budget=sparsifier.budget,
        kept=int(sparsifier.mask(state.weights.detach(), state.memory).sum()),
        undecided=undecided(state.memory),
        traces=tuple(probe.traces),
    )


def _found(
    design: Design,
    inputs: NDArray[np.float32],
    rows: Rows,
    loss: Loss,
    n_outputs: int,
    blocks: tuple[int, ...],
) -> list[int]:
    """The columns a search finds; all of them if there is nothing to compare and no budget."""
    env = rows.env if design.kind.invariant else np.zeros_like(rows.env)
    most = design.most_columns(len(blocks))
    if most is None and env.max() == 0:
        return list(range(len(blocks)))
    targets = np.eye(n_outputs)[rows.y.astype(int)] if n_outputs > 1 else rows.y[:, None]
    offered: list[int] = []
    if design.gate == "screen" and env.max() > 0:
        offered = unchanged_columns(inputs, rows.y, env, blocks, n_outputs if n_outputs > 1 else 0)
    return find_columns(inputs, targets, env, rows.weight, blocks, loss.classifies, most, offered)


def _on_columns(layout: Layout, blocks: tuple[int, ...], chosen: list[int]) -> Sparsifier:
    """The mask that keeps all weights but those of other columns."""
    kept = grouped(layout, "input", len(blocks), "groups", torch.device("cpu"), blocks)
    use = torch.zeros(len(blocks), dtype=torch.bool)
    use[chosen] = True
    mask = expand(use, kept)
    return FixedMask(int(mask.sum()), mask)
