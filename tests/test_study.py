"""A whole study of a table: what is compared, the rule, the verdicts, the files, and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.files import read_json
from sparseirm.runs import held
from sparseirm.study.assessment import Candidate, Sample, Seen, assess, constant
from sparseirm.study.choice import EnvScore, Standing, beats_guessing, choose, standings
from sparseirm.study.common import claimed
from sparseirm.study.comparison import candidates, compare_candidates, folds
from sparseirm.study.problem import Problem, build_problem
from sparseirm.study.study import Study, afterwards, conduct, look
from sparseirm.study.verdicts import SPURIOUS, STABLE
from table_makers import CAUSES, EFFECTS, mixed_table, sem_table


class Here(Executor):
    """Calls are carried out at once, in this process."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **more: Any) -> Future[Any]:
        job: Future[Any] = Future()
        try:
            job.set_result(call(*arguments, **more))
        except Exception as error:
            job.set_exception(error)
        return job


def problem_of(frame: pd.DataFrame, **more: Any) -> Problem:
    return build_problem(frame, "y", "site", ("turned",), **more)


@pytest.fixture(scope="module")
def study() -> Study:
    """The linear model with three environments and one whose effects are reversed."""
    problem = problem_of(sem_table())
    tried = [one for one in candidates(20, steps=200) if one.name in ("erm", "irm", "sparseirm-search")]
    return conduct(problem, tried, folds(problem, (0,), 2000), Here())


# The whole.


def test_the_test_environment_is_far_better_predicted_than_by_erm(study: Study) -> None:
    assert study.choice.taken.candidate.name == "sparseirm-search"
    erm = next(one for one in study.table if one.candidate.name == "erm")
    (ours,), (theirs,) = study.choice.taken.tested, erm.tested
    assert ours.low > 0.7 > 0.2 > theirs.high
    test = sem_table().query("site == 'turned'")
    assert study.model.score(test.drop(columns=["y", "site"]), test["y"]) > 0.7


def test_causes_are_stable_and_effects_look_spurious(study: Study) -> None:
    verdicts = {one.column: one.verdict for one in study.verdicts}
    assert {name for name, told in verdicts.items() if told == STABLE} == set(CAUSES)
    assert {name for name, told in verdicts.items() if told == SPURIOUS} == set(EFFECTS)


def test_findings_tell_the_choice_and_name_the_columns(study: Study) -> None:
    found = {one.name: one for one in study.findings}
    assert [one.stage for one in study.findings] == sorted(
        (one.stage for one in study.findings), key=["before", "during", "after"].index
    )
    assert "SparseIRM" in found["choice"].seen and "ERM is not invariant" in found["choice"].seen
    assert all(name in found["spurious-looking columns"].seen for name in EFFECTS)
    assert all(name in found["stable columns"].seen for name in CAUSES)
    assert found["test environments"].severity == "good"


def test_nothing_of_the_test_environment_reaches_the_choice() -> None:
    frame = sem_table(n=100)
    changed, turned = frame.copy(), frame["site"] == "turned"
    changed.loc[turned, "y"] = -5 * frame.loc[turned, "y"]
    changed.loc[turned, CAUSES] = 0.0
    tried = [one for one in candidates(20, steps=60) if one.name in ("erm", "sparseirm-search")]
    first, again = (
        conduct(problem_of(rows), tried, folds(problem_of(rows), (0,), 2000), Here())
        for rows in (frame, changed)
    )
    assert (
        again.choice.taken.candidate == first.choice.taken.candidate and again.choice.why == first.choice.why
    )
    assert again.verdicts == first.verdicts
    for a, b in zip(again.table, first.table, strict=True):
        assert (a.held_out, a.fresh, a.uneven) == (b.held_out, b.fresh, b.uneven) and a.tested != b.tested
    assert all(
        (p == q).all()
        for p, q in zip(again.model.module_.parameters(), first.model.module_.parameters(), strict=True)
    )


def test_erm_is_taken_where_environments_are_alike() -> None:
    frame = sem_table(n=150)
    frame["site"] = np.resize(["a", "b", "c"], len(frame))
    frame = frame[["cause0", "cause1", "noise0", "noise1", "y", "site"]]
    problem = build_problem(frame, "y", "site")
    study = conduct(problem, candidates(4, (2,), steps=80), folds(problem, (0,), 1000), Here())
    assert study.choice.taken.candidate.name == "erm" and "ERM is as good here" in study.choice.why
    found = {one.name: one.severity for one in study.findings}
    assert found["alike environments"] == "warning" and found["as good as ERM"] == "note"
    assert not [one for one in study.verdicts if one.verdict == SPURIOUS]


