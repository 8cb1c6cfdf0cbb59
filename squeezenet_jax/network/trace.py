"""A table as rows: one for each layer, with everything that follows from the table and the image's size.

Whoever needs the layers folds over these rows and decides nothing about the network: parameter shapes, `summary`, the
costs in reports, the ONNX writer. `model.py` is the one independent derivation of the same network, and a test compares
the two. Standard library only. Letters: H height, W width, C channels, I and O a kernel's input and output channels.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from squeezenet_jax.network.architecture import (
    NORM_EPSILON,
    POOL_STRIDE,
    POOL_WINDOW,
    Activation,
    Architecture,
    FireSpec,
    Norm,
)
from squeezenet_jax.system.errors import UserError

IMAGE = "image"  # what the first layer reads
Kind = Literal["conv", "max_pool", "concat", "add", "mean"]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer for one image. Kernel, stride and borders are the same for H and W.

    Attributes:
      name: the paper's; a convolution's is its path in the parameters ("fire2/squeeze1x1").
      kind: "conv" (a cross-correlation plus a bias), "max_pool", "concat" (the inputs' channels one after another),
        "add" (a bypass's sum) or "mean" (over H and W).
      inputs: names of the layers whose outputs, after their activations, this one reads; `IMAGE` is the image.
      in_channels: of the input; of a concatenation's inputs together.
      shape: (H, W, C) of the output.
      kernel: side of the window that moves over the input, px.
      stride: from one window to the next, px.
      borders: added before and after the input's H and W, px: zeros; -inf for a max-pool.
      activation: applied to the output before other layers read it.
      norm: of a convolution: what stands between it and its bias.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    in_channels: int
    shape: tuple[int, int, int]
    kernel: int = 1
    stride: int = 1
    borders: tuple[int, int] = (0, 0)
    activation: Activation | Literal["none"] = "none"
    norm: Norm = "none"

    @property
    def parameter_shapes(self) -> dict[str, Shape]:
        """{"kernel": (H, W, I, O), "bias": (O,)} of a convolution, with a norm "scale": (O,), too; {} of others."""
        if self.kind != "conv":
            return {}
        filters = self.shape[2]
        shapes: dict[str, Shape] = {"kernel": (self.kernel, self.kernel, self.in_channels, filters), "bias": (filters,)}
        return shapes if self.norm == "none" else shapes | {"scale": (filters,)}

    @property
    def collections(self) -> dict[str, dict[str, Shape]]:
        """Shapes of everything that the model keeps for this layer, by flax's collection."""
        running: dict[str, Shape] = {"mean": (self.shape[2],), "var": (self.shape[2],)}
        return {"params": self.parameter_shapes} | ({"batch_stats": running} if self.norm == "batch" else {})

    def kernel_and_bias(self, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
        """Of a convolution, for formats and runtimes that know nothing else; `arrays` are the network's, by path.

        Batch normalisation, whose statistics are constants once training has ended, is folded into them. Raises
        `UserError` for group normalisation, whose statistics are each example's.
        """
        kernel, bias = arrays[f"{self.name}/kernel"], arrays[f"{self.name}/bias"]
        if self.norm == "none":
            return kernel, bias
        if self.norm == "group":
            raise UserError("group normalisation is no part of a convolution: another layout or format is needed")
        scale, mean, var = (arrays[f"{self.name}/{name}"] for name in ("scale", "mean", "var"))
        factor = scale / (var + NORM_EPSILON) ** 0.5
        return kernel * factor, bias - mean * factor

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(map(math.prod, self.parameter_shapes.values()))

    @property
    def macs(self) -> int:
        """Multiply-adds of the kernel, those with border pixels included; the bias's additions are not counted."""
        height, width, _ = self.shape
        return height * width * math.prod(self.parameter_shapes["kernel"]) if self.kind == "conv" else 0

    @property
    def activation_size(self) -> int:
        """Number of values of the output."""
        return math.prod(self.shape)


def trace(arch: Architecture, *, image_size: int, channels: int = 3, num_classes: int) -> list[Layer]:
    """Every layer of a network in an order of computation; the output of the last one, pool10, is the logits.

    Dropout is left out: it belongs to training and changes no shape.

    Arguments:
      arch: the table, see `architecture.build`.
      image_size: H = W of the image, px.
      channels: of the image.
      num_classes: how many maps conv10 has.

    Raises `UserError` for a number below 1, and for an image that is smaller than the network's minimum.

    >>> from squeezenet_jax.network.architecture import build
    >>> layers = trace(build("v1.1"), image_size=224, num_classes=1000)
    >>> layers[0].name, layers[0].shape, layers[0].borders
    ('conv1', (112, 112, 64), (0, 1))
    >>> count(layers)
    (1235496, 349537280)
    """
    for field, value in (("image_size", image_size), ("channels", channels), ("num_classes", num_classes)):
        if value < 1:
            raise UserError(f"{field}: {value} is not allowed; it must be at least 1")
    layers = _trace(arch, image_size, channels, num_classes)
    if not _fits(layers):
        minimum = next(n for n in itertools.count(image_size) if _fits(_trace(arch, n, channels, num_classes)))
        raise UserError(f"image_size: {image_size} is too small for this network; it must be at least {minimum}")
    return layers


def count(layers: Sequence[Layer]) -> tuple[int, int]:
    """(parameters, MACs) of a whole trace."""
    return sum(layer.params for layer in layers), sum(layer.macs for layer in layers)


def _fits(layers: Sequence[Layer]) -> bool:
    return all(min(layer.shape) >= 1 for layer in layers)


def _trace(arch: Architecture, image_size: int, channels: int, num_classes: int) -> list[Layer]:
    rows, stem = _Rows(image_size, channels, arch), arch.stem
    borders = _same_borders(image_size, stem.kernel, stem.stride) if stem.padding == "SAME" else (0, 0)
    x = rows.conv("conv1", IMAGE, stem.features, stem.kernel, stride=stem.stride, borders=borders)
    if stem.pool:
        x = rows.max_pool("pool1", x, ceil=arch.pool_ceil)
    fires = arch.fires()
    for index, group in enumerate(arch.groups):
        for number, spec in itertools.islice(fires, len(group)):
            x = _fire(rows, f"fire{number}", spec, x)
        if index < len(arch.groups) - 1:
            x = rows.max_pool(f"pool{number}", x, ceil=arch.pool_ceil)
    x = rows.conv("conv10", x, num_classes, borders=(arch.conv10_padding,) * 2, activated=arch.conv10_relu, norm="none")
    rows.mean("pool10", x)
    return rows.layers


def _fire(rows: "_Rows", name: str, spec: FireSpec, x: str) -> str:
    s = rows.conv(f"{name}/squeeze1x1", x, spec.squeeze, activated=rows.arch.squeeze_activation)
    expand1x1 = rows.conv(f"{name}/expand1x1", s, spec.expand1x1)
    expand3x3 = rows.conv(f"{name}/expand3x3", s, spec.expand3x3, 3, borders=(1, 1))
    y = rows.concat(f"{name}/concat", expand1x1, expand3x3)
    match spec.bypass:
        case "none":
            return y
        case "identity":
            return rows.add(f"{name}/sum", y, x)
        case "conv":
            x = rows.conv(f"{name}/bypass", x, spec.features, activated=rows.arch.bypass_relu)
            return rows.add(f"{name}/sum", y, x)
        case other:
            assert_never(other)


class _Rows:
    """The rows so far. Every method appends one and returns its name, for the layers that read it."""

    def __init__(self, image_size: int, channels: int, arch: Architecture) -> None:
        self.arch = arch
        self.layers: list[Layer] = []
        self.shapes = {IMAGE: (image_size, image_size, channels)}

    def conv(
        self,
        name: str,
        x: str,
        filters: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        borders: tuple[int, int] = (0, 0),
        activated: bool = True,
        norm: Norm | None = None,
    ) -> str:
        activation, norm = self.arch.activation if activated else "none", norm or self.arch.norm
        return self._append("conv", name, (x,), filters, kernel, stride, borders, activation, norm)

    def max_pool(self, name: str, x: str, *, ceil: bool) -> str:
        size, _, channels = self.shapes[x]
        # Rounding up is a border after the input, as wide as the last window needs.
        windows = -(-(size - POOL_WINDOW) // POOL_STRIDE) + 1
        border = max(0, POOL_STRIDE * (windows - 1) + POOL_WINDOW - size) if ceil else 0
        return self._append("max_pool", name, (x,), channels, POOL_WINDOW, POOL_STRIDE, (0, border))

    def concat(self, name: str, *parts: str) -> str:
        return self._append("concat", name, parts, sum(self.shapes[part][2] for part in parts))

    def add(self, name: str, *terms: str) -> str:
        return self._append("add", name, terms, self.shapes[terms[0]][2])

    def mean(self, name: str, x: str) -> str:
        size, _, channels = self.shapes[x]
        return self._append("mean", name, (x,), channels, size)

    def _append(
        self,
        kind: Kind,
        name: str,
        inputs: tuple[str, ...],
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        borders: tuple[int, int] = (0, 0),
        activation: Activation | Literal["none"] = "none",
        norm: Norm = "none",
    ) -> str:
        size, _, in_channels = self.shapes[inputs[0]]
        out_size = (size + sum(borders) - kernel) // stride + 1
        shape = (out_size, out_size, channels)
        in_channels = channels if kind == "concat" else in_channels
        self.layers.append(Layer(name, kind, inputs, in_channels, shape, kernel, stride, borders, activation, norm))
        self.shapes[name] = shape
        return name


def _same_borders(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(before, after) of lax's SAME: ceil(size / stride) outputs, the odd pixel after."""
    windows = -(-size // stride)
    total = max(0, stride * (windows - 1) + kernel - size)
    return total // 2, total - total // 2
