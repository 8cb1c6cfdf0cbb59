"""Encoded bytes become arrays of the right geometry, the same with either decoder, or `Undecodable`."""

import io
import struct
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from squeezenet_jax.data import decoding
from squeezenet_jax.data.decoding import Box, Undecodable, centre_crop, random_box, random_resized_crop, whole
from squeezenet_jax.errors import UserError
from squeezenet_jax.weights import PREPROCESSINGS, images

PHOTOGRAPHS = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet_sample_100.tar"
INSTALLED = ["pillow", pytest.param("simplejpeg", marks=pytest.mark.skipif(not decoding.SIMPLEJPEG, reason="absent"))]
both_decoders = pytest.mark.parametrize("decoder", INSTALLED)
needs_simplejpeg = pytest.mark.skipif(not decoding.SIMPLEJPEG, reason="simplejpeg is not installed")


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


def train(encoded, seed=0, size=64, channels=3, min_area=0.08, decoder="auto"):
    return random_resized_crop(encoded, size, channels, np.random.default_rng(seed), min_area=min_area, decoder=decoder)


def every_way(encoded, channels, decoder):
    yield whole(encoded, 32, channels, decoder=decoder)
    yield centre_crop(encoded, 32, channels, resize=40, decoder=decoder)
    yield train(encoded, size=32, channels=channels, decoder=decoder)


def difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


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


# Geometry


