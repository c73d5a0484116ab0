"""A remark of the monitor, and the words it is told in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SEVERITIES = ("good", "note", "warning", "problem")
"""How much a finding matters: nothing to do, worth knowing, look into it, do not trust the result."""


@dataclass(frozen=True)
class Finding:
    """One remark of the monitor.

    Attributes:
        stage: ``before``, ``during`` or ``after`` training.
        severity: one of `SEVERITIES`.
        name: a short name for what it is about.
        seen: what was seen, with its numbers.
        do: what to do about it.
    """

    stage: str
    severity: str
    name: str
    seen: str
    do: str


def counted(n: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "row"), counted(0, "row")
    ('1 row', '0 rows')
    """
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names with commas between them; those beyond ``most`` are only counted.

    >>> listed(["a", "b", "c"], most=1)
    'a and 2 more'
    """
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
