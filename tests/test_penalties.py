"""Claims about losses and penalties."""

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from makers import logits_and_labels, outputs
from sparseirm.core import Loss, Outputs, Penalty
from sparseirm.losses import BINARY, LOSSES, MULTICLASS, SQUARED
from sparseirm.penalties import PENALTIES, irmv1, rex
from sparseirm.randomness import generator

every_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
close = torch.testing.assert_close


def rows(out: Outputs, index: Tensor) -> Outputs:
    """The same outputs at other samples, and a fresh source of randomness."""
    weight = None if out.weight is None else out.weight[index]
    return replace(
        out, logits=out.logits[index], y=out.y[index], env=out.env[index], weight=weight, noise=generator(0)
    )


def weighted(out: Outputs) -> Outputs:
    return replace(out, weight=torch.arange(len(out.y)) % 3 + 1)


# Contract: every penalty, with every loss.


@every_penalty
@every_loss
def test_a_penalty_is_a_finite_scalar_in_its_documented_range(penalty: Penalty, loss: Loss) -> None:
    documented = re.search(r"Range \[?\(?([^,]+), ([^)\]]+)", inspect.getdoc(penalty) or "")
    assert documented, "the docstring says no range"
    for dtype in (torch.float32, torch.float64):
        value = penalty(outputs(loss, dtype=dtype))
        assert value.shape == ()
        assert value.dtype == dtype
        assert value.isfinite()
        assert float(documented[1]) <= value <= float(documented[2])


@every_penalty
@every_loss
def test_renaming_the_environments_changes_nothing(penalty: Penalty, loss: Loss) -> None:
    out = outputs(loss)
    close(penalty(replace(out, env=(out.env + 1) % 3)), penalty(out))


@every_penalty
@every_loss
def test_the_order_of_the_samples_changes_nothing(penalty: Penalty, loss: Loss) -> None:
    out = weighted(outputs(loss))
    order = torch.randperm(len(out.y), generator=generator(1))
    close(penalty(rows(out, order)), penalty(out))


@every_penalty
@every_loss
def test_having_every_sample_twice_changes_nothing(penalty: Penalty, loss: Loss) -> None:
    out = weighted(outputs(loss))
    close(penalty(rows(out, torch.arange(len(out.y)).repeat(2))), penalty(out))


@every_penalty
@every_loss
def test_a_weight_of_three_is_having_the_sample_three_times(penalty: Penalty, loss: Loss) -> None:
    out = weighted(outputs(loss))
    assert out.weight is not None
    repeated = rows(out, torch.arange(len(out.y)).repeat_interleave(out.weight))
    close(penalty(out), penalty(replace(repeated, weight=None)))
    close(out.risks, replace(repeated, weight=None).risks)


@every_penalty
@every_loss
def test_the_gradient_is_that_of_finite_differences(penalty: Penalty, loss: Loss) -> None:
    out = weighted(outputs(loss))
    logits = out.logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: penalty(replace(out, logits=z, noise=generator(0))), (logits,), eps=1e-6
    )


# Oracle: automatic differentiation, numpy, scikit-learn.


@every_loss
def test_the_slope_is_the_derivative_along_the_scale_of_the_logits(loss: Loss) -> None:
    logits, y = logits_and_labels(loss, n=50)
    scale = torch.ones(50, *[1] * (logits.ndim - 1), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss.value(scale * logits, y).sum(), scale)
    close(loss.slope(logits, y), slope.flatten(), rtol=1e-12, atol=1e-12)


@every_loss
def test_loss_and_slope_are_one_number_per_sample_and_finite_for_extreme_logits(loss: Loss) -> None:
    logits, y = logits_and_labels(loss, n=50, dtype=torch.float32)
    for value in (loss.value(1e4 * logits, y), loss.slope(1e4 * logits, y)):
        assert value.shape == (50,)
        assert value.isfinite().all()


def test_cross_entropies_are_those_of_scikit_learn() -> None:
    logits, y = logits_and_labels(BINARY, n=50)
    assert BINARY.value(logits, y).mean().item() == pytest.approx(log_loss(y, logits.sigmoid()))
    logits, y = logits_and_labels(MULTICLASS, n=50)
    assert MULTICLASS.value(logits, y).mean().item() == pytest.approx(log_loss(y, logits.softmax(1)))


def test_predictions_are_the_most_probable_label_or_the_value_itself() -> None:
    assert BINARY.predict(torch.tensor([-1.0, 2.0])).tolist() == [0, 1]
    assert MULTICLASS.predict(torch.tensor([[0.0, 3.0, 1.0]])).tolist() == [1]
    assert SQUARED.predict(torch.tensor([-1.5])).tolist() == [-1.5]


@every_loss
def test_irmv1_is_the_squared_gradient_of_a_dummy_classifier(loss: Loss) -> None:
    out = outputs(loss)
    squares = []
    for env in range(out.n_envs):
        members = out.env == env
        dummy = torch.ones((), dtype=torch.float64, requires_grad=True)
        risk = loss.value(dummy * out.logits[members], out.y[members]).mean()
        squares.append(torch.autograd.grad(risk, dummy)[0] ** 2)
    close(irmv1(out), torch.stack(squares).mean(), rtol=1e-12, atol=0)


@every_loss
def test_rex_is_numpy_s_variance_of_the_weighted_mean_losses(loss: Loss) -> None:
    out = weighted(outputs(loss))
    assert out.weight is not None
    losses, weight, env = loss.value(out.logits, out.y).numpy(), out.weight.numpy(), out.env.numpy()
    means = [np.average(losses[env == e], weights=weight[env == e]) for e in range(out.n_envs)]
    assert rex(out).item() == pytest.approx(np.var(means), rel=1e-12)


def test_a_mean_over_many_float32_samples_loses_no_digits() -> None:
    n = 1 << 20
    out = Outputs(torch.full((n,), 0.1), torch.zeros(n), torch.zeros(n, dtype=torch.long), 1, SQUARED)
    close(out.risks, out.losses[:1], rtol=0, atol=0)


# Theory: when a penalty is zero.


def test_irmv1_is_zero_where_every_environment_s_log_odds_are_predicted() -> None:
    env = torch.tensor([0] * 4 + [1] * 5)
    y = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0])
    rate = torch.tensor([1 / 4, 4 / 5], dtype=torch.float64)[env]
    at_optimum = Outputs(rate.logit(), y, env, 2, BINARY)
    close(irmv1(at_optimum), torch.zeros((), dtype=torch.float64))
    assert irmv1(replace(at_optimum, logits=1.5 * rate.logit())) > 1e-3


@every_loss
def test_rex_is_zero_where_all_environments_hold_the_same_samples(loss: Loss) -> None:
    logits, y = logits_and_labels(loss, n=5)
    out = Outputs(torch.cat([logits] * 3), torch.cat([y] * 3), torch.arange(15) // 5, 3, loss)
    close(rex(out), torch.zeros((), dtype=torch.float64))
