"""Environments inferred where none are given. To add a way: write it, name it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from sparseirm.core import SettingError
from sparseirm.inference.eiil import EIIL as EIIL
from sparseirm.inference.eiil import infer_eiil as infer_eiil
from sparseirm.inference.eiil import soft_irmv1 as soft_irmv1
from sparseirm.inference.reference import Reference as Reference
from sparseirm.inference.reference import reference_logits as reference_logits
from sparseirm.inference.splits import Inference as Inference
from sparseirm.inference.splits import described as described
from sparseirm.inference.splits import in_inferred_environments as in_inferred_environments
from sparseirm.inference.zin import ZIN as ZIN
from sparseirm.inference.zin import infer_zin as infer_zin
from sparseirm.registry import lookup
from sparseirm.registry import options as filled

INFERENCES: dict[str, Callable[..., Inference]] = {"eiil": EIIL, "zin": ZIN}
"""Name to the class of the inference, whose attributes are its options."""


REFERENCE_STEPS = 200
"""Default of the one option every inference has: the most steps of training its reference."""


def options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an inference: ``reference_steps`` and its attributes, with defaults if not given.

    Args:
        name: a name in `INFERENCES`, or of an entry point in group ``sparseirm.inference``.
        given: values by option.

    Returns:
        Every option with a value, checked.

    Raises:
        SettingError: if the inference or an option is unknown, or a value does not fit.

    Example:
        >>> options("eiil", {"steps": 500})
        {'reference_steps': 200, 'steps': 500, 'lr': 0.01}
    """
    maker: Any = lookup("inference", INFERENCES, name)
    known = {"reference_steps": REFERENCE_STEPS, **{f.name: f.default for f in fields(maker)}}
    chosen = filled(f"environments {name!r}", known, given)
    if chosen["reference_steps"] < 1:
        raise SettingError(f"`reference_steps` must be at least 1; got {chosen['reference_steps']}.")
    make(name, chosen)
    return chosen


def make(name: str, chosen: Mapping[str, Any]) -> Inference:
    """The inference of a name with what `options` chose for it."""
    own = {option: value for option, value in chosen.items() if option != "reference_steps"}
    return lookup("inference", INFERENCES, name)(**own)
