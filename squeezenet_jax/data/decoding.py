"""Encoded image bytes to uint8 [size, size, C], each a pure function of the bytes (and a generator). Letters: H, W, C.

`whole` and `centre_crop` serve evaluation, `random_resized_crop` training. C is 1 (luminance) or 3 (RGB). Nothing is
flipped here, and EXIF orientation is ignored, as in the pipelines that published ImageNet results come from. All may be
called from many threads: Pillow and simplejpeg release the GIL while they decode and resize.

Pillow reads every format. Where simplejpeg is installed, it decodes grey and three-channel JPEGs in less time, to the
same pixels. It also notices entropy-coded data that end early though an end marker follows; libjpeg fills the rest
with grey, and Pillow alone cannot tell.
"""

import io
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from squeezenet_jax.settings import DECODERS
from squeezenet_jax.system.errors import UserError, check_choice

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

# Formats that Pillow decodes by itself; others would start programs (EPS) or are no photographs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485  # Pillow's own default limit, above which it warns of a decompression bomb
MAX_ASPECT = 64  # a short side cannot be resized without blowing up the long one beyond reason
TRIES = 10
LOG_ASPECT = math.log(4 / 3)
# Rows below a crop that a decoder needs to give the crop's last rows: one group of rows that share chroma.
CONTEXT_ROWS = 4
SIMPLEJPEG = simplejpeg is not None


class Undecodable(ValueError):
    """Bytes that are no readable image; its text is the reason, one line."""


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int


def decoder_in_use(decoder: str = "auto") -> Literal["pillow", "simplejpeg"]:
    """What `decoder` means here: "auto" is simplejpeg where it is installed. `UserError` for what is not there."""
    check_choice("decoder", decoder, DECODERS)
    if decoder == "simplejpeg" and not SIMPLEJPEG:
        raise UserError('decoder: "simplejpeg" is not installed; pip install simplejpeg, or take "pillow"')
    return "simplejpeg" if SIMPLEJPEG and decoder != "pillow" else "pillow"


def whole(encoded: bytes, size: int, channels: int, *, decoder: str = "auto") -> np.ndarray:
    """The whole image squashed to [size, size, C], bilinear, antialiased."""
    picture = _picture(encoded, channels, _all_of, decoder)
    return _array(_resized(picture, (size, size)), channels)


