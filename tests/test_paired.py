"""Claims about pairs of images and about CIFAR-10's files, each against the images themselves."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from image_makers import encoded, noise_image, rows_of, write_cifar
from sparseirm import registry
from sparseirm.core import SettingError
from sparseirm.data import DATASETS, DataSet, Split, cifar
from sparseirm.data.paired import PAIRS, paired
from sparseirm.data.pools import CLASSES, POOLS, pools, pools_of
from sparseirm.data.sources import load_images
from sparseirm.experiments.tables import markdown, rows
from sparseirm.recipe import Recipe
from sparseirm.runs import run

DIGITS = (("digits", ("3", "8")), ("digits", ("0", "1")))
CARS = ("cifar10", ("automobile", "truck"))


def digit_pairs(**settings: Any) -> Any:  # parts and hidden attribute are known to be there
    return DATASETS["digit_pairs"](**settings)


def halves(x: Tensor) -> tuple[list[bytes], list[bytes]]:
    """Upper and lower images, each as its bytes."""
    top, bottom = x.chunk(2, dim=2)
    return rows_of(top[:, 0]), rows_of(bottom[:, 0])


def digit_of() -> dict[bytes, int]:
    """Which digit an image of scikit-learn's shows."""
    pixels, labels = load_images("digits")
    return dict(zip(rows_of(pixels / 255), labels.tolist(), strict=True))


def assert_rate(events: Tensor, probability: float) -> None:
    """Within four standard deviations of the binomial distribution."""
    allowed = 4 * (probability * (1 - probability) / len(events)) ** 0.5
    assert abs(events.double().mean().item() - probability) <= allowed


def tensors(data: DataSet) -> list[Tensor]:
    return [t for p in data.splits.values() for t in (p.samples.x, p.samples.y, p.samples.env, p.spurious)]


def same(a: DataSet, b: DataSet) -> bool:
    return all(torch.equal(left, right) for left, right in zip(tensors(a), tensors(b), strict=True))


# Construction.


def test_images_labels_and_environments_have_the_shapes_of_every_data_set() -> None:
    data = digit_pairs()
    assert (data.name, data.loss, data.n_outputs) == ("digit_pairs", "binary", 1)
    assert (data.label_names, data.spurious_values) == (("3", "8"), ("0", "1"))
    assert data.train.names == data.val.names == ("train 0.999", "train 0.7")
    assert data.test.names == ("test 0.1",)
    for part in data.splits.values():
        assert part.samples.x.shape == (len(part), 3, 16, 8)
        assert part.samples.x.dtype == torch.float32
        assert (part.samples.x.min(), part.samples.x.max()) == (0, 1)
        assert {part.samples.y.dtype, part.samples.env.dtype, part.spurious.dtype} == {torch.int64}


def test_the_upper_image_is_of_the_label_s_class_and_the_lower_of_the_attribute_s() -> None:
    data, digit = digit_pairs(label_noise=0.0), digit_of()
    for part in data.splits.values():
        top, bottom = halves(part.samples.x)
        assert [digit[image] for image in top] == [(3, 8)[y] for y in part.samples.y]
        assert [digit[image] for image in bottom] == [(0, 1)[s] for s in part.spurious]
        assert torch.equal(part.samples.x, part.samples.x[:, :1].expand_as(part.samples.x))


def test_labels_are_wrong_and_lower_images_agree_as_often_as_said() -> None:
    top = (("digits", tuple("34567")), ("digits", tuple("01289")))
    data, digit = paired(*top, correlations=(0.9, 0.6, 0.2), label_noise=0.2), digit_of()
    for part, rates in ((data.train, (0.9, 0.6)), (data.val, (0.9, 0.6)), (data.test, (0.2,))):
        upper, lower = halves(part.samples.x)  # read off the images, not off what the data set says
        clean = torch.tensor(["34567".index(str(digit[image])) for image in upper])
        shown = torch.tensor(["01289".index(str(digit[image])) for image in lower])
        assert_rate(clean != part.samples.y, 0.2)
        for env, rate in enumerate(rates):
            assert_rate((shown == part.samples.y)[part.samples.env == env], rate)
    assert (data.loss, data.n_outputs) == ("multiclass", 5)


