"""The figures of the documentation, drawn from committed results: ``make tables`` draws them anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sparseirm.core import SettingError
from sparseirm.experiments.figures import accuracy, over_steps, saved
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import Row, rows
from sparseirm.files import canonical, digest
from sparseirm.runs import Point, Result

DENSE, SPARSE = "#d1495b", "#00798c"


def gap(split: str) -> Callable[[Point], float]:
    """Largest minus smallest risk of the environments of a split at an evaluation, in nats."""
    return lambda point: max(risks := point.scores[split].risks.values()) - min(risks)


def rex_runs(store: Store) -> tuple[Row, Row]:
    """Dense and sparse training with REx on ColoredMNIST, as in the first table of the reproduction.

    Args:
        store: the results.

    Returns:
        Two rows: method irm, then sparseirm with ProbMask and the automatic budget.

    Raises:
        SettingError: if the store lacks one of them.
    """

    def runs(method: str, sparsifier: str | None) -> Row:
        wanted = {
            "data": "colored_mnist",
            "n_train": 20_000,
            "width": 390,
            "settings": "ours",
            "density": None,
        }
        wanted |= {"method": method, "penalty": "rex", "sparsifier": sparsifier}
        found = [
            result
            for result in store.all()
            if all(getattr(result.recipe, name) == value for name, value in wanted.items())
        ]
        if not found:
            raise SettingError(f"the store {store.root} has no run of {method} with rex on ColoredMNIST.")
        return rows(found)[0]

    return runs("irm", None), runs("sparseirm", "probmask")


def overfitting(dense: Row, sparse: Row, path: Path) -> Path:
    """Draw how the penalty is met: on the training samples, and on fresh samples of the same environments.

    Args:
        dense: runs of dense invariant training.
        sparse: runs of sparse invariant training.
        path: where the figure goes; the ending chooses the format.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, colour in ((dense, DENSE), (sparse, SPARSE)):
        for split, style in (("train", "-"), ("val", ":")):
            words = "training samples" if split == "train" else "fresh ones"
            over_steps(left, row.results, gap(split), colour, style, f"{row.label}, {words}")
        for split, style in (("train", "-"), ("test", "--")):
            over_steps(right, row.results, accuracy(split), colour, style, f"{row.label}, {split}")
    left.set(yscale="log", xlabel="step", ylabel="difference of the environments' risks, nats")
    left.set_title("Is the penalty met on samples never seen?", loc="left", fontsize=11)
    right.set(xlabel="step", ylabel="accuracy, %", ylim=(0, 100))
    right.set_title("What that is worth in a new environment", loc="left", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8)
    about = {"Description": origin((*dense.results, *sparse.results))}
    return saved(figure, path, dpi=150, about=about)


def origin(results: Sequence[Result]) -> str:
    """What a figure says about the results it shows, so that one can see when it is outdated."""
    return "drawn from results " + digest(canonical([result.to_json() for result in results]).encode())[:16]


def main(arguments: Sequence[str]) -> None:
    """Draw all figures below the folder named, from the results below it."""
    root = Path(arguments[0] if arguments else ".")
    dense, sparse = rex_runs(Store(root / "results"))
    print(overfitting(dense, sparse, root / "docs" / "figures" / "overfitting.svg"))


if __name__ == "__main__":
    main(sys.argv[1:])
