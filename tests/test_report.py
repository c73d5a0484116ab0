"""Pages made from a store alone: the right numbers, marked as what they are, and nothing unescaped."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from html_pages import parsed
from sparseirm import Recipe
from sparseirm.core import SettingError
from sparseirm.evaluation.metrics import Score
from sparseirm.experiments.beside_paper import Finding, Study, difference, sheets
from sparseirm.experiments.charts import against_width, trajectory
from sparseirm.experiments.claims import claims
from sparseirm.experiments.deviations import address, read, unexplained
from sparseirm.experiments.grids import GRIDS, Cell, Grid, select
from sparseirm.experiments.report import found, report
from sparseirm.experiments.rules import table as rules_table
from sparseirm.experiments.store import Store
from sparseirm.experiments.summary import COLUMNS
from sparseirm.experiments.tables import COLLAPSED, Row, collapsed, grid, markdown
from sparseirm.methods import MANY, SETTINGS
from sparseirm.runs import Point, Result

HOSTILE = "<script>alert('x')</script> | **bold** [x](javascript:1)"


def cell_of(method: str, penalty: str = "", data: str = "colored_mnist", width: int = 390) -> Cell:
    """A cell of Table 8."""
    (cell,) = [
        c
        for c in GRIDS["table8"].cells
        if (c.method, c.penalty, c.data, c.width) == (method, penalty, data, width)
    ]
    return cell


def score(accuracy: float) -> Score:
    each = {"train 0.9": accuracy, "train 0.8": accuracy}
    return Score(accuracy, each, 0.5, each)


def result_of(recipe: Recipe, test: float, train: float = 72.0, seed: int = 0) -> Result:
    """A finished run, whose best test accuracy (5 more) was in the middle and whose val was best at first."""
    recipe = replace(recipe, seed=seed).resolved()
    budget = 1000 if recipe.sparsifier is None else 100
    steps = ((100, train + 10, 90.0, test - 30), (200, train, 80.0, test + 5), (300, train, 70.0, test))
    trajectory = [
        Point(step, 0.5, 0.1, budget / 1000, None, {"train": score(a), "val": score(v), "test": score(w)})
        for step, a, v, w in steps
    ]
    return Result(recipe, trajectory, 1000, budget, budget, 60.0, {"device": "a machine", "threads": 1})


def runs_of(cell: Cell, tests: Sequence[float], train: float = 72.0, settings: str = "ours") -> list[Result]:
    return [result_of(cell.recipe(settings), test, train, seed) for seed, test in enumerate(tests)]


def finding_of(cell: Cell, tests: Sequence[float], train: float = 72.0) -> Finding:
    return Study(runs_of(cell, tests, train)).finding(cell)


SPARSE, DENSE, ORACLE = cell_of("SparseIRM", "rex"), cell_of("IRM", "rex"), cell_of("Oracle")
RESULTS = [
    *runs_of(SPARSE, (68.0, 70.0, 72.0)),
    *runs_of(DENSE, (50.0, 51.0, 55.0)),
    *runs_of(ORACLE, (70.0,), train=93.0),
    *runs_of(SPARSE, (69.6,), train=52.0, settings="released"),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    for result in RESULTS:
        store.put(result)
    return store


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out of pages whose words are looked at: drawing them takes most of the time."""
    monkeypatch.setattr("sparseirm.experiments.report.saved", lambda figure, path: path)
    monkeypatch.setattr("sparseirm.experiments.report.svg", lambda figure, label: label)


# The numbers.


