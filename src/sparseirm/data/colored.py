"""Images whose colour agrees with the label more often in training than in the test.

Two colourings, two colours for two classes and ten for ten, of the same construction:

1. the label follows from the image, and is moved to another class with probability ``label_noise``;
2. the colour is the NOISY label, moved to another colour with probability ``1 - correlation``;
3. the image is painted in that colour.

So the best predictor that ignores colour is right with probability ``1 - label_noise``, and one that
reads only colour with probability ``correlation``: better in training, worse in the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from sparseirm.core import SettingError
from sparseirm.data.environments import Batch, DataSet, Split
from sparseirm.data.sources import Images, load_images
from sparseirm.randomness import generator
from sparseirm.registry import one_of

Colour = tuple[float, ...]
"""How strongly an image shows in each channel, in [0, 1]."""


CHANNELS = ("red", "green", "blue")
"""Names of the channels of ``x``."""


@dataclass(frozen=True)
class Colouring:
    """What two coloured data sets differ in, besides their images.

    Attributes:
        name: first part of the data set's name.
        label: ``(n,)`` class of the images ``-> (n,)`` noise-free label in ``0 .. len(palette) - 1``.
        palette: the colour that goes with each label.
        correlations: default probabilities that colour and noisy label agree, test environment last.
        label_noise: default probability of a wrong label.
        loss: name of the loss.
        n_outputs: logits per sample.
    """

    name: str
    label: Callable[[Tensor], Tensor]
    palette: tuple[Colour, ...]
    correlations: tuple[float, ...]
    label_noise: float
    loss: str
    n_outputs: int


TWO_COLOURS = Colouring(
    name="colored",
    label=lambda digit: (digit < 5).long(),
    palette=((1.0, 0.0), (0.0, 1.0)),
    correlations=(0.9, 0.8, 0.1),
    label_noise=0.25,
    loss="binary",
    n_outputs=1,
)
"""Label 1 for the classes 0-4; each colour is one of two channels, the other is zero."""

TEN_COLOURS = Colouring(
    name="full_colored",
    label=lambda digit: digit,
    palette=(
        (1.0, 0.0, 0.0),  # red
        (0.0, 1.0, 0.0),  # green
        (0.0, 0.0, 1.0),  # blue
        (1.0, 1.0, 0.0),  # yellow
        (1.0, 0.0, 1.0),  # magenta
        (0.0, 1.0, 1.0),  # cyan
        (1.0, 1.0, 1.0),  # white
        (1.0, 0.5, 0.0),  # orange
        (0.5, 0.0, 1.0),  # violet
        (0.0, 1.0, 0.5),  # mint
    ),
    correlations=(0.999, 0.7, 0.1),
    label_noise=0.2,
    loss="multiclass",
    n_outputs=10,
)
"""The class is the label; no two of the ten colours differ in brightness only."""

COLOURINGS = {colouring.name: colouring for colouring in (TWO_COLOURS, TEN_COLOURS)}
"""The ways to colour, by name."""


@dataclass(frozen=True)
class Material:
    """Images divided into three pools that share none, the same for every seed.

    Attributes:
        pools: ``data_root ->`` images by part: ``train``, ``val``, ``test``.
        n_train: default number of training samples.
        train_per_val: training samples for each validation sample, as far as the pool reaches.
    """

    pools: Callable[[str | None], dict[str, Images]]
    n_train: int
    train_per_val: int


def _idx_pools(source: str, data_root: str | None) -> dict[str, Images]:
    """Training file: the first 50,000 train, the last 10,000 test. Test file: validation. 14 x 14 pixels."""
    pixels, labels = load_images(source, data_root)
    _require(
        len(labels) == 60_000,
        f"the training file of {source!r} must hold the original 60,000 images, the last 10,000 as test set",
        len(labels),
        "Delete the files to have them downloaded again, or name another `data_root`.",
    )
    fresh_pixels, fresh_labels = load_images(f"{source}_test", data_root)
    return {
        "train": (pixels[:50_000, ::2, ::2], labels[:50_000]),
        "val": (fresh_pixels[:, ::2, ::2], fresh_labels),
        "test": (pixels[50_000:, ::2, ::2], labels[50_000:]),
    }


def _digits_pools(data_root: str | None) -> dict[str, Images]:
    """1,200, 297 and 300 digits of 8 x 8 pixels."""
    return _shuffled(load_images("digits", data_root), 1200, 297)


def _small_pools(data_root: str | None) -> dict[str, Images]:
    """MNIST's test file, which no other training or test split uses: 7,000, 1,000 and 2,000 images."""
    pixels, labels = load_images("mnist_test", data_root)
    return _shuffled((pixels[:, ::2, ::2], labels), 7000, 1000)


