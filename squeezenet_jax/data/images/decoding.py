"""Encoded bytes to a picture: the one decoder of training, evaluation, prediction and preparation. Letters: H, W, C.

What is read, and as what, everywhere:

| file                                          | picture                                                        |
|-----------------------------------------------|----------------------------------------------------------------|
| JPEG (and MPO), PNG, BMP, GIF, PPM, TIFF, WEBP | its first frame, as 8-bit grey or RGB                          |
| 16 bits a channel                             | the upper 8 bits, of grey as of colour                         |
| transparency                                  | over white: what is hidden must not decide a class             |
| CMYK, palettes, black and white               | as Pillow converts them; profiles are not applied              |
| EXIF orientation                              | applied where the caller says so (TIFF's own: always)          |
| another format; damaged; 32-bit pixels        | `Undecodable`, with the reason; so are more than `MAX_PIXELS`, |
|                                               | a side `MAX_ASPECT` times the other, `MAX_BYTES`, pipes        |

A picture is a pure function of the bytes. All may be called from many threads: Pillow and simplejpeg release the GIL
while they decode. Where simplejpeg is installed, it decodes grey and three-channel JPEGs in less time, to the same
pixels. Entropy-coded data that end early though an end marker follows, which libjpeg fills up with grey, are noticed
either way; those of a progressive JPEG by simplejpeg only.

Read next: `crops.py`, which makes arrays of one size of them.
"""

import errno
import io
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from squeezenet_jax.data.images import jpeg
from squeezenet_jax.data.images.jpeg import Box
from squeezenet_jax.data.images.jpeg import Undecodable as Undecodable  # every reader's, not only JPEG's
from squeezenet_jax.settings import DECODERS
from squeezenet_jax.system.errors import UserError, check_choice

# What is wrong with a file or its name; anything else is wrong with the disk or the network.
OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}

# Formats that Pillow decodes by itself; others would start programs (EPS), depend on how Pillow was built (AVIF, JPEG
# 2000), or are no photographs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
# What people have instead, by a pattern that its first bytes match.
OTHER_FORMATS = {
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIC": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
}
NO_IMAGES = {
    "a git-LFS pointer in place of the file; `git lfs pull` gets that": rb"version https://git-lfs",
    "a web page or other text in angle brackets": rb"\s*<(!|\?|html|svg)",
}
MAX_PIXELS = 178_956_970  # where Pillow refuses a "decompression bomb"; 537 MB as RGB. Telephones make 108 million
MAX_ASPECT = 64  # a short side cannot be resized without blowing up the long one beyond reason
MAX_BYTES = 1 << 28  # of a file
# Rows below a crop that a decoder needs to give the crop's last rows: one group of rows that share chroma.
CONTEXT_ROWS = 4
SIMPLEJPEG = jpeg.INSTALLED

ORIENTATION = 0x0112  # EXIF's tag: how a stored picture is turned or mirrored to be looked at
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoder_in_use(decoder: str = "auto") -> Literal["pillow", "simplejpeg"]:
    """What `decoder` means here: "auto" is simplejpeg where it is installed. `UserError` for what is not there."""
    check_choice("decoder", decoder, DECODERS)
    if decoder == "simplejpeg" and not SIMPLEJPEG:
        raise UserError('decoder: "simplejpeg" is not installed; pip install simplejpeg, or take "pillow"')
    return "simplejpeg" if SIMPLEJPEG and decoder != "pillow" else "pillow"


