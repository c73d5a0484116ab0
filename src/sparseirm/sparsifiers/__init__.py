"""Sparsifiers: how the mask comes about. To add one: write it, name it here."""

from collections.abc import Callable

from sparseirm.core import Sparsifier
from sparseirm.sparsifiers.dense import Dense as Dense
from sparseirm.sparsifiers.probmask import ProbMask as ProbMask
from sparseirm.sparsifiers.projection import project as project
from sparseirm.sparsifiers.projection import top_k as top_k

SPARSIFIERS: dict[str, Callable[..., Sparsifier]] = {"dense": Dense, "probmask": ProbMask}