def _parity_pools(data_root: str | None) -> dict[str, Images]:
    """Is the digit even? A problem to tune on: none of the last 10,000 images, which test the others.

    The classes 0 and 9 stand for even and odd, so that class < 5 is the label here too.
    """
    parts = _idx_pools("mnist", data_root)
    pixels, labels = parts["train"]
    parts |= {"train": (pixels[:40_000], labels[:40_000]), "test": (pixels[40_000:], labels[40_000:])}
    return {part: (pixels, labels % 2 * 9) for part, (pixels, labels) in parts.items()}


def _shuffled(images: Images, n_train: int, n_val: int) -> dict[str, Images]:
    """Three pools in a fixed random order: the files are sorted by writer."""
    pixels, labels = images
    order = torch.randperm(len(labels), generator=generator(0, "digits pools"))
    parts = {
        "train": order[:n_train],
        "val": order[n_train : n_train + n_val],
        "test": order[n_train + n_val :],
    }
    return {part: (pixels[members], labels[members]) for part, members in parts.items()}


MATERIALS = {
    "mnist_parity": Material(_parity_pools, n_train=20_000, train_per_val=10),
    "mnist_small": Material(_small_pools, n_train=7000, train_per_val=7),
    "mnist": Material(partial(_idx_pools, "mnist"), n_train=20_000, train_per_val=10),
    "fashion_mnist": Material(partial(_idx_pools, "fashion_mnist"), n_train=20_000, train_per_val=10),
    "digits": Material(_digits_pools, n_train=1200, train_per_val=1),
}
"""The images that can be coloured."""


def defaults(colouring: str, source: str) -> dict[str, Any]:
    """What the arguments of a coloured data set are when they are not given.

    >>> defaults("colored", "digits")
    {'n_train': 1200, 'correlations': (0.9, 0.8, 0.1), 'label_noise': 0.25}
    """
    plan = COLOURINGS[colouring]
    return {
        "n_train": MATERIALS[source].n_train,
        "correlations": plan.correlations,
        "label_noise": plan.label_noise,
    }


def colored_mnist(
    n_train: int | None = None,
    correlations: tuple[float, ...] | None = None,
    label_noise: float | None = None,
    seed: int = 0,
    gray: bool = False,
    data_root: str | None = None,
    source: str = "mnist",
) -> DataSet:
    """ColoredMNIST: is the digit below five? Two classes, two colours, the colour misleads in the test.

    Arjovsky et al. 2019 (arXiv:1907.02893), section 5.1, with the sizes and the label (1 for digits 0-4)
    of Zhou et al. 2022, "Sparse Invariant Risk Minimization", and its released code.

    The first 50,000 images of MNIST's training file are shuffled by ``seed``; the first ``n_train`` are
    used, going round the training environments, so that a smaller data set is the beginning of a larger
    one. The test environment is the last 10,000. Validation samples (``n_train / 10``) are fresh images
    of the training environments, from MNIST's test file, and cost no training sample.

    Args:
        n_train: training samples of all environments together, up to 50,000 (digits: 1,200); default
            20,000 (digits: 1,200).
        correlations: probability that colour and noisy label agree, in each training environment (two
            or more) and, last, in the test environment; default (0.9, 0.8, 0.1).
        label_noise: probability that a label is wrong, in every environment; default 0.25.
        seed: decides which images are used, their noise and their colours, whatever torch's own seed.
        gray: the oracle's variant. Every channel holds the plain image, so shape and labels stay and the
            colour is gone; ``spurious`` still says which colour the image would have had.
        data_root: see `sparseirm.data.sources.data_folder`.
        source: ``mnist``, ``fashion_mnist`` (same sizes) or ``digits`` (8 x 8, all of them used: 1,200
            train, at most 297 validation, 300 test; needs no files).

    Returns:
        Samples with ``x`` ``(n, 2, 14, 14)`` in [0, 1] and ``y`` in {0, 1}; ``spurious`` is the index of
        the channel that is not zeroed. The auxiliary variables are ``time`` in [0, 1), made up, as if
        each environment had been collected after the one before; and the mean of each channel,
        ``mean_red`` and ``mean_green``.

    Raises:
        SettingError: if an argument is out of its range or the files are not to be had.

    Example:
        >>> data = colored_mnist(source="digits")
        >>> data.train.names, data.train.counts, data.train.samples.x.shape
        (('train 0.9', 'train 0.8'), [600, 600], torch.Size([1200, 2, 8, 8]))
        >>> agrees = data.test.spurious == data.test.samples.y
        >>> data.test.names, round(agrees.float().mean().item(), 1)
        (('test 0.1',), 0.1)
    """
    return _colored(TWO_COLOURS, source, n_train, correlations, label_noise, seed, gray, data_root)


