"""The paper's tables and figures as data: the runs they need, with the published numbers beside them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from sparseirm.core import SettingError
from sparseirm.recipe import Recipe
from sparseirm.registry import one_of

PRECISION = "bf16"
"""Precision of the committed runs; ``fp32`` would be other recipes with results of their own."""

BAYESIAN: dict[str, dict[str, Any]] = {
    "cifar_mnist": {"sd": 0.15, "split": True},
    "colored_object": {"sd": 0.125, "split": True},
}
"""Penalty options of BayesianIRM by data set: as released for CifarMnist, a deviation of 1500 over the number
of training samples and products of halves; ColoredObject, for which nothing is released, gets the same."""


@dataclass(frozen=True)
class Cell:
    """One cell of the paper's tables.

    Attributes:
        data: data set.
        n_train: training samples, or None for the data set's own number.
        model: network.
        width: hidden units, or None for a network without this choice.
        method: method as the paper prints it.
        penalty: penalty, or empty for a method without a choice.
        test: published test accuracy, percent.
        train: published training accuracy, percent, or None.
        spread: published standard deviation of ``test``, or None.
    """

    data: str
    n_train: int | None
    model: str
    width: int | None
    method: str
    penalty: str
    test: float | None = None
    train: float | None = None
    spread: float | None = None

    @cached_property
    def missing(self) -> str | None:
        """Why this version cannot run the cell, or None if it can."""
        try:
            self.recipe().resolved()
        except SettingError as error:
            return str(error)
        return None

    def recipe(self, settings: str = "ours", seed: int = 0, precision: str = PRECISION) -> Recipe:
        """The run behind the cell.

        >>> cell = Cell("colored_mnist", 20000, "mlp", 390, "SparseIRM", "rex")
        >>> cell.recipe().method, cell.recipe().precision
        ('sparseirm', 'bf16')
        """
        given: dict[str, Any] = {"n_train": self.n_train, "width": self.width, "penalty": self.penalty}
        return Recipe(
            data=self.data,
            model=self.model,
            method=self.method.lower(),
            settings=settings,
            precision=precision,
            seed=seed,
            penalty_options=BAYESIAN[self.data] if self.method == "BayesianIRM" else {},
            **{name: value for name, value in given.items() if value},
        )


@dataclass(frozen=True)
class Grid:
    """A table or figure of the paper.

    Attributes:
        title: what it shows.
        tables: the published tables its cells stand in.
        keep: which of their cells it shows.
        split: whose accuracy it is about, ``test`` or ``train``.
    """

    title: str
    tables: tuple[str, ...]
    keep: Callable[[Cell], bool] = lambda cell: True
    split: str = "test"

    @property
    def cells(self) -> list[Cell]:
        """Its cells, in the paper's order."""
        chosen = dict.fromkeys(_cell(row) for row in published() if row["table"] in self.tables)
        return [cell for cell in map(_completed, chosen) if self.keep(cell)]


GRIDS = {
    "table2": Grid("Table 2: 50,000 training samples", ("table2",)),
    "table3": Grid("Table 3: ResNet-18", ("table3",)),
    "table7": Grid(
        "Table 7: training accuracy on FullColoredMNIST, 50,000 samples", ("table7",), split="train"
    ),
    "table8": Grid("Table 8: 20,000 training samples", ("table8",)),
    "figure1": Grid(
        "Figure 1: dense methods on ColoredMNIST, 50,000 samples, against width",
        ("table2",),
        lambda cell: (
            cell.data == "colored_mnist"
            and cell.method in ("Oracle", "ERM", "IRM")
            and cell.penalty in ("", "irmv1")
        ),
    ),
    "figure3": Grid("Figure 3: test accuracy against width", ("table2", "table8")),
}
"""What consists of training runs, by the name `sparseirm reproduce` knows it by."""

TABLES = ("table2", "table8", "table3")
"""The tables that share no cell; all others consist of runs of these."""

PROBED = {
    "table4": Grid("Table 4: reading the colour from the representation", ("table4",)),
    "figure4": Grid("Figure 4: exchanging the colour, for the networks of Table 4", ("table4",)),
}
"""What trained networks are asked by `sparseirm.experiments.ablation`: the same networks, and all of it."""

