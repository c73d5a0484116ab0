"""The health monitor: every finding for what it is about, and none for what is healthy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from makers import outputs
from sparseirm.losses import BINARY
from sparseirm.monitor import (
    SEVERITIES,
    Finding,
    Interval,
    Probe,
    Trace,
    after,
    before,
    change_of_relations,
    during,
    holm,
    shift_of_columns,
)
from sparseirm.penalties import rex
from sparseirm.training.state import Plan

RNG = np.random.default_rng(0)
N = 900
ENV = np.arange(N) % 3


def names(found: Sequence[Finding]) -> dict[str, str]:
    """Severity by name; and every finding says what was seen and what to do."""
    assert all(one.severity in SEVERITIES and one.seen and one.do for one in found)
    return {one.name: one.severity for one in found}


def look(env: Any = ENV, turn: float = 0.0, shift: float = 0.0, **given: Any) -> dict[str, str]:
    """Findings on 2 columns: one whose relation to the target turns, one whose values shift."""
    rng, env = np.random.default_rng(1), np.asarray(env)
    x = rng.normal(size=(len(env), 2))
    x[:, 1] += shift * env
    y = (x[:, 0] * (1 - turn * env) + rng.normal(size=len(env)) > 0).astype(float)
    told = {"y": y, "names": [f"e{e}" for e in range(env.max() + 1)], "classes": ["no", "yes"]} | given
    return names(before(x, told["y"], env, told["names"], told["classes"]))


def test_healthy_rows_have_two_good_findings() -> None:
    assert look(turn=1.0) == {"environments": "good", "environments differ": "good"}
    assert look(shift=1.0) == {"environments": "good", "environments differ": "good"}


@pytest.mark.parametrize(
    ("given", "finding", "severity"),
    [
        ({"env": ENV * 0}, "environments", "problem"),
        ({"env": ENV % 2, "turn": 1.0}, "environments", "warning"),
        ({"env": np.repeat([0, 1, 2], [500, 370, 30]), "turn": 1.0}, "small environments", "warning"),
        ({"y": (ENV == 0).astype(float)}, "environment predicts the target", "warning"),
        ({"y": (ENV == 0).astype(float)}, "absent class", "warning"),
        ({"y": (np.arange(N) < 30).astype(float)}, "rare class", "note"),
        ({}, "alike environments", "warning"),
        ({"y": RNG.normal(size=N) + ENV, "classes": []}, "environment predicts the target", "warning"),
    ],
)
def test_each_ailment_of_rows_has_its_finding(given: dict[str, Any], finding: str, severity: str) -> None:
    assert look(**given)[finding] == severity


def test_alarms_are_false_as_rarely_as_they_say() -> None:
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(60):
        x, y = rng.normal(size=(300, 5)), rng.normal(size=300)
        env = np.arange(300) % 3
        alarms += bool((holm(change_of_relations(x, y, env, [])) < 0.05).any())
        alarms += bool((holm(shift_of_columns(x, env)) < 0.05).any())
    assert stats.binom.sf(alarms - 1, 120, 0.05) > 1e-3


def test_changes_of_relations_are_cochrans_q_of_robust_slopes() -> None:
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(200, 3)), np.repeat([0, 1], [80, 120])
    y = x[:, 0] * (1 + env) + rng.normal(size=200) * (1 + np.abs(x[:, 1]))
    expected = []
    for column in x.T:
        slopes, variances = [], []
        for e in (0, 1):
            design = np.column_stack([np.ones((env == e).sum()), column[env == e]])
            bread = np.linalg.inv(design.T @ design)
            beta = bread @ design.T @ y[env == e]
            meat = design.T @ (design * (y[env == e] - design @ beta)[:, None] ** 2)
            slopes.append(beta[1])
            variances.append((bread @ meat @ bread)[1, 1])
        z = (slopes[0] - slopes[1]) / math.sqrt(sum(variances))
        expected.append(2 * stats.norm.sf(abs(z)))
    assert change_of_relations(x, y, env, []) == pytest.approx(expected, rel=1e-6)
    assert expected[0] < 1e-3


def test_shifts_are_kruskal_wallis_tests() -> None:
    x = np.column_stack([RNG.normal(size=N) + ENV, np.ones(N)])
    expected = stats.kruskal(*(x[e == ENV, 0] for e in range(3))).pvalue
    assert shift_of_columns(x, ENV) == pytest.approx([expected, 1.0])


def test_holm_by_its_definition() -> None:
    p = RNG.random(30) ** 3
    order = np.sort(p)
    for at, adjusted in zip(p, holm(p), strict=True):
        place = int(np.searchsorted(order, at))
        assert adjusted == pytest.approx(min(1, max((30 - j) * order[j] for j in range(place + 1))))


# During.


def trace(**given: Any) -> Trace:
    usual = {"step": 0, "risks": (0.3, 0.3), "penalty": 0.1, "weight": 1.0, "share": 0.5, "reaches": True}
    return Trace(**(usual | {"spread": 1.0} | given))


@pytest.mark.parametrize(
    ("traces", "given", "finding", "severity"),
    [
        ([trace(reaches=False, share=0.0)], {}, "penalty without gradient", "problem"),
        ([trace(share=1e-3)], {}, "faint penalty", "warning"),
        ([trace(share=0.999)], {}, "strong penalty", "note"),
        ([trace(risks=(0.1, 0.5))], {}, "uneven risks", "note"),
        ([trace(risks=(0.69, 0.69), spread=1e-4)], {"constant_risk": 0.6931}, "collapse", "problem"),
        ([trace()], {"undecided": 0.3}, "undecided mask", "warning"),
        ([trace()], {"kept": 4}, "budget missed", "note"),
        ([trace()], {"kept": 6}, "budget missed", "problem"),
    ],
)
def test_each_ailment_of_a_run_has_its_finding(
    traces: list[Trace], given: dict[str, Any], finding: str, severity: str
) -> None:
    usual: dict[str, Any] = {"budget": 5, "kept": 5, "undecided": 0.0, "constant_risk": 0.7}
    assert names(during(traces, **(usual | given))) == {finding: severity}


def test_the_advice_names_only_what_the_kind_of_data_has() -> None:
    traces = [trace(share=1e-3, risks=(0.3, 1.2))]
    for images, budget in ((False, "--columns"), (True, "--densities")):
        found = during(traces, budget=5, kept=5, undecided=None, constant_risk=0.7, images=images)
        assert names(found) == {"faint penalty": "warning", "uneven risks": "note", "collapse": "problem"}
        advice = " ".join(finding.do for finding in found)
        assert {"--columns", "--densities"} & set(re.findall(r"--[a-z]+", advice)) == {budget}
        assert ("SparseIRMClassifier" in advice, "--penalty-weight" in advice) == (not images, images)


def test_a_healthy_run_has_no_finding() -> None:
    traces = [trace(weight=0.0, share=0.0, reaches=False), trace()]
    assert during(traces, budget=5, kept=5, undecided=None, constant_risk=0.7) == []


def test_a_probe_sees_the_gradients_and_changes_nothing() -> None:
    out = outputs(BINARY)
    probe = Probe(rex, Plan(steps=40, penalty_weight=7.0, penalty_from=0.5), looks=4)
    values = [probe(out) for _ in range(40)]
    assert all(value == rex(out) for value in values)
    assert [seen.step for seen in probe.traces] == [0, 10, 20, 30, 39]
    risk = torch.autograd.grad(out.risks.mean(), out.parameters, retain_graph=True)
    penalty = torch.autograd.grad(rex(out), out.parameters, retain_graph=True)
    r, p = (math.sqrt(sum(float(g.square().sum()) for g in grads)) for grads in (risk, penalty))
    assert [seen.share for seen in probe.traces] == pytest.approx([0, 0, *3 * [7 * p / (7 * p + r)]])
    assert probe.traces[0].risks == tuple(out.risks.tolist()) and probe.traces[0].reaches
    assert not any(w.grad is not None for w in out.parameters)


def test_a_detached_penalty_is_found_out() -> None:
    probe = Probe(lambda out: out.risks.detach().var(), Plan(steps=1, penalty_weight=1.0, penalty_from=0.0))
    probe(outputs(BINARY))
    assert not probe.traces[0].reaches


# After.


def test_intervals_are_students() -> None:
    values = RNG.normal(size=5).tolist()
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    found = Interval.of(values)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert Interval.of([1.0]) == Interval.of([1.0, 1.0, 1.0]) == Interval(1.0, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("gain", "name", "severity"),
    [
        (Interval(0.1, 0.05, 0.15), "better than ERM", "good"),
        (Interval(-0.1, -0.15, -0.05), "price of invariance", "warning"),
        (Interval(0.1, -0.05, 0.25), "as good as ERM", "note"),
        (Interval(0.1, -math.inf, math.inf), "as good as ERM", "note"),
    ],
)
def test_beyond_noise_or_not(gain: Interval, name: str, severity: str) -> None:
    finding = after(gain, "accuracy", "SparseIRM")
    assert (finding.name, finding.severity) == (name, severity)
    assert f"{gain.mean:+.3g} accuracy" in finding.seen
