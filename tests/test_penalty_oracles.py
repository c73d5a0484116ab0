"""What each penalty computes, against an independent slow version, a closed form, or another library."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog
from scipy.stats import gaussian_kde
from torch import Tensor

from makers import outputs
from sparseirm.core import Loss, Outputs
from sparseirm.losses import BINARY, LOSSES, MULTICLASS, SQUARED
from sparseirm.penalties import (
    EQRM,
    IBIRM,
    PENALTIES,
    BayesianIRM,
    GroupDRO,
    MinimaxREx,
    coral,
    fishr,
    iga,
    irmv1,
    irmv1_split,
    rex,
    spectral_decoupling,
)
from sparseirm.randomness import generator

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
close = torch.testing.assert_close
zero = torch.zeros((), dtype=torch.float64)


def plain(loss: Loss, weighted: bool = True) -> Outputs:
    """Outputs without a graph, with unequal environments and weights."""
    out = outputs(loss)
    assert out.features is not None
    weight = torch.arange(len(out.y)) % 3 + 1 if weighted else None
    return replace(out, logits=out.logits.detach(), features=out.features.detach(), weight=weight)


def slope_at(loss: Loss, logits: Tensor, y: Tensor, scale: float) -> float:
    """Derivative of the mean loss along the scale of the logits, by automatic differentiation."""
    dummy = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss.value(dummy * logits, y).mean(), dummy)
    return slope.item()


def with_risks(risks: list[float]) -> Outputs:
    """One sample per environment, with the given squared errors."""
    logits = torch.tensor(risks, dtype=torch.float64).sqrt()
    return Outputs(logits, torch.zeros(len(risks)), torch.arange(len(risks)), len(risks), SQUARED)


RISKS = [0.3, 1.7, 0.9, 0.45, 2.6]


# Slopes.


@every_loss
def test_irmv1_is_the_squared_gradient_of_a_dummy_classifier(loss: Loss) -> None:
    out = plain(loss, weighted=False)
    squares = [
        slope_at(loss, out.logits[out.env == env], out.y[out.env == env], 1.0) ** 2
        for env in range(out.n_envs)
    ]
    assert irmv1(out).item() == pytest.approx(np.mean(squares), rel=1e-12)


@every_loss
def test_split_irmv1_takes_every_split_and_no_other(loss: Loss) -> None:
    out = plain(loss, weighted=False)
    members = [torch.nonzero(out.env == env).flatten().tolist() for env in range(3)]
    splits = []
    for samples in members:
        pairs = []
        for first in combinations(samples, len(samples) // 2):
            second = [i for i in samples if i not in first]
            a, b = (slope_at(loss, out.logits[list(h)], out.y[list(h)], 1.0) for h in (first, second))
            pairs.append(a * b)
        splits.append(pairs)
    possible = np.array([np.mean(values) for values in product(*splits)])
    drawn = [irmv1_split(replace(out, noise=generator(seed))).item() for seed in range(300)]
    nearest = [np.abs(possible - x).min() for x in drawn]
    assert max(nearest) < 1e-12
    spread = np.std(possible) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - possible.mean()) < 4 * spread


@every_loss
def test_split_irmv1_is_unbiased_on_minibatches_and_irmv1_is_not(loss: Loss) -> None:
    """Over all ordered minibatches of two samples, drawn from one environment with replacement."""
    out = plain(loss, weighted=False)
    logits, y = out.logits[:6], out.y[:6]
    batches = [
        Outputs(logits[list(pair)], y[list(pair)], torch.zeros(2, dtype=torch.long), 1, loss)
        for pair in product(range(6), repeat=2)
    ]
    slopes = loss.slope(logits, y)
    close(torch.stack([irmv1_split(b) for b in batches]).mean(), slopes.mean().square())
    bias = slopes.var(correction=0) / 2
    close(torch.stack([irmv1(b) for b in batches]).mean(), slopes.mean().square() + bias)


def test_samples_without_weight_take_no_place_in_a_half() -> None:
    out = Outputs(torch.tensor([1.0, 5.0, 2.0, 7.0]), torch.zeros(4), torch.zeros(4).long(), 1, SQUARED)
    sparse = replace(out, weight=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    for noise in (None, generator(0), generator(1)):
        close(irmv1_split(replace(sparse, noise=noise)), torch.tensor(2.0 * 8.0))


@every_loss
def test_bayesian_irm_is_the_expectation_over_the_classifier(loss: Loss) -> None:
    out = plain(loss, weighted=False)
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)
    sd, expected = 0.3, 0.0
    for env in range(out.n_envs):
        members = out.env == env
        squares = [slope_at(loss, out.logits[members], out.y[members], 1 + sd * x) ** 2 for x in nodes]
        expected += np.dot(masses, squares) / masses.sum() / out.n_envs
    assert BayesianIRM(sd, n_draws=20_000)(out).item() == pytest.approx(expected, rel=0.03)
    assert BayesianIRM(sd, n_draws=2000)(replace(out, noise=None)).item() == pytest.approx(expected, rel=1e-3)
    assert irmv1(out).item() != pytest.approx(expected, rel=5e-3)


def test_bayesian_irm_of_squared_error_adds_the_squared_curvature() -> None:
    out = plain(SQUARED)
    curvature = 2 * out.env_mean(out.logits.square())
    expected = irmv1(out) + 0.2**2 * curvature.square().mean()
    close(BayesianIRM(0.2, n_draws=5000)(replace(out, noise=None)), expected, rtol=1e-4, atol=0)


@every_loss
def test_bayesian_irm_without_spread_is_irmv1_and_with_it_depends_on_the_draw(loss: Loss) -> None:
    out = plain(loss)
    close(BayesianIRM(sd=0.0)(out), irmv1(out))
    fixed = replace(out, noise=None)
    close(BayesianIRM(sd=0.0, split=True)(fixed), irmv1_split(fixed))
    first, second = (BayesianIRM(sd=0.3)(replace(out, noise=generator(seed))) for seed in (0, 1))
    assert abs(first - second) > 1e-3 * first
    assert abs(first - irmv1(out)) > 1e-3 * first


# Gradients.


def test_gradient_alignment_of_a_linear_model_is_that_of_its_normal_equations() -> None:
    draw = np.random.default_rng(0)
    x, y, env = draw.normal(size=(12, 3)), draw.normal(size=12), np.arange(12) % 3
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    logits = torch.from_numpy(x) @ w
    out = Outputs(
        logits, torch.from_numpy(y), torch.from_numpy(env), 3, SQUARED, parameters=(w, unused, w.detach())
    )
    by_hand = []
    for e in range(3):
        xe, ye = x[env == e], y[env == e]
        by_hand.append(2 * xe.T @ (xe @ w.detach().numpy() - ye) / len(ye))
    expected = np.trace(np.cov(np.array(by_hand).T, bias=True))
    assert iga(out).item() == pytest.approx(expected, rel=1e-12)


@every_loss
def test_fishr_is_the_variance_of_the_variances_of_per_sample_gradients(loss: Loss) -> None:
    out = plain(loss)
    assert out.features is not None and out.weight is not None
    k = 4 if loss == MULTICLASS else 1
    head = torch.nn.Linear(3, k, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(out.parameters[1].T)
        head.bias.copy_(out.parameters[2])
    gradients = []
    for x, y in zip(out.features, out.y, strict=True):
        logits = head(x[None])
        value = loss.value(logits if loss == MULTICLASS else logits[:, 0], y[None]).sum()
        pieces = torch.autograd.grad(value, (head.weight, head.bias))
        gradients.append(torch.cat([p.flatten() for p in pieces]).numpy())
    variances = []
    for env in range(out.n_envs):
        members = (out.env == env).numpy()
        repeated = np.repeat(np.array(gradients)[members], out.weight.numpy()[members], axis=0)
        variances.append(repeated.var(axis=0))
    assert fishr(out).item() == pytest.approx(np.var(variances, axis=0).mean(), rel=1e-10)


def test_fishr_of_float32_adds_up_in_float64() -> None:
    """Gradients near 2,000 with a variance near 4: squares in float32 would lose it."""
    n, env = 400, torch.arange(400) % 2
    logits = 1000 + torch.randn(n, generator=generator(0)) * (1 + env)
    single = Outputs(logits, torch.zeros(n), env, 2, SQUARED, features=torch.ones(n, 1))
    double = replace(single, logits=logits.double(), y=single.y.double(), features=torch.ones(n, 1).double())
    assert fishr(single).item() == pytest.approx(fishr(double).item(), rel=1e-3)


# Risks.


@every_loss
def test_rex_is_numpy_s_variance_of_the_weighted_mean_losses(loss: Loss) -> None:
    out = plain(loss)
    assert out.weight is not None
    losses, weight, env = loss.value(out.logits, out.y).numpy(), out.weight.numpy(), out.env.numpy()
    means = [np.average(losses[env == e], weights=weight[env == e]) for e in range(out.n_envs)]
    assert rex(out).item() == pytest.approx(np.var(means), rel=1e-12)


@pytest.mark.parametrize("lambda_min", [0.0, -0.5, -3.0])
def test_minimax_rex_is_the_linear_programme_over_extrapolated_weights(lambda_min: float) -> None:
    out, n = with_risks(RISKS), len(RISKS)
    worst = linprog(-np.array(RISKS), A_eq=np.ones((1, n)), b_eq=[1.0], bounds=[(lambda_min, None)] * n)
    assert (out.risks.mean() + MinimaxREx(lambda_min)(out)).item() == pytest.approx(-worst.fun)


def test_group_dro_is_the_worst_risk_and_its_smooth_form_weighs_risks_by_one_exponential_update() -> None:
    out = with_risks(RISKS)
    assert (out.risks.mean() + GroupDRO()(out)).item() == pytest.approx(max(RISKS))
    close(GroupDRO(temperature=1e-4)(out), GroupDRO()(out), rtol=1e-3, atol=0)
    smooth = 0.5 * np.log(np.mean(np.exp(np.array(RISKS) / 0.5)))
    assert (out.risks.mean() + GroupDRO(temperature=0.5)(out)).item() == pytest.approx(smooth)
    logits = out.logits.requires_grad_()
    live = replace(out, logits=logits)
    (gradient,) = torch.autograd.grad(live.risks.mean() + GroupDRO(temperature=0.5)(live), logits)
    update = np.exp(np.array(RISKS) / 0.5)
    close(gradient, torch.from_numpy(update / update.sum()) * 2 * logits.detach())


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("risks", [RISKS, RISKS[:2], [*RISKS, 40.0]])
def test_the_quantile_of_the_risks_is_that_of_scipy_s_kernel_density(
    quantile: float, risks: list[float]
) -> None:
    density = gaussian_kde(risks, bw_method=1.06 * len(risks) ** -0.2)
    expected = brentq(lambda q: density.integrate_box_1d(-np.inf, q) - quantile, -1e3, 1e3, xtol=1e-12)
    out = with_risks(risks)
    assert (out.risks.mean() + EQRM(quantile)(out)).item() == pytest.approx(expected, rel=1e-9)


# Features.


@pytest.mark.parametrize("n_envs", [2, 3])
def test_coral_is_the_mean_over_pairs_of_environments(n_envs: int) -> None:
    out = replace(plain(BINARY), env=outputs(BINARY).env % n_envs, n_envs=n_envs)
    assert out.features is not None and out.weight is not None
    x, weight, env = out.features.numpy(), out.weight.numpy(), out.env.numpy()
    means = [np.average(x[env == e], axis=0, weights=weight[env == e]) for e in range(n_envs)]
    spreads = [np.cov(x[env == e].T, fweights=weight[env == e], bias=True) for e in range(n_envs)]
    pairs = [
        np.mean((means[e] - means[f]) ** 2) + np.mean((spreads[e] - spreads[f]) ** 2)
        for e, f in combinations(range(n_envs), 2)
    ]
    assert coral(out).item() == pytest.approx(np.mean(pairs), rel=1e-12)


@every_loss
def test_the_bottleneck_is_the_variance_of_the_features_within_environments(loss: Loss) -> None:
    out = plain(loss, weighted=False)
    assert out.features is not None
    variances = [out.features[out.env == e].numpy().var(axis=0).mean() for e in range(3)]
    assert IBIRM(bottleneck=2.5)(out).item() == pytest.approx(irmv1(out).item() + 2.5 * np.mean(variances))
    close(IBIRM(bottleneck=0.0)(out), irmv1(out))


@every_loss
def test_spectral_decoupling_is_the_mean_squared_logit(loss: Loss) -> None:
    out = plain(loss, weighted=False)
    logits = out.logits.numpy()
    means = [np.mean(logits[(out.env == e).numpy()] ** 2) for e in range(3)]
    assert spectral_decoupling(out).item() == pytest.approx(np.mean(means), rel=1e-12)


# Theory: when a penalty is zero.


def test_irmv1_is_zero_where_every_environment_s_log_odds_are_predicted() -> None:
    env = torch.tensor([0] * 4 + [1] * 5)
    y = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0])
    rate = torch.tensor([1 / 4, 4 / 5], dtype=torch.float64)[env]
    at_optimum = Outputs(rate.logit(), y, env, 2, BINARY)
    close(irmv1(at_optimum), zero)
    assert irmv1(replace(at_optimum, logits=1.5 * rate.logit())) > 1e-3
    assert BayesianIRM(sd=0.5)(at_optimum) > 1e-3


@pytest.mark.parametrize("name", ["rex", "mmrex", "groupdro", "eqrm", "iga", "fishr", "coral"])
@every_loss
def test_penalties_on_differences_are_zero_where_all_environments_hold_the_same_samples(
    loss: Loss, name: str
) -> None:
    """And training from there is not poisoned: the gradient is finite, where the smooth ones vanish."""
    out = outputs(loss, sizes=(5,))
    assert out.features is not None
    same = replace(
        out,
        logits=torch.cat([out.logits] * 3),
        y=torch.cat([out.y] * 3),
        features=torch.cat([out.features] * 3),
        env=torch.arange(15) // 5,
        n_envs=3,
    )
    penalty = PENALTIES[name](same)
    close(penalty, zero)
    gradients = torch.autograd.grad(penalty, same.parameters, materialize_grads=True)
    for gradient in gradients:
        close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
