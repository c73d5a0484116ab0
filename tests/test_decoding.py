"""Claims about image files: any mode becomes RGB, upright; what is no image is refused."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw

from image_makers import encoded, noise_image
from sparseirm.core import SettingError
from sparseirm.data.decoding import described, is_image_name, rgb


def pixels(content: bytes, upright: bool = True) -> np.ndarray:
    image = rgb(content, "a file", upright)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_a_colour_image_is_read_as_it_is() -> None:
    image = noise_image(0, (5, 3))
    assert np.array_equal(pixels(encoded(image)), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_formats_without_loss_agree(kind: str) -> None:
    image = noise_image(1)
    assert np.array_equal(pixels(encoded(image, kind)), np.asarray(image))


def test_a_gray_image_gets_three_equal_channels() -> None:
    gray = noise_image(0).convert("L")
    assert np.array_equal(pixels(encoded(gray)), np.repeat(np.asarray(gray)[:, :, None], 3, axis=2))


def test_sixteen_bits_become_eight_and_are_not_cut_off() -> None:
    shades = np.array([[0, 255, 256, 40_000, 65_535]], dtype=np.uint16)
    found = pixels(encoded(Image.fromarray(shades)))
    assert found[0, :, 0].tolist() == [0, 0, 1, 156, 255]


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert pixels(encoded(image)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_a_palette_is_looked_up_and_its_transparent_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pixels(encoded(image, transparency=0)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_print_colours_become_screen_colours() -> None:
    assert pixels(encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 0)), "TIFF")).tolist() == [[[255, 255, 255]]]


def test_of_an_animation_it_is_the_first_picture() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels(content)[0, 0].tolist() == [255, 0, 0]


def test_a_photograph_is_turned_as_its_camera_says() -> None:
    image = noise_image(0, (4, 2))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    content = encoded(image, "PNG", exif=turned)
    expected = np.rot90(np.asarray(image), -1)
    assert np.array_equal(pixels(content), expected)
    assert np.array_equal(pixels(content, upright=False), np.asarray(image))


def test_what_is_no_image_is_refused_by_name() -> None:
    whole = encoded(noise_image(0))
    for content in (b"", b"words", whole[: len(whole) // 2], b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(SettingError, match=r"^a file cannot be read as an image \(.*\)\. Repair it"):
            rgb(content, "a file")


def test_an_image_of_floats_is_refused() -> None:
    content = encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF")
    with pytest.raises(SettingError, match="pixels of mode F; only 8 and 16 bits"):
        rgb(content, "a file")


def test_an_image_of_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert rgb(encoded(noise_image(0, (10, 10))), "a file").size == (10, 10)
    for side in (11, 20):  # Pillow itself warns of the first, and refuses the second
        with pytest.raises(SettingError, match="DecompressionBomb"):
            rgb(encoded(noise_image(0, (side, side))), "a file")


def test_reading_leaves_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    rgb(encoded(noise_image(0)), "a file")
    assert warnings.filters == before


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_the_quality_of_a_jpeg_is_read_off_its_tables(quality: int) -> None:
    image = noise_image(0)
    ImageDraw.Draw(image).line((0, 0, 9, 9))
    assert described(encoded(image, "JPEG", quality=quality)) == f"JPEG quality {quality}"
    assert described(encoded(image)) == "PNG"


def test_tables_of_another_program_have_an_unknown_quality() -> None:
    content = encoded(noise_image(0), "JPEG", qtables=[[7] * 64, [9] * 64])
    assert described(content) == "JPEG quality unknown"


def test_hidden_files_are_no_images() -> None:
    names = ("a.jpg", "b.JPEG", ".hidden.jpg", "Thumbs.db", "readme")
    assert [is_image_name(name) for name in names] == [True, True, False, False, False]
