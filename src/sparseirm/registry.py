"""Names to things: explicit tables, entry points of other packages, and a helpful error."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast

from sparseirm.core import SettingError

T = TypeVar("T")

LARGEST = sys.float_info.max
"""What numbers from files and command lines may not exceed; neither NaN nor infinity passes a comparison."""


def one_of(kind: str, name: str, known: Iterable[str], listed: str = "") -> str:
    """``name`` itself if it is known.

    Args:
        kind: what the name is of, for the message.
        name: the name asked for.
        known: all names there are.
        listed: words for all of them, where they are too many to be listed.

    Returns:
        ``name``.

    Raises:
        SettingError: with the known names and the nearest one, if it is not.

    Example:
        >>> one_of("penalty", "rexx", ["irmv1", "rex"])
        Traceback (most recent call last):
        ...
        sparseirm.core.SettingError: no penalty is named 'rexx'. Did you mean 'rex'? Known: irmv1, rex.
    """
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if "," in name:
        hint = " Several names are separated by spaces, not commas."
    raise SettingError(f"no {kind} is named {name!r}.{hint} Known: {listed or ', '.join(known)}.")


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """The entry of a family's table, or of an installed package's entry point group ``sparseirm.{kind}``.

    Args:
        kind: the family, as in the entry point group and in the message.
        table: the package's own entries by name; they go before entry points of the same name.
        name: the name asked for.

    Returns:
        The entry, loaded if it comes from an entry point.

    Raises:
        SettingError: if neither knows the name.
    """
    if name in table:
        return table[name]
    outside = {point.name: point for point in entry_points(group=f"sparseirm.{kind}")}
    return cast(T, outside[one_of(kind, name, [*table, *outside])].load())


def options(what: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of something: its own values, and those given in the types of its own.

    Args:
        what: what the options belong to, in words.
        known: its options with their default values.
        given: values by option; a command line may bring 20.0 for 20 and "True" for True.

    Returns:
        Every known option with a value.

    Raises:
        SettingError: if an option is unknown or a value does not fit.

    Example:
        >>> options("penalty 'bayesian'", {"sd": 0.06, "n_draws": 10}, {"n_draws": 20.0, "sd": 1})
        {'sd': 1.0, 'n_draws': 20}
    """
    if given and not known:
        raise SettingError(f"{what} has no options; got {', '.join(map(repr, given))}.")
    filled = dict(known)
    for option, value in given.items():
        default = known[one_of(f"option of {what}", option, known)]
        filled[option] = _fitted(f"`{option}` of {what}", value, default)
    return filled


def _fitted(what: str, value: Any, default: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    if isinstance(default, bool):
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
    elif isinstance(default, float) and number:
        return float(value)
    elif isinstance(default, int) and number and value == int(value):
        return int(value)
    elif isinstance(default, str) and isinstance(value, str):
        return value
    raise SettingError(f"{what} must be of type {type(default).__name__}; got {value!r}.")
