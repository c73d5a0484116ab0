"""Two images, one above the other: the upper one decides the label, the lower one goes with it too often.

CIFARMNIST and its relatives, by the construction in `construction`: the lower image is of the class that
belongs to the NOISY label with probability ``correlation``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from sparseirm.data import cifar, pools
from sparseirm.data.construction import constructed, construction, require
from sparseirm.data.environments import DataSet
from sparseirm.data.pools import FOLDER, POOLS, pools_of
from sparseirm.files import digest
from sparseirm.randomness import generator

Choice = tuple[str, Sequence[str]]
"""A source of images, and the classes taken from it: the first stands for label 0, and so on."""

USUAL: dict[str, Any] = {"correlations": (0.999, 0.7, 0.1), "label_noise": 0.1}
"""The paper's correlations and label noise for CIFARMNIST."""


@dataclass(frozen=True)
class Pair:
    """A pair of sources with a name.

    Attributes:
        top: the images that decide the label.
        bottom: the images that are the spurious attribute.
        n_train: default number of training samples.
    """

    top: Choice
    bottom: Choice
    n_train: int

    @property
    def cifar_classes(self) -> tuple[str, ...]:
        """The classes of CIFAR-10 among its images."""
        return tuple(
            name for source, names in (self.top, self.bottom) if source == "cifar10" for name in names
        )


CARS_AND_TRUCKS = ("cifar10", ("automobile", "truck"))

PAIRS = {
    "cifar_mnist": Pair(CARS_AND_TRUCKS, ("mnist", ("0", "1")), n_train=10_000),
    "cifar_fashion": Pair(CARS_AND_TRUCKS, ("fashion_mnist", ("dress", "coat")), n_train=10_000),
    "fashion_over_mnist": Pair(("fashion_mnist", ("pullover", "shirt")), ("mnist", ("0", "1")), n_train=8000),
    "digit_pairs": Pair(("digits", ("3", "8")), ("digits", ("0", "1")), n_train=200),
}
"""Pairs by the name of the data set."""


def paired(
    top: Choice,
    bottom: Choice,
    n_train: int | None = None,
    correlations: tuple[float, ...] | None = None,
    label_noise: float | None = None,
    seed: int = 0,
    gray: bool = False,
    data_root: str | None = None,
    name: str | None = None,
) -> DataSet:
    """Any two sources of images combined as in CIFARMNIST.

    Shah et al. 2020 ("The Pitfalls of Simplicity Bias in Neural Networks") put images of two data sets
    together; Zhou et al. 2022, section 5.2, take CIFAR-10 and MNIST, correlations (0.999, 0.7, 0.1) and 10 %
    label noise. The classes, and 10,000 training samples, are those of the released code; which image is
    above is a free choice.

    Training uses the first ``n_train`` images of the upper source's training pool, shuffled by ``seed``,
    going round the training environments; validation and test have pools of their own (`pools`). Each lower
    image comes from the same part of its source, each class shuffled by ``seed`` and gone through in turn.

    Args:
        top: source and classes of the upper images, such as ``("cifar10", ("automobile", "truck"))``; see
            `sparseirm.data.pools.pools_of`.
        bottom: the same for the lower images; as many classes.
        n_train: training samples of all environments together; default all of the upper source's pool.
        correlations: probability that lower image and noisy label agree, in each training environment (two
            or more) and, last, in the test environment; default (0.999, 0.7, 0.1).
        label_noise: probability that a label is wrong, in every environment; default 0.1.
        seed: decides which images are used, their noise and their partners, whatever torch's own seed.
        gray: the oracle's variant: the lower half is black, whatever partner the image would have had.
        data_root: see `sparseirm.data.sources.data_folder`.
        name: name in results; default the names of the two sources.

    Returns:
        Samples with ``x`` ``(n, 3, top height + bottom height, width)``, red, green and blue in [0, 1]; gray
        images have three equal channels, and the smaller of the two is padded with black to the size of the
        larger. ``spurious`` is the position of the lower image's class.

    Raises:
        SettingError: if an argument is out of its range or the files are not to be had.

    Example:
        >>> data = paired(("digits", ("3", "8")), ("digits", ("0", "1")), n_train=100)
        >>> data.name, data.train.counts, data.train.samples.x.shape
        ('digits_digits', [50, 50], torch.Size([100, 3, 16, 8]))
    """
    (top_source, top_classes), (bottom_source, bottom_classes) = top, bottom
    require(
        len(top_classes) == len(bottom_classes),
        "`top` and `bottom` must have as many classes, one for each label",
        (tuple(top_classes), tuple(bottom_classes)),
        "Leave some out.",
    )
    how = construction(
        {**USUAL, "n_train": None},
        n_train=n_train,
        correlations=correlations,
        label_noise=label_noise,
        seed=seed,
        gray=gray,
    )
    upper = pools_of(top_source, top_classes, data_root)
    lower = pools_of(bottom_source, bottom_classes, data_root)
    height, width = (max(upper["train"][0].shape[axis], lower["train"][0].shape[axis]) for axis in (-2, -1))

    def rendered(part: str, members: Tensor, partner_class: Tensor) -> Tensor:
        above = _rgb(upper[part][0][members], height, width)
        if how.gray:
            return torch.cat([above, torch.zeros_like(above)], dim=2)
        partners = _partners(lower[part][1], partner_class, generator(how.seed, part, "partners"))
        return torch.cat([above, _rgb(lower[part][0][partners], height, width)], dim=2)

    used = Pair(top, bottom, 0).cifar_classes
    return constructed(
        how,
        {part: labels for part, (_, labels) in upper.items()},
        rendered,
        source=top_source,
        n_values=len(top_classes),
        train_per_val=10,
        name=name or f"{top_source}_{bottom_source}",
        spurious_name="lower image",
        label_names=tuple(top_classes),
        spurious_values=tuple(bottom_classes),
        source_note=cifar.note(data_root, used) if used else None,
    )


