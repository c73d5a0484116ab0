"""Is everything here that a run needs? Versions, devices, arithmetic, folders and data are tried."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from sparseirm.core import SettingError
from sparseirm.data.sources import DATA_VARIABLE, IDX_FILES, data_folder, load_images
from sparseirm.experiments.executors import cores
from sparseirm.files import locked, read_json, write_json
from sparseirm.recipe import Recipe
from sparseirm.runs import CHECKPOINT_VARIABLE, environment, run
from sparseirm.training.precision import fast_matmul

GIGA = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        found: what it is like here.
        trouble: whether runs will fail for it; what is merely absent is none.
    """

    what: str
    found: str
    trouble: bool = False

    def __str__(self) -> str:
        return f"{'!!' if self.trouble else 'ok'}  {self.what:<14} {self.found}"


def doctor(data_root: str | None = None, out: Path = Path()) -> list[Finding]:
    """Look for what would make runs fail here: versions, devices, arithmetic, folders, data.

    Trains three steps on bundled data as well. Ends with exit code 2 if something is wrong.

    Example: sparseirm doctor

    Args:
        data_root: folder of the data files; the variable SPARSEIRM_DATA otherwise.
        out: folder where results are to go.

    Returns:
        All that was looked at.

    Raises:
        SettingError: if something is wrong; everything has been printed by then.
    """
    findings = [*_versions(), *_extras(), *_arithmetic(), _training(), _output(out), *_data(data_root)]
    print(*findings, sep="\n")
    wrong = [finding.what for finding in findings if finding.trouble]
    if wrong:
        raise SettingError(f"{len(wrong)} of {len(findings)} are not in order: {', '.join(wrong)}.")
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Finding("sparseirm", metadata.version("sparseirm"))
    for needed in _requirements():
        if needed.marker is None:
            yield _version(needed)


def _version(needed: Requirement) -> Finding:
    installed = _installed(needed.name)
    if installed is None:
        return Finding(needed.name, f"missing: pip install '{needed}'", trouble=True)
    fits = needed.specifier.contains(installed, prereleases=True)
    advice = "" if fits else f", but {needed.specifier} is needed: pip install '{needed}'"
    return Finding(needed.name, installed + advice, trouble=not fits)


def _extras() -> Iterator[Finding]:
    for extra in sorted(metadata.metadata("sparseirm").get_all("Provides-Extra") or []):
        belongs = [r.name for r in _requirements() if r.marker and r.marker.evaluate({"extra": extra})]
        missing = [name for name in belongs if _installed(name) is None]
        absent = f"absent ({', '.join(missing)}): pip install 'sparseirm[{extra}]'"
        yield Finding(f"[{extra}]", absent if missing else "present")


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires("sparseirm") or []]


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _arithmetic() -> Iterator[Finding]:
    here = environment(torch.device("cpu"))
    yield Finding("processor", f"{here['device']}, {cores()} cores, {here['threads']} threads")
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    gpus += ["mps"] * torch.backends.mps.is_available()
    yield Finding("accelerators", ", ".join(gpus) or "none: runs use the processor")
    noise = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 256, generator=noise), torch.randn(256, 256, generator=noise)
    with fast_matmul():
        product = a @ b
    truth = a.double() @ b.double()
    error = float((product.double() - truth).norm() / truth.norm())
    backends: Any = torch.backends
    library = "MKL" if backends.mkl.is_available() else "no MKL"
    onednn = "oneDNN" if backends.mkldnn.is_available() else "no oneDNN"
    found = f"{library}, {onednn}; training takes {here['matmul']}; relative error {error:.0e}"
    yield Finding("products", found, trouble=not error < 1e-5)


def _training() -> Finding:
    try:
        result = run(Recipe(width=4, n_train=40, steps=3, eval_every=3))
    except Exception as error:
        return Finding("training", f"fails: {type(error).__name__}: {error}", trouble=True)
    return Finding("training", f"{result.recipe.steps} steps on bundled data, {result.seconds:.1f} s")


def _output(out: Path) -> Finding:
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there) as folder, locked(Path(folder, "lock")) as mine:
            write_json(Path(folder, "file"), {"written": True})
            works = mine and read_json(Path(folder, "file"))["written"]
            free = shutil.disk_usage(folder).free / GIGA
    except (OSError, SettingError) as error:
        return Finding("results", f"{out.resolve()} cannot be used: {error}", trouble=True)
    place = f"{out.resolve()}{'' if there == out else ' (will be made)'}"
    where = f"{place}: {'files and locks work' if works else 'locks do not work'}, {free:.0f} GB free"
    pause = os.environ.get(CHECKPOINT_VARIABLE)
    return Finding(
        "results", where + (f", {CHECKPOINT_VARIABLE}={pause}" if pause else ""), trouble=not works
    )


def _data(data_root: str | None) -> Iterator[Finding]:
    folder = data_folder(data_root)
    named = data_root or os.environ.get(DATA_VARIABLE)
    if named and not folder.is_dir():
        yield Finding("data", f"{folder} is no folder; name another, or unset {DATA_VARIABLE}", trouble=True)
        return
    yield Finding("data", f"{folder}{'' if named else ' (the default)'}")
    for collection, source in (("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")):
        if not all((folder / collection / "raw" / file).is_file() for file in IDX_FILES):
            yield Finding(collection, "absent: downloaded when asked for")
            continue
        try:
            counts = [len(load_images(part, data_root)[1]) for part in (source, f"{source}_test")]
        except SettingError as error:
            yield Finding(collection, str(error), trouble=True)
        else:
            yield Finding(collection, f"{counts[0]} and {counts[1]} images")
