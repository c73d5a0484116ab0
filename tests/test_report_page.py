"""Pages need nothing but themselves, and show every value as it is."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from html_pages import parsed
from sparseirm.report import render, svg

HOSTILE = "<script>alert('x')</script> & \"quotes\""
TEMPLATE = """{% extends "base.html" %}{% import "parts.html" as parts %}
{% block title %}{{ title }}{% endblock %}
{% block content %}
{{ parts.table(["name", title], [[title, 1], ["b", title]], title) }}
{{ parts.cards([(title, title)]) }}{{ parts.badge("good", title) }}{{ parts.figure(drawing, title) }}
{% endblock %}"""


def a_figure(label: str = "line") -> Figure:
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [1, 0], "o-", label=label)
    axes.legend()
    return figure


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(TEMPLATE)
    return path


def test_every_value_is_escaped(template: Path) -> None:
    page = render(template, title=HOSTILE, drawing=svg(a_figure(HOSTILE), HOSTILE))
    found = parsed(page)
    assert "script" not in found.seen and found.text.count(HOSTILE) >= 9
    assert {"table", "caption", "figure", "svg"} <= set(found.seen)


def test_a_page_loads_nothing(template: Path) -> None:
    page = render(template, title="t", drawing=svg(a_figure(), "x")).decode()
    assert not re.search(r"<(script|link|img|iframe)|\bsrc=|@import", page)
    assert re.findall(r"(?:url\(|href=\")(?!#)([^)\"]+)", page) == []


def test_a_value_that_is_missing_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError, match="drawing"):
        render(template, title="t")


def test_a_figure_takes_the_colour_of_the_page_and_keeps_its_text() -> None:
    element = svg(a_figure("a < b #000000"), "x")
    root = ET.fromstring(element)
    assert "a < b #000000" in [text.text for text in root.iter("text")]
    assert "currentColor" in element and "font-family" not in element and "metadata" not in element


def test_names_in_two_figures_do_not_meet() -> None:
    one, two = (svg(a_figure(label), label) for label in ("one", "two"))
    names = [set(re.findall(r'\bid="([^"]+)"', element)) for element in (one, two)]
    assert names[0] and not names[0] & names[1]
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", one))
    assert used <= names[0]


def test_the_same_figure_gives_the_same_bytes() -> None:
    assert svg(a_figure(), "x") == svg(a_figure(), "x")
