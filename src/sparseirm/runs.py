"""Run a recipe: train, evaluate along the way, save, resume."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparseirm.core import Moment, NonFiniteError, SettingError, first_line
from sparseirm.data import Batches, DataSet
from sparseirm.data.environments import Split
from sparseirm.evaluation.batch_norm import deployed_buffers
from sparseirm.evaluation.metrics import Score, deployed, evaluate, undecided
from sparseirm.files import (
    DamagedFileError,
    check_types,
    locked,
    parts,
    read_json,
    read_tensors,
    remove_parts,
    writable,
    write_json,
    write_tensors,
)
from sparseirm.inference import in_inferred_environments
from sparseirm.models import Network, build, maker, network
from sparseirm.randomness import generator, seed_of
from sparseirm.recipe import Recipe
from sparseirm.training.checkpoint import load_state, save_state, tensors_of
from sparseirm.training.loop import Record
from sparseirm.training.precision import onednn_routed
from sparseirm.training.sharding import Sharding, joined
from sparseirm.training.shrinking import Shrinking, check_shrinkable
from sparseirm.training.stages import Stage, enter, train_stages
from sparseirm.training.state import State

RESULT, MODEL, CHECKPOINT = "result.json", "model.safetensors", "checkpoint.safetensors"
LOCK = ".lock"

CHECKPOINT_VARIABLE = "SPARSEIRM_CHECKPOINT_SECONDS"
"""The environment variable with the seconds between two checkpoints, of every command and its workers."""

RESULTS = 1
"""Version of what a recipe computes. To be raised with every change after which a recipe gives other numbers;
results and checkpoints of another version are not mixed with new ones. Files without a version are of 1."""


@dataclass(frozen=True)
class Point:
    """One evaluation on the way: of the deterministic network, on every split.

    Attributes:
        step: optimiser steps taken, in all stages of the run together.
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
        """The point of ``asdict``; ``SettingError`` if it is not one."""
        try:
            scores = {name: Score(**score) for name, score in payload["scores"].items()}
            point = Point(**{**payload, "scores": scores})
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"a result has an evaluation that is none ({error!r}).") from None
        for part in (point, *scores.values()):
            check_types(part)
        return point


@dataclass(frozen=True)
class Result:
    """What a run gave; ``result.json`` is this as plain data.

    Attributes:
        recipe: the resolved recipe.
        trajectory: evaluations every ``eval_every`` steps, until nothing changes any more, and at the end of
            every stage; the last one is the last step.
        n_weights: number of maskable weights, d.
        budget: K, the number of weights asked for; of groups of weights if it `counts_groups`.
        kept: number of ones in the final mask.
        seconds: time spent training and evaluating, over all resumed pieces; a share of that of runs at once.
        environment: versions, processor, threads; how the work was divided, if it was; under ``together`` how
            many runs were carried out at once, if they were. If the run was
            resumed where one of these differs, ``resumed_on`` lists that environment: the same bits are only
            promised within one.
        inferred: what the inferred environments are, as of `sparseirm.inference.described`; None if the
            data set's own were used. Scores are always of the data set's own.
        source_note: what one should know about the files behind the data, such as that they are JPEG.
        shrunk: what running a smaller network saved, if that was asked for: see
            `sparseirm.training.shrinking.Shrinking`; of the last piece, if the run was resumed.
        version: the `RESULTS` of the code that made it.
    """

    recipe: Recipe
    trajectory: list[Point]
    n_weights: int
    budget: int
    kept: int
    seconds: float
    environment: dict[str, Any] = field(default_factory=dict)
    inferred: list[dict[str, Any]] | None = None
    source_note: str | None = None
    shrunk: dict[str, Any] | None = None
    version: int = 1

    @property
    def last(self) -> dict[str, Score]:
        """Scores of the last step, by split: what we report."""
        return self.trajectory[-1].scores

    @property
    def stage_ends(self) -> list[int]:
        """The last step of every stage, all of which are evaluated; most runs have a single stage."""
        steps = [point.step for point in self.trajectory]
        ends = [*accumulate(self.recipe.stage_lengths or (1.0,))]
        return [min(steps, key=lambda step: abs(step - end / ends[-1] * steps[-1])) for end in ends]

    @property
    def counts_groups(self) -> bool:
        """Whether the budget is a number of groups of weights, which says little about a density."""
        return self.recipe.sparsifier_options.get("budget_in") == "groups"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        asked = {} if self.counts_groups else {"asked": self.budget / self.n_weights}
        density = {**asked, "reached": self.kept / self.n_weights}
        last = {name: asdict(score) for name, score in self.last.items()}
        fields = {**asdict(self), "recipe": self.recipe.to_json()}
        if self.shrunk is None:
            del fields["shrunk"]
        return {**fields, "status": "done", "density": density, "last": last}

    @staticmethod
    def from_json(payload: dict[str, Any]) -> Result:
        """The result of `to_json`; ``SettingError`` if it is not one."""
        derived = ("status", "density", "last")
        try:
            given = {name: value for name, value in payload.items() if name not in derived}
            given["recipe"] = Recipe.from_json(payload["recipe"])
            given["trajectory"] = [Point.from_json(point) for point in payload["trajectory"]]
            result = Result(**given)
        except (KeyError, TypeError, AttributeError) as error:
            raise SettingError(f"this is not the result of a run ({error!r}).") from None
        check_types(result)
        if not result.trajectory or result.n_weights < 1:
            raise SettingError("this is not the result of a run: it has no evaluation, or no weights.")
        return result


