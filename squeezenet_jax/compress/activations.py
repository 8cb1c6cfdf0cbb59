"""A network's layers computed one by one, and the moments of a convolution's input.

`model.py` computes a network as a whole, which is faster; compression needs the input of each convolution, under
weights that change from one to the next. A test compares the two. Letters: N images, B of a batch, H, W, C; P, Q and O
of a convolution's output; D = H W I, the weights of one output channel, M the windows that they are applied to.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from squeezenet_jax.network.lowering import plain
from squeezenet_jax.network.trace import Layer

BATCH_SIZE = 20
# A layer's moments are taken over at least so many windows for each of its D weights, evenly spread: neighbours say
# the same.
WINDOWS_PER_WEIGHT = 32


def pre_activation(layer: Layer, inputs: Sequence[Array], flat: Mapping[str, ArrayLike]) -> Array:
    """A layer's output without its activation, under the parameters "conv1/kernel", "conv1/bias", ..."""
    x = inputs[0]
    match layer.kind:
        case "conv":
            kernel, bias = jnp.asarray(flat[f"{layer.name}/kernel"]), jnp.asarray(flat[f"{layer.name}/bias"])
            return plain.lax_conv(x, kernel, 2 * (layer.stride,), 2 * (layer.borders,)) + bias
        case "max_pool":
            window, strides = (1, layer.kernel, layer.kernel, 1), (1, layer.stride, layer.stride, 1)
            borders = [(0, 0), layer.borders, layer.borders, (0, 0)]
            y: Array = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, borders)
            return y
        case "concat":
            return jnp.concatenate(inputs, axis=-1)
        case "add":
            return sum(inputs[1:], start=x)
        case "mean":
            return jnp.mean(x, axis=(1, 2))
        case other:
            assert_never(other)


def activation(layer: Layer, x: Array) -> Array:
    if layer.activation == "none":
        return x
    y: Array = getattr(jax.nn, layer.activation)(x)
    return y


@functools.partial(jax.jit, static_argnums=0)
def _output(layer: Layer, inputs: list[Array], flat: dict[str, Array]) -> Array:
    return activation(layer, pre_activation(layer, inputs, flat))


def output(layer: Layer, inputs_NHWC: Sequence[np.ndarray], flat: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [N, P, Q, O] after the activation, or [N, K] of the last layer; batch by batch."""
    own = {name: flat[name] for name in (f"{layer.name}/kernel", f"{layer.name}/bias") if name in flat}
    parts = [_output(layer, [x_NHWC[batch] for x_NHWC in inputs_NHWC], own) for batch in batches(len(inputs_NHWC[0]))]
    return np.concatenate([np.asarray(part) for part in parts])


def batches(number: int, size: int = BATCH_SIZE) -> list[slice]:
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


class Moments(NamedTuple):
    """Of the windows x [D] that a convolution looks at, and y [D] that it should, each pair with the weight g >= 0.

    float64, means over the images. `product_DD`: sum of g x x'. `cross_DD`: of g y x'. `sum_D`, `should_D`: of g x and
    g y. `weight`: of g.
    """

    product_DD: np.ndarray
    cross_DD: np.ndarray
    sum_D: np.ndarray
    should_D: np.ndarray
    weight: float


def windows(layer: Layer, x_BHWC: Array) -> Array:
    """[B, P, Q, D]: what each output of a convolution sees; D in the order of its kernel's H, W, I."""
    side, stride = layer.shape[0], layer.stride
    x_BHWC = jnp.pad(x_BHWC, ((0, 0), layer.borders, layer.borders, (0, 0)))
    reach = (side - 1) * stride + 1
    taps = [(row, column) for row in range(layer.kernel) for column in range(layer.kernel)]
    return jnp.concatenate([x_BHWC[:, r : r + reach : stride, c : c + reach : stride] for r, c in taps], axis=-1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(layer: Layer, every: int, x_BHWC: Array, y_BHWC: Array, weight_BPQ: Array) -> tuple[Array, ...]:
    x_MD, y_MD = (windows(layer, z).reshape(-1, layer.kernel**2 * layer.in_channels)[::every] for z in (x_BHWC, y_BHWC))
    weight_M1 = weight_BPQ.reshape(-1, 1)[::every]
    weighted_MD = weight_M1 * x_MD
    return weighted_MD.T @ x_MD, (weight_M1 * y_MD).T @ x_MD, weighted_MD.sum(0), weight_M1.T @ y_MD, weight_M1.sum()


def moments(layer: Layer, x_NHWC: np.ndarray, y_NHWC: np.ndarray, weight_NPQ: np.ndarray) -> Moments:
    """The moments of a convolution's input x beside the input y that it should have.

    Of large outputs, every n-th window is taken; n is odd, so that all columns have some.
    """
    every = max(1, weight_NPQ.size // (WINDOWS_PER_WEIGHT * layer.kernel**2 * layer.in_channels))
    every -= 1 - every % 2
    sums = [np.zeros(())] * 5
    for batch in batches(len(x_NHWC)):
        parts = _moments(layer, every, x_NHWC[batch], y_NHWC[batch], weight_NPQ[batch])
        sums = [total + np.asarray(part, np.float64) for total, part in zip(sums, parts, strict=True)]
    product, cross, first, should, weight = (total * every / len(x_NHWC) for total in sums)
    return Moments(product, cross, first, should[0], float(weight))
