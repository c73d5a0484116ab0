"""The paper's tables as recipes: every published cell, its number, and keys that do not move."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from sparseirm.core import SettingError
from sparseirm.experiments.grids import GRIDS, NAMED, PROBED, Cell, published, recipes, select
from sparseirm.files import read_json
from sparseirm.methods import METHODS, SETTINGS
from sparseirm.recipe import Recipe

ROOT = Path(__file__).parents[1]
WIDTHS = (64, 160, 256, 390, 512, 640)


def rows_of(table: str) -> list[dict[str, str]]:
    lines = (ROOT / "src/sparseirm/experiments/published.csv").read_text().splitlines()
    return [row for row in csv.DictReader(x for x in lines if x[0] != "#") if row["table"] == table]


@pytest.mark.parametrize("table", ["table2", "table3", "table7", "table8"])
def test_every_published_number_stands_beside_its_cell(table: str) -> None:
    cells = GRIDS[table].cells
    for row in rows_of(table):
        (cell,) = [
            c
            for c in cells
            if (c.data, str(c.n_train or ""), c.model, str(c.width or ""), c.method, c.penalty)
            == tuple(row[name] for name in ("dataset", "n_train", "model", "width", "method", "penalty"))
        ]
        assert getattr(cell, row["split"]) == float(row["value"])
        assert cell.spread == (float(row["std"]) if row["std"] else None)
    assert len(cells) == len({tuple(row.values())[1:3] + tuple(row.values())[4:8] for row in rows_of(table)})


def test_the_printed_tables_are_complete() -> None:
    # counted in the paper: 9 rows in Table 2, 8 in Tables 7 and 8, 10 in Table 3
    assert {name: len(rows_of(name)) for name in ("table2", "table3", "table7", "table8")} == {
        "table2": 9 * 12,
        "table3": 10 * 2,
        "table7": 8 * 12,
        "table8": 8 * 12,
    }
    assert rows_of("table8")[0]["value"] == "66.89" and rows_of("table2")[-1]["value"] == "72.83"


def test_the_same_cell_has_one_number_in_every_table() -> None:
    seen: dict[tuple[str, ...], set[str]] = {}
    for row in published():
        cell = tuple(value for name, value in row.items() if name not in ("table", "value", "std"))
        seen.setdefault(cell, set()).add(row["value"])
    assert all(len(values) == 1 for values in seen.values())


@pytest.mark.parametrize("table", ["table2", "table8"])
def test_every_cell_of_the_mlp_tables_has_a_recipe(table: str) -> None:
    cells = GRIDS[table].cells
    for cell in cells:
        recipe = cell.recipe(seed=3)
        assert (recipe.n_train, recipe.width, recipe.data) == (cell.n_train, cell.width, cell.data)
        if not cell.missing:
            resolved = recipe.resolved()
            assert resolved.penalty == (cell.penalty or None) and resolved.seed == 3
            assert METHODS[resolved.method].sparse == cell.method.startswith("Sparse") or cell.method == "MRM"
    assert {cell.width for cell in cells} == set(WIDTHS)
    runs = list(recipes(cells))
    assert len({recipe.key for recipe in runs}) == len(runs) == sum(not cell.missing for cell in cells)


def test_full_colored_mnist_has_the_papers_correlations() -> None:
    cell = next(cell for cell in GRIDS["table8"].cells if cell.data == "full_colored_mnist")
    assert cell.recipe().resolved().correlations == (0.999, 0.7, 0.1)


def test_what_this_version_lacks_is_left_out_with_its_reason() -> None:
    cell = Cell("colored_mnist", 20000, "mlp", 390, "Wizardry", "rex", 99.0)
    assert str(cell.missing).startswith("no method is named 'wizardry'")
    assert "'colored_marble'" in str(Cell("colored_marble", None, "mlp", 390, "ERM", "").missing)
    assert "'perceptron'" in str(Cell("colored_mnist", None, "perceptron", 390, "ERM", "").missing)
    assert list(recipes([cell])) == []
    for cell in GRIDS["figure3"].cells:
        assert (cell.missing is not None) == (cell.method.lower() not in METHODS)


def test_figures_are_made_of_the_tables_runs() -> None:
    named = ("figure1", "figure3", "table2", "table7", "table8")
    keys = {name: {recipe.key for recipe in recipes(GRIDS[name].cells)} for name in named}
    assert keys["figure3"] == keys["table2"] | keys["table8"]
    assert keys["figure1"] < keys["table2"] and keys["table7"] < keys["table2"]
    figure1 = GRIDS["figure1"].cells
    assert Counter(cell.method for cell in figure1) == {"Oracle": 6, "ERM": 6, "IRM": 6}


def test_the_networks_that_are_asked_are_those_of_table_4_and_runs_of_table_2() -> None:
    keys = {name: {recipe.key for recipe in recipes(NAMED[name].cells)} for name in (*PROBED, "table2")}
    assert keys["table4"] == keys["figure4"] < keys["table2"]
    assert {(cell.method, cell.width, cell.n_train) for cell in PROBED["table4"].cells} == {
        (method, 640, 50000) for method in ("IRM", "MRM", "SparseIRM")
    }


def test_a_selection_keeps_what_it_names() -> None:
    cells = select("table8", ["colored_mnist"], [64, 640], ["sparseirm", "ERM"], ["rex"])
    assert len(cells) == 4 and {(c.width, c.method, c.penalty) for c in cells} == {
        (width, method, penalty)
        for width in (64, 640)
        for method, penalty in (("SparseIRM", "rex"), ("ERM", ""))
    }
    runs = recipes(select("table8", widths=[390], methods=["irm"]), seeds=[0, 1], settings=["ours", "paper"])
    assert Counter((r.settings, r.seed) for r in runs) == dict.fromkeys(
        ((s, n) for s in ("ours", "paper") for n in (0, 1)), 4
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"widths": [100]}, "no width in table8 is named '100'"),
        ({"methods": ["sparseirn"]}, "Did you mean 'sparseirm'"),
        ({"penalties": ["fishr"]}, "no penalty in table8"),
        ({"data": ["colored_object"]}, "no data in table8 is named 'colored_object'"),
    ],
)
def test_a_selection_that_is_not_there_is_refused(wanted: dict[str, list[str]], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        select("table8", **wanted)


def test_committed_results_are_found_under_the_key_of_their_recipe() -> None:
    for path in sorted((ROOT / "results" / "runs").glob("*.json")):
        assert Recipe.from_json(read_json(path)["recipe"]).key == path.stem


def test_committed_runs_are_those_of_the_grids() -> None:
    grid = {recipe.key for recipe in recipes(select("figure3"), [*range(9)], [*SETTINGS])}
    committed = {path.stem for path in (ROOT / "results" / "runs").glob("*.json")}
    assert 2 * len(grid & committed) > len(committed)


def test_bayesian_irm_runs_with_its_released_values() -> None:
    cells = {cell.data: cell for cell in GRIDS["table3"].cells if cell.method == "BayesianIRM"}
    assert cells.keys() == {"cifar_mnist", "colored_object"}
    for cell in cells.values():
        recipe = cell.recipe().resolved()
        assert recipe.penalty_options == {"sd": 1500 / recipe.n_train, "n_draws": 10, "split": True}
