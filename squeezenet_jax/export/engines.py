"""Logits by onnxruntime in place of XLA: on a CPU only, where it starts sooner and is faster with single images.

onnxruntime is given the ONNX file that `export` would write, without the detour over a disk. That the two agree is what
the exporter's tests and those of the published weights hold, for every kind of network; nothing is compared at run
time, which would take the compilation that is to be saved.
"""

import math

from squeezenet_jax.export import load_format
from squeezenet_jax.export.network import from_weights
from squeezenet_jax.system import cores
from squeezenet_jax.weights.bundle import Weights
from squeezenet_jax.weights.inference import Forward


def onnxruntime(weights: Weights, batch_size: int, num_images: float = math.inf) -> Forward:
    """As `inference.compile_forward`, on the cores that this process may use. Images may come in any number at a time.

    Raises `UserError` where onnx or onnxruntime is not installed.
    """
    onnx_file = load_format(".onnx")
    content, spins = onnx_file.convert(from_weights(weights)), batch_size == 1  # of several, others are read meanwhile
    forward: Forward = onnx_file.load(content, threads=cores.cores(), spins=spins)
    return forward
