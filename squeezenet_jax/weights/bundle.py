"""One trained network with all that is needed to use it: table, parameters, preprocessing, class names, origin.

Every reader of this package makes a `Weights`, every writer takes one, and a `Weights` that exists is consistent: its
parameters are those of its table, in shape, name and type, and finite. Letters: H, W, C channels, K classes; kernels
are HWIO, as flax has them. Read next: `infer.py`, or `__init__.py` for the formats.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from squeezenet_jax.network.architecture import Architecture
from squeezenet_jax.network.trace import Layer, Shape, trace
from squeezenet_jax.system import nested
from squeezenet_jax.system.errors import UserError, check_choice, shown

MAX_BYTES = 1 << 28  # of a file: ten times the largest SqueezeNet of the paper (SR 1.0, 24 MB)
MAX_FILES = 20  # of a folder
MAX_CLASSES = 1_000_000
MAX_PX = 4096  # of a preprocessed image


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the network's input: resize, centre crop, then (pixel * scale - mean) / std.

    Pixels are 0..255; `mean` and `std` have one value per channel, in `channel_order`, or one for all.
    """

    name: str
    resize: int  # px
    mode: Literal["squash", "short_side"]  # to resize x resize, or the shorter side to resize
    crop: int  # px
    channel_order: Literal["RGB", "BGR", "L"]  # L: grey
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_orientation: bool = False  # whether images were turned as EXIF says; not those of published weights

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize <= MAX_PX:
            raise UserError(f"preprocessing: crop {self.crop} of {self.resize} px; 1 <= crop <= resize <= {MAX_PX}")
        for name, values in (("scale", (self.scale,)), ("mean", self.mean), ("std", self.std)):
            if not all(map(math.isfinite, values)):
                raise UserError(f"preprocessing: {name} is not finite")
        if not {len(self.mean), len(self.std)} <= {1, self.channels} or min(self.std) <= 0:
            raise UserError(f"preprocessing: mean and std need 1 or {self.channels} values, and std must be above 0")

    @property
    def channels(self) -> int:
        return len(self.channel_order)