def test_correlations_zero_and_one_are_exact() -> None:
    data = digit_pairs(correlations=(1.0, 0.0, 1), label_noise=0)
    agrees = data.train.spurious == data.train.samples.y
    assert torch.equal(agrees, data.train.samples.env == 0)


def test_every_partner_is_used_before_one_is_used_again() -> None:
    data = paired(*DIGITS, correlations=(1.0, 1.0, 1.0))
    _, lower = halves(data.train.samples.x)
    pool = pools_of("digits", ("0", "1"))["train"][1]
    for value in (0, 1):
        shown = [image for image, s in zip(lower, data.train.spurious, strict=True) if s == value]
        assert len(set(shown)) == min(len(shown), int((pool == value).sum()))


def test_train_validation_and_test_share_no_image() -> None:
    data = paired(*DIGITS)
    parts = [halves(part.samples.x) for part in data.splits.values()]
    for half in (0, 1):
        seen = [set(part[half]) for part in parts]
        assert len(set.union(*seen)) == sum(map(len, seen))
    upper = [image for part in parts for image in part[0]]
    assert len(set(upper)) == len(upper)


def test_the_oracle_s_images_have_nothing_below() -> None:
    plain, full = digit_pairs(gray=True), digit_pairs()
    other = digit_pairs(gray=True, correlations=(0.1, 0.2, 0.9))
    assert not torch.equal(plain.train.spurious, other.train.spurious)
    for name, part in plain.splits.items():
        top, bottom = part.samples.x.chunk(2, dim=2)
        assert (bottom == 0).all()
        assert torch.equal(part.samples.x, other.splits[name].samples.x)
        assert torch.equal(top, full.splits[name].samples.x.chunk(2, dim=2)[0])
        assert torch.equal(part.samples.y, full.splits[name].samples.y)


def test_the_same_seed_gives_the_same_bits_whatever_torch_s_own_seed() -> None:
    torch.manual_seed(1)
    first = digit_pairs(seed=3)
    torch.manual_seed(2)
    assert same(first, digit_pairs(seed=3))
    assert not same(first, digit_pairs(seed=4))


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one() -> None:
    few, many = digit_pairs(n_train=51), digit_pairs()
    assert torch.equal(few.train.samples.x, many.train.samples.x[:51])


def test_images_of_unequal_size_are_padded_in_the_middle(tmp_path: Path) -> None:
    write_cifar(tmp_path, classes=CARS[1])
    data = paired(CARS, ("digits", ("0", "1")), data_root=str(tmp_path))
    assert data.name == "cifar10_digits"
    lower = data.train.samples.x.chunk(2, dim=2)[1]
    assert lower.shape[-2:] == (32, 32)
    inside = lower[:, :, 12:20, 12:20]
    assert inside.double().sum() == lower.double().sum() > 0


def test_any_two_sources_are_a_data_set_of_a_recipe() -> None:
    chosen = {"top": "digits:3, 8", "bottom": "digits:0,1"}
    data = Recipe(data="pair", n_train=200, data_options=chosen).resolved().make_data()
    named = Recipe(data="digit_pairs", n_train=200).resolved().make_data()
    for one, other in zip(tensors(data), tensors(named), strict=True):
        assert torch.equal(one, other)


def test_a_pair_of_three_classes_has_the_settings_of_many() -> None:
    three = {"top": "digits:3,8,1", "bottom": "digits:0,1,2"}
    many, pair = Recipe(data="full_colored_digits").resolved(), Recipe(data="pair").resolved()
    found = Recipe(data="pair", data_options=three).resolved()
    assert found.penalty_weight == many.penalty_weight != pair.penalty_weight
    assert (found.lr, found.lr_drop) == (many.lr, many.lr_drop) != (pair.lr, pair.lr_drop)


