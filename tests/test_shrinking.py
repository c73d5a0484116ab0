"""A network without what its mask has killed gives what the whole one gives, for less."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from makers import SAMPLES, assert_same_bits, noisy_module
from sparseirm.cli import main
from sparseirm.core import SettingError, Sparsifier, Tensors
from sparseirm.data import Batches
from sparseirm.losses import BINARY
from sparseirm.models import Network, build, network
from sparseirm.penalties import PENALTIES
from sparseirm.randomness import generator, global_draws
from sparseirm.recipe import Recipe
from sparseirm.runs import run
from sparseirm.sparsifiers import SPARSIFIERS, FixedMask
from sparseirm.training.checkpoint import load_state, save_state, tensors_of
from sparseirm.training.loop import train
from sparseirm.training.sharding import WHOLE, Sharding
from sparseirm.training.shrinking import Shrinking, shrinks_from, shrunk
from sparseirm.training.state import Plan, State, start


class Residual(nn.Module):
    """A block whose channels are added to those it was given."""

    def __init__(self, n: int, bias: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(n, n, 3, padding=1, bias=bias) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)), inplace=True)
        return F.relu(self.norms[1](self.second(y)) + x)


class Branches(nn.Module):
    """Operations the tracer knows nothing about: a layer norm, a product, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(18, 6), nn.Linear(18, 6), nn.LayerNorm(6)
        self.scale, self.last = nn.Parameter(torch.ones(1, 12)), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.size(0), -1)
        one = torch.tanh(self.one(x))
        return self.last(torch.cat([self.norm(one), one * self.two(x)], 1) * self.scale)


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(18, 7), nn.ReLU(), nn.Linear(7, 5), nn.Sigmoid(), nn.Linear(5, 1)
    ),
    "batch norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(18, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5, bias=False), nn.Tanh(),
        nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 1),
    ),
    "dropout": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(18, 7), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(7, 5), nn.ReLU(True),
        nn.Linear(5, 1),
    ),
    "residual": lambda: images(
        nn.BatchNorm2d(4), nn.ReLU(True), Residual(4, False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 1),
    ),
    "biased residual": lambda: images(Residual(4, True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1)),
    "pooled residual": lambda: images(
        nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), Residual(4, False), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 1),
    ),
    "convolutions": lambda: images(
        nn.Sigmoid(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(),
        nn.Conv2d(4, 3, 2, bias=False), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 1),
    ),
    "branches": Branches,
}  # fmt: skip

X = torch.randn(12, 2, 3, 3, generator=generator(0, "x"), dtype=torch.float64)


def masks(net: Network) -> dict[str, Tensor]:
    """Masks by name: of rows, of columns, of single weights."""
    found = {}
    for name, axis in (("rows", 0), ("columns", 1)):
        pieces = []
        for layer, shape in enumerate(net.layout.shapes):
            along = [-1 if place == axis else 1 for place in range(len(shape))]
            last = axis == 0 and layer == len(net.layout.shapes) - 1
            keep = (torch.arange(shape[axis]) % 2 == 0) | last
            pieces.append(keep.view(along).expand(shape).reshape(-1))
        found[name] = torch.cat(pieces)
    noise = torch.rand(net.layout.size, generator=generator(0, "mask"))
    return {**found, "single": noise < 0.15, "nearly nothing": noise < 0.01, "nothing": noise < 0}


