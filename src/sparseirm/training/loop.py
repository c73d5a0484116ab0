"""The training loop: one screen, and it never asks which method it runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseirm.core import Loss, Moment, NonFiniteError, Outputs, Penalty, Sparsifier, Tensors, final_from
from sparseirm.data.environments import Batch, Batches
from sparseirm.models import Features, Network
from sparseirm.randomness import generator, global_draws, seed_of
from sparseirm.training.alarm import Alarm
from sparseirm.training.precision import autocast, fast_matmul, kept_memory
from sparseirm.training.sharding import WHOLE, Sharding
from sparseirm.training.shrinking import Shrinking
from sparseirm.training.state import Plan, State, clear_gradients, forget


@dataclass(frozen=True)
class Record:
    """What one step looked like: risk and penalty of its relaxed network, before the update.

    Attributes:
        step: number of the step, from 1.
        risk: mean over environments of their risks, shape ``()``.
        penalty: value of the penalty, unweighted, shape ``()``.
        penalty_weight: lambda of this step.
        total: number of steps of the whole run.
    """

    step: int
    risk: Tensor
    penalty: Tensor
    penalty_weight: float
    total: int


def train(
    network: Network,
    batches: Batches,
    loss: Loss,
    penalty: Penalty,
    sparsifier: Sparsifier,
    plan: Plan,
    state: State,
    seed: int = 0,
    on_step: Callable[[State, Record], None] = lambda state, record: None,
    sharding: Sharding = WHOLE,
    shrinking: Shrinking | None = None,
) -> State:
    """Run from ``state`` to the end of the plan: projected gradient descent, Algorithm 1.

    All randomness is a function of ``seed`` and the step, so a run that starts from a saved state ends
    bit for bit like one that was never stopped.

    Args:
        network: the network; its weights are those of ``state``.
        batches: the samples of every step.
        loss: the loss per sample.
        penalty: what is added to the risk, times the plan's weight of the step.
        sparsifier: how the weights are masked.
        plan: number of steps, optimiser and schedules.
        state: where to start, usually from `sparseirm.training.state.start`; changed in place.
        seed: seed of gates, dropout and the penalty's draws; the batches have their own.
        on_step: called after every step taken with the state it led to and its record; steps that change
            nothing any more are skipped, but for the last (see `at_rest`).
        sharding: which part of every batch is this process's; all of them end with the same state.
        shrinking: runs a smaller network once the mask is final; None always runs the whole one.

    Returns:
        ``state``, after ``plan.steps`` steps; at once if it has taken as many.

    Raises:
        NonFiniteError: if risk or penalty become NaN or infinite; names step and quantity.
    """
    if shrinking:
        shrinking.begin()
    alarm = Alarm(state.weights.device)
    with global_draws(state.weights.device) as seed_all, fast_matmul(), kept_memory(batches.nbytes):
        while state.step < plan.steps:
            if not state.buffers and at_rest(state.step, sparsifier, plan):
                state.step = plan.steps - 1  # the last step is taken all the same, for its record
            noise = generator(seed, "step", state.step, device=state.weights.device)
            now = Moment(state.step, plan.steps, noise)
            batch = batches.at(state.step).to(state.weights.device)
            running = shrinking.network(network, sparsifier, state, now, batch.x) if shrinking else network
            drawn = seed_of(seed, "module", state.step)
            seed_all(drawn + sharding.rank)
            effective = sparsifier.effective(state.weights, state.memory, now)
            out = forward(running, state, effective, batch, batches.n_envs, loss, plan, now, sharding, drawn)
            risk, spread = out.risks.mean(), penalty(out)
            price = sparsifier.price(state.memory)
            alarm.look(state.step + 1, risk=risk, penalty=spread, price=price)
            descend(state, risk, spread, price, plan)
            with torch.no_grad():
                fresh = sparsifier.after_step(state.weights, state.memory, now, effective.grad)
            forget(state, fresh)
            state.step += 1
            weight = plan.penalty_weight_at(now.step)
            try:
                on_step(state, Record(state.step, risk.detach(), spread.detach(), weight, plan.steps))
            except NonFiniteError:
                alarm.check()  # which may know of an earlier step
                raise
        alarm.check()
    return state


def at_rest(step: int, sparsifier: Sparsifier, plan: Plan) -> bool:
    """Whether from this step on nothing changes a network without running statistics: no rate, a final mask.

    Once the learning rate is zero it stays so. What steps still change then are averages of the optimiser,
    of which no further use is made.
    """
    return step / plan.steps >= final_from(sparsifier) and plan.lr_at(step) == 0


def steps_taken(sparsifier: Sparsifier, plan: Plan) -> int:
    """How many of its steps `train` takes with a network without running statistics, the last among them."""
    resting = bisect_left(range(plan.steps), True, key=lambda step: at_rest(step, sparsifier, plan))
    return min(resting + 1, plan.steps)


def forward(
    network: Network,
    state: State,
    effective: Tensor,
    batch: Batch,
    n_envs: int,
    loss: Loss,
    plan: Plan,
    now: Moment,
    sharding: Sharding,
    seed: int,
) -> Outputs:
    """One forward pass of the masked network in training mode, of which this process runs its part."""

    def run(x: Tensor, effective: Tensor, others: Tensors) -> tuple[Tensor, Features]:
        with autocast(plan.precision, effective.device):
            return network.outputs(x, effective, others, state.buffers)

    effective.retain_grad()
    logits, features = sharding.apply(run, batch.x, effective, state.others, seed)
    return Outputs(
        logits,
        batch.y,
        batch.env,
        n_envs,
        loss,
        batch.weight,
        features=features,
        parameters=(effective, *state.others.values()),
        noise=now.noise,
    )


def descend(state: State, risk: Tensor, penalty: Tensor, price: Tensor | float, plan: Plan) -> None:
    """One optimiser step on ``risk + lambda * penalty + price``.

    Args:
        state: weights, optimisers and number of the step; its weights are changed in place.
        risk: ``()``, mean over environments of their risks.
        penalty: ``()``, unweighted.
        price: ``()`` or 0, what the sparsifier adds to the loss; never divided by ``1 + lambda``.
        plan: lambda, learning rate and L2 weight of the step.
    """
    clear_gradients(state)
    torch.autograd.backward(objective(risk, penalty, price, plan, state.step))
    update(state.optimizers, plan, state.step)


def objective(risk: Tensor, penalty: Tensor, price: Tensor | float, plan: Plan, step: int) -> Tensor:
    """The loss of one step but for L2, in the shape of ``risk``."""
    return _scale(plan, step) * (risk + plan.penalty_weight_at(step) * penalty) + price


def update(optimizers: Mapping[str, Optimizer], plan: Plan, step: int) -> None:
    """One step of every optimiser, with the rate and the L2 weight of this one for the weights."""
    for name, optimizer in optimizers.items():
        if name == "weights":
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = plan.lr_at(step), _scale(plan, step) * 2 * plan.l2
        optimizer.step()


def _scale(plan: Plan, step: int) -> float:
    return 1 / (1 + plan.penalty_weight_at(step)) if plan.divide_loss else 1.0
