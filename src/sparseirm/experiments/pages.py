"""Tables in Markdown pages, filled in from a result store: no number in the documentation is typed."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sparseirm.core import SettingError
from sparseirm.experiments import benchmarks
from sparseirm.experiments.ablation import sheets
from sparseirm.experiments.ablation_study import AblationReport
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import METHOD_NAMES, grid, markdown, rows
from sparseirm.files import read_json, write_bytes
from sparseirm.registry import one_of
from sparseirm.runs import Result
from sparseirm.sparsifiers import SPARSIFIERS

MARK = re.compile(r"(<!-- (table|grid) (\S+)((?: \w+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)

ABLATION = re.compile(r"(<!-- ablation (\S+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

BENCH = re.compile(r"(<!-- bench (\S+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

UNMEASURED = "Not measured yet: `make bench`, then `make tables`.\n"

SHAPES = {"table": markdown, "grid": grid}


def filled(page: str, root: Path) -> str:
    """The page with every table made anew.

    Args:
        page: Markdown; a table stands between ``<!-- table STORE field=value ... -->`` and ``<!-- end -->``,
            and shows the runs of that store whose recipes have these values, in the order of `METHOD_NAMES`.
            ``grid`` instead of ``table`` sets sparsifiers against densities. ``<!-- ablation FILE NAME -->``
            is a table of `sparseirm.experiments.ablation.sheets`, from an ``ablation.json``; ``bench`` one of
            `sparseirm.experiments.benchmarks.sheets`, from a ``bench.json``, which may be missing; with
            ``curves`` comes the figure beside that file.
        root: what STORE is relative to.

    Returns:
        The page with the same text around its tables.

    Raises:
        SettingError: if a table would be empty.
    """

    def sheet(found: re.Match[str]) -> str:
        report = AblationReport.from_json(read_json(root / found[2]))
        tables = sheets(report)
        return f"{found[1]}{tables[one_of('ablation table', found[3], tables)].table}{found[4]}"

    def measured(found: re.Match[str]) -> str:
        path = root / found[2]
        words = benchmarks.markdown(read_json(path), found[3]) if path.exists() else UNMEASURED
        drawn = path.with_name("curves.svg")
        if found[3] == "curves" and drawn.exists():
            words += f"\n![time and memory of a step](../{drawn.relative_to(root).as_posix()})\n"
        return f"{found[1]}{words}{found[4]}"

    def table(found: re.Match[str]) -> str:
        wanted = dict(pair.split("=") for pair in found[4].split())
        results = [result for result in Store(root / found[3]).all() if _has(result, wanted)]
        if not results:
            raise SettingError(f"no run in {found[3]} has {found[4].strip() or 'finished'}; run it first.")
        results.sort(key=_order)
        return f"{found[1]}{SHAPES[found[2]](rows(results))}{found[5]}"

    return BENCH.sub(measured, ABLATION.sub(sheet, MARK.sub(table, page)))


def _order(result: Result) -> tuple[int, str, int, int]:
    recipe = result.recipe
    known = [*SPARSIFIERS]
    place = known.index(recipe.sparsifier) if recipe.sparsifier in known else len(known)
    return [*METHOD_NAMES].index(recipe.method), recipe.penalty or "", place, recipe.seed


def _has(result: Result, wanted: dict[str, str]) -> bool:
    return all(str(getattr(result.recipe, name)) == value for name, value in wanted.items())


def main(paths: Sequence[str]) -> None:
    """Fill the tables of the named pages in place."""
    for path in map(Path, paths):
        write_bytes(path, filled(path.read_text(), Path.cwd()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
