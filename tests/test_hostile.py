"""Files come from strangers: whatever is in them, the answer is a clear refusal, and nothing of it is run."""

import json
import math
import pickle
import random
import re
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from makers import Problem
from sparseirm.core import SettingError
from sparseirm.data.sources import IDX_FILES, load_images
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import markdown, rows
from sparseirm.files import (
    DamagedFileError,
    canonical,
    digest,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from sparseirm.recipe import Recipe
from sparseirm.runs import CHECKPOINT, MODEL, RESULT, Result, load_model, run
from sparseirm.training.checkpoint import load_state, tensors_of

SOURCE = Path(__file__).parents[1] / "src"
TINY = Recipe(width=4, n_train=50, steps=4, eval_every=2)

FORBIDDEN = {
    "unpickling": r"^\s*(import|from) (pickle|dill|joblib|shelve|marshal|cloudpickle)\b",
    "tensors from pickles": r"torch\.(load|save)\(|torch\.jit\.load|allow_pickle=True",
    "running text": r"(?<![\w.])(eval|exec|compile)\(",
    "running commands": r"os\.(system|popen|exec)|shell=True",
    "archives unpacked where they like": r"extractall\(|unpack_archive\(",
    "objects from YAML": r"yaml\.(load|unsafe_load|full_load)\(",
    "predictable temporary files": r"mktemp\(",
    "unverified downloads": r"verify=False|_create_unverified_context",
}

numbers = (
    st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([10**400, 1e308, 0, -1])
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.text(max_size=8)
    | st.sampled_from(["auto", "adam", "rex", "l0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of `TINY`; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run(TINY, out=folder)
    return folder


# The source.


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_module_can_do_what_a_hostile_file_hopes_for(what: str) -> None:
    for path in SOURCE.rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(FORBIDDEN[what], line.partition("#")[0]), f"{path}:{number}: {what}"


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("unpickling", "import pickle"),
        ("tensors from pickles", "torch.load(path)"),
        ("running text", "x = eval(text)"),
        ("running commands", "run(command, shell=True)"),
        ("archives unpacked where they like", "archive.extractall(folder)"),
    ],
)
def test_the_search_finds_what_it_looks_for(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)
    assert not re.search(FORBIDDEN[what], "module.eval(), re.compile(text), model.evaluate(x)  # no pickle")


# Pickles.


class Trap:
    sprung = False

    def __reduce__(self) -> Any:
        return setattr, (Trap, "sprung", True)


def pickles(folder: Path) -> dict[str, bytes]:
    torch.save({"weights": Trap()}, folder / "zip")
    torch.save({"weights": Trap()}, folder / "legacy", _use_new_zipfile_serialization=False)
    return {
        "plain": pickle.dumps(Trap()),
        "torch": (folder / "zip").read_bytes(),
        "old torch": (folder / "legacy").read_bytes(),
        "behind a header": struct.pack("<Q", 2) + b"{}" + pickle.dumps(Trap()),
    }


@pytest.mark.parametrize("kind", ["plain", "torch", "old torch", "behind a header"])
@pytest.mark.parametrize("name", [CHECKPOINT, RESULT, MODEL])
def test_a_pickle_with_one_of_our_names_is_refused_unopened(kind: str, name: str, tmp_path: Path) -> None:
    content, out = pickles(tmp_path)[kind], tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{name} is damaged"):
        if name == MODEL:
            load_model(out)
        else:
            run(TINY, out=out, resume=True)
    assert not Trap.sprung


def test_the_pickles_would_have_worked(tmp_path: Path) -> None:
    pickle.loads(pickles(tmp_path)["plain"])
    assert Trap.sprung
    Trap.sprung = False


def test_a_pickle_among_mnist_s_files_is_never_looked_at(tmp_path: Path) -> None:
    idx(tmp_path, {})
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), processed / name)
    assert len(load_images("mnist", str(tmp_path))[1]) == 3


# MNIST's format.


