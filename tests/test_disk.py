"""Inputs on disk train and evaluate like inputs in memory."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from makers import SAMPLES, Problem, assert_same_bits
from sparseirm.core import SettingError
from sparseirm.data import Batches, Split, disk, mapped
from sparseirm.data.disk import on_disk
from sparseirm.evaluation.metrics import deployed, evaluate
from sparseirm.losses import BINARY


def as_array(x: Tensor, folder: Path) -> Tensor:
    np.save(folder / "x.npy", x.numpy())
    return mapped(folder / "x.npy")


def as_tensor_file(x: Tensor, folder: Path) -> Tensor:
    save_file({"x": x}, folder / "x.safetensors")
    return load_file(folder / "x.safetensors")["x"]


def as_scratch(x: Tensor, folder: Path) -> Tensor:
    scratch = on_disk(tuple(x.shape))
    scratch[:] = x
    return scratch


def private_memory() -> int:
    """Bytes of this process that are no file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        pytest.skip("this system does not say how much memory of a process is no file")


@pytest.mark.parametrize(
    ("place", "batch_size"),
    [
        *((as_array, size) for size in (None, 7)),
        *((as_scratch, size) for size in (None, 7)),
        (as_tensor_file, 7),  # all at once they are not aligned as in memory, and products round differently
    ],
)
def test_training_on_inputs_on_disk_ends_with_the_same_bits(
    place: Callable[[Tensor, Path], Tensor], batch_size: int | None, tmp_path: Path
) -> None:
    on_file = replace(SAMPLES, x=place(SAMPLES.x, tmp_path))
    inside = Problem(batch_size=batch_size).train()
    outside = Problem(batch=on_file, batch_size=batch_size).train()
    assert_same_bits(inside.tensors, outside.tensors)
    scores = [
        evaluate(
            run.network, run.state, deployed(run.sparsifier, run.state), Split(batch, ("a", "b")), BINARY
        )
        for run, batch in ((inside, SAMPLES), (outside, on_file))
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("place", [as_array, as_tensor_file, as_scratch])
def test_minibatches_leave_the_rest_on_disk(place: Callable[[Tensor, Path], Tensor], tmp_path: Path) -> None:
    n, inputs = 4000, 4096  # 64 MB
    env = torch.arange(n) % 2
    source = torch.ones(n, inputs) * torch.arange(n)[:, None]
    x = place(source, tmp_path)
    batches = Batches(replace(SAMPLES, x=x, y=env, env=env), 2, batch_size=20)
    before = private_memory()
    for step in range(batches.per_epoch):
        batch = batches.at(step)
        assert torch.equal(batch.x[:, 0].long() % 2, batch.env)
    assert private_memory() - before < source.nbytes / 4


def test_the_file_stays_as_it_is(tmp_path: Path) -> None:
    x = as_array(torch.zeros(3), tmp_path)
    x += 1
    assert not np.load(tmp_path / "x.npy").any()


@pytest.mark.parametrize("content", [b"", b"no array", np.array([{"a": 1}], dtype=object)])
def test_what_is_no_array_of_numbers_is_refused(content: object, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "x.npy").write_bytes(content)
    else:
        np.save(tmp_path / "x.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"x\.npy cannot be mapped"):
        mapped(tmp_path / "x.npy")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved on this system")
def test_a_disk_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SettingError, match=r"no room .* TMPDIR"):
        on_disk((2, 3))


def test_a_temporary_file_is_gone_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = on_disk((2, 3))
    assert not list(tmp_path.iterdir()) and x.shape == (2, 3)


@pytest.mark.parametrize(("memory", "processes"), [(None, None), (10**6, 1), (6 * 12 * 64 * 100 + 1, 3)])
def test_processes_hold_images_in_half_of_the_memory(
    memory: int | None, processes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_memory", lambda: memory)
    n = 100 if processes != 1 else 10**6
    assert disk.holders(n, 8) == processes