def test_two_environments_are_compared_on_rows_left_out() -> None:
    frame = sem_table(n=100).query("site in ['a', 'c']")
    problem = build_problem(frame, "y", "site")
    parts = folds(problem, (0, 1), 1000)
    assert {part.kind for part in parts} == {"fresh"}
    study = conduct(problem, candidates(20, (5,), steps=60)[:4], parts, Here())
    assert {one.name for one in study.findings} >= {"environments", "not checked"}
    assert not study.choice.taken.held_out and study.choice.taken.fresh
    stable = [one for one in study.findings if one.name == "stable columns"]
    assert all(one.severity == "note" and "cannot be told" in one.do for one in stable)


def test_names_that_differ_in_capitals_are_told_of() -> None:
    frame = mixed_table().replace({"clinic": {"west": "NORTH"}, "label": {"ill": "Well"}})
    found = [one.seen for one in look(build_problem(frame, "label", "clinic")) if one.name == "spellings"]
    assert ["NORTH and north" in found[0], "Well and well" in found[1]] == [True, True]


def test_another_method_can_be_asked_for(study: Study) -> None:
    assert choose(study.table, "irm").taken.candidate.name == "irm"
    assert choose(study.table, "erm").why.startswith("You asked for erm.")


# Folds.


def test_every_environment_is_left_out_and_every_row_once() -> None:
    problem = problem_of(sem_table(n=50))
    parts = folds(problem, (0, 1, 2), 10_000)
    held = [part for part in parts if part.kind == "held out"]
    assert len(held) == 9 and len(parts) == 12
    for part in parts:
        assert not set(part.train) & set(part.fresh)
        assert set(part.train) | set(part.fresh) == set(problem.training)
        if part.kind == "held out":
            assert len(set(problem.env[part.fresh])) == 1
            assert not set(problem.env[part.fresh]) & set(problem.env[part.train])
    fresh = np.concatenate([part.fresh for part in parts if part.kind == "fresh"])
    assert sorted(fresh) == sorted(problem.training)


def test_many_environments_are_left_out_in_groups_and_many_rows_thinned() -> None:
    frame = pd.concat([sem_table(n=30).assign(site=f"{name}{at}") for at, name in enumerate("abcdefg")])
    frame["site"] += np.tile(["x", "y"], len(frame) // 2)
    problem = build_problem(frame, "y", "site")
    parts = folds(problem, (0,), 700)
    assert len([part for part in parts if part.kind == "held out"]) == 8
    counts = np.bincount(problem.env[np.concatenate([parts[0].train, parts[0].fresh])])
    assert counts.tolist() == [50] * 14 and len(problem.training) > 700


def test_a_class_of_few_training_rows_is_refused_in_folds_of_rows_too() -> None:
    frame = sem_table(n=50, classes=True).query("site in ['a', 'b', 'turned']")
    rare = [*np.flatnonzero(frame["site"] == "turned")[:10], 0]
    frame["y"] = np.where(np.isin(np.arange(len(frame)), rare), "rare", frame["y"])
    with pytest.raises(SettingError, match="class rare of 'y' has no training row when a part of the rows"):
        folds(problem_of(frame), (0, 1, 2), 1000)


def test_a_fit_that_fails_is_named() -> None:
    problem = problem_of(sem_table(n=30))
    bad = Candidate("bad", "A bad one", {"method": "irm", "penalty": "rexx"})
    with pytest.raises(SettingError, match=r"A bad one could not be fitted: .*Did you mean 'rex'"):
        compare_candidates(problem, [bad], folds(problem, (0,), 100), Here())


# The rule.


def env_score(env: str, risk: float, score: float, disagreement: float | None = 0.0) -> EnvScore:
    return EnvScore(env, 500, score, score - 0.02, score + 0.02, risk, 0.0, 0.7, disagreement, 0.5)


def standing(
    name: str, held: tuple[float, ...], uneven: float = 0.0, disagreement: float = 0.0, skill: float = 0.3
) -> Standing:
    scores = [env_score(f"e{at}", risk, 1 - risk) for at, risk in enumerate(held)]
    return Standing(Candidate(name, name.upper(), {}), scores, scores, [], uneven, disagreement, skill)


@pytest.mark.parametrize(
    ("table", "taken"),
    [
        # ERM is invariant, and nobody better beyond noise.
        ([standing("erm", (0.3, 0.3, 0.3)), standing("irm", (0.2, 0.3, 0.31))], "erm"),
        # ERM is invariant, but another is better in every environment.
        ([standing("erm", (0.3, 0.31, 0.32)), standing("irm", (0.2, 0.21, 0.23))], "irm"),
        # ERM is uneven: the best of those that are not.
        (
            [
                standing("erm", (0.1, 0.1, 0.1), uneven=0.5),
                standing("irm", (0.4, 0.4, 0.4)),
                standing("sparseirm", (0.3, 0.3, 0.3)),
            ],
            "sparseirm",
        ),
        # Environments disagree on how to use ERM's columns.
        ([standing("erm", (0.1, 0.1, 0.1), disagreement=0.3), standing("irm", (0.4, 0.4, 0.4))], "irm"),
        # Even for knowing nothing does not count.
        (
            [standing("erm", (0.3, 0.3, 0.3), uneven=0.5), standing("irm", (0.69, 0.69, 0.69), skill=0.01)],
            "erm",
        ),
        # Nobody is invariant: the best worst environment, beyond noise, or ERM.
        (
            [
                standing("erm", (0.2, 0.5, 0.8), uneven=0.5),
                standing("irm", (0.1, 0.41, 0.72), uneven=0.4),
            ],
            "irm",
        ),
        (
            [
                standing("erm", (0.2, 0.5, 0.8), uneven=0.5),
                standing("irm", (0.4, 0.6, 0.7), uneven=0.4),
            ],
            "erm",
        ),
    ],
)
def test_the_rule(table: list[Standing], taken: str) -> None:
    assert choose(table).taken.candidate.name == taken


def test_gains_are_paired_by_environment() -> None:
    table = [standing("erm", (0.5, 0.6, 0.7), uneven=0.5), standing("irm", (0.4, 0.45, 0.5))]
    gain = choose(table).gain
    differences = [0.1, 0.15, 0.2]
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.15, low, high))