@pytest.mark.usefixtures("undrawn")
def test_summary_has_its_columns_and_one_line_per_cell_settings_and_rule(
    store: Store, tmp_path: Path
) -> None:
    report(store.root, tmp_path / "out")
    text = (tmp_path / "out" / "summary.csv").read_text()
    assert text.splitlines()[0] == (
        "dataset,n_train,model,width,method,penalty,settings,rule,seeds,mean,ci_low,ci_high,train_mean,paper,"
        "collapsed"
    )
    lines = list(csv.DictReader(text.splitlines()))
    assert len(lines) == 4 * 3 and {line["rule"] for line in lines} == {"last", "train_val", "oracle"}
    by_rule = {
        line["rule"]: line for line in lines if (line["method"], line["settings"]) == ("SparseIRM", "ours")
    }
    low, high = t.interval(0.95, 2, loc=70.0, scale=np.std([68, 70, 72], ddof=1) / np.sqrt(3))
    last = by_rule["last"]
    assert [last[name] for name in COLUMNS[:9]] == [
        *("colored_mnist", "20000", "mlp", "390", "SparseIRM", "rex", "ours", "last", "3")
    ]
    assert (float(last["mean"]), float(last["train_mean"]), float(last["paper"])) == (70.0, 72.0, 69.71)
    assert (float(last["ci_low"]), float(last["ci_high"])) == pytest.approx((low, high), abs=0.005)
    assert float(by_rule["oracle"]["mean"]) == 75.0 and float(by_rule["train_val"]["mean"]) == 40.0
    assert float(by_rule["train_val"]["train_mean"]) == 82.0
    (single,) = [line for line in lines if line["method"] == "Oracle" and line["rule"] == "last"]
    assert single["seeds"] == "1" and single["ci_low"] == single["ci_high"] == "" and single["penalty"] == ""


@pytest.mark.parametrize(
    ("tests", "train", "verdict"),
    [
        ((69.0, 70.0, 70.5), 72.0, ("good", "within")),
        ((80.0, 80.1, 80.2), 72.0, ("good", "above")),
        ((60.0, 60.1, 60.2), 72.0, ("bad", "below")),
        ((68.0, 70.0, 72.0), 72.0, ("", "not distinguishable")),
        ((50.0, 54.0, 58.0), 72.0, ("bad", "below")),
        ((65.0,), 72.0, ("", "-4.7, one seed")),
        ((80.0, 80.1, 80.2), 52.0, ("odd", "collapsed")),
        ((80.0,), 52.0, ("odd", "collapsed")),
        ((), 0.0, ("", "not run")),
    ],
)
def test_a_verdict_says_where_the_papers_number_lies(
    tests: tuple[float, ...], train: float, verdict: tuple[str, str]
) -> None:
    assert SPARSE.test == 69.71
    assert finding_of(SPARSE, tests, train).verdict == verdict


def test_the_verdict_of_table_7_is_of_training_accuracy() -> None:
    (cell,) = select("table7", widths=[390], methods=["erm"])
    assert cell.train is not None and cell.test is not None
    train, test = cell.train, cell.test
    runs = [result_of(cell.recipe(), test - 9 + seed / 10, train + 5, seed) for seed in range(2)]
    runs = [*runs, result_of(cell.recipe(), test - 9, train + 5.1, 2)]
    study, split = Study(runs), GRIDS["table7"].split
    assert study.finding(cell).verdict == ("bad", "below")
    assert study.finding(cell, split=split).verdict == ("", "above")
    assert Study(runs[:1]).finding(cell, split=split).verdict == ("", "+5.0, one seed")
    assert {name for name, grid in GRIDS.items() if grid.split == "train"} == {"table7"}


def test_only_sparseirm_above_the_paper_in_the_test_is_a_success() -> None:
    high = (80.0, 80.1, 80.2)
    assert [finding_of(cell, high).verdict for cell in (SPARSE, DENSE, ORACLE)] == [
        ("good", "above"),
        ("", "above"),
        ("", "above"),
    ]


def test_a_cell_with_a_collapsed_run_gets_no_other_verdict() -> None:
    runs = runs_of(SPARSE, (69.0, 70.0, 70.5))
    lost = [result_of(SPARSE.recipe(), 70.0, 51.0, seed) for seed in (2, 3, 4)]
    assert Study(runs).finding(SPARSE).verdict == ("good", "within")
    assert Study([*runs[:2], lost[0]]).finding(SPARSE).verdict == ("odd", "1 of 3 collapsed")
    assert Study([*runs[:1], *lost[:2]]).finding(SPARSE).verdict == ("odd", "2 of 3 collapsed")


