"""COCO made ready for ColoredObject, as a command."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sparseirm.data.coco import OBJECTS
from sparseirm.data.cutting import ANIMALS, VEHICLES, Report, Selection, prepare
from sparseirm.data.sources import data_folder

MEANINGS = {
    "vehicles": "written",
    "animals": "written",
    "crowd": "passed over: a crowd, not one object",
    "small": "passed over: below the least area",
    "not_largest": "passed over: a larger one of its class is in the image",
    "missing": "LOST: no such image",
    "unreadable": "LOST: image, mask or annotation cannot be read",
    "unsafe": "LOST: the file name is a path",
}


def prepare_coco(
    coco_root: Path,
    out: Path | None = None,
    *,
    splits: tuple[str, ...] = ("train2017", "val2017"),
    vehicles: tuple[str, ...] = VEHICLES,
    animals: tuple[str, ...] = ANIMALS,
    min_area: float = 10_000,
    size: int = 64,
) -> Report:
    """Cut objects out of COCO by their masks, for the data set colored_object.

    The largest object of every class in every image goes into one checksummed file. The same command goes on
    where it was stopped. Images that are missing or damaged are counted, and left out.

    Example: sparseirm prepare-coco --coco-root coco

    Args:
        coco_root: folder that holds COCO's ``annotations`` and, for every split, a folder of images.
        out: file to write; coco_objects.safetensors in the data folder by default.
        splits: COCO's splits to search.
        vehicles: COCO's classes that become label 0.
        animals: COCO's classes that become label 1.
        min_area: least area of an object, in pixels of its image.
        size: height and width of the stored pictures, in pixels.

    Returns:
        How many objects were written, passed over and lost.
    """
    out = out or data_folder() / OBJECTS
    selection = Selection(vehicles, animals, min_area, size, splits)
    columns = (TextColumn("cutting out"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("objects", total=None)
        report = prepare(
            coco_root, out, selection, lambda done, total: progress.update(task, completed=done, total=total)
        )
    table = Table("objects", "", "")
    for name, meaning in MEANINGS.items():
        table.add_row(str(report.counts[name]), name, meaning)
    Console(width=100).print(table)
    for loss in report.losses:
        print(f"lost: {loss}")
    print(f"file: {out}")
    return report
