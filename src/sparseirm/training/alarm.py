"""Notice numbers that are not finite, without waiting for a device in every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparseirm.core import NonFiniteError, accumulator, at_hand

PATIENCE = 32
"""Steps after which numbers on a device are looked at; looking waits until it has computed them."""


class Alarm:
    """Looks at the numbers of steps: at each on a CPU, where that costs nothing, else now and then.

    What a device computes is remembered there from the first step that was not finite on, so the error names
    that step when it comes. The weights are spoiled by then; on a CPU they are those before the step.

    Args:
        device: where the numbers are.

    Example:
        >>> alarm = Alarm(torch.device("cpu"))
        >>> alarm.look(6, risk=torch.tensor(0.7), penalty=torch.tensor(0.1))
        >>> alarm.look(7, risk=torch.tensor(0.7), penalty=torch.tensor(math.inf))
        Traceback (most recent call last):
        ...
        sparseirm.core.NonFiniteError: the penalty became inf in step 7. Lower `lr` or ...
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.kind = device, accumulator(device)
        self.patience = 1 if at_hand(device) else PATIENCE
        self.names: list[str] = []
        self.seen: Tensor | None = None

    def look(self, step: int, **numbers: Tensor | float) -> None:
        """Look at the numbers of a step, or remember them.

        Args:
            step: its number, from 1.
            **numbers: ``()`` each, the same ones in every step.

        Raises:
            NonFiniteError: if one of them is NaN or infinite, or was in a step before.
        """
        self.names = [*numbers, "step"]
        latest = torch.stack([self._there(number) for number in (*numbers.values(), step)])
        if self.seen is None or self.patience == 1:
            self.seen = latest
        else:
            self.seen = torch.where(torch.isfinite(self.seen).all(), latest, self.seen)
        if step % self.patience == 0:
            self.check()

    def check(self) -> None:
        """Wait for the numbers of all steps.

        Raises:
            NonFiniteError: if one of them was NaN or infinite.
        """
        found = {} if self.seen is None else dict(zip(self.names, self.seen.tolist(), strict=True))
        bad = next((name for name, value in found.items() if not math.isfinite(value)), None)
        if bad:
            raise NonFiniteError(
                f"the {bad} became {found[bad]} in step {found['step']:.0f}. "
                "Lower `lr` or `penalty_weight`, or check the data for extreme values."
            )

    def _there(self, number: Tensor | float) -> Tensor:
        """A number on the device; a copy of one on the host would wait for it."""
        if isinstance(number, Tensor):
            return number.detach().to(self.device, self.kind).reshape(())
        return torch.full((), number, dtype=self.kind, device=self.device)
