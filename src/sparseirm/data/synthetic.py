"""The linear structural equation model of section 3.2: regression with known invariant features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.data.environments import Batch, DataSet, Split
from sparseirm.randomness import generator


@dataclass(frozen=True)
class LinearSEM:
    """Targets made from invariant features, spurious features made from targets, and pure noise.

    ``y = gamma . x_inv + eps_inv``, ``x_s = c y 1 + alpha^e * eps_s``, ``x_r = eps_r``: section 3.2 of the
    Sparse IRM paper, with independent Gaussian noise and ``c = 1`` (a test environment may reverse it).
    Columns of ``x`` are ``[x_inv, x_s, x_r]``.

    Attributes:
        d_inv: number of invariant features.
        d_s: number of spurious features.
        d_r: number of random features.
        gamma: weight of each invariant feature, the same in every environment; a shorter tuple is
            repeated over the features.
        alpha: for each training environment, the noise of each spurious feature; a shorter tuple is
            repeated over the features. It must vary over environments (Assumption 4).
        inv_scale: standard deviation of the invariant features.
        noise: standard deviation of ``eps_inv``; its square is the least risk without spurious features.
        spurious_scale: standard deviation of ``eps_s``.
        random_scale: standard deviation of the random features.

    Raises:
        SettingError: if a size, weight or scale is out of its range, or a spurious feature has the same
            noise in all environments.

    Example:
        >>> sem = LinearSEM(d_inv=2, d_s=2, d_r=1)
        >>> samples = sem.draw((3, 5), seed=0)
        >>> samples.x.shape, samples.env.tolist(), sem.invariant.tolist()
        (torch.Size([8, 5]), [0, 0, 0, 1, 1, 1, 1, 1], [True, True, False, False, False])
    """

    d_inv: int = 2
    d_s: int = 8
    d_r: int = 8
    gamma: tuple[float, ...] = (1.0,)
    alpha: tuple[tuple[float, ...], ...] = ((0.5,), (2.0,))
    inv_scale: float = 1.0
    noise: float = 1.0
    spurious_scale: float = 1.0
    random_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("d_inv", 1), ("d_s", 0), ("d_r", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        for name in ("inv_scale", "noise", "spurious_scale", "random_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise SettingError(f"`{name}` must be positive and finite; got {getattr(self, name)}.")
        self._check_gamma()
        self._check_alpha()

    def _check_gamma(self) -> None:
        usable = all(math.isfinite(weight) and weight != 0 for weight in self.gamma)
        if not 1 <= len(self.gamma) <= self.d_inv or not usable:
            raise SettingError(
                f"`gamma` must hold 1 to {self.d_inv} finite weights other than 0 (Assumption 3: a feature "
                f"of weight 0 is not invariant but random); got {self.gamma}."
            )

    def _check_alpha(self) -> None:
        if len(self.alpha) < 2:
            raise SettingError(
                f"`alpha` needs at least two training environments to tell spurious from invariant features; "
                f"got {len(self.alpha)}."
            )
        for values in self.alpha:
            _check_spread("alpha", values, self.d_s)
        table = self._alphas()
        same = [i for i in range(self.d_s) if (table[:, i].square() == table[0, i].square()).all()]
        if same:
            raise SettingError(
                f"`alpha` must vary over environments for every spurious feature (Assumption 4); feature "
                f"{same[0]} has {table[:, same[0]].tolist()}."
            )

    def _alphas(self) -> Tensor:
        return torch.stack([_repeated(values, self.d_s) for values in self.alpha])

    @property
    def d(self) -> int:
        """Number of features, ``d_inv + d_s + d_r``."""
        return self.d_inv + self.d_s + self.d_r

    @property
    def n_envs(self) -> int:
        """Number of training environments."""
        return len(self.alpha)

    @property
    def invariant(self) -> Tensor:
        """Bool ``(d,)``, ``Phi_inv``: the features an invariant predictor uses."""
        return torch.arange(self.d) < self.d_inv

    @property
    def spurious(self) -> Tensor:
        """Bool ``(d,)``, the features made from the target."""
        column = torch.arange(self.d)
        return (column >= self.d_inv) & (column < self.d_inv + self.d_s)

    def draw(
        self,
        sizes: Sequence[int],
        seed: int,
        part: str = "train",
        alpha: tuple[tuple[float, ...], ...] | None = None,
        direction: float = 1.0,
    ) -> Batch:
        """Samples of every environment, a function of the arguments only.

        Args:
            sizes: number of samples of each environment.
            seed: seed of all noise.
            part: independent samples for each name, such as ``train`` and ``val``.
            alpha: noise of the spurious features in each environment, if not the training ones.
            direction: ``c``, how spurious features follow the target; -1 reverses them.

        Returns:
            ``x`` ``(n, d)`` and ``y`` ``(n,)`` in float64, environments one after the other.

        Raises:
            SettingError: if there is not one positive size for each environment.
        """
        alphas = self.alpha if alpha is None else alpha
        if len(sizes) != len(alphas) or min(sizes, default=0) < 1:
            raise SettingError(
                f"`sizes` must hold one positive number of samples for each of the {len(alphas)} "
                f"environments; got {tuple(sizes)}."
            )
        gamma = _repeated(self.gamma, self.d_inv)
        xs, ys = [], []
        for e, (n, values) in enumerate(zip(sizes, alphas, strict=True)):
            noise = generator(seed, "linear sem", part, e)

            def normal(*shape: int, noise: torch.Generator = noise) -> Tensor:
                return torch.randn(shape, generator=noise, dtype=torch.float64)

            inv = self.inv_scale * normal(n, self.d_inv)
            y = inv @ gamma + self.noise * normal(n)
            spread = self.spurious_scale * _repeated(values, self.d_s)
            xs.append(
                torch.cat(
                    [
                        inv,
                        direction * y[:, None] + spread * normal(n, self.d_s),
                        self.random_scale * normal(n, self.d_r),
                    ],
                    dim=1,
                )
            )
            ys.append(y)
        env = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return Batch(torch.cat(xs), torch.cat(ys), env)


def linear_sem(
    sem: LinearSEM | None = None,
    n_train: int = 1000,
    n_test: int = 1000,
    test_alpha: tuple[float, ...] | None = None,
    test_direction: float = -1.0,
    seed: int = 0,
) -> DataSet:
    """Regression on the linear SEM, with the spurious features reversed in the test environment.

    Args:
        sem: the model; `LinearSEM()` by default.
        n_train: samples of EACH training environment; validation has as many again.
        n_test: samples of the test environment.
        test_alpha: noise of the spurious features in the test environment; by default that of the first
            training environment.
        test_direction: how spurious features follow the target there; 1 as in training, -1 reversed.
        seed: seed of all noise.

    Returns:
        Samples with ``x`` ``(n, d)`` and ``y`` ``(n,)``, float32; no split has a spurious attribute,
        because every spurious feature is a number of its own.

    Raises:
        SettingError: if a size is not positive or `test_alpha` does not fit.

    Example:
        >>> data = linear_sem(LinearSEM(d_inv=2, d_s=2, d_r=1), n_train=500)
        >>> data.train.names, data.train.counts, data.test.names, data.loss
        (('train alpha 0.5', 'train alpha 2'), [500, 500], ('test reversed',), 'squared')
        >>> seen, unseen = (s.samples for s in (data.train, data.test))
        >>> [bool((s.x[:, 2] * s.y).mean() > 0) for s in (seen, unseen)]
        [True, False]
    """
    sem = LinearSEM() if sem is None else sem
    if n_train < 1 or n_test < 1:
        raise SettingError(f"`n_train` and `n_test` must be at least 1; got {n_train} and {n_test}.")
    changed = sem.alpha[0] if test_alpha is None else test_alpha
    _check_spread("test_alpha", changed, sem.d_s)
    names = tuple(f"train alpha {','.join(f'{a:g}' for a in values)}" for values in sem.alpha)
    names = names if len(set(names)) == len(names) else tuple(f"train {e}" for e in range(sem.n_envs))
    sizes = [n_train] * sem.n_envs
    test = sem.draw([n_test], seed, "test", (changed,), test_direction)
    where = "test reversed" if test_direction < 0 else "test"
    return DataSet(
        name="linear_sem",
        train=Split(_single(sem.draw(sizes, seed, "train")), names),
        val=Split(_single(sem.draw(sizes, seed, "val")), names),
        test=Split(_single(test), (where,)),
        loss="squared",
        n_outputs=1,
        spurious_name="features made from the target",
    )


def _single(batch: Batch) -> Batch:
    return Batch(batch.x.float(), batch.y.float(), batch.env)


def _repeated(values: tuple[float, ...], length: int) -> Tensor:
    """``values`` over and over, ``(length,)`` float64."""
    laps = -(-length // len(values))
    return torch.tensor(values, dtype=torch.float64).repeat(laps)[:length]


def _check_spread(name: str, values: tuple[float, ...], d_s: int) -> None:
    if not 1 <= len(values) <= max(d_s, 1) or not all(map(math.isfinite, values)):
        raise SettingError(
            f"`{name}` must hold, for each environment, 1 to {max(d_s, 1)} finite numbers, at most one for "
            f"each spurious feature; got {values}."
        )
