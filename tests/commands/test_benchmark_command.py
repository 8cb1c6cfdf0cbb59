"""`benchmark input`: one line for each source, use and decoder."""

import json

import numpy as np
import pytest
from PIL import Image

from squeezenet_jax.__main__ import main
from squeezenet_jax.data.images import decoding


@pytest.fixture
def photos(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "train" / name / "1.jpg")
    return tmp_path


def test_every_decoder_and_use_is_timed(photos, capsys):
    assert (
        main(["benchmark", "input", f"folder:{photos}", "--image-size", "64", "--seconds", "0.05", "--format", "json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    decoders = ["pillow", "simplejpeg"] if decoding.SIMPLEJPEG else ["pillow"]
    expected = [(decoder, use) for decoder in decoders for use in ("training", "evaluation")]
    assert [(row["decoder"], row["use"]) for row in rows] == expected
    assert all(1 < row["images_per_second_per_core"] < 1e6 for row in rows)
    assert main(["benchmark", "input", f"folder:{photos}", "--seconds", "0.05"]) == 0
    assert capsys.readouterr().out.count(f"folder:{photos}") == len(expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["photos"], "photos: is not known; a source is given as NAME:DIR"),
        (["folder:nowhere"], "data.dir: nowhere is no folder"),
        (["folder:.", "--seconds", "0"], "--seconds above 0"),
    ],
)
def test_wrong_input_is_refused_in_one_line(args, message, capsys):
    assert main(["benchmark", "input", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_without_readable_images_is_refused(photos, capsys):
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    assert main(["benchmark", "input", f"folder:{photos}", "--seconds", "0.05"]) == 2
    assert "none of the images could be read" in capsys.readouterr().err
