"""Claims about `fit` and `predict` on images: what is left out, what is said, what is written."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from html_pages import parsed
from image_makers import encoded, noise_image, write_folder, write_manifest
from sparseirm import Recipe, load_model, run
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data.own import own_images
from sparseirm.files import read_tensors, write_tensors
from sparseirm.runs import MODEL
from sparseirm.study import image_commands
from sparseirm.study.fit import holds_images
from sparseirm.study.image_commands import predict_images
from sparseirm.study.image_result import as_image_result
from sparseirm.study.image_runs import assess_images, attention, candidates, recipe_of
from sparseirm.study.image_study import conduct_images
from sparseirm.study.images import LISTINGS, brought_to_size, find_images

HOSTILE = ("<img src=x onerror=alert(1)>", "b&'\"", "c")
SMALL = ["--size", "8", "--width", "4", "--steps", "4", "--seeds", "0", "--densities", "0.5"]


@contextmanager
def in_this_process(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_commands, "local", in_this_process)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three environments of twenty pictures, one of them with a hostile name; twelve by twelve pixels."""
    folder = write_folder(tmp_path_factory.mktemp("images") / "shop")
    for old, new in zip(("a", "b", "c"), HOSTILE, strict=True):
        (folder / old).rename(folder / new)
    return folder


@pytest.fixture(scope="module")
def fitted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_commands, "local", in_this_process)
        out = tmp_path_factory.mktemp("out") / "fit"
        assert main(["fit", str(root), *SMALL, "--out", str(out)]) == 0
    return out


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


# What is compared.


def test_every_environment_is_left_out_in_turn_and_a_third_of_the_images(fitted: Path) -> None:
    for one in result_of(fitted)["comparison"]["candidates"]:
        assert [(score["env"], score["rows"]) for score in one["held_out"]] == [
            (e, 20) for e in sorted(HOSTILE)
        ]
        assert [score["rows"] for score in one["fresh"]] == [7, 7, 7] and one["tested"] == []


@pytest.mark.parametrize("name", ["erm", "sparseirm-0.5"])
def test_scores_are_those_of_a_run_without_the_environment(root: Path, name: str) -> None:
    images = find_images(root, size=8, width=4, steps=4)
    (one,) = [candidate for candidate in candidates(True, [0.5]) if candidate.name == name]
    found, _ = assess_images(images, one, "held out", 3, 1, 0.0)
    score = run(recipe_of(images, one, 3, 1), data_root=str(root)).last["val"]
    (seen,) = found.seen
    assert {seen.env: 100 * seen.score} == pytest.approx(score.per_env)
    assert {seen.env: seen.risk} == pytest.approx(score.risks, rel=1e-5)


def test_test_environments_are_seen_by_no_choice_and_no_training(root: Path) -> None:
    images = find_images(root, ["c"], size=8, width=4, steps=4)
    erm = candidates(True)[0]
    found, _ = assess_images(images, erm, "fresh", 0, None, 1 / 3)
    assert [one.env for one in found.seen] == sorted(HOSTILE[:2])
    assert [(one.env, one.rows) for one in found.tested] == [("c", 20)]
    assert set(recipe_of(images, erm, 0).make_data(str(root)).train.names) == set(HOSTILE[:2])


def test_a_constant_prediction_scores_as_its_class_shares(root: Path) -> None:
    images = find_images(root, size=8, width=4, steps=1)
    found, _ = assess_images(images, candidates(True)[0], "held out", 0, 0, 0.0)
    assert found.seen[0].constant_risk == pytest.approx(np.log(2))  # both classes are as frequent


def test_small_copies_are_the_same_images(root: Path) -> None:
    images = find_images(root, size=8)
    with brought_to_size(images) as small:
        copies = own_images(LISTINGS["manifest"], "x", str(small.root), (), size=8, val_fraction=0.3)
    whole = own_images(LISTINGS["folder"], "x", str(root), (), size=8, val_fraction=0.3)
    for part in ("train", "val"):
        one, other = getattr(copies, part), getattr(whole, part)
        assert one.names == other.names and torch.equal(one.samples.x, other.samples.x)
        assert torch.equal(one.samples.y, other.samples.y)


