"""ONNX in int8, by onnxruntime's own quantiser: pairs of QuantizeLinear and DequantizeLinear around every operation.

A runtime that knows the pairs computes in integers, every other one what they mean, in float. Group normalisation stays
in float: its sums are over squares. Activations are uint8 whatever the ends are. Weights take seven of eight bits,
so that no sum of two products overflows the 16 bits of `VPMADDUBSW`, on x86 without VNNI: the file means the same on
every processor. An integer input or output is one more node at that end: `quantization` in the metadata says what its
integers stand for. Read next: `tflite_int8.py`.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from squeezenet_jax.export.int8 import Affine, Decoded, Int8, Number
from squeezenet_jax.export.network import Network
from squeezenet_jax.export.onnx_file import LOGITS, QUANTIZATION
from squeezenet_jax.network.trace import IMAGE
from squeezenet_jax.system.errors import UserError

MIN_OPSET = 13  # the first whose DequantizeLinear has a scale for each channel
TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


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
            activation_type=QuantType.QUInt8,  # with int8, onnxruntime on x86 is slower than in float
            weight_type=QuantType.QInt8,
            reduce_range=True,  # of weights, to 7 bits
            nodes_to_exclude=in_float,
        )
        model = onnx.load(out)
    ends = {}
    if asked.input_type != "float32":
        ends[IMAGE] = _integer_input(model, asked.input_type)
    if asked.output_type != "float32":
        ends[LOGITS] = _integer_output(model, asked.output_type)
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
    """The image comes in integers: a DequantizeLinear before the first QuantizeLinear, which undoes it."""
    (first,) = (node for node in model.graph.node if IMAGE in node.input)
    inside = f"{IMAGE}/float"
    first.input[0] = inside
    affine, constants = _in_integers(model, first, "QuantizeLinear", number, IMAGE)
    node = helper.make_node("DequantizeLinear", [IMAGE, *constants], [inside], name=f"{IMAGE}/{number}")
    model.graph.node.insert(0, node)
    model.graph.input[0].type.tensor_type.elem_type = TYPES[number]
    return affine


def _integer_output(model: onnx.ModelProto, number: Number) -> Affine:
    """The logits leave in integers: a QuantizeLinear behind the last DequantizeLinear."""
    (last,) = (node for node in model.graph.node if LOGITS in node.output)
    inside = f"{LOGITS}/float"
    last.output[0] = inside
    affine, constants = _in_integers(model, last, "DequantizeLinear", number, LOGITS)
    node = helper.make_node("QuantizeLinear", [inside, *constants], [LOGITS], name=f"{LOGITS}/{number}")
    model.graph.node.append(node)
    model.graph.output[0].type.tensor_type.elem_type = TYPES[number]
    return affine


def _in_integers(
    model: onnx.ModelProto, node: onnx.NodeProto, operation: str, number: Number, end: str
) -> tuple[Affine, list[str]]:
    """What integers of a type stand for at an end whose node has uint8, and the names of that scale and zero point."""
    assert node.op_type == operation, f"{end}: {node.op_type} instead of {operation}"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scale, zero_point = (constants[name] for name in node.input[1:3])
    affine = Affine(number, float(scale), int(zero_point) + int(np.iinfo(number).min))
    zero_name = f"{end}/zero_point"
    model.graph.initializer.append(numpy_helper.from_array(np.array(affine.zero_point, number), zero_name))
    return affine, [node.input[1], zero_name]
