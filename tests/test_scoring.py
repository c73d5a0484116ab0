"""Scores of saved models on new rows: every measure by its definition, and what is said about them."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sparseirm import SettingError, SparseIRMClassifier, SparseIRMRegressor
from sparseirm.cli import main
from sparseirm.files import write_json
from sparseirm.losses import BINARY, MULTICLASS, SQUARED
from sparseirm.study.scoring import ALL, Known, class_numbers, known, remarks, scores_by_environment

RNG = np.random.default_rng(0)
N = 90
ENV = np.repeat(["a", "b", "c"], N // 3)


def auc(target: Any, told: Any) -> float:
    """Chance that a row of the class is told more than one of the others; ties count half."""
    pairs = list(product(told[target == 1], told[target == 0]))
    return sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)


def wilson(hits: int, n: int) -> tuple[float, float]:
    z, share = 1.959963984540054, hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


# The measures.


def test_two_classes_by_definition() -> None:
    z, y = RNG.normal(size=N).round(1), RNG.integers(2, size=N)
    found = scores_by_environment(ENV, torch.from_numpy(z), torch.from_numpy(y), BINARY, ["no", "yes"])
    assert [one.score.env for one in found] == ["a", "b", "c", ALL]
    for one in found:
        rows = one.score.env == ENV if one.score.env != ALL else ENV == ENV
        told, true = z[rows], y[rows]
        right = (told > 0) == true
        assert one.score.rows == rows.sum() and one.score.score == pytest.approx(right.mean())
        assert (one.score.low, one.score.high) == pytest.approx(wilson(int(right.sum()), len(true)))
        assert one.score.guess == pytest.approx(max(true.mean(), 1 - true.mean()))
        assert one.score.risk == pytest.approx(np.log1p(np.exp(np.where(true, -told, told))).mean())
        recall = {"no": right[true == 0].mean(), "yes": right[true == 1].mean()}
        assert one.recall == pytest.approx(recall)
        assert one.balanced_accuracy == pytest.approx(np.mean(list(recall.values())))
        assert one.auc == pytest.approx(auc(true, told))
        assert one.rmse is None


def test_more_classes_and_one_that_does_not_occur() -> None:
    z, y = RNG.normal(size=(N, 3)), RNG.integers(3, size=N)
    y[ENV == "b"] = np.minimum(y[ENV == "b"], 1)
    a, b, *_ = scores_by_environment(ENV, torch.from_numpy(z), torch.from_numpy(y), MULTICLASS, "xyz")
    part, true = z[ENV == "a"], y[ENV == "a"]
    p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
    assert a.auc == pytest.approx(np.mean([auc(true == k, p[:, k]) for k in range(3)]))
    assert a.score.risk == pytest.approx(-np.log(p[np.arange(len(true)), true]).mean())
    right = z[ENV == "b"].argmax(1) == y[ENV == "b"]
    assert b.auc is None
    assert b.recall == pytest.approx({"xyz"[k]: right[y[ENV == "b"] == k].mean() for k in range(2)})


def test_numbers_by_definition() -> None:
    told, y = RNG.normal(size=N), RNG.normal(size=N)
    y[ENV == "c"] = 0.5
    a, _, c, every = scores_by_environment(
        ENV, torch.from_numpy(told), torch.from_numpy(y), SQUARED, (), scale=7.0
    )
    for one, rows in ((a, ENV == "a"), (every, ENV == ENV)):
        error = (told - y)[rows] ** 2
        half = 1.96 * error.std() / math.sqrt(len(error)) / y[rows].var()
        assert one.score.score == pytest.approx(1 - error.mean() / y[rows].var())
        assert one.score.low == pytest.approx(one.score.score - half)
        assert one.rmse == pytest.approx(7 * math.sqrt(error.mean()))
        assert (one.balanced_accuracy, one.auc, one.recall) == (None, None, {})
    assert math.isnan(c.score.score) and c.rmse == pytest.approx(
        7 * math.sqrt(((told - 0.5)[ENV == "c"] ** 2).mean())
    )


def test_one_environment_is_not_scored_twice() -> None:
    z, y = torch.tensor([1.0, -1.0]), torch.tensor([1, 1])
    (one,) = scores_by_environment(np.array(["a", "a"]), z, y, BINARY, ["no", "yes"])
    assert one.score.env == "a" and one.recall == {"yes": 0.5}


def test_labels_are_found_among_the_classes() -> None:
    assert class_numbers(["b", "a", "b"], ["a", "b"], "it").tolist() == [1, 0, 1]
    with pytest.raises(SettingError, match=r"it has 2 rows of classes .* not trained with: c, d; it knows a"):
        class_numbers(["c", "a", "d"], ["a"], "it")


# What is said.


def said(told: Any, true: Any, past: Known) -> dict[str, str]:
    found = scores_by_environment(
        np.full(len(true), "new"), torch.tensor(told), torch.tensor(true), BINARY, ["no", "yes"]
    )
    return {finding.name: finding.seen for finding in remarks(found, past, True)}


def test_a_model_that_is_as_good_as_in_training_has_no_remark() -> None:
    assert said([2.0, -2.0] * 50, [1, 0] * 50, Known(trained_on=("a",), held_out={"a": 0.9, "b": 0.8})) == {}


def test_a_drop_beyond_noise_is_told_beside_the_worst_environment_left_out() -> None:
    told, true = [2.0, -2.0, 2.0, -2.0, 2.0] * 40, [1, 0, 1, 0, 0] * 40
    assert said(told, true, Known(held_out={"a": 0.95, "b": 0.84})) == {}  # 0.80, up to 0.85
    (seen,) = said(told, true, Known(held_out={"a": 0.95, "b": 0.9})).values()
    assert "In new the model is worse" in seen and "(the worst was b: 0.900)" in seen


def test_a_model_that_knows_nothing_and_environments_of_training_are_named() -> None:
    told, true = [2.0, -2.0, -2.0, 2.0] * 25, [1, 0, 1, 0] * 25
    found = said(told, true, Known(trained_on=("new",)))
    assert set(found) == {"trained on", "no better than guessing"}


# The command.


def table(n: int = N) -> pd.DataFrame:
    y = RNG.integers(2, size=n)
    return pd.DataFrame(
        {"dose": y + RNG.normal(size=n), "site": np.resize(["a", "b", "c"], n), "ill": y.astype(int)}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier saved from Python: nothing is known about its training."""
    out = tmp_path_factory.mktemp("model")
    frame = table()
    SparseIRMClassifier("erm", steps=60).fit(frame[["dose"]], frame["ill"], env=frame["site"]).save(out)
    return out