class Squares(nn.Module):
    """The sum of squares of an image, whose slope by a pixel is twice its value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x**2).sum((1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize("n", [4, 512, 513, 2000])
def test_attention_is_that_of_images_of_all_environments(n: int) -> None:
    x = torch.zeros(n, 3, 2, 2)
    x[: n // 2, :, 0, 0] = 1.0  # images come environment by environment
    x[n // 2 :, :, 1, 1] = 1.0
    assert attention(Squares(), x).flatten().tolist() == pytest.approx([1, 0, 0, 1], abs=0.01)


def test_folder_and_list_give_the_same_study(root: Path, tmp_path: Path) -> None:
    results = []
    for number, place in enumerate((root, write_manifest(root, "list.csv"))):
        images = find_images(place, size=8, width=4, steps=2)
        with ThreadPoolExecutor(1) as pool:
            study = conduct_images(images, candidates(True, [0.5]), [0], pool, tmp_path / str(number))
        results.append(as_image_result(study, {}))
    (root / "list.csv").unlink()
    for part in ("comparison", "calibration", "data", "attention"):
        assert results[0][part] == results[1][part]


def test_images_that_are_in_two_environments_are_told_of(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images")
    for number in range(3):
        (root / "b" / "cat" / f"{number}.png").write_bytes(
            (root / "a" / "cat" / f"{number}.png").read_bytes()
        )
    images = find_images(root, size=8, width=4, steps=1)
    with ThreadPoolExecutor(1) as pool:
        study = conduct_images(images, candidates(True)[:2], [0], pool, tmp_path / "out")
    (copies,) = [finding for finding in study.findings if finding.name == "copies"]
    assert copies.severity == "warning" and copies.seen.startswith("6 of 60 images")


# What is written.


def test_the_final_network_is_trained_on_every_image_and_can_be_loaded(root: Path, fitted: Path) -> None:
    result = result_of(fitted)
    assert sorted(p.name for p in fitted.iterdir()) == ["model.safetensors", "report.html", "result.json"]
    assert result["model"]["recipe"]["data_options"]["val_fraction"] == 0
    assert result["model"]["recipe"]["test_envs"] == []
    module = load_model(fitted)
    assert module(torch.zeros(2, 3, 8, 8)).shape == (2, 1)
    kept = sum(int(p.count_nonzero()) for p in module.parameters() if p.ndim == 2)
    assert kept == result["model"]["kept"]


def test_sparse_networks_keep_exactly_their_budget(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit"
    assert main(["fit", str(root), *SMALL, "--method", "sparseirm", "--out", str(out)]) == 0
    module, result = load_model(out), result_of(out)
    kept = sum(int(p.count_nonzero()) for p in module.parameters() if p.ndim == 2)
    assert kept == result["model"]["kept"] == round(0.5 * result["model"]["n_weights"])


def test_names_of_folders_stay_text_in_the_report(fitted: Path) -> None:
    page = (fitted / "report.html").read_bytes()
    reader = parsed(page)
    sources = re.findall(r'<img alt="[^"]*" src="([^"]{22})', page.decode())
    assert "script" not in reader.seen and HOSTILE[0] in reader.text and HOSTILE[1] in reader.text
    assert len(sources) == reader.seen.count("img") and set(sources) == {"data:image/png;base64,"}


def test_predictions_are_the_networks(root: Path, fitted: Path, tmp_path: Path) -> None:
    output = tmp_path / "new.csv"
    assert main(["predict", str(fitted), str(root / "c"), "-o", str(output)]) == 0
    with output.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["path"] for row in rows] == sorted(f"{k}/{n}.png" for k in ("cat", "dog") for n in range(10))
    module = load_model(fitted)
    for row in rows:
        image = Image.open(root / "c" / row["path"]).resize((8, 8), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255)[None]
        sure = torch.sigmoid(module(x)).item()
        assert float(row["probability_dog"]) == pytest.approx(sure, abs=1e-6)
        assert float(row["probability_cat"]) == pytest.approx(1 - sure, abs=1e-6)
        assert row["prediction"] == ("dog" if sure > 0.5 else "cat")


def test_scores_of_images_are_those_of_their_predictions(
    root: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, predicted = tmp_path / "scores.csv", tmp_path / "predicted.csv"
    assert main(["evaluate", str(fitted), str(root), "-o", str(scores)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(name.split()) in said for name in HOSTILE) and "for comparison" in said
    assert main(["predict", str(fitted), str(root), "-o", str(predicted)]) == 0
    with predicted.open(newline="") as lines:
        told = [(*row["path"].split("/")[:2], row["prediction"]) for row in csv.DictReader(lines)]
    with scores.open(newline="") as lines:
        found = {row["environment"]: row for row in csv.DictReader(lines)}
    assert set(found) == {*HOSTILE, "all rows"}
    for name in HOSTILE:
        hits = [label == prediction for env, label, prediction in told if env == name]
        assert float(found[name]["accuracy"]) == pytest.approx(np.mean(hits)) and len(hits) == 20
    assert main(["evaluate", str(fitted), str(root), "--env", "farm"]) == 2
    assert "`env` has no effect" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are always Unicode there")
def test_an_image_named_in_another_encoding_is_named(fitted: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xe4.png")
    noise_image(0).save(strange)
    for data in (tmp_path, Path(strange)):
        with pytest.raises(SettingError, match=r"^the name of '\\udce4.png' is not UTF-8"):
            predict_images(fitted, data, output=tmp_path / "x.csv")


def test_one_image_can_be_predicted(root: Path, fitted: Path, tmp_path: Path) -> None:
    picture = root / "c" / "cat" / "0.png"
    assert main(["predict", str(fitted), str(picture), "-o", str(tmp_path / "one.csv")]) == 0
    assert (tmp_path / "one.csv").read_text().splitlines()[1].startswith("0.png,")


# What is refused.


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--test-env", "d"], "no environment is named 'd'"),
        (["--test-env", "c", HOSTILE[1]], "1 environment left for training"),
        (["--drop", "x"], "`drop` has no effect: .* holds images, not a table"),
        (["--rows", "200"], "`rows` has no effect"),
        (["--densities", "5"], r"`densities` must be in \(0, 1\]"),
        (["--size", "4"], "`size` must be an integer from 8"),
        (["--size", "0"], "`size` must be an integer from 8 to 1024"),
        (["--size", "20000"], "`size` must be an integer from 8 to 1024"),
        (["--width", "0"], "`width`"),
        (["--model", "resnet"], "no model is named 'resnet'"),
        (["--model", "resnet18", "--width", "4"], "`width` has no effect"),
        (["--seeds", "0", "0"], "`seeds` must name each one once"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    out = tmp_path / "deep" / "fit"
    assert main(["fit", str(root), "--steps", "2", *extra, "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told) and told.count("\n") == 1 and not out.parent.exists()


def test_an_unreadable_image_is_named_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "images")
    (root / "a" / "cat" / "3.png").write_bytes(b"no image")
    assert main(["fit", str(root), *SMALL, "--out", str(tmp_path / "out")]) == 2
    assert "3.png cannot be read as an image" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_small_environments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "images", n=3)
    assert main(["fit", str(root), "--out", str(tmp_path / "out")]) == 2
    assert "environment 'a' has 6 images; each needs 10 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "holds no image in ENVIRONMENT/CLASS/IMAGE"),
        ("{n}.png", "holds no image in ENVIRONMENT/CLASS/IMAGE"),
        ("cat/{n}.png", "holds no image in ENVIRONMENT/CLASS/IMAGE"),
        ("a/cat/{n}.png", "1 environment left for training"),
        ("{env}/cat/{n}.png", "has one class to train on (cat)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_folders_of_another_form_are_refused_with_the_form(
    pattern: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for at in range(20 if pattern else 0):
        path = root / pattern.format(env="ab"[at % 2], n=at)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never read")
    assert main(["fit", str(root), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert message in told and "ENVIRONMENT/CLASS" in told


def test_a_folder_that_is_missing_is_not_taken_for_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(tmp_path / "imgz"), "--test-env", "h3"]) == 2
    assert "there is no file or folder" in capsys.readouterr().err


def test_what_is_a_list_of_images_and_what_a_table(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("env,label,path,more\n")
    assert holds_images(tmp_path, None, None) and holds_images(table, None, None)
    assert not holds_images(table, "label", "env") and not holds_images(tmp_path / "nowhere.csv", None, None)
    table.write_text("env,label\n")
    assert not holds_images(table, None, None)


def test_options_of_images_are_refused_for_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    table = ["fit", str(tmp_path / "x.csv")]
    assert main([*table, "--target", "a", "--env", "b", "--size", "16"]) == 2
    assert "`size` has no effect" in capsys.readouterr().err
    assert main([*table, "--target", "a"]) == 2
    assert "`target` and `env` must name columns of the table" in capsys.readouterr().err


def test_predict_refuses_to_overwrite_its_image(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "one.png"
    picture.write_bytes(encoded(noise_image(1)))
    assert main(["predict", str(fitted), str(picture), "-o", str(picture)]) == 2
    assert "the data themselves" in capsys.readouterr().err
    assert main(["predict", str(fitted), str(tmp_path / "none"), "-o", str(tmp_path / "o.csv")]) == 2
    assert main(["predict", str(fitted), str(picture), "-o", str(tmp_path / "o.csv"), "--decimal", ","]) == 2
    assert "`decimal` has no effect" in capsys.readouterr().err.splitlines()[-1]


def test_a_network_for_other_inputs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Recipe(data="colored_digits", width=4, steps=2), out=tmp_path / "run")
    note = read_tensors(tmp_path / "run" / MODEL)[1] | {"labels": ["low", "high"]}
    write_tensors(tmp_path / "run" / MODEL, read_tensors(tmp_path / "run" / MODEL)[0], note)
    (tmp_path / "one.png").write_bytes(encoded(noise_image(1)))
    arguments = ["predict", str(tmp_path / "run"), str(tmp_path / "one.png"), "-o", str(tmp_path / "o.csv")]
    assert main(arguments) == 2
    assert re.search("takes inputs of shape 2 x .*, not square images in colour", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("asked", "most", "taken", "said"),
    [(None, None, 4, False), (None, 9, 4, False), (None, 2, 2, True), (3, 2, 3, False)],
)
def test_there_are_only_as_many_processes_as_memory_for_images(
    asked: int | None,
    most: int | None,
    taken: int,
    said: bool,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pool(workers: int | None) -> None:
        raise InterruptedError(workers)

    monkeypatch.setattr(image_commands, "local", pool)
    monkeypatch.setattr(image_commands, "cores", lambda: 4)
    monkeypatch.setattr(image_commands, "holders", lambda n, size: most)
    with pytest.raises(InterruptedError, match=str(taken)):
        image_commands.fit_images(root, workers=asked, out=tmp_path / "out")
    assert ("2 of 4 cores are used" in capsys.readouterr().out) is said
