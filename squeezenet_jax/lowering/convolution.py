"""Convolutions on a CPU: Eigen's, or matrix products, with gradients that both are fast at.

Dimension letters: those of `lowering`, where these stand in for lax's.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
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
    numbers = ("NHWC", "HWIO", "NHWC")
    y: Array = lax.conv_general_dilated(
        x_BHWC, kernel_HWCO, strides, pads, lhs_dilation, rhs_dilation, dimension_numbers=numbers
    )
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    return lax_conv(x_BHWC, kernel_HWCO, strides, pads)


def _conv_forward(
    x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return conv(x_BHWC, kernel_HWCO, strides, pads), (x_BHWC, kernel_HWCO)


def _conv_backward(
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


conv.defvjp(_conv_forward, _conv_backward)


def pointwise_conv(parts: Sequence[Array], kernel_CO: Array) -> Array:
    """A 1x1 convolution with stride 1 of arrays [B, H, W, C'] whose channels, one after another, are C."""
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    kernels = jnp.split(kernel_CO, list(ends)[:-1])
    # As matrices: the gradient of a product over three dimensions would transpose them.
    products = (_matmul(part.reshape(-1, part.shape[-1]), kernel) for part, kernel in zip(parts, kernels, strict=True))
    y_NO: Array = functools.reduce(jnp.add, products)
    return y_NO.reshape(*parts[0].shape[:-1], -1)


@jax.custom_vjp
def _matmul(x_NC: Array, kernel_CO: Array) -> Array:
    return x_NC @ kernel_CO


def _matmul_forward(x_NC: Array, kernel_CO: Array) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x_NC, kernel_CO), (x_NC, kernel_CO)


def _matmul_backward(saved: tuple[Array, Array], g_NO: Array) -> tuple[Array, Array]:
    """The kernel's gradient is x^T g, or (g^T x)^T where that puts the narrower matrix first: up to 3 times as fast."""
    x_NC, kernel_CO = saved
    if x_NC.shape[1] <= g_NO.shape[1]:
        return g_NO @ kernel_CO.T, x_NC.T @ g_NO
    # Without the barrier XLA would turn it into x^T g.
    return g_NO @ kernel_CO.T, lax.optimization_barrier(g_NO.T @ x_NC).T


_matmul.defvjp(_matmul_forward, _matmul_backward)
