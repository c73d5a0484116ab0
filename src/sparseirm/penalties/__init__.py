"""Penalties: pure functions of `sparseirm.core.Outputs`. To add one: write it, name it here."""

from sparseirm.core import Penalty
from sparseirm.penalties.gradients import irmv1 as irmv1
from sparseirm.penalties.risks import rex as rex

PENALTIES: dict[str, Penalty] = {"irmv1": irmv1, "rex": rex}
