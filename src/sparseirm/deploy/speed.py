"""Which form of a module is fastest here: dense, compacted, or sparse. Measured, never promised."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparseirm.deploy.compact import compact
from sparseirm.randomness import generator

ROUNDS, SECONDS = 20, 2.0
"""At most so many rounds, and no new one after so many seconds; the fastest counts."""


class SparseLinear(nn.Module):
    """A linear layer on the CPU whose weight is stored in compressed sparse rows (CSR).

    Args:
        dense: the layer to copy.

    Example:
        >>> dense = nn.Linear(3, 2)
        >>> torch.allclose(SparseLinear(dense)(torch.eye(3)), dense(torch.eye(3)))
        True
    """

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():  # PyTorch calls its sparse tensors a beta feature
            warnings.simplefilter("ignore")
            self.weight = dense.weight.detach().to_sparse_csr()
        bias = dense.weight.new_zeros(dense.out_features) if dense.bias is None else dense.bias
        self.bias = bias.detach()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(..., out_features)`` of inputs ``(..., in_features)``."""
        flat = x.reshape(-1, x.shape[-1])
        return torch.addmm(self.bias, self.weight, flat.t()).t().reshape(*x.shape[:-1], -1)


def to_sparse(module: nn.Module) -> nn.Module:
    """A copy of a module whose linear layers are stored sparsely, for inference on the CPU.

    Args:
        module: any module.

    Returns:
        The copy in evaluation mode; it cannot be trained or saved.
    """
    result = copy.deepcopy(module).cpu().eval()
    if type(result) is nn.Linear:
        return SparseLinear(result)
    for name, layer in list(result.named_modules()):
        if type(layer) is nn.Linear:
            result.set_submodule(name, SparseLinear(layer))
    return result


def forms(module: nn.Module, small: nn.Module) -> dict[str, nn.Module]:
    """The forms in which a masked module can run: one function, three speeds.

    Args:
        module: the module, its masked weights zero.
        small: the same without dead units, see `sparseirm.deploy.compact.compact`.

    Returns:
        ``dense`` (the module), ``compact`` (the small one), ``sparse`` (that with sparse linear layers).
    """
    return {"dense": module, "compact": small, "sparse": to_sparse(small)}


@torch.inference_mode()
def latencies(
    modules: Mapping[str, nn.Module], input_shape: tuple[int, ...], batch_size: int
) -> dict[str, float]:
    """Time that modules take for one batch on the CPU, with as many threads as torch is set to.

    The modules take turns, so that a busy machine slows all of them alike.

    Args:
        modules: modules by name.
        input_shape: shape of one sample.
        batch_size: samples in the batch.

    Returns:
        Milliseconds of the fastest round, by name.
    """
    x = torch.randn(batch_size, *input_shape, generator=generator(0, "latency"))
    fastest = dict.fromkeys(modules, float("inf"))
    begun = time.perf_counter()
    for _ in range(ROUNDS):
        for name, module in modules.items():
            before = time.perf_counter()
            module(x)
            fastest[name] = min(fastest[name], 1000 * (time.perf_counter() - before))
        if time.perf_counter() - begun > SECONDS:
            break
    return fastest


def fastest(module: nn.Module, input_shape: tuple[int, ...], batch_size: int) -> tuple[str, nn.Module]:
    """The form of a masked module that is fastest on this machine, for batches of one size.

    Args:
        module: the module, its masked weights zero.
        input_shape: shape of one sample.
        batch_size: samples in a batch.

    Returns:
        Its name, as in `forms`, and the module in that form.

    Raises:
        SettingError: if the module cannot be traced.

    Example:
        >>> name, module = fastest(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)), (8,), 16)
        >>> name in ("dense", "compact", "sparse"), module(torch.zeros(2, 8)).shape
        (True, torch.Size([2, 1]))
    """
    found = forms(copy.deepcopy(module).cpu().eval(), compact(module, input_shape).module)
    times = latencies(found, input_shape, batch_size)
    name = min(times, key=lambda form: times[form])
    return name, found[name]
