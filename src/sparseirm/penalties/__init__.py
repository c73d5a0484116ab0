"""Penalties: pure functions of `sparseirm.core.Outputs`. To add one: write it, name it here."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from sparseirm.core import Penalty
from sparseirm.penalties.features import IBIRM as IBIRM
from sparseirm.penalties.features import coral as coral
from sparseirm.penalties.features import fishr as fishr
from sparseirm.penalties.features import spectral_decoupling as spectral_decoupling
from sparseirm.penalties.gradients import BayesianIRM as BayesianIRM
from sparseirm.penalties.gradients import iga as iga
from sparseirm.penalties.gradients import irmv1 as irmv1
from sparseirm.penalties.gradients import irmv1_split as irmv1_split
from sparseirm.penalties.risks import EQRM as EQRM
from sparseirm.penalties.risks import GroupDRO as GroupDRO
from sparseirm.penalties.risks import MinimaxREx as MinimaxREx
from sparseirm.penalties.risks import no_penalty as no_penalty
from sparseirm.penalties.risks import rex as rex
from sparseirm.registry import lookup
from sparseirm.registry import options as filled

PENALTIES: dict[str, Penalty] = {
    "irmv1": irmv1,
    "irmv1_split": irmv1_split,
    "bayesian": BayesianIRM(),
    "rex": rex,
    "mmrex": MinimaxREx(),
    "groupdro": GroupDRO(),
    "eqrm": EQRM(),
    "iga": iga,
    "fishr": fishr,
    "coral": coral,
    "ib_irm": IBIRM(),
    "sd": spectral_decoupling,
}
"""Name to penalty, with its own numbers."""

USUAL_WEIGHTS = {
    **dict.fromkeys(("mmrex", "groupdro", "eqrm"), 1.0),
    **{"iga": 1e3, "fishr": 1e3, "coral": 1.0, "ib_irm": 1e2, "sd": 0.1},
}
"""Default penalty weight where 1e4, the paper's for IRMv1 and REx, is out of place.

For the first three, mean risk plus once the penalty is the objective of their papers; the others are the
defaults of DomainBed's searches.
"""


def make(name: str, **options: Any) -> Penalty:
    """The penalty of a name, with its numbers set; numbers not named keep their defaults.

    Args:
        name: a name in `PENALTIES`, or of an entry point in group ``sparseirm.penalty``.
        **options: values of the penalty's attributes.

    Returns:
        The penalty; without options the very object of the table.

    Raises:
        SettingError: if the penalty is unknown, has no such option, or the value does not fit.

    Example:
        >>> make("bayesian", sd=0.1)
        BayesianIRM(sd=0.1, n_draws=10, split=False)
    """
    penalty = lookup("penalty", PENALTIES, name)
    if not options:
        return penalty
    return cast(Penalty, replace(cast(Any, penalty), **filled(f"penalty {name!r}", defaults(name), options)))


def defaults(name: str) -> dict[str, Any]:
    """The numbers of a penalty, by name; none for a plain function.

    >>> defaults("bayesian"), defaults("rex")
    ({'sd': 0.06, 'n_draws': 10, 'split': False}, {})
    """
    penalty = lookup("penalty", PENALTIES, name)
    return {f.name: getattr(penalty, f.name) for f in fields(penalty)} if is_dataclass(penalty) else {}
