"""Accuracy and risk per environment, of the network as it would be deployed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparseirm.core import Loss, Memory, Outputs, Sparsifier
from sparseirm.data.environments import Split
from sparseirm.models import Network
from sparseirm.training.precision import fast_matmul
from sparseirm.training.state import State

CHUNK = 8192
"""Samples per forward pass of an evaluation."""

IMAGES = 512
"""The same for networks with convolutions, whose activations are larger."""


@dataclass(frozen=True)
class Score:
    """How a network does on one split.

    Attributes:
        accuracy: mean over environments of their accuracies, in percent; mean squared error for regression.
        per_env: the same of each environment, by name.
        risk: mean over environments of their mean losses.
        risks: mean loss of each environment, by name; unequal ones on ``val`` betray a penalty that is
            met by memorising the training samples.
    """

    accuracy: float
    per_env: dict[str, float]
    risk: float
    risks: dict[str, float]


@torch.no_grad()
def evaluate(network: Network, state: State, weights: Tensor, split: Split, loss: Loss) -> Score:
    """Score of the network with the given effective weights, in evaluation mode and float32.

    Args:
        network: the network.
        state: where its other parameters and buffers are.
        weights: ``(d,)`` effective weights, usually from `deployed`.
        split: the samples; empty environments are left out of the means.
        loss: the loss of the data set.

    Returns:
        The score: accuracies in percent, risks in the unit of the loss (nats, or squared units of ``y``).
    """
    samples = split.samples
    logits = predict(network, state, weights, samples.x).to(samples.y.device)
    out = Outputs(logits, samples.y, samples.env, len(split.names), loss, samples.weight)
    hits = (loss.predict(logits) == samples.y).float()
    figure = 100 * out.env_mean(hits) if loss.classifies else out.risks
    present = ~figure.isnan()
    return Score(
        accuracy=float(figure[present].mean()),
        per_env=_named(split.names, figure),
        risk=float(out.risks[present].mean()),
        risks=_named(split.names, out.risks),
    )


@torch.no_grad()
def predict(network: Network, state: State, weights: Tensor, x: Tensor) -> Tensor:
    """Logits of ``x``, ``(n,)`` or ``(n, k)``, in evaluation mode and float32, some samples at a time.

    They are on the device of ``weights``; samples from elsewhere are moved there no sooner than needed.
    """
    chunk = IMAGES if network.convolutional else CHUNK
    with fast_matmul():
        pieces = [
            network.logits(part.to(weights.device), weights, state.others, state.buffers)
            for part in torch.split(x, chunk)
        ]
    return torch.cat(pieces)


def _named(names: tuple[str, ...], values: Tensor) -> dict[str, float]:
    return {name: float(v) for name, v in zip(names, values, strict=True) if not v.isnan()}


def deployed(sparsifier: Sparsifier, state: State) -> Tensor:
    """Effective weights of the deterministic network: masked by exactly K ones. Shape ``(d,)``."""
    return sparsifier.deploy(state.weights.detach(), state.memory)


def undecided(memory: Memory, tolerance: float = 0.01) -> float | None:
    """Fraction of the probabilities that lie more than ``tolerance`` from both 0 and 1, None without any.

    >>> undecided(Memory({"probabilities": torch.tensor([0.0, 0.5, 1.0, 1.0])}))
    0.25
    """
    probabilities = memory.learned.get("probabilities")
    if probabilities is None or "mask" in memory.kept:
        return None if probabilities is None else 0.0
    inside = (probabilities > tolerance) & (probabilities < 1 - tolerance)
    return float(inside.float().mean())
