"""Odd files are read right; what is damaged or no image is `Undecodable` and nothing else."""

import struct
import zlib

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
from squeezenet_jax.data.images import jpeg as jpeg_files
from squeezenet_jax.data.images.crops import centre_crop, whole
from squeezenet_jax.data.images.decoding import Undecodable


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
    if max(size) > 64 * min(size):
        for call in (lambda: list(every_way(encoded, 3, decoder)), lambda: train(encoded, decoder=decoder)):
            with pytest.raises(Undecodable, match="too narrow"):
                call()
        return
    for image in every_way(encoded, 3, decoder):
        assert image.shape == (32, 32, 3) and difference(image, np.array([200, 100, 50])) < 4


def unreadable():
    jpeg = encode(scene())
    frame = jpeg_files.frame_of(jpeg)
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
        "huge png": (png(30_000, 30_000), "30000 x 30000 px|more than 178956970 pixels"),
        "large png": (png(14_000, 14_000), "14000 x 14000 px; up to|more than 178956970 pixels"),
        "png without pixels": (png(50, 50), "truncated|image"),
        "32-bit": (encode(Image.new("I", (9, 7)), "TIFF"), "more than 16 bits"),
        "float": (encode(Image.new("F", (9, 7)), "TIFF"), "more than 16 bits"),
        "avif": (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF; this format is not read here, only JPEG, PNG"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC; this format is not read here"),
        "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000; this format is not read here"),
        "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a git-LFS pointer"),
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


@both_decoders
@pytest.mark.parametrize("kept", [0.3, 0.97])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 4}], ids=str)
def test_an_early_end_of_the_pixels_is_noticed_though_the_file_has_an_end(decoder, kept, mode, options):
    """libjpeg fills the rest with grey and warns. Pillow does not pass the warning on."""
    jpeg = encode(scene().convert(mode), **options)
    whole(jpeg, 32, 3, decoder=decoder)
    with pytest.raises(Undecodable, match=r"premature end|truncated"):
        whole(jpeg[: int(len(jpeg) * kept)] + b"\xff\xd9", 32, 3, decoder=decoder)