@pytest.mark.parametrize("words", ["digits", "digits:", "", "digits:3,12", "letters:a,b"])
def test_a_pair_of_what_is_not_there_is_refused(words: str) -> None:
    with pytest.raises(SettingError, match=r"`top` of data set 'pair'|class of 'digits'|no source is"):
        Recipe(data="pair", data_options={"top": words}).resolved().make_data()


@pytest.mark.parametrize("chosen", [{"topp": "digits:3,8"}, {"top": 3.0}, {"bottom": True}])
def test_options_of_a_pair_that_are_none_are_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="of data set 'pair'"):
        Recipe(data="pair", data_options=chosen).resolved()


def test_a_pair_is_tied_to_files_that_may_differ_elsewhere() -> None:
    recipe = Recipe(data="pair", data_options={"top": "cifar10:automobile,truck"})
    with pytest.raises(SettingError, match="kept by the content of its files"):
        _ = recipe.key
    assert len(Recipe(data="pair").key) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top": ("digits", ("3", "8", "9"))}, "`top` and `bottom` must have as many classes"),
        ({"top": ("digits", ("3", "3"))}, "`classes` of 'digits' must be two or more names, each once"),
        ({"top": ("digits", ("3", "x"))}, "no class of 'digits' is named 'x'"),
        ({"top": ("digit", ("3", "8"))}, "no source is named 'digit'. Did you mean 'digits'"),
        ({"n_train": 1}, "`n_train` must be an integer of at least 2"),
        ({"correlations": (0.5,)}, "`correlations` must be three or more"),
        ({"label_noise": 10}, "`label_noise` must lie in"),
        ({"gray": 1}, "`gray` must be True"),
    ],
)
def test_a_setting_out_of_range_is_named_with_rule_and_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        paired(**{"top": DIGITS[0], "bottom": DIGITS[1], **arguments})


def test_every_named_pair_is_of_known_sources_and_classes() -> None:
    for pair in PAIRS.values():
        assert len(pair.top[1]) == len(pair.bottom[1])
        for source, classes in (pair.top, pair.bottom):
            assert set(classes) <= set(CLASSES[source])
    assert CLASSES.keys() == POOLS.keys()


# CIFAR-10's files.


def test_class_folders_and_zips_of_them_are_the_same_images(tmp_path: Path) -> None:
    plain, zipped = write_cifar(tmp_path / "plain"), write_cifar(tmp_path / "zipped", zipped=True)
    for part, n in (("train", 12), ("test", 8)):
        pixels, labels = cifar.load(part, str(plain))
        others, other_labels = cifar.load(part, str(zipped))
        assert torch.equal(pixels, others) and torch.equal(labels, other_labels)
        assert labels.tolist() == [label for label in range(10) for _ in range(n)]
        assert pixels.shape == (10 * n, 3, 32, 32) and pixels.dtype == torch.uint8
    first = np.asarray(Image.open(plain / "cifar10" / "train" / "bird" / "0003.png"))
    assert np.array_equal(cifar.load("train", str(plain), ["bird"])[0][3].permute(1, 2, 0).numpy(), first)
    assert cifar.fingerprint(str(plain)) == cifar.fingerprint(str(zipped))


def test_the_pools_share_no_image_and_both_test_halves_hold_all_classes(tmp_path: Path) -> None:
    parts = pools("cifar10", str(write_cifar(tmp_path)))
    assert [len(labels) for _, labels in parts.values()] == [120, 40, 40]
    assert parts["val"][1].bincount().tolist() == parts["test"][1].bincount().tolist() == [4] * 10
    seen = [image for pixels, _ in parts.values() for image in rows_of(pixels)]
    assert len(set(seen)) == 200


def test_classes_keep_the_order_they_are_asked_for_in(tmp_path: Path) -> None:
    root = str(write_cifar(tmp_path))
    forth, back = (pools_of("cifar10", classes, root) for classes in (("cat", "dog"), ("dog", "cat")))
    assert torch.equal(forth["train"][0], back["train"][0])
    assert torch.equal(forth["train"][1], 1 - back["train"][1])


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    root = write_cifar(tmp_path)
    before = cifar.fingerprint(str(root), ["cat"])
    (root / "cifar10" / "test" / "dog" / "0000.png").write_bytes(encoded(noise_image(9999)))
    assert cifar.fingerprint(str(root), ["cat"]) == before
    (root / "cifar10" / "test" / "cat" / "0000.png").write_bytes(encoded(noise_image(9999)))
    assert cifar.fingerprint(str(root), ["cat"]) != before


