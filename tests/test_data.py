"""Claims about the coloured data sets and the images they are made of."""

import struct
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparseirm.core import SettingError
from sparseirm.data import DATASETS, DataSet
from sparseirm.data.colored import COLOURINGS, MATERIALS
from sparseirm.data.sources import IDX_FILES, data_folder, load_images
from sparseirm.files import digest
from sparseirm.losses import LOSSES

COLOURED = [name for name in DATASETS if "colored_" in name and name != "colored_object"]
EMBEDDED = ["colored_digits", "full_colored_digits"]
DEFAULTS = {"colored": ((0.9, 0.8, 0.1), 0.25), "full_colored": ((0.999, 0.7, 0.1), 0.2)}

embedded = pytest.mark.parametrize("name", EMBEDDED)


def build(name: str, **settings: Any) -> Any:  # parts and hidden attribute are known to be there
    return DATASETS[name](**settings)


def colouring_of(name: str) -> str:
    return "full_colored" if name.startswith("full_") else "colored"


def tensors(data: Any) -> list[Tensor]:
    parts = data.splits.values()
    return [t for part in parts for t in (part.samples.x, part.samples.y, part.samples.env, part.spurious)]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(left, right) for left, right in zip(tensors(a), tensors(b), strict=True))


def images(data: DataSet) -> set[bytes]:
    """The images of all parts, each as its bytes."""
    return {row.numpy().tobytes() for part in data.splits.values() for row in part.samples.x[:, 0]}


def assert_rate(events: Tensor, probability: float) -> None:
    """Within four standard deviations of the binomial distribution."""
    allowed = 4 * (probability * (1 - probability) / len(events)) ** 0.5
    assert abs(events.double().mean().item() - probability) <= allowed


def agreement(part: Any, env: int) -> Any:
    members = part.samples.env == env
    return (part.spurious == part.samples.y)[members]


def clean_and_noisy(name: str, **settings: Any) -> list[Tensor]:
    """Labels of all parts of the same images without and with noise."""
    clean, noisy = build(name, label_noise=0.0, **settings), build(name, **settings)
    return [torch.cat([part.samples.y for part in data.splits.values()]) for data in (clean, noisy)]


# Contract: every coloured data set.


@pytest.mark.parametrize("name", COLOURED)
def test_every_coloured_data_set_keeps_its_contract(name: str, request: pytest.FixtureRequest) -> None:
    needed = None if "digits" in name else "fashion_root" if "fashion" in name else "mnist_root"
    root = request.getfixturevalue(needed) if needed else None
    data = build(name, n_train=1000, data_root=root)
    colouring = COLOURINGS[colouring_of(name)]
    channels, side = len(colouring.palette[0]), 14 if needed else 8
    assert data.name == name
    assert data.loss in LOSSES
    assert data.train.counts == [500, 500]
    assert data.val.names == data.train.names
    for part in data.splits.values():
        x, y = part.samples.x, part.samples.y
        assert x.shape == (len(part), channels, side, side)
        assert (x.dtype, y.dtype, part.samples.env.dtype, part.spurious.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
            torch.int64,
        )
        assert x.min() == 0
        assert x.max() == 1
        assert y.unique().tolist() == part.spurious.unique().tolist() == list(range(len(colouring.palette)))


@embedded
def test_default_sizes_of_the_digits_are_1200_297_and_300(name: str) -> None:
    data = build(name)
    assert [part.counts for part in data.splits.values()] == [[600, 600], [149, 148], [300]]


@pytest.mark.parametrize("n_train", [2, 3, 501, 1200])
def test_any_number_of_samples_alternates_between_the_environments(n_train: int) -> None:
    data = build("colored_digits", n_train=n_train)
    assert data.train.samples.env.tolist() == [i % 2 for i in range(n_train)]
    assert data.val.samples.env.tolist() == [i % 2 for i in range(min(n_train, 297))]


# Construction: correlations, noise, colours.


@embedded
def test_colour_agrees_with_the_noisy_label_as_often_as_said(name: str) -> None:
    data = build(name, correlations=(0.95, 0.6, 0.75, 0.2))
    for part, correlations in (
        (data.train, (0.95, 0.6, 0.75)),
        (data.val, (0.95, 0.6, 0.75)),
        (data.test, (0.2,)),
    ):
        for env, correlation in enumerate(correlations):
            assert_rate(agreement(part, env), correlation)


