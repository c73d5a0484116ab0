"""When things happen in a run, and settings that say so: all times are fractions of the run."""

from __future__ import annotations

from sparseirm.core import Moment, SettingError


class Decided:
    """A sparsifier whose mask is decided at ``decide_at``; 1 if it never is."""

    decide_at: float

    @property
    def final_from(self) -> float:
        """From then on the mask is final, see `sparseirm.core.Sparsifier`."""
        return self.decide_at


def ordered(settings: object, *names: str) -> None:
    """Refuse times of these names that do not follow each other in [0, 1], or a ``decide_at`` of 0.

    Args:
        settings: what has them as attributes.
        *names: the attributes, in the order their values must have; ``decide_at`` comes last.

    Raises:
        SettingError: if ``0 <= first <= ... <= last <= 1`` does not hold, or ``decide_at`` is 0.
    """
    times = [getattr(settings, name) for name in names]
    chain = " <= ".join(f"`{name}`" for name in names)
    late = ", and the mask cannot be decided before the first step" if "decide_at" in names else ""
    if not all(a <= b for a, b in zip([0, *times], [*times, 1], strict=True)) or (late and times[-1] == 0):
        raise SettingError(
            f"{chain} must hold in [0, 1] (fractions of the run){late}; got {', '.join(map(str, times))}."
        )


def positive(settings: object, *names: str) -> None:
    """Refuse settings of these names that are not positive.

    Args:
        settings: what has them as attributes.
        *names: the attributes.

    Raises:
        SettingError: if one of them is 0, negative or NaN.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise SettingError(f"`{name}` must be positive; got {getattr(settings, name)}.")


def within(settings: object, *names: str) -> None:
    """Refuse settings of these names that do not lie strictly between 0 and 1.

    Args:
        settings: what has them as attributes.
        *names: the attributes.

    Raises:
        SettingError: if one of them does not.
    """
    for name in names:
        if not 0 < getattr(settings, name) < 1:
            raise SettingError(f"`{name}` must be between 0 and 1; got {getattr(settings, name)}.")


def done(now: Moment) -> float:
    """Fraction of the run that is over after the step of this moment, in (0, 1]."""
    return (now.step + 1) / now.steps


def decides(now: Moment, decide_at: float) -> bool:
    """Whether a mask is decided after this step; with ``decide_at`` 1 it never is."""
    return done(now) >= decide_at and decide_at < 1


def due(now: Moment, every: float) -> bool:
    """Whether something that happens every so often happens after this step; at most once a step.

    >>> from torch import Generator
    >>> [step for step in range(10) if due(Moment(step, 10, Generator()), every=0.3)]
    [2, 5, 8]
    """
    return (now.step + 1) % max(1, round(every * now.steps)) == 0