@pytest.mark.parametrize(
    ("data", "train", "lost"),
    [
        ("colored_mnist", 54.9, True),
        ("colored_mnist", 55.1, False),
        ("colored_mnist", 10.0, True),
        ("full_colored_mnist", 23.9, True),
        ("full_colored_mnist", 24.1, False),
        ("folder", 10.0, False),
    ],
)
def test_collapsed_is_a_fifth_of_the_way_from_chance_to_the_invariant_predictor(
    data: str, train: float, lost: bool
) -> None:
    assert collapsed(result_of(Recipe(data=data, method="erm"), 70.0, train)) == lost


def test_tables_mark_a_row_with_a_collapsed_run() -> None:
    recipe = Recipe(density=0.1, sparsifier="topk")
    lost, kept = result_of(recipe, 69.0, 51.0), result_of(recipe, 69.0, 72.0, seed=1)
    row = Row("one", (kept,))
    assert COLLAPSED not in markdown([row]) and COLLAPSED not in grid([row])
    row = Row("one", (lost, kept, result_of(recipe, 69.0, 72.0, seed=2)))
    for table in (markdown([row]), grid([row])):
        assert f"69.0 ± 0.0 {COLLAPSED} |" in table and table.count("whose test accuracy means nothing") == 1


def test_differences_are_taken_on_shared_seeds_only() -> None:
    one, other = finding_of(SPARSE, (68.0, 70.0, 72.0)), finding_of(DENSE, (50.0, 51.0))
    gap = difference(one, other)
    assert gap is not None and gap.figures.values == (18.0, 19.0) and gap.sound
    assert difference(one, Finding(DENSE, "ours")) is None


def test_claims_count_cells_and_a_collapsed_cell_reaches_nothing() -> None:
    oracle, wide = cell_of("Oracle", width=640), cell_of("SparseIRM", "rex", width=640)
    full = cell_of("SparseIRM", "rex", data="full_colored_mnist")
    results = [
        *RESULTS,
        *runs_of(wide, (68.0, 68.1)),
        *runs_of(oracle, (71.0, 71.0)),
        *runs_of(full, (99.0,), train=12.0),
    ]
    made = claims(found(Study(results)))
    assert [claim.cells for claim in made] == [24, 24, 4] * 2
    paper, dense, near = made[3:]
    assert (paper.reached, paper.sure, paper.tested) == (1, 0, 3)  # 70.0 against 69.71; 68.05 against 70.45
    assert (dense.reached, dense.sure, dense.tested) == (1, 1, 1)
    assert (near.reached, near.sure, near.tested) == (1, 0, 1)  # 2.95 below
    assert all(claim.reached == claim.tested == 0 for claim in made[:3])


def test_a_comparison_holds_only_where_neither_side_has_a_collapsed_run() -> None:
    sparse = runs_of(SPARSE, (68.0, 70.0, 72.0))
    for dense in (  # in training: all sound, one collapsed
        runs_of(DENSE, (30.0, 30.0, 30.0)),
        [*runs_of(DENSE, (30.0, 30.0)), result_of(DENSE.recipe(), 30.0, 51.0, seed=2)],
    ):
        study = Study([*sparse, *dense])
        gap = difference(study.finding(SPARSE), study.finding(DENSE))
        sound = not any(map(collapsed, dense))
        assert gap is not None and gap.sound == sound
        to_paper, better = claims(found(study))[3:5]
        assert (better.reached, better.sure, better.tested, better.goal) == (sound, sound, 1, 24)
        assert to_paper.reached == 1
    lost = [*sparse[:2], result_of(SPARSE.recipe(), 80.0, 51.0, seed=2)]
    study = Study([*lost, *runs_of(DENSE, (30.0, 30.0, 30.0))])
    assert [(claim.reached, claim.tested) for claim in claims(found(study))[3:5]] == [(0, 1), (0, 1)]


