"""scikit-learn estimators: ``fit(X, y, env)`` with any method, penalty and sparsifier of the package."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import assert_all_finite, check_array, check_consistent_length
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from sparseirm.core import Loss, NonFiniteError, SettingError, Tensors
from sparseirm.files import plain, read_json, read_tensors, write_json, write_tensors
from sparseirm.losses import BINARY, MULTICLASS, SQUARED
from sparseirm.registry import one_of
from sparseirm.table.columns import Column, infer_columns
from sparseirm.table.design import FULL_BATCH, Design
from sparseirm.table.encoding import Encoding, values
from sparseirm.table.fitting import Rows, fit_rows
from sparseirm.table.given import (
    check_size,
    class_weights,
    dense,
    environments,
    is_frame,
    row_weights,
    seed_from,
    with_text_names,
)
from sparseirm.training.loop import Record

SETTINGS, MODEL = "estimator.json", "estimator.safetensors"

ALONE = (
    "method {!r} compares environments, but there is only one: its penalty cannot act, and no column is left "
    "out unless `density` or `budget` says so. Pass `env`, with one value per row."
)


class EnvironmentWarning(UserWarning):
    """A method that compares environments was given only one."""


class _SparseIRM(BaseEstimator, ABC):  # type: ignore[misc]
    """What classifier and regressor have in common: everything but the target."""

    on_step: Callable[[Record, int], None] | None = None

    def __init__(
        self,
        method: str = "sparseirm",
        *,
        penalty: str | None = None,
        penalty_options: dict[str, Any] | None = None,
        penalty_weight: float | None = None,
        penalty_from: float | None = None,
        gates: str | None = None,
        sparsifier: str | None = None,
        sparsifier_options: dict[str, Any] | None = None,
        density: float | None = None,
        budget: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        l2: float | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.method = method
        self.penalty = penalty
        self.penalty_options = penalty_options
        self.penalty_weight = penalty_weight
        self.penalty_from = penalty_from
        self.gates = gates
        self.sparsifier = sparsifier
        self.sparsifier_options = sparsifier_options
        self.density = density
        self.budget = budget
        self.width = width
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.l2 = l2
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        return tags

    @property
    def design(self) -> Design:
        """The parameters, checked.

        Raises:
            SettingError: if a value is unknown or out of range, or an option would have no effect.
        """
        return Design(**{f.name: getattr(self, f.name) for f in fields(Design)})

    def fit(
        self, X: Any, y: ArrayLike, env: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train on rows of several environments.

        Args:
            X: ``(n, n_columns)`` numbers as an array or sparse matrix, or a pandas frame with numbers, text,
                dates and missing values.
            y: ``(n,)`` labels of a classifier, numbers of a regressor.
            env: ``(n,)`` environment of each row: site, year, batch ...; None if there is only one.
            sample_weight: ``(n,)`` weights that compare rows of one environment; environments count alike.

        Returns:
            The estimator.

        Raises:
            ValueError: if the data or a parameter cannot be used; the message says what to do.
        """
        design, seed = self.design, seed_from(self.random_state)
        numbers, columns, y = self._training_table(X, y)
        codes = self._codes(y)
        weight = row_weights(sample_weight, len(codes))
        names, which = environments(env, len(codes))
        used = weight > 0
        rows = Rows(numbers[used], codes[used], which[used], weight[used])
        if len(rows) <= FULL_BATCH:
            rows = rows.distinct()
        present, place = np.unique(rows.env, return_inverse=True)
        rows = self._prepared(replace(rows, env=place.astype(np.int64)))
        if design.kind.invariant and len(present) == 1:
            warnings.warn(ALONE.format(self.method), EnvironmentWarning, stacklevel=2)
        self.environments_ = [names[e] for e in present]
        self.encoding_ = Encoding.fitted(columns, rows.values)
        watch = self.on_step or (lambda record, steps: None)
        try:
            fitted = fit_rows(design, self.encoding_, rows, self.loss, self._n_outputs, seed, watch)
        except NonFiniteError as error:
            raise SettingError(str(error)) from None
        self.fitted_, self.module_, self.n_iter_ = fitted, fitted.module, fitted.steps
        return self

    def _training_table(self, X: Any, y: Any) -> tuple[NDArray[np.float64], list[Column], NDArray[Any]]:
        """The rows as `values`, their columns, and the target as a vector."""
        if not is_frame(X):
            found, y = validate_data(
                self, X, y, accept_sparse=True, dtype=np.float64, ensure_all_finite="allow-nan"
            )
            names = getattr(self, "feature_names_in_", [f"x{at}" for at in range(found.shape[1])])
            return dense(found), [Column(str(name), "number") for name in names], y
        frame = with_text_names(X)
        validate_data(self, X, y, skip_check_array=True)
        if 0 in X.shape:
            check_array(np.empty(X.shape))
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_consistent_length(X, y)
        check_size(X.shape)
        columns = infer_columns(frame)
        return values(columns, frame), columns, y

    def _logits(self, X: Any) -> NDArray[np.float64]:
        """Logits or standardised predictions of new rows, ``(n,)`` or ``(n, n_classes)``."""
        check_is_fitted(self, "module_")
        if is_frame(X):
            frame = with_text_names(X)
            validate_data(self, X, reset=False, skip_check_array=True)
            inputs = self.encoding_.inputs(frame)
        else:
            found = validate_data(
                self, X, reset=False, accept_sparse=True, dtype=np.float64, ensure_all_finite="allow-nan"
            )
            inputs = self.encoding_.inputs(dense(found))
        return cast(NDArray[np.float64], self.logits_of(torch.from_numpy(inputs)).numpy())

    @torch.no_grad()
    def logits_of(self, inputs: Tensor) -> Tensor:
        """Logits, or standardised predictions, of encoded rows.

        Args:
            inputs: ``(n, n_inputs)`` from ``encoding_.inputs``.

        Returns:
            float64, ``(n,)`` for two classes and regression, ``(n, n_classes)`` for more classes.
        """
        out = torch.cat([self.module_(piece.double()) for piece in torch.split(inputs, FULL_BATCH)])
        return out[:, 0] if out.shape[1] == 1 else out

    @property
    def columns_(self) -> list[str]:
        """Names of the input columns, in the order of `column_weights_`."""
        return [column.name for column in self.encoding_.used]

    @property
    def column_weights_(self) -> NDArray[np.float64]:
        """Share of the surviving weight of the first layer, by absolute value, that each column holds."""
        first = next(self.module_.parameters()).detach().abs().sum(0)
        mass = torch.stack([piece.sum() for piece in torch.split(first, list(self.encoding_.blocks))])
        return cast(NDArray[np.float64], (mass / mass.sum().clamp_min(1e-300)).numpy())

    def save(self, folder: Path | str) -> None:
        """Write the fitted estimator as JSON and safetensors, without pickle.

        Args:
            folder: where ``estimator.json`` and ``estimator.safetensors`` go; made if it is missing.

        Raises:
            SettingError: if a parameter cannot be written as JSON.
        """
        payload = as_saved(self)
        try:
            write_tensors(Path(folder) / MODEL, dict(self.module_.state_dict()), {"class": payload["class"]})
            write_json(Path(folder) / SETTINGS, payload)
        except (TypeError, ValueError) as error:
            raise SettingError(f"this estimator cannot be written as JSON: {error}.") from None

    loss: Loss
    _n_outputs: int = 1

    @abstractmethod
    def _codes(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """The target as the network is trained on it, ``(n,)``."""

    @abstractmethod
    def _prepared(self, rows: Rows) -> Rows:
        """The rows of this kind of target, checked, weighted or scaled."""


class SparseIRMClassifier(ClassifierMixin, _SparseIRM):  # type: ignore[misc]
    """Classifier that keeps working in new environments: a small network, an invariance penalty, few columns.

    Args:
        method: sparseirm; or irm, bayesianirm, sparseerm, erm.
        penalty: rex by default; all others are those of `sparseirm.penalties`.
        penalty_options: further settings of the penalty, by name.
        penalty_weight: lambda, weight of the penalty.
        penalty_from: fraction of the run before which the penalty has no weight.
        gates: what a sparse method switches off: columns that a ``search`` (default) or ``screen`` before
            training leaves out, or ``columns`` or single ``weights`` during training.
        sparsifier: how the mask is found in training; without effect on a search.
        sparsifier_options: further settings of the sparsifier, by name.
        density: fraction of the columns (or weights) kept.
        budget: number of columns (or weights) kept, instead of `density`; a search keeps at most so many,
            and without either as many as it finds best.
        width: hidden units of each of the two hidden layers.
        steps: optimiser steps.
        batch_size: rows per step.
        lr: learning rate.
        l2: weight of the sum of squared parameters in the loss.
        class_weight: weight by class, or ``balanced``; it acts within each environment.
        random_state: seed of initial weights and batches.

    Defaults that depend on the table's size are told in `sparseirm.table.design.Design`.

    Attributes:
        classes_: the labels.
        environments_: names of the training environments.
        columns_: names of the input columns.
        column_weights_: share of the surviving first-layer weight of each column, 0 for one that was dropped.
        fitted_: the network, its budget and what the monitor noted, see `sparseirm.table.fitting.Fitted`.
        n_iter_: optimiser steps taken.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> env, y = np.repeat(["a", "b", "c"], 100), rng.integers(2, size=300)
        >>> noise = np.select([env == "a", env == "b"], [0.2, 1.0], 3.0)[:, None]
        >>> X = np.hstack([y, y])[:, None].reshape(2, -1).T - 0.5 + rng.normal(size=(300, 2)) * [[1.0, 0.0]]
        >>> X[:, 1:] += noise * rng.normal(size=(300, 1))
        >>> model = SparseIRMClassifier(budget=1).fit(X, y, env=env)
        >>> model.column_weights_.round(2).tolist()
        [1.0, 0.0]
    """

    def __init__(
        self,
        method: str = "sparseirm",
        *,
        penalty: str | None = None,
        penalty_options: dict[str, Any] | None = None,
        penalty_weight: float | None = None,
        penalty_from: float | None = None,
        gates: str | None = None,
        sparsifier: str | None = None,
        sparsifier_options: dict[str, Any] | None = None,
        density: float | None = None,
        budget: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        l2: float | None = None,
        class_weight: dict[Any, float] | str | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        super().__init__(
            method,
            penalty=penalty,
            penalty_options=penalty_options,
            penalty_weight=penalty_weight,
            penalty_from=penalty_from,
            gates=gates,
            sparsifier=sparsifier,
            sparsifier_options=sparsifier_options,
            density=density,
            budget=budget,
            width=width,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            l2=l2,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probability of each class.

        Args:
            X: rows with the columns of the training rows.

        Returns:
            ``(n, n_classes)``, in the order of ``classes_``.
        """
        logits = torch.from_numpy(self._logits(X))
        if logits.ndim == 1:
            logits = torch.stack([torch.zeros_like(logits), logits], dim=1)
        return cast(NDArray[np.float64], logits.softmax(1).numpy())

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable class.

        Args:
            X: rows with the columns of the training rows.

        Returns:
            ``(n,)`` labels, of the kind that were given in training.
        """
        places = self.predict_proba(X).argmax(1)
        return cast(NDArray[Any], self.classes_[places])

    @property
    def loss(self) -> Loss:  # type: ignore[override]
        """The loss per row: cross-entropy, in nats."""
        return BINARY if len(self.classes_) == 2 else MULTICLASS

    @property
    def _n_outputs(self) -> int:  # type: ignore[override]
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _codes(self, y: NDArray[Any]) -> NDArray[np.float64]:
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        return cast(NDArray[np.float64], codes.astype(np.float64))

    def _prepared(self, rows: Rows) -> Rows:
        present = np.unique(rows.y)
        if len(present) < 2:
            raise SettingError(
                "a classifier needs rows of at least 2 classes; all rows are of 1 class, "
                f"{self.classes_[int(present[0])]!r}."
            )
        return replace(rows, weight=rows.weight * class_weights(self.class_weight, self.classes_, rows))


class SparseIRMRegressor(RegressorMixin, _SparseIRM):  # type: ignore[misc]
    """Regressor that keeps working in new environments: a small network, an invariance penalty, few columns.

    Targets are standardised for training, so the penalty weight does not depend on their unit. Parameters and
    attributes are those of `SparseIRMClassifier`, without ``class_weight`` and ``classes_``.

    Example:
        >>> from sparseirm.data.synthetic import LinearSEM
        >>> sem = LinearSEM(d_inv=2, d_s=4, d_r=2, alpha=((0.2,), (1.0,), (3.0,)))
        >>> rows = sem.draw((200, 200, 200), seed=0)
        >>> model = SparseIRMRegressor(budget=2).fit(rows.x.numpy(), rows.y.numpy(), env=rows.env.numpy())
        >>> model.column_weights_.nonzero()[0].tolist()
        [0, 1]
    """

    loss = SQUARED

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Predicted targets.

        Args:
            X: rows with the columns of the training rows.

        Returns:
            ``(n,)``, in the unit of the training targets.
        """
        return self._logits(X) * self.target_scale_ + self.target_mean_

    def _codes(self, y: NDArray[Any]) -> NDArray[np.float64]:
        return check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")  # type: ignore[no-any-return]

    def _prepared(self, rows: Rows) -> Rows:
        self.target_mean_ = float(np.average(rows.y, weights=rows.weight))
        spread = float(np.sqrt(np.average((rows.y - self.target_mean_) ** 2, weights=rows.weight)))
        self.target_scale_ = spread if spread > 0 else 1.0
        return replace(rows, y=(rows.y - self.target_mean_) / self.target_scale_)


SAVED = (
    *("classes_", "environments_", "feature_names_in_", "n_features_in_", "n_iter_"),
    *("target_mean_", "target_scale_"),
)
"""Fitted attributes that `save` writes besides encoding and network."""


Estimator = SparseIRMClassifier | SparseIRMRegressor


def as_saved(estimator: _SparseIRM) -> dict[str, Any]:
    """Everything of a fitted estimator but the weights of its network, as plain data.

    Args:
        estimator: the estimator.

    Returns:
        What ``estimator.json`` holds.

    Raises:
        SettingError: if its seed is a generator.
    """
    check_is_fitted(estimator, "module_")
    if not isinstance(estimator.random_state, (int, np.integer, type(None))):
        raise SettingError("only an integer `random_state` can be saved; got a generator.")
    parameters = estimator.get_params(deep=False)
    if isinstance(parameters.get("class_weight"), dict):  # JSON has text keys only
        parameters["class_weight"] = list(parameters["class_weight"].items())
    return {
        "class": type(estimator).__name__,
        "parameters": plain(parameters),
        "fitted": plain({name: getattr(estimator, name) for name in SAVED if hasattr(estimator, name)}),
        "encoding": estimator.encoding_.to_json(),
        "width": len(next(estimator.module_.parameters())),
    }


def load(folder: Path | str) -> Estimator:
    """Read an estimator that was saved.

    Args:
        folder: where `SparseIRMClassifier.save` wrote.

    Returns:
        An estimator of the class that was saved. It predicts the same to the last bit; what training left
        behind besides (``fitted_``) is not saved.

    Raises:
        SettingError: if the folder holds no estimator, or a damaged one.
    """
    place = Path(folder)
    if not (place / SETTINGS).is_file() or not (place / MODEL).is_file():
        raise SettingError(f"{folder} holds no saved estimator: {SETTINGS} and {MODEL} are not both there.")
    return restored(read_json(place / SETTINGS), read_tensors(place / MODEL)[0], folder)


def restored(payload: dict[str, Any], tensors: Tensors, source: Path | str) -> Estimator:
    """The estimator of `as_saved` and the weights of its network.

    Args:
        payload: what `as_saved` gave.
        tensors: the weights by name.
        source: where they are from, for messages.

    Returns:
        The estimator.

    Raises:
        SettingError: if they are not those of an estimator of this version.
    """
    try:
        return _restored(payload, tensors)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise SettingError(f"{source} holds no estimator of this version: {error}.") from None


def _restored(payload: dict[str, Any], tensors: Tensors) -> Estimator:
    kinds: dict[str, type[SparseIRMClassifier | SparseIRMRegressor]] = {
        kind.__name__: kind for kind in (SparseIRMClassifier, SparseIRMRegressor)
    }
    parameters = payload["parameters"]
    if isinstance(parameters.get("class_weight"), list):
        parameters["class_weight"] = dict(parameters["class_weight"])
    estimator = kinds[one_of("estimator", payload["class"], kinds)](**parameters)
    for name, value in payload["fitted"].items():
        one_of("fitted attribute", name, SAVED)
        kept = np.array(value, dtype=object if name == "feature_names_in_" else None)
        setattr(estimator, name, kept if name in ("classes_", "feature_names_in_") else value)
    estimator.encoding_ = Encoding.from_json(payload["encoding"])
    n_inputs = sum(estimator.encoding_.blocks)
    module = estimator.design.module(n_inputs, payload["width"], estimator._n_outputs)
    module.double().load_state_dict(tensors)
    estimator.module_ = module.eval()
    return estimator
