"""A store as pages: ``sparseirm report`` writes them from the results alone."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sparseirm.core import SettingError
from sparseirm.evaluation.selection import RULES
from sparseirm.experiments.appendix import ablation, settings, theory
from sparseirm.experiments.beside_paper import (
    FAR,
    LUCK,
    NARROW,
    REVERSED,
    Difference,
    Finding,
    Sheet,
    Study,
    difference,
    sheets,
)
from sparseirm.experiments.charts import SHOWN, against_width, trajectory
from sparseirm.experiments.claims import PENALTIES, claims, in_markdown
from sparseirm.experiments.deviations import address, read, unexplained
from sparseirm.experiments.figures import saved
from sparseirm.experiments.grids import GRIDS, PRECISION, TABLES
from sparseirm.experiments.progress import duration
from sparseirm.experiments.rules import Chosen
from sparseirm.experiments.statistics import Figures
from sparseirm.experiments.store import Store
from sparseirm.experiments.summary import summary
from sparseirm.experiments.tables import COLLAPSED, collapsed, label, source_notes
from sparseirm.files import write_bytes
from sparseirm.methods import SETTINGS
from sparseirm.recipe import Recipe
from sparseirm.report import render, svg
from sparseirm.runs import RESULTS, Result

TRAINING = GRIDS["table7"]
"""The table of training accuracy, of runs of Table 2."""

STAGES = "dense training, finding the mask, training anew"

DEVIATING = (
    "Listed are cells under our settings whose 95 % interval excludes the paper's number, cells with "
    f"collapsed runs, and cells with one seed or a wide interval that are more than {FAR:g} points from it."
)

HERE = Path(__file__)


def report(store: Path = Path("results"), out: Path = Path("out/report"), precision: str = PRECISION) -> Path:
    """Make pages of a result store: every table beside the paper's, figures, selection rules, deviations.

    Writes ``index.html``, which needs no other file, ``report.md`` with its figures, and ``summary.csv``, one
    line for every cell, settings and selection rule.

    Example: sparseirm report --store results --out out/report

    Args:
        store: folder of the results.
        out: folder for the pages.
        precision: precision of the runs that stand beside the paper's.

    Returns:
        The HTML page.
    """
    place = Store(store)
    results = place.all()
    if not results:
        raise SettingError(
            f"`store` {str(store)!r} holds no results; run `sparseirm reproduce table8` first."
        )
    study = Study(results, precision)
    findings = found(study)
    shown = content(study, findings, place)
    paths = [chart for _, ways in shown["paths"] for chart in ways]
    for chart in [*shown["charts"], *paths, *shown["ablation"].get("charts", ())]:
        saved(chart["figure"], out / chart["file"])
    write_bytes(out / "summary.csv", summary(findings).encode())
    write_bytes(out / "report.md", render(HERE.with_name("report.md"), **shown))
    write_bytes(out / "index.html", render(HERE.with_name("report.html"), **shown))
    print(f"page: {out / 'index.html'}, Markdown: {out / 'report.md'}, numbers: {out / 'summary.csv'}")
    return out / "index.html"


def found(study: Study) -> list[Finding]:
    """Findings of every cell under our settings, and under others where there are runs."""
    cells = dict.fromkeys(cell for name in TABLES for cell in GRIDS[name].cells)
    every = [study.finding(cell, settings) for cell in cells for settings in SETTINGS]
    return [finding for finding in every if finding.settings == "ours" or finding.results]


def content(study: Study, findings: list[Finding], store: Store) -> dict[str, Any]:
    """Everything that the templates show, by name."""
    run = [finding for finding in findings if finding.results]
    asked = ablation(store.root / "ablation" / "ablation.json")
    texts = read(store.root / "deviations")
    told = [text for text in texts if any(map(text.about, run)) or (asked and "table4" in text.cells)]
    shown, disclosure = sheets(findings), store.root / "disclosure.md"
    return {
        "disclosure": disclosure.read_text() if disclosure.exists() else "",
        "deviating": DEVIATING,
        "settings": settings(study.precision),
        "cards": _cards(study.results, findings),
        "claims": claims(findings),
        "claims_in_markdown": in_markdown,
        "mark": COLLAPSED,
        "less": REVERSED,
        "narrow": NARROW,
        "luck": LUCK,
        "sheets": sorted(shown, key=lambda sheet: not sheet.n_runs),
        "training": (TRAINING.title, sheets(_in_training(study, findings))),
        "notes": {address(f): [n for n, text in enumerate(told, 1) if text.about(f)] for f in findings},
        "address": address,
        "lacking": Counter(f.cell.missing for f in findings if f.cell.missing).most_common(),
        "charts": list(_charts(shown)),
        "svg": svg,
        "plain": _plain,
        "rules": RULES,
        "by_rule": [_by_rule(sheet) for sheet in sheets(run)],
        "refusals": sorted({chosen.refusal for f in run for chosen in f.rules if chosen.refusal}),
        "pairs": [(sheet, gaps) for sheet in shown if (gaps := _pairs(sheet))],
        "paths": [_paths(sheet) for sheet in sheets(run)],
        "ablation": asked,
        "theory": theory(store.root / "theory" / "theory.json"),
        "deviations": told,
        "untold": unexplained(run, told),
        "others": [_other(group) for group in study.others(findings)],
        "failures": [(_label(recipe), recipe, reason) for recipe, reason in store.failures()],
        "outdated": len(store.outdated()),
        "version": RESULTS,
        "machines": Counter(map(_machine, study.results)).most_common(),
    }


def _cards(results: Sequence[Result], findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """The most important counts."""
    ours = [finding for finding in findings if finding.settings == "ours"]
    n = Counter(finding.outcome for finding in ours)
    covered = sum(bool(finding.results) for finding in ours)
    return [
        (f"{covered} of {len(ours)}", "cells of the paper's tables have been run"),
        (str(len(results)), f"runs in {duration(sum(result.seconds for result in results))} of computing"),
        (str(n["one seed"]), "with one seed: difference shown, no verdict"),
        (str(n["within"]), f"with a 95 % interval, ± {NARROW:g} at most, that holds the paper's number"),
        (str(n["not distinguishable"]), "with an interval that holds it, but is too wide to tell"),
        (f"{n['above']} and {n['below']}", "with an interval above it, and below it"),
        (str(n["collapsed"]), "under our settings with collapsed runs"),
    ]


def _in_training(study: Study, findings: Sequence[Finding]) -> list[Finding]:
    """The cells of Table 7, which are among those of Table 2, by their training accuracy."""
    cells = TRAINING.cells
    return [replace(finding, split=TRAINING.split) for finding in findings if finding.cell in cells]


def _charts(shown: Sequence[Sheet]) -> Iterator[dict[str, Any]]:
    """Accuracy against width for each data set, penalty and split of which there are runs."""
    for sheet in shown:
        ours = [f for row in sheet.rows.values() for f in row.values() if f.settings == "ours"]
        for penalty, written in PENALTIES.items():
            some = [finding for finding in ours if finding.cell.penalty in ("", penalty)]
            if any(finding.results and finding.cell.width for finding in some):
                for split in SHOWN:
                    yield {
                        "figure": against_width(some, split),
                        "file": f"figures/{sheet.data}-{sheet.n_train}-{penalty}-{split}.svg",
                        "caption": f"{sheet.title}, {written}: {split} accuracy against width",
                    }


def _fullest(sheet: Sheet) -> int | None:
    """The width with the most runs."""
    n_runs = {w: sum(len(row[w].results) for row in sheet.rows.values() if w in row) for w in sheet.widths}
    return max(sheet.widths, key=lambda width: (n_runs[width], width or 0))


def _by_rule(sheet: Sheet) -> tuple[Sheet, int | None, list[str], list[dict[str, Any]]]:
    """What rules report of every method at the width with the most runs, and which of them can be applied."""
    width = _fullest(sheet)
    lines: list[dict[str, Any]] = []
    for name, row in sheet.rows.items():
        if width in row and row[width].results:
            chosen = {one.rule: one for one in row[width].rules if one.points}
            evaluated = {len(result.trajectory) for result in row[width].results.values()}
            lines.append(
                {
                    "name": name,
                    "seeds": len(row[width].results),
                    "evaluated": " to ".join(map(str, sorted({min(evaluated), max(evaluated)}))),
                    "chosen": chosen,
                    "gain": _gain(chosen["oracle"], chosen["last"]),
                }
            )
    return sheet, width, [rule for rule in RULES if any(rule in line["chosen"] for line in lines)], lines


def _gain(best: Chosen, last: Chosen) -> Difference:
    """What the best step would have added to the last one, run by run."""
    tests = (chosen.accuracy("test").values for chosen in (best, last))
    gains = Figures(tuple(one - other for one, other in zip(*tests, strict=True)))
    return Difference(gains, not best.collapsed and not last.collapsed)


def _pairs(sheet: Sheet) -> dict[str, dict[int | None, Difference | None]]:
    """SparseIRM minus others on the same seeds, by pair and width."""
    lines = {}
    for penalty in PENALTIES:
        name = f"SparseIRM ({penalty})"
        mine = sheet.rows.get(name, {})
        for other in (f"IRM ({penalty})", f"MRM ({penalty})", "Oracle"):
            row = sheet.rows.get(other, {})
            gaps = {width: difference(mine[width], row[width]) for width in mine.keys() & row.keys()}
            if any(gaps.values()):
                lines[f"{name} - {other}"] = gaps
    return lines


def _paths(sheet: Sheet) -> tuple[str, list[dict[str, Any]]]:
    """Trajectories of every method at the width with the most runs, or its own where it has none there."""
    width, ways = _fullest(sheet), []
    for name, row in sheet.rows.items():
        finding = max(row.values(), key=lambda f: (f.cell.width == width and bool(f.results), len(f.results)))
        if results := [*finding.results.values()]:
            about = f"trajectory {sheet.data} {sheet.n_train or ''} {sheet.model} {name}"
            elsewhere = "" if finding.cell.width == width else f", width {finding.cell.width}"
            ways.append(
                {
                    "figure": trajectory(results),
                    "file": f"figures/{_slug(about)}.svg",
                    "caption": name + elsewhere + _stages(results[0]),
                }
            )
    return f"{sheet.title}, width {width}" if width else sheet.title, ways


def _stages(result: Result) -> str:
    """What the vertical lines in a trajectory part, if there are any."""
    return f"; the vertical lines part its stages: {STAGES}" if result.recipe.stage_lengths else ""


def _other(group: list[Result]) -> dict[str, Any]:
    """Runs that are no cell of the paper, in words."""
    recipe = group[0].recipe
    names = ("correlations", "sparsifier", "density", "steps", "precision", "settings", "leave_out")
    settings = {name: getattr(recipe, name) for name in names}
    data = (recipe.data, f"{recipe.n_train} samples", f"{recipe.model} {recipe.width or ''}")
    return {
        "name": _label(recipe),
        "data": ", ".join((*data, *source_notes(group))),
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
        "accuracy": {split: _over_seeds(group, split) for split in ("test", "train")},
        "seeds": len(group),
        "collapsed": sum(map(collapsed, group)),
    }


def _over_seeds(group: Sequence[Result], split: str) -> Figures | None:
    there = all(split in result.last for result in group)
    return Figures(tuple(result.last[split].accuracy for result in group)) if there else None


def _label(recipe: Recipe) -> str:
    """The method in words, also of a recipe that this installation can make nothing of."""
    try:
        return label(recipe)
    except SettingError:
        return f"{recipe.method} ({recipe.penalty})" if recipe.penalty else recipe.method


def _machine(result: Result) -> str:
    """On what a run was made."""
    parts = result.environment
    words = [f"{name} {parts[name]}" for name in ("sparseirm", "torch", "python") if name in parts]
    words += [str(parts["device"])] if "device" in parts else []
    words += [f"{parts['threads']} thread(s)"] if "threads" in parts else []
    return ", ".join(words)


def _slug(words: str) -> str:
    """Words as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _plain(text: object) -> Markup:
    """Words on one line in which neither Markdown nor HTML sees anything special."""
    words = html.escape(" ".join(str(text).split()), quote=False)
    return Markup(re.sub(r"([\\`*_\[\]|~$])", r"\\\1", words))