def test_scores_of_a_table_are_those_of_its_predictions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = table().assign(ill=lambda frame: frame["ill"].astype(float))  # 1.0 and 1 are one class
    new.to_csv(tmp_path / "new.csv", index=False)
    given = [str(model), str(tmp_path / "new.csv")]
    where = str(tmp_path / "scores.csv")
    assert main(["evaluate", *given, "--target", "ill", "--env", "site", "-o", where]) == 0
    assert main(["predict", *given, "-o", str(tmp_path / "p.csv")]) == 0
    told = pd.read_csv(tmp_path / "p.csv")["prediction"].to_numpy()
    scores = pd.read_csv(where).set_index("environment")
    for site in "abc":
        rows = (new["site"] == site).to_numpy()
        assert scores["accuracy"][site] == pytest.approx((told == new["ill"])[rows].mean())
        assert scores["recall_1"][site] == pytest.approx((told == 1)[rows & (new["ill"] == 1)].mean())
    assert scores["rows"][ALL] == N
    assert "balanced accuracy" in capsys.readouterr().out


def test_a_column_of_environments_is_not_needed(model: Path, tmp_path: Path) -> None:
    table().drop(columns="site").to_csv(tmp_path / "new.csv", index=False)
    where = str(tmp_path / "scores.csv")
    assert main(["evaluate", str(model), str(tmp_path / "new.csv"), "--target", "ill", "-o", where]) == 0
    assert pd.read_csv(where)["environment"].tolist() == [ALL]


def test_numbers_are_scored_in_their_own_unit(tmp_path: Path) -> None:
    frame = table().assign(cost=lambda frame: 1000 * frame["dose"] + 50 * RNG.normal(size=N))
    fitted = SparseIRMRegressor("erm", steps=200).fit(frame[["dose"]], frame["cost"], env=frame["site"])
    fitted.save(tmp_path / "model")
    frame.to_csv(tmp_path / "new.csv", index=False)
    where = str(tmp_path / "scores.csv")
    given = [str(tmp_path / "model"), str(tmp_path / "new.csv"), "--target", "cost", "-o", where]
    assert main(["evaluate", *given]) == 0
    (score,) = pd.read_csv(where).to_dict("records")
    error = frame["cost"] - fitted.predict(frame[["dose"]])
    assert score["rmse"] == pytest.approx(math.sqrt((error**2).mean()))
    assert score["r2"] == pytest.approx(1 - (error**2).mean() / frame["cost"].var(ddof=0))


@pytest.mark.parametrize(
    ("change", "flags", "complaint"),
    [
        ({}, [], "`target` must name the column to predict"),
        ({}, ["--target", "il"], "Did you mean 'ill'?"),
        ({}, ["--target", "ill", "--env", "clinic"], "column (for `env`)"),
        ({"ill": 3}, ["--target", "ill"], f"has {N} rows of classes the model was not trained with: 3"),
        ({"ill": [None] + [1] * (N - 1)}, ["--target", "ill"], "the target 'ill' is missing in data row 1"),
        ({"site": np.arange(N)}, ["--target", "ill", "--env", "site"], "an environment is a group of rows"),
        ({"dose": None}, ["--target", "ill"], ""),
    ],
)
def test_bad_input_is_told_in_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    flags: list[str],
    complaint: str,
) -> None:
    table().assign(**change).to_csv(tmp_path / "new.csv", index=False)
    code = main(["evaluate", str(model), str(tmp_path / "new.csv"), *flags])
    said = capsys.readouterr().err
    assert code == (2 if complaint else 0) and complaint in said and said.count("\n") == bool(complaint)


def test_of_a_result_of_something_else_nothing_is_taken(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"data": {"target": "x"}})
    assert known(tmp_path) == Known()
