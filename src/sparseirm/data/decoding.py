"""Image files to RGB pixels, whatever their mode and orientation; nothing that is no image gets through."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparseirm.core import SettingError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What is read, by content. Pillow knows more, but some of those start other programs."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of files that are taken for images, in lower case."""


def is_image_name(name: str) -> bool:
    """Whether a visible file with that name should be an image.

    >>> is_image_name("a.JPG"), is_image_name("notes.txt"), is_image_name("._a.jpg")
    (True, False, False)
    """
    return PurePath(name).suffix.lower() in SUFFIXES and not PurePath(name).name.startswith(".")


def rgb(content: bytes, name: str, upright: bool = True) -> Image.Image:
    """The image of a file's content, in RGB.

    Gray images (8 or 16 bits a pixel) get three equal channels, palettes are looked up, and transparent
    images are laid on white. Of an animation it is the first picture.

    Args:
        content: the file's bytes, in one of `FORMATS`.
        name: what to call the file in a message.
        upright: turn it as its EXIF note on orientation says.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        SettingError: if it cannot be read as an image; or has more pixels than Pillow's limit (some 89
            million), which a small malicious file can claim.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("LA", (3, 2), (7, 0)).save(buffer, "PNG")
        >>> rgb(buffer.getvalue(), "clear.png").getpixel((0, 0))
        (255, 255, 255)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # odd metadata does not matter
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
        if upright:
            image = ImageOps.exif_transpose(image)
        return _on_white(_eight_bits(image))
    except Exception as error:  # Pillow's parsers fail in many ways on what is not an image
        why = (
            "not an image"
            if isinstance(error, UnidentifiedImageError)
            else f"{type(error).__name__}: {error}"
        )
        raise SettingError(f"{name} cannot be read as an image ({why}). Repair it, or take it out.") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray images of 16 bits in 8; Pillow itself would cut them off at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65_535:
        raise ValueError(f"pixels of mode {image.mode}; only 8 and 16 bits are read")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def described(content: bytes) -> str:
    """How a readable image file is stored: its format, and the quality of a JPEG by its tables.

    >>> buffer = io.BytesIO()
    >>> Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=75)
    >>> described(buffer.getvalue())
    'JPEG quality 75'
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        tables = getattr(image, "quantization", None)
        if not tables:
            return str(image.format)
        return f"JPEG quality {_qualities().get(tuple(tables[0]), 'unknown')}"


@cache
def _qualities() -> dict[tuple[int, ...], int]:
    """Quality by the table of brightness that libjpeg, and so Pillow, writes at it."""
    found = {}
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            found[tuple(image.quantization[0])] = quality  # type: ignore[attr-defined]
    return found
