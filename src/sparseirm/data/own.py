"""Your own images: folders of environments and classes, or a table of paths.

A test environment is one you name; all others train. Of each training environment a share is held out for
validation. Nothing here knows of a spurious attribute.
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.data.construction import require
from sparseirm.data.decoding import is_image_name, rgb
from sparseirm.data.disk import room
from sparseirm.data.environments import Batch, DataSet, Split
from sparseirm.files import digest
from sparseirm.randomness import generator
from sparseirm.registry import one_of

OPTIONS: dict[str, Any] = {"size": 64, "val_fraction": 0.1}
"""Further options: pixels per side, and the share of each training environment held out for validation."""

COLUMNS = ("path", "label", "env")
"""The columns of a manifest."""


@dataclass(frozen=True, order=True)
class Entry:
    """An image file with what is known of it.

    Attributes:
        env: the environment's name.
        label: the class's name.
        path: the file.
    """

    env: str
    label: str
    path: Path


Listing = Callable[[str | None], list[Entry]]
"""``(data_root) -> entries``, sorted."""


def folder_entries(data_root: str | None) -> list[Entry]:
    """The images of ``DIR/environment/class/image``, DomainBed's convention.

    Args:
        data_root: the folder ``DIR``. Hidden files and folders are passed over; so are files that are no
            images by name or lie elsewhere below ``DIR``, and environments without images, with a warning.

    Returns:
        One entry per image, sorted by environment, class and name.

    Raises:
        SettingError: if there is no such folder, a class has a folder but no image anywhere, or the name of
            an environment or a class is not UTF-8.
    """
    root = _root(data_root, "folder", "the folder that holds ENVIRONMENT/CLASS/IMAGE")
    require(root.is_dir(), "`data_root` must be a folder for data set 'folder'", str(root), "Check the path.")
    classes = [path for path in _visible(root, "*/*") if path.is_dir()]
    refuse_other_encodings([path.relative_to(root) for path in classes])
    inside = [path for folder in classes for path in _visible(folder, "*")]
    images = [path for path in inside if path.is_file() and is_image_name(path.name)]
    empty = {folder.name for folder in classes} - {path.parent.name for path in images}
    require(
        not empty,
        f"every class in {root} needs an image in some environment; there are folders without any",
        sorted(empty),
        "Fill or remove them.",
    )
    strays = [path for path in _visible(root, "*") if path.is_file() and is_image_name(path.name)]
    strays += [path for path in _visible(root, "*/*") if path.is_file()] + sorted({*inside} - {*images})
    if strays:
        warnings.warn(
            f"what is no image in ENVIRONMENT/CLASS/ of {root} is not used, such as "
            f"{strays[0].relative_to(root)} ({len(strays)} in all)",
            stacklevel=2,
        )
    for name in _without_images(root, {path.parent.parent.name for path in images}):
        warnings.warn(f"environment {name!r} holds no image and is left out", stacklevel=2)
    return sorted(Entry(path.parent.parent.name, path.parent.name, path) for path in images)


def refuse_other_encodings(paths: Iterable[Path]) -> None:
    """Refuse names that are not UTF-8, as old archives leave them: no text file could hold them.

    Args:
        paths: files or folders.

    Raises:
        SettingError: naming the first such path.
    """
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise SettingError(f"the name of {str(path)!r} is not UTF-8. Rename it.") from None


def manifest_entries(data_root: str | None) -> list[Entry]:
    """The images of a CSV file with the columns ``path``, ``label`` and ``env``; further ones are ignored.

    Args:
        data_root: the CSV file (UTF-8, comma). Paths are relative to its folder and must stay in it.

    Returns:
        One entry per line, sorted by environment, class and path.

    Raises:
        SettingError: if there is no such file, a column or a value is missing, a path leads out of the
            folder, or an image is listed twice or does not exist.
    """
    table = _root(data_root, "manifest", "the CSV file with the columns path, label, env")
    require(
        table.is_file(),
        "`data_root` must be a CSV file for data set 'manifest'",
        str(table),
        "Check the path.",
    )
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            require(
                not missing,
                f"{table} must have the columns {', '.join(COLUMNS)}; it lacks {', '.join(sorted(missing))}",
                list(reader.fieldnames or ()),
                "Name them in the first line.",
            )
            entries = [_entry(row, table, reader.line_num) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingError(f"{table} cannot be read as a CSV file in UTF-8 ({error}). Repair it.") from None
    twice = [path for path, count in Counter(entry.path for entry in entries).items() if count > 1]
    require(
        not twice, f"{table} must list an image once", [str(path) for path in twice[:3]], "Keep one line."
    )
    return sorted(entries)


def _entry(row: dict[str, str | None], table: Path, line: int) -> Entry:
    values = {name: (row[name] or "").strip() for name in COLUMNS}
    for name, value in values.items():
        require(bool(value), f"line {line} of {table} must have a value for `{name}`", value, "Complete it.")
    path = Path(values["path"])
    require(
        not path.is_absolute() and ".." not in path.parts,
        f"`path` in line {line} of {table} must be relative to the folder of that file, and stay in it",
        values["path"],
        "Move the CSV file to a folder that holds all images.",
    )
    whole = table.parent / path
    require(
        whole.is_file(), f"`path` in line {line} of {table} must be a file", values["path"], "Correct it."
    )
    return Entry(values["env"], values["label"], whole)


def own_images(
    entries: Listing,
    name: str,
    data_root: str | None,
    test_envs: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 64,
    val_fraction: float = 0.1,
) -> DataSet:
    """A data set of your own images.

    Images are turned upright, brought to RGB (see `sparseirm.data.decoding.rgb`) and stretched to a square,
    as DomainBed does. Labels are the classes in alphabetical order.

    Args:
        entries: lists the images: `folder_entries` or `manifest_entries`.
        name: name in recipes and results.
        data_root: the folder, or the CSV file.
        test_envs: the environments that are kept for the test; two or more must be left. An empty tuple keeps
            none: there is no test split then.
        seed: decides which training images are held out.
        size: height and width in pixels, from 8 to 1024.
        val_fraction: share of each training environment that is held out for validation, in [0, 1); rounded,
            but at least one image unless it is 0.

    Returns:
        Samples with ``x`` ``(n, 3, size, size)``, red, green and blue in [0, 1]; ``spurious`` is None.

    Raises:
        SettingError: if an argument is out of its range, an image cannot be read, there are too few
            environments or classes, or the images fit neither into memory nor onto the disk.
    """
    require(
        type(size) is int and 8 <= size <= 1024,
        "`size` must be an integer from 8 to 1024, in pixels",
        size,
        "Leave it out for 64.",
    )
    require(
        isinstance(val_fraction, int | float) and 0 <= val_fraction < 1,
        "`val_fraction` must lie in [0, 1), the share of each training environment that is held out",
        val_fraction,
        "For ten per cent pass 0.1.",
    )
    found = entries(data_root)
    training, testing = _environments(found, test_envs, str(data_root))
    _check_classes(found, training, testing)
    place = room(len(found), size)
    classes = tuple(sorted({entry.label for entry in found}))
    train, val = _held_out([entry for entry in found if entry.env in training], seed, val_fraction)
    test = [entry for entry in found if entry.env in testing]
    _warn_of_copies(train, {"validation": val, "test": test})
    return DataSet(
        name=name,
        train=_split(train, training, classes, place, size),
        val=_split(val, training, classes, place, size) if val else None,
        test=_split(test, testing, classes, place, size) if test else None,
        loss="binary" if len(classes) == 2 else "multiclass",
        n_outputs=1 if len(classes) == 2 else len(classes),
        label_names=classes,
    )


folder = partial(own_images, folder_entries, "folder")
"""`own_images` of ``DIR/environment/class/image``."""

manifest = partial(own_images, manifest_entries, "manifest")
"""`own_images` of a CSV file."""


def n_classes(name: str, data_root: str | None) -> int:
    """How many classes images have.

    Args:
        name: ``folder`` or ``manifest``.
        data_root: the folder, or the CSV file.

    Returns:
        The number of classes in all environments together.

    Raises:
        SettingError: if the images cannot be listed.
    """
    entries = folder_entries if name == "folder" else manifest_entries
    return len({entry.label for entry in _silently(entries, data_root)})


def _silently(entries: Listing, data_root: str | None) -> list[Entry]:
    """Without what is said once, when the images are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return entries(data_root)


