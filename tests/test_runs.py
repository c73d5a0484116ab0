"""Claims about running recipes: files, resuming, refusing."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from makers import assert_same_bits
from sparseirm.core import SettingError
from sparseirm.files import DamagedFileError, read_json, read_tensors, write_json, write_tensors
from sparseirm.methods import METHODS
from sparseirm.recipe import Recipe
from sparseirm.runs import (
    CHECKPOINT,
    MODEL,
    RESULT,
    Point,
    Result,
    Underway,
    environment,
    load_model,
    run,
)
from sparseirm.sparsifiers import ProbMask
from sparseirm.training.loop import Record

TINY = Recipe(width=8, n_train=100, steps=12, lr_stop=1, eval_every=5)


def interrupted(recipe: Recipe, out: Path, step: int) -> None:
    """Start a run and press Ctrl-C after a step."""

    def press(record: Record, trajectory: list[Point]) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=out, on_step=press)


def assert_same_result(one: Path, other: Path) -> None:
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    assert_same_bits(read_tensors(one / MODEL)[0], read_tensors(other / MODEL)[0])
    results = [Result.from_json(read_json(folder / RESULT)) for folder in (one, other)]
    assert results[0].trajectory == results[1].trajectory
    assert results[0].kept == results[1].kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of `TINY`; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run(TINY, out=folder)
    return folder


# Results.


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.retrains])
def test_every_method_gives_scores_of_every_split_at_the_steps_asked_for(method: str) -> None:
    result = run(replace(TINY, method=method, lr_stop=1.0 if METHODS[method].invariant else None))
    assert [point.step for point in result.trajectory] == [5, 10, 12]
    assert result.kept == result.budget
    for point in result.trajectory:
        assert point.scores.keys() == {"train", "val", "test"}
        assert point.density == pytest.approx(result.budget / result.n_weights, abs=1e-6)


def test_a_result_comes_back_from_its_file(finished: Path) -> None:
    payload = read_json(finished / RESULT)
    result = Result.from_json(payload)
    assert json.loads(json.dumps(result.to_json())) == payload
    assert payload["status"] == "done"
    assert payload["density"]["reached"] == result.kept / result.n_weights
    assert payload["last"]["test"]["accuracy"] == result.last["test"].accuracy
    assert result.recipe == TINY.resolved()


def test_a_finished_run_leaves_result_and_model_and_no_checkpoint(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == sorted([RESULT, MODEL])


def test_the_loaded_model_has_the_weights_kept_and_the_accuracy_reported(finished: Path) -> None:
    data = TINY.make_data()
    assert data.test is not None
    result = Result.from_json(read_json(finished / RESULT))
    module = load_model(finished)
    x, y = data.test.samples.x, data.test.samples.y
    with torch.no_grad():
        right = (module(x)[:, 0] > 0).long() == y
    assert 100 * right.float().mean().item() == pytest.approx(result.last["test"].accuracy, abs=1e-4)
    assert sum(int(p.count_nonzero()) for p in module.parameters() if p.ndim == 2) == result.kept
    assert not module.training


def test_evaluating_more_often_does_not_influence_the_run(finished: Path, tmp_path: Path) -> None:
    run(replace(TINY, eval_every=1), out=tmp_path)
    assert_same_bits(read_tensors(finished / MODEL)[0], read_tensors(tmp_path / MODEL)[0])


def test_the_oracle_sees_no_colour() -> None:
    seen = [replace(TINY, method=method).make_data().train.samples.x for method in ("oracle", "erm")]
    assert [torch.equal(x[:, 0], x[:, 1]) for x in seen] == [True, False]


# Resuming.


@pytest.mark.parametrize("step", [1, 3, 5, 11, 12])
def test_a_run_interrupted_and_resumed_equals_one_never_stopped(
    step: int, finished: Path, tmp_path: Path
) -> None:
    interrupted(TINY, tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    run(TINY, out=tmp_path, resume=True)
    assert_same_result(finished, tmp_path)


def test_a_run_may_be_interrupted_again_and_again(finished: Path, tmp_path: Path) -> None:
    interrupted(TINY, tmp_path, 2)
    for step in (4, 5, 9):

        def press(record: Record, trajectory: list[Point], step: int = step) -> None:
            if record.step == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(TINY, out=tmp_path, resume=True, on_step=press)
    run(TINY, out=tmp_path, resume=True)
    assert_same_result(finished, tmp_path)


def test_of_the_steps_at_rest_only_the_last_is_taken_and_evaluated() -> None:
    steps: list[int] = []
    result = run(replace(TINY, lr_stop=0.5), on_step=lambda record, _: steps.append(record.step))
    assert steps == [1, 2, 3, 4, 5, 6, 12]
    assert [point.step for point in result.trajectory] == [5, 12]


@pytest.mark.parametrize("step", [0, 6])
def test_an_interrupt_in_the_middle_of_a_step_is_as_harmless(
    step: int, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., None] = ProbMask.after_step

    def press(self: ProbMask, weights: Any, memory: Any, now: Any, gradient: Any) -> None:
        if now.step == step:
            signal.raise_signal(signal.SIGINT)
        original(self, weights, memory, now, gradient)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    with monkeypatch.context() as patch:
        patch.setattr(ProbMask, "after_step", press)
        with pytest.raises(KeyboardInterrupt):
            run(TINY, out=tmp_path)
    signal.signal(signal.SIGINT, before)
    run(TINY, out=tmp_path, resume=True)
    assert_same_result(finished, tmp_path)


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint(finished: Path, tmp_path: Path) -> None:
    def crash(record: Record, trajectory: list[Point]) -> None:
        if record.step == 8:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(TINY, out=tmp_path, on_step=crash, checkpoint_seconds=0)
    steps: list[int] = []
    run(TINY, out=tmp_path, resume=True, on_step=lambda record, trajectory: steps.append(record.step))
    assert steps == [8, 9, 10, 11, 12]
    assert_same_result(finished, tmp_path)


def test_resuming_where_nothing_was_begun_begins(finished: Path, tmp_path: Path) -> None:
    run(TINY, out=tmp_path / "new", resume=True)
    assert_same_result(finished, tmp_path / "new")


def test_resuming_a_finished_run_does_nothing_but_give_its_result(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    result = run(TINY, out=finished, resume=True, on_step=lambda record, trajectory: pytest.fail("a step"))
    assert result == Result.from_json(read_json(finished / RESULT))
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


# Refusals.


def test_a_folder_that_holds_a_run_is_refused_without_resume(finished: Path, tmp_path: Path) -> None:
    interrupted(TINY, tmp_path, 2)
    for folder, name in ((finished, RESULT), (tmp_path, CHECKPOINT)):
        with pytest.raises(SettingError, match=rf"`out` already holds a run .*{name}.* Pass `--resume`"):
            run(TINY, out=folder)


def test_resuming_with_another_recipe_is_refused_and_the_field_named(finished: Path, tmp_path: Path) -> None:
    interrupted(TINY, tmp_path, 2)
    for folder in (finished, tmp_path):
        with pytest.raises(SettingError, match=r"holds another run \(width: 8 there, 9 here\)\. Choose"):
            run(replace(TINY, width=9), out=folder, resume=True)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    for name in (MODEL, "notes.txt"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(SettingError, match="already holds something; choose another"):
            run(TINY, out=tmp_path)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()


def test_what_no_run_wrote_is_not_gone_on_with(finished: Path, tmp_path: Path) -> None:
    write_json(tmp_path / RESULT, {"task": "table"})
    with pytest.raises(
        SettingError, match=r"result\.json is of no run to go on with .* Choose another `out`"
    ):
        run(TINY, out=tmp_path, resume=True)
    (tmp_path / RESULT).unlink()
    for note, says in (
        ({}, "is of no run"),
        ({"recipe": replace(TINY, seed=5).resolved().to_json()}, "seed"),
    ):
        write_tensors(tmp_path / MODEL, {}, note)
        with pytest.raises(SettingError, match=says):
            run(TINY, out=tmp_path, resume=True)
    (tmp_path / MODEL).write_bytes((finished / MODEL).read_bytes())  # killed before the result was written
    run(TINY, out=tmp_path, resume=True)
    assert_same_result(finished, tmp_path)


def test_a_network_too_large_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 360 bytes")

    monkeypatch.setattr("sparseirm.runs.build", full)
    with pytest.raises(SettingError, match="width 8 cannot be made: there is too little memory; choose a"):
        run(TINY, out=tmp_path / "new" / "out")
    assert not [*tmp_path.iterdir()]


def test_a_tables_model_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "estimator.json").touch()
    with pytest.raises(SettingError, match=r"read it with `sparseirm\.estimator\.load`"):
        load_model(tmp_path)


def test_resuming_from_a_damaged_file_is_refused(tmp_path: Path) -> None:
    interrupted(TINY, tmp_path, 2)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match="checksum does not match"):
        run(TINY, out=tmp_path, resume=True)


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("cuda:99", "quantum"):
        with pytest.raises(SettingError, match=rf"`device` '{device}' cannot be used here: .* Use cpu"):
            run(TINY, device=device)


class _WithTable(torch.nn.Module):
    """A network with a buffer that is no part of its state dict, as timm's attention has."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.last = torch.nn.Linear(n, 1)
        self.places: Tensor
        self.register_buffer("places", torch.arange(n), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x.flatten(1)[:, self.places])
        return out


