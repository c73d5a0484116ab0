"""The linear model, the loss of a mask, and the paper's statements about it, by computation."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from sparseirm.core import SettingError
from sparseirm.data import Batch, DataSet
from sparseirm.data.synthetic import LinearSEM, linear_sem
from sparseirm.evaluation.rivals import search
from sparseirm.evaluation.theory import best_mask, largest_weights, learned_mask, mask_loss, moments
from sparseirm.experiments import theory as command
from sparseirm.experiments import theory_study as study
from sparseirm.experiments.statistics import wilson
from sparseirm.experiments.theory_tables import sheets
from sparseirm.files import read_json
from sparseirm.models import build
from sparseirm.penalties import rex
from sparseirm.sparsifiers import ProbMask
from sparseirm.training.state import Plan

SEM = LinearSEM(d_inv=2, d_s=3, d_r=3)


def mask_of(columns: tuple[int, ...], d: int) -> Tensor:
    mask = torch.zeros(d, dtype=torch.bool)
    mask[list(columns)] = True
    return mask


def shuffled(samples: Batch, seed: int) -> Batch:
    """The same samples with the columns after the second in random order, environments mixed up."""
    noise = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.arange(2), 2 + torch.randperm(samples.x.shape[1] - 2, generator=noise)])
    rows = torch.randperm(len(samples), generator=noise)
    return Batch(samples.x[rows][:, order], samples.y[rows], samples.env[rows])


def loss_by_lstsq(samples: Batch, mask: Tensor, penalty_weight: float) -> float:
    """Equation 15 word for word, with numpy."""
    x, y, env = samples.x[:, mask].numpy(), samples.y.numpy(), samples.env.numpy()
    root = np.sqrt(1 / np.bincount(env)[env])
    beta = np.linalg.lstsq(root[:, None] * x, root * y)[0]
    total = 0.0
    for e in np.unique(env):
        own = env == e
        beta_e = np.linalg.lstsq(x[own], y[own])[0]
        pooled, alone = (np.mean((y[own] - x[own] @ b) ** 2) for b in (beta, beta_e))
        total += pooled + penalty_weight * (pooled - alone)
    return float(total)


# The data


def test_features_are_related_to_the_target_as_the_model_says() -> None:
    sem = LinearSEM(d_inv=2, d_s=2, d_r=1, gamma=(1.0, -0.5), alpha=((0.5, 2.0), (2.0, 1.0)), noise=0.7)
    samples = sem.draw((200_000, 200_000), seed=3)
    power = 1 + 0.25 + 0.49
    for e, alpha in enumerate(sem.alpha):
        x, y = samples.x[samples.env == e], samples.y[samples.env == e]
        expected = torch.tensor([1.0, -0.5, power, power, 0.0], dtype=torch.float64)
        torch.testing.assert_close((x * y[:, None]).mean(0), expected, atol=0.03, rtol=0)
        squares = torch.tensor([1, 1, power + alpha[0] ** 2, power + alpha[1] ** 2, 1], dtype=torch.float64)
        torch.testing.assert_close(x.square().mean(0), squares, atol=0.05, rtol=0)


def test_the_spurious_features_turn_round_in_the_test_environment_only() -> None:
    data = linear_sem(SEM, n_train=4000, n_test=4000)
    slopes = {}
    for name, split in data.splits.items():
        slopes[name] = (split.samples.x * split.samples.y[:, None]).mean(0)
        assert split.spurious is None and split.samples.x.dtype == torch.float32
    assert (slopes["train"][SEM.spurious] > 2).all() and (slopes["val"][SEM.spurious] > 2).all()
    assert (slopes["test"][SEM.spurious] < -2).all() and (slopes["test"][SEM.invariant] > 0.8).all()
    assert not torch.equal(data.train.samples.y, data.val.samples.y)  # type: ignore[union-attr]


def test_the_same_seed_gives_the_same_data() -> None:
    a, b, c = (linear_sem(SEM, n_train=20, seed=seed).train.samples for seed in (5, 5, 6))
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and not torch.equal(a.x, c.x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"d_inv": 0}, "`d_inv` must be at least 1; got 0"),
        ({"d_r": -1}, "`d_r` must be at least 0"),
        ({"noise": 0.0}, "`noise` must be positive"),
        ({"inv_scale": math.nan}, "`inv_scale` must be positive"),
        ({"gamma": (1.0, 0.0)}, "`gamma` must hold 1 to 2 finite weights other than 0"),
        ({"gamma": (1.0, 1.0, 1.0)}, "`gamma` must hold"),
        ({"alpha": ((0.5,),)}, "at least two training environments"),
        ({"alpha": ((0.5,), (math.inf,))}, "finite numbers"),
        ({"alpha": ((0.5,), ())}, "`alpha` must hold"),
        ({"alpha": ((0.5, 1.0), (2.0, -1.0))}, "must vary over environments.*feature 1"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        replace(SEM, **wrong)  # type: ignore[arg-type]


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingError, match="one positive number of samples for each of the 2"):
        SEM.draw((5,), seed=0)
    with pytest.raises(SettingError, match="`n_train` and `n_test` must be at least 1"):
        linear_sem(SEM, n_train=0)
    with pytest.raises(SettingError, match="`test_alpha` must hold"):
        linear_sem(SEM, test_alpha=(1.0, 1.0, 1.0, 1.0))


# The loss of a mask


@given(st.integers(0, 10_000), st.integers(3, 30), st.integers(3, 30), st.sampled_from([0.0, 1.0, 1e4]))
def test_the_loss_is_equation_15(seed: int, n1: int, n2: int, penalty_weight: float) -> None:
    samples = shuffled(SEM.draw((n1, n2), seed), seed)
    mask = torch.rand(SEM.d, generator=torch.Generator().manual_seed(seed)) < 0.6
    expected = loss_by_lstsq(samples, mask, penalty_weight)
    assert mask_loss(samples, mask).at(penalty_weight) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_gap_is_the_spread_of_the_fits_in_one_dimension() -> None:
    """One feature: ``beta_e = (x y)_e / (x x)_e``, and equation 16 is ``(x x)_e (beta - beta_e)**2``."""
    samples = SEM.draw((30, 50), seed=1)
    loss = mask_loss(samples, mask_of((3,), SEM.d))
    x, y = samples.x[:, 3], samples.y
    xx, xy = (torch.stack([v[samples.env == e].mean() for e in (0, 1)]) for v in (x * x, x * y))
    gap = (xx * (xy.sum() / xx.sum() - xy / xx).square()).sum()
    assert loss.gap == pytest.approx(float(gap), rel=1e-12)


def test_the_empty_mask_predicts_zero() -> None:
    samples = SEM.draw((30, 50), seed=1)
    loss = mask_loss(samples, torch.zeros(SEM.d, dtype=torch.bool))
    powers = [float(samples.y[samples.env == e].square().mean()) for e in (0, 1)]
    assert (loss.risk, loss.gap) == (pytest.approx(sum(powers)), 0.0)


def test_moments_give_the_same_losses() -> None:
    samples = shuffled(SEM.draw((30, 50), seed=1), 0)
    masks = torch.tensor(list(itertools.combinations(range(SEM.d), 3)))
    losses = moments(samples).losses(masks, 7.0)
    direct = [mask_loss(samples, mask_of(tuple(mask), SEM.d)).at(7.0) for mask in masks.tolist()]
    np.testing.assert_allclose(losses, direct, rtol=1e-10)


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(SettingError, match=r"`mask` must have shape \(8,\); got \(7,\)"):
        mask_loss(SEM.draw((5, 5), seed=0), torch.ones(7, dtype=torch.bool))


# The paper's statements


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [(10, 10), (12, 7)])
def test_proposition_1(sizes: tuple[int, int], seed: int) -> None:
    """With more features than samples, all features together have no loss; the invariant ones do."""
    for extra in (1, 5, 40):
        d = sum(sizes) + extra
        sem = LinearSEM(d_inv=2, d_s=4, d_r=d - 6)
        samples = sem.draw(sizes, seed)
        everything = mask_loss(samples, torch.ones(d, dtype=torch.bool)).at(1e4)
        assert everything < 1e-18 < 0.1 < mask_loss(samples, sem.invariant).at(1e4)


@pytest.mark.parametrize("seed", range(3))
def test_corollary_1(seed: int) -> None:
    """With enough of them, spurious and random features alone have no loss; with too few they do."""
    for d_r, zero in ((15, False), (17, True), (40, True)):
        sem = LinearSEM(d_inv=2, d_s=4, d_r=d_r)
        samples = sem.draw((10, 10), seed)
        assert (mask_loss(samples, ~sem.invariant).at(1e4) < 1e-16) == zero


def test_with_fewer_features_than_samples_of_one_environment_no_loss_is_zero() -> None:
    sem = LinearSEM(d_inv=2, d_s=4, d_r=12)
    assert mask_loss(sem.draw((20, 20), 0), torch.ones(18, dtype=torch.bool)).risk > 0.01


def test_theorem_1_holds_with_many_samples_and_fails_with_few() -> None:
    sem = study.half_spurious(40)
    holds = {
        n: [search(sem.draw((n, n), s), 2, 10.0).breaks_at is None for s in range(10)] for n in (10, 600)
    }
    assert all(holds[600]) and not any(holds[10])


def test_theorem_1_needs_a_penalty_weight_that_outweighs_the_spurious_features() -> None:
    samples = study.half_spurious(12).draw((5000, 5000), 0)
    assert search(samples, 2, 10.0).breaks_at is None
    assert search(samples, 2, 1.0).breaks_at is not None


def test_the_probability_rises_with_samples_and_falls_with_features() -> None:
    case = study.Case("", study.half_spurious, 2, 10.0, (8, 32, 128), (15, 60, 240), trials=30)
    found = study.identified(case, resamples=20)
    table = np.array([found.probability(d) for d in case.dimensions])
    assert (np.diff(table, axis=1) > 0).all() and (np.diff(table, axis=0) <= 0).all()
    assert table[0, -1] == 1 and table[-1, 0] == 0 and found.exhaustive


# The search


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_trying_every_mask_finds(budget: int, seed: int) -> None:
    sem = LinearSEM(d_inv=budget, d_s=3, d_r=3)
    for n in (8, 25, 100):
        samples = sem.draw((n, n + 3), seed)
        samples = samples if budget != 2 else shuffled(samples, seed)
        chosen, first = tuple(range(budget)), math.inf
        target = loss_by_lstsq(samples, mask_of(chosen, sem.d), 10.0)
        best = (target, chosen)
        for size in range(budget + 1):
            for mask in itertools.combinations(range(sem.d), size):
                loss = loss_by_lstsq(samples, mask_of(mask, sem.d), 10.0)
                best = min(best, (loss, mask))
                if mask != chosen and loss <= target:
                    first = min(first, max(budget, 1 + max(mask, default=0)))
        result = search(samples, budget, 10.0)
        assert result.exhaustive and (result.breaks_at or math.inf) == first
        assert result.masks == sum(math.comb(sem.d, k) for k in range(budget + 1))
        assert torch.equal(best_mask(samples, budget, 10.0), mask_of(best[1], sem.d))
        part = search(samples, budget, 10.0, most=50)
        assert not part.exhaustive or part == result
        assert (part.breaks_at or math.inf) >= first


def test_a_search_of_a_part_says_so_and_considers_the_masks_near_the_invariant_one() -> None:
    samples = LinearSEM(d_inv=4, d_s=10, d_r=16).draw((12, 12), seed=0)
    part = search(samples, 4, 10.0, most=2000)
    assert not part.exhaustive and part.breaks_at is not None and part.masks < 2 * math.comb(30, 4)


def test_a_search_without_enough_samples_is_refused() -> None:
    with pytest.raises(SettingError, match="more samples in every environment than `budget` = 2; got 2"):
        search(SEM.draw((2, 9), seed=0), 2, 10.0)
    with pytest.raises(
        SettingError, match="`budget` must lie between 1 and the number of features, 8; got 9"
    ):
        search(SEM.draw((20, 20), seed=0), 9, 10.0)


# What methods choose


def test_the_largest_weights_of_least_squares() -> None:
    samples = SEM.draw((40, 40), seed=2)
    beta = np.linalg.lstsq(samples.x.numpy(), samples.y.numpy())[0]
    chosen = set(np.argsort(-np.abs(beta))[:3].tolist())
    assert set(largest_weights(samples, 3).nonzero()[:, 0].tolist()) == chosen


def test_training_with_a_budget_finds_the_invariant_features() -> None:
    """Section B.2: a linear predictor with gated inputs, REx, K = d_inv."""
    data = linear_sem(LinearSEM(d_inv=2, d_s=3, d_r=3), n_train=500)
    plan, sparsifier = replace(study.REX.plan, steps=500), study.REX.sparsifier
    mask = learned_mask(data, sparsifier, rex, plan)
    assert mask.tolist() == [True, True, *[False] * 6]
    assert torch.equal(mask, learned_mask(data, sparsifier, rex, plan))


def test_the_learned_mask_is_about_regression_only() -> None:
    data: DataSet = replace(linear_sem(SEM, n_train=9), name="labels", loss="binary")
    with pytest.raises(SettingError, match=r"'labels' has loss 'binary'.*Use `linear_sem`"):
        learned_mask(data, ProbMask(budget=2), rex, Plan(steps=1))


def test_the_data_set_runs_with_any_module() -> None:
    data = linear_sem(SEM, n_train=9)
    module = build(lambda: nn.Linear(SEM.d, data.n_outputs), seed=0)
    assert module(data.train.samples.x).shape == (18, 1)


# The report


def test_wilson_is_scipys() -> None:
    for hits, trials in ((0, 7), (3, 9), (60, 60)):
        theirs = binomtest(hits, trials).proportion_ci(method="wilson")
        assert wilson(hits, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_samples_needed_are_read_off_the_rising_curve() -> None:
    breaks = np.array([[3.0] * 8 + [9.0] * 2, [9.0] * 10, [9.0] * 9 + [3.0]]).T
    assert study.samples_needed(breaks, [8], [10, 20, 30]) == pytest.approx([10 + 10 * 0.7 / 0.75])
    assert np.isnan(study.samples_needed(breaks[:, :1], [8], [10])).all()


def test_the_command_writes_table_figure_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = replace(
        study.QUICK,
        interpolation=(5,),
        cases=(study.Case("two", study.half_spurious, 2, 10.0, (8, 16, 32), (20, 80, 200), 10),),
        weights=(1.0, 10.0),
        weights_case=study.Case("", study.half_spurious, 2, 0.0, (16,), (20, 200), 5),
        runs=1,
        resamples=5,
    )
    monkeypatch.setattr(study, "QUICK", sizes)
    monkeypatch.setattr(study, "TRAININGS", [replace(how, plan=Plan(steps=4)) for how in study.TRAININGS[:1]])
    report = command.theory(tmp_path / "out", quick=True)
    text, numbers = (tmp_path / "out" / "theory.md").read_text(), read_json(tmp_path / "out" / "theory.json")
    for sheet in sheets(report):
        assert sheet.title in text and sheet.title in capsys.readouterr().out + text
        assert all(len(row) == len(sheet.headings) for row in sheet.rows)
    assert (tmp_path / "out" / "theory.svg").read_text().startswith("<?xml")
    assert numbers["identified"][0]["case"]["sem"] == "half_spurious" and numbers["quick"]
    assert len(numbers["identified"][0]["breaks"]) == 10
    assert sheets(study.TheoryReport.from_json(numbers)) == sheets(report)
