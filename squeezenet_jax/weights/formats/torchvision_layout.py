"""torchvision's names for SqueezeNet's tensors: features.0, features.N.squeeze, ..., classifier.1; kernels OIHW.

torchvision numbers the layers of its `Sequential`, pools and activations included, so that the numbers follow from
where a version pools. The names say nothing of geometry or preprocessing. Genuine torchvision weights need
torchvision's, but Caffe's weights have also been published under these names; a file that is known to hold those
(`CAFFES`, or the user says so) is read with the preprocessing `caffe`, which brings Caffe's geometry with it.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from squeezenet_jax.network.architecture import VERSIONS, Architecture
from squeezenet_jax.network.trace import Shape
from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights.bundle import PREPROCESSINGS, Weights, check_shapes, flatten
from squeezenet_jax.weights.formats.infer import Wishes, assemble, hwio, infer_architecture, version_of

FIRST_KEY = "features.0.weight"
# Published weights that are known to be Caffe's: SHA-256 of features.0.weight (OIHW) as little-endian float16.
CAFFES = {
    "088e118678847ef1b6d3a8a578bcfccd7a47be521ac3686fdd55a01190c20cff": "DeepScale's v1.1",
}
ASSUMED = "assumed preprocessing"  # in the provenance of a network for which nobody has said it


def key_table(arch: Architecture) -> dict[str, str]:
    """This project's name -> torchvision's, for every tensor of the table."""
    layers = {"conv1": "features.0", "conv10": "classifier.1"}
    index, number = 3, 2  # after conv1, its ReLU and pool1
    for group in arch.groups:
        for _ in group:
            for layer in ("squeeze1x1", "expand1x1", "expand3x3"):
                key = "squeeze" if layer == "squeeze1x1" else layer
                layers[f"fire{number}/{layer}"] = f"features.{index}.{key}"
            index, number = index + 1, number + 1
        index += 1  # the pool
    suffixes = {"kernel": "weight", "bias": "bias"}
    return {f"{ours}/{a}": f"{theirs}.{b}" for ours, theirs in layers.items() for a, b in suffixes.items()}


def names_of(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """This project's name -> the file's key, after a check of the names and shapes (OIHW) of all tensors.

    Works on shapes alone so that a reader can refuse a file before it touches its data.
    """
    if FIRST_KEY not in shapes:
        raise UserError(f"not torchvision's SqueezeNet: {FIRST_KEY} is missing")
    table = key_table(VERSIONS[version_of(_hwio(shapes[FIRST_KEY]))])
    check_shapes(dict.fromkeys(shapes, ()), dict.fromkeys(table.values(), ()))
    infer_architecture({ours: _hwio(shapes[theirs]) for ours, theirs in table.items()}, geometry="torchvision")
    return table


def read(tensors: Mapping[str, np.ndarray], wishes: Wishes, provenance: Mapping[str, str]) -> Weights:
    """`Weights` of a state dict; geometry and preprocessing are torchvision's unless `wishes` or `CAFFES` say caffe."""
    table = names_of({key: x.shape for key, x in tensors.items()})
    known = hashlib.sha256(tensors[FIRST_KEY].astype("<f2").tobytes()).hexdigest() in CAFFES
    preprocessing = wishes.preprocessing or PREPROCESSINGS["caffe" if known else "torchvision"]
    assumed = {} if known else {ASSUMED: preprocessing.name}  # unless the user says it: `weights.load`
    return assemble(
        rename(tensors, table),
        geometry=preprocessing.name,
        bypass=wishes.bypass_or("none"),
        preprocessing=preprocessing,
        provenance={**provenance, **assumed},
    )


def rename(tensors: Mapping[str, np.ndarray], table: Mapping[str, str]) -> dict[str, np.ndarray]:
    """State dict -> this project's names and kernel layout."""
    return {ours: hwio(tensors[key]) if tensors[key].ndim == 4 else tensors[key] for ours, key in table.items()}


def state_dict(weights: Weights) -> dict[str, np.ndarray]:
    """The tensors as torchvision's `squeezenet1_0` or `squeezenet1_1` loads them.

    A network that those cannot compute (a bypass, a stem without pool, pools elsewhere) raises `UserError`. The border
    geometry may differ: torchvision computes with its own.
    """
    arch = weights.arch
    if any(spec.bypass != "none" for _, spec in arch.fires()):
        raise UserError("torchvision's SqueezeNet has no bypass; use --layout squeezenet_jax")
    pools = {name: [len(group) for group in version.groups] for name, version in VERSIONS.items()}
    stems = {name: (version.stem.kernel, version.stem.stride, True) for name, version in VERSIONS.items()}
    stem = (arch.stem.kernel, arch.stem.stride, arch.stem.pool)
    if not any(pools[v] == [len(group) for group in arch.groups] and stems[v] == stem for v in VERSIONS):
        raise UserError("torchvision has no SqueezeNet with this stem and these pools; use --layout squeezenet_jax")
    if not arch.conv10_relu or not arch.squeeze_activation or arch.activation != "relu":
        raise UserError("torchvision's SqueezeNet has a ReLU behind every convolution; use --layout squeezenet_jax")
    flat, tensors = flatten(weights.params), {}
    for layer in weights.trace():
        if layer.kind == "conv":
            kernel, tensors[f"{layer.name}/bias"] = layer.kernel_and_bias(flat)
            tensors[f"{layer.name}/kernel"] = kernel.transpose(3, 2, 0, 1)
    return {key: np.ascontiguousarray(tensors[ours]) for ours, key in key_table(arch).items()}


def _hwio(shape_oihw: Shape) -> Shape:
    return tuple(shape_oihw[axis] for axis in (2, 3, 1, 0)) if len(shape_oihw) == 4 else tuple(shape_oihw)
