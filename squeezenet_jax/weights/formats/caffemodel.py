"""Caffe's .caffemodel: a NetParameter message in protobuf's wire format, read without Caffe and without its schema.

Only the fields named below are looked at (BVLC/caffe, src/caffe/proto/caffe.proto); others are skipped, as protobuf
prescribes. Lengths are checked against the enclosing message before anything is taken, and messages nest to a fixed
depth, so that a file can neither ask for more memory than its own size nor recurse.

    NetParameter      layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    V1LayerParameter  bottom = 2, top = 3, name = 4, type = 5 (number), blobs = 6, relu_param = 30
    LayerParameter    name = 1, type = 2 (string), bottom = 3, top = 4, blobs = 7, relu_param = 123
    BlobProto         num, channels, height, width = 1..4 (the older form of a shape), data = 5 (packed float32),
                      shape = 7 (BlobShape), double_data = 8 (packed float64)
    BlobShape         dim = 1
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from squeezenet_jax.network.architecture import BYPASSES, with_bypass
from squeezenet_jax.network.trace import Shape
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, listing
from squeezenet_jax.weights.formats.infer import Wishes, assemble, hwio, infer_architecture

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 200_000  # a SqueezeNet has some thousands; many more would only be there to cost time
V1_TYPES = {2: "BNLL", 3: "Concat", 15: "LRN", 18: "ReLU", 23: "TanH", 25: "Eltwise", 34: "MVN", 35: "AbsVal"}
OTHERS = ("BNLL", "LRN", "TanH", "MVN", "AbsVal", "ELU", "Swish", "PReLU")  # in place of ReLUs, or between layers
V1_LAYER = {2: "bottom", 3: "top", 4: "name", 5: "type", 6: "blobs", 30: "relu_param"}
LAYER = {1: "name", 2: "type", 3: "bottom", 4: "top", 7: "blobs", 123: "relu_param"}
FIRE_LAYER = re.compile(r"fire\d+/(squeeze1x1|expand1x1|expand3x3)")
RENAMED = "conv10 in the file"  # in the provenance, where it has another name there


@dataclasses.dataclass
class Layer:
    """`kind`: Caffe's type; of the old format only those that are looked at. An Eltwise layer is a bypass."""

    name: str = ""
    kind: str = ""
    inputs: list[str] = dataclasses.field(default_factory=list)
    output: str = ""
    blobs: list[memoryview] = dataclasses.field(default_factory=list)
    is_leaky: bool = False  # a ReLU with a slope


