"""Claims about the projection onto the budget and the choice of the largest scores."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from sparseirm.randomness import generator
from sparseirm.sparsifiers import project, projection, top_k

values = st.one_of(
    st.floats(-2, 3), st.sampled_from([0.0, 0.5, 1.0, 1 / 3, 1e-9, 1 - 1e-9]), st.floats(-1e6, 1e6)
)
vectors = st.integers(1, 40).flatmap(lambda n: arrays(np.float64, n, elements=values))
shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-6, 0.01, 0.5, 1.0]))
EDGES = {
    "one entry": [2.0],
    "all ones": [1.0] * 9,
    "all the same": [0.3] * 7,
    "all negative": [-1.0, -2.0, -0.1],
    "all zero": [0.0] * 5,
    "two steps apart": [5.0, 5.0, 3.0, 3.0, 1.0, 1.0],
    "huge and tiny": [1e12, 1e-12, 1.0, -1e12, 0.5],
    "nearly equal": [0.5, 0.5 + 1e-15, 0.5 - 1e-15, 0.5],
}


def exact(scores: np.ndarray, budget: float) -> np.ndarray:
    """The projection by its breakpoints: the sum is linear in v between two of them."""
    if scores.clip(0, 1).sum() <= budget:
        return scores.clip(0, 1)
    points = np.unique(np.concatenate([[0.0], scores, scores - 1]).clip(min=0))
    sums = np.array([(scores - v).clip(0, 1).sum() for v in points])
    after = max(1, int(np.argmax(sums <= budget)))
    before, (left, right) = after - 1, sums[after - 1 : after + 1]
    v = points[before] + (points[after] - points[before]) * (left - budget) / (left - right)
    projected: np.ndarray = (scores - v).clip(0, 1)
    return projected


def projected(scores: Tensor, budget: float, guess: Tensor | None = None) -> Tensor:
    result = scores.clone()
    project(result, budget, guess)
    return result


def rounding(scores: np.ndarray) -> float:
    """How far a sum of differences with numbers this large may be off."""
    return 1e-9 + len(scores) * np.finfo(scores.dtype).eps * float(np.abs(scores).max())


def assert_exact(scores: np.ndarray, budget: float) -> None:
    found = projected(torch.from_numpy(scores), budget).numpy()
    np.testing.assert_allclose(found, exact(scores, budget), rtol=0, atol=rounding(scores))
    if scores.clip(0, 1).sum() > budget:
        assert abs(found.sum() - budget) <= 1e-6 * budget + rounding(scores)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Number of passes over the scores since it was last asked for."""
    counted, original = [], projection._total

    def total(scores: Tensor, v: Tensor) -> Tensor:
        counted.append(v)
        return original(scores, v)

    def since_last() -> int:
        number = len(counted)
        counted.clear()
        return number

    monkeypatch.setattr(projection, "_total", total)
    return since_last


# Oracle: the exact solution, and what characterises it.


@settings(max_examples=600)
@given(vectors, shares)
def test_the_projection_is_the_exact_one(scores: np.ndarray, share: float) -> None:
    assert_exact(scores, share * len(scores))


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_the_projection_is_exact_at_the_edges(name: str, share: float) -> None:
    scores = np.array(EDGES[name])
    assert_exact(scores, share * len(scores))


def test_the_projection_is_exact_for_a_thousand_random_vectors() -> None:
    noise = np.random.default_rng(0)
    for _ in range(1000):
        d = int(noise.integers(1, 200))
        assert_exact(noise.normal(0.5, noise.choice([0.01, 0.3, 3]), d), noise.uniform(0, d))


@settings(max_examples=200)
@given(vectors, shares, st.integers(0, 1000))
def test_no_point_of_the_set_lies_in_a_better_direction(scores: np.ndarray, share: float, seed: int) -> None:
    """The variational inequality ``<s - p, z - p> <= 0`` for every ``z`` in the set."""
    budget = share * len(scores)
    p = projected(torch.from_numpy(scores), budget).numpy()
    z = np.random.default_rng(seed).uniform(0, 1, len(scores))
    z *= min(1, budget / z.sum())
    scale = 1 + np.abs(scores).max()
    assert (scores - p) @ (z - p) <= 10 * scale * rounding(scores)