def test_the_note_says_how_the_files_are_stored(tmp_path: Path) -> None:
    root = write_cifar(tmp_path, classes=["cat", "dog"])
    assert cifar.note(str(root), ["cat"]) == "CIFAR-10 from PNG files"
    jpeg = encoded(noise_image(0), "JPEG", quality=75)
    (root / "cifar10" / "train" / "cat" / "0001.jpg").write_bytes(jpeg)
    assert cifar.note(str(root), ["cat"]) == "CIFAR-10 from JPEG quality 75 and PNG files"
    assert cifar.note(str(root), ["dog"]) == "CIFAR-10 from PNG files"


def test_names_in_a_zip_lead_nowhere(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "data", classes=["cat", "dog"], zipped=True)
    with zipfile.ZipFile(root / "cifar10" / "train.zip", "a") as archive:
        for name in (
            "../cat/evil.png",
            "/cat/evil.png",
            "cat/../evil.png",
            "cat/deep/evil.png",
            "cat/notes.txt",
        ):
            archive.writestr(name, encoded(noise_image(777)))
    pixels, _ = cifar.load("train", str(root), ["cat", "dog"])
    assert len(pixels) == 24
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"train.zip", "test.zip"}


def test_damaged_or_incomplete_files_are_reported(tmp_path: Path) -> None:
    root = write_cifar(tmp_path / "folders", classes=["cat"])
    with pytest.raises(SettingError, match=r"must hold image files .* none of dog\. Complete it"):
        cifar.load("train", str(root), ["cat", "dog"])
    (root / "cifar10" / "train" / "cat" / "0000.png").write_bytes(encoded(noise_image(0, (31, 32))))
    with pytest.raises(
        SettingError, match=r"cat/0000.png of CIFAR-10 must have 32 x 32 pixels; got \(32, 31\)"
    ):
        cifar.load("train", str(root), ["cat"])
    (root / "cifar10" / "train" / "cat" / "0000.png").write_bytes(b"words")
    with pytest.raises(SettingError, match=r"0000.png of cat cannot be read as an image"):
        cifar.load("train", str(root), ["cat"])
    shutil.rmtree(root / "cifar10" / "train")
    archive = root / "cifar10" / "train.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("cat/0000.png", bytes(1000))
    whole = archive.read_bytes()
    for damaged in (b"PK and more", whole[:45] + b"\xff\xff" + whole[47:]):
        archive.write_bytes(damaged)
        with pytest.raises(SettingError, match=r"train.zip cannot be read"):
            cifar.load("train", str(root), ["cat"])


def test_a_large_member_of_a_zip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cifar(tmp_path, classes=["cat"], zipped=True)
    monkeypatch.setattr(cifar, "LARGEST", 10)
    with pytest.raises(SettingError, match="is too large for an image"):
        cifar.load("train", str(root), ["cat"])


class Originals:
    """Stands for torchvision's reader: two images a part."""

    train_list = test_list = (("data_batch", "md5"),)

    def __init__(self, root: Any, train: bool = True, download: bool = False) -> None:
        folder = Path(root) / cifar.ORIGINALS
        if download:
            folder.mkdir()
            (folder / "data_batch").touch()
        if not (folder / "data_batch").exists():
            raise RuntimeError("Dataset not found or corrupted.")
        self.data = np.full((2, 32, 32, 3), 1 + train, dtype=np.uint8)
        self.targets = [3, 5]


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Originals)


