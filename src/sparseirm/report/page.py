"""A template and its values to one file that needs no other: no script, no download, nothing unescaped."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from sparseirm.files import digest

HERE = Path(__file__).parent


def render(template: Path, **values: object) -> bytes:
    """Fill in a template; every value is escaped unless it is `Markup`.

    A page starts with ``{% extends "base.html" %}`` and fills the blocks ``title``, ``lead`` (a sentence)
    and ``content``. ``{% import "parts.html" as parts %}`` gives it tables, figures, cards and badges.

    Args:
        template: a Jinja template; others in its folder, and those of this package, can be used in it.
        **values: what the template names.

    Returns:
        The page, UTF-8.

    Raises:
        jinja2.TemplateError: if the template is wrong or names a value that is not given.

    Example:
        >>> import tempfile
        >>> page = Path(tempfile.mkdtemp()) / "page.html"
        >>> _ = page.write_text('{% extends "base.html" %}{% block title %}{{ name }}{% endblock %}')
        >>> b"<h1>&lt;b&gt;</h1>" in render(page, name="<b>")
        True
    """
    folders = [FileSystemLoader(folder) for folder in (template.parent, HERE)]
    environment = Environment(
        loader=ChoiceLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values).encode()


def svg(figure: Figure, label: str) -> Markup:
    """A figure as an SVG element to stand in a page: as wide as there is room, in the colours of the page.

    What is black in the figure (axes, text) takes the page's text colour and what is white its background, so
    that it can be read on a dark page too. Text stays text.

    Args:
        figure: the figure.
        label: what it shows, for those who cannot see it.

    Returns:
        The element, safe to put into HTML as it is.

    Example:
        >>> element = svg(Figure(figsize=(2, 1)), "nothing <yet>")
        >>> element.startswith('<svg role="img" aria-label="nothing &lt;yet&gt;"')
        True
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sparseirm"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    drawing = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>", "", buffer.getvalue())
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    width, height = (72 * inches for inches in figure.get_size_inches())
    mark = digest(drawing.encode())[:8]  # names are unique in a figure, and have to be in the whole page
    return Markup(
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="width: 100%; max-width: {1.4 * width:.0f}px; height: auto; stroke-linejoin: round" '
        f'fill="currentColor">{re.sub("<[^>]+>", lambda tag: _of_page(tag[0], mark), body)}'
    )


def _of_page(tag: str, mark: str) -> str:
    """A tag of matplotlib's drawing as part of a page: its text colour, its font, names of its own."""
    for pattern, instead in (
        (r'^<g id="[^"]*"', "<g"),
        (r'\bid="', f'id="{mark}-'),
        (r"url\(#", f"url(#{mark}-"),
        (r'xlink:href="#', f'href="#{mark}-'),
        (r"#000000\b", "currentColor"),
        (r"#ffffff\b", "var(--page)"),
        (r"font: (?:\d+ )?([\d.]+px)[^;]*", r"font-size: \1"),  # before matplotlib 3.10
        (r"font-family: [^;]*; ", ""),
        (r"\s+", " "),
    ):
        tag = re.sub(pattern, instead, tag)
    return tag
