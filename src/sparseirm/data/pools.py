"""The images of each source in three pools that share none, the same for every seed: train, val, test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from sparseirm.data import cifar
from sparseirm.data.construction import require
from sparseirm.data.sources import Images, load_images
from sparseirm.randomness import generator
from sparseirm.registry import one_of

Pools = dict[str, Images]
"""Images by part: ``train``, ``val``, ``test``."""

DIGITS = tuple("0123456789")
GARMENTS = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CLASSES = {
    **dict.fromkeys(("mnist", "mnist_small", "digits"), DIGITS),
    "fashion_mnist": GARMENTS,
    "cifar10": cifar.CLASSES,
}
"""Names of the classes of each source, in the order of their numbers."""


def pools(source: str, data_root: str | None = None) -> Pools:
    """All images of a source, divided.

    Args:
        source: a key of `POOLS`. ``mnist`` and ``fashion_mnist``: the first 50,000 images of the training
            file train, its last 10,000 test, and the test file validates. ``mnist_small``: the test file
            alone, 7,000, 1,000 and 2,000. ``digits``: 1,200, 297 and 300. ``cifar10``: the training file
            trains; every other image of the test file validates, the rest test.
        data_root: see `sparseirm.data.sources.data_folder`.

    Returns:
        Images by part.

    Raises:
        SettingError: if no source has that name, or its files are not to be had.

    Example:
        >>> [len(labels) for _, labels in pools("digits").values()]
        [1200, 297, 300]
    """
    return POOLS[one_of("source of images", source, POOLS)](data_root)


def pools_of(source: str, classes: Sequence[str], data_root: str | None = None) -> Pools:
    """The images of some classes, divided as in `pools`.

    Args:
        source: a key of `POOLS`.
        classes: two or more of the source's classes, by name.
        data_root: see `sparseirm.data.sources.data_folder`.

    Returns:
        Images by part; a label is the position in ``classes``.

    Raises:
        SettingError: if a class is unknown or repeated, or its images are not to be had.

    Example:
        >>> pools_of("digits", ("3", "8"))["test"][1].unique()
        tensor([0, 1])
    """
    known = CLASSES[one_of("source of images", source, POOLS)]
    require(
        len(classes) >= 2 and len(set(classes)) == len(classes),
        f"`classes` of {source!r} must be two or more names, each once",
        tuple(classes),
        f"For example {known[:2]}.",
    )
    numbers = [known.index(one_of(f"class of {source!r}", name, known)) for name in classes]
    loader = partial(_cifar_pools, classes=classes) if source == "cifar10" else POOLS[source]  # not all ten
    found = loader(data_root)
    return {part: _chosen(images, numbers) for part, images in found.items()}


def _chosen(images: Images, numbers: Sequence[int]) -> Images:
    """The images of the classes with these numbers, labelled by their position."""
    pixels, labels = images
    members = torch.isin(labels, torch.tensor(numbers)).nonzero()[:, 0]
    positions = torch.full((max(numbers) + 1,), -1)
    positions[numbers] = torch.arange(len(numbers))
    return pixels[members], positions[labels[members]]


def _idx_pools(source: str, data_root: str | None) -> Pools:
    pixels, labels = load_images(source, data_root)
    require(
        len(labels) == 60_000,
        f"the training file of {source!r} must hold the original 60,000 images, the last 10,000 as test set",
        len(labels),
        "Delete the files to have them downloaded again, or name another `data_root`.",
    )
    return {
        "train": (pixels[:50_000], labels[:50_000]),
        "val": load_images(f"{source}_test", data_root),
        "test": (pixels[50_000:], labels[50_000:]),
    }


def _shuffled_pools(source: str, n_train: int, n_val: int, data_root: str | None) -> Pools:
    """Three pools in a fixed random order: the files are sorted by writer."""
    pixels, labels = load_images(source, data_root)
    order = torch.randperm(len(labels), generator=generator(0, "digits pools"))
    parts = {
        "train": order[:n_train],
        "val": order[n_train : n_train + n_val],
        "test": order[n_train + n_val :],
    }
    return {part: (pixels[members], labels[members]) for part, members in parts.items()}


def _cifar_pools(data_root: str | None, classes: Sequence[str] = cifar.CLASSES) -> Pools:
    pixels, labels = cifar.load("test", data_root, classes)
    return {
        "train": cifar.load("train", data_root, classes),
        "val": (pixels[::2], labels[::2]),
        "test": (pixels[1::2], labels[1::2]),
    }


POOLS: dict[str, Callable[[str | None], Pools]] = {
    "mnist": partial(_idx_pools, "mnist"),
    "fashion_mnist": partial(_idx_pools, "fashion_mnist"),
    "mnist_small": partial(_shuffled_pools, "mnist_test", 7000, 1000),
    "digits": partial(_shuffled_pools, "digits", 1200, 297),
    "cifar10": _cifar_pools,
}
"""Name of a source to ``(data_root) -> Pools``."""
