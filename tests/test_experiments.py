"""The store keeps every finished run, once; sweeps run what it lacks."""

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import t, ttest_rel

import sparseirm.experiments.store as store_module
import sparseirm.experiments.sweep as sweep_module
import sparseirm.experiments.train as train_module
import sparseirm.runs as runs_module
from makers import why_failed
from sparseirm import NonFiniteError, Recipe, run
from sparseirm.core import SettingError
from sparseirm.experiments.estimates import Estimates, cost
from sparseirm.experiments.progress import Reporter, summary
from sparseirm.experiments.statistics import Figures, paired
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import Postponed, Progress, carry_out, sweep
from sparseirm.experiments.tables import rows
from sparseirm.experiments.train import train
from sparseirm.files import read_json
from sparseirm.methods import SETTINGS

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
    assert "nan in step 3" in str(why_failed(store, RECIPE)) and store.get(RECIPE) is None
    ((recipe, reason),) = store.failures()
    assert recipe == RECIPE.resolved() and "nan in step 3" in reason
    note = read_json(store.root / "failed" / f"{RECIPE.key}.json")
    assert note["status"] == "failed" and note["environment"]["torch"] and note["version"] == 1
    assert carry_out(RECIPE, store.root) is None
    assert store.get(RECIPE) is not None and why_failed(store, RECIPE) is None


def test_a_run_in_flight_is_left_to_the_process_that_has_it(store: Store) -> None:
    with store.claim(RECIPE) as folder:
        assert folder is not None
        refusal = carry_out(RECIPE, store.root)
    assert isinstance(refusal, Postponed) and "another process" in refusal
    assert carry_out(RECIPE, store.root) is None


def test_a_sweep_waits_for_a_run_elsewhere_until_time_is_up(store: Store) -> None:
    said: list[str | None] = []
    with store.claim(RECIPE), ThreadPoolExecutor(1) as pool:
        found = sweep([RECIPE], store, pool, on_done=lambda r, why: said.append(why), time_budget=0.5)
    assert found == [None] and store.failures() == [] and not store.claimed(RECIPE)
    assert isinstance(said[0], Postponed) and "time budget" in said[0] and "another process" in said[0]


def test_a_run_that_ends_elsewhere_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(RECIPE)
    monkeypatch.setattr(sweep_module, "run", None)
    with ExitStack() as elsewhere, ThreadPoolExecutor(1) as pool:
        elsewhere.enter_context(store.claim(RECIPE))

        def watch(progress: Progress) -> None:
            store.put(result)
            elsewhere.close()

        assert sweep([RECIPE], store, pool, watch=watch) == [result]


def test_looking_whether_a_run_is_claimed_makes_nothing(store: Store) -> None:
    assert not store.claimed(RECIPE) and not store.root.exists()
    with store.claim(RECIPE):
        assert store.claimed(RECIPE)
    store.clear(RECIPE)
    assert not store.claimed(RECIPE) and [*store.root.rglob("*")] == [store.root / "work"]


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
    assert isinstance(said[0], Postponed) and "time budget" in said[0] and why_failed(store, RECIPE) is None


def test_a_run_stops_at_a_checkpoint_when_time_is_up_and_goes_on_to_the_same_bits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, steps=9, method="sparseirm")
    ticks = itertools.count()  # a clock that moves by one with each look at it
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module, "time", SimpleNamespace(time=lambda: next(ticks), monotonic=lambda: 0.0))
        refusal = carry_out(recipe, store.root, deadline=4)
    assert isinstance(refusal, Postponed) and "stopped" in refusal and why_failed(store, recipe) is None
    with store.claim(recipe) as folder:
        assert folder is not None and (folder / "checkpoint.safetensors").exists()
    assert carry_out(recipe, store.root) is None
    resumed = store.get(recipe)
    assert resumed is not None and resumed.trajectory == run(recipe).trajectory


def test_results_of_another_version_count_as_missing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = run(RECIPE)
    store.put(replace(old, version=0))
    assert store.get(RECIPE) is None and store.all() == [] and len(store.outdated()) == 1
    assert carry_out(RECIPE, store.root) is None
    assert store.get(RECIPE) is not None and store.outdated() == []


def test_a_result_without_a_version_is_of_the_first(store: Store) -> None:
    payload = run(RECIPE).to_json()
    assert payload.pop("version") == runs_module.RESULTS
    assert type(run(RECIPE)).from_json(payload).version == 1


