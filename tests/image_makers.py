"""Small image files that tests write: class folders as of CIFAR-10, a COCO of eight pictures, own images."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sparseirm.data.cifar import CLASSES


def noise_image(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of width and height ``size`` that no other seed gives."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_cifar(
    root: Path, n_train: int = 12, n_test: int = 8, classes: Iterable[str] = CLASSES, zipped: bool = False
) -> Path:
    """CIFAR-10 as class folders, or zips of them, below ``root``; every image is another."""
    seed = 0
    for part, n in (("train", n_train), ("test", n_test)):
        files = {}
        for name in classes:
            for number in range(n):
                files[f"{name}/{number:04}.png"] = encoded(noise_image(seed))
                seed += 1
        place = root / "cifar10" / part
        place.parent.mkdir(parents=True, exist_ok=True)
        if zipped:
            with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            for name, content in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
    return root


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    """A rectangle as COCO's polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """A mask as COCO's uncompressed run-length code: lengths of runs down the columns, zeros first."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, len(flat)]).tolist()
    return {"counts": [0, *lengths] if flat[0] else lengths, "size": list(mask.shape)}


def write_coco(root: Path, split: str = "train2017", n: int = 6, size: int = 32, first: int = 1) -> Path:
    """COCO's layout: ``n`` pictures ``size`` x ``size``, each with a truck, a dog, and things passed over."""
    categories = {"person": 1, "truck": 8, "airplane": 5, "bus": 6}
    categories |= {"zebra": 24, "dog": 18, "horse": 19, "cat": 17}
    images, notes = [], []

    def note(image: int, name: str, segmentation: Any, area: float, crowd: int = 0) -> None:
        notes.append(
            {
                "id": 100 * image + len(notes),
                "image_id": image,
                "category_id": categories[name],
                "segmentation": segmentation,
                "area": area,
                "iscrowd": crowd,
                "bbox": [0, 0, 1, 1],
            }
        )

    (root / split).mkdir(parents=True, exist_ok=True)
    for image in range(first, first + n):
        name = f"{image:012}.png"
        (root / split / name).write_bytes(encoded(noise_image(image, (size, size))))
        images.append({"id": image, "file_name": name, "height": size, "width": size, "license": image % 8})
        disc = np.add.outer(*[(np.arange(size) - size / 2) ** 2] * 2) < (5 + image % 5) ** 2
        note(image, "truck", box(3, 4, 14, 12), 168)
        note(image, "truck", box(20, 20, 11, 10), 110)  # not the largest
        note(image, "dog", runs(disc), float(disc.sum()) + 100)
        note(image, "cat", box(1, 1, 2, 2), 4)  # small
        note(image, "cat", runs(disc), 900, crowd=1)
        note(image, "person", box(1, 1, 20, 20), 400)  # nobody asked for one
    (root / "annotations").mkdir(exist_ok=True)
    payload = {
        "images": images,
        "annotations": notes,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(payload))
    return root


def change_coco(root: Path, split: str = "train2017", **changes: Any) -> None:
    """Change the record of the first picture."""
    path = root / "annotations" / f"instances_{split}.json"
    payload = json.loads(path.read_text())
    payload["images"][0] |= changes
    path.write_text(json.dumps(payload))


ENVIRONMENTS, KINDS = ("a", "b", "c"), ("cat", "dog")


def write_folder(root: Path, n: int = 10) -> Path:
    """``n`` pictures of every class in every environment, as ``environment/class/image``."""
    seed = 0
    for env in ENVIRONMENTS:
        for kind in KINDS:
            (root / env / kind).mkdir(parents=True)
            for number in range(n):
                (root / env / kind / f"{number}.png").write_bytes(encoded(noise_image(seed, (12, 12))))
                seed += 1
    return root


def write_manifest(root: Path, name: str = "images.csv", backwards: bool = False) -> Path:
    """A table of the images of `write_folder`."""
    paths = sorted(root.rglob("*.png"), reverse=backwards)
    lines = [f"{p.relative_to(root).as_posix()},{p.parent.name},{p.parent.parent.name}" for p in paths]
    (root / name).write_text("\n".join(["path,label,env", *lines]) + "\n")
    return root / name


def rows_of(x: Tensor) -> list[bytes]:
    """Every image as its bytes."""
    return [image.numpy().tobytes() for image in x]
