"""The learning problem in a table: inputs, target and environments, or a line that says why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparseirm.core import SettingError
from sparseirm.monitor import counted
from sparseirm.registry import one_of
from sparseirm.table.columns import Column, as_numbers, as_text, infer_columns
from sparseirm.table.encoding import Encoding, values
from sparseirm.table.thinning import thinned

if TYPE_CHECKING:
    import pandas as pd

TASKS = ("auto", "classification", "regression")

MOST_CLASSES = 50
"""Classes beyond which a target is refused: it is a number or an identifier."""

FEWEST_ROWS = 10
"""Rows an environment needs, so that parts of it can be held out."""


@dataclass(frozen=True)
class Problem:
    """What is to be learnt, from which rows.

    Attributes:
        inputs: the columns a model may use, as they came, every row.
        columns: what kind each of them is, from the training rows.
        y: ``(n,)`` labels as they came, or targets in float64.
        classes: the labels as text, in the order of ``numpy.unique(y)``; empty for regression.
        target: name of the target column.
        env: ``(n,)`` number of each row's environment in ``names``.
        env_column: name of the environment column.
        names: names of the environments, those for training first.
        n_train_envs: how many environments are for training; the others are for the test.
    """

    inputs: pd.DataFrame
    columns: list[Column]
    y: NDArray[Any]
    classes: tuple[str, ...]
    target: str
    env: NDArray[np.int64]
    env_column: str
    names: tuple[str, ...]
    n_train_envs: int

    @property
    def train_names(self) -> tuple[str, ...]:
        """Names of the training environments."""
        return self.names[: self.n_train_envs]

    @property
    def training(self) -> NDArray[np.int64]:
        """Places of the rows of training environments, ``(n_train,)``."""
        return np.flatnonzero(self.env < self.n_train_envs)

    @property
    def testing(self) -> NDArray[np.int64]:
        """Places of the rows of test environments."""
        return np.flatnonzero(self.env >= self.n_train_envs)

    @property
    def codes(self) -> NDArray[np.float64]:
        """The target as numbers: class numbers, or the targets themselves; ``(n,)``."""
        if self.classes:
            codes: NDArray[np.float64] = np.unique(self.y, return_inverse=True)[1].astype(np.float64)
            return codes
        return self.y

    def encoded(self, most: int) -> tuple[Encoding, NDArray[np.int64], NDArray[np.float64]]:
        """Training rows as inputs of a network, about ``most`` of them.

        Args:
            most: how many rows are wanted, of every environment some.

        Returns:
            The encoding, fitted to these rows; their places ``(n,)``; and their inputs ``(n, n_inputs)``.
        """
        rows = self.training
        rows = rows[thinned(self.env[rows], most)]
        frame = self.inputs.iloc[rows]
        encoding = Encoding.fitted(self.columns, values(self.columns, frame))
        return encoding, rows, encoding.inputs(frame).astype(np.float64)


def build_problem(
    frame: pd.DataFrame,
    target: str,
    env: str,
    test_env: Sequence[str] = (),
    task: str = "auto",
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
) -> Problem:
    """Find target, environments and inputs in a table.

    Args:
        frame: the table.
        target: name of the column to predict.
        env: name of the column that says which environment a row belongs to.
        test_env: environments that no choice may look at.
        task: classification, regression, or auto: text and booleans are classes, and so are up to ten
            different whole numbers.
        drop: names of columns that are no inputs.
        categorical: names of number columns whose values are codes.

    Returns:
        The problem.

    Raises:
        SettingError: if a column is missing, a value cannot be used, or there are too few environments, rows
            or classes.
    """
    one_of("task", task, TASKS)
    for role, names in (("target", [target]), ("env", [env]), ("drop", drop), ("categorical", categorical)):
        for name in names:
            if name not in frame.columns:
                one_of(f"column (for `{role}`)", name, map(str, frame.columns[:50]))
    if target == env:
        raise SettingError(f"`target` and `env` are both {target!r}; they must be different columns.")
    if {target, env} & set(drop):
        raise SettingError(
            "`drop` names the target or the environment; both are needed, and neither is an input."
        )
    for name in categorical:
        if name in (target, env, *drop):
            what = "the target" if name == target else "the environment" if name == env else "dropped"
            raise SettingError(
                f"`categorical` {name!r} has no effect: that column is {what}, and no input. Leave it out"
                f"{'; for classes pass `--task classification`' if name == target else ''}."
            )
    names, which = _environments(frame[env], env, test_env)
    y, classes = _target(frame[target], target, task)
    problem = Problem(
        inputs=frame.drop(columns=[target, env, *drop]),
        columns=[],
        y=y,
        classes=classes,
        target=target,
        env=which,
        env_column=env,
        names=names,
        n_train_envs=len(names) - len(set(test_env)),
    )
    _check_labels(problem)
    return _with_columns(problem, categorical)


def environment_names(values: pd.Series) -> NDArray[np.object_]:
    """Name of each row's environment.

    Args:
        values: the environment column, ``(n,)``.

    Returns:
        ``(n,)`` text.

    Raises:
        SettingError: if a value is missing, or there are so many different ones that they are no groups.
    """
    refuse_missing(values, "environment")
    text = as_text(values)
    n_names = len(np.unique(text))
    if n_names > max(2, len(values) // FEWEST_ROWS):
        raise SettingError(
            f"column {values.name!r} has {n_names} different values in {len(values)} rows; an environment is "
            "a group of rows such as a site or a year. Name another column, or group its values."
        )
    return text


def _environments(
    values: pd.Series, env: str, test_env: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    text = environment_names(values)
    found, which, counts = np.unique(text, return_inverse=True, return_counts=True)
    for name in test_env:
        one_of(f"environment in column {env!r}", name, found.tolist())
    train = [name for name in found if name not in test_env]
    if len(train) < 2:
        raise SettingError(
            f"{counted(len(train), 'environment')} left for training in column {env!r} "
            f"({', '.join(train) or 'none'}); invariance needs two or more."
        )
    small = int(counts.argmin())
    if counts[small] < FEWEST_ROWS:
        raise SettingError(
            f"environment {found[small]!r} has {counted(counts[small], 'row')}; each needs "
            f"{FEWEST_ROWS} or more. Merge it with another, or remove its rows."
        )
    names = (*train, *(name for name in found if name in test_env))
    place = {name: at for at, name in enumerate(names)}
    return names, np.array([place[name] for name in found], dtype=np.int64)[which]


def _target(values: pd.Series, target: str, task: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    from pandas.api import types

    refuse_missing(values, "target")
    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    if task == "auto":
        few = numeric and values.nunique() <= 10 and bool((values % 1 == 0).all())
        task = "classification" if few or not numeric else "regression"
    if task == "regression":
        if not numeric:
            shown = values.iloc[0]
            raise SettingError(
                f"`task` regression needs a target of numbers; column {target!r} holds "
                f"{type(shown).__name__} such as {str(shown)[:40]!r}."
            )
        y = as_numbers(target, values)
        if np.ptp(y) == 0:
            raise SettingError(
                f"the target {target!r} is {y[0]:g} in every row; there is nothing to predict."
            )
        return y, ()
    labels = values.to_numpy() if numeric or types.is_bool_dtype(values) else as_text(values)
    if numeric:
        as_numbers(target, values)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        raise SettingError(
            f"the target {target!r} is {classes[0]} in every row; there is nothing to predict."
        )
    if len(classes) > MOST_CLASSES:
        raise SettingError(
            f"the target {target!r} has {len(classes)} different values, too many for classes (at most "
            f"{MOST_CLASSES}); name another column, or pass `--task regression` if they are numbers."
        )
    if counts.min() < FEWEST_ROWS:
        raise SettingError(
            f"class {classes[counts.argmin()]} of {target!r} has {counted(counts.min(), 'row')}; each needs "
            f"{FEWEST_ROWS} or more. Merge it with another, or remove its rows."
        )
    return labels, tuple(as_text(classes))


def refuse_missing(values: pd.Series, what: str) -> None:
    """Refuse a column with missing values.

    Args:
        values: the column.
        what: what it is, for the message.

    Raises:
        SettingError: if a value is missing; the message names its row.
    """
    missing = values.isna().to_numpy()
    if missing.any():
        raise SettingError(
            f"the {what} {values.name!r} is missing in data row {int(missing.argmax()) + 1} and "
            f"{int(missing.sum()) - 1} more; fill it in or remove these rows."
        )


def _check_labels(problem: Problem) -> None:
    """Refuse training rows without two classes, or with one target value."""
    seen = np.unique(problem.y[problem.training])
    if len(seen) == 1:
        raise SettingError(
            f"the target {problem.target!r} is {seen[0]} in every training row; there is nothing to learn."
        )
    if problem.classes and len(seen) < len(problem.classes):
        absent = next(label for label in np.unique(problem.y) if label not in seen)
        raise SettingError(
            f"class {absent} of {problem.target!r} has no row in the training environments; it could never "
            "be predicted. Remove its rows, or choose another `test_env`."
        )


def _with_columns(problem: Problem, categorical: Sequence[str]) -> Problem:
    """The problem with the kinds of its inputs, which hold for test rows too."""
    inputs = problem.inputs.astype(dict.fromkeys(categorical, "category"))
    infer_columns(inputs)  # a strange value is told by its row in the whole table
    columns = infer_columns(inputs.iloc[problem.training])
    if not any(column.used for column in columns):
        notes = "; ".join(f"{column.name!r}: {column.note}" for column in columns)
        raise SettingError(f"no column can be used as input ({notes or 'there is none besides the two'}).")
    return replace(problem, inputs=inputs, columns=columns)