def read(path: str | Path) -> bytes:
    """A file's content.

    Raises:
      Undecodable: gone, locked away, too large, or no file at all: a pipe or a device might never end.
      OSError: the disk or the network fails; that is no property of an image.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Undecodable("is a folder" if stat.S_ISDIR(status.st_mode) else "is a pipe or a device, no file")
        check_bytes(status.st_size)
        return Path(path).read_bytes()
    except OSError as error:
        if error.errno in OF_THE_FILE:
            raise Undecodable(error.strerror or "no such file") from None
        error.filename = error.filename or str(path)
        raise


def check_bytes(size: int) -> None:
    """Raises `Undecodable` for a file too large to be an image."""
    if size > MAX_BYTES:
        raise Undecodable(f"larger than {MAX_BYTES >> 20} MiB")


def whole_image(width: int, height: int) -> Box:
    return Box(0, 0, width, height)


def decode(
    encoded: bytes,
    channels: int | None = None,
    *,
    exif_orientation: bool = False,
    decoder: str = "auto",
    choose: Callable[[int, int], Box] = whole_image,
    crop_to: int = 0,
) -> Image.Image:
    """The box that `choose` takes out of (width, height), mode L or RGB.

    `channels`: 1, luminance; 3, RGB, or L for what is grey, as long as it is the same to resize that; None, what the
    file has. `choose` is told the size after the orientation. `crop_to`, px, allows the savings of training: rows below
    the box are not decoded, and a box of twice that size and more is decoded at a fraction.
    """
    if channels not in (1, 3, None):
        raise UserError(f"channels: {channels} is not possible; allowed: 1, 3")
    fast = decoder_in_use(decoder) == "simplejpeg"
    try:
        frame = jpeg.frame_of(encoded)
        if frame is not None:
            picture = _from_jpeg(encoded, frame, choose, exif_orientation, fast, crop_to)
        else:
            file = _opened(encoded)
            file.load()
            picture = _turned(_opaque(file), _orientation(file) if exif_orientation else 1)
            picture = _cropped(picture, choose(*picture.size))
        if picture.mode in ("1", "L"):  # what is grey stays so until it has been resized
            return as_mode(picture, 1)
        return as_mode(picture, 1 if channels == 1 else 3)
    except Undecodable:
        raise
    except Image.DecompressionBombError:  # Pillow looks at the size before we can
        raise Undecodable(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # noqa: BLE001 - for damaged files Pillow raises whatever its decoders raise
        reason = _no_image(encoded) if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise Undecodable(reason or type(error).__name__) from None


def from_picture(picture: Image.Image) -> Image.Image:
    """A picture that somebody has opened, as `decode` gives it: upright, 8 bits a channel, over white.

    Raises:
      Undecodable: as for files.
    """
    _check_size(*picture.size)
    return _turned(_opaque(picture), _orientation(picture))


def as_mode(picture: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def orientation_of(encoded: bytes) -> int:
    """EXIF's orientation of a readable image: 1, as it is stored, to 8."""
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as file:
        return _orientation(file)


