"""Contracts every penalty keeps; what each one computes is in test_penalty_oracles."""

import inspect
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from makers import PLAN, Problem, outputs, toy_weights
from sparseirm.core import Loss, Outputs, Penalty
from sparseirm.losses import BINARY, LOSSES
from sparseirm.penalties import PENALTIES, make
from sparseirm.randomness import generator

VARIANTS: dict[str, Penalty] = {
    "bayesian, split": make("bayesian", split=True),
    "groupdro, smooth": make("groupdro", temperature=0.3),
    "eqrm, worst": make("eqrm", quantile=0.99),
}
MEMBERS = {**PENALTIES, **VARIANTS}
ON_HALVES = {"irmv1_split", "bayesian, split"}
"""Which half a sample falls in depends on its place, so these change with the order of the samples."""
MAY_BE_NEGATIVE = {"bayesian, split"}
"""Variants whose range is wider than that of their defaults."""

every_penalty = pytest.mark.parametrize("name", MEMBERS)
every_symmetric_penalty = pytest.mark.parametrize("name", [name for name in MEMBERS if name not in ON_HALVES])
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
close = torch.testing.assert_close


def value(name: str, out: Outputs) -> Tensor:
    """The penalty of outputs, with the same draws in every call."""
    return MEMBERS[name](replace(out, noise=generator(0)))


def rows(out: Outputs, index: Tensor) -> Outputs:
    """The same outputs at other samples."""
    assert out.features is not None
    weight = None if out.weight is None else out.weight[index]
    columns = {"logits": out.logits, "y": out.y, "env": out.env, "features": out.features}
    return replace(out, weight=weight, **{name: column[index] for name, column in columns.items()})


def weighted(out: Outputs) -> Outputs:
    return replace(out, weight=torch.arange(len(out.y)) % 3 + 1)


# Contract: every penalty, with every loss.


@every_penalty
@every_loss
def test_a_penalty_is_a_finite_scalar_in_its_documented_range(name: str, loss: Loss) -> None:
    documented = re.search(r"Range \[?\(?([^,]+), ([^)\]]+)", inspect.getdoc(MEMBERS[name]) or "")
    assert documented, "the docstring says no range"
    least = -torch.inf if name in MAY_BE_NEGATIVE else float(documented[1])
    for dtype in (torch.float32, torch.float64):
        penalty = value(name, outputs(loss, dtype=dtype))
        assert penalty.shape == ()
        assert penalty.dtype == dtype
        assert penalty.isfinite()
        assert least <= penalty <= float(documented[2])


@every_penalty
@every_loss
def test_a_single_environment_is_fine(name: str, loss: Loss) -> None:
    assert value(name, outputs(loss, sizes=(6,))).isfinite()


@every_penalty
@every_loss
def test_renaming_the_environments_changes_nothing(name: str, loss: Loss) -> None:
    out = outputs(loss)
    close(value(name, replace(out, env=(out.env + 1) % 3)), value(name, out))


@every_symmetric_penalty
@every_loss
def test_the_order_of_the_samples_changes_nothing(name: str, loss: Loss) -> None:
    out = weighted(outputs(loss))
    order = torch.randperm(len(out.y), generator=generator(1))
    close(value(name, rows(out, order)), value(name, out))


@every_symmetric_penalty
@every_loss
def test_having_every_sample_twice_changes_nothing(name: str, loss: Loss) -> None:
    out = weighted(outputs(loss))
    close(value(name, rows(out, torch.arange(len(out.y)).repeat(2))), value(name, out))


@every_symmetric_penalty
@every_loss
def test_a_weight_of_three_is_having_the_sample_three_times(name: str, loss: Loss) -> None:
    out = weighted(outputs(loss))
    assert out.weight is not None
    repeated = rows(out, torch.arange(len(out.y)).repeat_interleave(out.weight))
    close(value(name, out), value(name, replace(repeated, weight=None)))
    close(out.risks, replace(repeated, weight=None).risks)


@every_penalty
@every_loss
def test_a_weight_of_zero_is_not_having_the_sample(name: str, loss: Loss) -> None:
    out = replace(outputs(loss), noise=None)
    assert out.features is not None
    extra = rows(out, torch.tensor([0, 5]))
    both = {
        field: torch.cat([getattr(out, field), getattr(extra, field)])
        for field in ("logits", "y", "env", "features")
    }
    weight = torch.ones(len(both["y"]))
    weight[-2:] = 0
    close(MEMBERS[name](replace(out, weight=weight, **both)), MEMBERS[name](out))


@every_penalty
@every_loss
def test_the_gradient_by_the_weights_is_that_of_finite_differences(name: str, loss: Loss) -> None:
    def penalty(*weights: Tensor) -> Tensor:
        return value(name, weighted(outputs(loss, weights=weights)))

    assert torch.autograd.gradcheck(penalty, toy_weights(loss), eps=1e-6)


@every_penalty
def test_draws_come_from_the_outputs_noise_alone(name: str) -> None:
    out, before = outputs(BINARY), torch.get_rng_state()
    first = value(name, out)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(value(name, out), first)
    without = replace(out, noise=None)
    assert torch.equal(MEMBERS[name](without), MEMBERS[name](without))


@every_penalty
def test_a_penalty_changes_the_weights_of_a_masked_network_in_training(name: str) -> None:
    plan = replace(PLAN, steps=3, penalty_from=0.0)
    trained = Problem(plan=plan, penalty=MEMBERS[name]).train()
    without = Problem(plan=replace(plan, penalty_weight=0.0), penalty=MEMBERS[name]).train()
    assert trained.state.weights.isfinite().all()
    assert not torch.equal(trained.state.weights, without.state.weights)


@pytest.mark.parametrize("name", ["irmv1", "irmv1_split", "bayesian", "rex"])
def test_the_representation_is_not_computed_for_a_penalty_that_does_not_read_it(name: str) -> None:
    def never() -> Tensor:
        raise AssertionError("the representation was computed")

    MEMBERS[name](replace(outputs(BINARY), features=never))  # type: ignore[arg-type]
