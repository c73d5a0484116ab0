"""What ``sparseirm fit``, ``predict`` and ``evaluate`` do with a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from sparseirm.core import SettingError
from sparseirm.estimator import Estimator, SparseIRMClassifier, load
from sparseirm.experiments.bar import bar
from sparseirm.experiments.executors import local
from sparseirm.experiments.sheets import plain_console
from sparseirm.files import write_bytes
from sparseirm.monitor import counted, listed
from sparseirm.registry import one_of
from sparseirm.runs import environment
from sparseirm.study.common import (
    check_numbers,
    check_output,
    claimed,
    say_files,
    say_findings,
    say_table,
    write_result,
)
from sparseirm.study.comparison import candidates, folds
from sparseirm.study.problem import Problem, build_problem, environment_names, refuse_missing
from sparseirm.study.result import as_result
from sparseirm.study.scoring import ALL, Scores, class_numbers, known, scores_by_environment, tell
from sparseirm.study.study import Study, conduct
from sparseirm.table.columns import OTHER, as_numbers, as_text
from sparseirm.table.reading import read_table
from sparseirm.training.loop import Record

if TYPE_CHECKING:
    import pandas as pd


def fit_table(
    data: Path,
    *,
    target: str,
    env: str,
    test_env: tuple[str, ...] = (),
    task: str = "auto",
    method: str = "auto",
    drop: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    columns: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    rows: int = 20_000,
    encoding: str = "utf-8",
    decimal: str = ".",
    workers: int | None = None,
    out: Path = Path("out/fit"),
) -> Study:
    """Fit a model to your own table, and learn whether to trust it in a new environment.

    Says what it takes each column for, compares plain training (ERM), IRM and SparseIRM by leaving out one
    environment after the other, takes one by a rule that never sees `--test-env`, says which columns are
    stable and which look spurious, and writes the model, ``result.json`` and a page to read,
    ``report.html``, to ``--out``.

    Example: sparseirm fit patients.csv --target relapse --env hospital --test-env Ulm --out out/relapse

    Args:
        data: a CSV or Parquet file, one row per sample.
        target: the column to predict.
        env: the column that says which environment a row belongs to: site, year, batch, device ...
        test_env: environments that no choice looks at; the model is scored on them at the end.
        task: what the target is; auto looks at its values.
        method: which method to take; auto applies the rule.
        drop: columns that are no inputs.
        categorical: number columns whose values are names, such as codes.
        columns: how many columns gates may keep, each number tried; by default a quarter of them.
        seeds: seeds of the comparison; each leaves out other rows.
        steps: optimiser steps of every fit; by default as many as the table's size asks for.
        rows: rows the comparison uses at most; the final model is fitted to all.
        encoding: how a text file is encoded.
        decimal: decimal sign of a text file.
        workers: number of processes; one per core by default.
        out: folder for model and result; it must not exist, or be empty.

    Returns:
        The study.
    """
    check_numbers(seeds, steps, rows)
    frame = read_table(data, encoding, decimal)
    problem = build_problem(frame, target, env, test_env, task, drop, categorical)
    del frame
    tried = candidates(sum(column.used for column in problem.columns), columns, steps)
    console = plain_console()
    _say_problem(console, problem, data)
    parts = folds(problem, seeds, rows)
    with claimed(out), local(workers) as pool:
        fits = len(tried) * len(parts)
        with bar("comparing", fits, "fits") as on_fit, bar("final fit", 1, "steps") as on_step:

            def after_step(record: Record, steps: int) -> None:
                on_step(completed=record.step, total=steps)

            study = conduct(problem, tried, parts, pool, method, lambda: on_fit(advance=1), after_step)
        settings: dict[str, Any] = {
            "data": data.name,
            "test_env": test_env,
            "task": task,
            "method": method,
            "drop": drop,
            "categorical": categorical,
            "columns": columns,
            "seeds": seeds,
            "steps": steps,
            "rows": rows,
            "out": str(out),
        }
        study.model.save(out)
        result = as_result(study, settings, environment(torch.device("cpu")))
        write_result(out, result)
    _say_study(console, study, out)
    return study


def predict_table(
    model: Path,
    data: Path,
    *,
    output: Path,
    encoding: str = "utf-8",
    decimal: str = ".",
) -> int:
    """Predict the rows of a table with a model that ``sparseirm fit`` wrote.

    Writes a CSV file with a row for each row of the table, in its order: ``prediction``, with the labels of
    the training table, and for classes ``probability_LABEL``. Columns the model does not use are ignored;
    values it never saw in training count as others or missing, and are counted.

    Example: sparseirm predict out/relapse new.csv -o predictions.csv

    Args:
        model: the folder that `sparseirm fit` wrote.
        data: a CSV or Parquet file with the columns of the training table.
        output: the CSV file to write.
        encoding: how a text file is encoded.
        decimal: decimal sign of a text file.

    Returns:
        The number of rows predicted.
    """
    import pandas as pd

    estimator = _saved(model)
    frame = read_table(data, encoding, decimal)
    check_output(output, data)
    frame = _inputs(estimator, frame, data, others=())
    told = pd.DataFrame({"prediction": estimator.predict(frame)})
    if isinstance(estimator, SparseIRMClassifier):
        probabilities = estimator.predict_proba(frame)
        for at, label in enumerate(as_text(estimator.classes_)):
            told[f"probability_{label}"] = probabilities[:, at]
    write_bytes(output, told.to_csv(index=False).encode())
    print(f"{len(told)} predictions: {output}")
    return len(told)


def evaluate_table(
    model: Path,
    data: Path,
    *,
    target: str | None = None,
    env: str | None = None,
    output: Path | None = None,
    encoding: str = "utf-8",
    decimal: str = ".",
) -> list[Scores]:
    """Score a table's model on new rows; see `sparseirm.study.fit.evaluate`.

    Args:
        model: the folder that `sparseirm fit` wrote.
        data: a CSV or Parquet file with the columns of the training table, the target among them.
        target: the target column; by default that of training.
        env: the environment column; by default that of training, if the table has it.
        output: a CSV file to write the scores to.
        encoding: how a text file is encoded.
        decimal: decimal sign of a text file.

    Returns:
        The scores by environment, and on all rows if there are more than one.
    """
    estimator, past = _saved(model), known(model)
    frame = read_table(data, encoding, decimal)
    if output is not None:
        check_output(output, data)
    target = target or past.target
    if target is None:
        raise SettingError(f"`target` must name the column to predict: {model} does not say which it is.")
    for role, name in (("target", target), ("env", env)):
        if name is not None and name not in frame.columns:
            one_of(f"column (for `{role}`)", name, frame.columns[:50])
    if env is None and past.env in frame.columns:
        env = past.env
    names = np.full(len(frame), ALL) if env is None else environment_names(frame[env])
    truth = _truth(estimator, frame[target])
    inputs = _inputs(estimator, frame, data, others=[target, *([] if env is None else [env])])
    encoded = torch.from_numpy(estimator.encoding_.inputs(inputs))
    classifies = isinstance(estimator, SparseIRMClassifier)
    found = scores_by_environment(
        names,
        estimator.logits_of(encoded),
        truth,
        estimator.loss,
        tuple(as_text(estimator.classes_)) if classifies else (),
        1.0 if classifies else estimator.target_scale_,
    )
    tell(plain_console(), found, past, output)
    return found


def _saved(model: Path) -> Estimator:
    if not model.is_dir():
        raise SettingError(f"there is no folder {model}; name the one that `sparseirm fit` wrote.")
    return load(model)


def _inputs(estimator: Estimator, frame: pd.DataFrame, data: Path, others: Sequence[str]) -> pd.DataFrame:
    """The columns a model was trained with; what is missing is refused, what is ignored or new is told."""
    columns = estimator.encoding_.columns
    names = [column.name for column in columns]
    absent = [column.name for column in columns if column.used and column.name not in frame.columns]
    if absent:
        raise SettingError(
            f"{data} lacks {counted(len(absent), 'column')} the model was trained with: "
            f"{listed([repr(name) for name in absent])}. Add what is missing, left empty where unknown."
        )
    extra = [name for name in frame.columns if name not in (*names, *others)]
    if extra:
        print(f"ignored, because the model was not trained with it: {', '.join(extra)}")
    frame = frame.reindex(columns=names)
    _say_new_values(frame, columns)
    return frame


def _truth(estimator: Estimator, values: pd.Series) -> torch.Tensor:
    """The target as class numbers, or standardised."""
    refuse_missing(values, "target")
    if isinstance(estimator, SparseIRMClassifier):
        return class_numbers(as_text(values), as_text(estimator.classes_), f"the target {values.name!r}")
    y = as_numbers(str(values.name), values)
    return torch.from_numpy((y - estimator.target_mean_) / estimator.target_scale_)


def _say_problem(console: Console, problem: Problem, data: Path) -> None:
    what = f"classes {', '.join(problem.classes)}" if problem.classes else "a number"
    console.print(f"{data.name}: {len(problem.y)} rows. Target {problem.target!r}: {what}.")
    for kind, words in (("number", "numbers"), ("category", "categories"), ("date", "dates")):
        names = [column.name for column in problem.columns if column.kind == kind]
        if names:
            console.print(f"  {len(names)} {kind if len(names) == 1 else words}: {listed(names)}")
    for column in problem.columns:
        if not column.used:
            console.print(f"  left out: {column.name} ({column.note})")
    counts = np.bincount(problem.env, minlength=len(problem.names))
    told = [f"{name} ({count})" for name, count in zip(problem.names, counts, strict=True)]
    console.print(
        f"Environments {problem.env_column!r}, for training: {listed(told[: problem.n_train_envs])}"
    )
    if len(problem.testing):
        console.print(f"  for the test only: {listed(told[problem.n_train_envs :])}")


def _say_study(console: Console, study: Study, out: Path) -> None:
    say_table(console, study.table, study.choice, "accuracy" if study.problem.classes else "R2")
    for verdict in sorted({verdict.verdict for verdict in study.verdicts}):
        names = [one.column for one in study.verdicts if one.verdict == verdict]
        console.print(f"{verdict}: {listed(names, 30)}")
    say_findings(console, study.findings)
    say_files(console, out, study.seconds)


def _say_new_values(frame: pd.DataFrame, columns: Sequence[Any]) -> None:
    """Tell of values of categories that the model never saw."""
    for column in columns:
        if column.kind == "category" and OTHER not in column.levels:
            text = as_text(frame[column.name])
            new = sorted(set(text) - set(column.levels))
            if new:
                rows = counted(int(np.isin(text, new).sum()), "row")
                print(f"column {column.name!r}: {rows} with values not seen in training: {listed(new)}")
