"""A photograph is turned as its camera says it was held, where a setting says so, and never otherwise."""

import io

import numpy as np
import pytest
from decoding_files import both_decoders, encode, scene
from picture_folders import CROPS, clear, settings_for
from PIL import Image, ImageOps

from experiments import base
from squeezenet_jax import settings
from squeezenet_jax.data import sources
from squeezenet_jax.data.images import decoding
from squeezenet_jax.data.images.crops import centre_crop, random_box, random_resized_crop, whole
from squeezenet_jax.data.prepare.images import convert

ORIENTATIONS = range(1, 9)


def held(orientation, kind="JPEG", size=(157, 131), **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(scene(*size), kind, exif=exif, **options)


def upright(encoded):
    """The whole picture as Pillow's own function turns it."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")


@both_decoders
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_pillows(kind, orientation, decoder):
    encoded = held(orientation, kind)
    turned = encode(upright(encoded), "PNG")
    for image, expected in (
        (whole(encoded, 50, 3, exif_orientation=True, decoder=decoder), whole(turned, 50, 3)),
        (
            centre_crop(encoded, 50, 3, resize=60, exif_orientation=True, decoder=decoder),
            centre_crop(turned, 50, 3, resize=60),
        ),
    ):
        np.testing.assert_array_equal(image, expected)


@both_decoders
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_random_crop_is_one_of_the_turned_picture(orientation, decoder):
    """Of the turned picture's size are its random numbers, and only the rows that it needs are decoded."""
    encoded = held(orientation)
    picture = upright(encoded)
    for seed in range(10):
        left, top, width, height = random_box(*picture.size, np.random.default_rng(seed), 0.08)
        cut = picture.crop((left, top, left + width, top + height)).resize((64, 64), Image.Resampling.BILINEAR)
        crop = random_resized_crop(
            encoded, 64, 3, np.random.default_rng(seed), min_area=0.08, exif_orientation=True, decoder=decoder
        )
        np.testing.assert_array_equal(crop, np.asarray(cut))


@both_decoders
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_data_turn_nothing(exif, decoder):
    encoded = encode(scene(40, 30), exif=exif)
    np.testing.assert_array_equal(
        whole(encoded, 20, 3, exif_orientation=True, decoder=decoder), whole(encoded, 20, 3, decoder=decoder)
    )


@both_decoders
def test_an_orientation_that_only_the_xmp_data_have_is_applied(decoder):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    plain = encode(scene(40, 30))
    encoded = plain[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + plain[2:]
    assert upright(encoded).size == (30, 40)
    expected = whole(encode(upright(encoded), "PNG"), 20, 3)
    np.testing.assert_array_equal(whole(encoded, 20, 3, exif_orientation=True, decoder=decoder), expected)


def test_a_tiffs_own_orientation_is_applied_once():
    encoded = held(6, "TIFF")
    expected = whole(encode(upright(encoded), "PNG"), 50, 3)
    for exif_orientation in (True, False):
        np.testing.assert_array_equal(whole(encoded, 50, 3, exif_orientation=exif_orientation), expected)


@both_decoders
@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_there_is_not_turns_nothing(orientation, decoder):
    encoded = held(orientation)
    np.testing.assert_array_equal(
        whole(encoded, 20, 3, exif_orientation=True, decoder=decoder), whole(encoded, 20, 3, decoder=decoder)
    )


def test_a_tiff_that_somebody_opened_is_turned_once():
    encoded = held(6, "TIFF")
    turned = decoding.from_picture(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(upright(encoded)))


def test_premultiplied_grey_is_laid_over_white():
    picture = decoding.from_picture(Image.new("LA", (4, 4), (0, 0)).convert("La"))
    assert picture.mode == "L" and set(picture.tobytes()) == {255}


@pytest.mark.parametrize("short_side", [None, 50])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_what_prepare_stores_is_turned_or_not_as_the_file_itself(kind, short_side):
    encoded = held(6, kind, **({"lossless": True} if kind == "WEBP" else {}))
    stored = convert(encoded, short_side).data
    for exif_orientation in (True, False):
        image = whole(stored, 40, 3, exif_orientation=exif_orientation).astype(int)
        expected = whole(encoded, 40, 3, exif_orientation=exif_orientation)
        assert np.abs(image - expected).mean() < (4 if short_side else 0.01)


@pytest.mark.parametrize("changes", [{}, CROPS], ids=["whole", "random_resized"])
@pytest.mark.parametrize("turned", [True, False])
def test_training_and_its_evaluation_follow_the_setting(pictures, changes, turned):
    held_photograph = held(6, size=(40, 30))
    for path in (pictures / "train/ant").iterdir():
        path.write_bytes(held_photograph)
    clear()
    data = settings_for(pictures, **changes, data__exif_orientation=turned).data
    source = sources.load(data, "train_split")
    ants = np.array([place for place, label in enumerate(source.read(np.arange(30), None)["label"]) if label == 0])
    plain = encode(upright(held_photograph) if turned else Image.open(io.BytesIO(held_photograph)), "PNG")
    expected = centre_crop(plain, 8, 3, resize=12) if changes else whole(plain, 8, 3)
    np.testing.assert_array_equal(source.read(ants[:1], None)["image"][0], expected)


def test_settings_that_were_written_before_there_was_this_turn_nothing():
    config = base.get_config("folder").to_dict()
    assert config["data"]["exif_orientation"] is True
    config["data"].update(num_classes=2, eval_split="test")
    del config["data"]["exif_orientation"]
    assert settings.from_config(config).data.exif_orientation is False
