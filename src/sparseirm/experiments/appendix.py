"""What a report shows beside the tables of accuracies: settings, and what other commands have computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparseirm.experiments import ablation as ablation_command
from sparseirm.experiments import theory_tables
from sparseirm.experiments.ablation_figure import maps
from sparseirm.experiments.ablation_study import AblationReport
from sparseirm.experiments.sheets import Sheet
from sparseirm.experiments.theory_study import TheoryReport
from sparseirm.files import read_json
from sparseirm.methods import SETTINGS
from sparseirm.recipe import Recipe


def settings(precision: str) -> Sheet:
    """The named settings beside each other, as runs of SparseIRM resolve them.

    Args:
        precision: precision of the runs that are shown.

    Returns:
        A row for every setting; the note has the most important ones of ours.
    """
    runs = {name: Recipe(data="colored_mnist", settings=name).resolved() for name in SETTINGS}
    ours, ten = runs["ours"], Recipe(data="full_colored_mnist").resolved()
    runs["ours, ten classes"] = ten
    note = (
        f"Ours: {precision} precision, {ours.steps} steps of {ours.optimizer}, learning rate {ours.lr:g} "
        f"({ten.lr:g} with ten classes), that of the mask {ours.sparsifier_options['score_lr']:g}, penalty "
        f"weight {ours.penalty_weight:g} ({ten.penalty_weight:g}), {ours.weights_per_sample:g} weights for "
        "each training sample."
    )
    said = [vars(run) | run.sparsifier_options for run in runs.values()]
    names = [name for name in SETTINGS["ours"] if name not in ("width", "sparsifier_options")]
    rows = [
        (name, *(_value(each.get(name)) for each in said))
        for name in (*names, *ours.sparsifier_options)
        if any(each.get(name) is not None for each in said)
    ]
    return Sheet("Settings", note, ("setting", *runs), tuple(rows))


def _value(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def ablation(path: Path) -> dict[str, Any]:
    """What the networks know of the spurious attribute: Table 4, with the paper's numbers, and Figure 4.

    Args:
        path: the ``ablation.json``; it may be missing.

    Returns:
        What was trained (``about``), tables (``sheets``) and figures (``charts``); empty if it is missing.
    """
    if not path.exists():
        return {}
    report = AblationReport.from_json(read_json(path))
    caption = f"Each square is a unit: how far it moves when the {report.attribute} of one image is exchanged"
    chart = {"figure": maps(report), "file": "figures/exchange.svg", "caption": caption}
    return {
        "about": _in_words(report.recipe),
        "sheets": [*ablation_command.sheets(report).values()],
        "charts": [chart],
    }


def _in_words(recipe: Mapping[str, Any]) -> str:
    """What a recipe, as plain data, says of the data and the network."""
    names = ("data", "n_train", "model", "width", "precision")
    return ", ".join(f"{name} {recipe[name]}" for name in names if recipe.get(name) is not None)


def theory(path: Path) -> list[Sheet]:
    """The tables of a ``theory.json``; none if it is missing."""
    return theory_tables.sheets(TheoryReport.from_json(read_json(path))) if path.exists() else []
