"""Objects that were cut out of COCO images: the file that ColoredObject is made of."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparseirm.core import SettingError, Tensors
from sparseirm.data.sources import data_folder
from sparseirm.files import DamagedFileError, read_tensors

OBJECTS = "coco_objects.safetensors"
"""Name of the prepared file in the data folder."""


@dataclass(frozen=True)
class Objects:
    """Objects cut out of COCO.

    Attributes:
        rgba: ``(n, 4, size, size)`` uint8: red, green and blue times opacity; and opacity.
        label: ``(n,)`` 0 for vehicles, 1 for animals.
        image_id: ``(n,)`` COCO's number of the image.
        annotation_id: ``(n,)`` COCO's number of the annotation.
        licence: ``(n,)`` COCO's number of the image's licence, 1 to 8; 0 if it has none.
        note: where they come from, in words.
    """

    rgba: Tensor
    label: Tensor
    image_id: Tensor
    annotation_id: Tensor
    licence: Tensor
    note: str


def find(data_root: str | None = None) -> Path:
    """The prepared file.

    Args:
        data_root: the file itself, or the data folder; see `sparseirm.data.sources.data_folder`.

    Returns:
        Its path.

    Raises:
        SettingError: if it is not there.
    """
    root = data_folder(data_root)
    path = root if root.is_file() else root / OBJECTS
    if not path.is_file():
        raise SettingError(
            f"the prepared COCO objects are missing: looked for {path}. Make them with `sparseirm "
            f"prepare-coco --coco-root FOLDER --out {path}`, where FOLDER holds COCO's annotations and "
            "images, or use the data set photos_on_colors, which needs CIFAR-10 only."
        )
    return path


def load(data_root: str | None = None) -> Objects:
    """Read what `sparseirm.data.cutting.prepare` wrote.

    Args:
        data_root: see `find`.

    Returns:
        The objects.

    Raises:
        SettingError: if the file is not there, was not written by `sparseirm.data.cutting.prepare`, or
            is damaged.
    """
    tensors, note = prepared(find(data_root))
    selection = note["selection"]
    classes = ", ".join([*selection["vehicles"], *selection["animals"]])
    return Objects(**tensors, note=f"{classes} of COCO, area at least {selection['min_area']:g}")


def prepared(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """What a prepared file holds.

    Args:
        path: the file.

    Returns:
        Tensors and note, as in `sparseirm.files.read_tensors`.

    Raises:
        SettingError: if the file was not written by `sparseirm.data.cutting.prepare`, or is damaged. It may
            be any file of the user's, so nobody is told to delete it.
    """
    with suppress(DamagedFileError):
        tensors, note = read_tensors(path)
        if set(tensors) == set(Objects.__annotations__) - {"note"} and "selection" in note:
            return tensors, note
    raise SettingError(
        f"{path} is no file that `sparseirm prepare-coco` wrote, or has changed since. Name another file."
    )
