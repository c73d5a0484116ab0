"""Gradual pruning of whole groups: columns stay or go together, the largest stay, none comes back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sparseirm.core import Layout, Moment, SettingError
from sparseirm.randomness import generator
from sparseirm.sparsifiers import GroupMagnitude

LAYOUT = Layout(("first", "last"), (torch.Size([2, 4]), torch.Size([1, 2])))
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 9.0, 9.0])


def run(
    sparsifier: GroupMagnitude, weights: torch.Tensor = WEIGHTS, steps: int = 100, layout: Layout = LAYOUT
) -> list[list[bool]]:
    """Which groups are in use after each step."""
    memory = sparsifier.start(weights, layout, generator(0))
    seen = []
    for step in range(steps):
        sparsifier.after_step(weights, memory, Moment(step, steps, generator(0)), None)
        seen.append(memory.kept["use"].tolist())
    return seen


def test_the_largest_groups_stay_and_none_comes_back() -> None:
    used = run(GroupMagnitude(2, groups="input", budget_in="groups"))
    assert used[0] == [True] * 4 and used[-1] == [False, False, True, True]
    for before, after in pairwise(used):
        assert all(earlier or not later for earlier, later in zip(before, after, strict=True))


def test_none_comes_back_where_small_groups_are_used_most() -> None:
    layout = Layout(("wide", "narrow", "last"), tuple(map(torch.Size, ([20, 20], [20, 2], [1, 20]))))
    weights = torch.cat([torch.full((400,), 0.1), torch.ones(40), torch.ones(20)])
    weights *= torch.rand(layout.size, generator=generator(0, "weights")) + 0.5
    sparsifier = GroupMagnitude(layout.size // 2, groups="neuron")
    memory, used = sparsifier.start(weights, layout, generator(0)), []
    for step in range(100):
        sparsifier.after_step(weights, memory, Moment(step, 100, generator(0)), None)
        used.append(memory.kept["use"].clone())
    assert all(bool((before | ~after).all()) for before, after in pairwise(used))
    assert len({int(use.sum()) for use in used}) > 4  # gradually
    kept, largest = int(sparsifier.mask(weights, memory).sum()), int(memory.kept["group_sizes"].max())
    assert sparsifier.budget - largest < kept <= sparsifier.budget


def test_no_layer_dies_because_its_weights_are_small() -> None:
    layout = Layout(("first", "second", "last"), tuple(map(torch.Size, ([20, 20], [20, 20], [1, 20]))))
    small, large = (torch.rand(20, generator=generator(0, name)) for name in ("small", "large"))
    rows = torch.cat([0.01 * small, large])
    weights = torch.cat([rows.repeat_interleave(20), torch.ones(20)])
    used = torch.tensor(run(GroupMagnitude(10, budget_in="groups"), weights, layout=layout)[-1])
    for size, kept in ((small, used[:20]), (large, used[20:])):
        assert 3 <= int(kept.sum()) <= 7
        assert size[kept].min() > size[~kept].max()


def test_blocks_stay_or_go_together_by_their_mean_square() -> None:
    sparsifier = GroupMagnitude(1, groups="input", budget_in="groups", blocks=(1, 3))
    memory = sparsifier.start(WEIGHTS, LAYOUT, generator(0))
    assert sparsifier.mask(WEIGHTS, memory).tolist() == [False, True, True, True] * 2 + [True] * 2
    heavy = WEIGHTS.clone()
    heavy[0] = heavy[4] = 4.0  # 16 against (4 + 9 + 16) / 3, though the block's sum is larger
    assert sparsifier.mask(heavy, memory).tolist() == [True, False, False, False] * 2 + [True] * 2
    assert sparsifier.deploy(heavy, memory)[1:4].tolist() == [0, 0, 0]


def test_a_budget_in_weights_counts_those_without_gate() -> None:
    sparsifier = GroupMagnitude(7, groups="input")  # two of the last layer, and two inputs of two each
    memory = sparsifier.start(WEIGHTS, LAYOUT, generator(0))
    assert int(sparsifier.mask(WEIGHTS, memory).sum()) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": 5, "budget_in": "groups"}, "1 to 4 groups"),
        ({"budget": 3}, "leaves no room"),
        ({"budget": 1, "budget_in": "groups", "blocks": (1, 2)}, "add up to the 4 groups"),
        ({"budget": 1, "budget_in": "groups", "blocks": (0, 4)}, "must be positive"),
        ({"budget": 1, "groups": "rows"}, "no kind of group"),
        ({"budget": 1, "budget_in": "bytes"}, "no unit of a budget"),
        ({"budget": 1, "shrink_from": 0.9}, "must hold"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        GroupMagnitude(**{"groups": "input", **options}).start(WEIGHTS, LAYOUT, generator(0))  # type: ignore[arg-type]