def test_a_checkpoint_of_another_version_is_not_gone_on_with(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(record: object, trajectory: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for module in (runs_module, store_module):
            patch.setattr(module, "RESULTS", 0)
        with pytest.raises(KeyboardInterrupt):
            run(RECIPE, out=tmp_path, on_step=killed)
        with store.claim(RECIPE) as folder, pytest.raises(KeyboardInterrupt):
            run(RECIPE, out=folder, resume=True, on_step=killed)
    with pytest.raises(SettingError, match="version of results: 0 there, 1 here"):
        run(RECIPE, out=tmp_path, resume=True)
    assert carry_out(RECIPE, store.root) is None


def test_a_checkpoint_outlives_the_result_of_another_version(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(record: object, trajectory: object) -> None:
        raise KeyboardInterrupt

    store.put(run(RECIPE))
    for module in (runs_module, store_module):
        monkeypatch.setattr(module, "RESULTS", 2)
    with store.claim(RECIPE) as folder, pytest.raises(KeyboardInterrupt):
        run(RECIPE, out=folder, resume=True, on_step=killed)
    store.tidy()
    assert folder is not None and (folder / "checkpoint.safetensors").exists()
    assert carry_out(RECIPE, store.root) is None
    assert store.get(RECIPE) is not None and not folder.exists()


class Recorder(ThreadPoolExecutor):
    """Starts nothing and remembers what it was asked for."""

    def __init__(self, started: list[int]) -> None:
        super().__init__(1)
        self.started = started

    def submit(self, call, recipe, *rest):  # type: ignore[no-untyped-def, override]
        self.started.append(recipe.width)
        done: Future[str] = Future()
        done.set_result("not run")
        return done


def test_the_widest_runs_start_first(store: Store) -> None:
    started: list[int] = []
    sweep([replace(RECIPE, width=w) for w in (3, 9, 6)], store, Recorder(started))
    assert started == [9, 6, 3]


def test_the_longest_runs_start_first_as_measured(store: Store) -> None:
    done = run(RECIPE)
    store.put(replace(done, seconds=1.0))
    store.put(replace(done, recipe=replace(RECIPE, method="irm").resolved(), seconds=1e6))
    started: list[int] = []
    sweep([replace(RECIPE, width=9), replace(RECIPE, method="irm", width=3)], store, Recorder(started))
    assert started == [3, 9]


def test_estimates_scale_what_was_measured_on_the_most_alike_runs() -> None:
    done = run(RECIPE)
    narrow, wide = (replace(RECIPE, width=width).resolved() for width in (4, 40))
    estimates = Estimates.of([replace(done, seconds=3.0), replace(done, seconds=5.0)])
    assert estimates.seconds(narrow) == pytest.approx(4.0)
    assert estimates.seconds(wide) == pytest.approx(4.0 * cost(wide) / cost(narrow))
    estimates.learn(replace(done, recipe=wide, seconds=7.0))
    assert estimates.seconds(wide) == pytest.approx(7.0)
    assert Estimates().seconds(wide) is None
    deep = Recipe(data="photos_on_colors", model="resnet18", method="erm")
    assert estimates.seconds(deep) is None
    estimates.learn(replace(done, recipe=deep.resolved(), seconds=9.0))
    assert estimates.seconds(replace(deep, data="cifar_mnist")) is not None


def test_a_share_of_the_time_of_runs_at_once_says_little_about_a_run_by_itself() -> None:
    recipe, done = RECIPE.resolved(), run(RECIPE)
    shared = replace(done, seconds=1.0, environment={**done.environment, "together": 8})
    estimates = Estimates.of([shared])
    assert estimates.seconds(recipe) == estimates.seconds(recipe, shared=True) == pytest.approx(1.0)
    estimates.learn(replace(done, seconds=6.0))
    assert estimates.seconds(recipe) == pytest.approx(6.0)
    assert estimates.seconds(recipe, shared=True) == pytest.approx(1.0)
    other = replace(RECIPE, method="mrm").resolved()
    estimates.learn(replace(done, recipe=other, seconds=50.0))
    assert estimates.seconds(other, shared=True) == pytest.approx(50.0)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("method", ["erm", "irm", "sparseirm", "mrm"])
def test_work_is_that_of_the_steps_that_are_taken(method: str, settings: str) -> None:
    recipe = Recipe(method=method, settings=settings, width=4, steps=20, eval_every=20).resolved()
    taken: list[int] = []
    run(recipe, on_step=lambda record, _: taken.append(record.step))
    once = cost(replace(recipe, method="erm", penalty=None, lr_stop=None, steps=1, stage_lengths=None))
    assert cost(recipe) == pytest.approx(len(taken) * once)


def test_a_method_on_data_of_which_nothing_was_measured_takes_what_it_takes_elsewhere() -> None:
    irm = replace(RECIPE, method="irm")
    measured = ((RECIPE, 2.0), (irm, 6.0), (replace(RECIPE, data="full_colored_digits"), 4.0))
    done = run(RECIPE)
    estimates = Estimates.of(replace(done, recipe=one.resolved(), seconds=took) for one, took in measured)
    there, elsewhere = (replace(irm, data=name) for name in ("full_colored_digits", "colored_digits"))
    ratio = cost(there.resolved()) / cost(elsewhere.resolved())
    assert estimates.seconds(there) == pytest.approx(6.0 * ratio)


def test_the_settings_of_a_run_count() -> None:
    done = run(RECIPE)
    sparse = [Recipe(width=4, steps=100, settings=name).resolved() for name in ("ours", "released")]
    estimates = Estimates.of(
        replace(done, recipe=one, seconds=took) for one, took in zip(sparse, (3.0, 9.0), strict=True)
    )
    assert [estimates.seconds(one) for one in sparse] == [3.0, 9.0]


def test_progress_counts_every_run_once(store: Store) -> None:
    seen: list[Progress] = []
    recipes = [RECIPE, RECIPE, replace(RECIPE, width=5), replace(RECIPE, data="colored_mnist", n_train=10)]
    store.put(run(RECIPE))
    with ThreadPoolExecutor(1) as pool:
        found = sweep(recipes, store, pool, data_root="/nowhere", watch=seen.append)
    assert [result is None for result in found] == [False, False, False, True]
    last = seen[-1]
    assert (last.total, last.done, last.failed, last.postponed, last.running) == (3, 2, 1, 0, [])
    assert summary(last) == "2 of 3 done, 0 running, 1 failed"


LEFT_OUT = replace(
    RECIPE, steps=None, epochs=5, batch_size=30, n_train=300, correlations=(0.9, 0.8, 0.7, 0.1), leave_out=0
)
"""A run whose number of steps follows from samples that the recipe does not count."""


def test_a_run_is_over_when_its_last_step_is_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float | None] = []

    def beat(self: Store, recipe: Recipe, *rest: int) -> None:
        original(self, recipe, *rest)
        seen.append(self.over(recipe))

    original = Store.beat
    monkeypatch.setattr(Store, "beat", beat)
    monkeypatch.setattr(sweep_module, "BEAT", 0.0)
    assert carry_out(LEFT_OUT, store.root) is None
    n_steps = run(LEFT_OUT).trajectory[-1].step
    assert n_steps < LEFT_OUT.resolved().total_steps
    assert seen == [step / n_steps for step in range(n_steps + 1)]


def test_the_bar_of_a_training_ends_where_the_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[dict[str, object]] = []
    monkeypatch.setattr(train_module, "bar", lambda *given, **more: nullcontext(lambda **m: moves.append(m)))
    last = train(LEFT_OUT).trajectory[-1].step
    assert (moves[-1]["completed"], moves[-1]["total"]) == (last, last)


def test_a_log_says_what_ended_and_how(store: Store) -> None:
    written = StringIO()
    shown = Reporter(store, Console(file=written, width=40))
    store.put(run(RECIPE))
    shown.on_done(RECIPE.resolved(), None)
    shown.on_done(replace(RECIPE, width=5).resolved(), "ValueError: [red]nonsense[/red]")
    shown.on_done(replace(RECIPE, width=6).resolved(), Postponed("not started"))
    running = [(replace(RECIPE, width=6).resolved(), 0.5)]
    for _ in range(2):
        shown.watch(Progress(4, 1, 1, 1, running, 600.0))
    lines = written.getvalue().splitlines()
    assert lines[0].startswith("colored_digits 1200, width 4, ERM, seed 0: train ")
    assert lines[1].endswith("FAILED: ValueError: [red]nonsense[/red]") and "FAILED" not in lines[2]
    assert lines[3:] == ["  1 of 4 done, 1 running, 1 failed, 1 left for later, about 10 min left"]


def test_seeds_become_one_row(store: Store) -> None:
    recipes = [replace(RECIPE, seed=s, method=m) for m in ("erm", "oracle") for s in (0, 1)]
    table = rows([run(recipe) for recipe in recipes])
    assert [row.label for row in table] == ["ERM", "Oracle"]
    values = [run(recipe).last["test"].accuracy for recipe in recipes[:2]]
    assert table[0].accuracy("test").mean == pytest.approx(np.mean(values))


def test_the_interval_is_students() -> None:
    values = (60.0, 61.5, 64.0, 62.5)
    low, high = t.interval(0.95, 3, loc=np.mean(values), scale=np.std(values, ddof=1) / 2)
    figures = Figures(values)
    assert figures.interval == pytest.approx((low, high))
    assert figures.half_width == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval() -> None:
    one = Figures((60.0,))
    assert one.interval is None and np.isnan(one.half_width) and str(one) == "60.0"


def test_the_paired_interval_is_that_of_the_paired_t_test() -> None:
    a, b = [60.0, 66.0, 63.0, 61.0], [50.0, 54.5, 55.0, 48.0]
    found = paired({**dict(enumerate(a)), 8: 0.0}, {**dict(enumerate(b)), 9: 99.0})
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert found is not None and found.interval == pytest.approx((expected.low, expected.high))
    assert paired({0: 1.0}, {1: 1.0}) is None
    single = paired({0: 1.0}, {0: 0.5})
    assert single is not None and single.values == (0.5,) and single.interval is None
