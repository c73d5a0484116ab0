"""Training that gets cheaper once a mask is decided: what is dead is no longer computed for every sample.

A unit whose weights are all masked gives the same number for every sample; it is computed once, not n times,
and goes on to train through its bias and the weights that read it. A unit that nothing reads is not computed
at all. Weights, optimiser and checkpoints stay what they are: only passes through the network get smaller.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparseirm.core import Moment, SettingError, Sparsifier, Tensors, final_from
from sparseirm.graph import Step, steps
from sparseirm.models import Features, Network
from sparseirm.training.sharding import differentiable_once
from sparseirm.training.state import State

RANDOM_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
RANDOM_FUNCTIONS = (F.dropout, F.dropout2d)
"""What makes a constant differ from sample to sample."""

GRADIENTS = (
    "`shrink` cannot be used with a penalty on gradients by the weights, such as 'iga': masked ones count in "
    "it too. Leave it out, or choose another penalty."
)

ROUNDS, TIMED = 3, 1024
"""Passes that are timed, of which the fastest counts, and samples in them at most."""


@dataclass
class Shrinking:
    """The smaller network of a training, from the moment its mask is final.

    Attributes:
        saved: what it saves, known from that moment on: ``flops_per_step`` and ``seconds_per_pass`` (forward
            and backward of 1024 samples at most, measured), each before and after; and the ``layers``, each
            with its numbers of outputs and inputs, before and after.
    """

    saved: dict[str, Any] = field(default_factory=dict)
    _smaller: Network | None = None

    def begin(self) -> None:
        """Start with the whole network, whose weights are not those of an earlier stage."""
        self._smaller = None

    def network(
        self, network: Network, sparsifier: Sparsifier, state: State, now: Moment, x: Tensor
    ) -> Network:
        """What to run in this step: the network itself, or a smaller one that gives the same.

        Args:
            network: the whole network.
            sparsifier: how its weights are masked.
            state: the state of the training; not changed.
            now: the moment.
            x: inputs of the step.

        Returns:
            The network; a smaller one from the step on in which the mask is final.
        """
        if self._smaller is None:
            if now.progress < shrinks_from(network, sparsifier):
                return network
            mask = sparsifier.mask(state.weights.detach(), state.memory)
            self._smaller = shrunk(network, mask, x)
            self.saved = savings(network, self._smaller, mask, state, x)
        return self._smaller


def shrinks_from(network: Network, sparsifier: Sparsifier) -> float:
    """Fraction of the run from which the network can be smaller, 1 if it never can."""
    return final_from(sparsifier) if sparsifier.budget < network.layout.size else 1.0


def check_shrinkable(network: Network, sparsifiers: Iterable[Sparsifier], x: Tensor) -> None:
    """Refuse what can never shrink, before it is trained.

    Args:
        network: the network.
        sparsifiers: those of all stages of a run.
        x: some inputs.

    Raises:
        SettingError: if the network cannot be traced, or none of the sparsifiers decides its mask before the
            run is over.
    """
    if all(shrinks_from(network, sparsifier) == 1 for sparsifier in sparsifiers):
        raise SettingError(
            "`shrink` has no effect: no mask is decided before the run is over. Leave it out, or choose a "
            "sparse method, and `decide_at` or `shrink_to` below 1 in `sparsifier_options`."
        )
    traced(network, x)


def traced(network: Network, x: Tensor) -> list[Step]:
    """The steps of a network in training mode, for inputs like ``x``; ``SettingError`` if it has none."""
    module = copy.deepcopy(network.module).cpu().train()
    found = steps(module, x[:1].cpu().expand(2, *x.shape[1:]).clone())
    return [replace(step, kind="other") if _random(step) else step for step in found]


def _random(step: Step) -> bool:
    return isinstance(step.layer, RANDOM_LAYERS) or step.node.target in RANDOM_FUNCTIONS


def shrunk(network: Network, mask: Tensor, x: Tensor) -> Network:
    """A network that computes the same with fewer units, as long as weights outside the mask are zero.

    Args:
        network: the network, which is not changed.
        mask: bool ``(d,)``, the weights that may differ from zero.
        x: some inputs.

    Returns:
        A network that takes the same weights, other parameters and buffers; gradients of weights inside the
        mask, and of all other parameters, are the same. ``network`` itself if there is nothing to save.

    Raises:
        SettingError: if the network cannot be traced.

    Example:
        >>> from sparseirm.models import network
        >>> net, x = network(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))), torch.ones(5, 4)
        >>> mask = torch.ones(15, dtype=torch.bool)
        >>> mask[:4] = False
        >>> shrunk(net, mask, x).sizes()
        {'0': ((3, 4), (2, 4)), '2': ((1, 3), (1, 2))}
    """
    found, masks = traced(network, x), network.layout.split(mask.cpu())
    channels = _channels(found, masks, network.head)
    moved = {
        node: _Channels(c.live.to(x.device), c.fixed.to(x.device), c.all) for node, c in channels.items()
    }
    smaller = ShrunkNetwork(network.module, network.layout, tuple(found), moved)
    whole = all(before == after for before, after in smaller.sizes().values())
    return network if whole else smaller


def savings(network: Network, smaller: Network, mask: Tensor, state: State, x: Tensor) -> dict[str, Any]:
    """What a smaller network saves: see `Shrinking`."""
    weights = (state.weights.detach() * mask).requires_grad_()

    def once(net: Network, x: Tensor) -> None:
        buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
        logits, _ = net.outputs(x, weights, state.others, buffers)
        torch.autograd.grad(logits.sum(), [weights, *state.others.values()], allow_unused=True)

    def flops(net: Network) -> int:
        counts = []
        for n in (2, 4):
            with FlopCounterMode(display=False) as counter:
                once(net, x[:1].expand(n, *x.shape[1:]))
            counts.append(int(counter.get_total_flops()))
        return counts[0] + (len(x) - 2) * (counts[1] - counts[0]) // 2

    def seconds(net: Network) -> float:
        begun = time.perf_counter()
        once(net, x[:TIMED])
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - begun

    times = [(seconds(network), seconds(smaller)) for _ in range(ROUNDS)]
    before, after = (min(column) for column in zip(*times, strict=True))
    sizes = smaller.sizes() if isinstance(smaller, ShrunkNetwork) else {}
    return {
        "flops_per_step": {"before": flops(network), "after": flops(smaller)},
        "seconds_per_pass": {"before": before, "after": after},
        "layers": {name: {"before": list(old), "after": list(new)} for name, (old, new) in sizes.items()},
    }


@dataclass(frozen=True)
class _Channels:
    """Which of ``all`` channels of a result there are: computed for every sample, and alike for all."""

    live: Tensor
    fixed: Tensor
    all: int

    def spread(self, times: int) -> _Channels:
        """The same after flattening: each channel becomes ``times`` of them."""
        inner = torch.arange(times, device=self.live.device)
        live, fixed = ((c[:, None] * times + inner).reshape(-1) for c in (self.live, self.fixed))
        return _Channels(live, fixed, self.all * times)


@dataclass(frozen=True)
class _Parts:
    """A result: ``(n, live channels, ...)`` and ``(1, fixed channels, ...)``."""

    live: Tensor
    fixed: Tensor


@dataclass(frozen=True)
class ShrunkNetwork(Network):
    """A network without what a mask has killed; made by `shrunk`.

    It is handed the same weights, other parameters and buffers as the whole network, and picks from them.

    Attributes:
        steps: the traced steps of the module.
        channels: which channels of each result are computed.
    """

    steps: tuple[Step, ...]
    channels: dict[Node, _Channels]

    def sizes(self) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """Outputs and inputs of each layer, before and after, by name."""
        found = {}
        for step in self.steps:
            if step.kind == "mix":
                out, inputs = self.channels[step.node], self.channels[step.inputs[0]]
                found[step.name] = (out.all, inputs.all), (len(out.live), len(inputs.live))
        return found

    def outputs(
        self, x: Tensor, effective: Tensor, others: Tensors, buffers: Tensors
    ) -> tuple[Tensor, Features]:
        """As of `Network.outputs`; the representation as a function that puts it together."""
        self.module.train()
        effective, *rest = differentiable_once(GRADIENTS, effective, *others.values())
        parameters = self.layout.split(effective) | dict(zip(others, rest, strict=True))
        run = _Run(self, len(x), parameters, buffers)
        with self.laid_out(x) as inputs:
            logits = run(inputs).float()
        return logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits, run.features


class _Run:
    """One pass through a shrunk network."""

    def __init__(self, network: ShrunkNetwork, n: int, parameters: Tensors, buffers: Tensors) -> None:
        self.network, self.n, self.parameters, self.buffers = network, n, parameters, buffers
        self.values: dict[Node, Any] = {}
        self.features: Features = None

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.network.steps:
            if step.node.op == "placeholder":
                live = self.network.channels[step.node].live
                self.values[step.node] = _Parts(_picked(x, live), x.new_empty(1, 0, *x.shape[2:]))
            else:
                self.values[step.node] = getattr(self, f"_{step.kind}")(step)
        return cast(Tensor, self.values[self.network.steps[-1].node])

    def _taken(self, source: Node, wanted: Tensor) -> Tensor:
        """Channels of a result for every sample, also those that are alike for all."""
        parts, have = self.values[source], self.network.channels[source]
        if torch.equal(wanted, have.live):
            return cast(Tensor, parts.live)
        places = torch.cat([have.live, have.fixed])
        order = places.argsort()
        where = order[torch.searchsorted(places[order], wanted)]
        return torch.cat([parts.live, parts.fixed.expand(self.n, *parts.fixed.shape[1:])], 1)[:, where]

    def _whole(self, source: Node) -> Any:
        """A result as the whole network has it."""
        value = self.values[source]
        if not isinstance(value, _Parts):
            return value
        return self._taken(source, torch.arange(self.network.channels[source].all, device=value.live.device))

    def _narrowed(self, step: Step) -> _Parts:
        """The only input of a step, with the channels its result has."""
        parts, have = self.values[step.inputs[0]], self.network.channels[step.inputs[0]]
        want = self.network.channels[step.node]
        return _Parts(_within(parts.live, have.live, want.live), _within(parts.fixed, have.fixed, want.fixed))

    def _mix(self, step: Step) -> _Parts:
        layer, out = step.layer, self.network.channels[step.node]
        parts, have = self.values[step.inputs[0]], self.network.channels[step.inputs[0]]
        if step.name == self.network.head:
            self.features = lambda: self._whole(step.inputs[0]).float()
        weight, bias = self.parameters[f"{step.name}.weight"], self.parameters.get(f"{step.name}.bias")
        if not len(out.live):
            nothing = weight.new_zeros(self.n, 0, *step.shape[2:])
            return _Parts(nothing, self._biases(step, bias, nothing))
        rows, shift = _picked(weight, out.live, 0), None if bias is None else _picked(bias, out.live, 0)
        if len(have.fixed):  # once for all samples
            alike = _applied(layer, parts.fixed, _picked(rows, have.fixed), shift)
            shift = alike[0] if isinstance(layer, nn.Linear) else None
        if len(have.live):
            live = _applied(layer, parts.live, _picked(rows, have.live), shift)
            live = live + alike if len(have.fixed) and shift is None else live
        else:
            live = alike.repeat(self.n, *[1] * (alike.ndim - 1))
        return _Parts(live, self._biases(step, bias, live))

    def _biases(self, step: Step, bias: Tensor | None, like: Tensor) -> Tensor:
        """What channels without weights, or without variance, give: their biases."""
        fixed, spatial = self.network.channels[step.node].fixed, step.shape[2:]
        values = like.new_zeros(len(fixed)) if bias is None else _picked(bias, fixed, 0).to(like.dtype)
        return values.view(1, -1, *[1] * len(spatial)).repeat(1, 1, *spatial)

    def _norm(self, step: Step) -> _Parts:
        layer, parts, out = step.layer, self._narrowed(step), self.network.channels[step.node]
        mean, var = (self.buffers[f"{step.name}.running_{of}"] for of in ("mean", "var"))
        scale, shift = (self.parameters.get(f"{step.name}.{of}") for of in ("weight", "bias"))
        count = self.buffers[f"{step.name}.num_batches_tracked"].add_(1)
        factor = 1 / float(count) if layer.momentum is None else layer.momentum
        here, there = mean[out.live], var[out.live]
        gain, offset = (None if one is None else _picked(one, out.live, 0) for one in (scale, shift))
        live = parts.live
        if len(out.live):
            live = F.batch_norm(live, here, there, gain, offset, True, factor, layer.eps)
        with torch.no_grad():
            value = parts.fixed.flatten(2)[0, :, 0] if parts.fixed.ndim > 2 else parts.fixed[0]
            mean[out.live], var[out.live] = here, there
            mean[out.fixed] = mean[out.fixed].lerp(value.to(mean), factor)
            var[out.fixed] *= 1 - factor
        return _Parts(live, self._biases(step, shift, live))

    def _each(self, step: Step) -> _Parts:
        parts = self._narrowed(step)
        live, fixed = (
            step.called(part) if part.shape[1] else part.new_empty(len(part), 0, *step.shape[2:])
            for part in (parts.live, parts.fixed)
        )
        return _Parts(live, fixed)

    _pool = _each

    def _flatten(self, step: Step) -> _Parts:
        parts, channels = self.values[step.inputs[0]], self.network.channels[step.inputs[0]]
        want = self.network.channels[step.node]
        have = channels.spread(want.all // channels.all)
        live, fixed = (part.reshape(len(part), -1) for part in (parts.live, parts.fixed))
        return _Parts(_within(live, have.live, want.live), _within(fixed, have.fixed, want.fixed))

    def _add(self, step: Step) -> _Parts:
        want = self.network.channels[step.node]
        live = [self._taken(source, want.live) for source in step.inputs]
        fixed = [
            _within(self.values[source].fixed, self.network.channels[source].fixed, want.fixed)
            for source in step.inputs
        ]
        return _Parts(live[0] + live[1], fixed[0] + fixed[1])

    def _other(self, step: Step) -> Any:
        node = step.node
        target: Any = node.target
        args: Any = map_arg(node.args, self._whole)
        kwargs: Any = map_arg(node.kwargs, self._whole)
        tensors = self.parameters | self.buffers
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            result: Any = tensors[target]
        elif node.op == "call_module":
            if target == self.network.head and args[0].ndim == 2:
                self.features = args[0].float()
            inside = f"{target}."
            own = {n.removeprefix(inside): tensor for n, tensor in tensors.items() if n.startswith(inside)}
            result = functional_call(self.network.module.get_submodule(target), own, args, kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            result = target(*args, **kwargs)
        if len(step.shape) < 2:
            return result
        return _Parts(result, result.new_empty(1, 0, *result.shape[2:]))


def _channels(found: list[Step], masks: Tensors, head: str | None) -> dict[Node, _Channels]:
    """Which channels of every result are to be computed, and how."""
    reads = {
        step.node: masks[f"{step.name}.weight"].flatten(1).view(*step.layer.weight.shape[:2], -1).any(2)
        for step in found
        if step.kind == "mix"
    }
    constant, channels = _constant(found, reads), {}
    for node, mine in _needed(found, reads, head).items():
        live, fixed = mine & ~constant[node], mine & constant[node]
        channels[node] = _Channels(live.nonzero()[:, 0], fixed.nonzero()[:, 0], len(mine))
    return channels


def _needed(found: list[Step], reads: dict[Node, Tensor], head: str | None) -> dict[Node, Tensor]:
    """Channels that something reads, from the last step to the first."""
    needed = {step.node: torch.zeros(step.channels, dtype=torch.bool) for step in found}
    for step in reversed(found):
        mine = needed[step.node]
        if step.kind in ("other", "norm"):  # running statistics are kept of every channel
            mine |= step.node.op != "placeholder"
        for source in step.inputs:
            theirs = needed[source]
            if step.kind == "mix" and step.name != head:
                theirs |= reads[step.node][mine].any(0)
            elif step.kind in ("each", "pool", "add"):
                theirs |= mine
            elif step.kind == "flatten":
                theirs |= mine.view(len(theirs), -1).any(1)
            else:
                theirs.fill_(True)
    return needed


def _constant(found: list[Step], reads: dict[Node, Tensor]) -> dict[Node, Tensor]:
    """Channels that are alike for all samples and places, from the first step to the last."""
    constant: dict[Node, Tensor] = {}
    for step in found:
        sources = [constant[source] for source in step.inputs]
        if step.kind == "mix":
            mine = ~reads[step.node].any(1)
        elif step.kind in ("norm", "each", "pool"):
            mine = sources[0]
        elif step.kind == "add":
            mine = sources[0] & sources[1]
        elif step.kind == "flatten":
            mine = sources[0].repeat_interleave(step.channels // len(sources[0]))
        else:
            mine = torch.zeros(step.channels, dtype=torch.bool)
        constant[step.node] = mine
    return constant


def _applied(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    result: Tensor = layer._conv_forward(x, weight, bias)
    return result


def _picked(x: Tensor, index: Tensor, axis: int = 1) -> Tensor:
    """Entries along an axis; the tensor itself if these are all."""
    return x if len(index) == x.shape[axis] else x.index_select(axis, index)


def _within(x: Tensor, have: Tensor, want: Tensor) -> Tensor:
    """Channels ``want`` of a tensor that has the channels ``have``, both in rising order."""
    return x if len(have) == len(want) else x.index_select(1, torch.searchsorted(have, want))