def run(
    recipe: Recipe,
    *,
    data_root: str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[Record, list[Point]], None] = lambda record, trajectory: None,
    checkpoint_seconds: float | None = None,
    micro_batch: int | None = None,
    shrink: bool = False,
) -> Result:
    """Carry out a recipe.

    Processes that torchrun started, or of a process group that exists, carry it out together; the first of
    them writes the files. See docs/scaling.md.

    Args:
        recipe: what to run.
        data_root: folder of the data files, for data sets that are not embedded.
        out: folder for ``result.json``, ``model.safetensors`` and, on the way, a checkpoint.
        resume: go on from the checkpoint in ``out``, or return its result if it is finished.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1`` ...; with several processes ``cuda`` gives
            each its own.
        on_step: called after every step taken with its record, whose steps are counted through all stages,
            and the trajectory so far. Steps that change nothing any more are skipped, but for the last
            (`sparseirm.training.loop.at_rest`).
        checkpoint_seconds: time between two checkpoints; None takes it from the environment variable
            ``SPARSEIRM_CHECKPOINT_SECONDS``, and if that is not set, 30.
        micro_batch: samples per pass through the network, to save memory at the cost of a second forward
            pass; gradients are those of the whole batch all the same. None for the whole batch.
        shrink: once the mask is decided, compute no more for every sample what it has made constant or
            unread; the result is the same up to rounding.

    Returns:
        The result, which is also in ``out``.

    Raises:
        SettingError: if the recipe cannot be run, its data files are not to be had, ``device`` cannot be
            used, or ``out`` holds another run, anything without ``resume``, or a damaged file, is in use by
            another process, or cannot be written to; or if the work cannot be divided that way.
        NonFiniteError: if risk or penalty become NaN or infinite.

    Example:
        >>> result = run(Recipe(method="erm", width=8, steps=20))
        >>> sorted(result.last), result.trajectory[-1].step
        (['test', 'train', 'val'], 20)
    """
    if resume and out is None:
        raise SettingError("`resume` has no effect without `out`: name the folder of the run to go on with.")
    pause = checkpoint_pause() if checkpoint_seconds is None else checkpoint_seconds
    recipe = recipe.resolved().pinned(data_root)
    with joined(device, micro_batch) as (sharding, place), ExitStack() as open_until_the_end:
        folder, finished = None if out is None else Path(out), None
        with sharding.first_process_first():
            if folder is not None:
                if sharding.rank == 0:
                    open_until_the_end.enter_context(held(folder))
                finished = claim(folder, recipe, resume)
        sharding.check_alike("results found", {}, str(finished is None))
        shrinking = Shrinking() if shrink else None
        return finished or _run(recipe, data_root, folder, place, on_step, pause, sharding, shrinking)


