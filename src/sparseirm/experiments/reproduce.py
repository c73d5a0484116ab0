"""The paper's tables and figures, run: ``sparseirm reproduce table8``."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from sparseirm.core import SettingError
from sparseirm.data.sources import no_downloads
from sparseirm.experiments.ablation import ablation
from sparseirm.experiments.ablation_study import kept
from sparseirm.experiments.beside_paper import LUCK, REVERSED, Finding, Sheet, Study, sheets
from sparseirm.experiments.estimates import Estimates
from sparseirm.experiments.executors import connect, cores
from sparseirm.experiments.grids import GRIDS, NAMED, PRECISION, PROBED, Cell, recipes, select
from sparseirm.experiments.progress import duration, reporter
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import sweep
from sparseirm.experiments.theory import theory
from sparseirm.experiments.variants import DEFAULT
from sparseirm.methods import SETTINGS
from sparseirm.recipe import Option, Recipe
from sparseirm.registry import one_of
from sparseirm.runs import MODEL
from sparseirm.together import Together, groups

What = Literal["table2", "table3", "table4", "table7", "table8", "figure1", "figure3", "figure4", "theorem1"]

CLUSTER = ("time_budget", "executor", "slurm_options", "together")
OF_RUNS = ("seeds", "data", "widths", "methods", "penalties", "settings", "precision")
IDLE = {
    "theorem1": (
        (*OF_RUNS, *CLUSTER, "workers", "data_root"),
        "is computed anew, without runs of a store",
    ),
    **dict.fromkeys(PROBED, (CLUSTER, "trains and asks its networks on this machine, to the end")),
}
"""Options without effect on what is no grid of runs, and why."""

IN_WORDS = {"test": ("the test", "training"), "train": ("training", "the test")}

LEGEND = (
    "\nAccuracy in {} at the last step in percent, mean over seeds ± half its 95 % interval; the paper's\n"
    "number, and if it is within our interval (not distinguishable, if that is wide), or we are above or\n"
    "below; the same networks in {}, with {} if they are more than {:g} point worse in training than in the\n"
    "test: they may use the spurious attribute the other way round."
)


def reproduce(
    what: Positional[What],
    *,
    seeds: tuple[int, ...] = (0,),
    data: tuple[str, ...] | None = None,
    widths: tuple[int, ...] | None = None,
    methods: tuple[str, ...] | None = None,
    penalties: tuple[str, ...] | None = None,
    settings: tuple[str, ...] = ("ours",),
    precision: str = PRECISION,
    time_budget: str | None = None,
    dry_run: bool = False,
    executor: str = "local",
    workers: int | None = None,
    slurm_options: dict[str, Option] | None = None,
    together: Together = "off",
    data_root: str | None = None,
    store: Path = Path("results"),
) -> list[Finding]:
    """Run what the store lacks of a table or figure of the paper, and show it beside the published numbers.

    Runs that are finished cost nothing, so the same command goes on where it was stopped; runs that another
    command has are waited for, and taken over if it dies. Nothing is chosen on test data: the numbers are
    those of the last step. ``sparseirm report`` makes pages of all of them.

    table4 and figure4 are ``sparseirm ablation`` for the networks of the paper's Table 4, with tables and
    figure in the store's folder ``ablation``; theorem1 is ``sparseirm theory``, in its folder ``theory``,
    with no option but ``--dry-run`` and ``--store``. ``report`` shows both.

    Example: sparseirm reproduce table8 --widths 390 --seeds 0 1 2 --dry-run

    Args:
        what: which one.
        seeds: one run of every cell each.
        data: only these data sets.
        widths: only these widths.
        methods: only these methods, as in `compare`.
        penalties: only these penalties, and methods without one.
        settings: ours, paper or released, or several of them.
        precision: fp32 or bf16, of all runs.
        time_budget: time, such as 150m, after which no run starts and those in flight stop at a checkpoint.
        dry_run: only say what is missing and how long it will take; nothing is written.
        executor: local; slurm; or dask://HOST:PORT, the address of a scheduler.
        workers: number of local processes; one per core by default.
        slurm_options: submitit's parameters, such as timeout_min 60.
        together: number of small runs that a process carries out at once, or auto for as many as are faster
            at once; results then differ from those of single runs by rounding.
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        store: folder of the results; workers on other machines must see it under the same path.

    Returns:
        What was found of each cell; nothing for table4, figure4 and theorem1.
    """
    _refuse_idle(what, locals())
    if what == "theorem1":
        return _theorem(dry_run, store)
    budget = None if time_budget is None else seconds(time_budget)
    _check_settings(what, settings)
    _each_once("", seeds=seeds, settings=settings)
    _each_once(" Leave it out for all.", data=data, widths=widths, methods=methods, penalties=penalties)
    context = connect(executor, workers, store / "work" / "slurm", slurm_options)
    side_by_side = workers or cores() if executor == "local" else None
    groups((), together)  # which says what is wrong with it
    cells = select(what, data, widths, methods, penalties)
    wanted = [*recipes(cells, seeds, settings, precision)]
    digests = _digests(wanted, data_root)
    place, console = Store(store), Console(width=None if Console().is_terminal else 140)
    _say_what_is_not_run(console, place, cells)
    failed = 0
    study = Study(place.all(), precision, digests)
    missing = [recipe for recipe in wanted if not _done(what, recipe, study, place)]
    with no_downloads() if dry_run else nullcontext():
        absent = _absent(missing, data_root)
    if dry_run:
        here = [replace(recipe, data_digest=digests[recipe.data]) for recipe in missing]
        console.print(
            f"{NAMED[what].title}. {len(wanted)} runs: {len(wanted) - len(here)} done, {len(here)} missing."
        )
        estimates = Estimates.of(study.results)
        _plan(console, here, place, estimates, side_by_side)
        if absent:
            console.print(f"Note: {absent}", highlight=False, markup=False)
    elif absent:
        raise SettingError(absent)
    elif what in PROBED:
        _ask(cells, seeds, settings[0], precision, data_root, store, workers)
    else:
        with context as pool, reporter(place) as shown:
            found = sweep(
                *(missing, place, pool, data_root, shown.on_done, budget, shown.watch),
                *(together, side_by_side or 1, shown.say),
            )
        failed = shown.failed
        if left := found.count(None) - failed:
            console.print(f"{left} of {len(wanted)} runs are left. The same command goes on with them.")
        study = Study(place.all(), precision, digests)
    if what in PROBED:
        return []  # what was asked stands in the tables of the ablation
    split = GRIDS[what].split
    findings = [study.finding(cell, named, split) for named in settings for cell in cells]
    console.print(LEGEND.format(*IN_WORDS[split], REVERSED, LUCK), highlight=False)
    _show(console, findings)
    if failed:
        raise SettingError(
            f"{failed} of {len(wanted)} runs failed; the reasons are in {store / 'failed'}. The same command "
            "tries them again."
        )
    return findings


def _theorem(dry_run: bool, store: Path) -> list[Finding]:
    """Compute Theorem 1, or say what that takes."""
    if dry_run:
        print("Theorem 1 is computed anew, in under ten minutes on one core. There are no runs.")
    else:
        theory(out=store / "theory")
    return []


def _check_settings(what: str, settings: Sequence[str]) -> None:
    for name in settings:
        one_of("settings", name, SETTINGS)
    if what in PROBED and len(settings) > 1:
        raise SettingError(f"`settings` must be a single one for {what}; got {[*settings]}.")


def _done(what: str, recipe: Recipe, study: Study, store: Store) -> bool:
    """Whether a run's result is there, or its network where networks are asked."""
    if what in GRIDS:
        return study.get(recipe) is not None
    with suppress(SettingError):  # without files nobody knows of which ones the network would be
        return (kept(replace(recipe, data_digest=study.digests[recipe.data]), store) / MODEL).exists()
    return False


