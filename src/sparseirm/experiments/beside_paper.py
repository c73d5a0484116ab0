"""A store beside the paper: what was found of each of its cells, and how that compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from sparseirm.core import SettingError
from sparseirm.experiments.grids import GRIDS, PRECISION, TABLES, Cell
from sparseirm.experiments.rules import Chosen, side_by_side
from sparseirm.experiments.statistics import Figures, paired
from sparseirm.experiments.tables import collapsed, source_notes
from sparseirm.files import canonical
from sparseirm.recipe import Recipe
from sparseirm.runs import Result

DATA_NAMES = {
    "colored_mnist": "ColoredMNIST",
    "full_colored_mnist": "FullColoredMNIST",
    "cifar_mnist": "CIFARMNIST",
    "colored_object": "ColoredObject",
}
"""Data sets as the paper writes them."""

FAR, NARROW = 5.0, 3.0
"""Points of accuracy: a mean this far from the paper's number deviates even where no interval says so (seeds
alone spread by two to three points), and an interval with a larger half than this is too wide to agree."""

LUCK, REVERSED = 1.0, "‡"
"""Points of accuracy, twice what 20,000 training samples and 10,000 of the test differ by through luck; and
what marks training accuracies that are further below those of the test."""

KINDS = {"within": "good", "below": "bad", "collapsed": "odd"}
"""What outcomes are shown as; the others are neutral, but for SparseIRM above the paper in the test."""

Kind = tuple[str, str | None]
"""All of a resolved recipe but its seed; the digest of its files apart, which only the run knows."""


@dataclass(frozen=True)
class Finding:
    """A cell of the paper under some settings, and the runs there are of it.

    Attributes:
        cell: the cell.
        settings: the named settings.
        results: results by seed.
        rules: what each selection rule reports of them.
        split: whose accuracy is held against the paper's, ``test`` or ``train``.
    """

    cell: Cell
    settings: str
    results: dict[int, Result] = field(default_factory=dict)
    rules: tuple[Chosen, ...] = ()
    split: str = "test"

    def accuracy(self, split: str) -> Figures | None:
        """Accuracy at the last step over seeds, percent; None without a run."""
        values = tuple(result.last[split].accuracy for result in self.results.values())
        return Figures(values) if values else None

    def published(self, split: str) -> float | None:
        """The published accuracy of a split, percent, or None."""
        return {"test": self.cell.test, "train": self.cell.train}[split]

    @property
    def name(self) -> str:
        """The method in words.

        >>> Finding(Cell("colored_mnist", 20000, "mlp", 64, "IRM", "rex"), "paper").name
        'IRM (rex), paper settings'
        """
        name = f"{self.cell.method} ({self.cell.penalty})" if self.cell.penalty else self.cell.method
        return name if self.settings == "ours" else f"{name}, {self.settings} settings"

    @property
    def collapsed(self) -> int:
        """How many of the runs have collapsed; see `sparseirm.experiments.tables.collapsed`."""
        return sum(collapsed(result) for result in self.results.values())

    @property
    def gap(self) -> Figures | None:
        """Accuracy at the last step minus the paper's number, in points; None without one of them."""
        ours, paper = self.accuracy(self.split), self.published(self.split)
        return Figures(tuple(value - paper for value in ours.values)) if ours and paper is not None else None

    @property
    def reversed(self) -> bool:
        """Whether the mean in the test is more than `LUCK` above that in training.

        Labels are as noisy there as in training, so that a network which ignores the spurious attribute is as
        good in both; one that uses it the other way round is better in the test.
        """
        train, test = self.accuracy("train"), self.accuracy("test")
        return bool(train and test and test.mean > train.mean + LUCK)

    @property
    def outcome(self) -> str:
        """How the mean compares with the paper's number, in a word or two.

        By its 95 % interval: ``above``, ``below``, ``within``, or ``not distinguishable`` if it holds the
        number but half of it is more than `NARROW`. Otherwise ``collapsed`` (any run), ``one seed``,
        ``not run``, ``not available``; nothing if the paper has no number.
        """
        if not self.results:
            return "not available" if self.cell.missing else "not run"
        if self.collapsed:
            return "collapsed"
        if self.gap is None:
            return ""
        if self.gap.interval is None:
            return "one seed"
        low, high = self.gap.interval
        if low <= 0 <= high:
            return "within" if self.gap.half_width <= NARROW else "not distinguishable"
        return "above" if low > 0 else "below"

    @property
    def verdict(self) -> tuple[str, str]:
        """The outcome as it is shown: ``good``, ``bad``, ``odd`` or nothing, and words."""
        outcome, words = self.outcome, self.outcome
        success = (outcome, self.cell.method, self.split) == ("above", "SparseIRM", "test")
        if outcome == "one seed" and self.gap:
            words = f"{self.gap.signed}, one seed"
        elif outcome == "collapsed" and self.collapsed < len(self.results):
            words = f"{self.collapsed} of {len(self.results)} collapsed"
        return "good" if success else KINDS.get(outcome, ""), words

    @property
    def deviates(self) -> bool:
        """Whether the interval excludes the paper's number, the mean is `FAR` off, or a run has collapsed."""
        far = self.gap is not None and abs(self.gap.mean) > FAR
        return far or self.outcome in ("above", "below", "collapsed")


