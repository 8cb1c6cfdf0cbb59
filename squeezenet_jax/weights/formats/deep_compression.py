"""The Deep Compression file (.net) of songhan/SqueezeNet-Deep-Compression: pruned, 8-bit codes, 4-bit gaps.

Little-endian. First the number n of stored entries of every layer, uint32. Then for each layer, in the order of the
network:

    codebook  256 x float32     entry 0 is 0.0
    bias      C_out x float32
    code      n x uint8         index into the codebook
    gap       n x 4 bits        low nibble first, padded to a whole byte

Entry j is the weight at position cumsum(gap + 1)[j] - 1 of the flat OIHW kernel; where a gap would need more than 4
bits, entries with code 0 lie in between. The file has neither a signature nor sizes: the table is part of the format.
"""

import dataclasses
import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from squeezenet_jax.network.architecture import V1_0, Architecture, with_geometry
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, parameter_shapes
from squeezenet_jax.weights.formats.infer import Wishes, assemble, hwio
from squeezenet_jax.weights.quantized import QuantizedLayer, from_weights

CODEBOOK = 256
MAX_GAP = 15


def read(content: bytes, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """v1.0 with 1000 classes, Caffe's geometry and preprocessing (the authors' only published file)."""
    tensors, codebooks = decode(content, V1_0, channels=3, num_classes=1000)
    weights = assemble(
        tensors,
        geometry="caffe",
        bypass=wishes.bypass_or("none"),
        preprocessing=PREPROCESSINGS["caffe"],
        provenance=provenance,
    )
    return dataclasses.replace(weights, codebooks=codebooks)


def write(weights: Weights) -> bytes:
    """The file's content: v1.0 with 1000 classes. What `read` gives back, and what it assumes, must be the network.

    The authors' file, read and written, is the same byte by byte: its code books' order is kept.
    """
    known = with_geometry(V1_0, "caffe")
    if (weights.arch, weights.channels, weights.num_classes) != (known, 3, 1000):
        raise UserError("a .net holds v1.0 with Caffe's geometry, no bypass and 1000 classes, and nothing else")
    if weights.preprocessing != PREPROCESSINGS["caffe"]:
        raise UserError("a .net is read with Caffe's preprocessing, which is not this network's")
    return encode(from_weights(weights, CODEBOOK - 1))


def decode(
    content: bytes, arch: Architecture, *, channels: int, num_classes: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The dense tensors ("conv1/kernel": HWIO, "conv1/bias", ...) of a file that holds a network of this table, and
    the code books whose order only the file knows, as in `Weights.codebooks`."""
    shapes = parameter_shapes(arch, channels=channels, num_classes=num_classes)
    kernels = {name.removesuffix("/kernel"): shape for name, shape in shapes.items() if name.endswith("/kernel")}
    if len(content) < 4 * len(kernels):
        raise UserError(f"truncated: {len(content)} bytes have no room for the {len(kernels)} layers' sizes")
    entries = np.frombuffer(content, "<u4", len(kernels)).tolist()
    sizes = [4 * (CODEBOOK + shape[3]) + n + (n + 1) // 2 for n, shape in zip(entries, kernels.values(), strict=True)]
    expected = 4 * len(kernels) + sum(sizes)
    if len(content) != expected:
        # Before anything is allocated: an entry count that lies changes this sum.
        raise UserError(f"is {len(content)} bytes long, but its own layer sizes add up to {expected}")
    tensors: dict[str, np.ndarray] = {}
    codebooks: dict[str, np.ndarray] = {}
    offset = 4 * len(kernels)
    for (name, shape), n, size in zip(kernels.items(), entries, sizes, strict=True):
        kernel, bias, codebook = _layer(content[offset : offset + size], n, shape, name)
        tensors |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
        values = codebook[1:]
        if np.isfinite(values).all() and len(np.unique(codebook)) == CODEBOOK:
            codebooks[name] = values
        offset += size
    return tensors, codebooks


def _layer(data: bytes, n: int, shape_hwio: tuple[int, ...], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width, inputs, outputs = shape_hwio
    codebook, bias = np.split(np.frombuffer(data, "<f4", CODEBOOK + outputs), [CODEBOOK])
    code, packed = np.split(np.frombuffer(data, np.uint8, offset=4 * (CODEBOOK + outputs)), [n])
    gap = np.stack([packed & 15, packed >> 4], axis=1).ravel()[:n]
    position = np.cumsum(gap.astype(np.int64) + 1) - 1
    if codebook[0] != 0:
        raise UserError(f"{name}: codebook entry 0 is {codebook[0]}; it must be 0")
    size = math.prod(shape_hwio)
    if n and position[-1] >= size:
        raise UserError(f"{name}: position {position[-1]} is outside the kernel of {size} weights")
    flat = np.zeros(size, np.float32)
    flat[position] = codebook[code]
    return hwio(flat.reshape(outputs, inputs, height, width)), bias, codebook


def encode(layers: Sequence[QuantizedLayer]) -> bytes:
    """The file of layers with at most 255 values each, in the network's order."""
    parts = [_encode_layer(layer) for layer in layers]
    return struct.pack(f"<{len(parts)}I", *(n for n, _ in parts)) + b"".join(data for _, data in parts)


def _encode_layer(layer: QuantizedLayer) -> tuple[int, bytes]:
    """(number of entries, the layer's bytes)."""
    values = layer.values[1:] if layer.order is None else layer.values[layer.order]
    codebook = np.zeros(CODEBOOK, "<f4")
    codebook[1 : 1 + len(values)] = values
    code_of = np.arange(CODEBOOK) if layer.order is None else np.argsort(np.append(0, layer.order))
    flat = layer.code_HWIO.transpose(3, 2, 0, 1).ravel()
    position = np.flatnonzero(flat)
    gap = np.diff(position, prepend=-1) - 1
    fillers = gap // (MAX_GAP + 1)  # each is an entry with code 0 that skips 15 positions and stands at the next
    last = np.cumsum(fillers + 1) - 1  # where the weights' own entries are
    entries = int(fillers.sum()) + len(gap)
    gaps, codes = np.full(entries, MAX_GAP, np.uint8), np.zeros(entries, np.uint8)
    gaps[last], codes[last] = gap % (MAX_GAP + 1), code_of[flat[position]]
    nibbles = np.append(gaps, np.zeros(entries % 2, np.uint8))
    packed = nibbles[::2] | nibbles[1::2] << 4
    return entries, codebook.tobytes() + layer.bias_O.astype("<f4").tobytes() + codes.tobytes() + packed.tobytes()