def fingerprint(entries: Listing, data_root: str | None) -> str:
    """What the images are, as a SHA-256 of every environment, class and content.

    Args:
        entries: `folder_entries` or `manifest_entries`.
        data_root: the folder, or the CSV file.

    Returns:
        The digest in hexadecimal: the same for the same images however they are listed.

    Raises:
        SettingError: if the images cannot be listed.
    """
    seen = [
        (entry.env, entry.label, digest(entry.path.read_bytes())) for entry in _silently(entries, data_root)
    ]
    return digest(repr(seen).encode())


def refuse_empty(test_envs: Iterable[str], known: Collection[str], data_root: str | Path) -> None:
    """Refuse test environments whose folders hold no images.

    Args:
        test_envs: the environments asked for.
        known: those that hold images.
        data_root: the folder, or the CSV file.

    Raises:
        SettingError: naming the first such environment.
    """
    empty = _without_images(Path(data_root).expanduser(), known)
    for name in test_envs:
        if name in empty:
            raise SettingError(
                f"environment {name!r} holds no image in a folder of a class. Add images, or name another: "
                f"there {'are' if known else 'is'} {', '.join(sorted(known)) or 'none'}."
            )


def _without_images(root: Path, known: Collection[str]) -> list[str]:
    """Names of the folders in ``root`` that are none of the environments that hold images."""
    return [path.name for path in _visible(root, "*") if path.is_dir() and path.name not in known]


