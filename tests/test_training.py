"""Claims about the training loop, its checkpoints, its schedules and its precision."""

import math
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from makers import PLAN, SAMPLES, Problem, Run, assert_same_bits, noisy_module, plain_module
from sparseirm.core import NonFiniteError, Outputs, Penalty, SettingError, Tensors, final_from
from sparseirm.data import Batches
from sparseirm.files import DamagedFileError
from sparseirm.losses import BINARY
from sparseirm.models import build
from sparseirm.penalties import irmv1, rex
from sparseirm.sparsifiers import SPARSIFIERS, projection
from sparseirm.training import alarm, loop, precision
from sparseirm.training.alarm import PATIENCE, Alarm
from sparseirm.training.loop import Record
from sparseirm.training.state import Plan, State

close = torch.testing.assert_close
STILL = Plan(steps=8, optimizer="sgd", lr=1.0, lr_schedule="constant", momentum=0.0)


def assert_same_run(one: Run, other: Run, from_step: int = 0) -> None:
    assert_same_bits(one.tensors, other.tensors)
    assert_same_bits(one.state.buffers, other.state.buffers)
    assert one.curve[from_step:] == other.curve


def tensors_under(name: str, run: Run) -> Tensors:
    return {key: tensor for key, tensor in run.tensors.items() if key.startswith(name)}


# Resuming.


@pytest.mark.parametrize("saved_at", [1, 2, 3, 4, 7, 11])  # the mask is decided in step 4
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_resumed_run_ends_bit_for_bit_like_one_never_stopped(
    saved_at: int, optimizer: str, batch_size: int | None, tmp_path: Path
) -> None:
    problem = Problem(plan=replace(PLAN, optimizer=optimizer), batch_size=batch_size)
    whole = problem.train(tmp_path / "checkpoint", saved_at)
    resumed = problem.train(tmp_path / "checkpoint", resume=True)
    assert len(resumed.records) == PLAN.steps - saved_at
    assert_same_run(whole, resumed, from_step=saved_at)


@pytest.mark.parametrize("saved_at", [1, 3, 8])  # masks are decided in step 3 or 9, if at all
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_a_resumed_run_ends_like_one_never_stopped_with_every_sparsifier(
    sparsifier: str, saved_at: int, tmp_path: Path
) -> None:
    problem = Problem(sparsifier=sparsifier, batch_size=7)
    whole = problem.train(tmp_path / "checkpoint", saved_at)
    assert_same_run(whole, problem.train(tmp_path / "checkpoint", resume=True), from_step=saved_at)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    Problem(sparsifier="dense").train(tmp_path / "checkpoint", 3)
    with pytest.raises(DamagedFileError, match=r"does not belong to this run .* delete it to start over"):
        Problem().train(tmp_path / "checkpoint", resume=True)
    with pytest.raises(DamagedFileError, match="does not belong to this run"):
        Problem(plain_module, sparsifier="dense").train(tmp_path / "checkpoint", resume=True)


# Steps that change nothing any more are skipped.

