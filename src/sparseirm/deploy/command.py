"""A trained model written for use elsewhere, as one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from sparseirm.core import SettingError
from sparseirm.deploy.compact import Compaction, compact
from sparseirm.deploy.onnx_file import to_onnx
from sparseirm.deploy.packed import dense_bytes, load_compact, read_compact, save_compact
from sparseirm.deploy.speed import forms, latencies
from sparseirm.deploy.tables import load_table, samples_like, save_table, table_model
from sparseirm.estimator import SETTINGS, Estimator, load
from sparseirm.files import read_tensors, write_bytes
from sparseirm.models import maskable
from sparseirm.runs import MODEL, load_model


@dataclass(frozen=True)
class Export:
    """What was exported, and what was measured on this machine.

    Attributes:
        compaction: the module without dead units, and what that gained.
        kept: number of maskable weights that are not zero.
        n_weights: number of maskable weights.
        dense_bytes: bytes of all numbers of the dense module.
        file_bytes: bytes of the file, or None if none was written.
        milliseconds: latency by batch size and form (``dense``, ``compact``, ``sparse``).
    """

    compaction: Compaction
    kept: int
    n_weights: int
    dense_bytes: int
    file_bytes: int | None
    milliseconds: dict[int, dict[str, float]]


def export(
    source: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path | None = None,
    batch_sizes: tuple[int, ...] = (1, 64),
) -> Export:
    """Write a trained model for use elsewhere, and measure how large and how fast it is.

    ``.onnx`` holds the network without dead units, for any runtime; it is written only if ONNX Runtime gives
    the same outputs. ``.safetensors`` holds one bit per weight and the values that are kept, for
    `sparseirm.deploy.load_compact`. Neither needs the training data. Of a table's model the ONNX file takes
    the values of the columns in use, as its metadata tells; `sparseirm.deploy.load_table` reads the other.

    Prints size and latency of the dense network, of the one without dead units, and of that one with sparse
    matrices, on this machine and with its default number of threads.

    Example: sparseirm export out/rex --out rex.onnx

    Args:
        source: folder of a finished `train --out` or `fit --out`, or a file written by this command as
            .safetensors.
        out: the file to write, ending in .onnx or .safetensors; nothing is written without it.
        batch_sizes: samples per batch to measure with.

    Returns:
        Sizes, differences and latencies.
    """
    if out is not None:
        _check_name(out)
    if any(size < 1 for size in batch_sizes):
        raise SettingError(f"`batch_sizes` must be at least 1; got {', '.join(map(str, batch_sizes))}.")
    source_model = _opened(source)
    module, small, input_shape = source_model.module, source_model.compaction, source_model.input_shape
    size = source_model.writers[out.suffix](out) if out else None
    weights = [module.get_parameter(name) for name in maskable(module).names]
    found = forms(module, small.module)
    report = Export(
        compaction=small,
        kept=sum(int(weight.count_nonzero()) for weight in weights),
        n_weights=sum(weight.numel() for weight in weights),
        dense_bytes=dense_bytes(module),
        file_bytes=size,
        milliseconds={n: latencies(found, input_shape, n) for n in batch_sizes},
    )
    _show(report, out)
    return report


ENDINGS = (".onnx", ".safetensors")


@dataclass(frozen=True)
class _Opened:
    """A model that can be written: the module, the same without dead units, and how each file is made."""

    module: nn.Module
    compaction: Compaction
    input_shape: tuple[int, ...]
    writers: dict[str, Callable[[Path], int]]


def _opened(source: Path) -> _Opened:
    """The model of a folder or a compact file."""
    if source.is_file():
        note = read_compact(source)[1]
        return _table(load_table(source)) if "estimator" in note else _network(load_compact(source), note)
    if (source / SETTINGS).is_file():
        return _table(load(source))
    if not (source / MODEL).is_file():
        raise SettingError(
            f"`source` {str(source)!r} holds no {MODEL}; name a folder of `train --out` or `fit --out`."
        )
    return _network(load_model(source), read_tensors(source / MODEL)[1])


def _network(module: nn.Module, note: dict[str, Any]) -> _Opened:
    input_shape = tuple(note["input_shape"])
    small = compact(module, input_shape)

    def onnx(path: Path) -> int:
        return _write(path, to_onnx(small.module, input_shape, note)[0])

    def packed(path: Path) -> int:
        return save_compact(path, module, note=note)

    return _Opened(module, small, input_shape, dict(zip(ENDINGS, (onnx, packed), strict=True)))


def _table(estimator: Estimator) -> _Opened:
    model = table_model(estimator)

    def onnx(path: Path) -> int:
        return _write(path, to_onnx(model.whole, (), model.note, samples_like(model, 64))[0])

    def packed(path: Path) -> int:
        return save_table(path, estimator)

    shape = (sum(estimator.encoding_.blocks),)
    return _Opened(model.network, model.compaction, shape, dict(zip(ENDINGS, (onnx, packed), strict=True)))


def _write(path: Path, content: bytes) -> int:
    write_bytes(path, content)
    return len(content)


def _check_name(out: Path) -> None:
    if out.suffix not in ENDINGS:
        raise SettingError(f"`out` must end in {' or '.join(ENDINGS)}; got {str(out)!r}.")
    if out.exists():
        raise SettingError(f"`out` {str(out)!r} exists already; choose another name.")


def _show(report: Export, out: Path | None) -> None:
    console, small = Console(width=100, markup=False), report.compaction
    hidden = ", ".join(f"{name}: {after} of {before}" for name, (before, after) in small.units.items())
    lines = [
        f"kept {report.kept} of {report.n_weights} weights (density {report.kept / report.n_weights:.3g})",
        f"units left after removing dead ones: {hidden}",
        f"parameters {small.parameters[0]} -> {small.parameters[1]} ({100 * small.removed:.1f} % removed)",
        f"largest difference of an output: {small.difference64:.1e} in float64, "
        f"{small.difference32:.1e} in float32",
    ]
    if out:
        share = 100 * (report.file_bytes or 0) / report.dense_bytes
        lines.append(
            f"{out}: {report.file_bytes} bytes, {share:.1f} % of the {report.dense_bytes} dense ones"
        )
    console.print(*lines, sep="\n", highlight=False, soft_wrap=True)
    if report.milliseconds:
        table = Table(
            "batch size", *next(iter(report.milliseconds.values())), title="milliseconds per batch, here"
        )
        for batch_size, times in report.milliseconds.items():
            table.add_row(str(batch_size), *(f"{time:.3f}" for time in times.values()))
        console.print(table)
