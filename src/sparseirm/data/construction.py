"""What all data sets with a constructed spurious attribute share.

1. The label follows from the image, and is moved to another class with probability ``label_noise``;
2. the spurious attribute is the NOISY label, moved to another value with probability ``1 - correlation``;
3. the image is shown with that attribute: painted in a colour, beside another image, on a background.

So the best predictor that ignores the attribute is right with probability ``1 - label_noise``, and one that
reads nothing else with probability ``correlation``: better in training, worse in the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from sparseirm.core import SettingError
from sparseirm.data.environments import Batch, DataSet, Split
from sparseirm.randomness import generator

CHANNELS = ("red", "green", "blue")
"""Names of the channels of ``x``."""

Render = Callable[[str, Tensor, Tensor], Tensor]
"""``(part, members, spurious) -> x``: images ``members`` of the pool of ``part``, shown with an attribute.

``members`` and ``spurious`` are ``(n,)`` int64, ``x`` is ``(n, channels, height, width)`` float32 in [0, 1].
"""


@dataclass(frozen=True)
class Construction:
    """The numbers such a data set is drawn with.

    Attributes:
        n_train: training samples of all environments together; None for all there are.
        correlations: probability that the attribute agrees with the noisy label, in each training
            environment (two or more) and, last, in the test environment.
        label_noise: probability that a label is wrong, in every environment.
        seed: decides which images are used, their noise and their attributes.
        gray: the oracle's variant: no image shows the attribute.

    Raises:
        SettingError: if one of them is out of its range.
    """

    n_train: int | None
    correlations: tuple[float, ...]
    label_noise: float
    seed: int = 0
    gray: bool = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.correlations, Sequence)
            and len(self.correlations) >= 3
            and all(is_probability(correlation) for correlation in self.correlations),
            "`correlations` must be three or more numbers in [0, 1], the probability that spurious attribute "
            "and label agree in each training environment (at least two) and, last, in the test environment",
            self.correlations,
            "For example (0.9, 0.8, 0.1).",
        )
        require(
            is_probability(self.label_noise),
            "`label_noise` must lie in [0, 1], the probability that a label is wrong",
            self.label_noise,
            "For 25 per cent pass `label_noise=0.25`, for clean labels 0.",
        )
        require(type(self.seed) is int, "`seed` must be an integer", self.seed, "For example `seed=0`.")
        require(
            isinstance(self.gray, bool),
            "`gray` must be True (images without the spurious attribute, for the oracle) or False",
            self.gray,
            "Leave it out for images with it.",
        )


def construction(usual: Mapping[str, Any], **given: Any) -> Construction:
    """The construction with a data set's usual numbers, where none, or None, is given.

    >>> construction({"n_train": 9, "label_noise": 0.1}, n_train=None, correlations=(1, 1, 0), seed=2).n_train
    9
    """
    return Construction(**{**usual, **{name: value for name, value in given.items() if value is not None}})


def constructed(
    how: Construction,
    labels: Mapping[str, Tensor],
    render: Render,
    *,
    source: str,
    n_values: int,
    train_per_val: int,
    n_test: int | None = None,
    **described: Any,
) -> DataSet:
    """Draw a data set.

    Args:
        how: sizes, probabilities and seed.
        labels: for each of the pools ``train``, ``val`` and ``test``, ``(n,)`` noise-free labels, int64.
        render: shows images of a pool with given values of the attribute.
        source: what the pools hold, for messages.
        n_values: number of labels, and of values of the attribute.
        train_per_val: training samples for each validation sample, as far as the pool reaches.
        n_test: test samples, as far as the pool reaches; None for the whole pool.
        **described: ``name`` and the descriptions of a `DataSet`.

    Returns:
        The data set: two classes with the loss ``binary`` and one logit, more with ``multiclass``. A smaller
        ``n_train`` gives the beginning of a larger one. Its auxiliary variables are ``time`` in [0, 1), made
        up, as if the environments had been observed one after the other, and the mean of each channel.

    Raises:
        SettingError: if ``n_train`` is not between the number of environments and the size of the pool, or
            a pool has no image for some environment.
    """
    n_envs, available = len(how.correlations) - 1, len(labels["train"])
    for part, words, least in (
        ("train", "training", n_envs),
        ("val", "validation", n_envs),
        ("test", "test", 1),
    ):
        require(
            len(labels[part]) >= least,
            f"{source!r} must have at least {least} images for the {words}",
            len(labels[part]),
            "It is too small a collection; add images.",
        )
    n_train = available if how.n_train is None else how.n_train
    require(
        type(n_train) is int and n_train >= n_envs,
        f"`n_train` must be an integer of at least {n_envs}, one sample for each training environment",
        n_train,
        "Leave it out for the default.",
    )
    require(
        n_train <= available,
        f"{source!r} has {available} training images, which `n_train`, given or by default, must not exceed",
        n_train,
        f"Pass at most {available}: on the command line --n-train {available}.",
    )
    training = _environments("train", how.correlations[:-1])
    testing = _environments("test", how.correlations[-1:])

    def split(part: str, environments: Mapping[str, float], n: int | None) -> Split:
        noise = partial(generator, how.seed, part)
        order, y, env, spurious = _drawn(labels[part], n_values, environments, how.label_noise, noise)
        x, luck = render(part, order[:n], spurious[:n]), torch.rand(len(order), generator=noise("time"))
        beside = {"time": (env[:n] + luck[:n]) / len(environments), **_channel_means(x)}
        return Split(Batch(x, y[:n], env[:n]), tuple(environments), spurious[:n], beside)

    return DataSet(
        train=split("train", training, n_train),
        val=split("val", training, max(n_envs, n_train // train_per_val)),
        test=split("test", testing, n_test),
        loss="binary" if n_values == 2 else "multiclass",
        n_outputs=1 if n_values == 2 else n_values,
        **described,
    )


def _channel_means(x: Tensor) -> dict[str, Tensor]:
    """Mean pixel of each colour channel, ``(n,)``, by name."""
    return {f"mean_{name}": x[:, i].mean((1, 2)) for i, name in enumerate(CHANNELS[: x.shape[1]])}


def _drawn(
    labels: Tensor,
    n_values: int,
    environments: Mapping[str, float],
    label_noise: float,
    noise: Callable[[str], Generator],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Order, noisy labels, environments and attributes of a shuffled pool, going round the environments.

    Everything is drawn for the whole pool, so that no sample depends on how many there are.
    """
    order = torch.randperm(len(labels), generator=noise("order"))
    env = torch.arange(len(order)) % len(environments)
    disagreement = 1 - torch.tensor(list(environments.values()), dtype=torch.float64)
    y = _moved(labels[order], n_values, label_noise, noise("label noise"))
    spurious = _moved(y, n_values, disagreement[env], noise("colour"))  # the name of the first attribute
    return order, y, env, spurious


