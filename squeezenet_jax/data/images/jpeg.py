"""JPEG files below the picture: the frame header, an early end of the data, and simplejpeg. Letters: H, W, C.

Read next: `decoding.py`, which decodes every format.
"""

import re
from typing import NamedTuple

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

INSTALLED = simplejpeg is not None

# Seven bytes are looked at ahead, and no code of a JPEG is all ones: that many more never stand for a whole block.
ONES = b"\xff\x00" * 8
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffing nor a restart


class Undecodable(ValueError):
    """Bytes that are no readable image; its text is the reason, one line."""


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int


class Frame(NamedTuple):
    """A JPEG's frame header. `at` is the place of its marker; `baseline`: rows are coded one after another."""

    at: int
    width: int
    height: int
    components: int
    baseline: bool


def frame_of(encoded: bytes) -> Frame | None:
    """None for what is no JPEG, or one that Pillow had better judge (ITU T.81, section B.2)."""
    if encoded[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOFn, not DHT, JPG or DAC
            height, width = (int.from_bytes(encoded[i : i + 2], "big") for i in (at + 5, at + 7))
            eight_bits = encoded[at + 4] == 8
            return Frame(at, width, height, encoded[at + 9], marker in (0xC0, 0xC1)) if eight_bits else None
        elif marker == 0xDA:  # the scan, before any frame
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def with_open_end(encoded: bytes, frame: Frame) -> bytes:
    """A sequential JPEG whose data are followed by nothing that lets libjpeg make up rows: Pillow misses them then."""
    at = frame.at
    while at + 4 <= len(encoded) and encoded[at] == 0xFF and encoded[at + 1] != 0xDA:
        at += 1 if encoded[at + 1] == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    one_scan = encoded[at + 4 : at + 5] == bytes([frame.components])  # of several, libjpeg reads all before it decodes
    end = MARKER.search(encoded, at + 2) if frame.baseline and one_scan else None
    return encoded[: end.start()] + ONES if end is not None and end.group() == b"\xff\xd9" else encoded


def by_simplejpeg(
    encoded: bytes, width: int, height: int, components: int, factor: int, box: Box
) -> Image.Image | None:
    """The box of an image that decodes to width x height. None for what only Pillow may be able to read."""
    # Sides are rounded up, so the factor can be a little less than asked for; the next possible one is 5/8 of it.
    min_factor = 0.9 * factor if factor > 1 else 1
    pixels = np.empty((height, width, components), np.uint8)
    try:
        if simplejpeg.decode_jpeg_header(encoded, min_factor=min_factor)[:2] != (height, width):
            return None
        simplejpeg.decode_jpeg(encoded, "GRAY" if components == 1 else "RGB", min_factor=min_factor, buffer=pixels)
    except ValueError as error:  # libjpeg's first warning, or its error
        reason = str(error)
        if "extraneous bytes before marker" in reason:
            if not reason.endswith("0xd9"):  # after rows that were cut off: restart markers, a second scan
                return None
            # The image's end: all rows are there, and after them the rows below the crop, or junk.
        elif reason.startswith(("Corrupt JPEG data", "Premature end")):
            raise Undecodable(reason) from None
        else:
            return None
    mode, line = ("L", "RGB")[components == 3], width * components
    region = pixels.reshape(-1)[box.top * line + box.left * components :]
    return Image.frombytes(mode, (box.width, box.height), region, "raw", mode, line, 1)  # copies the box only
