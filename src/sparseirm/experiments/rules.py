"""Selection rules side by side: what each of them would have reported of the same runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sparseirm.core import SettingError
from sparseirm.evaluation.selection import RULES, TWO_ENVIRONMENTS, best, leave_one_env_out, within_budget
from sparseirm.experiments.statistics import Figures
from sparseirm.experiments.tables import COLLAPSED, collapsed
from sparseirm.recipe import Recipe
from sparseirm.runs import Point, Result

LEGEND = (
    "by rule, in percent: test accuracy, mean ± standard deviation over seeds (mean in training); "
    f"{COLLAPSED} includes a collapsed run"
)
"""What `table` shows."""

Lookup = Callable[[Recipe], Result | None]
"""Where results of further runs are found, such as `sparseirm.experiments.store.Store.get`."""


@dataclass(frozen=True)
class Chosen:
    """What a rule reports of one method over seeds.

    Attributes:
        rule: its name, one of `RULES`.
        points: the evaluation it chooses in each run; empty if it is refused.
        refusal: why it cannot be applied, or empty.
        collapsed: in how many runs the chosen evaluation is near chance in training.
    """

    rule: str
    points: tuple[Point, ...] = ()
    refusal: str = ""
    collapsed: int = 0

    @property
    def steps(self) -> str:
        """The chosen steps in words: one, or the first and the last of several seeds."""
        first, last = (pick(point.step for point in self.points) for pick in (min, max))
        return f"{first}" if first == last else f"{first} to {last}"

    def accuracy(self, split: str) -> Figures:
        """Accuracy at the chosen steps, percent."""
        return Figures(tuple(point.scores[split].accuracy for point in self.points))


def side_by_side(results: Sequence[Result], lookup: Lookup) -> list[Chosen]:
    """What every rule reports.

    Args:
        results: the same recipe with different seeds.
        lookup: where the runs without one environment are found.

    Returns:
        One entry per rule, in the order of `RULES`.
    """
    return [_chosen(rule, results, lookup) for rule in RULES]


def rounds(results: Iterable[Result]) -> list[Recipe]:
    """The further runs that leave_one_env_out needs; none where there are two environments or fewer.

    >>> from sparseirm import run
    >>> recipe = Recipe(method="erm", width=4, steps=2, correlations=(0.9, 0.8, 0.7, 0.1))
    >>> [further.leave_out for further in rounds([run(recipe)])]
    [0, 1, 2]
    """
    return [
        replace(result.recipe, leave_out=e)
        for result in results
        for e in range(_n_envs(result))
        if _n_envs(result) >= 3
    ]


def table(rows: Iterable[tuple[str, Sequence[Chosen]]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows in words: test accuracy by rule, training accuracy in brackets.

    Args:
        rows: label and `side_by_side` of each method.

    Returns:
        Headings, and one tuple of words per row.
    """
    heads = {"oracle": "oracle (upper bound, not a result)"}
    headings = ("test (train)", *(heads.get(rule, rule) for rule in RULES))
    return headings, [(label, *map(_words, chosen)) for label, chosen in rows]


def _words(chosen: Chosen) -> str:
    if chosen.refusal:
        return "-"
    mark = f" {COLLAPSED}" if chosen.collapsed else ""
    return f"{chosen.accuracy('test')} ({chosen.accuracy('train').mean:.1f}){mark}"


def _chosen(rule: str, results: Sequence[Result], lookup: Lookup) -> Chosen:
    try:
        points = tuple(_point(rule, result, lookup) for result in results)
    except SettingError as error:
        return Chosen(rule, refusal=str(error))
    return Chosen(rule, points, collapsed=sum(map(collapsed, results, points)))


def _point(rule: str, result: Result, lookup: Lookup) -> Point:
    allowed = result.kept if result.counts_groups else result.budget
    begin = [0, *result.stage_ends][-2]  # earlier stages train other networks than the one reported
    points = [point for point in result.trajectory if point.step > begin]
    points = within_budget(points, allowed / result.n_weights)
    if rule == "last":
        return points[-1]
    if rule == "leave_one_env_out":
        if _n_envs(result) < 3:
            raise SettingError(f"{rule} {TWO_ENVIRONMENTS}.")
        found = [lookup(recipe) for recipe in rounds([result])]
        done = [left_out.trajectory for left_out in found if left_out]
        if len(done) < len(found):
            raise SettingError(f"{rule} needs {len(found)} further runs of each seed; some are missing.")
        return leave_one_env_out(points, done)
    return best(points, {"train_val": "val", "oracle": "test"}[rule])


def _n_envs(result: Result) -> int:
    return len(result.last["train"].per_env)
