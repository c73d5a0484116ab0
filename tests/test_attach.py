"""Claims about training in a loop of one's own: the same mathematics, and nothing else in the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from makers import SAMPLES, Problem, assert_same_bits, noisy_module, plain_module, sparsifier_named
from sparseirm import Outputs, SettingError, attach
from sparseirm.core import NonFiniteError, Penalty
from sparseirm.data import Batches
from sparseirm.files import DamagedFileError
from sparseirm.losses import BINARY
from sparseirm.models import build, maskable
from sparseirm.penalties import BayesianIRM, iga
from sparseirm.randomness import seed_of
from sparseirm.sparsifiers import SPARSIFIERS, ProbMask
from sparseirm.training.attach import Attachment
from sparseirm.training.state import Plan

STEPS = 20
PLAN = Plan(steps=STEPS, lr=0.01, lr_schedule="constant", penalty_weight=3.0, penalty_from=0.25)
X, Y = SAMPLES.x, SAMPLES.y.float()


class Loop:
    """A plain PyTorch loop with a sparsifier attached."""

    def __init__(
        self, module: Callable[[], nn.Module] = plain_module, sparsifier: str = "probmask", **options: Any
    ) -> None:
        self.model = build(module, seed=0)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=PLAN.lr, eps=PLAN.eps, weight_decay=2 * PLAN.l2, fused=True
        )
        chosen = sparsifier_named(sparsifier, maskable(self.model).size)
        self.sparse = attach(self.model, self.optimizer, chosen, **{"steps": STEPS, **options})

    def step(self, forward: Callable[[Tensor], Tensor] | None = None, parts: int = 1) -> None:
        self.optimizer.zero_grad()
        for x, y in zip(X.chunk(parts), Y.chunk(parts), strict=True):
            logits = (forward or self.model)(x)[:, 0]
            (F.binary_cross_entropy_with_logits(logits, y) / parts).backward()
        self.optimizer.step()

    def run(self, steps: int = STEPS, **options: Any) -> dict[str, Tensor]:
        for _ in range(steps):
            self.step(**options)
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


# The same mathematics as the training loop.


@pytest.mark.parametrize(
    ("sparsifier", "penalty"), [("probmask", iga), *((name, BayesianIRM(n_draws=3)) for name in SPARSIFIERS)]
)
def test_a_loop_of_ones_own_takes_the_steps_of_train(sparsifier: str, penalty: Penalty) -> None:
    ours = Problem(noisy_module, PLAN, sparsifier, penalty, batch_size=9).train()
    loop = Loop(noisy_module, sparsifier)
    batches = Batches(SAMPLES, 2, 9, seed=0)
    for step in range(STEPS):
        torch.manual_seed(seed_of(0, "module", step))  # dropout
        batch = batches.at(step)
        logits, parameters = loop.model(batch.x)[:, 0], tuple(loop.model.parameters())
        noise = loop.sparse.now.noise
        out = Outputs(logits, batch.y, batch.env, 2, BINARY, parameters=parameters, noise=noise)
        loop.optimizer.zero_grad()
        (out.risks.mean() + PLAN.penalty_weight_at(step) * penalty(out)).backward()
        loop.optimizer.step()
    theirs = dict(loop.model.named_parameters())
    pairs = [(loop.sparse.state.weights, ours.state.weights)]
    pairs += [(theirs[name], tensor) for name, tensor in ours.state.others.items()]
    pairs += [(loop.sparse.state.memory.learned[n], t) for n, t in ours.state.memory.learned.items()]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# What the module holds.


@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_after_the_last_step_the_module_is_the_deterministic_sparse_network(sparsifier: str) -> None:
    loop = Loop(sparsifier=sparsifier)
    tensors = loop.run()
    mask = loop.sparse.mask()
    deployed = loop.sparse.sparsifier.deploy(loop.sparse.state.weights.detach(), loop.sparse.state.memory)
    for name, weights in loop.sparse.layout.split(deployed).items():
        assert torch.equal(tensors[name], weights)
        assert not tensors[name][~mask[name]].any()
    if getattr(loop.sparse.sparsifier, "exact", True):
        assert sum(int(m.sum()) for m in mask.values()) == loop.sparse.sparsifier.budget


def test_in_evaluation_mode_the_deterministic_network_answers_and_training_is_not_disturbed() -> None:
    plain, watched = Loop(), Loop()
    budget = watched.sparse.sparsifier.budget
    for _ in range(STEPS):
        plain.step()
        watched.step()
        before = watched.model.train()(X)
        watched.model.eval()(X)
        kept = [watched.model.get_parameter(name) for name in watched.sparse.layout.names]
        assert sum(int(weight.count_nonzero()) for weight in kept) <= budget
        assert torch.equal(watched.model.train()(X), before)
    assert_same_bits(dict(plain.model.state_dict()), dict(watched.model.state_dict()))


def test_classes_and_parameters_of_the_module_stay_what_they_were() -> None:
    fresh = build(plain_module, seed=0)
    loop = Loop()
    parameters = list(loop.model.parameters())
    loop.run()
    assert [type(m) for m in loop.model.modules()] == [type(m) for m in fresh.modules()]
    assert all(a is b for a, b in zip(parameters, loop.model.parameters(), strict=True))
    assert loop.model.state_dict().keys() == fresh.state_dict().keys()


def test_only_the_named_parameters_are_masked_and_frozen_ones_never() -> None:
    loop = Loop(names=["0.weight"])
    assert loop.sparse.layout.names == ("0.weight",)
    model = plain_module()
    model.get_parameter("2.weight").requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert attach(model, optimizer, ProbMask(5), steps=3).layout.names == ("0.weight",)


# What may go on around it.


def test_clipping_and_logging_see_the_gradient_by_the_weights() -> None:
    loop = Loop(sparsifier="random")
    loop.optimizer.zero_grad()
    F.binary_cross_entropy_with_logits(loop.model(X)[:, 0], Y).backward()
    for name, mask in loop.sparse.mask().items():
        gradient = loop.model.get_parameter(name).grad
        assert gradient is not None and gradient[mask].any() and not gradient[~mask].any()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_thrown_away_leave_no_trace(set_to_none: bool) -> None:
    plain, wasteful = Loop().run(3), Loop()
    for _ in range(3):
        wasteful.model(X).square().sum().backward()
        wasteful.optimizer.zero_grad(set_to_none)
        wasteful.model.eval()(X).sum().backward()  # of no step: somebody looks at a gradient
        wasteful.optimizer.zero_grad(set_to_none)
        wasteful.model.train()
        wasteful.step()
    assert_same_bits(plain, dict(wasteful.model.state_dict()))


def test_compiled_checkpointed_and_accumulated_steps_are_the_same_steps() -> None:
    plain = Loop().run()
    compiled = Loop()
    checkpointed = Loop()
    runs = [
        Loop().run(parts=3),  # gradient accumulation over equal parts is the gradient of the whole
        compiled.run(forward=torch.compile(compiled.model, backend="aot_eager")),
        checkpointed.run(forward=lambda x: checkpoint(checkpointed.model, x, use_reentrant=False)),
    ]
    for run in runs:
        for name, tensor in plain.items():
            torch.testing.assert_close(run[name], tensor, rtol=0, atol=1e-5)


def test_a_closure_is_a_step_like_any_other() -> None:
    plain, loop = Loop(), Loop()

    def closure() -> float:
        loop.optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(loop.model(X)[:, 0], Y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    for step in range(STEPS):
        plain.step()
        given = loop.optimizer.step(closure) if step % 2 else loop.optimizer.step(closure=closure)
        assert isinstance(given, float)
    assert_same_bits(dict(plain.model.state_dict()), dict(loop.model.state_dict()))


def test_a_run_saved_and_loaded_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = Loop(sparsifier="rigl").run()
    first = Loop(sparsifier="rigl")
    first.run(7)
    first.sparse.save(tmp_path / "sparse.safetensors")
    again = Loop(sparsifier="rigl")
    again.model.load_state_dict(first.model.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.sparse.load(tmp_path / "sparse.safetensors")
    assert_same_bits(again.run(STEPS - 7), whole)
    with pytest.raises(DamagedFileError, match="does not belong to this run"):
        Loop(sparsifier="probmask").sparse.load(tmp_path / "sparse.safetensors")


def test_finish_leaves_an_ordinary_module_at_any_time() -> None:
    loop = Loop()
    loop.run(3)
    loop.sparse.finish()
    kept = sum(int(loop.model.get_parameter(n).count_nonzero()) for n in loop.sparse.layout.names)
    assert kept <= loop.sparse.sparsifier.budget
    loop.run(STEPS)  # an ordinary dense training
    assert sum(int(loop.model.get_parameter(n).count_nonzero()) for n in loop.sparse.layout.names) > kept
    attach(loop.model, loop.optimizer, ProbMask(5), steps=1)


# Refusals.


def refusal(**change: Any) -> Attachment:
    model = change.pop("model", None) or plain_module()
    optimizer = change.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    return attach(model, optimizer, ProbMask(5), **{"steps": 3, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, .*; got 0"),
        ({"names": ["0.weigth"]}, "no parameter is named '0.weigth'. Did you mean '0.weight'"),
        ({"names": []}, "no trained parameter of two or more dimensions"),
        ({"model": nn.BatchNorm1d(3)}, "no trained parameter of two or more dimensions"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)},
            "`optimizer` does not train the masked parameter '0.weight'. Make the optimiser of",
        ),
    ],
)
def test_what_cannot_be_attached_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        refusal(**change)


def test_a_second_attachment_is_refused() -> None:
    loop = Loop()
    with pytest.raises(SettingError, match="attached to this module already; `finish` it"):
        attach(loop.model, loop.optimizer, ProbMask(5), steps=3)


def test_a_step_without_gradients_or_after_the_last_is_refused() -> None:
    loop = Loop()
    with pytest.raises(SettingError, match="call `backward`, in training mode, before"):
        loop.optimizer.step()
    loop.run()
    with pytest.raises(SettingError, match=r"step 21 of a run announced with `steps=20`.* or `finish` it"):
        loop.step()


def test_a_gradient_that_is_not_finite_is_named() -> None:
    loop = Loop()
    loop.step()
    with pytest.raises(NonFiniteError, match=r"a gradient became NaN .* in step 2\. Check that every batch"):
        loop.step(forward=lambda x: loop.model(x) * torch.nan)


def test_an_optimiser_that_calls_its_closure_again_is_refused() -> None:
    model = plain_module()
    optimizer = torch.optim.LBFGS(model.parameters())
    attach(model, optimizer, ProbMask(5), steps=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    with pytest.raises(SettingError, match="LBFGS calls its closure more than once"):
        optimizer.step(closure)