def idx(root: Path, changed: dict[str, bytes]) -> None:
    """Three images and labels in MNIST's format, some files replaced."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in IDX_FILES:
        picture = struct.pack(">IIII", 0x803, 3, 28, 28) + bytes(3 * 784)
        sound = picture if "images" in file else struct.pack(">II", 0x801, 3) + bytes(3)
        (raw / file).write_bytes(changed.get(file, sound))


@pytest.mark.parametrize(
    "content",
    [
        struct.pack(">IIII", 0x803, 2**31, 2**31, 2**31),
        struct.pack(">IIII", 0x803, 2**32 - 1, 28, 28) + bytes(784),
        struct.pack(">IIII", 0x803, 3, 1, 784) + bytes(3 * 784),
        struct.pack(">IIII", 0x803, 4, 28, 28) + bytes(4 * 784),
        struct.pack(">IIII", 0xD03, 3, 28, 28) + bytes(3 * 784 * 4),
        struct.pack(">IIII", 0xFFFFFFFF, 3, 28, 28),
        b"",
        b"\0" * 16,
    ],
    ids=["huge", "all that fits", "flat", "one too many", "floats", "unknown type", "empty", "zeros"],
)
def test_images_that_are_not_mnist_s_are_refused(content: bytes, tmp_path: Path) -> None:
    idx(tmp_path, {IDX_FILES[0]: content})
    with pytest.raises(SettingError, match=r"MNIST files in .* cannot be read"):
        load_images("mnist", str(tmp_path))


def test_labels_that_are_no_digits_are_refused(tmp_path: Path) -> None:
    idx(tmp_path, {IDX_FILES[1]: struct.pack(">II", 0x801, 3) + b"\x00\x0a\x01"})
    with pytest.raises(SettingError, match="labels up to 10"):
        load_images("mnist", str(tmp_path))


# Safetensors: headers with a sound checksum, and anything else in them.


def sealed(header: dict[str, Any], body: bytes, note: str = "{}") -> bytes:
    """A file with these tensors and the checksum that goes with them."""
    rest = canonical(header).encode() + body
    meta = {"note": note, "sha256": digest(note.encode() + rest)}
    text = json.dumps({"__metadata__": meta, **header}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


shapes = st.lists(st.integers(-1, 2**63) | st.integers(0, 4), max_size=4)
offsets = st.lists(st.integers(-1, 2**64) | st.sampled_from([0, 4, 8, 16]), max_size=3)
entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BOOL", "I64", "BF16", "F8_E4M3", "F4", "C64", "X", ""]),
        "shape": shapes,
        "data_offsets": offsets,
        "more": plain,
    },
)
headers = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "__metadata__"), entry | plain, max_size=3
)


@settings(max_examples=300)
@given(header=headers, body=st.sampled_from([b"", bytes(4), bytes(16)]), note=plain.map(json.dumps))
def test_any_header_is_read_or_refused(header: Any, body: bytes, note: str, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(sealed(header, body, note))
    try:
        tensors, read = read_tensors(path)
    except DamagedFileError:
        return
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == len(body)
    assert read == json.loads(note)


@settings(max_examples=200)
@given(content=st.binary(max_size=64), length=st.integers(0, 2**64 - 1) | st.integers(0, 70))
def test_any_bytes_are_refused(content: bytes, length: int, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(struct.pack("<Q", length) + content)
    for read in (read_json, read_tensors):
        with pytest.raises(DamagedFileError):
            read(path)


@pytest.mark.parametrize(
    "shape",
    [[2**62, 2**62], [2**40], [0, 2**63], [-1], [1] * 100_000, [2**64]],
    ids=lambda shape: str(shape[:2]),
)
def test_absurd_shapes_are_refused_without_memory_for_them(shape: list[int], tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    (tmp_path / "file").write_bytes(sealed(header, bytes(4)))
    if math.prod(shape) == 1:
        assert read_tensors(tmp_path / "file")[0]["w"].numel() == 1
    else:
        with pytest.raises(DamagedFileError):
            read_tensors(tmp_path / "file")


def test_a_header_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    for content in (b'{"a":' * 50_000, b'{"__metadata__":{"note":"' + b"[" * 50_000 + b'","sha256":"0"}}'):
        (tmp_path / "file").write_bytes(struct.pack("<Q", len(content)) + content)
        with pytest.raises(DamagedFileError):
            read_tensors(tmp_path / "file")


def test_json_of_a_size_we_never_write_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)  # a hole, which takes no room on the disk
    with pytest.raises(DamagedFileError, match="larger than"):
        read_json(tmp_path / "file")


# Models and checkpoints with a sound checksum and a content that is not sound.


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_with_nan_is_refused(value: float, finished: Path, tmp_path: Path) -> None:
    tensors, note = read_tensors(finished / MODEL)
    next(iter(tensors.values())).view(-1)[0] = value
    write_tensors(tmp_path / MODEL, tensors, note)
    with pytest.raises(DamagedFileError, match="holds NaN or infinity"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "note",
    [
        {"recipe": None},
        {"recipe": [1]},
        {"recipe": {"model": "../../mlp"}},
        {"recipe": {"model": ["mlp"]}},
        {"recipe": {"width": -1}},
        {"recipe": {"width": 10**12}},
        {"recipe": {"width": 10**30}},
        {"recipe": {"width": "4"}},
    ],
    ids=str,
)
def test_a_model_with_a_recipe_that_cannot_be_is_refused(note: Any, finished: Path, tmp_path: Path) -> None:
    tensors, whole = read_tensors(finished / MODEL)
    write_tensors(tmp_path / MODEL, tensors, {**whole, **note})
    with pytest.raises(SettingError):
        load_model(tmp_path)


HALF: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "weights": lambda tensor: tensor[:1],
    "optimizer/weights/0/exp_avg": lambda tensor: tensor[:1],
    "optimizer/weights/0/exp_avg_sq": lambda tensor: tensor.new_zeros(10 * len(tensor)),
    "optimizer/weights/99/step": lambda tensor: tensor,
    "optimizer/weights/x/step": lambda tensor: tensor,
    "optimizer/scores/0/exp_avg": lambda tensor: tensor[None],
    "buffers/1.running_var": lambda tensor: tensor[:1],
}


@pytest.mark.parametrize("name", HALF)
def test_a_checkpoint_with_a_tensor_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    problem = Problem()
    tensors = dict(tensors_of(problem.train().state))
    like = tensors.get(name, torch.zeros(()))
    write_tensors(tmp_path / CHECKPOINT, {**tensors, name: HALF[name](like)}, {"step": 1})
    with pytest.raises(DamagedFileError, match="does not belong to this run"):
        load_state(tmp_path / CHECKPOINT, problem.fresh()[2])


@pytest.mark.parametrize("step", [None, -1, "3", 1.5, True, [1]])
def test_a_checkpoint_of_no_step_is_refused(step: Any, tmp_path: Path) -> None:
    problem = Problem()
    write_tensors(tmp_path / CHECKPOINT, tensors_of(problem.train().state), {"step": step})
    with pytest.raises(DamagedFileError, match="its step is"):
        load_state(tmp_path / CHECKPOINT, problem.fresh()[2])


# Recipes and results.


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(Recipe)]), plain, max_size=5) | plain)
def test_any_recipe_is_resolved_or_refused(payload: Any) -> None:
    try:
        recipe = Recipe.from_json(payload).resolved()
    except SettingError as error:
        assert len(str(error)) < 2000
        return
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert len(recipe.key) == 16


@pytest.mark.parametrize("name", ["lr", "eps", "l2", "penalty_weight", "label_noise", "weights_per_sample"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400])
def test_numbers_without_end_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"`{name}` must be"):
        Recipe(**{name: value}).resolved()


def test_a_recipe_that_nests_deep_is_refused() -> None:
    nested: Any = 1
    for _ in range(900):
        nested = {"decide_at": nested}
    with pytest.raises(SettingError):
        Recipe.from_json({"sparsifier_options": nested}).resolved()


def changed(payload: Any, noise: random.Random, value: Any) -> Any:
    """The payload with one of its values, or one of its keys, replaced or left out."""
    if isinstance(payload, dict) and payload:
        name = noise.choice(sorted(payload))
        rest = {key: item for key, item in payload.items() if key != name}
        turn = noise.random()
        if turn < 0.1:
            return rest
        return (
            {**rest, f"{name}?": payload[name]}
            if turn < 0.2
            else {**rest, name: changed(payload[name], noise, value)}
        )
    if isinstance(payload, list) and payload:
        at = noise.randrange(len(payload))
        return [*payload[:at], changed(payload[at], noise, value), *payload[at + 1 :]]
    return value


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), value=plain)
def test_any_result_becomes_a_table_or_is_refused(
    seed: int, value: Any, finished: Path, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "store" / "runs" / "0.json"
    write_json(path, changed(read_json(finished / RESULT), random.Random(seed), value))
    try:
        results = Store(path.parents[1]).all()
        assert results == [Result.from_json(json.loads(json.dumps(results[0].to_json())))]
        assert markdown(rows(results))
    except SettingError:
        pass


def test_no_name_in_a_recipe_becomes_a_path(tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b", "\0"):
        for field in ("data", "model", "method", "penalty", "sparsifier", "settings"):
            with pytest.raises(SettingError):
                Store(tmp_path).get(Recipe(**{field: name}))
