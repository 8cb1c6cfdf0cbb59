"""What is stored for a file: its own bytes wherever every decoder reads them as 8-bit grey or RGB."""

import io

import numpy as np
import pytest
from PIL import Image
from prepare_files import encoded, jpeg, picture

from squeezenet_jax.data.images.decoding import Undecodable
from squeezenet_jax.data.prepare.images import convert


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.format, image.mode, np.asarray(image)


def over_white(image):
    """Alpha's own formula, independent of Pillow's: colour * alpha + white * (1 - alpha)."""
    pixels = np.asarray(image.convert("RGBA")).astype(float)
    alpha = pixels[..., 3:] / 255
    return Image.fromarray(np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


def grey16():
    return Image.fromarray((np.asarray(picture(0, mode="L")).astype(np.uint16) << 8) + 77)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(0),
        jpeg(0, mode="L"),
        encoded(picture(0), progressive=True),
        encoded(picture(0), "PNG"),
        encoded(picture(0, mode="L"), "PNG"),
        encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)]),
    ],
    ids=["JPEG", "grey JPEG", "progressive", "PNG", "grey PNG", "MPO"],
)
@pytest.mark.parametrize("short_side", [None, 16, 100])
def test_plain_files_keep_their_bytes(data, short_side):
    result = convert(data, short_side)
    pixels = decoded(data)[2]
    assert result.data == data
    assert (result.height, result.width, result.channels) == (*pixels.shape[:2], 1 if pixels.ndim == 2 else 3)


@pytest.mark.parametrize(
    ("data", "expected", "file_format"),
    [
        (encoded(picture(0, mode="CMYK"), quality=95), picture(0, mode="CMYK").convert("RGB"), "JPEG"),
        (encoded(picture(0, mode="RGBA"), "PNG"), over_white(picture(0, mode="RGBA")), "PNG"),
        (encoded(picture(0, mode="LA"), "PNG"), over_white(picture(0, mode="LA")).convert("L"), "PNG"),
        (encoded(picture(0).quantize(16), "PNG"), picture(0).quantize(16).convert("RGB"), "PNG"),
        (encoded(picture(0), "PNG", transparency=(1, 2, 3)), picture(0), "PNG"),
        (encoded(picture(0, mode="L").convert("1"), "PNG"), picture(0, mode="L").convert("1").convert("L"), "PNG"),
        (encoded(grey16(), "PNG"), picture(0, mode="L"), "PNG"),
        (encoded(picture(0), "BMP"), picture(0), "PNG"),
        (encoded(picture(0), "TIFF"), picture(0), "PNG"),
        (encoded(picture(0), "PPM"), picture(0), "PNG"),
        (encoded(picture(0), "WEBP", lossless=True), picture(0), "PNG"),
        (encoded(picture(0, mode="L"), "GIF"), picture(0, mode="L").convert("RGB"), "PNG"),
    ],
    ids=["CMYK", "RGBA", "LA", "palette", "transparent", "1 bit", "16 bits", "BMP", "TIFF", "PPM", "WEBP", "GIF"],
)
def test_odd_files_are_stored_as_plain_ones(data, expected, file_format):
    result = convert(data, None)
    got_format, mode, pixels = decoded(result.data)
    assert (got_format, mode) == (file_format, expected.mode)
    np.testing.assert_allclose(pixels.astype(int), np.asarray(expected).astype(int), atol=6 if mode == "RGB" else 0)
    assert convert(result.data, None) == result  # plain now


def test_png_with_16_bits_a_channel_becomes_8():
    """Pillow cannot write one; this has the header and data of 3 x 2 px, all channels 0x1234."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\0" + b"\x12\x34" * 9) * 2
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", 3, 2, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    result = convert(data, None)
    assert result.data[24] == 8 and (decoded(result.data)[2] == 0x12).all()


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((100, 60), "RGB", (83, 50)),
        ((60, 100), "L", (50, 83)),
        ((51, 51), "CMYK", (50, 50)),
        ((900, 51), "RGB", (882, 50)),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_larger_images_get_the_short_side(size, mode, expected, file_format):
    if (mode, file_format) == ("CMYK", "PNG"):
        mode = "RGBA"
    image = picture(3, size, mode)
    result = convert(encoded(image, file_format, **({"quality": 95} if file_format == "JPEG" else {})), 50)
    got_format, got_mode, pixels = decoded(result.data)
    assert (got_format, got_mode) == ("JPEG", "L" if mode == "L" else "RGB")
    assert pixels.shape[1::-1] == expected == (result.width, result.height)
    direct = (over_white(image) if mode == "RGBA" else image.convert(got_mode)).resize(
        expected, Image.Resampling.LANCZOS
    )
    assert np.abs(pixels.astype(int) - np.asarray(direct)).mean() < 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text named .jpg",
        jpeg(0, (200, 200))[:-300],
        jpeg(0)[:100],
        encoded(picture(0, (200, 200)), "PNG")[:-300],
        encoded(picture(0, mode="L").convert("F"), "TIFF"),
        encoded(Image.new("1", (20_000, 20_000)), "PNG"),
    ],
    ids=["empty", "text", "cut JPEG", "JPEG header", "cut PNG", "float TIFF", "400 megapixels"],
)
@pytest.mark.parametrize("short_side", [None, 8])
def test_unreadable_files_have_a_reason(data, short_side):
    with pytest.raises(Undecodable) as caught:
        convert(data, short_side)
    assert str(caught.value) and "\n" not in str(caught.value)
