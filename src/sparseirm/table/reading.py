"""CSV and Parquet files as pandas frames, or one line that says what is wrong with the file."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparseirm.core import SettingError, first_line
from sparseirm.registry import one_of
from sparseirm.table.columns import holds_words

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 2000
"""Columns up to which a table is read; more are features of something else, such as pixels or genes."""

CSV_ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
PARQUET_ENDINGS = (".parquet", ".pq")


def read_table(path: Path | str, encoding: str = "utf-8", decimal: str = ".") -> pd.DataFrame:
    """A CSV or Parquet file as a frame, with columns named by text.

    Args:
        path: a file ending in .csv, .tsv (also with .gz), .txt, .parquet or .pq. Text files have a line
            of names first; their separator (comma, semicolon, tab or bar) is found out.
        encoding: how a text file is encoded.
        decimal: the decimal sign of a text file, a point or a comma.

    Returns:
        The table, its text without blanks around it. Among words only the empty cell is missing, among
        numbers and dates NA, NaN, null and the like are, too. A first column without a name that counts the
        rows is an index written by pandas, and is left out.

    Raises:
        SettingError: if the file cannot be read as a table, with the line or column that is to blame.
    """
    path = Path(path)
    one_of("decimal sign", decimal, (".", ","))
    if path.is_dir():
        raise SettingError(f"{path} is a folder; name a CSV or Parquet file in it.")
    if not path.exists():
        raise SettingError(f"there is no file {path}.")
    if path.stat().st_size == 0:
        raise SettingError(f"{path} is empty.")
    name = path.name.lower()
    if name.endswith(PARQUET_ENDINGS):
        frame = _read_parquet(path)
    elif name.endswith(CSV_ENDINGS):
        frame = _read_text(path, encoding, decimal)
    else:
        raise SettingError(
            f"{path} is none of {', '.join((*CSV_ENDINGS, *PARQUET_ENDINGS))}; save it as CSV or Parquet."
        )
    return _stripped(_checked(frame, path))


def need_pandas() -> Any:
    """The pandas module.

    Returns:
        The module, imported.

    Raises:
        SettingError: if it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise SettingError(
            'tables need pandas, which is not installed: pip install "sparseirm[table]".'
        ) from None
    return pandas


def _read_parquet(path: Path) -> pd.DataFrame:
    pandas = need_pandas()
    try:
        from pyarrow import parquet

        names = parquet.read_schema(path).names
    except ImportError:
        raise SettingError(
            'Parquet files need pyarrow, which is not installed: pip install "sparseirm[table]".'
        ) from None
    except Exception as error:  # pyarrow raises errors of many kinds for damaged files
        raise SettingError(f"{path} is not a readable Parquet file: {first_line(error)}.") from None
    _check_names(path, names)
    try:
        return _as_frame(pandas.read_parquet(path))
    except Exception as error:
        raise SettingError(f"{path} is not a readable Parquet file: {first_line(error)}.") from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise SettingError(f"{path} has more than one column named {repeated[0]!r}; rename them.")
    if len(names) > MOST_COLUMNS:
        raise SettingError(
            f"{path} has {len(names)} columns; at most {MOST_COLUMNS} can be used. Keep those that matter."
        )


