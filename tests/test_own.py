"""Claims about your own images: folders and tables agree, what is held out stays out, mistakes are named."""

import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from image_makers import ENVIRONMENTS, KINDS, encoded, noise_image, rows_of, write_folder, write_manifest
from sparseirm.cli import main
from sparseirm.core import SettingError
from sparseirm.data import DataSet, disk, own
from sparseirm.data.own import folder, manifest
from sparseirm.experiments.store import Store
from sparseirm.experiments.sweep import carry_out, pinned, sweep
from sparseirm.experiments.variants import variants
from sparseirm.files import read_json
from sparseirm.recipe import Recipe
from sparseirm.runs import run
from sparseirm.study.images import find_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images")


def of_folder(root: Path, **settings: Any) -> Any:
    return folder(str(root), **{"test_envs": ["c"], "size": 12, **settings})


def tensors(data: DataSet) -> list[Tensor]:
    return [t for part in data.splits.values() for t in (part.samples.x, part.samples.y, part.samples.env)]


def same(a: DataSet, b: DataSet) -> bool:
    return all(torch.equal(left, right) for left, right in zip(tensors(a), tensors(b), strict=True))


def files(root: Path) -> dict[bytes, tuple[str, str]]:
    """Environment and class of every picture, by its pixels."""
    return {
        (np.asarray(Image.open(path)).transpose(2, 0, 1).astype(np.float32) / 255).tobytes(): path.parts[
            -3:-1
        ]
        for path in root.rglob("*.png")
    }  # type: ignore[misc]


# What is read.


def test_every_image_is_in_one_split_with_its_label_and_environment(root: Path) -> None:
    data, known = of_folder(root), files(root)
    assert (data.name, data.loss, data.n_outputs) == ("folder", "binary", 1)
    assert (data.label_names, data.train.names, data.test.names) == (KINDS, ("a", "b"), ("c",))
    assert [part.counts for part in data.splits.values()] == [[18, 18], [2, 2], [20]]
    seen = []
    for part in data.splits.values():
        assert part.spurious is None and part.samples.x.shape == (len(part), 3, 12, 12)
        for image, y, env in zip(rows_of(part.samples.x), part.samples.y, part.samples.env, strict=True):
            assert known[image] == (part.names[env], KINDS[y])
            seen.append(image)
    assert sorted(seen) == sorted(known)


def test_without_a_test_environment_all_train(root: Path) -> None:
    data = of_folder(root, test_envs=())
    assert data.test is None and data.train.names == ENVIRONMENTS
    own_run = Recipe(data="folder", test_envs=(), data_options={"size": 12}, method="erm", width=2, steps=1)
    assert set(run(own_run, data_root=str(root)).last) == {"train", "val"}
    with pytest.raises(SettingError, match="`test_envs` must name an environment"):
        variants(Recipe(data="folder", test_envs=()), ["erm"], ["rex"])


def test_folder_and_table_of_the_same_images_are_the_same_data(root: Path) -> None:
    data = of_folder(root, seed=4)
    for backwards in (False, True):
        table = write_manifest(root.parent / "images", backwards=backwards)
        assert same(data, manifest(str(table), test_envs=["c"], size=12, seed=4))
        assert own.fingerprint(own.manifest_entries, str(table)) == own.fingerprint(
            own.folder_entries, str(root)
        )


def test_more_than_two_classes_have_a_logit_each(root: Path) -> None:
    for env in ENVIRONMENTS:
        (root / env / "ant").mkdir()
        (root / env / "ant" / "0.png").write_bytes(encoded(noise_image(ord(env), (12, 12))))
    data = of_folder(root)
    assert (data.loss, data.n_outputs, data.label_names) == ("multiclass", 3, ("ant", "cat", "dog"))


def test_images_are_turned_upright_and_stretched(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 10, 40, 20))
    (root / "c" / "cat" / "0.png").write_bytes(encoded(image, exif=exif))
    first = of_folder(root, size=16).test.samples.x[0]
    assert first.shape == (3, 16, 16)
    assert first[:, 2, 8].tolist() == [0, 0, 1] and first[:, 13, 8].tolist() == [1, 0, 0]


def test_links_to_folders_are_followed(root: Path, tmp_path: Path) -> None:
    plain = of_folder(root)
    (root / "a").rename(tmp_path / "elsewhere")
    (root / "a").symlink_to(tmp_path / "elsewhere")
    assert same(of_folder(root), plain)


# What is held out.