def _each_once(otherwise: str, **given: Sequence[object] | None) -> None:
    """Refuse lists that are empty or name something twice; None is no list."""
    for name, values in given.items():
        if values is not None and not 0 < len(values) == len(set(values)):
            raise SettingError(
                f"`{name}` must name each one once, and at least one; got {[*values]}.{otherwise}"
            )


def _show(console: Console, findings: Sequence[Finding]) -> None:
    """One table for each data set, with what should be known of its files."""
    for sheet in sheets(findings):
        console.print(f"\n[bold]{sheet.title}[/bold]", table(sheet), sep="\n")
        for note in sheet.sources:
            console.print(f"data: {note}", highlight=False, markup=False)


def seconds(words: str) -> float:
    """A time in words.

    >>> seconds("150m"), seconds("1h30m"), seconds("45s")
    (9000.0, 5400.0, 45.0)
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", words)
    if not found or not words:
        raise SettingError(f"`time_budget` must be a time such as 150m, 2h or 1h30m; got {words!r}.")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + rest)


def table(sheet: Sheet) -> Table:
    """A sheet as a table of the terminal."""
    shown = Table()
    shown.add_column("")
    for width in sheet.widths:
        shown.add_column("" if width is None else f"width {width}", justify="right")
    for name, row in sheet.rows.items():
        shown.add_row(name, *(_words(row[width]) if width in row else "" for width in sheet.widths))
    return shown


def _words(finding: Finding) -> str:
    """The accuracy its table is about, the paper's, the same networks in the other split, the verdict."""
    split, other = ("test", "train") if finding.split == "test" else ("train", "test")
    ours, beside = finding.accuracy(split), finding.accuracy(other)
    paper, also = ("" if p is None else f"paper {p:.1f}" for p in map(finding.published, (split, other)))
    lines = [
        f"{'train ' * (split == 'train')}{ours.words}" if ours else "",
        paper,
        f"{other} {beside.mean:.1f}{also and f' ({also})'}{f' {REVERSED}' * finding.reversed}"
        if beside
        else "",
        finding.verdict[1],
    ]
    return "\n".join(filter(None, lines))


