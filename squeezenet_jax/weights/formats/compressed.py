"""The compressed file (.sqz): a quantised network with everything needed to use it. docs/format.md describes it.

    magic         8 bytes       137 "SQZ" 13 10 26 10
    version       uint32        1
    sizes         3 x uint32    of the description as it is here, the description inflated, and the stream, in bytes
    description   deflated      text: a line for each layer, "conv1 7 7 3 96" (H, W, I, O), an empty line, JSON
    stream        rANS          the layers in this order (`sqz/layers.py`)
    checksum      uint32        CRC-32 of everything before it

The JSON is that of `metadata.py`. The layers' lines follow from it; they stand there for decoders that read no JSON.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from squeezenet_jax.network.trace import Shape
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Weights, flatten, listing, parameter_shapes
from squeezenet_jax.weights.formats import metadata
from squeezenet_jax.weights.formats.infer import Wishes
from squeezenet_jax.weights.formats.sqz.layers import MAX_VALUES, Numbers, code_layer
from squeezenet_jax.weights.formats.sqz.rans import Decoder, Encoder
from squeezenet_jax.weights.quantized import QuantizedLayer, codebooks, from_weights, parameters

MAGIC = b"\x89SQZ\r\n\x1a\n"
VERSION = 1
HEADER = struct.Struct("<8s4I")
MAX_TEXT = 1 << 24  # bytes; nearly all of it class names
MAX_TOTAL = 1 << 24  # weights of all layers
ALWAYS = 1 << 21  # weights that may be in any file, however short; beyond them,
PER_BYTE = 2048  # so many for each of its bytes: a position costs at least 0.0056 bits (`contexts.LEAST`)


def looks_like(content: bytes) -> bool:
    return content.startswith(MAGIC)


def write(weights: Weights) -> bytes:
    """The file's content, with batch normalisation folded into the convolutions.

    `UserError` where a layer has too many weights, or too many different ones.
    """
    weights = weights.folded()
    layers = from_weights(weights, MAX_VALUES)
    text = text_of(weights)
    if len(text) > MAX_TEXT:
        raise UserError(f"labels and provenance are too long for a file: {len(text):,} bytes")
    description, stream = zlib.compress(text, 9), encode(layers)
    content = HEADER.pack(MAGIC, VERSION, len(description), len(text), len(stream)) + description + stream
    _check_total(_kernels(weights.shapes()), len(content))
    content += struct.pack("<I", zlib.crc32(content))
    _verify(content, layers)
    return content


def _verify(content: bytes, layers: Sequence[QuantizedLayer]) -> None:
    """What is read from the file is what was put into it, to the bit: a file may be all that is left of a network."""
    expected = flatten(parameters(layers))
    try:
        again = flatten(read(content, Wishes(), {}).params)
    except UserError as error:
        raise RuntimeError(f"the compressed file does not read back ({error})") from None
    if any(again[name].tobytes() != x.tobytes() for name, x in expected.items()):
        raise RuntimeError("the compressed file does not read back as what was written")


def read(content: bytes, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """The network as it was written; the provenance is the file's own. `UserError` for any damage."""
    wishes.refuse_bypass("the file")
    if not looks_like(content):
        raise UserError("not a compressed file of this project: its first bytes are others")
    if len(content) < HEADER.size + 4:
        raise UserError(f"truncated: {len(content)} bytes have no room for a header")
    _, version, deflated, inflated, streamed = HEADER.unpack_from(content)
    if version != VERSION:
        raise UserError(f"version {version} is not {VERSION}, the one known here")
    if HEADER.size + deflated + streamed + 4 != len(content):
        raise UserError(f"truncated or damaged: {len(content)} bytes are not as many as its header says")
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise UserError("damaged: its checksum does not fit its content")
    if inflated > MAX_TEXT:
        raise UserError(f"its description claims {inflated} bytes; at most {MAX_TEXT} are allowed")
    shapes, description = _parse(_inflate(content[HEADER.size : HEADER.size + deflated], inflated))
    _check_total(shapes, len(content) - 4)
    layers = decode(content[HEADER.size + deflated : -4], shapes)
    return description.with_params(parameters(layers), codebooks(layers))


def encode(layers: Sequence[QuantizedLayer]) -> bytes:
    """The stream of these layers."""
    encoder = Encoder()
    for _ in _collecting(encoder, layers):
        pass
    return encoder.finish()


def decode(stream: bytes, shapes_HWIO: Mapping[str, Shape]) -> list[QuantizedLayer]:
    """The layers of a stream, whose names and kernels are known."""
    decoder, numbers = Decoder(stream), Numbers()
    layers = [code_layer(decoder, shape, numbers, None, name) for name, shape in shapes_HWIO.items()]
    decoder.finish()
    return layers


def overhead(weights: Weights) -> int:
    """Bytes of the file besides its stream: header, description and checksum."""
    return HEADER.size + len(zlib.compress(text_of(weights), 9)) + 4


def encoded_size(layers: Sequence[QuantizedLayer]) -> int:
    """Bytes of the stream, exactly; a file has `overhead` more."""
    return len(encode(layers))


def sizes(layers: Sequence[QuantizedLayer]) -> list[float]:
    """Of each layer, its bytes in the stream; what the stream has besides is less than 500 bytes."""
    encoder = Encoder()
    ends = [0.0, *(encoder.bits() / 8 for _ in _collecting(encoder, layers))]
    return np.diff(ends).tolist()


def _collecting(encoder: Encoder, layers: Sequence[QuantizedLayer]) -> Iterator[QuantizedLayer]:
    """Each layer, once the encoder has collected it."""
    numbers = Numbers()
    for layer in layers:
        code_layer(encoder, layer.code_HWIO.shape, numbers, layer)
        yield layer


def _lines(shapes: Mapping[str, Shape]) -> str:
    return "".join(f"{name} {' '.join(map(str, shape))}\n" for name, shape in shapes.items())


def text_of(weights: Weights) -> bytes:
    """The description, as it is before it is deflated."""
    return f"{_lines(_kernels(weights.shapes()))}\n{metadata.describe(weights)}".encode()


def _kernels(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Layer -> HWIO."""
    return {name.removesuffix("/kernel"): shape for name, shape in shapes.items() if name.endswith("/kernel")}


def _check_total(shapes: Mapping[str, Shape], size: int) -> None:
    """Raises `UserError` for a network that is too large for its file, before anything of its size is made."""
    total = sum(map(math.prod, shapes.values()))
    if total > min(MAX_TOTAL, max(ALWAYS, PER_BYTE * size)):
        raise UserError(f"claims {total:,} weights; there is no room for so many in {size:,} bytes")


def _inflate(data: bytes, size: int) -> bytes:
    """Never more than `size` bytes, whatever the data ask for."""
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise UserError(f"damaged: its description cannot be inflated ({listing([str(error)])})") from None
    if len(text) != size or not inflater.eof or inflater.unused_data:
        raise UserError("damaged: its description is not as long as the header says")
    return text


def _parse(text: bytes) -> tuple[dict[str, Shape], metadata.Description]:
    """(kernels' shapes, description)."""
    try:
        lines, _, json = text.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise UserError("damaged: its description is not UTF-8") from None
    description = metadata.parse(json)
    shapes = _kernels(
        parameter_shapes(description.architecture, channels=description.channels, num_classes=description.num_classes)
    )
    if f"{lines}\n" != _lines(shapes):
        raise UserError("damaged: its list of layers is not that of its architecture")
    return shapes, description
