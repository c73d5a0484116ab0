"""Alternatives timed in turns, and what the machine itself can do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from sparseirm.training.precision import fast_matmul

Times = dict[str, list[float]]
"""Seconds of every round, by what was timed."""

PAUSE = 0.3
"""Seconds in which nothing runs before a call that is timed in another process than the one before it.

Threads of PyTorch go on spinning for some hundredths of a second when their work is done, in case more comes.
"""


@dataclass(frozen=True)
class Elsewhere:
    """A call that another process carries out.

    Attributes:
        process: which one.
        call: has it done, and returns when it is.
    """

    process: str
    call: Callable[[], object]

    def __call__(self) -> object:
        """Have it done."""
        return self.call()


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: ours against a named reference, timed in turns.

    Attributes:
        name: what is timed.
        ratio: time of the reference over ours; above 1 ours is faster.
        ours_s: seconds of ours, the median of all rounds.
        reference_s: seconds of the reference, the median of all rounds.
        reference: what ours is compared with.
        low: the smallest ratio of any round.
        high: the largest ratio of any round.
    """

    name: str
    ratio: float
    ours_s: float
    reference_s: float
    reference: str
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """Something beside time that was measured, and what it may be at most.

    Attributes:
        name: what, with its unit.
        value: what was measured.
        most: its limit.
        holds: whether ``value`` is within it.
    """

    name: str
    value: float
    most: float
    holds: bool


def at_most(name: str, value: float, most: float) -> Check:
    """A check.

    >>> at_most("passes", 4, 8).holds
    True
    """
    return Check(name, float(value), float(most), value <= most)


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> Times:
    """Seconds of every call, A B C A B C ..., after rounds that do not count: fresh memory is slow.

    Args:
        calls: what to time, by name; of processes that take turns, each waits until the other is at rest.
        repeats: timed rounds, at least 1.
        warm_up: rounds before that do not count; none for calls that start processes of their own.

    Returns:
        Name to ``repeats`` times in seconds.

    Example:
        >>> sorted(interleaved({"a": lambda: 1, "b": lambda: 2}, repeats=2))
        ['a', 'b']
    """
    times: Times = {name: [] for name in calls}
    last: str | None = None
    for _ in range(warm_up + repeats):
        for name, call in calls.items():
            if _process(call) != last:
                time.sleep(PAUSE)
            last = _process(call)
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return {name: taken[warm_up:] for name, taken in times.items()}


def _process(call: Callable[[], object]) -> str | None:
    """Where a call is carried out; None is here."""
    return call.process if isinstance(call, Elsewhere) else None


def row(name: str, ours: Iterable[float], reference: Iterable[float], against: str) -> Row:
    """The row of two things timed in the same rounds.

    Args:
        name: what is timed.
        ours: seconds of ours in every round.
        reference: seconds of the reference in the same rounds.
        against: what the reference is.

    Returns:
        The row, of medians.

    Example:
        >>> row("sum", [1.0, 1.0, 5.0], [2.0, 2.0, 5.0], "loop").ratio
        2.0
    """
    a, b = list(ours), list(reference)
    ratios = [other / own for own, other in zip(a, b, strict=True)]
    return Row(name, median(b) / median(a), median(a), median(b), against, min(ratios), max(ratios))


def combined(times: Mapping[str, list[float]], shares: Mapping[str, float]) -> list[float]:
    """Each round's time of something made of pieces: seconds of the pieces times how often they come.

    >>> combined({"step": [1.0, 2.0], "look": [10.0, 10.0]}, {"step": 3, "look": 0.5})
    [8.0, 11.0]
    """
    return [
        sum(shares[name] * spent for name, spent in zip(shares, together, strict=True))
        for together in zip(*(times[name] for name in shares), strict=True)
    ]


def products(n: int, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Factors of all matrix products of one training step of a multilayer perceptron.

    Forward and by the weights for every layer, by the inputs for all but the first.

    Args:
        n: samples.
        sizes: inputs, hidden units of every layer, outputs.

    Returns:
        Pairs of matrices, as they lie in memory in a step.
    """
    pairs = []
    for depth, (inner, outer) in enumerate(pairwise(sizes)):
        x, w, g = torch.randn(n, inner), torch.randn(outer, inner), torch.randn(n, outer)
        pairs += [(x, w.t()), (g.t(), x)] + ([(g, w)] if depth else [])
    return pairs


def gemm_limits(n: int, sizes: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Seconds of all matrix products of a step alone, each with the fastest library for its own shape.

    Args:
        n: samples.
        sizes: inputs, hidden units of every layer, outputs.
        repeats: timed rounds.

    Returns:
        ``fp32``, the better of the default library and oneDNN (see `fast_matmul`); and ``bf16``.
    """
    limits = {"fp32": 0.0, "bf16": 0.0}
    for a, b in products(n, sizes):
        low_a, low_b = a.bfloat16(), b.bfloat16()

        def routed(a: Tensor = a, b: Tensor = b) -> None:
            with fast_matmul():
                a @ b

        times = interleaved(
            {
                "default": lambda a=a, b=b: a @ b,  # type: ignore[misc]
                "routed": routed,
                "bf16": lambda a=low_a, b=low_b: a @ b,  # type: ignore[misc]
            },
            repeats,
        )
        limits["fp32"] += min(times["default"] + times["routed"])
        limits["bf16"] += min(times["bf16"])
    return limits


def copy_seconds(floats: int, repeats: int) -> float:
    """Seconds to move so many float32 numbers through memory: half of them read, half of them written.

    >>> copy_seconds(1000, 1) > 0
    True
    """
    source = torch.zeros(floats // 2)
    target = torch.empty_like(source)
    return min(interleaved({"copy": lambda: target.copy_(source)}, repeats)["copy"])


def load(seconds: float = 1.0) -> float | None:
    """Cores that other processes keep busy, on average over some seconds in which this one waits.

    Args:
        seconds: how long to look.

    Returns:
        Number of cores, in a virtual machine with those that others take from it; None where the system does
        not say, which only Linux does.
    """
    before = _spent_by_others()
    if before is None:
        return None
    time.sleep(seconds)
    after = _spent_by_others()
    return None if after is None else max(0.0, after - before) / seconds


def _spent_by_others() -> float | None:
    """Seconds that all cores have worked so far, without those for this process."""
    try:
        total, *_ = Path("/proc/stat").read_text().splitlines()
        user, nice, system, _, _, interrupts, soft, stolen = map(int, total.split()[1:9])
    except (OSError, ValueError):
        return None
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
