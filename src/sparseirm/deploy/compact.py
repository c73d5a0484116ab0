"""Remove what a mask has killed: units nothing reads, and units that never change.

A unit without outgoing weights can go. A unit without incoming weights gives a constant, which goes into the
next layer's bias. Batch normalisation goes into the layer before it. All of this is exact in real numbers;
what rounding makes of it is measured every time.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from sparseirm.core import SettingError
from sparseirm.graph import TIED, Step, steps
from sparseirm.randomness import generator

TOLERANCE = 1e-9
"""Largest difference allowed in float64, relative to the largest output."""


@dataclass(frozen=True)
class Compaction:
    """A compacted module, and what that gained.

    Attributes:
        module: the module in evaluation mode: same class, same function, smaller layers.
        units: units or channels of each layer before and after, by layer.
        parameters: number of parameters before and after.
        difference64: largest absolute difference of an output before and after, computed in float64.
        difference32: the same computed in float32.
    """

    module: nn.Module
    units: dict[str, tuple[int, int]]
    parameters: tuple[int, int]
    difference64: float
    difference32: float

    @property
    def removed(self) -> float:
        """Fraction of the parameters that is gone; below 0 if layers without a bias needed one."""
        before, after = self.parameters
        return 1 - after / before if before else 0.0


def compact(module: nn.Module, input_shape: tuple[int, ...], x: Tensor | None = None) -> Compaction:
    """The same function with fewer units.

    Works on every module that `torch.fx` can trace, such as MLPs and torchvision's networks. Linear and
    convolutional layers, batch normalisation, element-wise functions, pooling, flattening and additions are
    understood; channels that are added to each other stay or go together. What any other operation reads
    stays complete, and so do the module's inputs and outputs. A constant channel other than zero stays where
    a convolution pads with zeros, since at the border it is not constant. Every layer keeps at least one
    unit.

    Args:
        module: any module with one input, whose masked weights are zero; it is not changed.
        input_shape: shape of one sample.
        x: ``(n, *input_shape)``, samples to compare outputs on; by default 32 of standard normal numbers.

    Returns:
        The compacted module, in the type of the module's numbers, and what was gained.

    Raises:
        SettingError: if the module cannot be traced, ``x`` has another shape, or the outputs differ by more
            than rounding.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[0].zero_(), net[2].weight[0, 1].zero_()
        >>> small = compact(net, (4,))
        >>> small.module[0], small.units
        (Linear(in_features=4, out_features=1, bias=True), {'0': (3, 1), '2': (1, 1)})
    """
    x = torch.randn(32, *input_shape, generator=generator(0, "compaction check")) if x is None else x.cpu()
    if tuple(x.shape[1:]) != tuple(input_shape):
        raise SettingError(f"`x` must hold samples of shape {tuple(input_shape)}; got {tuple(x.shape[1:])}.")
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    dense = copy.deepcopy(module).cpu().double().eval()
    small = copy.deepcopy(dense)
    two = x[:1].double().expand(2, *input_shape)
    with torch.no_grad():
        _fold_normalisation(small, steps(small, two))
        found = steps(small, two)
        _fold_constants(found)
        units = _slice(found, _needed(found))
        gap64, scale = difference(small, dense, x.double())
        gap32, _ = difference(copy.deepcopy(small).float(), copy.deepcopy(dense).float(), x.float())
    if not gap64 <= TOLERANCE * scale + 1e-12:
        raise SettingError(
            f"removing dead units changed an output by {gap64:.1e}, more than rounding explains; weights may "
            "be NaN or infinite, or the module's code may depend on the sizes of its layers."
        )
    sizes = [sum(p.numel() for p in m.parameters()) for m in (dense, small)]
    return Compaction(small.to(dtype), units, (sizes[0], sizes[1]), gap64, gap32)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, x: Tensor) -> tuple[float, float]:
    """Largest absolute difference of the outputs of two modules, and the largest absolute output."""
    a, b = one(x), other(x)
    return float((a - b).abs().max()), float(b.abs().max())


def _fold_normalisation(module: nn.Module, found: list[Step]) -> None:
    """Put every batch normalisation into the layer before it, if nothing else reads that layer."""
    by_node = {step.node: step for step in found}
    for norm in found:
        before = by_node[norm.inputs[0]] if norm.kind == "norm" else None
        if before is None or before.kind != "mix" or len(before.node.users) > 1:
            continue
        fuse: Any = fuse_linear_bn_eval if isinstance(before.layer, nn.Linear) else fuse_conv_bn_eval
        module.set_submodule(before.name, fuse(before.layer, norm.layer))
        module.set_submodule(norm.name, nn.Identity())


def _fold_constants(found: list[Step]) -> None:
    """Move what constant channels contribute into biases, first layer to last."""
    constant: dict[Node, tuple[Tensor, Tensor]] = {}
    for step in found:
        constant[step.node] = _constants(step, [constant[source] for source in step.inputs])


def _constants(step: Step, inputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Which channels of a result are constant, bool ``(channels,)``, and their values, float64."""
    if step.kind == "other":
        nothing = torch.zeros(step.channels, dtype=torch.float64)
        return nothing.bool(), nothing
    is_constant, values = inputs[0]
    if step.kind == "mix":
        return _folded(step.layer, is_constant, values)
    if step.kind == "add":
        return is_constant & inputs[1][0], values + inputs[1][1]
    if step.kind == "flatten":
        times = step.channels // len(values)
        return is_constant.repeat_interleave(times), values.repeat_interleave(times)
    return is_constant, step.applied(values)


