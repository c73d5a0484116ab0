"""How arithmetic is carried out: autocast on request, and the fast float32 matrix products of oneDNN."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context of the forward pass: bfloat16 matrix products with ``bf16``, nothing with ``fp32``.

    Loss, penalty, probabilities and optimiser always stay in float32.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Send float32 products on the CPU to oneDNN where that is faster and just as exact.

    PyTorch's default library takes a slow path on processors that are not Intel's. Asking oneDNN for
    "bf16" products makes it take over; without AMX tiles it ignores the hint and computes in float32.
    Whether both hold on this machine is tested once, in about a millisecond, not assumed.
    """
    if not _routing_pays():
        yield
        return
    backend: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        yield
    finally:
        backend.fp32_precision = before


@cache
def _routing_pays() -> bool:
    if not torch.backends.mkldnn.is_available() or _has_amx():  # type: ignore[no-untyped-call]
        return False
    backend: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    noise = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 256, generator=noise), torch.randn(256, 256, generator=noise)
    truth = a.double() @ b.double()
    before = backend.fp32_precision
    default = _seconds(a, b)
    try:
        backend.fp32_precision = "bf16"
        error = ((a @ b).double() - truth).norm() / truth.norm()
        return bool(error < 1e-6) and _seconds(a, b) < default
    finally:
        backend.fp32_precision = before


def _has_amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe()) if probe is not None else True


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        spent.append(time.perf_counter() - start)
    return min(spent)
