"""Pictures in encoded form, ways to decode them, and the decoders that are installed."""

import io

import numpy as np
import pytest
from PIL import Image

from squeezenet_jax.data.images import decoding
from squeezenet_jax.data.images.crops import centre_crop, random_resized_crop, whole

INSTALLED = ["pillow", pytest.param("simplejpeg", marks=pytest.mark.skipif(not decoding.SIMPLEJPEG, reason="absent"))]
both_decoders = pytest.mark.parametrize("decoder", INSTALLED)
needs_simplejpeg = pytest.mark.skipif(not decoding.SIMPLEJPEG, reason="simplejpeg is not installed")
QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def encode(picture, kind="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def scene(width=300, height=200):
    """Smooth in large, with some texture: compresses as a photograph does."""
    y, x = np.mgrid[:height, :width] / 40
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    colour = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(3 * x) * np.cos(y)], -1)
    return Image.fromarray(np.clip(128 + 90 * colour + noise, 0, 255).astype(np.uint8))


def quadrants(width, height):
    image = np.zeros((height, width, 3), np.uint8)
    for place, colour in enumerate(QUADRANTS):
        rows = slice(None, height // 2) if place < 2 else slice(height // 2, None)
        image[rows, slice(None, width // 2) if place % 2 == 0 else slice(width // 2, None)] = colour
    return Image.fromarray(image)


def train(encoded, seed=0, size=64, channels=3, min_area=0.08, decoder="auto"):
    return random_resized_crop(encoded, size, channels, np.random.default_rng(seed), min_area=min_area, decoder=decoder)


def every_way(encoded, channels, decoder):
    yield whole(encoded, 32, channels, decoder=decoder)
    yield centre_crop(encoded, 32, channels, resize=40, decoder=decoder)
    yield train(encoded, size=32, channels=channels, decoder=decoder)


def difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())
