"""Claims about MRM: what each of its three stages does, and that a run may be stopped in any of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from makers import Problem, assert_same_bits, samples
from sparseirm.cli import main
from sparseirm.core import Memory, Moment, SettingError, Tensors
from sparseirm.data import Batches
from sparseirm.files import DamagedFileError, read_json, read_tensors
from sparseirm.losses import BINARY, SQUARED
from sparseirm.models import Network, build, network
from sparseirm.penalties import irmv1, rex
from sparseirm.randomness import generator
from sparseirm.recipe import Recipe
from sparseirm.runs import CHECKPOINT, MODEL, Point, Result, run
from sparseirm.sparsifiers import Dense, FixedMask, ModularMask
from sparseirm.training.checkpoint import load_state, save_state, tensors_of
from sparseirm.training.loop import Record, train
from sparseirm.training.stages import Stage, enter, stage_seed
from sparseirm.training.state import Plan, State

TINY = Recipe(method="mrm", width=8, n_train=100, steps=6, lr_stop=1, eval_every=4)
DENSE, SEARCH, ANEW = range(3)


# Oracle: the three stages one by one, over a module with buffers and dropout.

PROBLEM = Problem()
PLAN = Plan(steps=8, lr=0.01, penalty_weight=3.0, penalty_from=0.25)
NET = PROBLEM.network
K = NET.layout.size // 3
STAGES = (
    Stage(PLAN, Dense(NET.layout.size)),
    Stage(replace(PLAN, steps=30), ModularMask(K), frozen=True),
    Stage(PLAN, FixedMask(K)),
)


def carry_out(net: Network, stages: tuple[Stage, ...], at: int, before: State | None) -> State:
    """One stage to its end."""
    state, stage, seed = enter(net, stages, at, 0, before), stages[at], stage_seed(0, at)
    batches = Batches(PROBLEM.batch, 2, None, seed)
    return train(net, batches, BINARY, irmv1, stage.sparsifier, stage.plan, state, seed)


@pytest.fixture(scope="module")
def ends() -> list[State]:
    """The states at the ends of the three stages; not to be changed."""
    found: list[State] = []
    for at in (DENSE, SEARCH, ANEW):
        found.append(carry_out(NET, STAGES, at, found[-1] if found else None))
    return found


def parameters(state: State) -> Tensors:
    """Weights and other parameters, without buffers."""
    return {"weights": state.weights, **state.others}


def test_the_first_stage_trains_every_parameter(ends: list[State]) -> None:
    begun = enter(NET, STAGES, DENSE, seed=0)
    for name, tensor in parameters(begun).items():
        assert not torch.equal(tensor, parameters(ends[DENSE])[name]), name
    assert int(ends[DENSE].weights.count_nonzero()) == NET.layout.size


def test_the_second_stage_leaves_the_parameters_and_moves_the_probabilities(ends: list[State]) -> None:
    assert_same_bits(parameters(ends[DENSE]), parameters(ends[SEARCH]))
    logits = ends[SEARCH].memory.learned["logits"].detach()
    first = enter(NET, STAGES, SEARCH, seed=0).memory.learned["logits"]
    assert (logits != first).float().mean() > 0.9
    assert float(logits.max() - logits.min()) > 0.5


def test_the_third_stage_begins_with_the_initial_parameters_and_the_mask_found(ends: list[State]) -> None:
    weights, others, buffers = NET.parts()
    begun = enter(NET, STAGES, ANEW, 0, before=ends[SEARCH])
    assert_same_bits(parameters(begun) | begun.buffers, {"weights": weights, **others} | buffers)
    assert not any(optimizer.state for optimizer in begun.optimizers.values())
    found = STAGES[SEARCH].sparsifier.mask(ends[SEARCH].weights.detach(), ends[SEARCH].memory)
    assert_same_bits(begun.memory.kept, {"mask": found})
    assert int(found.sum()) == K


def test_the_third_stage_is_training_with_that_mask_alone(ends: list[State]) -> None:
    found = STAGES[SEARCH].sparsifier.mask(ends[SEARCH].weights.detach(), ends[SEARCH].memory)
    alone = (replace(STAGES[ANEW], sparsifier=FixedMask(K, found)),)
    state, seed = enter(NET, alone, 0, 0), stage_seed(0, ANEW)
    train(NET, Batches(PROBLEM.batch, 2, None, seed), BINARY, irmv1, alone[0].sparsifier, PLAN, state, seed)
    assert_same_bits(tensors_of(state), tensors_of(ends[ANEW]))
    assert not torch.equal(state.weights[found], NET.parts()[0][found])
    deployed = STAGES[ANEW].sparsifier.deploy(ends[ANEW].weights.detach(), ends[ANEW].memory)
    assert not deployed[~found].any() and deployed[found].all()


def test_a_state_of_one_stage_is_not_taken_for_that_of_another(ends: list[State], tmp_path: Path) -> None:
    save_state(tmp_path / "state", ends[SEARCH], {})
    again = enter(NET, STAGES, SEARCH, seed=0)
    load_state(tmp_path / "state", again)
    assert_same_bits(tensors_of(again), tensors_of(ends[SEARCH]))
    with pytest.raises(DamagedFileError, match="belongs to another stage of the run; delete it"):
        load_state(tmp_path / "state", enter(NET, STAGES, DENSE, seed=0))


# The mask.


def informative() -> tuple[Network, Batches]:
    """A trained linear network: two weights on what the label is made of, ten on noise, none small."""
    noise = generator(0, "problem")
    x, env = torch.randn(400, 12, generator=noise), torch.arange(400) % 2
    module = build(lambda: nn.Linear(12, 1, bias=False), seed=0)
    with torch.no_grad():
        module.weight[:] = torch.where(torch.arange(12) % 6 == 0, 1.0, 2.0)
    y = x[:, 0] + x[:, 6]
    return network(module), Batches(replace(samples((200, 200)), x=x, y=y, env=env), 2)


def test_the_mask_found_is_the_informative_part_of_frozen_weights() -> None:
    """Noise has the larger weights: neither chance (1 in 66) nor magnitude finds the two."""
    net, batches = informative()
    sparsifier = ModularMask(2, coefficient=3.0)
    stage = Stage(Plan(steps=150, penalty_weight=1.0), sparsifier, frozen=True)
    state = enter(net, (stage,), 0, seed=0)
    train(net, batches, SQUARED, rex, sparsifier, stage.plan, state)
    assert sparsifier.mask(state.weights.detach(), state.memory).nonzero()[:, 0].tolist() == [0, 6]


def test_effective_weights_are_those_of_binary_draws_as_the_temperature_falls() -> None:
    sparsifier = ModularMask(2, temperature=1e-4)
    logits = torch.linspace(-3, 3, 2000)
    memory = Memory({"logits": logits.repeat(200)})
    gates = sparsifier.effective(torch.ones(400_000), memory, Moment(0, 1, generator(0))).view(200, -1)
    assert ((gates < 1e-3) | (gates > 1 - 1e-3)).float().mean() > 0.999
    assert float((gates.mean(0) - logits.sigmoid()).abs().mean()) < 0.03


def test_the_price_is_the_expected_share_of_open_gates() -> None:
    memory = Memory({"logits": torch.tensor([0.0, 0.0, 100.0, -100.0], requires_grad=True)})
    price = ModularMask(2, coefficient=6.0).price(memory)
    assert float(price.detach()) == pytest.approx(6.0 * (0.5 + 0.5 + 1 + 0) / 4)
    (gradient,) = torch.autograd.grad(price, memory.learned["logits"])
    torch.testing.assert_close(gradient, 6.0 / 4 * torch.tensor([0.25, 0.25, 0.0, 0.0]))


def test_a_larger_coefficient_leaves_fewer_gates_open() -> None:
    open_share = []
    for coefficient in (0.0, 1.0, 100.0):
        stages = (STAGES[DENSE], replace(STAGES[SEARCH], sparsifier=ModularMask(K, coefficient)))
        end = carry_out(NET, stages, SEARCH, enter(NET, stages, DENSE, 0))
        open_share.append(float(end.memory.learned["logits"].detach().sigmoid().mean()))
    assert open_share[0] > open_share[1] > open_share[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": -1.0}, "`coefficient` must be 0 or more; got -1.0"),
        ({"coefficient": float("nan")}, "`coefficient` must be 0 or more"),
        ({"first_open": 1.0}, "`first_open` must be between 0 and 1"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"score_lr": 0.0}, "`score_lr` must be positive"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ModularMask(2, **settings)


# Runs.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of `TINY`; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run(TINY, out=folder)
    return folder


def stopping_at(step: int) -> Callable[[Record, list[Point]], None]:
    def press(record: Record, trajectory: list[Point]) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    return press


def test_the_first_stage_of_a_run_is_the_run_of_irm(tmp_path: Path) -> None:
    """Step for step: an interrupted MRM holds the very parameters of dense IRM."""
    run(replace(TINY, method="irm"), out=tmp_path / "irm")
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out=tmp_path / "mrm", on_step=stopping_at(6))
    state, _ = read_tensors(tmp_path / "mrm" / CHECKPOINT)
    dense, _ = read_tensors(tmp_path / "irm" / MODEL)
    flat = torch.cat([tensor.reshape(-1) for name, tensor in dense.items() if tensor.ndim == 2])
    assert sorted(flat.tolist()) == sorted(state["weights"].tolist())


def test_steps_count_on_through_the_stages_and_each_has_its_own_schedule(finished: Path) -> None:
    weights: list[float] = []
    result = run(TINY, on_step=lambda record, trajectory: weights.append(record.penalty_weight))
    assert [point.step for point in result.trajectory] == [4, 6, 8, 12, 16, 18]
    assert weights == [0.0, 0.0, *[1e4] * 4] * 3
    density = result.budget / result.n_weights
    assert [point.density for point in result.trajectory] == pytest.approx([1, 1, *[density] * 4], abs=1e-6)
    assert result.trajectory == Result.from_json(read_json(finished / "result.json")).trajectory


@pytest.mark.parametrize(
    ("budget", "count"),
    [({"density": 0.2}, lambda d: round(0.2 * d)), ({"budget": 7}, lambda d: 7), ({}, lambda d: 300)],
)
def test_exactly_the_budget_is_kept(
    budget: dict[str, Any], count: Callable[[int], int], tmp_path: Path
) -> None:
    result = run(replace(TINY, **budget), out=tmp_path)
    tensors, _ = read_tensors(tmp_path / MODEL)
    nonzero = sum(int(t.count_nonzero()) for t in tensors.values() if t.ndim == 2)
    assert nonzero == result.kept == result.budget == count(result.n_weights)


@pytest.mark.parametrize("step", [1, 5, 6, 7, 11, 12, 13, 17])
def test_a_run_stopped_in_any_stage_and_resumed_ends_like_one_never_stopped(
    step: int, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out=tmp_path, on_step=stopping_at(step))
    assert read_tensors(tmp_path / CHECKPOINT)[1]["stage"] == (step - 1) // 6
    steps: list[int] = []
    result = run(TINY, out=tmp_path, resume=True, on_step=lambda record, _: steps.append(record.step))
    assert steps == list(range(step + 1, 19))
    assert_same_bits(read_tensors(finished / MODEL)[0], read_tensors(tmp_path / MODEL)[0])
    assert result.trajectory == Result.from_json(read_json(finished / "result.json")).trajectory


def test_a_run_may_be_stopped_in_every_stage_and_crash_between(finished: Path, tmp_path: Path) -> None:
    def crash(record: Record, trajectory: list[Point]) -> None:
        if record.step == 15:
            raise MemoryError

    for step in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            run(TINY, out=tmp_path, resume=True, on_step=stopping_at(step))
    with pytest.raises(MemoryError):
        run(TINY, out=tmp_path, resume=True, on_step=crash, checkpoint_seconds=0)
    run(TINY, out=tmp_path, resume=True)
    assert_same_bits(read_tensors(finished / MODEL)[0], read_tensors(tmp_path / MODEL)[0])


def test_the_lengths_of_the_stages_can_be_set() -> None:
    recipe = replace(TINY, stage_lengths=(1, 0.5, 2), eval_every=100)
    assert recipe.key != TINY.key
    assert [point.step for point in run(recipe).trajectory] == [6, 9, 21]
    assert [plan.steps for plan in replace(TINY, stage_lengths=(1e-9, 1, 1)).resolved().plans()] == [1, 6, 6]


def test_every_stage_changes_the_result(finished: Path) -> None:
    """Each of the three could be skipped without an error; none without a difference."""
    whole = Result.from_json(read_json(finished / "result.json"))
    for lengths in ((2, 1, 1), (1, 4, 1), (1, 1, 2)):
        other = run(replace(TINY, stage_lengths=lengths))
        assert other.trajectory[-1].risk != whole.trajectory[-1].risk, lengths


def test_mrm_on_the_command_line_is_mrm_in_python(tmp_path: Path) -> None:
    flags = [
        "--penalty",
        "rex",
        "--stage-lengths",
        "1",
        "0.5",
        "1",
        "--sparsifier-options",
        "coefficient",
        "5",
    ]
    size = ["--width", "8", "--n-train", "100", "--steps", "6", "--lr-stop", "1", "--eval-every", "4"]
    assert main(["train", "--method", "mrm", *size, *flags, "--out", str(tmp_path)]) == 0
    said = Result.from_json(read_json(tmp_path / "result.json"))
    recipe = replace(TINY, penalty="rex", stage_lengths=(1, 0.5, 1), sparsifier_options={"coefficient": 5.0})
    assert said.recipe == recipe.resolved()
    assert said.trajectory == run(recipe).trajectory


# Recipes.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sparsifier": "probmask"},
            "method 'mrm' is defined by the sparsifier 'modular'; got `sparsifier` 'probmask'. Leave it out",
        ),
        (
            {"sparsifier_options": {"decide_at": 0.3}},
            "no option of sparsifier 'modular' is named 'decide_at'",
        ),
        ({"stage_lengths": (1, 1)}, "`stage_lengths` must be three positive numbers"),
        ({"stage_lengths": (1, 0, 1)}, "`stage_lengths` must be three positive numbers"),
        ({"stage_lengths": (1, float("nan"), 1)}, "`stage_lengths` must be three positive numbers"),
        ({"method": "irm", "stage_lengths": (1, 1, 1)}, "`stage_lengths` has no effect: method 'irm' trains"),
        ({"method": "sparseirm", "stage_lengths": (1, 1, 1)}, "`stage_lengths` has no effect"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        replace(TINY, **settings).resolved()


def test_a_comparison_leaves_out_what_belongs_to_another_sparsifier() -> None:
    shared = Recipe(density=0.1, sparsifier="rigl", sparsifier_options={"every": 0.1})
    adapted = shared.adapted("mrm", "rex").resolved()
    assert (adapted.sparsifier, adapted.density, adapted.penalty) == ("modular", 0.1, "rex")
    own = Recipe(sparsifier="modular", sparsifier_options={"coefficient": 2.0})
    assert own.adapted("mrm").resolved().sparsifier_options["coefficient"] == 2.0


@pytest.mark.parametrize("settings", ["ours", "paper", "released"])
def test_the_settings_of_mrm_are_those_of_the_other_methods(settings: str) -> None:
    mrm, sparse = (Recipe(method=m, settings=settings).resolved() for m in ("mrm", "sparseirm"))
    assert mrm.plan() == sparse.plan()
    assert (mrm.density, mrm.budget, mrm.stage_lengths) == (sparse.density, sparse.budget, (1.0, 1.0, 1.0))


def test_the_search_weighs_the_price_of_gates_against_an_undivided_loss() -> None:
    recipe = replace(TINY, divide_loss=True).resolved()
    assert [stage.plan.divide_loss for stage in recipe.stages(1096, 100)] == [True, False, True]
