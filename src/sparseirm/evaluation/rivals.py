"""Is the invariant mask the strict minimiser? A search among all small masks, Theorem 1 by computation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.data.environments import Batch
from sparseirm.evaluation.theory import Moments, moments
from sparseirm.randomness import generator

BLOCK = 64
"""Columns handled at a time: what is between is small enough for the cache."""

LARGEST_SEARCH = 20_000_000
"""Masks up to which `search` looks at every one."""


@dataclass(frozen=True)
class Search:
    """What a search for masks that are as good as the invariant one has found.

    Attributes:
        breaks_at: smallest number of leading columns among which such a mask exists, or None if there is
            none: with fewer columns the invariant mask is the strict minimiser.
        exhaustive: whether every mask was considered. If not, the true ``breaks_at`` may be smaller.
        masks: number of masks considered, if none is found.
    """

    breaks_at: int | None
    exhaustive: bool
    masks: int


def search(
    samples: Batch, budget: int, penalty_weight: float, *, most: int = LARGEST_SEARCH, seed: int = 0
) -> Search:
    """Look for a mask of at most ``budget`` features that is no worse than the first ``budget`` columns.

    Theorem 1 says there is none, with high probability: equation 9 with ``K = d_inv``. The masks are the
    empty one, the single features, and every smaller mask completed by every pair of later columns. That
    last step is the closed form of two-feature least squares, for all pairs at once; a pair is looked at
    in the environments only if its risk alone, which its loss cannot fall below, does not rule it out.

    Args:
        samples: ``x`` ``(n, d)`` whose first ``budget`` columns are the invariant features.
        budget: K, 1 or more.
        penalty_weight: lambda.
        most: number of masks up to which the search is exhaustive. Beyond, only those are considered that
            complete a subset of the invariant features, or one of ``most / d**2`` random subsets.
        seed: seed of the random subsets.

    Returns:
        The first column count at which the theorem's statement fails.

    Raises:
        SettingError: if the budget is out of range, or an environment has no more samples than the budget,
            so that several masks fit it exactly.

    Example:
        >>> from sparseirm.data.synthetic import LinearSEM
        >>> samples = LinearSEM(d_inv=2, d_s=4, d_r=4).draw((200, 200), seed=0)
        >>> search(samples, budget=2, penalty_weight=10.0)
        Search(breaks_at=None, exhaustive=True, masks=56)
    """
    d, fewest = samples.x.shape[1], int(torch.bincount(samples.env).min())
    if not 1 <= budget <= d:
        raise SettingError(f"`budget` must lie between 1 and the number of features, {d}; got {budget}.")
    if fewest <= budget:
        raise SettingError(
            f"the search needs more samples in every environment than `budget` = {budget}; got {fewest}."
        )
    whole = moments(samples)
    target = float(whole.losses(torch.arange(budget)[None], penalty_weight)[0])
    hunt = _Hunt(whole.n_envs, budget, target, penalty_weight)
    total = sum(math.comb(d, k) for k in range(budget + 1))
    exhaustive = total <= most
    hunt.few(whole)
    if exhaustive:
        hunt.all_below(whole, (), 0)
    else:
        total = 1 + d
        for prefix in _prefixes(d, budget, most, seed):
            hunt.completed(whole, prefix)
            total += math.comb(d - len(prefix), 2)
    return Search(int(hunt.limit) if hunt.limit <= d else None, exhaustive, total)


def _prefixes(d: int, budget: int, most: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Subsets to complete by pairs: of the invariant features, then random ones."""
    for size in range(budget - 1):
        yield from itertools.combinations(range(budget), size)
    noise = generator(seed, "theory prefixes")
    for _ in range(most // d**2 if budget > 2 else 0):
        yield tuple(sorted(torch.randperm(d, generator=noise)[: budget - 2].tolist()))


@dataclass
class _Hunt:
    """A search in progress.

    Attributes:
        n_envs: number of environments.
        budget: K, also the number of invariant features.
        target: loss of the invariant mask; a rival's is not larger.
        penalty_weight: lambda.
        limit: smallest number of leading columns known to hold a rival, or infinity.
    """

    n_envs: int
    budget: int
    target: float
    penalty_weight: float
    limit: float = field(default=math.inf)

    def note(self, last: int) -> None:
        """A rival was found whose last column is ``last``."""
        self.limit = min(self.limit, max(last + 1, self.budget))

    def few(self, whole: Moments) -> None:
        """The empty mask and the single features."""
        if float(whole.loss_of(whole.power, self.penalty_weight)) <= self.target:
            self.note(0)
        left = whole.power[:, None] - whole.cross.square() / whole.gram.diagonal(dim1=1, dim2=2)
        beaten = whole.loss_of(left, self.penalty_weight) <= self.target
        beaten[0] &= self.budget > 1
        if beaten.any():
            self.note(int(beaten.nonzero()[0, 0]))

    def all_below(self, part: Moments, prefix: tuple[int, ...], first: int) -> None:
        """Every mask that adds two or more of the columns ``first ..`` to ``prefix``."""
        room = self.budget - len(prefix)
        if room < 2:
            return
        columns = torch.arange(first, first + part.cross.shape[1])
        self.pairs(part, prefix, columns)
        for i in range(len(columns) - 2 if room > 2 else 0):
            if first + i + 2 >= self.limit - 1:
                return
            self.all_below(part.without(i, later=i + 1), (*prefix, first + i), first + i + 1)

    def completed(self, whole: Moments, prefix: tuple[int, ...]) -> None:
        """Every mask that adds two columns to ``prefix``."""
        part, columns = whole, torch.arange(whole.cross.shape[1])
        for i in reversed(prefix):
            part = part.without(i)
            keep = torch.arange(len(columns)) != i
            part = Moments(part.gram[:, keep][:, :, keep], part.cross[:, keep], part.power)
            columns = columns[keep]
        self.pairs(part, prefix, columns)

    def pairs(self, part: Moments, prefix: tuple[int, ...], columns: Tensor) -> None:
        """Every two of the ascending ``columns`` added to ``prefix``, earliest last column first.

        With ``c`` and ``r`` the correlations of two features with the target and each other, the pair
        explains ``(c_i**2 + c_j**2 - 2 c_i c_j r) / (1 - r**2)``. Only a pair that explains ``need`` of the
        pooled power has a risk small enough.
        """
        scale = part.gram.diagonal(dim1=1, dim2=2).clamp_min(1e-300).rsqrt()
        c, s = (part.cross * scale)[0], scale[0]
        need = float(part.power[0]) - self.target / self.n_envs
        rounding = 1e-9 * float(part.power[0])
        for at in range(0, len(columns), BLOCK):
            end = min(at + BLOCK, len(columns))
            if max((int(columns[at]), *prefix, self.budget - 1)) + 1 >= self.limit:
                return
            r = part.gram[0, :end, at:end] * s[:end, None] * s[at:end]
            excess = torch.outer(c[:end], c[at:end]).mul_(-2).add_(r, alpha=need).mul_(r)
            excess.add_(c[:end, None].square()).add_(c[at:end].square() - need)
            i, j = (excess >= -rounding).nonzero(as_tuple=True)
            later = i < j + at
            self.compare(part, prefix, columns, scale, i[later], j[later] + at)

    def compare(
        self, part: Moments, prefix: tuple[int, ...], columns: Tensor, scale: Tensor, i: Tensor, j: Tensor
    ) -> None:
        """The whole loss of the pairs ``(i, j)`` added to ``prefix``."""
        r = part.gram[:, i, j] * scale[:, i] * scale[:, j]
        ci, cj = part.cross[:, i] * scale[:, i], part.cross[:, j] * scale[:, j]
        explained = (ci.square() + cj.square() - 2 * ci * cj * r) / (1 - r.square()).clamp_min(1e-300)
        losses = part.loss_of(part.power[:, None] - explained, self.penalty_weight)
        last = columns[j]
        itself = torch.zeros_like(last, dtype=torch.bool)
        if len(prefix) + 2 == self.budget and max(prefix, default=0) < self.budget:
            itself = last < self.budget
        beaten = (losses <= self.target) & ~itself
        if beaten.any():
            self.note(max((int(last[beaten].min()), *prefix)))
