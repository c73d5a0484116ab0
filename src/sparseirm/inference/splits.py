"""A training split in inferred environments, and what these are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparseirm.core import Loss, SettingError
from sparseirm.data.environments import Split
from sparseirm.inference.reference import Reference, reference_logits
from sparseirm.models import Network
from sparseirm.training.state import Plan

Inference = Callable[[Reference, int], Tensor]
"""A function of a `Reference` and a seed to the environment of each sample, ``(n,)``; a frozen dataclass."""


def in_inferred_environments(
    split: Split,
    inference: Inference,
    network: Network,
    loss: Loss,
    plan: Plan,
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[Split, list[dict[str, Any]]]:
    """The same samples in environments inferred from all of them together.

    Inputs, labels and auxiliary variables decide; given environments and spurious attribute do not.

    Args:
        split: the training samples.
        inference: how environments are inferred.
        network: the network of the reference, as in `reference_logits`.
        loss: the loss per sample.
        plan: as in `reference_logits`.
        batch_size: as in `reference_logits`.
        seed: seed of all randomness.

    Returns:
        The split with environments ``inferred 0``, ``inferred 1`` ..., and what they are, as of `described`.

    Raises:
        SettingError: if environments cannot be inferred from these samples.
        NonFiniteError: if training the reference diverges.
    """
    if split.samples.weight is not None:
        raise SettingError("environments cannot be inferred from weighted samples; leave `environments` out.")
    logits = reference_logits(network, split.samples, loss, plan, batch_size, seed)
    reference = Reference(logits, split.samples.y, loss, split.auxiliary)
    env = inference(reference, seed)
    names = tuple(f"inferred {e}" for e in range(int(env.max()) + 1))
    samples = replace(split.samples, env=env)
    return replace(split, samples=samples, names=names), described(env, split, reference)


def described(env: Tensor, split: Split, reference: Reference) -> list[dict[str, Any]]:
    """One entry per inferred environment: its size, and how it relates to what inference did not see.

    Args:
        env: ``(n,)``, the inferred environment of each sample.
        split: the samples with their given environments and spurious attribute.
        reference: the model the environments were inferred from.

    Returns:
        For each environment a dictionary of ``size``; ``risk``, the reference's mean loss there;
        ``given``, its number of samples from each given environment; and ``agreement``, the fraction of
        its samples whose spurious attribute equals the label, or None where there is no such attribute.

    Example:
        >>> from sparseirm.data import Batch
        >>> from sparseirm.losses import BINARY
        >>> y, logits = torch.tensor([0, 1, 1]), torch.zeros(3)
        >>> split = Split(Batch(logits, y, torch.tensor([0, 0, 1])), ("a", "b"), torch.tensor([0, 1, 0]))
        >>> described(torch.tensor([0, 0, 1]), split, Reference(logits, y, BINARY))[0]
        {'size': 2, 'risk': 0.6931471824645996, 'given': {'a': 2, 'b': 0}, 'agreement': 1.0}
    """
    samples, spurious = split.samples, split.spurious
    agrees = None
    if spurious is not None and reference.loss.classifies:
        agrees = (spurious.to(samples.y.device) == samples.y).double()
    found = []
    for e in range(int(env.max()) + 1):
        members = env == e
        given = torch.bincount(samples.env[members], minlength=len(split.names)).tolist()
        found.append(
            {
                "size": int(members.sum()),
                "risk": float(reference.losses[members].mean()),
                "given": dict(zip(split.names, given, strict=True)),
                "agreement": None if agrees is None else float(agrees[members].mean()),
            }
        )
    return found
