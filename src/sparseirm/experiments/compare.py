"""Methods side by side as a command, and the demo, which is one comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from sparseirm.core import SettingError
from sparseirm.experiments.executors import cores, local
from sparseirm.experiments.figures import comparison
from sparseirm.experiments.progress import reporter
from sparseirm.experiments.rules import LEGEND, rounds, side_by_side
from sparseirm.experiments.rules import table as by_rule
from sparseirm.experiments.sheets import plain_console, plain_table
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import sweep
from sparseirm.experiments.tables import HEADINGS, Row, cells, markdown, markdown_table, notes, rows
from sparseirm.experiments.variants import DEFAULT, variants
from sparseirm.files import write_bytes
from sparseirm.recipe import Recipe
from sparseirm.together import Together


def compare(
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = DEFAULT,
    *,
    methods: tuple[str, ...] = ("erm", "irm", "sparseirm", "oracle"),
    penalties: tuple[str, ...] = ("rex",),
    sparsifiers: tuple[str, ...] = (),
    densities: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    data_root: str | None = None,
    store: Path = Path("results"),
    out: Path = Path("out/compare"),
    workers: int | None = None,
    rules: bool = False,
    together: Together = "off",
) -> list[Row]:
    """Compare methods on one data set over seeds, in one table and one figure.

    Runs in as many processes as there are cores. Finished runs are kept in ``--store``: the same command
    goes on where it was stopped. All other flags are those of ``train``, and hold for every method that
    has a use for them.

    Example: sparseirm compare --data colored_mnist --methods irm sparseirm --penalties irmv1 rex

    Args:
        recipe: what all runs have in common.
        methods: methods to compare, as in `--method`.
        penalties: penalties of the methods that have a choice, as in `--penalty`.
        sparsifiers: sparsifiers of the sparse methods, as in `--sparsifier`; that one by default.
        densities: densities of the sparse methods, as in `--density`; that one by default.
        seeds: one run each.
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        store: folder of the results.
        out: folder for the figure ``compare.svg`` and the table ``compare.md``.
        workers: number of processes; one per core by default.
        rules: also show what other rules of selecting a step would have reported; with three or more training
            environments this takes a further run without each of them.
        together: number of small runs that a process carries out at once, or auto for as many as are faster
            at once; results then differ from those of single runs by rounding.

    Returns:
        One row per method, penalty, sparsifier and density, with its results.
    """
    recipes = variants(recipe, methods, penalties, sparsifiers, densities, seeds)
    with reporter(Store(store)) as shown, local(workers) as pool:
        shared: dict[str, Any] = {"together": together, "workers": workers or cores(), "say": shown.say}
        found = sweep(recipes, Store(store), pool, data_root, shown.on_done, watch=shown.watch, **shared)
        if rules and (further := rounds(filter(None, found))):
            sweep(further, Store(store), pool, data_root, shown.on_done, watch=shown.watch, **shared)
    table = rows(found)
    if not table:
        raise SettingError(f"no run finished; the reasons are in {store / 'failed'}.")
    title = "accuracy at the last step, in percent: mean ± standard deviation over seeds"
    shown_table = plain_table(HEADINGS, map(cells, table), title)
    plain_console(100).print(shown_table, *notes(table), sep="\n")
    text = markdown(table)
    if rules:
        chosen = [(row.label, side_by_side(row.results, Store(store).get)) for row in table]
        headings, lines = by_rule(chosen)
        refusals = sorted({f"{one.refusal}\n" for _, each in chosen for one in each if one.refusal})
        plain_console(120).print(plain_table(headings, lines, LEGEND), *refusals, sep="\n")
        text += "\n".join(["", f"{LEGEND.capitalize()}.\n", markdown_table(headings, lines), *refusals])
    write_bytes(out / "compare.md", text.encode())
    figure = comparison(table, f"{recipe.data}: seen and unseen environments", out / "compare.svg")
    print(f"figure: {figure}, table: {out / 'compare.md'}")
    if None in found:
        raise SettingError(
            f"{found.count(None)} of {len(found)} runs did not finish, and the table lacks them; the reasons "
            "are above. The same command goes on with them."
        )
    return table


DEMO = Recipe(
    data="colored_digits",
    density=0.02,
    penalty_from=0.25,
    sparsifier_options={"shrink_to": 0.2, "decide_at": 0.25},
)
"""The demo's run. With 1,200 samples the phase before the penalty has to be longer; see docs/tuning.md."""


def demo(out: Path = Path("out/demo"), seeds: tuple[int, ...] = (0, 1, 2)) -> list[Row]:
    """Show the point of the paper on bundled data, in under three minutes on two cores.

    Handwritten digits are coloured so that the colour predicts the label in both training environments,
    0.9 and 0.8 of the time, and misleads in the test environment. Dense invariant training overfits and
    leans on the colour after all; sparse invariant training does so less. The oracle never saw a colour.

    Args:
        out: folder for results and figure.
        seeds: one run of every method each.

    Returns:
        One row per method.
    """
    return compare(DEMO, seeds=seeds, store=out, out=out)
