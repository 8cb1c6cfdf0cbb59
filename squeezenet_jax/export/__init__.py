"""A trained network as a file for other runtimes: ONNX, StableHLO (jax.export) and LiteRT's .tflite.

Each format is a module with `convert(network, ...) -> bytes`, the file's content; `load(path) -> run`, the file as a
function of images [B, H, W, C]; and `BATCHES`, the batch sizes at which the two are compared with the flax model. The
converters are no part of the training environment (`requirements-export.txt`), so a format's module is imported only
when that format is asked for. `int8.py` is what int8 files have in common. Read next: `network.py`, `verify.py`,
`onnx_file.py`.
"""

import dataclasses
import importlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squeezenet_jax.export.int8 import Cost, Int8, judge, pictures_in
from squeezenet_jax.export.network import Network, from_weights
from squeezenet_jax.export.verify import Difference, verify
from squeezenet_jax.system import atomic, storage
from squeezenet_jax.system.errors import UserError, check_choice
from squeezenet_jax.weights.bundle import Weights

FORMATS = {".onnx": "onnx_file", ".stablehlo": "stablehlo_file", ".tflite": "tflite_file"}
INT8_FORMATS = {".onnx": "onnx_int8", ".tflite": "tflite_int8"}

__all__ = ["FORMATS", "INT8_FORMATS", "Exported", "Int8", "Network", "check_out", "export", "export_weights"]
__all__ += ["from_weights", "load_format", "pictures_in"]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    size: int  # bytes
    difference: Difference  # of the float file from the flax model
    cost: Cost | None = None  # of an int8 file, beside the float one
    unreadable: tuple[str, ...] = ()  # calibration pictures that were left out, with reasons


def export_weights(
    path: str | os.PathLike[str],
    weights: Weights,
    *,
    image_size: int | None = None,
    opset: int | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    max_drop: float | None = None,
) -> Exported:
    """`export` for weights: images are of `image_size` px, or of the size that the weights' preprocessing gives.

    Example: `export_weights("v11.onnx", load("v11.safetensors"))`. With `calibrate`, a folder of pictures, the file is
    in int8; it is refused where more than `max_drop` points of top-1 are lost (see `export.int8`). Needs the extra
    `export`.
    """
    int8 = None if calibrate is None else Int8(pictures_in(calibrate, weights), max_drop=max_drop)
    return export(from_weights(weights, image_size), Path(path), opset=opset, int8=int8)


def export(network: Network, out: Path, *, opset: int | None = None, int8: Int8 | None = None) -> Exported:
    """Writes `out` in the format of its suffix and verifies it; on any failure `out` is as it was before.

    Raises `UserError`: unknown suffix, missing package, wrong opset, too small images, a file that computes something
    else than the flax model, or in int8 answers too much worse.
    """
    out = storage.expand(out, "OUT")
    suffix = check_out(out, opset, is_int8=int8 is not None)
    file_format = load_format(suffix)
    quantizer = load_format(suffix, INT8_FORMATS) if int8 else None
    options = {} if opset is None else {"opset": opset}
    network.layers()  # too small images, before any work
    decoded = int8.pictures.read(network.preprocessing) if int8 else None
    content: bytes = file_format.convert(network, **options)
    cost = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / f"network{suffix}"
            trial.write_bytes(content)
            float_run = file_format.load(trial)
            difference = verify(network, float_run, file_format.BATCHES)
            if int8 and quantizer and decoded:
                content = quantizer.quantize(network, content, decoded, int8)
                trial_int8 = Path(folder) / f"int8{suffix}"
                trial_int8.write_bytes(content)
                cost = judge(float_run, file_format.load(trial_int8), decoded, int8.max_drop)
        atomic.write(out, content)
    except OSError as error:
        raise UserError(f"OUT {error.filename or out}: cannot be written ({error.strerror or error})") from None
    return Exported(out, len(content), difference, cost, decoded.unreadable if decoded else ())


def check_out(out: Path, opset: int | None = None, *, is_int8: bool = False) -> str:
    """The suffix of `out`, known to be a format's; `UserError` for whatever can be refused without converting."""
    out = storage.expand(out, "OUT")
    suffix = check_choice(f"OUT {out}: suffix", out.suffix.lower(), INT8_FORMATS if is_int8 else FORMATS)
    if opset is not None and suffix != ".onnx":
        raise UserError(f"opset: {opset} is not allowed; only .onnx has one, and this is a {suffix} file")
    atomic.check_place(out, "OUT")
    return suffix


def load_format(suffix: str, formats: Mapping[str, str] = FORMATS, what: str = "") -> Any:
    """The module of a format; `UserError`, about `what` is to be done, where its packages are not installed."""
    try:
        return importlib.import_module(f"{__name__}.{formats[suffix]}")
    except ImportError as error:
        if (error.name or "").startswith("squeezenet_jax"):
            raise
        missing = error.name or error
        raise UserError(
            f"{what or f'exporting {suffix}'} needs {missing}, which is not installed: "
            "pip install -r requirements-export.txt, or this package with its extra `export`"
        ) from None
