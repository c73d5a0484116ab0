"""Objects on coloured backgrounds: ColoredObject from COCO, and a stand-in made of CIFAR-10's photographs.

An object is a picture of red, green, blue and opacity, the colours already multiplied by the opacity, so
that nothing of its old background is left. The background's colour is the spurious attribute, by the
construction in `construction`: vehicles are label 0, animals label 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import ImageColor
from torch import Tensor
from torch.nn.functional import interpolate

from sparseirm.core import SettingError
from sparseirm.data import cifar, coco
from sparseirm.data.construction import Construction, constructed, construction, is_probability, require
from sparseirm.data.disk import room
from sparseirm.data.environments import DataSet
from sparseirm.data.pools import Pools, pools_of
from sparseirm.files import digest
from sparseirm.randomness import seed_of

LABELS = ("vehicle", "animal")
SHARES = {"train": 83, "val": 5, "test": 12}
"""Per cent of the COCO images in each pool: 12,000 training and 1,800 test objects, as in the paper."""

PHOTOS = ("airplane", "automobile", "truck", "cat", "dog", "horse")
"""Classes of CIFAR-10 that stand in for COCO's: three of vehicles, then three of animals."""

USUAL: dict[str, Any] = {"n_train": 12_000, "correlations": (0.999, 0.7, 0.1), "label_noise": 0.05}
"""The paper's numbers for ColoredObject."""

OPTIONS: dict[str, Any] = {"size": 64, "brightness": 0.75, "colours": "grey,green"}
"""Further options: pixels per side, brightness of the background, and its colour for each label."""

SIZES = (8, 512)
N_TEST = 1800
DISC = (0.7, 1.0)
"""Where a photograph starts to fade and is gone, as distances from its centre in halves of its side."""


def colored_object(
    n_train: int | None = None,
    correlations: tuple[float, ...] | None = None,
    label_noise: float | None = None,
    seed: int = 0,
    gray: bool = False,
    data_root: str | None = None,
    size: int = 64,
    brightness: float = 0.75,
    colours: str = "grey,green",
) -> DataSet:
    """ColoredObject: is it a vehicle or an animal? The background's colour misleads in the test.

    Ahmed et al. 2021 ("Systematic generalisation with group invariant predictions") put objects of COCO on
    coloured backgrounds; Zhou et al. 2022, section 5.2, use the correlations (0.999, 0.7, 0.1) and 5 % label
    noise. Classes, colours and brightness are those of the preparation that came with Bayesian IRM.

    Needs the file that ``sparseirm prepare-coco`` makes (`sparseirm.data.cutting.prepare`). A COCO image
    belongs to one pool, whatever the seed, so that no two splits show objects of the same photograph; in each
    pool there are as many vehicles as animals. The test environment has up to 1,800 of them.

    Args:
        n_train: training samples of all environments together; default 12,000.
        correlations: probability that background and noisy label agree, in each training environment (two
            or more) and, last, in the test environment; default (0.999, 0.7, 0.1).
        label_noise: probability that a label is wrong, in every environment; default 0.05.
        seed: decides which objects are used, their noise and their backgrounds, whatever torch's own seed.
        gray: the oracle's variant: every background is black.
        data_root: the prepared file, or the data folder that holds it as ``coco_objects.safetensors``; see
            `sparseirm.data.sources.data_folder`.
        size: height and width in pixels, from 8 to 512; the prepared objects are scaled to it.
        brightness: what the background's colour is multiplied by, in [0, 1].
        colours: the background for label 0 and for label 1: two names, or ``#rrggbb``, with a comma between.

    Returns:
        Samples with ``x`` ``(n, 3, size, size)``, red, green and blue in [0, 1]; ``spurious`` is the position
        in ``colours``.

    Raises:
        SettingError: if an argument is out of its range, or there is no prepared file.
    """
    how = construction(
        USUAL,
        n_train=n_train,
        correlations=correlations,
        label_noise=label_noise,
        seed=seed,
        gray=gray,
    )
    look = Look(size, brightness, colours)
    objects = coco.load(data_root)
    return _on_colours(
        how, look, _pools(objects), name="colored_object", train_per_val=20, source_note=objects.note
    )


def photos_on_colors(
    n_train: int | None = None,
    correlations: tuple[float, ...] | None = None,
    label_noise: float | None = None,
    seed: int = 0,
    gray: bool = False,
    data_root: str | None = None,
    size: int = 64,
    brightness: float = 0.75,
    colours: str = "grey,green",
) -> DataSet:
    """A stand-in for ColoredObject where COCO is not at hand: round photographs on coloured backgrounds.

    The photographs are CIFAR-10's airplanes, automobiles and trucks, and its cats, dogs and horses, enlarged,
    and faded out towards the corners, where the background shows. They are not cut out: some of each
    photograph's own background stays. Numbers on it say nothing about ColoredObject.

    Args:
        n_train: training samples of all environments together, up to 30,000; default 12,000.
        correlations: as in `colored_object`.
        label_noise: as in `colored_object`.
        seed: as in `colored_object`.
        gray: as in `colored_object`.
        data_root: see `sparseirm.data.sources.data_folder`; where CIFAR-10 is looked for, see
            `sparseirm.data.cifar.load`.
        size: as in `colored_object`.
        brightness: as in `colored_object`.
        colours: as in `colored_object`.

    Returns:
        Samples with ``x`` ``(n, 3, size, size)``, red, green and blue in [0, 1]; ``spurious`` is the position
        in ``colours``.

    Raises:
        SettingError: if an argument is out of its range or the files are not to be had.
    """
    how = construction(
        USUAL,
        n_train=n_train,
        correlations=correlations,
        label_noise=label_noise,
        seed=seed,
        gray=gray,
    )
    look = Look(size, brightness, colours)
    photos = pools_of("cifar10", PHOTOS, data_root)
    pools = {part: (_faded(pixels), (labels >= 3).long()) for part, (pixels, labels) in photos.items()}
    note = cifar.note(data_root, PHOTOS)
    return _on_colours(how, look, pools, name="photos_on_colors", train_per_val=10, source_note=note)


