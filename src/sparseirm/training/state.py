"""What a run is told (`Plan`) and everything that changes while it runs (`State`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from sparseirm.core import Memory, SettingError, Sparsifier, Tensors
from sparseirm.models import Network
from sparseirm.randomness import generator
from sparseirm.registry import one_of
from sparseirm.schedules import cosine
from sparseirm.training.precision import PRECISIONS


@dataclass(frozen=True)
class Plan:
    """How a run goes: its length, its optimiser, its schedules.

    Attributes:
        steps: number of optimiser steps.
        optimizer: ``adam`` or ``sgd``, for the weights; probabilities always use Adam.
        lr: learning rate of the weights.
        lr_schedule: ``cosine`` (to zero at the last step) or ``constant``, for the weights.
        momentum: momentum of ``sgd``.
        eps: Adam's epsilon, for weights and probabilities. The default 1e-8 of PyTorch freezes
            probabilities whose gradients are smaller than that.
        l2: weight of the sum of squared parameters in the loss.
        penalty_weight: lambda, weight of the penalty.
        penalty_from: fraction of the run before which the penalty has weight zero.
        penalty_to: fraction of the run at which the penalty has its full weight; it rises geometrically from
            1, or evenly from 0 to one below 1. At or before ``penalty_from`` it starts with its full weight.
        divide_loss: divide the loss by ``1 + lambda`` once the penalty acts, as the released code does.
        lr_drop: factor on the learning rate once the penalty acts, so that its onset does not overshoot.
        lr_stop: fraction of the run at which the learning rate's schedule is over once the penalty acts, so
            that the network does not drift on among the many that satisfy the penalty.
        precision: ``fp32``, or ``bf16`` for bfloat16 matrix products.

    Raises:
        SettingError: if a value is out of its range.
    """

    steps: int = 1500
    optimizer: str = "adam"
    lr: float = 6e-4
    lr_schedule: str = "cosine"
    momentum: float = 0.9
    eps: float = 1e-12
    l2: float = 1e-3
    penalty_weight: float = 1e4
    penalty_from: float = 0.16
    penalty_to: float = 0.0
    divide_loss: bool = False
    lr_drop: float = 1.0
    lr_stop: float = 1.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        for name, rule, holds in (
            ("steps", "at least 1", self.steps >= 1),
            ("lr", "positive", self.lr > 0),
            ("eps", "positive", self.eps > 0),
            ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
            ("l2", "0 or more", self.l2 >= 0),
            ("penalty_weight", "0 or more", self.penalty_weight >= 0),
            ("penalty_from", "a fraction of the run, in [0, 1]", 0 <= self.penalty_from <= 1),
            ("penalty_to", "a fraction of the run, in [0, 1]", 0 <= self.penalty_to <= 1),
            ("lr_drop", "a factor in (0, 1]", 0 < self.lr_drop <= 1),
            ("lr_stop", "a fraction of the run, in (0, 1]", 0 < self.lr_stop <= 1),
        ):
            if not holds:
                raise SettingError(f"`{name}` must be {rule}; got {getattr(self, name)}.")

    def penalty_weight_at(self, step: int) -> float:
        """Lambda of one step: zero, then rising as ``lambda**t`` (as ``lambda t`` below 1), then constant."""
        start, end = self.penalty_from * self.steps, self.penalty_to * self.steps
        if step < start or self.penalty_weight == 0:
            return 0.0
        if end <= start:
            return self.penalty_weight
        risen = min(1.0, (step - start) / (end - start))
        return self.penalty_weight**risen if self.penalty_weight >= 1 else self.penalty_weight * risen

    def lr_at(self, step: int) -> float:
        """Learning rate of the weights in one step."""
        schedule, progress = LR_SCHEDULES[self.lr_schedule], step / self.steps
        if not self.penalty_weight_at(step):
            return schedule(progress, self.lr)
        return schedule(min(1.0, progress / self.lr_stop), self.lr_drop * self.lr)


LR_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": cosine,
    "constant": lambda progress, first: first,
}

OPTIMIZERS: dict[str, Callable[[list[Tensor], Plan], Optimizer]] = {
    "adam": lambda tensors, plan: Adam(tensors, lr=plan.lr, eps=plan.eps, fused=_fusable(tensors)),
    "sgd": lambda tensors, plan: SGD(tensors, lr=plan.lr, momentum=plan.momentum, fused=_fusable(tensors)),
}


@dataclass
class State:
    """Everything that changes during a run, hence everything a checkpoint holds.

    Attributes:
        step: optimiser steps taken in this stage.
        weights: ``(d,)`` maskable weights of all layers, before masking.
        others: the other parameters (biases, normalisation).
        buffers: the module's buffers (running statistics).
        memory: what the sparsifier carries.
        optimizers: ``weights`` for ``weights`` and ``others`` unless frozen, and ``scores`` for what the
            sparsifier learns.
        stage: index of the stage of a run with several, see `sparseirm.training.stages`.
    """

    step: int
    weights: Tensor
    others: Tensors
    buffers: Tensors
    memory: Memory
    optimizers: dict[str, Optimizer]
    stage: int = 0

    @property
    def leaves(self) -> list[Tensor]:
        """Every tensor that is trained."""
        return [self.weights, *self.others.values(), *self.memory.learned.values()]


def start(network: Network, sparsifier: Sparsifier, plan: Plan, seed: int, frozen: bool = False) -> State:
    """The state before the first step: the module's own weights, a fresh sparsifier, fresh optimisers.

    Args:
        network: whose weights to start from; they are copied.
        sparsifier: how they are masked.
        plan: which optimiser.
        seed: seed of what the sparsifier draws.
        frozen: train nothing but what the sparsifier learns.

    Returns:
        The state.
    """
    weights, others, buffers = network.parts()
    memory = sparsifier.start(weights, network.layout, generator(seed, "scores", device=weights.device))
    state = State(0, weights, others, buffers, memory, {})
    for leaf in state.leaves:
        leaf.requires_grad_()
    if not frozen:
        state.optimizers["weights"] = OPTIMIZERS[plan.optimizer]([weights, *others.values()], plan)
    if memory.learned:
        state.optimizers["scores"] = score_optimizer(memory, sparsifier, plan.eps)
    return state


def score_optimizer(memory: Memory, sparsifier: Sparsifier, eps: float) -> Optimizer:
    """Adam for what a sparsifier learns, with its ``score_eps`` (see `ProbMask`) or else this epsilon."""
    learned = list(memory.learned.values())
    own = getattr(sparsifier, "score_eps", 0.0) / sum(tensor.numel() for tensor in learned)
    return Adam(learned, lr=sparsifier.score_lr, eps=own or eps, fused=_fusable(learned))


def _fusable(tensors: list[Tensor]) -> bool:
    return all(t.device.type in ("cpu", "cuda") and t.is_floating_point() for t in tensors)


def clear_gradients(state: State) -> None:
    """Forget the gradients of the last step."""
    for leaf in state.leaves:
        leaf.grad = None


def forget(state: State, fresh: Tensor | None) -> None:
    """Erase the optimiser's history of the maskable weights at ``fresh``, a bool ``(d,)`` or None."""
    if fresh is not None:
        forget_history(state.optimizers["weights"], state.weights, fresh)


def forget_history(optimizer: Optimizer, parameter: Tensor, fresh: Tensor) -> None:
    """Set what an optimiser remembers of a parameter to zero where ``fresh``, bool of its shape, is True."""
    for slot in optimizer.state[parameter].values():
        if isinstance(slot, Tensor) and slot.shape == fresh.shape:
            slot[fresh] = 0