def _moved(values: Tensor, k: int, chance: float | Tensor, noise: Generator) -> Tensor:
    """Values in ``0 .. k - 1``, each replaced with probability ``chance`` by one of the others at random."""
    hit = torch.rand(values.shape, dtype=torch.float64, generator=noise) < chance
    away = torch.randint(1, k, values.shape, generator=noise)
    return torch.where(hit, (values + away) % k, values)


def _environments(part: str, correlations: Sequence[float]) -> dict[str, float]:
    """Correlation by environment name, numbered where two names would be the same.

    >>> _environments("train", (0.9, 0.8, 0.9))
    {'train 0.9 (1)': 0.9, 'train 0.8': 0.8, 'train 0.9 (2)': 0.9}
    """
    names = [f"{part} {correlation:g}" for correlation in correlations]
    numbered = [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
    return dict(zip(numbered, correlations, strict=True))


def is_probability(value: object) -> bool:
    """Whether a value is a number in [0, 1].

    >>> is_probability(0.5), is_probability("0.5"), is_probability(float("nan"))
    (True, False, False)
    """
    return isinstance(value, int | float) and 0 <= value <= 1


def require(holds: bool, rule: str, value: object, remedy: str) -> None:
    """Raise a `SettingError` of rule, value and remedy unless the rule holds.

    >>> require(False, "`n` must be positive", 0, "Leave it out.")
    Traceback (most recent call last):
    ...
    sparseirm.core.SettingError: `n` must be positive; got 0. Leave it out.
    """
    if not holds:
        raise SettingError(f"{rule}; got {value!r}. {remedy}")
