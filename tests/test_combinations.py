"""Every combination of method, penalty, sparsifier and settings runs, or says in one line why not."""

import math
from dataclasses import replace
from typing import Any

import pytest

from sparseirm.core import SettingError
from sparseirm.methods import METHODS, SETTINGS
from sparseirm.penalties import PENALTIES
from sparseirm.recipe import Recipe
from sparseirm.runs import run
from sparseirm.sparsifiers import SPARSIFIERS

TINY = Recipe(width=8, n_train=100, steps=2, eval_every=2)


def objection(method: str, penalty: str | None, sparsifier: str | None) -> str | None:
    """What there is to say against a combination, or None: a choice that would be ignored or contradicted."""
    without_penalty = ("erm", "oracle", "sparseerm")
    if penalty and method in without_penalty:
        return f"`penalty` has no effect: method '{method}' has no penalty"
    if sparsifier and method in ("erm", "oracle", "irm", "bayesianirm"):
        return f"`sparsifier` has no effect: method '{method}' keeps every weight"
    if method == "bayesianirm" and penalty not in (None, "bayesian"):
        return "method 'bayesianirm' is defined by the penalty 'bayesian'"
    if method == "mrm" and sparsifier not in (None, "modular"):
        return "method 'mrm' is defined by the sparsifier 'modular'"
    return "`sparsifier` dense keeps every weight" if sparsifier == "dense" else None


def test_the_table_names_every_method() -> None:
    """A new method must be added to `objection`, or have nothing to object to."""
    assert METHODS.keys() == {"erm", "oracle", "sparseerm", "irm", "bayesianirm", "sparseirm", "mrm"}


@pytest.mark.parametrize("penalty", [None, *PENALTIES])
@pytest.mark.parametrize("method", METHODS)
def test_it_runs_or_says_why_not(method: str, penalty: str | None) -> None:
    for sparsifier in (None, *SPARSIFIERS):
        said = objection(method, penalty, sparsifier)
        for settings in SETTINGS:
            recipe = replace(TINY, method=method, penalty=penalty, sparsifier=sparsifier, settings=settings)
            if said:
                with pytest.raises(SettingError) as refusal:
                    run(recipe)
                assert str(refusal.value).startswith(said) and "\n" not in str(refusal.value), recipe
            else:
                result = run(recipe)
                assert all(math.isfinite(score.risk) for score in result.last.values()), recipe
                assert result.recipe.penalty == (penalty or METHODS[method].penalty or result.recipe.penalty)
                assert (result.recipe.sparsifier is None) == (not METHODS[method].sparse)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"optimizer": "sgd", "sparsifier": "gmp", "eps": 1e-8},
            "`eps` has no effect: nothing is trained with",
        ),
        ({"optimizer": "sgd", "method": "irm", "eps": 1e-8}, "`eps` has no effect: nothing is trained with"),
        ({"penalty": "irmv1_split", "batch_size": 2}, "a penalty on two halves needs 2 samples of every"),
        ({"sparsifier": "structured", "budget": 9}, "`budget` 9 leaves no room for a group of 128 weights"),
        (
            {"sparsifier": "random", "sparsifier_options": {"score_lr": 1.0}},
            "no option of sparsifier 'random'",
        ),
        ({"sparsifier": "gmp", "sparsifier_options": {"decide_at": 0.5}}, "no option of sparsifier 'gmp'"),
        ({"penalty": "rex", "penalty_options": {"sd": 1.0}}, "penalty 'rex' has no options; got 'sd'"),
        ({"method": "mrm", "stage_lengths": (1, 1)}, "`stage_lengths` must be three positive numbers"),
        ({"method": "sparseirm", "stage_lengths": (1, 1, 1)}, "`stage_lengths` has no effect"),
    ],
)
def test_other_settings_without_meaning_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingError) as refusal:
        run(replace(TINY, **settings))
    assert str(refusal.value).startswith(reason) and "\n" not in str(refusal.value)


def test_adam_s_epsilon_is_for_whatever_adam_trains() -> None:
    assert replace(TINY, optimizer="sgd", sparsifier="gmp").resolved().eps is None
    assert replace(TINY, optimizer="sgd", sparsifier="topk").resolved().eps == SETTINGS["ours"]["eps"]
    assert replace(TINY, sparsifier="gmp").resolved().eps == SETTINGS["ours"]["eps"]
