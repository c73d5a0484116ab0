"""The search for columns: what it minimises, how it foresees its moves, and what it finds."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression

import sparseirm.table.search as module
from sparseirm.data.synthetic import LinearSEM
from sparseirm.table.search import _Search, find_columns, unchanged_columns


def drawn(sem: LinearSEM, n: int, classes: bool, seed: int = 0) -> dict[str, Any]:
    """Training rows of the linear model, as the search wants them."""
    rows = sem.draw([n] * sem.n_envs, seed)
    x, y = rows.x.numpy(), rows.y.numpy()
    return {
        "x": (x - x.mean(0)) / x.std(0),
        "targets": ((y > 0) if classes else (y - y.mean()) / y.std()).astype(float)[:, None],
        "env": rows.env.numpy(),
        "weight": np.ones(len(y)),
        "blocks": [1] * sem.d,
        "classifies": classes,
    }


WIDE = ((0.2,), (1.0,), (3.0,))
MODELS = {
    "five causes": LinearSEM(d_inv=5, d_s=5, d_r=10, alpha=WIDE),
    "more effects than causes": LinearSEM(d_inv=4, d_s=12, d_r=4, alpha=((0.3,), (0.7,), (1.5,))),
    "two environments": LinearSEM(d_inv=3, d_s=3, d_r=3, alpha=((0.5,), (2.0,))),
    "as many effects": LinearSEM(d_inv=10, d_s=10, d_r=0, alpha=((0.5,), (0.7,), (1.0,))),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_keeps_all_causes_and_no_effect(name: str) -> None:
    sem = MODELS[name]
    found = find_columns(**drawn(sem, 500, classes=False))
    assert set(found) >= set(range(sem.d_inv))
    assert not sem.spurious.numpy()[found].any()


def test_it_keeps_all_causes_and_no_effect_of_classes() -> None:
    sem = MODELS["five causes"]
    found = find_columns(**drawn(sem, 500, classes=True))
    assert set(found) >= set(range(5)) and not sem.spurious.numpy()[found].any()


def test_without_environments_it_takes_what_predicts_best() -> None:
    given = drawn(MODELS["five causes"], 300, classes=False)
    given["env"] = np.zeros_like(given["env"])
    assert find_columns(**given, most=1)[0] in range(5, 10)  # an effect
    assert set(range(5, 10)) <= set(find_columns(**given))


def test_a_budget_is_never_exceeded() -> None:
    given = drawn(MODELS["five causes"], 200, classes=False)
    for most in (1, 3):
        found = find_columns(**given, most=most)
        assert 1 <= len(found) <= most and max(found) < 5


def test_the_inputs_of_a_column_stay_together() -> None:
    given = drawn(MODELS["two environments"], 300, classes=False)
    given["blocks"] = [2, 1, 2, 1, 3]  # causes 0, 1 | cause 2 | effects 3, 4 | effect 5 | noise
    assert find_columns(**given) == [0, 1]


def test_a_single_useless_column_is_still_found() -> None:
    rng = np.random.default_rng(0)
    assert find_columns(
        rng.normal(size=(60, 1)), rng.normal(size=(60, 1)), np.repeat([0, 1], 30), np.ones(60), [1], False
    ) == [0]


def test_weights_count_like_repeated_rows() -> None:
    given = drawn(MODELS["two environments"], 60, classes=False)
    times = np.arange(120) % 3 + 1
    weighed = _Search(given["x"], given["targets"], given["env"], times.astype(float), np.ones(9, int), False)
    many = np.repeat(np.arange(120), times)
    again = _Search(
        given["x"][many],
        given["targets"][many],
        given["env"][many],
        np.ones(len(many)),
        np.ones(9, int),
        False,
    )
    for a, b in zip(weighed._fits((0, 4)), again._fits((0, 4)), strict=True):
        assert a.risk == pytest.approx(b.risk) and np.allclose(a.change, b.change)


@pytest.mark.parametrize("classes", [False, True])
def test_fits_are_those_of_scikit_learn(classes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RIDGE", 1e-9)
    given = drawn(MODELS["two environments"], 200, classes)
    x, y, env = given["x"], given["targets"][:, 0], given["env"]
    search = _Search(x, given["targets"], env, given["weight"], np.ones(9, int), classes)
    together, first, second = search._fits((0, 1, 2))
    design = np.column_stack([np.eye(2)[env], x[:, :3]])
    for fit, inputs, target in (
        (together, design, y),
        (first, np.column_stack([np.ones(200), x[:200, :3]]), y[:200]),
        (second, np.column_stack([np.ones(200), x[200:, :3]]), y[200:]),
    ):
        if classes:
            theirs = LogisticRegression(C=1e8, fit_intercept=False, tol=1e-10, max_iter=1000)
            p = theirs.fit(inputs, target).predict_proba(inputs)[:, 1]
            risk = -np.mean(np.log(np.where(target == 1, p, 1 - p)))
        else:
            risk = np.mean(
                (target - LinearRegression(fit_intercept=False).fit(inputs, target).predict(inputs)) ** 2
            )
        assert fit.risk == pytest.approx(risk, rel=1e-4)


def test_squared_error_is_foreseen_exactly() -> None:
    given = drawn(MODELS["two environments"], 200, classes=False)
    search = _Search(
        given["x"], given["targets"], given["env"], given["weight"], np.array([2, 1, 3, 1, 2]), False
    )
    state = search.state((1, 2))
    fits = search._fits((1, 2))
    for column in range(5):
        after = search._fits(tuple({1, 2} ^ {column}))
        for before, now in zip(fits, after, strict=True):
            sign = 1 if column in (1, 2) else -1
            assert before.risk + sign * before.change[column] == pytest.approx(now.risk, rel=2e-3)
        noise_alike = search.changed(state, column).objective
        assert state.foreseen[column] == pytest.approx(noise_alike, rel=0.2, abs=0.3)


def test_the_best_of_all_sets_is_found() -> None:
    sem = LinearSEM(d_inv=2, d_s=2, d_r=2, alpha=((0.5,), (2.0,)))
    given = drawn(sem, 200, classes=False)
    search = _Search(given["x"], given["targets"], given["env"], given["weight"], np.ones(6, int), False)
    every = [set_ for k in range(1, 7) for set_ in combinations(range(6), k)]
    best = min(every, key=lambda chosen: search.state(chosen).objective)
    assert find_columns(**given) == list(best)


def test_the_search_from_all_columns_foresees_the_cost_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RIDGE", 1e-9)
    started, state = [], _Search.state

    def noted(search: _Search, chosen: tuple[int, ...]) -> Any:
        started.append((search, state(search, chosen)))
        return started[-1][1]

    monkeypatch.setattr(_Search, "state", noted)
    find_columns(**drawn(MODELS["five causes"], 200, classes=False))
    search, whole = next((search, one) for search, one in started if len(one.chosen) == 20)
    for column in range(20):
        without = state(search, tuple(c for c in range(20) if c != column)).objective
        assert whole.foreseen[column] == pytest.approx(without, rel=0.02)


def test_many_rows_and_inputs_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 1000)
    monkeypatch.setattr(module, "MOST_INPUTS", 20)
    rng = np.random.default_rng(0)
    n, d = 5000, 300
    x = rng.normal(size=(n, d)).astype(np.float32)
    y = x[:, 7] + 0.5 * rng.normal(size=n)
    found = find_columns(x, y[:, None], np.arange(n) % 4, np.ones(n), [1] * d, False)
    assert 7 in found and len(found) <= 3


def test_a_screen_offers_columns_whose_own_relation_stays() -> None:
    sem = MODELS["more effects than causes"]
    given = drawn(sem, 400, classes=True)
    y, blocks = given["targets"][:, 0], given["blocks"]
    offered = unchanged_columns(given["x"], y, given["env"], blocks, 2)
    assert offered == [c for c in range(20) if not sem.spurious[c]]
    assert set(find_columns(**given, offered=offered)) >= {0, 1, 2, 3}
    assert unchanged_columns(given["x"], y, given["env"], [4, 16], 2) == [0]


def test_a_tiny_environment_is_not_lost_among_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 100)
    given = drawn(MODELS["two environments"], 5000, classes=False)
    few = np.concatenate([np.arange(5000), [5000, 6000, 7000]])
    given = {name: v[few] if isinstance(v, np.ndarray) else v for name, v in given.items()}
    assert find_columns(**given)
    assert unchanged_columns(given["x"], given["targets"][:, 0], given["env"], given["blocks"], 0)
