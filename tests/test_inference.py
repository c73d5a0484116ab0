"""Claims about inferred environments: formulas, what is found, what is refused, and that nothing leaks."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor, nn

from makers import assert_same_bits, logits_and_labels
from sparseirm.cli import main
from sparseirm.core import Loss, SettingError
from sparseirm.data.environments import Batch, Batches, DataSet, Split
from sparseirm.data.synthetic import LinearSEM
from sparseirm.experiments.tables import label
from sparseirm.files import read_json, read_tensors
from sparseirm.inference import (
    EIIL,
    ZIN,
    Reference,
    in_inferred_environments,
    infer_eiil,
    infer_zin,
    soft_irmv1,
)
from sparseirm.inference.labels import LEAST, harden
from sparseirm.inference.reference import reference_logits
from sparseirm.inference.zin import Heads, mixed
from sparseirm.losses import BINARY, LOSSES, SQUARED
from sparseirm.methods import METHODS
from sparseirm.models import network
from sparseirm.randomness import generator
from sparseirm.recipe import Recipe
from sparseirm.runs import MODEL, RESULT, Result, run, training_split
from sparseirm.training.state import Plan, State

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
DIGITS = Recipe(method="irm", environments="eiil", width=64, steps=12, eval_every=5)


def matching(env: Tensor, other: Tensor) -> float:
    """How far two divisions in two agree, whichever way their parts are numbered."""
    same = float((env == other).double().mean())
    return max(same, 1 - same)


def hard(env: Tensor, n_envs: int = 2) -> Tensor:
    """Shares of samples that belong to one environment each."""
    return nn.functional.one_hot(env, n_envs).double()


# EIIL's objective and its maximum.


@every_loss
def test_the_soft_penalty_is_the_squared_gradient_of_a_dummy_classifier(loss: Loss) -> None:
    logits, y = logits_and_labels(loss, n=9)
    shares = torch.rand(9, 3, generator=generator(0, "shares"), dtype=torch.float64).softmax(1)
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    squares = [
        torch.autograd.grad((shares[:, e] * loss.value(w * logits, y)).mean(), w)[0] ** 2 for e in range(3)
    ]
    torch.testing.assert_close(soft_irmv1(loss.slope(logits, y), shares), sum(squares) / 3)


@every_loss
def test_no_division_beats_the_one_found(loss: Loss) -> None:
    slopes = loss.slope(*logits_and_labels(loss, n=11))
    every = [soft_irmv1(slopes, hard(torch.tensor(bits))) for bits in product([0, 1], repeat=11)]
    soft = EIIL().assign(slopes)
    assert float(soft_irmv1(slopes, soft.double())) <= float(max(every))
    torch.testing.assert_close(soft_irmv1(slopes, hard(soft.argmax(1))), max(every))


@every_loss
def test_the_division_found_is_that_by_the_sign_of_the_slope(loss: Loss) -> None:
    slopes = loss.slope(*logits_and_labels(loss, n=2000))
    assert matching(EIIL().assign(slopes).argmax(1), (slopes > 0).long()) == 1


def test_the_penalty_rises_with_every_stretch_of_the_optimisation() -> None:
    slopes = BINARY.slope(*logits_and_labels(BINARY, n=500)).float()
    penalties = [float(soft_irmv1(slopes, EIIL(steps).assign(slopes))) for steps in (1, 30, 100, 300, 1000)]
    assert penalties == sorted(penalties)
    assert penalties[0] < 0.5 * penalties[-1]


def test_the_start_depends_on_the_seed_and_the_labels_do_not() -> None:
    logits, y = logits_and_labels(BINARY, n=200)
    early = [EIIL(steps=1).assign(BINARY.slope(logits, y), seed) for seed in (0, 0, 1)]
    assert torch.equal(early[0], early[1]) and not torch.equal(early[0], early[2])
    labels = [infer_eiil(logits, y, BINARY, seed=seed) for seed in (0, 1)]
    assert torch.equal(*labels)
    losses = BINARY.value(logits, y)
    assert losses[labels[0] == 0].mean() < losses[labels[0] == 1].mean()


# EIIL on images.


@pytest.fixture(scope="module")
def digits() -> tuple[DataSet, Split, list[dict[str, Any]]]:
    """Coloured digits, their training split in EIIL's environments, and what these are said to be."""
    recipe = DIGITS.resolved()
    data = recipe.make_data()
    split, about = training_split(recipe, data)
    assert about is not None
    return data, split, about


