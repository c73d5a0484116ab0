"""From files to inputs: what readers take, what columns are taken for, and how they become numbers."""

from __future__ import annotations

import datetime
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseirm.core import SettingError
from sparseirm.study.problem import build_problem
from sparseirm.table.columns import MISSING, OTHER, Column, as_codes, as_numbers, infer_columns
from sparseirm.table.encoding import Encoding, values
from sparseirm.table.reading import read_table
from table_makers import mixed_table

# Files.


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_found_out(separator: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(mixed_table().to_csv(sep=separator, index=False))
    pd.testing.assert_frame_equal(
        read_table(tmp_path / "table.csv"), pd.read_csv(StringIO(mixed_table().to_csv(index=False)))
    )


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_formats_hold_the_same(ending: str, tmp_path: Path) -> None:
    frame, path = mixed_table(), tmp_path / f"Äpfel und Birnen.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path), frame, check_dtype=False)


def test_encodings_decimal_commas_and_marks_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("Größe;Ort\n1,5;Köln\n2,5;Ulm\n".encode("latin-1"))
    frame = read_table(path, encoding="latin-1", decimal=",")
    assert frame["Größe"].tolist() == [1.5, 2.5] and frame["Ort"].tolist() == ["Köln", "Ulm"]
    path.write_bytes("\ufeffa,b\r\n1,2\r\n".encode())
    assert list(read_table(path).columns) == ["a", "b"]
    path.write_text(mixed_table(30).to_csv())
    assert list(read_table(path).columns) == list(mixed_table(30).columns)  # without the index
    path.write_text("7,b\n1,2\n3,4\n")
    assert list(read_table(path).columns) == ["7", "b"]


def test_none_and_na_are_words_among_words_and_missing_among_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(
        "risk,env,dose,day,all\nNone,NA,NA,null,NA\nhigh ,Ulm,1.5,2020-01-02,NA\n,null, 2.5 ,,NA\n"
    )
    frame = read_table(path)
    assert frame["risk"].tolist()[:2] == ["None", "high"] and frame["risk"].isna().tolist() == [0, 0, 1]
    assert frame["env"].tolist() == ["NA", "Ulm", "null"]
    assert frame["dose"].isna().tolist() == [1, 0, 0] and frame["dose"].tolist()[1:] == [1.5, 2.5]
    assert frame["day"].isna().tolist() == [1, 0, 1]
    assert np.isnan(as_numbers("all", frame["all"])).all()  # as when a column of numbers is predicted from


def test_blanks_around_text_are_no_part_of_it(tmp_path: Path) -> None:
    frame = pd.DataFrame({"y": ["yes", " yes  ", "no", "  "], "x": [1, 2, 3, 4]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.parquet", "t.csv"):
        assert read_table(tmp_path / name)["y"].fillna("?").tolist() == ["yes", "yes", "no", "?"]


texts = st.text(max_size=12) | st.sampled_from(
    ["1", "2.5", "", "nan", "inf", "-1e400", '"', "a,b", "x\ny", "\0"]
)
junk = st.binary(max_size=300) | st.lists(st.lists(texts, min_size=1, max_size=5), max_size=8).map(
    lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
)


@settings(max_examples=300)
@given(content=junk, ending=st.sampled_from([".csv", ".tsv", ".csv.gz", ".parquet"]))
def test_whatever_a_file_holds_it_is_read_or_refused(content: bytes, ending: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"table{ending}")
        path.write_bytes(content)
        try:
            frame = read_table(path)
        except SettingError as error:
            assert str(path) in str(error)
        else:
            assert len(frame) and all(isinstance(name, str) for name in frame.columns)


cells = (
    st.none()
    | st.booleans()
    | st.integers(-(10**320), 10**320)
    | st.floats()
    | st.text(max_size=5)
    | st.dates()
    | st.datetimes()
    | st.decimals(allow_nan=False)
    | st.sampled_from([[1], {"a": 1}, b"x", 1j, pd.NaT, pd.NA, np.inf, "1,5", "2020-01-01"])
)


@settings(max_examples=100)
@given(column=st.lists(cells, min_size=1, max_size=12), other=st.lists(cells, min_size=1, max_size=12))
def test_whatever_a_column_holds_it_becomes_finite_numbers_or_is_refused(column: Any, other: Any) -> None:
    frame = pd.DataFrame({"x": pd.Series(column, dtype=object), "n": range(len(column), 0, -1)})
    new = pd.DataFrame({"x": pd.Series(other, dtype=object), "n": 1})
    for guess in (False, True):
        table = frame.infer_objects() if guess else frame
        try:
            columns = infer_columns(table)
            encoding = Encoding.fitted(columns, values(columns, table))
            inputs = [encoding.inputs(table)]
            inputs.append(encoding.inputs(new.infer_objects() if guess else new))
        except SettingError as error:
            assert "'x'" in str(error) or "no column can be used" in str(error)
            continue
        assert all(np.isfinite(part).all() for part in inputs)


@settings(max_examples=30)
@given(
    target=st.lists(cells, min_size=30, max_size=30),
    env=st.lists(st.sampled_from(["a", "b"]) | cells, min_size=30, max_size=30),
    task=st.sampled_from(["auto", "classification", "regression"]),
)
def test_whatever_target_and_environment_hold_there_is_a_problem_or_a_reason(
    target: Any, env: Any, task: str
) -> None:
    frame = pd.DataFrame({"y": pd.Series(target, dtype=object), "e": pd.Series(env, dtype=object)})
    frame["x"] = np.sin(np.arange(30))
    try:
        problem = build_problem(frame, "y", "e", task=task)
    except SettingError as error:
        assert "'y'" in str(error) or "'e'" in str(error) or "environment" in str(error)
    else:
        assert len(problem.codes) == len(problem.env) == 30 and np.isfinite(problem.codes).all()


# Kinds of columns.


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        ([1.5, None, 3.0], "number"),
        ([True, False, True], "number"),
        ([True, None, False], "category"),
        (["1", "2", None, "7"], "number"),
        ([Decimal("1.5"), Decimal(2)], "number"),
        ([10**40 // 10**15, 2, 3], "number"),
        (["a", "b", "a"], "category"),
        (["a", "1", "b", "2", "c"], "category"),
        (pd.Categorical([1, 2, 1]), "category"),
        (["2020-01-01", "2021-05-06 10:00"], "date"),
        ([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)], "date"),
        (pd.to_datetime(["2020-01-01", None, "2020-01-03"]), "date"),
        ([None, None, None], "left out"),
        ([5, 5, 5], "left out"),
        (range(7, 47), "left out"),
        ([f"text {at}" for at in range(40)], "left out"),
    ],
)
def test_kinds_are_inferred_from_values(held: Any, kind: str) -> None:
    (column,) = infer_columns(pd.DataFrame({"x": held}))
    assert column.kind == kind and column.used == (kind != "left out") and bool(column.note) != column.used


def test_rare_levels_share_one_and_missing_is_a_level() -> None:
    held = ["often"] * 150 + ["seldom"] * 47 + ["once", "twice", None]
    (column,) = infer_columns(pd.DataFrame({"x": held}))
    assert column.levels == ("often", "seldom", OTHER)
    assert as_codes(column, pd.Series(["seldom", "once", "never", None])).tolist() == [1, 2, 2, 2]
    (column,) = infer_columns(pd.DataFrame({"x": ["a"] * 8 + [None] * 2}))
    assert column.levels == ("a", MISSING)
    assert as_codes(column, pd.Series([None, "a", "new"])).tolist() == [1, 0, -1]


def test_whole_numbers_and_their_texts_are_the_same_level() -> None:
    column = Column("x", "category", ("1", "2"))
    for held in ([1, 2], [1.0, 2.0], ["1", "2"]):
        assert as_codes(column, pd.Series(held)).tolist() == [0, 1]


# Inputs.


def test_numbers_are_standardised_and_categories_spread_as_by_hand() -> None:
    frame = mixed_table().drop(columns=["label", "clinic"])
    columns = infer_columns(frame)
    encoding = Encoding.fitted(columns, values(columns, frame))
    inputs, dose = encoding.inputs(frame), frame["dose"]
    days = pd.to_datetime(frame["day"]).astype("int64")
    by_hand = {
        0: ((dose - dose.mean()) / dose.std(ddof=0)).fillna(0),
        1: dose.isna(),
        2: frame["kind"] == columns[1].levels[0],
        6: (days - days.mean()) / days.std(ddof=0),
        7: (frame["smoker"] - frame["smoker"].mean()) / frame["smoker"].std(ddof=0),
    }
    assert encoding.blocks == (2, 4, 1, 1)
    for at, expected in by_hand.items():
        assert np.allclose(inputs[:, at], expected.to_numpy(dtype=float), atol=1e-5)
    assert (inputs[:, 2:6].sum(1) == 1).all()


def test_an_encoding_survives_json_to_the_last_bit() -> None:
    import json

    frame = mixed_table().drop(columns=["label", "clinic"])
    columns = infer_columns(frame)
    encoding = Encoding.fitted(columns, values(columns, frame))
    again = Encoding.from_json(json.loads(json.dumps(encoding.to_json())))
    assert (again.inputs(frame) == encoding.inputs(frame)).all() and again.blocks == encoding.blocks
