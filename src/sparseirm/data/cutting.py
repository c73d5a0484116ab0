"""Objects cut out of COCO images by their masks, once, into the file that `coco` reads."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sparseirm.core import SettingError, Tensors
from sparseirm.data.coco import OBJECTS, prepared
from sparseirm.data.construction import require
from sparseirm.data.decoding import rgb
from sparseirm.data.sources import data_folder
from sparseirm.files import DamagedFileError, canonical, digest, read_tensors, write_tensors
from sparseirm.registry import one_of

VEHICLES = ("truck", "airplane", "bus")
ANIMALS = ("zebra", "dog", "horse", "cat")
"""The classes of the preparation that came with Bayesian IRM; the paper says eight without naming them."""

SPLITS = ("train2017", "val2017", "train2014", "val2014")
"""COCO's splits with instance annotations."""

CHUNK = 256
"""Objects between two saves of a preparation."""

LOSSES = 20
"""Lost images that are named."""

INCOMPLETE = (KeyError, TypeError, ValueError, OverflowError, AttributeError)
"""What reading a record raises that lacks a value, or has another in its place."""

COUNTS = ("vehicles", "animals", "crowd", "small", "not_largest", "missing", "unreadable", "unsafe")
"""What a preparation counts."""


@dataclass(frozen=True)
class Selection:
    """Which objects are taken, and how large they are stored.

    Attributes:
        vehicles: COCO classes of label 0.
        animals: COCO classes of label 1.
        min_area: least area of an object by its annotation, in pixels of the original image.
        size: height and width of the stored picture; the whole COCO image is scaled to it.
        splits: COCO's splits to search.

    Raises:
        SettingError: if one of them is out of its range, or a class is on both sides.
    """

    vehicles: tuple[str, ...] = VEHICLES
    animals: tuple[str, ...] = ANIMALS
    min_area: float = 10_000
    size: int = 64
    splits: tuple[str, ...] = ("train2017", "val2017")

    def __post_init__(self) -> None:
        require(
            bool(self.vehicles) and bool(self.animals) and not {*self.vehicles} & {*self.animals},
            "`vehicles` and `animals` must name at least one COCO class each, and none in common",
            (self.vehicles, self.animals),
            "Leave them out for the usual seven.",
        )
        object.__setattr__(self, "min_area", float(self.min_area))  # 2500 and 2500.0 are one plan
        require(self.min_area >= 0, "`min_area` must not be negative", self.min_area, "10000 is usual.")
        require(8 <= self.size <= 512, "`size` must lie from 8 to 512 pixels", self.size, "64 is usual.")
        require(
            bool(self.splits), "`splits` must name at least one of COCO's splits", self.splits, "Add one."
        )


@dataclass
class Report:
    """What a preparation found.

    Attributes:
        counts: number of objects under each of `COUNTS`: ``vehicles`` and ``animals`` written; annotations of
            these classes passed over because they are a ``crowd``, ``small``, or ``not_largest`` of their
            class in the image; objects lost since their image is ``missing``, image, mask or annotation is
            ``unreadable``, or the file name is a path (``unsafe``).
        losses: the first objects that were lost, and why.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    losses: list[str] = field(default_factory=list)

    def lose(self, how: str, what: str) -> None:
        """Count an object that is lost."""
        self.counts[how] += 1
        if len(self.losses) < LOSSES:
            self.losses.append(what)


@dataclass(frozen=True)
class Candidate:
    """An object that can be cut out.

    Attributes:
        path: the image file.
        height: height of the image by its annotation.
        width: width of the image by its annotation.
        segmentation: polygons, or a run-length code.
        label: 0 for a vehicle, 1 for an animal.
        image_id: COCO's number of the image.
        annotation_id: COCO's number of the annotation.
        licence: COCO's number of the licence, or 0.
    """

    path: Path
    height: int
    width: int
    segmentation: Any
    label: int
    image_id: int
    annotation_id: int
    licence: int


def prepare(
    coco_root: Path,
    out: Path | None = None,
    selection: Selection | None = None,
    on_object: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Cut the largest object of every class out of every COCO image, by its mask, into one file.

    Reads ``annotations/instances_SPLIT.json`` and ``SPLIT/*.jpg`` below ``coco_root``. Crowds are left out.
    An object whose image, mask or annotation is missing or cannot be read is counted and passed over.
    Finished parts are kept in ``OUT.parts`` until the end, so that the same call goes on after an
    interruption; parts and files with missing or unreadable images are made again.

    Args:
        coco_root: folder of the annotations and the images, unpacked.
        out: the file to write; default ``coco_objects.safetensors`` in the data folder.
        selection: what to take; default the usual seven classes, 10,000 pixels and more.
        on_object: called with the numbers of objects done and of all.

    Returns:
        How many objects were written, passed over and lost; it is kept in the file as well.

    Raises:
        SettingError: if pycocotools is not installed, annotations are missing or are not COCO's, a class is
            not in them, ``out`` holds something else, or nothing could be cut out.
    """
    _masks()
    out, selection = out or data_folder() / OBJECTS, selection or Selection()
    plan, candidates, report = _search(coco_root, selection)
    finished = _finished(out, plan)
    if finished is not None:
        return finished
    folder, key = out.with_name(f"{out.name}.parts"), digest(canonical(plan).encode())[:16]
    parts = []
    for start in range(0, len(candidates), CHUNK):
        chunk = candidates[start : start + CHUNK]
        parts.append(_part(folder / f"{key}-{start}.safetensors", chunk, selection.size, report))
        on_object(start + len(chunk), len(candidates))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
    if not whole or not len(whole["label"]):
        counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
        lost = f" The first one lost: {report.losses[0]}" if report.losses else ""
        raise SettingError(f"no object could be cut out of {coco_root}: {counts}.{lost}")
    animals = int(whole["label"].sum())
    report.counts |= {"animals": animals, "vehicles": len(whole["label"]) - animals}
    write_tensors(out, whole, {**plan, **asdict(report)})
    shutil.rmtree(folder, ignore_errors=True)
    return report


