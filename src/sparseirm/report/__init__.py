"""Self-contained HTML pages: one base template, figures inside the page, every value escaped."""

from sparseirm.report.page import render, svg

__all__ = ["render", "svg"]
