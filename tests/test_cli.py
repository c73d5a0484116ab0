"""The command line is the Python functions, spelled differently."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import sparseirm
from sparseirm import Recipe, run
from sparseirm.cli import COMMANDS, main
from sparseirm.core import SettingError
from sparseirm.experiments.compare import compare
from sparseirm.experiments.tables import by_width, chance, grid
from sparseirm.files import read_json
from sparseirm.runs import Result

QUICK = ["--width", "8", "--steps", "12", "--eval-every", "6", "--data", "colored_digits"]
RECIPE = Recipe(width=8, steps=12, eval_every=6)


def test_train_on_the_command_line_equals_run_in_python(tmp_path: Path) -> None:
    flags = [
        "--penalty",
        "rex",
        "--density",
        "0.2",
        "--sparsifier-options",
        "decide_at",
        "0.5",
        "--seed",
        "3",
    ]
    assert main(["train", *QUICK, *flags, "--out", str(tmp_path)]) == 0
    said = Result.from_json(read_json(tmp_path / "result.json"))
    recipe = replace(RECIPE, penalty="rex", density=0.2, sparsifier_options={"decide_at": 0.5}, seed=3)
    assert said.recipe == recipe.resolved()
    assert said.trajectory == run(recipe).trajectory


def test_result_json_holds_what_a_reader_needs(tmp_path: Path) -> None:
    main(["train", *QUICK, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["recipe"]["penalty_weight"] == 1e4 and result["recipe"]["budget"] == "auto"
    assert set(result["last"]) == {"train", "val", "test"}
    assert set(result["last"]["train"]["per_env"]) == {"train 0.9", "train 0.8"}
    assert [point["step"] for point in result["trajectory"]] == [6, 12]
    assert result["density"]["asked"] == result["density"]["reached"] == result["kept"] / result["n_weights"]
    assert result["environment"]["torch"] and result["seconds"] > 0 and result["status"] == "done"


def test_every_field_of_a_recipe_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for field in fields(Recipe):
        assert f"--{field.name.replace('_', '-')} " in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["train", "--density", "5"],
            "`density` must be in (0, 1], the fraction of weights kept; got 5. For",
        ),
        (["train", "--penalty", "rexx"], "no penalty is named 'rexx'. Did you mean 'rex'?"),
        (["train", "--n-trai", "5"], "`train` has no flag `--n-trai`. Did you mean `--n-train`? See"),
        (["train", "--n-train", "many"], "`--n-train` must be a whole number; got 'many'. See"),
        (
            ["train", "--method", "irm", "--density", "0.1"],
            "`density` has no effect: method 'irm' keeps every weight",
        ),
        (["train", "--steps", "0"], "`steps` must be at least 1; got 0."),
        (["train", "--batch-size", "1"], "`batch_size` must lie between the number of environments (2)"),
        (["train", "--device", "nowhere"], "`device` 'nowhere' cannot be used here"),
        (["train", "--sparsifier-options", "decide", "1"], "Did you mean 'decide_at'?"),
        (["train", "--sparsifier", "dense"], "`sparsifier` dense keeps every weight"),
        (["train", "--sparsifier-options", "score_lr", "fast"], "must be of type float"),
        (
            ["train", "--penalty", "rex", "--penalty-options", "sd", "1"],
            "penalty 'rex' has no options; got 'sd'",
        ),
        (["train", "--device", "meta"], "`device` 'meta' cannot be used here"),
        (["compare", "--workers", "-1"], "`workers` must be at least 1"),
        (["compare", "--seeds", "0", "0"], "`seeds` must name each one once"),
        (
            ["compare", "--methods", "erm", "oracle", "--density", "0.1"],
            "`density` has no effect with methods",
        ),
        (["compare", "--method", "erm"], "give `methods`"),
        (["compare", "--methods", "magic"], "no method is named 'magic'"),
        (["fly"], "no command is named 'fly'. Known: ablation, bench"),
        (["fti"], "Did you mean 'fit'?"),
        (
            ["fit", "t.csv", "--drop", "a", "--drop", "b"],
            "`--drop` is given 2 times, and only the last",
        ),
        (["train", "--n_train", "-5", "--n-train=-5"], "`--n-train` is given 2 times"),
        (["train", "--resume", "--no-resume"], "`--resume` is given 2 times"),
        (["predict", "m", "d", "-o", "a.csv", "--output", "b.csv"], "`--output` is given 2 times"),
        (
            ["fit", "t.csv", "--test-envs", "Ulm"],
            "`fit` has no flag `--test-envs`. Did you mean `--test-env`?",
        ),
        (["fit", "t.csv", "--seed", "1"], "Did you mean `--seeds`?"),
        (["fit", "t.csv", "--density", "1"], "Did you mean `--densities`?"),
        (["train", "--test-env", "a"], "Did you mean `--test-envs`?"),
        (["train", "--seeds", "1"], "Did you mean `--seed`?"),
        (["train", "--methods", "erm"], "Did you mean `--method`?"),
        (["predict", "m", "d", "--out", "x.csv"], "no flag `--out`. Did you mean `--output`?"),
        (
            ["predict", "m"],
            "`predict` needs PATH, -o PATH, --output PATH as well. Example: `sparseirm predict",
        ),
        (["predict", "none", "d", "-o", "x.csv"], "there is no folder none; name the one that"),
        (["train", "--data-options", "size"], "must be names and values in turn, such as `size 32`. See"),
        (["train", "--correlations", "0.9,0.8"], "must be numbers; got '0.9,0.8'. Several values are"),
        (["compare", "--together", "x"], "`--together` must be a whole number or auto or off; got 'x'"),
        (["ablation", "--probe.step", "1"], "Did you mean `--probe.steps`?"),
        (["ablation", "--steps", "1", "--probe.steps", "2", "--probe.lr", "x"], "must be a number; got 'x'"),
        (["train", "--resume"], "`resume` has no effect without `out`"),
        ([], "Expected one of {demo, train, compare, theory"),
    ],
)
def test_a_bad_value_gives_one_helpful_line_and_exit_code_2(
    flags: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert line in error and error.startswith("sparseirm: ")
    assert error.count("\n") == 1 and "Traceback" not in error


def test_numbers_below_zero_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--width", "-5", "--lr", "-5"]) == 2
    assert "must be" in capsys.readouterr().err


def test_the_version_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sparseirm {sparseirm.__version__}\n"


def test_an_out_that_cannot_be_written_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("precious")
    assert main(["train", "--steps", "1000000", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_options_of_any_type_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    penalty = ["--penalty", "bayesian", "--penalty-options", "n_draws", "3", "split", "True"]
    sparsifier = ["--sparsifier-options", "per_layer", "True", "decide_at", "1"]
    assert main(["train", *QUICK, *penalty, *sparsifier, "--out", str(tmp_path)]) == 0
    recipe = read_json(tmp_path / "result.json")["recipe"]
    assert recipe["penalty_options"] == {"sd": 0.06, "n_draws": 3, "split": True}
    assert recipe["sparsifier_options"]["per_layer"] is True


def test_out_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK, "--out", str(tmp_path)]) == 0
    before = (tmp_path / "result.json").read_bytes()
    assert main(["train", *QUICK, "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", *QUICK, "--out", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "result.json").read_bytes() == before


def test_a_pipe_gets_no_progress_bar(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparseirm.cli", "train", *QUICK, "--method", "erm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == "" and "\x1b" not in done.stdout
    assert "test accuracy" in done.stdout


def test_compare_gives_one_row_per_method_and_keeps_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def again() -> list[str]:
        table = compare(
            replace(RECIPE, density=0.1),
            methods=("erm", "sparseirm"),
            penalties=("irmv1", "rex"),
            seeds=(0, 1),
            store=tmp_path / "store",
            out=tmp_path,
            workers=1,
        )
        assert all(len(row.results) == 2 for row in table)
        return [row.label for row in table]

    assert again() == ["ERM", "SparseIRM (irmv1)", "SparseIRM (rex)"]
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "runs").iterdir()}
    assert len(runs) == 6 and (tmp_path / "compare.svg").exists()
    assert again() and runs == {path: path.stat().st_mtime_ns for path in runs}
    assert "SparseIRM (rex)" in capsys.readouterr().out


def test_compare_crosses_sparsifiers_with_densities_where_they_have_an_effect(tmp_path: Path) -> None:
    table = compare(
        replace(RECIPE, steps=3),
        methods=("erm", "sparseirm"),
        sparsifiers=("topk", "random"),
        densities=(0.1, 0.5),
        seeds=(0,),
        store=tmp_path,
        out=tmp_path,
        workers=1,
    )
    assert [row.label for row in table] == [
        "ERM",
        *["SparseIRM (rex, topk)"] * 2,
        *["SparseIRM (rex, random)"] * 2,
    ]
    assert [round(row.results[0].kept / row.results[0].n_weights, 2) for row in table] == [
        1,
        0.1,
        0.5,
        0.1,
        0.5,
    ]
    heading, _, topk, random, *_ = grid(table[1:]).splitlines()
    assert heading == "| train / test | density 0.1 | density 0.5 |"
    assert topk.startswith("| topk | ") and random.count(" / ") == 2
    with pytest.raises(SettingError, match=r"two rows have topk at density 0\.1"):
        grid(table[1:2] * 2)
    heading, _, erm, topk, *_ = by_width([table[0], table[1], table[3]]).splitlines()
    assert heading == f"| train / test | width {table[0].results[0].recipe.width} |"
    assert erm.startswith("| ERM | ") and topk.startswith("| SparseIRM (rex, topk) | ")


def test_guessing_among_three_classes_is_right_one_time_in_three() -> None:
    recipe = Recipe(data="pair", data_options={"top": "digits:3,5,8", "bottom": "digits:0,1,2"})
    assert chance(recipe) == pytest.approx(100 / 3) and chance(Recipe(data="pair")) == 50


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (["--methods", "erm", "--densities", "0.1"], "no method is sparse"),
        (["--density", "0.1", "--densities", "0.2"], "give `density` or `densities`, not both"),
        (["--sparsifier", "topk", "--sparsifiers", "gmp"], "give `sparsifier` or `sparsifiers`, not both"),
        (["--densities", "0.1", "0.1"], "`densities` must name each one once"),
        (["--sparsifiers", "topq"], "no sparsifier is named 'topq'"),
    ],
)
def test_compare_refuses_sparsifiers_and_densities_without_meaning(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *flags, "--store", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
