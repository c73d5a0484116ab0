"""The images of each source in three pools that share none, the same for every seed: train, val, test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sparseirm.core import SettingError
from sparseirm.data import cifar
from sparseirm.data.construction import require
from sparseirm.data.decoding import rgb
from sparseirm.data.sources import Images, data_folder, load_images
from sparseirm.files import digest
from sparseirm.randomness import generator, seed_of
from sparseirm.registry import lookup, one_of

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

FOLDER = "folder:"
"""What the name of a source begins with that is a folder of class folders."""


def pools(source: str, data_root: str | None = None) -> Pools:
    """All images of a source, divided.

    Args:
        source: a key of `POOLS`. ``mnist`` and ``fashion_mnist``: the first 50,000 images of the training
            file train, its last 10,000 test, and the test file validates. ``mnist_small``: the test file
            alone, 7,000, 1,000 and 2,000. ``digits``: 1,200, 297 and 300. ``cifar10``: the training file
            trains; every other image of the test file validates, the rest test. Or an entry point in group
            ``sparseirm.source``, a loader ``(data_root) -> Images``: of its images about 70 % train, 10 %
            validate and 20 % test, as their content decides.
        data_root: see `sparseirm.data.sources.data_folder`.

    Returns:
        Images by part.

    Raises:
        SettingError: if no source has that name, or its files are not to be had.

    Example:
        >>> [len(labels) for _, labels in pools("digits").values()]
        [1200, 297, 300]
    """
    loader: Any = lookup("source", POOLS, source)
    return loader(data_root) if source in POOLS else _divided(loader(data_root))


def pools_of(source: str, classes: Sequence[str], data_root: str | None = None) -> Pools:
    """The images of some classes, divided as in `pools`.

    Args:
        source: as in `pools`; or ``folder:DIR``, where ``DIR`` in the data folder, or ``DIR.zip``, holds
            CLASS/IMAGE; all images of one size.
        classes: two or more of the source's classes, by name. Those of an entry point are the loader's
            attribute ``classes``, in the order of their numbers, or else the numbers.
        data_root: see `sparseirm.data.sources.data_folder`.

    Returns:
        Images by part; a label is the position in ``classes``.

    Raises:
        SettingError: if a class is unknown or repeated, or its images are not to be had.

    Example:
        >>> pools_of("digits", ("3", "8"))["test"][1].unique()
        tensor([0, 1])
    """
    require(
        len(classes) >= 2 and len(set(classes)) == len(classes),
        f"`classes` of {source!r} must be two or more names, each once",
        tuple(classes),
        f"For example {CLASSES[source][:2]}." if source in CLASSES else "Name two.",
    )
    if source in CLASSES:
        numbers = _positions(source, classes, CLASSES[source])  # before any file is looked for
        found = _cifar_pools(data_root, classes) if source == "cifar10" else pools(source, data_root)
    elif source.startswith(FOLDER):
        numbers = list(range(len(classes)))
        found = _divided(_of_folder(source.removeprefix(FOLDER), classes, data_root))
    else:
        found = pools(source, data_root)
        numbers = _positions(source, classes, _classes(source, found))
    chosen = {part: _chosen(images, numbers) for part, images in found.items()}
    for part, (_, labels) in chosen.items():
        absent = sorted({*range(len(classes))} - {*labels.tolist()})
        require(
            not absent,
            f"{source!r} must have images of every class for each part; for {part!r} there are none of",
            [classes[number] for number in absent],
            "Add images, or leave the class out.",
        )
    return chosen


def fingerprint(source: str, classes: Sequence[str], data_root: str | None = None) -> str:
    """What the images of some classes are, as a SHA-256 of pixels and labels; see `pools_of`."""
    parts = pools_of(source, classes, data_root).values()
    return digest(b"".join(tensor.numpy().tobytes() for part in parts for tensor in part))


def _positions(source: str, classes: Sequence[str], known: Sequence[str]) -> list[int]:
    return [known.index(one_of(f"class of {source!r}", name, known)) for name in classes]


def _classes(source: str, found: Pools) -> tuple[str, ...]:
    """The names of the classes of an entry point."""
    numbers = range(1 + max(int(labels.max()) for _, labels in found.values() if len(labels)))
    names = getattr(lookup("source", POOLS, source), "classes", numbers)
    return tuple(map(str, names))


def _of_folder(folder: str, classes: Sequence[str], data_root: str | None) -> Images:
    """The images of class folders, plain or zipped, as CIFAR-10 is read."""
    place = data_folder(data_root) / folder
    files = cifar.class_files(place, classes, "or leave the class out")
    if files is None:
        raise SettingError(f"there is neither a folder {place} nor a file {place}.zip. Check the path.")
    pictures = [np.asarray(rgb(content, f"{name} of {kind}")) for kind, name, content in files]
    sizes = {f"{picture.shape[1]} x {picture.shape[0]}" for picture in pictures}
    require(
        len(sizes) == 1, f"images in {place} must all be of one size", sorted(sizes)[:3], "Bring them to one."
    )
    labels = torch.tensor([list(classes).index(kind) for kind, _, _ in files])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), labels


def _divided(images: Images) -> Pools:
    """Three pools that share no image, not even a copy: the content decides."""
    pixels, labels = images
    draws = torch.tensor([seed_of(0, "pool", digest(image.numpy().tobytes())) % 10 for image in pixels])
    members = {"train": draws < 7, "val": draws == 7, "test": draws > 7}
    return {part: (pixels[here], labels[here]) for part, here in members.items()}


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
