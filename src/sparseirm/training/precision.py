"""How arithmetic is carried out: autocast on request, oneDNN's fast float32 products, memory that is kept."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""glibc's names for what `kept_memory` sets, see ``man mallopt``."""

KEPT = 1 << 27
"""Bytes of a batch up to which `kept_memory` is worth it."""

_inside: ContextVar[bool] = ContextVar("_inside", default=False)
"""Whether memory is being kept already; the outermost context is the one that ends it."""


@contextmanager
def kept_memory(nbytes: int = 0) -> Iterator[None]:
    """Keep the memory of freed tensors for the next ones, where the C library is glibc.

    It gives large blocks back to the system at once, and a training step, which needs them again, pays for
    fresh pages every time. When the context ends, memory is given back as before. Where the allocator's own
    variables say something about it (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``), nothing is changed.

    Args:
        nbytes: size of a batch's inputs. Kept memory breaks into pieces and may grow to twice of what is in
            use; above `KEPT` that costs more than fresh pages do, and nothing is changed either.
    """
    mallopt = _mallopt() if nbytes <= KEPT and not _inside.get() else None
    if mallopt is None:
        yield
        return
    before = _inside.set(True)
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _inside.reset(before)
        mallopt(M_MMAP_MAX, 65536)
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # where glibc's own adaptation ends; setting any turns it off
        mallopt(M_TRIM_THRESHOLD, 1 << 26)


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    chosen = any(name.startswith(("MALLOC_MMAP", "MALLOC_TRIM", "GLIBC_TUNABLES")) for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or chosen:
        return None
    found: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    return found


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