PREPROCESSINGS = {
    # DeepScale/SqueezeNet, train_val.prototxt: mean_value 104, 117, 123 in BGR, crop_size 227, from images that were
    # stretched to 256x256 (DeepScale/SqueezeNet#8).
    "caffe": Preprocessing("caffe", 256, "squash", 227, "BGR", 1.0, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
    # torchvision/models/squeezenet.py: ImageClassification(crop_size=224) and its defaults.
    "torchvision": Preprocessing(
        "torchvision", 256, "short_side", 224, "RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
}


def preprocessing_named(name: str) -> Preprocessing:
    return PREPROCESSINGS[check_choice("preprocessing", name, PREPROCESSINGS)]


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A trained network. Raises `UserError` where its parts do not fit each other.

    `params`: nested, float32, named as `model.init` names them: conv1, fire2, {squeeze1x1, ...}, {kernel, bias}; all of
    the model's collections, which `variables` keeps apart.
    `labels`: the class names, or empty where they are not known. `provenance`: where it comes from, for people.
    `codebooks`: by layer, of a quantised network whose file had its values in an order of its own: these float32 values
    without the 0, all different. They only serve to write that file again, byte by byte.
    """

    arch: Architecture
    params: Mapping[str, Any]
    num_classes: int
    channels: int
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    codebooks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        tensors = flatten(self.params)
        check_shapes({name: np.shape(x) for name, x in tensors.items()}, self.shapes())
        for name, x in tensors.items():
            if x.dtype != np.float32:
                raise UserError(f"{name}: type {x.dtype} is not allowed; it must be float32")
            if not np.isfinite(x).all():
                raise UserError(f"{name}: has values that are not finite")
            if name.endswith("/var") and x.min() < 0:
                raise UserError(f"{name}: has negative variances")
        if self.channels != self.preprocessing.channels:
            raise UserError(
                f"preprocessing {self.preprocessing.name} gives {self.preprocessing.channels} channels, "
                f"the network takes {self.channels}"
            )
        if self.labels and len(self.labels) != self.num_classes:
            raise UserError(f"labels: {len(self.labels)} names do not match {self.num_classes} classes")
        self.trace()

    def shapes(self) -> dict[str, Shape]:
        return parameter_shapes(self.arch, channels=self.channels, num_classes=self.num_classes)

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied to: {"params": ...}."""
        return collections(self.trace(), self.params)

    def folded(self) -> "Weights":
        """The same function as convolutions and biases alone, for formats that know nothing else.

        Batch normalisation becomes part of them. Raises `UserError` for group normalisation, which cannot.
        """
        if self.arch.norm == "none":
            return self
        flat, folded = flatten(self.params), {}
        for layer in self.trace():
            if layer.kind == "conv":
                folded[f"{layer.name}/kernel"], folded[f"{layer.name}/bias"] = layer.kernel_and_bias(flat)
        arch = dataclasses.replace(self.arch, norm="none")
        return dataclasses.replace(self, arch=arch, params=unflatten(folded))

    def trace(self) -> list[Layer]:
        """The table's layers for an image of this preprocessing."""
        size = self.preprocessing.crop
        return trace(self.arch, image_size=size, channels=self.channels, num_classes=self.num_classes)


def parameter_shapes(arch: Architecture, *, channels: int, num_classes: int) -> dict[str, Shape]:
    """conv1/kernel -> (H, W, I, O), conv1/bias -> (O,), for all that a network is made of, in its order."""
    check_architecture(arch)
    if not (1 <= num_classes <= MAX_CLASSES and channels >= 1):
        raise UserError(f"{num_classes} classes and {channels} channels are not allowed")
    layers = trace(arch, image_size=MAX_PX, channels=channels, num_classes=num_classes)  # the same at every size
    return {
        f"{layer.name}/{name}": shape
        for layer in layers
        for shapes in layer.collections.values()
        for name, shape in shapes.items()
    }


def collections(layers: Iterable[Layer], params: Mapping[str, Any]) -> dict[str, Any]:
    """{"params": ...} and what else a network keeps, each nested like `params`, which may lack layers."""
    flat = flatten(params)
    sorted_: dict[str, dict[str, Any]] = {"params": {}}
    for layer in layers:
        for collection, shapes in layer.collections.items():
            paths = [path for name in shapes if (path := f"{layer.name}/{name}") in flat]
            if paths:
                sorted_.setdefault(collection, {}).update({path: flat[path] for path in paths})
    return {name: unflatten(arrays) for name, arrays in sorted_.items()}


def check_architecture(arch: Architecture) -> None:
    """Raises `UserError` for a table that no SqueezeNet has: what a damaged or hostile file may claim.

    The bounds keep every later computation on the table short.
    """
    fires = [spec for _, spec in arch.fires()]
    filters = [arch.stem.features, *(n for f in fires for n in (f.squeeze, f.expand1x1, f.expand3x3))]
    for name, values, low, high in (
        ("filters", filters, 1, 1 << 16),
        ("groups", [len(arch.groups)], 1, 8),
        ("fires of a group", [len(group) for group in arch.groups], 1, 64),
        ("conv1 kernel", [arch.stem.kernel], 1, 15),
        ("conv1 stride", [arch.stem.stride], 1, 4),
        ("conv10 padding", [arch.conv10_padding, arch.caffe_conv10_padding], 0, 16),
        ("dropout", [arch.dropout], 0, 0.999),
    ):
        for value in values:
            if not low <= value <= high:
                raise UserError(f"architecture: {name} {value} is not allowed; it must be from {low} to {high}")
    inputs = arch.stem.features
    for number, spec in arch.fires():
        if spec.bypass == "identity" and spec.features != inputs:
            raise UserError(f"architecture: fire{number} cannot have an identity bypass: its channels change")
        inputs = spec.features


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raises `UserError` that lists missing, surplus and ill-shaped tensors."""
    wrong = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    problems = [
        f"{what} {listing(names)}"
        for what, names in (
            ("missing", [name for name in expected if name not in found]),
            ("surplus", [name for name in found if name not in expected]),
            ("wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise UserError("tensors do not fit this network: " + "; ".join(problems))


def listing(names: Iterable[object], most: int = 6) -> str:
    """Names for an error line: the first few, printable whatever a file has put into them."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(shown, listed[:most])) + more


def flatten(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"fire2": {"squeeze1x1": {"kernel": x}}} -> {"fire2/squeeze1x1/kernel": x}."""
    return nested.flatten(params, "/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return nested.unflatten(flat, "/")