def centre_crop(encoded: bytes, size: int, channels: int, *, resize: int, decoder: str = "auto") -> np.ndarray:
    """The short side resized to `resize`, then the centre, [size, size, C]; bilinear, antialiased.

    Rounds as torchvision does: the long side down, the margins to the nearest even number where there is a choice.
    """
    if resize < size:
        raise UserError(f"resize: {resize} px is less than the {size} px that are cut out")
    picture = _picture(encoded, channels, _all_of, decoder)
    width, height = picture.size
    short = min(picture.size)
    if max(picture.size) > MAX_ASPECT * short:
        raise Undecodable(f"{width} x {height} px is too narrow to resize its short side to {resize} px")
    resized = _resized(picture, (resize * width // short, resize * height // short))
    left, top = (round((side - size) / 2) for side in resized.size)
    return _array(resized.crop((left, top, left + size, top + size)), channels)


def random_resized_crop(
    encoded: bytes, size: int, channels: int, rng: np.random.Generator, *, min_area: float, decoder: str = "auto"
) -> np.ndarray:
    """The crop `random_box` resized to [size, size, C], bilinear, antialiased.

    Two savings, for training only. Rows below the crop of a baseline JPEG are not decoded: the same pixels, but damage
    down there goes unnoticed (a missing end does not). And a crop of at least twice `size` is decoded at 1/2, 1/4 or
    1/8 of its size: a little smoother, its edges off by at most half a pixel of the result.
    """
    picture = _picture(encoded, channels, lambda w, h: random_box(w, h, rng, min_area), decoder, crop_to=size)
    return _array(_resized(picture, (size, size)), channels)


def random_box(width: int, height: int, rng: np.random.Generator, min_area: float) -> Box:
    """A crop as for Inception (Szegedy et al. 2015, section 6): area ~ U[min_area, 1] of the image's, anywhere in it.

    The aspect is log-uniform in [3/4, 4/3]. If ten tries do not fit into the image, the largest centred crop whose
    aspect is allowed. Draws the same number of values whatever the image.
    """
    for area, aspect, across, down in rng.random((TRIES, 4)).tolist():
        pixels = width * height * (min_area + area * (1 - min_area))
        ratio = math.exp(LOG_ASPECT * (2 * aspect - 1))
        w, h = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return Box(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h)
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return Box((width - w) // 2, (height - h) // 2, w, h)


class _Frame(NamedTuple):
    """A JPEG's frame header. `at` is the place of its marker; `baseline`: rows are coded one after another."""

    at: int
    width: int
    height: int
    components: int
    baseline: bool


def _all_of(width: int, height: int) -> Box:
    return Box(0, 0, width, height)


def _picture(
    encoded: bytes, channels: int, choose: Callable[[int, int], Box], decoder: str, crop_to: int = 0
) -> Image.Image:
    """The box that `choose` takes out of (width, height), as L or RGB. `crop_to` allows the savings of training."""
    if channels not in (1, 3):
        raise UserError(f"channels: {channels} is not possible; allowed: 1, 3")
    fast = decoder_in_use(decoder) == "simplejpeg"
    try:
        picture = _cut_out(encoded, choose, fast, crop_to)
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")  # Pillow warns otherwise
        # What is grey stays so until it has been resized.
        return picture if picture.mode == "L" else _as_mode(picture, channels)
    except Undecodable:
        raise
    except Exception as error:  # noqa: BLE001 - for damaged files Pillow raises whatever its decoders raise
        reason = "no image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise Undecodable(reason or type(error).__name__) from None


def _cut_out(encoded: bytes, choose: Callable[[int, int], Box], fast: bool, crop_to: int) -> Image.Image:
    frame = _jpeg_frame(encoded)
    if frame is None:
        file = _opened(encoded)
        return _cropped(file, choose(*file.size))
    _check_size(frame.width, frame.height)
    if encoded.rfind(b"\xff\xd9", frame.at) < 0:  # Pillow would not miss the marker alone
        raise Undecodable("truncated: the JPEG has no end")
    box, factor, rows = choose(frame.width, frame.height), 1, frame.height
    if crop_to:
        factor = next((f for f in (8, 4, 2) if min(box.width, box.height) >= f * crop_to), 1)
        needed = box.top + box.height + CONTEXT_ROWS * factor
        if frame.baseline and needed < rows:  # the decoder believes the header, and stops after so many rows
            rows = needed
            encoded = encoded[: frame.at + 5] + rows.to_bytes(2, "big") + encoded[frame.at + 7 :]
    width, height = -(-frame.width // factor), -(-rows // factor)
    box = _shrunk(box, factor)
    if fast and frame.components in (1, 3):
        picture = _by_simplejpeg(encoded, width, height, frame.components, factor, box)
        if picture is not None:
            return picture
    file = _opened(encoded)
    if factor > 1:
        file.draft(None, (frame.width // factor, rows // factor))  # rounded up, it would take the next larger
    if file.size != (width, height):
        raise Undecodable(f"its header says {width} x {height} px, Pillow finds {file.size[0]} x {file.size[1]}")
    return _cropped(file, box)


def _shrunk(box: Box, factor: int) -> Box:
    """The box in an image of 1/`factor` of the size, its edges rounded to the nearest pixel (so never past the end)."""
    left, top, right, bottom = (
        (edge + factor // 2) // factor for edge in (box.left, box.top, box.left + box.width, box.top + box.height)
    )
    return Box(left, top, right - left, bottom - top)


def _jpeg_frame(encoded: bytes) -> _Frame | None:
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
            return _Frame(at, width, height, encoded[at + 9], marker in (0xC0, 0xC1)) if eight_bits else None
        elif marker == 0xDA:  # the scan, before any frame
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def _by_simplejpeg(
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


def _opened(encoded: bytes) -> ImageFile.ImageFile:
    file = Image.open(io.BytesIO(encoded), formats=FORMATS)
    _check_size(*file.size)
    if file.mode.startswith(("I", "F")):  # Pillow would clip them to 8 bits, not scale them
        raise Undecodable(f"its pixels have more than 8 bits, mode {file.mode}")
    return file


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise Undecodable(f"{width} x {height} px; up to {MAX_PIXELS} pixels are read")


def _cropped(file: ImageFile.ImageFile, box: Box) -> Image.Image:
    """Crops, since a resize with Pillow's `box` would look at pixels outside of it."""
    file.load()
    if box == (0, 0, *file.size):
        return file
    return file.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def _as_mode(picture: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.BILINEAR)


def _array(picture: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(_as_mode(picture, channels)).reshape(picture.height, picture.width, channels)