def full_colored_mnist(
    n_train: int | None = None,
    correlations: tuple[float, ...] | None = None,
    label_noise: float | None = None,
    seed: int = 0,
    gray: bool = False,
    data_root: str | None = None,
    source: str = "mnist",
) -> DataSet:
    """FullColoredMNIST: which digit is it? Ten classes, ten colours, the colour misleads in the test.

    Zhou et al. 2022, "Sparse Invariant Risk Minimization", section 5; the ten colours are ours. A wrong
    label is any of the nine others with equal chance, and so is a colour that does not agree.

    Args:
        n_train: as in `colored_mnist`.
        correlations: as in `colored_mnist`; default (0.999, 0.7, 0.1).
        label_noise: as in `colored_mnist`; default 0.2.
        seed: as in `colored_mnist`.
        gray: as in `colored_mnist`.
        data_root: see `sparseirm.data.sources.data_folder`.
        source: as in `colored_mnist`.

    Returns:
        Samples with ``x`` ``(n, 3, 14, 14)``, red, green and blue in [0, 1], and ``y`` in 0 .. 9;
        ``spurious`` is the index of the colour in ``TEN_COLOURS.palette``. Auxiliary variables as in
        `colored_mnist`, with ``mean_blue``.

    Raises:
        SettingError: if an argument is out of its range or the files are not to be had.

    Example:
        >>> data = full_colored_mnist(source="digits", n_train=300, correlations=(0.9, 0.8, 0.7, 0.1))
        >>> data.train.names, data.train.counts, data.train.samples.x.shape
        (('train 0.9', 'train 0.8', 'train 0.7'), [100, 100, 100], torch.Size([300, 3, 8, 8]))
    """
    return _colored(TEN_COLOURS, source, n_train, correlations, label_noise, seed, gray, data_root)


