"""A convolution as lax has it, and the size of its output.

Dimension letters: those of `lowering`.
"""

import jax
from jax import Array, lax

# (before the first, behind the last) row, and the same of columns.
Pads = tuple[tuple[int, int], ...]


def lax_conv(
    x_BHWC: Array,
    kernel_HWCO: Array,
    strides: tuple[int, int],
    pads: Pads,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
) -> Array:
    """lax's convolution of [B, H, W, C] with [window, C, O] -> [B, P, Q, O]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y: Array = lax.conv_general_dilated(
        x_BHWC, kernel_HWCO, strides, pads, lhs_dilation, rhs_dilation, dimension_numbers=numbers
    )
    return y


def output_size(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> tuple[int, int]:
    """(P, Q), whatever is larger than what."""
    y = jax.eval_shape(lambda x, kernel: lax_conv(x, kernel, strides, pads), x_BHWC, kernel_HWCO)
    return y.shape[1], y.shape[2]