@needs_simplejpeg
def test_an_early_end_of_a_progressive_jpeg_is_noticed_by_simplejpeg():
    jpeg = encode(scene(), progressive=True)
    with pytest.raises(Undecodable, match="premature end"):
        whole(jpeg[: len(jpeg) // 2] + b"\xff\xd9", 32, 3, decoder="simplejpeg")


@both_decoders
def test_a_progressive_jpeg_may_have_fewer_scans_than_usual(decoder):
    """Its first scan alone is a whole, coarse picture: here the end marker behind it is no early end."""
    jpeg = encode(Image.new("RGB", (64, 48), (200, 100, 50)), progressive=True)
    scan = jpeg.index(b"\xff\xda")
    coarse = jpeg[: jpeg_files.MARKER.search(jpeg, scan + 2).start()] + b"\xff\xd9"
    assert len(coarse) < len(jpeg) - 20
    for image in every_way(coarse, 3, decoder):
        assert difference(image, np.array([200, 100, 50])) < 9


@needs_simplejpeg
def test_a_progressive_jpeg_is_decoded_once_for_a_crop(monkeypatch):
    """With fewer rows, simplejpeg would stumble at the end of the first scan, and Pillow begin anew."""
    jpeg = encode(scene(), progressive=True)
    expected = [train(jpeg, seed, size=150) for seed in range(5)]
    monkeypatch.setattr(decoding, "_opened", None)
    for seed, image in enumerate(expected):
        np.testing.assert_array_equal(train(jpeg, seed, size=150), image)


@both_decoders
def test_a_header_that_pillow_reads_otherwise_is_refused(decoder):
    """Of two frame headers Pillow takes the second."""
    jpeg = encode(scene(300, 200))
    at = jpeg_files.frame_of(jpeg).at
    header = jpeg[at : at + 19]
    twice = (
        jpeg[: at + 19]
        + header[:5]
        + (100).to_bytes(2, "big")
        + (150).to_bytes(2, "big")
        + header[9:]
        + jpeg[at + 19 :]
    )
    with pytest.raises(Undecodable, match="its header says 300 x 200 px, Pillow finds 150 x 100"):
        whole(twice, 32, 3, decoder=decoder)


@both_decoders
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_telephones_108_megapixels_are_read(decoder):
    jpeg = encode(Image.new("L", (12_000, 9_000), 77))
    assert difference(whole(jpeg, 8, 3, decoder=decoder), np.array([77, 77, 77])) < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_becomes_its_upper_8_bits(kind):
    ramp = (np.arange(256, dtype=np.uint16) * 256 + 99).reshape(16, 16)
    image = whole(encode(Image.fromarray(ramp), kind), 16, 1)
    np.testing.assert_array_equal(image.reshape(-1), np.arange(256))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(mode, channels):
    """The left half is black and transparent, the right half grey."""
    pixels = np.full((8, 8), 100, np.uint8)
    pixels[:, :4] = 0
    picture, options = Image.fromarray(pixels), {}
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(np.where(pixels == 0, np.uint8(0), np.uint8(255))))
    else:
        picture = picture.convert(mode)
        options = {"transparency": {"P": picture.getpixel((0, 0)), "RGB": (0, 0, 0), "L": 0}[mode]}
    image = whole(encode(picture, "PNG", **options), 8, channels)
    assert (image[:, :4] == 255).all() and (image[:, 4:] == 100).all()


@pytest.mark.parametrize(("colour", "clear"), [(0, (0x1234,)), (2, (0x1234, 0x2345, 0x3456))])
def test_one_transparent_colour_of_16_bits_is_white(colour, clear):
    """A PNG's tRNS chunk; the other half has a colour whose upper bytes are others."""
    row = struct.pack(f">{len(clear)}H", *clear) * 4 + struct.pack(f">{len(clear)}H", *[0x6464] * len(clear)) * 4
    file = png(8, 8, 16, colour, (b"\0" + row) * 8)
    content = b"tRNS" + struct.pack(f">{len(clear)}H", *clear)
    at = file.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    image = whole(file[:at] + chunk + file[at:], 8, 3)
    assert (image[:, :4] == 255).all() and (image[:, 4:] == 100).all()


@pytest.mark.parametrize("size", [(64, 1), (1, 64)])
def test_a_picture_that_somebody_opened_may_be_as_narrow_as_a_file(size):
    assert whole(encode(Image.new("RGB", size), "PNG"), 8, 3).shape == (8, 8, 3)
    assert decoding.from_picture(Image.new("RGB", size)).size == size
    with pytest.raises(Undecodable, match="too narrow"):
        decoding.from_picture(Image.new("RGB", tuple(side + (side == 64) for side in size)))


def test_a_file_that_cannot_be_an_image_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.jpg"
    path.write_bytes(b"x")
    assert decoding.read(path) == b"x"
    for error, expected in (
        (PermissionError(13, "Permission denied"), Undecodable),
        (OSError(5, "Input/output error"), OSError),
    ):

        def fail(_, error=error):
            raise error

        with monkeypatch.context() as patch, pytest.raises(expected, match=error.strerror):
            patch.setattr(decoding.Path, "read_bytes", fail)
            decoding.read(path)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "MAX_BYTES", 1)
        assert decoding.read(path) == b"x"
    with path.open("wb") as file:
        file.truncate(decoding.MAX_BYTES + 1)
    with pytest.raises(Undecodable, match="larger than 256 MiB"):
        decoding.read(path)


@pytest.mark.parametrize(
    ("brand", "name"), [(b"avif", "AVIF"), (b"avis", "AVIF"), (b"heic", "HEIC"), (b"hevc", "HEIC"), (b"mif1", "HEIC")]
)
def test_a_format_is_called_by_its_name_whatever_its_brand_and_length(brand, name):
    for length in (10, 28):  # 10 is also a newline
        with pytest.raises(Undecodable, match=f"it is {name}"):
            whole(length.to_bytes(4, "big") + b"ftyp" + brand + bytes(8), 8, 3)


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