def zeros_if_none(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def passed(net: Network, whole: Network, mask: Tensor, read_features: bool) -> Tensors:
    """Logits, representation, gradients and running statistics of one training pass."""
    weights, others, buffers = whole.parts()
    leaves = {"weights": weights, **others}
    for leaf in leaves.values():
        leaf.requires_grad_()
    with global_draws(torch.device("cpu")) as seed_all:
        seed_all(3)
        logits, features = net.outputs(X, weights * mask, others, buffers)
    target = (logits * torch.arange(12)).sum()
    if read_features:
        seen = features() if callable(features) else features
        assert seen is not None
        target = target + (seen.sin() * torch.arange(seen.shape[1])).sum()
    target.backward()
    gradients = {f"gradient {n}": zeros_if_none(leaf) for n, leaf in leaves.items()}
    return {"logits": logits.detach(), **gradients, **buffers}


@pytest.mark.parametrize("read_features", [False, True])
@pytest.mark.parametrize("kind", ["rows", "columns", "single", "nearly nothing", "nothing"])
@pytest.mark.parametrize("name", MODULES)
def test_a_shrunk_network_is_the_same_network(name: str, kind: str, read_features: bool) -> None:
    net = network(build(MODULES[name], 0).double())
    for norm in net.module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(norm.bias)  # so that constants are not zero
    mask = masks(net)[kind]
    found, wanted = (passed(one, net, mask, read_features) for one in (shrunk(net, mask, X), net))
    for tensor in wanted:
        inside = mask if tensor == "gradient weights" else ...
        torch.testing.assert_close(found[tensor][inside], wanted[tensor][inside], rtol=1e-5, atol=1e-7)


def test_what_is_dead_is_not_computed() -> None:
    net = network(build(MODULES["mlp"], 0))
    sizes = {
        kind: shrunk(net, mask, X.float()).sizes()
        for kind, mask in masks(net).items()
        if kind in ("rows", "columns")
    }
    assert sizes["rows"] == {"1": ((7, 18), (4, 18)), "3": ((5, 7), (3, 4)), "5": ((1, 5), (1, 3))}
    # Nothing reads half of the units, except those of the representation.
    assert sizes["columns"] == {"1": ((7, 18), (4, 9)), "3": ((5, 7), (5, 4)), "5": ((1, 5), (1, 5))}


def test_channels_without_weights_are_computed_once_even_in_sums() -> None:
    net = network(build(MODULES["residual"], 0))
    sizes = shrunk(net, masks(net)["rows"], X.float()).sizes()
    assert sizes["0"] == ((4, 2), (2, 2)) and sizes["3.first"] == ((4, 4), (2, 2))
    assert sizes["6"] == ((1, 4), (1, 2))


def test_a_mask_without_dead_units_leaves_the_network_as_it_is() -> None:
    net = network(build(MODULES["mlp"], 0))
    assert shrunk(net, torch.ones(net.layout.size, dtype=torch.bool), X.float()) is net


DECIDING = sorted(SPARSIFIERS.keys() - {"dense", "modular"})


@dataclass(frozen=True)
class Trial:
    """A training with a sparsifier that decides its mask early."""

    sparsifier: str = "structured"
    penalty: str = "irmv1"
    module: Callable[[], nn.Module] = noisy_module
    steps: int = 24

    def make(self, d: int) -> Sparsifier:
        options = {"decide_at": 0.3} if self.sparsifier in ("set", "rigl") else {}
        return SPARSIFIERS[self.sparsifier](budget=d // 2, **options)

    def train(
        self,
        shrinking: Shrinking | None,
        path: Path | None = None,
        resume: bool = False,
        sharding: Sharding = WHOLE,
    ) -> tuple[Network, Sparsifier, State]:
        net = network(build(self.module, 0))
        sparsifier, plan = self.make(net.layout.size), Plan(steps=self.steps, lr=0.01, penalty_weight=2.0)
        state = start(net, sparsifier, plan, 0)
        if path and resume:
            load_state(path, state)

        def on_step(state: State, record: object) -> None:
            if path and not resume and state.step == 12:
                save_state(path, state, {})

        batches = Batches(SAMPLES, 2)
        train(
            net,
            batches,
            BINARY,
            PENALTIES[self.penalty],
            sparsifier,
            plan,
            state,
            0,
            on_step,
            sharding,
            shrinking,
        )
        return net, sparsifier, state


def predictions(trained: tuple[Network, Sparsifier, State]) -> Tensor:
    """Logits of the final network."""
    net, sparsifier, state = trained
    weights = sparsifier.deploy(state.weights.detach(), state.memory)
    return net.logits(SAMPLES.x, weights, state.others, state.buffers).detach()


def assert_same_network(
    one: tuple[Network, Sparsifier, State], other: tuple[Network, Sparsifier, State]
) -> None:
    torch.testing.assert_close(predictions(one), predictions(other), rtol=1e-3, atol=1e-4)
    masks = [sparsifier.mask(state.weights.detach(), state.memory) for _, sparsifier, state in (one, other)]
    assert torch.equal(*masks)


@pytest.mark.parametrize("sparsifier", DECIDING)
def test_training_shrunk_ends_with_the_same_network(sparsifier: str) -> None:
    trial = Trial(sparsifier)
    assert_same_network(trial.train(Shrinking()), trial.train(None))


@pytest.mark.parametrize("penalty", sorted(PENALTIES.keys() - {"iga"}))
def test_every_penalty_is_the_same(penalty: str) -> None:
    trial, shrinking = Trial(penalty=penalty), Shrinking()
    assert_same_network(trial.train(shrinking), trial.train(None))
    flops = shrinking.saved["flops_per_step"]
    assert flops["after"] < 0.8 * flops["before"]


def test_a_penalty_on_gradients_by_masked_weights_is_refused() -> None:
    with pytest.raises(SettingError, match="`shrink` cannot be used with a penalty on gradients"):
        Trial(penalty="iga").train(Shrinking())


def test_a_run_resumed_after_its_network_shrank_keeps_every_bit(tmp_path: Path) -> None:
    trial = Trial()
    _, _, whole = trial.train(Shrinking(), tmp_path / "state")
    shrinking = Shrinking()
    _, _, resumed = trial.train(shrinking, tmp_path / "state", resume=True)
    assert_same_bits(tensors_of(resumed), tensors_of(whole))
    assert shrinking.saved["flops_per_step"]["after"] < shrinking.saved["flops_per_step"]["before"]


def test_micro_batches_of_a_shrunk_network() -> None:
    trial = Trial(module=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), penalty="coral")
    assert_same_network(trial.train(Shrinking(), sharding=Sharding(micro_batch=5)), trial.train(None))


def test_flops_are_those_of_the_products() -> None:
    """One layer of 6 inputs, 8 units of which 4 are left, and one output."""
    trial = Trial(module=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)))
    mask = torch.ones(56, dtype=torch.bool)
    mask[:24] = False
    net, shrinking = network(build(trial.module, 0)), Shrinking()
    sparsifier, plan = FixedMask(32, mask), Plan(steps=2)
    batches, state = Batches(SAMPLES, 2), start(net, sparsifier, plan, 0)
    train(net, batches, BINARY, PENALTIES["rex"], sparsifier, plan, state, shrinking=shrinking)
    n = len(SAMPLES)

    def products(units: int) -> int:
        """Forward, gradients of both weights, and of the units: multiplications and additions."""
        return 2 * n * (2 * 6 * units + 3 * units)

    found = shrinking.saved["flops_per_step"]
    assert found["before"] == products(8)
    assert found["after"] == products(4) + 2 * 3 * 4  # what is alike for all samples, once
    assert shrinking.saved["layers"]["0"] == {"before": [8, 6], "after": [4, 6]}
    assert shrinking.saved["seconds_per_pass"]["after"] > 0