def _from_jpeg(
    encoded: bytes, frame: jpeg.Frame, choose: Callable[[int, int], Box], oriented: bool, fast: bool, crop_to: int
) -> Image.Image:
    _check_size(frame.width, frame.height)
    if encoded.rfind(b"\xff\xd9", frame.at) < 0:  # Pillow would not miss the marker alone
        raise Undecodable("truncated, the JPEG has no end")
    orientation = 1
    if oriented and (b"Exif" in encoded[: frame.at] or b"ns.adobe.com/xap" in encoded[: frame.at]):
        orientation = orientation_of(encoded)
    size = frame.width, frame.height
    box, factor, rows = _as_stored(choose(*_displayed(size, orientation)), orientation, size), 1, frame.height
    if crop_to:
        factor = next((f for f in (8, 4, 2) if min(box.width, box.height) >= f * crop_to), 1)
        needed = box.top + box.height + CONTEXT_ROWS * factor
        if frame.baseline and needed < rows:  # the decoder believes the header, and stops after so many rows
            rows = needed
            encoded = encoded[: frame.at + 5] + rows.to_bytes(2, "big") + encoded[frame.at + 7 :]
    width, height = -(-frame.width // factor), -(-rows // factor)
    box = _shrunk(box, factor)
    if fast and frame.components in (1, 3):
        picture = jpeg.by_simplejpeg(encoded, width, height, frame.components, factor, box)
        if picture is not None:
            return _turned(picture, orientation)
    file = _opened(jpeg.with_open_end(encoded, frame))
    if factor > 1:
        file.draft(None, (frame.width // factor, rows // factor))  # rounded up, it would take the next larger
    if file.size != (width, height):
        raise Undecodable(f"its header says {width} x {height} px, Pillow finds {file.size[0]} x {file.size[1]}")
    file.load()
    return _turned(_cropped(file, box), orientation)


def _shrunk(box: Box, factor: int) -> Box:
    """The box in an image of 1/`factor` of the size, its edges rounded to the nearest pixel (so never past the end)."""
    left, top, right, bottom = (
        (edge + factor // 2) // factor for edge in (box.left, box.top, box.left + box.width, box.top + box.height)
    )
    return Box(left, top, right - left, bottom - top)


def _displayed(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation >= 5 else size


def _as_stored(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """The box of the picture as it is stored, of `size`, that becomes `box` of the picture as it is looked at."""
    left, top, width, height = box
    if orientation >= 5:
        left, top, width, height = top, left, height, width
    if orientation in (2, 3, 7, 8):
        left = size[0] - left - width
    if orientation in (3, 4, 6, 7):
        top = size[1] - top - height
    return Box(left, top, width, height)


def _turned(picture: Image.Image, orientation: int) -> Image.Image:
    return picture if orientation == 1 else picture.transpose(TRANSPOSE[orientation])


def _orientation(file: Image.Image) -> int:
    if file.format == "TIFF":  # there it is no remark of a camera but part of the format; Pillow applies it
        return 1
    try:
        value = file.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF data make no image unreadable
        return 1
    return value if value in TRANSPOSE else 1


def _opened(encoded: bytes) -> ImageFile.ImageFile:
    file = Image.open(io.BytesIO(encoded), formats=FORMATS)
    _check_size(*file.size)
    return file


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise Undecodable(f"{width} x {height} px; up to {MAX_PIXELS} pixels are read")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Undecodable(f"{width} x {height} px is too narrow; a side may be {MAX_ASPECT} times the other")


def _opaque(file: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel, over white where it is transparent."""
    clear = file.info.get("transparency")  # a PNG's or GIF's transparent colour, or a palette's alphas
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PNG", "PPM")):
        pixels = np.asarray(file)  # Pillow would clip them to 8 bits, not scale them
        eight_bits = (pixels >> 8).astype(np.uint8)
        return Image.fromarray(eight_bits if clear is None else np.where(pixels == clear, np.uint8(255), eight_bits))
    if file.mode.startswith(("I", "F")):
        raise Undecodable(f"its pixels have more than 16 bits, mode {file.mode}, and say no range")
    if clear is None and file.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return file
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, as the pixels were
        file.info["transparency"] = tuple(value >> 8 for value in clear)
    straight = file.convert("LA") if file.mode == "La" else file
    picture = Image.new("RGBA", file.size, "white")
    picture.alpha_composite(straight.convert("RGBA"))
    return picture.convert("L" if file.mode in ("1", "L", "LA", "La") else "RGB")


def _cropped(picture: Image.Image, box: Box) -> Image.Image:
    """Crops, since a resize with Pillow's `box` would look at pixels outside of it."""
    if box == (0, 0, *picture.size):
        return picture
    return picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def _no_image(encoded: bytes) -> str:
    if not encoded:
        return "no image, but an empty file"
    for name, start in OTHER_FORMATS.items():
        if re.match(start, encoded, re.DOTALL | re.IGNORECASE):
            return f"it is {name}; this format is not read here, only {', '.join(FORMATS)}"
    for what, start in NO_IMAGES.items():
        if re.match(start, encoded, re.IGNORECASE):
            return f"no image, but {what}"
    return "no image"
