"""Claims about objects on backgrounds: cut out as pycocotools says, divided by image, coloured by rule."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from image_makers import change_coco, encoded, noise_image, rows_of, write_cifar, write_coco
from makers import assert_same_bits
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data import DATASETS, DataSet, coco, cutting, disk, objects
from sparseirm.data.cutting import COUNTS, Selection
from sparseirm.files import read_tensors, write_tensors
from sparseirm.recipe import Recipe
from sparseirm.runs import run

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = Selection(min_area=50, size=32, splits=("train2017",))
GREY, GREEN = (0.75 * 128 / 255,) * 3, (0.0, 0.75 * 128 / 255, 0.0)


def annotated(folder: Path, split: str = "train2017") -> Any:
    """Pycocotools' own reader of the annotations."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    return COCO(str(folder / "annotations" / f"instances_{split}.json"))


def prepared(tmp_path: Path, selection: Selection = SMALL, **settings: Any) -> tuple[Path, dict[str, int]]:
    out = tmp_path / "data" / coco.OBJECTS
    return out, cutting.prepare(write_coco(tmp_path / "coco", **settings), out, selection).counts


# Cutting out.


def test_an_object_is_its_image_times_its_mask_as_pycocotools_draws_it(tmp_path: Path) -> None:
    out, _ = prepared(tmp_path)
    reader, found = annotated(tmp_path / "coco"), coco.load(str(out))
    assert found.rgba.shape == (12, 4, 32, 32) and found.rgba.dtype == torch.uint8
    for rgba, note_id, image_id in zip(found.rgba, found.annotation_id, found.image_id, strict=True):
        mask = reader.annToMask(reader.anns[int(note_id)])
        pixels = np.asarray(Image.open(tmp_path / "coco" / "train2017" / f"{int(image_id):012}.png"))
        expected = np.dstack([pixels * mask[:, :, None], 255 * mask]).transpose(2, 0, 1)
        assert np.array_equal(rgba.numpy(), expected)
        assert 0 < mask.mean() < 1


def test_a_rectangle_covers_the_pixels_inside_it(tmp_path: Path) -> None:
    found = coco.load(str(prepared(tmp_path)[0]))
    truck = found.rgba[found.label == 0][0, 3]
    expected = torch.zeros(32, 32, dtype=torch.uint8)
    expected[4:16, 3:17] = 255
    assert torch.equal(truck, expected)


def test_the_largest_of_each_class_is_taken_and_the_rest_counted(tmp_path: Path) -> None:
    out, counts = prepared(tmp_path)
    found = coco.load(str(out))
    assert counts == {
        **dict.fromkeys(COUNTS, 0),
        **dict.fromkeys(("vehicles", "animals", "crowd", "small", "not_largest"), 6),
    }
    assert found.label.tolist() == [0, 1] * 6
    assert found.image_id.tolist() == [i for i in range(1, 7) for _ in (0, 1)]
    assert found.licence.tolist() == [i % 8 for i in range(1, 7) for _ in (0, 1)]
    assert read_tensors(out)[1]["counts"] == counts


def test_scaling_keeps_the_share_of_the_picture(tmp_path: Path) -> None:
    out, _ = prepared(tmp_path, Selection(min_area=50, size=16, splits=("train2017",)), size=64)
    found, reader = coco.load(str(out)), annotated(tmp_path / "coco")
    for rgba, note_id in zip(found.rgba, found.annotation_id, strict=True):
        share = reader.annToMask(reader.anns[int(note_id)]).mean()
        assert abs(float(rgba[3].double().mean()) / 255 - share) < 0.01
        assert (rgba[:3] <= rgba[3].int() + 1).all()  # nothing of the old background, up to rounding


