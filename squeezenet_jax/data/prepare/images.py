"""One file's bytes -> the bytes to store, after it has been decoded from its first pixel to its last.

What is stored is JPEG or PNG with 8 bits in 1 or 3 channels, which every decoder (Pillow, OpenCV, TensorFlow) reads as
the same picture. Most files are that already and keep their bytes. ImageNet's known exceptions, 22 CMYK files and a PNG
among the JPEGs, need no list: they are recognised by what they hold, not by their names.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

# Formats that Pillow decodes by itself and that photographs come in. What is not JPEG or PNG is stored as PNG.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
GREY_MODES = ("1", "L", "LA", "La")

# Measured on 100 ImageNet photographs, as the error that a bilinear 224 px crop shows when it is taken from the stored
# 256 px image instead of the original: LANCZOS beats BICUBIC by 0.3 dB and costs 1.3 ms more, once per image.
RESAMPLING = Image.Resampling.LANCZOS
# By the same measure, full colour resolution (4:4:4) is worth 1.9 dB at quality 95 and costs 30 % more bytes: the
# originals' colours, halved in resolution by their cameras, are no longer coarser than the picture once it is shrunk.
# Quality 95 has 1.1 dB more than 90, which would save a third.
JPEG_OPTIONS = {"quality": 95, "subsampling": "4:4:4"}


class Unreadable(Exception):
    """Not an image, or a damaged one; its text is a short reason."""


class Picture(NamedTuple):
    """An encoded image and what a decoder will make of it."""

    data: bytes
    height: int
    width: int
    channels: int  # 1 or 3


def convert(data: bytes, short_side: int | None) -> Picture:
    """The bytes to store for a file's bytes.

    An image whose short side is larger than `short_side` px is resized to it and stored as JPEG. Orientation tags and
    colour profiles are not applied, as the decoders that will read the result do not apply them either.

    Raises:
      Unreadable: the file cannot be decoded completely.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
    except Exception as error:  # noqa: BLE001 - for damaged files Pillow raises whatever its decoders raise
        reason = "no image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise Unreadable(reason or type(error).__name__) from None
    if short_side is not None and min(image.size) > short_side:
        resized = _eight_bits(image).resize(_resized(image.size, short_side), RESAMPLING)
        return _encode(resized, "JPEG")
    if _is_plain(data, image):
        return Picture(data, image.height, image.width, len(image.getbands()))
    return _encode(_eight_bits(image), "JPEG" if image.format in ("JPEG", "MPO") else "PNG")


def _is_plain(data: bytes, image: Image.Image) -> bool:
    """Whether the file decodes as 8-bit grey or RGB everywhere."""
    if image.mode not in ("L", "RGB"):
        return False
    if image.format == "PNG":  # Pillow hides 16 bits a channel; OpenCV does not
        bit_depth, colour_type = data[24], data[25]  # of the header, the first 29 bytes of any PNG
        return bit_depth == 8 and colour_type in (0, 2) and "transparency" not in image.info
    return image.format in ("JPEG", "MPO")  # MPO is a JPEG with further ones behind it


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in mode L or RGB. Transparency is dropped, as TensorFlow and torchvision do."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it, not scale it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in GREY_MODES else "RGB")


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    width, height = size
    short = min(size)
    return max(short_side, round(width * short_side / short)), max(short_side, round(height * short_side / short))


def _encode(image: Image.Image, file_format: str) -> Picture:
    image.info = {}  # Pillow would write the original's profile and comments again
    file = io.BytesIO()
    image.save(file, file_format, **(JPEG_OPTIONS if file_format == "JPEG" else {}))
    return Picture(file.getvalue(), image.height, image.width, len(image.getbands()))
