"""Convolutions of small images as matrix products: the same numbers as PyTorch's."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparseirm import convolutions
from sparseirm.convolutions import FEWEST, SmallImages, dense
from sparseirm.models import maker, network

Case = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]

CASES: list[Case] = [
    ((4, 2), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((4, 2), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 1), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((2, 3), (3, 3), (1, 2), (2, 1), (1, 2)),
    ((4, 4), (7, 5), (2, 3), (3, 2), (1, 1)),
    ((5, 1), (2, 4), (1, 1), (4, 7), (3, 2)),
]
"""Height and width of images; rows and columns of the kernel; stride, padding, dilation."""


def example(size: tuple[int, int], kernel: tuple[int, int], n: int = FEWEST) -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(0)
    shapes = (n, 3, *size), (5, 3, *kernel), (5,)
    return tuple(
        torch.randn(shape, generator=noise, dtype=torch.float64).requires_grad_() for shape in shapes
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_pytorch(case: Case) -> None:
    size, kernel, *options = case
    inputs = example(size, kernel)
    stride, padding, dilation = options
    theirs = torch.conv2d(*inputs, stride, padding, dilation)
    with SmallImages():
        ours = torch.conv2d(*inputs, stride, padding, dilation)
    assert not torch.equal(ours, theirs) or size == (1, 1), "the other way was not taken"
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_it_can_be_differentiated_twice() -> None:
    x, weight, bias = example((2, 1), (3, 3), n=2)
    once = ((1, 1), (1, 1), (1, 1))
    assert torch.autograd.gradgradcheck(lambda a, b, c: dense(a, b, c, *once) ** 2, (x, weight, bias))


def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The heights of the images that run as products from now on."""
    seen: list[int] = []

    def noted(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x.shape[2])
        return dense(x, *rest)

    monkeypatch.setattr(convolutions, "dense", noted)
    return seen


@pytest.mark.parametrize(
    ("n", "channels", "size", "options"),
    [
        (FEWEST - 1, 4, (2, 2), {"padding": 1}),
        (FEWEST, 4, (3, 3), {"padding": 1}),
        (FEWEST, 4, (2, 2), {"padding": 1, "groups": 2}),
        (FEWEST, 4, (2, 2), {"padding": "same"}),
    ],
    ids=["few samples", "not smaller than the kernel", "groups", "padding by name"],
)
def test_other_convolutions_run_as_ever(
    n: int, channels: int, size: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = taken(monkeypatch)
    x = torch.rand(n, channels, *size)
    kernel = torch.rand(4, channels // options.get("groups", 1), 3, 3)
    with SmallImages():
        assert torch.equal(torch.conv2d(x, kernel, **options), torch.conv2d(x, kernel, **options))
    assert not seen


@pytest.mark.parametrize(
    ("channels", "padding"), [(2, 1), (4, 0)], ids=["other channels", "larger than image and padding"]
)
def test_what_does_not_fit_fails_as_ever(channels: int, padding: int) -> None:
    x, kernel = torch.rand(FEWEST, channels, 2, 2), torch.rand(4, 4, 3, 3)
    for mode in (nullcontext(), SmallImages()):
        with mode, pytest.raises(RuntimeError):
            torch.conv2d(x, kernel, padding=padding)


def test_a_first_call_in_inference_mode_leaves_training_possible() -> None:
    x, kernel = torch.rand(FEWEST, 4, 2, 2), torch.rand(4, 4, 3, 3, requires_grad=True)
    convolutions._places.cache_clear()
    with SmallImages():
        with torch.inference_mode():
            torch.conv2d(x, kernel, padding=1)
        torch.conv2d(x, kernel, padding=1).sum().backward()  # type: ignore[no-untyped-call]
    assert kernel.grad is not None


def test_a_resnet_gives_the_same_with_its_last_layers_as_products(monkeypatch: pytest.MonkeyPatch) -> None:
    module = maker("resnet18")((3, 64, 32), 1, None).double().train()
    net = network(module)
    weights, others, buffers = net.parts()
    x = torch.rand(FEWEST, 3, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = module(x)
    seen = taken(monkeypatch)
    ours = net.call(x, weights, others, buffers)
    assert sorted(seen) == [2] * 3 + [4] * 4, "seven convolutions have images of eight pixels or two"
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)


def test_nothing_stays_changed() -> None:
    before = torch.overrides._get_current_function_mode_stack()
    net = network(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten()))
    net.call(torch.rand(FEWEST, 3, 2, 2), *net.parts())
    assert torch.overrides._get_current_function_mode_stack() == before
    assert issubclass(SmallImages, TorchFunctionMode)


def test_under_autocast_the_type_is_that_of_pytorch() -> None:
    x, weight, bias = (tensor.float() for tensor in example((2, 1), (3, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        theirs = torch.conv2d(x, weight, bias, padding=1)
        with SmallImages():
            ours = torch.conv2d(x, weight, bias, padding=1)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
