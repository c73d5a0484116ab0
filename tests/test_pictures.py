"""Claims about the example pictures: they show the samples, and frame those that mislead."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from image_makers import write_folder
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data import DATASETS, Batch, DataSet, Split
from sparseirm.experiments.pictures import drawn


def strip(axes: Axes) -> np.ndarray:
    return np.asarray(axes.get_images()[0].get_array())


def test_a_cell_shows_the_first_images_of_its_label_and_environment() -> None:
    data: Any = DATASETS["colored_digits"](correlations=(0.9, 0.6, 0.1))
    axes = drawn(data, each=3).axes
    assert [cell.get_title() for cell in axes[:3]] == ["train 0.9", "train 0.6", "test 0.1"]
    for place, cell in enumerate(axes):
        label, column = divmod(place, 3)
        part = data.test if column == 2 else data.train
        env = 0 if column == 2 else column
        members = ((part.samples.y == label) & (part.samples.env == env)).nonzero()[:3, 0]
        shown = strip(cell)
        for position, sample in enumerate(members):
            found = shown[:, position * 9 : position * 9 + 8]
            assert np.array_equal(found[:, :, :2], part.samples.x[sample].permute(1, 2, 0))
            assert (found[:, :, 2] == 0).all()
        assert len(cell.patches) == int((part.spurious != part.samples.y)[members].sum())


def test_rows_are_named_after_labels() -> None:
    axes = drawn(DATASETS["digit_pairs"]()).axes
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["3", "8"]


def test_what_is_no_image_is_refused() -> None:
    batch = Batch(torch.zeros(2, 5), torch.tensor([0, 1]), torch.tensor([0, 0]))
    data = DataSet("table", Split(batch, ("a",)), None, None, "binary", 1)
    with pytest.raises(SettingError, match=r"only images can be drawn; samples of 'table' have shape \(5,\)"):
        drawn(data)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_writes_the_same_small_file_every_time(ending: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert main(["pictures", "--data", "digit_pairs", "--out", str(tmp_path / f"{name}.{ending}")]) == 0
    one, other = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "other"))
    assert one == other and len(one) < 60_000
    if ending == "png":
        with Image.open(tmp_path / "one.png") as image:
            assert image.format == "PNG" and image.width > image.height


def test_own_images_have_no_frames(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", n=2)
    flags = ["--data", "folder", "--data-root", str(root), "--test-envs", "c"]
    assert main(["pictures", *flags, "--out", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "digit_pairs", "--out", "a.doc"], "`out` must end in .png, .svg, .pdf; got 'a.doc'"),
        (["--data", "digit_pairs", "--out", "a.png", "--each", "0"], "`each` must be at least 1"),
        (["--data", "digit_pears", "--out", "a.png"], "Did you mean 'digit_pairs'"),
    ],
)
def test_a_bad_value_is_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pictures", *flags]) == 2
    assert message in capsys.readouterr().err


def test_every_committed_picture_is_of_a_data_set_on_its_page_and_small() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page, there = (docs / "data.md").read_text(), sorted(docs.glob("figures/examples-*.png"))
    assert there
    for picture in there:
        assert picture.stem.removeprefix("examples-") in DATASETS
        assert f"(figures/{picture.name})" in page and picture.stat().st_size < 60_000
    assert page.count("(figures/examples-") == len(there)
