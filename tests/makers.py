"""Small things that many tests are made of: outputs, samples, modules, and whole training runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseirm.core import Loss, Outputs, Penalty, Sparsifier, Tensors
from sparseirm.data import Batch, Batches, DataSet, Split
from sparseirm.experiments.store import Store
from sparseirm.losses import BINARY, MULTICLASS, SQUARED
from sparseirm.models import Network, build, network
from sparseirm.penalties import irmv1
from sparseirm.randomness import generator
from sparseirm.recipe import Recipe
from sparseirm.registry import lookup
from sparseirm.sparsifiers import SPARSIFIERS
from sparseirm.training.checkpoint import load_state, save_state, tensors_of
from sparseirm.training.loop import Record, train
from sparseirm.training.sharding import WHOLE, Sharding
from sparseirm.training.shrinking import Shrinking
from sparseirm.training.state import Plan, State, start


def logits_and_labels(
    loss: Loss, n: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Logits and labels that fit a loss."""
    noise = generator(seed, loss.name)
    if loss == MULTICLASS:
        return torch.randn(n, 4, generator=noise, dtype=dtype), torch.randint(4, (n,), generator=noise)
    logits = torch.randn(n, generator=noise, dtype=dtype)
    if loss == BINARY:
        return logits, torch.randint(2, (n,), generator=noise)
    assert loss == SQUARED, f"say here what logits and labels of {loss.name} look like"
    return logits, torch.randn(n, generator=noise, dtype=dtype)


def toy_weights(loss: Loss, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Weights of the two-layer network of `outputs`: hidden, head, and the head's bias."""
    k, noise = (4 if loss == MULTICLASS else 1), generator(0, "weights")
    shapes = ((5, 3), (3, k), (k,))
    return tuple(torch.randn(s, generator=noise, dtype=dtype).requires_grad_() for s in shapes)


def outputs(
    loss: Loss,
    sizes: tuple[int, ...] = (7, 4, 2),
    dtype: torch.dtype = torch.float64,
    weights: tuple[Tensor, ...] | None = None,
) -> Outputs:
    """Outputs of a two-layer network on environments of the given, unequal sizes, in mixed order."""
    env = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    env = env[torch.randperm(len(env), generator=generator(0, "env"))]
    x = torch.randn(len(env), 5, generator=generator(0, "x"), dtype=dtype)
    _, y = logits_and_labels(loss, len(env), dtype=dtype)
    weights = weights or toy_weights(loss, dtype)
    features = (x @ weights[0]).tanh()
    logits = features @ weights[1] + weights[2]
    return Outputs(
        logits if loss == MULTICLASS else logits[:, 0],
        y,
        env,
        len(sizes),
        loss,
        features=features,
        parameters=weights,
        noise=generator(0, "penalty"),
    )


def samples(sizes: tuple[int, ...] = (14, 10), n_inputs: int = 6) -> Batch:
    """Inputs with binary labels, environments of the given sizes."""
    env = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.randn(len(env), n_inputs, generator=generator(0, "x"))
    noise = torch.randn(len(env), generator=generator(0, "y"))
    return Batch(x, (x[:, 0] + 0.5 * noise > 0).long(), env)


def tiny_images(
    n_train: int | None = None,
    seed: int = 0,
    *,
    shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 2,
    **unused: object,
) -> DataSet:
    """Images of noise whose brightness is their label, in two training environments and one of tests."""

    def part(name: str, n: int, envs: tuple[str, ...]) -> Split:
        noise = generator(seed, "tiny images", name)
        y = torch.arange(n) // len(envs) % classes
        x = 0.3 * torch.randn(n, *shape, generator=noise) + y.reshape(-1, *[1] * len(shape))
        return Split(Batch(x, y, torch.arange(n) % len(envs)), envs, y)

    train, val = (part(name, n, ("a", "b")) for name, n in (("train", n_train or 24), ("val", 8)))
    loss = "binary" if classes == 2 else "multiclass"
    outputs = 1 if classes == 2 else classes
    return DataSet("tiny_images", train, val, part("test", 10, ("c",)), loss, outputs, "none")


def plain_module() -> nn.Module:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))


def noisy_module() -> nn.Module:
    """A module with randomness and buffers of its own."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))


def sparsifier_named(name: str, d: int) -> Sparsifier:
    """A sparsifier by name that keeps a third of ``d`` weights, or all if it always does."""
    return lookup("sparsifier", SPARSIFIERS, name)(budget=d if name == "dense" else d // 3)


PLAN = Plan(steps=12, lr=0.01, penalty_weight=3.0, penalty_from=0.25)
SAMPLES = samples()


@dataclass(frozen=True)
class Problem:
    """A small training run that can be started, stopped, resumed and repeated."""

    module: Callable[[], nn.Module] = noisy_module
    plan: Plan = PLAN
    sparsifier: str = "probmask"
    penalty: Penalty = irmv1
    batch: Batch = SAMPLES
    batch_size: int | None = None
    seed: int = 0

    @property
    def network(self) -> Network:
        return network(build(self.module, self.seed))

    def fresh(self) -> tuple[Network, Sparsifier, State]:
        net = self.network
        sparsifier = sparsifier_named(self.sparsifier, net.layout.size)
        return net, sparsifier, start(net, sparsifier, self.plan, self.seed)

    def train(
        self,
        checkpoint: Path | None = None,
        save_at: int = 0,
        resume: bool = False,
        sharding: Sharding = WHOLE,
        shrinking: Shrinking | None = None,
    ) -> Run:
        """Train to the end; save when ``save_at`` steps are done, or start from what was saved."""
        net, sparsifier, state = self.fresh()
        if resume and checkpoint:
            load_state(checkpoint, state)
        records: list[Record] = []

        def on_step(state: State, record: Record) -> None:
            records.append(record)
            if checkpoint and not resume and state.step == save_at:
                save_state(checkpoint, state, {})

        batches = Batches(self.batch, int(self.batch.env.max()) + 1, self.batch_size, self.seed)
        train(
            *(net, batches, BINARY, self.penalty, sparsifier, self.plan, state, self.seed, on_step),
            *(sharding, shrinking),
        )
        return Run(net, sparsifier, state, records)


@dataclass(frozen=True)
class Run:
    """What is left of a finished training run."""

    network: Network
    sparsifier: Sparsifier
    state: State
    records: list[Record]

    @property
    def tensors(self) -> Tensors:
        return tensors_of(self.state)

    @property
    def curve(self) -> list[tuple[int, float, float]]:
        return [(record.step, float(record.risk), float(record.penalty)) for record in self.records]


def assert_same_bits(a: Tensors, b: Tensors) -> None:
    """The same names, and under each the same type, shape and values."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def why_failed(store: Store, recipe: Recipe) -> str | None:
    """Why the last attempt of a recipe failed, or None."""
    return {failed.key: reason for failed, reason in store.failures()}.get(recipe.key)
