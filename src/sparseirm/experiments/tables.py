"""Results gathered over seeds, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sparseirm.core import SettingError
from sparseirm.data import OWN, n_classes
from sparseirm.experiments.statistics import Figures
from sparseirm.methods import METHODS
from sparseirm.recipe import Recipe
from sparseirm.registry import lookup
from sparseirm.runs import Point, Result


@dataclass(frozen=True)
class Row:
    """One method on one data set over seeds, at the last step.

    Attributes:
        label: the method in words.
        results: one per seed.
    """

    label: str
    results: tuple[Result, ...]

    def figures(self, of: Callable[[Result], float]) -> Figures:
        """Any quantity of the results, over the seeds."""
        return Figures(tuple(of(result) for result in self.results))

    def accuracy(self, split: str) -> Figures:
        """Accuracy at the last step, percent."""
        return self.figures(lambda result: result.last[split].accuracy)

    @property
    def tested(self) -> str:
        """Test accuracy in words, with `COLLAPSED` where a run has collapsed."""
        mark = any(map(collapsed, self.results))
        return f"{self.accuracy('test')} {COLLAPSED}" if mark else str(self.accuracy("test"))


NEAR_CHANCE = 0.2
"""A run has collapsed if its training accuracy covers less than this part of the way from guessing to that
of the best invariant predictor."""

COLLAPSED = "†"
"""What marks test accuracies that mean nothing."""


def collapsed(result: Result, at: Point | None = None) -> bool:
    """Whether a run is near chance in training; its test accuracy then means nothing. Never on own images.

    Args:
        result: the run.
        at: the evaluation that is judged; the last one by default.

    Returns:
        Whether it is.
    """
    recipe, train = result.recipe, (at or result.trajectory[-1]).scores["train"].accuracy
    if recipe.data in OWN:
        return False  # how many classes there are, and how noisy labels are, is not known
    guess, best = chance(recipe), 100 * (1 - (recipe.label_noise or 0.0))
    return train < guess + NEAR_CHANCE * (best - guess)


def chance(recipe: Recipe) -> float:
    """Accuracy of guessing, percent: ten classes in the data sets called full, those named in a pair, or two.

    >>> chance(Recipe(data="full_colored_mnist")), chance(Recipe(data="colored_mnist"))
    (10.0, 50.0)
    """
    return 100 / n_classes(recipe.data, recipe.data_options)


HEADINGS = ("method", "train", "test", "density", "seconds", "seeds")


def cells(row: Row) -> tuple[str, ...]:
    """A row in words, under `HEADINGS`: accuracy in percent, mean ± standard deviation over seeds."""
    density = row.figures(lambda result: result.kept / result.n_weights).mean
    seconds = row.figures(lambda result: result.seconds).mean
    train = str(row.accuracy("train"))
    return (row.label, train, row.tested, f"{density:.3g}", f"{seconds:.0f}", str(len(row.results)))


def markdown(table: Iterable[Row]) -> str:
    """Rows as a Markdown table, and below it what `notes` says."""
    table = list(table)
    return markdown_table(HEADINGS, map(cells, table)) + _below(table)


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Words as a Markdown table, the first column to the left."""
    rule = ("---", *["---:"] * (len(headings) - 1))
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rule, *lines))


def notes(table: Sequence[Row]) -> list[str]:
    """What one should know about rows: what `COLLAPSED` means, and each `Result.source_note` once."""
    marked = any(row.tested.endswith(COLLAPSED) for row in table)
    words = (
        f"{COLLAPSED} includes a collapsed run, near chance in training, whose test accuracy means nothing"
    )
    return [words] * marked + source_notes(result for row in table for result in row.results)


def source_notes(results: Iterable[Result]) -> list[str]:
    """Each `Result.source_note` of some results once."""
    return sorted({result.source_note for result in results if result.source_note})


def _below(table: Sequence[Row]) -> str:
    return "".join(map("\n{}.\n".format, notes(table)))


def grid(table: Iterable[Row]) -> str:
    """Rows of sparse methods as a Markdown table of sparsifiers against densities: train / test accuracy.

    Args:
        table: rows, one per sparsifier and density.

    Returns:
        The table, and below it what `notes` says; cells without a row are empty.

    Raises:
        SettingError: if two rows belong into one cell.
    """
    return _crossed(table, lambda row: str(row.results[0].recipe.sparsifier), "density")


def by_width(table: Iterable[Row]) -> str:
    """The same of methods against widths, rows one per method and width."""
    return _crossed(table, lambda row: row.label, "width")


def _crossed(table: Iterable[Row], name_of: Callable[[Row], str], column: str) -> str:
    """Train / test accuracy by a name and a number of the recipe, the field ``column``."""
    table, found = list(table), dict[tuple[str, float], str]()
    for row in table:
        place = (name_of(row), float(getattr(row.results[0].recipe, column) or 0))
        if place in found:
            raise SettingError(f"two rows have {place[0]} at {column} {place[1]:g}; name more fields.")
        found[place] = f"{row.accuracy('train')} / {row.tested}"
    numbers = sorted({number for _, number in found})
    names = dict.fromkeys(name for name, _ in found)
    lines = [(name, *(found.get((name, number), "") for number in numbers)) for name in names]
    headings = ("train / test", *(f"{column} {number:g}" for number in numbers))
    return markdown_table(headings, lines) + _below(table)


def label(recipe: Recipe) -> str:
    """The method in words.

    >>> label(Recipe(method="irm", penalty="rex")), label(Recipe(penalty="rex", sparsifier="topk"))
    ('IRM (rex)', 'SparseIRM (rex, topk)')
    """
    recipe = recipe.resolved()
    name = METHOD_NAMES.get(recipe.method, recipe.method)
    usual = recipe.sparsifier in (None, "probmask", lookup("method", METHODS, recipe.method).sparsifier)
    details = (recipe.penalty, recipe.environments, None if usual else recipe.sparsifier)
    words = ", ".join(filter(None, details))
    return f"{name} ({words})" if words else name


METHOD_NAMES = {
    "erm": "ERM",
    "sparseerm": "SparseERM",
    "irm": "IRM",
    "bayesianirm": "BayesianIRM",
    "mrm": "MRM",
    "sparseirm": "SparseIRM",
    "oracle": "Oracle",
}
"""Name in recipes to name in print, in the order of tables."""


def rows(results: Iterable[Result | None]) -> list[Row]:
    """Results that differ in nothing but the seed become one row; in the order of their first one."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result is not None:
            group = groups.setdefault(replace(result.recipe, seed=0).key, [])
            if any(other.recipe.seed == result.recipe.seed for other in group):
                raise SettingError(f"two results of {label(result.recipe)} have seed {result.recipe.seed}.")
            group.append(result)
    return [Row(label(group[0].recipe), tuple(group)) for group in groups.values()]
