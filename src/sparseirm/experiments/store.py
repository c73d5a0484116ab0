"""The result store: one small JSON file per run, named by the key of its recipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparseirm.files import locked, read_json, remove_parts, write_json
from sparseirm.recipe import Recipe
from sparseirm.runs import Result


@dataclass(frozen=True)
class Store:
    """A folder of results. Several processes may use it at once.

    ``runs/KEY.json`` are finished runs, ``failed/KEY.json`` the reasons of failures (never reused), and
    ``work/KEY/`` the checkpoints of runs in flight, whose lock dies with the process that holds it.

    Attributes:
        root: the folder; made when the first result is written.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> store.get(Recipe()) is None
        True
    """

    root: Path

    def get(self, recipe: Recipe) -> Result | None:
        """The result of a recipe, or None if it has not finished."""
        path = self._path("runs", recipe)
        return Result.from_json(read_json(path)) if path.exists() else None

    def put(self, result: Result) -> None:
        """Add a finished run, and forget an earlier failure of it."""
        write_json(self._path("runs", result.recipe), result.to_json())
        self._path("failed", result.recipe).unlink(missing_ok=True)

    def fail(self, recipe: Recipe, reason: str) -> None:
        """Record why a run failed."""
        note = {"recipe": recipe.resolved().to_json(), "status": "failed", "reason": reason}
        write_json(self._path("failed", recipe), note)

    def failure(self, recipe: Recipe) -> str | None:
        """Why the last attempt of a recipe failed, or None."""
        path = self._path("failed", recipe)
        return str(read_json(path)["reason"]) if path.exists() else None

    def all(self) -> list[Result]:
        """Every finished run."""
        return [Result.from_json(read_json(path)) for path in sorted((self.root / "runs").glob("*.json"))]

    @contextmanager
    def claim(self, recipe: Recipe) -> Iterator[Path | None]:
        """Take a run for this process: its working folder, or None if another process has it."""
        folder = self.root / "work" / recipe.key
        with locked(folder / "lock") as mine:
            if mine:
                for kind in ("runs", "failed"):
                    remove_parts(self._path(kind, recipe))
            yield folder if mine else None

    def clear(self, recipe: Recipe) -> None:
        """Remove the working folder of a run whose result is stored; to be called under its `claim`."""
        shutil.rmtree(self.root / "work" / recipe.key, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the working folders of finished runs: a process killed at the very end leaves one."""
        for folder in (self.root / "work").glob("*"):
            if (self.root / "runs" / f"{folder.name}.json").exists():
                with locked(folder / "lock") as mine:
                    if mine:
                        shutil.rmtree(folder, ignore_errors=True)

    def _path(self, kind: str, recipe: Recipe) -> Path:
        return self.root / kind / f"{recipe.key}.json"
