"""The description of a network as JSON text: architecture, preprocessing, classes, provenance; strict on the way back.

It is the value of the key `METADATA_KEY` in the metadata of the .safetensors files that this project writes.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.system import fields
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import Preprocessing, Weights, listing

METADATA_KEY = "squeezenet_jax"
VERSION = 1
MAX_CONFIG_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Description:
    """`Weights` without its parameters."""

    version: int
    architecture: Architecture
    num_classes: int
    channels: int
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    provenance: dict[str, str] = dataclasses.field(default_factory=dict)

    def with_params(
        self, params: Mapping[str, np.ndarray], codebooks: Mapping[str, np.ndarray] | None = None
    ) -> Weights:
        return Weights(
            self.architecture,
            params,
            self.num_classes,
            self.channels,
            self.preprocessing,
            self.labels,
            self.provenance,
            codebooks or {},
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
    return fields.convert(Description, value, "metadata")


def class_names(config: Path, num_classes: int) -> tuple[str, ...]:
    """Those in a model hub's `config.json`, {"id2label": {"0": "tench", ...}}; empty where it does not name all K."""
    try:
        with config.open("rb") as file:
            value = parse_json(file.read(MAX_CONFIG_BYTES), config.name)
    except (OSError, UserError):  # absent, or another program's
        return ()
    by_number = value.get("id2label") if isinstance(value, dict) else None
    if not isinstance(by_number, dict):
        return ()
    names = [name for k in range(num_classes) if isinstance(name := by_number.get(str(k)), str)]
    return tuple(names) if len(names) == num_classes == len(by_number) else ()


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
