"""Inputs that need not fit into memory: their numbers lie in a file, and come when a batch takes them."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparseirm.core import SettingError


def mapped(path: Path | str) -> Tensor:
    """The array of a ``.npy`` file as a tensor that is read from disk where and when it is used.

    As ``x`` of a `sparseirm.data.Batch` it is trained on and evaluated like any other, a batch at a time; the
    system keeps as much of it in memory as there is room for. ``safetensors.torch.load_file`` gives such
    tensors of its files, too. What is written to the tensor does not change the file.

    Args:
        path: a file of `numpy.save`, of any size; float32 for inputs, since they are used as they are.

    Returns:
        The tensor on the CPU, in the array's shape and type.

    Raises:
        SettingError: if it is no such file, or holds something that is no numbers.

    Example:
        >>> from sparseirm.data import Batch, Batches, mapped
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
        ...     y = torch.tensor([0, 1, 0, 1, 0, 1])
        ...     batches = Batches(Batch(mapped(f"{folder}/x.npy"), y, y), n_envs=2, batch_size=2)
        ...     batches.at(0).x.shape
        torch.Size([2, 2])
    """
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:
        raise SettingError(f"{path} cannot be mapped ({error}). Write it with numpy.save.") from None


def on_disk(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor of zeros in a temporary file, which is gone with the tensor or its process.

    Args:
        shape: its shape.

    Returns:
        The tensor; what is written to it goes to the file as memory runs short.

    Raises:
        SettingError: if the folder of temporary files (the variable TMPDIR) has no room for it.

    Example:
        >>> float(on_disk((2, 3)).sum())
        0.0
    """
    size = 4 * torch.Size(shape).numel()
    with tempfile.TemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found out now, not while writing
            else:
                file.truncate(size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
        except OSError as error:
            raise SettingError(
                f"{tempfile.gettempdir()} has no room for {size / 1e9:.1f} GB of a temporary file "
                f"({error.strerror}). Make room, set TMPDIR to another folder, or make the data smaller."
            ) from None


def room(n: int, size: int) -> Callable[[tuple[int, ...]], Tensor]:
    """What makes room for images: in half of the machine's memory if they fit, otherwise on disk.

    Args:
        n: number of images.
        size: height and width in pixels; the images have three channels.

    Returns:
        ``shape -> tensor`` of float32, whose numbers are still to be written. It raises a `SettingError` if
        they fit neither here nor there.
    """
    needed, there = image_bytes(n, size), _memory()
    if there is None or needed <= there / 2:
        return _in_memory
    warnings.warn(
        f"{n} images of {size} x {size} pixels need {needed / 1e9:.1f} GB, and this machine has "
        f"{there / 1e9:.1f} GB of memory: they are kept in a temporary file. Train on minibatches "
        "(`batch_size`), or lower `size`",
        stacklevel=4,
    )
    return on_disk


def image_bytes(n: int, size: int) -> int:
    """Bytes of images with three channels in float32.

    >>> image_bytes(2, 10)
    2400
    """
    return n * 3 * size**2 * 4


def holders(n: int, size: int) -> int | None:
    """How many processes can each hold the same images, in half of the machine's memory together.

    Args:
        n: number of images.
        size: height and width in pixels.

    Returns:
        Their number, at least 1; None where the machine does not say how much memory it has.
    """
    there = _memory()
    return None if there is None else max(1, there // 2 // image_bytes(n, size))


def _in_memory(shape: tuple[int, ...]) -> Tensor:
    try:
        return torch.empty(shape)
    except RuntimeError:
        gigabytes = 4e-9 * torch.Size(shape).numel()
        raise SettingError(
            f"{shape[0]} images of {shape[-2]} x {shape[-1]} pixels need {gigabytes:.1f} GB of memory, which "
            "are not to be had. Lower `size`, or take fewer images."
        ) from None


def _memory() -> int | None:
    """Bytes of memory this machine has, or None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
