"""This process among those that train together, and how tensors go from one to the others.

What all processes compute alike is called replicated. Each way a tensor can go has another of them for its
derivative, so gradients of gradients come out right as well.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from sparseirm.core import SettingError


def torchrun() -> tuple[int, int]:
    """Rank of this process and number of processes, as torchrun or a process group says; else 0 and 1."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if dist.is_available() and dist.is_torchelastic_launched():
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def first_process() -> bool:
    """Whether this process is alone or the first of several: the one that prints and writes."""
    return torchrun()[0] == 0


def check_alone() -> None:
    """Refuse what several processes cannot do together, which is all but a single run.

    Raises:
        SettingError: if torchrun, or a process group, has this process beside others.
    """
    if torchrun()[1] > 1:
        raise SettingError(
            "torchrun is for a single large run (`sparseirm train`). Many runs go into processes of their "
            "own, one per core, by themselves: leave torchrun out."
        )


def averaged(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes; the tensor itself if there is one."""
    if torchrun()[1] > 1:
        dist.all_reduce(x)
        x /= torchrun()[1]
    return x


def shared(x: Tensor) -> Tensor:
    """From replicated to what each process uses on rows of its own: gradients are summed."""
    same: Tensor = _Shared.apply(x)
    return same


def summed(x: Tensor) -> Tensor:
    """From what each process has found on rows of its own to the sum of all, replicated."""
    total: Tensor = _Summed.apply(x)
    return total


def collected(x: Tensor, sizes: list[int], rank: int) -> Tensor:
    """From the rows of each process to all rows, replicated.

    Args:
        x: this process's rows, ``(sizes[rank], ...)``.
        sizes: how many rows each process has.
        rank: number of this process.

    Returns:
        The rows of all, ``(sum(sizes), ...)``, in the order of the processes.
    """
    rows: Tensor = _Gathered.apply(x, sizes, rank)
    return rows


class _Shared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Summed.apply(grads[0])


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Shared.apply(grads[0])


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Scattered.apply(grads[0], ctx.sizes, ctx.rank), None, None


class _Scattered(Function):
    """From all rows, replicated, to those of each process."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        return torch.split(x, sizes)[rank].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Gathered.apply(grads[0], ctx.sizes, ctx.rank), None, None