def _run(
    recipe: Recipe,
    data_root: str | None,
    folder: Path | None,
    place: torch.device,
    on_step: Callable[[Record, list[Point]], None],
    checkpoint_seconds: float,
    sharding: Sharding,
    shrinking: Shrinking | None,
) -> Result:
    """What `run` does with a resolved recipe, in a folder that is its own."""
    run = Underway(recipe, recipe.make_data(data_root), place, folder)
    if shrinking:
        sparsifiers = [stage.sparsifier for stage in run.stages]
        check_shrinkable(run.network, sparsifiers, run.data.train.samples.x)
    state = run.begin(environment(place) | _division(sharding, shrinking))
    sharding.check_alike("recipe or first state", tensors_of(state), f"{recipe} {state.stage} {state.step}")
    if sharding.rank:
        run.folder = None  # the others only read in it
    whole: State | None = None  # known between two steps, when weights and step number belong together

    def after_step(state: State, record: Record) -> None:
        nonlocal whole
        run.look(state, record)
        whole = state
        on_step(record, run.trajectory)
        run.save(state, checkpoint_seconds)
        whole = None

    try:
        state = train_stages(
            *(run.network, run.batches, run.loss, recipe.make_penalty(), run.stages, state, recipe.seed),
            *(after_step, sharding, shrinking),
        )
    except KeyboardInterrupt:
        if whole:
            run.save(whole)
        raise
    sharding.check_alike("weights", tensors_of(state))
    return run.end(state, shrinking.saved if shrinking else None)


class Underway:
    """A run under way: what it is made of, what happens between its steps, and how it ends.

    Args:
        recipe: the resolved recipe.
        data: its data set.
        place: where to compute.
        folder: where its files are, or None.

    Attributes:
        network: what it trains.
        stages: its trainings.
        loss: its loss.
        batches: the samples of every step; from `begin` on.
        trajectory: evaluations so far.
        share: how many runs share the time that is spent.
    """

    def __init__(self, recipe: Recipe, data: DataSet, place: torch.device, folder: Path | None) -> None:
        self.recipe, self.folder, self.share = recipe, folder, 1
        self.data, self._place = placed(data, place), place
        self.network = network(_module(recipe, self.data).to(place))
        self.stages = recipe.stages(self.network.layout.size, len(data.train))
        self.loss = recipe.loss(data)

    def begin(self, machine: dict[str, Any]) -> State:
        """The state to start from, that of the checkpoint if there is one.

        Args:
            machine: the environment it runs in from here on.

        Returns:
            The state.
        """
        given = (self.folder, self.network, self.stages, self.recipe.seed, machine)
        state, self.trajectory, self._seconds, self._environment = _restored(*given)
        self._begun = self._saved = time.monotonic()
        training, self._inferred = training_split(self.recipe, self.data, self._place)
        self.batches = _batches(self.recipe, training)
        return state

    def look(self, state: State, record: Record) -> None:
        """Evaluate if it is time to."""
        stage = self.stages[state.stage]
        if state.step == stage.plan.steps or record.step % self.recipe.eval_every == 0:
            given = (self.network, stage, state, self.data, self.batches, self.recipe, record)
            self.trajectory.append(_point(*given))

    def save(self, state: State, pause: float = 0.0) -> None:
        """Write a checkpoint, if there is a folder and the last one is at least ``pause`` seconds ago.

        Weights that are not finite, of which a run on a device is yet to learn, replace no others.
        """
        due = self.folder and time.monotonic() - self._saved >= pause
        if self.folder and due and torch.isfinite(state.weights).all():
            _save(self.folder, state, self.recipe, self.trajectory, self._spent(), self._environment)
            self._saved = time.monotonic()

    def end(self, state: State, shrunk: dict[str, Any] | None = None) -> Result:
        """The result of the last state, which goes to the folder as well."""
        sparsifier = self.stages[-1].sparsifier
        mask = sparsifier.mask(state.weights.detach(), state.memory)
        result = Result(
            recipe=self.recipe,
            trajectory=self.trajectory,
            n_weights=self.network.layout.size,
            budget=sparsifier.budget,
            kept=int(mask.sum()),
            seconds=self._spent(),
            environment=self._environment,
            inferred=self._inferred,
            source_note=self.data.source_note,
            shrunk=shrunk,
            version=RESULTS,
        )
        if self.folder:
            buffers = _as_deployed(self.network, self.stages[-1], state, self.batches, self.recipe).buffers
            masked = self.network.layout.split(deployed(sparsifier, state))
            note = {"recipe": self.recipe.to_json(), **_shapes(self.data)}
            write_tensors(self.folder / MODEL, {**masked, **state.others, **buffers}, note)
            write_json(self.folder / RESULT, result.to_json())
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return result

    def _spent(self) -> float:
        return self._seconds + (time.monotonic() - self._begun) / self.share


