"""Networks, and how any `torch.nn.Module` runs with weights a sparsifier has masked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparseirm.core import Layout, Tensors
from sparseirm.randomness import seed_of


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


def mlp(input_shape: tuple[int, ...], n_outputs: int, width: int) -> nn.Module:
    """`MLP` for inputs of a given shape.

    >>> sum(p.numel() for p in mlp((2, 14, 14), 1, width=64).parameters())
    29377
    """
    return MLP(torch.Size(input_shape).numel(), width, n_outputs)


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp}
"""Name to ``(input_shape, n_outputs, width) -> module``."""


def build(model: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a module with initial weights that depend on the seed only.

    >>> a, b = (build(lambda: nn.Linear(2, 1), seed=0) for _ in range(2))
    >>> torch.equal(a.weight, b.weight)
    True
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "initial weights"))
        return model()


def maskable(module: nn.Module) -> Layout:
    """The parameters a sparsifier may mask: those with two or more dimensions.

    That is the weights of linear, convolution, attention and embedding layers; biases and normalisation
    parameters, which have one dimension, always stay. A tied parameter counts once.

    Args:
        module: any module.

    Returns:
        Names and shapes of these parameters, in the order of the module; none if it has none.

    Example:
        >>> maskable(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).names
        ('0.weight',)
    """
    found = {name: p.shape for name, p in module.named_parameters() if p.ndim >= 2}
    return Layout(tuple(found), tuple(found.values()))


@dataclass(frozen=True)
class Network:
    """A module without its own weights: it runs with the ones it is handed.

    Attributes:
        module: any `torch.nn.Module`; its own parameters are read once, by `parts`, and never changed.
        layout: which of its parameters are maskable.
    """

    module: nn.Module
    layout: Layout

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Collect the representation: what the last linear layer is given while the context is open.

        Yields a list that holds one tensor ``(n, h)``, float32, after a forward pass; it stays empty if the
        module has no linear layer or its input has another number of dimensions.
        """
        seen: list[Tensor] = []
        head = next((m for m in reversed(list(self.module.modules())) if isinstance(m, nn.Linear)), None)
        if head is None:
            yield seen
            return

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].ndim == 2:
                seen[:] = [inputs[0].float()]

        handle = head.register_forward_pre_hook(note)
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
        tensors = {**self.layout.split(effective), **others, **buffers}
        logits: Tensor = functional_call(self.module, tensors, (x,)).float()
        return logits[:, 0] if logits.ndim == 2 and logits.shape[1] == 1 else logits


def network(module: nn.Module) -> Network:
    """The module as a `Network`, with every parameter of two or more dimensions maskable.

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
