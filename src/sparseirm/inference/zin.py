"""Environments as a function of auxiliary variables: where the same logits call for another classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Adam

from sparseirm.core import Loss, SettingError, accumulator
from sparseirm.inference.labels import harden
from sparseirm.inference.reference import Reference
from sparseirm.models import build
from sparseirm.randomness import generator, seed_of
from sparseirm.registry import one_of

ROUNDS, INNER = 5, 50
"""Turns of heads and assignment, and Adam's steps of the assignment in each."""


@dataclass(frozen=True)
class ZIN:
    """Environments from named auxiliary variables, as in ZIN.

    Lin, Zhu, Tan and Cui 2022 (NeurIPS, arXiv:2203.05818) solve

    ``min_{w,Phi} max_{rho,w_1..w_K} R(w, Phi) + lambda sum_k [R_k(w, Phi) - R_k(w_k, Phi)]``

    with ``R_k = 1/n sum_i rho_k(z_i) loss_i`` and ``rho`` a network of two layers and a softmax. This is the
    inner maximum, taken at the reference's logits as ``Phi``; the heads ``w`` and ``w_k`` are affine maps of
    them. The shares add up to 1, so the first term of the bracket is ``R(w, Phi)`` whatever ``rho`` is: only
    ``sum_k R_k(w_k, Phi)`` remains to be minimised, by heads and shares in turn. It begins with a random,
    nearly hard division, because equal heads are a saddle point.

    Unlike the paper's min-max, ``rho`` does not go on changing while the model is trained against it. Once
    the model is invariant, every ``rho`` has the same gap and labels would be arbitrary; the paper's released
    code holds ``rho`` fixed from the end of plain training, too. Its penalty is IRMv1's
    approximation of the gap, a squared slope of each ``R_k``; here it is the gap itself.

    Before labels are given out, the gap ``R(w) - sum_k R_k(w_k)`` must exceed the gap of every one of
    ``shuffles`` shuffled copies of the variables: with 19, a variable that has nothing to do with the problem
    passes one time in twenty.

    Attributes:
        auxiliary: names of the variables, separated by commas.
        n_envs: K, number of environments, at least 2.
        hidden: hidden units of the network of ``rho``.
        starts: random starts; the one with the largest gap counts.
        shuffles: shuffled copies that must do worse; 0 leaves that check out.
        lr: learning rate of Adam for ``rho``.

    Raises:
        SettingError: if no variable is named or a value is out of its range.
    """

    auxiliary: str = ""
    n_envs: int = 2
    hidden: int = 16
    starts: int = 2
    shuffles: int = 19
    lr: float = 0.05

    def __post_init__(self) -> None:
        if not self.names:
            raise SettingError(
                "`auxiliary` of zin must name the variables that may tell environments apart, separated by "
                f"commas, such as time; got {self.auxiliary!r}."
            )
        for name, least in (("n_envs", 2), ("hidden", 1), ("starts", 1), ("shuffles", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"`{name}` of zin must be at least {least}; got {getattr(self, name)}.")
        if not self.lr > 0:
            raise SettingError(f"`lr` of zin must be positive; got {self.lr}.")

    @property
    def names(self) -> list[str]:
        """The variables, one by one."""
        return [name.strip() for name in self.auxiliary.split(",") if name.strip()]

    def __call__(self, reference: Reference, seed: int = 0) -> Tensor:
        """Environment of each sample, numbered by the reference's risk, the least first.

        Args:
            reference: logits, labels and auxiliary variables.
            seed: seed of starts and shuffles.

        Returns:
            ``(n,)``, int64, in ``0 .. n_envs - 1``.

        Raises:
            SettingError: if a variable is unknown or constant, the variables do no better than shuffled
                ones, or an environment would be empty or nearly so.
        """
        heads, z = Heads.on(reference), self._variables(reference)
        gap, shares = self.divide(heads, z, seed)
        for shuffle in range(self.shuffles):
            order = torch.randperm(len(z), generator=generator(seed, "zin shuffle", shuffle))
            other, _ = self.divide(heads, z[order.to(z.device)], seed)
            if other >= gap:
                raise SettingError(
                    f"{', '.join(self.names)} cannot tell environments apart: {self.n_envs} classifiers gain "
                    f"{gap:.2g} over one, and no less ({other:.2g}) when the values are shuffled. Name other "
                    "variables in `auxiliary`, or give environments."
                )
        return harden(shares, reference.losses)

    def divide(self, heads: Heads, z: Tensor, seed: int = 0) -> tuple[float, Tensor]:
        """The largest gap found from any start, and its division.

        Args:
            heads: the classifiers to choose from.
            z: ``(n, a)`` standardised auxiliary variables.
            seed: seed of the starts.

        Returns:
            The gap, in units of the loss, and the shares ``(n, n_envs)``, whose rows add up to 1.
        """
        found = [self._from_start(heads, z, seed_of(seed, "zin start", s)) for s in range(self.starts)]
        return max(found, key=lambda pair: pair[0])

    def _from_start(self, heads: Heads, z: Tensor, seed: int) -> tuple[float, Tensor]:
        rho = _nearly_hard(build(lambda: _two_layers(z.shape[1], self.hidden, self.n_envs), seed).to(z), z)
        optimizer = Adam(rho.parameters(), lr=self.lr, eps=1e-12)
        weights = heads.pooled.expand(self.n_envs, -1, -1)
        for _ in range(ROUNDS):
            weights = heads.fit(rho(z).softmax(1).detach(), weights)
            losses = heads.losses(weights)
            for _ in range(INNER):
                optimizer.zero_grad()
                torch.autograd.backward(mixed(rho(z).softmax(1), losses))
                optimizer.step()
        shares = rho(z).softmax(1).detach()
        return float(heads.losses(heads.pooled).mean() - mixed(shares, losses)), shares

    def _variables(self, reference: Reference) -> Tensor:
        """The named variables, standardised, ``(n, a)``."""
        if not reference.auxiliary:
            raise SettingError(
                "zin infers from auxiliary variables, and this data set has none. Give environments, or "
                "use eiil."
            )
        for name in self.names:
            one_of("auxiliary variable of this data set", name, reference.auxiliary)
        logits = reference.logits
        z = torch.stack([reference.auxiliary[name].to(logits.device) for name in self.names], 1)
        z = z.to(accumulator(logits.device))
        spread = z.std(0)
        for name, width in zip(self.names, spread.tolist(), strict=True):
            if not 0 < width < math.inf:
                raise SettingError(
                    f"auxiliary variable {name!r} must vary and be finite; its standard deviation is "
                    f"{width:g}. Leave it out."
                )
        return (z - z.mean(0)) / spread


@dataclass(frozen=True)
class Heads:
    """Affine classifiers on the reference's logits, one for each environment.

    Attributes:
        inputs: ``(n, h + 1)`` standardised logits and a one, in double precision.
        y: ``(n,)`` labels or targets.
        loss: the loss per sample.
    """

    inputs: Tensor
    y: Tensor
    loss: Loss

    @staticmethod
    def on(reference: Reference) -> Heads:
        """Heads on the logits of a reference."""
        logits = reference.logits.detach().to(accumulator(reference.logits.device))
        logits = logits.reshape(len(logits), -1)
        logits = (logits - logits.mean(0)) / logits.std(0).clamp_min(1e-12)
        return Heads(torch.cat([logits, torch.ones_like(logits[:, :1])], 1), reference.y, reference.loss)

    def losses(self, weights: Tensor) -> Tensor:
        """Loss of every sample with every head: ``(K, h + 1, h) -> (n, K)``."""
        outputs = [self.inputs @ head for head in weights]
        return torch.stack([self.loss.value(o[:, 0] if o.shape[1] == 1 else o, self.y) for o in outputs], 1)

    def fit(self, shares: Tensor, weights: Tensor, max_iter: int = 10) -> Tensor:
        """Heads of least `mixed` loss with the shares ``(n, K)`` held, from the given weights; convex."""
        weights = weights.clone().requires_grad_()
        optimizer: Any = LBFGS(
            [weights], max_iter=max_iter, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            risk = mixed(shares, self.losses(weights))
            torch.autograd.backward(risk)
            return float(risk.detach())

        optimizer.step(closure)
        return weights.detach()

    @cached_property
    def pooled(self) -> Tensor:
        """The one head of all samples, ``(1, h + 1, h)``."""
        n, h = self.inputs.shape
        return self.fit(self.inputs.new_ones(n, 1), self.inputs.new_zeros(1, h, h - 1), max_iter=50)


def mixed(shares: Tensor, losses: Tensor) -> Tensor:
    """``sum_k R_k``: mean over samples of their losses ``(n, K)``, each with its share ``(n, K)``."""
    return (shares * losses).sum(1).mean()


def _two_layers(n_inputs: int, hidden: int, n_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, n_outputs))


@torch.no_grad()
def _nearly_hard(rho: nn.Module, z: Tensor) -> nn.Module:
    """The network with its last layer scaled so that the shares of ``z`` are balanced and nearly hard."""
    outputs = rho(z)
    scale = 4 / outputs.std(0).clamp_min(1e-12)
    *_, weight, bias = rho.parameters()
    bias.sub_(outputs.mean(0)).mul_(scale)
    weight.mul_(scale[:, None])
    return rho


def infer_zin(
    logits: Tensor,
    y: Tensor,
    z: Tensor,
    loss: Loss,
    *,
    n_envs: int = ZIN.n_envs,
    shuffles: int = ZIN.shuffles,
    seed: int = 0,
) -> Tensor:
    """Environments by `ZIN` from the logits of any model and any variables beside it.

    Args:
        logits: ``(n,)``, or ``(n, k)`` for ``k`` classes, of a model that has NOT learnt the samples by
            heart.
        y: ``(n,)`` labels or targets.
        z: ``(n,)`` or ``(n, a)``, the auxiliary variables.
        loss: the loss the model was trained with.
        n_envs: number of environments, at least 2.
        shuffles: shuffled copies of ``z`` that must do worse; 0 leaves that check out.
        seed: seed of starts and shuffles.

    Returns:
        ``(n,)``, int64, in ``0 .. n_envs - 1``, numbered by the model's risk, the least first.

    Raises:
        SettingError: if ``z`` does no better than shuffled, a column is constant, a value is out of range,
            or an environment would be empty or nearly so.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> noise = torch.Generator().manual_seed(0)
        >>> time, x, luck = (torch.rand(500, generator=noise) for _ in range(3))
        >>> y = (x > 0.5) ^ (luck < torch.where(time < 0.5, 0.05, 0.4))
        >>> env = infer_zin(x - 0.5, y.long(), time, BINARY, shuffles=4)
        >>> bool(((env == 1) == (time > 0.5)).float().mean() > 0.95)
        True
    """
    columns = {f"z{i}": column for i, column in enumerate(z.reshape(len(z), -1).unbind(1))}
    zin = ZIN(",".join(columns), n_envs=n_envs, shuffles=shuffles)
    return zin(Reference(logits, y, loss, columns), seed)