def test_images_that_are_missing_damaged_or_elsewhere_are_counted(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", n=6)
    (tmp_path / "secret.png").write_bytes(encoded(noise_image(0)))
    change_coco(root, file_name="../../secret.png")
    images = root / "train2017"
    (images / "000000000002.png").unlink()
    (images / "000000000003.png").write_bytes(b"words")
    (images / "000000000004.png").write_bytes(encoded(noise_image(4, (32, 31))))
    report = cutting.prepare(root, tmp_path / "out", SMALL)
    counts, losses = report.counts, "\n".join(report.losses)
    assert len(report.losses) == 8
    for reason in ("'../../secret.png' is a path", "2.png is missing", "3.png cannot be read", "(32, 31)"):
        assert reason in losses
    assert {name: counts[name] for name in ("unsafe", "missing", "unreadable", "vehicles", "animals")} == {
        "unsafe": 2,
        "missing": 2,
        "unreadable": 4,
        "vehicles": 2,
        "animals": 2,
    }


@pytest.mark.parametrize(
    "code",
    [
        *([[1, 2]], {"counts": "!!", "size": [32, 32]}, [[0, 0, 0, 0, 0, 0]], 7, [], [[0, 0, 9, 0, 9, 9, 1]]),
        *([[0, 0, far, 0, far, far]] for far in (1e9, -1e9, 1e300, float("nan"))),
        *({"counts": "", "size": size} for size in ([32, 32], [32, 31], [10**5, 10**5], 32)),
        *({"counts": counts, "size": [32, 32]} for counts in ([0, 10**9], [2000, -976], [1000, 23.5])),
    ],
)
def test_a_mask_that_cannot_be_read_is_counted(code: Any, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", n=2)
    change_note(root, segmentation=code)
    counts = cutting.prepare(root, tmp_path / "out", SMALL).counts
    assert (counts["unreadable"], counts["vehicles"], counts["animals"]) == (1, 1, 2)


def change_note(root: Path, **changes: Any) -> None:
    """Change the first annotation; None takes a value away."""
    path = root / "annotations" / "instances_train2017.json"
    payload = json.loads(path.read_text())
    note = payload["annotations"][0] | changes
    payload["annotations"][0] = {name: value for name, value in note.items() if value is not None}
    path.write_text(json.dumps(payload))


@pytest.mark.parametrize(
    ("how", "changes"),
    [
        *(("unreadable", {name: None}) for name in ("area", "segmentation", "id", "category_id", "image_id")),
        ("missing", {"image_id": 99}),
        ("unreadable", {"area": "large"}),
        ("unreadable", {"id": 10**30}),
    ],
)
def test_an_incomplete_annotation_costs_no_other(how: str, changes: dict[str, Any], tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", n=2)
    path = root / "annotations" / "instances_train2017.json"
    payload = json.loads(path.read_text())
    del payload["annotations"][1]  # the truck that would stand in for the first
    path.write_text(json.dumps(payload))
    change_note(root, **changes)
    counts = cutting.prepare(root, tmp_path / "out", SMALL).counts
    assert (counts[how], counts["vehicles"], counts["animals"]) == (1, 1, 2)


@pytest.mark.parametrize("field", ["file_name", "width", "height"])
def test_an_incomplete_image_costs_no_other(field: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", n=2)
    change_coco(root, **{field: None})
    counts = cutting.prepare(root, tmp_path / "out", SMALL).counts
    assert (counts["unreadable"], counts["vehicles"], counts["animals"]) == (2, 1, 1)


def test_a_preparation_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "CHUNK", 4)
    root, whole, out = write_coco(tmp_path / "coco"), tmp_path / "whole", tmp_path / "out"
    report = cutting.prepare(root, whole, SMALL)

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cutting.prepare(root, out, SMALL, stop)
    assert not out.exists()
    parts = sorted((tmp_path / "out.parts").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-1] + b"?")  # a damaged part is made again
    cut: list[int] = []
    plain = cutting.cut_out
    monkeypatch.setattr(cutting, "cut_out", lambda c, size: cut.append(c.image_id) or plain(c, size))
    assert cutting.prepare(root, out, SMALL) == report
    assert cut in ([1, 1, 2, 2, 5, 5, 6, 6], [3, 3, 4, 4, 5, 5, 6, 6])
    (one, note), (other, other_note) = read_tensors(out), read_tensors(whole)
    assert_same_bits(one, other)
    assert note == other_note
    assert objects.coco_fingerprint(str(out)) == objects.coco_fingerprint(str(whole))
    assert not (tmp_path / "out.parts").exists()


def test_a_finished_file_is_kept_and_one_with_losses_made_again(tmp_path: Path) -> None:
    root, out = write_coco(tmp_path / "coco"), tmp_path / "out"
    image = root / "train2017" / "000000000002.png"
    content = image.read_bytes()
    image.unlink()
    assert cutting.prepare(root, out, SMALL).counts["missing"] == 2
    image.write_bytes(content)
    report = cutting.prepare(root, out, SMALL)
    assert (report.counts["missing"], report.counts["vehicles"], report.losses) == (0, 6, [])
    shutil.rmtree(root / "train2017")
    assert cutting.prepare(root, out, SMALL) == report  # nothing was read again
    with pytest.raises(SettingError, match="holds other objects"):
        cutting.prepare(root, out, Selection(min_area=60, size=32, splits=("train2017",)))


def test_a_least_area_is_the_same_as_a_whole_and_as_a_decimal_number(tmp_path: Path) -> None:
    root, out = write_coco(tmp_path / "coco", n=2), tmp_path / "out"
    whole, decimal = (Selection(min_area=area, size=32, splits=("train2017",)) for area in (50, 50.0))
    before = cutting.prepare(root, out, whole)
    shutil.rmtree(root / "train2017")
    assert cutting.prepare(root, out, decimal) == before  # the file is known, no image is read


def test_what_is_not_coco_is_reported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SettingError, match=r"annotations are missing: .*instances_train2017.json"):
        cutting.prepare(tmp_path, out, SMALL)
    root = write_coco(tmp_path / "coco", n=1)
    with pytest.raises(SettingError, match="no class of COCO is named 'lorry'"):
        cutting.prepare(root, out, Selection(vehicles=("lorry",), splits=("train2017",)))
    with pytest.raises(SettingError, match="no split of COCO is named"):
        cutting.prepare(root, out, Selection(splits=("../train2017",)))
    (root / "train2017" / "000000000001.png").unlink()
    with pytest.raises(SettingError, match=r"no object could be cut out of .*missing 2"):
        cutting.prepare(root, out, SMALL)
    for text in ("[]", "{", '{"categories": 3}'):
        (root / "annotations" / "instances_train2017.json").write_text(text)
        with pytest.raises(SettingError, match="holds no instance annotations of COCO"):
            cutting.prepare(root, out, SMALL)
    assert not out.exists()


@pytest.mark.parametrize(
    "settings", [{"vehicles": ()}, {"animals": ("truck",)}, {"size": 4}, {"min_area": -1}, {"splits": ()}]
)
def test_a_selection_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"`{next(iter(settings))}`"):
        Selection(**settings)