@pytest.mark.parametrize("d", [1, 1000, projection.CHUNK, projection.CHUNK + 1, 300_000])
@pytest.mark.parametrize("share", [1e-3, 0.1, 0.7])
def test_float32_sums_are_the_budget_to_one_in_a_million(d: int, share: float) -> None:
    for spread in (0.0, 1e-3, 0.5):
        scores = 0.5 + spread * torch.randn(d, generator=generator(0))
        found = projected(scores, share * d)
        assert found.min() >= 0
        assert found.max() <= 1
        expected = min(share * d, float(scores.clamp(0, 1).double().sum()))
        assert float(found.double().sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("budget", [0.001, 0.3, 1.0])
def test_budgets_up_to_one_weight_are_met_however_many_weights_there_are(budget: float) -> None:
    scores = torch.rand(100_000, generator=generator(0))
    assert float(projected(scores, budget).double().sum()) == pytest.approx(budget, rel=1e-6)


# Behaviour.


@given(vectors, shares)
def test_projecting_twice_is_projecting_once(scores: np.ndarray, share: float) -> None:
    once = projected(torch.from_numpy(scores), share * len(scores))
    torch.testing.assert_close(projected(once, share * len(scores)), once, rtol=0, atol=1e-9)


def test_scores_are_changed_in_place_by_the_multiplier_returned() -> None:
    scores = torch.tensor([0.9, 0.2, 1.4, 0.0], dtype=torch.float64)
    result = scores.clone()
    v = project(result, 1.1)
    assert (v.shape, v.dtype) == ((), torch.float64)
    torch.testing.assert_close(result, (scores - v).clamp(0, 1), rtol=0, atol=0)


def test_scores_within_the_budget_are_only_clipped() -> None:
    scores = torch.tensor([0.9, -0.2, 1.4])
    assert project(scores, torch.tensor(1.9001)) == 0
    assert scores.tolist() == pytest.approx([0.9, 0.0, 1.0])


@given(vectors, shares, st.floats(-1e9, 1e9))
def test_a_guess_does_not_change_the_result(scores: np.ndarray, share: float, guess: float) -> None:
    s = torch.from_numpy(scores)
    cold = projected(s, share * len(scores))
    warm = projected(s, share * len(scores), torch.tensor(guess, dtype=torch.float64))
    torch.testing.assert_close(warm, cold, rtol=0, atol=2 * rounding(scores))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("above", [True, False])
def test_the_slope_counts_the_scores_that_move(above: bool, dtype: torch.dtype) -> None:
    """Also those on an edge, and those that a multiplier in float64 tells apart from one in float32."""
    s = torch.rand(3000, generator=generator(0), dtype=dtype) * 2.4 - 0.2
    for v in (0.0, 0.3, float(s[7]), float(s[7]) - 1, float(s[7]) + 1e-12, float(s[7]) - 1e-12):
        t = s.double() - v
        moving = (t > 0) & (t <= 1) if above else (t >= 0) & (t < 1)
        multiplier = torch.tensor(v, dtype=torch.float64)
        assert projection._moving(s, multiplier, torch.tensor(above)) == moving.sum(), v


def test_a_good_guess_saves_passes(passes: Callable[[], int]) -> None:
    scores = torch.rand(10_000, generator=generator(0), dtype=torch.float64)
    v = project(scores.clone(), 1000.0)
    cold = passes()
    project(scores.clone(), 1000.0, v)
    assert passes() == 2 < cold


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.1, 0.5, 0.99])
def test_the_passes_of_a_gpu_are_enough_for_scores_after_a_step_of_adam(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a projected vector, one step away, with the last multiplier as the guess."""
    monkeypatch.setattr(projection, "LONGEST", projection.PASSES)
    scores = share + torch.rand(100_000, generator=generator(0))
    v = project(scores, share * len(scores))
    scores += 0.03 * torch.randn(len(scores), generator=generator(1)).sign()
    reachable = min(share * len(scores), float(scores.clamp(0, 1).double().sum()))
    found = projected(scores, share * len(scores), v).double().sum()
    assert float(found) == pytest.approx(reachable, rel=1e-6)


# The largest scores.


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30), st.data())
def test_top_k_is_the_beginning_of_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(scores)))
    largest = np.argsort(-np.array(scores), kind="stable")[:k]
    mask = top_k(torch.tensor(scores), k)
    assert mask.dtype == torch.bool
    assert mask.nonzero()[:, 0].tolist() == sorted(largest.tolist())
