"""Tables and figures of the paper as one command: what is missing, what is run, what is shown."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sparseirm.experiments.reproduce as module
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data import FINGERPRINTS
from sparseirm.experiments.grids import NAMED, Cell, Grid
from sparseirm.experiments.progress import duration
from sparseirm.experiments.reproduce import What, reproduce, seconds
from sparseirm.experiments.store import Store
from sparseirm.methods import SETTINGS
from sparseirm.recipe import Recipe
from sparseirm.runs import Result, run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Table 8 of four cells on the digits, of which one cannot be run, in threads of this process."""
    cells = [
        Cell("colored_digits", 1200, "mlp", width, method, penalty, test=50.0)
        for width, method, penalty in ((3, "ERM", ""), (3, "IRM", "rex"), (5, "ERM", ""), (3, "Magic", "rex"))
    ]
    monkeypatch.setattr(Grid, "cells", property(lambda self: cells))
    for settings in SETTINGS.values():
        monkeypatch.setitem(settings, "steps", 4)
    monkeypatch.setattr(module, "connect", lambda *given: nullcontext(ThreadPoolExecutor(1)))
    return cells


def test_every_table_and_figure_has_a_name() -> None:
    assert set(What.__args__) == {*NAMED, "theorem1"}  # type: ignore[attr-defined]


