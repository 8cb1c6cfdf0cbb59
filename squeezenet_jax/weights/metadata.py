"""The description of a network as JSON text: architecture, preprocessing, classes, provenance; strict on the way back.

It is the value of the key `METADATA_KEY` in the metadata of the .safetensors files that this project writes.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np

from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Preprocessing, Weights, listing

METADATA_KEY = "squeezenet_jax"
VERSION = 1

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Description:
    """`Weights` without its parameters."""

    version: int
    architecture: Architecture
    num_classes: int
    channels: int
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    provenance: dict[str, str]

    def with_params(self, params: Mapping[str, np.ndarray]) -> Weights:
        return Weights(
            self.architecture,
            params,
            self.num_classes,
            self.channels,
            self.preprocessing,
            self.labels,
            self.provenance,
        )


def describe(weights: Weights) -> str:
    """JSON text that `parse` reads back to an equal description."""
    description = Description(
        VERSION,
        weights.arch,
        weights.num_classes,
        weights.channels,
        weights.preprocessing,
        weights.labels,
        dict(weights.provenance),
    )
    return json.dumps(dataclasses.asdict(description), allow_nan=False)


def parse(text: str) -> Description:
    """Reads `describe`'s text; anything else raises `UserError`."""
    value = parse_json(text, "metadata")
    if isinstance(value, dict) and value.get("version", VERSION) != VERSION:
        raise UserError(f"metadata: version {listing([value['version']])} is not {VERSION}, the one known here")
    return convert(Description, value, "metadata")


def architecture_to_json(arch: Architecture) -> dict[str, Any]:
    return dataclasses.asdict(arch)


def architecture_from_json(value: Any) -> Architecture:
    """The inverse of `architecture_to_json`, also after a passage through JSON, which turns tuples into lists."""
    return convert(Architecture, value, "architecture")


def parse_json(text: str | bytes, what: str) -> Any:
    """`json.loads` without its surprises: NaN, repeated keys and too much nesting are refused, with `UserError`."""

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not a number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: not valid JSON ({' '.join(str(error).split())[:100]})") from None


def convert(kind: type[T], value: Any, field: str) -> T:
    """A frozen dataclass from nested plain values: no field unknown, missing without a default, or of another type."""
    if not isinstance(value, dict):
        raise UserError(f"{field}: is not a group of fields")
    hints = typing.get_type_hints(kind)
    optional = {f.name for f in dataclasses.fields(typing.cast(Any, kind)) if f.default is not dataclasses.MISSING}
    missing = [name for name in hints if name not in value and name not in optional]
    surplus = [name for name in value if name not in hints]
    if missing or surplus:
        raise UserError(f"{field}: missing fields: {listing(missing) or 'none'}; unknown: {listing(surplus) or 'none'}")
    given = {name: hint for name, hint in hints.items() if name in value}
    return kind(**{name: _convert(hint, value[name], f"{field}.{name}") for name, hint in given.items()})


def _convert(hint: Any, value: Any, field: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return convert(typing.cast(type, hint), value, field)
    if origin is tuple and isinstance(value, list | tuple):  # tuple[X, ...]
        return tuple(_convert(arguments[0], item, field) for item in value)
    if origin is dict and isinstance(value, dict):  # JSON's keys are strings
        return {key: _convert(arguments[1], item, field) for key, item in value.items()}
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if hint is float and type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    if type(value) is hint and hint is not float:
        return value
    wanted = ", ".join(map(str, arguments)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{field}: {listing([repr(value)[:60]])} is not allowed; it must be {wanted}")
