"""lax's convolution, which is Eigen's on a CPU, with gradients that Eigen is fast at too.

Dimension letters: those of `lowering`.
"""

import functools

import jax
from jax import Array

from squeezenet_jax.network.lowering.plain import Pads, lax_conv


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def eigen_conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """lax's convolution, with gradients that are fast in a loop too."""
    return lax_conv(x_BHWC, kernel_HWCO, strides, pads)


def _eigen_conv_forward(
    x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return eigen_conv(x_BHWC, kernel_HWCO, strides, pads), (x_BHWC, kernel_HWCO)


def _eigen_conv_backward(
    strides: tuple[int, int], pads: Pads, saved: tuple[Array, Array], g_BPQO: Array
) -> tuple[Array, Array]:
    """dx[i] = sum over w of g'[i + before - w] k[w], and dk[w] = sum over p of x[s p + w - before] g[p].

    s is the stride, `before` the padding, and g' is g with s - 1 zeros between its elements: convolutions both.
    lax's own derivatives are the same convolutions with axes renamed instead of transposed. XLA's CPU backend turns
    those for Eigen, but not inside of a loop; there they take ten times as long.
    """
    x_BHWC, kernel_HWCO = saved
    pads_x, pads_kernel = [], []
    for (before, _), size, window, stride, steps in zip(
        pads, x_BHWC.shape[1:3], kernel_HWCO.shape[:2], strides, g_BPQO.shape[1:3], strict=True
    ):
        extent = max(0, (steps - 1) * stride + 1)  # of g'
        pads_x.append((window - 1 - before, size - extent + before))
        pads_kernel.append((before, window - 1 + extent - size - before))
    turned_HWOC = kernel_HWCO[::-1, ::-1].swapaxes(2, 3)
    gradient_x = lax_conv(g_BPQO, turned_HWOC, (1, 1), tuple(pads_x), lhs_dilation=strides)
    x_CHWB, g_PQBO = x_BHWC.transpose(3, 1, 2, 0), g_BPQO.transpose(1, 2, 0, 3)
    gradient_CHWO = lax_conv(x_CHWB, g_PQBO, (1, 1), tuple(pads_kernel), rhs_dilation=strides)
    return gradient_x, gradient_CHWO.transpose(1, 2, 0, 3)


eigen_conv.defvjp(_eigen_conv_forward, _eigen_conv_backward)
