"""The figures of the documentation show the committed results, and what they say they show."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sparseirm import Recipe, run
from sparseirm.core import SettingError
from sparseirm.experiments.figures import accuracy, over_steps
from sparseirm.experiments.illustrations import gap, origin, overfitting, rex_runs
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import rows

ROOT = Path(__file__).parents[1]


def test_the_committed_figure_is_drawn_from_the_committed_results() -> None:
    dense, sparse = rex_runs(Store(ROOT / "results"))
    assert [dense.label, sparse.label] == ["IRM (rex)", "SparseIRM (rex)"]
    figure = (ROOT / "docs" / "figures" / "overfitting.svg").read_text()
    assert origin((*dense.results, *sparse.results)) in figure, "run `make tables`"


def test_what_the_figure_shows_and_the_page_says_is_in_the_results() -> None:
    """Dense training meets the penalty in training and not on fresh samples; sparse training does on both."""
    dense, sparse = rex_runs(Store(ROOT / "results"))
    for result in dense.results:
        assert gap("train")(result.trajectory[-1]) < 0.01 * gap("val")(result.trajectory[-1])
    worst, least = ([gap("val")(r.trajectory[-1]) for r in row.results] for row in (sparse, dense))
    assert max(worst) < min(least)


def test_a_gap_is_the_difference_of_the_largest_and_the_smallest_risk(tmp_path: Path) -> None:
    result = run(Recipe(width=4, n_train=60, steps=4, eval_every=2, correlations=(0.9, 0.8, 0.7, 0.1)))
    for split in ("train", "val"):
        risks = [sorted(point.scores[split].risks.values()) for point in result.trajectory]
        assert [gap(split)(point) for point in result.trajectory] == [
            values[-1] - values[0] for values in risks
        ]
        assert len(risks[0]) == 3
    drawn = [rows([result, replace(result, recipe=replace(result.recipe, seed=1))])[0]] * 2
    assert overfitting(drawn[0], drawn[1], tmp_path / "deep" / "figure.svg").stat().st_size > 10_000


def test_a_store_without_the_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no run of irm with rex"):
        rex_runs(Store(tmp_path))


def test_runs_evaluated_at_different_steps_are_shown_where_all_were() -> None:
    result = run(Recipe(width=4, n_train=60, steps=6, eval_every=2))
    fewer = replace(result, trajectory=[result.trajectory[0], result.trajectory[-1]])
    axes = Figure().subplots()
    over_steps(axes, [result, fewer], accuracy("test"), "k")
    assert [line.get_xdata().tolist() for line in axes.lines] == [[2, 6]] * 3
