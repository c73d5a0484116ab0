"""Nothing is lost: killed anywhere, out of space, forbidden or damaged, the same command goes on.

Processes are killed with SIGKILL, which no program can catch. The same command finishes what they leave,
and the end is that of an uninterrupted run, bit for bit.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sparseirm.experiments.sweep as sweep_module
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.experiments.executors import local
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import carry_out, sweep
from sparseirm.files import locked, read_json
from sparseirm.recipe import Recipe
from sparseirm.runs import CHECKPOINT, CHECKPOINT_VARIABLE, LOCK, MODEL, RESULT, Point, load_model, run
from sparseirm.training.loop import Record

RECIPE = Recipe(width=16, n_train=200, steps=200, eval_every=50)
TRAIN = ["train", "--width", "16", "--n-train", "200", "--steps", "200", "--eval-every", "50"]
SWEPT = [replace(RECIPE, steps=100, width=4, seed=seed) for seed in range(4)]
COMPARE = [
    *("compare", "--width", "4", "--n-train", "200", "--steps", "100", "--eval-every", "50"),
    *("--methods", "sparseirm", "--penalties", "irmv1", "--seeds", "0", "1", "2", "3", "--workers", "2"),
]
linux = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds the children of a process in /proc"
)


@pytest.fixture(scope="module", autouse=True)
def a_checkpoint_after_every_step() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CHECKPOINT_VARIABLE, "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    run(RECIPE, out=folder, checkpoint_seconds=1e9)
    return folder


def outcome(result: Path) -> dict[str, Any]:
    """Everything in a result but the time it took."""
    return {name: value for name, value in read_json(result).items() if name != "seconds"}


def assert_same_run(folder: Path, whole: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {MODEL, RESULT}
    assert (folder / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert outcome(folder / RESULT) == outcome(whole / RESULT)


def copied(whole: Path, folder: Path) -> None:
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def stopped(folder: Path, step: int) -> None:
    """Leave a run in the folder that was interrupted after a step."""

    def stop(record: Record, trajectory: list[Point]) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, out=folder, on_step=stop, checkpoint_seconds=1e9)


def process_of(function: Callable[..., object], *arguments: object) -> Any:
    """A process of its own that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparseirm.cli", "sklearn.datasets", "torch._dynamo"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


# Training.


def end(folder: Path, moments: list[Callable[[Any], None]]) -> int:
    """Train to the end, killed at each of these moments; returns how many came before the end."""
    kills = 0
    for moment in [*moments, lambda process: process.join()]:
        process = process_of(main, [*TRAIN, "--out", str(folder), "--resume"])
        moment(process)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    return kills


def written(path: Path) -> int:
    """When the file was last replaced; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def sometime(noise: random.Random, folder: Path) -> Callable[[Any], None]:
    """A moment some steps later, in whatever the run is doing then, however fast the machine is."""

    def wait(process: Any) -> None:
        for _ in range(noise.randrange(5)):
            before = written(folder / CHECKPOINT)
            while process.is_alive() and written(folder / CHECKPOINT) == before:
                pass
        process.join(noise.uniform(0, 0.01))

    return wait


def while_writing(folder: Path) -> Callable[[Any], None]:
    def wait(process: Any) -> None:
        while process.is_alive() and not any(folder.glob(".*.part")):
            pass

    return wait


def test_a_run_killed_while_it_trains_or_writes_ends_as_if_never_disturbed(
    whole: Path, tmp_path: Path
) -> None:
    noise = random.Random(0)
    moments = [moment for _ in range(6) for moment in (sometime(noise, tmp_path), while_writing(tmp_path))]
    assert end(tmp_path, moments) >= 6
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_two_hundred_kills_at_random_moments_change_nothing(whole: Path, tmp_path: Path) -> None:
    noise, kills, rounds = random.Random(1), 0, 0
    while kills < 200:
        folder = tmp_path / str(rounds)
        kills += end(
            folder, [noise.choice((sometime(noise, folder), while_writing(folder))) for _ in range(20)]
        )
        assert_same_run(folder, whole)
        rounds += 1
        assert rounds < 60


def test_what_a_killed_process_began_to_write_is_removed_by_the_next(whole: Path, tmp_path: Path) -> None:
    for name in (CHECKPOINT, MODEL, RESULT):
        (tmp_path / f".{name}.0123456789abcdef.part").write_bytes(b"half")
    (tmp_path / LOCK).touch()
    (tmp_path / ".mine.part").write_bytes(b"somebody else's")
    run(RECIPE, out=tmp_path, resume=True, checkpoint_seconds=1e9)
    (tmp_path / ".mine.part").unlink()
    assert_same_run(tmp_path, whole)


def test_a_run_killed_after_its_result_was_written_leaves_no_checkpoint(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"of no use any more")
    run(RECIPE, out=tmp_path, resume=True)
    assert_same_run(tmp_path, whole)


def test_two_processes_never_share_a_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path / LOCK),
        pytest.raises(SettingError, match="in use by another process"),
    ):
        run(RECIPE, out=tmp_path, resume=True)


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan"])
def test_a_pause_between_checkpoints_that_is_none_is_refused(
    seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, seconds)
    with pytest.raises(
        SettingError, match=rf"`{CHECKPOINT_VARIABLE}` must be 0 or more seconds; got '{seconds}'"
    ):
        run(RECIPE)


# Sweeps.


def carry_out_all(root: Path, recipes: Sequence[Recipe] = SWEPT) -> None:
    """A sweep in two processes, which need not import everything again."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
    with local(2) as pool:
        sweep(recipes, Store(root), pool)