def _colored(
    colouring: Colouring,
    source: str,
    n_train: int | None,
    correlations: tuple[float, ...] | None,
    label_noise: float | None,
    seed: int,
    gray: bool,
    data_root: str | None,
) -> DataSet:
    """The construction of both data sets: defaults, checks, and three splits."""
    material = MATERIALS[one_of("source of coloured images", source, MATERIALS)]
    n_train = material.n_train if n_train is None else n_train
    correlations = colouring.correlations if correlations is None else correlations
    label_noise = colouring.label_noise if label_noise is None else label_noise
    _check(correlations, label_noise, seed, gray)
    pools = material.pools(data_root)
    n_envs = len(correlations) - 1
    _check_n_train(n_train, n_envs, len(pools["train"][1]), source)

    training, testing = _environments("train", correlations[:-1]), _environments("test", correlations[-1:])
    n_val = max(n_envs, n_train // material.train_per_val)

    def split(part: str, environments: dict[str, float], n: int | None) -> Split:
        return _split(
            colouring, pools[part], environments, n, label_noise, gray, partial(generator, seed, part)
        )

    return DataSet(
        name=f"{colouring.name}_{source.removesuffix('_mnist')}",
        train=split("train", training, n_train),
        val=split("val", training, n_val),
        test=split("test", testing, None),
        loss=colouring.loss,
        n_outputs=colouring.n_outputs,
        spurious_name="colour",
    )


def _split(
    colouring: Colouring,
    pool: Images,
    environments: dict[str, float],
    n: int | None,
    label_noise: float,
    gray: bool,
    noise: Callable[[str], Generator],
) -> Split:
    """The first ``n`` images of a shuffled pool, going round the environments, labelled and painted.

    Everything is drawn for the whole pool, so that no sample depends on how many there are.
    """
    pixels, classes = pool
    k = len(colouring.palette)
    order = torch.randperm(len(classes), generator=noise("order"))
    env = torch.arange(len(order)) % len(environments)
    disagreement = 1 - torch.tensor(list(environments.values()), dtype=torch.float64)
    y = _moved(colouring.label(classes[order]), k, label_noise, noise("label noise"))
    colour = _moved(y, k, disagreement[env], noise("colour"))
    x = _painted(pixels[order[:n]], colouring.palette, colour[:n], gray)
    luck = torch.rand(len(order), generator=noise("time"))
    beside = {"time": (env[:n] + luck[:n]) / len(environments)}
    beside |= {f"mean_{name}": x[:, i].mean((1, 2)) for i, name in enumerate(CHANNELS[: x.shape[1]])}
    return Split(Batch(x, y[:n], env[:n]), tuple(environments), colour[:n], beside)


def _moved(values: Tensor, k: int, chance: float | Tensor, noise: Generator) -> Tensor:
    """Values in ``0 .. k - 1``, each replaced with probability ``chance`` by one of the others at random."""
    hit = torch.rand(values.shape, dtype=torch.float64, generator=noise) < chance
    away = torch.randint(1, k, values.shape, generator=noise)
    return torch.where(hit, (values + away) % k, values)


def _painted(pixels: Tensor, palette: tuple[Colour, ...], colour: Tensor, gray: bool) -> Tensor:
    """``(n, h, w)`` uint8 to ``(n, channels, h, w)`` float32 in [0, 1]; gray is full strength everywhere."""
    strength = torch.tensor(palette)[colour]
    if gray:
        strength = torch.ones_like(strength)
    return strength[:, :, None, None] * (pixels[:, None] / 255)


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


def _check(correlations: tuple[float, ...], label_noise: float, seed: int, gray: bool) -> None:
    _require(
        isinstance(correlations, Sequence)
        and len(correlations) >= 3
        and all(_is_probability(correlation) for correlation in correlations),
        "`correlations` must be three or more numbers in [0, 1], the probability that colour and label agree "
        "in each training environment (at least two) and, last, in the test environment",
        correlations,
        "For example (0.9, 0.8, 0.1).",
    )
    _require(
        _is_probability(label_noise),
        "`label_noise` must lie in [0, 1], the probability that a label is wrong",
        label_noise,
        "For 25 per cent pass `label_noise=0.25`, for clean labels 0.",
    )
    _require(type(seed) is int, "`seed` must be an integer", seed, "For example `seed=0`.")
    _require(
        isinstance(gray, bool),
        "`gray` must be True (images without colour, for the oracle) or False",
        gray,
        "Leave it out for coloured images.",
    )


def _check_n_train(n_train: int, n_envs: int, available: int, source: str) -> None:
    _require(
        type(n_train) is int and n_envs <= n_train <= available,
        f"`n_train` must be an integer from {n_envs} (one sample for each training environment) to "
        f"{available} (the training images of {source!r})",
        n_train,
        "Leave it out for the default.",
    )


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _require(holds: bool, rule: str, value: object, remedy: str) -> None:
    if not holds:
        raise SettingError(f"{rule}; got {value!r}. {remedy}")
