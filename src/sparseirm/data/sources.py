"""Images by name: MNIST and Fashion-MNIST from files or the network, and scikit-learn's digits."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.registry import lookup

DATA_VARIABLE = "SPARSEIRM_DATA"
"""The environment variable that names the folder of data files."""

PATIENCE = 10.0
"""Seconds a server may stay silent before a download is given up."""

_DOWNLOADS = ContextVar("downloads", default=True)

IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
"""The files, unpacked, that MNIST and its relatives consist of."""

Images = tuple[Tensor, Tensor]
"""Pixels ``(n, height, width)`` uint8 in 0 .. 255, and class labels ``(n,)`` int64."""


def data_folder(data_root: str | None = None) -> Path:
    """Where data files are looked for, and downloaded to.

    Args:
        data_root: the folder; None takes it from the environment variable ``SPARSEIRM_DATA``, and if
            that is not set, ``sparseirm/data`` in the user's cache (``$XDG_CACHE_HOME`` or ``~/.cache``).

    Returns:
        The folder, with ``~`` replaced by the user's home; it need not exist.

    Example:
        >>> data_folder("somewhere").as_posix()
        'somewhere'
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(data_root or os.environ.get(DATA_VARIABLE) or f"{cache}/sparseirm/data").expanduser()


def load_images(name: str, data_root: str | None = None) -> Images:
    """All images of a source, in the order of its files.

    Args:
        name: a key of `SOURCES`. ``mnist`` (60,000) and ``mnist_test`` (10,000; LeCun, Cortes, Burges 1998),
            ``fashion_mnist`` and ``fashion_mnist_test`` (as many; Xiao, Rasul, Vollgraf 2017,
            arXiv:1708.07747), all 28 x 28; ``digits`` (1,797 of 8 x 8; `sklearn.datasets.load_digits`).
        data_root: see `data_folder`. The layout below it is torchvision's, ``MNIST/raw/...``; files
            that are missing are downloaded into it. ``digits`` needs no files.

    Returns:
        Pixels ``(n, height, width)``, uint8 in 0 .. 255, and class labels ``(n,)``, int64.

    Raises:
        SettingError: if no source has that name, or its files are missing and cannot be downloaded,
            or they are damaged.

    Example:
        >>> pixels, labels = load_images("digits")
        >>> pixels.shape, pixels.dtype, int(pixels.max()), labels[:5].tolist()
        (torch.Size([1797, 8, 8]), torch.uint8, 255, [0, 1, 2, 3, 4])
    """
    return lookup("source", SOURCES, name)(data_root)


def _digits(data_root: str | None) -> Images:
    from sklearn.datasets import load_digits

    found = load_digits()
    shades = torch.from_numpy(found.images) * (255 / 16)  # stored as 0 .. 16
    return shades.round().to(torch.uint8), torch.from_numpy(found.target).long()


def _idx(collection: str, train: bool, data_root: str | None) -> Images:
    from torchvision import datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file  # the data sets open pickles too

    raw = data_folder(data_root) / collection / "raw"
    if not all((raw / file).is_file() for file in IDX_FILES):
        _download(getattr(datasets, collection), raw)
    images, labels = IDX_FILES[:2] if train else IDX_FILES[2:]
    try:
        pixels, classes = read_image_file(str(raw / images)), read_label_file(str(raw / labels))
        if pixels.shape != (len(classes), 28, 28) or classes.max() > 9:
            raise ValueError(f"{tuple(pixels.shape)} pixels, {len(classes)} labels up to {classes.max()}")
    except Exception as error:  # torchvision's parser fails in many ways on other files
        raise SettingError(
            f"the {collection} files in {raw} cannot be read ({type(error).__name__}: {error}). They may be "
            "damaged: delete them to have them downloaded again, or replace them."
        ) from error
    return pixels, classes


def _download(reader: Callable[..., object], raw: Path) -> None:
    """Fetches the files of a torchvision data set into ``raw``, each of them whole or not at all.

    They go to a scratch folder first: a half-unpacked file in place would look complete to another run.
    """
    collection = raw.parent.name
    try:
        with impatient():
            raw.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=raw) as scratch:
                reader(scratch, download=True)
                for file in IDX_FILES:
                    os.replace(Path(scratch, collection, "raw", file), raw / file)
    except (OSError, RuntimeError) as error:
        raise SettingError(
            f"{collection} is missing: looked for {', '.join(IDX_FILES)} in {raw}, and the download failed "
            f"({type(error).__name__}: {str(error).strip()}). Either name the folder that holds "
            f"{collection}/raw with `data_root` (on the command line --data-root) or the environment "
            f"variable {DATA_VARIABLE}, or run once with network access and a writable folder to "
            "download it. The data sets named ..._digits need no files."
        ) from error


@contextmanager
def impatient() -> Iterator[None]:
    """Gives up on silent servers: torchvision's download sets no time limit of its own.

    Yields:
        None: while downloads are to be made.

    Raises:
        OSError: at once, within `no_downloads`.
    """
    if not _DOWNLOADS.get():
        raise OSError("not tried: a dry run downloads nothing")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Data sets whose files would have to be downloaded are refused, and nothing is written."""
    token = _DOWNLOADS.set(False)
    try:
        yield
    finally:
        _DOWNLOADS.reset(token)


SOURCES: dict[str, Callable[[str | None], Images]] = {
    "mnist": partial(_idx, "MNIST", True),
    "mnist_test": partial(_idx, "MNIST", False),
    "fashion_mnist": partial(_idx, "FashionMNIST", True),
    "fashion_mnist_test": partial(_idx, "FashionMNIST", False),
    "digits": _digits,
}
"""Name to loader ``(data_root) -> Images``; packages add theirs as entry points ``sparseirm.source``."""
