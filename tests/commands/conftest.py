"""A small network, its file, and photographs in class folders."""

import numpy as np
import pytest
from PIL import Image
from small_network import CLASSES, draw

from squeezenet_jax import weights


@pytest.fixture(scope="module")
def network():
    return draw(width=0.125)


@pytest.fixture
def path(network, tmp_path):
    weights.save(tmp_path / "w.safetensors", network)
    return str(tmp_path / "w.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """37 images in the classes' folders, as many as two batches of 16 and a part of one."""
    root = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(1)
    for name in CLASSES:
        (root / name).mkdir()
    for i in range(37):
        pixels = rng.integers(0, 256, (20 + i, 50 - i, 3), np.uint8)
        Image.fromarray(pixels).save(root / CLASSES[i % 5] / f"{i:02}.png")  # no image of "hen"
    return root
