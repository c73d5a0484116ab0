"""Two environments in which a reference model's confidence is wrong in opposite ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from sparseirm.core import Loss, SettingError
from sparseirm.inference.labels import harden
from sparseirm.inference.reference import Reference
from sparseirm.randomness import generator


def soft_irmv1(slopes: Tensor, shares: Tensor) -> Tensor:
    """IRMv1's penalty of a fixed model under a soft assignment of samples to environments.

    ``J(q) = 1/E sum_e (1/n sum_i q_ie s_i)**2`` with ``s_i`` the slope of sample i's loss along the scale
    of its logits: the objective of Creager et al. 2021 (arXiv:2010.07249) and its released code. The sums
    are divided by ``n``, not by the environment's own weight ``sum_i q_ie`` as in
    `sparseirm.penalties.irmv1`: with that the maximum would be the one sample of the steepest slope, alone.

    Args:
        slopes: ``(n,)``, as of `sparseirm.core.Loss.slope`.
        shares: ``(n, E)``, how far each sample belongs to each environment; rows add up to 1.

    Returns:
        Shape ``()``. Unit loss**2. Range [0, inf); convex in ``shares``.

    Example:
        >>> slopes, shares = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> soft_irmv1(slopes, shares)
        tensor(0.6250)
    """
    return (slopes @ shares / len(slopes)).square().mean()


@dataclass(frozen=True)
class EIIL:
    """Environment inference for invariant learning: the two environments that violate IRM most.

    Creager, Jacobsen and Zemel 2021 (arXiv:2010.07249): the assignment that maximises `soft_irmv1` of the
    reference, by full-batch Adam on one logit per sample from a normal start. Adam goes about ``lr`` per
    step, so the default is as far as the released code's 10,000 steps at 0.001, in a tenth of the steps.

    The objective is convex in the assignment, so its maximum is hard: the samples of positive slope
    against the others. For two classes these are the reference's mistakes against its hits.

    Attributes:
        steps: number of Adam's steps.
        lr: its learning rate.

    Raises:
        SettingError: if a value is out of its range.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> logits, y = torch.tensor([2.0, 2.0, -2.0, -2.0] * 10), torch.tensor([1, 0, 0, 1] * 10)
        >>> EIIL()(Reference(logits, y, BINARY))[:4]
        tensor([0, 1, 0, 1])
    """

    steps: int = 1000
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0:
            raise SettingError(
                f"`steps` of eiil must be at least 1 and `lr` positive; got {self.steps} and {self.lr}."
            )

    def __call__(self, reference: Reference, seed: int = 0) -> Tensor:
        """Environment of each sample: 0 where the reference does better, 1 where it does worse.

        Args:
            reference: logits of a model that has NOT learnt the samples by heart.
            seed: seed of the start.

        Returns:
            ``(n,)``, int64.

        Raises:
            SettingError: if one of the environments would be empty or nearly so.
        """
        return harden(self.assign(reference.slopes, seed), reference.losses)

    def assign(self, slopes: Tensor, seed: int = 0) -> Tensor:
        """The soft assignment for slopes ``(n,)``: shape ``(n, 2)``, rows add up to 1."""
        first = torch.randn(len(slopes), generator=generator(seed, "eiil"))
        logits = first.to(slopes.device).requires_grad_()
        slopes = slopes.detach().to(logits.dtype)
        optimizer = Adam([logits], lr=self.lr, eps=1e-12)
        for _ in range(self.steps):
            optimizer.zero_grad()
            torch.autograd.backward(-soft_irmv1(slopes, _two(logits)))
            optimizer.step()
        return _two(logits.detach())


def _two(logits: Tensor) -> Tensor:
    share = logits.sigmoid()
    return torch.stack([share, 1 - share], 1)


def infer_eiil(
    logits: Tensor, y: Tensor, loss: Loss, *, steps: int = EIIL.steps, lr: float = EIIL.lr, seed: int = 0
) -> Tensor:
    """Environments by `EIIL` from the logits of any model.

    Args:
        logits: ``(n,)``, or ``(n, k)`` for ``k`` classes, of a model that has NOT learnt the samples by
            heart.
        y: ``(n,)`` labels or targets.
        loss: the loss the model was trained with.
        steps: number of Adam's steps.
        lr: its learning rate.
        seed: seed of the start.

    Returns:
        ``(n,)``, int64: 0 where the model does better, 1 where it does worse.

    Raises:
        SettingError: if a value is out of range or an environment would be empty or nearly so.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> logits, y = torch.tensor([2.0, 2.0, -2.0, -2.0] * 10), torch.tensor([1, 0, 0, 1] * 10)
        >>> infer_eiil(logits, y, BINARY)[:4]
        tensor([0, 1, 0, 1])
    """
    return EIIL(steps, lr)(Reference(logits, y, loss), seed)
