"""Image files to network inputs, as a network's `Preprocessing` says. Letters: H, W, C.

What is an image, and how it is decoded, is `data/images/decoding.py`'s: the same as in training.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from squeezenet_jax.data import archives, layouts
from squeezenet_jax.data.images import decoding
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Preprocessing

T = TypeVar("T")


def images_below(folder: Path) -> list[Path]:
    """The files below a folder that training would list, sorted: images, as far as `read_image` can read them.

    Raises `UserError` where that is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{archives.printable(str(folder))}: is no folder; a folder of images is needed")
    return layouts.files_below(folder)


def in_batches(
    readings: Iterable[Callable[[], T]], size: int, unreadable: Callable[[int, UserError], None]
) -> Iterator[list[T]]:
    """What can be read, so many at a time; the last may be fewer. `unreadable` is told the number of each other."""
    batch: list[T] = []
    for number, read in enumerate(readings):
        try:
            batch.append(read())
        except UserError as error:
            unreadable(number, error)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_image(path: Path, preprocessing: Preprocessing, *, upright: bool = False) -> np.ndarray:
    """float32 [crop, crop, C], normalised. `UserError` for a file that is no readable image or would be too large.

    EXIF's orientation is applied where the network was trained so, and always with `upright`. `OSError` where the disk
    fails: an accuracy of the images before it would be one of other images.
    """
    name = archives.printable(str(path))
    try:
        content = decoding.read(path)
    except decoding.Undecodable as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None
    return decode_image(content, name, preprocessing, upright=upright)


def decode_image(content: bytes, name: str, preprocessing: Preprocessing, *, upright: bool = False) -> np.ndarray:
    """The same for a file's content; errors call it `name`."""
    try:
        with warnings.catch_warnings():
            # about large images, odd EXIF data, palettes: an image can be decoded or it cannot
            warnings.filterwarnings("ignore", module=r"PIL\.")
            picture = decoding.decode(content, exif_orientation=upright or preprocessing.exif_orientation)
    except decoding.Undecodable as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None
    return preprocess(decoding.as_mode(picture, preprocessing.channels), preprocessing)


def preprocess(picture: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes, crops and normalises a picture of mode L or RGB: float32 [crop, crop, C].

    The resize is Pillow's bilinear, which averages over the area of a shrunken pixel (antialiasing), as torchvision
    does for PIL images. It is also what agrees with the independent reference for Caffe's networks, to 3e-7 of the
    largest logit; without antialiasing (OpenCV's bilinear) logits are off by up to 12 %.
    """
    p = preprocessing
    resized = picture.resize(_resized(picture.size, p), Image.Resampling.BILINEAR)
    # Both Caffe's floor and torchvision's rounding: they differ only where the margin is 1.5, 3.5, ... px.
    left, top = (round((side - p.crop) / 2) for side in resized.size)
    image = np.asarray(resized.crop((left, top, left + p.crop, top + p.crop))).reshape(p.crop, p.crop, p.channels)
    if p.channel_order == "BGR":
        image = image[..., ::-1]
    rows = image.astype(np.float32, order="C").reshape(p.crop, -1)  # NumPy is slow along an axis of three
    mean, std = (np.tile(np.asarray(x, np.float32), p.crop * p.channels // len(x)) for x in (p.mean, p.std))
    rows *= np.float32(p.scale)
    rows -= mean
    rows /= std
    return rows.reshape(p.crop, p.crop, p.channels)


def _resized(size: tuple[int, int], p: Preprocessing) -> tuple[int, int]:
    """(width, height) after the resize; a longer side is rounded down, as torchvision does."""
    if p.mode == "squash":
        return p.resize, p.resize
    width, height = size
    short = min(size)
    return max(p.resize * width // short, p.resize), max(p.resize * height // short, p.resize)