# Backgrounds.


def on_background(rgba: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of ``x`` where the object is not there at all, and where nothing else is; as ``(n, 3)``."""
    clear, solid = rgba[3] == 0, rgba[3] == 255
    return x[:, clear].T, x[:, solid].T


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prepared file of 240 images."""
    folder = tmp_path_factory.mktemp("many")
    return str(prepared(folder, Selection(min_area=50, size=16, splits=("train2017",)), n=240, size=16)[0])


def colored_object(root: str, **settings: Any) -> Any:
    return DATASETS["colored_object"](**{"n_train": 300, "size": 16, "data_root": root, **settings})


def origin(data_root: str) -> dict[bytes, int]:
    """Index of the object by its picture on black."""
    found = coco.load(data_root)
    return {image: i for i, image in enumerate(rows_of(found.rgba[:, :3] / 255))}


def test_objects_stand_before_grey_and_green_as_their_attribute_says(many: str) -> None:
    data, plain = colored_object(many), colored_object(many, gray=True)
    found, place = coco.load(many), origin(many)
    assert data.train.samples.x.shape == (300, 3, 16, 16)
    assert data.source_note == "truck, airplane, bus, zebra, dog, horse, cat of COCO, area at least 50"
    for name, part in data.splits.items():
        black = rows_of(plain.splits[name].samples.x)
        for x, key, spurious in zip(part.samples.x, black, part.spurious, strict=True):
            rgba = found.rgba[place[key]]
            behind, solid = on_background(rgba, x)
            torch.testing.assert_close(behind, torch.tensor((GREY, GREEN)[spurious]).expand_as(behind))
            torch.testing.assert_close(solid, (rgba[:3, rgba[3] == 255] / 255).T)
            assert len(behind) and len(solid)


def test_the_oracle_s_backgrounds_are_black(many: str) -> None:
    plain, other = colored_object(many, gray=True), colored_object(many, gray=True, correlations=(0, 0.3, 1))
    assert not torch.equal(plain.train.spurious, other.train.spurious)
    assert torch.equal(plain.train.samples.x, other.train.samples.x)
    corner = plain.train.samples.x[:, :, 0, 0]  # no object reaches it
    assert (corner == 0).all()


def test_labels_and_backgrounds_are_drawn_at_the_paper_s_rates(many: str) -> None:
    data, plain = colored_object(many), colored_object(many, gray=True)
    found, place = coco.load(many), origin(many)
    objects_ = torch.tensor([place[key] for key in rows_of(plain.train.samples.x)])
    wrong = found.label[objects_] != data.train.samples.y
    agrees = data.train.spurious == data.train.samples.y
    for events, rate in ((wrong, 0.05), (agrees[::2], 0.999), (agrees[1::2], 0.7)):
        allowed = 4 * (rate * (1 - rate) / len(events)) ** 0.5
        assert abs(events.double().mean().item() - rate) <= allowed
    assert data.train.names == ("train 0.999", "train 0.7")


def test_no_two_splits_show_objects_of_one_photograph_whatever_the_seed(many: str) -> None:
    found, place = coco.load(many), origin(many)
    seen = []
    for seed in (0, 1):
        plain = colored_object(many, gray=True, seed=seed)
        keys = {name: rows_of(part.samples.x) for name, part in plain.splits.items()}
        ids = {name: {int(found.image_id[place[key]]) for key in of} for name, of in keys.items()}
        assert (
            not ids["train"] & ids["val"] and not ids["train"] & ids["test"] and not ids["val"] & ids["test"]
        )
        seen.append(ids["test"])
    assert seen[0] == seen[1]


def test_each_pool_holds_as_many_vehicles_as_animals(many: str) -> None:
    pools = objects._pools(coco.load(many))
    for part, share in objects.SHARES.items():
        labels = pools[part][1]
        assert 2 * int(labels.sum()) == len(labels)
        assert abs(len(labels) / 480 - share / 100) < 0.08


def test_objects_too_few_to_validate_on_are_refused(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = objects._pools(coco.load(many))
    few = {part: (pool, labels[:1] if part == "val" else labels) for part, (pool, labels) in whole.items()}
    monkeypatch.setattr(objects, "_pools", lambda found: few)
    with pytest.raises(SettingError, match="at least 2 images for the validation; got 1"):
        colored_object(many, n_train=10)


def test_the_same_seed_gives_the_same_bits_whatever_torch_s_own_seed(many: str) -> None:
    torch.manual_seed(1)
    one = colored_object(many, seed=3)
    torch.manual_seed(2)
    other = colored_object(many, seed=3)
    assert torch.equal(one.train.samples.x, other.train.samples.x)
    assert torch.equal(one.test.samples.y, other.test.samples.y)


def test_brightness_colours_and_size_are_options(many: str) -> None:
    data = colored_object(many, colours="#ff0000,blue", brightness=0.5, size=24, correlations=(1, 1, 1))
    corner = data.train.samples.x[:, :, 0, 0]
    expected = torch.tensor([[0.5, 0, 0], [0, 0, 0.5]])[data.train.samples.y]
    torch.testing.assert_close(corner, expected)
    assert data.train.samples.x.shape[-2:] == (24, 24)
    assert data.spurious_values == ("#ff0000", "blue")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 7}, "`size` must be an integer from 8 to 512"),
        ({"brightness": 75.0}, r"`brightness` must lie in \[0, 1\]; got 75.0"),
        ({"colours": "grey"}, "`colours` must be two different colours"),
        ({"colours": "grey,#808080"}, "`colours` must be two different colours"),
        ({"colours": "grey,greenish"}, "`colours`: unknown color specifier"),
        ({"brightness": 0.0}, "`colours` must be two different colours"),
    ],
)
def test_options_out_of_range_are_named(many: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(data="colored_object", data_options=options, n_train=10).resolved().make_data(many)


def test_few_objects_without_n_train_say_how_many_there_are(many: str) -> None:
    with pytest.raises(
        SettingError, match=r"has (\d+) training images, .* got 12000\. .* --n-train \1\."
    ) as said:
        colored_object(many, n_train=None)
    assert "Leave it out" not in str(said.value)
    available = int(str(said.value).split()[-1].rstrip("."))
    assert len(colored_object(many, n_train=available).train) == available


def test_without_a_prepared_file_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"looked for .*coco_objects.safetensors.*sparseirm prepare-coco"):
        colored_object(str(tmp_path))


