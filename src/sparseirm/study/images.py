"""A study of your own images: compare methods by leaving environments out, choose, train the final network.

The same questions and the same rule as for a table (`sparseirm.study.choice`), with recipes in place of
estimators. Where a table has columns, images have pictures: the mean image of every class in every environment,
and where in the image the answer depends on it.
"""

from __future__ import annotations

import base64
import csv
import io
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

from sparseirm.core import Loss, SettingError
from sparseirm.data.decoding import rgb
from sparseirm.data.environments import DataSet, Split
from sparseirm.data.own import Entry, Listing, folder_entries, manifest_entries
from sparseirm.evaluation.readouts import disagreement
from sparseirm.monitor import Finding, Trace, before, during
from sparseirm.recipe import Recipe
from sparseirm.registry import one_of
from sparseirm.runs import Result, load_model, run
from sparseirm.study.assessment import Assessment, Candidate, Seen, one_hot, probabilities, seen_in
from sparseirm.study.choice import Choice, Standing, choose, standings
from sparseirm.study.comparison import gathered
from sparseirm.study.problem import FEWEST_ROWS
from sparseirm.study.result import calibration, comparison, spelled
from sparseirm.study.study import afterwards
from sparseirm.training.loop import Record

LISTINGS: dict[str, Listing] = {"folder": folder_entries, "manifest": manifest_entries}
"""How images are listed, by the name of the data set."""

SIZE, WIDTH, STEPS = 32, 128, 400
"""Defaults: pixels per side; hidden units and optimiser steps of the small network."""

DENSITIES = (0.01, 0.05)
"""Fractions of the weights that SparseIRM keeps, by default; one candidate each."""

LEFT_OUT = 1 / 3
"""Share of each environment's images that every seed leaves out of training to look at."""

FULL_BATCH = 4096
"""Images up to which every step of the small network sees all of them."""

SMALL_NETWORK: dict[str, Any] = {"penalty_from": 0.25}
SMALL_MASK: dict[str, Any] = {"shrink_to": 0.2, "decide_at": 0.25}
"""A penalty that starts later suits few images; see docs/tuning.md."""

CHUNK = 512
"""Images per forward pass."""

COARSE = 4
"""Pixels per side of the thumbnails that the monitor compares environments on."""


