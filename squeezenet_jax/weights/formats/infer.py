"""From a file's bare tensors to a network: the table that fits their shapes, for formats that do not record one.

A version is told by conv1's kernel (7x7: v1.0, 3x3: v1.1), the filters of every layer by its own kernel, so that wider
or narrower networks are read too. What shapes cannot tell has to be said: the geometry and the preprocessing that the
network was trained with, and a simple bypass, which has no parameters.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from squeezenet_jax.network.architecture import BYPASSES, VERSIONS, Architecture, FireSpec, with_bypass, with_geometry
from squeezenet_jax.network.trace import Shape
from squeezenet_jax.system.errors import UserError, check_choice
from squeezenet_jax.weights.bundle import Preprocessing, Weights, check_shapes, parameter_shapes, unflatten

VERSION_OF_KERNEL = {arch.stem.kernel: name for name, arch in VERSIONS.items()}


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What the user says about a file: overrides what the format assumes. None: nothing."""

    preprocessing: Preprocessing | None = None
    bypass: str | None = None
    state_dict: str | None = None

    def bypass_or(self, default: str) -> str:
        return default if self.bypass is None else self.bypass

    def refuse_bypass(self, where: str) -> None:
        if self.bypass is not None:
            raise UserError(f"bypass: {where} records its own architecture; leave --bypass out")

    def refuse_state_dict(self, where: str) -> None:
        if self.state_dict is not None:
            raise UserError(f"state_dict: {where} holds one network only; leave --state-dict out")


@dataclasses.dataclass(frozen=True)
class Described:
    """A tensor whose values have not been looked at."""

    kind: str  # a type of `FLOAT_TYPES`, or the name of another
    shape: Shape


def version_of(conv1_kernel: Shape) -> str:
    """The version whose conv1 has this kernel, its shape being (H, W, ...)."""
    side = conv1_kernel[0] if len(conv1_kernel) == 4 else 0
    if side not in VERSION_OF_KERNEL:
        raise UserError(f"conv1/kernel: shape {conv1_kernel} is neither v1.0's (7x7) nor v1.1's (3x3)")
    return VERSION_OF_KERNEL[side]


def infer_architecture(shapes: Mapping[str, Shape], *, geometry: str, bypass: str = "none") -> Architecture:
    """The table of a network with these parameters ("conv1/kernel": HWIO, ...); `UserError` where there is none."""
    if check_choice("bypass", bypass, BYPASSES) == "complex":
        raise UserError("bypass: complex has parameters of its own, which this format has no names for")
    if "conv1/kernel" not in shapes:
        raise UserError("tensors do not fit any SqueezeNet: missing conv1/kernel")
    published = VERSIONS[version_of(shapes["conv1/kernel"])]
    check_shapes(dict.fromkeys(shapes, ()), dict.fromkeys(parameter_shapes(published, channels=3, num_classes=2), ()))

    def filters(name: str) -> int:
        shape = shapes[f"{name}/kernel"]
        return shape[3] if len(shape) == 4 else 0

    def fire(name: str) -> FireSpec:
        return FireSpec(filters(f"{name}/squeeze1x1"), filters(f"{name}/expand1x1"), filters(f"{name}/expand3x3"))

    number = itertools.count(2)
    groups = tuple(tuple(fire(f"fire{next(number)}") for _ in group) for group in published.groups)
    stem = dataclasses.replace(published.stem, features=filters("conv1"))
    arch = with_bypass(with_geometry(dataclasses.replace(published, stem=stem, groups=groups), geometry), bypass)
    expected = parameter_shapes(arch, channels=shapes["conv1/kernel"][2], num_classes=filters("conv10"))
    check_shapes(shapes, expected)
    return arch


def assemble(
    tensors: Mapping[str, np.ndarray],
    *,
    geometry: str,
    bypass: str,
    preprocessing: Preprocessing,
    provenance: Mapping[str, str],
) -> Weights:
    """`Weights` of tensors under this project's names, kernels HWIO, any float type."""
    arch = infer_architecture({name: x.shape for name, x in tensors.items()}, geometry=geometry, bypass=bypass)
    channels, num_classes = tensors["conv1/kernel"].shape[2], tensors["conv10/kernel"].shape[3]
    names = parameter_shapes(arch, channels=channels, num_classes=num_classes)  # the network's order, not the file's
    return Weights(
        arch,
        unflatten({name: to_float32(tensors[name]) for name in names}),
        num_classes=num_classes,
        channels=channels,
        preprocessing=preprocessing,
        provenance=provenance,
    )


def to_float32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # `Weights` refuses what is not finite
        return np.ascontiguousarray(x, dtype=np.float32)


FLOAT_TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def decode_floats(data: bytes | bytearray | memoryview, kind: str) -> np.ndarray:
    """Flat array of little-endian floats of a type of `FLOAT_TYPES`; the size of `data` must be a multiple of it."""
    flat: np.ndarray = np.frombuffer(data, FLOAT_TYPES[kind])
    if kind == "BF16":  # the upper half of a float32
        return (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def hwio(kernel_oihw: np.ndarray) -> np.ndarray:
    """Caffe's and torch's kernel layout -> flax's."""
    return kernel_oihw.transpose(2, 3, 1, 0)
