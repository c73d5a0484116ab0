"""Names to things: explicit tables, entry points of other packages, and a helpful error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import TypeVar, cast

from sparseirm.core import SettingError

T = TypeVar("T")


def one_of(kind: str, name: str, known: Iterable[str]) -> str:
    """``name`` itself if it is known.

    Args:
        kind: what the name is of, for the message.
        name: the name asked for.
        known: all names there are.

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
    raise SettingError(f"no {kind} is named {name!r}.{hint} Known: {', '.join(known)}.")


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
    outside = {point.name: point for point in entry_points(group=f"sparseirm.{kind}")}
    if name not in table and name in outside:
        return cast(T, outside[name].load())
    return table[one_of(kind, name, [*table, *outside])]
