"""A study as one page for a person who did not train the model, made of ``result.json`` alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseirm.report import render
from sparseirm.study.choice import GUESSING
from sparseirm.study.verdicts import DOUBTFUL, SPURIOUS, STABLE, UNUSED

Plain = dict[str, Any]

HERE = Path(__file__)

MOST_PANELS = 12
"""Environments with a panel of their own in sight; the others are folded away."""

FEWEST_FOR_INTERVAL = 3
"""Values from which an interval of their mean is shown."""

NOTHING = "\N{EN DASH}"

LOWEST_R2 = -1.0
"""Where the axis of scores ends at the latest: a share of variance explained has no lower bound."""


@dataclass(frozen=True)
class Headline:
    """What a reader should take away.

    Attributes:
        kind: ``good``, ``odd`` or ``bad``.
        title: one line.
        words: the reasons, a paragraph each.
    """

    kind: str
    title: str
    words: tuple[str, ...]


def page(result: Plain) -> bytes:
    """The report.

    Args:
        result: the content of ``result.json``, see `sparseirm.study.result.as_result`.

    Returns:
        A page that needs no other file, UTF-8; every name and value of the data is escaped.
    """
    shown = _shown(result)
    return render(
        HERE.with_name("report.html"),
        result=result,
        headline=headline(result),
        cards=_cards(result),
        groups=_groups(result, shown),
        rows=_rows(result),
        columns=_columns(result),
        witness=_named(result, result["columns"]["by"])["label"] if result["columns"] else "",
        inputs=[
            (one["name"], one["kind"], f"{one['missing']:.1%}", one["note"])
            for one in result["data"]["columns"]
        ],
        calibration=_calibration(result),
        stages=_stages(result["findings"]),
        commands=_commands(result),
        taken=_taken(result),
    )


def headline(result: Plain) -> Headline:
    """The verdict: which model to use, or that plain training is as good.

    Args:
        result: the content of ``result.json``.

    Returns:
        The verdict.
    """
    compared = result["comparison"]
    taken, erm = _taken(result), _named(result, "erm")
    problems = [f"{one['seen']} {one['do']}" for one in result["findings"] if one["severity"] == "problem"]
    if problems:
        guesses = any(one["name"] == GUESSING for one in result["findings"])
        title = (
            "Do not use this model: it is no better than guessing" if guesses else "Do not use this model yet"
        )
        return Headline("bad", title, (*problems, compared["why"]))
    words = (compared["why"], *_against_erm(result), *_untested(result))
    if taken is erm:
        spurious = _spurious(result)
        if spurious:
            leans = f"ERM uses {', '.join(spurious)}: what that says changes between environments."
            return Headline(
                "odd", "ERM is as good here, but uses columns that look spurious", (leans, *words)
            )
        if erm["invariant"]:
            return Headline("good", "ERM is as good here: use plain training", words)
        return Headline("odd", "ERM is as good here, but it may not carry over", words)
    if not taken["invariant"]:
        return Headline("odd", f"{taken['label']} did best, but it may not carry over", words)
    low, high = _gain(result)
    if low > 0:
        return Headline("good", f"Use {taken['label']}: it holds up where ERM does not", words)
    if high < 0:
        return Headline("odd", f"{taken['label']} is steadier, but ERM scores higher here", words)
    if erm["invariant"]:
        return Headline("odd", f"ERM is as good here as {taken['label']}", words)
    return Headline(
        "good", f"{taken['label']} is the safer choice; within noise, ERM scores as high here", words
    )


def _spurious(result: Plain) -> list[str]:
    verdicts = result["columns"]["verdicts"] if result["columns"] else []
    return [one["column"] for one in verdicts if one["verdict"] == SPURIOUS]


def _gain(result: Plain) -> tuple[float, float]:
    gain = result["comparison"]["against_erm"]
    unknown = float("inf")
    return (
        -unknown if gain["low"] is None else gain["low"],
        unknown if gain["high"] is None else gain["high"],
    )


def _against_erm(result: Plain) -> Iterable[str]:
    gain = result["comparison"]["against_erm"]
    name = _named(result, gain["candidate"])["label"]
    where = "on environments left out of training" if _taken(result)["held_out"] else "on rows left out"
    few = len(_taken(result)["held_out"] or _taken(result)["fresh"]) < FEWEST_FOR_INTERVAL
    interval = (
        ""
        if few or gain["low"] is None
        else f" (95 % interval {_signed(gain['low'])} to {_signed(gain['high'])})"
    )
    yield f"{name} against ERM {where}: {_signed(gain['mean'])} {result['comparison']['score']}{interval}."


def _untested(result: Plain) -> Iterable[str]:
    if not _taken(result)["held_out"]:
        yield (
            "Not tried on an environment it had not seen: with two training environments none can be left "
            "out. Keep a third, even a small one, before you rely on this."
        )


def _cards(result: Plain) -> list[tuple[str, str]]:
    """The most important figures."""
    taken, erm, score = _taken(result), _named(result, "erm"), result["comparison"]["score"]
    where = "environments left out" if taken["held_out"] else "rows left out"
    cards = []
    for one in [taken] if taken is erm else [taken, erm]:
        scores = one["held_out"] or one["fresh"]
        mean = sum(part["score"] for part in scores) / len(scores)
        worst = min(scores, key=lambda part: float(part["score"]))
        cards.append((f"{mean:.3g}", f"{one['label']}: mean {score} on {where}"))
        cards.append((f"{worst['score']:.3g}", f"its worst of them: {worst['env']}"))
    for one, other in list(zip(taken["tested"], erm["tested"], strict=True))[:2]:
        rest = "" if taken is erm else f" (ERM {other['score']:.3g})"
        cards.append((f"{one['score']:.3g}", f"in test environment {one['env']}{rest}"))
    kept = sum(weight > 0 for weight in result["model"].get("columns", {}).values())
    if kept:
        cards.append((f"{kept} of {len(result['model']['columns'])}", "input columns kept by the model"))
    else:
        cards.append((f"{result['model']['kept']:,}", f"of {result['model']['n_weights']:,} weights kept"))
    return cards


def _shown(result: Plain) -> list[Plain]:
    """The four candidates that matter most: ERM, the one taken, their rival, the sparse one, then others."""
    compared = result["comparison"]
    sparse = [result["columns"]["by"]] if result["columns"] else []
    first = ["erm", compared["taken"], compared["against_erm"]["candidate"], *sparse]
    wanted = list(dict.fromkeys([*first, *(one["name"] for one in compared["candidates"])]))[:4]
    return [one for one in compared["candidates"] if one["name"] in wanted]


def _groups(result: Plain, shown: Sequence[Plain]) -> list[Plain]:
    """Panels of scores with intervals, by what was held out."""
    told = (
        ("held_out", "Environments left out of training", "each model never saw the environment named"),
        ("tested", "Test environments", "no choice looked at these"),
        ("fresh", "Rows left out of training", "other rows of environments that were trained on"),
    )
    every = [score for one in shown for part, _, _ in told for score in one[part]]
    low = max(min(score["low"] for score in every), LOWEST_R2)
    low, high = min(low, max(score["score"] for score in every) - 0.01), max(s["high"] for s in every)
    groups: list[Plain] = []
    for part, title, note in told:
        names = [score["env"] for score in shown[0][part]]
        panels = [
            {"env": env, "rows": shown[0][part][at]["rows"], "lines": _lines(shown, part, at, low, high)}
            for at, env in enumerate(names)
        ]
        if panels:
            folded = part == "fresh" and len(groups) > 0
            ends = {"low": low, "high": high, "folded": folded}
            parts = {"panels": panels[:MOST_PANELS], "rest": panels[MOST_PANELS:]}
            groups.append({"title": title, "note": note, **parts, **ends})
    return groups


def _lines(shown: Sequence[Plain], part: str, at: int, low: float, high: float) -> list[Plain]:
    def place(value: float) -> float:
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)

    lines = []
    for one in shown:
        score = one[part][at]
        ends = place(score["low"]), place(score["high"])
        lines.append(
            {
                "name": one["name"],
                "label": one["label"],
                "score": score["score"],
                "interval": f"{score['low']:.3f} to {score['high']:.3f}",
                "at": place(score["score"]),
                "left": ends[0],
                "width": round(ends[1] - ends[0], 2),
            }
        )
    return lines


def _rows(result: Plain) -> list[Sequence[str]]:
    """Every candidate as a row of the large table."""

    def mean_and_worst(scores: Sequence[Plain]) -> str:
        each = [score["score"] for score in scores]
        return f"{sum(each) / len(each):.3f} ({min(each):.3f})" if each else NOTHING

    def number(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.2f}"

    return [
        (
            one["label"],
            *(mean_and_worst(one[part]) for part in ("held_out", "fresh", "tested")),
            number(one["uneven"]),
            number(one["disagreement"]),
            "yes" if one["invariant"] else "no",
        )
        for one in result["comparison"]["candidates"]
    ]


def _columns(result: Plain) -> list[Plain]:
    """Groups of columns by verdict, each with bars of its importance by environment."""
    if not result["columns"]:
        return []
    verdicts = result["columns"]["verdicts"]
    rises = [
        abs(rise)
        for one in verdicts
        for part in ("importance", "erm_importance")
        for rise in one[part].values()
    ]
    most = max(rises, default=0) or 1
    alike = "kept, used in every environment, and related to the target alike in all"
    caution = "; two environments cannot tell a spurious column that is alike in both from a stable one"
    words = {
        STABLE: ("good", "Stable", alike if _taken(result)["held_out"] else alike + caution),
        SPURIOUS: (
            "bad",
            "Spurious-looking",
            "ERM uses them, but what they say changes between environments",
        ),
        DOUBTFUL: ("odd", "Doubtful", "the evidence is mixed"),
        UNUSED: ("soft", "Unused", "no model needs them"),
    }
    groups = []
    for verdict, (kind, title, note) in words.items():
        found = sorted((one for one in verdicts if one["verdict"] == verdict), key=lambda one: -_use(one))
        cards = [
            {
                **one,
                "bars": [
                    (label, _bars(one[part], most))
                    for label, part in (("ERM", "erm_importance"), ("sparse", "importance"))
                ],
            }
            for one in found
        ]
        if cards:
            groups.append({"kind": kind, "title": title, "note": note, "cards": cards})
    return groups


def _use(verdict: Plain) -> float:
    return float(sum(verdict["importance"].values()) + sum(verdict["erm_importance"].values()))


def _bars(importance: dict[str, float], most: float) -> list[Plain]:
    """Bars around a base line at 20 of 24: up for a column that helps, down for one that misleads."""
    bars = []
    for env, rise in importance.items():
        length = min(1.0, abs(rise) / most) * 19
        bars.append(
            {
                "env": env,
                "rise": rise,
                "y": round(20 - length if rise > 0 else 20, 2),
                "height": round(max(0.6, length if rise > 0 else min(4.0, length)), 2),
            }
        )
    return bars


def _calibration(result: Plain) -> list[Plain]:
    """By environment the reliability of ERM and of the model taken: points, and the mean gap."""
    classifies = result["data"]["task"] == "classification"
    low, high = (0.0, 1.0) if classifies else (-3.0, 3.0)
    taken = _taken(result)["name"]
    panels: dict[str, Plain] = {}
    for name in dict.fromkeys(("erm", taken)):
        found = result["calibration"][name]
        for env, bins in (found["held_out"] or found["fresh"]).items():
            rows = sum(one["rows"] for one in bins)
            gap = sum(one["rows"] * abs(one["predicted"] - one["true"]) for one in bins) / rows
            points = [
                {
                    "x": round(100 * min(1.0, max(0.0, (one["predicted"] - low) / (high - low))), 1),
                    "y": round(100 - 100 * min(1.0, max(0.0, (one["true"] - low) / (high - low))), 1),
                    "r": round(1.5 + 7 * (one["rows"] / rows) ** 0.5, 2),
                    "told": f"{one['rows']:.0f}: {one['predicted']:.2f} predicted, {one['true']:.2f} true",
                }
                for one in bins
            ]
            kind = "taken" if name == taken else "erm"
            series = {"kind": kind, "label": _named(result, name)["label"], "gap": gap, "points": points}
            panels.setdefault(env, {"env": env, "series": []})["series"].append(series)
    return list(panels.values())


def _stages(findings: Sequence[Plain]) -> list[tuple[str, list[Plain]]]:
    """The monitor's findings, the gravest first, by stage."""
    order = ("problem", "warning", "note", "good")
    kinds = dict(zip(order, ("bad", "odd", "soft", "good"), strict=True))
    titles = {"before": "Before training: the data", "during": "During training", "after": "After training"}
    stages = []
    for stage, title in titles.items():
        found = [{**one, "kind": kinds[one["severity"]]} for one in findings if one["stage"] == stage]
        if found:
            stages.append((title, sorted(found, key=lambda one: order.index(one["severity"]))))
    return stages


def _commands(result: Plain) -> dict[str, str]:
    """How the model is used, ready to be copied."""
    folder = result["settings"]["out"]
    quoted, end = shlex.quote(folder), "" if folder.endswith("/") else "/"
    images = result["kind"] == "images"
    new, labelled = ("NEW_IMAGES", "LABELLED_IMAGES") if images else ("new.csv", "labelled.csv")
    exported = shlex.quote(f"{folder}{end}model.onnx")
    return {
        "folder": repr(folder),
        "predict": f"sparseirm predict {quoted} {new} -o predictions.csv",
        "evaluate": f"sparseirm evaluate {quoted} {labelled}",
        "export": f"sparseirm export {quoted} --out {exported}",
    }


def _taken(result: Plain) -> Plain:
    return _named(result, result["comparison"]["taken"])


def _named(result: Plain, name: str) -> Plain:
    found: Plain = next(one for one in result["comparison"]["candidates"] if one["name"] == name)
    return found


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