def test_held_out_images_depend_on_the_seed_and_on_nothing_else(root: Path) -> None:
    torch.manual_seed(1)
    one = of_folder(root, seed=3)
    torch.manual_seed(2)
    assert same(one, of_folder(root, seed=3))
    other = of_folder(root, seed=5)
    assert set(rows_of(one.val.samples.x)) != set(rows_of(other.val.samples.x))
    assert torch.equal(one.test.samples.x, other.test.samples.x)


@pytest.mark.parametrize(
    ("fraction", "held"), [(0.0, None), (0.01, [1, 1]), (0.26, [5, 5]), (0.99, [19, 19])]
)
def test_the_fraction_is_of_each_environment_but_never_all_or_nothing(
    fraction: float, held: list[int] | None, root: Path
) -> None:
    data = of_folder(root, val_fraction=fraction)
    assert (data.val and data.val.counts) == held
    assert data.train.counts == [20 - n for n in held or [0, 0]]


# Mistakes.


def test_strays_are_named_and_hidden_files_passed_over(root: Path) -> None:
    plain = of_folder(root)
    (root / ".cache" / "x").mkdir(parents=True)
    (root / "a" / "cat" / ".DS_Store").touch()
    (root / "a" / ".hidden").mkdir()
    assert same(of_folder(root), plain)
    (root / "README.txt").touch()
    assert same(of_folder(root), plain)
    (root / "loose.png").touch()
    (root / "a" / "loose.png").touch()
    (root / "a" / "cat" / "deeper").mkdir()
    (root / "a" / "cat" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"not used, such as loose.png \(4 in all\)"):
        assert same(of_folder(root), plain)


def test_an_unreadable_image_is_named(root: Path) -> None:
    (root / "b" / "dog" / "3.png").write_bytes(b"words")
    with pytest.raises(SettingError, match=r"b/dog/3.png cannot be read as an image \(not an image\)"):
        of_folder(root)


def test_train_says_each_thing_once_and_the_same_of_a_finished_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("a/yak", "b/yak"):
        (root / place).mkdir()
        (root / place / "0.png").write_bytes(encoded(noise_image(len(place))))
        (root / place / "1.png").write_bytes(encoded(noise_image(7)))
    flags = ["--data", "folder", "--data-root", str(root), "--test-envs", "c", "--data-options", "size", "8"]
    flags += [
        "--width",
        "4",
        "--steps",
        "2",
        "--method",
        "irm",
        "--lr",
        "0.001",
        "--out",
        str(tmp_path / "o"),
    ]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert main(["train", *flags]) == 0
    texts = [str(one.message) for one in told]
    assert sum("has no image of yak" in text for text in texts) == 1 and len(texts) == len({*texts})
    advice = next(text for text in texts if "two classes" in text)
    assert "there are 3: pass" in advice and "--penalty-weight 3000" in advice and "--lr 0" not in advice
    first = capsys.readouterr().out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["train", *flags, "--resume"]) == 0
    assert capsys.readouterr().out == first


def test_a_class_without_any_image_is_named(root: Path) -> None:
    (root / "a" / "yak").mkdir()
    with pytest.raises(SettingError, match=r"every class in .* needs an image .* got \['yak'\]"):
        of_folder(root)


@pytest.mark.parametrize("place", ["a", "a/cat"])
@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names are always Unicode there")
def test_a_folder_named_in_another_encoding_is_named(place: str, root: Path) -> None:
    os.rename(root / place, os.fsencode(root / place) + b"\xe4")
    with pytest.raises(SettingError, match=r"^the name of '[a-z/]+\\udce4.* is not UTF-8. Rename it\.$"):
        of_folder(root)


def test_a_class_that_an_environment_lacks_is_a_warning(root: Path) -> None:
    for path in (root / "b" / "dog").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="environment 'b' has no image of dog"):
        assert of_folder(root).train.counts == [18, 9]


@pytest.mark.parametrize("empty", ["e4", "e4/cat"])
def test_an_environment_without_images_is_a_warning_and_no_test(empty: str, root: Path) -> None:
    plain = of_folder(root)
    (root / ".hidden").mkdir()
    (root / empty).mkdir(parents=True)
    with pytest.warns(UserWarning, match="^environment 'e4' holds no image and is left out$"):
        assert same(of_folder(root), plain)
    for read in (of_folder, lambda root, test_envs: find_images(root, test_envs)):
        with (
            pytest.warns(UserWarning, match="left out"),
            pytest.raises(
                SettingError, match=r"^environment 'e4' holds no image .* another: there are a, b, c\.$"
            ),
        ):
            read(root, test_envs=["e4"])


