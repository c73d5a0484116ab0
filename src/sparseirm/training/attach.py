"""Sparse training in a loop of your own: `attach` a sparsifier to a module and its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from sparseirm.core import Layout, Moment, NonFiniteError, SettingError, Sparsifier, Tensors
from sparseirm.models import maskable
from sparseirm.randomness import generator
from sparseirm.registry import one_of
from sparseirm.training.checkpoint import load_state, save_state
from sparseirm.training.processes import averaged
from sparseirm.training.state import State, forget_history, score_optimizer

_ATTACHED: WeakSet[nn.Module] = WeakSet()


def attach(
    module: nn.Module,
    optimizer: Optimizer,
    sparsifier: Sparsifier,
    *,
    steps: int,
    names: Iterable[str] | None = None,
    seed: int = 0,
    eps: float = 1e-12,
) -> Attachment:
    """Train a module sparsely in a loop that stays as it is.

    From now on the masked parameters hold the weights the network runs with: in training mode one draw of the
    sparsifier, the same for every forward pass of a step; in evaluation mode the deterministic network. The
    weights under the mask are kept apart. When `backward` is done, gradients by the masked weights have been
    turned into gradients by the weights, which is what clipping and the optimiser see, and by what the
    sparsifier learns. `optimizer.step` trains both and lets the sparsifier do its own part: these are the
    steps of `sparseirm.training.loop.train`. After `steps` of them the module holds its final sparse weights.

    Compilation, activation checkpointing, gradient accumulation, clipping, bfloat16 and closures that are
    called once go on as before. In a process group, gradients by the masked weights are averaged over the
    processes, as `DistributedDataParallel` does with all others. Not supported: scaled losses (float16),
    gradients by `torch.autograd.grad`.
    What is written to a masked parameter by hand is lost in the next step.

    Args:
        module: any module; neither its class nor its layers are touched.
        optimizer: what trains it; it must hold every masked parameter.
        sparsifier: how the weights are masked.
        steps: optimiser steps of the whole run, at least 1; schedules of the sparsifier depend on it.
        names: parameters to mask; by default all that are trained and have two or more dimensions.
        seed: seed of the sparsifier's draws.
        eps: epsilon of Adam for what the sparsifier learns, as in `sparseirm.training.state.Plan`.

    Returns:
        The attachment: the moment, the mask, saving and resuming, and `Attachment.finish`.

    Raises:
        SettingError: if there is nothing to mask, a name is unknown, a masked parameter is not trained by
            ``optimizer``, ``steps`` is less than 1, or something is attached to ``module`` already.

    Example:
        >>> from sparseirm.sparsifiers import ProbMask
        >>> model = nn.Linear(6, 1)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> sparse = attach(model, optimizer, ProbMask(budget=2), steps=20)
        >>> for step in range(20):
        ...     optimizer.zero_grad()
        ...     (model(torch.eye(6))[:, 0] - torch.arange(6)).square().mean().backward()
        ...     optimizer.step()
        >>> int(model.weight.count_nonzero())
        2
    """
    if steps < 1:
        raise SettingError(f"`steps` must be at least 1, the optimiser steps of the whole run; got {steps}.")
    if module in _ATTACHED:
        raise SettingError(
            "a sparsifier is attached to this module already; `finish` it, or make a new module."
        )
    layout = _layout(module, optimizer, names)
    parameters = dict(module.named_parameters())
    weights = layout.join(parameters)
    memory = sparsifier.start(weights, layout, generator(seed, "scores", device=weights.device))
    state = State(0, weights, {}, {}, memory, {})
    for leaf in state.leaves:
        leaf.requires_grad_()
    if memory.learned:
        state.optimizers["scores"] = score_optimizer(memory, sparsifier, eps)
    masked = [parameters[name] for name in layout.names]
    return Attachment(module, optimizer, sparsifier, steps, seed, layout, masked, state)


@dataclass(eq=False)
class Attachment:
    """A sparsifier at work on a module; made by `attach`.

    Attributes:
        module: the module.
        optimizer: its optimiser.
        sparsifier: how its weights are masked.
        steps: optimiser steps of the whole run.
        seed: seed of the sparsifier's draws.
        layout: the masked parameters.
        parameters: these parameters themselves, in that order.
        state: steps taken, weights under the mask and what the sparsifier carries.
        now: the moment of the step to come; its ``noise`` is for penalties that draw.
    """

    module: nn.Module
    optimizer: Optimizer
    sparsifier: Sparsifier
    steps: int
    seed: int
    layout: Layout
    parameters: list[nn.Parameter]
    state: State
    now: Moment = field(init=False)
    _arrived: dict[int, Tensor] = field(init=False, default_factory=dict)
    _gradient: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._draw()
        nodes = [get_gradient_edge(parameter).node for parameter in self.parameters]
        self._hooks = [
            self.module.register_forward_pre_hook(lambda module, inputs: self._show(module.training)),
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self._after_step()),
            *(node.register_prehook(partial(self._arrive, at)) for at, node in enumerate(nodes)),
        ]
        self._nodes = nodes  # a parameter does not keep its node alive
        _ATTACHED.add(self.module)

    def mask(self) -> Tensors:
        """The deterministic mask of this moment: bool tensors by parameter name."""
        return self.layout.split(self.sparsifier.mask(self.state.weights.detach(), self.state.memory))

    def finish(self) -> None:
        """Leave the deterministic sparse weights in the module and let go of it, however far the run is."""
        self._show(training=False)
        for hook in self._hooks:
            hook.remove()
        _ATTACHED.discard(self.module)

    def save(self, path: Path | str) -> None:
        """Write what module and optimiser do not know of this run, as one safetensors file.

        Args:
            path: the file; save the module's and the optimiser's states at the same moment, as usual.
        """
        save_state(Path(path), self.state, {})

    def load(self, path: Path | str) -> None:
        """Go on from a file of `save`, after module and optimiser have been given their own states.

        Args:
            path: the file.

        Raises:
            DamagedFileError: if the file is damaged or of another run.
            OSError: if there is no such file.
        """
        load_state(Path(path), self.state)
        self._draw()

    def _draw(self) -> None:
        """Begin a step: what the network runs with in training mode; after the last, the final weights."""
        step, weights = self.state.step, self.state.weights
        self.now = Moment(step, self.steps, generator(self.seed, "step", step, device=weights.device))
        self._effective = self._deployed() if self._over else self._sampled()
        self._write(self._effective)
        self._shows_training = True
        self._forget_gradients()

    @property
    def _over(self) -> bool:
        return self.state.step >= self.steps

    def _sampled(self) -> Tensor:
        with torch.enable_grad():
            return self.sparsifier.effective(self.state.weights, self.state.memory, self.now)

    def _deployed(self) -> Tensor:
        return self.sparsifier.deploy(self.state.weights.detach(), self.state.memory)

    def _show(self, training: bool) -> None:
        """Put the weights of the training step, or those of evaluation, into the module."""
        if training != self._shows_training:
            self._write(self._effective if training else self._deployed())
            self._shows_training = training

    def _write(self, flat: Tensor) -> None:
        with torch.no_grad():
            for parameter, piece in zip(self.parameters, self._split(flat.detach()), strict=True):
                parameter.copy_(piece)

    def _split(self, flat: Tensor) -> list[Tensor]:
        return list(self.layout.split(flat).values())

    def _arrive(self, at: int, gradients: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        """Withhold the gradient by a masked parameter until the backward pass is over."""
        if self._over or not self._shows_training:
            return None
        torch.autograd.Variable._execution_engine.queue_callback(self._once_averaged)
        self._arrived[at] = gradients[0].detach()
        return (torch.zeros_like(gradients[0]),)

    def _once_averaged(self) -> None:
        """Let DistributedDataParallel finish first, which writes gradients when the backward pass is over."""
        torch.autograd.Variable._execution_engine.queue_callback(self._translate)

    def _translate(self) -> None:
        """From gradients by the masked weights to those by the weights and by what is learned of the mask."""
        arrived, self._arrived = self._arrived, {}
        if not arrived:  # called once for every parameter that was withheld
            return
        if not any(parameter.grad is not None and parameter.grad.any() for parameter in self.parameters):
            self._forget_gradients()  # the loop did so; else it accumulates
        pieces = [arrived.get(at, torch.zeros_like(p)) for at, p in enumerate(self.parameters)]
        dense = averaged(torch.cat([piece.reshape(-1) for piece in pieces]))
        self._gradient = dense if self._gradient is None else self._gradient + dense
        leaves = self.state.leaves
        torch.autograd.backward([self._effective], [dense], retain_graph=True, inputs=leaves)
        by_weights, self.state.weights.grad = self.state.weights.grad, None
        if by_weights is not None:
            for parameter, piece in zip(self.parameters, self._split(by_weights), strict=True):
                parameter.grad = piece if parameter.grad is None else parameter.grad + piece

    def _forget_gradients(self) -> None:
        self._gradient = None
        for leaf in self.state.leaves:
            leaf.grad = None

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._over:
            raise SettingError(
                f"this is optimiser step {self.steps + 1} of a run announced with `steps={self.steps}`, "
                "whose mask is final. Announce more steps, or `finish` it to train on without the sparsifier."
            )
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._ready()
            return None
        rest = {name: value for name, value in kwargs.items() if name != "closure"}
        return (optimizer, partial(self._closure, closure, [])), rest

    def _closure(self, closure: Callable[[], Any], calls: list[None]) -> Any:
        """What an optimiser calls to have gradients: the user's own closure, then the weights themselves."""
        if calls:
            raise SettingError(
                f"{type(self.optimizer).__name__} calls its closure more than once a step, and the mask "
                "belongs to the step. Use an optimiser that needs one gradient, such as Adam or SGD."
            )
        calls.append(None)
        loss = closure()
        self._ready()
        return loss

    def _ready(self) -> None:
        """Everything is there for a step: the optimiser gets the weights under the mask to move."""
        state = self.state
        if self._gradient is None:
            raise SettingError(
                "no masked weight has a gradient; call `backward`, in training mode, before `optimizer.step`."
            )
        if not torch.isfinite(self._gradient).all():
            raise NonFiniteError(
                f"a gradient became NaN or infinite in step {state.step + 1}. Check that every batch has "
                "samples of every environment, lower the learning rate or the penalty's weight, or check "
                "the data."
            )
        price = self.sparsifier.price(state.memory)
        if isinstance(price, Tensor):
            price.backward()  # type: ignore[no-untyped-call]
        self._write(state.weights)

    def _after_step(self) -> None:
        """What the training loop does between two steps."""
        state = self.state
        with torch.no_grad():
            state.weights.copy_(torch.cat([parameter.reshape(-1) for parameter in self.parameters]))
            for optimizer in state.optimizers.values():
                optimizer.step()
            fresh = self.sparsifier.after_step(state.weights, state.memory, self.now, self._gradient)
        if fresh is not None:
            for parameter, piece in zip(self.parameters, self._split(fresh), strict=True):
                forget_history(self.optimizer, parameter, piece)
        state.step += 1
        self._draw()


def _layout(module: nn.Module, optimizer: Optimizer, names: Iterable[str] | None) -> Layout:
    """The parameters to mask, checked."""
    parameters = dict(module.named_parameters())
    if names is None:
        names = [name for name in maskable(module).names if parameters[name].requires_grad]
    chosen = {one_of("parameter", name, parameters): parameters[name].shape for name in names}
    if not chosen:
        raise SettingError("the module has no trained parameter of two or more dimensions to mask.")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in chosen:
        if id(parameters[name]) not in trained:
            raise SettingError(
                f"`optimizer` does not train the masked parameter {name!r}. Make the optimiser of "
                "`module.parameters()`, or name the parameters to mask with `names`."
            )
    return Layout(tuple(chosen), tuple(chosen.values()))
