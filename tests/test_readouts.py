"""Disagreement of environments, against refits row by row."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from sparseirm.evaluation.readouts import disagreement


def left_out(x: np.ndarray, errors: np.ndarray, ridge: float) -> np.ndarray:
    """Each row's error under a ridge regression on all other rows.

    The penalty is that of all rows, for the closed form keeps it; the intercept's is next to nothing.
    """
    found = np.empty(len(x))
    for at in range(len(x)):
        others = np.arange(len(x)) != at
        fit = Ridge(alpha=ridge * len(x), tol=1e-12).fit(x[others], errors[others])
        found[at] = errors[at] - fit.predict(x[at : at + 1])[0]
    return found


def test_it_is_what_refits_without_each_row_say() -> None:
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(45, 3)), np.repeat([0, 1, 2], 15)
    errors = rng.normal(size=45) + x[:, 0] * (env == 1)
    together = left_out(x, errors, 0.01)
    expected = [
        1 - (left_out(x[env == e], errors[env == e], 0.01) ** 2).sum() / (together[env == e] ** 2).sum()
        for e in range(3)
    ]
    assert disagreement(x, errors, env) == pytest.approx(expected, abs=1e-5)


def test_noise_agrees_however_many_columns_there_are() -> None:
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(600, 40)), np.repeat([0, 1, 2], 200)
    assert disagreement(x, rng.normal(size=600), env).max() < 0.02


def test_several_outputs_add_up_and_one_row_says_nothing() -> None:
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(40, 2)), np.repeat([0, 1], 20)
    errors = rng.normal(size=(40, 1))
    assert disagreement(x, np.hstack([errors, errors]), env) == pytest.approx(disagreement(x, errors, env))
    assert np.isnan(disagreement(x, errors, np.arange(40) // 39)[1])
