"""During training: what the penalty and the network do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sparseirm.core import Outputs, Penalty
from sparseirm.monitor.findings import Finding
from sparseirm.penalties import no_penalty
from sparseirm.training.state import Plan

FROM_PYTHON = " (from Python, `penalty_weight` of `SparseIRMClassifier` or `SparseIRMRegressor`)"
"""Where the penalty weight of a table's model is set: ``sparseirm fit`` has no option for it."""
FROM_TRAIN = " (`--penalty-weight` of `sparseirm train`)"
"""Where that of a model of images is."""


@dataclass(frozen=True)
class Trace:
    """One look at a run.

    Attributes:
        step: steps taken before it.
        risks: risk of each environment.
        penalty: the penalty, unweighted.
        weight: lambda of the step.
        share: share of the penalty in the gradient by the weights, ``lambda |p| / (lambda |p| + |r|)`` of the
            norms of both gradients; 0 while lambda is.
        reaches: whether the penalty has a gradient by the weights that is not zero.
        spread: standard deviation of the logits.
    """

    step: int
    risks: tuple[float, ...]
    penalty: float
    weight: float
    share: float
    reaches: bool
    spread: float


@dataclass
class Probe:
    """A penalty that is watched: it gives the same values, and looks at the run every so often.

    Attributes:
        penalty: the penalty, or None for one that is always zero.
        plan: the plan of the run.
        looks: how many looks a run gets.
        traces: what was seen.
        step: steps seen.

    Example:
        >>> from sparseirm.losses import SQUARED
        >>> from sparseirm.penalties import rex
        >>> w = torch.ones(1, requires_grad=True)
        >>> z, env = w * torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
        >>> probe = Probe(rex, Plan(steps=10, penalty_weight=1.0, penalty_from=0.0))
        >>> probe(Outputs(z, torch.zeros(2), env, 2, SQUARED, parameters=(w,))).item()
        2.25
        >>> probe.traces[0].risks, round(probe.traces[0].share, 2)
        ((1.0, 4.0), 0.64)
    """

    penalty: Penalty | None
    plan: Plan
    looks: int = 20
    traces: list[Trace] = field(default_factory=list)
    step: int = 0

    def __call__(self, out: Outputs) -> Tensor:
        """The penalty of one pass."""
        value = no_penalty(out) if self.penalty is None else self.penalty(out)
        if self.step % max(1, self.plan.steps // self.looks) == 0 or self.step == self.plan.steps - 1:
            self.traces.append(self._look(out, value))
        self.step += 1
        return value

    def _look(self, out: Outputs, value: Tensor) -> Trace:
        weight = self.plan.penalty_weight_at(self.step)
        risk, penalty = _slope(out.risks.mean(), out), _slope(value, out)
        total = risk + weight * penalty
        return Trace(
            step=self.step,
            risks=tuple(out.risks.tolist()),
            penalty=float(value.detach()),
            weight=weight,
            share=weight * penalty / total if total > 0 else 0.0,
            reaches=self.penalty is None or penalty > 0,
            spread=float(out.logits.detach().double().std(correction=0)),
        )


def _slope(value: Tensor, out: Outputs) -> float:
    """Norm of the gradient by the weights the pass ran with."""
    parameters = [p for p in out.parameters if p.requires_grad]
    if not parameters or not value.requires_grad:
        return 0.0
    pieces = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(
        sum(float(piece.detach().double().square().sum()) for piece in pieces if piece is not None)
    )


def during(
    traces: Sequence[Trace],
    *,
    budget: int,
    kept: int,
    undecided: float | None,
    constant_risk: float | None = None,
    images: bool = False,
) -> list[Finding]:
    """What a finished run says about itself.

    Args:
        traces: the looks at it, first to last.
        budget: K asked for, in the unit of ``kept``.
        kept: K achieved.
        undecided: fraction of mask probabilities that are neither 0 nor 1, or None without any.
        constant_risk: mean training risk of the best constant prediction, to recognise a collapse.
        images: whether it was trained on images, for the words.

    Returns:
        The findings; none for a run without remarks.
    """
    found, last = [], traces[-1]
    kept_by, where = ("`--densities`", FROM_TRAIN) if images else ("`--columns`", FROM_PYTHON)
    acting = [trace for trace in traces if trace.weight > 0]
    if acting and not any(trace.reaches for trace in acting):
        found.append(
            Finding(
                *("during", "problem", "penalty without gradient"),
                "The penalty never had a gradient by the weights.",
                "With one environment, or a penalty detached from the network, it does nothing: check both.",
            )
        )
    elif acting:
        found += _share(float(np.mean([trace.share for trace in acting[len(acting) // 2 :]])), where)
    if constant_risk is not None and np.mean(last.risks) > 0.98 * constant_risk:
        found.append(
            Finding(
                *("during", "problem", "collapse"),
                f"Training risk {np.mean(last.risks):.3g} is no better than a constant's, "
                f"{constant_risk:.3g} (standard deviation of the logits {last.spread:.2g}).",
                f"Train for more steps (`--steps`); if a sparse model was taken, let it keep more "
                f"({kept_by}), or take plain training (`--method erm`).",
            )
        )
    gap = max(last.risks) - min(last.risks)
    if acting and gap > 0.25 * float(np.mean(last.risks)):
        found.append(
            Finding(
                *("during", "note", "uneven risks"),
                f"The training risks still range from {min(last.risks):.3g} to {max(last.risks):.3g}.",
                f"Let the model keep less ({kept_by}), or raise the penalty weight{where}; or "
                "environments differ in noise, which no predictor can change.",
            )
        )
    if undecided is not None and undecided > 0.05:
        found.append(
            Finding(
                *("during", "warning", "undecided mask"),
                f"{undecided:.0%} of the mask's probabilities are neither 0 nor 1.",
                "The mask is partly a coin toss: train for more steps (`--steps`).",
            )
        )
    if kept != budget:
        found.append(
            Finding(
                *("during", "note" if kept < budget else "problem", "budget missed"),
                f"Asked to keep {budget}, kept {kept}.",
                "Groups stay or go whole, so fewer is usual with groups; more is a fault of the sparsifier.",
            )
        )
    return found


def _share(share: float, where: str) -> Iterable[Finding]:
    if share < 0.01:
        yield Finding(
            *("during", "warning", "faint penalty"),
            f"The penalty's share of the gradient was {share:.2%} in the second half of its time.",
            f"It hardly acts: raise the penalty weight{where}.",
        )
    elif share > 0.99:
        yield Finding(
            *("during", "note", "strong penalty"),
            f"The penalty's share of the gradient was {share:.1%} in the second half of its time.",
            f"The risk hardly counts: if the fit is poor, lower the penalty weight{where}.",
        )
