"""Images whose colour agrees with the label more often in training than in the test.

Two colourings, two colours for two classes and ten for ten, of the construction in `construction`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparseirm.data.construction import constructed, construction
from sparseirm.data.environments import DataSet
from sparseirm.data.pools import DIGITS, Pools, pools
from sparseirm.registry import one_of

Colour = tuple[float, ...]
"""How strongly an image shows in each channel, in [0, 1]."""


@dataclass(frozen=True)
class Colouring:
    """What two coloured data sets differ in, besides their images.

    Attributes:
        name: first part of the data set's name.
        label: ``(n,)`` class of the images ``-> (n,)`` noise-free label in ``0 .. len(palette) - 1``.
        palette: the colour that goes with each label.
        correlations: default probabilities that colour and noisy label agree, test environment last.
        label_noise: default probability of a wrong label.
        label_names: what each label means, in words.
        colour_names: each colour in words.
    """

    name: str
    label: Callable[[Tensor], Tensor]
    palette: tuple[Colour, ...]
    correlations: tuple[float, ...]
    label_noise: float
    label_names: tuple[str, ...]
    colour_names: tuple[str, ...]


COLOUR_NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan", "white", "orange", "violet", "mint")

TWO_COLOURS = Colouring(
    name="colored",
    label=lambda digit: (digit < 5).long(),
    palette=((1.0, 0.0), (0.0, 1.0)),
    correlations=(0.9, 0.8, 0.1),
    label_noise=0.25,
    label_names=("classes 5-9", "classes 0-4"),
    colour_names=("first channel", "second channel"),
)
"""Label 1 for the classes 0-4; each colour is one of two channels, the other is zero."""

TEN_COLOURS = Colouring(
    name="full_colored",
    label=lambda digit: digit,
    palette=(
        (1.0, 0.0, 0.0),
        (0.0, 1.0, 0.0),
        (0.0, 0.0, 1.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.0, 1.0),
        (0.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        (1.0, 0.5, 0.0),
        (0.5, 0.0, 1.0),
        (0.0, 1.0, 0.5),
    ),
    correlations=(0.999, 0.7, 0.1),
    label_noise=0.2,
    label_names=DIGITS,
    colour_names=COLOUR_NAMES,
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
        label_names: the two labels in words, where they are not those of `TWO_COLOURS`.
    """

    pools: Callable[[str | None], Pools]
    n_train: int
    train_per_val: int
    label_names: tuple[str, ...] = ()


def _every_second_pixel(source: str, data_root: str | None) -> Pools:
    """Images of 28 x 28 pixels as 14 x 14."""
    found = pools(source, data_root)
    return {part: (pixels[:, ::2, ::2], labels) for part, (pixels, labels) in found.items()}


def _parity_pools(data_root: str | None) -> Pools:
    """Is the digit even? A problem to tune on: none of the last 10,000 images, which test the others.

    The classes 0 and 9 stand for even and odd, so that class < 5 is the label here too.
    """
    parts = _every_second_pixel("mnist", data_root)
    pixels, labels = parts["train"]
    parts |= {"train": (pixels[:40_000], labels[:40_000]), "test": (pixels[40_000:], labels[40_000:])}
    return {part: (pixels, labels % 2 * 9) for part, (pixels, labels) in parts.items()}


MATERIALS = {
    "mnist_parity": Material(_parity_pools, 20_000, train_per_val=10, label_names=("odd", "even")),
    "mnist_small": Material(partial(_every_second_pixel, "mnist_small"), n_train=7000, train_per_val=7),
    "mnist": Material(partial(_every_second_pixel, "mnist"), n_train=20_000, train_per_val=10),
    "fashion_mnist": Material(
        partial(_every_second_pixel, "fashion_mnist"), n_train=20_000, train_per_val=10
    ),
    "digits": Material(partial(pools, "digits"), n_train=1200, train_per_val=1),
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
    """The construction of both data sets."""
    material = MATERIALS[one_of("source of coloured images", source, MATERIALS)]
    how = construction(
        defaults(colouring.name, source),
        n_train=n_train,
        correlations=correlations,
        label_noise=label_noise,
        seed=seed,
        gray=gray,
    )
    parts = material.pools(data_root)

    def painted(part: str, members: Tensor, colour: Tensor) -> Tensor:
        return _painted(parts[part][0][members], colouring.palette, colour, how.gray)

    return constructed(
        how,
        {part: colouring.label(classes) for part, (_, classes) in parts.items()},
        painted,
        source=source,
        n_values=len(colouring.palette),
        train_per_val=material.train_per_val,
        name=f"{colouring.name}_{source.removesuffix('_mnist')}",
        spurious_name="colour",
        label_names=material.label_names or colouring.label_names,
        spurious_values=colouring.colour_names,
    )


def _painted(pixels: Tensor, palette: tuple[Colour, ...], colour: Tensor, gray: bool) -> Tensor:
    """``(n, h, w)`` uint8 to ``(n, channels, h, w)`` float32 in [0, 1]; gray is full strength everywhere."""
    strength = torch.tensor(palette)[colour]
    if gray:
        strength = torch.ones_like(strength)
    return strength[:, :, None, None] * (pixels[:, None] / 255)
