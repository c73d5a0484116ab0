"""A whole study of your own images: compare, choose by the rule for tables, train the final network.

Where a table has columns, images have pictures: the mean image of every class in every environment, and where
in the image the answer depends on it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparseirm.data.environments import DataSet
from sparseirm.experiments.executors import Submitter
from sparseirm.files import digest
from sparseirm.monitor import Finding, Trace, before, during, spellings
from sparseirm.runs import Result, run
from sparseirm.study.assessment import Assessment, Candidate
from sparseirm.study.choice import Choice, Standing, choose, standings
from sparseirm.study.comparison import gathered
from sparseirm.study.image_runs import assess_images, recipe_of, rounds
from sparseirm.study.images import Images, brought_to_size
from sparseirm.study.study import afterwards
from sparseirm.training.loop import Record

COARSE = 4
"""Pixels per side of the thumbnails that the monitor compares environments on."""


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


def conduct_images(
    images: Images,
    tried: Sequence[Candidate],
    seeds: Sequence[int],
    executor: Submitter,
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
    with brought_to_size(images) as small:
        jobs = [
            (one, executor.submit(assess_images, small, one, *part))
            for one in tried
            for part in rounds(images, seeds)
        ]
        pairs = gathered(jobs, on_fit)
        found = [assessment for assessment, _ in pairs]
        table = standings(tried, found)
        choice = choose(table, wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            whole = recipe_of(small, choice.taken.candidate, seeds[0]).make_data(str(small.root))
        copies = _copies(small)
    final = recipe_of(images, choice.taken.candidate, seeds[0])
    steps = final.resolved().pinned(str(images.root)).plan(len(whole.train)).steps
    result = run(
        final, data_root=str(images.root), out=folder, on_step=lambda record, points: on_step(record, steps)
    )
    return ImageStudy(
        images=images,
        found=found,
        table=table,
        choice=choice,
        findings=[
            *copies,
            *spellings({"environments": [*images.train_envs, *images.test_envs], "classes": images.classes}),
            *_look(whole),
            *_on_run(result, choice.taken),
            *afterwards(choice, table, [], "accuracy"),
        ],
        result=result,
        folder=folder,
        means=_means(whole),
        attention={
            one.label: torch.stack(
                [map_ for a, map_ in pairs if a.candidate == one.name and a.kind == "fresh"]
            ).mean(0)
            for one in tried
            if one.name in ("erm", choice.taken.candidate.name)
        },
        seconds=time.monotonic() - begun,
    )


def _copies(images: Images) -> list[Finding]:
    """Whether images of different environments are the same, as far as one can see at their size."""
    found: dict[str, set[str]] = defaultdict(set)
    places = [(digest(entry.path.read_bytes()), entry.env) for entry in images.entries]
    for content, env in places:
        found[content].add(env)
    n = sum(len(found[content]) > 1 for content, _ in places)
    if not n:
        return []
    return [
        Finding(
            *("before", "warning", "copies"),
            f"{n} of {len(places)} images look exactly like one of another environment at this size.",
            "An environment left out is then not new, and scores are too good. Keep every image in one "
            "environment only.",
        )
    ]


def _look(data: DataSet) -> list[Finding]:
    """The monitor's findings on the training images, as coarse thumbnails."""
    samples = data.train.samples
    thumbnails = nn.functional.adaptive_avg_pool2d(samples.x, COARSE).flatten(1).double().numpy()
    y, env = samples.y.double().numpy(), samples.env.numpy()
    return before(thumbnails, y, env, data.train.names, data.label_names, images=True)


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
        images=True,
    )


def _means(data: DataSet) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for split in (data.train, data.test):
        for e, name in enumerate(split.names if split else ()):
            samples = split.samples  # type: ignore[union-attr]
            groups = {
                label: samples.x[(samples.env == e) & (samples.y == k)]
                for k, label in enumerate(data.label_names)
            }
            found[name] = {label: x.mean(0) for label, x in groups.items() if len(x)}
    return found
