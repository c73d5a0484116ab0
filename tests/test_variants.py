"""A comparison's runs: each has the options it has a use for, and none is without effect in all."""

from typing import Any

import pytest

from sparseirm import Recipe
from sparseirm.core import SettingError
from sparseirm.experiments.variants import variants


def test_every_penalty_gets_the_options_it_knows() -> None:
    recipe = Recipe(penalty_options={"n_draws": 20, "quantile": 0.9})
    found = variants(recipe, ["erm", "sparseirm", "bayesianirm"], ["irmv1", "bayesian", "eqrm"])
    options = [(run.method, run.penalty, run.penalty_options) for run in found]
    assert options == [
        ("erm", None, {}),
        ("sparseirm", "irmv1", {}),
        ("sparseirm", "bayesian", {"n_draws": 20}),
        ("sparseirm", "eqrm", {"quantile": 0.9}),
        ("bayesianirm", "bayesian", {"n_draws": 20}),
    ]
    assert [run.resolved().penalty_options.get("n_draws") for run in found] == [None, None, 20, None, 20]


def test_every_sparsifier_gets_the_options_it_knows() -> None:
    recipe = Recipe(sparsifier_options={"score_lr": 0.1})
    found = variants(recipe, ["sparseerm"], ["irmv1"], ["probmask", "gmp"])
    assert [run.sparsifier_options for run in found] == [{"score_lr": 0.1}, {}]
    assert [run.resolved().sparsifier_options.get("score_lr") for run in found] == [0.1, None]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"penalty_options": {"n_draw": 20}}, "is named 'n_draw'. Did you mean 'n_draws'"),
        ({"penalty_options": {"n_draws": 20, "quantile": 0.9}}, "is named 'quantile'"),
        ({"sparsifier_options": {"budget_in": "groups"}}, "is named 'budget_in'"),
    ],
)
def test_an_option_that_no_run_has_a_use_for_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        for run in variants(Recipe(**given), ["sparseirm"], ["bayesian"], ["probmask", "gmp"]):
            run.resolved()


def test_options_of_methods_that_have_none_are_refused() -> None:
    with pytest.raises(SettingError, match="`penalty_options` has no effect with methods erm"):
        variants(Recipe(penalty_options={"n_draws": 20}), ["erm"], ["irmv1"])
