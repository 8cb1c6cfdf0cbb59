"""LiteRT's .tflite, without TensorFlow: StableHLO from jax, turned by `litert-converter` into 38 fused operations.

Experimental: the converter's Python interface is undocumented and may change with its next version, which the tests
and the verification would show. Input `image` [1, H, W, C], output `logits` [1, K], signature `serving_default`; the
interpreter's `resize_tensor_input` gives other batch sizes. The metadata are a zip archive behind the model.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # or the converter greets every user with a notice about oneDNN

from ai_edge_litert.interpreter import Interpreter
from litert_converter import converter_api_ext as converter
from litert_converter.mlir import ir, passmanager

from squeezenet_jax.export.attachment import attach
from squeezenet_jax.export.int8 import Affine, Number
from squeezenet_jax.export.network import Network
from squeezenet_jax.export.stablehlo_file import lower
from squeezenet_jax.export.verify import Run

BATCHES = (1, 3)
SIGNATURE = "serving_default"


def convert(network: Network) -> bytes:
    """The network as a .tflite flatbuffer."""
    # Batch 1, not a symbolic one: with a batch that it does not know, the converter fuses neither bias nor ReLU.
    program = lower(network, 1, ("cpu",)).mlir_module()
    with ir.Context() as context:
        converter.prepare_mlir_context(context)
        module = ir.Module.parse(program)
        converter.set_signature(module.operation, SIGNATURE, ["image"], ["logits"])
        passes = passmanager.PassManager()
        converter.run_convert_to_tfl_passes(module, passes, converter.ConvertToTFLConfig())
        passes.run(module.operation)
        content: bytes = converter.export_flatbuffer_to_bytes(module.operation)
    return attach(content, network.metadata_as_text())


def load(path: Path) -> Run:
    """The file in LiteRT's interpreter, resized to each batch."""
    runner = Interpreter(model_content=path.read_bytes()).get_signature_runner(SIGNATURE)  # resizes on every call
    image, logits = _affine(runner.get_input_details()["image"]), _affine(runner.get_output_details()["logits"])

    def run(image_BHWC: np.ndarray) -> np.ndarray:
        logits_BK = runner(image=image.quantize(image_BHWC) if image else image_BHWC)["logits"]
        return logits.dequantize(logits_BK) if logits else np.asarray(logits_BK)

    return run


def _affine(details: Mapping[str, Any]) -> Affine | None:
    """What the integers of an int8 file's input or output stand for; None for floats."""
    number = np.dtype(details["dtype"]).name
    return None if number == "float32" else Affine(cast(Number, number), *details["quantization"])
