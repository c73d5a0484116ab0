"""Tables in Markdown pages, filled in from result files: no number in them is typed."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from sparseirm.core import SettingError
from sparseirm.experiments import ablation, benchmarks
from sparseirm.experiments.ablation_study import AblationReport
from sparseirm.experiments.beside_paper import Study
from sparseirm.experiments.claims import claims, in_markdown
from sparseirm.experiments.grids import in_words, published
from sparseirm.experiments.report import found
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import METHOD_NAMES, by_width, grid, markdown, markdown_table, rows
from sparseirm.files import read_json, write_bytes
from sparseirm.registry import one_of
from sparseirm.runs import Result
from sparseirm.sparsifiers import SPARSIFIERS

MARK = re.compile(r"(<!-- (\w+) (\S+)((?: [\w=.,/]+)*) -->\n).*?(<!-- end -->)", re.DOTALL)

UNMEASURED = "Not measured yet: `make bench`, then `make tables`.\n"


def filled(page: str, root: Path) -> str:
    """The page with every table made anew.

    Args:
        page: Markdown; a table stands between ``<!-- KIND SOURCE field=value,value ... -->`` and
            ``<!-- end -->``, with KIND one of `KINDS`. It shows what has one of these values in every field;
            a value of several numbers is written ``0.9/0.7/0.1``.
        root: what SOURCE is relative to.

    Returns:
        The page with the same text around its tables.

    Raises:
        SettingError: if a table would be empty, or there is no such kind.
    """

    def table(found: re.Match[str]) -> str:
        begin, kind, source, rest, end = found.groups()
        return begin + KINDS[one_of("kind of table", kind, KINDS)](root, source, rest.split()) + end

    return MARK.sub(table, page)


def _stored(shape: Callable[..., str]) -> Callable[[Path, str, Sequence[str]], str]:
    def drawn(root: Path, source: str, wanted: Sequence[str]) -> str:
        """Runs of a store whose recipes have these values, in the order of methods and sparsifiers."""
        results = [each for each in Store(root / source).all() if _has(vars(each.recipe), wanted)]
        _need(results, source, wanted)
        results.sort(key=_order)
        return shape(rows(results))

    return drawn


def _read(root: Path, source: str, names: Sequence[str]) -> str:
    """A table of an ``ablation.json``, by its name in `sparseirm.experiments.ablation.sheets`."""
    tables = ablation.sheets(AblationReport.from_json(read_json(root / source)))
    return tables[one_of("ablation table", names[0], tables)].table


def _measured(root: Path, source: str, names: Sequence[str]) -> str:
    """A table of a ``bench.json``, which may be missing; ``curves`` brings the figure beside that file."""
    path = root / source
    words = benchmarks.markdown(read_json(path), names[0]) if path.exists() else UNMEASURED
    drawn = path.with_name("curves.svg")
    if names[0] == "curves" and drawn.exists():
        words += f"\n![time and memory of a step](../{drawn.relative_to(root).as_posix()})\n"
    return words


def _goals(root: Path, source: str, others: Sequence[str]) -> str:
    """What had a goal in a ``bench.json``, and beside it in others of its folder."""
    paths = [root / source, *((root / source).with_name(f"{name}.json") for name in others)]
    found = {path.stem: read_json(path) for path in paths if path.exists()}
    return benchmarks.goals(found) if found else UNMEASURED


def _published(_: Path, source: str, wanted: Sequence[str]) -> str:
    """Rows of a table of the paper, such as ``table8``: methods against widths, or training and test."""
    chosen = [row for row in published() if row["table"] == source and _has(row, wanted)]
    _need(chosen, source, wanted)
    widths = {row["width"] for row in chosen}
    columns = dict.fromkeys(_column(row, widths) for row in chosen)
    lines: dict[str, dict[str, str]] = {}
    for row in chosen:
        name, value = in_words(row)
        if lines.setdefault(name, {}).setdefault(_column(row, widths), value) != value:
            raise SettingError(f"two rows of {source} are {name}; name more fields.")
    cells = [(name, *(found.get(column, "") for column in columns)) for name, found in lines.items()]
    return markdown_table(("the paper", *columns), cells)


def _claims(root: Path, source: str, _: Sequence[str]) -> str:
    """What SparseIRM should do, and in how many of the paper's cells that a store has it does."""
    return in_markdown(claims(found(Study(Store(root / source).all()))))


def _column(row: Mapping[str, str], widths: Collection[str]) -> str:
    return f"width {row['width']}" if len(widths) > 1 else row["split"]


def _trials(root: Path, source: str, wanted: Sequence[str]) -> str:
    """Rows of a file of trials, sorted; ``columns=A,B`` names what is shown."""
    *wanted, shown = wanted
    columns = shown.removeprefix("columns=").split(",")
    with (root / source).open(newline="") as file:
        found = [row for row in csv.DictReader(file) if _has(row, wanted)]
    _need(found, source, wanted)
    lines = sorted([row[name].removesuffix(".0") for name in columns] for row in found)
    return markdown_table([name.replace("_", " ") for name in columns], lines)


KINDS = {
    "table": _stored(markdown),
    "grid": _stored(grid),
    "widths": _stored(by_width),
    "ablation": _read,
    "bench": _measured,
    "goals": _goals,
    "claims": _claims,
    "published": _published,
    "trials": _trials,
}
"""How a table is made, by the name it has in pages."""


def _order(result: Result) -> tuple[int, str, int, int]:
    recipe = result.recipe
    known = [*SPARSIFIERS]
    place = known.index(recipe.sparsifier) if recipe.sparsifier in known else len(known)
    return [*METHOD_NAMES].index(recipe.method), recipe.penalty or "", place, recipe.seed


def _has(fields: Mapping[str, object], wanted: Sequence[str]) -> bool:
    pairs = (pair.split("=") for pair in wanted)
    return all(_word(fields[name]) in values.split(",") for name, values in pairs)


def _word(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _need(found: Sequence[object], source: str, wanted: Sequence[str]) -> None:
    if not found:
        raise SettingError(f"nothing in {source} has {' '.join(wanted) or 'finished'}; run it first.")


def main(paths: Sequence[str]) -> None:
    """Fill the tables of the named pages in place."""
    for path in map(Path, paths):
        write_bytes(path, filled(path.read_text(), Path.cwd()).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
