"""Example images of a data set, like the paper's Table 1: what there is to learn, and what misleads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.data import DataSet, Split
from sparseirm.experiments.figures import encoded
from sparseirm.files import write_bytes
from sparseirm.recipe import Option, Recipe

FORMATS = (".png", ".svg", ".pdf")
ROWS = 10
"""Labels shown; further ones are left out."""

FRAME = "#d1495b"


def pictures(
    data: str,
    out: Path,
    *,
    data_root: str | None = None,
    data_options: dict[str, Option] | None = None,
    test_envs: tuple[str, ...] | None = None,
    n_train: int | None = None,
    correlations: tuple[float, ...] | None = None,
    seed: int = 0,
    oracle: bool = False,
    each: int = 5,
) -> Path:
    """Draw example images of a data set: one row for each label, one column for each environment.

    The first images of every environment are shown as they come. A frame marks those whose spurious feature
    does not go with their label: few in training, most in the test.

    Example: sparseirm pictures --data full_colored_digits --out examples.png

    Args:
        data: data set, as in ``train``.
        out: the figure; its ending chooses the format: png, svg or pdf.
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        data_options: further settings of the data set by name, as in ``train``.
        test_envs: the environments of your own images that are kept for the test.
        n_train: training samples, where the data set's own number is too large.
        correlations: as in ``train``.
        seed: seed of the data.
        oracle: show the images without the spurious feature, as the oracle sees them.
        each: images of each label in each environment.

    Returns:
        ``out``.
    """
    if out.suffix not in FORMATS:
        raise SettingError(f"`out` must end in {', '.join(FORMATS)}; got {str(out)!r}.")
    if each < 1:
        raise SettingError(f"`each` must be at least 1; got {each}.")
    recipe = Recipe(
        data=data,
        data_options=data_options or {},
        test_envs=test_envs,
        n_train=n_train,
        correlations=correlations,
        seed=seed,
        method="oracle" if oracle else "erm",
    )
    figure = drawn(recipe.resolved().make_data(data_root), each)
    write_bytes(out, _encoded(figure, out.suffix))
    print(f"figure: {out}")
    return out


def drawn(data: DataSet, each: int = 5) -> Figure:
    """The figure of `pictures`.

    Args:
        data: a data set of images, ``x`` of shape ``(n, channels, height, width)`` in [0, 1].
        each: images of each label in each environment.

    Returns:
        The figure, not yet written.

    Raises:
        SettingError: if the samples are not images of one, two or three channels.

    Example:
        >>> from sparseirm.data import colored_mnist
        >>> len(drawn(colored_mnist(source="digits")).axes)
        6
    """
    shape = data.train.samples.x.shape[1:]
    if len(shape) != 3 or not 1 <= shape[0] <= 3:
        raise SettingError(f"only images can be drawn; samples of {data.name!r} have shape {tuple(shape)}.")
    columns = [(split, env) for split in (data.train, data.test) if split for env in range(len(split.names))]
    labels = torch.unique(data.train.samples.y).tolist()[:ROWS]
    cell = (1.1 + 0.42 * each * max(1, shape[2] / shape[1]), 0.42 * max(1, shape[1] / shape[2]) + 0.12)
    figure = Figure(
        figsize=(cell[0] * len(columns), cell[1] * len(labels) + 0.9),
        layout=ConstrainedLayoutEngine(wspace=0.03),
    )
    grid = figure.subplots(len(labels), len(columns), squeeze=False)
    for axes_row, label in zip(grid, labels, strict=True):
        for axes, (split, env) in zip(axes_row, columns, strict=True):
            _cell(axes, split, (split.samples.env == env) & (split.samples.y == label), each)
        axes_row[0].set_ylabel(_name(data, label), rotation=0, ha="right", va="center", fontsize=9)
    for axes, (split, env) in zip(grid[0], columns, strict=True):
        axes.set_title(split.names[env], fontsize=10)
    figure.suptitle(data.name, fontsize=11)
    if data.spurious_name:
        figure.supxlabel(
            f"framed: the {data.spurious_name} does not go with the label", fontsize=9, color=FRAME
        )
    return figure


def _cell(axes: Axes, split: Split, members: Tensor, each: int) -> None:
    """Some images side by side, framed where spurious feature and label differ."""
    chosen = members.nonzero()[:each, 0]
    height, width = split.samples.x.shape[-2:]
    gap = max(1, width // 10)
    strip = np.ones((height, each * (width + gap) - gap, 3), dtype=np.float32)
    for place, sample in enumerate(chosen.tolist()):
        left = place * (width + gap)
        strip[:, left : left + width] = _rgb(split.samples.x[sample])
        if split.spurious is not None and split.spurious[sample] != split.samples.y[sample]:
            corner = (left - 0.5, -0.5)
            axes.add_patch(Rectangle(corner, width, height, fill=False, ec=FRAME, lw=2, clip_on=False))
    axes.imshow(strip, interpolation="nearest", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _rgb(image: Tensor) -> np.ndarray:
    """``(channels, h, w)`` as ``(h, w, 3)``: one channel is gray, two are red and green."""
    if len(image) == 1:
        image = image.expand(3, -1, -1)
    elif len(image) == 2:
        image = torch.cat([image, torch.zeros_like(image[:1])])
    return image.permute(1, 2, 0).numpy()


def _name(data: DataSet, label: int) -> str:
    return data.label_names[label] if data.label_names else str(label)


def _encoded(figure: Figure, suffix: str) -> bytes:
    """The file's content; a PNG has 256 colours, which makes it a third of the size."""
    content = encoded(figure, suffix, dpi=110)
    if suffix != ".png":
        return content
    small = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return small.getvalue()
