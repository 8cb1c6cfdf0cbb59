"""Small networks and encoders of every format that is read, written here from the formats' descriptions.

The project has readers only, save for .safetensors; these encoders are the other half of the round trips.
"""

import dataclasses
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from squeezenet_jax import weights
from squeezenet_jax.network import architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, flatten, parameter_shapes, unflatten
from squeezenet_jax.weights.formats.torchvision_layout import key_table

CLASSES = 3
DTYPES = {"Float": np.float32, "Half": np.float16, "Double": np.float64}


def tiny_arch(version="v1.1", bypass="none", geometry="caffe", width=0.0625):
    return architecture.build(version, geometry=geometry, width=width, bypass=bypass)


def tiny_weights(version="v1.1", bypass="none", geometry="caffe", channels=3, seed=0, **fields):
    """Random parameters that half precision holds exactly, so that every round trip must be exact."""
    arch = tiny_arch(version, bypass, geometry)
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(arch, channels=channels, num_classes=CLASSES)
    flat = {name: rng.integers(-64, 64, shape).astype(np.float32) / 64 for name, shape in shapes.items()}
    grey = dataclasses.replace(PREPROCESSINGS["caffe"], channel_order="L", mean=(0.0,), std=(1.0,))
    preprocessing = grey if channels == 1 else PREPROCESSINGS["torchvision" if geometry == "torchvision" else "caffe"]
    return Weights(arch, unflatten(flat), CLASSES, channels, **{"preprocessing": preprocessing, **fields})


def small_images(weights, crop=33):
    """The same weights for images of `crop` px, which need little arithmetic."""
    preprocessing = dataclasses.replace(weights.preprocessing, name="small", resize=crop + 7, crop=crop)
    return dataclasses.replace(weights, preprocessing=preprocessing)