def test_what_is_missing_is_run_once_and_shown_beside_the_paper(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = reproduce("table8", seeds=(0, 1), settings=("ours", "paper"), store=tmp_path)
    assert [len(f.results) for f in findings] == [2, 2, 2, 0] * 2
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(runs) == 12
    shown = capsys.readouterr().out
    assert "1 of 4 cells are not available: no method is named 'magic'" in shown
    assert "paper 50.0" in shown and "not available" in shown and "IRM (rex), paper" in shown
    reproduce("table8", seeds=(0, 1), settings=("ours", "paper"), store=tmp_path)
    assert runs == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_training_accuracy_stands_beside_the_papers_and_is_what_table7_is_about(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny[:] = [replace(tiny[0], train=12.5)]
    shown = {}
    for what in ("table2", "table7"):
        (finding,) = reproduce(what, store=tmp_path)
        lines = capsys.readouterr().out.splitlines()
        shown[what] = [words for line in lines if (words := line.strip("│ ").removeprefix("ERM").strip("│ "))]
    test, train = (figures.mean for split in ("test", "train") if (figures := finding.accuracy(split)))
    beside = [f"{test:.1f}", "paper 50.0", f"train {train:.1f} (paper 12.5)", f"{test - 50:+.1f}, one seed"]
    assert shown["table2"][-5:-1] == beside
    beside = [
        f"train {train:.1f}",
        "paper 12.5",
        f"test {test:.1f} (paper 50.0)",
        f"{train - 12.5:+.1f}, one seed",
    ]
    assert shown["table7"][-5:-1] == beside


def test_below_a_table_it_is_said_of_what_files_its_numbers_are(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("table8", store=tmp_path)
    assert "data: " not in capsys.readouterr().out
    store = Store(tmp_path)
    for result in store.all():
        store.put(replace(result, source_note="[red]JPEG quality 75"))
    reproduce("table8", store=tmp_path)
    assert capsys.readouterr().out.count("\ndata: [red]JPEG quality 75\n") == 1


def test_a_dry_run_says_what_is_missing_and_writes_nothing(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("table8", dry_run=True, store=tmp_path / "new")
    shown = capsys.readouterr().out
    assert "3 runs: 0 done, 3 missing" in shown and "Together: unknown time" in shown
    assert not (tmp_path / "new").exists()
    reproduce("table8", widths=(3,), methods=("erm",), store=tmp_path / "new")
    before = sorted((tmp_path / "new").rglob("*"))
    capsys.readouterr()
    reproduce("table8", dry_run=True, store=tmp_path / "new")
    shown = capsys.readouterr().out
    assert "3 runs: 1 done, 2 missing" in shown and "unknown" not in shown and "of computing" in shown
    assert sorted((tmp_path / "new").rglob("*")) == before


def test_a_dry_run_counts_what_was_run_on_the_files_at_hand(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny[:] = tiny[:1]

    def shown(digest: str, **given: Any) -> str:
        monkeypatch.setitem(FINGERPRINTS, "colored_digits", lambda data_root: digest * 64)
        reproduce("table8", store=tmp_path, **given)
        return capsys.readouterr().out

    shown("a")
    assert "1 runs: 1 done, 0 missing" in shown("a", dry_run=True)
    other = shown("b", dry_run=True)
    assert "1 runs: 0 done, 1 missing" in other and "not run" in other
    assert "not run" not in shown("b")
    assert "1 runs: 1 done, 0 missing" in shown("a", dry_run=True)


def test_a_failure_is_told_after_the_table_and_tried_again(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(recipe: Recipe, **given: Any) -> Result:
        if recipe.width == 5:
            raise SettingError("no luck")
        return run(recipe, **given)

    monkeypatch.setattr("sparseirm.experiments.sweep.run", failing)
    with pytest.raises(SettingError, match="1 of 3 runs failed; the reasons are in"):
        reproduce("table8", store=tmp_path / "new")
    assert len(Store(tmp_path / "new").all()) == 2
    capsys.readouterr()
    reproduce("table8", dry_run=True, store=tmp_path / "new")
    assert "failed before, and will be tried again: SettingError" in capsys.readouterr().out


def test_data_that_cannot_be_had_are_told_before_anything_runs(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny += [
        Cell("colored_mnist", 100, "mlp", 3, "ERM", "", test=50.0),
        Cell("full_colored_mnist", 100, "mlp", 3, "ERM", "", test=50.0),
        Cell("colored_object", 100, "mlp", 3, "ERM", "", test=50.0),
    ]
    missing = (
        "colored_mnist and full_colored_mnist, for 2 of 6 missing runs, cannot be had: MNIST is missing",
        "colored_object, for 1 of 6 missing runs, cannot be had: the prepared COCO objects are missing",
        "run only what can be: --data colored_digits",
    )
    root, store = tmp_path / "nowhere", tmp_path / "new"
    reproduce("table8", dry_run=True, data_root=str(root), store=store)
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 runs: 0 done, 6 missing" in shown and all(words in shown for words in missing)
    assert "a dry run downloads nothing" in shown and not list(tmp_path.iterdir())
    root.write_text("no folder: nothing can be downloaded into it")
    with pytest.raises(SettingError) as caught:
        reproduce("table8", data_root=str(root), store=store)
    assert all(words in str(caught.value) for words in missing[::2]) and not store.exists()
    reproduce("table8", data=("colored_digits",), data_root=str(root), store=store)
    assert len(Store(store).all()) == 3


def test_finished_runs_need_no_data(
    tiny: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce("table8", store=tmp_path)
    monkeypatch.delattr(Recipe, "make_data")
    assert [len(f.results) for f in reproduce("table8", store=tmp_path)] == [1, 1, 1, 0]


def test_a_time_budget_ends_a_sweep_without_failures(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("table8", time_budget="0s", store=tmp_path)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "failed").exists()
    said = capsys.readouterr()
    assert said.err.count("not started: the time budget is used up") == 3
    assert "3 of 3 runs are left. The same command goes on with them." in said.out


def test_a_dry_run_counts_only_what_is_left_of_runs_elsewhere(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("table8", widths=(3,), methods=("erm",), store=tmp_path)
    store, cell = Store(tmp_path), tiny[0]
    store.put(replace(store.all()[0], seconds=1000.0))
    for over, left in ((None, 1000.0), (1, 750.0)):
        if over is not None:
            store.beat(cell.recipe(seed=1), over, 4)
        capsys.readouterr()
        reproduce(
            "table8", widths=(3,), methods=("erm",), seeds=(0, 1), dry_run=True, workers=1, store=tmp_path
        )
        shown = capsys.readouterr().out
        assert f"Together: {duration(left)} of computing" in shown
        assert ("1 of 1 missing runs are running elsewhere" in shown) == (over is not None)


@pytest.mark.parametrize("words", ["", "150", "h", "1h 30m", "-5m", "1d"])
def test_a_time_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(SettingError, match="must be a time such as 150m"):
        seconds(words)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["table9"], "table9"),
        (["table8", "--widths", "100"], "no width in table8 is named '100'"),
        (["table8", "--methods", "sparseirn"], "Did you mean 'sparseirm'?"),
        (["table8", "--methods", "erm,irm"], "named 'erm,irm'. Several names are separated by spaces, not"),
        (["table8", "--seeds", "0,1"], "got '0,1'. Several values are separated by spaces, not commas. See"),
        (["table8", "--widths", "390,640"], "Several values are separated by spaces, not commas."),
        (["table8", "--settings", "mine"], "no settings is named 'mine'"),
        (["table8", "--seeds", "0", "0"], "`seeds` must name each one once"),
        (["table8", "--time-budget", "soon"], "`time_budget` must be a time such as 150m"),
        (["table8", "--widths"], "`widths` must name each one once, and at least one; got []. Leave it out"),
        (["table8", "--methods"], "`methods` must name each one once, and at least one"),
        (["table3", "--widths", "390"], "table3 has no widths; got `widths` [390]. Leave them out."),
        (["table8", "--store", __file__], "`store` must be a folder; got"),
        (["table8", "--store", f"{__file__}/sub", "--dry-run"], "test_reproduce.py is a file. Name another."),
        (["table8", "--executor", "cloud"], "no executor is named 'cloud'"),
        (["table8", "--precision", "fp8"], "no precision is named 'fp8'"),
        (["table4", "--time-budget", "1h"], "`time_budget` has no effect on table4, which trains and asks"),
        (
            ["figure4", "--executor", "slurm"],
            "`executor` has no effect on figure4, which trains and asks its",
        ),
        (["table4", "--settings", "ours", "paper"], "`settings` must be a single one for table4"),
        (
            ["table4", "--methods", "erm"],
            "no method in table4 is named 'erm'. Did you mean 'mrm'? Known: irm,",
        ),
        (["table4", "--widths", "390"], "no width in table4 is named '390'"),
        (["theorem1", "--seeds", "1"], "`seeds` has no effect on theorem1, which is computed anew"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_in_one_line(
    flags: list[str],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *flags]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--executor", "dusk"], "no executor is named 'dusk'. Did you mean 'dask'?"),
        (["--executor", "dask"], "`executor` must be local, slurm or dask://HOST:PORT"),
        (["--slurm-options", "a", "1"], "`slurm_options` has no effect with local"),
        (["--workers", "0"], "`workers` must be at least 1; got 0"),
        (["--workers", "-3"], "`workers` must be at least 1; got -3"),
        (["--executor", "slurm", "--workers", "2"], "`workers` has no effect with slurm"),
    ],
)
def test_a_dry_run_refuses_the_executors_a_run_refuses(
    flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "table8", *flags, "--dry-run"]) == 2
    assert line in capsys.readouterr().err


def test_how_long_a_cluster_takes_is_not_guessed(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce("table8", widths=(3,), store=tmp_path)
    reproduce("table8", dry_run=True, workers=2, store=tmp_path)
    assert "on 2 workers" in capsys.readouterr().out
    reproduce("table8", dry_run=True, executor="slurm", store=tmp_path)
    shown = capsys.readouterr().out
    assert "of computing." in shown and "workers" not in shown


def test_networks_of_table_4_are_trained_once_and_asked(
    tiny: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny[:] = tiny[1:2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparseirm.experiments.ablation.local", module.connect)
    asked = {"methods": ("irm",), "seeds": (0, 1), "settings": ("paper",), "store": tmp_path / "store"}
    reproduce("table4", dry_run=True, **asked)
    assert "2 runs: 0 done, 2 missing" in capsys.readouterr().out and not list(tmp_path.iterdir())
    for what in ("table4", "figure4"):
        reproduce(what, **asked)
        said = capsys.readouterr().out
        assert "Reading the colour" in said and "Exchanging the colour" in said and "density" not in said
    assert (tmp_path / "store" / "ablation" / "ablation.svg").exists()
    results = Store(tmp_path / "store").all()
    assert {result.recipe.key for result in results} == {tiny[0].recipe("paper", s).key for s in (0, 1)}
    reproduce("figure4", dry_run=True, **asked)
    assert "2 runs: 2 done, 0 missing" in capsys.readouterr().out


def test_the_theorem_is_computed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called = []
    monkeypatch.setattr(module, "theory", lambda out: called.append(out))
    assert reproduce("theorem1", dry_run=True) == [] and called == []
    assert "computed anew, in under ten minutes on one core" in capsys.readouterr().out
    assert reproduce("theorem1", store=Path("there")) == [] and called == [Path("there/theory")]


@pytest.mark.parametrize(
    ("table", "data", "n"),
    [("table8", "colored_mnist", 48), ("table8", "full_colored_mnist", 48), ("table3", "cifar_mnist", 10)],
)
def test_the_committed_runs_are_found(
    table: What,
    data: str,
    n: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    committed = Store(ROOT / "results").all()
    of_files = {result.recipe.data_digest for result in committed if result.recipe.data == data} - {None}
    for digest in of_files:  # the files themselves are not committed
        monkeypatch.setitem(FINGERPRINTS, data, lambda root, digest=digest: digest)
    reproduce(table, data=(data,), dry_run=True, store=ROOT / "results")
    shown = capsys.readouterr().out
    assert f"{n} runs: {n} done, 0 missing" in shown
