"""Bad tables: each ends in one clear line and exit code 2, and nothing is left behind."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparseirm.cli import main

ROWS = 60
ENVS = np.repeat(["a", "b", "c"], ROWS // 3)


def table(**columns: Any) -> pd.DataFrame:
    """A small table that can be fitted, with columns added or replaced; None takes one away."""
    rng = np.random.default_rng(0)
    usual = {"x": rng.normal(size=ROWS), "z": rng.normal(size=ROWS), "y": np.arange(ROWS) % 2, "env": ENVS}
    return pd.DataFrame({name: values for name, values in (usual | columns).items() if values is not None})


def csv(**columns: Any) -> bytes:
    return table(**columns).to_csv(index=False).encode()


def put(values: Any, at: int, value: Any) -> list[Any]:
    """The values with another one at a place."""
    return [*values[:at], value, *values[at + 1 :]]


NUMBERS = np.linspace(0, 1, ROWS).round(3).tolist()
SCRAMBLED = np.random.default_rng(1).bytes(500)

CONTENTS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "is empty"),
    "only white space": (b"\n \n\n", "is empty"),
    "names without rows": (b"x,y,env\n", "no rows"),
    "one column": (b"y\n1\n2\n", "'env'"),
    "one environment": (csv(env=["a"] * ROWS), "two or more"),
    "an environment per row": (csv(env=[f"e{at}" for at in range(ROWS)]), "different values"),
    "an environment with few rows": (csv(env=put(ENVS.tolist(), 0, "d")), "'d' has 1 row"),
    "environment missing in a row": (csv(env=put(ENVS.tolist(), 3, None)), "row 4"),
    "target missing in a row": (csv(y=put([0, 1] * 30, 5, None)), "row 6"),
    "constant target": (csv(y=[1] * ROWS), "nothing to predict"),
    "constant number as target": (csv(y=[0.5] * ROWS), "nothing to predict"),
    "a class with one row": (csv(y=put(["no", "yes"] * 30, 0, "maybe")), "maybe"),
    "a class in one environment only": (
        csv(y=["mid", "high"] * 10 + ["low", "high"] * 20),
        "class mid of 'y' has no training row when 'a' is left out",
    ),
    "the last class in one environment only": (csv(y=[0, 1] * 20 + [0, 2] * 10), "class 2 of 'y'"),
    "a class per row": (csv(y=[f"name {at}" for at in range(ROWS)]), "too many for classes"),
    "infinite value": (csv(x=put(NUMBERS, 7, "inf")), "row 8"),
    "infinite target": (csv(y=put(NUMBERS, 7, "-inf")), "row 8"),
    "number too large for a float": (csv(x=put(NUMBERS, 7, "1" + "0" * 400)), "row 8"),
    "huge number": (csv(x=put(NUMBERS, 7, "1e300")), "Rescale"),
    "enormous integer": (csv(x=put(list(range(ROWS)), 7, "9" * 5000)), "'x'"),
    "a word among numbers": (csv(x=put(NUMBERS, 7, "broken")), "row 8 has 'broken'"),
    "numbers and words mixed": (csv(x=NUMBERS[:40] + ["word"] * 20), "row 41"),
    "decimal commas": (csv(x=[f"{at},{at % 7}" for at in range(ROWS)]), "--decimal ,"),
    "nothing but constants": (csv(x=[1] * ROWS, z=[2] * ROWS), "no column can be used"),
    "nothing but missing values": (csv(x=[None] * ROWS, z=[None] * ROWS), "every value is missing"),
    "no input at all": (csv(x=None, z=None), "no column can be used"),
    "duplicate names": (b"x,x,y,env\n" + b"1,2,0,a\n" * 60, "more than one column named 'x'"),
    "a column without name": (b"x,,y,env\n" + b"1,2,0,a\n2,3,1,b\n" * 30, "column 2"),
    "rows of unequal length": (csv() + b"1,2,3,a,5,6,7\n", "not a readable table"),
    "an open quote": (csv() + b'1,"2,0,a\n', "not a readable table"),
    "10,000 columns": (
        ",".join([*(f"c{at}" for at in range(10_000)), "y", "env"]).encode() + b"\n1\n",
        "10002 columns",
    ),
    "latin-1": (csv(z=["Köln", "Ulm"] * 30).decode().encode("latin-1"), "--encoding"),
    "UTF-16": (csv().decode().encode("utf-16"), "not encoded in utf-8"),
    "binary": (SCRAMBLED, "--encoding"),
    "zero bytes": (b"x,y,env\n\0\0\0\n", "zero bytes"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n", "no column (for `target`) is named"),
    "JSON": (b'{"x": [1, 2], "y": [0, 1]}\n', "no rows"),
}


def refused(arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fitting ends with 2 and one line that says so, and leaves the folder as it was."""
    before = sorted(folder.rglob("*"))
    code = main(["fit", "--out", str(folder / "out"), *arguments])
    told = capsys.readouterr().err
    assert code == 2, told
    assert says in told
    assert told.startswith("sparseirm: ") and told.count("\n") == 1 and len(told) < 600
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", CONTENTS)
def test_a_bad_csv_file_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = CONTENTS[name]
    (tmp_path / "table.csv").write_bytes(content)
    refused([str(tmp_path / "table.csv"), "--target", "y", "--env", "env"], says, tmp_path, capsys)


