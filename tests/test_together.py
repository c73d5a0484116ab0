"""Runs that are trained together end as each would alone, whatever they do and whatever happens to others."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from makers import PLAN, noisy_module, plain_module, samples, sparsifier_named
from sparseirm import NonFiniteError, Recipe, Result, SettingError, run, run_together
from sparseirm import together as engine
from sparseirm.core import Memory, Moment, Outputs, Penalty
from sparseirm.data import Batches
from sparseirm.experiments.estimates import Estimates
from sparseirm.experiments.executors import local
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import Apart, _Work, carry_out_at_once, sweep
from sparseirm.losses import BINARY
from sparseirm.models import Network, build, network
from sparseirm.penalties import PENALTIES, irmv1, rex
from sparseirm.randomness import generator
from sparseirm.sparsifiers import SPARSIFIERS, ProbMask, project, top_k
from sparseirm.sparsifiers.gates import gated
from sparseirm.training.checkpoint import tensors_of
from sparseirm.training.loop import Record, train
from sparseirm.training.state import Plan, State, start
from sparseirm.training.together import Member, _Stack, train_together, why_apart

RARELY = {"set": {"every": 0.45}, "rigl": {"every": 0.45}}
"""Weights that came into use a step ago are all of the size of Adam's rate; there the last bit decides."""


@dataclass(frozen=True)
class Kind:
    """What some of the runs have in common."""

    sparsifier: str = "probmask"
    penalty: Penalty = irmv1
    plan: Plan = PLAN

    def make(self, d: int) -> Any:
        return replace(sparsifier_named(self.sparsifier, d), **RARELY.get(self.sparsifier, {}))  # type: ignore[type-var]


def members(
    kinds: list[Kind], batch_size: int | None = None, module: Callable[[], nn.Module] = plain_module
) -> tuple[Network, list[Member]]:
    """A run for each kind, with seeds and inputs of their own; and the network of the last one."""
    found = []
    for seed, kind in enumerate(kinds):
        net = network(build(module, seed))
        sparsifier = kind.make(net.layout.size)
        batch = samples((40, 30))
        batch = replace(batch, x=torch.randn(batch.x.shape, generator=generator(seed, "inputs")))
        state = start(net, sparsifier, kind.plan, seed)
        batches = Batches(batch, 2, batch_size, seed)
        found.append(Member(batches, kind.penalty, sparsifier, kind.plan, state, seed))
    return net, found


def alone(net: Network, member: Member) -> None:
    """Carries out a run by itself."""
    parts = (member.penalty, member.sparsifier, member.plan, member.state, member.seed, member.on_step)
    try:
        train(net, member.batches, BINARY, *parts)
    except Exception as error:
        member.failure = error


def compare(
    kinds: list[Kind], batch_size: int | None = None
) -> tuple[list[list[Record]], list[list[Record]]]:
    """Carries out runs together and alone, compares where they end, and returns the records of both."""
    (net, ours), (_, theirs) = members(kinds, batch_size), members(kinds, batch_size)
    assert why_apart(net, BINARY, ours) is None
    records: tuple[list[list[Record]], list[list[Record]]] = ([], [])
    for way, runs in zip(records, (ours, theirs), strict=True):
        for member in runs:
            way.append([])
            member.on_step = lambda state, record, to=way[-1]: to.append(record)  # type: ignore[misc]
    train_together(net, BINARY, ours)
    for member in theirs:
        alone(net, member)
    for one, other in zip(ours, theirs, strict=True):
        assert one.failure is None and other.failure is None
        mine, single = tensors_of(one.state), tensors_of(other.state)
        assert mine.keys() == single.keys() and one.state.step == other.state.step
        for name, tensor in single.items():
            torch.testing.assert_close(mine[name].detach(), tensor.detach(), rtol=1e-5, atol=1e-5)
    for mine_, single_ in zip(*records, strict=True):
        assert [record.step for record in mine_] == [record.step for record in single_]
        for a, b in zip(mine_, single_, strict=True):
            assert (a.penalty_weight, a.total) == (b.penalty_weight, b.total)
            torch.testing.assert_close((a.risk, a.penalty), (b.risk, b.penalty), rtol=1e-5, atol=1e-5)
    return records


