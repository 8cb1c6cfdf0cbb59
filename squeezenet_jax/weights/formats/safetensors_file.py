"""The .safetensors format: this project's own layout, and torchvision's.

Own layout: '/'-joined parameter names ("fire2/squeeze1x1/kernel", HWIO, float32), and in the file's metadata one key,
`squeezenet_jax`, with the JSON text of `metadata.py`. Files that are written in torchvision's layout carry the same
text, so that reading them back loses nothing; in files by others it is absent.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from squeezenet_jax.system.errors import UserError, check_choice
from squeezenet_jax.weights.bundle import Weights, check_shapes, flatten, listing, parameter_shapes, unflatten
from squeezenet_jax.weights.formats import metadata, state_dicts, torchvision_layout
from squeezenet_jax.weights.formats.infer import FLOAT_TYPES, Described, Wishes, decode_floats, to_float32

MAX_HEADER = 1 << 24  # bytes; nearly all of it class names
LAYOUTS = ("squeezenet_jax", "torchvision")


@dataclasses.dataclass(frozen=True)
class Stored(Described):
    data: bytes | bytearray | memoryview

    def decode(self) -> np.ndarray:
        return decode_floats(self.data, self.kind).reshape(self.shape)


def looks_like(content: bytes) -> bool:
    """A header length that fits in the file, then the header's opening brace."""
    return len(content) > 9 and content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def read(content: bytes, wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """Either layout. F16, BF16, F32 and F64 tensors become float32."""
    stored, text = _parse(content)
    if text is None:
        candidates = state_dicts.find(stored)
        if not candidates:
            raise UserError(
                f"has neither this project's metadata nor torchvision's names, but tensors {listing(stored) or 'none'}"
            )
        chosen, taken = state_dicts.choose(candidates, wishes.state_dict)
        tensors = {name: x.decode() for name, x in chosen.items()}
        return torchvision_layout.read(tensors, wishes, {**provenance, **taken})
    wishes.refuse_bypass("the file")
    wishes.refuse_state_dict("the file")
    for name, x in stored.items():
        if x.kind not in FLOAT_TYPES:
            allowed = ", ".join(FLOAT_TYPES)
            raise UserError(f"{listing([name])}: type {x.kind} is not allowed; it must be one of {allowed}")
    tensors = {name: x.decode() for name, x in stored.items()}
    description = metadata.parse(text)
    expected = parameter_shapes(
        description.architecture, channels=description.channels, num_classes=description.num_classes
    )
    if torchvision_layout.FIRST_KEY in tensors:
        table = torchvision_layout.names_of({key: x.shape for key, x in tensors.items()})
        tensors = torchvision_layout.rename(tensors, table)
    check_shapes({name: x.shape for name, x in tensors.items()}, expected)
    params = unflatten({name: to_float32(tensors[name]) for name in expected})
    return description.with_params(params)


def write(weights: Weights, layout: str) -> bytes:
    """The file's content. `torchvision` raises `UserError` for a network that torchvision's names cannot express."""
    if check_choice("layout", layout, LAYOUTS) == "torchvision":
        weights = weights.folded()
        tensors = torchvision_layout.state_dict(weights)
    else:
        tensors = {name: np.ascontiguousarray(x) for name, x in flatten(weights.params).items()}
    text = metadata.describe(weights)
    if len(text) > MAX_HEADER // 4:  # JSON inside of JSON: every quotation mark is escaped once more
        raise UserError(f"labels and provenance are too long for a file: {len(text)} characters")
    return safetensors.numpy.save(tensors, {metadata.METADATA_KEY: text})


def _parse(content: bytes) -> tuple[dict[str, Stored], str | None]:
    """(tensors, this project's metadata text). The library checks lengths, offsets and types before it copies."""
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER:  # the library would parse 100 MB of it
        raise UserError(f"not a valid .safetensors file (a header of {length} bytes)")
    try:
        parsed: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise UserError(f"not a valid .safetensors file ({listing([' '.join(str(error).split())])})") from None
    header = metadata.parse_json(content[8 : 8 + length], "safetensors header")
    stored = {name: Stored(x["dtype"], tuple(x["shape"]), x["data"]) for name, x in parsed}
    return stored, header.get("__metadata__", {}).get(metadata.METADATA_KEY)
