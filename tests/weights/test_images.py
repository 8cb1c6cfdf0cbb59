"""Image files become the network's inputs as Caffe and torchvision make them."""

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import PREPROCESSINGS
from squeezenet_jax.weights.images import images_below, preprocess, read_image

CAFFE, TORCHVISION = PREPROCESSINGS["caffe"], PREPROCESSINGS["torchvision"]


def flat(colour, size=(40, 30)):
    return Image.new("RGB", size, colour)


def test_caffe_is_bgr_minus_mean():
    image = preprocess(flat((10, 20, 30)), CAFFE)
    assert image.shape == (227, 227, 3) and image.dtype == np.float32
    np.testing.assert_array_equal(image[0, 0], [30 - 104, 20 - 117, 10 - 123])


def test_torchvision_is_rgb_standardised():
    image = preprocess(flat((255, 0, 51)), TORCHVISION)
    assert image.shape == (224, 224, 3)
    expected = (np.array([1, 0, 0.2]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(image[5, 7], expected, rtol=1e-5)


@pytest.mark.parametrize(("size", "kept"), [((512, 256), (144, 368)), ((256, 512), (0, 256))])
def test_squash_keeps_the_borders_and_short_side_cuts_them(size, kept):
    """A horizontal ramp of 512 px: Caffe shows 14/256 to 241/256 of it, torchvision the middle 224 px."""
    ramp = np.linspace(0, 255, size[0])[None, :, None] * np.ones((size[1], 1, 3))
    picture = Image.fromarray(ramp.astype(np.uint8))
    squashed = preprocess(picture, dataclasses.replace(CAFFE, mean=(0.0,)))[113, :, 0]
    assert abs(squashed[0] - 255 * 14.5 / 256) < 1.5 and abs(squashed[-1] - 255 * 240.5 / 256) < 1.5
    cut = preprocess(picture, dataclasses.replace(TORCHVISION, scale=1.0, mean=(0.0,), std=(1.0,)))[112, :, 0]
    left = (max(size[0] / min(size), 1) * 256 - 224) / 2 / (size[0] / min(size) * 256)
    assert abs(cut[0] - 255 * left) < 1.5 and abs(cut[-1] - 255 * (1 - left)) < 1.5


def test_a_shrunken_image_is_averaged():
    """Stripes of one pixel become grey; without antialiasing they would stay stripes."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    image = preprocess(Image.fromarray(stripes), dataclasses.replace(CAFFE, mean=(0.0,)))
    assert 100 < image.min() <= image.max() < 155


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("order", ["BGR", "L"])
def test_every_mode_of_picture_is_read(tmp_path, mode, order):
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (9, 7)).save(tmp_path / f"x.{suffix}")
    preprocessing = CAFFE if order == "BGR" else dataclasses.replace(CAFFE, channel_order="L", mean=(0.0,), std=(1.0,))
    assert read_image(tmp_path / f"x.{suffix}", preprocessing).shape == (227, 227, len(order))


def test_what_is_no_image_is_refused(tmp_path):
    flat((1, 2, 3)).save(tmp_path / "good.jpg")
    flat((1, 2, 3)).save(tmp_path / "x.eps")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    header = bytearray(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\2\0\0\0")
    (tmp_path / "bomb.png").write_bytes(bytes(header) + b"\0" * 20)
    (tmp_path / "large.ppm").write_bytes(b"P4\n30000 30000\n" + bytes(1000))
    Image.new("F", (9, 7)).save(tmp_path / "float.tiff")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (
        "float.tiff",
        "pipe.jpg",
        "cut.jpg",
        "text.jpg",
        "empty.jpg",
        "bomb.png",
        "large.ppm",
        "x.eps",
        "missing.jpg",
        ".",
    ):
        with pytest.raises(UserError, match="cannot be read as an image") as caught:
            read_image(tmp_path / name, CAFFE)
        assert "\n" not in str(caught.value)


def test_images_below_a_folder_are_those_that_training_would_list(tmp_path):
    """Links are followed, but not in circles; hidden files and folders are left out."""
    for name in ("a/b/1.png", "a/2.png", "a/.hidden/3.png", "a/.4.png", "elsewhere/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/b/round").symlink_to(tmp_path / "a")
    (tmp_path / "a/nowhere.png").symlink_to(tmp_path / "none")
    found = [path.relative_to(tmp_path).as_posix() for path in images_below(tmp_path / "a")]
    assert found == ["a/2.png", "a/b/1.png", "a/link/5.png"]


def test_a_disk_that_fails_is_no_unreadable_image(tmp_path, monkeypatch):
    """An accuracy of what could be read before would be one of other images, and exit with 0."""
    flat((1, 2, 3), (50, 50)).save(tmp_path / "a.png")

    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_image(tmp_path / "a.png", CAFFE)
    assert caught.value.filename == str(tmp_path / "a.png")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    for name in ("round.jpg", 300 * "x"):
        with pytest.raises(UserError, match="cannot be read as an image"):
            read_image(tmp_path / name, CAFFE)


def test_a_line_is_not_blown_up(tmp_path):
    flat((1, 2, 3), (5000, 1)).save(tmp_path / "line.png")
    for preprocessing in (CAFFE, TORCHVISION):
        with pytest.raises(UserError, match="too narrow"):
            read_image(tmp_path / "line.png", preprocessing)
