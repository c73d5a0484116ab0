"""The report of a study: what it says, and that nothing in the data gets out of its place."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from html_pages import parsed
from sparseirm.study.comparison import candidates, folds
from sparseirm.study.problem import build_problem
from sparseirm.study.report import headline, page
from sparseirm.study.result import as_result
from sparseirm.study.study import conduct

SCRIPT = "<script>document.title='owned'</script>"
BREAKOUT = "\"'><img src=x onerror=\"document.title='owned'\">"
TEMPLATE = "{{ 7 * 7 }} $x^ {% endif %}"
LONG = "w" * 300


def hostile_frame() -> pd.DataFrame:
    """Three environments; names and values are chosen to break out of a page."""
    luck = np.random.default_rng(0)
    env = np.repeat([f"{SCRIPT} A", f"B {BREAKOUT}", f"C {TEMPLATE} {LONG}", "D"], 60)
    cause = luck.normal(size=240)
    label = cause + luck.normal(size=240) > 0
    shift = np.repeat([2.0, 0.5, -0.5, -2.0], 60)
    return pd.DataFrame(
        {
            SCRIPT: cause,
            BREAKOUT: shift * np.where(label, 1, -1) + luck.normal(size=240),
            TEMPLATE: luck.choice([SCRIPT, BREAKOUT], size=240),
            LONG: luck.normal(size=240),
            f"left out {SCRIPT}": 1,
            f"target {SCRIPT}": np.where(label, f"yes {SCRIPT}", f"no {BREAKOUT}"),
            f"env {BREAKOUT}": env,
        }
    )


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """What a study of the hostile table found."""
    problem = build_problem(hostile_frame(), f"target {SCRIPT}", f"env {BREAKOUT}", test_env=["D"])
    with ThreadPoolExecutor(1) as pool:
        study = conduct(problem, candidates(4, (2,), steps=30), folds(problem, (0,), 1000), pool)
    settings = {"data": f"{SCRIPT}.csv", "method": "auto", "seeds": (0,), "out": f"out/a b {BREAKOUT}"}
    plain: dict[str, Any] = json.loads(json.dumps(as_result(study, settings, {"python": "3"})))
    return plain


def changed(result: dict[str, Any], **candidates: dict[str, Any]) -> dict[str, Any]:
    """The result with other standings, and without findings."""
    new = copy.deepcopy(result)
    new["findings"], new["columns"] = [], None
    for one in new["comparison"]["candidates"]:
        one |= candidates.get(one["name"].replace("-", "_"), {})
    return new


# What it says.


def compared(
    result: dict[str, Any], taken: str, low: float | None, high: float | None, **invariant: bool
) -> Any:
    new = changed(result, **{name: {"invariant": value} for name, value in invariant.items()})
    rival = "irm" if taken == "erm" else taken
    new["comparison"] |= {
        "taken": taken,
        "against_erm": {"candidate": rival, "mean": 0.0, "low": low, "high": high},
    }
    return headline(new)


def test_the_headline_says_when_plain_training_is_as_good(result: dict[str, Any]) -> None:
    fine = compared(result, "erm", -0.1, 0.1, erm=True)
    assert (fine.kind, fine.title) == ("good", "ERM is as good here: use plain training")
    unsure = compared(result, "erm", -0.1, 0.1, erm=False)
    assert unsure.kind == "odd" and unsure.title.startswith("ERM is as good here, but")
    asked = compared(result, "sparseirm", -0.1, 0.1, erm=True, sparseirm=True)
    assert asked.kind == "odd" and asked.title.startswith("ERM is as good here as SparseIRM")


def test_the_headline_warns_of_plain_training_on_columns_that_look_spurious(result: dict[str, Any]) -> None:
    new = changed(result, erm={"invariant": True})
    new["comparison"]["taken"] = "erm"
    assert headline(new).kind == "good"
    verdicts = [{"column": "trap", "verdict": "spurious-looking"}, {"column": "age", "verdict": "stable"}]
    warned = headline({**new, "columns": {"verdicts": verdicts}})
    assert warned.kind == "odd" and warned.words[0].startswith("ERM uses trap: ")


def test_the_headline_follows_the_interval_and_the_invariance(result: dict[str, Any]) -> None:
    kinds = {"erm": False, "sparseirm": True}
    assert "holds up where ERM does not" in compared(result, "sparseirm", 0.1, 0.2, **kinds).title
    assert "safer choice" in compared(result, "sparseirm", -0.1, 0.2, **kinds).title
    assert "ERM scores higher" in compared(result, "sparseirm", -0.2, -0.1, **kinds).title
    assert "may not carry over" in compared(result, "sparseirm", 0.1, 0.2, sparseirm=False).title
    assert "safer choice" in compared(result, "sparseirm", None, None, **kinds).title


def test_a_problem_comes_before_everything_else(result: dict[str, Any]) -> None:
    new = changed(result)
    new["findings"] = [
        {"stage": "during", "severity": "problem", "name": "collapse", "seen": "No better.", "do": "Train."}
    ]
    found = headline(new)
    assert (found.kind, found.title) == ("bad", "Do not use this model yet") and found.words[
        0
    ] == "No better. Train."


def test_two_training_environments_are_said_to_be_untested(result: dict[str, Any]) -> None:
    new = changed(result)
    for one in new["comparison"]["candidates"]:
        one["held_out"] = []
    assert any("Not tried on an environment it had not seen" in words for words in headline(new).words)
    assert "Environments left out of training" not in page(new).decode()
    assert "were compared by leaving rows out" in page(new).decode()
    assert "were compared by leaving environments and rows out" in page(result).decode()


def test_a_model_that_guesses_and_intervals_of_few_values_are_said_to_be(result: dict[str, Any]) -> None:
    new = changed(result)
    new["comparison"]["against_erm"] |= {"low": -0.1, "high": 0.1}
    assert any("95 % interval" in words for words in headline(new).words)
    for one in new["comparison"]["candidates"]:
        one["held_out"] = one["held_out"][:2]
    assert not any("95 % interval" in words for words in headline(new).words)
    guesses = {"severity": "problem", "name": "no better than guessing", "seen": "0.4.", "do": "More data."}
    found = headline({**new, "findings": [{"stage": "after", **guesses}]})
    assert found.kind == "bad" and found.title == "Do not use this model: it is no better than guessing"


def test_every_figure_of_the_panels_is_that_of_the_result(result: dict[str, Any]) -> None:
    text = page(result).decode()
    shown = re.findall(
        r'class="name">(.+?)</span><b class="value" title="95 % interval (.+?)">(.+?)</b>', text
    )
    wanted = {
        (one["label"], f"{score['low']:.3f} to {score['high']:.3f}", f"{score['score']:.3f}")
        for one in result["comparison"]["candidates"]
        for part in ("held_out", "tested", "fresh")
        for score in one[part]
    }
    assert set(shown) <= wanted and len(shown) == 4 * 7  # four methods, three + one + three panels
    names = {one["name"]: one["label"] for one in result["comparison"]["candidates"]}
    assert {"ERM", names[result["comparison"]["taken"]], names[result["columns"]["by"]]} <= {
        line[0] for line in shown
    }


def test_dots_lie_within_their_intervals_and_on_the_axis(result: dict[str, Any]) -> None:
    text = page(result).decode()
    marks = re.findall(r'<i style="left: (\S+)%; width: (\S+)%"></i><b style="left: (\S+)%">', text)
    assert len(marks) == 28
    for left, width, at in (map(float, mark) for mark in marks):
        assert 0 <= left <= at + 0.02 and at <= left + width + 0.02 and left + width <= 100.01


def test_the_gap_of_calibration_is_the_mean_over_rows(result: dict[str, Any]) -> None:
    new = changed(result)
    new["comparison"]["taken"] = "erm"
    bins = [{"rows": 30, "predicted": 0.9, "true": 0.8}, {"rows": 10, "predicted": 0.6, "true": 0.8}]
    new["calibration"] = {"erm": {"held_out": {"X": bins}, "fresh": {}}}
    assert "off by 0.125 on average" in page(new).decode()  # (30 * 0.1 + 10 * 0.2) / 40


@pytest.mark.parametrize(
    ("command", "rest"), [("predict", ["new.csv", "-o", "predictions.csv"]), ("evaluate", ["labelled.csv"])]
)
def test_commands_can_be_pasted_into_a_shell(result: dict[str, Any], command: str, rest: list[str]) -> None:
    reader = parsed(page(result))
    (line,) = re.findall(rf"sparseirm {command} .*? {re.escape(' '.join(rest))}", reader.text)
    words = subprocess.run(
        ["sh", "-c", f"set -- {line}; printf '%s\\n' \"$@\""], capture_output=True, text=True, check=True
    )
    assert words.stdout.splitlines() == ["sparseirm", command, result["settings"]["out"], *rest]


# What it lets through.


def test_nothing_in_the_data_becomes_markup(result: dict[str, Any]) -> None:
    reader = parsed(page(result))
    assert not {"script", "img", "iframe", "object"} & set(reader.seen)
    for name in (SCRIPT, BREAKOUT, TEMPLATE, LONG, f"target {SCRIPT}", f"C {TEMPLATE} {LONG}"):
        assert name in reader.text
    assert "49 $x^" not in reader.text


def test_the_page_loads_nothing(result: dict[str, Any]) -> None:
    text = page(result).decode()
    assert "default-src 'none'" in text and not re.search(
        r"\bsrc=|url\(|@import", re.sub("&#?\\w+;.*?&gt;", "", text)
    )
    assert not re.findall(r'href="(?!#)([^"]+)', text)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

MEASURE = """<body style="margin:0"><iframe src="report.html" style="width:360px;border:0"></iframe>
<script>onload = () => { const page = document.querySelector('iframe').contentDocument;
document.title = [page.title == 'owned', page.documentElement.scrollWidth, page.images.length]; }</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome is installed")
def test_a_browser_runs_nothing_and_a_phone_scrolls_in_one_direction(
    result: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_bytes(page(result))
    (tmp_path / "phone.html").write_text(MEASURE)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    found = subprocess.run(
        [*command, (tmp_path / "phone.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    (seen,) = re.findall("<title>(.*)</title>", found.stdout)
    owned, width, images = seen.split(",")
    assert owned == "false" and int(width) <= 360 and images == "0"
