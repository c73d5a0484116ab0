"""Convolutions of images of a few pixels, such as the last ones of a ResNet, as one matrix product each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FEWEST = 128
"""Samples from which on it pays; the matrix is made anew in every pass."""


class SmallImages(TorchFunctionMode):
    """While this context is open, convolutions of images of fewer pixels than the kernel run as `dense`.

    They need fewer products that way, for most of the kernel lies outside of such images, and libraries are
    better at products of matrices. Only on the CPU; others, and batches under `FEWEST`, run as ever. What
    comes out is the same up to rounding.

    Example:
        >>> x, kernel = torch.rand(128, 4, 2, 2), torch.rand(4, 4, 3, 3)
        >>> with SmallImages():
        ...     products = torch.conv2d(x, kernel, padding=1)
        >>> torch.allclose(products, torch.conv2d(x, kernel, padding=1), atol=1e-5)
        True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func``; if it is a convolution, perhaps in the other way."""
        return (_conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`, by the way that is faster."""
    small = x.ndim == 4 and x.shape[2] * x.shape[3] < weight.shape[2] * weight.shape[3]
    whole = small and x.shape[1] == weight.shape[1]  # no groups; and no misfit, of which PyTorch tells
    if not whole or len(x) < FEWEST or x.device.type != "cpu" or isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return dense(x, weight, bias, _pair(stride), _pair(padding), _pair(dilation))


def _pair(value: Any) -> tuple[int, int]:
    across, down = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return across, down


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """A convolution as the linear layer it is: one matrix from all input to all output pixels.

    Args:
        x: images, ``(n, channels, height, width)``; best with channels last.
        weight: the kernel, ``(outputs, channels, rows, columns)``.
        bias: ``(outputs,)`` or None.
        stride: down and across.
        padding: rows of zeros above and below, columns of zeros left and right.
        dilation: distance of the kernel's rows and columns.

    Returns:
        What `torch.conv2d` gives, ``(n, outputs, height, width)`` with channels last.

    Raises:
        RuntimeError: if the kernel is larger than the image and its padding.

    Example:
        >>> x, kernel = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
        >>> dense(x, kernel, None, (1, 1), (1, 1), (1, 1)).flatten()
        tensor([4., 4., 4., 4.])
    """
    (n, channels, *size), (outputs, _, *kernel) = x.shape, weight.shape
    places, shape = _places(channels, tuple(size), tuple(kernel), stride, padding, dilation)
    rows = weight.permute(2, 3, 1, 0).reshape(-1, outputs)
    with_zero = functional.pad(rows, (0, 0, 0, 1))  # what lies outside of the kernel
    matrix = functional.embedding(places, with_zero).flatten(1)
    images = (x.permute(0, 2, 3, 1).reshape(n, -1) @ matrix).view(n, *shape, outputs)
    return (images if bias is None else images + bias.to(images)).permute(0, 3, 1, 2)


@cache
@torch.inference_mode(False)  # what is kept must serve training too
def _places(
    channels: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor, tuple[int, int]]:
    """Which row of the kernel each input value has for each output pixel; and height and width of the output.

    Rows are numbered by kernel row, kernel column and channel; the one after the last is for none.
    """
    taps, inside = [], []
    for n_in, n_taps, step, pad, gap in zip(size, kernel, stride, padding, dilation, strict=True):
        n_out = (n_in + 2 * pad - gap * (n_taps - 1) - 1) // step + 1
        if n_out < 1:
            raise RuntimeError(f"a kernel of {n_taps} does not fit into {n_in} pixels and a padding of {pad}")
        distance = torch.arange(n_in)[:, None] + pad - step * torch.arange(n_out)
        taps.append(distance.div(gap, rounding_mode="floor"))
        inside.append((distance >= 0) & (distance % gap == 0) & (distance <= gap * (n_taps - 1)))
    tap = taps[0][:, None, :, None] * kernel[1] + taps[1][:, None]
    row = tap[:, :, None] * channels + torch.arange(channels)[:, None, None]
    reached = (inside[0][:, None, :, None] & inside[1][:, None])[:, :, None]
    row = torch.where(reached, row, kernel[0] * kernel[1] * channels)
    return row.flatten(3).flatten(0, 2), (taps[0].shape[1], taps[1].shape[1])