def test_eiil_separates_digits_whose_colour_agrees_with_the_label(
    digits: tuple[DataSet, Split, list[dict[str, Any]]],
) -> None:
    data, split, about = digits
    agrees = data.train.spurious == split.samples.y
    assert 0.8 < agrees.double().mean() < 0.9, "so any random environment agrees in about 85 %"
    for e, entry in enumerate(about):
        members = split.samples.env == e
        assert entry["agreement"] == pytest.approx(float(agrees[members].double().mean()))
        assert entry["size"] == int(members.sum())
        assert sum(entry["given"].values()) == entry["size"]
    assert about[0]["agreement"] > 0.95 and about[1]["agreement"] < 0.1
    assert matching(split.samples.env, (~agrees).long()) > 0.95


def test_eiil_finds_label_noise_where_the_model_leans_on_the_shape() -> None:
    recipe = replace(DIGITS, correlations=(0.55, 0.55, 0.1), label_noise=0.1).resolved()
    _, about = training_split(recipe, recipe.make_data())
    assert about is not None
    assert all(0.4 < entry["agreement"] < 0.7 for entry in about)


def test_inference_sees_neither_given_environments_nor_spurious_attribute_nor_other_splits(
    digits: tuple[DataSet, Split, list[dict[str, Any]]],
) -> None:
    data, split, _ = digits
    y = data.train.samples.y
    blind = replace(
        data.train,
        samples=replace(data.train.samples, env=torch.zeros_like(y)),
        names=("all",),
        spurious=1 - y,
    )
    only = replace(data, train=blind, val=None, test=None)
    again, about = training_split(DIGITS.resolved(), only)
    assert torch.equal(again.samples.env, split.samples.env)
    assert about is not None and about[0]["given"] == {"all": about[0]["size"]}


def test_the_reference_stops_before_it_knows_the_samples_by_heart() -> None:
    samples = Recipe(n_train=400).make_data().train.samples
    x = samples.x.flatten(1)

    def right(plan: Plan) -> float:
        net = network(nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 1)))
        logits = reference_logits(net, replace(samples, x=x), BINARY, plan)
        return float(((logits > 0) == samples.y).double().mean())

    assert 0.8 < right(Plan(steps=300, lr=0.01)) < 0.95


def test_a_model_that_makes_no_mistakes_gives_no_environments() -> None:
    y = torch.arange(50) % 2
    with pytest.raises(
        SettingError, match=r"one would have 0 of 50 .* learnt the samples by heart: lower `ref"
    ):
        infer_eiil(20.0 * y - 10, y, BINARY)


# ZIN's objective.