def _search(coco_root: Path, selection: Selection) -> tuple[dict[str, Any], list[Candidate], Report]:
    """What is asked for, as plain data; the objects there should be; and what was passed over."""
    candidates: list[Candidate] = []
    report = Report()
    checksums = {}
    for split in selection.splits:
        path = coco_root / "annotations" / f"instances_{one_of('split of COCO', split, SPLITS)}.json"
        try:
            content = path.read_bytes()
            candidates += _candidates(json.loads(content), coco_root / split, selection, report)
        except OSError as error:
            raise SettingError(
                f"annotations are missing: {path} ({error.strerror}). `coco_root` must hold COCO's folder "
                "annotations, and the images in folders named as in `splits`; leave out what you lack."
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, SettingError):
                raise
            raise SettingError(
                f"{path} holds no instance annotations of COCO ({type(error).__name__}: {error}). Replace it."
            ) from None
        checksums[split] = digest(content)
    return {"selection": asdict(selection), "annotations": checksums}, candidates, report


def _candidates(
    payload: dict[str, Any], folder: Path, selection: Selection, report: Report
) -> Iterator[Candidate]:
    """The largest object of every class in every image, in the order of image and annotation numbers."""
    names = {category["name"]: category["id"] for category in payload["categories"]}
    labels = {
        names[one_of("class of COCO", name, names)]: label
        for label, group in enumerate((selection.vehicles, selection.animals))
        for name in group
    }
    largest: dict[tuple[int, int], dict[str, Any]] = {}
    for note in payload["annotations"]:
        try:
            if note["category_id"] not in labels:
                continue
            if note["iscrowd"] or note["area"] < selection.min_area:
                report.counts["crowd" if note["iscrowd"] else "small"] += 1
                continue
            place = (_whole(note["image_id"]), note["category_id"])
            report.counts["not_largest"] += place in largest
            if place not in largest or note["area"] > largest[place]["area"]:
                largest[place] = note
        except INCOMPLETE as error:
            report.lose("unreadable", f"annotation {_number(note)}: {error!r}")
    images = {_number(image): image for image in payload["images"]}
    for (image_id, category), note in sorted(largest.items()):
        if image_id not in images:
            report.lose("missing", f"annotation {_number(note)}: there is no image {image_id}")
            continue
        image = images[image_id]
        try:
            if not _is_plain(image["file_name"]):
                report.lose("unsafe", f"{image['file_name']!r} is a path")
                continue
            candidate = Candidate(
                path=folder / image["file_name"],
                height=_whole(image["height"]),
                width=_whole(image["width"]),
                segmentation=note["segmentation"],
                label=labels[category],
                image_id=image_id,
                annotation_id=_whole(note["id"]),
                licence=_whole(image.get("license") or 0),
            )
        except INCOMPLETE as error:
            report.lose("unreadable", f"image {image_id}, annotation {_number(note)}: {error!r}")
            continue
        yield candidate


def _number(record: Any) -> Any:
    """The number of an image or annotation, or None if it has none."""
    number = record.get("id") if isinstance(record, dict) else None
    return number if isinstance(number, int) else None


def _whole(value: Any) -> int:
    """A number that fits into the file."""
    number = int(value)
    if abs(number) >= 1 << 63:
        raise ValueError(f"{number} is no number of COCO")
    return number