LONGER = replace(PLAN, steps=20)
GENTLE = replace(LONGER, lr=3e-3, penalty_weight=1.0, l2=0.0)


@pytest.mark.parametrize("batch_size", [None, 12])
@pytest.mark.parametrize("name", sorted(set(PENALTIES) - {"iga"}))
def test_with_every_penalty(name: str, batch_size: int | None) -> None:
    compare([Kind(penalty=PENALTIES[name], plan=plan) for plan in (LONGER, LONGER, GENTLE)], batch_size)


@pytest.mark.parametrize("batch_size", [None, 12])
@pytest.mark.parametrize("name", sorted(SPARSIFIERS))
def test_with_every_sparsifier(name: str, batch_size: int | None) -> None:
    compare([Kind(name, plan=plan) for plan in (LONGER, LONGER, replace(LONGER, lr=3e-3))], batch_size)


@pytest.mark.parametrize("batch_size", [None, 12])
def test_methods_and_rates_may_differ(batch_size: int | None) -> None:
    sgd = replace(LONGER, optimizer="sgd", lr=0.1, divide_loss=True)
    kinds = [
        Kind("dense", PENALTIES["groupdro"], GENTLE),
        Kind("probmask", rex, LONGER),
        Kind("l0", rex, sgd),
    ]
    kinds += [
        Kind("probmask", irmv1, LONGER),
        Kind("topk", PENALTIES["irmv1_split"], replace(LONGER, lr=2e-3)),
    ]
    compare([*kinds, *kinds], batch_size)


def test_lengths_may_differ_and_steps_at_rest_are_skipped() -> None:
    resting = replace(LONGER, penalty_from=0.1, lr_stop=0.5)
    plans = [LONGER, resting, replace(LONGER, steps=7), replace(resting, lr_stop=0.6)]
    records, _ = compare([Kind(plan=plan) for plan in plans])
    taken = [[record.step for record in each] for each in records]
    assert taken == [[*range(1, 21)], [*range(1, 11), 20], [*range(1, 8)], [*range(1, 13), 20]]


def test_several_classes() -> None:
    recipes = [
        Recipe(
            data="full_colored_digits", n_train=300, width=12, steps=20, penalty=p, seed=seed, eval_every=5
        )
        for seed in (0, 1)
        for p in ("rex", "fishr")
    ]
    for found, recipe in zip(run_together(recipes, together=4), recipes, strict=True):
        _close(_result(found), run(recipe))


def _result(found: Result | Exception) -> Result:
    if isinstance(found, Exception):
        raise found
    return found


def _close(mine: Result, single: Result, percent: float = 0.0) -> None:
    """The same run up to rounding, and accuracies up to so many per cent."""
    assert mine.recipe == single.recipe and mine.environment["together"] > 1
    assert (mine.n_weights, mine.budget, mine.kept) == (single.n_weights, single.budget, single.kept)
    for a, b in zip(mine.trajectory, single.trajectory, strict=True):
        assert (a.step, a.density) == (b.step, b.density)
        for split, score in b.scores.items():
            assert a.scores[split].accuracy == pytest.approx(score.accuracy, abs=percent or 1e-9)


def test_whole_runs_on_digits_agree() -> None:
    """Some hundred steps on, rounding may have moved a sample or two of those near the boundary."""
    common = Recipe(n_train=400, width=16, steps=300, eval_every=100, penalty="rex")
    recipes = [replace(common, seed=seed, method=m) for seed in (0, 1) for m in ("irm", "sparseirm")]
    recipes.append(replace(common, penalty_weight=10.0, lr=1e-3))
    recipes.append(common.adapted("erm"))
    for found, recipe in zip(run_together(recipes, together=6), recipes, strict=True):
        _close(_result(found), run(recipe), percent=0.5)


