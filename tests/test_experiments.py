"""The store keeps every finished run, once; sweeps run what it lacks."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

import sparseirm.experiments.sweep as sweep_module
from sparseirm import NonFiniteError, Recipe, run
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import carry_out, sweep
from sparseirm.experiments.tables import Figures, rows

RECIPE = Recipe(method="erm", width=4, steps=4, eval_every=4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_the_store_holds_is_not_run_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = sweep([RECIPE], store, pool)
        monkeypatch.setattr(sweep_module, "run", None)
        assert sweep([RECIPE], store, pool) == first
    assert store.all() == first


def test_a_failure_is_recorded_and_not_reused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(*args: object, **kwargs: object) -> None:
        raise NonFiniteError("the risk became nan in step 3.")

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(sweep_module, "run", burst)
        assert sweep([RECIPE], store, pool) == [None]
    assert "nan in step 3" in str(store.failure(RECIPE)) and store.get(RECIPE) is None
    assert carry_out(RECIPE, store.root) is None
    assert store.get(RECIPE) is not None and store.failure(RECIPE) is None


def test_a_run_in_flight_is_left_to_the_process_that_has_it(store: Store) -> None:
    with store.claim(RECIPE) as folder:
        assert folder is not None
        assert "another process" in str(carry_out(RECIPE, store.root))
    assert carry_out(RECIPE, store.root) is None


def test_a_sweep_goes_on_from_the_checkpoint_of_a_killed_run(store: Store) -> None:
    recipe = replace(RECIPE, steps=9, method="sparseirm")

    def killed(record: object, trajectory: object) -> None:
        if record.step == 5:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with store.claim(recipe) as folder, pytest.raises(KeyboardInterrupt):
        run(recipe, out=folder, resume=True, on_step=killed)
    assert carry_out(recipe, store.root) is None
    whole, resumed = run(recipe), store.get(recipe)
    assert resumed is not None and resumed.trajectory == whole.trajectory
    assert not (store.root / "work" / recipe.key).exists()


def test_no_run_starts_after_the_time_budget(store: Store) -> None:
    said = []
    with ThreadPoolExecutor(1) as pool:
        assert sweep([RECIPE], store, pool, on_done=lambda r, why: said.append(why), time_budget=-1) == [None]
    assert "time budget" in said[0] and store.failure(RECIPE) is None


def test_the_widest_runs_start_first(store: Store) -> None:
    started: list[int] = []

    class Recorder(ThreadPoolExecutor):
        def submit(self, fn, recipe, *args):  # type: ignore[no-untyped-def, override]
            started.append(recipe.width)
            done: Future[str] = Future()
            done.set_result("not run")
            return done

    sweep([replace(RECIPE, width=w) for w in (3, 9, 6)], store, Recorder(1))
    assert started == [9, 6, 3]


def test_seeds_become_one_row(store: Store) -> None:
    recipes = [replace(RECIPE, seed=s, method=m) for m in ("erm", "oracle") for s in (0, 1)]
    table = rows([run(recipe) for recipe in recipes])
    assert [row.label for row in table] == ["ERM", "Oracle"]
    values = [run(recipe).last["test"].accuracy for recipe in recipes[:2]]
    assert table[0].accuracy("test").mean == pytest.approx(np.mean(values))


def test_the_interval_is_students() -> None:
    values = (60.0, 61.5, 64.0, 62.5)
    low, high = t.interval(0.95, 3, loc=np.mean(values), scale=np.std(values, ddof=1) / 2)
    assert Figures(values).half_width == pytest.approx((high - low) / 2)
    assert np.isnan(Figures((60.0,)).half_width) and str(Figures((60.0,))) == "60.0"