NAMED = GRIDS | PROBED


def select(
    name: str,
    data: Sequence[str] | None = None,
    widths: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    penalties: Sequence[str] | None = None,
) -> list[Cell]:
    """Cells of a table or figure.

    Args:
        name: one of `GRIDS` or `PROBED`.
        data: data sets to keep; all by default.
        widths: widths to keep; all by default.
        methods: methods to keep, in any case; all by default.
        penalties: penalties to keep, of the methods that have one; all by default.

    Returns:
        The cells, in the paper's order.

    Raises:
        SettingError: if one of them does not occur, or no cell has all of them.
    """
    cells = NAMED[one_of("grid", name, NAMED)].cells
    if widths and not any(cell.width for cell in cells):
        raise SettingError(f"{name} has no widths; got `widths` {[*widths]}. Leave them out.")
    wanted = {
        "data": data and set(data),
        "width": widths and {str(width) for width in widths},
        "method": methods and {method.lower() for method in methods},
        "penalty": penalties and set(penalties),
    }
    for field, values in wanted.items():
        known = {str(getattr(cell, field) or "").lower(): 0 for cell in cells if getattr(cell, field)}
        for value in values or ():
            one_of(f"{field} in {name}", value, known, ", ".join(known))
        if values:
            free = {""} if field == "penalty" else set()
            cells = [c for c in cells if str(getattr(c, field) or "").lower() in values | free]
    if not cells:
        raise SettingError(
            f"no cell of {name} has all of these widths, methods and penalties; leave one out."
        )
    return cells


def recipes(
    cells: Iterable[Cell],
    seeds: Sequence[int] = (0,),
    settings: Sequence[str] = ("ours",),
    precision: str = PRECISION,
) -> Iterator[Recipe]:
    """The runs behind cells, seed by seed; cells that this version cannot run are left out.

    Args:
        cells: the cells.
        seeds: one run of every cell each.
        settings: named settings, one run of every cell each.
        precision: precision of all runs.

    Yields:
        Recipe: one run, resolved.

    Example:
        >>> cells = select("table8", widths=[390], methods=["sparseirm"], penalties=["rex"])
        >>> runs = recipes(cells, seeds=[0, 1])
        >>> [(run.data, run.width, run.penalty, run.seed) for run in runs][:2]
        [('colored_mnist', 390, 'rex', 0), ('full_colored_mnist', 390, 'rex', 0)]
    """
    ready = [cell for cell in cells if not cell.missing]
    for seed in seeds:
        for cell in ready:
            for named in settings:
                yield cell.recipe(named, seed, precision).resolved()


@cache
def published() -> tuple[dict[str, str], ...]:
    """Rows of ``published.csv``, by column."""
    text = files("sparseirm.experiments").joinpath("published.csv").read_text()
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def in_words(row: Mapping[str, str]) -> tuple[str, str]:
    """The method of a published row and its number, as they are printed.

    >>> in_words({"method": "MRM", "penalty": "irmv1", "value": "82.8", "std": "1.1"})
    ('MRM (irmv1)', '82.8 ± 1.1')
    """
    name = f"{row['method']} ({row['penalty']})" if row["penalty"] else row["method"]
    return name, " ± ".join(filter(None, (row["value"], row["std"])))


def _cell(row: dict[str, str]) -> Cell:
    """The cell a row belongs to, without its numbers."""
    n_train, width = (int(row[name]) if row[name] else None for name in ("n_train", "width"))
    return Cell(row["dataset"], n_train, row["model"], width, row["method"], row["penalty"])


def _completed(cell: Cell) -> Cell:
    found = _numbers()[cell]
    return replace(cell, test=found.get("test"), train=found.get("train"), spread=found.get("spread"))


@cache
def _numbers() -> dict[Cell, dict[str, float]]:
    """All that is published of each cell, in whichever table."""
    found: dict[Cell, dict[str, float]] = {}
    for row in published():
        if row["quantity"] == "accuracy":
            numbers = found.setdefault(_cell(row), {})
            numbers[row["split"]] = float(row["value"])
            if row["std"]:
                numbers["spread"] = float(row["std"])
    return found
