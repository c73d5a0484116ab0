"""Sparsifiers: how the mask comes about. To add one: write it, name it here."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sparseirm.core import Sparsifier
from sparseirm.registry import lookup
from sparseirm.sparsifiers.dense import Dense as Dense
from sparseirm.sparsifiers.dynamic import SET as SET
from sparseirm.sparsifiers.dynamic import RigL as RigL
from sparseirm.sparsifiers.fixed import FixedMask as FixedMask
from sparseirm.sparsifiers.fixed import RandomMask as RandomMask
from sparseirm.sparsifiers.gmp import GradualMagnitude as GradualMagnitude
from sparseirm.sparsifiers.group_magnitude import GroupMagnitude as GroupMagnitude
from sparseirm.sparsifiers.l0 import HardConcrete as HardConcrete
from sparseirm.sparsifiers.modular import ModularMask as ModularMask
from sparseirm.sparsifiers.probmask import ProbMask as ProbMask
from sparseirm.sparsifiers.projection import project as project
from sparseirm.sparsifiers.projection import top_k as top_k
from sparseirm.sparsifiers.soft_threshold import SoftThreshold as SoftThreshold
from sparseirm.sparsifiers.structured import StructuredProbMask as StructuredProbMask
from sparseirm.sparsifiers.topk import EdgePopup as EdgePopup

SPARSIFIERS: dict[str, Callable[..., Sparsifier]] = {
    "dense": Dense,
    "probmask": ProbMask,
    "structured": StructuredProbMask,
    "structured_gmp": GroupMagnitude,
    "topk": EdgePopup,
    "gmp": GradualMagnitude,
    "l0": HardConcrete,
    "modular": ModularMask,
    "str": SoftThreshold,
    "set": SET,
    "rigl": RigL,
    "random": RandomMask,
}
"""Name to ``(budget, **options) -> sparsifier``."""


def defaults(name: str) -> dict[str, Any]:
    """The options of a sparsifier with their values, by name.

    >>> defaults("random")
    {'per_layer': False}
    """
    maker: Any = lookup("sparsifier", SPARSIFIERS, name)
    return {f.name: f.default for f in fields(maker) if isinstance(f.default, (bool, int, float, str))}