def coco_fingerprint(data_root: str | None = None) -> str:
    """What the prepared objects are: a SHA-256 of their pictures, labels and image numbers."""
    found = coco.load(data_root)
    return digest(b"".join(t.numpy().tobytes() for t in (found.rgba, found.label, found.image_id)))


def photos_fingerprint(data_root: str | None = None) -> str:
    """What the photographs are; see `sparseirm.data.cifar.fingerprint`."""
    return cifar.fingerprint(data_root, PHOTOS)


@dataclass(frozen=True)
class Look:
    """How objects are shown; the options of both data sets.

    Attributes:
        size: height and width in pixels.
        brightness: what the background's colour is multiplied by.
        colours: the background for each label.

    Raises:
        SettingError: if one of them is out of its range.
    """

    size: int
    brightness: float
    colours: str

    def __post_init__(self) -> None:
        require(
            type(self.size) is int and SIZES[0] <= self.size <= SIZES[1],
            f"`size` must be an integer from {SIZES[0]} to {SIZES[1]}, in pixels",
            self.size,
            "Leave it out for 64.",
        )
        require(
            is_probability(self.brightness),
            "`brightness` must lie in [0, 1]",
            self.brightness,
            "Leave it out for 0.75.",
        )
        require(
            len(self.colour_names) == 2 and not torch.equal(*self.backgrounds),
            "`colours` must be two different colours, for label 0 and label 1, with a comma between",
            self.colours,
            "For example grey,green.",
        )

    @property
    def colour_names(self) -> tuple[str, ...]:
        """The colours, one by one."""
        return tuple(self.colours.split(","))

    @property
    def backgrounds(self) -> Tensor:
        """Red, green and blue of each background, in [0, 1]: ``(2, 3)``."""
        try:
            palette = [ImageColor.getrgb(name)[:3] for name in self.colour_names]
        except ValueError as error:
            raise SettingError(f"`colours`: {error}; got {self.colours!r}. For example grey,green.") from None
        return torch.tensor(palette) / 255 * self.brightness


def _on_colours(how: Construction, look: Look, pools: Pools, **described: Any) -> DataSet:
    def rendered(part: str, members: Tensor, background: Tensor) -> Tensor:
        behind = torch.zeros(len(members), 3) if how.gray else look.backgrounds[background]
        return composite(pools[part][0], members, behind, look.size)

    return constructed(
        how,
        {part: labels for part, (_, labels) in pools.items()},
        rendered,
        source=described["name"],
        n_values=2,
        n_test=N_TEST,
        spurious_name="background",
        label_names=LABELS,
        spurious_values=look.colour_names,
        **described,
    )


def composite(rgba: Tensor, members: Tensor, behind: Tensor, size: int) -> Tensor:
    """Objects, scaled, before plain backgrounds.

    Args:
        rgba: ``(m, 4, h, w)`` uint8: red, green and blue, each times opacity; and opacity.
        members: ``(n,)`` which of them.
        behind: ``(n, 3)`` red, green and blue of each background, in [0, 1].
        size: height and width to scale to, in pixels.

    Returns:
        ``(n, 3, size, size)`` float32 in [0, 1]; in a temporary file if memory is short.

    Raises:
        SettingError: if there is no room on the disk, either.

    Example:
        >>> clear = torch.zeros(1, 4, 8, 8, dtype=torch.uint8)
        >>> composite(clear, torch.tensor([0]), torch.tensor([[0.2, 0.4, 0.6]]), 16)[0, :, 3, 5]
        tensor([0.2000, 0.4000, 0.6000])
    """
    x = room(len(members), size)((len(members), 3, size, size))
    at_once = max(1, min(1000, 1000 * 64**2 // size**2))  # all would fill the memory
    for some in torch.split(torch.arange(len(members)), at_once):
        scaled = rgba[members[some]] / 255
        if scaled.shape[-2:] != (size, size):
            scaled = interpolate(scaled, (size, size), mode="bilinear", antialias=True, align_corners=False)
        x[some] = (scaled[:, :3] + (1 - scaled[:, 3:]) * behind[some, :, None, None]).clamp(0, 1)
    return x


def _faded(pixels: Tensor) -> Tensor:
    """Photographs ``(n, 3, h, w)`` as round objects ``(n, 4, h, w)``, uint8."""
    axis = torch.linspace(-1, 1, pixels.shape[-1])
    start, end = DISC
    distance = (axis[:, None] ** 2 + axis**2).sqrt()
    opacity = ((end - distance) / (end - start)).clamp(0, 1)
    rgba = torch.cat([pixels * opacity, (255 * opacity).expand(len(pixels), 1, -1, -1)], dim=1)
    return rgba.round().to(torch.uint8)


def _pools(objects: coco.Objects) -> Pools:
    """Objects divided by the image they come from, as many vehicles as animals in each pool."""
    draws = torch.tensor([seed_of(0, "coco pool", image) % 100 for image in objects.image_id.tolist()])
    found, start = {}, 0
    for part, share in SHARES.items():
        members = ((draws >= start) & (draws < start + share)).nonzero()[:, 0]
        kinds = [members[objects.label[members] == label] for label in (0, 1)]
        even = torch.cat([kind[: min(map(len, kinds))] for kind in kinds]).sort().values
        found[part] = (objects.rgba[even], objects.label[even])
        start += share
    return found
