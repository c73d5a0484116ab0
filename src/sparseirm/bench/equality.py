"""What has to hold before anything is timed: the same numbers as the plain way of computing them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseirm.bench.released import Rates, Reference
from sparseirm.bench.workloads import TWO, Classes, Fed, Ours, layers
from sparseirm.core import SettingError
from sparseirm.models import build, network
from sparseirm.penalties import irmv1
from sparseirm.randomness import generator
from sparseirm.schedules import cubic
from sparseirm.training.loop import Record
from sparseirm.training.state import Plan, State

TOLERANCE = 1e-5
"""Largest difference allowed, as a norm relative to the norm of the values."""

STEPS = 20

N, WIDTH = 64, 32
"""Samples and hidden units compared: few, for large sums amplify their rounding from step to step, and where
it moves one of many activations across the corner of its ReLU, gradients differ by more than rounding."""

EPS = 1e-4
"""Adam's epsilon of both. With a tiny one it turns the rounding error of a gradient near zero into a step."""


@dataclass(frozen=True)
class Gate:
    """How far ours is from the released way after some steps, each as a norm relative to that of the values.

    Attributes:
        steps: steps taken.
        risk: of any step.
        penalty: of any step.
        weights: after the last step.
        probabilities: after the last step.
    """

    steps: int
    risk: float
    penalty: float
    weights: float
    probabilities: float

    @property
    def worst(self) -> float:
        """The largest of them; infinite if one is not a number."""
        found = (self.risk, self.penalty, self.weights, self.probabilities)
        return math.inf if any(math.isnan(value) for value in found) else max(found)


def paired_draws(u: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two uniform draws from which the released code makes the noise that ours makes of one.

    Args:
        u: draws, from 0.05 to 0.95, so that the constant in the released logarithms does not matter.
        noise: where the free one of the two comes from.

    Returns:
        Both, float64, in the shape of ``u``.

    Example:
        >>> u = torch.tensor([0.3], dtype=torch.float64)
        >>> a, b = paired_draws(u, torch.Generator().manual_seed(0))
        >>> noise = -torch.log(torch.log(a) / torch.log(b))
        >>> torch.allclose(noise, torch.logit(u))
        True
    """
    second = torch.rand(u.shape, generator=noise, dtype=torch.float64).clamp(0.6, 0.8)
    return (second.log() * (1 - u.double()) / u.double()).exp(), second


def compare(n: int = N, width: int = WIDTH, steps: int = STEPS, task: Classes = TWO) -> Gate:
    """Train ours and the released way on the same samples from the same weights with the same noise, in fp32.

    Args:
        n: samples.
        width: hidden units.
        steps: steps.
        task: what is told apart.

    Returns:
        How far they are apart.
    """
    batch, net, rates = task.samples(n), network(build(task.module(width), 0)), Rates(eps=EPS)
    d = net.layout.size
    noise = generator(0, "gate draws")
    draws = tuple(torch.rand(d, generator=noise).clamp(0.05, 0.95) for _ in range(steps))
    sparsifier = Fed(
        d // 2, shrink_to=1, decide_at=1, score_lr=rates.score_lr, score_eps=0.0, draws=draws, temperature=0.7
    )
    plan = Plan(
        steps=steps,
        lr=rates.lr,
        lr_schedule="constant",
        eps=rates.eps,
        l2=rates.l2,
        penalty_weight=rates.penalty_weight,
        penalty_from=0.0,
    )
    run = Ours(batch, net, sparsifier, irmv1, plan, loss=task.loss)
    reference = Reference(layers(run), rates=rates)
    probabilities = (
        torch.rand(d, generator=noise) * 0.6 + 0.3
    )  # inside: at 1 bisection differs, see `released`
    run.state.memory.learned["probabilities"].data.copy_(probabilities)
    for own, given in zip(reference.scores, net.layout.split(probabilities).values(), strict=True):
        own.data.copy_(given)
    found: list[tuple[float, float]] = []

    def note(state: State, record: Record) -> None:
        found.append((float(record.risk), float(record.penalty)))

    run.train(note)
    expected = []
    y = reference.labels(batch.y)
    for step, u in enumerate(draws):
        pairs = [paired_draws(piece, noise) for piece in net.layout.split(u).values()]
        budget = cubic(step / steps, 0.0, 1.0, d, d // 2)
        expected.append(reference.step(batch.x, y, batch.env, budget, 0.7, pairs))
    weights = torch.cat([w.detach().flatten() for w in reference.weights])
    scores = torch.cat([s.detach().flatten() for s in reference.scores])
    curves = zip(torch.tensor(found).T, torch.tensor(expected).T, strict=True)
    risk, penalty = (apart(a, b) for a, b in curves)
    return Gate(
        steps,
        risk,
        penalty,
        apart(run.state.weights.detach(), weights),
        apart(run.state.memory.learned["probabilities"].detach(), scores),
    )


def apart(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of the second.

    >>> apart(torch.tensor([3.0, 2.0]), torch.tensor([3.0, 4.0]))
    0.4
    """
    return round(float((a.double() - b.double()).norm() / b.double().norm()), 12)


def require_equal(gate: Gate) -> None:
    """Refuse to go on if the numbers differ.

    Args:
        gate: how far apart they are.

    Raises:
        SettingError: if a difference exceeds `TOLERANCE`.
    """
    if gate.worst > TOLERANCE:
        raise SettingError(
            f"nothing is timed, because training here does not compute what the released way computes: after "
            f"{gate.steps} steps they differ by {gate.worst:.1e}, and at most {TOLERANCE:g} is rounding."
        )