def _folded(layer: Any, is_constant: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Move the constant inputs of a layer into its bias; its constant outputs, and their values."""
    foldable = is_constant & ((values == 0) | (not _pads_with_zeros(layer)))
    weight = layer.weight.data
    shift = _positions(weight).sum(2)[:, foldable] @ values[foldable]
    if layer.bias is None and shift.any():
        layer.bias = nn.Parameter(torch.zeros_like(shift))
    if layer.bias is not None:
        layer.bias.data += shift
        shift = layer.bias.data
    weight[:, foldable] = 0
    return (weight == 0).flatten(1).all(1), shift


def _pads_with_zeros(layer: Any) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    return layer.padding == "same" or any(layer.padding)


def _needed(found: list[Step]) -> dict[Node, Tensor]:
    """The channels of every result that outputs and unknown operations depend on, bool ``(channels,)``."""
    needed = {step.node: torch.zeros(step.channels, dtype=torch.bool) for step in found}
    layers = [step for step in found if step.kind == "mix"]
    reads = {step.node: (_positions(step.layer.weight) != 0).any(2) for step in layers}
    _spread(found, needed, reads)
    for step in layers:
        if not needed[step.node].any():  # nothing reads this layer, but runtimes dislike layers without units
            needed[step.node][0], reads[step.node][0] = True, False
    _spread(found, needed, reads)
    return needed


def _spread(found: list[Step], needed: dict[Node, Tensor], reads: dict[Node, Tensor]) -> None:
    """Mark what the marked channels depend on, last layer to first, until nothing changes."""
    marked = -1
    while marked != (marked := sum(int(channels.sum()) for channels in needed.values())):
        for step in reversed(found):
            mine = needed[step.node]
            if step.kind == "other":
                mine.fill_(True)
            for source in step.inputs:
                theirs = needed[source]
                if step.kind == "mix":
                    theirs |= reads[step.node][mine].any(0)
                elif step.kind == "flatten":
                    theirs |= mine.view(len(theirs), -1).any(1)
                    mine |= theirs.repeat_interleave(len(mine) // len(theirs))
                elif step.kind in TIED:
                    theirs |= mine
                    mine |= theirs
                else:
                    theirs.fill_(True)


def _slice(found: list[Step], needed: dict[Node, Tensor]) -> dict[str, tuple[int, int]]:
    """Cut the layers down to what is needed; units before and after, by layer."""
    units = {}
    for step in found:
        keep, layer = needed[step.node], step.layer
        if step.kind == "mix":
            units[step.name] = (len(keep), int(keep.sum()))
            layer.weight = nn.Parameter(layer.weight[keep][:, needed[step.inputs[0]]])
            noun = "features" if isinstance(layer, nn.Linear) else "channels"
            setattr(layer, f"out_{noun}", len(layer.weight))
            setattr(layer, f"in_{noun}", layer.weight.shape[1])
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias[keep])
        elif step.kind == "norm":
            layer.num_features = int(keep.sum())
            layer.running_mean, layer.running_var = layer.running_mean[keep], layer.running_var[keep]
            if layer.affine:
                layer.weight, layer.bias = nn.Parameter(layer.weight[keep]), nn.Parameter(layer.bias[keep])
    return units


def _positions(weight: Tensor) -> Tensor:
    """A weight as ``(outputs, inputs, positions of the kernel)``; a linear layer has one position."""
    return weight.flatten(1).view(*weight.shape[:2], -1)
