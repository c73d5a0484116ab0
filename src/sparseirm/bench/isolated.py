"""A few training steps in a process of their own, whose time and largest memory are then theirs alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sparseirm.bench.workloads import OPEN, ours, perceptron, resnet18, samples

ENOUGH, MOST = 2.0, 100
"""Seconds for which short steps are repeated, and how often at most."""


@dataclass(frozen=True)
class Task:
    """Training to be measured, with gates drawn in every step.

    Attributes:
        n: samples, all of them in every step.
        shape: of a sample.
        model: ``mlp`` or ``resnet18``.
        width: hidden units of the perceptron.
        n_envs: environments.
        steps: steps at least; the first does not count for the time.
    """

    n: int
    shape: tuple[int, ...]
    model: str = "mlp"
    width: int = 64
    n_envs: int = 2
    steps: int = 4


@dataclass(frozen=True)
class Cost:
    """What training took.

    Attributes:
        seconds: of the fastest step, which other work on the machine disturbed least.
        peak: bytes of the process at its largest.
        more: the part of it beyond what the process took before it made data and network.
    """

    seconds: float
    peak: int
    more: int


def measured(task: Task) -> Cost:
    """Carry out a task in a fresh process.

    Args:
        task: what to train.

    Returns:
        What it took.

    Raises:
        RuntimeError: if the process fails, for example for want of memory.
    """
    command = [sys.executable, "-m", "sparseirm.bench.isolated", json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{task} could not be measured: {words[-1]}")
    return Cost(**json.loads(done.stdout))


def cost(task: Task) -> Cost:
    """Carry out a task in this process.

    >>> cost(Task(n=8, shape=(3,), width=4)).seconds > 0
    True
    """
    before = peak_memory()
    module = resnet18(task.shape) if task.model == "resnet18" else perceptron(task.width, task.shape)
    run = ours(samples(task.n, task.shape, task.n_envs), module, options=OPEN)
    run.step()
    spent: list[float] = []
    while len(spent) < task.steps - 1 or (sum(spent) < ENOUGH and len(spent) < MOST):
        begun = time.perf_counter()
        run.step()
        spent.append(time.perf_counter() - begun)
    return Cost(min(spent), peak_memory(), peak_memory() - before)


def peak_memory() -> int:
    """Bytes of this process at its largest.

    Linux says it of the process itself; what it says of its use of resources would include the process that
    started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # not on every system

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else 1024 * used


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(asdict(cost(Task(**{**given, "shape": tuple(given["shape"])})))))
