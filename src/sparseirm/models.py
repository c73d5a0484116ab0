"""Networks, and how any `torch.nn.Module` runs with weights a sparsifier has masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparseirm.convolutions import SmallImages
from sparseirm.core import Layout, SettingError, Tensors, first_line
from sparseirm.randomness import global_draws, seed_of
from sparseirm.registry import one_of


class MLP(nn.Sequential):
    """The paper's network: three linear layers with ReLU between, inputs flattened.

    Weights are Xavier-uniform, biases zero (appendix D; released code).

    Args:
        n_inputs: number of input values of a sample.
        width: hidden units of both hidden layers.
        n_outputs: number of logits; with 1 they come out as shape ``(n,)`` in training and evaluation.

    Example:
        >>> MLP(392, 390, 1)(torch.zeros(5, 2, 14, 14)).shape
        torch.Size([5, 1])
    """

    def __init__(self, n_inputs: int, width: int, n_outputs: int) -> None:
        linears = [nn.Linear(n_inputs, width), nn.Linear(width, width), nn.Linear(width, n_outputs)]
        for layer in linears:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        super().__init__(nn.Flatten(), linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])


def mlp(input_shape: tuple[int, ...], n_outputs: int, width: int | None) -> nn.Module:
    """`MLP` for inputs of a given shape, of width 390 by default.

    >>> sum(p.numel() for p in mlp((2, 14, 14), 1, width=64).parameters())
    29377
    """
    return MLP(torch.Size(input_shape).numel(), width or 390, n_outputs)


Maker = Callable[[tuple[int, ...], int, int | None], nn.Module]
"""``(input_shape, n_outputs, width) -> module``, with one logit for two classes."""

Features = Tensor | Callable[[], Tensor] | None
"""A representation ``(n, h)``, a function that gives it, or None where there is none."""

MODELS: dict[str, Maker] = {"mlp": mlp}
"""The networks of this package by name: those that have a ``width``."""

TIMM = "timm:"

ONE_OUTPUT = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}
"""Options of torchvision's networks that would otherwise give several outputs in training."""


def maker(name: str) -> Maker:
    """What makes the networks of a name, with random initial weights.

    Args:
        name: ``mlp``; a classifier of torchvision by its name there, such as ``resnet18``; or ``timm:`` and
            the name of one in the package timm.

    Returns:
        A function of the shape of a sample, the number of logits, and the width, which only ``mlp`` heeds. It
        raises a `SettingError` if the network does not take samples of that shape.

    Raises:
        SettingError: if there is no such network, or the package timm is not installed.

    Example:
        >>> maker("resnet18")((3, 32, 32), 10, None)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if name in MODELS:
        return MODELS[name]
    return _from_timm(name) if name.startswith(TIMM) else _from_torchvision(name)


def _from_torchvision(name: str) -> Maker:
    from torchvision import models

    listed = "mlp; classifiers of torchvision by name, such as resnet18; timm:NAME for those of timm"
    one_of("model", name, [*MODELS, *models.list_models(module=models)], listed)

    def make(input_shape: tuple[int, ...], n_outputs: int, width: int | None) -> nn.Module:
        options = ONE_OUTPUT.get(name, {})
        module = models.get_model(name, weights=None, num_classes=n_outputs, **options)
        return _fitting(name, module, input_shape, n_outputs)

    return make


def _from_timm(name: str) -> Maker:
    try:
        import timm
    except ImportError:
        raise SettingError(f"model {name!r} needs the package timm: pip install 'sparseirm[timm]'.") from None
    short = name.removeprefix(TIMM)
    one_of("model of timm", short, timm.list_models(), f"the {len(timm.list_models())} of timm.list_models()")

    def make(input_shape: tuple[int, ...], n_outputs: int, width: int | None) -> nn.Module:
        module = timm.create_model(short, pretrained=False, num_classes=n_outputs, in_chans=input_shape[0])
        return _fitting(name, module, input_shape, n_outputs)

    return make


def _fitting(name: str, module: nn.Module, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    """The module, if it gives ``n_outputs`` logits for samples of ``input_shape``."""
    try:
        with torch.no_grad():
            found = tuple(module.eval()(torch.zeros(2, *input_shape)).shape)
        problem = f"it gives {found} for two samples" if found != (2, n_outputs) else ""
    except (RuntimeError, ValueError, AssertionError) as error:
        problem = first_line(error)
    if problem:
        raise SettingError(
            f"model {name!r} cannot classify samples of shape {input_shape}: {problem}. Those of torchvision "
            "take 3 channels; timm:NAME takes any number of them, and mlp any shape."
        )
    return module


def build(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a module with initial weights that depend on the seed only.

    >>> a, b = (build(lambda: nn.Linear(2, 1), seed=0) for _ in range(2))
    >>> torch.equal(a.weight, b.weight)
    True
    """
    with global_draws(torch.device("cpu")) as seed_all:
        seed_all(seed_of(seed, "initial weights"))
        return model()