def workers_of(pid: int) -> list[int]:
    """The processes that a process started, but for Python's own that tidies up after them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_text()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == pid and fields[0] != "Z" and "resource_tracker" not in command:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(whom: str, pid: int) -> None:
    """Kill one worker of a sweep, or the process that started them, which none may outlive, or all."""
    workers = workers_of(pid)
    if whom != "worker":
        os.kill(pid, signal.SIGKILL)
    for worker in {"worker": workers[:1], "parent": [], "all": workers}[whom]:
        os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while whom != "worker" and any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker lives on without the process that started it"
        time.sleep(0.05)


def assert_same_sweep(root: Path) -> None:
    store = Store(root)
    for recipe in SWEPT:
        found, expected = store.get(recipe), run(recipe, checkpoint_seconds=1e9)
        assert found is not None
        assert (found.trajectory, found.kept) == (expected.trajectory, expected.kept)
    assert not [*(root / "work").iterdir()]
    assert all(path.suffix == ".json" for path in (root / "runs").iterdir())


@linux
def test_a_sweep_killed_goes_on_and_no_worker_outlives_it(tmp_path: Path) -> None:
    noise = random.Random(0)
    for whom in ("parent", "all", "worker"):  # after the last a sweep starts the run again by itself
        process = process_of(carry_out_all, tmp_path)
        while process.is_alive() and not any(tmp_path.glob(f"work/*/{CHECKPOINT}")):
            pass
        time.sleep(noise.uniform(0, 0.3))
        if process.is_alive():
            kill(whom, process.pid)
        process.join()
    process = process_of(carry_out_all, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert_same_sweep(tmp_path)


def carry_out_with_journal(name: str, root: Path, recipes: list[Recipe], waits: bool) -> None:
    """A sweep that writes down which runs it begins at which step; if it waits, until it is let go."""

    def watched(recipe: Recipe, on_step: Callable[..., None], **given: Any) -> Any:
        def step(record: Record, trajectory: list[Point]) -> None:
            on_step(record, trajectory)
            if not entered:
                entered.append(record.step)
                (root / f"{name}-{recipe.seed}-{record.step}").touch()
            while waits and record.step == 30 and not (root / f"go-{recipe.seed}").exists():
                time.sleep(0.02)

        entered: list[int] = []
        return run(recipe, on_step=step, **given)

    sweep_module.run = watched
    carry_out_all(root, recipes)


@linux
def test_two_sweeps_share_a_store_and_one_finishes_what_the_other_leaves(tmp_path: Path) -> None:
    def until(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 300
        while not holds():
            assert time.monotonic() < deadline and other.is_alive()
            time.sleep(0.02)

    def done() -> set[int]:
        return {recipe.seed for recipe in SWEPT if Store(tmp_path).get(recipe)}

    one = other = process_of(carry_out_with_journal, "one", tmp_path, SWEPT[:2], True)
    until(lambda: len([*tmp_path.glob(f"work/*/{CHECKPOINT}")]) == 2)
    other = process_of(carry_out_with_journal, "other", tmp_path, SWEPT, False)
    until(lambda: done() == {2, 3})
    (tmp_path / "go-0").touch()
    until(lambda: done() == {0, 2, 3})
    kill("all", one.pid)
    other.join()
    assert other.exitcode == 0
    assert_same_sweep(tmp_path)
    begun = {path.name: int(path.name.split("-")[2]) for path in tmp_path.glob("o*-*-*")}
    assert {name.rpartition("-")[0] for name in begun} == {"one-0", "one-1", "other-1", "other-2", "other-3"}
    assert begun.keys() >= {"one-0-1", "one-1-1", "other-2-1", "other-3-1"}
    assert max(begun.values()) > 1  # it went on from the checkpoint


@linux
@pytest.mark.slow
def test_the_command_survives_kills_of_itself_and_of_its_workers(tmp_path: Path) -> None:
    noise = random.Random(2)
    flags = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "sparseirm.cli", *COMPARE, *flags]
    for whom in ("worker", "parent", "all") * 4:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            time.sleep(noise.uniform(1, 20))
            if process.poll() is None:
                kill(whom, process.pid)
            complaint = process.communicate()[1]
        finally:
            process.kill()
        assert "Traceback" not in complaint, complaint
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same_sweep(tmp_path / "store")


def test_what_a_process_killed_at_the_very_end_left_is_removed(tmp_path: Path) -> None:
    carry_out(SWEPT[0], tmp_path)
    with Store(tmp_path).claim(SWEPT[0]) as leftover:
        assert leftover
        (leftover / MODEL).touch()
    Store(tmp_path).tidy()
    assert not leftover.exists()


# Disks.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk in memory, and a function that mounts it anew with other options."""

    def mount(options: str) -> Path:
        again = "remount," if tmp_path.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and not again:
            pytest.skip("cannot mount a small disk here; that takes root on Linux")
        assert done.returncode == 0, done.stderr
        return tmp_path

    yield mount
    if tmp_path.is_mount():
        subprocess.run(["umount", str(tmp_path)], check=True)


