"""What kind of thing each column holds: the one place where kinds are inferred, and values made to fit."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sparseirm.core import SettingError

if TYPE_CHECKING:
    import pandas as pd

MISSING, OTHER = "(missing)", "(other)"
"""Levels that stand for no value, and for all rare values together."""

MOST_LEVELS = 32
"""Levels of a categorical column that get an input of their own; the rest share `OTHER`."""

LEAST_SHARE = 0.01
"""Share of the rows a level needs for an input of its own."""


@dataclass(frozen=True)
class Column:
    """One column of a table, and how it becomes numbers.

    Attributes:
        name: its name.
        kind: ``number``, ``date`` (days since 1970), ``category``, or ``left out``.
        levels: for a category, the values with an input of their own, most frequent first; `OTHER` last if
            rare values share one.
        note: for a column that is left out, why.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    note: str = ""

    @property
    def used(self) -> bool:
        """Whether it is an input of the model."""
        return self.kind != "left out"


def infer_columns(frame: pd.DataFrame) -> list[Column]:
    """The kind of every column, from the values themselves.

    Booleans and numbers are numbers, unless the column is of pandas' type ``category``; text whose values are
    dates is a date; other text is a category. Columns that hold one value, count the rows, or have nearly as
    many different texts as rows, are left out.

    Args:
        frame: the training rows.

    Returns:
        One entry per column, in order.

    Raises:
        SettingError: if a column mixes numbers and text, holds an infinity, an integer too large for a float
            or something that is neither a number nor text, with its name and row.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [30, None, 50], "city": ["Ulm", "Bonn", "Ulm"], "one": [1, 1, 1]})
        >>> [(column.name, column.kind, column.levels) for column in infer_columns(frame)]
        [('age', 'number', ()), ('city', 'category', ('Ulm', 'Bonn')), ('one', 'left out', ())]
    """
    return [_inferred(name, frame[name]) for name in map(str, frame.columns)]


