"""Claims about sparsifiers: what all of them promise, and what ProbMask does when."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makers import Problem, assert_same_bits, sparsifier_named
from sparseirm.core import Layout, Memory, Moment, SettingError, Sparsifier
from sparseirm.evaluation.metrics import deployed
from sparseirm.randomness import generator
from sparseirm.registry import lookup
from sparseirm.schedules import cubic
from sparseirm.sparsifiers import SPARSIFIERS, Dense, ProbMask
from sparseirm.training.state import Plan

LAYOUT = Layout(("a", "b", "c"), (torch.Size([6, 4]), torch.Size([4, 6]), torch.Size([2, 6])))
D = LAYOUT.size
GROWING_FROM_ZERO = {"set", "rigl"}
"""A weight that grows into a unit nobody listens to has no gradient and stays at zero."""

NEVER_DECIDED = {"modular"}
"""Its mask follows its gates to the end."""

every_sparsifier = pytest.mark.parametrize("name", SPARSIFIERS)


def moment(step: int, steps: int = 100) -> Moment:
    return Moment(step, steps, generator(0, step))


def begun(sparsifier: Sparsifier) -> tuple[Tensor, Memory]:
    weights = torch.randn(D, generator=generator(0, "weights"), requires_grad=True)
    return weights, sparsifier.start(weights, LAYOUT, generator(0, "scores"))


def copied(memory: Memory) -> Memory:
    return Memory(*({n: t.clone() for n, t in part.items()} for part in (memory.learned, memory.kept)))


def disturb(sparsifier: Sparsifier, weights: Tensor, memory: Memory, now: Moment) -> None:
    """What an optimiser does to the learned tensors that have a gradient, for better or worse."""
    tried = copied(memory)
    leaves = [tensor.requires_grad_() for tensor in tried.learned.values()]
    sparsifier.effective(weights, tried, now).sum().backward()
    for leaf, tensor in zip(leaves, memory.learned.values(), strict=True):
        if leaf.grad is not None:
            tensor += 0.1 * torch.randn(tensor.shape, generator=now.noise)


@dataclass(frozen=True)
class Step:
    """What was there before and after `after_step`, and what it returned."""

    before: tuple[Tensor, Memory]
    after: tuple[Tensor, Memory]
    fresh: Tensor | None
    gradient: Tensor


def steps_of(sparsifier: Sparsifier, steps: int = 100) -> Iterator[Step]:
    """A run of random updates; the first step is the only one without a past."""
    weights, memory = begun(sparsifier)
    for step in range(steps):
        noise = generator(0, "updates", step)
        before = weights.detach() + 0.1 * torch.randn(D, generator=noise), copied(memory)
        disturb(sparsifier, weights, before[1], moment(step, steps))
        after, gradient = (before[0].clone(), copied(before[1])), torch.randn(D, generator=noise)
        fresh = sparsifier.after_step(*after, moment(step, steps), gradient)
        yield Step(before, after, fresh, gradient)
        weights, memory = after[0].clone().requires_grad_(), after[1]


def life(sparsifier: Sparsifier, steps: int = 100) -> list[tuple[Tensor, Memory]]:
    """Weights and memory at the start and after each step of a run of random updates."""
    later = [(step.after[0].requires_grad_(), step.after[1]) for step in steps_of(sparsifier, steps)]
    return [begun(sparsifier), *later]


def assert_within_budget(sparsifier: Sparsifier, kept: int) -> None:
    """Exactly the budget; at most the budget for a sparsifier that says it is not ``exact``."""
    assert 0 < kept <= sparsifier.budget
    assert kept == sparsifier.budget or not getattr(sparsifier, "exact", True)


# Contract: every sparsifier.


@every_sparsifier
def test_it_is_a_sparsifier(name: str) -> None:
    assert isinstance(sparsifier_named(name, D), Sparsifier)


@every_sparsifier
def test_the_mask_has_exactly_budget_ones_whenever_it_is_asked_for(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for weights, memory in life(sparsifier):
        mask = sparsifier.mask(weights.detach(), memory)
        assert (mask.dtype, mask.shape) == (torch.bool, (D,))
        assert_within_budget(sparsifier, int(mask.sum()))


@every_sparsifier
def test_asking_for_the_mask_twice_gives_the_same_and_changes_nothing(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for weights, memory in life(sparsifier, steps=10):
        before = {n: t.clone() for n, t in {**memory.learned, **memory.kept}.items()}
        assert torch.equal(*(sparsifier.mask(weights.detach(), memory) for _ in range(2)))
        after = {**memory.learned, **memory.kept}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)


@every_sparsifier
def test_effective_weights_are_differentiable_in_the_weights_and_all_that_is_learned(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for step, (weights, memory) in enumerate(life(sparsifier)[:-1]):
        leaves = [weights, *(t.requires_grad_() for t in memory.learned.values())]
        effective = sparsifier.effective(weights, memory, moment(step))
        assert effective.shape == (D,)
        gradients = torch.autograd.grad(effective.square().sum(), leaves, allow_unused=True)
        assert gradients[0].ne(0).any()
        assert all(g is None or g.isfinite().all() for g in gradients)


@every_sparsifier
def test_one_moment_gives_one_draw(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for step, (weights, memory) in enumerate(life(sparsifier, steps=10)[:-1]):
        one, other = (sparsifier.effective(weights, memory, moment(step, 10)) for _ in range(2))
        assert torch.equal(one, other)


@every_sparsifier
def test_probabilities_stay_within_zero_and_one(name: str) -> None:
    for _, memory in life(sparsifier_named(name, D)):
        probabilities = memory.learned.get("probabilities", torch.zeros(1))
        assert probabilities.min() >= 0
        assert probabilities.max() <= 1


@every_sparsifier
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_after_training_the_deployed_network_has_budget_weights(name: str, optimizer: str) -> None:
    run = Problem(sparsifier=name, plan=Plan(steps=10, optimizer=optimizer)).train()
    mask = run.sparsifier.mask(run.state.weights.detach(), run.state.memory)
    assert_within_budget(run.sparsifier, int(mask.sum()))
    zeros = int(mask.sum() - deployed(run.sparsifier, run.state).count_nonzero())
    assert zeros == 0 or name in GROWING_FROM_ZERO


@every_sparsifier
def test_deployed_weights_are_zero_outside_the_mask(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for weights, memory in life(sparsifier):
        mask = sparsifier.mask(weights.detach(), memory)
        deploy = sparsifier.deploy(weights.detach(), memory)
        assert (deploy.shape, deploy.dtype, deploy.requires_grad) == ((D,), weights.dtype, False)
        assert not deploy[~mask].any()


@every_sparsifier
def test_starting_leaves_the_weights_alone(name: str) -> None:
    assert torch.equal(begun(sparsifier_named(name, D))[0], begun(Dense(D))[0])


@every_sparsifier
def test_after_step_changes_weights_only_where_they_start_afresh_or_without_effect(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for step in steps_of(sparsifier):
        (before, was), (after, memory) = step.before, step.after
        fresh = torch.zeros(D, dtype=torch.bool) if step.fresh is None else step.fresh
        assert (fresh.dtype, fresh.shape) == (torch.bool, (D,))
        if not torch.equal(before[~fresh], after[~fresh]):
            torch.testing.assert_close(sparsifier.deploy(before, was), sparsifier.deploy(after, memory))


@every_sparsifier
def test_after_step_leaves_the_gradient_and_the_shapes_of_what_is_learned_alone(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    learned = {n: t.shape for n, t in begun(sparsifier)[1].learned.items()}
    for number, step in enumerate(steps_of(sparsifier)):
        noise = generator(0, "updates", number)
        torch.randn(D, generator=noise)
        assert torch.equal(step.gradient, torch.randn(D, generator=noise))
        assert {n: t.shape for n, t in step.after[1].learned.items()} == learned


@every_sparsifier
def test_the_price_is_a_finite_scalar_of_what_is_learned(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    for _, memory in life(sparsifier):
        leaves = [tensor.requires_grad_() for tensor in memory.learned.values()]
        price = sparsifier.price(memory)
        if isinstance(price, Tensor):
            assert price.shape == ()
            assert price.isfinite()
            assert all(g.isfinite().all() for g in torch.autograd.grad(price, leaves))
        else:
            assert price == 0


@every_sparsifier
def test_all_randomness_comes_from_the_generators(name: str) -> None:
    lives = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        lives.append(life(sparsifier_named(name, D)))
        assert torch.equal(torch.get_rng_state(), state)
    for (one, memory), (other, twin) in zip(*lives, strict=True):
        assert torch.equal(one, other)
        assert_same_bits(memory.learned | memory.kept, twin.learned | twin.kept)


@pytest.mark.parametrize("name", [name for name in SPARSIFIERS if name not in NEVER_DECIDED])
def test_a_mask_that_can_be_decided_is_the_same_from_then_on(name: str) -> None:
    sparsifier = sparsifier_named(name, D)
    decided = getattr(sparsifier, "decide_at", getattr(sparsifier, "shrink_to", 0.0))
    late = life(sparsifier)[round(100 * decided) :]
    masks = [sparsifier.mask(weights.detach(), memory) for weights, memory in late]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    for step, (weights, memory) in enumerate(late[:-1], start=round(100 * decided)):
        effective = sparsifier.effective(weights, memory, moment(step))
        assert torch.equal(effective, sparsifier.deploy(weights, memory))


def has_layers(name: str) -> bool:
    """Whether a budget per layer is on offer; ``structured`` inherits the option and refuses it."""
    return name != "structured" and hasattr(SPARSIFIERS[name], "per_layer")


every_layered = pytest.mark.parametrize("name", [*filter(has_layers, SPARSIFIERS)])


@every_layered
def test_per_layer_keeps_the_same_fraction_of_every_layer(name: str) -> None:
    sparsifier = SPARSIFIERS[name](budget=20, per_layer=True)
    for weights, memory in life(sparsifier):
        mask = sparsifier.mask(weights.detach(), memory)
        assert [int(layer.sum()) for layer in LAYOUT.split(mask).values()] == [8, 8, 4]


@every_layered
def test_layers_compete_unless_told_otherwise(name: str) -> None:
    shares = []
    for weights, memory in life(SPARSIFIERS[name](budget=20)):
        mask = SPARSIFIERS[name](budget=20).mask(weights.detach(), memory)
        shares.append([int(layer.sum()) for layer in LAYOUT.split(mask).values()])
    assert any(share != [8, 8, 4] for share in shares)


# Behaviour: dense.


def test_dense_uses_the_weights_as_they_are() -> None:
    weights, memory = begun(Dense(D))
    assert Dense(D).effective(weights, memory, moment(3)) is weights


# Behaviour: ProbMask.


def probmask(**settings: Any) -> ProbMask:
    return ProbMask(**{"budget": 20, "shrink_from": 0.2, "shrink_to": 0.5, "decide_at": 0.8, **settings})


def test_expected_weights_are_within_the_schedule_s_budget_after_every_step() -> None:
    seen = life(probmask())
    for step, (_, memory) in enumerate(seen[1:]):
        allowed = cubic(step / 100, 0.2, 0.5, D, 20)
        assert float(memory.learned["probabilities"].sum()) <= allowed * (1 + 1e-6)


def test_it_is_dense_until_shrink_from_and_at_the_budget_from_shrink_to() -> None:
    weights, memory = begun(probmask())
    totals = []
    for step in range(80):
        memory.learned["probabilities"] += 1  # every weight wants to be kept
        probmask().after_step(weights.detach(), memory, moment(step), gradient=None)
        totals.append(float(memory.learned["probabilities"].sum()))
    assert totals[:21] == [D] * 21
    assert all(a > b for a, b in pairwise(totals[20:51]))
    assert totals[50:] == pytest.approx([20] * 30, rel=1e-6)


def test_before_any_shrinking_every_gate_is_open() -> None:
    weights, memory = begun(probmask())
    assert torch.equal(probmask().effective(weights, memory, moment(0)), weights)


def test_the_temperature_falls_in_a_straight_line_until_the_mask_is_decided() -> None:
    sparsifier = probmask(first_temperature=2.0, last_temperature=0.1)
    memory = begun(sparsifier)[1]
    memory.learned["probabilities"].fill_(0.5)
    noise = torch.rand(D, generator=generator(0, 40)).logit()
    gates = sparsifier.effective(torch.ones(D), memory, Moment(40, 100, generator(0, 40)))
    halfway = 2.0 + (0.1 - 2.0) * 40 / 80
    torch.testing.assert_close(gates, torch.sigmoid(noise / halfway))


def test_from_decide_at_the_mask_is_fixed_to_the_most_probable_weights() -> None:
    seen = life(probmask())
    assert ["mask" in memory.kept for _, memory in seen] == [False] * 80 + [True] * 21
    weights, memory = seen[80]
    fixed = probmask().mask(weights.detach(), memory)
    probabilities = memory.learned["probabilities"]
    assert probabilities[fixed].min() >= probabilities[~fixed].max()
    for weights, memory in seen[80:]:
        assert torch.equal(probmask().mask(weights.detach(), memory), fixed)
        assert torch.equal(probmask().effective(weights, memory, moment(90)), weights * fixed)


def test_decide_at_one_leaves_the_mask_random_to_the_end() -> None:
    seen = life(probmask(decide_at=1.0))
    assert not any("mask" in memory.kept for _, memory in seen)
    weights, memory = seen[-2]
    one, other = (
        probmask().effective(weights, memory, replace(moment(99), noise=generator(i))) for i in (0, 1)
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shrink_from": 0.6}, r"`shrink_from` <= `shrink_to` <= `decide_at` must hold .* got 0.6, 0.5, 0.8"),
        ({"shrink_to": 0.9}, r"got 0.2, 0.9, 0.8"),
        ({"shrink_from": -0.1}, r"in \[0, 1\]"),
        ({"decide_at": 1.1}, r"in \[0, 1\]"),
        ({"shrink_from": 0, "shrink_to": 0, "decide_at": 0}, "cannot be decided before the first step"),
        ({"score_lr": 0}, "`score_lr` must be positive; got 0"),
        ({"first_temperature": -1}, "`first_temperature` must be positive; got -1"),
        ({"last_temperature": float("nan")}, "`last_temperature` must be positive; got nan"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        probmask(**settings)


# Another package's sparsifier.

TOY = """
from dataclasses import dataclass
from sparseirm.core import Memory