def maskable(module: nn.Module) -> Layout:
    """The parameters a sparsifier may mask: those with two or more dimensions, but for `UNMASKED`.

    That is the weights of linear, convolution, attention and embedding layers, and matrices of modules of
    your own. Biases, the parameters of normalisation, scales, tokens and positions always stay. A tied
    parameter counts once.

    Args:
        module: any module.

    Returns:
        Names and shapes of these parameters, in the order of the module; none if it has none.

    Example:
        >>> maskable(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm((4, 2)))).names
        ('0.weight',)
    """
    found = {
        name: p.shape
        for name, p in module.named_parameters()
        if p.ndim >= 2 and not _stays(module, *name.rpartition(".")[::2])
    }
    return Layout(tuple(found), tuple(found.values()))


UNMASKED = ("bias", "scale", "token", "pos_emb", "position")
"""What the name of a parameter that is never masked contains."""


def _stays(module: nn.Module, owner: str, name: str) -> bool:
    normalises = "Norm" in type(module.get_submodule(owner)).__name__
    return normalises or any(part in name for part in UNMASKED)


@dataclass(frozen=True)
class Network:
    """A module without its own weights: it runs with the ones it is handed.

    Attributes:
        module: any `torch.nn.Module`; its own parameters are read once, by `parts`, and never changed.
        layout: which of its parameters are maskable.
    """

    module: nn.Module
    layout: Layout

    @cached_property
    def convolutional(self) -> bool:
        """Whether the module has convolutions over images."""
        return any(isinstance(module, nn.Conv2d) for module in self.module.modules())

    @cached_property
    def head(self) -> str | None:
        """Name of the last linear layer, whose inputs are the representation; None if there is none."""
        linear = [name for name, module in self.module.named_modules() if isinstance(module, nn.Linear)]
        return linear[-1] if linear else None

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Collect the representation: what the last linear layer is given while the context is open.

        Yields a list that holds one tensor ``(n, h)``, bfloat16 under autocast, after a forward pass; it
        stays empty if the module has no linear layer or its input has another number of dimensions.
        """
        seen: list[Tensor] = []
        if self.head is None:
            yield seen
            return

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].ndim == 2:
                seen[:] = [inputs[0]]

        handle = self.module.get_submodule(self.head).register_forward_pre_hook(note)
        try:
            yield seen
        finally:
            handle.remove()

    def parts(self) -> tuple[Tensor, Tensors, Tensors]:
        """Copies of the flat maskable weights, the other parameters, and the buffers."""
        parameters = dict(self.module.named_parameters())
        others = {n: p.detach().clone() for n, p in parameters.items() if n not in self.layout.names}
        buffers = {n: b.detach().clone() for n, b in self.module.named_buffers()}
        return self.layout.join(parameters), others, buffers

    def logits(
        self, x: Tensor, effective: Tensor, others: Tensors, buffers: Tensors, *, training: bool = False
    ) -> Tensor:
        """Logits of ``x`` with flat effective weights ``(d,)``; float32, a single logit as ``(n,)``.

        Batch normalisation uses the statistics of the batch, all environments together, and updates
        ``buffers`` in place when ``training``; otherwise it uses ``buffers``.
        """
        self.module.train(training)
        logits = self.call(x, effective, others, buffers).float()
        return logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits

    def outputs(
        self, x: Tensor, effective: Tensor, others: Tensors, buffers: Tensors
    ) -> tuple[Tensor, Features]:
        """Logits of a training pass, as of `logits`, and the representation of `watched`, if there is one.

        The representation is a function that gives it in float32: under autocast that is a copy, which only
        penalties that read it should pay for.
        """
        with self.watched() as features:
            logits = self.logits(x, effective, others, buffers, training=True)
        return logits, features[0].float if features else None

    def call(self, x: Tensor, effective: Tensor, others: Tensors, buffers: Tensors) -> Tensor:
        """What the module gives for ``x``, in the mode it is in."""
        tensors = {**self.layout.split(effective), **others, **buffers}
        with self.laid_out(x) as inputs:
            result: Tensor = functional_call(self.module, tensors, (inputs,))
        return result

    @contextmanager
    def laid_out(self, x: Tensor) -> Iterator[Tensor]:
        """Inputs as they are fast: images for convolutions channels last, and small ones run as products.

        Yields ``x`` or a copy of it, equal but for its layout in memory.
        """
        if self.convolutional and x.ndim == 4:
            with SmallImages():
                yield x.contiguous(memory_format=torch.channels_last)
        else:
            yield x


def network(module: nn.Module) -> Network:
    """The module as a `Network`, whose maskable parameters are those of `maskable`.

    Args:
        module: any module; it is not copied, and its parameters are never changed.

    Returns:
        The network. It runs with the weights it is handed, not with those of the module.

    Example:
        >>> net = network(nn.Linear(2, 1, bias=False))
        >>> net.logits(torch.ones(1, 2), torch.tensor([2.0, 3.0]), {}, {})
        tensor([5.])
    """
    return Network(module, maskable(module))