def test_a_class_that_only_the_test_holds_is_an_error(root: Path) -> None:
    (root / "c" / "yak").mkdir()
    (root / "c" / "yak" / "0.png").write_bytes(encoded(noise_image(0)))
    with pytest.raises(SettingError, match=r"test environment 'c' must hold only classes .* got \['yak'\]"):
        of_folder(root)


def test_one_class_is_too_few(root: Path) -> None:
    for env in ENVIRONMENTS:
        for path in (root / env / "dog").iterdir():
            path.unlink()
        (root / env / "dog").rmdir()
    with pytest.raises(SettingError, match=r"two classes or more to train on; got \['cat'\]"):
        of_folder(root)


def test_copies_of_training_images_in_other_splits_are_a_warning(root: Path) -> None:
    (root / "c" / "cat" / "0.png").write_bytes((root / "a" / "cat" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match="1 test images are training images, byte for byte"):
        of_folder(root, val_fraction=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_envs": None}, r"`test_envs` must name .* there are a, b, c\."),
        ({"test_envs": []}, "`test_envs` must name"),
        ({"test_envs": ["d"]}, "no environment is named 'd'"),
        ({"test_envs": ["b", "c"]}, r"`test_envs` must leave two environments .* got \['b', 'c'\]"),
        ({"size": 4}, "`size` must be an integer from 8 to 1024"),
        ({"val_fraction": 1.0}, r"`val_fraction` must lie in \[0, 1\)"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(SettingError, match=message):
        of_folder(root, **settings)


def test_one_environment_is_too_few(tmp_path: Path) -> None:
    write_folder(tmp_path / "all")
    (tmp_path / "images").mkdir()
    (tmp_path / "all" / "a").rename(tmp_path / "images" / "a")
    with pytest.raises(SettingError, match=r"must hold three environments or more, .* got \['a'\]"):
        of_folder(tmp_path / "images", test_envs=["a"])


@pytest.mark.parametrize("data", [folder, manifest])
def test_a_place_that_is_not_there_is_named(data: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="needs `data_root`"):
        data(None, test_envs=["c"])
    with pytest.raises(SettingError, match=r"`data_root` must be a .*nowhere"):
        data(str(tmp_path / "nowhere"), test_envs=["c"])


def test_images_that_would_fill_the_memory_are_kept_on_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 60 * 3 * 12 * 12 * 4
    monkeypatch.setattr(disk, "_memory", lambda: 2 * needed)
    usual = of_folder(root)
    monkeypatch.setattr(disk, "_memory", lambda: 2 * needed - 2)
    with pytest.warns(UserWarning, match=r"60 images of 12 x 12 pixels need .* lower `size`"):
        large = of_folder(root)
    for name, split in usual.splits.items():
        assert torch.equal(split.samples.x, large.splits[name].samples.x)
    monkeypatch.undo()
    assert (disk._memory() or 1 << 31) > 1 << 28


# Tables.


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("path,label\na/cat/0.png,cat", "must have the columns path, label, env; it lacks env"),
        (
            "path,label,env\n../secret.png,cat,a",
            r"`path` in line 2 of .* must be relative .* got '../secret.png'",
        ),
        ("path,label,env\na/../../secret.png,cat,a", "`path` in line 2"),
        ("path,label,env\n/etc/hosts,cat,a", r"must be relative .* got '/etc/hosts'"),
        ("path,label,env\na/cat/0.png,cat,a\na/cat/99.png,cat,a", "`path` in line 3 of .* must be a file"),
        ("path,label,env\na/cat/0.png,cat", "line 2 of .* must have a value for `env`"),
        ("path,label,env\na/cat/0.png, ,a", "line 2 of .* must have a value for `label`"),
        ("path,label,env\na/cat/0.png,cat,a\na/cat/0.png,dog,b", "must list an image once; got .*0.png"),
        ('path,label,env\n"a/cat/0.png,cat,a', "cannot be read as a CSV file"),
        ("", "must have the columns"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line(lines: str, message: str, root: Path) -> None:
    (root / "images.csv").write_text(lines)
    with pytest.raises(SettingError, match=message):
        manifest(str(root / "images.csv"), test_envs=["c"])


def test_a_table_may_be_of_another_program(root: Path) -> None:
    table = write_manifest(root)
    lines = [f"{line},more" for line in table.read_text().splitlines()]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert same(manifest(str(table), test_envs=["c"], size=12), of_folder(root))


def test_a_table_that_is_not_utf_8_is_refused(root: Path) -> None:
    (root / "images.csv").write_bytes("path,label,env\nä,cat,a".encode("latin-1"))
    with pytest.raises(SettingError, match="cannot be read as a CSV file in UTF-8"):
        manifest(str(root / "images.csv"), test_envs=["c"])


# Recipes, runs and the store.

RECIPE = Recipe(
    data="folder", test_envs=("c",), data_options={"size": 12}, method="erm", width=2, steps=2, eval_every=2
)


def test_a_changed_folder_never_returns_an_old_result(root: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (before,) = pinned([RECIPE], str(root))
    assert carry_out(before, store.root, str(root)) is None
    assert store.get(before) is not None
    assert pinned([RECIPE], str(root)) == [before]
    (root / "a" / "cat" / "0.png").write_bytes(encoded(noise_image(12345, (12, 12))))
    (after,) = pinned([RECIPE], str(root))
    assert after.key != before.key and store.get(after) is None
    with pytest.raises(SettingError, match="they are others, or have changed"):
        run(before, data_root=str(root))
    moved = root / "a" / "cat" / "1.png"
    moved.rename(root / "a" / "dog" / "11.png")
    assert pinned([RECIPE], str(root))[0].data_digest not in (before.data_digest, after.data_digest)


def test_a_recipe_that_does_not_know_its_files_has_no_key() -> None:
    with pytest.raises(SettingError, match=r"kept by the content of its files.*recipe.pinned\(data_root\)"):
        _ = RECIPE.key


def test_the_data_set_of_a_recipe_is_that_of_its_settings(root: Path) -> None:
    recipe = replace(RECIPE, data_options={"size": 12, "val_fraction": 0.3}, seed=7).resolved()
    assert same(recipe.make_data(str(root)), of_folder(root, val_fraction=0.3, seed=7))
    assert RECIPE.resolved().data_options == {"size": 12, "val_fraction": 0.1}
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_train": 5}, "`n_train` has no effect: your own images are taken as they are"),
        ({"correlations": (0.9, 0.8, 0.1)}, "`correlations` has no effect"),
        ({"label_noise": 0.1}, "`label_noise` has no effect"),
        ({"method": "oracle"}, "needs images without the spurious attribute"),
        ({"data_options": {"colour": 1}}, "no option of data set 'folder' is named 'colour'"),
        ({"data_options": {"size": "big"}}, "`size` of data set 'folder' must be of type int"),
        ({"data": "colored_digits", "data_options": {}}, "`test_envs` has no effect"),
        ({"data": "colored_digits", "test_envs": None}, "data set 'colored_digits' has no options"),
        ({"data": "folders"}, "Did you mean 'folder'"),
    ],
)
def test_what_would_be_ignored_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        replace(RECIPE, **changes).resolved()


def test_on_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "folder", "--data-root", str(root), "--data-options", "size", "12"]
    short = ["--width", "2", "--steps", "2", "--method", "irm"]
    assert main(["train", *flags, *short]) == 2
    assert "--test-envs); there are a, b, c." in capsys.readouterr().err
    for path in (root / "b" / "dog").iterdir():
        path.unlink()
    with pytest.warns(UserWarning, match="environment 'b' has no image of dog"):
        assert main(["train", *flags, *short, "--test-envs", "c", "--out", str(tmp_path / "out")]) == 0
    assert warnings.formatwarning("this", UserWarning, "file", 1) == "sparseirm: note: this.\n"
    recipe = read_json(tmp_path / "out" / "result.json")["recipe"]
    assert recipe["test_envs"] == ["c"] and recipe["data_digest"] == own.fingerprint(
        own.folder_entries, str(root)
    )


def test_a_sweep_runs_on_own_images_once(root: Path, tmp_path: Path) -> None:
    table, store = str(write_manifest(root)), Store(tmp_path / "store")
    recipes = [replace(RECIPE, data="manifest", method=method) for method in ("erm", "irm")]
    with ThreadPoolExecutor(1) as pool:
        first, again = (sweep(recipes, store, pool, table) for _ in range(2))
    assert first == again and [result.recipe.method for result in first if result] == ["erm", "irm"]


def test_names_that_look_like_markup_are_printed_as_they_are(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_manifest(root)
    table.write_text(table.read_text().replace(",a\n", ",[/b]\n").replace(",c\n", ",[red]c\n"))
    flags = ["--width", "2", "--steps", "2", "--test-envs", "[red]c", "--data-root", str(table)]
    assert main(["train", "--data", "manifest", *flags]) == 0
    told = capsys.readouterr().out
    assert "[/b]: " in told and "[red]c: " in told
