"""How arithmetic is carried out: autocast on request, and the fast float32 matrix products of oneDNN."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

PRECISIONS = ("fp32", "bf16")


def huge_pages() -> None:
    """Ask for large tensors in huge pages, where the system has them.

    Fresh memory in small pages costs more time than what is computed in it, once tensors have millions of
    entries. PyTorch reads the variable when it makes its first tensor; later this has no effect, and a value
    that is set already stays. Results do not depend on it.
    """
    if Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context of the forward pass: bfloat16 matrix products with ``bf16``, nothing with ``fp32``.

    Loss, penalty, probabilities and optimiser always stay in float32.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Send float32 products on the CPU to oneDNN where PyTorch's default library is slow.

    That library takes a slow path on AMD's processors. Asking oneDNN for "bf16" products makes it take over;
    without AMX tiles it ignores the hint and computes in float32, which is checked once, not assumed. No
    clock is involved: the same machine always computes the same bits.
    """
    if not onednn_routed():
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
def onednn_routed() -> bool:
    """Whether `fast_matmul` changes anything on this machine."""
    backend: Any = getattr(torch.backends.mkldnn, "matmul", None)
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)()
    if not hasattr(backend, "fp32_precision") or tiles or "AMD" not in _vendor():
        return False
    noise = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 256, generator=noise), torch.randn(256, 256, generator=noise)
    truth = a.double() @ b.double()
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "bf16"
        error = ((a @ b).double() - truth).norm() / truth.norm()
    finally:
        backend.fp32_precision = before
    return bool(error < 1e-6)


def _vendor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
