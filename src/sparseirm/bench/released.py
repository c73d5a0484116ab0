"""The paper's released code, rewritten for the CPU to do the same work the same way: the reference to beat.

Read in https://github.com/x-zho14/SparseIRM (``trainers/default.py``, ``utils/conv_type.py`` and
``utils/net_utils.py``), written anew. Kept on purpose, because they are what is being compared: gates layer
by layer from two uniform draws each and plain autograd, IRMv1's slope by differentiating twice, a projection
by bisection that asks for its value after every halving, Adam without fusion, and after every epoch two
passes over all samples under the same drawn mask. Left out in its favour: its progress bars, prints,
histograms for TensorBoard and correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear, relu

EPS = 1e-20
"""What keeps the logarithms of the gates finite."""

TOLERANCE, HALVINGS = 1e-3, 21
"""When the bisection stops."""


@dataclass(frozen=True)
class Rates:
    """Numbers of the reference.

    Attributes:
        lr: learning rate of the weights.
        score_lr: learning rate of the probabilities.
        eps: Adam's epsilon.
        l2: weight of the sum of squared weights.
        penalty_weight: lambda.
    """

    lr: float = 4e-4
    score_lr: float = 6e-3
    eps: float = 1e-8
    l2: float = 1e-3
    penalty_weight: float = 1e4


class Reference:
    """A multilayer perceptron under relaxed gates, trained with IRMv1 as the released code does.

    Args:
        layers: weight and bias of every layer to start from; copied. One output is for two classes.
        n_envs: number of environments.
        rates: learning rates and weights of the loss.
    """

    def __init__(
        self, layers: Sequence[tuple[Tensor, Tensor]], n_envs: int = 2, rates: Rates | None = None
    ) -> None:
        self.rates, self.n_envs = rates or Rates(), n_envs
        self.weights = [nn.Parameter(weight.detach().clone()) for weight, _ in layers]
        self.biases = [nn.Parameter(bias.detach().clone()) for _, bias in layers]
        self.scores = [nn.Parameter(torch.ones_like(weight)) for weight in self.weights]
        self.binary = len(layers[-1][0]) == 1
        self.scale = torch.ones(n_envs, 1, requires_grad=True)
        self.weights_step = plain_adam([*self.weights, *self.biases], self.rates.lr, self.rates.eps)
        self.scores_step = plain_adam(self.scores, self.rates.score_lr, self.rates.eps)

    def forward(self, x: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """Logits ``(n, k)``."""
        x = x.flatten(1)
        for depth, (weight, bias, gate) in enumerate(zip(self.weights, self.biases, gates, strict=True)):
            x = linear(x, weight * gate, bias)
            x = relu(x) if depth < len(self.weights) - 1 else x
        return x

    def labels(self, y: Tensor) -> Tensor:
        """Labels ``(n,)`` as its loss takes them: ``(n, 1)``, float32, with one logit."""
        return y[:, None].float() if self.binary else y

    def risk(self, logits: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return binary_cross_entropy_with_logits(logits, y) if self.binary else cross_entropy(logits, y)

    def hits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Accuracy."""
        return ((logits > 0).float() == y if self.binary else logits.argmax(1) == y).float().mean()

    def step(
        self,
        x: Tensor,
        y: Tensor,
        env: Tensor,
        budget: float,
        temperature: float,
        draws: Sequence[tuple[Tensor, Tensor]] | None = None,
        learn_scores: bool = True,
    ) -> tuple[float, float]:
        """One step on all samples.

        Args:
            x: ``(n, ...)`` inputs.
            y: labels, see `labels`.
            env: ``(n,)`` environments.
            budget: what the probabilities may sum to after the step.
            temperature: of the gates.
            draws: two uniform tensors for each layer, or None to draw them.
            learn_scores: whether the probabilities move; the released code waits for 28 % of the run.

        Returns:
            Risk and penalty before the step.
        """
        rates = self.rates
        self.scores_step.zero_grad()
        self.weights_step.zero_grad()
        draws = draws or [two_draws(s) for s in self.scores]
        gates = [relaxed(s, u, temperature) for s, u in zip(self.scores, draws, strict=True)]
        logits = self.scale[env] * self.forward(x, gates)
        risk = self.risk(logits, y)
        slopes = torch.autograd.grad(risk * self.n_envs, self.scale, create_graph=True)[0]
        penalty = slopes.square().mean()
        hits = self.hits(logits, y)
        norm = torch.zeros(())
        for parameter in (*self.weights, *self.biases):
            norm += parameter.norm().pow(2)
        loss = risk + rates.l2 * norm + rates.penalty_weight * penalty
        shown = loss.item(), risk.item(), penalty.item(), hits.item()
        torch.autograd.backward(loss)
        if learn_scores:
            self.scores_step.step()
        self.weights_step.step()
        bisect(self.scores, budget)
        return shown[1], shown[2]

    @torch.no_grad()
    def evaluate(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
        """Accuracy on every part, in two passes over it under the same drawn mask."""
        masks = [(torch.rand_like(s) < s).float() for s in self.scores]
        found = []
        for x, y in parts:
            for _ in range(2):
                logits = self.forward(x, masks)
                self.risk(logits, y).item()
                found.append(self.hits(logits, y).item())
        return found


def plain_adam(parameters: Sequence[Tensor], lr: float, eps: float = 1e-8) -> torch.optim.Adam:
    """Adam one operation and one tensor at a time, as PyTorch's default on the CPU."""
    return torch.optim.Adam(list(parameters), lr=lr, eps=eps, fused=False, foreach=False)


def two_draws(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Two uniform draws for every gate."""
    return torch.rand_like(scores), torch.rand_like(scores)


def relaxed(scores: Tensor, draws: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Relaxed gates; the difference of two Gumbel draws is the logistic noise."""
    first, second = draws
    noise = -torch.log(torch.log(first + EPS) / torch.log(second + EPS) + EPS)
    logit = torch.log(scores + EPS) - torch.log(1.0 - scores + EPS)
    return torch.sigmoid((logit + noise.to(scores.dtype)) * (1 / temperature))


@torch.no_grad()
def bisect(scores: Sequence[Tensor], budget: float) -> float:
    """Project all layers onto the budget by halving an interval; returns the multiplier."""

    def excess(v: Tensor | float) -> Tensor:
        return torch.stack([(s - v).clamp(0, 1).sum() for s in scores]).sum() - budget

    low: Tensor | float = 0.0
    high: Tensor | float = torch.stack([s.max() for s in scores]).max()
    v: Tensor | float = 0.0
    if excess(0.0) >= 0:
        for _ in range(HALVINGS):
            v = (low + high) / 2
            over = excess(v)
            if abs(over) < TOLERANCE:
                break
            low, high = (low, v) if over < 0 else (v, high)
    for s in scores:
        s.sub_(v).clamp_(0, 1)
    return float(v)