QUADRANTS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def quadrants(width, height):
    image = np.zeros((height, width, 3), np.uint8)
    for place, colour in enumerate(QUADRANTS):
        rows = slice(None, height // 2) if place < 2 else slice(height // 2, None)
        image[rows, slice(None, width // 2) if place % 2 == 0 else slice(width // 2, None)] = colour
    return Image.fromarray(image)


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


def test_the_same_formats_are_read_as_by_weights_images():
    assert decoding.FORMATS == images.FORMATS


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


# Odd files


def png(width, height, depth=8, colour=2, rows=b""):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def oriented():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    return encode(quadrants(80, 80), exif=exif, subsampling=0)


def readable():
    picture = quadrants(80, 80)
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    alpha = picture.copy()
    alpha.putalpha(255)
    return {
        "jpeg": encode(picture, subsampling=0),
        "progressive": encode(picture, subsampling=0, progressive=True),
        "restart markers": encode(picture, subsampling=0, restart_marker_blocks=3),
        "junk after the end": encode(picture, subsampling=0) + b"junk" * 9,
        "cmyk jpeg": encode(picture.convert("CMYK")),  # with Adobe's marker, so inverted
        "png": encode(picture, "PNG"),
        "palette": encode(palette, "PNG"),
        "transparent palette": encode(palette, "PNG", transparency=bytes([255] * 8)),
        "gif": encode(picture, "GIF"),
        "alpha": encode(alpha, "PNG"),
        "16 bits per colour": png(
            80, 80, 16, 2, b"".join(b"\0" + row.repeat(2).tobytes() for row in np.array(picture))
        ),
        "bmp": encode(picture, "BMP"),
        "tiff": encode(picture, "TIFF"),
        "webp": encode(picture, "WEBP", lossless=True),
        "exif orientation": oriented(),
    }


@both_decoders
@pytest.mark.parametrize("name", readable())
@pytest.mark.filterwarnings("error")
def test_odd_files_are_read_right(name, decoder):
    encoded = readable()[name]
    image = whole(encoded, 40, 3, decoder=decoder)
    for corner, colour in zip((image[2, 2], image[2, -3], image[-3, 2], image[-3, -3]), QUADRANTS, strict=True):
        assert difference(corner, np.array(colour)) < 20
    for channels in (1, 3):
        for array in every_way(encoded, channels, decoder):
            assert array.shape == (32, 32, channels) and array.dtype == np.uint8


@both_decoders
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_files_have_three_equal_channels(kind, mode, decoder):
    if kind == "JPEG" and mode == "LA":
        pytest.skip("JPEG has no alpha")
    ramp = Image.linear_gradient("L").resize((90, 60))
    encoded = encode(ramp.convert(mode), kind)
    for grey, colour in zip(every_way(encoded, 1, decoder), every_way(encoded, 3, decoder), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(grey, colour.shape), colour)
        assert grey[:8].mean() < grey[-8:].mean()


@both_decoders
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (1, 500), (500, 1), (3, 2)])
def test_narrow_images(size, decoder):
    encoded = encode(Image.new("RGB", size, (200, 100, 50)))
    for image in (whole(encoded, 32, 3, decoder=decoder), train(encoded, decoder=decoder)):
        assert difference(image, np.array([200, 100, 50])) < 4
    if max(size) > 64 * min(size):
        with pytest.raises(Undecodable, match="too narrow"):
            centre_crop(encoded, 32, 3, resize=40, decoder=decoder)
    else:
        assert centre_crop(encoded, 32, 3, resize=40, decoder=decoder).shape == (32, 32, 3)


def unreadable():
    jpeg = encode(scene())
    frame = decoding._jpeg_frame(jpeg)
    huge = jpeg[: frame.at + 5] + b"\xff\xff\xff\xff" + jpeg[frame.at + 9 :]
    flat = jpeg[: frame.at + 5] + b"\0\0" + jpeg[frame.at + 7 :]
    return {
        "empty": (b"", "no image"),
        "text": (b"hello", "no image"),
        "only a start": (b"\xff\xd8", "image"),
        "half a jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "no end marker": (jpeg[:-2], "truncated"),
        "half a progressive jpeg": (encode(scene(), progressive=True)[:9000], "truncated"),
        "half a cmyk jpeg": (encode(scene().convert("CMYK"))[:9000], "truncated"),
        "half a png": (encode(scene(), "PNG")[:9000], "truncated"),
        "header of a jpeg": (jpeg[: frame.at + 20], "truncated"),
        "jpeg without rows": (flat, "300 x 0 px"),
        "huge jpeg": (huge, "65535 x 65535 px"),
        "huge png": (png(30_000, 30_000), "30000 x 30000|decompression bomb"),
        "large png": (png(10_000, 10_000), "10000 x 10000"),
        "png without pixels": (png(50, 50), "truncated|image"),
        "16-bit grey": (encode(Image.new("I;16", (9, 7)), "PNG"), "more than 8 bits"),
        "float": (encode(Image.new("F", (9, 7)), "TIFF"), "more than 8 bits"),
        "eps": (encode(scene(9, 9), "EPS"), "no image"),
    }


@both_decoders
@pytest.mark.parametrize("name", unreadable())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused(name, decoder):
    encoded, reason = unreadable()[name]
    for call in (
        lambda: whole(encoded, 32, 3, decoder=decoder),
        lambda: centre_crop(encoded, 32, 1, resize=40, decoder=decoder),
        lambda: train(encoded, decoder=decoder),
    ):
        with pytest.raises(Undecodable, match=reason) as caught:
            call()
        assert "\n" not in str(caught.value) and str(caught.value)


@needs_simplejpeg
def test_an_early_end_of_the_pixels_is_noticed_though_the_file_has_an_end():
    """libjpeg fills the rest with grey and warns. Pillow does not pass the warning on."""
    jpeg = encode(scene())
    with pytest.raises(Undecodable, match="premature end"):
        whole(jpeg[: len(jpeg) // 2] + b"\xff\xd9", 32, 3, decoder="simplejpeg")


@both_decoders
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_never_raise_anything_else(decoder, options):
    good = encode(scene(150, 100), exif=Image.Exif(), **options)
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(250):
        damaged = bytearray(good)
        for at in rng.integers(len(good) if rng.random() < 0.5 else 700, size=rng.integers(1, 5)):
            damaged[at] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        try:
            for array in every_way(bytes(damaged), 3, decoder):
                assert array.shape == (32, 32, 3)
                read += 1
        except Undecodable as error:
            assert str(error)
    assert read > 50


@both_decoders
def test_a_truncated_file_is_never_read(decoder):
    for options in ({}, {"progressive": True}):
        good = encode(scene(100, 80), **options)
        for length in np.random.default_rng(0).integers(len(good), size=60):
            for seed in range(2):
                with pytest.raises(Undecodable):
                    train(good[:length], seed, decoder=decoder)
