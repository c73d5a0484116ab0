"""Data in environments: the shapes they come in, and the data sets by name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sparseirm.data import objects, own, paired
from sparseirm.data.colored import colored_mnist, defaults, full_colored_mnist
from sparseirm.data.disk import mapped as mapped
from sparseirm.data.environments import Batch, Batches, DataSet, Split
from sparseirm.data.objects import colored_object, photos_on_colors
from sparseirm.data.own import folder, manifest
from sparseirm.data.paired import PAIRS, paired_by_name

SHORT_NAMES = {
    "mnist": "mnist",
    "fashion": "fashion_mnist",
    "digits": "digits",
    "mnist_small": "mnist_small",
    "mnist_parity": "mnist_parity",
}

DATASETS: dict[str, Callable[..., DataSet]] = {
    **{f"colored_{name}": partial(colored_mnist, source=source) for name, source in SHORT_NAMES.items()},
    **{
        f"full_colored_{name}": partial(full_colored_mnist, source=source)
        for name, source in SHORT_NAMES.items()
        if name != "mnist_parity"  # it has two classes
    },
    **{name: partial(paired_by_name, name) for name in PAIRS},
    "pair": paired.pair,
    "colored_object": colored_object,
    "photos_on_colors": photos_on_colors,
}
"""Name to the function that builds the data set. None for an argument means the data set's own default."""

OWN: dict[str, Callable[..., DataSet]] = {"folder": folder, "manifest": manifest}
"""The same for your own images, whose arguments are others: nothing about them is constructed."""

DEFAULTS: dict[str, dict[str, Any]] = {
    **{f"colored_{name}": defaults("colored", source) for name, source in SHORT_NAMES.items()},
    **{f"full_colored_{name}": defaults("full_colored", source) for name, source in SHORT_NAMES.items()},
    **{name: {**paired.USUAL, "n_train": pair.n_train} for name, pair in PAIRS.items()},
    "pair": paired.USUAL,
    **dict.fromkeys(("colored_object", "photos_on_colors"), objects.USUAL),
    **{name: {} for name in OWN},
}
"""Name to the data set's own defaults, written out."""

OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("colored_object", "photos_on_colors"), objects.OPTIONS),
    **dict.fromkeys(OWN, own.OPTIONS),
    "pair": paired.OPTIONS,
}
"""Name to the further options of data sets that have any, with their defaults."""

FINGERPRINTS: dict[str, Callable[[str | None], str]] = {
    **{name: partial(paired.fingerprint, name) for name, pair in PAIRS.items() if pair.cifar_classes},
    "colored_object": objects.coco_fingerprint,
    "photos_on_colors": objects.photos_fingerprint,
    "folder": partial(own.fingerprint, own.folder_entries),
    "manifest": partial(own.fingerprint, own.manifest_entries),
}
"""Name to ``(data_root) -> SHA-256``, for data sets whose files may be others elsewhere, or tomorrow."""


def n_classes(name: str, chosen: Mapping[str, Any]) -> int:
    """Classes of a data set with these options, as far as that is known before it is built; otherwise two.

    >>> n_classes("full_colored_mnist", {}), n_classes("pair", {"top": "digits:3,5,8"})
    (10, 3)
    """
    if name == "pair":
        return paired.n_classes(str(chosen.get("top", paired.OPTIONS["top"])))
    return 10 if name.startswith("full_") else 2


def fingerprint(name: str, chosen: Mapping[str, Any]) -> Callable[[str | None], str] | None:
    """The one of `FINGERPRINTS` for a data set with these options; None if it is the same everywhere."""
    if name == "pair":
        sides = {side: str(chosen.get(side, usual)) for side, usual in paired.OPTIONS.items()}
        return paired.pair_fingerprint(**sides)
    return FINGERPRINTS.get(name)


__all__ = ["DATASETS", "Batch", "Batches", "DataSet", "Split", "colored_mnist", "full_colored_mnist"]
