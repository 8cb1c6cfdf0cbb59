"""Encoded bytes become arrays of the right geometry, the same with either decoder."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from decoding_files import (
    QUADRANTS,
    both_decoders,
    difference,
    encode,
    every_way,
    needs_simplejpeg,
    quadrants,
    scene,
    train,
)
from PIL import Image

from squeezenet_jax.data.images import decoding
from squeezenet_jax.data.images.crops import centre_crop, random_box, random_resized_crop, whole
from squeezenet_jax.data.images.decoding import Box
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import PREPROCESSINGS, images

PHOTOGRAPHS = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet_sample_100.tar"


@pytest.fixture(scope="module")
def photographs():
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"{PHOTOGRAPHS.name} is not in ../shared/data")
    with tarfile.open(PHOTOGRAPHS) as tar:
        return [tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith(".JPEG")][:24]


# Crops


@pytest.mark.parametrize("min_area", [0.08, 0.5, 1.0])
def test_boxes_have_the_asked_area_and_aspect(min_area):
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(500, 480, rng, min_area) for _ in range(4000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 500).all() and (top + height <= 480).all()
    area, aspect = width * height / (500 * 480), width / height
    assert aspect.min() > 3 / 4 - 0.01 and aspect.max() < 4 / 3 + 0.01
    assert area.min() > min_area - 0.01
    if min_area == 0.08:  # a large box fits less often, so the distributions are held where all fit
        small = area < 0.5
        assert abs(area[small].mean() - 0.29) < 0.01  # uniform in [0.08, 0.5]
        assert abs(np.log(aspect[small]).mean()) < 0.02 and abs((aspect[small] > 1).mean() - 0.5) < 0.04
        centre = (left + width / 2)[small] / 500
        assert abs(centre.mean() - 0.5) < 0.02
        assert left.min() == 0 and (left + width).max() == 500


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), Box(493, 0, 13, 10)), ((10, 1000), Box(0, 493, 10, 13)), ((1, 500), Box(0, 249, 1, 1))],
)
def test_where_no_try_fits_the_centre_is_taken(size, box):
    assert random_box(*size, np.random.default_rng(0), 0.9) == box


def test_every_image_draws_the_same_number_of_values():
    after = []
    for size in ((500, 480), (1, 1), (1000, 10)):
        rng = np.random.default_rng(3)
        random_box(*size, rng, 0.08)
        after.append(rng.random())
    assert len(set(after)) == 1


@both_decoders
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 5}], ids=str)
def test_a_crop_has_the_pixels_of_the_fully_decoded_image(decoder, subsampling, options):
    """The rows that are not decoded change nothing, whatever the crop."""
    picture = scene(157, 131)
    encoded = encode(picture, subsampling=subsampling, **options)
    full = Image.open(io.BytesIO(encoded)).convert("RGB")
    for seed in range(20):
        left, top, width, height = random_box(157, 131, np.random.default_rng(seed), 0.08)
        cut = full.crop((left, top, left + width, top + height)).resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(train(encoded, seed, decoder=decoder), np.asarray(cut))


@both_decoders
def test_a_crop_is_a_function_of_bytes_and_generator(decoder):
    encoded = encode(scene())
    once, again, other = (train(encoded, seed, decoder=decoder) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert difference(once, other) > 50


@both_decoders
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_of_the_whole_square_is_a_resize(decoder, channels):
    encoded = encode(scene(90, 90))
    for _ in range(5):
        crop = random_resized_crop(
            encoded,
            64,
            channels,
            FullBox(),
            min_area=1.0,
            decoder=decoder,  # type: ignore[arg-type]
        )
        np.testing.assert_array_equal(crop, whole(encoded, 64, channels, decoder=decoder))


class FullBox:
    """Stands for a generator whose first try is the whole of a square."""

    def random(self, shape):
        return np.full(shape, 0.5)


@both_decoders
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_large_crops_are_decoded_at_a_fraction_of_their_size(decoder, factor):
    """Nearly what the full decode gives: mean difference below 2 levels, and not shifted by a pixel."""
    side = 40
    picture = scene(101, 99).resize((101 * factor - 3, 99 * factor - 5), Image.Resampling.BICUBIC)
    encoded = encode(picture)
    for seed in range(8):
        left, top, width, height = random_box(*picture.size, np.random.default_rng(seed), 0.4)
        assert min(width, height) >= factor * side
        cut = picture.crop((left, top, left + width, top + height))
        exact = np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR), int)
        fast = train(encoded, seed, side, min_area=0.4, decoder=decoder).astype(int)
        error = np.abs(fast - exact)
        assert error.mean() < 2 and error.max() < 25
        assert error.mean() < np.abs(np.roll(exact, 1, 1) - exact)[:, 1:].mean() / 2


@both_decoders
@pytest.mark.parametrize(
    ("size", "expected"),
    [((320, 320), (40, 40)), ((319, 319), (80, 80)), ((330, 100), (165, 50)), ((100, 79), (100, 79))],
)
def test_the_largest_fraction_is_taken_that_leaves_the_shorter_side_as_long_as_the_crop(decoder, size, expected):
    encoded = encode(scene(*size))
    assert decoding.decode(encoded, 3, decoder=decoder, crop_to=40).size == expected
    assert decoding.decode(encoded, 3, decoder=decoder).size == size


def test_training_takes_the_fraction_and_evaluation_never():
    encoded = encode(scene(400, 400))
    eighth = decoding.decode(encoded, 3, crop_to=40).resize((40, 40), Image.Resampling.BILINEAR)
    crop = random_resized_crop(encoded, 40, 3, FullBox(), min_area=1.0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(crop, np.asarray(eighth))
    assert difference(whole(encoded, 40, 3), crop) > 0


def test_a_box_takes_four_numbers_for_each_of_ten_tries_and_its_place_in_both_directions_differs():
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    random_box(500, 480, rng, 0.08)
    same.random((10, 4))
    assert rng.random() == same.random()
    left, top, width, height = np.array([random_box(500, 480, rng, 0.08) for _ in range(500)]).T
    places = left / np.maximum(500 - width, 1), top / np.maximum(480 - height, 1)
    assert abs(np.corrcoef(*places)[0, 1]) < 0.2


def test_a_box_may_be_as_wide_as_the_image():
    boxes = [random_box(3, 4, np.random.default_rng(seed), 0.5) for seed in range(200)]
    assert {(box.top, box.width, box.height) for box in boxes} >= {(0, 3, 3), (1, 3, 3), (0, 3, 4)}


# Geometry


@pytest.mark.parametrize(("width", "left"), [(10, 1), (11, 2), (13, 2)])
def test_half_a_pixel_of_margin_goes_to_the_even_number(width, left):
    picture = scene(width, 8)
    cut = centre_crop(encode(picture, "PNG"), 8, 3, resize=8)
    np.testing.assert_array_equal(cut, np.asarray(picture)[:, left : left + 8])


@both_decoders
@pytest.mark.parametrize("size", [(160, 80), (80, 160), (97, 97)])
def test_quadrants_stay_where_they_are(decoder, size):
    encoded = encode(quadrants(*size), subsampling=0)
    for image in (whole(encoded, 32, 3, decoder=decoder), centre_crop(encoded, 32, 3, resize=40, decoder=decoder)):
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        corners = image[2, 2], image[2, -3], image[-3, 2], image[-3, -3]
        for corner, colour in zip(corners, QUADRANTS, strict=True):
            assert difference(corner, np.array(colour)) < 12
        assert (image[2, :14, 0] > 200).all() and (image[2, 18:, 1] > 200).all()


def test_colours_are_made_grey_before_they_are_resized():
    encoded = encode(scene(40, 30), "PNG")
    assert [decoding.decode(encoded, channels).mode for channels in (1, 3, None)] == ["L", "RGB", "RGB"]


def test_luminance_weighs_the_colours():
    grey = whole(encode(quadrants(64, 64), "PNG"), 64, 1)
    assert grey.shape == (64, 64, 1)
    np.testing.assert_array_equal(grey[[0, 0, -1, -1], [0, -1, 0, -1], 0], [76, 150, 29, 226])  # ITU-R 601-2


@both_decoders
@pytest.mark.parametrize("size", [(301, 200), (200, 301), (255, 255), (60, 77)])
def test_evaluation_sees_what_weights_images_makes(tmp_path, decoder, size):
    """`whole` and `centre_crop` are the squash and the short-side rule of the published networks."""
    encoded = encode(scene(*size))
    (tmp_path / "x.jpg").write_bytes(encoded)
    p = PREPROCESSINGS["torchvision"]
    expected = images.read_image(tmp_path / "x.jpg", p) * np.float32(p.std) + np.float32(p.mean)
    cut = centre_crop(encoded, p.crop, 3, resize=p.resize, decoder=decoder)
    np.testing.assert_allclose(cut * np.float32(p.scale), expected, atol=1e-5)
    full = Image.open(io.BytesIO(encoded)).resize((227, 227), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(whole(encoded, 227, 3, decoder=decoder), np.asarray(full))


# Decoders


def test_the_decoder_can_be_forced(monkeypatch):
    monkeypatch.setattr(decoding, "SIMPLEJPEG", True)
    assert [decoding.decoder_in_use(d) for d in decoding.DECODERS] == ["simplejpeg", "pillow", "simplejpeg"]
    monkeypatch.setattr(decoding, "SIMPLEJPEG", False)
    assert decoding.decoder_in_use() == "pillow"
    with pytest.raises(UserError, match="not installed"):
        decoding.decoder_in_use("simplejpeg")
    with pytest.raises(UserError, match='did you mean "pillow"'):
        decoding.decoder_in_use("pilow")  # type: ignore[arg-type]


def test_wrong_arguments_are_the_callers():
    encoded = encode(scene(20, 20))
    with pytest.raises(UserError, match="channels: 4"):
        whole(encoded, 8, 4)
    with pytest.raises(UserError, match="resize: 7 px"):
        centre_crop(encoded, 8, 3, resize=7)
    assert centre_crop(encoded, 8, 3, resize=8).shape == (8, 8, 3)


@needs_simplejpeg
def test_photographs_are_the_same_with_both_decoders(photographs):
    for number, encoded in enumerate(photographs):
        for size in (224, 64):  # at 64 most crops are decoded at a fraction
            for channels in (1, 3):
                a, b = (train(encoded, number, size, channels, decoder=d) for d in ("pillow", "simplejpeg"))
                assert difference(a, b) == 0
        for a, b in zip(every_way(encoded, 3, "pillow"), every_way(encoded, 3, "simplejpeg"), strict=True):
            assert difference(a, b) == 0


@both_decoders
def test_threads_do_not_disturb_each_other(decoder):
    files = [encode(scene(120 + 7 * i, 90 + 5 * i), subsampling=i % 3) for i in range(12)]
    expected = [train(encoded, seed, decoder=decoder) for seed, encoded in enumerate(files)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            found = pool.map(lambda pair: train(pair[1], pair[0], decoder=decoder), enumerate(files))
            for a, b in zip(expected, found, strict=True):
                np.testing.assert_array_equal(a, b)
