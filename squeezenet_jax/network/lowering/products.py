"""Convolutions that are one matrix product each, and a bias's gradient as one, on a CPU.

Dimension letters: those of `lowering`.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from squeezenet_jax.network.lowering.plain import Pads, output_size


def add_bias(x_BPQO: Array, bias_O: Array | None) -> Array:
    """x + b for each output channel, or x; the bias's gradient is a product with ones."""
    if bias_O is None:
        return x_BPQO
    x_NO = x_BPQO.reshape(-1, x_BPQO.shape[-1])
    return (x_NO + jnp.ones((len(x_NO), 1), x_NO.dtype) @ bias_O[None]).reshape(x_BPQO.shape)


def pointwise_conv(parts: Sequence[Array], kernel_CO: Array) -> Array:
    """A 1x1 convolution with stride 1 of arrays [B, H, W, C'] whose channels, one after another, are C."""
    ends = itertools.accumulate(part.shape[-1] for part in parts)
    kernels = jnp.split(kernel_CO, list(ends)[:-1])
    # As matrices: the gradient of a product over three dimensions would transpose them.
    products = (matmul(part.reshape(-1, part.shape[-1]), kernel) for part, kernel in zip(parts, kernels, strict=True))
    y_NO: Array = functools.reduce(jnp.add, products)
    return y_NO.reshape(*parts[0].shape[:-1], -1)


@jax.custom_vjp
def matmul(x_NC: Array, kernel_CO: Array) -> Array:
    """x @ kernel, with a kernel's gradient that is fast where the kernel is narrow."""
    return x_NC @ kernel_CO


def _matmul_forward(x_NC: Array, kernel_CO: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x_NC, kernel_CO), (x_NC, kernel_CO)


def _matmul_backward(saved: tuple[Array, Array], g_NO: Array) -> tuple[Array, Array]:
    """The kernel's gradient is x^T g, or (g^T x)^T where that puts the narrower matrix first: up to 3 times as fast."""
    x_NC, kernel_CO = saved
    if x_NC.shape[1] <= g_NO.shape[1]:
        return g_NO @ kernel_CO.T, x_NC.T @ g_NO
    # Without the barrier XLA would turn it into x^T g.
    return g_NO @ kernel_CO.T, lax.optimization_barrier(g_NO.T @ x_NC).T


matmul.defvjp(_matmul_forward, _matmul_backward)


def patch_conv(x_BHWC: Array, kernel_HWCO: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """One matrix product with all windows, [N, window * C].

    Columns are grouped by the stride s, [B, H, W / s, s * C]; a row of a window is then ceil(columns / s) neighbouring
    groups, the last one cut to what the window covers. Rows are taken with a stride, whose gradient is slow; but a
    stem's input needs none.
    """
    B, H, W, C = x_BHWC.shape
    rows, columns, _, filters = kernel_HWCO.shape
    P, Q = output_size(x_BHWC, kernel_HWCO, strides, pads)
    neighbours = math.ceil(columns / strides[1])
    height, width = rows + strides[0] * P, strides[1] * (Q + neighbours - 1)
    (top, _), (left, _) = pads
    borders = ((0, 0, 0), (top, height - top - H, 0), (left, width - left - W, 0), (0, 0, 0))
    x = lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), borders)  # or cuts off, where a border is negative
    x = x.reshape(B, height, Q + neighbours - 1, strides[1] * C)
    pieces = [
        x[:, row : row + strides[0] * P : strides[0], first : first + Q, : (columns - strides[1] * first) * C]
        for row, first in itertools.product(range(rows), range(neighbours))
    ]
    patches = jnp.concatenate(pieces, axis=-1)
    y_NO = matmul(patches.reshape(-1, patches.shape[-1]), kernel_HWCO.reshape(-1, filters))
    return y_NO.reshape(B, P, Q, filters)
