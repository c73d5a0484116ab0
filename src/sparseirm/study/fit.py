"""``sparseirm fit``, ``predict`` and ``evaluate``: a table or images in, a checked model and a report out."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sparseirm.core import SettingError
from sparseirm.data.own import COLUMNS
from sparseirm.runs import MODEL
from sparseirm.study.commands import evaluate_table, fit_table, predict_table
from sparseirm.study.image_commands import evaluate_images, fit_images, predict_images
from sparseirm.study.image_study import ImageStudy
from sparseirm.study.scoring import Scores
from sparseirm.study.study import Study


def fit(
    data: tyro.conf.Positional[Path],
    *,
    target: str | None = None,
    env: str | None = None,
    test_env: tuple[str, ...] = (),
    method: Literal["auto", "erm", "irm", "sparseirm"] = "auto",
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    drop: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    columns: tuple[int, ...] = (),
    rows: int = 20_000,
    encoding: str = "utf-8",
    decimal: Literal[".", ","] = ".",
    size: int = 32,
    model: str = "mlp",
    width: int | None = None,
    densities: tuple[float, ...] = (),
    workers: int | None = None,
    out: Path = Path("out/fit"),
) -> Study | ImageStudy:
    """Fit a model to your own table or images, and learn whether to trust it in a new environment.

    Compares plain training (ERM), IRM and SparseIRM by leaving out one environment after the other, takes
    one by a rule that never sees `--test-env`, says what looks spurious, and writes the model,
    ``result.json`` and a page to read, ``report.html``, to ``--out``.

    A table needs `--target` and `--env`. Images are a folder ENVIRONMENT/CLASS/IMAGE, or a CSV file with the
    columns path, label and env, and need neither.

    Example: sparseirm fit patients.csv --target relapse --env hospital --test-env Ulm --out out/relapse

    Args:
        data: a CSV or Parquet file, one row per sample; a folder of images, or a CSV file that lists them.
        target: table: the column to predict.
        env: table: the column that says which environment a row belongs to: site, year, batch, device ...
        test_env: environments that no choice looks at; the model is scored on them at the end.
        method: which method to take; auto applies the rule.
        seeds: seeds of the comparison; each leaves out other rows or images.
        steps: optimiser steps of every fit; by default as many as the data ask for.
        task: table: what the target is; auto looks at its values.
        drop: table: columns that are no inputs.
        categorical: table: number columns whose values are names, such as codes.
        columns: table: how many columns gates may keep, each tried; by default a quarter of them.
        rows: table: rows the comparison uses at most; the final model is fitted to all.
        encoding: table: how a text file is encoded.
        decimal: table: decimal sign of a text file.
        size: images: pixels per side that they are brought to.
        model: images: the network: mlp, resnet18 or another of torchvision, timm:NAME.
        width: images: hidden units of the mlp's two layers; 128 by default.
        densities: images: fractions of the weights that SparseIRM keeps, each tried.
        workers: number of processes; by default one per core, or fewer if images would fill the memory.
        out: folder for model, result and report; it must not exist, or be empty.

    Returns:
        The study.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "data"}
    if not data.exists():
        raise SettingError(f"there is no file or folder {data}.")
    if holds_images(data, target, env):
        return fit_images(
            data, **_heeded(fit_images, given, _defaults(fit), f"{data} holds images, not a table")
        )
    if target is None or env is None:
        raise SettingError(
            f"`target` and `env` must name columns of the table {data}: what to predict, and what says "
            "which environment a row belongs to. Images are a folder ENVIRONMENT/CLASS/IMAGE, or a CSV file "
            "with the columns path, label, env."
        )
    return fit_table(data, **_heeded(fit_table, given, _defaults(fit), f"{data} is a table"))


def predict(
    model: tyro.conf.Positional[Path],
    data: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    encoding: str = "utf-8",
    decimal: Literal[".", ","] = ".",
) -> int:
    """Predict rows or images with a model that ``sparseirm fit`` wrote.

    Writes a CSV file: for a table a row for each of its rows, in their order; for images a row for each of
    them, with its ``path``. ``prediction`` holds labels of the training data or numbers, and for classes
    ``probability_LABEL`` how sure the model is. Columns a model does not use are ignored; values it never saw
    in training count as others or missing, and are counted.

    Example: sparseirm predict out/relapse new.csv -o predictions.csv

    Args:
        model: the folder that `sparseirm fit` wrote.
        data: a CSV or Parquet file with the columns of the training table; or a folder of images, searched
            to the bottom, or one image.
        output: the CSV file to write.
        encoding: table: how a text file is encoded.
        decimal: table: decimal sign of a text file.

    Returns:
        The number of rows or images predicted.
    """
    given: dict[str, Any] = {"output": output, "encoding": encoding, "decimal": decimal}
    if (model / MODEL).is_file():
        return predict_images(
            model, data, **_heeded(predict_images, given, _defaults(predict), f"{model} is a model of images")
        )
    return predict_table(model, data, **given)


def evaluate(
    model: tyro.conf.Positional[Path],
    data: tyro.conf.Positional[Path],
    *,
    target: str | None = None,
    env: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    encoding: str = "utf-8",
    decimal: Literal[".", ","] = ".",
) -> list[Scores]:
    """Score a model that ``sparseirm fit`` wrote on new rows or images whose targets are known.

    Shows by environment: for classes accuracy, with its 95 % interval and the share of the most frequent
    class, balanced accuracy, area under the ROC curve and mean log loss; for numbers R2 with its interval
    and the root of the mean squared error. Beside them stand the scores on environments left out of
    training, and it says where the model is worse than those, or no better than guessing.

    Example: sparseirm evaluate out/relapse new.csv -o scores.csv

    Args:
        model: the folder that `sparseirm fit` wrote.
        data: a CSV or Parquet file with the columns of the training table, the target among them; or images
            as `sparseirm fit` takes them.
        target: table: the target column; by default that of training.
        env: table: the environment column; by default that of training, if the table has it.
        output: a CSV file to write the scores to; it also holds the recall of every class.
        encoding: table: how a text file is encoded.
        decimal: table: decimal sign of a text file.

    Returns:
        The scores by environment, and on all rows if there are more than one.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("model", "data")}
    if (model / MODEL).is_file():
        return evaluate_images(
            model,
            data,
            **_heeded(evaluate_images, given, _defaults(evaluate), f"{model} is a model of images"),
        )
    return evaluate_table(model, data, **given)


def holds_images(data: Path, target: str | None, env: str | None) -> bool:
    """Whether data are images: a folder, or a CSV file that lists them if no column of it is named.

    Args:
        data: a file or a folder.
        target: the target column, if one is named.
        env: the environment column, if one is named.

    Returns:
        Whether they are.
    """
    if target is not None or env is not None or not data.is_file():
        return data.is_dir()
    try:
        with data.open(encoding="utf-8-sig", newline="") as lines:
            return set(COLUMNS) <= set(next(csv.reader(lines), ()))
    except (UnicodeDecodeError, csv.Error):
        return False


def _defaults(command: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(command).parameters.items()}


def _heeded(
    command: Callable[..., Any], given: dict[str, Any], usual: dict[str, Any], why: str
) -> dict[str, Any]:
    """The options a command has a use for; others are refused if they were given."""
    known = inspect.signature(command).parameters
    for name, value in given.items():
        if name not in known and value != usual[name]:
            raise SettingError(f"`{name}` has no effect: {why}; got {value}. Leave it out.")
    return {name: value for name, value in given.items() if name in known}
