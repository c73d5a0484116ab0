"""Data in environments, and batches that hold every environment. The only batching code there is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.randomness import generator


@dataclass(frozen=True)
class Batch:
    """Samples of one training step.

    Attributes:
        x: ``(n, ...)`` inputs, float32.
        y: ``(n,)`` labels (integers) or targets (float32).
        env: ``(n,)`` environment index, int64.
        weight: ``(n,)`` non-negative sample weights, or None.
    """

    x: Tensor
    y: Tensor
    env: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Batch(self.x.to(device), self.y.to(device), self.env.to(device), weight)

    def take(self, index: Tensor) -> Batch:
        """The samples at ``index``, in that order."""
        weight = None if self.weight is None else self.weight[index]
        return Batch(self.x[index], self.y[index], self.env[index], weight)


@dataclass(frozen=True)
class Split:
    """One part of a data set (train, validation or test): samples, environments, hidden attribute.

    Attributes:
        samples: all samples of the part.
        names: name of each environment; ``samples.env`` indexes it.
        spurious: ``(n,)`` value of the spurious attribute, for evaluation only, or None if unknown.
        auxiliary: ``(n,)`` variables known beside the inputs, by name, from which environments may be
            inferred (`sparseirm.inference.ZIN`); nothing else reads them.
    """

    samples: Batch
    names: tuple[str, ...]
    spurious: Tensor | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)

    @property
    def counts(self) -> list[int]:
        """Number of samples of each environment."""
        return torch.bincount(self.samples.env, minlength=len(self.names)).tolist()

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> Split:
        """The same part on another device."""
        spurious = None if self.spurious is None else self.spurious.to(device)
        auxiliary = {name: values.to(device) for name, values in self.auxiliary.items()}
        return Split(self.samples.to(device), self.names, spurious, auxiliary)


@dataclass(frozen=True)
class DataSet:
    """A learning problem in environments.

    Training sees ``train`` only. ``val`` holds fresh samples of the TRAINING environments, for rules
    that select; ``test`` holds other environments and is read by evaluation only, never to choose.

    Attributes:
        name: name in recipes and results.
        train: samples of the training environments.
        val: held-out samples of the training environments, or None.
        test: samples of the test environments, or None.
        loss: name of the loss, a key of `sparseirm.losses.LOSSES`.
        n_outputs: number of logits per sample (1 for two classes and for regression).
        spurious_name: what the spurious attribute is, in words.
        label_names: each label in words, or empty.
        spurious_values: each value of the spurious attribute in words, or empty.
        source_note: what one should know about the files behind the data, for results; or None.

    Raises:
        SettingError: if a training environment has no samples.
    """

    name: str
    train: Split
    val: Split | None
    test: Split | None
    loss: str
    n_outputs: int
    spurious_name: str | None = None
    label_names: tuple[str, ...] = ()
    spurious_values: tuple[str, ...] = ()
    source_note: str | None = None

    def __post_init__(self) -> None:
        for env, count in zip(self.train.names, self.train.counts, strict=True):
            if count == 0:
                raise SettingError(
                    f"training environment {env!r} of {self.name!r} has no samples; every environment "
                    "needs at least one. Remove it or give it data."
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The parts that exist, by name: ``train``, ``val``, ``test``."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def to(self, device: torch.device) -> DataSet:
        """The same data set on another device."""
        moved: dict[str, Any] = {name: part.to(device) for name, part in self.splits.items()}
        return replace(self, **moved)


def steps_per_epoch(n: int, batch_size: int | None) -> int:
    """Number of steps that go through ``n`` samples once; the last one is counted whole.

    >>> steps_per_epoch(10_000, 1024), steps_per_epoch(10_000, None)
    (10, 1)
    """
    return 1 if batch_size is None else -(-n // batch_size)


def without_environment(data: DataSet, left_out: int) -> DataSet:
    """One round of leave-one-environment-out: an environment that is not trained on is what validates.

    Args:
        data: a data set with three or more training environments.
        left_out: the environment, counted from 0.

    Returns:
        The other environments in ``train``, the training samples of this one in ``val``, the same ``test``.

    Raises:
        SettingError: if there are fewer than three, since one alone has nothing to be invariant across, or
            there is no such environment.
    """
    names = data.train.names
    if len(names) < 3:
        raise SettingError(
            f"`leave_out` needs three or more training environments, and {data.name!r} has {len(names)}: "
            "without one of two, a single one is left, which says nothing about what differs between them."
        )
    if not 0 <= left_out < len(names):
        raise SettingError(
            f"`leave_out` must be an environment of {data.name!r}, 0 to {len(names) - 1}; got {left_out}."
        )
    here = data.train.samples.env == left_out
    train, val = _part(data.train, ~here), _part(data.train, here)
    return replace(data, train=train, val=val)


def _part(split: Split, members: Tensor) -> Split:
    """Some samples of a split, without the environments that have none among them."""
    index = members.nonzero()[:, 0]
    samples = split.samples.take(index)
    present = torch.bincount(samples.env, minlength=len(split.names)) > 0
    return Split(
        replace(samples, env=(present.cumsum(0) - 1)[samples.env]),
        tuple(name for name, there in zip(split.names, present.tolist(), strict=True) if there),
        None if split.spurious is None else split.spurious[index],
        {name: values[index] for name, values in split.auxiliary.items()},
    )


@dataclass(frozen=True)
class Batches:
    """The batch of every step, as a function of seed and step: nothing to save, nothing to restore.

    With ``batch_size`` None every step sees all samples. Otherwise each batch holds samples of every
    environment, in proportion to its size but at least one each; an epoch goes through each
    environment in a fresh random order, and a smaller one starts over rather than run dry.

    Attributes:
        samples: the training samples.
        n_envs: number of environments.
        batch_size: samples per step, or None for full batches.
        seed: seed of the order.

    Raises:
        SettingError: if the batch is too small to hold every environment, or larger than the data.

    Example:
        >>> x, env = torch.zeros(6, 1), torch.tensor([0, 0, 0, 0, 1, 1])
        >>> batches = Batches(Batch(x, env, env), n_envs=2, batch_size=3, seed=0)
        >>> batches.at(5).env.tolist(), batches.per_epoch
        ([0, 0, 1], 2)
    """

    samples: Batch
    n_envs: int
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        size, n = self.batch_size, len(self.samples)
        if size is not None and not self.n_envs <= size <= n:
            raise SettingError(
                f"`batch_size` must lie between the number of environments ({self.n_envs}) and the number "
                f"of training samples ({n}), so that a batch can hold every environment; got {size}. "
                "Leave it out for the default."
            )

    @property
    def per_epoch(self) -> int:
        """Number of steps that go through the data once."""
        return steps_per_epoch(len(self.samples), self.batch_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs of one batch."""
        return self.samples.x[:1].nbytes * (self.batch_size or len(self.samples))

    def shares(self) -> list[int]:
        """How many samples of each environment a batch holds: proportional, at least one each."""
        counts = torch.bincount(self.samples.env, minlength=self.n_envs).tolist()
        size = self.batch_size or len(self.samples)
        exact = [size * count / len(self.samples) for count in counts]
        shares = [max(1, int(part)) for part in exact]
        while missing := size - sum(shares):
            change = 1 if missing > 0 else -1
            able = [e for e in range(self.n_envs) if shares[e] + change > 0]
            shares[max(able, key=lambda e: change * (exact[e] - shares[e]))] += change
        return shares

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        if self.batch_size is None:
            return self.samples
        picked = []
        for env, share in enumerate(self._shares):
            first = step * share
            while share > 0:
                lap, start = divmod(first, len(self._members[env]))
                piece = self._lap(env, lap)[start : start + share]
                picked.append(piece)
                first, share = first + len(piece), share - len(piece)
        return self.samples.take(torch.cat(picked))

    @cached_property
    def _shares(self) -> list[int]:
        return self.shares()

    @cached_property
    def _members(self) -> list[Tensor]:
        return [(self.samples.env == env).nonzero()[:, 0] for env in range(self.n_envs)]

    @cached_property
    def _last_laps(self) -> dict[int, tuple[int, Tensor]]:
        return {}

    def _lap(self, env: int, lap: int) -> Tensor:
        """The samples of an environment in the order of one lap; the last one asked for is kept."""
        known = self._last_laps.get(env)
        if known is None or known[0] != lap:
            members, noise = self._members[env], generator(self.seed, "batches", env, lap)
            order = torch.randperm(len(members), generator=noise).to(members.device)
            known = self._last_laps[env] = lap, members[order]
        return known[1]
