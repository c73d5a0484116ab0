"""CIFAR-10: the original files through torchvision, or image files in class folders, plain or zipped."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.data.decoding import described, is_image_name, rgb
from sparseirm.data.sources import DATA_VARIABLE, data_folder, impatient
from sparseirm.files import digest

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes in the order of their numbers."""

ORIGINALS = "cifar-10-batches-py"
"""The folder of the original files, as torchvision names it."""

LARGEST = 1 << 20
"""Bytes an image file in a zip may have."""

File = tuple[str, str, bytes]
"""Class, name and content of an image file."""


def load(part: str, data_root: str | None = None, classes: Sequence[str] = CLASSES) -> tuple[Tensor, Tensor]:
    """The images of one part.

    Looked for below the data folder, in this order: ``cifar-10-batches-py``, the original files; then
    ``cifar10/train`` and ``cifar10/test``, class folders of image files; then ``cifar10/train.zip`` and
    ``cifar10/test.zip``, zips of class folders. Otherwise the original files are downloaded.

    Args:
        part: ``train`` (50,000 images) or ``test`` (10,000).
        data_root: see `sparseirm.data.sources.data_folder`.
        classes: the classes to read, by name.

    Returns:
        Pixels ``(n, 3, 32, 32)`` uint8 and numbers of classes ``(n,)`` int64: original files in their own
        order, image files class by class.

    Raises:
        SettingError: if the files are not to be had, or they are damaged.
    """
    numbers = [CLASSES.index(name) for name in classes]
    files = _files(part, data_root, classes)
    if files is None:
        pixels, labels = _originals(part, data_root)
        members = torch.isin(labels, torch.tensor(numbers))
        return pixels[members], labels[members]
    pictures = [np.asarray(rgb(content, f"{name} of {folder}")) for folder, name, content in files]
    for (folder, name, _), picture in zip(files, pictures, strict=True):
        if picture.shape != (32, 32, 3):
            raise SettingError(
                f"{folder}/{name} of CIFAR-10 must have 32 x 32 pixels; got {picture.shape[:2]}. Take it out."
            )
    labels = torch.tensor([CLASSES.index(folder) for folder, _, _ in files])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), labels


def fingerprint(data_root: str | None = None, classes: Sequence[str] = CLASSES) -> str:
    """What the images of some classes are, as a SHA-256: image files by content, original files by MD5.

    Args:
        data_root: see `sparseirm.data.sources.data_folder`.
        classes: the classes, by name.

    Returns:
        The digest in hexadecimal; the same for class folders and for zips of them.

    Raises:
        SettingError: if the files are damaged, or a class is missing.
    """
    seen = []
    for part in ("train", "test"):
        files = _files(part, data_root, classes)
        if files is None:
            from torchvision.datasets import CIFAR10

            seen += [f"{name} {md5}" for name, md5 in CIFAR10.train_list + CIFAR10.test_list]
        else:
            seen += [f"{part} {folder} {digest(content)}" for folder, _, content in files]
    return digest("\n".join(seen).encode())


def note(data_root: str | None = None, classes: Sequence[str] = CLASSES) -> str:
    """Where the pixels come from, in words, for results and tables.

    Args:
        data_root: see `sparseirm.data.sources.data_folder`.
        classes: the classes, by name.

    Returns:
        For example ``CIFAR-10 from JPEG quality 75 files``; every file is looked at.

    Raises:
        SettingError: if the files are damaged, or a class is missing.
    """
    kinds = set()
    for part in ("train", "test"):
        files = _files(part, data_root, classes)
        kinds |= {"original"} if files is None else {described(content) for _, _, content in files}
    return f"CIFAR-10 from {' and '.join(sorted(kinds))} files"


def _files(part: str, data_root: str | None, classes: Sequence[str]) -> list[File] | None:
    """All image files of some classes, in the order of classes and names; None for the original files."""
    root = data_folder(data_root)
    if (root / ORIGINALS).is_dir():
        return None
    return class_files(root / "cifar10" / part, classes, "or remove it to download the original")


def class_files(place: Path, classes: Sequence[str], otherwise: str) -> list[File] | None:
    """The image files of class folders, plain or zipped.

    Args:
        place: the folder that holds CLASS/NAME; or, with ``.zip`` behind its name, a zip of it.
        classes: the classes, by name.
        otherwise: what can be done but completing it, for the message.

    Returns:
        The files in the order of classes and names; None if there is neither folder nor zip.

    Raises:
        SettingError: if there is no image of a class, or the zip cannot be read.
    """
    archive = place.with_name(f"{place.name}.zip")
    if place.is_dir():
        found = [(path.parent.name, path.name, path) for path in place.glob("*/*") if path.is_file()]
        files = [(f, name, path.read_bytes()) for f, name, path in sorted(found) if _wanted(f, name, classes)]
    elif archive.is_file():
        files = _zipped(archive, classes)
    else:
        return None
    missing = set(classes) - {folder for folder, _, _ in files}
    if missing:
        raise SettingError(
            f"{place if place.is_dir() else archive} must hold image files CLASS/NAME of each class; there "
            f"are none of {', '.join(sorted(missing))}. Complete it, {otherwise}."
        )
    return files


def _zipped(archive: Path, classes: Sequence[str]) -> list[File]:
    """Read in memory: nothing is unpacked, so no name in the archive can lead anywhere."""
    try:
        with zipfile.ZipFile(archive) as members:
            names = [tuple(name.split("/")) for name in sorted(members.namelist())]
            wanted = [n for n in names if len(n) == 2 and _wanted(n[0], n[1], classes)]
            for folder, name in wanted:
                if members.getinfo(f"{folder}/{name}").file_size > LARGEST:
                    raise zipfile.BadZipFile(
                        f"{folder}/{name} is too large for an image: {LARGEST} bytes at most"
                    )
            return [(folder, name, members.read(f"{folder}/{name}")) for folder, name in wanted]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SettingError(f"{archive} cannot be read ({error}). Replace it.") from None


def _wanted(folder: str, name: str, classes: Sequence[str]) -> bool:
    return folder in classes and is_image_name(name)


def _originals(part: str, data_root: str | None) -> tuple[Tensor, Tensor]:
    """Torchvision's reading: it compares the MD5 of the files, which are pickled, before it opens them."""
    from torchvision.datasets import CIFAR10

    root = data_folder(data_root)
    if not (root / ORIGINALS).is_dir():
        _download(root)
    try:
        found = CIFAR10(root, train=part == "train")
    except RuntimeError:
        raise SettingError(
            f"the CIFAR-10 files in {root / ORIGINALS} are incomplete or damaged: delete the folder to have "
            "them downloaded again, or replace them."
        ) from None
    return torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets)


def _download(root: Path) -> None:
    """Fetches the original files, whole or not at all."""
    from torchvision.datasets import CIFAR10

    try:
        with impatient():
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root) as scratch:
                CIFAR10(scratch, download=True)
                try:
                    os.rename(Path(scratch, ORIGINALS), root / ORIGINALS)
                except OSError:
                    if not (root / ORIGINALS).is_dir():  # else another process was first
                        raise
    except (OSError, RuntimeError) as error:
        raise SettingError(
            f"CIFAR-10 is missing: looked for {ORIGINALS}, cifar10/train and cifar10/train.zip in {root}, "
            f"and the download failed ({type(error).__name__}: {str(error).strip()}). Either name the folder "
            f"that holds them with `data_root` (on the command line --data-root) or the environment variable "
            f"{DATA_VARIABLE}, or run once with network access and a writable folder. The data sets named "
            "..._digits need no files."
        ) from error
