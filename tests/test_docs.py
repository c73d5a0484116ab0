"""What the documentation says is run, and its numbers come from the committed results."""

import re
import shlex
from pathlib import Path

import pytest

from sparseirm.cli import main
from sparseirm.experiments.store import Store
from sparseirm.experiments.tables import markdown, rows

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append((f"{page.name}-{number}", block))
    return found


@pytest.mark.parametrize(("name", "block"), blocks("python"))
def test_python_blocks_run(name: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), {})


@pytest.mark.parametrize(("name", "block"), blocks("sh"))
def test_shell_blocks_run(name: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    makefile = (ROOT / "Makefile").read_text()
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE)
        else:
            assert program == "sparseirm" and main(arguments) == 0


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    ("page", "store"),
    re.findall(r"<!-- table (\S+) (\S+) -->", "README.md") or [("README.md", "results/demo")],
)
def test_tables_are_those_of_the_committed_results(page: str, store: str) -> None:
    assert markdown(rows(Store(ROOT / store).all())) in (ROOT / page).read_text()