def complaint_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends that cannot go on."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize("size", ["4k", "48k", "100k"])
def test_a_full_disk_stops_the_run_and_it_goes_on_once_there_is_room(
    size: str, disk: Callable[[str], Path], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk(f"size={size}") / "out"
    command = [*TRAIN, "--out", str(out), "--resume"]
    for _ in range(2):
        assert f"{out / CHECKPOINT} cannot be written (No space left on device)" in complaint_of(
            command, capsys
        )
    disk("size=10M")
    assert main(command) == 0
    assert_same_run(out, whole)


def test_a_full_disk_stops_a_sweep_and_it_goes_on_once_there_is_room(disk: Callable[[str], Path]) -> None:
    root = disk("size=8k") / "store"
    assert "cannot be written (No space left on device)" in str(carry_out(SWEPT[0], root))
    disk("size=10M")
    for recipe in SWEPT:
        assert carry_out(recipe, root) is None
    assert_same_sweep(root)


def test_a_read_only_folder_is_named_and_the_run_goes_on_once_it_is_writable(
    disk: Callable[[str], Path], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk("size=10M") / "out"
    command = [*TRAIN, "--out", str(out), "--resume"]
    stopped(out, step=30)
    disk("ro")
    assert f"`out` {str(out)!r} cannot be written to" in complaint_of(command, capsys)
    disk("rw")
    assert main(command) == 0
    assert_same_run(out, whole)


# Damage.


def flipped(content: bytes, noise: random.Random) -> bytes:
    at = noise.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << noise.randrange(8)]) + content[at + 1 :]


def truncated(content: bytes, noise: random.Random) -> bytes:
    return content[: noise.randrange(len(content) - 1)]


DAMAGES = pytest.mark.parametrize("damage", [flipped, truncated])


@DAMAGES
@pytest.mark.parametrize("name", [CHECKPOINT, RESULT])
@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_file_is_named_and_the_run_is_repeated_without_it(
    name: str,
    damage: Callable[[bytes, random.Random], bytes],
    seed: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(CHECKPOINT_VARIABLE, "1000")

    if name == CHECKPOINT:
        stopped(tmp_path, step=110)
    else:
        copied(whole, tmp_path)
    path, command = tmp_path / name, [*TRAIN, "--out", str(tmp_path), "--resume"]
    path.write_bytes(damage(path.read_bytes(), random.Random(seed)))
    said = complaint_of(command, capsys)
    assert f"{path} is damaged" in said and "Delete it and run the same command again." in said
    path.unlink()
    assert main(command) == 0
    assert_same_run(tmp_path, whole)


@DAMAGES
def test_a_damaged_model_is_made_again_once_it_is_deleted(
    damage: Callable[[bytes, random.Random], bytes], whole: Path, tmp_path: Path
) -> None:
    copied(whole, tmp_path)
    path = tmp_path / MODEL
    path.write_bytes(damage(path.read_bytes(), random.Random(0)))
    with pytest.raises(SettingError, match=f"{MODEL} is damaged.* Delete it and run the same command again"):
        load_model(tmp_path)
    path.unlink()
    run(RECIPE, out=tmp_path, resume=True, checkpoint_seconds=1e9)
    assert_same_run(tmp_path, whole)


def test_a_damaged_result_in_a_store_is_named_and_its_run_repeated_without_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    carry_out(SWEPT[0], tmp_path)
    path = tmp_path / "runs" / f"{SWEPT[0].key}.json"
    before = outcome(path)
    path.write_bytes(flipped(path.read_bytes(), random.Random(0)))
    for reading in (partial(store.get, SWEPT[0]), store.all):
        with pytest.raises(
            SettingError, match=f"{path.name} is damaged.* Delete it and run the same command"
        ):
            reading()
    path.unlink()
    assert carry_out(SWEPT[0], tmp_path) is None
    assert outcome(path) == before