@pytest.mark.usefixtures("originals")
def test_the_original_files_are_downloaded_whole_and_go_before_image_files(tmp_path: Path) -> None:
    pixels, labels = cifar.load("train", str(tmp_path))
    assert pixels.shape == (2, 3, 32, 32) and labels.tolist() == [3, 5] and (pixels == 2).all()
    assert [path.name for path in tmp_path.iterdir()] == [cifar.ORIGINALS]
    write_cifar(tmp_path, classes=["cat"])
    assert cifar.load("test", str(tmp_path), ["cat"])[0].shape == (1, 3, 32, 32)
    assert cifar.note(str(tmp_path)) == "CIFAR-10 from original files"
    (tmp_path / cifar.ORIGINALS / "data_batch").unlink()
    with pytest.raises(SettingError, match="incomplete or damaged"):
        cifar.load("train", str(tmp_path))


def test_of_two_downloads_at_once_the_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Overtaken(Originals):
        def __init__(self, root: Any, train: bool = True, download: bool = False) -> None:
            if download:
                Originals(tmp_path, download=True)
            super().__init__(root, train, download)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Overtaken)
    assert cifar.load("train", str(tmp_path))[1].tolist() == [3, 5]
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert sorted(found) == [cifar.ORIGINALS, f"{cifar.ORIGINALS}/data_batch"]


def test_missing_files_without_network_name_the_folder_and_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(SettingError, match=r"CIFAR-10 is missing.*no route to host.*--data-root") as caught:
        cifar.load("train", str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# The real thing.


@pytest.fixture(scope="module")
def real(cifar_root: str) -> DataSet:
    return DATASETS["cifar_mnist"](data_root=cifar_root)


def sides(part: Split) -> Tensor:
    return part.samples.x.chunk(2, dim=2)[1]


def test_cifarmnist_has_the_paper_s_sizes_and_rates(real: Any) -> None:
    assert [part.counts for part in real.splits.values()] == [[5000, 5000], [500, 500], [1000]]
    assert real.train.samples.x.shape == (10_000, 3, 64, 32)
    for part, rates in ((real.train, (0.999, 0.7)), (real.val, (0.999, 0.7)), (real.test, (0.1,))):
        assert (part.samples.x.min(), part.samples.x.max()) == (0, 1)
        for env, rate in enumerate(rates):
            assert_rate((part.spurious == part.samples.y)[part.samples.env == env], rate)


def test_cifarmnist_s_partners_are_zeros_and_ones_of_mnist(real: Any, cifar_root: str) -> None:
    pixels, labels = load_images("mnist", cifar_root)
    known = dict(zip(rows_of(pixels[50_000:]), labels[50_000:].tolist(), strict=True))
    inside = (sides(real.test)[:, 0, 2:30, 2:30] * 255).round().to(torch.uint8)
    assert [known[image] for image in rows_of(inside)] == real.test.spurious.tolist()
    assert inside.double().sum() == (sides(real.test)[:, 0].double() * 255).round().sum()


def test_cifarmnist_uses_every_car_and_truck_once_and_says_how_they_are_stored(real: Any) -> None:
    tops = [rows_of((part.samples.x[:, :, :32] * 255).to(torch.uint8)) for part in real.splits.values()]
    assert len(set(tops[0]) | set(tops[1]) | set(tops[2])) > 11_990  # of 12,000; CIFAR-10 repeats a few
    assert not set(tops[1]) & set(tops[2])
    assert real.source_note.startswith("CIFAR-10 from ")


def test_a_result_on_cifar_names_its_files_and_is_tied_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "data", classes=CARS[1])
    monkeypatch.setitem(PAIRS, "cifar_mnist", PAIRS["cifar_mnist"].__class__(CARS, DIGITS[1], n_train=20))
    recipe = Recipe(data="cifar_mnist", n_train=20, method="erm", width=2, steps=2)
    result = run(recipe, data_root=str(tmp_path / "data"), out=tmp_path / "out")
    assert result.source_note == "CIFAR-10 from PNG files"
    assert markdown(rows([result])).endswith("| 1 |\n\nCIFAR-10 from PNG files.\n")
    assert result.recipe.data_digest == cifar.fingerprint(str(tmp_path / "data"), CARS[1])
    assert run(recipe, data_root=str(tmp_path / "data"), out=tmp_path / "out", resume=True) == result
    write_cifar(tmp_path / "data", n_train=13, classes=CARS[1])
    with pytest.raises(SettingError, match=r"holds another run \(data_digest: "):
        run(recipe, data_root=str(tmp_path / "data"), out=tmp_path / "out", resume=True)


