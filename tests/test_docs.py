"""What the documentation says is run, and its numbers come from the committed results."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sparseirm import Recipe, run
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.experiments.pages import filled
from sparseirm.experiments.store import Store

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TUTORIALS = [page for page in PAGES if page.name.startswith("tutorial-")]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        if page in TUTORIALS:
            continue
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
    run_shell(block)


def run_shell(block: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE)
        else:
            assert program == "sparseirm" and main(arguments) == 0


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_a_tutorial_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"```(python|sh)\n(.*?)```", page.read_text(), re.DOTALL)
    assert found
    for number, (language, block) in enumerate(found):
        if language == "sh":
            run_shell(block)
        else:
            exec(compile(block, f"{page.name}-{number}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_command_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`(?:\w+=\S+ )?make ([\w-]+)", page.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name} names make {target}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_committed_results(page: Path) -> None:
    assert filled(page.read_text(), ROOT) == page.read_text(), "run `make tables`"


def test_the_mutation_score_is_that_of_the_last_run() -> None:
    counts = json.loads((ROOT / "results" / "mutants" / "stats.json").read_text())
    assert (
        f"{counts['killed']} of {counts['total']} in the last run"
        in (ROOT / "docs" / "guarantees.md").read_text()
    )
    assert counts["killed"] + counts["survived"] == counts["total"]


def test_a_table_is_made_of_the_runs_it_names(tmp_path: Path) -> None:
    recipe = Recipe(method="erm", width=4, steps=3)
    for one in (recipe, replace(recipe, width=5)):
        Store(tmp_path / "store").put(run(one))
    page = "before\n<!-- table store width=4 -->\nold\n<!-- end -->\nafter"
    new = filled(page, tmp_path)
    assert "old" not in new and new.count("ERM") == 1 and new.startswith("before") and new.endswith("after")


def test_a_field_may_have_one_of_several_values(tmp_path: Path) -> None:
    for width in (4, 5, 6):
        Store(tmp_path / "store").put(run(Recipe(method="erm", width=width, steps=3)))
    page = "<!-- table store width=4,6 -->\n<!-- end -->"
    assert filled(page, tmp_path).count("| ERM |") == 2
    with pytest.raises(SettingError, match="nothing in store has width=7"):
        filled(page.replace("4,6", "7"), tmp_path)


def test_numbers_of_the_paper_are_those_of_its_csv() -> None:
    table = filled("<!-- published table4 -->\n<!-- end -->", ROOT)
    assert "| the paper | train | test |" in table and "| MRM (irmv1) | 82.8 ± 1.1 | 83.4 ± 0.4 |" in table
    table = filled("<!-- published table8 method=Oracle dataset=colored_mnist -->\n<!-- end -->", ROOT)
    assert "| the paper | width 64 | width 160 |" in table and "| Oracle | 66.89 |" in table
    with pytest.raises(SettingError, match="two rows of table8 are Oracle; name more fields"):
        filled("<!-- published table8 method=Oracle -->\n<!-- end -->", ROOT)


def test_trials_are_shown(tmp_path: Path) -> None:
    (tmp_path / "trials.csv").write_text("data,lr,train_risk\na,1,0.5\nb,2.0,0.25\n")
    table = filled("<!-- trials trials.csv data=b columns=lr,train_risk -->\n<!-- end -->", tmp_path)
    assert "| lr | train risk |\n| --- | ---: |\n| 2 | 0.25 |\n<!-- end -->" in table
