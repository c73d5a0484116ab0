"""Claims about the relaxed Bernoulli gates."""

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from sparseirm.randomness import generator
from sparseirm.sparsifiers.gates import LARGEST, SMALLEST, gated, uniform
from sparseirm.sparsifiers.projection import CHUNK

temperatures = pytest.mark.parametrize("temperature", [0.03, 0.5, 1.0, 2.0])
close = torch.testing.assert_close


@dataclass(frozen=True)
class Draw:
    """Weights, probabilities and noise of one draw."""

    weights: Tensor
    probabilities: Tensor
    u: Tensor

    def gated(self, temperature: float, floor: float = 0.0) -> Tensor:
        return gated(self.weights, self.probabilities, self.u, temperature, floor)

    def plain(self, temperature: float) -> Tensor:
        """The formula, left to automatic differentiation."""
        odds = self.probabilities.logit() + self.u.logit()
        return self.weights * torch.sigmoid(odds / temperature)

    def gradients(self, product: Tensor) -> tuple[Tensor, ...]:
        upstream = torch.linspace(-1, 2, len(self.u), dtype=self.u.dtype)
        return torch.autograd.grad(product, (self.weights, self.probabilities), upstream)


def draw(d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Draw:
    w, s, u = (torch.rand(d, generator=generator(seed, name), dtype=dtype) for name in "wsu")
    return Draw(
        (2 * w - 1).requires_grad_(),
        (0.02 + 0.96 * s).requires_grad_(),
        (0.02 + 0.96 * u),
    )


def gates_of(probability: float, n: int, temperature: float) -> Tensor:
    like = torch.ones(n)
    u = uniform(like, generator(0, "gates", str(probability)))
    return gated(like, torch.full((n,), probability), u, temperature, 0.0)


# Oracle: the paper's formula, automatic differentiation, finite differences.


@temperatures
def test_gates_are_the_paper_s_with_two_gumbel_draws(temperature: float) -> None:
    g1, g0 = (-(-torch.rand(500, generator=generator(i), dtype=torch.float64).log()).log() for i in (1, 0))
    s = draw(500).probabilities.detach()
    kept, dropped = (((p.log() + g) / temperature).exp() for p, g in ((s, g1), (1 - s, g0)))
    gates = gated(torch.ones_like(s), s, (g1 - g0).sigmoid(), temperature, floor=0.0)
    close(gates, kept / (kept + dropped), rtol=1e-9, atol=1e-12)


def test_one_uniform_draw_gives_the_noise_of_two_gumbel_draws() -> None:
    noise = uniform(torch.empty(20_000, dtype=torch.float64), generator(0)).logit()
    assert kstest(noise.numpy(), "logistic").pvalue > 0.01


@temperatures
def test_the_gradient_is_that_of_finite_differences(temperature: float) -> None:
    d = draw(20)
    assert torch.autograd.gradcheck(
        lambda w, s: gated(w, s, d.u, temperature, 0.0), (d.weights, d.probabilities), eps=1e-7, atol=1e-4
    )


@temperatures
@pytest.mark.parametrize("d", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_value_and_gradient_are_those_of_the_plain_formula_for_any_length(d: int, temperature: float) -> None:
    one = draw(d)
    close(one.gated(temperature), one.plain(temperature), rtol=1e-9, atol=1e-12)
    for ours, plain in zip(
        one.gradients(one.gated(temperature)), one.gradients(one.plain(temperature)), strict=True
    ):
        close(ours, plain, rtol=1e-7, atol=1e-12)


@temperatures
def test_float32_is_as_good_as_float32_gets(temperature: float) -> None:
    single, double = draw(1000, torch.float32), draw(1000)
    double = Draw(*(t.detach().double() for t in (single.weights, single.probabilities, single.u)))
    assert single.gated(temperature).dtype == torch.float32
    close(single.gated(temperature).double(), double.gated(temperature), rtol=1e-4, atol=1e-6)


def test_the_floor_bounds_what_the_gradient_divides_by() -> None:
    s = torch.tensor([1e-6, 0.3], dtype=torch.float64, requires_grad=True)
    one = Draw(torch.ones(2, dtype=torch.float64, requires_grad=True), s, torch.full((2,), 0.6).double())
    free, floored = (one.gradients(one.gated(1.0, floor))[1] for floor in (0.0, 0.01))
    spread = (s * (1 - s)).detach()
    close(floored, free * spread / spread.clamp_min(0.01))


@pytest.mark.parametrize("d", [5, CHUNK + 1, 3 * CHUNK - 1])
def test_a_generator_gives_the_bits_of_the_draws_it_would_give_at_once(d: int) -> None:
    one = draw(d, torch.float32)
    drawn = gated(one.weights, one.probabilities, uniform(one.weights, generator(3)), 0.5, 0.0)
    piecewise = gated(one.weights, one.probabilities, generator(3), 0.5, 0.0)
    assert torch.equal(drawn, piecewise)
    for left, right in zip(one.gradients(drawn), one.gradients(piecewise), strict=True):
        assert torch.equal(left, right)


# Theory: gates are Bernoulli.


@temperatures
@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.97])
def test_a_gate_is_open_with_its_probability_at_any_temperature(
    probability: float, temperature: float
) -> None:
    n = 100_000
    opened = (gates_of(probability, n, temperature) > 0.5).double().mean().item()
    assert abs(opened - probability) <= 4 * (probability * (1 - probability) / n) ** 0.5


def test_at_low_temperature_gates_are_zero_or_one() -> None:
    gates = gates_of(0.3, 100_000, temperature=1e-4)
    assert torch.minimum(gates, 1 - gates).gt(0.01).double().mean() < 1e-3


# Behaviour at the ends.


@pytest.mark.parametrize("u", [SMALLEST, 0.5, LARGEST])
@temperatures
def test_certain_gates_are_exact_and_all_gradients_finite(u: float, temperature: float) -> None:
    tiny = torch.finfo(torch.float32).tiny
    s = torch.tensor([0.0, 1.0, tiny, 1e-20, 1 - 2**-24], requires_grad=True)
    one = Draw(torch.tensor([3.0, -2.0, 1.0, 1.0, 1.0], requires_grad=True), s, torch.full((5,), u))
    for floor in (0.0, 1e-20):
        product = one.gated(temperature, floor)
        assert product[:2].tolist() == [0, -2]
        assert product.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in one.gradients(product))


def test_uniform_draws_never_reach_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.tensor([0.0, 1.0]))
    u = uniform(torch.empty(2), generator(0))
    assert (u > 0).all()
    assert (u < 1).all()
    assert u.logit().isfinite().all()


def test_uniform_draws_are_a_function_of_their_generator_in_the_type_asked_for() -> None:
    like = torch.empty(3, dtype=torch.float64)
    one, same, other = (uniform(like, generator(seed)) for seed in (0, 0, 1))
    assert one.dtype == torch.float64
    assert torch.equal(one, same) and not torch.equal(one, other)