# Other sources.


def write_classes(root: Path, n: int = 40) -> Path:
    """Class folders of pictures of 8 x 8 pixels, the first of each class there twice."""
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True)
        for i in range(n):
            (root / kind / f"{i}.png").write_bytes(
                encoded(noise_image(2 * max(i, 1) + (kind == "dog"), (8, 8)))
            )
    return root


def test_class_folders_are_a_source_plain_or_zipped(tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "pets")
    recipe = Recipe(data="pair", n_train=40, data_options={"top": "folder:pets:dog,cat"}).resolved()
    pinned, plain = recipe.pinned(str(tmp_path / "data")), recipe.make_data(str(tmp_path / "data"))
    assert plain.label_names == ("dog", "cat") and plain.train.samples.x.shape == (40, 3, 16, 8)
    picture = np.asarray(Image.open(tmp_path / "data" / "pets" / "dog" / "1.png")).transpose(2, 0, 1)
    divided = pools_of("folder:pets", ("dog", "cat"), str(tmp_path / "data"))
    assert sum(len(labels) for _, labels in divided.values()) == 80
    places = [
        (p, int(y))
        for p, part in divided.items()
        for x, y in zip(*part, strict=True)
        if (x.numpy() == picture).all()
    ]
    assert len(places) == 2 and len({*places}) == 1 and places[0][1] == 0  # a copy stays with its original
    shutil.make_archive(str(tmp_path / "data" / "pets"), "zip", tmp_path / "data" / "pets")
    shutil.rmtree(tmp_path / "data" / "pets")
    assert same(recipe.make_data(str(tmp_path / "data")), plain)
    assert recipe.pinned(str(tmp_path / "data")) == pinned and pinned.data_digest is not None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("folder:pets:cat,cow", "there are none of cow. Complete it, or leave the class out"),
        ("folder:nowhere:cat,dog", "neither a folder .*nowhere nor a file .*nowhere.zip"),
        ("folder:pets", "`top` of data set 'pair' must be a source and its classes"),
        ("folder:few:cat,dog", "must have images of every class for each part"),
        ("folder:mixed:cat,dog", "must all be of one size; got .'8 x 8', '9 x 9'"),
    ],
)
def test_class_folders_that_are_none_are_refused(source: str, message: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", 2)
    write_classes(tmp_path / "few", 2)
    write_classes(tmp_path / "mixed", 3)
    (tmp_path / "mixed" / "cat" / "0.png").write_bytes(encoded(noise_image(0, (9, 9))))
    with pytest.raises(SettingError, match=message):
        Recipe(data="pair", data_options={"top": source}).resolved().make_data(str(tmp_path))


def test_a_source_of_another_package_is_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        name, classes = "turned", tuple("abcdefghij")

        def load(self) -> Any:
            return self

        def __call__(self, data_root: str | None) -> tuple[Tensor, Tensor]:
            pixels, labels = load_images("digits")
            return pixels.flip(1), labels

    monkeypatch.setattr(
        registry, "entry_points", lambda group: [Named()] if group == "sparseirm.source" else []
    )
    recipe = Recipe(data="pair", n_train=100, data_options={"top": "turned:b,d"}).resolved().pinned()
    data = recipe.make_data()
    assert recipe.data_digest is not None and data.label_names == ("b", "d")
    above = data.train.samples.x[:, 0, :8].flip(1)
    assert {digit_of()[image] for image in rows_of(above)} == {1, 3}
    monkeypatch.delattr(Named, "classes")
    numbered = pools_of("turned", ("1", "3"))
    assert sum(len(labels) for _, labels in numbered.values()) == sum(
        int((load_images("digits")[1] == k).sum()) for k in (1, 3)
    )
