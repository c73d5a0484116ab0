"""Data in environments: the shapes they come in, and the data sets by name."""

from collections.abc import Callable
from functools import partial

from sparseirm.data.colored import colored_mnist, full_colored_mnist
from sparseirm.data.environments import Batch, Batches, DataSet, Split

DATASETS: dict[str, Callable[..., DataSet]] = {
    "colored_mnist": colored_mnist,
    "full_colored_mnist": full_colored_mnist,
    "colored_fashion": partial(colored_mnist, source="fashion_mnist"),
    "full_colored_fashion": partial(full_colored_mnist, source="fashion_mnist"),
    "colored_digits": partial(colored_mnist, source="digits"),
    "full_colored_digits": partial(full_colored_mnist, source="digits"),
}
"""Name to the function that builds the data set. None for an argument means the data set's own default."""

__all__ = ["DATASETS", "Batch", "Batches", "DataSet", "Split", "colored_mnist", "full_colored_mnist"]
