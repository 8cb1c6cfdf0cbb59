"""One file's bytes -> the bytes to store, after `decoding.py` has read it from its first pixel to its last.

What is stored is JPEG or PNG with 8 bits in 1 or 3 channels, which every decoder (Pillow, OpenCV, TensorFlow) reads as
the same picture. Most files are that already and keep their bytes. ImageNet's known exceptions, 22 CMYK files and a PNG
among the JPEGs, need no list: they are recognised by what they hold, not by their names.
"""

import io
from typing import Any, NamedTuple

from PIL import Image

from squeezenet_jax.data.images import decoding, jpeg

# Measured on 100 ImageNet photographs, as the error that a bilinear 224 px crop shows when it is taken from the stored
# 256 px image instead of the original: LANCZOS beats BICUBIC by 0.3 dB and costs 1.3 ms more, once per image.
RESAMPLING = Image.Resampling.LANCZOS
# By the same measure, full colour resolution (4:4:4) is worth 1.9 dB at quality 95 and costs 30 % more bytes: the
# originals' colours, halved in resolution by their cameras, are no longer coarser than the picture once it is shrunk.
# Quality 95 has 1.1 dB more than 90, which would save a third.
JPEG_OPTIONS = {"quality": 95, "subsampling": "4:4:4"}
JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"  # how such files begin


class Picture(NamedTuple):
    """An encoded image and what a decoder will make of it."""

    data: bytes
    height: int
    width: int
    channels: int  # 1 or 3


def convert(data: bytes, short_side: int | None) -> Picture:
    """The bytes to store for a file's bytes.

    An image whose short side is larger than `short_side` px is resized to it and stored as JPEG. EXIF's orientation is
    kept as it is, beside pixels that are as they were: whoever reads the result decides, as for the file itself.

    Raises:
      decoding.Undecodable: the file cannot be read as an image.
    """
    picture = decoding.decode(data)
    if short_side is not None and min(picture.size) > short_side:
        resized = picture.resize(_resized(picture.size, short_side), RESAMPLING)
        return _encode(resized, "JPEG", decoding.orientation_of(data))
    if _is_plain(data):
        return Picture(data, picture.height, picture.width, len(picture.getbands()))
    return _encode(picture, "JPEG" if data.startswith(JPEG) else "PNG", decoding.orientation_of(data))


def _is_plain(data: bytes) -> bool:
    """Whether a readable file decodes as 8-bit grey or RGB everywhere."""
    if data.startswith(PNG):  # of its header, the first 29 bytes: bits a channel, and grey or RGB
        return data[24] == 8 and data[25] in (0, 2) and b"tRNS" not in data[: data.find(b"IDAT")]
    frame = jpeg.frame_of(data)
    return frame is not None and frame.components in (1, 3)


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    width, height = size
    short = min(size)
    return max(short_side, round(width * short_side / short)), max(short_side, round(height * short_side / short))


def _encode(image: Image.Image, file_format: str, orientation: int) -> Picture:
    image.info = {}  # Pillow would write the original's profile and comments again
    options: dict[str, Any] = dict(JPEG_OPTIONS) if file_format == "JPEG" else {}
    if orientation != 1:
        options["exif"] = Image.Exif()
        options["exif"][decoding.ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return Picture(file.getvalue(), image.height, image.width, len(image.getbands()))
