"""Data in environments: the shapes they come in, and the data sets by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sparseirm.data.colored import colored_mnist, defaults, full_colored_mnist
from sparseirm.data.environments import Batch, Batches, DataSet, Split

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
}
"""Name to the function that builds the data set. None for an argument means the data set's own default."""

DEFAULTS: dict[str, dict[str, Any]] = {
    **{f"colored_{name}": defaults("colored", source) for name, source in SHORT_NAMES.items()},
    **{f"full_colored_{name}": defaults("full_colored", source) for name, source in SHORT_NAMES.items()},
}
"""Name to the data set's own defaults, written out."""

__all__ = ["DATASETS", "Batch", "Batches", "DataSet", "Split", "colored_mnist", "full_colored_mnist"]
