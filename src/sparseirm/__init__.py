"""Models that keep working when the data changes: sparse invariant risk minimisation."""

from sparseirm.core import NonFiniteError as NonFiniteError
from sparseirm.core import Outputs as Outputs
from sparseirm.core import SettingError as SettingError
from sparseirm.recipe import Recipe as Recipe
from sparseirm.runs import Result as Result
from sparseirm.runs import load_model as load_model
from sparseirm.runs import run as run
from sparseirm.training.attach import attach as attach
from sparseirm.training.precision import huge_pages

huge_pages()

__version__ = "0.1.0.dev0"