def test_rules_judge_the_step_they_choose() -> None:
    (result,) = runs_of(SPARSE, (70.0,), train=53.0)  # chance at the last two steps; 63 at the first
    by_rule = {chosen.rule: chosen.collapsed for chosen in Study([result]).finding(SPARSE).rules}
    assert (by_rule["last"], by_rule["oracle"], by_rule["train_val"]) == (1, 1, 0)
    _, ((_, *words),) = rules_table([("one", Study([result]).finding(SPARSE).rules)])
    assert [COLLAPSED in word for word in words] == [True, False, False, True]


def test_the_study_keeps_settings_precisions_and_other_recipes_apart() -> None:
    other = replace(SPARSE.recipe(), correlations=(0.9, 0.7, 0.1))
    exact = replace(SPARSE.recipe(), precision="fp32")
    results = [*RESULTS, result_of(other, 1.0, seed=5), result_of(exact, 2.0, seed=6)]
    study = Study(results)
    findings = found(study)
    assert [*study.finding(SPARSE).results] == [0, 1, 2]
    assert {f.settings for f in findings if f.cell == SPARSE} == {"ours", "released"}
    assert [len(group) for group in study.others(findings)] == [1, 1]
    assert [*Study(results, "fp32").finding(SPARSE).results] == [6]
    assert study.get(replace(SPARSE.recipe(), seed=1)) == RESULTS[1]
    (sheet,) = [s for s in sheets(findings) if s.title == "Table 8: ColoredMNIST, 20,000 samples"]
    assert (
        sheet.widths == (64, 160, 256, 390, 512, 640) and "SparseIRM (rex), released settings" in sheet.rows
    )


def test_results_on_different_files_never_become_one() -> None:
    (cell,) = select("table3", methods=["erm"], data=["cifar_mnist"])
    on_a, on_b = (replace(cell.recipe(), data_digest=letter * 64) for letter in "ab")
    results = [result_of(on_a, 60.0), result_of(on_b, 70.0), result_of(on_b, 71.0, seed=1)]
    with pytest.raises(SettingError, match=r"`data_digest` aaaaaaaa and bbbbbbbb.*store of its own"):
        Study(results).finding(cell)
    study = Study(results, digests={"cifar_mnist": "b" * 64})
    assert study.finding(cell).results == {0: results[1], 1: results[2]}
    assert study.get(on_a) == results[0] and study.get(cell.recipe()) == results[1]
    assert study.others([study.finding(cell)]) == [[results[0]]]
    assert Study(results[:1]).finding(cell).results == {0: results[0]}
    assert Study(results[:1], digests=study.digests).finding(cell).results == {}


# What deviates.


