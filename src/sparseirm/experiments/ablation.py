"""The paper's ablations as one command: what representations know, and what the budget does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import tyro

from sparseirm.core import SettingError
from sparseirm.evaluation.probes import Probe
from sparseirm.experiments.ablation_figure import draw
from sparseirm.experiments.ablation_study import (
    AblationReport,
    Budget,
    Reading,
    budget_of,
    chance_agreement,
    readings,
)
from sparseirm.experiments.executors import local
from sparseirm.experiments.grids import in_words, published
from sparseirm.experiments.sheets import Sheet, page, show
from sparseirm.experiments.statistics import Figures
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import pinned, sweep
from sparseirm.experiments.tables import label, rows
from sparseirm.experiments.variants import DEFAULT, variants
from sparseirm.files import write_bytes, write_json
from sparseirm.methods import METHODS
from sparseirm.recipe import Recipe
from sparseirm.registry import lookup

PROBE = Probe()
DENSITY_METHODS = ("sparseirm",)


def ablation(
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = DEFAULT,
    *,
    methods: tuple[str, ...] = ("irm", "mrm", "sparseirm"),
    penalties: tuple[str, ...] = ("irmv1",),
    seeds: tuple[int, ...] = (0, 1, 2),
    densities: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0),
    density_methods: tuple[str, ...] = DENSITY_METHODS,
    probe: Probe = PROBE,
    data_root: str | None = None,
    store: Path = Path("results"),
    out: Path = Path("out/ablation"),
    workers: int | None = None,
) -> AblationReport:
    """Ask trained networks about the spurious attribute, and vary the number of weights they may keep.

    Can a small network read the colour from the representation (Table 4 of the paper)? How far does the
    representation move when the colour of an image is exchanged (Figure 4)? What does the density do to the
    accuracy of the sparse methods? Writes ``ablation.md``, ``ablation.svg`` and ``ablation.json``. All other
    flags are those of ``train``. Results and networks are kept in ``--store``, the networks below ``models``;
    the same command goes on where it was stopped.

    Example: sparseirm ablation --data colored_mnist --width 640 --methods irm mrm sparseirm

    Args:
        recipe: what all runs have in common.
        methods: methods to compare, as in `--method`.
        penalties: penalties of the methods that have a choice, as in `--penalty`.
        seeds: one run each.
        densities: what the density is set to, one after the other; none to leave that part out.
        density_methods: sparse methods whose density is varied.
        probe: the network that reads the attribute.
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        store: folder of the results.
        out: folder for table, figure and numbers.
        workers: number of processes; one per core by default.

    Returns:
        All numbers.
    """
    asked = variants(recipe, methods, penalties, seeds=seeds)
    varied = _varied(recipe, density_methods, penalties, densities, seeds)
    for one in (*asked, *varied):
        one.resolved()
    asked = pinned(asked, data_root)
    data = asked[0].resolved().make_data(data_root)
    with local(workers) as pool:
        read = readings(asked, Store(store), pool, probe, data_root)
        results = sweep(varied, Store(store), pool, data_root, _complain)
    report = AblationReport(
        recipe={name: value for name, value in recipe.to_json().items() if name not in ("method", "seed")},
        probe=probe,
        attribute=data.spurious_name or "spurious attribute",
        chance=100 * chance_agreement(data),
        readings=tuple(read),
        budgets=tuple(budget_of(row) for row in rows(results)),
    )
    publish(report, out)
    return report


def _varied(
    recipe: Recipe,
    methods: Sequence[str],
    penalties: Sequence[str],
    densities: Sequence[float],
    seeds: Sequence[int],
) -> list[Recipe]:
    """The recipe at every density, whatever its own budget, with what each method has a use for."""
    if not densities:
        if tuple(methods) != DENSITY_METHODS:
            raise SettingError("`density_methods` has no effect without `densities`. Leave it out.")
        return []
    if not methods or len(set(methods)) < len(methods):
        raise SettingError(
            f"`density_methods` must name each one once, and at least one; got {list(methods)}."
        )
    recipes = []
    for method in methods:
        if not lookup("method", METHODS, method).sparse:
            raise SettingError(
                f"`density_methods` must be sparse; {method!r} keeps every weight. Leave it out."
            )
        own = replace(recipe.adapted(method), method=DEFAULT.method, penalty=DEFAULT.penalty)
        free = replace(own, density=None, budget=None, weights_per_sample=None)
        recipes += variants(free, [method], penalties, densities=densities, seeds=seeds)
    return recipes


def _complain(recipe: Recipe, failure: str | None) -> None:
    if failure:
        print(f"{label(recipe)}, density {recipe.density}, seed {recipe.seed}: {failure}", file=sys.stderr)


def publish(report: AblationReport, out: Path) -> None:
    """Print the tables of a report, and write them, the figure and all numbers to a folder.

    Args:
        report: the numbers.
        out: the folder.
    """
    tables = sheets(report)
    show(tables.values())
    write_json(out / "ablation.json", asdict(report))
    write_bytes(out / "ablation.md", page("Ablations", tables.values()))
    figure = draw(report, out / "ablation.svg")
    print(f"figure: {figure}, tables: {out / 'ablation.md'}, numbers: {out / 'ablation.json'}")


def sheets(report: AblationReport) -> dict[str, Sheet]:
    """The report as tables by name: ``probe``, ``exchange`` and, if densities were varied, ``density``."""
    tables = {"probe": _probe_sheet(report), "exchange": _exchange_sheet(report)}
    return tables | ({"density": _density_sheet(report)} if report.budgets else {})


def _by_method(
    report: AblationReport, *figures: Callable[[Reading], float]
) -> list[tuple[str, list[Figures]]]:
    """Figures over seeds, method by method."""
    groups: dict[str, list[Reading]] = {}
    for reading in report.readings:
        groups.setdefault(reading.label, []).append(reading)
    return [
        (name, [Figures(tuple(of(reading) for reading in group)) for of in figures])
        for name, group in groups.items()
    ]


def _probe_sheet(report: AblationReport) -> Sheet:
    probe = report.probe
    paper = _paper(report)
    found = _by_method(report, lambda r: r.seen, lambda r: r.fresh, lambda r: r.train, lambda r: r.test)
    return Sheet(
        f"Reading the {report.attribute} from the representation",
        f"Accuracy in percent of a two-layer network ({probe.width} hidden units, {probe.steps} steps) that "
        f"is given the input of the last layer, on images whose {report.attribute} is independent of the "
        "label: those it learnt from, and test images. Beside it the accuracy of the networks themselves at "
        f"their last step. Mean ± standard deviation over seeds.{PAPER if paper else ''}",
        ("method", "probe, seen", "probe, fresh", "train", "test", "seeds", *paper),
        tuple(
            (
                name,
                *map(str, each),
                str(len(each[0].values)),
                *(said.get(name, "") for said in paper.values()),
            )
            for name, each in found
        ),
    )


PAPER = " The paper's probes are of networks of 640 hidden units, trained with 50,000 samples."


def _paper(report: AblationReport) -> dict[str, dict[str, str]]:
    """What Table 4 of the paper says of methods on the same data set: by heading, then by method in words."""
    found: dict[str, dict[str, str]] = {}
    for row in published():
        if row["table"] == "table4" and row["dataset"] == report.recipe.get("data"):
            heading = {"train": "paper, seen", "test": "paper, fresh"}[row["split"]]
            found.setdefault(heading, {}).update([in_words(row)])
    return found


def _exchange_sheet(report: AblationReport) -> Sheet:
    found = _by_method(report, lambda r: r.moved, lambda r: r.size, lambda r: 100 * r.moved / (r.size or 1.0))
    return Sheet(
        f"Exchanging the {report.attribute} of an image",
        "How far a unit of the representation moves, its size, and the ratio of the two in percent: means "
        "over test images and units, then over seeds (for the ratio with their standard deviation).",
        ("method", "mean difference", "mean size", "ratio, %"),
        tuple(
            (name, f"{moved.mean:.3g}", f"{size.mean:.3g}", str(ratio))
            for name, (moved, size, ratio) in found
        ),
    )


def _density_sheet(report: AblationReport) -> Sheet:
    def cells(budget: Budget) -> tuple[str, ...]:
        accuracies = (str(Figures(values)) for values in (budget.train, budget.val, budget.test))
        return (
            budget.label,
            f"{budget.density:g}",
            str(budget.kept),
            *accuracies,
            str(len(budget.test)),
        )

    return Sheet(
        "Varying the density",
        "Accuracy in percent at the last step, mean ± standard deviation over seeds; val holds fresh samples "
        "of the training environments.",
        ("method", "density", "weights", "train", "val", "test", "seeds"),
        tuple(map(cells, report.budgets)),
    )