@dataclass(frozen=True)
class Images:
    """Images to learn from, and how.

    Attributes:
        kind: ``folder`` or ``manifest``.
        root: the folder, or the CSV file.
        entries: every image.
        train_envs: names of the training environments, in alphabetical order.
        test_envs: names of those that no choice looks at.
        recipe: what all runs have in common.
    """

    kind: str
    root: Path
    entries: list[Entry]
    train_envs: tuple[str, ...]
    test_envs: tuple[str, ...]
    recipe: Recipe

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in alphabetical order."""
        return tuple(sorted({entry.label for entry in self.entries}))


@dataclass(frozen=True)
class ImageStudy:
    """What a study found.

    Attributes:
        images: what was to be learnt.
        found: every run of the comparison.
        table: how each candidate did.
        choice: which one was taken.
        findings: the monitor's, in the order of the stages.
        result: the final run, of the candidate taken on all training images.
        folder: where its network is.
        means: mean image of every class, ``(3, size, size)``, by environment and class.
        attention: by candidate where the logits depend on the image, ``(size, size)`` in [0, 1].
        seconds: time it took.
    """

    images: Images
    found: list[Assessment]
    table: list[Standing]
    choice: Choice
    findings: list[Finding]
    result: Result
    folder: Path
    means: dict[str, dict[str, Tensor]]
    attention: dict[str, Tensor]
    seconds: float


def find_images(
    root: Path,
    test_env: Sequence[str] = (),
    size: int | None = None,
    model: str | None = None,
    width: int | None = None,
    steps: int | None = None,
) -> Images:
    """List images and check what is asked of them.

    Args:
        root: a folder ``ENVIRONMENT/CLASS/IMAGE``, or a CSV file with the columns path, label and env.
        test_env: environments that no choice may look at.
        size: pixels per side that images are brought to.
        model: name of the network, see `sparseirm.models.maker`; the MLP by default.
        width: hidden units of the MLP's layers.
        steps: optimiser steps of every run.

    Returns:
        The images.

    Raises:
        SettingError: if images cannot be listed, an environment is unknown, or too few are left for training.
    """
    kind = "folder" if root.is_dir() else "manifest"
    entries = LISTINGS[kind](str(root))
    known = sorted({entry.env for entry in entries})
    testing = tuple(one_of("environment", name, known) for name in dict.fromkeys(test_env))
    training = tuple(name for name in known if name not in testing)
    if len(training) < 2:
        raise SettingError(
            f"{len(training)} environment{'s'[: len(training) != 1]} left for training in {root} "
            f"({', '.join(training) or 'none'}); invariance needs two or more."
        )
    counts = Counter(entry.env for entry in entries)
    smallest = min(counts, key=lambda name: counts[name])
    if counts[smallest] < FEWEST_ROWS:
        raise SettingError(
            f"environment {smallest!r} has {counts[smallest]} images; each needs {FEWEST_ROWS} or more. Merge it "
            "with another, or take it out."
        )
    size = SIZE if size is None else size
    small = model in (None, "mlp")
    recipe = Recipe(
        data=kind,
        data_options={"size": size},
        test_envs=testing,
        model=model or "mlp",
        width=(width or WIDTH) if small else width,
        steps=STEPS if small and steps is None else steps,
        method="erm",
        eval_every=1 << 30,
    )
    n = sum(entry.env in training for entry in entries)
    if small and n > FULL_BATCH:
        recipe = replace(recipe, batch_size=FULL_BATCH // 2)
    recipe.resolved()
    return Images(kind, root, entries, training, testing, recipe)


def candidates(small: bool, densities: Sequence[float] = ()) -> list[Candidate]:
    """ERM, IRM with REx, and SparseIRM at several densities, as fields of a recipe.

    Args:
        small: whether the network is the MLP, whose settings were tuned.
        densities: fractions of the weights that SparseIRM keeps; `DENSITIES` by default.

    Returns:
        The candidates, the simplest first.

    Raises:
        SettingError: if a density is not in (0, 1].

    Example:
        >>> [candidate.name for candidate in candidates(small=True)]
        ['erm', 'irm', 'sparseirm-0.01', 'sparseirm-0.05']
    """
    penalty = {"penalty": "rex", **(SMALL_NETWORK if small else {})}
    mask = {"sparsifier_options": SMALL_MASK} if small else {}
    found = [
        Candidate("erm", "ERM", {"method": "erm"}),
        Candidate("irm", "IRM (REx)", {"method": "irm", **penalty}),
    ]
    for density in sorted(set(densities)) or DENSITIES:
        if not 0 < density <= 1:
            raise SettingError(f"`densities` must be in (0, 1], the fractions kept; got {density:g}.")
        sparse = {"method": "sparseirm", "density": density, **penalty, **mask}
        label = f"SparseIRM, {100 * density:g} % of the weights"
        found.append(Candidate(f"sparseirm-{density:g}", label, sparse))
    return found


def n_fits(images: Images, tried: Sequence[Candidate], seeds: Sequence[int]) -> int:
    """Number of runs of the comparison."""
    return len(tried) * len(_rounds(images, seeds))


def _rounds(images: Images, seeds: Sequence[int]) -> list[tuple[str, int, int | None, float]]:
    """``(kind, seed, environment left out, share of images left out)`` of every run of a candidate."""
    n = len(images.train_envs)
    held = [("held out", seed, e, 0.0) for e in range(n) for seed in seeds] if n >= 3 else []
    return [*held, *(("fresh", seed, None, LEFT_OUT) for seed in seeds)]


def conduct_images(
    images: Images,
    tried: Sequence[Candidate],
    seeds: Sequence[int],
    executor: Executor,
    folder: Path,
    wanted: str = "auto",
    on_fit: Callable[[], None] = lambda: None,
    on_step: Callable[[Record, int], None] = lambda record, steps: None,
) -> ImageStudy:
    """Compare, choose, and train the final network.

    Args:
        images: what is to be learnt.
        tried: the candidates, ERM among them.
        seeds: seeds of the runs; each leaves out other images.
        executor: where the runs of the comparison are carried out.
        folder: where the final run is written; it must not exist, or be empty.
        wanted: ``auto``, or which kind of candidate to take, see `sparseirm.study.choice.choose`.
        on_fit: called after every run of the comparison.
        on_step: called after every step of the final run, with its record and the number of steps.

    Returns:
        The study.

    Raises:
        SettingError: if an image cannot be read, or a run fails.
    """
    begun = time.monotonic()
    with _brought_to_size(images) as small:
        jobs = [
            (one, executor.submit(assess_images, small, one, *part))
            for one in tried
            for part in _rounds(images, seeds)
        ]
        pairs = gathered(jobs, on_fit)
        found = [assessment for assessment, _ in pairs]
        table = standings(tried, found)
        choice = choose(table, wanted)
        whole = _recipe(small, choice.taken.candidate, seeds[0], None, 0.0).make_data(str(small.root))
    final = _recipe(images, choice.taken.candidate, seeds[0], None, 0.0)
    steps = final.resolved().pinned(str(images.root)).plan(len(whole.train)).steps
    result = run(
        final, data_root=str(images.root), out=folder, on_step=lambda record, points: on_step(record, steps)
    )
    return ImageStudy(
        images=images,
        found=found,
        table=table,
        choice=choice,
        findings=[*_look(whole), *_on_run(result, choice.taken), *afterwards(choice, table, [], "accuracy")],
        result=result,
        folder=folder,
        means=_means(whole),
        attention={
            one.label: torch.stack([map_ for a, map_ in pairs if a.candidate == one.name and a.kind == "fresh"]).mean(0)
            for one in tried
            if one.name in ("erm", choice.taken.candidate.name)
        },
        seconds=time.monotonic() - begun,
    )


def assess_images(
    images: Images, candidate: Candidate, kind: str, seed: int, leave_out: int | None, share: float
) -> tuple[Assessment, Tensor]:
    """Train a candidate and look at it on images it did not see; to be run in a process of its own.

    Args:
        images: the images.
        candidate: what to train.
        kind: ``held out`` or ``fresh``, see `sparseirm.study.assessment.Assessment`.
        seed: seed of the run.
        leave_out: the training environment that is left out, or None.
        share: share of the images of the training environments that is left out.

    Returns:
        What came of it, and where the logits depend on the image, see `attention`.
    """
    recipe, root = _recipe(images, candidate, seed, leave_out, share), str(images.root)
    with tempfile.TemporaryDirectory() as folder:
        run(recipe, data_root=root, out=folder)
        module = load_model(folder)
    data = recipe.make_data(root)
    look = _Look(module, recipe.loss(data), _class_losses(data))
    assessment = Assessment(
        candidate=candidate.name,
        kind=kind,
        seed=seed,
        seen=look.at(data.val, agreement=kind == "fresh"),
        tested=look.at(data.test) if kind == "fresh" else [],
    )
    return assessment, attention(module, data.train.samples.x)


def _class_losses(data: DataSet) -> Tensor:
    """The loss of each class under the best constant prediction; every environment counts alike."""
    samples, k = data.train.samples, len(data.label_names)
    shares = [torch.bincount(samples.y[samples.env == e], minlength=k) for e in range(len(data.train.names))]
    mean = torch.stack([share / share.sum() for share in shares]).mean(0)
    return -mean.clamp_min(0.5 / len(data.train)).log()


@dataclass(frozen=True)
class _Look:
    """A trained network, to be looked at environment by environment."""

    module: nn.Module
    loss: Loss
    class_losses: Tensor

    def at(self, split: Split | None, agreement: bool = False) -> list[Seen]:
        if split is None:
            return []
        logits, y, env = logits_of(self.module, split.samples.x), split.samples.y, split.samples.env
        apart = self._disagreement(logits, y, env) if agreement else [None] * len(split.names)
        return [
            seen_in(name, logits[here], y[here], self.loss, float(self.class_losses[y[here]].mean()), apart[e])
            for e, name in enumerate(split.names)
            for here in [env == e]
        ]

    def _disagreement(self, logits: Tensor, y: Tensor, env: Tensor) -> list[float | None]:
        """Of the environments on how to use the logits, which is what IRMv1 measures too."""
        scaled = logits.reshape(len(y), -1).double()
        scaled = scaled / scaled.std(0).clamp_min(1e-9)
        residual = one_hot(y, logits) - probabilities(logits.double())
        found = disagreement(scaled.numpy(), residual.numpy(), env.numpy())
        return [None if math.isnan(value) else float(value) for value in found]


def _recipe(images: Images, candidate: Candidate, seed: int, leave_out: int | None, share: float) -> Recipe:
    options = {**images.recipe.data_options, "val_fraction": share}
    return replace(
        images.recipe, data_options=options, seed=seed, leave_out=leave_out, **dict(candidate.parameters)
    )


@torch.no_grad()
def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Logits of images in evaluation mode, some at a time.

    Args:
        module: the network.
        x: ``(n, 3, size, size)``.

    Returns:
        ``(n,)`` for two classes, else ``(n, k)``.
    """
    out = torch.cat([module.eval()(part) for part in torch.split(x, CHUNK)])
    return out[:, 0] if out.shape[1] == 1 else out


