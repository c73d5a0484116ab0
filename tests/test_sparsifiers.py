"""Claims about sparsifiers: what all of them promise, and what ProbMask does when."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from makers import Problem, sparsifier_named
from sparseirm.core import Layout, Memory, Moment, SettingError, Sparsifier
from sparseirm.evaluation.metrics import deployed
from sparseirm.randomness import generator
from sparseirm.schedules import cubic
from sparseirm.sparsifiers import SPARSIFIERS, Dense, ProbMask
from sparseirm.training.state import Plan

D = 60
every_sparsifier = pytest.mark.parametrize("name", SPARSIFIERS)


def moment(step: int, steps: int = 100) -> Moment:
    return Moment(step, steps, generator(0, step))


def begun(sparsifier: Sparsifier) -> tuple[Tensor, Memory]:
    weights = torch.randn(D, generator=generator(0, "weights"), requires_grad=True)
    return weights, sparsifier.start(weights, Layout(("w",), (torch.Size([D]),)), generator(0, "scores"))


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


def life(sparsifier: Sparsifier, steps: int = 100) -> list[tuple[Tensor, Memory]]:
    """Weights and memory at the start and after each step of a run of random updates."""
    weights, memory = begun(sparsifier)
    seen = [(weights, memory)]
    for step in range(steps):
        memory = copied(memory)
        disturb(sparsifier, weights, memory, moment(step, steps))
        sparsifier.after_step(weights.detach(), memory, moment(step, steps), gradient=None)
        seen.append((weights, memory))
    return seen


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
        assert mask.sum() == sparsifier.budget


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
    assert deployed(run.sparsifier, run.state).count_nonzero() == run.sparsifier.budget


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