def sem(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions of pooled least squares, targets, environments, and the time each sample was taken."""
    batch = LinearSEM(d_inv=2, d_s=2, d_r=1, alpha=((0.5,), (2.0,))).draw((n // 2, n // 2), seed)
    weights = torch.linalg.lstsq(batch.x, batch.y[:, None]).solution
    luck = torch.rand(n, generator=generator(seed, "time"), dtype=torch.float64)
    return (batch.x @ weights)[:, 0], batch.y, batch.env, (batch.env + luck) / 2


def test_heads_are_the_regressions_of_an_independent_library() -> None:
    logits, y, env, _ = sem(200)
    heads = Heads.on(Reference(logits, y, SQUARED))
    fitted = heads.losses(heads.fit(hard(env), heads.pooled.expand(2, -1, -1), max_iter=50))
    for e in (0, 1):
        x, target = logits[env == e, None].numpy(), y[env == e].numpy()
        expected = (LinearRegression().fit(x, target).predict(x) - target) ** 2
        np.testing.assert_allclose(fitted[env == e, e], expected, atol=1e-4)


def test_heads_are_logistic_regressions_for_classes() -> None:
    logits, y = logits_and_labels(BINARY, n=300)
    heads = Heads.on(Reference(logits, y, BINARY))
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None].numpy(), y.numpy())
    expected = -np.log(model.predict_proba(logits[:, None].numpy())[np.arange(300), y.numpy()])
    np.testing.assert_allclose(heads.losses(heads.pooled)[:, 0], expected, atol=1e-5)


def test_the_gap_is_the_bracket_of_the_papers_objective() -> None:
    logits, y, _, time = sem(120)
    heads, z = Heads.on(Reference(logits, y, SQUARED)), (time - time.mean()) / time.std()
    gap, shares = ZIN("time", starts=1).divide(heads, z[:, None])
    own = heads.fit(shares, heads.pooled.expand(2, -1, -1), max_iter=50)
    bracket = 0.0
    for k in (0, 1):  # sum_k [R_k(w) - R_k(w_k)], R_k = 1/n sum_i rho_k(z_i) loss_i
        with_one, with_own = heads.losses(heads.pooled)[:, 0], heads.losses(own)[:, k]
        bracket += sum(float(shares[i, k] * (with_one[i] - with_own[i])) for i in range(120)) / 120
    assert 0 < gap <= bracket + 1e-9
    assert gap == pytest.approx(bracket, rel=0.02)
    assert float(mixed(shares, heads.losses(heads.pooled.expand(2, -1, -1)))) == pytest.approx(
        float(heads.losses(heads.pooled).mean())
    )


# What ZIN finds.


@pytest.mark.parametrize("seed", [0, 1])
def test_zin_finds_the_environments_of_a_linear_model_from_the_time(seed: int) -> None:
    logits, y, env, time = sem(600, seed)
    found = infer_zin(logits, y, time, SQUARED, shuffles=4, seed=seed)
    assert matching(found, env) > 0.95


def test_zin_finds_three_environments() -> None:
    noise = generator(0, "three")
    time, x, luck = (torch.rand(1500, generator=noise) for _ in range(3))
    env = (3 * time).long()
    y = (x > 0.5) ^ (luck < torch.tensor([0.02, 0.4, 0.8])[env])
    found = infer_zin(x - 0.5, y.long(), time, BINARY, n_envs=3, shuffles=2)
    assert float((found == torch.tensor([0, 1, 2])[env]).double().mean()) > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_zin_finds_nothing_in_noise(seed: int) -> None:
    logits, y, env, _ = sem(200, seed)
    z = torch.randn(200, generator=generator(seed, "pure noise"))
    with pytest.raises(
        SettingError, match=r"^z0 cannot tell environments apart: 2 classifiers gain .* shuffled"
    ):
        infer_zin(logits, y, z, SQUARED, seed=seed)
    unchecked = infer_zin(logits, y, z, SQUARED, shuffles=0, seed=seed)
    assert matching(unchecked, env) < 0.65


def test_zin_finds_nothing_where_the_model_is_invariant_already() -> None:
    batch = LinearSEM(d_inv=2, d_s=2, d_r=1).draw((150, 150), seed=0)
    time = (batch.env + torch.rand(300, generator=generator(0, "time"))) / 2
    with pytest.raises(SettingError, match="cannot tell environments apart"):
        infer_zin(batch.x[:, :2].sum(1), batch.y, time, SQUARED)


def test_the_digits_know_their_time_and_their_mean_colours() -> None:
    train = Recipe().make_data().train
    assert torch.equal((2 * train.auxiliary["time"]).long(), train.samples.env)
    assert torch.equal(train.auxiliary["mean_green"] > 0, train.spurious == 1)
    torch.testing.assert_close(train.auxiliary["mean_red"], train.samples.x[:, 0].mean((1, 2)))


# Refusals.


def test_environments_are_numbered_by_risk_and_none_is_tiny() -> None:
    env = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    losses = torch.tensor([3.0] * 10 + [1.0] * 10 + [2.0] * 10)
    assert harden(hard(env, 3), losses).unique_consecutive().tolist() == [2, 0, 1]
    with pytest.raises(SettingError, match=f"one would have {LEAST - 1} of 29 .* {LEAST} are the least"):
        harden(hard(env[1:], 3), losses[1:])


@pytest.mark.parametrize(
    ("auxiliary", "message"),
    [
        (
            {"tme": torch.rand(30)},
            "no auxiliary variable of this data set is named 'time'. Did you mean 'tme'",
        ),
        ({}, "zin infers from auxiliary variables, and this data set has none"),
        (
            {"time": torch.ones(30)},
            "'time' must vary and be finite; its standard deviation is 0. Leave it out",
        ),
        ({"time": torch.full((30,), torch.nan)}, "'time' must vary and be finite"),
    ],
)
def test_variables_that_cannot_be_used_are_refused(auxiliary: dict[str, Tensor], message: str) -> None:
    logits, y = logits_and_labels(BINARY, n=30)
    with pytest.raises(SettingError, match=message):
        ZIN("time")(Reference(logits, y, BINARY, auxiliary))


def test_logits_that_do_not_fit_are_refused() -> None:
    for logits in (torch.zeros(3), torch.tensor([0.0, torch.inf])):
        with pytest.raises(SettingError, match="`logits` must be one finite row for each of the 2 labels"):
            infer_eiil(logits, torch.tensor([0, 1]), BINARY)


def test_weighted_samples_are_refused() -> None:
    x, y = torch.rand(20, 2), torch.arange(20) % 2
    split = Split(Batch(x, y, y, weight=torch.ones(20)), ("a", "b"))
    with pytest.raises(SettingError, match="cannot be inferred from weighted samples"):
        in_inferred_environments(split, EIIL(), network(nn.Linear(2, 1)), BINARY, Plan(steps=1))


# In recipes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (
                {"method": method, "environments": "eiil"},
                f"`environments` has no effect: method '{method}' com",
            )
            for method, kind in METHODS.items()
            if not kind.invariant
        ),
        (
            {"environments_options": {"steps": 5}},
            "`environments_options` has no effect: environments are given",
        ),
        ({"environments": "eil"}, "no inference is named 'eil'. Did you mean 'eiil'"),
        ({"environments": "eiil", "environments_options": {"step": 1}}, "Did you mean 'steps'"),
        (
            {"environments": "eiil", "environments_options": {"steps": 0}},
            "`steps` of eiil must be at least 1",
        ),
        ({"environments": "eiil", "environments_options": {"lr": 0.0}}, "`lr` positive; got 1000 and 0.0"),
        (
            {"environments": "eiil", "environments_options": {"reference_steps": 0}},
            "`reference_steps` must be",
        ),
        ({"environments": "zin"}, "`auxiliary` of zin must name the variables .* such as time; got ''"),
        (
            {"environments": "zin", "environments_options": {"auxiliary": "time", "n_envs": 1}},
            "`n_envs` of zin must be at least 2; got 1",
        ),
        (
            {"environments": "zin", "environments_options": {"auxiliary": "time", "lr": -1}},
            "`lr` of zin must",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**settings).resolved()


def test_given_environments_are_no_part_of_a_recipe() -> None:
    assert Recipe(environments="given").key == Recipe().key
    assert not {"environments", "environments_options"} & Recipe().resolved().to_json().keys()
    keys = [Recipe(method=method, settings="paper").key for method in ("erm", "oracle", "sparseerm")]
    assert keys == PINNED


PINNED = ["38172399da15a07a", "ffd210278b2f14f3", "b4791037397e90ee"]
"""Keys of these recipes before environments could be inferred."""


def test_options_of_an_inference_are_part_of_a_recipe() -> None:
    recipe = Recipe(
        environments="zin", environments_options={"auxiliary": "time", "shuffles": 4.0}
    ).resolved()
    assert recipe.environments_options["shuffles"] == 4
    assert recipe.make_inference() == ZIN("time", shuffles=4)
    assert recipe.environments_options["reference_steps"] == 200
    assert label(recipe) == "SparseIRM (irmv1, zin)"
    assert recipe.adapted("erm", None).resolved().environments is None


# In runs.


def interrupted(recipe: Recipe, out: Path, step: int) -> None:
    def press(record: Any, trajectory: Any) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=out, on_step=press)


def test_a_run_in_inferred_environments_repeats_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe = replace(DIGITS, method="sparseirm", n_train=300, width=16, batch_size=50)
    interrupted(recipe, tmp_path / "resumed", step=7)
    run(recipe, out=tmp_path / "resumed", resume=True)
    result = run(recipe, out=tmp_path / "whole")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert_same_bits(read_tensors(whole / MODEL)[0], read_tensors(resumed / MODEL)[0])
    again = Result.from_json(read_json(resumed / RESULT))
    assert (again.trajectory, again.inferred) == (result.trajectory, result.inferred)


def test_the_penalty_compares_inferred_environments_and_scores_are_of_the_given_ones(tmp_path: Path) -> None:
    flags = [*("train", "--method", "irm", "--environments", "eiil", "--width", "64", "--steps", "12")]
    assert main([*flags, "--eval-every", "5", "--penalty-from", "0", "--out", str(tmp_path)]) == 0
    result = Result.from_json(read_json(tmp_path / RESULT))
    recipe = replace(DIGITS, penalty_from=0.0)
    assert result.trajectory == run(recipe).trajectory
    assert result.trajectory != run(replace(recipe, environments=None)).trajectory
    assert (
        result.inferred is not None
        and [sorted(entry) for entry in result.inferred] == [["agreement", "given", "risk", "size"]] * 2
    )
    assert sum(entry["size"] for entry in result.inferred) == 1200
    assert set(result.last["train"].per_env) == set(result.last["val"].per_env) == {"train 0.9", "train 0.8"}


def test_batch_statistics_are_collected_in_the_batches_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def noted(net: Any, sparsifier: Any, state: State, batches: Batches, now: Any) -> dict[str, Tensor]:
        seen.append(batches.at(0).env)
        return state.buffers

    monkeypatch.setattr("sparseirm.runs.deployed_buffers", noted)
    run(DIGITS)
    expected, _ = training_split(DIGITS.resolved(), DIGITS.make_data())
    assert seen and all(torch.equal(env, expected.samples.env) for env in seen)


def test_zin_finds_the_environments_of_coloured_digits_from_the_time() -> None:
    options: dict[str, Any] = {"auxiliary": "time", "shuffles": 2, "starts": 1}
    recipe = replace(DIGITS, environments="zin", environments_options=options, correlations=(0.95, 0.7, 0.1))
    data = recipe.make_data()
    split, _ = training_split(recipe.resolved(), data)
    assert matching(split.samples.env, data.train.samples.env) > 0.95


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "train",
        "--environments",
        "zin",
        "--environments-options",
        "auxiliary",
        "tme",
        "--n-train",
        "100",
    ]
    assert main([*flags, "--width", "8", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'time'? Known: mean_green, mean_red, time." in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