def poisoned(out: Outputs) -> Tensor:
    """A penalty that is not finite once a risk has fallen."""
    return torch.where(out.risks.amin() < 0.6, torch.nan, 1.0) * out.risks.sum()


def test_a_run_that_is_not_finite_fails_as_alone_and_harms_no_other() -> None:
    kinds = [Kind(), Kind(penalty=poisoned, plan=replace(LONGER, lr=0.1)), Kind("dense", plan=LONGER)]
    (net, ours), (_, theirs) = members(kinds), members(kinds)
    train_together(net, BINARY, ours)
    for member in theirs:
        alone(net, member)
    assert isinstance(ours[1].failure, NonFiniteError) and str(ours[1].failure) == str(theirs[1].failure)
    assert 0 < ours[1].state.step == theirs[1].state.step < 20
    for one, other in ((ours[0], theirs[0]), (ours[2], theirs[2])):
        assert one.failure is None and one.state.step == one.plan.steps
        torch.testing.assert_close(one.state.weights, other.state.weights, rtol=1e-5, atol=1e-6)


def ridge(out: Outputs) -> Tensor:
    """A penalty of somebody's own that reads the weights."""
    return sum((p.square().sum() for p in out.parameters), torch.zeros(()))


class Surprise(Exception):
    """What a penalty of somebody's own may raise."""


@pytest.mark.parametrize("short", [False, True], ids=["in the penalty", "for want of memory"])
def test_a_pass_of_all_that_fails_ends_no_run_that_would_not_end_alone(
    short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprising(out: Outputs) -> Tensor:
        if not short and float(out.risks.detach().amin()) < 0.6:
            raise Surprise
        return out.risks.sum()

    kinds = [Kind(), Kind(penalty=surprising, plan=replace(LONGER, lr=0.1)), Kind("dense", plan=LONGER)]
    (net, ours), (_, theirs) = members(kinds), members(kinds)
    outputs = _Stack.outputs

    def scarce(self: _Stack) -> None:
        if self.step == 3:
            raise MemoryError
        outputs(self)

    if short:
        monkeypatch.setattr(_Stack, "outputs", scarce)
    train_together(net, BINARY, ours)
    for member in theirs:
        alone(net, member)
    assert [type(member.failure) for member in ours] == [type(member.failure) for member in theirs]
    assert isinstance(ours[1].failure, Surprise) is not short
    for one, other in zip(ours, theirs, strict=True):
        assert one.state.step == other.state.step > 0
        torch.testing.assert_close(one.state.weights, other.state.weights, rtol=1e-5, atol=1e-5)


def test_what_is_raised_between_steps_ends_that_run_only() -> None:
    net, runs = members([Kind(), Kind(), Kind()])

    def stop(state: State, record: Record) -> None:
        if record.step == 3:
            raise OSError("the disk is full")

    runs[1].on_step = stop
    train_together(net, BINARY, runs)
    assert [member.state.step for member in runs] == [12, 3, 12]
    assert [member.failure is None for member in runs] == [True, False, True]


@dataclass(frozen=True)
class Breaking(ProbMask):
    """A sparsifier of somebody's own, which breaks in the middle."""

    rows = False

    def after_step(self, weights: Tensor, memory: Memory, now: Moment, gradient: Tensor | None) -> None:
        if now.step == 3:
            raise Surprise
        super().after_step(weights, memory, now, gradient)


@dataclass(frozen=True)
class BreakingRows(Breaking):
    """The same for several runs at once."""

    rows = True


@pytest.mark.parametrize("breaking", [Breaking, BreakingRows])
def test_what_a_sparsifier_raises_after_a_step_ends_its_runs_only(breaking: type[Breaking]) -> None:
    net, runs = members([Kind(), Kind(), Kind("dense")])
    told: list[int] = []
    runs[1].sparsifier = breaking(budget=runs[1].sparsifier.budget)  # type: ignore[attr-defined]
    runs[1].on_step = lambda state, record: told.append(record.step)
    train_together(net, BINARY, runs)
    assert [type(member.failure) for member in runs] == [type(None), Surprise, type(None)]
    assert [runs[0].state.step, runs[2].state.step] == [12, 12]
    assert told == [1, 2, 3]


def test_what_cannot_be_together_is_told() -> None:
    def why(kinds: list[Kind], module: Callable[[], nn.Module] = plain_module) -> str:
        net, runs = members(kinds, module=module)
        return str(why_apart(net, BINARY, runs))

    assert "running statistics" in why([Kind()], noisy_module)
    assert "random" in why([Kind()], lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(), nn.Linear(3, 1)))
    for penalty in (PENALTIES["iga"], ridge):
        assert "reads the weights" in why([Kind(penalty=penalty)])
    assert "differ" in why([Kind(), Kind(plan=replace(PLAN, precision="bf16"))])
    assert why([Kind(), Kind("dense")]) == "None"


