"""Models that keep working when the data changes: sparse invariant risk minimisation."""

from typing import TYPE_CHECKING, Any

from sparseirm.core import NonFiniteError as NonFiniteError
from sparseirm.core import Outputs as Outputs
from sparseirm.core import SettingError as SettingError
from sparseirm.recipe import Recipe as Recipe
from sparseirm.runs import Result as Result
from sparseirm.runs import load_model as load_model
from sparseirm.runs import run as run
from sparseirm.together import run_together as run_together
from sparseirm.training.attach import attach as attach
from sparseirm.training.precision import huge_pages

if TYPE_CHECKING:
    from sparseirm.estimator import SparseIRMClassifier as SparseIRMClassifier
    from sparseirm.estimator import SparseIRMRegressor as SparseIRMRegressor

huge_pages()

__version__ = "0.1.0.dev0"

_ESTIMATORS = ("SparseIRMClassifier", "SparseIRMRegressor")
"""Imported when first used: scikit-learn's estimators take a second that not every program has a use for."""


def __getattr__(name: str) -> Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparseirm import estimator

    return getattr(estimator, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS})
