"""The estimators are scikit-learn's in every respect, and find what holds in all environments."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import sparseirm
from sparseirm.core import SettingError
from sparseirm.estimator import EnvironmentWarning, SparseIRMClassifier, SparseIRMRegressor, load
from sparseirm.files import read_json, write_json
from sparseirm.table.fitting import Rows
from table_makers import CAUSES, EFFECTS, mixed_table, sem_table

QUICK = {"steps": 30, "width": 8}


def split(frame: pd.DataFrame, held_out: str = "turned") -> tuple[Any, ...]:
    """Training rows, their target and environment; rows and target of the environment held out."""
    here = frame["site"] == held_out
    x = frame.drop(columns=["y", "site"])
    return x[~here], frame["y"][~here], frame["site"][~here], x[here], frame["y"][here]


@pytest.mark.parametrize("kind", [SparseIRMClassifier, SparseIRMRegressor])
def test_scikit_learn_accepts_the_estimators(kind: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one environment, checks that are skipped
        check_estimator(kind(steps=25))


@pytest.mark.parametrize("classes", [False, True])
def test_it_finds_the_causes_and_holds_where_the_effects_turn(classes: bool) -> None:
    frame = sem_table(classes=classes)
    x, y, env, x_new, y_new = split(frame)
    kind = SparseIRMClassifier if classes else SparseIRMRegressor
    ours, erm = kind().fit(x, y, env=env), kind(method="erm").fit(x, y, env=env)
    weight = dict(zip(ours.columns_, ours.column_weights_, strict=True))
    assert all(weight[name] > 0.05 for name in CAUSES) and not any(weight[name] for name in EFFECTS)
    assert ours.score(x_new, y_new) > 0.75 > 0.5 > erm.score(x_new, y_new)
    assert ours.environments_ == ["a", "b", "c"]
    assert sum(weight.values()) == pytest.approx(1)


def test_gates_on_columns_find_the_causes_too() -> None:
    x, y, env, x_new, y_new = split(sem_table())
    model = SparseIRMRegressor(gates="columns", budget=5).fit(x, y, env=env)
    assert {name for name, w in zip(model.columns_, model.column_weights_, strict=True) if w} == set(CAUSES)
    assert model.score(x_new, y_new) > 0.75


def test_a_budget_in_weights_is_kept_exactly() -> None:
    x, y, env, *_ = split(sem_table(n=60))
    model = SparseIRMRegressor(gates="weights", budget=37, **QUICK).fit(x, y, env=env)
    assert sum(int((p != 0).sum()) for p in model.module_.parameters() if p.ndim == 2) == 37
    assert model.fitted_.kept == model.fitted_.budget == 37


def test_mixed_columns_missing_values_and_labels_of_text() -> None:
    frame = mixed_table()
    x, y = frame.drop(columns=["label", "clinic"]), frame["label"]
    model = SparseIRMClassifier("irm").fit(x, y, env=frame["clinic"])
    assert model.score(x, y) > 0.85
    assert set(model.predict(x)) == {"ill", "well"}
    proba = model.predict_proba(x)
    assert proba.shape == (240, 2) and np.allclose(proba.sum(1), 1)
    assert (model.classes_[proba.argmax(1)] == model.predict(x)).all()
    odd = x.assign(kind="violet", dose=np.nan)
    assert np.isfinite(model.predict_proba(odd)).all()


def test_several_classes() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    x = np.column_stack([y + rng.normal(0, 0.3, 300), rng.normal(size=300)])
    model = SparseIRMClassifier(steps=200).fit(x, y, env=np.repeat([0, 1, 2], 100))
    assert model.score(x, y) > 0.85 and model.predict_proba(x).shape == (300, 3)
    assert model.column_weights_.tolist() == [1, 0]


def test_a_sparse_matrix_is_as_good_as_a_dense_one() -> None:
    x, y, env, *_ = split(sem_table(n=40))
    dense = x.to_numpy() * (np.abs(x.to_numpy()) > 1)
    fits = [
        SparseIRMRegressor(**QUICK).fit(form(dense), y, env=env) for form in (np.asarray, sparse.csr_matrix)
    ]
    told = [model.predict(sparse.coo_array(dense)) for model in fits]
    assert (told[0] == told[1]).all()


def test_rows_that_repeat_become_one_with_missing_values_too() -> None:
    nan = np.nan
    values = np.array([[nan, 1.0], [2.0, nan], [nan, 1.0], [nan, 2.0], [0.0, 1.0]])
    rows = Rows(values, np.zeros(5), np.zeros(5, dtype=np.int64), np.array([1.0, 1, 3, 1, 1])).distinct()
    weights = {str(row): weight for row, weight in zip(rows.values.tolist(), rows.weight, strict=True)}
    assert weights == {"[nan, 1.0]": 4, "[2.0, nan]": 1, "[nan, 2.0]": 1, "[0.0, 1.0]": 1}


@pytest.mark.parametrize("method", ["erm", "sparseirm"])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_weights_stand_for_repeated_rows(method: str, missing: float) -> None:
    x, y, env, *_ = split(sem_table(n=30))
    x = x.mask(np.random.default_rng(0).random(x.shape) < missing)
    times = np.arange(len(y)) % 3
    repeated = np.repeat(np.arange(len(y)), times)
    weighed = SparseIRMRegressor(method, **QUICK).fit(x, y, env=env, sample_weight=times)
    again = SparseIRMRegressor(method, **QUICK).fit(
        x.iloc[repeated], y.iloc[repeated], env=env.iloc[repeated]
    )
    assert (weighed.predict(x) == again.predict(x)).all()


def test_class_weights_move_the_decision() -> None:
    x, y, env, *_ = split(sem_table(n=60, classes=True))
    plain, heavy = (
        SparseIRMClassifier("erm", class_weight=w, **QUICK).fit(x, y, env=env) for w in (None, {"high": 50.0})
    )
    assert (heavy.predict(x) == "high").mean() > (plain.predict(x) == "high").mean()
    rare = y.mask(np.arange(len(y)) % 4 > 0, "low")
    balanced = SparseIRMClassifier("erm", class_weight="balanced", **QUICK).fit(x, rare, env=env)
    counts = rare.value_counts()
    own = {label: len(rare) / 2 / counts[label] for label in counts.index}
    by_hand = SparseIRMClassifier("erm", class_weight=own, **QUICK).fit(x, rare, env=env)
    assert np.allclose(balanced.predict_proba(x), by_hand.predict_proba(x))


def test_environments_count_alike_whatever_their_size() -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([np.zeros(900), np.ones(100)])
    model = SparseIRMRegressor("erm", steps=300).fit(
        rng.normal(size=(1000, 1)) * 1e-3 + 5, y, env=["large"] * 900 + ["small"] * 100
    )
    assert model.predict([[5.0]])[0] == pytest.approx(0.5, abs=0.1)


def test_one_environment_is_said_not_to_do() -> None:
    x, y, *_ = split(sem_table(n=30))
    with pytest.warns(EnvironmentWarning, match="only one"):
        SparseIRMRegressor(**QUICK).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseIRMRegressor("erm", **QUICK).fit(x, y)


def test_metadata_routing_brings_environments_to_fit() -> None:
    x, y, env, *_ = split(sem_table(n=40))
    seen: list[list[str]] = []

    class Spy(SparseIRMRegressor):
        def fit(self, X: Any, y: Any, env: Any = None, sample_weight: Any = None) -> Any:
            seen.append(sorted(set(env)))
            return super().fit(X, y, env=env, sample_weight=sample_weight)

    with sklearn.config_context(enable_metadata_routing=True):
        spy = Spy("irm", **QUICK).set_fit_request(env=True)
        folds = LeaveOneGroupOut()
        cross_validate(spy, x, y, cv=folds, params={"env": env, "groups": env}, error_score="raise")
        assert seen == [list(pair) for pair in itertools.combinations("abc", 2)][::-1]
        seen.clear()
        pipeline = make_pipeline(StandardScaler(), spy)
        search = GridSearchCV(pipeline, {"spy__penalty_weight": [1.0, 10.0]}, cv=folds, error_score="raise")
        search.fit(x, y, env=env, groups=env)
        assert len(seen) == 7 and seen[-1] == ["a", "b", "c"]
        assert search.best_params_["spy__penalty_weight"] in (1.0, 10.0)


def test_equal_seeds_equal_models() -> None:
    x, y, env, *_ = split(sem_table(n=30))
    model = SparseIRMRegressor("irm", random_state=3, **QUICK)
    told = [clone(model).fit(x, y, env=env).predict(x) for _ in range(2)]
    other = clone(model).set_params(random_state=4).fit(x, y, env=env).predict(x)
    assert (told[0] == told[1]).all() and not (told[0] == other).all()


# Files.


@pytest.mark.parametrize("kind", ["classes", "numbers", "array"])
def test_a_saved_estimator_predicts_the_same(kind: str, tmp_path: Path) -> None:
    frame = mixed_table()
    x, env = frame.drop(columns=["label", "clinic"]), frame["clinic"]
    if kind == "classes":
        model: Any = SparseIRMClassifier("irm", class_weight={"ill": 2.0}, **QUICK).fit(
            x, frame["label"], env=env
        )
    elif kind == "numbers":
        model = SparseIRMRegressor("sparseirm", **QUICK).fit(x, frame["dose"].fillna(7.0), env=env)
    else:
        x = np.random.default_rng(0).normal(size=(240, 3))
        model = SparseIRMRegressor("erm", **QUICK).fit(x, x[:, 0])
    model.save(tmp_path / "model")
    assert sorted(path.suffix for path in (tmp_path / "model").iterdir()) == [".json", ".safetensors"]
    again = load(tmp_path / "model")
    assert type(again) is type(model) and again.get_params() == model.get_params()
    assert (again.predict(x) == model.predict(x)).all()
    assert again.columns_ == model.columns_ and (again.column_weights_ == model.column_weights_).all()
    if kind == "classes":
        assert (again.predict_proba(x) == model.predict_proba(x)).all()


def test_what_is_no_saved_estimator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no saved estimator"):
        load(tmp_path)
    x = np.random.default_rng(0).normal(size=(20, 2))
    SparseIRMRegressor("erm", **QUICK).fit(x, x[:, 0]).save(tmp_path)
    payload = read_json(tmp_path / "estimator.json")
    for change in (
        {"class": "Pipeline"},
        {"parameters": {"steps": "many"}},
        {"parameters": {"unheard": 1}},
        {"fitted": {"predict": 1}},
        {"encoding": {"columns": [], "scaling": []}},
        {"encoding": {"columns": [{"name": "a", "kind": "number"}], "scaling": []}},
    ):
        write_json(tmp_path / "estimator.json", payload | change)
        with pytest.raises(SettingError, match=r"no estimator of this version"):
            load(tmp_path)
    (tmp_path / "estimator.json").write_text("{}")
    with pytest.raises(SettingError, match="damaged"):
        load(tmp_path)


def test_a_generator_as_seed_cannot_be_saved(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    model = SparseIRMRegressor("erm", random_state=np.random.RandomState(0), **QUICK).fit(x, x[:, 0])
    with pytest.raises(SettingError, match="random_state"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


# What cannot be used is refused before training.

X = np.random.default_rng(0).normal(size=(12, 3))
Y = np.arange(12) % 2
ENV = np.repeat([0, 1], 6)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"method": "irmm"}, "Did you mean 'irm'"),
        ({"method": "oracle"}, "Known"),
        ({"method": "mrm"}, "Known"),
        ({"method": "erm", "penalty": "rex"}, "`penalty` has no effect"),
        ({"method": "irm", "density": 0.5}, "`density` has no effect"),
        ({"method": "bayesianirm", "penalty": "rex"}, "defined by the penalty"),
        ({"penalty": "rexx"}, "Did you mean 'rex'"),
        ({"penalty_options": {"sd": 1.0}}, "no options"),
        ({"penalty_weight": -1.0}, "`penalty_weight`"),
        ({"density": 0.5, "budget": 2}, "not both"),
        ({"density": 1.5}, r"\(0, 1\]"),
        ({"budget": 4}, "between 1 and the number of columns, 3"),
        ({"budget": 0, "gates": "columns"}, "between 1"),
        ({"gates": "rows"}, "no kind of gate"),
        ({"sparsifier": "probmask"}, "searched before training"),
        ({"gates": "columns", "sparsifier": "probmask"}, "does not gate columns"),
        ({"gates": "weights", "sparsifier": "structured"}, "does not gate weights"),
        ({"gates": "weights", "sparsifier_options": {"x": 1}}, "'x'"),
        ({"steps": 0}, "`steps`"),
        ({"steps": 2.5}, "`steps` must be an integer; got 2.5"),
        ({"width": 16.0}, "`width` must be an integer; got 16.0"),
        ({"budget": 2.7}, "`budget` must be an integer"),
        ({"batch_size": "64"}, "`batch_size` must be an integer; got '64'"),
        ({"budget": True}, "`budget` must be an integer; got True"),
        ({"lr": 0.0}, "`lr`"),
        ({"width": 0}, "`width`"),
        ({"batch_size": 1}, "`batch_size`"),
        ({"class_weight": {7: 1.0}}, "no label"),
        ({"class_weight": {0: -1.0}}, "must be positive"),
        ({"class_weight": "equal"}, "'balanced'"),
    ],
)
def test_parameters_without_sense_are_refused(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        SparseIRMClassifier(**parameters).fit(X, Y, env=ENV)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env": ENV[:-1]}, "`env` must have one value for each of the 12 rows"),
        ({"env": [None, *ENV[1:]]}, "`env` is missing in row 0"),
        ({"sample_weight": np.ones(11)}, "`sample_weight`"),
        ({"sample_weight": -np.ones(12)}, "`sample_weight` must be 0 or more"),
        ({"y": np.zeros(12)}, "at least 2 classes"),
        ({"X": pd.DataFrame([[1, 2, 3]] * 12, columns=["a", "b", "a"])}, "more than one column named 'a'"),
        ({"X": pd.DataFrame([[1, 2, 3]] * 12, columns=[0, 1, 0])}, "more than one column named '0'"),
        ({"X": np.where(np.eye(12, 3) == 1, np.inf, X)}, "inf"),
        ({"X": pd.DataFrame({"a": [*range(11), "b"]})}, "row 12 has 'b'"),
        ({"X": pd.DataFrame({"a": [1] * 12})}, "no column can be used"),
    ],
)
def test_data_without_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    given = {"X": X, "y": Y, "env": ENV} | changes
    with pytest.raises(ValueError, match=says):
        SparseIRMClassifier(**QUICK).fit(given.pop("X"), given.pop("y"), **given)


def test_integers_of_numpy_are_integers() -> None:
    design = SparseIRMRegressor(budget=np.int64(2), steps=np.int32(5), width=np.int64(8)).design
    assert (design.most_columns(3), design.plan(10).steps, design.hidden(10)) == (2, 5, 8)


def test_a_missing_column_is_named() -> None:
    frame = pd.DataFrame(X, columns=list("abc"))
    model = SparseIRMRegressor("erm", **QUICK).fit(frame, X[:, 0])
    with pytest.raises(ValueError, match="b"):
        model.predict(frame.drop(columns="b"))
    numbered = SparseIRMRegressor("erm", **QUICK).fit(pd.DataFrame(X), X[:, 0])
    with pytest.raises(ValueError, match="no column '2'"):
        numbered.predict(pd.DataFrame(X, columns=[0, 1, 7]))


def test_the_package_offers_the_estimators() -> None:
    assert sparseirm.SparseIRMClassifier is SparseIRMClassifier
    assert sparseirm.SparseIRMRegressor is SparseIRMRegressor
    assert "SparseIRMClassifier" in dir(sparseirm)
    with pytest.raises(AttributeError, match="SparseIRMOther"):
        sparseirm.SparseIRMOther  # noqa: B018