@pytest.mark.parametrize("content", ["table", "tensors", "damaged"])
def test_nobody_is_told_to_delete_a_file_of_their_own(content: str, tmp_path: Path) -> None:
    root, file = write_coco(tmp_path / "coco", n=1), tmp_path / "m.csv"
    if content == "table":
        file.write_text("path,label,env\n")
    elif content == "tensors":
        write_tensors(file, {"rgba": torch.zeros(1)}, {})
    else:
        cutting.prepare(root, file, SMALL)
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    before = file.read_bytes()
    for use in (lambda: colored_object(str(file)), lambda: cutting.prepare(root, file, SMALL)):
        with pytest.raises(SettingError, match=r"m.csv is no file that .*prepare-coco` wrote") as caught:
            use()
        assert "Delete" not in str(caught.value) and "Name another file." in str(caught.value)
    assert file.read_bytes() == before


def test_command_and_run_use_the_file_and_are_tied_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_coco(tmp_path / "coco", n=30), tmp_path / "data" / coco.OBJECTS
    flags = ["--coco-root", str(root), "--out", str(out), "--min-area", "50", "--size", "16"]
    assert main(["prepare-coco", *flags]) == 2
    assert "instances_val2017.json" in capsys.readouterr().err
    assert main(["prepare-coco", *flags, "--splits", "train2017"]) == 0
    shown = capsys.readouterr()
    assert f"file: {out}" in shown.out and shown.err == ""
    recipe = Recipe(
        data="colored_object", n_train=20, method="irm", width=2, steps=2, data_options={"size": 8}
    )
    result = run(recipe, data_root=str(tmp_path / "data"))
    assert "of COCO" in str(result.source_note)
    assert result.recipe.data_options == {"size": 8, "brightness": 0.75, "colours": "grey,green"}
    assert result.recipe.data_digest == objects.coco_fingerprint(str(out))


