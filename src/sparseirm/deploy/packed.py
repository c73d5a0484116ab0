"""A masked module as a small file: one bit per weight for the mask, and the values that survive."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseirm.core import SettingError, Tensors
from sparseirm.deploy.masks import check_mask
from sparseirm.files import read_tensors, write_tensors
from sparseirm.runs import module_of

FORMAT = "sparseirm bitmap 1"
"""Under ``format`` in the note of a file; the number counts incompatible changes."""

BITS, VALUES = ".bits", ".values"


def save_compact(
    path: Path | str,
    module: nn.Module,
    mask: Mapping[str, Tensor] | None = None,
    note: dict[str, Any] | None = None,
) -> int:
    """Write a masked module without its zeros, as safetensors with a checksum.

    A tensor of ``n`` numbers of which ``k`` are kept takes ``ceil(n / 8)`` bytes for the mask and ``k``
    values: 8 % of its size in float32 at a density of 0.05. A tensor for which that is no gain is written as
    it is.

    Args:
        path: the file; one that exists is replaced, whole or not at all.
        module: the module; what it has of parameters and buffers comes back bit for bit, but -0.0 as 0.0.
        mask: bool tensors by name of what is kept, where kept weights may happen to be zero; by default
            everything that is not zero is kept.
        note: plain data to keep in the file, such as the one of ``model.safetensors``.

    Returns:
        Size of the file in bytes.

    Raises:
        SettingError: if ``mask`` does not fit the module, or a weight outside it is not zero.

    Example:
        >>> import tempfile
        >>> module = nn.Linear(64, 10, bias=False)
        >>> _ = module.weight.data[:, 3:].zero_()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save_compact(f"{folder}/small.safetensors", module)
        ...     again = load_compact(f"{folder}/small.safetensors", nn.Linear(64, 10, bias=False))
        >>> bool((again.weight == module.weight).all()), size < 64 * 10 * 4
        (True, True)
    """
    tensors, shapes = module.state_dict(), {}
    packed: Tensors = {}
    check_mask(mask or {}, tensors)
    for name, tensor in tensors.items():
        keep = (mask or {}).get(name, tensor != 0)
        values = tensor[keep].clone()
        bits = torch.from_numpy(np.packbits(keep.cpu().numpy()))
        if tensor[~keep].any():
            raise SettingError(f"{name!r} is not zero outside its `mask`; use `masked` to make it so.")
        if _bytes(bits) + _bytes(values) < _bytes(tensor):
            shapes[name] = list(tensor.shape)
            packed |= {name + BITS: bits, name + VALUES: values}
        else:
            packed[name] = tensor.clone()
    write_tensors(Path(path), packed, {**(note or {}), "format": FORMAT, "shapes": shapes})
    return Path(path).stat().st_size


def load_compact(path: Path | str, module: nn.Module | None = None) -> nn.Module:
    """The dense module of a file of `save_compact`.

    Args:
        path: the file.
        module: a module of the same shapes, which is not changed; by default the one the file's recipe
            describes.

    Returns:
        The module in evaluation mode, on the CPU.

    Raises:
        DamagedFileError: if the file is damaged.
        SettingError: if it is of another kind, of another module, or without recipe and no ``module`` given.
        OSError: if there is no such file.
    """
    tensors, note = read_compact(path)
    result = module_of(note) if module is None else copy.deepcopy(module).cpu()
    try:
        result.load_state_dict(tensors)
    except RuntimeError as error:
        raise SettingError(f"{path} holds another module: {' '.join(str(error).split())}") from None
    return result.eval()


def read_compact(path: Path | str) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and note of a file of `save_compact`.

    Args:
        path: the file.

    Returns:
        The dense tensors by name, and the note that was saved with them.

    Raises:
        DamagedFileError: if the file is damaged.
        SettingError: if it is of another kind.
        OSError: if there is no such file.
    """
    packed, note = read_tensors(Path(path))
    if note.pop("format", None) != FORMAT:
        raise SettingError(f"{path} is not of the format {FORMAT!r}; write it with `sparseirm export`.")
    tensors: Tensors = {}
    for name, shape in note.pop("shapes").items():
        bits, values = packed.pop(name + BITS).numpy(), packed.pop(name + VALUES)
        dense = values.new_zeros(int(np.prod(shape)))
        dense[torch.from_numpy(np.unpackbits(bits, count=len(dense)).astype(bool))] = values
        tensors[name] = dense.view(shape)
    return tensors | packed, note


def dense_bytes(module: nn.Module) -> int:
    """Bytes of all numbers of a module, zeros included.

    >>> dense_bytes(nn.Linear(3, 2))
    32
    """
    return sum(_bytes(tensor) for tensor in module.state_dict().values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
