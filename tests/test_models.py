"""Claims about running any module with masked weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from makers import Problem
from sparseirm.data import Batch
from sparseirm.models import MLP, Network, build, maskable, network
from sparseirm.randomness import generator
from sparseirm.training.state import Plan

close = torch.testing.assert_close


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Attention(nn.Module):
    """Self-attention, then the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@dataclass(frozen=True)
class Kind:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


KINDS = {
    "mlp": Kind(lambda: MLP(6, 8, 1), (2, 3)),
    "batch norm": Kind(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)), (6,)
    ),
    "convolution": Kind(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
        ),
        (2, 4, 4),
    ),
    "tied weights": Kind(Tied, (6,)),
    "attention": Kind(Attention, (5, 6)),
    "transformer": Kind(
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), Mean(), nn.Linear(6, 1)
        ),
        (5, 6),
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def inputs(kind: Kind, n: int = 20) -> Tensor:
    return torch.randn(n, *kind.shape, generator=generator(0, "x"))


def with_weights(
    net: Network, flat: Tensor, others: dict[str, Tensor], buffers: dict[str, Tensor]
) -> nn.Module:
    """A copy of the module whose own tensors are overwritten by hand."""
    module = copy.deepcopy(net.module).eval()
    tensors = {**net.layout.split(flat), **others, **buffers}
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(tensors.pop(name))
    assert not tensors
    return module


@every_kind
@torch.no_grad()
def test_a_masked_network_is_the_module_with_weights_set_to_zero_by_hand(kind: Kind) -> None:
    net = network(build(kind.make, seed=0))
    weights, others, buffers = net.parts()
    mask = torch.rand(len(weights), generator=generator(0, "mask")) < 0.5
    by_hand = with_weights(net, weights * mask, others, buffers)(inputs(kind))[:, 0]
    close(net.logits(inputs(kind), weights * mask, others, buffers), by_hand)
    assert not torch.allclose(net.logits(inputs(kind), weights, others, buffers), by_hand)


@every_kind
def test_gradients_of_a_masked_network_are_those_of_the_module_set_by_hand(kind: Kind) -> None:
    net = network(build(kind.make, seed=0))
    weights, others, buffers = net.parts()
    mask = torch.rand(len(weights), generator=generator(0, "mask")) < 0.5
    masked = (weights * mask).requires_grad_()
    net.logits(inputs(kind), masked, others, buffers).square().sum().backward()
    module = with_weights(net, masked.detach(), others, buffers)
    module(inputs(kind)).square().sum().backward()
    assert masked.grad is not None
    close(
        masked.grad, net.layout.join({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    )


@every_kind
def test_training_a_masked_network_leaves_the_module_s_own_tensors_alone(kind: Kind) -> None:
    labels = torch.arange(20) % 2
    problem = Problem(kind.make, Plan(steps=5), batch=Batch(inputs(kind), labels, torch.arange(20) // 10))
    original = build(kind.make, seed=0).state_dict()
    run = problem.train()
    assert run.state.weights.isfinite().all()
    assert not torch.equal(run.state.weights, run.network.layout.join(original))
    for name, tensor in run.network.module.state_dict().items():
        assert torch.equal(tensor, original[name]), name


@every_kind
@torch.no_grad()
def test_evaluation_changes_no_buffer(kind: Kind) -> None:
    net = network(build(kind.make, seed=0))
    weights, others, buffers = net.parts()
    before = {name: tensor.clone() for name, tensor in buffers.items()}
    net.logits(inputs(kind), weights, others, buffers)
    assert all(torch.equal(buffers[name], before[name]) for name in before)


def test_batch_norm_updates_the_running_statistics_handed_in() -> None:
    kind = KINDS["batch norm"]
    net = network(build(kind.make, seed=0))
    weights, others, buffers = net.parts()
    x = inputs(kind)
    net.logits(x, weights, others, buffers, training=True)
    hidden = build(kind.make, seed=0)[0](x)  # type: ignore[index]
    close(buffers["1.running_mean"], 0.1 * hidden.mean(0))
    assert buffers["1.num_batches_tracked"] == 1


def test_what_has_two_or_more_dimensions_is_maskable_and_tied_weights_count_once() -> None:
    assert maskable(KINDS["convolution"].make()).names == ("0.weight", "4.weight")
    assert maskable(Tied()).names == ("first.weight", "head.weight")
    assert maskable(nn.Embedding(5, 3)).size == 15


def test_biases_normalisation_scales_tokens_and_positions_are_never_masked() -> None:
    assert maskable(nn.Sequential(nn.LayerNorm((4, 3)), nn.Linear(3, 2))).names == ("1.weight",)
    module = nn.Linear(3, 2)
    for name in ("relative_position_bias_table", "layer_scale", "class_token", "pos_embedding", "mixing"):
        module.register_parameter(name, nn.Parameter(torch.ones(2, 3)))
    assert set(maskable(module).names) == {"weight", "mixing"}


def test_a_layout_splits_what_it_joins() -> None:
    module = KINDS["transformer"].make()
    layout = maskable(module)
    flat = layout.join(dict(module.named_parameters()))
    assert flat.shape == (layout.size,)
    for name, tensor in layout.split(flat).items():
        assert torch.equal(tensor, module.get_parameter(name))


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    undisturbed = torch.rand(3)
    torch.manual_seed(1)
    one, same, other = (build(lambda: MLP(6, 8, 1), seed)[1].weight for seed in (0, 0, 1))  # type: ignore[index]
    assert torch.equal(torch.rand(3), undisturbed)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_single_logit_comes_as_one_number_per_sample_and_several_as_they_are() -> None:
    for n_outputs, shape in ((1, (4,)), (3, (4, 3))):
        net = network(MLP(6, 8, n_outputs))
        assert net.logits(torch.zeros(4, 6), *net.parts()).shape == shape