def _inferred(name: str, values: pd.Series) -> Column:
    known = values.dropna()
    if known.empty:
        return Column(name, "left out", note="every value is missing")
    kind = _kind(name, values)
    distinct = int(known.nunique())
    if distinct == 1 and len(known) == len(values):
        return Column(name, "left out", note="every row has the same value")
    if kind == "category":
        if distinct > max(20, len(values) // 2):
            return Column(name, "left out", note=f"free text or an identifier: {distinct} different values")
        return Column(name, kind, _levels(values))
    numbers = known.to_numpy()
    if numbers.dtype.kind in "iu" and len(numbers) > 20 and _consecutive(numbers):
        return Column(name, "left out", note="it numbers the rows")
    return Column(name, kind)


def _kind(name: str, values: pd.Series) -> str:
    import pandas as pd
    from pandas.api import types

    if types.is_complex_dtype(values):
        raise SettingError(f"column {name!r} holds complex numbers; give their parts as columns.")
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "category"
    if types.is_bool_dtype(values) or types.is_numeric_dtype(values):
        as_numbers(name, values)
        return "number"
    if types.is_datetime64_any_dtype(values):
        return "date"
    known = values.dropna().astype(object)
    kinds = {type(value) for value in known}
    if kinds <= {bool, np.bool_}:
        return "category"
    if all(issubclass(kind, datetime.date) for kind in kinds):
        return "date"
    if not all(issubclass(kind, _PLAIN) for kind in kinds):
        odd = next(
            at for at, value in enumerate(values) if not isinstance(value, _PLAIN) and value is not None
        )
        found = type(values.iloc[odd]).__name__
        raise SettingError(
            f"column {name!r} holds {_a(found)} in data row {odd + 1}; use numbers, text or dates."
        )
    text = known.astype(str)
    if _mostly_numbers(text):
        as_numbers(name, values)
        return "number"
    if pd.to_numeric(_with_point(text), errors="coerce").notna().mean() > 0.9:
        raise SettingError(_decimal_comma(name, text.iloc[0]))
    return "date" if _mostly_dates(text) else "category"


def holds_words(values: pd.Series) -> bool:
    """Whether a column holds text that is neither numbers nor dates, or nothing at all.

    >>> import pandas as pd
    >>> holds_words(pd.Series(["yes", None])), holds_words(pd.Series(["1", "x", "2"]))
    (True, False)
    """
    known = values.dropna()
    text = known.astype(str)
    strings = all(isinstance(value, str) for value in known)
    return strings and not _mostly_numbers(text) and not _mostly_dates(text)


def _mostly_numbers(text: pd.Series) -> bool:
    import pandas as pd

    return bool(pd.to_numeric(text, errors="coerce").notna().mean() > 0.5)


def _mostly_dates(text: pd.Series) -> bool:
    return bool(_dates(text.head(1000)).notna().mean() > 0.9)


def _with_point(text: pd.Series) -> pd.Series:
    return text.str.replace(",", ".", regex=False)


def _decimal_comma(name: str, shown: str) -> str:
    return (
        f"column {name!r} seems to hold numbers with a decimal comma, such as {shown!r}; pass `--decimal ,`."
    )


_PLAIN = (str, bool, int, float, decimal.Decimal, np.generic)


def as_numbers(name: str, values: pd.Series) -> NDArray[np.float64]:
    """The values of a number column as floats, NaN where missing.

    Args:
        name: name of the column, for messages.
        values: its values.

    Returns:
        ``(n,)`` float64.

    Raises:
        SettingError: if a value is not a number, is infinite, or is an integer too large for a float.
    """
    import pandas as pd

    if values.dtype.kind == "c":
        values = values.astype(object)
    if values.dtype.kind in "biuf":
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = _without_words_for_missing(values)
        numbers = pd.to_numeric(values.astype(object).map(_plain_number), errors="coerce")
        numbers = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    strange = np.isnan(numbers) & values.notna().to_numpy()
    if strange.any():
        at = int(strange.argmax())
        if np.isfinite(pd.to_numeric(_with_point(values[at : at + 1].astype(str)), errors="coerce").iloc[0]):
            raise SettingError(_decimal_comma(name, str(values.iloc[at])))
        raise SettingError(
            f"column {name!r} holds numbers, but data row {at + 1} has {_shown(values.iloc[at])}. Correct it "
            f"or leave it empty; if its values are names, fit with `--categorical {name}`."
        )
    if np.isinf(numbers).any():
        at = int(np.isinf(numbers).argmax())
        raise SettingError(
            f"column {name!r} has the value {_shown(values.iloc[at])} in data row {at + 1}, which is "
            "infinite or too large for a float. Correct it or leave it empty."
        )
    if np.nanmax(np.abs(numbers), initial=0) > LARGEST:
        at = int(np.nanargmax(np.abs(numbers)))
        raise SettingError(
            f"column {name!r} has the value {_shown(values.iloc[at])} in data row {at + 1}; sums of "
            f"numbers beyond {LARGEST:g} lose all precision. Rescale the column."
        )
    return cast(NDArray[np.float64], numbers)


LARGEST = 1e30
"""Magnitude beyond which numbers are refused: their squares are near the largest float32."""


WORDS_FOR_MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A", "NaT")
"""What stands for a missing number or date; among words they are words."""


def _without_words_for_missing(values: pd.Series) -> pd.Series:
    """Values that are to become numbers or dates."""
    if values.dtype.kind in "biufM":
        return values
    return values.mask(values.map(lambda value: isinstance(value, str) and value in WORDS_FOR_MISSING))


def _plain_number(value: Any) -> Any:
    """Huge integers and decimals as floats, everything else as it is."""
    if isinstance(value, (int, decimal.Decimal)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


def as_days(name: str, values: pd.Series) -> NDArray[np.float64]:
    """The values of a date column as days since 1970, NaN where missing.

    Args:
        name: name of the column, for messages.
        values: its values.

    Returns:
        ``(n,)`` float64.

    Raises:
        SettingError: if a value is no date.
    """
    values = _without_words_for_missing(values)
    dates = _dates(values)
    strange = (dates.isna() & values.notna()).to_numpy()
    if strange.any():
        at = int(strange.argmax())
        raise SettingError(
            f"column {name!r} holds dates, but data row {at + 1} has {_shown(values.iloc[at])}."
        )
    days = dates.dt.tz_localize(None).to_numpy("datetime64[s]")
    return np.where(np.isnat(days), np.nan, days.astype(np.int64) / 86400)


def _dates(values: pd.Series) -> pd.Series:
    import pandas as pd

    if values.dtype == object:  # numbers among dates would be taken for nanoseconds
        values = values.map(str, na_action="ignore")
    return pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)


def as_codes(column: Column, values: pd.Series) -> NDArray[np.float64]:
    """The values of a categorical column as places in its levels.

    Args:
        column: the column, with the levels of the training rows.
        values: values, perhaps of other rows.

    Returns:
        ``(n,)`` float64: the place of each row's level, that of `OTHER` for a rare or new value, and -1 for a
        new value where no level is for others.

    Example:
        >>> import pandas as pd
        >>> as_codes(Column("city", "category", ("Ulm", "Bonn")), pd.Series(["Bonn", "Rome"]))
        array([ 1., -1.])
    """
    place = {level: at for at, level in enumerate(column.levels)}
    shared = place.get(OTHER, -1)
    return np.array([place.get(text, shared) for text in as_text(values)], dtype=np.float64)


def as_text(values: Iterable[Any]) -> NDArray[np.object_]:
    """Values as text, the same for 1, 1.0 and "1"; `MISSING` where there is none."""
    import pandas as pd

    given = pd.Series(values)
    try:
        codes, distinct = pd.factorize(given, use_na_sentinel=True)
    except TypeError:  # lists and the like
        codes, distinct = pd.factorize(given.map(str, na_action="ignore"), use_na_sentinel=True)
    texts = [*map(text_of, distinct), MISSING]
    return cast(NDArray[np.object_], np.array(texts, dtype=object)[codes])


def text_of(value: Any) -> str:
    """One value as text; whole floats like integers.

    >>> text_of(2019.0), text_of("Ulm"), text_of(True)
    ('2019', 'Ulm', 'True')
    """
    if isinstance(value, (float, np.floating)) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def _levels(values: pd.Series) -> tuple[str, ...]:
    found, counts = np.unique(as_text(values), return_counts=True)
    order = sorted(range(len(found)), key=lambda at: (-counts[at], found[at]))
    enough = [at for at in order if counts[at] >= LEAST_SHARE * len(values)][:MOST_LEVELS]
    rest = [OTHER] if len(enough) < len(found) else []
    return (*(str(found[at]) for at in enough), *rest)


def _consecutive(numbers: NDArray[Any]) -> bool:
    return len(np.unique(numbers)) == len(numbers) == int(numbers.max()) - int(numbers.min()) + 1


def _shown(value: Any) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value.item() if isinstance(value, np.generic) else value)
    except ValueError:  # Python refuses to spell integers of more than 4300 digits
        return "an enormous number"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


NUMBERS: dict[str, Callable[[str, pd.Series], NDArray[np.float64]]] = {"number": as_numbers, "date": as_days}
"""Kind to how its values become one number each."""