@pytest.mark.parametrize(
    ("risk", "score", "unit", "finds"),
    [
        (1.2, 0.4, "accuracy", True),
        (1.2, 0.51, "accuracy", True),
        (0.8, 0.6, "accuracy", False),
        (0.3, 0.5, "accuracy", False),  # a rare class may be known although accuracy does not show it
        (0.3, 0.5, "R2", False),
        (0.3, -0.2, "R2", True),
    ],
)
def test_a_model_that_is_no_better_than_guessing_is_a_problem(
    risk: float, score: float, unit: str, finds: bool
) -> None:
    guess = 0.5 if unit == "accuracy" else 0.0
    scores = [replace(env_score(env, risk, score), risk_error=0.05, guess=guess) for env in "abc"]
    erm = Standing(Candidate("erm", "ERM", {}), scores, scores, scores, 0.0, 0.0, 0.1)
    better = [replace(one, score=score + 0.2) for one in scores]
    irm = Standing(Candidate("irm", "IRM", {}), better, better, better, 0.5, 0.0, 0.1)
    assert beats_guessing(scores, unit == "accuracy") is not finds
    choice = choose([erm, irm])
    found = {one.name: one for one in afterwards(choice, [erm, irm], [], unit)}
    assert choice.taken is erm and ("no better than guessing" in found) is finds
    assert found["test environments"].severity == ("warning" if finds else "note")
    assert "IRM" not in found["test environments"].seen
    assert "+0.2" in found["as good as ERM"].seen and "(" not in found["as good as ERM"].seen


def test_unevenness_beyond_noise() -> None:
    def seen(env: str, risk: float) -> Seen:
        return Seen(env, 100, risk, 4.0, 0.9, 0.03, 0.7, 0.0, {}, [], 0.5)

    from sparseirm.study.assessment import Assessment

    found = [Assessment("erm", "fresh", seed, [seen("a", 0.2), seen("b", 0.6)], []) for seed in (0, 1)]
    (one,) = standings([Candidate("erm", "ERM", {})], found)
    noise = 4.0 / 200  # variance of a mean over two hundred rows
    spread = math.sqrt(np.var([0.2, 0.6], ddof=1) - noise)
    assert one.skill == pytest.approx(0.3) and one.uneven == pytest.approx(spread / 0.3)
    assert one.fresh[0].rows == 200


# One assessment.