RESTING = replace(PLAN, lr_drop=0.5, lr_stop=0.5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("sparsifier", SPARSIFIERS)
def test_skipping_steps_at_rest_changes_no_bit(
    sparsifier: str, batch_size: int | None, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(RESTING, optimizer=optimizer)
    problem = Problem(plain_module, plan, sparsifier, batch_size=batch_size)
    skipping = problem.train()
    monkeypatch.setattr(loop, "at_rest", lambda *anything: False)
    whole = problem.train()
    for name in ("weights", "others", "memory"):
        one, other = (tensors_under(name, run) for run in (whole, skipping))
        assert_same_bits(one, other)
    taken = {step: rest for step, *rest in skipping.curve}
    assert {step: rest for step, *rest in whole.curve if step in taken} == taken
    skipped = set(range(1, 13)) - set(taken)
    decided = math.ceil(12 * max(final_from(whole.sparsifier), 0.5))
    assert skipped == (set(range(decided + 1, 12)) if decided < 12 else set())


def test_a_resumed_run_skips_what_the_whole_run_skips(tmp_path: Path) -> None:
    problem = Problem(plain_module, RESTING)
    whole = problem.train(tmp_path / "checkpoint", 5)
    resumed = problem.train(tmp_path / "checkpoint", resume=True)
    assert [record.step for record in whole.records] == [1, 2, 3, 4, 5, 6, 12]
    assert [record.step for record in resumed.records] == [6, 12]
    assert_same_run(whole, resumed, from_step=5)


@pytest.mark.parametrize(
    ("module", "plan"),
    [(noisy_module, RESTING), (plain_module, PLAN), (plain_module, replace(RESTING, penalty_weight=0.0))],
    ids=["running statistics change", "the learning rate lasts", "without a penalty it lasts"],
)
def test_no_step_is_skipped_that_changes_something(module: Callable[[], nn.Module], plan: Plan) -> None:
    run = Problem(module, plan).train()
    assert len(run.records) == PLAN.steps


# Randomness.


@pytest.mark.parametrize("batch_size", [None, 7])
def test_same_seed_same_bits_whatever_the_global_random_state(batch_size: int | None) -> None:
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        runs.append(Problem(batch_size=batch_size).train())
    assert_same_run(*runs)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_another_seed_gives_another_run(batch_size: int | None) -> None:
    one, other = (Problem(seed=seed, batch_size=batch_size).train() for seed in (0, 1))
    assert one.curve != other.curve


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    undisturbed = torch.rand(3)
    torch.manual_seed(1)
    Problem(batch_size=7).train()
    assert torch.equal(torch.rand(3), undisturbed)


FAULTS = """
import resource, sys
import torch
from sparseirm.training.precision import kept_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def refill():
    torch.empty(1 << 24).fill_(1.0)

with kept_memory(int(sys.argv[1])):
    for _ in range(3):
        refill()
    before = faults()
    for _ in range(8):
        refill()
    print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_memory_of_freed_tensors_is_used_again_during_training() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    env["THP_MEM_ALLOC_ENABLE"] = "0"  # a fault for every small page
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS, how], env=env, text=True))
        for how in ("1000", str(1 << 28))  # bytes of a batch
    )
    assert kept <= given_back / 2


def test_the_users_own_settings_of_the_allocator_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert precision._mallopt.__wrapped__() is None


def test_training_leaves_the_precision_of_matrix_products_alone() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    Problem().train()
    with pytest.raises(NonFiniteError):
        Problem(penalty=lambda out: out.risks.sum() * math.nan).train()
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


# Oracle: the loss written out, and a loop written by hand.


def parameters(run: Run, module: nn.Module) -> list[Tensor]:
    """The run's trained tensors in the order of the module's parameters."""
    tensors = {**run.network.layout.split(run.state.weights.detach()), **run.state.others}
    return [tensors[name].detach() for name, _ in module.named_parameters()]


def written_out(module: nn.Module, l2: float, penalty_weight: float, divisor: float) -> Tensor:
    """(Mean risk + lambda * IRMv1 by double backward + l2 * sum of squares) / divisor."""
    risks, slopes = [], []
    for env in (0, 1):
        members = SAMPLES.env == env
        dummy = torch.ones((), requires_grad=True)
        z, y = module(SAMPLES.x[members])[:, 0], SAMPLES.y[members].float()
        risks.append(nn.functional.binary_cross_entropy_with_logits(dummy * z, y))
        slopes += torch.autograd.grad(risks[-1], dummy, create_graph=True)
    squares = torch.stack([p.square().sum() for p in module.parameters()]).sum()
    penalty = torch.stack(slopes).square().mean()
    return (torch.stack(risks).mean() + penalty_weight * penalty + l2 * squares) / divisor


@pytest.mark.parametrize("divide_loss", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize(("penalty_from", "acting"), [(0.0, True), (1.0, False)])
def test_one_sgd_step_follows_the_gradient_of_the_loss_written_out(
    divide_loss: bool, l2: float, penalty_from: float, acting: bool
) -> None:
    plan = replace(STILL, steps=1, penalty_weight=4.0, penalty_from=penalty_from, l2=l2)
    problem = Problem(plain_module, replace(plan, divide_loss=divide_loss), "dense")
    module = build(plain_module, seed=0)
    weight = 4.0 if acting else 0.0
    written_out(module, l2, weight, divisor=1 + weight if divide_loss else 1.0).backward()
    for before, after in zip(module.parameters(), parameters(problem.train(), module), strict=True):
        assert before.grad is not None
        close(after, before.detach() - before.grad, rtol=1e-5, atol=1e-7)


def test_twenty_steps_are_those_of_a_plain_pytorch_loop() -> None:
    plan = Plan(steps=20, lr=0.01, eps=1e-8, l2=1e-2, penalty_weight=5.0, penalty_from=0.25)
    module = build(plain_module, seed=0)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in module.parameters()]
    for step in range(20):
        loss = written_out(module, plan.l2, 5.0 if step >= 5 else 0.0, divisor=1.0)
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        lr = 0.01 * (1 + math.cos(math.pi * step / 20)) / 2
        for p, g, (m, v) in zip(module.parameters(), gradients, moments, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            spread = (v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            p.data -= lr * m / (1 - 0.9 ** (step + 1)) / spread
    run = Problem(plain_module, plan, "dense").train()
    for by_hand, ours in zip(module.parameters(), parameters(run, module), strict=True):
        close(ours, by_hand.detach(), rtol=1e-5, atol=1e-5)


def test_a_sample_of_weight_two_trains_like_two_samples() -> None:
    weight = torch.arange(len(SAMPLES)) % 2 + 1
    weighted = replace(SAMPLES, weight=weight)
    repeated = SAMPLES.take(torch.arange(len(SAMPLES)).repeat_interleave(weight))
    one, other = (
        Problem(plain_module, sparsifier="dense", batch=batch).train() for batch in (weighted, repeated)
    )
    close(one.state.weights, other.state.weights, rtol=1e-4, atol=1e-5)


def test_a_record_holds_risk_and_penalty_before_the_update() -> None:
    record = Problem(plain_module, sparsifier="dense").train().records[0]
    logits = build(plain_module, seed=0)(SAMPLES.x)[:, 0].detach()
    out = Outputs(logits, SAMPLES.y, SAMPLES.env, 2, BINARY)
    assert record.step == 1
    close(record.risk, out.risks.mean())
    close(record.penalty, irmv1(out))


# Schedules.


def test_the_penalty_acts_from_its_step_on() -> None:
    plan = replace(PLAN, steps=12, penalty_weight=3.0, penalty_from=0.25)
    records = Problem(plan=plan).train().records
    assert [record.penalty_weight for record in records] == [0.0] * 3 + [3.0] * 9
    paper = Plan(steps=1500, penalty_from=200 / 1500)
    assert [paper.penalty_weight_at(step) for step in (0, 199, 200, 201)] == [0, 0, 1e4, 1e4]


def test_the_penalty_may_rise_geometrically_to_its_full_weight() -> None:
    rising = Plan(steps=10, penalty_weight=1e4, penalty_from=0.2, penalty_to=0.6)
    weights = [rising.penalty_weight_at(step) for step in range(8)]
    assert weights == pytest.approx([0, 0, 1, 10, 100, 1000, 1e4, 1e4])
    small = replace(rising, penalty_weight=0.1)
    assert [small.penalty_weight_at(step) for step in range(8)] == pytest.approx(
        [0, 0, 0, 0.025, 0.05, 0.075, 0.1, 0.1]
    )
    without = replace(rising, penalty_weight=0.0)
    assert [without.penalty_weight_at(step) for step in range(10)] == [0] * 10


def test_the_learning_rate_falls_along_a_cosine_or_stays() -> None:
    falling, constant = Plan(steps=10, lr=2.0), Plan(steps=10, lr=2.0, lr_schedule="constant")
    assert [falling.lr_at(step) for step in (0, 5, 10)] == pytest.approx([2, 1, 0])
    assert [constant.lr_at(step) for step in (0, 5, 10)] == [2, 2, 2]


# Precision.


@pytest.mark.parametrize("sparsifier", ["dense", "probmask"])
def test_bf16_keeps_everything_but_the_products_in_float32_and_stays_near(sparsifier: str) -> None:
    fp32, bf16 = (
        Problem(plain_module, replace(PLAN, precision=p), sparsifier).train() for p in ("fp32", "bf16")
    )
    assert fp32.curve != bf16.curve
    assert {record.risk.dtype for record in bf16.records} == {torch.float32}
    assert {record.penalty.dtype for record in bf16.records} == {torch.float32}
    for name, tensor in bf16.tensors.items():
        assert tensor.dtype == fp32.tensors[name].dtype != torch.bfloat16, name
    for one, other in zip(fp32.records, bf16.records, strict=True):
        close(one.risk, other.risk, rtol=0.05, atol=0)


# Errors.


def test_a_risk_that_is_not_finite_stops_the_run_and_is_named() -> None:
    spoiled = replace(SAMPLES, x=SAMPLES.x.masked_fill(SAMPLES.x > 2, float("nan")))
    with pytest.raises(NonFiniteError, match=r"the risk became nan in step 1\. Lower `lr`"):
        Problem(plain_module, batch=spoiled).train()


def test_a_penalty_that_is_not_finite_stops_the_run_and_its_step_is_named() -> None:
    seen: list[Tensor] = []

    def fails_in_step_3(out: Outputs) -> Tensor:
        seen.append(rex(out))
        return seen[-1] + (math.inf if len(seen) == 3 else 0)

    with pytest.raises(NonFiniteError, match=r"the penalty became inf in step 3\."):
        Problem(penalty=fails_in_step_3).train()


def test_on_a_device_a_number_that_is_not_finite_is_told_later_with_its_step(
    elsewhere: None,
) -> None:
    watch = Alarm(torch.device("cpu"))
    for step in range(1, PATIENCE):
        watch.look(step, risk=torch.tensor(math.nan if step == 5 else 0.5 / step), penalty=0.0)
    with pytest.raises(NonFiniteError, match=r"the risk became nan in step 5\."):
        watch.look(PATIENCE, risk=torch.tensor(math.inf), penalty=0.0)
    Alarm(torch.device("cpu")).check()
    spoiled = replace(SAMPLES, x=SAMPLES.x.masked_fill(SAMPLES.x > 2, float("nan")))
    with pytest.raises(NonFiniteError, match=r"in step 1\."):  # at the end of a run of 12 steps
        Problem(plain_module, batch=spoiled).train()


LOOKS = (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.nonzero)


@pytest.mark.usefixtures("elsewhere")
def test_an_evaluation_on_a_device_that_is_not_finite_is_told_with_the_step_that_was() -> None:
    def fails_in_step_3(out: Outputs) -> Tensor:
        seen.append(rex(out))
        return seen[-1] + (math.inf if len(seen) == 3 else 0)

    def evaluate(state: State, record: Record) -> None:
        if record.step == 8:
            raise NonFiniteError("the risk of the network is not finite after step 8.")

    seen: list[Tensor] = []
    problem = Problem(penalty=fails_in_step_3)
    net, sparsifier, state = problem.fresh()
    given = (net, Batches(problem.batch, 2), BINARY, problem.penalty, sparsifier, PLAN, state, 0, evaluate)
    with pytest.raises(NonFiniteError, match=r"the penalty became inf in step 3\."):
        loop.train(*given)


def test_a_penalty_of_one_number_in_a_vector_will_do() -> None:
    assert Problem(plain_module, penalty=lambda out: rex(out)[None]).train().state.step == PLAN.steps


class Looks(TorchFunctionMode):
    """Notes what would have to wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKS:
            self.found.append("".join(traceback.format_stack(limit=4)))
        return func(*args, **(kwargs or {}))


def steps_that_look(problem: Problem) -> dict[int, list[str]]:
    """Steps that would wait for a device, and where."""
    net, sparsifier, state = problem.fresh()
    batches = Batches(problem.batch, int(problem.batch.env.max()) + 1)
    found: dict[int, list[str]] = {}
    with Looks() as looks:

        def on_step(state: State, record: Record) -> None:
            found[record.step], looks.found = looks.found, []

        loop.train(
            *(net, batches, BINARY, problem.penalty, sparsifier, problem.plan, state, problem.seed, on_step)
        )
    assert len(found) == problem.plan.steps
    return {step: stacks for step, stacks in found.items() if stacks}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats the CPU like a device."""
    for module in (alarm, projection):
        monkeypatch.setattr(module, "at_hand", lambda device: False)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("penalty", [irmv1, rex])
@pytest.mark.parametrize("sparsifier", [name for name in SPARSIFIERS if not name.startswith("structured")])
def test_no_step_waits_for_a_device(sparsifier: str, penalty: Penalty) -> None:
    assert not steps_that_look(Problem(plain_module, sparsifier=sparsifier, penalty=penalty))


def test_on_a_cpu_every_step_looks() -> None:
    assert len(steps_that_look(Problem(plain_module))) == PLAN.steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, r"no optimizer is named 'adamm'\. Did you mean 'adam'"),
        ({"lr_schedule": "linear"}, r"no lr_schedule is named 'linear'\..* Known: constant, cosine"),
        ({"precision": "fp16"}, r"no precision is named 'fp16'"),
        ({"steps": 0}, "`steps` must be at least 1; got 0"),
        ({"lr": 0.0}, "`lr` must be positive; got 0.0"),
        ({"lr": float("nan")}, "`lr` must be positive; got nan"),
        ({"eps": -1e-8}, "`eps` must be positive"),
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\); got 1.0"),
        ({"l2": -1}, "`l2` must be 0 or more; got -1"),
        ({"penalty_weight": -1}, "`penalty_weight` must be 0 or more"),
        ({"penalty_to": -0.5}, r"`penalty_to` must be a fraction of the run, in \[0, 1\]; got -0.5"),
        ({"lr_drop": 0.0}, r"`lr_drop` must be a factor in \(0, 1\]; got 0.0"),
        ({"lr_stop": 1.5}, r"`lr_stop` must be a fraction of the run, in \(0, 1\]; got 1.5"),
        ({"penalty_from": 1.5}, r"`penalty_from` must be a fraction of the run, in \[0, 1\]; got 1.5"),
    ],
)
def test_a_plan_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Plan(**settings)


def test_the_learning_rate_drops_once_the_penalty_acts() -> None:
    plan = Plan(steps=10, lr=2.0, lr_schedule="constant", penalty_from=0.3, lr_drop=0.25)
    assert [plan.lr_at(step) for step in (0, 2, 3, 9)] == [2.0, 2.0, 0.5, 0.5]
    assert replace(plan, penalty_weight=0.0).lr_at(9) == 2.0


def test_the_schedule_may_be_over_early_once_the_penalty_acts() -> None:
    plan = Plan(steps=10, lr=2.0, penalty_from=0.2, lr_stop=0.5)
    whole = Plan(steps=10, lr=2.0, penalty_from=1.0)
    assert [plan.lr_at(step) for step in (0, 1)] == [whole.lr_at(step) for step in (0, 1)]
    assert [plan.lr_at(step) for step in (2, 3, 4, 5, 9)] == [whole.lr_at(step) for step in (4, 6, 8, 10, 10)]