def test_draws_are_those_of_each_run() -> None:
    """Rows of gates, of projections and of masks are what each row gives alone."""
    weights, scores = torch.randn(3, 500), torch.rand(3, 500)
    noises = tuple(generator(seed, "rows") for seed in range(3))
    rows = gated(weights, scores, noises, 0.5, 0.0)
    for row, (w, s) in enumerate(zip(weights, scores, strict=True)):
        assert torch.equal(rows[row], gated(w, s, generator(row, "rows"), 0.5, 0.0))
    assert torch.equal(top_k(scores, 20), torch.stack([top_k(row, 20) for row in scores]))
    for budget in (0.0, 3.0, 200.0, 400.0):
        together, single = scores * torch.tensor([[1.0], [0.1], [2.0]]), []
        apart = together.clone()
        found = project(together, budget)
        for row in apart:
            single.append(project(row, budget))
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-7)
        torch.testing.assert_close(found, torch.stack(single))


class Cautious(ProbMask):
    """A sparsifier of somebody's own that only knows single runs."""

    def effective(self, weights: Tensor, memory: Memory, now: Moment) -> Tensor:
        assert weights.ndim == 1
        return super().effective(weights, memory, now)


def test_taking_rows_is_not_inherited() -> None:
    net, runs = members([Kind(), Kind()])
    for member in runs:
        member.sparsifier = Cautious(member.sparsifier.budget)
    assert why_apart(net, BINARY, runs) is None


RECIPES = [Recipe(method="erm", n_train=200, width=4, steps=8, eval_every=4, seed=seed) for seed in range(3)]


def test_files_are_those_of_single_runs(tmp_path: Path) -> None:
    outs = [tmp_path / str(at) for at in range(3)]
    found = run_together(RECIPES, together=3, outs=outs)
    for recipe, out, result in zip(RECIPES, outs, found, strict=True):
        run(recipe, out=tmp_path / "single" / str(recipe.seed))
        assert {path.name for path in out.iterdir()} == {"result.json", "model.safetensors"}
        assert run(recipe, out=out, resume=True) == result
    again = run_together(RECIPES, together=3, outs=outs, resume=True)
    assert again == found
    with pytest.raises(SettingError, match="--resume"):
        _result(run_together(RECIPES, together=3, outs=outs)[0])


def test_stopped_runs_go_on_together_or_alone(tmp_path: Path) -> None:
    outs = [tmp_path / str(at) for at in range(3)]

    def stop(at: int, record: Record, trajectory: object) -> None:
        if record.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_together(RECIPES, together=3, outs=outs, on_step=stop, checkpoint_seconds=1e9)
    assert all((out / "checkpoint.safetensors").exists() for out in outs)
    single = run(RECIPES[0], out=outs[0], resume=True)
    assert single.environment["together"] == 3 and "resumed_on" in single.environment
    steps: list[tuple[int, int]] = []
    found = run_together(
        RECIPES, together=3, outs=outs, resume=True, on_step=lambda at, r, t: steps.append((at, r.step))
    )
    assert steps == [(at, step) for step in (6, 7, 8) for at in (1, 2)]
    for result, recipe in zip(found, RECIPES, strict=True):
        _close(_result(result), run(recipe))


