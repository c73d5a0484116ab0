"""What a representation knows about the spurious attribute: read by a probe, or moved with the attribute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseirm.core import SettingError
from sparseirm.data.environments import Batch, Batches, Split
from sparseirm.evaluation.metrics import CHUNK, evaluate
from sparseirm.losses import BINARY, MULTICLASS
from sparseirm.models import build, network
from sparseirm.penalties import no_penalty
from sparseirm.sparsifiers import Dense
from sparseirm.training.loop import train
from sparseirm.training.precision import fast_matmul
from sparseirm.training.state import Plan, start


@torch.no_grad()
def representation(module: nn.Module, x: Tensor) -> Tensor:
    """What the last linear layer of a module is given, in evaluation mode.

    Args:
        module: the module; it is left in evaluation mode.
        x: ``(n, ...)`` inputs.

    Returns:
        ``(n, h)``, float32.

    Raises:
        SettingError: if the module has no linear layer, or its input is not one vector per sample.

    Example:
        >>> module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> representation(module, torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """
    net, pieces = network(module.eval()), []
    with fast_matmul():
        for piece in torch.split(x, CHUNK):
            with net.watched() as seen:
                module(piece)
            pieces += seen
    if not pieces:
        raise SettingError(
            "the model has no representation to read: its last linear layer is not given one vector a sample."
        )
    return torch.cat(pieces)


@dataclass(frozen=True)
class Probe:
    """A perceptron of two linear layers that learns to tell the spurious attribute from a representation.

    Every unit of the representation is brought to mean 0 and variance 1 first, so that a large unit and a
    small one tell the probe equally much. Trained with Adam and cosine decay, without regularisation.

    Attributes:
        steps: optimiser steps.
        width: hidden units.
        batch_size: samples per step, as far as there are as many.
        lr: learning rate.

    Raises:
        SettingError: if ``width`` or ``batch_size`` is below 1, or `Plan` refuses ``steps`` or ``lr``.
    """

    steps: int = 2000
    width: int = 64
    batch_size: int = 500
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("width", "batch_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"`{name}` of the probe must be at least 1; got {getattr(self, name)}.")
        self.plan  # noqa: B018  refuses what a plan refuses

    @property
    def plan(self) -> Plan:
        """How it is trained."""
        return Plan(steps=self.steps, lr=self.lr, eps=1e-8, l2=0.0, penalty_weight=0.0)


def read_attribute(learn: Split, fresh: Split, probe: Probe, seed: int = 0) -> tuple[float, float]:
    """How well a probe tells the spurious attribute.

    Args:
        learn: representations ``(n, h)`` as inputs, and their attribute; the probe is trained on these.
        fresh: the same of other samples.
        probe: the probe.
        seed: seed of its initial weights and batches.

    Returns:
        Its accuracy on both, in percent.

    Raises:
        SettingError: if the attribute of the samples is not known.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
        >>> told = Split(Batch(x, x[:, 0].long(), x[:, 0].long() * 0), ("all",), (x[:, 0] > 0).long())
        >>> min(read_attribute(told, told, Probe(steps=200))) > 90
        True
    """
    if learn.spurious is None or fresh.spurious is None:
        raise SettingError("the data set does not say what its spurious attribute is, so none can be read.")
    values = 1 + int(torch.cat([learn.spurious, fresh.spurious]).max())
    centre, spread = learn.samples.x.mean(0), learn.samples.x.std(0).clamp_min(1e-6)

    def task(split: Split) -> Split:
        x = (split.samples.x - centre) / spread
        assert split.spurious is not None
        return Split(Batch(x, split.spurious, torch.zeros_like(split.spurious)), ("all",))

    loss, n_outputs = (BINARY, 1) if values <= 2 else (MULTICLASS, values)
    seen, unseen = task(learn), task(fresh)
    module = build(lambda: _perceptron(len(centre), probe.width, n_outputs), seed)
    net = network(module)
    every = Dense(net.layout.size)
    state = start(net, every, probe.plan, seed)
    batches = Batches(seen.samples, 1, min(probe.batch_size, len(seen)), seed)
    train(net, batches, loss, no_penalty, every, probe.plan, state, seed)
    known, new = (
        evaluate(net, state, state.weights.detach(), part, loss).accuracy for part in (seen, unseen)
    )
    return known, new


def _perceptron(n_inputs: int, width: int, n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, n_outputs))