def placed(data: DataSet, place: torch.device) -> DataSet:
    """The data set on a device, or as it is if its inputs need more than half of a GPU's free memory.

    What stays behind is moved a batch at a time, which takes longer.

    Args:
        data: the data set.
        place: where it is trained on.

    Returns:
        The data set on ``place``, or ``data``.
    """
    needed = sum(split.samples.x.nbytes for split in data.splits.values())
    fits = place.type != "cuda" or needed <= torch.cuda.mem_get_info(place)[0] / 2
    return data.to(place) if fits else data


def training_split(
    recipe: Recipe, data: DataSet, place: torch.device | None = None
) -> tuple[Split, list[dict[str, Any]] | None]:
    """The training samples in the environments that the recipe's penalty compares.

    The same recipe infers the same environments, so a run that is resumed needs no record of them.

    Args:
        recipe: a resolved recipe.
        data: its data set.
        place: where the model to infer from is trained; by default where the samples are.

    Returns:
        The data set's own training split and None, or the split in inferred environments and what they
        are, as of `sparseirm.inference.described`.

    Raises:
        SettingError: if environments cannot be inferred from these samples.
        NonFiniteError: if training the model to infer from diverges.

    Example:
        >>> recipe = Recipe(method="irm", environments="eiil", n_train=200, width=16).resolved()
        >>> split, about = training_split(recipe, recipe.make_data())
        >>> split.names, split.counts == [entry["size"] for entry in about]
        (('inferred 0', 'inferred 1'), True)
    """
    inference = recipe.make_inference()
    if inference is None:
        return data.train, None
    seed = seed_of(recipe.seed, "reference")
    net = network(_module(replace(recipe, seed=seed), data).to(place or data.train.samples.x.device))
    plan = replace(recipe.plan(len(data.train)), steps=int(recipe.environments_options["reference_steps"]))
    return in_inferred_environments(
        data.train, inference, net, recipe.loss(data), plan, recipe.batch_size, seed
    )


def load_model(folder: Path | str) -> nn.Module:
    """The trained network of an output folder as a plain module, masked weights set to zero.

    Args:
        folder: where `run` wrote ``model.safetensors``.

    Returns:
        The module in evaluation mode. Its logits have shape ``(n, 1)`` for two classes.

    Raises:
        DamagedFileError: if the file is damaged, or holds NaN or infinity.
        SettingError: if its recipe cannot be run, its network does not fit into memory, it does not know
            the shape of its inputs, or the folder holds the model of a table.
        OSError: if there is no such file.
    """
    path = Path(folder) / MODEL
    if not path.exists():
        from sparseirm.estimator import SETTINGS  # scikit-learn's estimators take a second

        if (Path(folder) / SETTINGS).exists():
            raise SettingError(
                f"{folder} holds the model of a table, no network; read it with `sparseirm.estimator.load`."
            )
    tensors, note = read_tensors(path)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DamagedFileError(f"{path} is no trained network: {name} holds NaN or infinity. Delete it.")
    module = module_of(note)
    kept = module.state_dict()  # a network may have buffers that it makes anew and does not load
    module.load_state_dict({name: tensor for name, tensor in tensors.items() if name in kept})
    return module.eval()


