"""What callers hand to `fit` beside their parameters: rows, environments, weights and seeds, checked."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array, check_random_state

from sparseirm.core import SettingError
from sparseirm.table.columns import text_of
from sparseirm.table.fitting import Rows

MOST_CELLS = 1 << 29
"""Rows times columns up to which a table is made dense."""


def is_frame(X: Any) -> bool:
    """Whether rows come as a frame such as pandas', with named columns of several types."""
    return hasattr(X, "columns") and hasattr(X, "iloc")


def with_text_names(frame: Any) -> Any:
    """The frame with columns named by text, each once, which not every scikit-learn sees to."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingError(f"X has more than one column named {twice!r}; rename them.")
    return frame.set_axis(names, axis=1)


def dense(found: Any) -> NDArray[np.float64]:
    """Numbers as an array, whether they came as one or as a sparse matrix; infinity is refused."""
    check_size(found.shape)
    numbers = np.ascontiguousarray(found.toarray() if sparse.issparse(found) else found)
    if np.isinf(numbers).any():
        row, column = np.argwhere(np.isinf(numbers))[0]
        raise SettingError(
            f"X holds infinity (inf) in row {row}, column {column}; NaN would count as missing."
        )
    return cast(NDArray[np.float64], numbers)


def check_size(shape: tuple[int, int]) -> None:
    """Refuse a table of more than `MOST_CELLS` values."""
    if shape[0] * shape[1] > MOST_CELLS:
        raise SettingError(
            f"a table of {shape[0]} x {shape[1]} is too large: at most {MOST_CELLS} values can be held in "
            "memory. Select columns or rows before fitting."
        )


def seed_from(random_state: Any) -> int:
    """A seed from what scikit-learn takes as ``random_state``."""
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def row_weights(sample_weight: Any, n: int) -> NDArray[np.float64]:
    """A weight for each of ``n`` rows, not negative and not all zero; 1 if none are given."""
    if sample_weight is None:
        return np.ones(n)
    weight = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weight.shape != (n,):
        raise SettingError(
            f"`sample_weight` must have one value for each of the {n} rows; got shape {weight.shape}."
        )
    if (weight < 0).any():
        row = int((weight < 0).argmax())
        raise SettingError(f"`sample_weight` must be 0 or more; got {weight[row]:g} in row {row}.")
    if not (weight > 0).any():
        raise SettingError("every `sample_weight` is zero; there is nothing to learn from.")
    return cast(NDArray[np.float64], weight)


def environments(env: Any, n: int) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the environments, and the number of each row's, ``(n,)``; one for all if none are given."""
    if env is None:
        return ["all"], np.zeros(n, dtype=np.int64)
    given = np.asarray(env)
    if given.shape != (n,):
        raise SettingError(f"`env` must have one value for each of the {n} rows; got shape {given.shape}.")
    missing = np.array([value is None or value != value for value in given])
    if missing.any():
        raise SettingError(
            f"`env` is missing in row {int(missing.argmax())}; every row belongs to an environment."
        )
    names, which = np.unique([text_of(value) for value in given.tolist()], return_inverse=True)
    return names.tolist(), which.astype(np.int64)


def class_weights(wanted: Any, classes: NDArray[Any], rows: Rows) -> NDArray[np.float64]:
    """Weight of each row for its class, ``(n,)``, as scikit-learn's ``class_weight`` asks."""
    if wanted is None:
        return np.ones(len(rows))
    codes = rows.y.astype(int)
    if wanted == "balanced":
        mass = np.bincount(codes, weights=rows.weight, minlength=len(classes))
        by_class = mass.sum() / np.maximum(mass, 1e-300) / len(classes)
    elif isinstance(wanted, dict):
        unknown = [label for label in wanted if label not in classes]
        if unknown:
            raise SettingError(
                f"`class_weight` names {unknown[0]!r}, which is no label; labels are {classes.tolist()}."
            )
        by_class = np.array([float(wanted.get(label, 1.0)) for label in classes.tolist()])
    else:
        raise SettingError(f"`class_weight` must be a dictionary by label, or 'balanced'; got {wanted!r}.")
    if not (by_class > 0).all():
        raise SettingError(f"`class_weight` must be positive for every label; got {wanted!r}.")
    return cast(NDArray[np.float64], by_class[codes])