def read(content: bytes, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """Both layer formats. Geometry and preprocessing are Caffe's; a bypass is told by the Eltwise layers.

    ReLUs may be missing behind all squeeze layers, as in the variant of DeepScale/SqueezeNet#47, and behind conv10.
    A last layer with another name is conv10: fine-tuning in Caffe begins with renaming it, or its weights are copied.
    """
    budget = _Budget(MAX_FIELDS)
    layers = _layers(memoryview(content), budget)
    _refuse_others(layers)
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        if not layer.blobs:
            continue
        if len(layer.blobs) != 2:
            raise UserError(f"layer {listing([layer.name])}: {len(layer.blobs)} blobs instead of kernel and bias")
        if f"{layer.name}/kernel" in tensors:
            raise UserError(f"layer {listing([layer.name])} occurs twice")
        kernel, bias = (_blob(blob, layer.name, budget) for blob in layer.blobs)
        if kernel.ndim != 4 or bias.size != max(bias.shape, default=0):
            shapes = f"{kernel.shape} and {bias.shape}"
            raise UserError(f"layer {listing([layer.name])}: {shapes} are not the shapes of a kernel and a bias")
        tensors |= {f"{layer.name}/kernel": hwio(kernel), f"{layer.name}/bias": bias.ravel()}
    if not tensors:
        raise UserError("not a .caffemodel with weights: no layer has blobs")
    last = _last_layer(tensors)
    if last != "conv10":
        for part in ("kernel", "bias"):
            tensors[f"conv10/{part}"] = tensors.pop(f"{last}/{part}")
        provenance = {**provenance, RENAMED: listing([last])}
    read = assemble(
        tensors,
        geometry="caffe",
        bypass=_bypass(sum(layer.kind == "Eltwise" for layer in layers), tensors, wishes),
        preprocessing=PREPROCESSINGS["caffe"],
        provenance=provenance,
    )
    squeeze, conv10 = _activated(layers, last)
    arch = dataclasses.replace(read.arch, squeeze_activation=squeeze, conv10_relu=conv10)
    return dataclasses.replace(read, arch=arch)


def _refuse_others(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if layer.kind in OTHERS or layer.is_leaky:
            kind = "a ReLU with a slope" if layer.is_leaky else layer.kind
            raise UserError(f"layer {listing([layer.name])} is {kind}, which cannot be read")


def _activated(layers: Sequence[Layer], last: str) -> tuple[bool, bool]:
    """Whether ReLU layers follow the squeeze layers, and conv10, which is called `last`.

    A file without ReLU layers, or without saying what they read, was stripped, and tells nothing. `UserError` where
    those without one are not all squeeze layers, or conv10.
    """
    activated = {name for layer in layers if layer.kind == "ReLU" for name in layer.inputs}
    # One behind both expand layers of a fire (DeepScale/SqueezeNet#35).
    activated |= {
        name for layer in layers if layer.kind == "Concat" and layer.output in activated for name in layer.inputs
    }
    convolutions = {layer.output or layer.name: layer.name for layer in layers if layer.blobs}
    missing = {name for output, name in convolutions.items() if output not in activated}
    if missing == set(convolutions.values()):
        return True, True
    squeezes = {name for name in convolutions.values() if name.endswith("/squeeze1x1")}
    if missing - {last} not in (set(), squeezes):
        raise UserError(f"has ReLU layers, but none behind {listing(sorted(missing))}; that cannot be read")
    return not squeezes & missing, last not in missing


def _last_layer(tensors: Mapping[str, np.ndarray]) -> str:
    """conv10's name in the file: where none is called so, the last 1x1 convolution that takes what fire9 gives."""
    expands = [tensors.get(f"fire9/{name}/kernel", np.empty((0, 0, 0, 0))) for name in ("expand1x1", "expand3x3")]
    shape = (1, 1, sum(kernel.shape[3] for kernel in expands))
    names = [name.removesuffix("/kernel") for name, x in tensors.items() if x.ndim == 4 and x.shape[:3] == shape]
    others = [name for name in names if not FIRE_LAYER.fullmatch(name)]
    return "conv10" if "conv10/kernel" in tensors or not others else others[-1]


def _bypass(sums: int, tensors: Mapping[str, np.ndarray], wishes: Wishes) -> str:
    """What the number of Eltwise layers says; a file without any may have been stripped, so there a wish counts."""
    if sums == 0:
        return wishes.bypass_or("none")
    arch = infer_architecture({name: x.shape for name, x in tensors.items()}, geometry="caffe")
    number = {kind: sum(f.bypass != "none" for _, f in with_bypass(arch, kind).fires()) for kind in BYPASSES}
    if sums != number["simple"]:
        raise UserError(f"has {sums} Eltwise layers; simple bypass has {number['simple']}")
    if wishes.bypass_or("simple") != "simple":
        raise UserError(f"bypass: {wishes.bypass} contradicts the file, whose Eltwise layers are a simple bypass")
    return "simple"


def _layers(message: memoryview, budget: "_Budget") -> list[Layer]:
    """Every layer of the message, in either format."""
    layers: list[Layer] = []
    kinds = set()
    for number, _, value in _fields(message, budget):
        if number not in (2, 100) or not isinstance(value, memoryview):
            continue
        kinds.add(number)
        layers.append(_layer(value, budget, LAYER if number == 100 else V1_LAYER))
    if len(kinds) > 1:
        raise UserError("has layers of the old and of the new format")
    return layers


def _layer(message: memoryview, budget: "_Budget", names: Mapping[int, str]) -> Layer:
    layer = Layer()
    for number, _, value in _fields(message, budget):
        match names.get(number), value:
            case "type", int():
                layer.kind = V1_TYPES.get(value, "")
            case "type", memoryview():
                layer.kind = _text(value)
            case "name", memoryview():
                layer.name = _text(value)
            case "bottom", memoryview():
                layer.inputs.append(_text(value))
            case "top", memoryview():
                layer.output = layer.output or _text(value)
            case "blobs", memoryview():
                layer.blobs.append(value)
            case "relu_param", memoryview():
                layer.is_leaky = _has_slope(value, budget)
    return layer


def _has_slope(message: memoryview, budget: "_Budget") -> bool:
    """Of a ReLUParameter: negative_slope = 1, float; its other field, engine = 2, changes nothing."""
    slopes = [value for number, _, value in _fields(message, budget) if number == 1 and isinstance(value, memoryview)]
    return any(any(slope) for slope in slopes)


def _text(value: memoryview) -> str:
    return bytes(value[:100]).decode("utf-8", "replace")


def _blob(message: memoryview, layer: str, budget: "_Budget") -> np.ndarray:
    """A blob's array, float32 or float64, in the shape that it claims."""
    shape: list[int] | None = None
    legacy = {1: 0, 2: 0, 3: 0, 4: 0}
    chunks: dict[int, list[memoryview]] = {5: [], 8: []}
    for number, wire, value in _fields(message, budget):
        if number in legacy and isinstance(value, int):
            legacy[number] = value
        elif number == 7 and isinstance(value, memoryview):
            shape = _dims(value, budget)
        elif number in chunks and isinstance(value, memoryview):
            chunks[number].append(value)
        elif number in chunks:
            raise UserError(f"layer {listing([layer])}: its data are not packed (wire type {wire})")
    item = 4 if chunks[5] else 8
    data = b"".join(chunks[5] or chunks[8])
    dims: Shape = tuple(legacy.values()) if shape is None else tuple(shape)
    if len(dims) > 4 or not all(0 < dim < 1 << 31 for dim in dims) or len(data) != item * math.prod(dims):
        raise UserError(f"layer {listing([layer])}: {len(data)} bytes of data do not fill the shape {dims}")
    return np.frombuffer(data, f"<f{item}").reshape(dims)


def _dims(message: memoryview, budget: "_Budget") -> list[int]:
    dims: list[int] = []
    for number, _, value in _fields(message, budget):
        if number != 1:
            continue
        if isinstance(value, int):
            dims.append(value)
        else:  # packed
            position = 0
            while position < len(value) and len(dims) < 32:
                dim, position = _varint(value, position)
                dims.append(dim)
    return dims


@dataclasses.dataclass
class _Budget:
    fields: int

    def spend(self) -> None:
        self.fields -= 1
        if self.fields < 0:
            raise UserError(f"has more than {MAX_FIELDS} fields")


def _fields(message: memoryview, budget: _Budget) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, value) of each field of one message, its sub-messages unread."""
    position = 0
    while position < len(message):
        budget.spend()
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(message, position)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, position = _varint(message, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise UserError(f"not a .caffemodel: field {number} has wire type {wire}")
        if not 0 < number < 1 << 29:
            raise UserError(f"not a .caffemodel: field number {number}")
        if length > len(message) - position:
            raise UserError(f"truncated: a field claims {length} bytes where {len(message) - position} are left")
        yield number, wire, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position behind it); seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise UserError("truncated in the middle of a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise UserError("not a .caffemodel: a number has more than ten bytes")
