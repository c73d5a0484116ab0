"""The same recipe gives the same bits: in any process, in a sweep or alone, whatever ran before it."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseirm.files import read_json
from sparseirm.recipe import Recipe
from sparseirm.runs import MODEL, RESULT, Point, run
from sparseirm.training.loop import Record

BASE = Recipe(width=8, n_train=100, steps=12, eval_every=6)
RECIPES = {
    "full batches": BASE,
    "minibatches": replace(BASE, penalty="irmv1_split", batch_size=20),
    "random penalty": replace(BASE, method="bayesianirm", batch_size=20),
    "random mask": replace(BASE, sparsifier_options={"final": "sample", "decide_at": 1}),
    "l0": replace(BASE, sparsifier="l0", penalty="rex", batch_size=20),
    "rigl": replace(BASE, sparsifier="rigl", penalty="fishr"),
    "bf16": replace(BASE, precision="bf16", data="full_colored_digits"),
    "sgd": replace(BASE, method="erm", optimizer="sgd", lr=0.01, batch_size=20),
}

ELSEWHERE = """
import json, sys
from pathlib import Path
import torch
from sparseirm.experiments.sweep import carry_out
from sparseirm.recipe import Recipe
from sparseirm.runs import run

torch.set_num_threads(1)
torch.manual_seed(4321)
torch.rand(7)
for number, payload in enumerate(json.loads(sys.argv[1])):
    recipe = Recipe.from_json(payload)
    assert carry_out(recipe, Path("store")) is None
    run(recipe, out=f"alone/{number}")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recipes, alone and as a sweep does it, in a process with other hashes and another global seed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    recipes = json.dumps([recipe.to_json() for recipe in RECIPES.values()])
    surroundings = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
    }
    command = [sys.executable, "-c", ELSEWHERE, recipes]
    subprocess.run(command, check=True, cwd=folder, env=surroundings)
    return folder


def scores(payload: dict[str, Any]) -> Any:
    return payload["trajectory"], payload["kept"]


@pytest.mark.parametrize("name", RECIPES)
def test_another_process_and_a_sweep_give_the_same_bits(name: str, elsewhere: Path, tmp_path: Path) -> None:
    run(RECIPES[name], out=tmp_path)
    alone = elsewhere / "alone" / str([*RECIPES].index(name))
    assert (tmp_path / MODEL).read_bytes() == (alone / MODEL).read_bytes()
    here = scores(read_json(tmp_path / RESULT))
    assert here == scores(read_json(alone / RESULT))
    assert here == scores(read_json(elsewhere / "store" / "runs" / f"{RECIPES[name].key}.json"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_has_the_same_bits(name: str, tmp_path: Path) -> None:
    def stop(record: Record, trajectory: list[Point]) -> None:
        if record.step == 7:
            raise KeyboardInterrupt

    whole = run(RECIPES[name], out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(RECIPES[name], out=tmp_path / "resumed", on_step=stop)
    resumed = run(RECIPES[name], out=tmp_path / "resumed", resume=True)
    assert [asdict(point) for point in resumed.trajectory] == [asdict(point) for point in whole.trajectory]
    assert len({(tmp_path / folder / MODEL).read_bytes() for folder in ("whole", "resumed")}) == 1


def test_runs_do_not_notice_each_other() -> None:
    first = run(BASE).trajectory
    run(replace(BASE, seed=5, data="full_colored_digits"))
    torch.manual_seed(99)
    assert run(BASE).trajectory == first


def test_the_caller_s_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    run(BASE)
    assert torch.equal(torch.rand(4), expected)


def test_a_result_says_what_its_bits_depend_on() -> None:
    assert {"python", "torch", "numpy", "device", "threads", "matmul"} <= run(BASE).environment.keys()
