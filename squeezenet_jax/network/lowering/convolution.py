"""Which form of a convolution is fastest on a CPU. What each gains is in benchmarks/LOG.md.

Dimension letters: those of `lowering`.
"""

import math

import jax.numpy as jnp
from jax import Array

from squeezenet_jax.network.lowering.eigen import eigen_conv
from squeezenet_jax.network.lowering.plain import Pads
from squeezenet_jax.network.lowering.products import add_bias, patch_conv
from squeezenet_jax.network.lowering.winograd import winograd_conv

# Where other forms than Eigen's convolution are faster on two cores: with a stride, one product with all windows of at
# most 3 x 3 x 3 numbers; else Winograd's, from so many channels and positions on (27 x 27, but not 13 x 13 of one
# image).
MOST_PATCH, LEAST_CHANNELS, LEAST_POSITIONS = 27, 16, 512


def conv(
    x_BHWC: Array,
    kernel_HWCO: Array,
    bias_O: Array | None,
    strides: tuple[int, int],
    pads: Pads,
    *,
    winograd_macs: float,
) -> Array:
    """lax's convolution and the bias, to rounding, in the form that is fastest for its size.

    Winograd's, which takes longer to compile, is for `winograd_macs` or more.
    """
    window, channels = kernel_HWCO.shape[:2], kernel_HWCO.shape[2]
    if strides != (1, 1) and math.prod(window) * channels <= MOST_PATCH:
        return add_bias(patch_conv(x_BHWC, kernel_HWCO, strides, pads), bias_O)
    positions = math.prod(x_BHWC.shape[:3])
    macs = positions * math.prod(kernel_HWCO.shape)
    large = channels >= LEAST_CHANNELS and positions >= LEAST_POSITIONS and macs >= winograd_macs
    # Weighted sums, by up to 19 in all, cost about four bits; bfloat16 has 8.
    if window == (3, 3) and strides == (1, 1) and large and x_BHWC.dtype == jnp.float32:
        return winograd_conv(x_BHWC, kernel_HWCO, bias_O, pads)
    return add_bias(eigen_conv(x_BHWC, kernel_HWCO, strides, pads), bias_O)