FLAGS: dict[str, tuple[list[str], str]] = {
    "unknown target": (["--target", "yy", "--env", "env"], "Did you mean 'y'?"),
    "unknown environment column": (["--target", "y", "--env", "site"], "no column (for `env`)"),
    "target as environment": (["--target", "y", "--env", "y"], "must be different columns"),
    "unknown test environment": (["--target", "y", "--env", "env", "--test-env", "q"], "named 'q'"),
    "too many test environments": (["--target", "y", "--env", "env", "--test-env", "a", "b"], "two or more"),
    "dropped target": (["--target", "y", "--env", "env", "--drop", "y"], "`drop`"),
    "unknown column to drop": (["--target", "y", "--env", "env", "--drop", "w"], "named 'w'"),
    "environment as category": (["--target", "y", "--env", "env", "--categorical", "env"], "no effect"),
    "target as category": (["--target", "y", "--env", "env", "--categorical", "y"], "--task classification"),
    "dropped category": (
        ["--target", "y", "--env", "env", "--categorical", "z", "--drop", "z"],
        "that column is dropped",
    ),
    "unknown encoding": (["--target", "y", "--env", "env", "--encoding", "klingon"], "klingon"),
    "regression on words": (["--target", "env", "--env", "y", "--task", "regression"], "target of numbers"),
    "no seeds": (["--target", "y", "--env", "env", "--seeds"], "seeds"),
    "equal seeds": (["--target", "y", "--env", "env", "--seeds", "1", "1"], "`seeds`"),
    "no steps": (["--target", "y", "--env", "env", "--steps", "0"], "`steps`"),
    "too many columns to keep": (["--target", "y", "--env", "env", "--columns", "3"], "`columns`"),
    "no workers": (["--target", "y", "--env", "env", "--workers", "0"], "`workers`"),
    "few rows for the comparison": (["--target", "y", "--env", "env", "--rows", "10"], "`rows`"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags_are_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, says = FLAGS[name]
    (tmp_path / "table.csv").write_bytes(csv())
    refused([str(tmp_path / "table.csv"), *flags], says, tmp_path, capsys)


def _folder(path: Path) -> None:
    path.mkdir()


def _gzip_cut(path: Path) -> None:
    path.write_bytes(gzip.compress(csv() * 50)[:200])


def _list_column(path: Path) -> None:
    table(x=[[1, 2]] * ROWS).to_parquet(path)


def _same_names(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([[1], [2]], names=["x", "x"]), path)


FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no file": ("missing.csv", lambda path: None, "there is no file"),
    "folder": ("folder.csv", _folder, "holds images, not a table"),
    "spreadsheet": ("table.xlsx", lambda path: path.write_bytes(b"PK\3\4"), "save it as CSV or Parquet"),
    "pickle": ("table.pkl", lambda path: path.write_bytes(b"\x80\4."), "save it as CSV or Parquet"),
    "damaged Parquet": (
        "table.parquet",
        lambda path: path.write_bytes(b"PAR1" * 9),
        "not a readable Parquet",
    ),
    "CSV called Parquet": ("table.parquet", lambda path: path.write_bytes(csv()), "not a readable Parquet"),
    "Parquet called CSV": ("table.csv", lambda path: table().to_parquet(path), "table.csv"),
    "Parquet with lists": ("table.parquet", _list_column, "column 'x' holds"),
    "Parquet with duplicate names": ("table.parquet", _same_names, "'x'"),
    "Parquet without rows": ("table.parquet", lambda path: table()[:0].to_parquet(path), "no rows"),
    "gzip cut short": ("table.csv.gz", _gzip_cut, "table.csv.gz"),
    "text called gzip": ("table.csv.gz", lambda path: path.write_bytes(csv()), "table.csv.gz"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, make, says = FILES[name]
    make(tmp_path / file)
    refused([str(tmp_path / file), "--target", "y", "--env", "env"], says, tmp_path, capsys)


@pytest.mark.parametrize("kind", ["file", "full folder"])
def test_what_is_there_is_never_written_over(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_bytes(csv())
    (tmp_path / "out").mkdir() if kind == "full folder" else (tmp_path / "out").write_text("mine")
    if kind == "full folder":
        (tmp_path / "out" / "mine.txt").write_text("mine")
    refused([str(tmp_path / "table.csv"), "--target", "y", "--env", "env"], "`out`", tmp_path, capsys)
