"""The same file gives the same pixels, or is refused, through every door: training, predict, evaluate, prepare."""

import dataclasses
import io
import re

import numpy as np
import pytest
from decoding_files import encode, scene
from PIL import Image
from test_decoding_odd_files import readable, unreadable

from squeezenet_jax.data.images.crops import whole
from squeezenet_jax.data.images.decoding import Undecodable
from squeezenet_jax.data.prepare.images import convert
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import PREPROCESSINGS
from squeezenet_jax.weights.images import read_image

SIZE = 24
PLAIN = dataclasses.replace(
    PREPROCESSINGS["caffe"], resize=SIZE, crop=SIZE, channel_order="RGB", mean=(0.0,), std=(1.0,)
)


def odd_files():
    alpha = scene(40, 30)
    alpha.putalpha(Image.linear_gradient("L").resize((40, 30)))
    jpeg = encode(scene(40, 30))
    files = readable() | {name: content for name, (content, _) in unreadable().items()}
    return files | {
        "half transparent": encode(alpha, "PNG"),
        "16-bit grey png": encode(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70), "PNG"),
        "16-bit grey tiff": encode(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70), "TIFF"),
        "ppm": encode(scene(40, 30), "PPM"),
        "ends early": jpeg[: len(jpeg) // 2] + b"\xff\xd9",
        "a line": encode(Image.new("RGB", (2000, 2)), "PNG"),
        "mpo": encode(scene(40, 30), "MPO", save_all=True, append_images=[scene(20, 20)]),
    }


def through(door, content, path):
    """Pixels [SIZE, SIZE, 3], or the reason why there are none."""
    try:
        if door == "training":
            return whole(content, SIZE, 3)
        if door == "training with Pillow":
            return whole(content, SIZE, 3, decoder="pillow")
        if door == "prepare":
            return whole(convert(content, None).data, SIZE, 3)
        path.write_bytes(content)
        return read_image(path, PLAIN).astype(np.uint8)
    except Undecodable as error:
        return str(error)
    except UserError as error:
        return re.fullmatch(r".*: cannot be read as an image \((.*)\)", str(error))[1]


@pytest.mark.parametrize("name", odd_files())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_door_has_the_same_answer(name, tmp_path):
    content = odd_files()[name]
    expected = through("training", content, None)
    for door in ("training with Pillow", "predict and evaluate", "prepare"):
        found = through(door, content, tmp_path / "x")
        if isinstance(expected, str):
            assert found == expected or (door.endswith("Pillow") and isinstance(found, str))
        else:
            tolerance = 20 if name == "cmyk jpeg" and door == "prepare" else 0  # stored as another JPEG
            np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=tolerance)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_a_format_that_is_not_read_is_called_by_its_name(kind):
    file = io.BytesIO()
    try:
        scene(40, 30).save(file, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    with pytest.raises(Undecodable, match=r"it is (AVIF|JPEG 2000); this format is not read here, only JPEG, PNG"):
        whole(file.getvalue(), SIZE, 3)