@embedded
def test_labels_are_wrong_as_often_as_said(name: str) -> None:
    clean, noisy = clean_and_noisy(name)
    assert_rate(clean != noisy, DEFAULTS[colouring_of(name)][1])
    assert_rate((clean != noisy)[-300:], DEFAULTS[colouring_of(name)][1])


def test_wrong_labels_and_colours_are_any_of_the_others_alike() -> None:
    data = build("full_colored_digits", label_noise=1.0, correlations=(0.0, 0.0, 0.0))
    clean = build("full_colored_digits", label_noise=0.0)
    for wrong, right in (
        (data.train.samples.y, clean.train.samples.y),
        (data.train.spurious, data.train.samples.y),
    ):
        offset = (wrong - right) % 10
        assert offset.min() == 1
        for away in range(1, 10):
            assert_rate(offset == away, 1 / 9)


def test_correlations_zero_and_one_and_no_noise_are_exact() -> None:
    data = build("colored_digits", correlations=(1.0, 0.0, 1), label_noise=0)
    assert agreement(data.train, 0).all()
    assert not agreement(data.train, 1).any()
    assert agreement(data.test, 0).all()


def test_label_one_means_a_digit_below_five() -> None:
    two = build("colored_digits", label_noise=0.0).train.samples.y
    ten = build("full_colored_digits", label_noise=0.0).train.samples.y
    assert torch.equal(two, (ten < 5).long())


def test_clean_labels_are_those_of_the_images() -> None:
    pixels, labels = load_images("digits")
    known = {image.numpy().tobytes(): int(label) for image, label in zip(pixels / 255, labels, strict=True)}
    part = build("full_colored_digits", label_noise=0.0, gray=True).test
    assert [known[row.numpy().tobytes()] for row in part.samples.x[:, 0]] == part.samples.y.tolist()


@embedded
def test_an_image_is_painted_in_the_colour_spurious_names(name: str) -> None:
    coloured, gray = build(name).train, build(name, gray=True).train
    palette = torch.tensor(COLOURINGS[colouring_of(name)].palette)
    expected = palette[coloured.spurious][:, :, None, None] * gray.samples.x
    torch.testing.assert_close(coloured.samples.x, expected, rtol=0, atol=0)


def test_of_two_channels_one_is_zero() -> None:
    part = build("colored_digits").train
    rows = torch.arange(len(part))
    assert (part.samples.x[rows, 1 - part.spurious] == 0).all()
    assert (part.samples.x[rows, part.spurious].flatten(1).amax(1) > 0).all()


def test_no_two_of_the_ten_colours_differ_in_brightness_only() -> None:
    palette = torch.tensor(COLOURINGS["full_colored"].palette)
    directions = torch.nn.functional.normalize(palette)
    cosines = directions @ directions.T - torch.eye(10)
    assert palette.amax(1).eq(1).all()
    assert cosines.max() < 0.96
    assert torch.pdist(palette).min() >= 0.5


PINNED = {"colored_digits": "d0caf8eb79e823fa", "full_colored_digits": "78242311b61a92b3"}


@embedded
def test_stored_results_stand_on_these_very_bits(name: str) -> None:
    content = b"".join(tensor.numpy().tobytes() for tensor in tensors(build(name, seed=2, n_train=500)))
    assert digest(content)[:16] == PINNED[name]


# Gray images: the oracle's.


@embedded
def test_gray_images_carry_no_colour(name: str) -> None:
    one = build(name, gray=True, correlations=(0.9, 0.8, 0.1))
    other = build(name, gray=True, correlations=(0.1, 0.3, 0.7))
    assert not torch.equal(one.train.spurious, other.train.spurious)
    for part in ("train", "val", "test"):
        x = one.splits[part].samples.x
        assert torch.equal(x, other.splits[part].samples.x)
        assert torch.equal(x, x[:, :1].expand_as(x))


@embedded
def test_gray_and_coloured_share_shape_and_labels(name: str) -> None:
    gray, coloured = build(name, gray=True), build(name)
    for part, other in zip(gray.splits.values(), coloured.splits.values(), strict=True):
        assert part.samples.x.shape == other.samples.x.shape
        assert torch.equal(part.samples.y, other.samples.y)
        assert torch.equal(part.spurious, other.spurious)