def module_of(note: dict[str, Any]) -> nn.Module:
    """The module that the note of a model file describes, with initial weights.

    Args:
        note: ``recipe``, ``input_shape`` (of one sample) and ``n_outputs``, as in ``model.safetensors``.

    Returns:
        The module, in training mode.

    Raises:
        SettingError: if the note lacks one of them, or holds something else there.
    """
    missing = [name for name in ("recipe", "input_shape", "n_outputs") if name not in note]
    if missing:
        raise SettingError(
            f"the model file does not say how to rebuild its module: it has no {', '.join(missing)}. If it "
            "holds a module of your own, pass that module; else train again."
        )
    shape, n_outputs = note["input_shape"], note["n_outputs"]
    sizes = [*shape, n_outputs] if isinstance(shape, list) else [None]
    if not all(type(size) is int and 0 < size < 1 << 31 for size in sizes):
        raise SettingError(
            f"the model file holds no shapes: {shape!r:.80} and {n_outputs!r:.80}. Train again."
        )
    return _built(Recipe.from_json(note["recipe"]).resolved(), tuple(shape), n_outputs)


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


def _division(sharding: Sharding, shrinking: Shrinking | None) -> dict[str, Any]:
    """How the work is divided or made less, as far as it is."""
    found = {} if sharding.ranks == 1 else {"processes": sharding.ranks}
    found |= {} if sharding.micro_batch is None else {"micro_batch": sharding.micro_batch}
    return found | ({} if shrinking is None else {"shrink": True})


def _module(recipe: Recipe, data: DataSet) -> nn.Module:
    return _built(recipe, tuple(data.train.samples.x.shape[1:]), data.n_outputs)