def _read_text(path: Path, encoding: str, decimal: str) -> pd.DataFrame:
    pandas = need_pandas()
    separator, names = _header(path, encoding)
    _check_names(path, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            read = partial(
                pandas.read_csv,
                path,
                sep=separator,
                encoding=encoding,
                low_memory=False,
                index_col=False,
                skipinitialspace=True,
            )
            frame = read(decimal=decimal)
            words = [at for at in range(frame.shape[1]) if _hides_words(frame.iloc[:, at])]
            if words:  # once more, since None and NA among words are words
                exact = read(usecols=words, dtype=str, keep_default_na=False, na_values=[""])
                for at, name in zip(words, exact.columns, strict=True):
                    frame.isetitem(at, exact[name])
    except UnicodeError as error:
        raise SettingError(_undecodable(path, encoding, error)) from None
    except (pandas.errors.ParserWarning, ValueError, EOFError, OSError, OverflowError) as error:
        raise SettingError(f"{path} is not a readable table: {first_line(error)}.") from None
    frame.columns = [*names, *map(str, frame.columns[len(names) :])]
    return _as_frame(frame)


def _hides_words(values: pd.Series) -> bool:
    """Whether values of a column that count as missing could be words."""
    return bool(values.isna().any()) and holds_words(values)


def _header(path: Path, encoding: str) -> tuple[str, list[str]]:
    """Separator and names: the separator that the first lines hold in equal numbers, most of them."""
    try:
        with _opened(path, encoding) as file:
            lines = list(itertools.islice(file, 20))
    except LookupError:
        raise SettingError(f"`encoding` {encoding!r} is not known; utf-8 and latin-1 are usual.") from None
    except (UnicodeError, OSError, EOFError) as error:
        raise SettingError(_undecodable(path, encoding, error)) from None
    text = "".join(lines)
    if "\0" in text:
        raise SettingError(f"{path} is not a text file: it holds zero bytes. Save it as CSV in UTF-8.")
    if not text.strip():
        raise SettingError(f"{path} is empty.")

    def plausible(separator: str) -> tuple[int, int]:
        widths = [len(row) for row in csv.reader(lines[:-1] or lines, delimiter=separator) if row]
        return widths.count(widths[0]) if widths and widths[0] > 1 else 0, widths[0] if widths else 0

    try:
        separator = max((",", ";", "\t", "|"), key=plausible)
        names = next((row for row in csv.reader(lines, delimiter=separator) if any(row)), [])
    except csv.Error as error:
        raise SettingError(f"{path} is not a readable table: {error}.") from None
    if not names:
        raise SettingError(f"{path} names no column in its first line.")
    return separator, [name.strip().lstrip("\ufeff") for name in names]


def _opened(path: Path, encoding: str) -> Any:
    import gzip

    open_: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    return open_(path, "rt", encoding=encoding, newline="")


def _checked(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    _check_names(path, list(frame.columns))
    if len(frame) == 0:
        raise SettingError(f"{path} has names but no rows.")
    if frame.columns[0] == "" and _counts_rows(frame.iloc[:, 0]):
        frame = frame.iloc[:, 1:]
    blank = [at for at, name in enumerate(frame.columns, start=1) if not name]
    if blank:
        raise SettingError(f"column {blank[0]} of {path} has no name; give every column one.")
    return frame


def _stripped(frame: pd.DataFrame) -> pd.DataFrame:
    """Text without blanks around it; what is left empty is missing."""
    for at in range(frame.shape[1]):
        if frame.dtypes.iloc[at].kind == "O":
            values = frame.iloc[:, at].astype(object)
            if values.map(_has_blanks).any():
                frame.isetitem(at, values.map(_without_blanks))
    return frame


def _has_blanks(value: Any) -> bool:
    return isinstance(value, str) and value != value.strip()


def _without_blanks(value: Any) -> Any:
    return value.strip() or None if isinstance(value, str) else value


def _counts_rows(values: pd.Series) -> bool:
    first = values.iloc[0]
    return values.dtype.kind in "iu" and bool(
        (values.to_numpy() == np.arange(first, first + len(values))).all()
    )


def _as_frame(frame: pd.DataFrame) -> pd.DataFrame:
    frame.columns = [str(name) for name in frame.columns]
    return frame.reset_index(drop=True)


def _undecodable(path: Path, encoding: str, error: Exception) -> str:
    if not isinstance(error, UnicodeError):
        return f"{path} cannot be read: {first_line(error)}."
    return (
        f"{path} is not encoded in {encoding} ({first_line(error)}). Save it as UTF-8, or name its encoding, "
        "such as `--encoding latin-1`."
    )