# Randomness and division.


@embedded
def test_same_seed_gives_the_same_bits_whatever_torch_s_own_seed(name: str) -> None:
    torch.manual_seed(1)
    first = build(name, seed=3)
    torch.manual_seed(2)
    assert same(first, build(name, seed=3))


def test_building_leaves_torch_s_own_randomness_alone() -> None:
    torch.manual_seed(1)
    undisturbed = torch.rand(3)
    torch.manual_seed(1)
    build("colored_digits")
    assert torch.equal(torch.rand(3), undisturbed)


@embedded
def test_another_seed_gives_other_labels_and_colours(name: str) -> None:
    one, other = build(name, seed=0), build(name, seed=1)
    assert not torch.equal(one.train.samples.y, other.train.samples.y)
    assert not torch.equal(one.train.spurious, other.train.spurious)
    assert not torch.equal(one.train.samples.x, other.train.samples.x)


def test_a_smaller_data_set_is_the_beginning_of_a_larger_one() -> None:
    few, many = build("colored_digits", n_train=101), build("colored_digits")
    assert torch.equal(few.train.samples.x, many.train.samples.x[:101])
    assert torch.equal(few.train.samples.y, many.train.samples.y[:101])


def test_train_validation_and_test_share_no_image() -> None:
    data = build("colored_digits", gray=True)
    assert len(images(data)) == sum(map(len, data.splits.values())) == 1797


def test_pools_are_the_same_for_every_seed() -> None:
    one, other = (build("colored_digits", gray=True, seed=seed).test.samples.x[:, 0] for seed in (0, 1))
    assert {row.numpy().tobytes() for row in one} == {row.numpy().tobytes() for row in other}


def test_environments_of_equal_correlation_get_different_names() -> None:
    data = build("colored_digits", correlations=(0.9, 0.8, 0.9, 0.1))
    assert data.train.names == ("train 0.9 (1)", "train 0.8", "train 0.9 (2)")
    assert data.test.names == ("test 0.1",)


def test_correlations_may_be_a_list() -> None:
    assert same(build("colored_digits", correlations=[0.9, 0.8, 0.1]), build("colored_digits"))


# The real thing.


@pytest.mark.parametrize("name", ["colored_mnist", "full_colored_mnist"])
def test_mnist_has_the_paper_s_sizes_and_rates(name: str, mnist_root: str) -> None:
    data = build(name)
    correlations, label_noise = DEFAULTS[colouring_of(name)]
    assert [part.counts for part in data.splits.values()] == [[10_000, 10_000], [1000, 1000], [10_000]]
    for env in (0, 1):
        assert_rate(agreement(data.train, env), correlations[env])
        assert_rate(agreement(data.val, env), correlations[env])
    assert_rate(agreement(data.test, 0), correlations[2])
    clean, noisy = clean_and_noisy(name)
    assert_rate(clean != noisy, label_noise)


def test_mnist_can_give_all_50000_training_images(mnist_root: str) -> None:
    data = build("colored_mnist", n_train=50_000, gray=True)
    assert [len(part) for part in data.splits.values()] == [50_000, 5000, 10_000]
    pools = MATERIALS["mnist"].pools(mnist_root)
    expected = torch.cat([pools["train"][0], pools["test"][0]]).double().sum() / 255
    seen = sum(data.splits[part].samples.x[:, 0].double().sum() for part in ("train", "test"))
    torch.testing.assert_close(seen, expected)


def test_mnist_is_divided_by_file_order(mnist_root: str) -> None:
    pixels, labels = load_images("mnist", mnist_root)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    pools = MATERIALS["mnist"].pools(mnist_root)
    assert [len(labels) for _, labels in pools.values()] == [50_000, 10_000, 10_000]
    assert torch.equal(pools["test"][0], pixels[-10_000:, ::2, ::2])
    assert torch.equal(pools["val"][1], load_images("mnist_test", mnist_root)[1])


def test_fashion_images_are_not_digits(fashion_root: str) -> None:
    pixels, labels = load_images("fashion_mnist", fashion_root)
    assert pixels.shape == (60_000, 28, 28)
    assert labels[:5].tolist() == [9, 0, 0, 3, 0]


# Where files come from.


