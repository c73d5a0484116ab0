"""A mask put into a module's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseirm.core import SettingError


def masked(module: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with the weights outside a mask set to zero.

    Args:
        module: any module.
        mask: bool tensors by parameter name, True for weights that are kept; a parameter without one stays.

    Returns:
        The copy, in evaluation mode.

    Raises:
        SettingError: if a name is unknown, or a mask is not bool or has another shape.

    Example:
        >>> masked(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])}).weight.count_nonzero()
        tensor(1)
    """
    result = copy.deepcopy(module).eval()
    tensors = result.state_dict()
    check_mask(mask, tensors)
    for name, keep in mask.items():
        tensors[name][~keep] = 0
    return result


def check_mask(mask: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a mask that does not fit.

    Args:
        mask: bool tensors by name.
        tensors: what they mask, by name.

    Raises:
        SettingError: if a name is unknown, or a mask is not bool or has another shape.
    """
    for name, keep in mask.items():
        shape = tuple(tensors[name].shape) if name in tensors else "missing"
        if shape != tuple(keep.shape) or keep.dtype != torch.bool:
            raise SettingError(
                f"`mask` must hold bool tensors in the shapes of the module's own; got {keep.dtype} "
                f"{tuple(keep.shape)} for {name!r}, which is {shape}."
            )
