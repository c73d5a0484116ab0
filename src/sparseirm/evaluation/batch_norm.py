"""Running statistics of batch normalisation that belong to the network as it would be deployed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from sparseirm.core import Moment, Sparsifier, Tensors
from sparseirm.data.environments import Batches
from sparseirm.evaluation.metrics import deployed
from sparseirm.models import Network
from sparseirm.training.precision import fast_matmul
from sparseirm.training.state import State


@torch.no_grad()
def deployed_buffers(
    network: Network, sparsifier: Sparsifier, state: State, batches: Batches, now: Moment
) -> Tensors:
    """The buffers of the deterministic network.

    Those of training, as long as the network trained is the one deployed: always for a dense method, and
    for a sparse one from the moment its mask is decided. Before, the running statistics are of other
    weights, such as those of random gates, and can be far off; then they are collected anew with the
    deployed weights, from one epoch of training batches. Validation and test samples are never used.

    Args:
        network: the network.
        sparsifier: what masks it.
        state: weights, memory and buffers; not changed.
        batches: the training samples, in the batches of training.
        now: moment of the step just taken; its noise is used up.

    Returns:
        The buffers by name: ``state.buffers``, or a copy with new statistics.
    """
    weights = deployed(sparsifier, state)
    if not _norms(network) or torch.equal(weights, sparsifier.effective(state.weights, state.memory, now)):
        return state.buffers
    epoch = (batches.at(step).x.to(weights.device) for step in range(batches.per_epoch))
    return recollected(network, weights, state.others, state.buffers, epoch)


@torch.no_grad()
def recollected(
    network: Network, weights: Tensor, others: Tensors, buffers: Tensors, inputs: Iterable[Tensor]
) -> Tensors:
    """Buffers whose running statistics are plain means over batches (cf. arXiv:2105.07576, precise BN).

    Args:
        network: the network.
        weights: ``(d,)`` effective weights.
        others: the other parameters.
        buffers: the buffers by name; not changed.
        inputs: batches ``(n, ...)``, each of samples of all environments.

    Returns:
        A copy of the buffers with the statistics of ``inputs``. Only normalisation acts as in training.
    """
    fresh = {name: buffer.clone() for name, buffer in buffers.items()}
    counters = {name: buffer for name, buffer in buffers.items() if name.endswith("num_batches_tracked")}
    for name in counters:
        fresh[name].zero_()
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    network.module.eval()
    try:
        for norm in norms:
            norm.train().momentum = None  # PyTorch's word for plain means
        with fast_matmul():
            for x in inputs:
                network.call(x, weights, others, fresh)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return fresh | counters


def _norms(network: Network) -> list[_NormBase]:
    return [m for m in network.module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