def _say_what_is_not_run(console: Console, store: Store, cells: Sequence[Cell]) -> None:
    """Cells this version cannot run, and results that count for nothing, with the reason."""
    for reason, n in Counter(cell.missing for cell in cells if cell.missing).items():
        console.print(f"{n} of {len(cells)} cells are not available: {reason}", highlight=False)
    outdated = len(store.outdated())
    if outdated:
        console.print(
            f"{outdated} results in {store.root} are of another version of the code, whose numbers differ: "
            "they count as missing and will be run again.",
            highlight=False,
            markup=False,
        )


def _digests(recipes: Sequence[Recipe], data_root: str | None) -> dict[str, str | None]:
    """The digest of the files of each data set; None where there are none, or they are not at hand."""
    found: dict[str, str | None] = dict.fromkeys(recipe.data for recipe in recipes)
    for data in found:
        with suppress(SettingError):
            found[data] = Recipe(data=data).pinned(data_root).data_digest
    return found


def _absent(runs: Sequence[Recipe], data_root: str | None) -> str:
    """Data sets that cannot be had, how many runs need them, why, and the way out; empty if there are none.

    Each is built once, as a run of it would build it, with whatever that downloads.
    """
    needed = Counter(recipe.data for recipe in runs)
    absent: dict[str, list[str]] = {}
    for recipe in {recipe.data: recipe for recipe in runs}.values():
        try:
            recipe.make_data(data_root)
        except SettingError as error:
            absent.setdefault(" ".join(str(error).split()), []).append(recipe.data)
    words = [
        f"{' and '.join(names)}, for {sum(needed[name] for name in names)} of {len(runs)} missing runs, "
        f"cannot be had: {reason}"
        for reason, names in absent.items()
    ]
    at_hand = needed.keys() - {name for names in absent.values() for name in names}
    if words and at_hand:
        words.append(f"Or run only what can be: --data {' '.join(sorted(at_hand))}")
    return " ".join(words)


def _over(store: Store, recipe: Recipe) -> float | None:
    """How much of a run in another process is over; None if there is none, or its files are not at hand."""
    with suppress(SettingError):
        return store.over(recipe)
    return None


def _plan(
    console: Console, missing: Sequence[Recipe], store: Store, estimates: Estimates, workers: int | None
) -> None:
    """What is missing, by method, and how long it will take; in all, if nobody knows on how many workers.

    Of a run that another process has, only what is left counts.
    """
    over = {id(recipe): _over(store, recipe) for recipe in missing}
    shown = Table()
    for heading in ("data", "method", "missing", "each", "together"):
        shown.add_column(heading, justify="left" if heading in ("data", "method") else "right")
    total: float | None = 0.0
    groups: dict[tuple[str, str], list[Recipe]] = {}
    for recipe in missing:
        method = " ".join(filter(None, (recipe.method, recipe.penalty, recipe.settings)))
        groups.setdefault((f"{recipe.data} {recipe.n_train}", method), []).append(recipe)
    for (data, method), group in groups.items():
        times = [(estimates.seconds(recipe), over[id(recipe)] or 0.0) for recipe in group]
        known = [time * (1 - done) for time, done in times if time is not None]
        together = sum(known) if len(known) == len(times) else None
        ends = dict.fromkeys(duration(pick(known)) for pick in (min, max)) if known else [duration(None)]
        shown.add_row(data, method, str(len(group)), " to ".join(ends), duration(together))
        total = None if total is None or together is None else total + together
    if missing:
        console.print(shown)
        spread = f", about {duration(total / workers)} on {workers} workers" if total and workers else ""
        unmeasured = ": no run of such a network has been measured" if total is None else ""
        console.print(f"Together: {duration(total)} of computing{spread}{unmeasured}.", highlight=False)
    running = sum(done is not None for done in over.values())
    if running:
        console.print(
            f"{running} of {len(missing)} missing runs are running elsewhere: only their rest counts."
        )
    for recipe, reason in store.failures():
        if recipe in missing:
            console.print(f"failed before, and will be tried again: {reason}", highlight=False, markup=False)


def _refuse_idle(what: str, given: dict[str, Any]) -> None:
    """Refuse options that have no effect on what is asked for."""
    names, why = IDLE.get(what, ((), ""))
    usual = inspect.signature(reproduce).parameters
    for name in names:
        if given[name] != usual[name].default:
            raise SettingError(
                f"`{name}` has no effect on {what}, which {why}; got {given[name]}. Leave it out."
            )


def _ask(
    cells: Sequence[Cell],
    seeds: tuple[int, ...],
    settings: str,
    precision: str,
    data_root: str | None,
    store: Path,
    workers: int | None,
) -> None:
    """Train the networks of cells, which differ in method and penalty, and ask what they know."""
    common = replace(
        cells[0].recipe(settings, precision=precision), method=DEFAULT.method, penalty=DEFAULT.penalty
    )
    methods, penalties = (
        {getattr(cell, name).lower(): 0 for cell in cells} for name in ("method", "penalty")
    )
    ablation(
        common,
        methods=(*methods,),
        penalties=(*penalties,),
        seeds=seeds,
        densities=(),
        data_root=data_root,
        store=store,
        out=store / "ablation",
        workers=workers,
    )
