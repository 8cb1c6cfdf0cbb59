"""torch.save's files (.pth, .pt) without torch: the zip format since 1.6 and the stream of pickles before it.

A pickle is a program; loading one runs it. Here no pickle is loaded. `pickle_values.py` walks its opcodes and only
ever builds plain values and records, `state_dicts.py` finds the state dict among them, and what lies beside it is left
alone. What remains is to check whether the tensors that it describes lie within the storages that the file holds.
"""

import functools
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Weights, listing
from squeezenet_jax.weights.formats import state_dicts, torchvision_layout
from squeezenet_jax.weights.formats.infer import Wishes, decode_floats
from squeezenet_jax.weights.formats.pickle_values import Global, Opaque, Storage, Tensor, read_pickle

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py: MAGIC_NUMBER, then PROTOCOL_VERSION
LEGACY_PROTOCOL = 1001
MAX_MEMBERS = 20_000
MAX_PICKLE = 1 << 26  # nearly all of it histories and arrays of numpy
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, OverflowError)

Fetch = Callable[[Storage], bytes | memoryview]


def looks_like(content: bytes) -> bool:
    return content.startswith((ZIP_MAGIC, b"\x80"))


def read(content: bytes, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """A state dict with torchvision's names, wherever in the file, and whatever wrappers put before them."""
    if not looks_like(content):
        raise UserError("not a file of torch.save: neither a zip archive nor a pickle")
    value, fetch = _read_zip(content) if content.startswith(ZIP_MAGIC) else _read_legacy(content)
    candidates = state_dicts.find(value)
    if not candidates:
        raise _nothing_in(value)
    described, taken = state_dicts.choose(candidates, wishes.state_dict)
    fetch = functools.lru_cache(maxsize=1)(fetch)  # tensors may share a storage
    tensors = {key: _materialise(tensor, key, fetch) for key, tensor in described.items()}
    return torchvision_layout.read(tensors, wishes, {**provenance, **taken})


def _nothing_in(value: Any) -> UserError:
    if isinstance(value, Opaque | Global):
        asked = listing([value.name.replace(" ", ".")])
        return UserError(f"refused: the pickle asks for {asked}; save model.state_dict(), names to tensors")
    keys = listing(key for key in value if isinstance(key, str)) if isinstance(value, dict) else ""
    return UserError(
        f"not a state dict of torchvision's SqueezeNet: {torchvision_layout.FIRST_KEY} is missing; "
        + (f"the file has {keys}" if keys else "the file has no names")
    )


def _materialise(tensor: Tensor, key: str, fetch: Fetch) -> np.ndarray:
    """The tensor's values, copied out of its storage; any strides that stay inside it."""
    flat = decode_floats(fetch(tensor.storage), tensor.kind)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) > flat.size or last >= flat.size:
        raise UserError(f"{listing([key])}: reaches outside of its storage of {flat.size} values")
    strides = [stride * flat.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
    return view.copy()


def _size(storage: Storage) -> int:
    return storage.numel * storage.itemsize


def _read_zip(content: bytes) -> tuple[Any, Fetch]:
    if content.count(b"PK\x01\x02") > MAX_MEMBERS:  # `ZipFile` makes an object for each member, before any check
        raise UserError(f"the archive has more than {MAX_MEMBERS} members")
    archive = _zip_errors(lambda: zipfile.ZipFile(io.BytesIO(content)))
    members = {member.filename: member for member in archive.infolist()}

    def member(name: str, size: int | None, most: int) -> bytes:
        info = members.get(name)
        if info is None:
            raise UserError(f"the archive has no member {listing([name])}")
        # torch stores without compression, so a member is never larger than the file itself.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > most:
            raise UserError(f"the archive's member {listing([name])} is compressed or too large")
        if size is not None and info.file_size != size:
            raise UserError(f"the archive's member {listing([name])} has {info.file_size} bytes instead of {size}")
        data: bytes = _zip_errors(lambda: archive.read(info))
        return data

    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(roots) != 1:
        raise UserError(f"not a file of torch.save: {len(roots)} members are called data.pkl")
    root = roots[0]
    if f"{root}byteorder" in members and member(f"{root}byteorder", None, 100) != b"little":
        raise UserError("its byte order is not little-endian")
    value = read_pickle(io.BytesIO(member(f"{root}data.pkl", None, MAX_PICKLE)), MAX_PICKLE)
    return value, lambda storage: member(f"{root}data/{storage.key}", _size(storage), len(content))


def _zip_errors(action: Callable[[], Any]) -> Any:
    """Whatever `zipfile` raises for a damaged archive, as a `UserError`."""
    try:
        return action()
    except ZIP_ERRORS as error:
        raise UserError(f"not a valid zip archive ({listing([' '.join(str(error).split())])})") from None


def _read_legacy(content: bytes) -> tuple[Any, Fetch]:
    """Five pickles (magic, protocol, system, value, storage keys), then every storage: int64 length, raw values."""
    stream = io.BytesIO(content)
    if read_pickle(stream, MAX_PICKLE) != LEGACY_MAGIC:
        raise UserError("a pickle, but not one of torch.save")
    protocol, system = read_pickle(stream, MAX_PICKLE), read_pickle(stream, MAX_PICKLE)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise UserError("not a file of torch.save: its first pickles are not torch's")
    if system.get("little_endian", True) is not True:
        raise UserError("its byte order is not little-endian")
    storages: dict[str, Storage] = {}
    value = read_pickle(stream, MAX_PICKLE, storages)
    keys = read_pickle(stream, MAX_PICKLE)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise UserError("its list of storages does not match its tensors")
    data: dict[str, memoryview] = {}
    position, view = stream.tell(), memoryview(content)
    for key in keys:
        numel, size = int.from_bytes(view[position : position + 8], "little"), _size(storages[key])
        if numel != storages[key].numel or size > len(view) - position - 8:
            raise UserError(f"truncated or damaged: storage {listing([key])} claims {numel} values")
        data[key] = view[position + 8 : position + 8 + size]
        position += 8 + size
    if position != len(view):
        raise UserError(f"{len(view) - position} bytes are left behind the last storage")
    return value, lambda storage: data[storage.key]
