"""Claims about recipes: complete, plain data, and refused if anything in them would be ignored."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from makers import outputs
from sparseirm.core import SettingError
from sparseirm.data import DATASETS, FINGERPRINTS
from sparseirm.losses import BINARY, LOSSES
from sparseirm.methods import METHODS, SETTINGS
from sparseirm.penalties import PENALTIES
from sparseirm.recipe import Recipe
from sparseirm.sparsifiers import Dense, ProbMask

FIELDS = [f.name for f in fields(Recipe)]
positive = st.floats(1e-9, 1e9)
share = st.floats(0, 1)
anything = {
    "data": st.sampled_from(sorted({*DATASETS} - {*FINGERPRINTS})),
    "n_train": st.integers(2, 10**6),
    "correlations": st.lists(share, min_size=3, max_size=5).map(tuple),
    "label_noise": share,
    "width": st.integers(1, 10**4),
    "epochs": st.integers(1, 10**4),
    "batch_size": st.integers(2, 10**4),
    "optimizer": st.sampled_from(["adam", "sgd"]),
    "lr": positive,
    "lr_schedule": st.sampled_from(["cosine", "constant"]),
    "eps": positive,
    "l2": st.floats(0, 10),
    "precision": st.sampled_from(["fp32", "bf16"]),
    "eval_every": st.integers(1, 1000),
    "seed": st.integers(0, 2**62),
    "leave_out": st.integers(0, 4),
}
invariant = {
    "penalty": st.sampled_from(sorted(PENALTIES)),
    "penalty_weight": positive,
    "penalty_from": share,
    "divide_loss": st.booleans(),
}
sparse = {
    "density": st.floats(1e-6, 1),
    "sparsifier": st.just("probmask"),
    "sparsifier_options": st.fixed_dictionaries({}, optional={"score_lr": positive, "decide_at": st.just(1)}),
}


def recipe_of(method: str) -> st.SearchStrategy[Recipe]:
    optional = {
        **anything,
        **(invariant if METHODS[method].invariant else {}),
        **(sparse if METHODS[method].sparse else {}),
    }
    given_fields = st.fixed_dictionaries({}, optional=optional)  # type: ignore[arg-type]
    return given_fields.map(lambda values: Recipe(method=method, **_useful(values, method)))


def _useful(values: dict[str, Any], method: str) -> dict[str, Any]:
    """Without what such a recipe is refused for: epsilon without Adam, a penalty where it is given."""
    drop = {"eps"} if values.get("optimizer") == "sgd" and not METHODS[method].sparse else set()
    drop |= {"penalty"} if METHODS[method].penalty else set()
    drop |= {"sparsifier", "sparsifier_options"} if METHODS[method].sparsifier else set()
    return {name: value for name, value in values.items() if name not in drop}


recipes = st.sampled_from(sorted(METHODS)).flatmap(recipe_of)


# Plain data.


@given(recipes)
def test_a_recipe_comes_back_from_json_resolved_or_not(recipe: Recipe) -> None:
    for one in (recipe, recipe.resolved()):
        assert Recipe.from_json(json.loads(json.dumps(one.to_json()))) == one


@given(recipes)
def test_resolving_twice_is_resolving_once_and_keeps_the_key(recipe: Recipe) -> None:
    resolved = recipe.resolved()
    assert resolved.resolved() == resolved
    assert resolved.key == recipe.key
    assert all(
        getattr(recipe, f) in (None, {}, getattr(resolved, f)) for f in {*FIELDS} - {"sparsifier_options"}
    )


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(SettingError, match=r"no field of a recipe is named 'widht'\. Did you mean 'width'\?"):
        Recipe.from_json({"widht": 64})


# The key.

BASE = Recipe(optimizer="sgd")
CHANGES: dict[str, Any] = {
    "data": "full_colored_digits",
    "data_options": {"size": 32},
    "test_envs": ("b",),
    "data_digest": "1" * 64,
    "n_train": 100,
    "correlations": (0.9, 0.7, 0.2),
    "label_noise": 0.1,
    "width": 64,
    "method": "sparseerm",
    "penalty": "rex",
    "penalty_options": {"sd": 0.1},
    "environments": "eiil",
    "environments_options": {"steps": 20},
    "density": 0.3,
    "budget": 500,
    "weights_per_sample": 2.0,
    "sparsifier_options": {"decide_at": 0.5},
    "settings": "released",
    "steps": 10,
    "epochs": 10,
    "stage_lengths": (1, 1, 2),
    "leave_out": 0,
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 1e-5,
    "lr_schedule": "constant",
    "momentum": 0.5,
    "eps": 1e-6,
    "l2": 0.0,
    "penalty_weight": 5.0,
    "penalty_from": 0.5,
    "penalty_to": 0.75,
    "divide_loss": True,
    "lr_drop": 0.5,
    "lr_stop": 0.5,
    "precision": "bf16",
    "eval_every": 7,
    "seed": 1,
}


NEEDED = {
    "penalty_options": {"penalty": "bayesian"},
    "stage_lengths": {"method": "mrm"},
    "environments_options": {"environments": "eiil"},
}
"""Where a field has an effect."""


def test_every_field_with_a_choice_is_varied_here() -> None:
    assert CHANGES.keys() == {*FIELDS} - {"model", "sparsifier"}


@pytest.mark.parametrize("name", CHANGES)
def test_the_key_differs_if_any_field_differs(name: str) -> None:
    own = Recipe(optimizer="sgd", data="folder", test_envs=("a",), data_digest="0" * 64)
    base = own if name in ("data_options", "test_envs", "data_digest") else BASE
    base = replace(base, **NEEDED.get(name, {}))
    assert replace(base, **{name: CHANGES[name]}).key != base.key


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        (Recipe(), "da5fe5b829625323"),
        (Recipe(data="colored_mnist", method="irm", penalty="rex"), "e68053f8d2008ed7"),
        (Recipe(data="full_colored_mnist", method="oracle", seed=3), "fd921e15e0bca146"),
        (Recipe(data="colored_fashion", settings="released", width=64), "2ba685acad2cea69"),
    ],
)
def test_stored_results_are_still_found_under_their_keys(recipe: Recipe, key: str) -> None:
    assert recipe.key == key


def test_the_key_is_the_same_for_a_default_and_the_default_written_out() -> None:
    assert Recipe().key == Recipe(penalty="irmv1", sparsifier="probmask", penalty_weight=1e4).key


@pytest.mark.parametrize("name", ["penalty_weight", "lr", "l2", "label_noise"])
def test_equal_recipes_have_equal_keys(name: str) -> None:
    whole, real = Recipe(**{name: 1}), Recipe(**{name: 1.0})
    assert whole == real
    assert whole.key == real.key


# Settings.


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_every_settings(settings: str, method: str) -> None:
    recipe = Recipe(settings=settings, method=method).resolved()
    assert recipe.lr == SETTINGS[settings]["lr"]
    assert recipe.steps == 1500


def test_more_than_two_classes_have_a_choice_of_their_own_in_ours_only() -> None:
    two, many = Recipe(data="colored_mnist").resolved(), Recipe(data="full_colored_mnist").resolved()
    assert (many.lr, many.penalty_weight, many.lr_drop, many.lr_stop) == (1.5e-3, 3e3, 1.0, 0.6)
    assert (two.lr, two.penalty_weight, two.lr_drop, two.lr_stop) == (6e-4, 1e4, 0.3, 0.6)
    paper = Recipe(data="full_colored_mnist", settings="paper").resolved()
    assert (paper.lr, paper.penalty_weight) == (4e-4, 1e4)
    assert Recipe(data="full_colored_mnist", model="resnet18").resolved().lr == 6e-4


def test_settings_differ_where_they_say() -> None:
    ours, paper, released = (
        Recipe(method="irm", settings=name).resolved() for name in ("ours", "paper", "released")
    )
    assert (paper.lr, paper.eps, paper.divide_loss) == (4e-4, 1e-8, False)
    assert (ours.lr, ours.eps, ours.divide_loss) == (6e-4, 1e-12, False)
    assert replace(released, settings="paper", divide_loss=False) == paper


def test_what_is_given_wins_over_the_settings() -> None:
    recipe = Recipe(settings="released", method="irm", lr=1.0, divide_loss=False).resolved()
    assert (recipe.lr, recipe.divide_loss) == (1.0, False)


# The budget.


def test_the_automatic_budget_counts_weights_per_sample_up_to_half_of_them() -> None:
    recipe = Recipe(weights_per_sample=1.5).resolved()
    assert recipe.budget == "auto"
    assert [recipe.count(d, n_train=1200) for d in (10**6, 3600, 3599, 5)] == [1800, 1800, 1799, 2]
    assert replace(recipe, weights_per_sample=1e-9).count(10**6, 1200) == 1


def test_density_and_budget_replace_the_automatic_budget() -> None:
    assert Recipe(density=0.05).resolved().count(1000, 1200) == 50
    assert Recipe(density=1e-9).resolved().count(1000, 1200) == 1
    assert Recipe(density=1.0).resolved().count(1000, 1200) == 1000
    assert Recipe(budget=7).resolved().count(1000, 1200) == 7
    with pytest.raises(SettingError, match=r"`budget` must not exceed the 5 maskable weights .* got 7"):
        Recipe(budget=7).resolved().count(5, 1200)


def test_recipes_make_what_they_name() -> None:
    sparse, dense = Recipe(sparsifier_options={"decide_at": 0.5}, budget=9), Recipe(method="erm")
    assert sparse.resolved().make_sparsifier(100, 10) == ProbMask(9, decide_at=0.5)
    assert dense.resolved().make_sparsifier(100, 10) == Dense(100)
    assert sparse.resolved().make_penalty() is PENALTIES["irmv1"]
    assert torch.equal(dense.resolved().make_penalty()(outputs(BINARY)), torch.zeros((), dtype=torch.float64))
    data = Recipe(n_train=50).make_data()
    assert (data.name, len(data.train)) == ("colored_digits", 50)
    assert sparse.loss(data) is LOSSES["binary"]


# Refusals.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "erm", "penalty": "rex"},
            "`penalty` has no effect: method 'erm' has no penalty; got rex. Leave it out",
        ),
        ({"method": "sparseerm", "penalty_weight": 0.0}, "`penalty_weight` has no effect"),
        ({"method": "oracle", "penalty_from": 0.1}, "`penalty_from` has no effect"),
        ({"method": "erm", "divide_loss": False}, "`divide_loss` has no effect"),
        ({"method": "irm", "sparsifier": "probmask"}, "`sparsifier` has no effect"),
        ({"method": "irm", "density": 0.5}, "`density` has no effect"),
        ({"method": "irm", "budget": "auto"}, "`budget` has no effect"),
        ({"method": "irm", "sparsifier_options": {"decide_at": 1}}, "`sparsifier_options` has no effect"),
        ({"density": 0.5, "weights_per_sample": 1.0}, "`weights_per_sample` has no effect"),
        ({"lr_schedule": "constant", "lr_stop": 0.5}, "`lr_stop` has no effect"),
        ({"momentum": 0.9}, "`momentum` has no effect: only sgd has one"),
        ({"density": 5}, r"`density` must be in \(0, 1\].* got 5. For 5 per cent pass 0.05."),
        ({"density": 0.0}, r"`density` must be in \(0, 1\].* got 0\.$"),
        ({"density": float("nan")}, "`density` must be finite; got nan"),
        ({"density": 0.5, "budget": 10}, "give `density` or `budget`, not both; got 0.5 and 10"),
        ({"budget": True}, "`budget` must be at least 1 weight, or auto; got True"),
        ({"data": "folder", "test_envs": "sketch"}, "`test_envs` must be a list of names; got 'sketch'"),
        ({"budget": 0}, "`budget` must be at least 1 weight, or auto; got 0"),
        ({"weights_per_sample": 0.0}, "`weights_per_sample` must be positive; got 0.0"),
        ({"width": 0}, "`width` must be at least 1; got 0"),
        ({"eval_every": 0}, "`eval_every` must be at least 1"),
        ({"lr": -1.0}, "`lr` must be positive"),
        ({"data": "coloured_digits"}, r"no data set is named .* Did you mean 'colored_digits'"),
        ({"model": "mpl"}, "no model is named 'mpl'. Did you mean 'mlp'"),
        ({"method": "sparse_irm"}, "Did you mean 'sparseirm'"),
        ({"settings": "our"}, "no settings is named 'our'. Did you mean 'ours'"),
        ({"penalty": "rexx"}, "no .* is named 'rexx'. Did you mean 'rex'"),
        ({"sparsifier": "probmsk"}, "no .* is named 'probmsk'. Did you mean 'probmask'"),
        ({"optimizer": "sdg"}, "no optimizer is named 'sdg'. Did you mean 'sgd'"),
        ({"sparsifier_options": {"decide": 1}}, "no option of sparsifier 'probmask' is named 'decide'"),
        ({"sparsifier_options": {"budget": 1}}, "no option of sparsifier 'probmask' is named 'budget'"),
        ({"sparsifier_options": {"score_lr": 0}}, "`score_lr` must be positive"),
    ],
)
def test_what_cannot_be_run_or_would_be_ignored_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**settings).resolved()


def test_the_name_of_an_environment_is_no_list_of_letters() -> None:
    with pytest.raises(SettingError, match="`test_envs` of a Recipe is of the wrong type"):
        Recipe.from_json({"data": "folder", "test_envs": "sketch"})
    assert Recipe.from_json({"data": "folder", "test_envs": ["sketch"]}).test_envs == ("sketch",)
