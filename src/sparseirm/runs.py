"""Run a recipe: train, evaluate along the way, save, resume."""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseirm.core import NonFiniteError, SettingError, Sparsifier
from sparseirm.data import Batches, DataSet
from sparseirm.evaluation.metrics import Score, deployed, evaluate, undecided
from sparseirm.files import read_json, read_tensors, write_json, write_tensors
from sparseirm.models import MODELS, Network, build, network
from sparseirm.recipe import Recipe
from sparseirm.training.checkpoint import load_state, save_state
from sparseirm.training.loop import Record, train
from sparseirm.training.precision import onednn_routed
from sparseirm.training.state import State, start

RESULT, MODEL, CHECKPOINT = "result.json", "model.safetensors", "checkpoint.safetensors"

RESULTS = 1
"""Version of what a recipe computes. To be raised with every change after which a recipe gives other numbers;
results and checkpoints of another version are not mixed with new ones. Files without a version are of 1."""


@dataclass(frozen=True)
class Point:
    """One evaluation on the way: of the deterministic network, on every split.

    Attributes:
        step: optimiser steps taken.
        risk: training risk of the relaxed network in that step.
        penalty: its penalty, unweighted.
        density: fraction of the maskable weights that the deployed network keeps.
        undecided: fraction of the mask probabilities that are neither 0 nor 1, or None without any.
        scores: score by split (``train``, ``val``, ``test``).
    """

    step: int
    risk: float
    penalty: float
    density: float
    undecided: float | None
    scores: dict[str, Score]

    @staticmethod
    def from_json(payload: dict[str, Any]) -> Point:
        """The point of ``asdict``."""
        scores = {name: Score(**score) for name, score in payload["scores"].items()}
        return Point(**{**payload, "scores": scores})


@dataclass(frozen=True)
class Result:
    """What a run gave; ``result.json`` is this as plain data.

    Attributes:
        recipe: the resolved recipe.
        trajectory: evaluations every ``eval_every`` steps; the last one is the last step.
        n_weights: number of maskable weights, d.
        budget: K, the number of weights asked for.
        kept: number of ones in the final mask.
        seconds: time spent training and evaluating, over all resumed pieces.
        environment: versions, processor, threads.
        version: the `RESULTS` of the code that made it.
    """

    recipe: Recipe
    trajectory: list[Point]
    n_weights: int
    budget: int
    kept: int
    seconds: float
    environment: dict[str, Any] = field(default_factory=dict)
    version: int = 1

    @property
    def last(self) -> dict[str, Score]:
        """Scores of the last step, by split: what we report."""
        return self.trajectory[-1].scores

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        density = {"asked": self.budget / self.n_weights, "reached": self.kept / self.n_weights}
        last = {name: asdict(score) for name, score in self.last.items()}
        fields = {**asdict(self), "recipe": self.recipe.to_json()}
        return {**fields, "status": "done", "density": density, "last": last}

    @staticmethod
    def from_json(payload: dict[str, Any]) -> Result:
        """The result of `to_json`."""
        derived = ("status", "density", "last")
        given = {name: value for name, value in payload.items() if name not in derived}
        given["recipe"] = Recipe.from_json(payload["recipe"])
        given["trajectory"] = [Point.from_json(point) for point in payload["trajectory"]]
        return Result(**given)


