"""Published weights in, portable files out: `load` any known format, `save` as .safetensors, .sqz or .net.

| format                                  | reader                | knows its own architecture and preprocessing       |
|-----------------------------------------|-----------------------|----------------------------------------------------|
| .safetensors of this project            | `safetensors_file`    | yes                                                |
| .safetensors with torchvision's names   | `safetensors_file`    | no: torchvision's, save DeepScale's known weights  |
| .pth, .pt, .ckpt, .bin of torch.save    | `torch_pickle`        | no: torchvision's, unless the user says caffe      |
| .caffemodel                             | `caffemodel`          | Caffe's; a simple bypass is told by its layers     |
| .net (Deep Compression)                 | `deep_compression`    | Caffe's v1.0                                       |
| .sqz, compressed                        | `compressed`          | yes                                                |
| a run's directory                       | `run_directory`       | yes                                                |
| a folder of a model hub                 | the one that fits     | as the weights file in it                          |
| `torchvision:NAME`, `hf:OWNER/NAME`     | `named` downloads it  | torchvision's; as the weights file                 |

Nothing in a file is trusted: whatever does not fit raises `UserError` with one line. Read next: `bundle.py`.
"""

import codecs
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import named
from squeezenet_jax.weights.bundle import (
    MAX_BYTES,
    MAX_FILES,
    PREPROCESSINGS,
    Preprocessing,
    Weights,
    listing,
    preprocessing_named,
)
from squeezenet_jax.weights.formats import (
    caffemodel,
    compressed,
    deep_compression,
    run_directory,
    safetensors_file,
    torch_pickle,
)
from squeezenet_jax.weights.formats.infer import Wishes
from squeezenet_jax.weights.formats.metadata import class_names, parse_json
from squeezenet_jax.weights.formats.safetensors_file import LAYOUTS
from squeezenet_jax.weights.formats.torchvision_layout import ASSUMED

__all__ = ["LAYOUTS", "PREPROCESSINGS", "Preprocessing", "Weights", "load", "read_labels", "save"]

MAX_LABELS_BYTES = 1 << 24
MAX_TEXT_BYTES = 1 << 16
Reader = Callable[[bytes, Wishes, Mapping[str, str]], Weights]
READERS: dict[str, tuple[str, Reader]] = {
    ".safetensors": ("safetensors", safetensors_file.read),
    ".pth": ("torch", torch_pickle.read),
    ".pt": ("torch", torch_pickle.read),
    ".net": ("deep compression", deep_compression.read),
    ".caffemodel": ("caffemodel", caffemodel.read),
    ".sqz": ("compressed", compressed.read),
}
SUFFIXES = (*READERS, ".bin", ".ckpt", ".tar")  # of a hub's files; the last three too are torch.save's, by content
WRITERS: dict[str, Callable[[Weights], bytes]] = {".sqz": compressed.write, ".net": deep_compression.write}


def load(
    path: str | os.PathLike[str],
    *,
    preprocessing: str | None = None,
    bypass: str | None = None,
    state_dict: str | None = None,
    labels: str | os.PathLike[str] | Sequence[str] | None = None,
) -> Weights:
    """Reads weights of any known format, told by suffix and, for other suffixes, by content.

    Examples: `load("squeezenet1_1.pth", preprocessing="caffe", labels="imagenet_labels.txt")`,
    `load("torchvision:squeezenet1_1")`.

    Args:
      path: A file, a run's directory or a folder of a model hub; or, as a `str`, the name of weights that are
        downloaded when they are first asked for: "torchvision:squeezenet1_0", "torchvision:squeezenet1_1" or
        "hf:OWNER/NAME", with "@REVISION" and "/FILE" where wanted.
      preprocessing: "caffe" or "torchvision", overrides the file's; where a format records no geometry either, it
        brings its own geometry along.
      bypass: "none" or "simple", says what formats cannot: a simple bypass has no parameters.
      state_dict: "model_ema", names one of several networks in a checkpoint; which was taken is in the provenance.
      labels: the class names in class order, or the path of a file with one a line; overrides the file's.

    Raises `UserError`, with the path, for files that are missing, damaged, hostile or of another network.
    """
    wishes = Wishes(None if preprocessing is None else preprocessing_named(preprocessing), bypass, state_dict)
    names = read_labels(labels) if isinstance(labels, str | os.PathLike) else labels
    try:
        found = locate(path)
        if wishes.preprocessing is None and found.preprocessing is not None:
            wishes = dataclasses.replace(wishes, preprocessing=preprocessing_named(found.preprocessing))
        weights = _load(found.path, wishes)
        if found.name:
            weights = dataclasses.replace(weights, provenance={**weights.provenance, "name": found.name})
        if wishes.preprocessing is not None:
            provenance = {key: value for key, value in weights.provenance.items() if key != ASSUMED}
            weights = dataclasses.replace(weights, preprocessing=wishes.preprocessing, provenance=provenance)
        if names is not None:
            weights = dataclasses.replace(weights, labels=tuple(names))
    except UserError as error:
        raise UserError(f"{os.path.expanduser(path)}: {error}") from None
    return weights


def locate(path: str | os.PathLike[str]) -> named.Found:
    """Where weights lie: what has a name is downloaded first, unless it is here; a `Path` is never a name."""
    found = named.find(path, SUFFIXES) if isinstance(path, str) else None
    if found is None:
        found = named.Found(storage.brought(path), "", None)
    return found