def assert_same_params(a, b):
    a, b = flatten(a), flatten(b)
    assert sorted(a) == sorted(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def oihw(flat):
    return {name: x.transpose(3, 2, 0, 1) if x.ndim == 4 else x for name, x in flat.items()}


def state_dict(weights, kind="Float"):
    """torchvision's keys, OIHW."""
    flat, table = oihw(flatten(weights.params)), key_table(weights.arch)
    return {key: np.ascontiguousarray(flat[name], DTYPES[kind]) for name, key in table.items()}


# -- Caffe ---------------------------------------------------------------------------------------------------------


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def field(number, content):
    """One protobuf field: a varint for an int, length-delimited for bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(x, *, old=False, double=False):
    data = field(8, x.astype("<f8").tobytes()) if double else field(5, x.astype("<f4").tobytes())
    if not old:
        return field(7, field(1, b"".join(map(varint, x.shape)))) + data
    dims = (1,) * (4 - x.ndim) + x.shape
    return b"".join(field(number, dim) for number, dim in enumerate(dims, start=1)) + data


def caffemodel(params, *, old=False, double=False, sums=0, extra=b"", activated=()):
    """A NetParameter with a data layer, the convolutions and `sums` Eltwise layers, in the old or new layer format.

    The convolutions that are `activated` have a ReLU layer behind them, as all have in a file that was not stripped.
    """
    flat = oihw(flatten(params))
    layers = [("data", "Data", [])]
    layers += [(f"bypass_{i}", "Eltwise", []) for i in range(sums)]
    for name in [name.removesuffix("/kernel") for name in flat if name.endswith("/kernel")]:
        layers.append((name, "Convolution", [flat[f"{name}/kernel"], flat[f"{name}/bias"]]))
    layers += [(f"relu_{name}", "ReLU", []) for name in activated]
    numbers = {"Data": 5, "Eltwise": 25, "Convolution": 4, "ReLU": 18}
    content = field(1, b"SqueezeNet")
    for name, kind, arrays in layers:
        parts = [(4, name.encode()), (5, numbers[kind])] if old else [(1, name.encode()), (2, kind.encode())]
        blobs = name.removeprefix("relu_").encode()  # Caffe's names of what layers read and write: in place, here
        parts += [(number, blobs) for number in ((2, 3) if old else (3, 4)) if kind in ("ReLU", "Convolution")]
        parts += [(6 if old else 7, blob(x, old=old, double=double)) for x in arrays]
        content += field(2 if old else 100, b"".join(field(*part) for part in parts))
    return content + extra


# -- torch ---------------------------------------------------------------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def integers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def strides_of(x):
    return [stride // x.itemsize for stride in x.strides]


def tensor_pickle(x, key, kind, legacy):
    view = b"N" if legacy else b""
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + integer(x.size)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage[1:] + view + b"tQ" + integer(0)
    return rebuild + integers(x.shape) + integers(strides_of(x)) + b"\x89ccollections\nOrderedDict\n)RtR"


def dict_pickle(tensors, kind="Float", *, legacy=False):
    """The pickle of an OrderedDict of tensors, whose storages are numbered in order."""
    items = b"".join(text(name) + tensor_pickle(x, str(i), kind, legacy) for i, (name, x) in enumerate(tensors.items()))
    metadata = b"}" + text("_metadata") + b"}sb"  # BUILD, as for a module's state dict
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u" + metadata + b"."


def torch_zip(tensors, kind="Float", *, content=None, root="archive", compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", dict_pickle(tensors, kind) if content is None else content)
        archive.writestr(f"{root}/byteorder", "little")
        for i, x in enumerate(tensors.values()):
            archive.writestr(f"{root}/data/{i}", x.tobytes(order="A"))
        archive.writestr(f"{root}/version", "3\n")
    return buffer.getvalue()


def torch_legacy(tensors, kind="Float", *, content=None):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [0x1950A86A20F9469CFC6C, 1001, system]
    out = b"".join(pickle.dumps(value, 2) for value in head)
    out += dict_pickle(tensors, kind, legacy=True) if content is None else content
    out += pickle.dumps([str(i) for i in range(len(tensors))], 2)
    return out + b"".join(struct.pack("<q", x.size) + x.tobytes(order="A") for x in tensors.values())


# -- Deep Compression ------------------------------------------------------------------------------------------------


def deep_compression(params):
    """The .net file of parameters whose kernels have at most 255 distinct non-zero values each."""
    flat = oihw(flatten(params))
    counts, layers = [], []
    for name in [name.removesuffix("/kernel") for name in flat if name.endswith("/kernel")]:
        kernel = flat[f"{name}/kernel"].ravel()
        values = np.unique(kernel[kernel != 0])
        codebook = np.zeros(256, "<f4")
        codebook[1 : 1 + len(values)] = values
        codes, gaps, last = [], [], -1
        for position in np.flatnonzero(kernel):
            while position - last > 16:  # fillers, each as far as 4 bits go
                codes.append(0)
                gaps.append(15)
                last += 16
            codes.append(1 + int(np.searchsorted(values, kernel[position])))
            gaps.append(int(position - last - 1))
            last = position
        padded = gaps + [0] * (len(gaps) % 2)
        nibbles = bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))
        counts.append(len(codes))
        layers.append(codebook.tobytes() + flat[f"{name}/bias"].astype("<f4").tobytes() + bytes(codes) + nibbles)
    return struct.pack(f"<{len(counts)}I", *counts) + b"".join(layers)


def sparse(weights, keep=0.1, seed=1):
    """The same network with most weights zero."""
    rng = np.random.default_rng(seed)
    flat = {name: x * (rng.random(x.shape) < keep) if x.ndim == 4 else x for name, x in flatten(weights.params).items()}
    return dataclasses.replace(weights, params=unflatten(flat))


def refused(path, message, **options):
    with pytest.raises(UserError, match=message) as caught:
        weights.load(path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def without(tensors, name):
    return {key: x for key, x in tensors.items() if key != name}


# -- torch's checkpoints: anything beside the state dict ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Name:
    """A global that a pickle asks for."""

    module: str
    attribute: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that a pickle asks for: by REDUCE, or by NEWOBJ for `is_new`, then BUILD with `state`, then its items."""

    name: Name
    arguments: tuple = ()
    state: object = None
    items: tuple = ()
    is_new: bool = False


@dataclasses.dataclass(frozen=True)
class Tensor:
    x: np.ndarray
    kind: str = "Float"
    parameter: bool = False


class Pickler(pickle._Pickler):
    """Python's own, with names that cannot be imported here, tensors, and Python 2's way to write text."""

    def __init__(self, stream, protocol, legacy, python2):
        super().__init__(stream, protocol)
        self.arrays, self.legacy, self.python2 = [], legacy, python2

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            self.write(f"c{value.module}\n{value.attribute}\n".encode())
        elif isinstance(value, Call):
            self.save(value.name)
            self.save(value.arguments)
            self.write(pickle.NEWOBJ if value.is_new else pickle.REDUCE)
            self._batch_setitems(iter(value.items))
            if value.state is not None:
                self.save(value.state)
                self.write(pickle.BUILD)
        elif isinstance(value, Tensor):
            tensor = tensor_pickle(value.x, str(len(self.arrays)), value.kind, self.legacy)
            self.arrays.append(value.x)
            end = b"\x88ccollections\nOrderedDict\n)RtR"
            parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor + end
            self.write(parameter if value.parameter else tensor)
        elif self.python2 and type(value) is str:
            data = value.encode("latin1")
            self.write(
                b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data
            )
        else:
            super().save(value, save_persistent_id)


def checkpoint(value, *, legacy=False, protocol=2, python2=False):
    """The file that `torch.save(value)` writes."""
    stream = io.BytesIO()
    pickler = Pickler(stream, protocol, legacy, python2)
    pickler.dump(value)
    arrays = {str(i): x for i, x in enumerate(pickler.arrays)}
    return (torch_legacy if legacy else torch_zip)(arrays, content=stream.getvalue())


def tensors(state, kind="Float", *, prefix="", parameter=False):
    return {prefix + key: Tensor(x, kind, parameter) for key, x in state.items()}
