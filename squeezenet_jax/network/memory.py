"""What a network needs of a device: bytes of its weights, and of its activations at their peak, for one image.

An activation lives from the layer that computes it to the last one that reads it, in the order of the rows, and what is
not alive at the same time shares memory: the peak is the largest sum of what is alive while one layer is computed. As
runtimes do it,

- a layer's input stays while its output is written; the image counts like any input;
- a concatenation is free: its inputs are written into its memory, of which all is taken when the first is written;
- a sum is written over its first term where nobody reads that afterwards;
- activation functions and normalisations work in place.

What a kernel of the runtime needs for itself (columns of a convolution, packed weights) is not counted, nor are gaps
that an allocator leaves between buffers. Standard library only. Read next: `trace.py`.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from squeezenet_jax.network.trace import IMAGE, Layer

Precision = Literal["float32", "int8"]
VALUE_BYTES: dict[Precision, int] = {"float32": 4, "int8": 1}


class Peak(NamedTuple):
    """The most `values` (numbers, not bytes) that live at once, while `layer` is computed."""

    values: int
    layer: str

    def bytes(self, precision: Precision) -> int:
        return self.values * VALUE_BYTES[precision]


def weight_bytes(layers: Sequence[Layer], precision: Precision) -> int:
    """Of all parameters. int8: a byte for each weight, and for each filter its scale and bias in 4 bytes each.

    Batch normalisation is part of kernel and bias in int8; group normalisation has a factor of 4 bytes more.
    """
    if precision == "float32":
        return 4 * sum(layer.params for layer in layers)
    total = 0
    for layer in layers:
        if layer.kind == "conv":
            filters = layer.shape[2]
            total += math.prod(layer.parameter_shapes["kernel"]) + (12 if layer.norm == "group" else 8) * filters
    return total


def peak_activations(layers: Sequence[Layer], image_size: int) -> Peak:
    """The peak over a whole trace of images of `image_size` px, as the module's docstring defines it.

    >>> from squeezenet_jax.network.architecture import build
    >>> from squeezenet_jax.network.trace import trace
    >>> peak_activations(trace(build("v1.1"), image_size=224, num_classes=1000), 224)
    Peak(values=996416, layer='pool1')
    """
    last_reader = {name: step for step, layer in enumerate(layers) for name in layer.inputs}
    buffer_of = {IMAGE: IMAGE}  # whose memory an output is written to: a later layer's decision, hence backwards
    for step, layer in reversed(list(enumerate(layers))):
        own = buffer_of.setdefault(layer.name, layer.name)
        if layer.kind == "concat":
            buffer_of.update(dict.fromkeys(layer.inputs, own))
        elif layer.kind == "add" and last_reader[layer.inputs[0]] == step:
            buffer_of[layer.inputs[0]] = own
    size = {IMAGE: image_size**2 * layers[0].in_channels}
    size |= {layer.name: layer.activation_size for layer in layers if buffer_of[layer.name] == layer.name}
    first, last = {IMAGE: 0}, {IMAGE: 0}
    for step, layer in enumerate(layers):
        first.setdefault(buffer_of[layer.name], step)
        last |= {buffer_of[name]: step for name in (*layer.inputs, layer.name)}
    alive = [sum(size[name] for name in size if first[name] <= step <= last[name]) for step in range(len(layers))]
    peak = max(alive)
    return Peak(peak, layers[alive.index(peak)].name)
