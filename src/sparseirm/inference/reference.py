"""The reference: a model trained without environments, and what it says of every training sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sparseirm.core import Loss, NonFiniteError, SettingError
from sparseirm.data.environments import Batch, Batches
from sparseirm.evaluation.metrics import predict
from sparseirm.models import Network
from sparseirm.penalties import no_penalty
from sparseirm.randomness import generator
from sparseirm.sparsifiers import Dense
from sparseirm.training.loop import train
from sparseirm.training.state import Plan, start

EVERY, PATIENCE = 5, 50
"""Steps between two looks at the samples held out, and without progress there before training ends."""


@dataclass(frozen=True)
class Reference:
    """All that an inference may see: outputs of a model that knows no environments, and variables beside it.

    Attributes:
        logits: ``(n,)`` for binary classification and regression, ``(n, k)`` for ``k`` classes.
        y: ``(n,)`` labels or targets.
        loss: the loss per sample.
        auxiliary: variables the model need not see, by name, ``(n,)`` each.

    Raises:
        SettingError: if logits and labels differ in number, or a logit is NaN or infinite.
    """

    logits: Tensor
    y: Tensor
    loss: Loss
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.logits) != len(self.y) or not self.logits.isfinite().all():
            raise SettingError(
                f"`logits` must be one finite row for each of the {len(self.y)} labels; got "
                f"{len(self.logits)} rows, {int((~self.logits.isfinite()).sum())} values not finite."
            )

    @cached_property
    def losses(self) -> Tensor:
        """Loss of each sample, shape ``(n,)``."""
        return self.loss.value(self.logits, self.y)

    @cached_property
    def slopes(self) -> Tensor:
        """Derivative of each sample's loss along the scale of the logits, shape ``(n,)``."""
        return self.loss.slope(self.logits, self.y)


def reference_logits(
    network: Network,
    samples: Batch,
    loss: Loss,
    plan: Plan,
    batch_size: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Logits of plain training on the pooled samples, at the step that generalises best.

    A reference that has learnt the training samples by heart makes no mistakes there, and mistakes are
    what environments are inferred from. So a fifth of the samples is held out, and the logits of the step
    with the least risk on that fifth are kept. Neither environments nor spurious attribute are looked at.

    Args:
        network: the network to train, dense, from its module's own weights.
        samples: all training samples; their environments are ignored.
        loss: the loss per sample.
        plan: at most how many steps, and how the optimiser goes; its penalty is left out, and its
            learning rate stays constant.
        batch_size: samples per step, or None for full batches.
        seed: seed of the samples held out, the order of batches and dropout.

    Returns:
        Logits of all samples, ``(n,)`` or ``(n, k)``.

    Raises:
        NonFiniteError: if the risk becomes NaN or infinite.
        SettingError: if there are fewer than two samples.
    """
    n = len(samples)
    if n < 2:
        raise SettingError(f"environments cannot be inferred from {n} training sample; give more.")
    order = torch.randperm(n, generator=generator(seed, "held out")).to(samples.y.device)
    held, seen = order[: max(1, n // 5)], order[max(1, n // 5) :]
    pooled = replace(samples, env=torch.zeros_like(samples.env)).take(seen)
    batches = Batches(pooled, 1, batch_size and min(batch_size, len(pooled)), seed)
    sparsifier = Dense(network.layout.size)
    plan = replace(plan, lr_schedule="constant", penalty_weight=0.0)
    state = start(network, sparsifier, plan, seed)
    least, best, kept = math.inf, 0, torch.empty(0)
    for step in [*range(EVERY, plan.steps, EVERY), plan.steps]:
        train(network, batches, loss, no_penalty, sparsifier, replace(plan, steps=step), state, seed)
        logits = predict(network, state, state.weights.detach(), samples.x).to(samples.y.device)
        risk = float(loss.value(logits[held], samples.y[held]).mean())
        if risk < least:
            least, best, kept = risk, step, logits
        elif step - best >= PATIENCE:
            break
    if len(kept) < n:
        raise NonFiniteError("the model to infer environments from has no finite risk. Lower `lr`.")
    return kept