def _root(data_root: str | None, name: str, what: str) -> Path:
    if not data_root:
        raise SettingError(f"data set {name!r} needs `data_root` (on the command line --data-root): {what}.")
    return Path(data_root).expanduser()


def _visible(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern))
    return [path for path in found if not any(p.startswith(".") for p in path.relative_to(root).parts)]


def _environments(
    found: Iterable[Entry], test_envs: Sequence[str] | None, data_root: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the training and of the test environments."""
    known = sorted({entry.env for entry in found})
    refuse_empty(test_envs or (), known, data_root)
    least, why = (2, "to train on") if test_envs == () else (3, "two to train on and one to test on")
    require(
        len(known) >= least,
        f"{data_root} must hold {('two', 'three')[least - 2]} environments or more, {why}",
        known,
        "Images belong to ENVIRONMENT/CLASS/, or to the `env` of their line.",
    )
    if not test_envs and test_envs != ():
        raise SettingError(
            "`test_envs` must name the environments kept for the test (on the command line --test-envs); "
            f"there are {', '.join(known)}."
        )
    testing = tuple(one_of("environment", name, known) for name in dict.fromkeys(test_envs))
    training = tuple(name for name in known if name not in testing)
    require(
        len(training) >= 2,
        "`test_envs` must leave two environments or more to train on",
        list(testing),
        f"There are {', '.join(known)}.",
    )
    return training, testing


def _check_classes(found: Sequence[Entry], training: Sequence[str], testing: Sequence[str]) -> None:
    classes = {env: {entry.label for entry in found if entry.env == env} for env in (*training, *testing)}
    seen = set().union(*(classes[env] for env in training))
    require(len(seen) >= 2, "there must be two classes or more to train on", sorted(seen), "Add images.")
    for env in testing:
        require(
            classes[env] <= seen,
            f"test environment {env!r} must hold only classes that training environments hold",
            sorted(classes[env] - seen),
            "Take them out, or add them to a training environment.",
        )
    for env, here in classes.items():
        if here != seen:
            warnings.warn(
                f"environment {env!r} has no image of {', '.join(sorted(seen - here))}", stacklevel=3
            )


def _held_out(entries: Sequence[Entry], seed: int, share: float) -> tuple[list[Entry], list[Entry]]:
    """The training images, and those of every environment that are held out; both in their order."""
    held: set[Entry] = set()
    for env in sorted({entry.env for entry in entries}):
        members = [entry for entry in entries if entry.env == env]
        n = min(len(members) - 1, max(1, round(share * len(members)))) if share else 0
        order = torch.randperm(len(members), generator=generator(seed, "held out", env)).tolist()
        held |= {members[i] for i in order[:n]}
    return [e for e in entries if e not in held], [e for e in entries if e in held]


def _split(
    entries: Sequence[Entry],
    environments: tuple[str, ...],
    classes: tuple[str, ...],
    place: Callable[[tuple[int, ...]], Tensor],
    size: int,
) -> Split:
    x = place((len(entries), 3, size, size))
    for image, entry in zip(x, entries, strict=True):
        image[:] = pixels(entry.path, size)
    y = torch.tensor([classes.index(entry.label) for entry in entries], dtype=torch.int64)
    env = torch.tensor([environments.index(entry.env) for entry in entries], dtype=torch.int64)
    return Split(Batch(x, y, env), environments)


def pixels(path: Path, size: int) -> Tensor:
    """An image file as the network sees it: stretched to a square, ``(3, size, size)`` float32 in [0, 1]."""
    image = rgb(path.read_bytes(), str(path)).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def _warn_of_copies(train: Sequence[Entry], others: dict[str, Sequence[Entry]]) -> None:
    known = {digest(entry.path.read_bytes()) for entry in train}
    for part, entries in others.items():
        n = sum(digest(entry.path.read_bytes()) in known for entry in entries)
        if n:
            warnings.warn(
                f"{n} {part} images are training images, byte for byte: the {part} score is too good",
                stacklevel=3,
            )