def test_one_that_fails_is_reported_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    look = engine.Underway.look

    def fail(self: engine.Underway, state: State, record: Record) -> None:
        if self.recipe.seed == 1 and record.step == 2:
            raise NonFiniteError("too large")
        look(self, state, record)

    monkeypatch.setattr(engine.Underway, "look", fail)
    found = run_together(RECIPES, together=3)
    assert [type(each) for each in found] == [Result, NonFiniteError, Result]


def test_what_a_user_or_the_disk_raises_ends_that_run_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(at: int, record: Record, trajectory: object) -> None:
        if (at, record.step) == (1, 3):
            raise RuntimeError("enough of this")

    save = engine.Underway.save

    def full(self: engine.Underway, state: State, pause: float = 0.0) -> None:
        if self.recipe.seed == 2 and state.step == 5:
            raise OSError("the disk is full")
        save(self, state, pause)

    monkeypatch.setattr(engine.Underway, "save", full)
    outs = [tmp_path / str(at) for at in range(3)]
    found = run_together(RECIPES, together=3, outs=outs, on_step=stop, checkpoint_seconds=0)
    assert [type(each) for each in found] == [Result, RuntimeError, OSError]
    _close(_result(found[0]), run(RECIPES[0]))


def test_runs_too_short_to_measure_run_one_after_the_other() -> None:
    said: list[str] = []
    found = run_together([replace(recipe, steps=1) for recipe in RECIPES], say=said.append)
    assert not any("together" in _result(each).environment for each in found)
    assert len(said) == 1 and "too short" in said[0]