def write_idx(root: Path, shade: int, n: int = 3) -> None:
    """Files in MNIST's format below ``root``: ``n`` images of one shade."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in IDX_FILES:
        pictures = "images" in file
        head = struct.pack(">IIII", 0x803, n, 28, 28) if pictures else struct.pack(">II", 0x801, n)
        (raw / file).write_bytes(head + bytes([shade] * (n * 784 if pictures else n)))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download succeeds."""
    from torchvision import datasets  # type: ignore[import-untyped]

    def fail(self: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", fail)


def first_shade(data_root: str | None) -> int:
    return int(load_images("mnist", data_root)[0][0, 0, 0])


@pytest.mark.usefixtures("offline")
def test_the_data_root_comes_from_argument_then_variable_then_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shade, name in enumerate(("argument", "variable", "cache/sparseirm/data"), start=1):
        write_idx(tmp_path / name, shade)
    monkeypatch.setenv("SPARSEIRM_DATA", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert first_shade(str(tmp_path / "argument")) == 1
    assert first_shade(None) == 2
    monkeypatch.delenv("SPARSEIRM_DATA")
    assert first_shade(None) == 3


def test_the_cache_lies_in_the_home_folder_and_a_tilde_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEIRM_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_folder() == Path.home() / ".cache" / "sparseirm" / "data"
    assert data_folder("~/images") == Path.home() / "images"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "way_out", ["MNIST is missing", "train-images-idx3-ubyte", "--data-root", "SPARSEIRM_DATA"]
)
def test_missing_files_without_network_name_the_folder_and_the_ways_out(way_out: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=way_out) as caught:
        build("colored_mnist", data_root=str(tmp_path))
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    assert "no route to host" in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_a_data_root_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="MNIST is missing"):
        load_images("mnist", str(tmp_path / "file"))


def test_a_download_arrives_whole_in_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "download", lambda self: write_idx(Path(self.root), shade=7))
    assert first_shade(str(tmp_path)) == 7
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(IDX_FILES)


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    write_idx(tmp_path, shade=1)
    broken = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(SettingError, match=r"cannot be read .* damaged: delete them"):
        load_images("mnist", str(tmp_path))


def test_too_small_a_file_of_mnist_is_reported(tmp_path: Path) -> None:
    write_idx(tmp_path, shade=1)
    with pytest.raises(SettingError, match="60,000"):
        build("colored_mnist", data_root=str(tmp_path))


def test_an_unknown_source_is_met_with_the_nearest_name() -> None:
    with pytest.raises(SettingError, match=r"no source is named 'mnits'\. Did you mean 'mnist'"):
        load_images("mnits")
    with pytest.raises(
        SettingError, match=r"no source of coloured images is named 'digit'\. Did you mean 'digits'"
    ):
        build("colored_mnist", source="digit")


# Settings out of range.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"correlations": (0.9, 0.1)}, r"`correlations` must be three or more .* got \(0.9, 0.1\)"),
        ({"correlations": (0.9, 1.2, 0.1)}, r"`correlations` must be .* in \[0, 1\]"),
        ({"correlations": (0.9, float("nan"), 0.1)}, "`correlations` must be .* got .*nan"),
        ({"correlations": "0.9"}, "`correlations` must be .* For example"),
        ({"correlations": 0.9}, "`correlations` must be .* got 0.9"),
        ({"label_noise": 25}, r"`label_noise` must lie in \[0, 1\].* got 25. .*`label_noise=0.25`"),
        ({"label_noise": "a lot"}, r"`label_noise` must lie in \[0, 1\]"),
        ({"seed": 0.5}, "`seed` must be an integer; got 0.5"),
        ({"gray": "no"}, "`gray` must be True .* got 'no'"),
        ({"n_train": 1}, "`n_train` must be an integer of at least 2, .* got 1\\."),
        ({"n_train": 1201}, "'digits' has 1200 training images, .* got 1201. .* --n-train 1200"),
        ({"n_train": 100.0}, "`n_train` must be an integer .* got 100.0. Leave it out"),
    ],
)
def test_a_setting_out_of_range_is_named_with_rule_and_value(settings: dict[str, Any], message: str) -> None:
    for name in EMBEDDED:
        with pytest.raises(SettingError, match=message):
            build(name, **settings)
