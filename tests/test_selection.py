"""Rules that choose a step, on trajectories made by hand."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparseirm import Recipe, run
from sparseirm.core import SettingError
from sparseirm.data import colored_mnist
from sparseirm.data.environments import without_environment
from sparseirm.evaluation.metrics import Score
from sparseirm.evaluation.selection import RULES, best, leave_one_env_out, within_budget
from sparseirm.experiments.compare import compare
from sparseirm.experiments.rules import rounds, side_by_side, table
from sparseirm.runs import Point, Result

THREE = Recipe(method="erm", width=4, steps=4, eval_every=2, correlations=(0.9, 0.8, 0.7, 0.1))


def score(accuracy: float, envs: int = 2) -> Score:
    each = {f"train {e}": accuracy for e in range(envs)}
    return Score(accuracy, each, 0.5, each)


def points(
    val: Sequence[float],
    test: Sequence[float] | None = None,
    density: Sequence[float] | None = None,
    envs: int = 2,
) -> list[Point]:
    """A trajectory with the given accuracies at steps 10, 20, ..."""
    return [
        Point(10 * n + 10, 0.5, 0.0, d, None, {"train": score(70.0, envs), "val": score(v), "test": score(w)})
        for n, (v, w, d) in enumerate(zip(val, test or val, density or [1.0] * len(val), strict=True))
    ]


def result(trajectory: list[Point], budget: int = 100, seed: int = 0) -> Result:
    return Result(replace(THREE, seed=seed).resolved(), trajectory, 100, budget, budget, 1.0)


def nothing(recipe: Recipe) -> None:
    return None


def test_each_rule_takes_the_best_step_by_its_own_split() -> None:
    trajectory = points(val=[80.0, 90.0, 70.0, 60.0], test=[20.0, 10.0, 65.0, 50.0])
    chosen = {c.rule: c for c in side_by_side([result(trajectory)], nothing)}
    assert [*chosen] == [*RULES]
    assert [chosen[rule].points[0].step for rule in ("last", "train_val", "oracle")] == [40, 20, 30]
    assert chosen["oracle"].accuracy("test").values == (65.0,)


def test_of_equal_steps_the_last_is_taken() -> None:
    trajectory = points(val=[80.0, 90.0, 90.0, 60.0])
    assert best(trajectory, "val").step == 30


def test_steps_before_the_budget_is_reached_are_no_results() -> None:
    trajectory = points(val=[99.0, 98.0, 70.0, 60.0], density=[1.0, 0.5, 0.1, 0.1])
    assert [p.step for p in within_budget(trajectory, 0.1)] == [30, 40]
    chosen = {c.rule: c for c in side_by_side([result(trajectory, budget=10)], nothing)}
    assert chosen["train_val"].points[0].step == chosen["oracle"].points[0].step == 30
    assert [p.step for p in within_budget(points([1.0, 2.0], density=[0.5, 0.3]), 0.1)] == [20]


def test_every_seed_chooses_for_itself() -> None:
    runs = [
        result(points(val=[80.0, 60.0], test=[20.0, 30.0])),
        result(points(val=[60.0, 80.0], test=[40.0, 50.0]), seed=1),
    ]
    chosen = {c.rule: c for c in side_by_side(runs, nothing)}
    assert chosen["train_val"].accuracy("test").values == (20.0, 50.0)


def test_of_several_stages_only_the_last_is_chosen_from() -> None:
    searching = [99.0] * 7  # good in the test, but of another network than the one that is reported
    mrm = Recipe(method="mrm", width=4, stage_lengths=(1, 0.5, 1)).resolved()
    found = replace(result(points([*searching, 60.0, 70.0, 65.0, 64.0, 63.0])), recipe=mrm)
    assert found.stage_ends == [50, 70, 120]
    chosen = {c.rule: c for c in side_by_side([found], nothing)}
    assert [chosen[rule].points[0].step for rule in ("last", "train_val", "oracle")] == [120, 90, 90]
    assert chosen["oracle"].steps == "90" and replace(found, recipe=THREE.resolved()).stage_ends == [120]


def test_leaving_one_out_averages_over_the_environments_that_were_left_out() -> None:
    trajectory = points(val=[0.0, 0.0, 0.0], test=[1.0, 2.0, 3.0])
    left_out = [points(val) for val in ([90.0, 60.0, 50.0], [10.0, 60.0, 50.0], [20.0, 60.0, 61.0])]
    assert leave_one_env_out(trajectory, left_out).step == 20
    with pytest.raises(SettingError, match="evaluated at different steps"):
        leave_one_env_out(trajectory, [[replace(p, step=p.step + 1) for p in r] for r in left_out])


def test_leaving_one_of_two_out_is_refused_with_the_reason() -> None:
    trajectory = points([1.0, 2.0])
    with pytest.raises(SettingError, match="three or more training environments: without one of two"):
        leave_one_env_out(trajectory, [trajectory, trajectory])
    chosen = {c.rule: c for c in side_by_side([result(trajectory)], nothing)}["leave_one_env_out"]
    assert not chosen.points and "three or more" in chosen.refusal and rounds([result(trajectory)]) == []


def test_leaving_one_out_waits_for_its_runs() -> None:
    trajectory = points([1.0, 2.0], envs=3)
    chosen = {c.rule: c for c in side_by_side([result(trajectory)], nothing)}["leave_one_env_out"]
    assert "needs 3 further runs" in chosen.refusal
    _, lines = table([("ERM", side_by_side([result(trajectory)], nothing))])
    assert lines == [("ERM", "2.0 (70.0)", "2.0 (70.0)", "-", "2.0 (70.0)")]


def test_a_data_set_without_a_split_is_not_chosen_by_it() -> None:
    bare = [replace(p, scores={"train": p.scores["train"]}) for p in points([1.0])]
    with pytest.raises(SettingError, match="no split 'val'"):
        best(bare, "val")


def test_what_is_left_out_of_training_is_what_validates() -> None:
    data = colored_mnist(source="digits", n_train=300, correlations=(0.9, 0.8, 0.7, 0.1))
    part = without_environment(data, 1)
    assert part.train.names == ("train 0.9", "train 0.7") and part.train.counts == [100, 100]
    assert part.val is not None and part.val.names == ("train 0.8",) and part.val.counts == [100]
    left = data.train.samples.env == 1
    assert torch.equal(part.val.samples.x, data.train.samples.x[left])
    assert torch.equal(part.train.samples.y, data.train.samples.y[~left])
    assert part.train.spurious is not None and data.train.spurious is not None
    assert torch.equal(part.train.spurious, data.train.spurious[~left])
    assert part.test is data.test


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (replace(THREE, correlations=None, leave_out=0), "`leave_out` needs three or more"),
        (replace(THREE, leave_out=3), "0 to 2; got 3"),
        (replace(THREE, leave_out=-1), "0 to 2; got -1"),
    ],
)
def test_an_environment_that_cannot_be_left_out_is_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run(recipe)


def test_a_budget_of_groups_is_no_number_of_weights() -> None:
    options = {"budget_in": "groups", "groups": "neuron"}
    grouped = Recipe(width=8, n_train=100, steps=8, eval_every=1, method="sparseirm", sparsifier="structured")
    found = run(replace(grouped, budget=4, sparsifier_options=options))
    assert found.counts_groups and found.kept > 10 * found.budget
    assert found.to_json()["density"] == {"reached": found.kept / found.n_weights}
    assert Result.from_json(found.to_json()).to_json() == found.to_json()
    rising = points(val=[95.0, 80.0, 90.0, 70.0], density=[1.0, 0.5, 0.5, 0.5])
    chosen = side_by_side([replace(found, trajectory=rising, n_weights=100, kept=50)], nothing)
    assert {c.rule: c.points[0].step for c in chosen if c.points}["train_val"] == 30


def test_leaving_nothing_out_changes_no_key() -> None:
    assert "leave_out" not in THREE.resolved().to_json()
    assert replace(THREE, leave_out=0).key != THREE.key


def test_compare_shows_the_rules_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sparseirm.experiments.compare.local", lambda workers: nullcontext(ThreadPoolExecutor(1))
    )
    recipe = replace(THREE, method="sparseirm")
    compare(recipe, methods=("erm",), seeds=(0,), store=tmp_path / "s", out=tmp_path, rules=True)
    assert len([*(tmp_path / "s" / "runs").iterdir()]) == 4
    text = (tmp_path / "compare.md").read_text()
    assert "oracle (upper bound, not a result)" in text and "| - |" not in text
    shown = capsys.readouterr().out
    assert "leave_one_env_out" in shown
    for words in (text.split("By rule")[1], " ".join(shown.split("by rule")[1].split())):
        assert "mean ± standard deviation over seeds" in words


def test_compare_says_why_a_rule_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sparseirm.experiments.compare.local", lambda workers: nullcontext(ThreadPoolExecutor(1))
    )
    recipe = replace(THREE, method="sparseirm", correlations=None)
    compare(recipe, methods=("erm",), seeds=(0,), store=tmp_path / "s", out=tmp_path, rules=True)
    text = (tmp_path / "compare.md").read_text()
    assert "| - |" in text and "leave_one_env_out needs three or more training environments" in text
    assert len([*(tmp_path / "s" / "runs").iterdir()]) == 1
