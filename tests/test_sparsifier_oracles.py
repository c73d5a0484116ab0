"""Claims about each sparsifier's mathematics: formulas of the papers, sampling, finite differences."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from makers import SAMPLES
from sparseirm.core import Layout, Memory, Moment, SettingError, Sparsifier
from sparseirm.data import Batches
from sparseirm.losses import BINARY
from sparseirm.models import build, network
from sparseirm.penalties import irmv1
from sparseirm.randomness import generator
from sparseirm.schedules import cosine, cubic
from sparseirm.sparsifiers import (
    SET,
    SPARSIFIERS,
    EdgePopup,
    FixedMask,
    GradualMagnitude,
    HardConcrete,
    ProbMask,
    RandomMask,
    RigL,
    SoftThreshold,
    StructuredProbMask,
)
from sparseirm.sparsifiers.budgets import best, project_within, raised, shares
from sparseirm.sparsifiers.gates import uniform
from sparseirm.sparsifiers.groups import groups_of
from sparseirm.sparsifiers.l0 import hard_concrete, open_probability
from sparseirm.sparsifiers.projection import project, top_k
from sparseirm.training.loop import train
from sparseirm.training.state import Plan, State, forget, score_optimizer, start

close = torch.testing.assert_close
LAYOUT = Layout(("a", "b", "c"), (torch.Size([6, 4]), torch.Size([4, 6]), torch.Size([2, 6])))
D = LAYOUT.size


def moment(step: int, steps: int = 100) -> Moment:
    return Moment(step, steps, generator(0, step))


def normal(*names: str | int, d: int = D) -> Tensor:
    return torch.randn(d, generator=generator(0, *names))


def begun(sparsifier: Sparsifier, layout: Layout = LAYOUT) -> tuple[Tensor, Memory]:
    weights = normal("weights", d=layout.size)
    return weights, sparsifier.start(weights, layout, generator(0, "scores"))


def smallest(values: Tensor, n: int) -> set[int]:
    return set(values.argsort()[:n].tolist())


def ones(mask: Tensor) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


# Budgets.


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=6), fraction=st.floats(0, 1))
def test_shares_sum_to_the_whole_and_are_each_within_one_of_proportional(
    sizes: list[int], fraction: float
) -> None:
    k = round(fraction * sum(sizes))
    parts = shares(k, sizes)
    assert sum(parts) == k
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size
        assert abs(part - k * size / sum(sizes)) < 1


def test_best_per_layer_is_top_k_of_every_layer() -> None:
    scores, sizes = normal("scores"), torch.tensor(LAYOUT.sizes)
    mask = LAYOUT.split(best(scores, 20, sizes))
    for (name, layer), k in zip(LAYOUT.split(scores).items(), (8, 8, 4), strict=True):
        assert torch.equal(mask[name].flatten(), top_k(layer.flatten(), k))
    assert torch.equal(best(scores, 20), top_k(scores, 20))


def test_project_within_projects_every_layer_onto_its_share() -> None:
    scores = normal("scores").abs()
    expected = torch.cat([layer.flatten().clone() for layer in LAYOUT.split(scores).values()])
    for layer, share in zip(LAYOUT.split(expected).values(), (8, 8, 4), strict=True):
        project(layer.view(-1), share)
    found = project_within(scores, 20, torch.zeros(3).double(), torch.tensor(LAYOUT.sizes))
    assert found.shape == (3,)
    close(scores, expected)


def test_a_multiplier_rises_with_the_excess_and_restarts_within_the_budget() -> None:
    two = torch.tensor(2.0)
    assert raised(two, torch.tensor(0.4), 0.5) == 2.2
    assert raised(two, torch.tensor(0.0), 0.5) == raised(two, torch.tensor(-0.4), 0.5) == 0


# Edge-popup.


def test_the_straight_through_gradient_is_that_of_the_identity() -> None:
    weights, memory = begun(EdgePopup(20))
    scores, upstream = memory.learned["scores"].requires_grad_(), normal("upstream")
    effective = EdgePopup(20).effective(weights.requires_grad_(), memory, moment(0))
    mask = top_k(scores.detach(), 20)
    assert torch.equal(effective, weights * mask)
    by_weight, by_score = torch.autograd.grad(effective, (weights, scores), upstream)
    assert torch.equal(by_weight, upstream * mask)
    assert torch.equal(by_score, upstream * weights)


def test_edge_popup_starts_with_a_random_mask_and_keeps_it_from_decide_at() -> None:
    weights, memory = begun(EdgePopup(20, decide_at=0.5))
    assert memory.learned["scores"].unique().numel() == D
    for step in range(60):
        memory.learned["scores"] += normal("scores", step)
        EdgePopup(20, decide_at=0.5).after_step(weights, memory, moment(step), None)
        assert ("mask" in memory.kept) == (step >= 49)
        if step == 49:
            assert torch.equal(memory.kept["mask"], top_k(memory.learned["scores"], 20))


# Gradual magnitude pruning.


def test_gmp_is_magnitude_top_k_at_the_cubic_density_whenever_the_mask_is_due() -> None:
    sparsifier = GradualMagnitude(20, every=0.1, shrink_from=0.2, shrink_to=0.55)
    memory = begun(sparsifier)[1]
    expected = torch.ones(D, dtype=torch.bool)
    for step in range(100):
        weights = normal("weights", step)
        sparsifier.after_step(weights, memory, moment(step), None)
        if step + 1 in (10, 20, 30, 40, 50, 55):
            expected = top_k(weights.abs(), round(cubic((step + 1) / 100, 0.2, 0.55, D, 20)))
        assert torch.equal(memory.kept["mask"], expected)
        assert sparsifier.mask(weights, memory)[~expected].sum() == 0
    assert expected.sum() == 20


@pytest.mark.parametrize(("when", "dense_steps"), [(0.0, 0), (0.3, 30), (1.0, 100)])
def test_gmp_without_time_to_shrink_prunes_once(when: float, dense_steps: int) -> None:
    sparsifier = GradualMagnitude(20, shrink_from=when, shrink_to=when)
    weights, memory = begun(sparsifier)
    counts = [int(memory.kept["mask"].sum())]
    for step in range(100):
        sparsifier.after_step(weights, memory, moment(step), None)
        counts.append(int(memory.kept["mask"].sum()))
    assert counts == [D] * dense_steps + [20] * (101 - dense_steps)


# Hard concrete gates.


@pytest.mark.parametrize("temperature", [0.3, 2 / 3, 1.0])
@pytest.mark.parametrize("stretch", [0.05, 0.1, 0.5])
def test_the_expected_l0_norm_is_the_monte_carlo_mean_of_open_gates(
    temperature: float, stretch: float
) -> None:
    log_alpha, n = torch.linspace(-4, 4, 9).double(), 50_000
    u = uniform(torch.empty(n, 9, dtype=torch.float64), generator(0))
    sampled = (hard_concrete(log_alpha, u, temperature, stretch) > 0).double().mean(0)
    exact = open_probability(log_alpha, temperature, stretch)
    assert ((sampled - exact).abs() <= 4 * (exact * (1 - exact) / n).sqrt()).all()


def test_hard_concrete_is_the_paper_s_formula() -> None:
    log_alpha, u, beta, gamma, zeta = normal("a").double(), torch.rand(D).double(), 2 / 3, -0.1, 1.1
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta)
    expected = torch.minimum(torch.ones(()), torch.maximum(torch.zeros(()), s * (zeta - gamma) + gamma))
    close(hard_concrete(log_alpha, u, beta, 0.1), expected.double())
    expected = torch.sigmoid(log_alpha - beta * torch.tensor(-gamma / zeta).log())
    close(open_probability(log_alpha, beta, 0.1), expected)


def test_the_price_of_l0_follows_its_excess_and_its_gradient_is_per_weight() -> None:
    sparsifier = HardConcrete(20, shrink_to=0.1, multiplier_lr=0.5)
    weights, memory = begun(sparsifier)
    assert sparsifier.price(memory) == 0
    sparsifier.after_step(weights, memory, moment(12), None)
    density = open_probability(memory.learned["log_alpha"], 2 / 3, 0.1)
    multiplier = 0.5 * (density.mean() - 20 / D)
    close(memory.kept["multiplier"], multiplier)
    log_alpha = memory.learned["log_alpha"].requires_grad_()
    (gradient,) = torch.autograd.grad(sparsifier.price(memory), log_alpha)  # type: ignore[arg-type]
    close(gradient, multiplier * density * (1 - density) / D)


def test_l0_deploys_gates_without_noise_and_folds_them_into_the_weights_when_decided() -> None:
    sparsifier = HardConcrete(20)
    weights, memory = begun(sparsifier)
    log_alpha = memory.learned["log_alpha"] = 2 * normal("log_alpha") - 1
    gates = (torch.sigmoid(log_alpha) * 1.2 - 0.1).clamp(0, 1)
    assert gates[top_k(log_alpha, 20)].unique().numel() > 10
    expected = weights * gates * top_k(log_alpha, 20)
    close(sparsifier.deploy(weights, memory), expected)
    sparsifier.after_step(weights, memory, moment(24), None)
    close(sparsifier.effective(weights, memory, moment(25)), expected)


# Soft threshold reparameterisation.


def test_soft_thresholds_are_the_paper_s_formula_and_its_gradient() -> None:
    weights, memory = begun(SoftThreshold(20))
    memory.learned["thresholds"] = torch.tensor([-1.0, 0.0, -0.5], requires_grad=True)
    t, upstream = memory.learned["thresholds"], normal("upstream")
    effective = SoftThreshold(20).effective(weights.requires_grad_(), memory, moment(0))
    by_weight, by_threshold = torch.autograd.grad(effective, (weights, t), upstream)
    parts = zip(*(LAYOUT.split(v).values() for v in (weights, effective, upstream, by_weight)), strict=True)
    for layer, (w, e, g, gw) in enumerate(parts):
        above = w.abs() > torch.sigmoid(t[layer])
        assert 0 < above.sum() < w.numel()
        close(e, torch.where(above, w - w.sign() * torch.sigmoid(t[layer]), 0.0))
        close(gw, g * above)
        slope = torch.sigmoid(t[layer]) * (1 - torch.sigmoid(t[layer]))
        close(by_threshold[layer], -(g * w.sign() * above).sum() * slope)


def test_str_keeps_the_weights_furthest_above_their_threshold() -> None:
    weights, memory = begun(SoftThreshold(20))
    thresholds = memory.learned["thresholds"] = torch.tensor([3.0, 0.5, 5.0])
    weights /= 2
    margin = weights.abs() - thresholds.sigmoid().repeat_interleave(torch.tensor(LAYOUT.sizes))
    assert 0 < (margin > 0).sum() < 20
    expected = weights.sign() * margin.clamp_min(0) * top_k(margin, 20)
    close(SoftThreshold(20).deploy(weights, memory), expected)
    SoftThreshold(20).after_step(weights, memory, moment(24), None)
    close(SoftThreshold(20).effective(weights, memory, moment(25)), expected)


def test_the_price_of_str_raises_thresholds_only_while_too_many_weights_are_left() -> None:
    sparsifier = SoftThreshold(20, shrink_to=0.1, multiplier_lr=0.5)
    weights, memory = begun(sparsifier)
    sparsifier.after_step(weights, memory, moment(10), None)
    above = (weights.abs() > torch.sigmoid(torch.tensor(-5.0))).float().mean()
    close(memory.kept["multiplier"], 0.5 * (above - 20 / D))
    thresholds = memory.learned["thresholds"].requires_grad_()
    (gradient,) = torch.autograd.grad(sparsifier.price(memory), thresholds)  # type: ignore[arg-type]
    close(gradient, -memory.kept["multiplier"] * torch.sigmoid(-thresholds) / 3)
    memory.learned["thresholds"] = torch.full((3,), 9.0)
    sparsifier.after_step(weights / 10, memory, moment(11), None)
    assert sparsifier.price(memory) == 0


@pytest.mark.parametrize("name", ["l0", "str"])
def test_the_price_drives_the_count_to_the_budget(name: str) -> None:
    """A run whose loss alone would keep every weight."""
    sparsifier = SPARSIFIERS[name](budget=300, decide_at=1.0, shrink_to=0.5, multiplier_lr=0.3)
    layout = Layout(("w",), (torch.Size([10, 100]),))
    weights = torch.rand(1000, generator=generator(0), requires_grad=True)
    memory = sparsifier.start(weights.detach(), layout, generator(1))
    learned = [tensor.requires_grad_() for tensor in memory.learned.values()]
    optimizer = torch.optim.Adam(learned, lr=sparsifier.score_lr)
    for step in range(1000):
        optimizer.zero_grad()
        effective = sparsifier.effective(weights, memory, moment(step, 1000))
        ((effective - 1).square().mean() + sparsifier.price(memory)).backward()
        optimizer.step()
        with torch.no_grad():
            sparsifier.after_step(weights, memory, moment(step, 1000), None)
    scores = learned[0].detach()
    count = {
        "l0": lambda: open_probability(scores, 2 / 3, 0.1).sum(),
        "str": lambda: (weights.detach() > scores.sigmoid()).sum(),
    }[name]
    assert abs(float(count()) - 300) < 75


# Dynamic sparse training.


def changes(sparsifier: SET | RigL) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    """Step, weights before, gradient, mask before and after, fresh weights, of a run of random updates."""
    weights, memory = begun(sparsifier)
    for step in range(100):
        weights = weights + 0.1 * normal("update", step)
        before, gradient, old = weights.clone(), normal("gradient", step), memory.kept["mask"]
        fresh = sparsifier.after_step(weights, memory, moment(step), gradient)
        yield step, before, gradient, old, memory.kept["mask"], fresh
        if fresh is not None:
            assert not weights[fresh].any()
            assert torch.equal(weights[~fresh], before[~fresh])


@pytest.mark.parametrize("maker", [SET, RigL])
def test_dynamic_masks_have_k_ones_in_every_step_and_change_only_when_due(maker: type[SET | RigL]) -> None:
    for step, _, _, old, new, fresh in changes(maker(20, every=0.1, decide_at=0.75)):
        assert new.sum() == 20
        due = step + 1 in (10, 20, 30, 40, 50, 60, 70)
        assert (fresh is not None) == due
        assert torch.equal(old, new) or due
        if fresh is not None:
            assert torch.equal(fresh, new & ~old)


@pytest.mark.parametrize("maker", [SET, RigL])
def test_the_smallest_weights_in_use_are_dropped_ever_fewer(maker: type[SET | RigL]) -> None:
    dropped = []
    for step, before, _, old, new, fresh in changes(maker(20, every=0.1, drop=0.5, decide_at=0.75)):
        if fresh is not None:
            n = round(20 * cosine(step / 75, 0.5))
            gone = smallest(before.abs().masked_fill(~old, torch.inf), n)
            assert ones(old & ~new) <= gone
            dropped.append(n)
    assert dropped == sorted(dropped, reverse=True)
    assert dropped[0] > dropped[-1]


def test_rigl_grows_exactly_the_largest_gradients_among_the_inactive() -> None:
    for step, before, gradient, old, new, fresh in changes(RigL(20, every=0.1, drop=0.5, decide_at=0.75)):
        if fresh is None:
            continue
        n = round(20 * cosine(step / 75, 0.5))
        survivors = ones(old) - smallest(before.abs().masked_fill(~old, torch.inf), n)
        inactive = [i for i in range(D) if i not in survivors]
        grown = sorted(inactive, key=lambda i: -abs(float(gradient[i])))[:n]
        assert ones(new) == survivors | set(grown)


def test_set_grows_at_random_and_by_the_generator_only() -> None:
    one, same = (list(changes(SET(20, every=0.1))) for _ in range(2))
    assert all(torch.equal(a[4], b[4]) for a, b in zip(one, same, strict=True))
    old, other_noise = one[9][3], replace(moment(9), noise=generator(1))
    memory = Memory({}, {"mask": old})
    SET(20, every=0.1).after_step(one[9][1].clone(), memory, other_noise, None)
    assert not torch.equal(memory.kept["mask"], one[9][4])


def test_rigl_without_a_gradient_says_so() -> None:
    weights, memory = begun(RigL(20, every=0.1))
    with pytest.raises(SettingError, match="rigl grows by the gradient"):
        RigL(20, every=0.1).after_step(weights, memory, moment(9), None)


def test_the_loop_hands_rigl_the_dense_gradient_and_forgets_the_history_of_grown_weights() -> None:
    net = network(build(lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), 0))
    plan, sparsifier = Plan(steps=2, lr=1e-2, l2=0.0, penalty_weight=0.0), RigL(20, every=0.5, drop=0.5)
    state = start(net, sparsifier, plan, seed=0)
    effective = (state.weights.detach() * state.memory.kept["mask"]).requires_grad_()
    logits = net.logits(SAMPLES.x, effective, state.others, state.buffers)
    risks = [BINARY.value(logits, SAMPLES.y)[SAMPLES.env == env].mean() for env in (0, 1)]
    (gradient,) = torch.autograd.grad(torch.stack(risks).mean(), effective)
    old, seen = state.memory.kept["mask"], []

    def look(state: State, record: Any) -> None:
        if not seen:
            seen.append((state.memory.kept["mask"], state.optimizers["weights"].state[state.weights]))
            new, history = seen[0]
            fresh = new & ~old
            assert fresh.any()
            assert gradient.abs()[fresh].min() >= gradient.abs()[~new].max()
            assert not history["exp_avg"][fresh].any()
            assert history["exp_avg"][new & old].any()

    batches = Batches(SAMPLES, 2, None, 0)
    train(net, batches, BINARY, irmv1, sparsifier, plan, state, on_step=look)
    assert seen


def test_forgetting_nothing_changes_nothing() -> None:
    net = network(nn.Linear(2, 1))
    state = start(net, RandomMask(1), Plan(), seed=0)
    forget(state, None)
    assert not state.optimizers["weights"].state


# Masks that never change.


def test_a_random_mask_gives_every_weight_the_same_chance() -> None:
    weights = torch.zeros(D)
    draws = [RandomMask(20).start(weights, LAYOUT, generator(i)).kept["mask"] for i in range(2000)]
    chances = torch.stack(draws).double().mean(0)
    assert (chances - 20 / D).abs().max() < 5 * (1 / 3 * 2 / 3 / 2000) ** 0.5


def test_a_fixed_mask_is_the_given_one() -> None:
    given_mask = top_k(normal("mask"), 20)
    sparsifier = FixedMask(20, given_mask)
    weights, memory = begun(sparsifier)
    assert torch.equal(sparsifier.mask(weights, memory), given_mask)
    assert torch.equal(sparsifier.effective(weights, memory, moment(0)), weights * given_mask)
    memory.kept["mask"][:] = True
    assert given_mask.sum() == 20


def test_a_mask_that_does_not_fit_is_refused() -> None:
    mask = top_k(normal("mask"), 20)
    for budget, wrong in ((19, mask), (20, mask.float()), (20, mask.view(6, 10))):
        with pytest.raises(
            SettingError, match=r"`given` must be a bool vector of `budget` \(\d+\) ones; got"
        ):
            FixedMask(budget, wrong)
    with pytest.raises(SettingError, match=r"for each of the 60 maskable weights; got 59"):
        begun(FixedMask(20, top_k(normal("mask"), 20)[torch.arange(D) != int((~mask).nonzero()[0])]))


# Structured gates.

CONVOLUTIONS = Layout(
    ("conv", "deep", "hidden", "head"),
    (torch.Size([4, 2, 3, 3]), torch.Size([3, 4, 1, 1]), torch.Size([5, 3]), torch.Size([1, 5])),
)


def structured(kind: str, budget: int, **settings: Any) -> StructuredProbMask:
    return StructuredProbMask(budget, groups=kind, **settings)


def test_groups_are_columns_rows_and_channels() -> None:
    by = {kind: CONVOLUTIONS.split(groups_of(CONVOLUTIONS, kind)) for kind in ("input", "neuron", "channel")}
    assert by["input"]["conv"].tolist() == [[[[c] * 3] * 3 for c in (0, 1)]] * 4
    assert by["neuron"]["hidden"].tolist() == [[row] * 3 for row in range(5)]
    assert by["channel"]["conv"].tolist() == [[[[c] * 3] * 3] * 2 for c in range(4)]
    assert by["channel"]["deep"].flatten(1).tolist() == [[c] * 4 for c in (4, 5, 6)]
    gated = {kind: {n for n, g in groups.items() if (g >= 0).all()} for kind, groups in by.items()}
    assert gated == {"input": {"conv"}, "neuron": {"hidden"}, "channel": {"conv", "deep"}}
    for kind, groups in by.items():
        assert all((g == -1).all() for n, g in groups.items() if n not in gated[kind])


def test_a_model_without_such_groups_is_refused() -> None:
    flags = "`--sparsifier-options groups {}`".format
    with pytest.raises(SettingError) as channel:
        begun(structured("channel", 20))
    with pytest.raises(SettingError) as neuron:
        groups_of(Layout(("a", "b"), (torch.Size([4, 2, 3, 3]), torch.Size([1, 4]))), "neuron")
    offer = "this model has no {} to mask; choose other `groups`: {} or {}."
    assert str(channel.value) == offer.format("channel", flags("input"), flags("neuron"))
    assert str(neuron.value) == offer.format("neuron", flags("input"), flags("channel"))


@pytest.mark.parametrize(
    ("kind", "layout", "budget"),
    [("input", LAYOUT, 50), ("neuron", LAYOUT, 30), ("channel", CONVOLUTIONS, 70)],
)
def test_the_gradient_of_a_group_s_probability_is_that_of_finite_differences(
    kind: str, layout: Layout, budget: int
) -> None:
    sparsifier = structured(kind, budget, gradient_floor=0.0)
    weights, memory = begun(sparsifier, layout)
    memory.kept = {n: t.double() if t.is_floating_point() else t for n, t in memory.kept.items()}
    n = len(memory.learned["probabilities"])
    s = (0.1 + 0.8 * torch.rand(n, generator=generator(2), dtype=torch.float64)).requires_grad_()

    def effective(w: Tensor, s: Tensor) -> Tensor:
        return sparsifier.effective(w, Memory({"probabilities": s}, memory.kept), moment(10))

    assert torch.autograd.gradcheck(effective, (weights.double().requires_grad_(), s), eps=1e-7, atol=1e-4)


def test_weights_of_a_group_share_one_gate_and_those_without_stay() -> None:
    sparsifier = structured("neuron", 30)
    memory = begun(sparsifier)[1]
    memory.learned["probabilities"].fill_(0.5)
    gates = LAYOUT.split(sparsifier.effective(torch.ones(D), memory, moment(10)))
    assert (gates["c"] == 1).all()
    for layer in ("a", "b"):
        assert (gates[layer] == gates[layer][:, :1]).all()
    assert torch.cat([gates["a"][:, 0], gates["b"][:, 0]]).unique().numel() == 10


@pytest.mark.parametrize("budget", [18, 19, 25, 31, 59, 60])
def test_the_largest_number_of_most_probable_groups_that_fits_is_kept_whole(budget: int) -> None:
    sparsifier = structured("neuron", budget)
    weights, memory = begun(sparsifier)
    for step in range(40):
        if "mask" not in memory.kept:
            memory.learned["probabilities"] += 0.3 * normal("scores", step, d=10)
        sparsifier.after_step(weights, memory, moment(step), None)
        mask, group = sparsifier.mask(weights, memory), memory.kept["group"]
        whole = [mask[group == g].unique().tolist() for g in range(10)]
        assert all(len(values) == 1 for values in whole)
        assert mask[group == -1].all()
        assert mask.sum() <= budget
        left = [g for g in range(10) if not whole[g][0]]
        if left and "mask" not in memory.kept:
            probabilities = memory.learned["probabilities"]
            following = max(left, key=lambda g: (probabilities[g], -g))
            assert mask.sum() + (group == following).sum() > budget
            assert all(probabilities[g] >= probabilities[following] for g in range(10) if whole[g][0])
    assert "mask" in memory.kept


def test_with_groups_of_one_weight_it_is_probmask() -> None:
    layout = Layout(("w", "head"), (torch.Size([12, 1]), torch.Size([1, 3])))
    plain, grouped = ProbMask(5), structured("neuron", 8)
    weights = normal("weights", d=15)
    one = plain.start(weights[:12], layout, generator(0))
    other = grouped.start(weights, layout, generator(0))
    for step in range(40):
        for memory in (one, other):
            memory.learned["probabilities"] += 0.1 * normal("scores", step, d=12)
        plain.after_step(weights[:12], one, moment(step), None)
        grouped.after_step(weights, other, moment(step), None)
        close(other.learned["probabilities"], one.learned["probabilities"])
        close(
            grouped.effective(weights, other, moment(step + 1))[:12],
            plain.effective(weights[:12], one, moment(step + 1)),
        )
        assert torch.equal(grouped.mask(weights, other)[:12], plain.mask(weights[:12], one))


def test_a_budget_in_groups_keeps_as_many_groups() -> None:
    sparsifier = structured("input", 3, budget_in="groups")
    weights, memory = begun(sparsifier)
    for step in range(40):
        sparsifier.after_step(weights, memory, moment(step), None)
        kept = sparsifier.mask(weights, memory)
        assert LAYOUT.split(kept)["a"].all(0).sum() == 3
        assert kept.sum() == 3 * 6 + 36


def test_a_structured_sample_is_one_draw_for_the_whole_run() -> None:
    sparsifier = structured("neuron", 40, decide_at=1.0, final="sample")
    weights, memory = begun(sparsifier)
    assert memory.kept["draw"].shape == (10,)
    memory.learned["probabilities"].fill_(0.5)
    drawn = memory.kept["draw"] < 0.5
    mask, group = sparsifier.mask(weights, memory), memory.kept["group"]
    assert torch.equal(mask[group >= 0], drawn[group[group >= 0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: structured("rows", 20), "no kind of group is named 'rows'"),
        (lambda: structured("neuron", 20, budget_in="layers"), "no unit of a budget is named 'layers'"),
        (lambda: structured("neuron", 20, per_layer=True), "`per_layer` has no effect on groups"),
        (lambda: begun(structured("input", 40)), "leaves no room for a group of 6 weights beside the 36"),
        (lambda: begun(structured("input", 5, budget_in="groups")), "must be 1 to 4 groups; got 5"),
        (lambda: EdgePopup(20, decide_at=0), "cannot be decided before the first step; got 0"),
        (lambda: EdgePopup(20, score_lr=0), "`score_lr` must be positive; got 0"),
        (lambda: GradualMagnitude(20, shrink_from=0.5), "`shrink_from` <= `shrink_to` must hold"),
        (lambda: GradualMagnitude(20, every=0), "`every` must be between 0 and 1; got 0"),
        (lambda: HardConcrete(20, first_open=1), "`first_open` must be between 0 and 1; got 1"),
        (lambda: HardConcrete(20, stretch=0), "`stretch` must be positive"),
        (lambda: SoftThreshold(20, multiplier_lr=-1), "`multiplier_lr` must be positive; got -1"),
        (lambda: SoftThreshold(20, shrink_to=0.5), "`shrink_to` <= `decide_at` must hold"),
        (lambda: RigL(20, drop=1.5), "`drop` must be between 0 and 1; got 1.5"),
        (lambda: SET(20, decide_at=2), "must hold in"),
    ],
)
def test_a_setting_out_of_range_is_named(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


@pytest.mark.parametrize(("score_eps", "eps"), [(1.0, 1e-12), (0.5, 1e-12), (0.0, 1e-3)])
def test_probabilities_of_weights_that_matter_little_move_slower(score_eps: float, eps: float) -> None:
    sparsifier = ProbMask(2, score_lr=0.1, score_eps=score_eps)
    gradient = torch.tensor([1.0, 0.25, 1e-3, 0.0])  # of four weights, so that 1 / d is 0.25
    memory = sparsifier.start(torch.ones(4), Layout(("w",), (torch.Size([4]),)), generator(0))
    scores = memory.learned["probabilities"].requires_grad_()
    optimizer = score_optimizer(memory, sparsifier, eps)
    scores.grad = gradient.clone()
    optimizer.step()
    close(1 - scores.detach(), 0.1 * gradient / (gradient + (score_eps / 4 or eps)))


def test_a_negative_epsilon_is_refused() -> None:
    with pytest.raises(SettingError, match=r"`score_eps` must not be negative; got -1\.0"):
        ProbMask(2, score_eps=-1.0)