@dataclass(frozen=True)
class Sheet:
    """A table: methods against widths, on one data set.

    Attributes:
        data: data set.
        n_train: training samples, or None for the data set's own number.
        model: network.
        widths: columns; one None for a network without this choice.
        rows: findings by method in words and width.
    """

    data: str
    n_train: int | None
    model: str
    widths: tuple[int | None, ...]
    rows: dict[str, dict[int | None, Finding]]

    @property
    def title(self) -> str:
        """What it is about."""
        data = DATA_NAMES.get(self.data, self.data)
        about = f"{data}, {self.n_train:,} samples" if self.n_train else f"{data}, {self.model}"
        cells = {finding.cell for row in self.rows.values() for finding in row.values()}
        table = next((name for name in TABLES if cells & {*GRIDS[name].cells}), None)
        return f"{table.replace('table', 'Table ')}: {about}" if table else about

    @property
    def n_runs(self) -> int:
        """Number of runs in it."""
        return len(self.results)

    @property
    def results(self) -> list[Result]:
        """All runs in it."""
        findings = [finding for row in self.rows.values() for finding in row.values()]
        return [result for finding in findings for result in finding.results.values()]

    @property
    def sources(self) -> list[str]:
        """What one should know about the files behind its runs, such as that they are JPEG."""
        return source_notes(self.results)


def sheets(findings: Iterable[Finding]) -> list[Sheet]:
    """Findings as tables, in their order."""
    groups: dict[tuple[str, int | None, str], list[Finding]] = {}
    for finding in findings:
        cell = finding.cell
        groups.setdefault((cell.data, cell.n_train, cell.model), []).append(finding)
    found = []
    for key, group in groups.items():
        rows: dict[str, dict[int | None, Finding]] = {}
        for finding in group:
            rows.setdefault(finding.name, {})[finding.cell.width] = finding
        found.append(Sheet(*key, tuple(dict.fromkeys(f.cell.width for f in group)), rows))
    return found


@dataclass(frozen=True)
class Study:
    """All results of a store, by recipe.

    Attributes:
        results: every result.
        precision: precision of the runs that stand beside the paper's.
        digests: SHA-256 of the files at hand by data set; of such data only runs on these files are found.
    """

    results: Sequence[Result]
    precision: str = PRECISION
    digests: Mapping[str, str | None] = field(default_factory=dict)

    @cached_property
    def groups(self) -> dict[Kind, dict[int, Result]]:
        """Results that differ in nothing but the seed, by seed."""
        found: dict[Kind, dict[int, Result]] = {}
        for result in self.results:
            found.setdefault(_kind(result.recipe), {})[result.recipe.seed] = result
        return {kind: dict(sorted(group.items())) for kind, group in found.items()}

    def get(self, recipe: Recipe) -> Result | None:
        """The result of a recipe, or None."""
        return self._group(recipe.resolved()).get(recipe.seed)

    def finding(self, cell: Cell, settings: str = "ours", split: str = "test") -> Finding:
        """What the store has of a cell, and whose accuracy is to be held against the paper's."""
        if cell.missing:
            return Finding(cell, settings, split=split)
        recipe = cell.recipe(settings, precision=self.precision).resolved()
        results = self._group(recipe)
        rules = side_by_side([*results.values()], self.get) if results else []
        return Finding(cell, settings, results, tuple(rules), split)

    def others(self, findings: Iterable[Finding]) -> list[list[Result]]:
        """Results that belong to none of the findings, seeds together."""
        known = {_kind(r.recipe) for finding in findings for r in finding.results.values()}
        return [[*group.values()] for kind, group in self.groups.items() if kind not in known]

    def _group(self, recipe: Recipe) -> dict[int, Result]:
        """Results of a resolved recipe by seed; on the only files there are, if nobody says on which."""
        plain, digest = _kind(recipe)
        digest = digest or self.digests.get(recipe.data)
        there = [files for kind, files in self.groups if kind == plain]
        if digest is None and len(there) > 1:
            names = " and ".join(str(files)[:8] for files in there)
            raise SettingError(
                f"there are results of one recipe on different files of {recipe.data!r}, with `data_digest` "
                f"{names}, which are not to be averaged. Keep each in a store of its own."
            )
        return self.groups.get((plain, digest or next(iter(there), None)), {})


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one cell minus that of another, or minus the paper's number.

    Attributes:
        figures: the difference over seeds, in points.
        sound: whether no run of either cell has collapsed.
    """

    figures: Figures
    sound: bool


def difference(one: Finding, other: Finding) -> Difference | None:
    """Test accuracy of one cell minus that of another on the seeds they share; None if they share none."""
    tests = [{s: r.last["test"].accuracy for s, r in finding.results.items()} for finding in (one, other)]
    figures = paired(*tests)
    return Difference(figures, not one.collapsed and not other.collapsed) if figures else None


def _kind(recipe: Recipe) -> Kind:
    """What results of different seeds have in common."""
    return canonical(replace(recipe, seed=0, data_digest=None).to_json()), recipe.data_digest
