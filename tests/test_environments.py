"""Claims about batches: every environment in each, all samples in turn, a function of seed and step."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import samples
from sparseirm.core import SettingError
from sparseirm.data import Batch, Batches, DataSet, Split
from sparseirm.randomness import generator

sizes_and_batch = (
    st.lists(st.integers(1, 40), min_size=1, max_size=6)
    .map(tuple)
    .flatmap(lambda sizes: st.tuples(st.just(sizes), st.integers(len(sizes), sum(sizes))))
)


def numbered(sizes: tuple[int, ...], shuffled: bool = True) -> Batch:
    """Samples whose input is their number."""
    env = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    if shuffled:
        env = env[torch.randperm(len(env), generator=torch.Generator().manual_seed(0))]
    return Batch(torch.arange(len(env)).float()[:, None], env, env)


def batches(sizes: tuple[int, ...], batch_size: int | None, seed: int = 0) -> Batches:
    return Batches(numbered(sizes), len(sizes), batch_size, seed)


def numbers(batch: Batch) -> list[int]:
    return batch.x[:, 0].long().tolist()


# Contract: any sizes, any batch size.


@given(sizes_and_batch, st.integers(0, 50))
def test_every_batch_has_its_size_and_every_environment(
    drawn: tuple[tuple[int, ...], int], step: int
) -> None:
    sizes, batch_size = drawn
    batch = batches(sizes, batch_size).at(step)
    assert len(batch) == batch_size
    assert batch.env.unique().tolist() == list(range(len(sizes)))


@given(sizes_and_batch)
def test_shares_are_proportional_but_at_least_one(drawn: tuple[tuple[int, ...], int]) -> None:
    sizes, batch_size = drawn
    shares = batches(sizes, batch_size).shares()
    lifted = sum(batch_size * size / sum(sizes) < 1 for size in sizes)
    for share, size in zip(shares, sizes, strict=True):
        proportional = batch_size * size / sum(sizes)
        assert 1 <= share <= size
        assert share < proportional + 1 or share == 1
        assert share > proportional - 1 - lifted


@settings(max_examples=50)
@given(sizes_and_batch)
def test_no_environment_s_sample_comes_again_before_all_others_came(
    drawn: tuple[tuple[int, ...], int],
) -> None:
    sizes, batch_size = drawn
    epochs = batches(sizes, batch_size)
    seen: Counter[int] = Counter()
    for step in range(2 * epochs.per_epoch + 1):
        batch = epochs.at(step)
        seen.update(numbers(batch))
        for env in range(len(sizes)):
            times = [seen[n] for n in numbers(epochs.samples) if epochs.samples.env[n] == env]
            assert max(times) - min(times) <= 1


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 8), st.integers(0, 9))
def test_an_epoch_of_equal_environments_visits_every_sample_once(
    n_envs: int, share: int, steps: int, epoch: int
) -> None:
    epochs = batches((share * steps,) * n_envs, share * n_envs)
    assert epochs.per_epoch == steps
    seen = [n for step in range(steps) for n in numbers(epochs.at(epoch * steps + step))]
    assert sorted(seen) == list(range(share * steps * n_envs))


@given(sizes_and_batch, st.integers(0, 20), st.integers(0, 3))
def test_a_batch_is_a_function_of_seed_and_step(
    drawn: tuple[tuple[int, ...], int], step: int, seed: int
) -> None:
    sizes, batch_size = drawn
    used = batches(sizes, batch_size, seed)
    for earlier in range(3):
        used.at(earlier)
    assert numbers(used.at(step)) == numbers(batches(sizes, batch_size, seed).at(step))


def laid_out(samples: Batch, n_envs: int, shares: list[int], seed: int, step: int) -> list[int]:
    """The batch of a step, from the whole order of every environment up to it."""
    picked: list[int] = []
    for env, share in enumerate(shares):
        members = (samples.env == env).nonzero()[:, 0]
        laps = range(((step + 1) * share - 1) // len(members) + 1)
        orders = [
            torch.randperm(len(members), generator=generator(seed, "batches", env, lap)) for lap in laps
        ]
        picked += torch.cat([members[order] for order in orders])[step * share : (step + 1) * share].tolist()
    return picked


@settings(max_examples=60)
@given(sizes_and_batch, st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 3))
def test_batches_are_cut_from_a_fresh_order_of_each_environment_per_lap(
    drawn: tuple[tuple[int, ...], int], steps: list[int], seed: int
) -> None:
    sizes, batch_size = drawn
    asked = batches(sizes, batch_size, seed)
    for step in steps:  # in any order, forwards and backwards
        expected = laid_out(asked.samples, len(sizes), asked.shares(), seed, step)
        assert numbers(asked.at(step)) == expected


def test_one_order_is_drawn_per_environment_and_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    original = torch.randperm

    def randperm(n: int, **options: Any) -> torch.Tensor:
        drawn.append(n)
        return original(n, **options)

    asked = batches((40, 20), 6)
    monkeypatch.setattr(torch, "randperm", randperm)
    for step in range(20):  # two laps
        asked.at(step)
    assert sorted(drawn) == [20, 20, 40, 40]


# Behaviour.


def test_epochs_and_seeds_differ_in_their_order() -> None:
    one, other = batches((20, 20), 8, seed=0), batches((20, 20), 8, seed=1)
    orders = {tuple(numbers(b)) for b in (one.at(0), one.at(1), one.at(5), other.at(0))}
    assert len(orders) == 4


def test_without_a_batch_size_every_step_sees_the_samples_as_they_are() -> None:
    full = Batches(samples(), 2)
    assert full.at(7) is full.samples
    assert full.per_epoch == 1
    assert batches((5, 5), 4).per_epoch == 3


def test_a_batch_of_all_samples_holds_each_once() -> None:
    assert sorted(numbers(batches((9, 1), 10).at(3))) == list(range(10))


def test_weights_and_labels_stay_with_their_samples() -> None:
    n = torch.arange(12)
    weighted = Batch(n[:, None].float(), 2 * n, n % 3, weight=3 * n)
    batch = Batches(weighted, 3, 6).at(1)
    assert batch.weight is not None
    number = batch.x[:, 0].long()
    assert torch.equal(batch.y, 2 * number)
    assert torch.equal(batch.env, number % 3)
    assert torch.equal(batch.weight, 3 * number)


@pytest.mark.parametrize("batch_size", [0, 1, -3, 25])
def test_a_batch_that_cannot_hold_every_environment_once_is_refused(batch_size: int) -> None:
    message = rf"`batch_size` must lie between .* \(2\) and .* \(24\).* got {batch_size}\. Leave it out"
    with pytest.raises(SettingError, match=message):
        Batches(samples((14, 10)), 2, batch_size)


# Data sets.


def test_an_environment_without_samples_is_refused_by_name() -> None:
    split = Split(samples((3, 2)), ("north", "south", "west"))
    with pytest.raises(SettingError, match="training environment 'west' of 'towns' has no samples"):
        DataSet("towns", split, None, None, "binary", 1)


def test_a_split_counts_the_samples_of_each_environment() -> None:
    split = Split(samples((3, 2)), ("a", "b", "c"))
    assert split.counts == [3, 2, 0]
    assert len(split) == 5


def test_moving_a_data_set_keeps_all_of_it() -> None:
    split = Split(samples((3, 2)), ("a", "b"), spurious=torch.zeros(5))
    data = DataSet("towns", split, None, split, "binary", 1, "street")
    moved = data.to(torch.device("cpu"))
    assert list(moved.splits) == ["train", "test"]
    assert torch.equal(moved.train.samples.x, data.train.samples.x)
    assert (moved.name, moved.train.names, moved.spurious_name) == ("towns", ("a", "b"), "street")
    far = split.to(torch.device("meta"))
    assert far.spurious is not None
    assert {far.samples.y.device.type, far.spurious.device.type} == {"meta"}


def test_moving_a_batch_moves_every_tensor() -> None:
    batch = Batch(torch.ones(2, 1), torch.ones(2), torch.zeros(2), weight=torch.ones(2))
    moved = batch.to(torch.device("meta"))
    assert {getattr(moved, part).device.type for part in ("x", "y", "env", "weight")} == {"meta"}
