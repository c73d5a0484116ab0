"""What ``sparseirm fit``, ``predict`` and ``evaluate`` do with images."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from sparseirm.core import SettingError
from sparseirm.data.decoding import is_image_name
from sparseirm.data.disk import holders, image_bytes
from sparseirm.data.own import pixels, refuse_other_encodings
from sparseirm.experiments.bar import bar
from sparseirm.experiments.executors import cores, local
from sparseirm.experiments.sheets import plain_console
from sparseirm.files import read_tensors, write_bytes
from sparseirm.losses import BINARY, MULTICLASS
from sparseirm.monitor import listed
from sparseirm.runs import MODEL, load_model
from sparseirm.study.assessment import probabilities
from sparseirm.study.common import (
    check_numbers,
    check_output,
    claimed,
    say_files,
    say_findings,
    say_table,
    write_result,
)
from sparseirm.study.image_result import as_image_result
from sparseirm.study.image_runs import CHUNK, candidates, logits_of, rounds
from sparseirm.study.image_study import ImageStudy, conduct_images
from sparseirm.study.images import Images, find_images, listed_images
from sparseirm.study.scoring import Scores, class_numbers, known, scores_by_environment, tell
from sparseirm.training.loop import Record


def fit_images(
    data: Path,
    *,
    test_env: Sequence[str] = (),
    method: str = "auto",
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = None,
    size: int = 32,
    model: str = "mlp",
    width: int | None = None,
    densities: Sequence[float] = (),
    workers: int | None = None,
    out: Path = Path("out/fit"),
) -> ImageStudy:
    """Compare methods on images, and write network, result and report; see `sparseirm.study.fit.fit`.

    Args:
        data: a folder ENVIRONMENT/CLASS/IMAGE, or a CSV file with the columns path, label and env.
        test_env: environments that no choice looks at.
        method: which method to take; auto applies the rule.
        seeds: seeds of the comparison.
        steps: optimiser steps of every run.
        size: pixels per side.
        model: the network.
        width: hidden units of the mlp's layers.
        densities: fractions of the weights that SparseIRM keeps, each tried.
        workers: number of processes; by default one per core, as far as there is memory for their images.
        out: folder to write to.

    Returns:
        The study.
    """
    check_numbers(seeds, steps)
    images = find_images(data, test_env, size, model, width, steps)
    tried = candidates(model == "mlp", densities)
    console = plain_console()
    for line in _described(images, data):
        console.print(line)
    n_processes = _processes(images, size, console) if workers is None else workers
    with claimed(out), local(n_processes) as pool, tempfile.TemporaryDirectory() as folder:
        fits = len(tried) * len(rounds(images, seeds))
        with bar("comparing", fits, "runs") as on_fit, bar("final run", 1, "steps") as on_step:

            def after_step(record: Record, steps: int) -> None:
                on_step(completed=record.step, total=steps)

            study = conduct_images(
                images, tried, seeds, pool, Path(folder), method, lambda: on_fit(advance=1), after_step
            )
        settings: dict[str, Any] = {
            "data": data.name,
            "test_env": test_env,
            "method": method,
            "seeds": seeds,
            "steps": steps,
            "size": size,
            "model": model,
            "width": images.recipe.width,
            "densities": densities,
            "out": str(out),
        }
        result = as_image_result(study, settings)
        write_bytes(out / MODEL, (Path(folder) / MODEL).read_bytes())
        write_result(out, result)
    say_table(console, study.table, study.choice, "accuracy")
    say_findings(console, study.findings)
    say_files(console, out, study.seconds)
    return study


def _processes(images: Images, size: int, console: Console) -> int:
    """How many processes compare, each of which holds all images: as many as cores and memory allow."""
    n = len(images.entries)
    found, most = cores(), holders(n, size)
    if most is None or most >= found:
        return found
    needed = image_bytes(n, size) / 1e9
    console.print(
        f"{most} of {found} cores are used: each process holds {needed:.1f} GB of images, "
        "all of them at most half of the memory. A smaller `size` lets more run; `workers` overrules this."
    )
    return most


def predict_images(model: Path, data: Path, *, output: Path) -> int:
    """Predict images with a network that ``sparseirm fit`` wrote; see `sparseirm.study.fit.predict`.

    Args:
        model: the folder that `sparseirm fit` wrote.
        data: a folder of images, searched to the bottom, or one image.
        output: the CSV file to write.

    Returns:
        The number of images predicted.

    Raises:
        SettingError: if there are no images, one cannot be read or has a name that is not UTF-8, or the model
            does not know its labels or takes other inputs than square images in colour.
    """
    module, size, labels = _network(model)
    paths = _images_below(data)
    refuse_other_encodings(path.relative_to(data if data.is_dir() else data.parent) for path in paths)
    check_output(output, data)
    sure = probabilities(_logits(module, paths, size)).tolist()
    rows = [
        [path.relative_to(data).as_posix() if data.is_dir() else path.name, labels[int(np.argmax(p))], *p]
        for path, p in zip(paths, sure, strict=True)
    ]
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows(
        [["path", "prediction", *(f"probability_{label}" for label in labels)], *rows]
    )
    write_bytes(output, lines.getvalue().encode())
    print(f"{len(rows)} predictions: {output}")
    return len(rows)


def evaluate_images(model: Path, data: Path, *, output: Path | None = None) -> list[Scores]:
    """Score a network on new images whose classes are known; see `sparseirm.study.fit.evaluate`.

    Args:
        model: the folder that `sparseirm fit` wrote.
        data: a folder ENVIRONMENT/CLASS/IMAGE, or a CSV file with the columns path, label and env.
        output: a CSV file to write the scores to.

    Returns:
        The scores by environment, and on all images if there are more than one.

    Raises:
        SettingError: if there are no images, one cannot be read or is of a class the model does not know, or
            the model takes no images.
    """
    module, size, labels = _network(model)
    entries, past = listed_images(data), known(model)
    if output is not None:
        check_output(output, data)
    target = class_numbers([entry.label for entry in entries], labels, str(data))
    logits = _logits(module, [entry.path for entry in entries], size)
    loss = BINARY if logits.ndim == 1 else MULTICLASS
    env = np.array([entry.env for entry in entries])
    found = scores_by_environment(env, logits, target, loss, labels)
    tell(plain_console(), found, past, output)
    return found


def _network(model: Path) -> tuple[nn.Module, int, list[str]]:
    """A trained network, the side of the images it takes, and its labels."""
    module, note = load_model(model), read_tensors(model / MODEL)[1]
    if "labels" not in note:
        raise SettingError(f"{model / MODEL} does not know its labels; train it with `sparseirm fit`.")
    channels, *sides = note["input_shape"]
    if channels != 3 or len(sides) != 2 or len({*sides}) > 1:
        raise SettingError(
            f"{model / MODEL} takes inputs of shape {' x '.join(map(str, note['input_shape']))}, not square "
            "images in colour (3 x SIZE x SIZE); train on your own with `sparseirm fit`."
        )
    return module, sides[0], note["labels"]


def _logits(module: nn.Module, paths: Sequence[Path], size: int) -> Tensor:
    """Logits of image files, of which only some are in memory at a time."""
    parts = [paths[at : at + CHUNK] for at in range(0, len(paths), CHUNK)]
    return torch.cat(
        [logits_of(module, torch.stack([pixels(path, size) for path in part])) for part in parts]
    )


def _described(images: Images, data: Path) -> Iterator[str]:
    counts = Counter(entry.env for entry in images.entries)
    yield f"{data.name}: {len(images.entries)} images. Classes: {listed(images.classes)}."
    yield f"Environments for training: {listed([f'{name} ({counts[name]})' for name in images.train_envs])}"
    if images.test_envs:
        yield f"  for the test only: {listed([f'{name} ({counts[name]})' for name in images.test_envs])}"


def _images_below(data: Path) -> list[Path]:
    """The image files of a folder, in order of their names; or the one named."""
    if not data.exists():
        raise SettingError(f"there is no file or folder {data}.")
    if not data.is_dir():
        return [data]
    paths = sorted(path for path in data.rglob("*") if path.is_file() and is_image_name(path.name))
    if not paths:
        raise SettingError(f"{data} holds no images.")
    return paths
