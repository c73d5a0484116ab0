"""Your own images as a learning problem: which there are, and which environments are for what."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from sparseirm.core import SettingError
from sparseirm.data.construction import require
from sparseirm.data.decoding import rgb
from sparseirm.data.own import Entry, Listing, folder_entries, manifest_entries, refuse_empty
from sparseirm.monitor import counted
from sparseirm.recipe import Recipe
from sparseirm.registry import one_of
from sparseirm.study.problem import FEWEST_ROWS

LISTINGS: dict[str, Listing] = {"folder": folder_entries, "manifest": manifest_entries}
"""How images are listed, by the name of the data set."""

WIDTH, STEPS, LR = 128, 500, 2e-3
"""Hidden units, optimiser steps and learning rate of the small network, unless told otherwise."""

FULL_BATCH = 4096
"""Images up to which every step of the small network sees all of them."""


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


def find_images(
    root: Path,
    test_env: Sequence[str] = (),
    size: int = 32,
    model: str = "mlp",
    width: int | None = None,
    steps: int | None = None,
) -> Images:
    """List images and check what is asked of them.

    Args:
        root: a folder ``ENVIRONMENT/CLASS/IMAGE``, or a CSV file with the columns path, label and env.
        test_env: environments that no choice may look at.
        size: pixels per side that images are brought to, from 8 to 1024.
        model: name of the network, see `sparseirm.models.maker`; the MLP by default.
        width: hidden units of the MLP's layers.
        steps: optimiser steps of every run.

    Returns:
        The images.

    Raises:
        SettingError: if the size is out of its range, images cannot be listed, an environment is unknown, or
            too few environments, images or classes are left for training.
    """
    require(
        8 <= size <= 1024,
        "`size` must be an integer from 8 to 1024, in pixels per side",
        size,
        "Leave it out for 32.",
    )
    entries = listed_images(root)
    known = sorted({entry.env for entry in entries})
    refuse_empty(test_env, known, root)
    testing = tuple(one_of("environment", name, known) for name in dict.fromkeys(test_env))
    training = tuple(name for name in known if name not in testing)
    if len(training) < 2:
        raise SettingError(
            f"{counted(len(training), 'environment')} left for training in {root} "
            f"({', '.join(training) or 'none'}); invariance needs two or more. Images belong to "
            "ENVIRONMENT/CLASS/, or to the `env` of their line."
        )
    _check_classes(entries, testing, root)
    counts = Counter(entry.env for entry in entries)
    smallest = min(counts, key=lambda name: counts[name])
    if counts[smallest] < FEWEST_ROWS:
        raise SettingError(
            f"environment {smallest!r} has {counted(counts[smallest], 'image')}; each needs {FEWEST_ROWS} "
            "or more. Merge it with another, or take it out."
        )
    small, kind = model == "mlp", _kind(root)
    recipe = Recipe(
        data=kind,
        data_options={"size": size},
        test_envs=testing,
        model=model,
        width=WIDTH if small and width is None else width,
        steps=STEPS if small and steps is None else steps,
        lr=LR if small else None,
        method="erm",
        eval_every=1 << 30,
    )
    n = sum(entry.env in training for entry in entries)
    if small and n > FULL_BATCH:
        recipe = replace(recipe, batch_size=FULL_BATCH // 2)
    recipe.resolved()
    return Images(kind, root, entries, training, testing, recipe)


def listed_images(root: Path) -> list[Entry]:
    """The images of a folder or a CSV file, with their classes and environments.

    Args:
        root: a folder ``ENVIRONMENT/CLASS/IMAGE``, or a CSV file with the columns path, label and env.

    Returns:
        One entry per image.

    Raises:
        SettingError: if images cannot be listed, or there are none.
    """
    kind = _kind(root)
    entries = LISTINGS[kind](str(root))
    if not entries:
        raise SettingError(
            f"{root} holds no image {'in ENVIRONMENT/CLASS/IMAGE' if kind == 'folder' else 'in any line'}. "
            "Images are a folder ENVIRONMENT/CLASS/IMAGE, such as Ulm/cat/1.png, or a CSV file with the "
            "columns path, label, env."
        )
    return entries


def _kind(root: Path) -> str:
    return "folder" if root.is_dir() else "manifest"


def _check_classes(entries: Sequence[Entry], testing: Sequence[str], root: Path) -> None:
    """Refuse fewer than two classes to train on, and classes that only a test environment holds."""
    seen = sorted({entry.label for entry in entries if entry.env not in testing})
    if len(seen) < 2:
        raise SettingError(
            f"{root} has one class to train on ({seen[0]}); there must be two or more. Images belong to "
            "ENVIRONMENT/CLASS/, or to the `label` of their line."
        )
    for entry in entries:
        if entry.label not in seen:
            raise SettingError(
                f"class {entry.label!r} of test environment {entry.env!r} has no image in the training "
                "environments; it could never be predicted. Take it out, or choose another `test_env`."
            )


@contextmanager
def brought_to_size(images: Images) -> Iterator[Images]:
    """The same images as small files, so that the comparison does not decode large ones in every run."""
    size = int(images.recipe.data_options["size"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = []
        for at, entry in enumerate(images.entries):
            name = f"{at:07}.png"
            small = rgb(entry.path.read_bytes(), str(entry.path)).resize(
                (size, size), Image.Resampling.BILINEAR
            )
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
