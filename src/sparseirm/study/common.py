"""What fits of tables and of images share: checks, the output folder, and what is said on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparseirm.core import SettingError
from sparseirm.files import write_bytes, write_json
from sparseirm.monitor import Finding
from sparseirm.runs import check_free, content, held
from sparseirm.study.choice import Choice, EnvScore, Standing
from sparseirm.study.report import page

RESULT, REPORT = "result.json", "report.html"


def check_output(output: Path, data: Path) -> None:
    """Refuse to write predictions over the data or any other file, or to a folder."""
    if output.exists() and output.samefile(data):
        raise SettingError(f"`output` {output} is the data themselves; choose another file.")
    if output.is_dir():
        raise SettingError(f"`output` {output} is a folder; name a file in it.")
    if output.exists():
        raise SettingError(f"`output` {output} exists already; choose another name, or remove it first.")


def check_numbers(seeds: Sequence[int], steps: int | None, rows: int = 100) -> None:
    """Refuse numbers out of their range."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingError(f"`seeds` must name each one once, and at least one; got {list(seeds)}.")
    if steps is not None and steps < 1:
        raise SettingError(f"`steps` must be at least 1; got {steps}.")
    if rows < 100:
        raise SettingError(f"`rows` must be at least 100; got {rows}.")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """The output folder, made if it is missing, in nobody else's hands, as it was if something fails."""
    check_free(out)
    with held(out):
        check_free(out)  # another process may have filled it before this one held it
        try:
            yield
        except BaseException:
            for path in content(out):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise


def say_table(console: Console, table: Sequence[Standing], choice: Choice, unit: str) -> None:
    """Print how each candidate did, with a mark at the one taken."""
    shown = Table(title=f"{unit}, mean over environments (worst)")
    for heading in ("method", "left-out envs", "left-out rows", "test", "uneven", "disagreement"):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for one in table:
        mark = "> " if one is choice.taken else "  "
        shown.add_row(
            mark + one.candidate.label,
            *(_mean_and_worst(scores) for scores in (one.held_out, one.fresh, one.tested)),
            f"{one.uneven:z.2f}",
            f"{one.disagreement:z.2f}",
        )
    console.print(shown)


def say_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print the monitor's findings."""
    colours = {"good": "green", "note": "blue", "warning": "yellow", "problem": "red"}
    for finding in findings:
        told = f": {finding.seen} {finding.do}".removesuffix(" Nothing.")
        console.print(Text.assemble((finding.severity, colours[finding.severity]), told))


def write_result(out: Path, result: dict[str, Any]) -> None:
    """Write the result and the report that is made of it."""
    write_json(out / RESULT, result)
    write_bytes(out / REPORT, page(result))


def say_files(console: Console, out: Path, seconds: float) -> None:
    """Print where everything is."""
    console.print(f"model and {RESULT}: {out} ({seconds:.0f} s)", soft_wrap=True)
    console.print(f"to read: {out / REPORT}", soft_wrap=True)


def _mean_and_worst(scores: Sequence[EnvScore]) -> str:
    if not scores:
        return "-"
    each = [score.score for score in scores]
    return f"{np.mean(each):.3f} ({min(each):.3f})"