def run(
    recipe: Recipe,
    *,
    data_root: str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[Record, list[Point]], None] = lambda record, trajectory: None,
    checkpoint_seconds: float = 30.0,
) -> Result:
    """Carry out a recipe.

    Args:
        recipe: what to run.
        data_root: folder of the data files, for data sets that are not embedded.
        out: folder for ``result.json``, ``model.safetensors`` and, on the way, a checkpoint.
        resume: go on from the checkpoint in ``out``, or return its result if it is finished.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1`` ...
        on_step: called after every step with its record and the trajectory so far.
        checkpoint_seconds: time between two checkpoints.

    Returns:
        The result, which is also in ``out``.

    Raises:
        SettingError: if the recipe cannot be run, its data files are not to be had, ``device`` cannot be
            used, or ``out`` holds another run, any run without ``resume``, or a damaged file.
        NonFiniteError: if risk or penalty become NaN or infinite.

    Example:
        >>> result = run(Recipe(method="erm", width=8, steps=20))
        >>> sorted(result.last), result.trajectory[-1].step
        (['test', 'train', 'val'], 20)
    """
    recipe, place = recipe.resolved(), _device(device)
    machine = environment(place)
    folder = None if out is None else Path(out)
    if folder is not None:
        finished = _claim(folder, recipe, resume)
        if finished:
            return finished
    data = recipe.make_data(data_root).to(place)
    net = network(_module(recipe, data).to(place))
    sparsifier = recipe.make_sparsifier(net.layout.size, len(data.train))
    plan, loss = recipe.plan(), recipe.loss(data)
    state = start(net, sparsifier, plan, recipe.seed)
    trajectory, seconds = _restored(folder, state)
    begun = saved = time.monotonic()
    whole = False  # True between two steps, when weights and step number belong together

    def spent() -> float:
        return seconds + time.monotonic() - begun

    def after_step(state: State, record: Record) -> None:
        nonlocal saved, whole
        last = record.step == plan.steps
        if last or record.step % recipe.eval_every == 0:
            trajectory.append(_point(net, sparsifier, state, data, recipe, record))
        whole = True
        on_step(record, trajectory)
        if folder and not last and time.monotonic() - saved >= checkpoint_seconds:
            _save(folder, state, recipe, trajectory, spent())
            saved = time.monotonic()
        whole = False

    batches = Batches(data.train.samples, len(data.train.names), recipe.batch_size, recipe.seed)
    try:
        train(net, batches, loss, recipe.make_penalty(), sparsifier, plan, state, recipe.seed, after_step)
    except KeyboardInterrupt:
        if folder and whole and state.step < plan.steps:
            _save(folder, state, recipe, trajectory, spent())
        raise
    mask = sparsifier.mask(state.weights.detach(), state.memory)
    kept = int(mask.sum())
    result = Result(
        recipe, trajectory, net.layout.size, sparsifier.budget, kept, spent(), machine, version=RESULTS
    )
    if folder:
        tensors = {**net.layout.split(deployed(sparsifier, state)), **state.others, **state.buffers}
        write_tensors(folder / MODEL, tensors, {"recipe": recipe.to_json()})
        write_json(folder / RESULT, result.to_json())
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def load_model(folder: Path | str, data: DataSet) -> nn.Module:
    """The trained network of an output folder as a plain module, masked weights set to zero.

    Args:
        folder: where `run` wrote ``model.safetensors``.
        data: a data set of the shape the model was trained on.

    Returns:
        The module in evaluation mode. Its logits have shape ``(n, 1)`` for two classes.

    Raises:
        DamagedFileError: if the file is damaged.
        OSError: if there is no such file.
        RuntimeError: if ``data`` has samples of another shape, or another number of outputs.
    """
    tensors, note = read_tensors(Path(folder) / MODEL)
    module = _module(Recipe.from_json(note["recipe"]), data)
    module.load_state_dict(tensors)
    return module.eval()


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides its recipe: versions, processor, threads."""
    names = ("sparseirm", "torch", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "matmul": "oneDNN" if onednn_routed() else "default",
    }


def _module(recipe: Recipe, data: DataSet) -> nn.Module:
    shape = tuple(data.train.samples.x.shape[1:])
    return build(lambda: MODELS[recipe.model](shape, data.n_outputs, recipe.width), recipe.seed)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it cannot train")
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(f"`device` {name!r} cannot be used here: {reason}. Use cpu.") from None
    return device


def _claim(folder: Path, recipe: Recipe, resume: bool) -> Result | None:
    """Check that the folder is free or holds this very run; return its result if it is finished."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingError(
            f"`out` {str(folder)!r} cannot be written to ({error}); choose another folder."
        ) from None
    existing = [name for name in (RESULT, CHECKPOINT) if (folder / name).exists()]
    if not existing:
        return None
    if not resume:
        raise SettingError(
            f"`out` already holds a run ({folder / existing[0]}). Pass `--resume` to go on with it, or "
            "choose another folder."
        )
    if RESULT in existing:
        result = Result.from_json(read_json(folder / RESULT))
        _same(result.recipe, result.version, recipe, folder)
        return result
    _, note = read_tensors(folder / CHECKPOINT)
    _same(Recipe.from_json(note["recipe"]), note.get("version", 1), recipe, folder)
    return None


def _same(old: Recipe, version: int, new: Recipe, folder: Path) -> None:
    was = {**old.to_json(), "version of results": version}
    now = {**new.to_json(), "version of results": RESULTS}
    differ = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if differ:
        changes = ", ".join(f"{name}: {was.get(name)} there, {now.get(name)} here" for name in differ)
        raise SettingError(f"{folder} holds another run ({changes}). Choose another `out`.")


def _restored(folder: Path | None, state: State) -> tuple[list[Point], float]:
    if folder is None or not (folder / CHECKPOINT).exists():
        return [], 0.0
    note = load_state(folder / CHECKPOINT, state)
    return [Point.from_json(point) for point in note["trajectory"]], note["seconds"]


def _save(folder: Path, state: State, recipe: Recipe, trajectory: list[Point], seconds: float) -> None:
    note = {
        "recipe": recipe.to_json(),
        "trajectory": [asdict(p) for p in trajectory],
        "seconds": seconds,
        "version": RESULTS,
    }
    save_state(folder / CHECKPOINT, state, note)


def _point(
    net: Network, sparsifier: Sparsifier, state: State, data: DataSet, recipe: Recipe, record: Record
) -> Point:
    weights = deployed(sparsifier, state)
    loss = recipe.loss(data)
    scores = {name: evaluate(net, state, weights, split, loss) for name, split in data.splits.items()}
    if not all(math.isfinite(score.risk) for score in scores.values()):
        raise NonFiniteError(
            f"the risk of the masked network is not finite after step {record.step}. Lower `lr`, or check "
            "the data for extreme values."
        )
    return Point(
        step=record.step,
        risk=float(record.risk),
        penalty=float(record.penalty),
        density=float(sparsifier.mask(state.weights.detach(), state.memory).float().mean()),
        undecided=undecided(state.memory),
        scores=scores,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
