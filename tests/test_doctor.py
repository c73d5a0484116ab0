"""The doctor says what is here, finds what is wrong, and its exit code says so too."""

import struct
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import sparseirm.doctor as module
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data.sources import DATA_VARIABLE, IDX_FILES
from sparseirm.doctor import Finding, doctor


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)


def found(what: str, **settings: Any) -> Finding:
    """What the doctor says about one thing, in order or not."""
    findings: list[Finding] = []
    for part in (module._versions(), module._extras(), module._arithmetic(), [module._training()]):
        findings += part
    findings += [module._output(settings.get("out", Path())), *module._data(settings.get("data_root"))]
    return next(finding for finding in findings if finding.what == what)


def test_a_sound_installation_is_found_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for line in ("python", "torch", "processor", "accelerators", "products", "training", "results", "MNIST"):
        assert f"ok  {line} " in said
    assert "!!" not in said and metadata.version("torch") in said
    assert not [*tmp_path.iterdir()]


def test_trouble_is_named_and_ends_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert main(["doctor", "--data-root", nowhere, "--out", str(tmp_path / "file")]) == 2
    said = capsys.readouterr()
    assert "!!  data " in said.out and "!!  results " in said.out and "ok  training" in said.out
    assert "are not in order: results, data." in said.err


@pytest.mark.parametrize(
    ("requirement", "advice"),
    [
        ("torch>=999", "but >=999 is needed: pip install 'torch>=999'"),
        ("no-such-thing>=1", "missing: pip install"),
    ],
)
def test_a_package_that_is_missing_or_too_old_is_found(
    requirement: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_requirements", lambda: [Requirement(requirement)])
    finding = found(Requirement(requirement).name)
    assert finding.trouble and advice in finding.found


def test_an_extra_that_is_absent_is_no_trouble_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_requirements", lambda: [Requirement("no-such-thing ; extra == 'dev'")])
    finding = found("[dev]")
    assert not finding.trouble
    assert finding.found == "absent (no-such-thing): pip install 'sparseirm[dev]'"


def test_training_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise SettingError("no digits")

    monkeypatch.setattr(module, "run", fail)
    assert found("training") == Finding("training", "fails: SettingError: no digits", trouble=True)


def test_products_that_are_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    import torch

    @contextlib.contextmanager
    def coarse() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            yield

    monkeypatch.setattr(module, "fast_matmul", coarse)
    assert found("products").trouble


def test_damaged_data_are_found(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in IDX_FILES:
        (raw / file).write_bytes(struct.pack(">II", 0x801, 3))
    finding = found("MNIST", data_root=str(tmp_path))
    assert finding.trouble and "cannot be read" in finding.found


def test_the_variable_that_names_no_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "gone"))
    assert found("data").trouble
    with pytest.raises(SettingError, match="not in order: data"):
        doctor(out=tmp_path)


def test_a_folder_that_is_yet_to_be_made_is_no_trouble(tmp_path: Path) -> None:
    finding = module._output(tmp_path / "new" / "out")
    assert not finding.trouble and "out (will be made): files and locks work" in finding.found
    assert not [*tmp_path.iterdir()]
