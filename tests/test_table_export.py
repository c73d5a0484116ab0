"""Claims about a table's model that is taken away: the same answers, from the columns it uses alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.deploy import load_table, save_compact
from sparseirm.deploy.tables import samples_like, table_model
from sparseirm.estimator import (
    Estimator,
    SparseIRMClassifier,
    SparseIRMRegressor,
    as_saved,
    load,
    restored,
)
from sparseirm.table.encoding import values

ENV = np.repeat(["a", "b", "c"], 60)


def frame(seed: int = 0) -> pd.DataFrame:
    """Numbers, one of them with gaps, text, and dates."""
    luck = np.random.default_rng(seed)
    gaps = luck.normal(1e6, 10.0, size=180)
    gaps[luck.random(180) < 0.2] = np.nan
    return pd.DataFrame(
        {
            "plain": luck.normal(size=180),
            "gaps": gaps,
            "town": luck.choice(["Ulm", "Bonn", "Aachen"], size=180, p=[0.5, 0.3, 0.2]),
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(luck.integers(0, 900, size=180), unit="D"),
            "noise": luck.normal(size=180),
        }
    )


def targets(kind: str) -> NDArray[Any]:
    table, luck = frame(), np.random.default_rng(1)
    signal = table["plain"] + (table["town"] == "Ulm") + 0.3 * luck.normal(size=180)
    if kind == "number":
        return 100 + 20 * signal.to_numpy()
    return pd.cut(signal, {"two": 2, "three": 3}[kind], labels=False).to_numpy()


KINDS: dict[str, dict[str, Any]] = {
    "columns": {"gates": "columns", "budget": 2, "steps": 60},
    "weights": {"gates": "weights", "budget": 50, "steps": 60},
    "dense": {"method": "erm", "steps": 20},
}


def fitted(target: str, kind: str) -> Estimator:
    maker = SparseIRMRegressor if target == "number" else SparseIRMClassifier
    return maker(**KINDS[kind]).fit(frame(), targets(target), env=ENV)


MODELS = [("two", "columns"), ("three", "weights"), ("number", "dense")]
every_model = pytest.mark.parametrize(("target", "kind"), MODELS)


def asked(note: dict[str, Any], table: pd.DataFrame) -> NDArray[np.float64]:
    """The input of the ONNX file, by what its metadata say and nothing else."""
    found = []
    for column in note["columns"]:
        told = table[column["name"]]
        if column["kind"] == "category":
            place = {level: at for at, level in enumerate(column["levels"])}
            found.append([place.get(value, -1) for value in told])
        elif column["kind"] == "date":
            found.append((told - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1))
        else:
            found.append(told)
    return np.stack(found, axis=1).astype(np.float64)


def answers(model: Estimator, table: pd.DataFrame) -> NDArray[np.float64]:
    return model.predict(table) if isinstance(model, SparseIRMRegressor) else model.predict_proba(table)


@every_model
def test_the_onnx_file_answers_as_the_model_from_its_columns_alone(
    target: str, kind: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = fitted(target, kind)
    model.save(tmp_path / "model")
    assert (
        main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "m.onnx"), "--batch-sizes", "1"])
        == 0
    )
    session = onnxruntime.InferenceSession(
        (tmp_path / "m.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )
    note = json.loads(session.get_modelmeta().custom_metadata_map["sparseirm"])
    used = [name for name, weight in zip(model.columns_, model.column_weights_, strict=True) if weight > 0]
    assert [column["name"] for column in note["columns"]] == used
    new = frame(seed=5)
    new.loc[:9, "town"], new.loc[5:14, "gaps"] = "Rome", np.nan
    (out,) = session.run(None, {"x": asked(note, new)})
    if target == "number":
        np.testing.assert_allclose(out[:, 0], answers(model, new), rtol=1e-4)
        assert note["output"] == "predictions"
    else:
        logits = np.hstack([np.zeros_like(out), out]) if out.shape[1] == 1 else out
        sure = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(sure, answers(model, new), atol=1e-5)
        assert note["labels"] == [str(label) for label in model.classes_]


@every_model
def test_the_packed_file_gives_the_same_bits(target: str, kind: str, tmp_path: Path) -> None:
    model, path = fitted(target, kind), tmp_path / "m.safetensors"
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--out", str(path), "--batch-sizes", "1"]) == 0
    assert main(["export", str(path), "--batch-sizes", "1"]) == 0
    new = frame(seed=5)
    assert np.array_equal(answers(load_table(path), new), answers(model, new))
    assert np.array_equal(answers(load(tmp_path / "model"), new), answers(model, new))


def test_a_model_keeps_exactly_its_budget() -> None:
    by_weights = fitted("two", "weights")
    kept = sum(int(p.count_nonzero()) for p in by_weights.module_.parameters() if p.ndim == 2)
    assert kept == by_weights.fitted_.kept == 50
    by_columns = fitted("two", "columns")
    assert int((by_columns.column_weights_ > 0).sum()) == 2
    assert len(table_model(by_columns).columns) == 2


def test_dead_units_are_gone_and_the_function_is_the_same() -> None:
    model = table_model(fitted("two", "weights"))
    before, after = model.compaction.parameters
    assert after < before and model.compaction.difference64 < 1e-9


def test_values_that_training_never_saw_reach_the_network_as_in_the_package() -> None:
    model = fitted("three", "dense")
    taken = table_model(model)
    x = samples_like(taken, 200)
    assert torch.isnan(x).any() and (x[:, taken.whole.categories] == -1).any()
    with torch.no_grad():
        ours = taken.whole(x)
    inputs = torch.from_numpy(model.encoding_.inputs(x.numpy()))
    torch.testing.assert_close(ours.double(), model.logits_of(inputs), rtol=1e-4, atol=1e-5)


def test_a_model_without_any_column_can_be_taken_away() -> None:
    model = fitted("two", "dense")
    with torch.no_grad():
        next(model.module_.parameters()).zero_()
    taken = table_model(model)
    assert len(taken.columns) == 1
    x = values(taken.columns, frame())
    with torch.no_grad():
        assert taken.whole(torch.from_numpy(x)).std() == 0


def test_the_order_of_the_tensors_does_not_matter() -> None:
    model = fitted("two", "weights")
    tensors = dict(reversed(model.module_.state_dict().items()))
    again = restored(json.loads(json.dumps(as_saved(model))), tensors, "memory")
    assert np.array_equal(again.predict_proba(frame()), model.predict_proba(frame()))


def test_other_compact_files_are_refused(tmp_path: Path) -> None:
    save_compact(tmp_path / "x.safetensors", torch.nn.Linear(2, 1))
    with pytest.raises(SettingError, match="holds no table's model"):
        load_table(tmp_path / "x.safetensors")