def test_scores_risks_and_importance_are_what_they_say() -> None:
    x = sem_table(n=200).query("site != 'turned'")
    inputs = x[["cause0", "cause1", "noise0"]]
    train = Sample(inputs, x["y"].to_numpy(), x["site"].to_numpy())
    fresh = Sample(inputs[::2], x["y"].to_numpy()[::2], x["site"].to_numpy()[::2])
    erm = Candidate("erm", "ERM", {"method": "erm", "steps": 100})
    found = assess(erm, False, "fresh", 0, train, fresh, None)
    model = erm.estimator(False, 0).fit(train.inputs, train.y, env=train.env)
    for one in found.seen:
        here = fresh.env == one.env
        told, y = model.predict(fresh.inputs[here]), fresh.y[here]
        assert one.rows == here.sum()
        assert one.score == pytest.approx(1 - np.mean((y - told) ** 2) / np.var(y), rel=1e-4)
        assert one.risk == pytest.approx(np.mean((y - told) ** 2) / np.var(train.y), rel=1e-3)
        assert one.importance["cause0"] > 10 * abs(one.importance["noise0"])
        assert sum(row[0] for row in one.bins) == one.rows
    labels = np.array(["a"] * 30 + ["b"] * 10)
    losses = constant(Sample(inputs[:40], labels, np.repeat(["p", "q"], 20)), True)(np.array(["a", "b"]))
    assert np.exp(-losses) == pytest.approx([0.75, 0.25])


def test_importance_is_measured_on_rows_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sem_table(n=400, classes=True).query("site != 'turned'").sort_values(["site", "y"])
    sample = Sample(rows[["cause0", "cause1"]], rows["y"].to_numpy(), rows["site"].to_numpy())
    erm = Candidate("erm", "ERM", {"method": "erm", "steps": 60})
    every = assess(erm, True, "fresh", 0, sample, sample, None)
    monkeypatch.setattr("sparseirm.study.assessment.IMPORTANCE_ROWS", 150)  # fewer than of the first class
    some = assess(erm, True, "fresh", 0, sample, sample, None)
    for a, b in zip(every.seen, some.seen, strict=True):
        assert b.importance["cause0"] == pytest.approx(a.importance["cause0"], rel=0.5)


# Commands.