def paired_by_name(name: str, n_train: int | None = None, **arguments: Any) -> DataSet:
    """One of the `PAIRS`; see `paired` for the arguments.

    Args:
        name: a key of `PAIRS`.
        n_train: training samples; default the pair's own number.
        **arguments: those of `paired`, besides ``top`` and ``bottom``.

    Returns:
        The data set.

    Raises:
        SettingError: if an argument is out of its range or the files are not to be had.

    Example:
        >>> len(paired_by_name("digit_pairs").train)
        200
    """
    pair = PAIRS[name]
    n_train = pair.n_train if n_train is None else n_train
    return paired(pair.top, pair.bottom, n_train=n_train, name=name, **arguments)


OPTIONS = {"top": "digits:3,8", "bottom": "digits:0,1"}
"""Options of the data set ``pair``: source and classes of the upper and of the lower images."""


def pair(top: str, bottom: str, **arguments: Any) -> DataSet:
    """Any two sources combined, as the data set ``pair``; see `paired` for the arguments.

    Args:
        top: source and classes of the upper images, such as ``cifar10:automobile,truck``, or
            ``folder:DIR:cat,dog`` for class folders of your own; see `sparseirm.data.pools.pools_of`.
        bottom: the same for the lower images.
        **arguments: those of `paired`, besides ``top`` and ``bottom``.

    Returns:
        The data set.

    Raises:
        SettingError: if an argument is out of its range or the files are not to be had.

    Example:
        >>> pair("digits:3,8", "digits:0,1", n_train=100).name
        'digits_digits'
    """
    return paired(_choice("top", top), _choice("bottom", bottom), **arguments)


def n_classes(top: str) -> int:
    """Number of classes of the data set ``pair``."""
    return len(_choice("top", top)[1])


def pair_fingerprint(top: str, bottom: str) -> Callable[[str | None], str] | None:
    """``(data_root) -> SHA-256`` of the images of ``pair`` that may be others elsewhere, or None without any.

    Those are CIFAR-10's, those of folders and those of other packages.
    """
    choices = (_choice("top", top), _choice("bottom", bottom))
    used = Pair(*choices, 0).cifar_classes
    outside = [choice for choice in choices if choice[0] not in POOLS]
    of_cifar = [partial(cifar.fingerprint, classes=used)] if used else []
    if not outside:
        return of_cifar[0] if used else None

    def whole(data_root: str | None) -> str:
        found = [of(data_root) for of in of_cifar]
        found += [pools.fingerprint(source, classes, data_root) for source, classes in outside]
        return digest("\n".join(found).encode())

    return whole


def _choice(side: str, words: str) -> Choice:
    source, colon, names = words.rpartition(":")  # the source may be folder:DIR
    require(
        bool(colon and names) and f"{source}:" != FOLDER,
        f"`{side}` of data set 'pair' must be a source and its classes, such as 'digits:3,8'",
        words,
        f"Sources are {', '.join(POOLS)}, and folder:DIR.",
    )
    return source, tuple(name.strip() for name in names.split(","))


def fingerprint(name: str, data_root: str | None = None) -> str:
    """What the CIFAR-10 images of a pair are; see `sparseirm.data.cifar.fingerprint`."""
    return cifar.fingerprint(data_root, PAIRS[name].cifar_classes)


def _rgb(pixels: Tensor, height: int, width: int) -> Tensor:
    """``(n, h, w)`` or ``(n, 3, h, w)`` uint8 to ``(n, 3, height, width)`` float32, padded with black."""
    if pixels.ndim == 3:
        pixels = pixels[:, None].expand(-1, 3, -1, -1)
    down, right = height - pixels.shape[-2], width - pixels.shape[-1]
    return pad(pixels / 255, (right // 2, right - right // 2, down // 2, down - down // 2))


def _partners(labels: Tensor, asked: Tensor, noise: Generator) -> Tensor:
    """For each sample an image of the class it asks for: each in turn, in a random order, and again.

    Args:
        labels: ``(m,)`` classes of the images there are.
        asked: ``(n,)`` class each sample asks for.
        noise: source of the order.

    Returns:
        ``(n,)`` indices into ``labels``; the first samples get the same images however many follow.
    """
    order = torch.randperm(len(labels), generator=noise)
    partner = torch.empty_like(asked)
    for value in range(int(labels.max()) + 1):
        members = order[labels[order] == value]
        asking = (asked == value).nonzero()[:, 0]
        partner[asking] = members[torch.arange(len(asking)) % len(members)]
    return partner
