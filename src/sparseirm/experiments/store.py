"""The result store: one small JSON file per run, named by the key of its recipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sparseirm.core import SettingError
from sparseirm.files import is_locked, locked, read_json, remove_parts, write_json
from sparseirm.recipe import Recipe
from sparseirm.runs import RESULTS, Result, environment

ALIVE = 60.0
"""Seconds without a sign of life after which a run counts as stopped."""


@dataclass(frozen=True)
class Store:
    """A folder of results. Several processes, on several machines, may use it at once.

    ``runs/KEY.json`` are finished runs and ``failed/KEY.json`` the reasons of failures, which are never
    reused: such a run is tried again. ``work/`` holds the checkpoints of runs in flight, whose lock dies with
    the process that holds it. A result of another version of the code (`sparseirm.runs.RESULTS`) counts as
    missing, and the next run takes its place.

    Attributes:
        root: the folder; made when the first result is written.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()))
        >>> store.get(Recipe()) is None
        True
    """

    root: Path

    def __post_init__(self) -> None:
        """Refuse a file.

        Raises:
            SettingError: if the root, or a folder it would lie in, is a file.
        """
        for path in (self.root, *self.root.parents):
            if path.is_file():
                raise SettingError(
                    f"`store` must be a folder; got {str(self.root)!r}, and {path} is a file. Name another."
                )

    def get(self, recipe: Recipe) -> Result | None:
        """The result of a recipe, or None if it has not finished in this version of the code."""
        path = self._path("runs", recipe)
        result = Result.from_json(read_json(path)) if path.exists() else None
        return result if result and result.version == RESULTS else None

    def put(self, result: Result) -> None:
        """Add a finished run, and forget an earlier failure of it."""
        write_json(self._path("runs", result.recipe), result.to_json())
        self._path("failed", result.recipe).unlink(missing_ok=True)

    def fail(self, recipe: Recipe, reason: str) -> None:
        """Record why a run failed."""
        note = {
            "recipe": recipe.resolved().to_json(),
            "status": "failed",
            "reason": reason,
            "environment": environment(torch.device("cpu")),
            "version": RESULTS,
        }
        write_json(self._path("failed", recipe), note)

    def all(self) -> list[Result]:
        """Every finished run of this version of the code."""
        return [result for result in self._results() if result.version == RESULTS]

    def outdated(self) -> list[Result]:
        """Every finished run of another version, which counts as missing."""
        return [result for result in self._results() if result.version != RESULTS]

    def failures(self) -> list[tuple[Recipe, str]]:
        """Recipes whose last attempt failed, and why."""
        notes = [read_json(path) for path in sorted((self.root / "failed").glob("*.json"))]
        return [(Recipe.from_json(note["recipe"]), str(note["reason"])) for note in notes]

    @contextmanager
    def claim(self, recipe: Recipe) -> Iterator[Path | None]:
        """Take a run for this process: its working folder, or None if another process has it."""
        folder = self._work(recipe)
        with locked(folder / "lock") as mine:
            if mine:
                for kind in ("runs", "failed"):
                    remove_parts(self._path(kind, recipe))
            yield folder if mine else None

    def claimed(self, recipe: Recipe) -> bool:
        """Whether a process has a run at this moment (see `claim`); false as soon as it ends, or dies."""
        return is_locked(self._work(recipe) / "lock")

    def beat(self, recipe: Recipe, step: int, total: int) -> None:
        """Say that a run is alive and how far it is; to be called under its `claim`."""
        write_json(self._work(recipe) / "progress.json", {"step": step, "total": total})

    def over(self, recipe: Recipe) -> float | None:
        """How much of a run in flight is over, in [0, 1], in whichever process; None if it is not running."""
        path = self._work(recipe) / "progress.json"
        try:
            alive = time.time() - path.stat().st_mtime < ALIVE
            beat = read_json(path) if alive else None
        except FileNotFoundError:
            return None
        return None if beat is None else float(beat["step"] / beat.get("total", recipe.total_steps))

    def clear(self, recipe: Recipe) -> None:
        """Remove the working folder of a run whose result is stored; to be called under its `claim`."""
        shutil.rmtree(self._work(recipe), ignore_errors=True)

    def _results(self) -> Iterator[Result]:
        for path in sorted((self.root / "runs").glob("*.json")):
            yield Result.from_json(read_json(path))

    def _work(self, recipe: Recipe) -> Path:
        return self.root / "work" / f"{recipe.key}-{RESULTS}"

    def tidy(self) -> None:
        """Remove the working folders of finished runs: a process killed at the very end leaves one."""
        for folder in (self.root / "work").glob("*"):
            path = self.root / "runs" / f"{folder.name.removesuffix(f'-{RESULTS}')}.json"
            if path.exists() and read_json(path).get("version", 1) == RESULTS:
                with locked(folder / "lock") as mine:
                    if mine:
                        shutil.rmtree(folder, ignore_errors=True)

    def _path(self, kind: str, recipe: Recipe) -> Path:
        return self.root / kind / f"{recipe.key}.json"