# The stand-in of photographs.


def test_photographs_fade_into_their_background(tmp_path: Path) -> None:
    root = str(write_cifar(tmp_path, classes=objects.PHOTOS))
    settings: dict[str, Any] = {"n_train": 60, "size": 32, "data_root": root, "label_noise": 0.0}
    data, plain = (DATASETS["photos_on_colors"](gray=gray, **settings) for gray in (False, True))
    known: dict[bytes, str] = {}
    for path in (tmp_path / "cifar10").rglob("*.png"):
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        known[pixels[:, 10:22, 10:22].tobytes()] = path.parent.name
    for name, part in data.splits.items():
        x, black = part.samples.x, plain.splits[name].samples.x
        palette = torch.tensor((GREY, GREEN))[part.spurious]
        for row, column in ((0, 0), (0, 31), (31, 0), (31, 31)):
            torch.testing.assert_close(x[:, :, row, column], palette)
            assert (black[:, :, row, column] == 0).all()
        centres = (x[:, :, 10:22, 10:22] * 255).round().to(torch.uint8)
        classes = [known[centre] for centre in rows_of(centres)]
        assert [name in ("cat", "dog", "horse") for name in classes] == part.samples.y.bool().tolist()
    assert data.source_note == "CIFAR-10 from PNG files"
    seen = [set(rows_of(part.samples.x)) for part in plain.splits.values()]
    assert len(set.union(*seen)) == sum(len(part) for part in plain.splits.values())


def test_photographs_have_64_pixels_a_side_unless_told_otherwise(tmp_path: Path) -> None:
    root = str(write_cifar(tmp_path, classes=objects.PHOTOS))
    recipe = Recipe(data="photos_on_colors", n_train=10, method="erm").resolved()
    assert recipe.data_options["size"] == 64
    assert recipe.make_data(root).train.samples.x.shape == (10, 3, 64, 64)


def test_pictures_that_would_fill_the_memory_are_kept_on_disk(
    many: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = colored_object(many, n_train=100, size=80)
    monkeypatch.setattr(disk, "_memory", lambda: 2 * usual.train.samples.x.nbytes - 2)
    with pytest.warns(UserWarning, match=r"100 images of 80 x 80 pixels need .* lower `size`"):
        large = colored_object(many, n_train=100, size=80)
    for name, split in usual.splits.items():
        assert torch.equal(split.samples.x, large.splits[name].samples.x)
    monkeypatch.setattr(disk, "_memory", lambda: 1 << 60)
    with pytest.raises(SettingError, match=r"need .* GB of memory, which are not to be had. Lower `size`"):
        disk.room(1 << 25, 512)((1 << 40, 3, 512, 512))


# The real thing.


def test_a_sample_of_coco_is_cut_out_and_coloured(coco_sample: Path, tmp_path: Path) -> None:
    selection = Selection(min_area=2500, size=64)
    out = tmp_path / coco.OBJECTS
    counts = cutting.prepare(coco_sample, out, selection).counts
    assert counts["missing"] == counts["unreadable"] == counts["unsafe"] == 0
    assert counts["vehicles"] >= 20 and counts["animals"] >= 20
    found = coco.load(str(tmp_path))
    readers = [annotated(coco_sample, split) for split in selection.splits]
    for rgba, note_id in zip(found.rgba, found.annotation_id.tolist(), strict=True):
        reader = next(reader for reader in readers if note_id in reader.anns)
        note = reader.anns[note_id]
        mask = reader.annToMask(note)
        assert abs(float(rgba[3].double().mean()) / 255 - mask.mean()) < 0.005
        assert note["area"] >= 2500 and not note["iscrowd"]
    data: DataSet = DATASETS["colored_object"](n_train=30, data_root=str(tmp_path))
    assert data.train.counts == [15, 15]
    assert data.train.samples.x.shape == (30, 3, 64, 64)
