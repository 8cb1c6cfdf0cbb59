"""ONNX, written node by node from the architecture table.

So simple a network needs no converter, only `onnx.helper` and seven operations: Conv, Relu, MaxPool, Concat, Add,
GlobalAveragePool, Flatten, all of them the same in every opset from 9 on. Sizes and borders come from the table and its
`trace`, not from the flax model, so the two are independent derivations of one network and `verify` compares them.

Input `image`, float32 [batch, C, H, W] (batch is free); output `logits`, float32 [batch, K]. Nodes and weights bear
the names of the paper's layers. Read next: `stablehlo_file.py`.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from squeezenet_jax.export.network import Network
from squeezenet_jax.export.verify import Run
from squeezenet_jax.network.architecture import POOL_STRIDE, POOL_WINDOW, FireSpec
from squeezenet_jax.system.errors import UserError

BATCHES = (1, 3)
DEFAULT_OPSET = 17  # 2022: old enough for the runtimes in use, and no newer opset has anything for this network
MIN_OPSET = 9  # the first whose weights need not be graph inputs too


def convert(network: Network, opset: int = DEFAULT_OPSET) -> bytes:
    """The network as a serialised ONNX model. Raises `UserError` for an opset that is not known."""
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opset <= newest:
        raise UserError(f"opset: {opset} is not allowed; it must be {MIN_OPSET} to {newest} (onnx {onnx.__version__})")
    size = network.image_size
    graph = _Graph(network)
    last = graph.classifier(graph.fires(graph.stem()))
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "SqueezeNet",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", network.channels, size, size])],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", network.num_classes])],
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


def load(path: Path) -> Run:
    """The file in onnxruntime on the CPU, as a function of channels-last images.

    Raises `UserError` where onnxruntime refuses it: it may be older than onnx and not know the newest opsets.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Fail as error:
        reason = " ".join(str(error).split())
        raise UserError(f"onnxruntime {onnxruntime.__version__} refuses the file ({reason}); try --opset") from None

    def run(image_BHWC: np.ndarray) -> np.ndarray:
        (logits,) = session.run(["logits"], {"image": np.ascontiguousarray(image_BHWC.transpose(0, 3, 1, 2))})
        return np.asarray(logits)

    return run


@dataclasses.dataclass
class _Graph:
    """Nodes and weights so far. Every method takes and returns names of values."""

    network: Network
    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    weights: list[onnx.TensorProto] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = {name: layer.shape[0] for name, layer in self.network.layers().items()}
        self.size = self.network.image_size  # of the maps at the point reached

    def stem(self) -> str:
        spec = self.network.arch.stem
        pads = _same_pads(self.size, spec.kernel, spec.stride) if spec.padding == "SAME" else (0, 0)
        x = self.conv("conv1", "image", pads=pads, stride=spec.stride)
        self.size = self.sizes["conv1"]
        return self.pool("pool1", x) if spec.pool else x

    def fires(self, x: str) -> str:
        groups, number = self.network.arch.groups, 2
        for group in groups:
            for spec in group:
                x = self.fire(f"fire{number}", spec, x)
                number += 1
            if group is not groups[-1]:
                x = self.pool(f"pool{number - 1}", x)
        return x

    def fire(self, name: str, spec: FireSpec, x: str) -> str:
        """y = [relu(W_1 s), relu(W_3 s)], s = relu(W_s x); with a bypass y + x, or y + relu(W_b x)."""
        s = self.conv(f"{name}/squeeze1x1", x)
        expands = [self.conv(f"{name}/expand1x1", s), self.conv(f"{name}/expand3x3", s, pads=(1, 1))]
        y = self.node("Concat", f"{name}/concat", expands, axis=1)
        if spec.bypass == "identity":
            return self.node("Add", f"{name}/sum", [y, x])
        if spec.bypass == "conv":
            projected = self.conv(f"{name}/bypass", x, relu=self.network.arch.bypass_relu)
            return self.node("Add", f"{name}/sum", [y, projected])
        return y

    def classifier(self, x: str) -> str:
        arch = self.network.arch
        x = self.conv("conv10", x, pads=(arch.conv10_padding, arch.conv10_padding), relu=arch.conv10_relu)
        return self.node("Flatten", "logits", [self.node("GlobalAveragePool", "pool10", [x])], axis=1)

    def conv(self, name: str, x: str, *, pads: tuple[int, int] = (0, 0), stride: int = 1, relu: bool = True) -> str:
        """Convolution with bias, and its ReLU; `pads` before and after each side."""
        layer = self.network.params
        for part in name.split("/"):
            layer = layer[part]
        kernel_HWIO, bias = np.asarray(layer["kernel"], np.float32), np.asarray(layer["bias"], np.float32)
        inputs = [x, f"{name}/kernel", f"{name}/bias"]
        kernel_OIHW = np.ascontiguousarray(kernel_HWIO.transpose(3, 2, 0, 1))
        self.weights += [numpy_helper.from_array(kernel_OIHW, inputs[1]), numpy_helper.from_array(bias, inputs[2])]
        borders = [pads[0], pads[0], pads[1], pads[1]]
        shape = list(kernel_HWIO.shape[:2])
        y = self.node("Conv", name, inputs, kernel_shape=shape, strides=[stride, stride], pads=borders)
        return self.node("Relu", f"{name}/relu", [y]) if relu else y

    def pool(self, name: str, x: str) -> str:
        """Max-pool. Rounding up is written as explicit padding (never the maximum): not every runtime has ceil_mode."""
        pad = max(0, POOL_STRIDE * (self.sizes[name] - 1) + POOL_WINDOW - self.size)
        self.size = self.sizes[name]
        window, strides = [POOL_WINDOW, POOL_WINDOW], [POOL_STRIDE, POOL_STRIDE]
        return self.node("MaxPool", name, [x], kernel_shape=window, strides=strides, pads=[0, 0, pad, pad])

    def node(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Appends a node whose one output bears its name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name


def _same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(before, after) of SAME padding: ceil(size / stride) outputs, the odd pixel at the end."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2
