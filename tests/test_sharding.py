"""Several processes, or several passes, give what one process gives in one pass."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from makers import assert_same_bits
from shared_work import (
    EVERY_PENALTY,
    GRADIENTS,
    MIXED,
    NAIVE,
    RECIPE,
    TRAINED,
    gradients,
    problem,
    standardised,
    together,
    trained,
    without_batch_norm,
)
from sparseirm.cli import main
from sparseirm.core import Outputs, SettingError, Tensors
from sparseirm.files import read_json, read_tensors
from sparseirm.losses import BINARY
from sparseirm.runs import Result, run
from sparseirm.training.sharding import WHOLE, Sharding, joined

Group = tuple[int, Path]


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Number of processes, and the folder with what they found."""
    folder = tmp_path_factory.mktemp("group")
    together(request.param, folder)
    return request.param, folder


def distance(found: Tensors, wanted: Tensors) -> float:
    """Norm of the difference of all tensors, relative to that of the wanted ones."""
    assert found.keys() == wanted.keys()
    pairs = [(found[name].detach().double(), wanted[name].detach().double()) for name in wanted]
    squares = [((a - b).square().sum(), b.square().sum()) for a, b in pairs]
    return float((sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5)


def only_gradients(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("gradient")}


def found_by(group: Group, name: str) -> list[Tensors]:
    """What each process found under a name."""
    ranks, folder = group
    return [read_tensors(folder / f"{name}-{rank}")[0] for rank in range(ranks)]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_several_processes_are_those_of_one(group: Group, name: str) -> None:
    alone = GRADIENTS[name](WHOLE)
    for tensors in found_by(group, name):
        assert distance(tensors, alone) < 1e-6
        assert distance(only_gradients(tensors), only_gradients(alone)) < 1e-6


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_several_processes_ends_where_it_does_in_one(group: Group, name: str) -> None:
    alone, found, mask = TRAINED[name](WHOLE), found_by(group, name), torch.ones(1)
    for tensors in found:
        assert distance(tensors, alone) < 1e-5
        assert torch.equal(tensors.get("mask", mask), alone.get("mask", mask))
        assert_same_bits(tensors, found[0])


@pytest.mark.parametrize("name", NAIVE)
def test_averaging_the_gradients_of_losses_on_parts_does_something_else(group: Group, name: str) -> None:
    alone = only_gradients(gradients(problem(name, batch=MIXED)))
    for tensors in found_by(group, f"naive {name}"):
        assert distance(only_gradients(tensors), alone) > 0.1
    for tensors in found_by(group, f"mixed {name}"):
        assert distance(only_gradients(tensors), alone) < 1e-6


def test_the_representation_is_collected_only_for_penalties_that_read_it(group: Group) -> None:
    ranks, _ = group
    rows = ranks * -(-41 // ranks)  # one logit each, and 8 features
    assert {int(tensors["numbers"]) for tensors in found_by(group, "numbers irmv1")} == {rows}
    assert {int(tensors["numbers"]) for tensors in found_by(group, "numbers coral")} == {9 * rows}


def test_processes_run_a_recipe_together_and_resume_it(group: Group) -> None:
    ranks, folder = group
    together, alone = Result.from_json(read_json(folder / "run" / "result.json")), run(RECIPE)
    assert together.environment["processes"] == ranks and "resumed_on" not in together.environment
    assert [point.step for point in together.trajectory] == [5, 10, 15, 20]
    for ours, theirs in zip(together.trajectory, alone.trajectory, strict=True):
        assert ours.risk == pytest.approx(theirs.risk, rel=1e-5)
        assert ours.scores["test"].risk == pytest.approx(theirs.scores["test"].risk, rel=1e-4)
    assert {path.name for path in (folder / "run").iterdir()} == {"result.json", "model.safetensors"}


def test_what_several_processes_cannot_do_is_refused_in_all_of_them(group: Group) -> None:
    ranks, folder = group
    for rank in range(ranks):
        messages = read_json(folder / f"refusals-{rank}")
        assert f"1 samples cannot be divided among {ranks} processes" in messages["few samples"]
        assert "must be cpu or cuda" in messages["device"]
        assert "leave torchrun out" in messages["sweep"]
        others = ", ".join(map(str, range(1, ranks)))
        assert f"weights of process {others} differ" in messages["different"]
        stopped = "the first process stopped" if rank else "already holds a run"
        assert stopped in messages["held"]


@pytest.mark.parametrize("name", sorted(EVERY_PENALTY.keys() - {"iga"}))
@pytest.mark.parametrize("micro_batch", [1, 7, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str, micro_batch: int) -> None:
    setting = problem(name, module=without_batch_norm)
    found, whole = gradients(setting, Sharding(micro_batch=micro_batch)), gradients(setting)
    assert distance(found, whole) < 1e-6


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_standardised_weights_are_not_samples(micro_batch: int) -> None:
    setting = problem(module=standardised)
    assert distance(gradients(setting, Sharding(micro_batch=micro_batch)), gradients(setting)) < 1e-6


def test_training_in_micro_batches_ends_where_training_in_whole_batches_does() -> None:
    setting = problem(module=without_batch_norm)
    assert distance(trained(setting, Sharding(micro_batch=7)), trained(setting)) < 1e-5


class Widest(nn.Sequential):
    """Two layers that note how many samples they are given."""

    seen: list[int]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


def test_no_pass_is_larger_than_a_micro_batch() -> None:
    module = Widest(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    module.seen = []
    gradients(problem(module=lambda: module), Sharding(micro_batch=20))
    assert module.seen == [20, 20, 1, 1, 20, 20]  # forward, and again for the gradient


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (problem(), "cannot be used with batch normalisation"),
        (
            problem(
                module=lambda: nn.Sequential(
                    nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 1)
                )
            ),
            "cannot be used with batch normalisation",
        ),
        (problem("iga", module=without_batch_norm), "differentiates the network twice"),
    ],
)
def test_what_micro_batches_cannot_do_is_refused(setting: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        gradients(setting, Sharding(micro_batch=7))  # type: ignore[arg-type]


def test_a_micro_batch_has_a_sample() -> None:
    with pytest.raises(SettingError, match="`micro_batch` must be at least 1 sample; got 0"):
        Sharding(micro_batch=0)


def test_a_run_in_micro_batches_says_so(tmp_path: Path) -> None:
    result, whole = run(RECIPE, out=tmp_path, micro_batch=32), run(RECIPE)
    assert result.environment == {**whole.environment, "micro_batch": 32}
    assert result.trajectory[-1].risk == pytest.approx(whole.trajectory[-1].risk, rel=1e-5)


def test_alone_without_torchrun() -> None:
    with joined("cpu") as found:
        assert found == (WHOLE, torch.device("cpu"))


def test_a_field_on_demand_is_asked_for_once() -> None:
    calls: list[Callable[[], Tensor]] = []

    def features() -> Tensor:
        calls.append(features)
        return torch.ones(2, 3)

    zeros = torch.zeros(2)
    out = Outputs(zeros, zeros, zeros.long(), 1, BINARY, features=features)
    assert not calls
    assert out.features is not None and out.features is out.features
    assert len(calls) == 1
    assert Outputs(zeros, zeros, zeros.long(), 1, BINARY).features is None
    assert replace(out, weight=zeros + 1).features is out.features


def test_torchrun_trains_with_two_processes_and_prints_once(tmp_path: Path) -> None:
    flags = ["--width", "8", "--steps", "10", "--n-train", "120", "--penalty", "rex", "--density", "0.1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "sparseirm.cli", "train", *flags, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["environment"]["processes"] == 2


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells the first of two processes, of which the other never comes."""
    told = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "`device` 'cuda:0' cannot be used here: .* Use cpu"), ("cuda:0", "must be cpu or cuda with")],
)
def test_a_device_is_looked_at_before_the_processes_meet(device: str, message: str) -> None:
    with pytest.raises(SettingError, match=message), joined(device):
        raise AssertionError("joined")


@pytest.mark.usefixtures("one_of_two")
@pytest.mark.parametrize(
    "command",
    [
        ["fit", "t.csv", "--target", "y", "--env", "e"],
        ["theory"],
        ["predict", "m", "t.csv", "-o", "o.csv"],
        ["compare"],
    ],
)
def test_commands_but_train_are_not_for_torchrun(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert "torchrun is for a single large run (`sparseirm train`)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_of_two")
def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    unmet = pytest.raises(SettingError, match=r"the processes cannot reach each other: .*MASTER_ADDR")
    with unmet, joined("cpu"):
        raise AssertionError("joined")