def attention(module: nn.Module, x: Tensor) -> Tensor:
    """Where the logits depend on the image: mean size of their gradient by every pixel.

    Args:
        module: the network.
        x: ``(n, 3, size, size)``; the first `CHUNK` images are used.

    Returns:
        ``(size, size)``, relative to the largest.
    """
    images = x[:CHUNK].clone().requires_grad_()
    out = module.eval()(images)
    total = torch.zeros(x.shape[2:])
    for k in range(out.shape[1]):
        (slope,) = torch.autograd.grad(out[:, k].sum(), images, retain_graph=True)
        total += slope.abs().mean((0, 1))
    return total / total.max().clamp_min(1e-30)


@contextmanager
def _brought_to_size(images: Images) -> Iterator[Images]:
    """The same images as small files, so that the comparison does not decode large ones in every run."""
    size = int(images.recipe.data_options["size"])  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = []
        for at, entry in enumerate(images.entries):
            name = f"{at:07}.png"
            small = rgb(entry.path.read_bytes(), str(entry.path)).resize((size, size), Image.Resampling.BILINEAR)
            small.save(folder / name)
            rows.append((name, entry.label, entry.env))
        table = folder / "images.csv"
        with table.open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([("path", "label", "env"), *rows])
        yield replace(
            images,
            kind="manifest",
            root=table,
            entries=manifest_entries(str(table)),
            recipe=replace(images.recipe, data="manifest"),
        )


