"""Published weights in, portable files out: `load` any known format, `save` as .safetensors.

| format                                  | reader                | knows its own architecture and preprocessing       |
|-----------------------------------------|-----------------------|----------------------------------------------------|
| .safetensors of this project            | `safetensors_file`    | yes                                                |
| .safetensors with torchvision's names   | `safetensors_file`    | no: torchvision's, save DeepScale's known weights |
| .pth, .pt of torch.save                 | `torch_pickle`        | no: torchvision's, unless the user says caffe      |
| .caffemodel                             | `caffemodel`          | Caffe's; a simple bypass is told by its layers     |
| .net (Deep Compression)                 | `deep_compression`    | Caffe's v1.0                                       |
| a run's directory                       | `run_directory`       | yes                                                |

Nothing in a file is trusted: whatever does not fit raises `UserError` with one line. Read next: `bundle.py`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import caffemodel, deep_compression, run_directory, safetensors_file, torch_pickle
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Preprocessing, Weights, preprocessing_named
from squeezenet_jax.weights.infer import Wishes
from squeezenet_jax.weights.safetensors_file import LAYOUTS

__all__ = ["LAYOUTS", "PREPROCESSINGS", "Preprocessing", "Weights", "load", "save"]

MAX_BYTES = 1 << 28  # ten times the largest SqueezeNet of the paper (SR 1.0, 24 MB)
Reader = Callable[[bytes, Wishes, Mapping[str, str]], Weights]


def load(path: str | os.PathLike[str], *, preprocessing: str | None = None, bypass: str | None = None) -> Weights:
    """Reads weights of any known format, told by suffix and, for other suffixes, by content.

    `preprocessing` ("caffe", "torchvision") overrides the file's; where a format records no geometry either, it brings
    its own geometry along. `bypass` ("none", "simple") says what formats cannot: a simple bypass has no parameters.
    Raises `UserError`, with the path, for files that are missing, damaged, hostile or of another network.
    """
    path = Path(path)
    wishes = Wishes(None if preprocessing is None else preprocessing_named(preprocessing), bypass)
    try:
        weights = _load(path, wishes)
        if wishes.preprocessing is not None:
            weights = dataclasses.replace(weights, preprocessing=wishes.preprocessing)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return weights


def save(path: str | os.PathLike[str], weights: Weights, layout: str = "squeezenet_jax") -> None:
    """Writes a .safetensors file in a layout of `LAYOUTS`, in one step: a kill leaves the old file or the new."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors")
    content = safetensors_file.write(weights, layout)
    try:
        atomic.write(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _load(path: Path, wishes: Wishes) -> Weights:
    if path.is_dir():
        return run_directory.read(path, wishes, {"source": path.absolute().name, "format": "run"})
    if not path.is_file():  # also a device or a pipe, which might never end
        raise UserError("no such file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"is larger than {MAX_BYTES >> 20} MiB; no SqueezeNet is")
    name, reader = _reader(content, path.suffix)
    provenance = {"source": path.name, "format": name, "sha256": hashlib.sha256(content).hexdigest()}
    return reader(content, wishes, provenance)


def _reader(content: bytes, suffix: str) -> tuple[str, Reader]:
    """By suffix where it is known: two of the formats have no signature and may begin like any of the others."""
    torch, safe = ("torch", torch_pickle.read), ("safetensors", safetensors_file.read)
    by_suffix: dict[str, tuple[str, Reader]] = {
        ".safetensors": safe,
        ".pth": torch,
        ".pt": torch,
        ".net": ("deep compression", deep_compression.read),
        ".caffemodel": ("caffemodel", caffemodel.read),
    }
    if suffix in by_suffix:
        return by_suffix[suffix]
    if safetensors_file.looks_like(content):
        return safe
    if torch_pickle.looks_like(content):
        return torch
    raise UserError(f"is of no known format: neither {', '.join(by_suffix)} nor a run's directory")
