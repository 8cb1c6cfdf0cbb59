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

import codecs
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import caffemodel, deep_compression, run_directory, safetensors_file, torch_pickle
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Preprocessing, Weights, preprocessing_named
from squeezenet_jax.weights.infer import Wishes
from squeezenet_jax.weights.safetensors_file import LAYOUTS
from squeezenet_jax.weights.torchvision_layout import ASSUMED

__all__ = ["LAYOUTS", "PREPROCESSINGS", "Preprocessing", "Weights", "load", "read_labels", "save"]

MAX_LABELS_BYTES = 1 << 24
MAX_BYTES = 1 << 28  # ten times the largest SqueezeNet of the paper (SR 1.0, 24 MB)
Reader = Callable[[bytes, Wishes, Mapping[str, str]], Weights]


def load(
    path: str | os.PathLike[str],
    *,
    preprocessing: str | None = None,
    bypass: str | None = None,
    labels: str | os.PathLike[str] | Sequence[str] | None = None,
) -> Weights:
    """Reads weights of any known format, told by suffix and, for other suffixes, by content.

    Example: `load("squeezenet1_1.pth", preprocessing="caffe", labels="imagenet_labels.txt")`.

    Args:
      preprocessing: "caffe" or "torchvision", overrides the file's; where a format records no geometry either, it
        brings its own geometry along.
      bypass: "none" or "simple", says what formats cannot: a simple bypass has no parameters.
      labels: the class names in class order, or the path of a file with one a line; overrides the file's.

    Raises `UserError`, with the path, for files that are missing, damaged, hostile or of another network.
    """
    path = Path(path)
    wishes = Wishes(None if preprocessing is None else preprocessing_named(preprocessing), bypass)
    names = read_labels(labels) if isinstance(labels, str | os.PathLike) else labels
    try:
        weights = _load(path, wishes)
        if wishes.preprocessing is not None:
            provenance = {key: value for key, value in weights.provenance.items() if key != ASSUMED}
            weights = dataclasses.replace(weights, preprocessing=wishes.preprocessing, provenance=provenance)
        if names is not None:
            weights = dataclasses.replace(weights, labels=tuple(names))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return weights


def save(path: str | os.PathLike[str], weights: Weights, layout: str = "squeezenet_jax") -> None:
    """Writes a .safetensors file in a layout of `LAYOUTS`, in one step: a kill leaves the old file or the new."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors")
    content = safetensors_file.write(weights, layout)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def read_labels(path: str | os.PathLike[str], field: str = "labels") -> tuple[str, ...]:
    """Class names from a file with one a line, in class order. `UserError`, which begins with `field`, otherwise."""
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > MAX_LABELS_BYTES:
            raise UserError(f"{field}: {path} is not a file of class names")
        content = path.read_bytes()
        text = content.decode(_encoding(content))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its text is neither UTF-8 nor UTF-16"
        raise UserError(f"{field}: {path} cannot be read ({reason})") from None
    return tuple(line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip())


def _encoding(content: bytes) -> str:
    """UTF-8 or UTF-16, with or without a byte-order mark."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name, high in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        if 2 * high.count(0) > len(high):  # most class names are written in Latin letters
            return name
    return "utf-8-sig"


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
