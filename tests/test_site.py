"""The documentation builds without a warning, and nothing in the repository is missing from it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings", "latex2mathml")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="pip install 'sparseirm[docs]'"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    surroundings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation(site: Path) -> None:
    navigation = (site / "index.html").read_text()
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "results" / "theory" / "theory.md"]:
        assert re.search(rf'href="[^"]*\b{page.stem}\.html"', navigation), (
            f"{page.name} is nowhere to be found"
        )


def test_every_module_is_in_the_reference(site: Path) -> None:
    reference = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    for path in (ROOT / "src" / "sparseirm").rglob("*.py"):
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            assert f'id="{name}"' in reference, f"{name} is not described"


def test_every_image_and_page_linked_exists(site: Path) -> None:
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:src|href)="((?!https?:|#|mailto:|data:)[^"#?]+)', page.read_text()):
            if page.name != "404.html":
                assert (page.parent / target).exists(), f"{page.relative_to(site)} links to {target}"


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?:', page.read_text()
        )


def test_formulas_of_pages_and_docstrings_are_set_as_formulas(site: Path) -> None:
    assert (site / "why-irm-overfits.html").read_text().count("<math") > 10
    assert (site / "reference" / "penalties.html").read_text().count("<math") > 10
    for page in site.rglob("*.html"):
        assert not re.search(r"@@\d+@@|\$\$", page.read_text()), page.name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("J = 1/E sum_e (d/dw R_e(w f) at w = 1)**2", ["&#x02211;", "<msup>", "<mi>J</mi>"]),
        ("w_j ~ N(1, sd**2)", ["<msub>", "<msup>"]),
        ("dL/ds = g w m (1 - m) / (tau max(s (1 - s), floor))", ["&#x003C4;"]),
    ],
)
def test_a_formula_becomes_one(text: str, parts: list[str], hooks: ModuleType) -> None:
    found = hooks._typeset(text)
    assert found is not None
    for part in parts:
        assert part in found


@pytest.mark.parametrize(
    "text", ["out.noise", "(n, h)", "(budget, **options) -> sparsifier", "x[a_e]", "n_envs"]
)
def test_code_stays_code(text: str, hooks: ModuleType) -> None:
    assert hooks._typeset(text) is None