@dataclass(frozen=True)
class First:
    budget: int
    score_lr: float = 0.0

    def start(self, weights, layout, noise):
        return Memory({}, {"mask": torch.arange(len(weights)) < self.budget})

    def effective(self, weights, memory, now):
        return weights * memory.kept["mask"]

    def price(self, memory):
        return 0.0

    def after_step(self, weights, memory, now, gradient):
        return None

    def mask(self, weights, memory):
        return memory.kept["mask"]

    def deploy(self, weights, memory):
        return weights * memory.kept["mask"]
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed package with a sparsifier of this name."""
    info = tmp_path / "toy_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparseirm.sparsifier]\ntoy = toy_package:First\n")
    (tmp_path / "toy_package.py").write_text("import torch" + TOY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy"
    sys.modules.pop("toy_package", None)


def test_a_sparsifier_of_another_package_is_found_and_trains(toy: str, tmp_path: Path) -> None:
    found = lookup("sparsifier", SPARSIFIERS, toy)
    assert isinstance(found(budget=20), Sparsifier)
    problem = Problem(sparsifier=toy)
    whole = problem.train(tmp_path / "checkpoint", save_at=5)
    kept = deployed(whole.sparsifier, whole.state).nonzero()[:, 0]
    assert kept.tolist() == list(range(whole.sparsifier.budget))
    assert_same_bits(whole.tensors, problem.train(tmp_path / "checkpoint", resume=True).tensors)


def test_a_misspelt_sparsifier_of_another_package_is_suggested(toy: str) -> None:
    with pytest.raises(SettingError, match=r"no sparsifier is named 'toyy'\. Did you mean 'toy'"):
        lookup("sparsifier", SPARSIFIERS, "toyy")