def _look(data: DataSet) -> list[Finding]:
    """The monitor's findings on the training images, as coarse thumbnails."""
    samples = data.train.samples
    thumbnails = nn.functional.adaptive_avg_pool2d(samples.x, COARSE).flatten(1).double().numpy()
    y, env = samples.y.double().numpy(), samples.env.numpy()
    return before(thumbnails, y, env, data.train.names, data.label_names)


def _on_run(result: Result, taken: Standing) -> list[Finding]:
    last, score = result.trajectory[-1], result.last["train"]
    trace = Trace(last.step, tuple(score.risks.values()), last.penalty, 0.0, 0.0, True, math.nan)
    constant_risk = float(np.mean([one.constant_risk for one in taken.fresh]))
    return during(
        [trace],
        budget=result.budget,
        kept=result.kept,
        undecided=last.undecided,
        constant_risk=constant_risk,
    )


def _means(data: DataSet) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for split in (data.train, data.test):
        for e, name in enumerate(split.names if split else ()):
            samples = split.samples  # type: ignore[union-attr]
            groups = {
                label: samples.x[(samples.env == e) & (samples.y == k)] for k, label in enumerate(data.label_names)
            }
            found[name] = {label: x.mean(0) for label, x in groups.items() if len(x)}
    return found


def as_image_result(study: ImageStudy, settings: dict[str, Any]) -> dict[str, Any]:
    """The study as plain data, in the form of `sparseirm.study.result.as_result`.

    Args:
        study: what was found.
        settings: what the command was told.

    Returns:
        Plain data: ``columns`` is None; ``data`` holds mean images and ``attention`` maps, as data URLs.
    """
    images, choice, result = study.images, study.choice, study.result
    taken = choice.taken.candidate
    return cast(
        dict[str, Any],
        spelled(
            {
                "status": "done",
                "kind": "images",
                "settings": settings,
                "data": {
                    "rows": len(images.entries),
                    "target": " or ".join(images.classes),
                    "task": "classification",
                    "classes": images.classes,
                    "env": "environment",
                    "columns": [],
                    "environments": [
                        _environment(study, name) for name in (*images.train_envs, *images.test_envs)
                    ],
                },
                "findings": [asdict(finding) for finding in study.findings],
                "comparison": comparison(choice, study.table, "accuracy"),
                "columns": None,
                "calibration": {name: calibration(study.found, name) for name in {"erm": 0, taken.name: 0}},
                "attention": {name: _picture(_heated(map_)) for name, map_ in study.attention.items()},
                "model": {
                    "candidate": taken.name,
                    "parameters": dict(taken.parameters),
                    "n_weights": result.n_weights,
                    "kept": result.kept,
                    "steps": result.trajectory[-1].step,
                    "recipe": result.recipe.to_json(),
                },
                "seconds": study.seconds,
                "environment": result.environment,
            }
        ),
    )


def _environment(study: ImageStudy, name: str) -> dict[str, Any]:
    labels = Counter(entry.label for entry in study.images.entries if entry.env == name)
    return {
        "name": name,
        "role": "train" if name in study.images.train_envs else "test",
        "rows": labels.total(),
        "labels": dict(labels),
        "means": {label: _picture(mean) for label, mean in study.means[name].items()},
    }


def _heated(values: Tensor) -> Tensor:
    """A map in [0, 1] as colours, ``(3, size, size)``."""
    return torch.from_numpy(colormaps["inferno"](values.numpy())[..., :3]).permute(2, 0, 1)


def _picture(x: Tensor) -> str:
    """An image ``(3, size, size)`` in [0, 1] as the data URL of a PNG file."""
    pixels = (255 * x).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