@pytest.mark.parametrize(("gain", "chosen"), [(5.0, 3), (1.0, None)])
def test_the_measurement_decides(gain: float, chosen: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_gain", lambda runs: gain)
    said: list[str] = []
    found = [_result(each) for each in run_together(RECIPES, say=said.append)]
    assert [result.environment.get("together") for result in found] == 3 * [chosen]
    assert len(said) == 1 and ("5.0 times as fast" if chosen else "one after the other") in said[0]


def test_the_measurement_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FASTER", 0.0)
    assert [_result(a).last for a in run_together(RECIPES)] == [
        _result(b).last for b in run_together(RECIPES, together=3)
    ]


def test_groups_are_of_one_shape() -> None:
    recipes = [replace(recipe, width=width).resolved() for width in (4, 5) for recipe in RECIPES]
    assert engine.groups(recipes, 2) == [[0], [1, 2], [3], [4, 5]]
    assert engine.groups(recipes, "auto", workers=1) == [[0, 1, 2], [3, 4, 5]]
    assert engine.groups(recipes, "off") == [[at] for at in range(6)]
    for wrong in (1, 0, -1, "x", 2.5):
        with pytest.raises(SettingError, match="2 or more"):
            engine.groups(recipes, wrong)  # type: ignore[arg-type]


def test_a_run_of_several_trainings_is_carried_out_alone() -> None:
    recipes = [replace(r, method="mrm", penalty="rex", density=0.5) for r in RECIPES[:2]]
    said: list[str] = []
    found = run_together(recipes, together=2, say=said.append)
    assert [_result(each).last for each in found] == [run(recipe).last for recipe in recipes]
    assert "several trainings" in said[0]


def test_a_sweep_at_once_and_one_by_one(tmp_path: Path) -> None:
    """What can run at once does, what cannot does not, and what is no part of a group neither."""
    store, said = Store(tmp_path), list[str]()
    apart = [replace(recipe, method="irm", penalty="iga", batch_size=100) for recipe in RECIPES]
    recipes = [*RECIPES, replace(RECIPES[0], width=6), *apart]
    with local(1) as pool:
        found = sweep(recipes, store, pool, together=3, say=said.append)
    assert [result and result.environment.get("together") for result in found] == [3, 3, 3, *4 * [None]]
    assert len(said) == 1 and said[0].startswith("3 runs one by one: a penalty that reads")
    assert not [*(tmp_path / "work").glob("*")]


class Dying:
    """An executor under which groups of runs die, and single ones do not."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if call is carry_out_at_once:
            future.set_exception(MemoryError("killed"))
        else:
            future.set_result(call(*arguments))
        return future


def test_a_group_whose_process_dies_goes_on_one_by_one(tmp_path: Path) -> None:
    found = sweep(RECIPES, Store(tmp_path), Dying(), together=3)
    assert [result and result.last for result in found] == [run(recipe).last for recipe in RECIPES]


class Slow:
    """An executor whose calls never begin by themselves, and note that they are cancelled."""

    def __init__(self) -> None:
        self.calls: list[Future[Any]] = []

    def submit(self, call: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        self.calls.append(Future())
        return self.calls[-1]


def test_a_group_counts_as_one_process_and_is_cancelled_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    store, executor = Store(tmp_path), Slow()
    single = replace(RECIPES[0], width=6).resolved()
    recipes = {recipe.key: recipe for recipe in [*(each.resolved() for each in RECIPES), single]}
    work = _Work(store, executor, None, None, 3, 1, lambda line: None)
    work.begin(recipes)
    work.estimates = Estimates.of([run(RECIPES[0])])
    assert not [*work.depart()] and len(executor.calls) == 2
    alone = work.progress().seconds
    for recipe in RECIPES[:2]:  # the third has ended, and gives no sign of life
        store.beat(recipe.resolved(), 0, 8)
    assert len(work.progress().running) == 2 and work.progress().seconds == alone
    store.beat(single, 0, 8)
    assert alone and work.progress().seconds == pytest.approx(alone / 2)
    store.clear(single)
    work.cancel()
    assert sorted(call.cancelled() for call in executor.calls) == [False, True]


def test_runs_in_the_store_and_elsewhere_are_left_out(tmp_path: Path) -> None:
    store, recipes = Store(tmp_path), [recipe.resolved() for recipe in RECIPES]
    store.put(run(recipes[0]))
    with store.claim(recipes[1]) as folder:
        assert folder
        _, found = carry_out_at_once(recipes, tmp_path, None, None, measure=False)
    assert found[recipes[0].key] is None and "another process" in str(found[recipes[1].key])
    assert isinstance(found[recipes[2].key], Apart)


def test_a_group_that_is_out_of_time_goes_on_from_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, store = [recipe.resolved() for recipe in RECIPES], Store(tmp_path)
    times = iter(range(100))
    monkeypatch.setattr("sparseirm.experiments.sweep.time.time", lambda: float(next(times)))
    _, found = carry_out_at_once(recipes, tmp_path, None, 8.0, measure=False)
    assert all("checkpoint" in str(why) for why in found.values())
    _, found = carry_out_at_once(recipes, tmp_path, None, None, measure=False)
    for recipe, whole in zip(recipes, run_together(recipes, together=3), strict=True):
        gone_on = store.get(recipe)
        assert gone_on and gone_on.last == _result(whole).last


def test_failures_go_into_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(self: engine.Underway, state: State) -> Result:
        raise NonFiniteError(f"seed {self.recipe.seed} is not finite")

    monkeypatch.setattr(engine.Underway, "end", end)
    recipes, store = [recipe.resolved() for recipe in RECIPES], Store(tmp_path)
    carry_out_at_once(recipes, tmp_path, None, None, measure=False)
    reasons = sorted(reason for _, reason in store.failures())
    assert reasons == [f"NonFiniteError: seed {seed} is not finite" for seed in range(3)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    recipes = [
        Recipe(n_train=300, width=16, steps=40, eval_every=20, penalty="rex", seed=s) for s in range(4)
    ]
    for found, recipe in zip(run_together(recipes, together=4, device="cuda"), recipes, strict=True):
        _close(_result(found), run(recipe, device="cuda"), percent=0.5)
