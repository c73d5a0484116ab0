"""What a module does to the channels of each tensor, found by tracing it."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.fx import GraphModule, Node, Tracer
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from sparseirm.core import SettingError

MIX = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose output channels are sums over input channels."""

NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Layers that, in evaluation mode, scale and shift every channel by numbers of its own."""

EACH = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
"""Modules that apply one function to every number."""

EACH_FUNCTIONS = (
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu),
    *(F.softplus, F.hardtanh, F.dropout, F.dropout2d),
)
EACH_METHODS = ("relu", "sigmoid", "tanh", "contiguous", "clone")

POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
"""Modules that leave a constant channel as it is."""

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")

TIED = ("norm", "each", "pool", "add")
"""Kinds of operation whose result has the channels of their inputs."""


@dataclass(frozen=True)
class Step:
    """One operation of a module.

    Attributes:
        node: its place in the traced graph.
        kind: ``mix``, ``norm``, ``each``, ``pool``, ``flatten``, ``add``; or ``other``, of which nothing is
            known, so that what it reads must stay complete.
        inputs: the operations whose results it reads.
        shape: of its result, for two samples; the second axis holds the channels.
        layer: the layer it calls, or None.
    """

    node: Node
    kind: str
    inputs: tuple[Node, ...]
    shape: Size
    layer: Any

    @property
    def name(self) -> str:
        """Name of the layer."""
        return str(self.node.target)

    @property
    def channels(self) -> int:
        """Number of channels of the result; 1 if it has no such axis."""
        return self.shape[1] if len(self.shape) > 1 else 1

    def applied(self, values: Tensor) -> Tensor:
        """What a ``norm``, ``each`` or ``pool`` makes of channels that are constant at ``(channels,)``."""
        if self.kind == "pool":
            return values
        return torch.flatten(self.called(values.clone().view(1, -1, *[1] * (len(self.shape) - 2))))

    def called(self, x: Tensor) -> Tensor:
        """What a ``norm``, ``each`` or ``pool`` makes of a tensor."""
        target: Any = self.node.target
        if self.layer is not None:
            result: Tensor = self.layer(x)
        elif isinstance(target, str):
            result = getattr(x, target)()
        else:
            result = target(x, *self.node.args[1:], **self.node.kwargs)
        return result


def steps(module: nn.Module, x: Tensor) -> list[Step]:
    """The operations of a module, in the order they run.

    Args:
        module: a module, in the mode it is to be looked at in.
        x: two samples.

    Returns:
        One step for every node of the traced graph; their layers are those of ``module``, not copies.

    Raises:
        SettingError: if the module cannot be traced, because what its Python code does depends on its input.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
        >>> [(step.kind, step.channels) for step in steps(net, torch.zeros(2, 3))]
        [('other', 3), ('mix', 2), ('each', 2), ('other', 2)]
    """
    try:
        traced = GraphModule(module, Tracer().trace(module))
        ShapeProp(traced).propagate(x)
    except Exception as error:  # whatever the module's own code does with a stand-in for a tensor
        raise SettingError(
            f"{type(module).__name__} cannot be traced, so its dead units cannot be removed "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from error
    nodes, layers = traced.graph.nodes, dict(module.named_modules())
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    owners = Counter(id(p) for m in layers.values() for p in m.parameters(recurse=False))

    def shared(node: Node) -> bool:
        tied = any(owners[id(p)] > 1 for p in layers[node.target].parameters(recurse=False))
        return tied or (calls[node.target] > 1 and isinstance(layers[node.target], (*MIX, *NORM)))

    found = []
    for node in nodes:
        layer = layers[node.target] if node.op == "call_module" else None
        kind = "other" if layer is not None and shared(node) else _kind(node, layer)
        found.append(Step(node, kind, tuple(node.all_input_nodes), _shape(node), layer))
    return found


def _kind(node: Node, layer: nn.Module | None) -> str:
    before, after = [_shape(source) for source in node.all_input_nodes], _shape(node)
    if not before or any(len(shape) < 2 for shape in (*before, after)):
        return "other"
    if layer is not None:
        return _kind_of_layer(layer, before[0])
    if node.target in SUMS:
        return "add" if len(before) == 2 and before[0] == before[1] and not node.kwargs else "other"
    if node.target in (EACH_METHODS if node.op == "call_method" else EACH_FUNCTIONS):
        return "each"
    return "flatten" if _flattens(node, before[0], after) else "other"


def _kind_of_layer(layer: nn.Module, shape: Size) -> str:
    if isinstance(layer, nn.Linear):
        return "mix" if len(shape) == 2 else "other"
    if isinstance(layer, MIX):
        return "mix" if layer.groups == 1 else "other"
    if isinstance(layer, NORM):
        return "norm" if layer.running_mean is not None else "other"
    if isinstance(layer, nn.Flatten):
        return "flatten" if (layer.start_dim, layer.end_dim) == (1, -1) else "other"
    return "each" if isinstance(layer, EACH) else "pool" if isinstance(layer, POOLS) else "other"


def _flattens(node: Node, before: Size, after: Size) -> bool:
    """Whether all axes but the first become one, whatever their sizes."""
    if node.target in (torch.flatten, "flatten"):
        return (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1))
    reshapes = node.target in ("view", "reshape") and node.args[-1] == -1
    return bool(reshapes and after[1:] == (before[1:].numel(),))


def _shape(node: Node) -> Size:
    """Shape of a tensor; empty for anything else."""
    shape: Size = getattr(node.meta.get("tensor_meta"), "shape", Size())
    return shape
