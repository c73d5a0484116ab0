"""The training epoch as the released code of the paper does it, rewritten for the CPU: the reference to beat.

Kept on purpose, because they are what is being compared: masks layer by layer with two uniform draws per
weight and plain autograd, IRMv1's slope by double backward, a projection by bisection that asks the host
after every halving, unfused Adam, and two evaluation passes over all samples after every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

EPS = 1e-20
"""What keeps the logarithms of the gates finite."""

TOLERANCE, HALVINGS = 1e-3, 21
"""When the bisection stops."""


@dataclass
class Settings:
    """Numbers of the reference epoch.

    Attributes:
        lr: learning rate of the weights.
        score_lr: learning rate of the probabilities.
        eps: Adam's epsilon.
        l2: weight of the sum of squared weights.
        penalty_weight: lambda.
        divide_loss: divide the loss by ``1 + lambda``.
    """

    lr: float = 4e-4
    score_lr: float = 6e-3
    eps: float = 1e-8
    l2: float = 1e-3
    penalty_weight: float = 1e4
    divide_loss: bool = False


class Reference:
    """An MLP under relaxed gates, trained by `epoch`.

    Args:
        sizes: number of inputs, hidden units and outputs, such as ``(392, 390, 390, 1)``.
        settings: rates and weights.
    """

    def __init__(self, sizes: Sequence[int], settings: Settings) -> None:
        layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.settings = settings
        self.layers = nn.ModuleList(layers)
        self.scores = [nn.Parameter(torch.ones_like(layer.weight)) for layer in layers]
        rates = {"eps": settings.eps, "fused": False, "foreach": False}
        self.weights_step = torch.optim.Adam(self.layers.parameters(), lr=settings.lr, **rates)
        self.scores_step = torch.optim.Adam(self.scores, lr=settings.score_lr, **rates)

    def gates(self, temperature: float, draws: Sequence[tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
        """Relaxed gates of every layer, from two uniform draws per weight."""
        draws = draws or [(torch.rand_like(s), torch.rand_like(s)) for s in self.scores]
        gates = []
        for s, (first, second) in zip(self.scores, draws, strict=True):
            noise = -torch.log(-torch.log(first + EPS) + EPS) + torch.log(-torch.log(second + EPS) + EPS)
            logit = torch.log(s + EPS) - torch.log(1 - s + EPS)
            gates.append(torch.sigmoid((logit + noise) / temperature))
        return gates

    def forward(self, x: Tensor, gates: Sequence[Tensor]) -> Tensor:
        """Logits ``(n,)``."""
        for depth, (layer, gate) in enumerate(zip(self.layers, gates, strict=True)):
            x = linear(x, layer.weight * gate, layer.bias)
            x = relu(x) if depth < len(self.layers) - 1 else x
        return x[:, 0]

    def loss(self, logits: Tensor, y: Tensor, env: Tensor) -> tuple[Tensor, Tensor]:
        """Risk and IRMv1 penalty, ``()`` each; the slope by differentiating the risk."""
        risks, slopes = [], []
        for e in range(int(env.max()) + 1):
            here = env == e
            scale = torch.ones((), requires_grad=True)
            risk = binary_cross_entropy_with_logits(logits[here] * scale, y[here])
            slopes.append(torch.autograd.grad(risk, scale, create_graph=True)[0])
            risks.append(risk)
        return torch.stack(risks).mean(), torch.stack(slopes).square().mean()

    def step(
        self,
        x: Tensor,
        y: Tensor,
        env: Tensor,
        budget: float,
        temperature: float,
        draws: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[float, float]:
        """One optimiser step on all samples; risk and penalty before it."""
        set_ = self.settings
        logits = self.forward(x, self.gates(temperature, draws))
        risk, penalty = self.loss(logits, y, env)
        norm = sum((p.square().sum() for p in self.layers.parameters()), torch.zeros(()))
        loss = risk + set_.l2 * norm + set_.penalty_weight * penalty
        if set_.divide_loss:
            loss = loss / (1 + set_.penalty_weight)
        self.weights_step.zero_grad()
        self.scores_step.zero_grad()
        loss.backward()
        self.weights_step.step()
        self.scores_step.step()
        with torch.no_grad():
            bisect([s.data for s in self.scores], budget)
        return risk.item(), penalty.item()

    @torch.no_grad()
    def evaluate(self, parts: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
        """Accuracy of every part, twice, under one drawn binary mask: relaxed and discrete pass are the same."""
        masks = [(torch.rand_like(s) < s).float() for s in self.scores]
        return [
            ((self.forward(x, masks) > 0) == (y > 0.5)).float().mean().item() for _ in range(2) for x, y in parts
        ]


def bisect(scores: Sequence[Tensor], budget: float) -> float:
    """Project all layers onto the budget by halving an interval, with one answer to the host per halving."""
    low, high = 0.0, max(float(s.max()) for s in scores)

    def excess(v: float) -> float:
        return sum(float((s - v).clamp(0, 1).sum()) for s in scores) - budget

    v = 0.0
    if excess(0.0) > 0:
        for _ in range(HALVINGS):
            v = (low + high) / 2
            over = excess(v)
            if abs(over) < TOLERANCE:
                break
            low, high = (v, high) if over > 0 else (low, v)
    for s in scores:
        s.copy_((s - v).clamp(0, 1))
    return v
