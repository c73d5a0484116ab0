"""The examples for other frameworks do what they say, and the documentation quotes them as they are."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"lightning_module": ("lightning",), "huggingface_trainer": ("transformers", "accelerate")}


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_sparse_invariant_training_beats_plain_training_where_the_shortcut_fails(path: Path) -> None:
    for package in NEEDS[path.stem]:
        pytest.importorskip(package, reason=f"needs the package {package}; see the first line of {path.name}")
    accuracy = loaded(path).main()
    assert accuracy["SparseIRM"] > accuracy["ERM"] + 10


def test_the_documentation_quotes_the_examples_as_they_are() -> None:
    sources = [path.read_text() for path in EXAMPLES]
    quotes = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "other-frameworks.md").read_text(), re.DOTALL)
    assert len(quotes) >= len(EXAMPLES)
    for quote in quotes:
        assert any(quote in source for source in sources), quote
