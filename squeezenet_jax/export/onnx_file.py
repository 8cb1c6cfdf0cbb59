"""ONNX, written node by node from the rows of `trace`.

So simple a network needs no converter, only `onnx.helper` and a dozen operations, all of them the same in every opset
from 9 on. The rows come from the table, not from the flax model, so the two are independent derivations of one network
and `verify` compares them.

Input `image`, float32 [batch, C, H, W] (batch is free); output `logits`, float32 [batch, K]. Nodes and weights bear
the names of the paper's layers. Read next: `stablehlo_file.py`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from squeezenet_jax.export.int8 import Affine
from squeezenet_jax.export.network import Network
from squeezenet_jax.export.verify import Run
from squeezenet_jax.network.architecture import NORM_EPSILON, Activation, group_size
from squeezenet_jax.network.trace import IMAGE, Kind, Layer
from squeezenet_jax.system.errors import UserError

BATCHES = (1, 3)
DEFAULT_OPSET = 17  # 2022: old enough for the runtimes in use, and no newer opset has anything for this network
LOGITS = "logits"
QUANTIZATION = "quantization"  # metadata: what an integer input or output stands for, of an int8 file
MIN_OPSET = 9  # the first whose weights need not be graph inputs too


def convert(network: Network, opset: int = DEFAULT_OPSET) -> bytes:
    """The network as a serialised ONNX model. Raises `UserError` for an opset that is not known."""
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise UserError(f"opset: {opset} is not allowed; it must be {MIN_OPSET} to {newest} (onnx {onnx.__version__})")
    size = network.image_size
    layers = network.layers()
    graph = _Graph(network.params)
    for layer in layers:
        graph.append(layer)
    graph.node("Flatten", LOGITS, [graph.values[layers[-1].name]], axis=1)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "SqueezeNet",
            [helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, ["batch", network.channels, size, size])],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", network.num_classes])],
            initializer=graph.weights,
        ),
        producer_name="squeezenet_jax",
        opset_imports=opsets,
        # The oldest file version that may hold the opset: the newest one would shut out older runtimes for nothing.
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    helper.set_model_props(model, network.metadata_as_text())
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def load(file: Path | bytes, threads: int = 0, *, spins: bool = True) -> Run:
    """The file, or its content, in onnxruntime on the CPU, as a function of channels-last images.

    `threads`: how many; 0 for as many as onnxruntime takes. Between two calls they wait actively if it `spins`, which
    begins one image sooner and keeps the cores from whatever else would use them. Raises `UserError` where onnxruntime
    refuses it: it may be older than onnx and not know the newest opsets.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        model = file if isinstance(file, bytes) else str(file)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Fail as error:
        reason = " ".join(str(error).split())
        raise UserError(f"onnxruntime {onnxruntime.__version__} refuses the file ({reason}); try --opset") from None

    metadata = session.get_modelmeta().custom_metadata_map
    image, logits = (
        Affine(**json.loads(metadata[key])) if (key := f"{QUANTIZATION}/{name}") in metadata else None
        for name in (IMAGE, LOGITS)
    )

    def run(image_BHWC: np.ndarray) -> np.ndarray:
        image_BCHW = np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2))
        (logits_BK,) = session.run([LOGITS], {IMAGE: image.quantize(image_BCHW) if image else image_BCHW})
        return logits.dequantize(logits_BK) if logits else np.asarray(logits_BK)

    return run


class _Graph:
    """Nodes and weights so far, and by layer the name of the value that other layers read."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.values = {IMAGE: IMAGE}

    def append(self, layer: Layer) -> None:
        inputs = [self.values[name] for name in layer.inputs]
        value = WRITERS[layer.kind](self, layer, inputs)
        if layer.activation != "none":
            value = ACTIVATIONS[layer.activation](self, f"{layer.name}/{layer.activation}", value)
        self.values[layer.name] = value

    def node(self, operation: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Appends a node whose one output bears its name, and returns that."""
        self.nodes.append(helper.make_node(operation, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """Appends an array, a kernel as OIHW, and returns its name."""
        value = np.asarray(value, dtype)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name


def _conv(graph: _Graph, layer: Layer, inputs: list[str]) -> str:
    if layer.norm == "group":
        return _group_norm(graph, layer, inputs)
    kernel, bias = layer.kernel_and_bias(graph.params)
    weights = [graph.weight(f"{layer.name}/kernel", kernel), graph.weight(f"{layer.name}/bias", bias)]
    return graph.node("Conv", layer.name, [*inputs, *weights], **_window(layer))


def _group_norm(graph: _Graph, layer: Layer, inputs: list[str]) -> str:
    """Instance normalisation of groups as long rows; ONNX's own operation came with opset 18, and wrong until 21."""
    height, width, channels = layer.shape
    name, groups = f"{layer.name}/norm", channels // group_size(channels)
    kernel = graph.weight(f"{layer.name}/kernel", graph.params[f"{layer.name}/kernel"])
    x = graph.node("Conv", layer.name, [*inputs, kernel], **_window(layer))
    x = graph.node("Reshape", f"{name}/rows", [x, graph.weight(f"{name}/to_rows", [0, groups, -1], np.int64)])
    ones, zeros = graph.weight(f"{name}/ones", np.ones(groups)), graph.weight(f"{name}/zeros", np.zeros(groups))
    x = graph.node("InstanceNormalization", f"{name}/unit", [x, ones, zeros], epsilon=NORM_EPSILON)
    maps = graph.weight(f"{name}/to_maps", [0, channels, height, width], np.int64)
    x = graph.node("Reshape", f"{name}/maps", [x, maps])
    scale, bias = (
        graph.weight(path, np.reshape(graph.params[path], (channels, 1, 1)))
        for path in (f"{layer.name}/scale", f"{layer.name}/bias")
    )
    return graph.node("Add", name, [graph.node("Mul", f"{name}/scaled", [x, scale]), bias])


def _max_pool(graph: _Graph, layer: Layer, inputs: list[str]) -> str:
    """Rounding up is explicit padding, which is never the maximum: not every runtime has ceil_mode."""
    return graph.node("MaxPool", layer.name, inputs, **_window(layer))


def _concat(graph: _Graph, layer: Layer, inputs: list[str]) -> str:
    return graph.node("Concat", layer.name, inputs, axis=1)


def _add(graph: _Graph, layer: Layer, inputs: list[str]) -> str:
    return graph.node("Add", layer.name, inputs)


def _mean(graph: _Graph, layer: Layer, inputs: list[str]) -> str:
    return graph.node("GlobalAveragePool", layer.name, inputs)


def _swish(graph: _Graph, name: str, x: str) -> str:
    return graph.node("Mul", name, [x, graph.node("Sigmoid", f"{name}/sigmoid", [x])])


ACTIVATIONS: dict[Activation, Callable[[_Graph, str, str], str]] = {
    "relu": lambda graph, name, x: graph.node("Relu", name, [x]),
    "elu": lambda graph, name, x: graph.node("Elu", name, [x], alpha=1.0),
    "leaky_relu": lambda graph, name, x: graph.node("LeakyRelu", name, [x], alpha=0.01),
    "swish": _swish,
}
WRITERS: dict[Kind, Callable[[_Graph, Layer, list[str]], str]] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "concat": _concat,
    "add": _add,
    "mean": _mean,
}


def _window(layer: Layer) -> dict[str, list[int]]:
    before, after = layer.borders
    return {
        "kernel_shape": [layer.kernel, layer.kernel],
        "strides": [layer.stride, layer.stride],
        "pads": [before, before, after, after],
    }