def _is_plain(name: str) -> bool:
    """Whether a file name leads nowhere else, on any system.

    >>> [_is_plain(name) for name in ("000000000009.jpg", "../a.jpg", "C:a.jpg", "a/b.jpg", "..")]
    [True, False, False, False, False]
    """
    return name == PurePosixPath(name).name == PureWindowsPath(name).name and name not in ("", "..")


def _part(path: Path, chunk: list[Candidate], size: int, report: Report) -> Tensors:
    """The objects of a chunk: as saved earlier, or cut out now and saved if none is lost."""
    with contextlib.suppress(OSError, DamagedFileError):
        return read_tensors(path)[0]
    cut, kept = [], []
    for candidate in chunk:
        try:
            cut.append(cut_out(candidate, size))
            kept.append(candidate)
        except FileNotFoundError:
            report.lose("missing", f"{candidate.path} is missing")
        except (OSError, ValueError) as error:  # a SettingError is a ValueError
            report.lose("unreadable", f"{candidate.path.name}: {error}")
    part = {
        "rgba": torch.stack(cut) if cut else torch.empty(0, 4, size, size, dtype=torch.uint8),
        **{
            name: torch.tensor([getattr(candidate, name) for candidate in kept], dtype=torch.int64)
            for name in ("label", "image_id", "annotation_id", "licence")
        },
    }
    if len(kept) == len(chunk):
        write_tensors(path, part, {})
    return part


def cut_out(candidate: Candidate, size: int) -> Tensor:
    """One object, scaled with its whole image to a square.

    Args:
        candidate: the object.
        size: height and width of the result, in pixels.

    Returns:
        ``(4, size, size)`` uint8: red, green and blue, which are 0 outside the mask; and opacity.

    Raises:
        SettingError: if the image cannot be read.
        ValueError: if it is not of the annotation's size, or the mask is empty or cannot be read.
        OSError: if there is no such file.
    """
    image = rgb(candidate.path.read_bytes(), str(candidate.path), upright=False)
    if image.size != (candidate.width, candidate.height):
        raise ValueError(f"the image is {image.size}, by its annotation {candidate.width, candidate.height}")
    mask = _mask(candidate)
    if not mask.any():
        raise ValueError("the mask is empty")
    shown = Image.fromarray(np.asarray(image) * mask[:, :, None])
    scaled = [
        np.asarray(layer.resize((size, size), Image.Resampling.BILINEAR))
        for layer in (shown, Image.fromarray(mask * np.uint8(255)))
    ]
    return torch.from_numpy(np.dstack(scaled)).permute(2, 0, 1).contiguous()


def _mask(candidate: Candidate) -> NDArray[np.uint8]:
    """``(height, width)`` of 0 and 1."""
    library, code = _masks(), candidate.segmentation
    height, width = candidate.height, candidate.width
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools is not quite up to NumPy 2
            if isinstance(code, list):
                _check_polygons(code, height, width)
                code = library.merge(library.frPyObjects(code, height, width))
            elif list(code["size"]) != [height, width]:
                raise ValueError(f"its size is {code['size']}, that of the image {[height, width]}")
            elif isinstance(code["counts"], list):
                _check_runs(code["counts"], height * width)
                code = library.frPyObjects(code, height, width)
            mask = np.asarray(library.decode(code), dtype=np.uint8)
            if mask.shape != (height, width) or mask.sum() != library.area(code):
                raise ValueError(f"it does not cover {height} x {width} pixels")
    except Exception as error:  # pycocotools fails in many ways on what is not a mask
        raise ValueError(f"the mask cannot be read ({error})") from None
    return mask


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    """Refuse what pycocotools, which checks nothing, would draw beyond its memory."""
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
            raise ValueError("a polygon must be a list of three corners or more, each x and y")
        for axis, length in enumerate((width, height)):
            if not ((corners[axis::2] >= -length) & (corners[axis::2] <= 2 * length)).all():
                raise ValueError("a polygon lies far outside of the image")


def _check_runs(counts: list[Any], n_pixels: int) -> None:
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != n_pixels:
        raise ValueError(f"the runs must be whole numbers that add up to {n_pixels} pixels")


def _masks() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise SettingError(
            "cutting objects out of COCO needs pycocotools; install it with `pip install 'sparseirm[coco]'`."
        ) from None
    return mask


def _finished(out: Path, plan: dict[str, Any]) -> Report | None:
    """The report of a file that holds just this, with nothing lost; None if it is to be made."""
    if not out.exists():
        return None
    if not out.is_file():
        raise SettingError(f"`out` {out} is a folder; it must name a file.")
    _, note = prepared(out)
    if any(note.get(name) != asked for name, asked in json.loads(canonical(plan)).items()):
        raise SettingError(f"`out` {out} holds other objects of COCO. Name another file.")
    report = Report(note["counts"], note["losses"])
    return None if report.counts["missing"] or report.counts["unreadable"] else report
