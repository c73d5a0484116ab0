"""Columns as inputs of a network: scikit-learn's preprocessing, fitted on training rows, kept as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sparseirm.core import SettingError
from sparseirm.table.columns import NUMBERS, Column, as_codes

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 1 << 16
"""Rows transformed at a time."""

MOST_INPUTS = 1 << 30
"""Rows times inputs that are held in memory at most, four bytes each."""


@dataclass(frozen=True)
class Encoding:
    """How rows become inputs.

    A number becomes its standardised value, 0 where missing, and if it was ever missing in training an
    indicator of that. A category becomes one indicator per level; all are 0 for a value without a level.

    Attributes:
        columns: every column the model was fitted with, those left out included.
        transformer: the fitted preprocessing of the `values` of the columns in use.

    Example:
        >>> import pandas as pd
        >>> from sparseirm.table.columns import infer_columns
        >>> frame = pd.DataFrame({"age": [30.0, None, 50.0], "city": ["Ulm", "Bonn", "Ulm"]})
        >>> encoding = Encoding.fitted(infer_columns(frame), values(infer_columns(frame), frame))
        >>> encoding.blocks, encoding.inputs(frame)[0].round(2).tolist()
        ((2, 2), [-1.0, 0.0, 1.0, 0.0])
    """

    columns: tuple[Column, ...]
    transformer: ColumnTransformer

    @staticmethod
    def fitted(columns: list[Column], values: NDArray[np.float64]) -> Encoding:
        """Fit the preprocessing of ``values`` (see `values`), one row per training row.

        Args:
            columns: every column of the table.
            values: ``(n, n_used)``, the values of those in use.

        Returns:
            The encoding.

        Raises:
            SettingError: if no column is in use.
        """
        used = [column for column in columns if column.used]
        if not used:
            notes = "; ".join(f"{column.name!r}: {column.note}" for column in columns)
            raise SettingError(f"no column can be used as input ({notes or 'there is none'}).")
        return Encoding(tuple(columns), _transformer(used).fit(values))

    @property
    def used(self) -> list[Column]:
        """The columns in use."""
        return [column for column in self.columns if column.used]

    @property
    def blocks(self) -> tuple[int, ...]:
        """How many inputs each column in use becomes; they lie next to each other."""
        places = self.transformer.output_indices_
        return tuple(places[str(at)].stop - places[str(at)].start for at in range(len(self.used)))

    def inputs(self, frame: pd.DataFrame | NDArray[np.float64]) -> NDArray[np.float32]:
        """The inputs of the network.

        Args:
            frame: rows with the columns of the training rows, as a frame or as `values`.

        Returns:
            ``(n, n_inputs)``, float32.

        Raises:
            SettingError: if a column in use is missing, a value does not fit the kind of its column, or the
                inputs would be too many for the memory.
        """
        given = frame if isinstance(frame, np.ndarray) else values(self.columns, frame)
        width = sum(self.blocks)
        if len(given) * width > MOST_INPUTS:
            raise SettingError(
                f"{len(given)} rows of {width} inputs do not fit into memory; leave out columns with many "
                "categories, or take fewer rows."
            )
        out = np.empty((len(given), width), dtype=np.float32)
        for at in range(0, len(given), CHUNK):
            out[at : at + CHUNK] = self.transformer.transform(given[at : at + CHUNK])
        return out

    def to_json(self) -> dict[str, Any]:
        """The fitted state as plain data."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "scaling": [_state(pipeline) for pipeline in self._pipelines()],
        }

    @staticmethod
    def from_json(payload: dict[str, Any]) -> Encoding:
        """The encoding of `to_json`; it gives the same inputs to the last bit."""
        columns = [Column(**{**column, "levels": tuple(column["levels"])}) for column in payload["columns"]]
        scaling = payload["scaling"]
        missing = [np.nan if state.get("indicator") else 0.0 for state in scaling]
        encoding = Encoding.fitted(columns, np.array([[0.0] * len(scaling), missing]))
        for pipeline, state in zip(encoding._pipelines(), scaling, strict=True):
            if state:
                scaler = pipeline.named_steps["standardscaler"]
                scaler.mean_, scaler.scale_ = np.array([state["mean"]]), np.array([state["scale"]])
        return encoding

    def _pipelines(self) -> list[Pipeline]:
        return [self.transformer.named_transformers_[str(at)] for at in range(len(self.used))]


def values(columns: list[Column] | tuple[Column, ...], frame: pd.DataFrame) -> NDArray[np.float64]:
    """The columns in use as numbers: numbers and days as they are, categories as places in their levels.

    Args:
        columns: the columns.
        frame: rows.

    Returns:
        ``(n, n_used)``, NaN where a number is missing.

    Raises:
        SettingError: if a column in use is missing, or a value does not fit the kind of its column.
    """
    used = [column for column in columns if column.used]
    absent = [column.name for column in used if column.name not in frame.columns]
    if absent:
        raise SettingError(f"the table has no column {absent[0]!r}, which was there in training.")
    found = [
        NUMBERS[column.kind](column.name, frame[column.name])
        if column.kind in NUMBERS
        else as_codes(column, frame[column.name])
        for column in used
    ]
    return np.stack(found, axis=1) if found else np.empty((len(frame), 0))


def _transformer(used: list[Column]) -> ColumnTransformer:
    """One pipeline per column, named by its place, so that the inputs of a column lie together."""

    def pipeline(column: Column) -> Pipeline:
        if column.kind in NUMBERS:
            imputer = SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True)
            return make_pipeline(StandardScaler(), imputer)
        places = [np.arange(len(column.levels), dtype=np.float64)]
        one_hot = OneHotEncoder(categories=places, handle_unknown="ignore", sparse_output=False)
        return make_pipeline(one_hot)

    return ColumnTransformer([(str(at), pipeline(column), [at]) for at, column in enumerate(used)])


def _state(pipeline: Pipeline) -> dict[str, Any]:
    """What a pipeline of a number learned; nothing for a category, whose levels say it all."""
    if "standardscaler" not in pipeline.named_steps:
        return {}
    scaler, imputer = pipeline.named_steps.values()
    indicator = len(imputer.indicator_.features_) > 0
    return {"mean": float(scaler.mean_[0]), "scale": float(scaler.scale_[0]), "indicator": indicator}
