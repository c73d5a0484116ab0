"""The shared vocabulary: outputs of a step, penalty, sparsifier, and the errors users see.

Everything else in the package is written in these words. Nothing here imports another module of
the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor

Tensors = dict[str, Tensor]


class SettingError(ValueError):
    """A setting, file or data set that cannot be used; the message says what to do instead."""


def first_line(error: Exception) -> str:
    """The first line of an error's message without its full stop; its type where there is no message.

    >>> first_line(RuntimeError("Too small.")), first_line(MemoryError())
    ('Too small', 'MemoryError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


class NonFiniteError(ArithmeticError):
    """A quantity of the training step became NaN or infinite; the run stops there."""


def accumulator(device: torch.device) -> torch.dtype:
    """The type sums over samples are added up in: float64, or float32 where there is no float64.

    >>> accumulator(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


def at_hand(device: torch.device) -> bool:
    """Whether numbers can be looked at without waiting for a device.

    >>> at_hand(torch.device("cpu")), at_hand(torch.device("cuda"))
    (True, False)
    """
    return device.type == "cpu"


@dataclass(frozen=True)
class Loss:
    """A loss per sample, with the closed form of its slope along the scale of the logits.

    Attributes:
        name: the name used in recipes and results.
        value: ``(logits, y) -> (n,)``, the loss of each sample (nats, or squared units of ``y``).
        slope: ``(logits, y) -> (n,)``, the derivative of ``value(w * logits, y)`` at ``w = 1``.
        predict: ``(logits) -> (n,)``, the predicted label or value.
        classifies: whether ``predict`` gives labels, so that accuracy makes sense.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    classifies: bool = True


class OnDemand:
    """A field that holds a tensor, None, or a function that is called for it when it is first read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object | None, owner: type | None = None) -> Tensor | None:
        if instance is None:  # what a dataclass takes for the default
            return None
        value = instance.__dict__[self.name]
        if callable(value):
            value = instance.__dict__[self.name] = value()
        return cast(Tensor | None, value)

    def __set__(self, instance: object, value: Tensor | Callable[[], Tensor] | None) -> None:
        instance.__dict__[self.name] = value


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives a penalty: logits, labels, environments, and the loss.

    Attributes:
        logits: ``(n,)`` for binary classification and regression, ``(n, k)`` for ``k`` classes.
        y: ``(n,)`` labels or targets.
        env: ``(n,)`` environment index of each sample, in ``0 .. n_envs - 1``.
        n_envs: number of environments; every one of them has a sample here.
        loss: the loss per sample.
        weight: ``(n,)`` non-negative sample weights, or None for equal ones.
        features: ``(n, h)`` inputs of the last linear layer (the representation), or None without one. May be
            given as a function, which is called only if a penalty reads them.
        parameters: the weights this pass ran with, for penalties on gradients.
        noise: source of randomness for penalties that draw, a function of seed and step only.

    Example:
        >>> from sparseirm.losses import BINARY
        >>> z, y = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 1.0])
        >>> Outputs(z, y, torch.tensor([0, 0, 1]), 2, BINARY).risks
        tensor([0.6931, 0.1269])
    """

    logits: Tensor
    y: Tensor
    env: Tensor
    n_envs: int
    loss: Loss
    weight: Tensor | None = None
    features: OnDemand = OnDemand()
    parameters: tuple[Tensor, ...] = ()
    noise: Generator | None = None

    def env_mean(self, values: Tensor) -> Tensor:
        """Weighted mean of ``values`` over the samples of each environment.

        Shape ``(n, ...) -> (n_envs, ...)``, summed in float64 and returned in the type of ``values``.
        """
        exact = accumulator(values.device)
        total = values.to(exact)
        count = torch.ones(self.env.shape, dtype=exact, device=values.device)
        if self.weight is not None:
            count = self.weight.to(exact)
            total = total * count.reshape(-1, *[1] * (values.ndim - 1))
        sums = total.new_zeros(self.n_envs, *values.shape[1:]).index_add(0, self.env, total)
        counts = count.new_zeros(self.n_envs).index_add(0, self.env, count)
        return (sums / counts.reshape(-1, *[1] * (values.ndim - 1))).to(values.dtype)

    @cached_property
    def losses(self) -> Tensor:
        """Loss of each sample, shape ``(n,)``."""
        return self.loss.value(self.logits, self.y)

    @cached_property
    def risks(self) -> Tensor:
        """Mean loss of each environment, shape ``(n_envs,)``: the one definition of risk."""
        return self.env_mean(self.losses)

    @cached_property
    def slopes(self) -> Tensor:
        """Derivative of each environment's risk along the scale of the logits, shape ``(n_envs,)``."""
        return self.env_mean(self.loss.slope(self.logits, self.y))


Penalty = Callable[[Outputs], Tensor]
"""A pure function of `Outputs` to a scalar; one with numbers is a frozen dataclass with `__call__`."""


@dataclass(frozen=True)
class Layout:
    """Where each maskable tensor of a model lies in the one flat vector a sparsifier sees.

    Attributes:
        names: parameter names, in the order of the model.
        shapes: their shapes.

    Example:
        >>> layout = Layout(("a.weight", "b.weight"), (torch.Size([2, 2]), torch.Size([1, 2])))
        >>> layout.size, [tuple(t.shape) for t in layout.split(torch.arange(6)).values()]
        (6, [(2, 2), (1, 2)])
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of weights of each tensor."""
        return [shape.numel() for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number of maskable weights, ``d``."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> Tensors:
        """Views of a flat ``(d,)`` vector, by name and in the tensors' own shapes."""
        pieces = torch.split(flat, self.sizes)
        return {n: p.view(s) for n, p, s in zip(self.names, pieces, self.shapes, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new flat ``(d,)`` vector from tensors by name."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])


@dataclass(frozen=True)
class Moment:
    """When in the run a sparsifier is called, and the randomness it may use there.

    Attributes:
        step: steps taken so far, from 0.
        steps: steps of the whole run.
        noise: a generator that depends on seed and step only, so that resuming repeats it.
        others: those of further runs whose vectors are given as further rows, see `Sparsifier`.
    """

    step: int
    steps: int
    noise: Generator
    others: tuple[Generator, ...] = ()

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1)."""
        return self.step / self.steps

    @property
    def noises(self) -> tuple[Generator, ...]:
        """The generator of every row."""
        return (self.noise, *self.others)


@dataclass
class Memory:
    """What a sparsifier carries from step to step; all of it is saved in a checkpoint.

    Attributes:
        learned: tensors trained by the score optimiser (probabilities, thresholds).
        kept: tensors the sparsifier updates itself (masks, the last projection's multiplier).
    """

    learned: Tensors = field(default_factory=dict)
    kept: Tensors = field(default_factory=dict)


@runtime_checkable
class Sparsifier(Protocol):
    """How the mask over the maskable weights comes about. A frozen dataclass of these methods.

    All vectors are flat, shape ``(d,)``; `Layout` says which tensor each stretch belongs to.
    Attributes that a sparsifier must have besides: ``budget`` (K, number of weights kept at the end)
    and ``score_lr`` (learning rate of ``memory.learned``). A ``score_eps`` above 0 is Adam's epsilon for
    these, in units of 1 / d; by default it is that of the weights. ``final_from`` is the fraction of the run
    from which on the mask stays as it is, nothing else is learned than the weights it keeps, and gradients of
    other weights are of no use; by default that is never. With ``rows`` True, which no class inherits,
    `effective`, `price` and `after_step` also take the vectors of R runs as ``(R, d)``, with a memory of such
    rows and a moment of as many generators, and do to every row what they would do to it alone; by default
    runs that are trained together are handed over one after the other.
    """

    @property
    def budget(self) -> int:
        """K: the number of weights kept at the end of training."""
        ...

    @property
    def score_lr(self) -> float:
        """Learning rate of Adam for everything in ``memory.learned``."""
        ...

    def start(self, weights: Tensor, layout: Layout, noise: Generator) -> Memory:
        """The memory before the first step."""
        ...

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        """The weights the network runs with in this step, differentiable; one draw. Changes nothing."""
        ...

    def price(self, memory: Memory) -> Tensor | float:
        """What the sparsifier adds to the loss, a scalar; 0.0 for most."""
        ...

    def after_step(
        self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None
    ) -> Tensor | None:
        """What happens between two steps: projection, a new mask. Changes its arguments in place.

        Args:
            weights: ``(d,)`` weights after the optimiser's step.
            memory: what the sparsifier carries.
            now: the moment of the step just taken.
            gradient: ``(d,)`` derivative of the loss by the effective weights, masked ones included.

        Returns:
            Bool ``(d,)``, the weights that start afresh and whose optimiser history is forgotten; or None.
        """
        ...

    def mask(self, weights: Tensor, memory: Memory) -> Tensor:
        """The deterministic 0/1 mask of evaluation and export: bool, exactly ``budget`` ones.

        A sparsifier that masks whole groups, or draws its mask, may keep another number; it says so with an
        attribute ``exact = False``.
        """
        ...

    def deploy(self, weights: Tensor, memory: Memory) -> Tensor:
        """The effective weights of evaluation and export: zero wherever ``mask`` is."""
        ...


def final_from(sparsifier: Sparsifier) -> float:
    """Fraction of the run from which a sparsifier's mask is final (see `Sparsifier`); 1 if it never is."""
    return getattr(sparsifier, "final_from", 1.0)


def takes_rows(sparsifier: Sparsifier) -> bool:
    """Whether a sparsifier takes several runs at once (see `Sparsifier`)."""
    return "rows" in vars(type(sparsifier)) and bool(getattr(sparsifier, "rows", False))
