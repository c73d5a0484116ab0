"""How a saved model does on new rows whose targets are known, environment by environment."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from sklearn import metrics
from torch import Tensor

from sparseirm.core import Loss, SettingError
from sparseirm.experiments.sheets import plain_table
from sparseirm.files import read_json, write_bytes
from sparseirm.monitor import Finding, counted, listed
from sparseirm.study.assessment import probabilities, seen_in
from sparseirm.study.choice import GUESSING, EnvScore, beats_guessing, env_scores
from sparseirm.study.common import RESULT, say_findings

ALL = "all rows"
"""What all rows together are called."""


@dataclass(frozen=True)
class Known:
    """What ``result.json`` beside a model says about its training.

    Attributes:
        target: name of the target column.
        env: name of the environment column.
        trained_on: names of the training environments.
        held_out: score of the method taken on each environment while it was left out of training.
    """

    target: str | None = None
    env: str | None = None
    trained_on: tuple[str, ...] = ()
    held_out: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """A model on the rows of one environment.

    Attributes:
        score: rows, accuracy or R2 with its 95 % interval (Wilson's for an accuracy), and mean loss.
        balanced_accuracy: mean recall of the classes that occur; None for regression.
        auc: area under the ROC curve, for more than two classes the mean of one against the rest; None if a
            class does not occur, or for regression.
        recall: by class that occurs, the share of its rows that are predicted to be of it.
        rmse: root of the mean squared error in the target's unit; None for classes.
    """

    score: EnvScore
    balanced_accuracy: float | None
    auc: float | None
    recall: Mapping[str, float]
    rmse: float | None


def known(model: Path) -> Known:
    """What is known about the training of a model.

    Args:
        model: its folder.

    Returns:
        The contents of ``result.json``; nothing of a model that ``sparseirm fit`` did not write.

    Raises:
        DamagedFileError: if that file is damaged.
    """
    result = read_json(model / RESULT) if (model / RESULT).is_file() else {}
    if result.get("kind") not in ("table", "images"):
        return Known()
    data, compared = result["data"], result["comparison"]
    taken = next(one for one in compared["candidates"] if one["candidate"] == compared["taken"])
    return Known(
        target=data["target"],
        env=data["env"],
        trained_on=tuple(one["name"] for one in data["environments"] if one["role"] == "train"),
        held_out={one["env"]: one["score"] for one in taken["held_out"]},
    )


def class_numbers(labels: Iterable[str], classes: Iterable[str], what: str) -> Tensor:
    """The number of each label among the classes of a model.

    Args:
        labels: ``(n,)`` labels.
        classes: the classes, in the model's order.
        what: what holds the labels, for the message.

    Returns:
        ``(n,)`` int64.

    Raises:
        SettingError: if a label is none of the classes.
    """
    place = {label: at for at, label in enumerate(classes)}
    strange = Counter(label for label in labels if label not in place)
    if strange:
        raise SettingError(
            f"{what} has {counted(strange.total(), 'row')} of classes the model was not trained with: "
            f"{listed(sorted(strange))}; it knows {listed(list(place))}. Remove them, or correct their names."
        )
    return torch.tensor([place[label] for label in labels])


def scores_by_environment(
    env: NDArray[Any], logits: Tensor, target: Tensor, loss: Loss, classes: Sequence[str], scale: float = 1.0
) -> list[Scores]:
    """Score a model in every environment, and on all rows if there are more than one.

    Args:
        env: ``(n,)`` name of each row's environment.
        logits: ``(n,)`` or ``(n, k)``, or standardised predictions.
        target: ``(n,)`` class numbers, or standardised targets.
        loss: the loss per row.
        classes: the classes' names; empty for regression.
        scale: the unit of standardised targets.

    Returns:
        The scores, environments in alphabetical order.

    Example:
        >>> import torch
        >>> from sparseirm.losses import BINARY
        >>> z, y = torch.tensor([2.0, -1.0, 1.0, -2.0]), torch.tensor([1, 0, 0, 0])
        >>> a, b, both = scores_by_environment(np.array(["a", "a", "b", "b"]), z, y, BINARY, ["no", "yes"])
        >>> a.score.score, a.auc, b.score.score, b.auc, both.auc, both.recall
        (1.0, 1.0, 0.5, None, 1.0, {'no': 0.6666666666666666, 'yes': 1.0})
    """
    names = np.unique(env)
    parts = {str(name): np.flatnonzero(env == name) for name in names}
    if len(parts) > 1:
        parts[ALL] = np.arange(len(env))
    return [_scores(name, logits[rows], target[rows], loss, classes, scale) for name, rows in parts.items()]


def _scores(
    name: str, logits: Tensor, target: Tensor, loss: Loss, classes: Sequence[str], scale: float
) -> Scores:
    if not classes:
        spread = float(target.var(correction=0))
        (score,) = env_scores([seen_in(name, logits, target, loss, spread)], pooled=True)
        if spread == 0:
            score = replace(score, score=math.nan, low=math.nan, high=math.nan)
        return Scores(score, None, None, {}, scale * math.sqrt(score.risk))
    shares = target.bincount(minlength=len(classes)).double().numpy() / len(target)
    (score,) = env_scores([seen_in(name, logits, target, loss, float(stats.entropy(shares)))], pooled=True)
    hits = round(score.score * score.rows)
    interval = stats.binomtest(hits, score.rows).proportion_ci(method="wilson")
    present = np.flatnonzero(shares).tolist()
    told = loss.predict(logits).long().numpy()
    recall = metrics.recall_score(target.numpy(), told, labels=present, average=None)
    return Scores(
        score=replace(score, low=float(interval.low), high=float(interval.high)),
        balanced_accuracy=float(recall.mean()),
        auc=_auc(target.numpy(), probabilities(logits).double().numpy()) if shares.all() else None,
        recall={classes[k]: float(share) for k, share in zip(present, recall, strict=True)},
        rmse=None,
    )


def _auc(target: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """Area under the ROC curve; the mean over classes, one against the rest, of more than two."""
    if probability.shape[1] == 2:
        return float(metrics.roc_auc_score(target, probability[:, 1]))
    each = [metrics.roc_auc_score(target == k, column) for k, column in enumerate(probability.T)]
    return float(np.mean(each))


def remarks(found: Sequence[Scores], past: Known, classifies: bool) -> list[Finding]:
    """What is to be said about scores, beside those of training.

    Args:
        found: the scores.
        past: what is known about training.
        classifies: whether scores are accuracies.

    Returns:
        The findings: environments the model was trained on, those where it knows nothing, and those where it
        is worse, beyond noise, than in every environment that was left out of training.
    """
    scores = [one.score for one in found if one.score.env != ALL and not math.isnan(one.score.score)]
    told = []
    seen = [one.env for one in scores if one.env in past.trained_on]
    if seen:
        told.append(
            Finding(
                *("after", "note", "trained on"),
                f"The model was trained on {listed(seen)}.",
                "Scores there say nothing about new environments, and nothing about new rows if these were "
                "among those of training.",
            )
        )
    lost = [one.env for one in scores if not beats_guessing([one], classifies)]
    if lost:
        constant = "the most frequent class" if classifies else "the mean"
        told.append(
            Finding(
                *("after", "problem", GUESSING),
                f"In {listed(lost)} the model is no better, beyond noise, than always answering {constant}.",
                "Do not use it there.",
            )
        )
    if past.held_out:
        least, limit = min(past.held_out.items(), key=lambda item: item[1])
        worse = [one.env for one in scores if one.high < limit]
        if worse:
            told.append(
                Finding(
                    *("after", "warning", "worse than in training"),
                    f"In {listed(worse)} the model is worse, beyond noise, than in any environment that was "
                    f"left out of its training (the worst was {least}: {limit:.3f}).",
                    "Something else changed there than between the training environments: look at how the "
                    "rows differ, or fit again with these among the environments.",
                )
            )
    return told


def tell(console: Console, found: Sequence[Scores], past: Known, output: Path | None) -> None:
    """Print scores and remarks, and write the scores as CSV.

    Args:
        console: where to print.
        found: the scores.
        past: what is known about training.
        output: the CSV file, or None for none.
    """
    lines = [_line(one) for one in found]
    columns = [name for name in lines[0] if not name.startswith("recall_")]
    headings = [name.replace("_", " ") for name in columns]
    console.print(plain_table(headings, [[_shown(line[name]) for name in columns] for line in lines]))
    if past.held_out:
        each = [f"{name} {score:.3f}" for name, score in past.held_out.items()]
        console.print(f"for comparison, each environment left out of training: {listed(each, 30)}")
    say_findings(console, remarks(found, past, found[0].rmse is None))
    if output is not None:
        names = list(dict.fromkeys(name for line in lines for name in line))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_bytes(output, text.getvalue().encode())
        console.print(f"scores: {output}", soft_wrap=True)


def _line(one: Scores) -> dict[str, str | int | float | None]:
    """Scores as a line of a table: empty where a measure has no value."""
    score = one.score
    head: dict[str, str | int | float | None] = {"environment": score.env, "rows": score.rows}
    if one.rmse is not None:
        r2 = {"r2": score.score, "low": score.low, "high": score.high}
        return {**head, **{name: None if math.isnan(x) else x for name, x in r2.items()}, "rmse": one.rmse}
    return {
        **head,
        "accuracy": score.score,
        "low": score.low,
        "high": score.high,
        "most_frequent_class": score.guess,
        "balanced_accuracy": one.balanced_accuracy,
        "auc": one.auc,
        "log_loss": score.risk,
        **{f"recall_{label}": share for label, share in one.recall.items()},
    }


def _shown(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
    return "-" if value is None else str(value)
