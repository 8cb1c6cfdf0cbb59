"""Encoded images to uint8 [size, size, C], each a pure function of the bytes (and a generator). Letters: H, W, C.

`whole` and `centre_crop` serve evaluation, `random_resized_crop` training. C is 1 (luminance) or 3 (RGB). Nothing is
flipped here. What can be read, and as what, is in `decoding.py`; `decoder` and `exif_orientation` are its.
"""

import math

import numpy as np
from PIL import Image

from squeezenet_jax.data.images import decoding
from squeezenet_jax.data.images.jpeg import Box
from squeezenet_jax.system.errors import UserError

TRIES = 10
LOG_ASPECT = math.log(4 / 3)


def whole(
    encoded: bytes, size: int, channels: int, *, decoder: str = "auto", exif_orientation: bool = False
) -> np.ndarray:
    """The whole image squashed to [size, size, C], bilinear, antialiased."""
    picture = decoding.decode(encoded, channels, decoder=decoder, exif_orientation=exif_orientation)
    return _array(_resized(picture, (size, size)), channels)


def centre_crop(
    encoded: bytes, size: int, channels: int, *, resize: int, decoder: str = "auto", exif_orientation: bool = False
) -> np.ndarray:
    """The short side resized to `resize`, then the centre, [size, size, C]; bilinear, antialiased.

    Rounds as torchvision does: the long side down, the margins to the nearest even number where there is a choice.
    """
    if resize < size:
        raise UserError(f"resize: {resize} px is less than the {size} px that are cut out")
    picture = decoding.decode(encoded, channels, decoder=decoder, exif_orientation=exif_orientation)
    width, height = picture.size
    short = min(picture.size)
    resized = _resized(picture, (resize * width // short, resize * height // short))
    left, top = (round((side - size) / 2) for side in resized.size)
    return _array(resized.crop((left, top, left + size, top + size)), channels)


def random_resized_crop(
    encoded: bytes,
    size: int,
    channels: int,
    rng: np.random.Generator,
    *,
    min_area: float,
    decoder: str = "auto",
    exif_orientation: bool = False,
) -> np.ndarray:
    """The crop `random_box` resized to [size, size, C], bilinear, antialiased.

    Two savings, for training only. Rows below the crop of a baseline JPEG are not decoded: the same pixels, but damage
    down there goes unnoticed (a missing end does not). And a crop of at least twice `size` is decoded at 1/2, 1/4 or
    1/8 of its size: a little smoother, its edges off by at most half a pixel of the result.
    """
    picture = decoding.decode(
        encoded,
        channels,
        decoder=decoder,
        exif_orientation=exif_orientation,
        choose=lambda width, height: random_box(width, height, rng, min_area),
        crop_to=size,
    )
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
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture.resize(size, Image.Resampling.BILINEAR)


def _array(picture: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(decoding.as_mode(picture, channels)).reshape(picture.height, picture.width, channels)
