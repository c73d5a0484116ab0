"""What is built is what is needed: source archive and wheel, their metadata, and a run from nothing else."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}


def output_of(*command: object, cwd: Path) -> str:
    """What a command says, run without anything of this checkout on the path."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    pytest.importorskip("hatchling", reason="the package is built with hatchling")
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive alone."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    output_of(*build, "-w", folder, archive, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_source_archive_holds_the_sources_and_little_else(archive: Path) -> None:
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {f"src/{module}" for module in MODULES} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "results", "docs", "out"))]
    assert archive.stat().st_size < 1_000_000


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_licence_and_the_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
    assert names >= MODULES and "sparseirm/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith("sparseirm")]


@pytest.mark.slow
def test_the_metadata_say_what_is_needed(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path)
    found = metadata.PathDistribution(next(tmp_path.glob("*.dist-info")))
    assert found.metadata["Requires-Python"] == ">=3.11" and found.metadata["License-Expression"] == "MIT"
    assert {"dev", "docs"} <= {*found.metadata.get_all("Provides-Extra", [])}
    assert [point.value for point in found.entry_points] == ["sparseirm.cli:main"]
    assert any(requirement.startswith("torch>=") for requirement in found.requires or [])


@pytest.mark.slow
def test_the_wheel_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its own but for the dependencies, which are this environment's: they take gigabytes."""
    output_of(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    output_of(*pip, wheel, cwd=tmp_path)
    place = output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    Path(place.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    where = output_of(python, "-c", "import sparseirm; print(sparseirm.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    said = output_of(tmp_path / "venv" / "bin" / "sparseirm", "doctor", cwd=tmp_path)
    assert "ok  training" in said and "!!" not in said


def test_the_citation_is_of_the_paper() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    for line in ("title: Sparse Invariant Risk Minimization", "given-names: Weizhong", "year: 2022"):
        assert line in text