def save(path: str | os.PathLike[str], weights: Weights, layout: str = "squeezenet_jax") -> None:
    """Writes a file, in one step: a kill leaves the old file or the new. The suffix says which format:

    - .safetensors: any network, in a layout of `LAYOUTS`;
    - .sqz, compressed: a network whose layers have few different weights each, as quantised ones do;
    - .net, the authors' Deep Compression file: v1.0 of Caffe's with at most 255 different weights in a layer; it has no
      room for class names and origin.
    """
    path = storage.expand(path, "path")
    check_suffix(path, layout)
    try:
        if writer := WRITERS.get(path.suffix.lower()):
            content = writer(weights)
        else:
            content = safetensors_file.write(weights, layout)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    try:
        atomic.write(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def check_suffix(path: Path, layout: str = LAYOUTS[0]) -> None:
    """Raises `UserError` where `save` would refuse the path or the layout whatever the weights are."""
    allowed = (".safetensors", *WRITERS)
    if path.suffix.lower() not in allowed:
        raise UserError(f"{path}: weights are written as {', '.join(allowed)}")
    if path.suffix.lower() in WRITERS and layout != LAYOUTS[0]:
        raise UserError(f"{path}: layout {layout} is one of .safetensors only")


def read_labels(path: str | os.PathLike[str], field: str = "labels") -> tuple[str, ...]:
    """Class names from a file with one a line, in class order. `UserError`, which begins with `field`, otherwise."""
    path = storage.brought(path, field)
    try:
        if not path.is_file() or path.stat().st_size > MAX_LABELS_BYTES:
            raise UserError(f"{field}: {path} is not a file of class names")
        content = path.read_bytes()
        text = content.decode(_encoding(content))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its text is not in UTF-8, UTF-16 or UTF-32"
        raise UserError(f"{field}: {path} cannot be read ({reason})") from None
    return tuple(line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip())


def _encoding(content: bytes) -> str:
    """UTF-8 or UTF-16, with or without a byte-order mark, or UTF-32 with one."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # its first half is that of UTF-16
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name, high in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        if 2 * high.count(0) > len(high):  # most class names are written in Latin letters
            return name
    return "utf-8-sig"


def _load(path: Path, wishes: Wishes) -> Weights:
    try:
        if path.is_dir():
            if not (path / "run.json").exists():
                return _load_from_folder(path, wishes)
            wishes.refuse_state_dict("a run")
            return run_directory.read(path, wishes, {"source": path.absolute().name, "format": "run"})
        if not path.is_file():  # also a device or a pipe, which might never end
            raise UserError("no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"is larger than {MAX_BYTES >> 20} MiB; no SqueezeNet is")
    suffix = path.suffix.lower()
    if what := _something_else(content, is_text_possible=suffix not in READERS):
        raise UserError(what)
    name, reader = _reader(content, suffix)
    if name not in ("torch", "safetensors"):
        wishes.refuse_state_dict("the file")
    provenance = {"source": path.name, "format": name, "sha256": hashlib.sha256(content).hexdigest()}
    return reader(content, wishes, provenance)


def _reader(content: bytes, suffix: str) -> tuple[str, Reader]:
    """By suffix where it is known: two of the formats have no signature and may begin like any of the others."""
    if suffix in READERS:
        return READERS[suffix]
    if safetensors_file.looks_like(content):
        return READERS[".safetensors"]
    if torch_pickle.looks_like(content):
        return READERS[".pth"]
    if compressed.looks_like(content):
        return READERS[".sqz"]
    raise UserError(f"is of no known format: neither {', '.join(READERS)} nor a run's directory")


def _load_from_folder(path: Path, wishes: Wishes) -> Weights:
    """The one weights file in a folder of a model hub, which has descriptions and other frameworks' files beside it."""
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()]
    read: dict[str, Weights] = {}
    problems: list[str] = []
    for file in files[:MAX_FILES]:
        try:
            read[file.name] = _load(file, wishes)
        except UserError as error:
            problems.append(f"{listing([file.name])}: {error}")
    if len(read) > 1:
        raise UserError(f"has several weights files; name one of {listing(read)}")
    if not read:
        why = f"in it can be read as weights ({problems[0]})" if problems else "with a suffix of weights is in it"
        raise UserError(f"not a run: there is no readable run.json in it; and no file {why}")
    weights = next(iter(read.values()))
    if not weights.labels:
        weights = dataclasses.replace(weights, labels=class_names(path / named.CONFIG, weights.num_classes))
    return weights


def _something_else(content: bytes, *, is_text_possible: bool) -> str | None:
    """What a failed download has left in place of weights, for a person; None where they may be weights."""
    if not content:
        return "is empty"
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a git-LFS pointer, not the weights themselves; fetch them with: git lfs pull"
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page, not weights; the download went wrong, or its address was that of a page about the file"
    if len(content) > MAX_TEXT_BYTES:
        return None
    try:
        text = " ".join(content.decode("utf-8").split())
    except UnicodeDecodeError:
        return None
    if not text or not text.isprintable():
        return None
    if text.startswith(("{", "[")):
        try:
            parse_json(content, "")
        except UserError:
            return None
        return f"is JSON text, not weights: {listing([text])}"
    return None if is_text_possible else f"is text, not weights: {listing([text])}"
