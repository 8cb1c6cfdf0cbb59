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

import math
from collections.abc import Mapping

import numpy as np

from squeezenet_jax.network.architecture import V1_0, Architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, parameter_shapes
from squeezenet_jax.weights.formats.infer import Wishes, assemble, hwio

CODEBOOK = 256


def read(content: bytes, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """v1.0 with 1000 classes, Caffe's geometry and preprocessing (the authors' only published file)."""
    return assemble(
        decode(content, V1_0, channels=3, num_classes=1000),
        geometry="caffe",
        bypass=wishes.bypass_or("none"),
        preprocessing=PREPROCESSINGS["caffe"],
        provenance=provenance,
    )


def decode(content: bytes, arch: Architecture, *, channels: int, num_classes: int) -> dict[str, np.ndarray]:
    """The dense tensors ("conv1/kernel": HWIO, "conv1/bias", ...) of a file that holds a network of this table."""
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
    offset = 4 * len(kernels)
    for (name, shape), n, size in zip(kernels.items(), entries, sizes, strict=True):
        kernel, bias = _layer(content[offset : offset + size], n, shape, name)
        tensors |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
        offset += size
    return tensors


def _layer(data: bytes, n: int, shape_hwio: tuple[int, ...], name: str) -> tuple[np.ndarray, np.ndarray]:
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
    return hwio(flat.reshape(outputs, inputs, height, width)), bias
