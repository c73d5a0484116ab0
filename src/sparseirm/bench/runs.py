"""Runs of ours that a benchmark can step: the loop users' runs go through, on data of ColoredMNIST's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparseirm.core import Memory, Moment, Outputs, Penalty, Sparsifier
from sparseirm.data.environments import Batch, Batches
from sparseirm.losses import BINARY
from sparseirm.models import MLP, Network, network
from sparseirm.penalties import irmv1
from sparseirm.randomness import generator
from sparseirm.sparsifiers import Dense, ProbMask
from sparseirm.sparsifiers.gates import gated
from sparseirm.training.loop import train
from sparseirm.training.state import Plan, State, start

INPUTS = (2, 14, 14)

GATES_OPEN = {"shrink_to": 0.6, "decide_at": 1.0, "score_lr": 6e-3}
"""Options of ProbMask that draw and project in every step, as the released code does to the end."""

DECIDED = {"shrink_to": 0.0, "decide_at": 0.0}
"""Options of ProbMask that fix the mask in the first step."""


def samples(n: int) -> Batch:
    """ColoredMNIST's shapes with random pixels and labels, in two environments of ``n / 2`` samples."""
    noise = generator(0, "benchmark")
    x = torch.rand(n, *INPUTS, generator=noise)
    return Batch(x, torch.randint(2, (n,), generator=noise), torch.arange(n) % 2)


def nothing(out: Outputs) -> Tensor:
    """The penalty of plain training."""
    return out.logits.new_zeros(())


@dataclass(frozen=True)
class Fed(ProbMask):
    """ProbMask with gates from given draws instead of its own, to be compared number by number.

    Attributes:
        draws: one ``(d,)`` vector of uniform draws per step.
        temperature: of every step.
    """

    draws: tuple[Tensor, ...] = field(default=(), repr=False)
    temperature: float = 1.0

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """Gates from the draws of the step."""
        return gated(
            weights,
            memory.learned["probabilities"],
            self.draws[now.step],
            self.temperature,
            self.gradient_floor,
        )


@dataclass
class Ours:
    """A run that can be stepped and never ends.

    Attributes:
        batch: the samples of every step.
        network: the MLP.
        sparsifier: how it is masked.
        penalty: `irmv1` or `nothing`.
        plan: rates and precision.
    """

    batch: Batch
    network: Network
    sparsifier: Sparsifier
    penalty: Penalty
    plan: Plan
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = start(self.network, self.sparsifier, self.plan, 0)

    def step(self, count: int = 1) -> None:
        """Take some steps."""
        plan = replace(self.plan, steps=self.state.step + count)
        batches = Batches(self.batch, int(self.batch.env.max()) + 1)
        train(self.network, batches, BINARY, self.penalty, self.sparsifier, plan, self.state)


def ours(
    batch: Batch,
    width: int,
    precision: str = "fp32",
    options: dict[str, float] | None = GATES_OPEN,
    invariant: bool = True,
) -> Ours:
    """A fresh run.

    Args:
        batch: the samples of every step.
        width: hidden units of both layers.
        precision: ``fp32`` or ``bf16``.
        options: of ProbMask at half density, or None of a dense run.
        invariant: with IRMv1 at the paper's weight, or without a penalty.

    Returns:
        The run, before its first step.
    """
    net = network(MLP(batch.x[0].numel(), width, 1))
    d = net.layout.size
    sparsifier: Sparsifier = Dense(d) if options is None else ProbMask(budget=d // 2, **options)  # type: ignore[arg-type]
    plan = Plan(lr=4e-4, lr_schedule="constant", penalty_from=0.0, precision=precision)
    plan = plan if invariant else replace(plan, penalty_weight=0.0)
    return Ours(batch, net, sparsifier, irmv1 if invariant else nothing, plan)


def layers(run: Ours) -> Sequence[tuple[Tensor, Tensor]]:
    """Weight and bias of every layer of a run."""
    weights = run.network.layout.split(run.state.weights)
    return [(w, run.state.others[name.replace("weight", "bias")]) for name, w in weights.items()]