def test_deviations_speak_about_the_cells_they_name(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("title: T\ncells: */IRM/rex/* */Oracle/-/ours\n\nOne\nline.\n\nTwo.\n")
    (text,) = read(tmp_path)
    assert text.paragraphs == ("One line.", "Two.")
    dense, oracle, sparse = (finding_of(c, (1.0, 1.1)) for c in (DENSE, ORACLE, SPARSE))
    assert [text.about(f) for f in (dense, oracle, sparse)] == [True, True, False]
    assert unexplained([dense, oracle, sparse], [text]) == [sparse]
    assert unexplained([finding_of(SPARSE, (69.0, 70.0, 70.5))], []) == []


@pytest.mark.parametrize(
    ("tests", "deviates"),
    [
        ((69.71 - 5.1,), True),
        ((69.71 - 4.9,), False),
        ((69.71 + 5.1,), True),
        ((60.0, 65.0), True),  # an interval that holds everything
        ((69.0, 72.0), False),
        ((68.0, 68.1, 68.2), True),
    ],
)
def test_without_an_interval_that_can_tell_five_points_are_a_deviation(
    tests: tuple[float, ...], deviates: bool
) -> None:
    finding = finding_of(SPARSE, tests)
    assert unexplained([finding], []) == [finding] * deviates


def test_a_deviation_without_its_head_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("Just text.\n")
    with pytest.raises(SettingError, match="must begin with the lines"):
        read(tmp_path)


def test_the_committed_deviations_speak_only_about_cells_that_have_been_run() -> None:
    root = Path(__file__).parents[1] / "results"
    findings = found(Study(Store(root).all()))
    for text in read(root / "deviations"):
        for pattern in set(text.cells) - {"table4"}:
            named = [f for f in findings if replace(text, cells=(pattern,)).about(f)]
            assert named and all(f.results for f in named), (text.title, pattern)


def test_what_the_committed_text_says_of_sparseirm_is_in_the_results() -> None:
    root = Path(__file__).parents[1] / "results"
    tests: dict[str, dict[int, float]] = {}
    for f in found(Study(Store(root).all())):
        if address(f).startswith("colored_mnist/20000/mlp/390/") and f.settings == "ours":
            tests[f.name] = {seed: run.last["test"].accuracy for seed, run in f.results.items()}
    for penalty in ("irmv1", "rex"):
        sparse, dense = tests[f"SparseIRM ({penalty})"], tests[f"IRM ({penalty})"]
        shared = sparse.keys() & dense.keys()
        assert shared and all(sparse[seed] > dense[seed] for seed in shared)
    oracle, unsteady = tests["Oracle"].values(), tests["SparseIRM (irmv1)"].values()
    assert min(tests["SparseIRM (rex)"].values()) > max(oracle)
    assert max(unsteady) > max(oracle) and min(unsteady) < min(oracle)
    assert max(unsteady) - min(unsteady) > 3


def test_what_the_committed_texts_say_of_width_64_is_in_the_results() -> None:
    study = Study(Store(Path(__file__).parents[1] / "results").all())
    for penalty, (least, most) in {"irmv1": (0, 3), "rex": (-3, 0)}.items():
        gap = difference(*(study.finding(cell_of(m, penalty, width=64)) for m in ("SparseIRM", "IRM")))
        assert gap is not None and least < gap.figures.mean < most


def test_accuracy_above_that_in_training_is_marked() -> None:
    lucky, turned = finding_of(SPARSE, (73.0,)), finding_of(SPARSE, (73.2,))  # 72 in training
    assert not lucky.reversed and turned.reversed
    (claim, *_) = claims([turned])
    assert (claim.reached, claim.single, claim.sure, claim.reversed) == (0, 0, 0, 0)  # of IRMv1
    claim = claims([turned])[3]
    assert (claim.reached, claim.single, claim.sure, claim.reversed) == (1, 1, 0, 1)


def test_a_text_about_table_4_is_told_if_networks_were_asked(store: Store, tmp_path: Path) -> None:
    folder = store.root / "deviations"
    folder.mkdir(exist_ok=True)
    (folder / "9.md").write_text("title: Probes\ncells: table4\n\nThey read it all.\n")
    (store.root / "disclosure.md").write_text("We looked.\n")
    words = report(store.root, tmp_path / "a").read_text()
    assert "They read it all." not in words
    assert "We looked." in words and "We looked." in (tmp_path / "a" / "report.md").read_text()
    (store.root / "ablation").mkdir()
    committed = Path(__file__).parents[1] / "results" / "ablation" / "ablation.json"
    (store.root / "ablation" / "ablation.json").write_bytes(committed.read_bytes())
    assert "They read it all." in report(store.root, tmp_path / "b").read_text()


# The pages.


def test_the_page_stands_alone_and_shows_train_and_test_together(store: Store, tmp_path: Path) -> None:
    page = report(store.root, tmp_path / "out").read_bytes()
    shown = parsed(page)
    assert not {"script", "link", "img"} & set(shown.seen) and "svg" in shown.seen
    words = " ".join(shown.text.split())
    assert "70.0 ± 5.0 paper 69.7 train 72.0 not distinguishable 3 seeds" in words
    assert "69.6 paper 69.7 train 52.0 ‡ collapsed" in words
    assert "upper bound, not a result" in words and "needs three or more training environments" in words
    assert "+18.0 ± 2.5" in words  # 18, 19, 17: the paired interval
    assert "not available" in words or not any(c.missing for g in GRIDS.values() for c in g.cells)


def test_the_markdown_page_has_its_figures(store: Store, tmp_path: Path) -> None:
    (cell,) = select("table7", widths=[390], methods=["erm"])
    store.put(result_of(cell.recipe(), 60.0, 80.0))
    report(store.root, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"train 80.0 (paper {cell.train:.1f})<br>" in page
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert figures and all((tmp_path / "out" / figure).exists() for figure in figures)
    assert "**70.0 ± 5.0**<br>paper 69.7<br>train 72.0<br>not distinguishable, 3 seeds" in page
    table7 = page.partition("### Table 7: training accuracy")[2].partition("\n#")[0]
    assert f"**80.0**<br>paper {cell.train:.1f}<br>test 60.0 (paper {cell.test:.1f})<br>" in table7
    assert f"{80 - cell.train:+.1f}, one seed" in table7
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_markdown_page_has_what_the_html_page_has(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = replace(ORACLE, method="Magic")
    monkeypatch.setattr(Grid, "cells", property(lambda self: [SPARSE, DENSE, ORACLE, lost]))
    for result in (*runs_of(DENSE, (20.0, 20.1, 20.2)), result_of(Recipe(width=7, method="erm"), 61.5, 12.5)):
        store.put(result)
    report(store.root, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "not available, 1 cells: no method is named 'magic'" in page
    untold = re.findall(r"- `(\S+)`: (\w+)\n", page)
    assert untold == [("colored_mnist/20000/mlp/390/IRM/rex/ours", "below")]
    assert "| ERM | 61.5 | 12.5 | 1, 1 collapsed | colored\\_digits, 1200 samples, mlp 7 |" in page
    figures = re.findall(r"/(trajectory-[^)]+)\.svg", page)
    methods = ("sparseirm-rex", "sparseirm-rex-released-settings", "irm-rex", "oracle")
    assert {*figures} == {f"trajectory-colored-mnist-20000-mlp-{method}" for method in methods}
    assert len(figures) == 4


@pytest.mark.usefixtures("undrawn")
def test_cards_count_each_cell_once_and_by_what_can_be_said_of_it(store: Store, tmp_path: Path) -> None:
    narrow, lost = cell_of("SparseIRM", "irmv1"), cell_of("IRM", "irmv1")
    for result in (*runs_of(narrow, (67.8, 67.9, 68.0)), *runs_of(lost, (47.0, 48.0), train=51.0)):
        store.put(result)
    report(store.root, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    cards = {words: value for value, words in re.findall(r"^- \*\*(.+?)\*\* (.+)$", page, re.MULTILINE)}
    assert cards["with one seed: difference shown, no verdict"] == "1"  # the Oracle
    assert cards["with a 95 % interval, ± 3 at most, that holds the paper's number"] == "1"
    assert cards["with an interval that holds it, but is too wide to tell"] == "2"
    assert cards["with an interval above it, and below it"] == "0 and 0"
    assert cards["under our settings with collapsed runs"] == "1"
    assert cards["cells of the paper's tables have been run"].startswith("5 of ")


@pytest.mark.usefixtures("undrawn")
def test_rules_are_shown_at_one_width_with_intervals_and_what_they_chose_from(
    store: Store, tmp_path: Path
) -> None:
    for result in runs_of(cell_of("SparseIRM", "rex", width=640), (10.0, 10.0)):
        store.put(result)  # fewer runs than at width 390: they stand elsewhere, and change nothing
    wide = cell_of("IRM", "irmv1", width=640)
    store.put(result_of(wide.recipe(), 33.3))
    report(store.root, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    rules = page.partition("## What other rules")[2].partition("\n## ")[0]
    assert "### Table 8: ColoredMNIST, 20,000 samples, width 390\n" in rules and "33.3" not in rules
    ours = "| SparseIRM (rex) | 70.0 ± 5.0 (72.0; 300) | 40.0 ± 5.0 (82.0; 100) | 75.0 ± 5.0 (72.0; 200) |"
    assert ours in rules
    assert "+5.0 ± 0.0 | 3 | 3 |" in rules
    released = (
        "| SparseIRM (rex), released settings | 69.6 (52.0; 300) † | 39.6 (62.0; 100) | 74.6 (52.0; 200) † |"
    )
    assert f"{released} +5.0 (1 seed) † | 1 | 3 |" in rules


@pytest.mark.usefixtures("undrawn")
def test_differences_of_cells_with_collapsed_runs_are_marked(store: Store, tmp_path: Path) -> None:
    def shown(name: str) -> tuple[str, str]:
        report(store.root, tmp_path / name)
        page = (tmp_path / name / "report.md").read_text()
        words = " ".join(parsed((tmp_path / name / "index.html").read_bytes()).text.split())
        return page, words

    page, words = shown("sound")
    assert "+18.0 ± 2.5 |" in page and "+18.0 ± 2.5 †" not in words
    store.put(result_of(DENSE.recipe(), 40.0, 52.0, seed=7))
    page, words = shown("lost")
    assert "+18.0 ± 2.5 † |" in page and "+18.0 ± 2.5 †" in words and "1 of 4 collapsed" in words


@pytest.mark.usefixtures("undrawn")
def test_texts_on_deviations_keep_their_scope_in_both_pages(store: Store, tmp_path: Path) -> None:
    (store.root / "deviations").mkdir()
    text = "title: T\ncells: */390/IRM/*/ours */Oracle/-/ours\n\nWhy.\n"
    (store.root / "deviations" / "a.md").write_text(text)
    report(store.root, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    assert "About \\*/390/IRM/\\*/ours, \\*/Oracle/-/ours\n" in page
    assert page.count("<sup>1</sup>") == 2 and "**70.0**<sup>1</sup><br>" in page
    assert "**70.0 ± 5.0**<br>" in page  # SparseIRM is none of them


@pytest.mark.usefixtures("undrawn")
def test_pages_say_what_ours_is(store: Store, tmp_path: Path) -> None:
    words = " ".join(parsed(report(store.root, tmp_path / "out").read_bytes()).text.split())
    page = (tmp_path / "out" / "report.md").read_text()
    ours, paper = SETTINGS["ours"], SETTINGS["paper"]
    row = f"| lr | {ours['lr']:g} | {paper['lr']:g} | {paper['lr']:g} | {MANY['ours']['lr']:g} |"
    assert row in page and f"| budget | {ours['budget']} | - | - | {ours['budget']} |" in page
    for shown in (words, page):
        said = " ".join(shown.split())
        assert f"bf16 precision, {ours['steps']} steps of adam, learning rate {ours['lr']:g}" in said
        assert f"penalty weight {ours['penalty_weight']:g} ({MANY['ours']['penalty_weight']:g})" in said
        assert "at least 20" in said


@pytest.mark.usefixtures("undrawn")
def test_ablation_and_theory_are_shown_if_they_lie_in_the_store(store: Store, tmp_path: Path) -> None:
    report(store.root, tmp_path / "without")
    page = (tmp_path / "without" / "report.md").read_text()
    assert "Table 4" not in page and "Theorem 1" not in page
    for name in ("ablation", "theory"):
        source = Path(__file__).parents[1] / "results" / name / f"{name}.json"
        (store.root / name).mkdir()
        (store.root / name / f"{name}.json").write_bytes(source.read_bytes())
    words = parsed(report(store.root, tmp_path / "with").read_bytes()).text
    page = (tmp_path / "with" / "report.md").read_text()
    (sparse,) = re.findall(r"\| SparseIRM \(irmv1\) \| .* 50\.3 ± 0\.8 \| 50\.0 ± 0\.7 \|", page)
    assert sparse.count("|") == 9
    assert "(figures/exchange.svg)" in page
    assert "K = 2, half spurious" in page and "K = 2, half spurious" in words


# The figures.


def test_training_and_test_against_width_have_one_scale_and_a_legend_of_the_papers_lines() -> None:
    cells = [cell_of("SparseIRM", "rex", width=width) for width in (160, 390)]
    study = Study(
        [r for c, tests in zip(cells, ((20.0, 30.0), (60.0,)), strict=True) for r in runs_of(c, tests)]
    )
    figures = [against_width(map(study.finding, cells), split) for split in ("test", "train")]
    (low, high), other = (figure.axes[0].get_ylim() for figure in figures)
    assert (low, high) == other
    assert low == 0.0 and high >= 72.0  # the interval of two seeds goes below zero
    names = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in figures]
    assert names == [["SparseIRM", "the paper's"], ["SparseIRM"]]  # nothing is published in training here


def test_lines_part_the_stages_of_a_trajectory_and_show_where_the_penalty_begins() -> None:
    def vertical(result: Result, style: str) -> list[float]:
        lines = [line for line in trajectory([result]).axes[0].lines if line.get_linestyle() == style]
        ends = [np.asarray(line.get_xdata(), float) for line in lines]
        return [float(x[0]) for x in ends if len(x) == 2 and x[0] == x[1]]

    staged = replace(cell_of("MRM", "rex").recipe(), penalty_from=0.2)
    assert vertical(result_of(staged, 60.0), "-") == [100.0, 200.0]
    assert vertical(result_of(staged, 60.0), ":") == [20.0, 120.0, 220.0]
    assert vertical(result_of(replace(staged, penalty_from=0.0), 60.0), ":") == []
    assert vertical(RESULTS[0], "-") == [] and len(vertical(RESULTS[0], ":")) == 1
    assert vertical(result_of(ORACLE.recipe(), 60.0), ":") == []


@pytest.mark.usefixtures("undrawn")
def test_pages_say_under_each_table_of_what_files_its_numbers_are(store: Store, tmp_path: Path) -> None:
    cells = select("table3", methods=["erm", "irm"], data=["cifar_mnist"])
    runs = [r for cell in cells for r in runs_of(cell, (60.0, 61.0))]
    noted = [replace(run, source_note="JPEG quality 75") for run in runs]
    other = replace(runs[0], recipe=replace(runs[0].recipe, precision="fp32"), source_note="another | kind")
    for result in (*noted, other):
        store.put(replace(result, recipe=replace(result.recipe, data_digest="a" * 64)))
    words = parsed(report(store.root, tmp_path / "out").read_bytes()).text
    text = (tmp_path / "out" / "report.md").read_text()
    for page in (words, text):  # below accuracies, and below selection rules
        assert page.count("Data: JPEG quality 75") == 2
        tables = page.partition("CIFARMNIST, resnet18")[2].partition("Data: JPEG quality 75")[0]
        assert "60.5" in tables and "ColoredMNIST" not in tables
    assert "another | kind" in words


@pytest.mark.usefixtures("undrawn")
def test_what_comes_from_a_store_is_escaped(store: Store, tmp_path: Path) -> None:
    strange = replace(RESULTS[0], recipe=replace(RESULTS[0].recipe, data=HOSTILE, method=HOSTILE))
    strange = replace(strange, environment={"device": HOSTILE, "threads": 1})
    (store.root / "deviations").mkdir()
    (store.root / "deviations" / "a.md").write_text(f"title: {HOSTILE}\ncells: *\n\n{HOSTILE}\n")
    store.fail(Recipe(width=5), HOSTILE)
    with pytest.MonkeyPatch.context() as patch:  # such a recipe has no key, and can only come from outside
        patch.setattr(Store, "all", lambda self: [*RESULTS, strange])
        page = report(store.root, tmp_path / "out")
    shown = parsed(page.read_bytes())
    assert "script" not in shown.seen and shown.text.count("<script>alert") >= 5
    text = (tmp_path / "out" / "report.md").read_text()
    assert "<script" not in text and "**bold**" not in text and "[x](" not in text


@pytest.mark.usefixtures("undrawn")
def test_failures_and_outdated_results_are_told(store: Store, tmp_path: Path) -> None:
    store.fail(Recipe(width=5, seed=3), "NonFiniteError: the risk became nan in step 3.")
    store.put(replace(result_of(SPARSE.recipe(), 1.0, seed=9), version=0))
    words = " ".join(parsed(report(store.root, tmp_path / "out").read_bytes()).text.split())
    assert "colored_digits, width 5, seed 3: NonFiniteError: the risk became nan" in words
    assert "1 of another version count as missing" in words


def test_the_same_store_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    pages = [report(store.root, tmp_path / name).read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds no results; run `sparseirm reproduce"):
        report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
