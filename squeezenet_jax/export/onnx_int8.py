"""ONNX in int8, by onnxruntime's own quantiser: pairs of QuantizeLinear and DequantizeLinear around every operation.

A runtime that knows the pairs computes in integers, every other one what they mean, in float. Group normalisation stays
in float: its sums are over squares. An integer input or output is the pair at that end cut in two, the outer half left
to the caller: `quantization` in the metadata says what the integers stand for. Read next: `tflite_int8.py`.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from squeezenet_jax.export.int8 import Affine, Decoded, Int8, Number
from squeezenet_jax.export.network import Network
from squeezenet_jax.export.onnx_file import LOGITS, QUANTIZATION
from squeezenet_jax.network.trace import IMAGE
from squeezenet_jax.system.errors import UserError

MIN_OPSET = 13  # the first whose DequantizeLinear has a scale for each channel
TYPES = {"int8": (QuantType.QInt8, TensorProto.INT8), "uint8": (QuantType.QUInt8, TensorProto.UINT8)}


def quantize(network: Network, content: bytes, decoded: Decoded, asked: Int8) -> bytes:
    """The float file's `content` as an int8 file. Raises `UserError` for an opset that is too old."""
    model = onnx.load_from_string(content)
    opset = model.opset_import[0].version
    if opset < MIN_OPSET:
        raise UserError(f"opset: {opset} is not allowed; with --int8 it must be at least {MIN_OPSET}")
    # The writer's graph is what pre-processing makes of others: constants folded, nothing to fuse. Shapes are inferred.
    add_pre_process_metadata(model)
    groups = tuple(f"{layer.name}/norm/" for layer in network.layers() if layer.norm == "group")
    in_float = [node.name for node in model.graph.node if f"{node.name}/".startswith(groups)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "network.onnx"
        quantize_static(
            model,
            out,
            _Reader(decoded),
            quant_format=QuantFormat.QDQ,
            per_channel=not asked.per_tensor,
            activation_type=TYPES[asked.integer][0],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=in_float,
        )
        model = onnx.load(out)
    ends = {}
    if asked.input_type != "float32":
        ends[IMAGE] = _integer_input(model, asked.integer)
    if asked.output_type != "float32":
        ends[LOGITS] = _integer_output(model, asked.integer)
    for name, affine in ends.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"{QUANTIZATION}/{name}", json.dumps(affine._asdict())
    onnx.checker.check_model(model, full_check=True)
    quantized: bytes = model.SerializeToString()
    return quantized


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """One picture at a time."""

    def __init__(self, decoded: Decoded) -> None:
        self.images: Iterator[np.ndarray] = iter(decoded.image_NHWC)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image_HWC = next(self.images, None)
        return None if image_HWC is None else {IMAGE: np.ascontiguousarray(image_HWC.transpose(2, 0, 1)[None])}


def _integer_input(model: onnx.ModelProto, number: Number) -> Affine:
    """Takes the QuantizeLinear behind the input away."""
    (node,) = (node for node in model.graph.node if IMAGE in node.input)
    return _cut(model, node, "QuantizeLinear", inner=node.output[0], outer=IMAGE, value=model.graph.input[0], to=number)


def _integer_output(model: onnx.ModelProto, number: Number) -> Affine:
    """Takes the DequantizeLinear before the output away."""
    (node,) = (node for node in model.graph.node if LOGITS in node.output)
    value = model.graph.output[0]
    return _cut(model, node, "DequantizeLinear", inner=node.input[0], outer=LOGITS, value=value, to=number)


def _cut(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    operation: str,
    *,
    inner: str,
    outer: str,
    value: onnx.ValueInfoProto,
    to: Number,
) -> Affine:
    """Removes a node at an end of the graph; the tensor on its inner side takes the outer one's name."""
    assert node.op_type == operation, f"{outer}: {node.op_type} instead of {operation}"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scale, zero_point = (constants[name] for name in node.input[1:3])
    model.graph.node.remove(node)
    for other in model.graph.node:
        for names in (other.input, other.output):
            for place, name in enumerate(names):
                if name == inner:
                    names[place] = outer
    for info in [info for info in model.graph.value_info if info.name in (inner, outer)]:
        model.graph.value_info.remove(info)
    value.type.tensor_type.elem_type = TYPES[to][1]
    return Affine(to, float(scale), int(zero_point))
