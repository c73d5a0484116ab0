"""Runs of several trainings, one after the other: what a stage is, and how one leads to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from sparseirm.core import Loss, Penalty, Sparsifier
from sparseirm.data.environments import Batches
from sparseirm.models import Network
from sparseirm.randomness import seed_of
from sparseirm.training.loop import Record, train
from sparseirm.training.sharding import WHOLE, Sharding
from sparseirm.training.shrinking import Shrinking
from sparseirm.training.state import Plan, State, start


@dataclass(frozen=True)
class Stage:
    """One training of a run; most runs have a single one.

    Attributes:
        plan: its length and schedules, which start afresh with it.
        sparsifier: how its weights are masked.
        frozen: go on from the weights, other parameters and buffers of the stage before, and train only
            what the sparsifier learns. Otherwise a later stage starts from the initial ones again, and all
            it takes over is the mask.
    """

    plan: Plan
    sparsifier: Sparsifier
    frozen: bool = False


def steps_before(stages: Sequence[Stage], stage: int) -> int:
    """Number of steps of all stages before the one of this index."""
    return sum(earlier.plan.steps for earlier in stages[:stage])


def stage_seed(seed: int, stage: int) -> int:
    """Seed of a stage's batches, gates and draws: that of the run for the first one.

    >>> stage_seed(3, 0), stage_seed(3, 1) == stage_seed(3, 2)
    (3, False)
    """
    return seed if stage == 0 else seed_of(seed, "stage", stage)


def enter(
    network: Network, stages: Sequence[Stage], at: int, seed: int, before: State | None = None
) -> State:
    """The state before the first step of a stage.

    Args:
        network: the network, which holds the initial parameters.
        stages: all stages of the run.
        at: index of the stage.
        seed: seed of the run.
        before: the state at the end of the stage before; None for the first stage, or if the state is to be
            filled from a checkpoint.

    Returns:
        A new state with fresh optimisers, which shares nothing with ``before``.
    """
    stage = stages[at]
    state = start(network, stage.sparsifier, stage.plan, stage_seed(seed, at), stage.frozen)
    state.stage = at
    if before is None:
        return state
    if stage.frozen:
        _copy_parameters(state, before)
    else:
        mask = stages[at - 1].sparsifier.mask(before.weights.detach(), before.memory)
        state.memory.kept["mask"] = mask.clone()
    return state


def train_stages(
    network: Network,
    batches: Batches,
    loss: Loss,
    penalty: Penalty,
    stages: Sequence[Stage],
    state: State,
    seed: int = 0,
    on_step: Callable[[State, Record], None] = lambda state, record: None,
    sharding: Sharding = WHOLE,
    shrinking: Shrinking | None = None,
) -> State:
    """Run from ``state`` to the end of the last stage.

    Args:
        network: as in `sparseirm.training.loop.train`.
        batches: the samples of every step of the first stage; later ones go through them in another order.
        loss: the loss per sample, of every stage.
        penalty: the penalty of every stage.
        stages: all stages of the run.
        state: where to start, from `enter`; changed in place.
        seed: seed of the run.
        on_step: called after every step taken with its state and its record, whose steps count on through
            all stages, as does its total.
        sharding: which part of every batch is this process's.
        shrinking: as in `sparseirm.training.loop.train`, for every stage.

    Returns:
        The state at the end of the last stage.

    Raises:
        NonFiniteError: if risk or penalty become NaN or infinite; names step and quantity.
    """
    total = steps_before(stages, len(stages))
    for at in range(state.stage, len(stages)):
        if at > state.stage:
            state = enter(network, stages, at, seed, before=state)
        stage, own = stages[at], stage_seed(seed, at)
        order = replace(batches, seed=stage_seed(batches.seed, at))
        earlier = steps_before(stages, at)

        def counted(state: State, record: Record, earlier: int = earlier) -> None:
            on_step(state, replace(record, step=earlier + record.step, total=total))

        train(
            *(network, order, loss, penalty, stage.sparsifier, stage.plan, state, own, counted),
            *(sharding, shrinking),
        )
    return state


@torch.no_grad()
def _copy_parameters(state: State, before: State) -> None:
    state.weights.copy_(before.weights)
    for tensors, earlier in ((state.others, before.others), (state.buffers, before.buffers)):
        for name, tensor in tensors.items():
            tensor.copy_(earlier[name])
