"""Runs of ours that a benchmark can step: the loop users' runs go through, on random samples.

Speed does not depend on pixels, so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparseirm.core import Loss, Memory, Moment, Penalty, Sparsifier
from sparseirm.data.environments import Batch, Batches, Split
from sparseirm.evaluation.metrics import Score, deployed, evaluate
from sparseirm.losses import BINARY, MULTICLASS
from sparseirm.models import MLP, Network, build, maker, network
from sparseirm.penalties import irmv1, no_penalty
from sparseirm.randomness import generator
from sparseirm.sparsifiers import Dense, ProbMask
from sparseirm.sparsifiers.gates import gated
from sparseirm.together import first_steps
from sparseirm.training.loop import Record, train
from sparseirm.training.sharding import WHOLE, Sharding
from sparseirm.training.shrinking import Shrinking
from sparseirm.training.state import Plan, State, start

COLORED_MNIST = (2, 14, 14)
"""Shape of a sample of ColoredMNIST."""

FULL_COLORED_MNIST = (3, 14, 14)
"""Shape of a sample of FullColoredMNIST."""

CIFAR_MNIST = (3, 64, 32)
"""Shape of a sample of CIFARMNIST."""

OPEN: dict[str, Any] = {"shrink_to": 1e-9, "decide_at": 1.0, "score_lr": 6e-3}
"""Options of ProbMask with which every step draws gates and projects onto its final budget."""

DECIDED: dict[str, Any] = {"shrink_to": 1e-9, "decide_at": 1e-9}
"""Options of ProbMask with which the mask is fixed in the first step."""

LONG = 1_000_000
"""Steps of a plan whose end is never reached."""


def samples(
    n: int, shape: tuple[int, ...] = COLORED_MNIST, n_envs: int = 2, seed: int = 0, n_classes: int = 2
) -> Batch:
    """Random inputs and labels, ``n / n_envs`` in every environment.

    >>> samples(6, (3,)).env.tolist()
    [0, 1, 0, 1, 0, 1]
    """
    noise = generator(seed, "benchmark")
    x = torch.rand(n, *shape, generator=noise)
    return Batch(x, torch.randint(n_classes, (n,), generator=noise), torch.arange(n) % n_envs)


@dataclass(frozen=True)
class Fed(ProbMask):
    """ProbMask whose gates come from given draws instead of its own, to be compared number by number.

    Attributes:
        draws: one ``(d,)`` vector of uniform draws per step.
        temperature: of every step.
    """

    draws: tuple[Tensor, ...] = field(default=(), repr=False)
    temperature: float = 1.0

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """Gates from the draws of the step."""
        draws, probabilities = self.draws[now.step], memory.learned["probabilities"]
        return gated(weights, probabilities, draws, self.temperature, self.gradient_floor)


@dataclass(frozen=True)
class Classes:
    """What the paper's network is trained to tell apart.

    Attributes:
        n: number of classes.
        shape: of a sample.
        loss: of a sample.
    """

    n: int
    shape: tuple[int, ...]
    loss: Loss

    @property
    def n_outputs(self) -> int:
        """Logits of a sample."""
        return 1 if self.n == 2 else self.n

    def samples(self, n: int) -> Batch:
        """Samples of two environments."""
        return samples(n, self.shape, n_classes=self.n)

    def module(self, width: int) -> Callable[[], nn.Module]:
        """Makes the network."""
        return perceptron(width, self.shape, self.n_outputs)


TWO = Classes(2, COLORED_MNIST, BINARY)
TEN = Classes(10, FULL_COLORED_MNIST, MULTICLASS)
CLASSES = {task.n: task for task in (TWO, TEN)}
"""ColoredMNIST and FullColoredMNIST, by their number of classes."""


class Shrunk(Shrinking):
    """Shrinking that is done once, however often training is gone on with."""

    def begin(self) -> None:
        """Keep the smaller network."""


@dataclass
class Ours:
    """A run that can be stepped.

    Attributes:
        batch: the samples of every step.
        network: what is trained.
        sparsifier: how it is masked.
        penalty: `irmv1` or `no_penalty`.
        plan: rates and precision.
        shrinking: how to run a smaller network, or None.
        loss: of a sample.
        sharding: which part of every step is this process's.
        state: where it is.
    """

    batch: Batch
    network: Network
    sparsifier: Sparsifier
    penalty: Penalty
    plan: Plan
    shrinking: Shrinking | None = None
    loss: Loss = BINARY
    sharding: Sharding = WHOLE
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = start(self.network, self.sparsifier, self.plan, 0)
        self.n_envs = int(self.batch.env.max()) + 1

    def step(self) -> None:
        """Take one step."""
        self.take_steps(1)

    def take_steps(self, n: int) -> None:
        """Take some steps."""
        first_steps(lambda count: self.train(lambda state, record: count()), n)

    def train(self, on_step: Callable[[State, Record], None]) -> None:
        """Go on to the end of the plan."""
        batches = Batches(self.batch, self.n_envs)
        train(
            *(self.network, batches, self.loss, self.penalty, self.sparsifier, self.plan, self.state),
            on_step=on_step,
            sharding=self.sharding,
            shrinking=self.shrinking,
        )

    def evaluate(self, parts: Mapping[str, Split]) -> dict[str, Score]:
        """Scores of the deterministic network on every part."""
        weights = deployed(self.sparsifier, self.state)
        return {
            name: evaluate(self.network, self.state, weights, split, self.loss)
            for name, split in parts.items()
        }


def ours(
    batch: Batch,
    module: Callable[[], nn.Module],
    precision: str = "fp32",
    options: Mapping[str, Any] | None = OPEN,
    invariant: bool = True,
    steps: int = LONG,
    loss: Loss = BINARY,
    sharding: Sharding = WHOLE,
) -> Ours:
    """A fresh run.

    Args:
        batch: the samples of every step.
        module: makes the network.
        precision: ``fp32`` or ``bf16``.
        options: of ProbMask at half density, or None for a dense run.
        invariant: with IRMv1 at the paper's weight, or without a penalty.
        steps: of the whole run.
        loss: of a sample.
        sharding: which part of every step is this process's.

    Returns:
        The run, before its first step.
    """
    net = network(build(module, 0))
    d = net.layout.size
    sparsifier: Sparsifier = Dense(d) if options is None else ProbMask(budget=d // 2, **options)
    plan = Plan(steps=steps, lr=4e-4, lr_schedule="constant", penalty_from=0.0, precision=precision)
    plan = plan if invariant else replace(plan, penalty_weight=0.0)
    return Ours(
        batch, net, sparsifier, irmv1 if invariant else no_penalty, plan, loss=loss, sharding=sharding
    )


def perceptron(
    width: int, shape: tuple[int, ...] = COLORED_MNIST, n_outputs: int = 1
) -> Callable[[], nn.Module]:
    """Makes the paper's network.

    >>> sum(p.numel() for p in perceptron(390)().parameters())
    306151
    """
    return lambda: MLP(torch.Size(shape).numel(), width, n_outputs)


def resnet18(shape: tuple[int, ...] = CIFAR_MNIST) -> Callable[[], nn.Module]:
    """Makes ResNet-18 with one logit."""
    return lambda: maker("resnet18")(shape, 1, None)


def layers(run: Ours) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every layer of a perceptron."""
    weights = run.network.layout.split(run.state.weights)
    return [(w, run.state.others[name.replace("weight", "bias")]) for name, w in weights.items()]
