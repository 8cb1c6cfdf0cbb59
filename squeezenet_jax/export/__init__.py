"""A trained network as a file for other runtimes: ONNX, StableHLO (jax.export) and LiteRT's .tflite.

Each format is a module with `convert(network, ...) -> bytes`, the file's content; `load(path) -> run`, the file as a
function of images [B, H, W, C]; and `BATCHES`, the batch sizes at which the two are compared with the flax model. The
converters are no part of the training environment (`requirements-export.txt`), so a format's module is imported only
when that format is asked for. Read next: `network.py`, `verify.py`, `onnx_file.py`.
"""

import dataclasses
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

from squeezenet_jax.export.network import Network, from_weights
from squeezenet_jax.export.verify import Difference, verify
from squeezenet_jax.system import atomic
from squeezenet_jax.system.errors import UserError, check_choice
from squeezenet_jax.weights.bundle import Weights

FORMATS = {".onnx": "onnx_file", ".stablehlo": "stablehlo_file", ".tflite": "tflite_file"}

__all__ = ["FORMATS", "Exported", "Network", "check_out", "export", "export_weights", "from_weights", "load_format"]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    size: int  # bytes
    difference: Difference


def export_weights(
    path: str | os.PathLike[str], weights: Weights, *, image_size: int | None = None, opset: int | None = None
) -> Exported:
    """`export` for weights: images are of `image_size` px, or of the size that the weights' preprocessing gives.

    Example: `export_weights("v11.onnx", load("v11.safetensors"))`. Needs the extra `export`.
    """
    return export(from_weights(weights, image_size), Path(path), opset=opset)


def export(network: Network, out: Path, *, opset: int | None = None) -> Exported:
    """Writes `out` in the format of its suffix and verifies it; on any failure `out` is as it was before.

    Raises `UserError`: unknown suffix, missing package, wrong opset, too small images, a file that computes something
    else than the flax model.
    """
    out = Path(os.path.expanduser(out))
    suffix = check_out(out, opset)
    file_format = load_format(suffix)
    options = {} if opset is None else {"opset": opset}
    network.layers()  # too small images, before any work
    content: bytes = file_format.convert(network, **options)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / f"network{suffix}"
            trial.write_bytes(content)
            difference = verify(network, file_format.load(trial), file_format.BATCHES)
        atomic.write(out, content)
    except OSError as error:
        raise UserError(f"OUT {error.filename or out}: cannot be written ({error.strerror or error})") from None
    return Exported(out, len(content), difference)


def check_out(out: Path, opset: int | None = None) -> str:
    """The suffix of `out`, known to be a format's; `UserError` for whatever can be refused without converting."""
    out = Path(os.path.expanduser(out))
    suffix = check_choice(f"OUT {out}: suffix", out.suffix.lower(), FORMATS)
    if opset is not None and suffix != ".onnx":
        raise UserError(f"opset: {opset} is not allowed; only .onnx has one, and this is a {suffix} file")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"OUT {out}: " + ("is a folder" if out.is_dir() else f"there is no folder {out.parent}"))
    return suffix


def load_format(suffix: str) -> Any:
    """The module of a format; `UserError` where the packages that it needs are not installed."""
    try:
        return importlib.import_module(f"{__name__}.{FORMATS[suffix]}")
    except ImportError as error:
        if (error.name or "").startswith("squeezenet_jax"):
            raise
        missing = error.name or error
        raise UserError(
            f"exporting {suffix} needs {missing}, which is not installed: pip install -r requirements-export.txt, "
            "or this package with its extra `export`"
        ) from None
