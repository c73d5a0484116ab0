"""Interleaved timing of alternatives, and what the machine itself can do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from sparseirm.training.precision import fast_matmul


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: ours against a named reference, timed in turns.

    Attributes:
        name: what is timed.
        ratio: time of the reference over ours; above 1 ours is faster.
        ours_s: seconds of ours, the smallest of all repeats.
        reference_s: seconds of the reference, the smallest of all repeats.
        reference: what ours is compared with.
        ours_median_s: seconds of ours, the median.
        reference_median_s: seconds of the reference, the median.
    """

    name: str
    ratio: float
    ours_s: float
    reference_s: float
    reference: str
    ours_median_s: float
    reference_median_s: float


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int = 5) -> dict[str, list[float]]:
    """Seconds of every call, A B C A B C ..., after one untimed round each.

    Args:
        calls: what to time, by name.
        repeats: timed rounds, at least 1.

    Returns:
        Name to ``repeats`` times in seconds.

    Example:
        >>> sorted(interleaved({"a": lambda: 1, "b": lambda: 2}, repeats=2))
        ['a', 'b']
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return times


def versus(name: str, times: Mapping[str, list[float]], ours: str, reference: str) -> Row:
    """The row of two timed calls."""
    a, b = times[ours], times[reference]
    return Row(name, min(b) / min(a), min(a), min(b), reference, median(a), median(b))


def gemm_peaks(n: int, inner: int, outer: int, repeats: int = 5) -> dict[str, float]:
    """Best rate of ``(n, inner) @ (inner, outer)`` by back end, in floating-point operations per second.

    Args:
        n: samples.
        inner: inputs of the layer.
        outer: outputs of the layer.
        repeats: timed rounds.

    Returns:
        Rate by back end: ``default`` and ``routed`` float32 (see `fast_matmul`) and ``bf16``.
    """
    x, w = torch.randn(n, inner), torch.randn(inner, outer)
    xb, wb = x.bfloat16(), w.bfloat16()

    def routed() -> None:
        with fast_matmul():
            x @ w

    times = interleaved({"default": lambda: x @ w, "routed": routed, "bf16": lambda: xb @ wb}, repeats)
    return {name: 2.0 * n * inner * outer / min(spent) for name, spent in times.items()}


def copy_bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second, read plus written, of copying a large tensor."""
    source = torch.zeros(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    spent = interleaved({"copy": lambda: target.copy_(source)}, repeats)["copy"]
    return 2.0 * source.numel() * 4 / min(spent)


def load() -> float:
    """Load average of the last minute; timings mean little if it is not near the number of threads."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
