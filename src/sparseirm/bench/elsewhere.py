"""The released way in a process of its own, called in turns with ours.

Our training changes how its process multiplies and where its memory comes from, and what runs beside it would
profit. A process of its own has what a user of the released code has: PyTorch as it comes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch

from sparseirm.bench.released import Reference, bisect, plain_adam, relaxed, two_draws
from sparseirm.bench.workloads import CLASSES, TWO, Classes, layers, ours, samples
from sparseirm.data.environments import Batch
from sparseirm.training.precision import fast_matmul, kept_memory

Call = Callable[[], object]


@dataclass(frozen=True)
class Server:
    """A process that answers lines with lines.

    Attributes:
        process: the process.
    """

    process: subprocess.Popen[str]

    def ask(self, line: str) -> None:
        """Send it a line."""
        with suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)

    def answer(self, who: str) -> str:
        """Wait for its next line; raises RuntimeError, saying ``who``, if the process has ended."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{who} ended with exit code {self.process.wait()}")
        return line


@contextmanager
def server(module: str, *arguments: str, **settings: str) -> Iterator[Server]:
    """A module run in a process of its own, as long as the context is open.

    Args:
        module: its name.
        *arguments: of its command line.
        **settings: environment variables, beside those of this process.

    Yields:
        Server: the process.
    """
    command, pipe = [sys.executable, "-m", module, *arguments], subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **settings}
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@contextmanager
def elsewhere(tuned: bool = False) -> Iterator[Callable[..., None]]:
    """A process that carries out calls of the released way, as long as the context is open.

    Args:
        tuned: give it what our process has: oneDNN's products, and memory that is kept, in huge pages.

    Yields:
        Callable[..., None]: takes the name of one of `CALLS` and its sizes, and returns when it is done; the
        first time for these it is prepared as well. Raises RuntimeError if the process has ended.
    """
    kind = ["tuned"] if tuned else []
    with server("sparseirm.bench.elsewhere", *kind, THP_MEM_ALLOC_ENABLE=str(int(tuned))) as process:

        def call(name: str, **sizes: float) -> None:
            process.ask(json.dumps([name, sizes]))
            process.answer(f"the released way ({name})")

        yield call


def step(n: int, width: int, kept: float = 0.5, learn_scores: bool = True, classes: int = 2) -> Call:
    """A training step on ``n`` samples with a fraction ``kept`` of the weights."""
    task = CLASSES[classes]
    batch, reference = task.samples(n), _reference(width, task)
    y, budget = reference.labels(batch.y), kept * sum(s.numel() for s in reference.scores)
    return lambda: reference.step(batch.x, y, batch.env, budget, 0.5, learn_scores=learn_scores)


def evaluation(n: int, width: int) -> Call:
    """What follows every epoch: two passes over training samples and a fifth as many test samples."""
    reference = _reference(width)
    parts = [(part.x, reference.labels(part.y)) for part in _parts(n)]
    return lambda: reference.evaluate(parts)


def run(n: int, width: int, epochs: int) -> Call:
    """A whole run from the beginning, with its schedule, evaluated after every epoch."""
    batch, test = _parts(n)

    def call() -> None:
        reference = _reference(width)
        parts = [(part.x, reference.labels(part.y)) for part in (batch, test)]
        d, y = sum(s.numel() for s in reference.scores), parts[0][1]
        for epoch in range(epochs):
            done = epoch / epochs
            late = min(1.0, max(0.0, (done - 0.28) / (0.6 - 0.28)))
            budget = d * (0.5 + 0.5 * (1 - late) ** 3)
            reference.step(batch.x, y, batch.env, budget, 0.5, learn_scores=done >= 0.28)
            reference.evaluate(parts)

    return call


def mask(d: int) -> Call:
    """Gates forward and backward, the scores' optimiser and the projection, without any network."""
    weights, gradient = torch.randn(d), torch.randn(d) / d
    scores = torch.full_like(weights, 0.5).requires_grad_()
    leaf, optimizer = weights.clone().requires_grad_(), plain_adam([scores], 6e-3)

    def call() -> None:
        leaf.grad = scores.grad = None
        (leaf * relaxed(scores, two_draws(scores), 0.5)).backward(gradient)  # type: ignore[no-untyped-call]
        optimizer.step()
        bisect([scores], d / 2)

    return call


CALLS: dict[str, Callable[..., Call]] = {"step": step, "evaluation": evaluation, "run": run, "mask": mask}
"""What can be asked for."""


def _reference(width: int, task: Classes = TWO) -> Reference:
    return Reference(layers(ours(task.samples(2), task.module(width))))


def _parts(n: int) -> tuple[Batch, Batch]:
    """Training and test samples."""
    return samples(n), samples(n // 5, seed=2)


def serve(lines: Iterable[str]) -> Iterator[str]:
    """Carry out the call of every line.

    Args:
        lines: name and sizes of a call each, as JSON.

    Yields:
        str: the name, when it is done.
    """
    ready: dict[str, Call] = {}
    for line in lines:
        name, sizes = json.loads(line)
        if line not in ready:
            ready[line] = CALLS[name](**sizes)
        ready[line]()
        yield name


if __name__ == "__main__":
    with ExitStack() as settings:
        if "tuned" in sys.argv:
            settings.enter_context(fast_matmul())
            settings.enter_context(kept_memory())
        for done in serve(sys.stdin):
            print(done, flush=True)