@pytest.mark.parametrize("name", DECIDING)
def test_a_mask_is_final_only_when_it_is_decided(name: str) -> None:
    seen: list[tuple[bool, Tensor]] = []

    class Watching(Shrinking):
        def network(self, network, sparsifier, state, now, x):  # type: ignore[no-untyped-def]
            decided = now.progress >= shrinks_from(network, sparsifier)
            seen.append((decided, sparsifier.mask(state.weights.detach(), state.memory).clone()))
            return network

    Trial(name).train(Watching())
    final = [mask for decided, mask in seen if decided]
    assert final and all(torch.equal(mask, final[0]) for mask in final)
    assert [decided for decided, _ in seen] == sorted(decided for decided, _ in seen)


RECIPE = Recipe(
    width=12, steps=40, n_train=200, sparsifier="structured", density=0.6, penalty="rex", eval_every=20
)


def test_a_run_says_what_it_saved(tmp_path: Path) -> None:
    whole, found = run(RECIPE), run(RECIPE, out=tmp_path, shrink=True)
    assert found.environment == {**whole.environment, "shrink": True}
    assert "shrunk" not in whole.to_json()
    saved = json.loads((tmp_path / "result.json").read_text())["shrunk"]
    assert saved["flops_per_step"]["after"] < 0.8 * saved["flops_per_step"]["before"]
    assert found.trajectory[-1].risk == pytest.approx(whole.trajectory[-1].risk, rel=1e-4)
    assert found.last["test"].risk == pytest.approx(whole.last["test"].risk, rel=1e-4)


def test_the_command_says_what_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--width 12 --steps 20 --n-train 120 --sparsifier structured --density 0.6 --penalty rex --shrink"
    assert main(["train", *flags.split()]) == 0
    assert "of the FLOPs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(method="irm"),
        replace(RECIPE, sparsifier_options={"decide_at": 1.0}),
        Recipe(sparsifier="modular"),
        Recipe(sparsifier="gmp", sparsifier_options={"shrink_to": 1.0}),
    ],
)
def test_shrinking_without_an_effect_is_refused(recipe: Recipe) -> None:
    with pytest.raises(SettingError, match="`shrink` has no effect: no mask is decided"):
        run(replace(recipe, width=8, steps=20), shrink=True)


def test_only_the_last_stage_of_mrm_shrinks() -> None:
    recipe = Recipe(method="mrm", width=8, steps=10, n_train=120, density=0.05, penalty="rex")
    found = run(recipe, shrink=True)
    assert found.shrunk is not None and found.shrunk["flops_per_step"]["before"] > 0
    assert found.last["test"].risk == pytest.approx(run(recipe).last["test"].risk, rel=1e-4)


class Fickle(nn.Module):
    """A module whose code depends on its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if x.sum() > 0 else -x)


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(SettingError, match="cannot be traced"):
        shrunk(network(Fickle()), torch.zeros(6, dtype=torch.bool), torch.ones(3, 6))
