"""Claims about files: whole or absent, and never read as something they were not written as."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseirm.core import SettingError
from sparseirm.files import (
    DamagedFileError,
    canonical,
    locked,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)

PAYLOAD = {"name": "a run", "steps": 10999, "lr": 6e-4, "scores": [0.5, 1, True, None], "part": {"é": "ü"}}
TENSORS = {
    "weights": torch.tensor([[1.5, -2.0, 3.0], [0.0, 1e-30, 7.0]]),
    "kept/mask": torch.tensor([True, False]),
    "steps": torch.tensor(3),
    "multiplier": torch.tensor(0.25, dtype=torch.float64),
}
NOTE = {"step": 10999, "recipe": {"lr": 6e-4}}
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def write_both(folder: Path) -> dict[str, Callable[[Path], Any]]:
    """One file of each kind; their names, and how to read them in a form that can be compared."""
    write_json(folder / "json", PAYLOAD)
    write_tensors(folder / "tensors", TENSORS, NOTE)
    return {"json": read_json, "tensors": readable_tensors}


def readable_tensors(path: Path) -> Any:
    tensors, note = read_tensors(path)
    return {name: (str(t.dtype), t.tolist()) for name, t in tensors.items()}, note


# Round trip.


@settings(max_examples=40)
@given(payload=st.dictionaries(st.text().filter(lambda key: key != "sha256"), plain, max_size=4))
def test_json_is_read_as_it_was_written(payload: dict[str, Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, payload)
    assert read_json(path) == payload


def test_tensors_and_note_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "deep" / "file", TENSORS, NOTE)
    tensors, note = read_tensors(tmp_path / "deep" / "file")
    assert note == NOTE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_same_tensors_and_note_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "abcdefgh":
        write_tensors(tmp_path / name, TENSORS, NOTE)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_others_can_read_our_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    write_tensors(tmp_path / "file", TENSORS, NOTE)
    for name, tensor in load_file(tmp_path / "file").items():
        assert torch.equal(tensor, TENSORS[name])


def test_no_tensors_at_all_can_be_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {}, {})
    assert read_tensors(tmp_path / "file") == ({}, {})


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical({"b": [1, {"d": 2, "c": 3}], "a": 4}) == '{"a":4,"b":[1,{"c":3,"d":2}]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_json_has_no_words_for_are_refused_and_the_old_file_stays(
    value: float, tmp_path: Path
) -> None:
    write_json(tmp_path / "file", PAYLOAD)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"risk": value})
    assert read_json(tmp_path / "file") == PAYLOAD


# Atomic writing.


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(28, "No space left on device"), SettingError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    fails: str,
    error: BaseException,
    seen: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    write_bytes(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(seen):
            write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_who_may_read_a_file_is_up_to_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"private")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_the_new_file_is_on_disk_before_it_takes_the_old_one_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, o=original: (done.append(n), o(*a)))
    write_bytes(tmp_path / "file", b"content")
    assert done == ["fsync", "replace"]


# Damage.


@pytest.mark.parametrize("name", ["json", "tensors"])
@pytest.mark.parametrize("turn", [0, 5])
def test_no_flipped_bit_is_ever_read_as_other_content(name: str, turn: int, tmp_path: Path) -> None:
    read = write_both(tmp_path)[name]
    content, written = (tmp_path / name).read_bytes(), read(tmp_path / name)
    broken = tmp_path / "broken"
    refused = 0
    for position in range(len(content)):
        flipped = bytes([content[position] ^ 1 << (position + turn) % 8])
        broken.write_bytes(content[:position] + flipped + content[position + 1 :])
        try:
            assert read(broken) == written
        except DamagedFileError:
            refused += 1
    assert refused > 0.95 * len(content)  # an E for an e in a number means the same


@pytest.mark.parametrize("name", ["json", "tensors"])
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    read = write_both(tmp_path)[name]
    content = (tmp_path / name).read_bytes()
    for length in range(len(content.rstrip())):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(DamagedFileError, match=rf"{name} is damaged: .* Delete it and run the same"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["json", "tensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[]",
        b"3",
        b'{"a": 1}',
        b'{"a": 1, "sha256": "0"}',
        b'{"a": 1e999, "sha256": "0"}',
        b'{"a": NaN, "sha256": "0"}',
        b"[" * 100_000,
        pickle.dumps({"weights": [1.0]}),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_we_did_not_write_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    read = write_both(tmp_path)[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{name} is damaged"):
        read(tmp_path / name)


class Trap:
    """Says so when it is unpickled."""

    sprung = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, "sprung", True)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    torch.save({"weights": Trap()}, tmp_path / "file")
    for read in (read_json, read_tensors):
        with pytest.raises(DamagedFileError):
            read(tmp_path / "file")
    assert not Trap.sprung


def test_safetensors_of_others_have_no_checksum_and_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "file")
    with pytest.raises(DamagedFileError, match="not a safetensors file with a checksum"):
        read_tensors(tmp_path / "file")


def test_a_changed_value_with_sound_syntax_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "file", PAYLOAD)
    payload = json.loads((tmp_path / "file").read_text())
    (tmp_path / "file").write_text(json.dumps({**payload, "steps": 11000}))
    with pytest.raises(DamagedFileError, match="its checksum does not match its content"):
        read_json(tmp_path / "file")


# Locks.


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock

    def late(file: int, how: int) -> None:
        (tmp_path / "lock").unlink()  # as its holder does when it has finished
        monkeypatch.setattr(fcntl, "flock", flock)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "lock") as one, locked(tmp_path / "lock") as other:
        assert (one, other) == (False, True)