def test_a_network_with_a_buffer_it_does_not_save_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseirm.runs.maker", lambda name: lambda shape, outputs, width: _WithTable(128))
    recipe = Recipe(steps=2, width=8, density=0.5)
    run(recipe, out=tmp_path)
    x = recipe.make_data().train.samples.x
    assert x[0].numel() == 128
    module = load_model(tmp_path)
    assert module(x).shape == (len(x), 1)


def test_batches_of_a_round_without_an_environment_are_no_larger_than_what_is_left() -> None:
    recipe = Recipe(correlations=(0.9, 0.8, 0.7, 0.1), n_train=1200, batch_size=1000, steps=2, width=8)
    assert run(replace(recipe, leave_out=0)).last["train"].accuracy >= 0


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    recipe = Recipe(method="erm", n_train=200, width=4, steps=8, eval_every=4).resolved()
    underway = Underway(recipe, recipe.make_data(), torch.device("cpu"), tmp_path)
    state = underway.begin(environment(torch.device("cpu")))
    underway.save(state)
    saved = (tmp_path / CHECKPOINT).read_bytes()
    state.weights.data[0] = torch.nan
    underway.save(state)
    assert (tmp_path / CHECKPOINT).read_bytes() == saved
    state.weights.data[0] = 1.0
    underway.save(state)
    assert (tmp_path / CHECKPOINT).read_bytes() != saved