def _built(recipe: Recipe, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    try:
        return build(lambda: maker(recipe.model)(input_shape, n_outputs, recipe.width), recipe.seed)
    except (RuntimeError, MemoryError) as error:
        memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
        why = "there is too little memory; choose a smaller one." if memory else first_line(error)
        raise SettingError(f"a {recipe.model} of width {recipe.width} cannot be made: {why}") from None


def _shapes(data: DataSet) -> dict[str, Any]:
    """What a recipe does not say about its module, as plain data."""
    labels = {"labels": list(data.label_names)} if data.label_names else {}
    return {"input_shape": list(data.train.samples.x.shape[1:]), "n_outputs": data.n_outputs, **labels}


def _batches(recipe: Recipe, training: Split) -> Batches:
    size, n = recipe.batch_size, len(training)
    if size and (recipe.leave_out is not None or recipe.has_default_batches):
        size = min(size, n)  # how many samples there are was not known when it was chosen
    return Batches(training.samples, len(training.names), size, recipe.seed)


def checkpoint_pause() -> float:
    """Seconds between two checkpoints where nobody says otherwise: `CHECKPOINT_VARIABLE`, or 30."""
    given = os.environ.get(CHECKPOINT_VARIABLE, "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise SettingError(f"`{CHECKPOINT_VARIABLE}` must be 0 or more seconds; got {given!r}. Unset it.")
    return seconds


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """An output folder in nobody else's hands, made if it is missing, without files a killed process began.

    If something fails before a file is written to it, the folders that were made are removed.

    Args:
        folder: the folder; it holds the file `LOCK` meanwhile.

    Yields:
        None: while no other process can hold it.

    Raises:
        SettingError: if another process holds it, or it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        writable(folder)
        with locked(folder / LOCK) as mine:
            if not mine:
                raise SettingError(
                    f"`out` {str(folder)!r} is in use by another process. Wait, or choose another."
                )
            remove_parts(folder / "*")
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    except BaseException:
        for path in made:
            with suppress(OSError):  # it is not empty: there is something to go on with, or somebody else's
                path.rmdir()
        raise


def content(folder: Path) -> list[Path]:
    """What an output folder holds, but for its lock and files that a killed process began."""
    began = {*parts(folder / "*")}
    return [path for path in folder.iterdir() if path.name != LOCK and path not in began]


def check_free(out: Path) -> None:
    """Refuse an output folder that holds something, or is a file."""
    if out.exists() and (not out.is_dir() or content(out)):
        what = "holds something" if out.is_dir() else "is a file"
        raise SettingError(f"`out` {str(out)!r} already {what}; choose another folder.")


def claim(folder: Path, recipe: Recipe, resume: bool) -> Result | None:
    """Check that a folder is free or holds this very run.

    Args:
        folder: the folder, which is `held`.
        recipe: the resolved recipe of the run.
        resume: whether it may hold the run.

    Returns:
        The result of the run if it is finished.

    Raises:
        SettingError: if the folder holds another run, files of something else in place of a run's, or
            anything without ``resume``.
    """
    existing = [name for name in (RESULT, CHECKPOINT, MODEL) if (folder / name).exists()]
    if not resume:
        if existing and existing[0] != MODEL:
            raise SettingError(
                f"`out` already holds a run ({folder / existing[0]}). Pass `--resume` to go on with it, or "
                "choose another folder."
            )
        check_free(folder)
    if RESULT in existing:
        payload = read_json(folder / RESULT)
        with _of_a_run(folder / RESULT):
            result = Result.from_json(payload)
        _same(result.recipe, result.version, recipe, folder)
        if MODEL in existing:
            (folder / CHECKPOINT).unlink(missing_ok=True)
            return result
    for name in (CHECKPOINT, MODEL):
        if name in existing:  # a model alone is that of a run killed before it wrote its result
            _, note = read_tensors(folder / name)
            with _of_a_run(folder / name):
                old = Recipe.from_json(note["recipe"])
            _same(old, note.get("version", RESULTS if name == MODEL else 1), recipe, folder)
    return None


@contextmanager
def _of_a_run(path: Path) -> Iterator[None]:
    """Say which file it is that no run wrote."""
    try:
        yield
    except (SettingError, KeyError, TypeError) as error:
        raise SettingError(
            f"{path} is of no run to go on with ({error}). Choose another `out`, or leave `resume` out."
        ) from None


def _same(old: Recipe, version: int, new: Recipe, folder: Path) -> None:
    was = {**old.to_json(), "version of results": version}
    now = {**new.to_json(), "version of results": RESULTS}
    differ = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if differ:
        changes = ", ".join(f"{name}: {was.get(name)} there, {now.get(name)} here" for name in differ)
        raise SettingError(f"{folder} holds another run ({changes}). Choose another `out`.")


def _restored(
    folder: Path | None, net: Network, stages: Sequence[Stage], seed: int, here: dict[str, Any]
) -> tuple[State, list[Point], float, dict[str, Any]]:
    """The state to go on from, its trajectory, the seconds it took and the environment it began in."""
    if folder is None or not (folder / CHECKPOINT).exists():
        return enter(net, stages, 0, seed), [], 0.0, here
    _, note = read_tensors(folder / CHECKPOINT)
    state = enter(net, stages, note.get("stage", 0), seed)
    load_state(folder / CHECKPOINT, state)
    trajectory = [Point.from_json(point) for point in note["trajectory"]]
    return state, trajectory, note["seconds"], _resumed(note["environment"], here)


def _resumed(began: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """The environment a run began in; under ``resumed_on`` each other one it was resumed on, once.

    >>> _resumed({"threads": 1}, {"threads": 1})
    {'threads': 1}
    >>> _resumed({"threads": 1}, {"threads": 2})
    {'threads': 1, 'resumed_on': [{'threads': 2}]}
    """
    others = began.get("resumed_on", [])
    if here in ({name: value for name, value in began.items() if name != "resumed_on"}, *others):
        return began
    return {**began, "resumed_on": [*others, here]}


def _save(
    folder: Path,
    state: State,
    recipe: Recipe,
    trajectory: list[Point],
    seconds: float,
    machine: dict[str, Any],
) -> None:
    note = {
        "recipe": recipe.to_json(),
        "trajectory": [asdict(point) for point in trajectory],
        "seconds": seconds,
        "environment": machine,
        "version": RESULTS,
    }
    save_state(folder / CHECKPOINT, state, note)


def _as_deployed(net: Network, stage: Stage, state: State, batches: Batches, recipe: Recipe) -> State:
    """The state after a step, with the buffers of the deterministic network."""
    noise = generator(recipe.seed, "evaluation", state.step, device=state.weights.device)
    now = Moment(state.step - 1, stage.plan.steps, noise)
    return replace(state, buffers=deployed_buffers(net, stage.sparsifier, state, batches, now))


def _point(
    net: Network, stage: Stage, state: State, data: DataSet, batches: Batches, recipe: Recipe, record: Record
) -> Point:
    sparsifier = stage.sparsifier
    weights, ready = deployed(sparsifier, state), _as_deployed(net, stage, state, batches, recipe)
    loss = recipe.loss(data)
    scores = {name: evaluate(net, ready, weights, split, loss) for name, split in data.splits.items()}
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
