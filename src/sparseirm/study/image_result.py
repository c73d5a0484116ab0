"""What a study of images found as plain data, in the form of `sparseirm.study.result`."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import asdict
from typing import Any, cast

import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from sparseirm.files import plain
from sparseirm.study.image_study import ImageStudy
from sparseirm.study.result import calibration, comparison


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
        plain(
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