def test_an_output_folder_belongs_to_one_process(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with claimed(out):
        with pytest.raises(SettingError, match="in use by another process"), claimed(out):
            pass
        (out / "result.json").write_text("mine")
        with pytest.raises(SettingError, match="already holds something"), claimed(out):
            pass
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_an_output_folder_is_left_as_it_was_if_something_fails(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(KeyboardInterrupt), claimed(out):
            (out / "folder").mkdir()
            (out / "folder" / "file").write_text("half")
            raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_a_file_that_a_killed_process_began_does_not_count(tmp_path: Path) -> None:
    (tmp_path / f".report.html.{'0a' * 8}.part").write_text("half")
    with claimed(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_a_folder_filled_just_before_it_is_held_is_not_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def late(out: Path) -> Iterator[None]:
        (out / "result.json").write_text("another's")
        with held(out):
            yield

    monkeypatch.setattr("sparseirm.study.common.held", late)
    with pytest.raises(SettingError, match="already holds something"), claimed(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit` leaves of a mixed table of classes."""
    folder = tmp_path_factory.mktemp("fitted")
    mixed_table().to_csv(folder / "table.csv", index=False)
    flags = ["--target", "label", "--env", "clinic", "--steps", "40", "--seeds", "0", "--columns", "2"]
    code = main(["fit", str(folder / "table.csv"), *flags, "--workers", "2", "--out", str(folder / "out")])
    assert code == 0
    return folder


def test_fit_writes_model_and_result(fitted: Path) -> None:
    assert {path.name for path in (fitted / "out").iterdir()} >= {
        "estimator.json",
        "estimator.safetensors",
        "result.json",
    }
    result = read_json(fitted / "out" / "result.json")
    assert result["status"] == "done" and result["kind"] == "table"
    assert result["data"]["rows"] == 240 and result["data"]["classes"] == ["ill", "well"]
    assert [one["kind"] for one in result["data"]["columns"]] == ["number", "category", "date", "number"]
    assert [one["labels"] for one in result["data"]["environments"]] == [
        mixed_table().query("clinic == @clinic")["label"].value_counts().sort_index().to_dict()
        for clinic in ("north", "south", "west")
    ]
    names = [one["candidate"] for one in result["comparison"]["candidates"]]
    assert names == ["erm", "irm", "sparseirm", "sparseirm-search", "sparseirm-screen", "sparseirm-2"]
    assert result["comparison"]["taken"] in names and result["comparison"]["why"]
    assert {one["column"] for one in result["columns"]["verdicts"]} == {"dose", "kind", "day", "smoker"}
    for finding in result["findings"]:
        assert finding["seen"] and finding["do"]


def test_scores_need_no_flags_and_stand_beside_those_of_training(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = mixed_table(seed=1)
    frame["clinic"] = frame["clinic"].replace("west", "east")
    frame.to_csv(tmp_path / "new.csv", index=False)
    code = main(["evaluate", str(fitted / "out"), str(tmp_path / "new.csv"), "-o", str(tmp_path / "s.csv")])
    assert code == 0
    scores = pd.read_csv(tmp_path / "s.csv")
    assert scores["environment"].tolist() == ["east", "north", "south", "all rows"]
    said = " ".join(capsys.readouterr().out.split())
    assert "The model was trained on north, south." in said and "ignored" not in said
    compared = read_json(fitted / "out" / "result.json")["comparison"]
    (taken,) = (one for one in compared["candidates"] if one["candidate"] == compared["taken"])
    for one in taken["held_out"]:
        assert f"{one['env']} {one['score']:.3f}" in said


def test_predictions_carry_the_labels_and_probabilities(fitted: Path, tmp_path: Path) -> None:
    frame = mixed_table(seed=1)
    frame["kind"] = frame["kind"].replace("red", "violet")
    frame = frame.assign(more=1).drop(columns="label")[["more", "smoker", "day", "dose", "kind", "clinic"]]
    frame.to_parquet(tmp_path / "new.parquet")
    assert (
        main(["predict", str(fitted / "out"), str(tmp_path / "new.parquet"), "-o", str(tmp_path / "p.csv")])
        == 0
    )
    told = pd.read_csv(tmp_path / "p.csv")
    assert list(told.columns) == ["prediction", "probability_ill", "probability_well"] and len(told) == 240
    likely = np.where(told["probability_ill"] > told["probability_well"], "ill", "well")
    assert (told["prediction"] == likely).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.drop(columns="dose"), "'dose'"),
        (
            lambda frame: frame.assign(dose=frame["dose"].astype(object).where(frame.index != 4, "much")),
            "row 5",
        ),
        (
            lambda frame: frame.assign(dose=frame["dose"].astype(object).where(frame.index != 4, "1,5")),
            "`--decimal ,`",
        ),
        (lambda frame: frame.assign(day="yesterday"), "row 1 has 'yesterday'"),
        (lambda frame: frame[:0], "no rows"),
    ],
)
def test_rows_that_cannot_be_predicted_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame],
    says: str,
    fitted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(mixed_table()).to_csv(tmp_path / "new.csv", index=False)
    assert (
        main(["predict", str(fitted / "out"), str(tmp_path / "new.csv"), "-o", str(tmp_path / "p.csv")]) == 2
    )
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert not (tmp_path / "p.csv").exists()


def test_predictions_never_replace_the_data(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(fitted / "table.csv")
    before = Path(path).read_bytes()
    assert main(["predict", str(fitted / "out"), path, "-o", path]) == 2
    model = fitted / "out" / "estimator.json"
    kept = model.read_bytes()
    assert main(["predict", str(fitted / "out"), path, "-o", str(model)]) == 2
    assert "exists already; choose another name" in capsys.readouterr().err and model.read_bytes() == kept
    assert main(["predict", str(tmp_path), path, "-o", str(tmp_path / "p.csv")]) == 2
    assert "holds no saved estimator" in capsys.readouterr().err
    assert Path(path).read_bytes() == before


@contextmanager
def here(workers: int | None) -> Iterator[Here]:
    yield Here()


def test_equal_commands_give_equal_files_in_any_process(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseirm.study.commands.local", here)
    flags = ["--target", "label", "--env", "clinic", "--steps", "40", "--seeds", "0", "--columns", "2"]
    main(["fit", str(fitted / "table.csv"), *flags, "--out", str(tmp_path / "out")])
    model = "estimator.safetensors"
    assert (tmp_path / "out" / model).read_bytes() == (fitted / "out" / model).read_bytes()
    a, b = (read_json(folder / "out" / "result.json") for folder in (tmp_path, fitted))
    assert json.dumps(a["comparison"]) == json.dumps(b["comparison"]) and a["columns"] == b["columns"]


def test_a_failed_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed_table().to_csv(tmp_path / "table.csv", index=False)

    def broken(*arguments: Any) -> None:
        raise SettingError("the disk is full.")

    monkeypatch.setattr("sparseirm.study.common.write_json", broken)
    monkeypatch.setattr("sparseirm.study.commands.local", here)
    flags = ["--target", "label", "--env", "clinic", "--steps", "5", "--seeds", "0", "--columns", "1"]
    table = str(tmp_path / "table.csv")
    assert main(["fit", table, *flags, "--out", str(tmp_path / "a" / "b")]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
