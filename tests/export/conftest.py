"""Small random networks in the form in which a reader would hand them over."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from squeezenet_jax.network.architecture import Architecture, build
from squeezenet_jax.weights.bundle import Preprocessing, Weights, parameter_shapes, unflatten

CLASSES = 6


def random_weights(arch: Architecture, image_size: int, channels: int = 3) -> Weights:
    """He-normal kernels, so that every layer matters, and biases, so that a wrong border shows."""
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        std = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) == 4 else 0.2
        return rng.normal(scale=std, size=shape).astype(np.float32)

    def positive(name: str, x: np.ndarray) -> np.ndarray:
        return 0.5 + np.abs(x) if name.endswith(("scale", "var")) else x

    shapes = parameter_shapes(arch, channels=channels, num_classes=CLASSES)
    order = "L" if channels == 1 else "RGB"
    return Weights(
        arch,
        unflatten({name: positive(name, draw(shape)) for name, shape in shapes.items()}),
        CLASSES,
        channels,
        Preprocessing("test", image_size + 3, "squash", image_size, order, 1 / 255, (0.5,), (0.25,)),
        labels=("tench, goldfish", "great white shark", "hen", "日本", 'Tinca "tinca"', "crane"),
        provenance={"source": "random numbers"},
    )


def small_weights(image_size: int = 35, channels: int = 3, **variant: Any) -> Weights:
    return random_weights(build(**({"version": "v1.1", "width": 0.125} | variant)), image_size, channels)


@pytest.fixture
def make_weights() -> Callable[..., Weights]:
    return small_weights


@pytest.fixture(scope="session")
def caffe_weights() -> Weights:
    """v1.0 as Caffe has it, with bypasses: a case of everything. At 38 px its pools' sizes are rounded up for real."""
    return small_weights(38, version="v1.0", geometry="caffe", bypass="complex")
